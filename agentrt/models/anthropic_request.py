"""A request in the shape of Anthropic's messages wire."""

from __future__ import annotations

import base64
import binascii
from typing import Any, Literal

import msgspec

from agentrt.models.protocol import FilePart, ImagePart, Message, ModelRequest, Part, TextPart
from agentrt.models.schemas import closed, name_of, resolved_root

__all__ = ["OutputMode", "encode"]

Json = dict[str, Any]
OutputMode = Literal["format", "tool"]
_THINKING = ("thinking", "redacted_thinking")


def encode(request: ModelRequest, *, stream: bool, max_tokens: int, output_mode: OutputMode) -> bytes:
    """The body of the request. `max_tokens`: the limit if the request has none, for the wire demands one."""
    settings = request.settings
    body: Json = {
        "model": request.model,
        "max_tokens": settings.max_tokens if settings.max_tokens is not None else max_tokens,
        "messages": _turns(request.messages),
    }
    system = [_text(message) for message in request.messages if message.role == "system"]
    if system:
        body["system"] = "\n\n".join(system)
    if stream:
        body["stream"] = True
    tools = [
        {"name": tool.name, "description": tool.description, "input_schema": tool.parameters}
        for tool in request.tools
    ]
    if settings.reasoning_effort is not None:
        body["output_config"] = {"effort": settings.reasoning_effort}
    if request.output_schema is not None:
        if output_mode == "format":
            form = {"type": "json_schema", "schema": closed(request.output_schema)}
            body["output_config"] = {**body.get("output_config", {}), "format": form}
        else:
            body["tool_choice"] = {"type": "any"} if tools else {"type": "tool", "name": output_tool(request)}
            tools.append(
                {
                    "name": output_tool(request),
                    "description": "Gives the final answer. Call it once, when the answer is known.",
                    "input_schema": resolved_root(request.output_schema),
                }
            )
    if tools:
        body["tools"] = tools
    for name, value in (("temperature", settings.temperature), ("top_p", settings.top_p)):
        if value is not None:
            body[name] = value
    if settings.stop is not None:
        body["stop_sequences"] = settings.stop
    for name, value in settings.extra.items():
        if value is None:
            body.pop(name, None)
        else:
            body[name] = value
    return msgspec.json.encode(body)


def output_tool(request: ModelRequest) -> str:
    """The name of the tool by which the model answers when `output_mode` is "tool"."""
    return name_of(request.output_name)


def _turns(messages: list[Message]) -> list[Json]:
    """User's and assistant's turns; what follows one another in the same role is one turn.

    All results of a turn's tool calls have to stand in the very next user's turn.
    """
    turns: list[Json] = []
    for message in messages:
        if message.role == "system":
            continue
        role = "assistant" if message.role == "assistant" else "user"
        blocks = _blocks(message)
        if not blocks:
            continue
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"].extend(blocks)
        else:
            turns.append({"role": role, "content": blocks})
    return turns


def _blocks(message: Message) -> list[Json]:
    if message.role == "tool":
        result: Json = {"type": "tool_result", "tool_use_id": message.tool_call_id or ""}
        content = _content(message)
        if content:
            result["content"] = content
        if message.is_error:
            result["is_error"] = True
        return [result]
    blocks = [block for block in message.continuation if block.get("type") in _THINKING]
    blocks += _content(message)
    blocks += [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": _input(call.arguments)}
        for call in message.tool_calls
    ]
    return blocks


def _content(message: Message) -> list[Json]:
    """The content as blocks. Empty text is left out: the wire refuses it."""
    if isinstance(message.content, str):
        return [{"type": "text", "text": message.content}] if message.content else []
    return [_part(part) for part in message.content if not (isinstance(part, TextPart) and not part.text)]


def _input(arguments: str) -> Any:
    """The arguments of a call as the object that the wire wants, also if the model did not write one."""
    try:
        value = msgspec.json.decode(arguments)
    except msgspec.DecodeError:
        value = None
    return value if isinstance(value, dict) else {"arguments": arguments}


def _text(message: Message) -> str:
    if isinstance(message.content, str):
        return message.content
    return "\n".join(part.text for part in message.content if isinstance(part, TextPart))


def _part(part: Part) -> Json:
    match part:
        case TextPart():
            return {"type": "text", "text": part.text}
        case ImagePart():
            return {"type": "image", "source": _source(part)}
        case FilePart():
            if part.media_type.startswith("text/"):
                source: Json = {"type": "text", "media_type": "text/plain", "data": _decoded(part.data)}
            else:
                source = {"type": "base64", "media_type": part.media_type, "data": part.data}
            return {"type": "document", "title": part.name, "source": source}


def _source(part: ImagePart) -> Json:
    if part.url is None:
        return {"type": "base64", "media_type": part.media_type, "data": part.data or ""}
    if part.url.startswith("data:"):
        kind, _, data = part.url.removeprefix("data:").partition(",")
        return {"type": "base64", "media_type": kind.partition(";")[0] or part.media_type, "data": data}
    return {"type": "url", "url": part.url}


def _decoded(data: str) -> str:
    try:
        return base64.b64decode(data, validate=True).decode(errors="replace")
    except binascii.Error:
        return data
