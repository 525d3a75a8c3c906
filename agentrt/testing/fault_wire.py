"""What the fault server says: good answers on both wires, whole and as event streams, and bodies of errors."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

__all__ = ["Reply", "Wire", "anthropic_error", "openai_error"]

Json = dict[str, Any]


class Reply(Struct, frozen=True, kw_only=True):
    """A good answer. `tool_calls`: (name, arguments) pairs. `finish`: "stop", "length" or "content_filter"; it becomes
    what the wire calls it. `usage`: input and output tokens, or None to leave it out. `pieces`: events that the text is
    cut into when it is streamed."""

    text: str = "Hello from the fault server."
    reasoning: str = ""
    tool_calls: tuple[tuple[str, Json], ...] = ()
    finish: str = "stop"
    usage: tuple[int, int] | None = (7, 6)
    cached: int = 0
    pieces: int = 5


class Wire(Struct, frozen=True):
    """One of the two wires: `name` is "openai" or "anthropic"."""

    name: str

    def whole(self, reply: Reply, model: str) -> bytes:
        return _encode(_openai(reply, model) if self.name == "openai" else _anthropic(reply, model))

    def events(self, reply: Reply, model: str) -> list[bytes]:
        """The stream's events; without the last one it has no proper end."""
        return _openai_events(reply, model) if self.name == "openai" else _anthropic_events(reply, model)

    def error(self, status: int, message: str, *, type: str = "", code: str | None = None) -> bytes:
        return (openai_error if self.name == "openai" else anthropic_error)(status, message, type, code)

    def error_event(self, message: str) -> bytes:
        """An error inside a stream that began well."""
        if self.name == "openai":
            return b"data: " + openai_error(500, message, "server_error", None) + b"\n\n"
        return b"event: error\ndata: " + anthropic_error(529, message, "overloaded_error", None) + b"\n\n"


def _encode(value: Json) -> bytes:
    return msgspec.json.encode(value)


