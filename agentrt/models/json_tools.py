"""Tools for models that cannot call any: the answer is held to a JSON Schema in which a tool call is one alternative.

    {"tool": "weather", "arguments": {"city": "Rome"}}      or      {"answer": "It is sunny."}

`ask` turns a request with tools into one for such an answer, `read` and `read_stream` turn the answer back; the text of
an answer is streamed while it is being written. It is meant for small models, so a tool is offered once in each turn: a
135M model that may call a tool again does, for ever.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator
from typing import Any

import msgspec

from agentrt.errors import TransientError
from agentrt.models.collect import new_call_id
from agentrt.models.failures import Provider
from agentrt.models.protocol import (
    Finished,
    Message,
    ModelRequest,
    ModelResponse,
    Part,
    StreamItem,
    TextDelta,
    TextPart,
    ToolCall,
    ToolCallDelta,
    ToolSpec,
)
from agentrt.models.schemas import hoisted

__all__ = ["AnswerText", "ask", "read", "read_stream"]

Json = dict[str, Any]
_FORM = 'Reply with JSON only. To use a tool: {"tool": "NAME", "arguments": {...}}. To answer: {"answer": "TEXT"}.'
# In this order, and a tool's example twice if there is but one: measured with SmolLM2-135M, which otherwise takes
# whatever kind of example came last.
_GREETING = ("Hi, who are you?", '{"answer": "I am an assistant."}')
_MINIMUM_EXAMPLES = 2


def ask(request: ModelRequest) -> ModelRequest:
    """The request without tools whose answer is a tool call or an answer, in JSON."""
    messages = [Message("system", _instructions(request)), *_examples(request.tools)]
    names: dict[str, str] = {}
    called: set[str] = set()
    previous = ""
    for message in request.messages:
        match message.role:
            case "system":
                continue
            case "assistant":
                names |= {call.id: call.name for call in message.tool_calls}
                messages += [Message("assistant", text) for text in _as_json(message)]
            case "tool":
                name = names.get(message.tool_call_id or "", "the tool")
                called.add(name)
                said = f"{'Error' if message.is_error else 'Result'} of {name}: {_text(message.content)}"
                if previous == "tool":
                    messages[-1] = Message("user", f"{messages[-1].content}\n{said}")
                else:
                    messages.append(Message("user", said))
            case "user":
                called.clear()
                messages.append(message)
        previous = message.role
    offered = [tool for tool in request.tools if tool.name not in called]
    return msgspec.structs.replace(
        request,
        messages=messages,
        tools=[],
        output_schema=_schema(offered, request.output_schema),
        output_name="reply",
    )


def read(request: ModelRequest, response: ModelResponse, provider: Provider) -> ModelResponse:
    """The answer to `request` that is in the answer to `ask(request)`."""
    answer = AnswerText()
    text = answer.feed(response.text)
    return _result(request, response, answer, text, provider)


async def read_stream(
    request: ModelRequest, items: AsyncGenerator[StreamItem, None], provider: Provider
) -> AsyncGenerator[StreamItem, None]:
    """The same for a stream: text as it comes, a tool call at the end."""
    answer = AnswerText()
    pieces: list[str] = []
    try:
        async for item in items:
            if isinstance(item, TextDelta):
                text = answer.feed(item.text)
                if text:
                    pieces.append(text)
                    yield TextDelta(text)
            elif isinstance(item, Finished):
                seen = "".join(pieces)
                response = _result(request, item.response, answer, seen, provider)
                if len(response.text) > len(seen):
                    yield TextDelta(response.text[len(seen) :])
                for index, call in enumerate(response.tool_calls):
                    yield ToolCallDelta(index, call.id, call.name, call.arguments)
                yield Finished(response)
            else:
                yield item
    finally:
        await items.aclose()


# --- asking --------------------------------------------------------------------------------------------


def _instructions(request: ModelRequest) -> str:
    told = [_text(message.content) for message in request.messages if message.role == "system"]
    tools = "\n".join(f"- {_signature(tool)}: {tool.description}" for tool in request.tools)
    return "\n\n".join([*told, f"You can use these tools:\n{tools}\n{_FORM}"])


def _signature(tool: ToolSpec) -> str:
    properties = tool.parameters.get("properties", {})
    arguments = ", ".join(f"{name}: {_kind(schema)}" for name, schema in properties.items())
    return f"{tool.name}({arguments})"


def _kind(schema: Any) -> str:
    if not isinstance(schema, dict):
        return "any"
    if "enum" in schema:
        return " | ".join(json.dumps(value) for value in schema["enum"])
    return str(schema.get("type", "any"))


def _examples(tools: list[ToolSpec]) -> list[Message]:
    messages = [Message("user", _GREETING[0]), Message("assistant", _GREETING[1])]
    for tool in tools * (_MINIMUM_EXAMPLES if len(tools) < _MINIMUM_EXAMPLES else 1):
        properties = tool.parameters.get("properties", {})
        arguments = {name: _placeholder(schema) for name, schema in properties.items()}
        messages.append(Message("user", tool.description))
        messages.append(Message("assistant", _call_text(tool.name, arguments)))
    return messages


def _placeholder(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return "..."
    if schema.get("enum"):
        return schema["enum"][0]
    empty: Json = {"number": 5, "integer": 5, "boolean": True, "array": [], "object": {}}
    kind = schema.get("type")
    return empty.get(kind, "...") if isinstance(kind, str) else "..."


def _schema(tools: list[ToolSpec], output: Json | None) -> Json:
    definitions: Json = {}
    answer: Json = {"type": "string"} if output is None else hoisted(output, "answer_", definitions)
    options = [_object({"answer": answer})]
    for number, tool in enumerate(tools):
        arguments = hoisted(tool.parameters, f"tool{number}_", definitions)
        options.append(_object({"tool": {"const": tool.name}, "arguments": arguments}))
    schema: Json = {"anyOf": options} if len(options) > 1 else options[0]
    return {**schema, "$defs": definitions} if definitions else schema


def _object(properties: Json) -> Json:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _as_json(message: Message) -> list[str]:
    """What the assistant said before, in the form it is to go on with."""
    said = [_call_text(call.name, _arguments(call.arguments)) for call in message.tool_calls]
    text = _text(message.content)
    return said or [json.dumps({"answer": text}, ensure_ascii=False)]


def _call_text(name: str, arguments: Any) -> str:
    return json.dumps({"tool": name, "arguments": arguments}, ensure_ascii=False)


def _arguments(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _text(content: str | list[Part]) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part.text for part in content if isinstance(part, TextPart))


# --- reading -------------------------------------------------------------------------------------------


def _result(
    request: ModelRequest, response: ModelResponse, answer: AnswerText, text: str, provider: Provider
) -> ModelResponse:
    """`text`: what `answer` has found of the answer's text."""
    change = msgspec.structs.replace
    if answer.is_text:
        return change(response, text=text)
    try:
        reply = json.loads(response.text)
    except ValueError:
        reply = None
    if isinstance(reply, dict):
        name, arguments = reply.get("tool"), reply.get("arguments", {})
        if isinstance(name, str) and isinstance(arguments, dict):
            call = ToolCall(new_call_id(), name, json.dumps(arguments, ensure_ascii=False))
            return change(response, text="", tool_calls=[call], finish="tool_calls")
        if "answer" in reply:
            value = reply["answer"]
            said = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            return change(response, text=said)
    if response.finish in ("length", "content_filter") or not response.text.strip():
        return change(response, text="")
    raise TransientError(
        f"{provider}: {request.model} answered neither with a tool call nor with an answer: {response.text[:200]!r}"
    )