def _cut(text: str, pieces: int) -> list[str]:
    """The text in up to so many pieces of about the same length."""
    size = max(1, -(-len(text) // max(1, pieces)))
    return [text[at : at + size] for at in range(0, len(text), size)]


# --- OpenAI --------------------------------------------------------------------------------------------


def openai_error(status: int, message: str, type: str, code: str | None) -> bytes:
    kind = type or ("invalid_request_error" if status < 500 else "server_error")
    return _encode({"error": {"message": message, "type": kind, "param": None, "code": code}})


def _openai_usage(reply: Reply) -> Json | None:
    if reply.usage is None:
        return None
    sent, got = reply.usage
    return {
        "prompt_tokens": sent,
        "completion_tokens": got,
        "total_tokens": sent + got,
        "prompt_tokens_details": {"cached_tokens": reply.cached},
        "completion_tokens_details": {"reasoning_tokens": len(reply.reasoning.split())},
    }


def _openai_finish(reply: Reply) -> str:
    return "tool_calls" if reply.tool_calls and reply.finish == "stop" else reply.finish


def _openai_calls(reply: Reply) -> list[Json]:
    return [
        {
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": name, "arguments": msgspec.json.encode(arguments).decode()},
        }
        for number, (name, arguments) in enumerate(reply.tool_calls)
    ]


def _openai(reply: Reply, model: str) -> Json:
    message: Json = {"role": "assistant", "content": reply.text or None}
    if reply.reasoning:
        message["reasoning_content"] = reply.reasoning
    if reply.tool_calls:
        message["tool_calls"] = _openai_calls(reply)
    body: Json = {
        "id": "chatcmpl-fault",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": _openai_finish(reply)}],
    }
    usage = _openai_usage(reply)
    return body if usage is None else body | {"usage": usage}


def _openai_events(reply: Reply, model: str) -> list[bytes]:
    head: Json = {"id": "chatcmpl-fault", "object": "chat.completion.chunk", "created": 1, "model": model}
    deltas: list[Json] = [{"role": "assistant", "content": ""}]
    deltas += [{"reasoning_content": piece} for piece in _cut(reply.reasoning, reply.pieces)]
    deltas += [{"content": piece} for piece in _cut(reply.text, reply.pieces)]
    for number, call in enumerate(_openai_calls(reply)):
        function = call["function"]
        first = {"name": function["name"], "arguments": ""}
        deltas.append({"tool_calls": [{"index": number, **call, "function": first}]})
        deltas += [
            {"tool_calls": [{"index": number, "function": {"arguments": piece}}]}
            for piece in _cut(function["arguments"], 2)
        ]
    chunks: list[Json] = [
        {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas
    ]
    chunks.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": _openai_finish(reply)}]})
    usage = _openai_usage(reply)
    if usage is not None:
        chunks.append({**head, "choices": [], "usage": usage})
    return [b"data: " + _encode(chunk) + b"\n\n" for chunk in chunks] + [b"data: [DONE]\n\n"]


# --- Anthropic -----------------------------------------------------------------------------------------

_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}


def anthropic_error(status: int, message: str, type: str, code: str | None) -> bytes:
    del code  # this wire has none
    kind = type or _ANTHROPIC_TYPES.get(status, "api_error")
    return _encode({"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_fault"})


def _anthropic_finish(reply: Reply) -> str:
    if reply.tool_calls and reply.finish == "stop":
        return "tool_use"
    return {"stop": "end_turn", "length": "max_tokens", "content_filter": "refusal"}.get(
        reply.finish, reply.finish
    )


def _anthropic_blocks(reply: Reply) -> list[Json]:
    blocks: list[Json] = []
    if reply.reasoning:
        blocks.append({"type": "thinking", "thinking": reply.reasoning, "signature": "signed"})
    if reply.text:
        blocks.append({"type": "text", "text": reply.text})
    for number, (name, arguments) in enumerate(reply.tool_calls):
        blocks.append({"type": "tool_use", "id": f"toolu_{number}", "name": name, "input": arguments})
    return blocks


def _anthropic_usage(reply: Reply) -> Json:
    if reply.usage is None:
        return {}
    sent, got = reply.usage
    return {
        "input_tokens": sent - reply.cached,
        "cache_read_input_tokens": reply.cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": got,
    }


def _anthropic(reply: Reply, model: str) -> Json:
    return {
        "id": "msg_fault",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": _anthropic_blocks(reply),
        "stop_reason": _anthropic_finish(reply),
        "stop_sequence": None,
        "usage": _anthropic_usage(reply),
    }


def _anthropic_events(reply: Reply, model: str) -> list[bytes]:
    usage = _anthropic_usage(reply)
    message = _anthropic(reply, model) | {"content": [], "stop_reason": None}
    if usage:
        message["usage"] = {**usage, "output_tokens": 1}
    events: list[Json] = [{"type": "message_start", "message": message}, {"type": "ping"}]
    for index, block in enumerate(_anthropic_blocks(reply)):
        empty, deltas = _anthropic_deltas(block, reply.pieces)
        events.append({"type": "content_block_start", "index": index, "content_block": empty})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    end: Json = {
        "type": "message_delta",
        "delta": {"stop_reason": _anthropic_finish(reply), "stop_sequence": None},
    }
    events.append(end | {"usage": {"output_tokens": usage["output_tokens"]} if usage else {}})
    events.append({"type": "message_stop"})
    return [b"event: %b\ndata: %b\n\n" % (event["type"].encode(), _encode(event)) for event in events]


def _anthropic_deltas(block: Json, pieces: int) -> tuple[Json, list[Json]]:
    """A block as it starts, and what follows."""
    match block["type"]:
        case "text":
            return {"type": "text", "text": ""}, [
                {"type": "text_delta", "text": piece} for piece in _cut(block["text"], pieces)
            ]
        case "thinking":
            deltas: list[Json] = [
                {"type": "thinking_delta", "thinking": piece} for piece in _cut(block["thinking"], pieces)
            ]
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
            return {"type": "thinking", "thinking": "", "signature": ""}, deltas
        case _:
            arguments = msgspec.json.encode(block["input"]).decode()
            return block | {"input": {}}, [
                {"type": "input_json_delta", "partial_json": piece} for piece in ["", *_cut(arguments, 2)]
            ]