_ANSWER = re.compile(r'\s*\{\s*"answer"\s*:\s*"')
_OTHER = re.compile(r'\s*\{\s*("(?!answer")[^"]*"|"answer"\s*:\s*[^"\s]|\})')
_SPECIAL = re.compile(r'["\\]')
_HALF = re.compile(r"(\\(u[0-9a-fA-F]{0,3})?)?")
_UNICODE = re.compile(r"\\u([0-9a-fA-F]{4})")


class AnswerText:
    """Finds the string in `{"answer": "..."}` while it is being written.

    `is_text`: it is such a string, or no JSON at all, which is taken as the answer itself (a server may ignore the
    schema). Anything else is for whoever has the whole of it.
    """

    def __init__(self) -> None:
        self.is_text = False
        self._plain = False
        self._decided = False
        self._ended = False
        self._raw = ""

    def feed(self, piece: str) -> str:
        """The next piece of JSON; returns what it adds to the answer's text."""
        if self._plain:
            return piece
        if self._ended:
            return ""
        self._raw += piece
        if not self._decided:
            self._decide()
        if self._plain:
            return self._raw
        return self._take() if self.is_text else ""

    def _decide(self) -> None:
        start = self._raw.lstrip()
        if not start:
            return
        if start[0] != "{":
            self._decided = self._plain = self.is_text = True
        elif (found := _ANSWER.match(self._raw)) is not None:
            self._decided = self.is_text = True
            self._raw = self._raw[found.end() :]
        elif _OTHER.match(self._raw) is not None:
            self._decided = self._ended = True

    def _take(self) -> str:
        """Decode as much as is certain: not half an escape, nor half a pair of surrogates."""
        raw, at = self._raw, 0
        while True:
            special = _SPECIAL.search(raw, at)
            if special is None:
                at = len(raw)
                break
            at = special.start()
            if raw[at] == '"':
                self._ended = True
                break
            end = _escape_end(raw, at)
            if end is None:
                break
            at = end
        self._raw = raw[at:]
        try:
            text = str(json.loads(f'"{raw[:at]}"', strict=False))
        except ValueError:  # an escape that does not exist, from a server that holds the model to nothing
            text = raw[:at]
        if any("\ud800" <= char <= "\udfff" for char in text):
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return text


def _escape_end(raw: str, at: int) -> int | None:
    """Where the escape at `at` ends, a pair of surrogates as one; None if it is not all there yet."""
    if len(raw) < at + 2:
        return None
    if raw[at + 1] != "u":
        return at + 2
    if len(raw) < at + 6:
        return None
    found = _UNICODE.match(raw, at)
    if found is None or not 0xD800 <= int(found[1], 16) < 0xDC00:
        return at + 6
    following = raw[at + 6 : at + 12]
    if _HALF.fullmatch(following):
        return None
    return at + 12 if _UNICODE.match(following) else at + 6
