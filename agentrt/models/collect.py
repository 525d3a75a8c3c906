"""Puts a streamed answer together, and guesses the tokens that a provider does not report."""

from __future__ import annotations

import math
import os
from typing import Any

import msgspec

from agentrt.models.protocol import (
    FilePart,
    Finished,
    FinishReason,
    ImagePart,
    ModelRequest,
    ModelResponse,
    ReasoningDelta,
    StreamItem,
    TextDelta,
    TextPart,
    ToolCall,
    ToolCallDelta,
    Usage,
)

__all__ = ["Answer", "estimate", "new_call_id", "pieces"]

CHARS_PER_TOKEN = 4
TOKENS_PER_IMAGE = 1000


class Answer:
    """What has come of an answer so far. Each `add` returns the item that the consumer gets."""

    __slots__ = (
        "_calls",
        "_numbers",
        "_reasoning",
        "_text",
        "continuation",
        "finish",
        "id",
        "model",
        "refused",
        "usage",
    )

    def __init__(self) -> None:
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[tuple[str, str, list[str]]] = []
        self._numbers: dict[int, int] = {}
        self.refused = False
        self.finish: FinishReason | None = None
        self.usage: Usage | None = None
        self.model = ""
        self.id = ""
        self.continuation: list[dict[str, Any]] = []

    def add_text(self, text: str) -> TextDelta:
        self._text.append(text)
        return TextDelta(text)

    def add_reasoning(self, text: str) -> ReasoningDelta:
        self._reasoning.append(text)
        return ReasoningDelta(text)

    def begin_call(
        self, *, id: str, name: str, arguments: str = "", number: int | None = None
    ) -> ToolCallDelta:
        """A further tool call, `number` being the provider's for it; a missing or a used `id` is replaced."""
        if not id or any(id == call[0] for call in self._calls):
            id = new_call_id()
        index = len(self._calls)
        if number is not None:
            self._numbers[number] = index
        self._calls.append((id, name, [arguments] if arguments else []))
        return ToolCallDelta(index, id, name, arguments)

    def index_of(self, number: int | None, id: str | None) -> int | None:
        """Which of the calls a piece belongs to that the provider marked so; None: it begins a new one."""
        index = len(self._calls) - 1 if number is None else self._numbers.get(number, -1)
        if index < 0 or (id and id != self._calls[index][0]):
            return None
        return index

    def add_arguments(self, index: int, arguments: str) -> ToolCallDelta:
        self._calls[index][2].append(arguments)
        return ToolCallDelta(index, arguments=arguments)

    def is_whole(self, index: int) -> bool:
        """Whether the arguments of a call are complete."""
        try:
            msgspec.json.decode("".join(self._calls[index][2]))
        except msgspec.DecodeError:
            return False
        return True

    def response(self, request: ModelRequest) -> ModelResponse:
        """The whole answer; a call without arguments has the empty object, and missing usage is estimated."""
        calls = [ToolCall(id, name, "".join(arguments) or "{}") for id, name, arguments in self._calls]
        finish = self.finish or "stop"
        response = ModelResponse(
            text="".join(self._text),
            tool_calls=calls,
            finish="tool_calls" if calls and finish == "stop" else finish,
            reasoning="".join(self._reasoning),
            model=self.model or request.model,
            id=self.id,
            continuation=self.continuation,
        )
        usage = self.usage if self.usage is not None else estimate(request, response)
        return msgspec.structs.replace(response, usage=usage)


def pieces(item: StreamItem | ModelResponse | str) -> list[StreamItem]:
    """What a stream would say: the item itself, or those of a whole answer that stands in for a stream."""
    if isinstance(item, StreamItem):
        return [item]
    if isinstance(item, str):
        item = ModelResponse(text=item)
    if not isinstance(item, ModelResponse):
        raise TypeError(
            f"{item!r} was served instead of a model's answer; a default or a stage of your own gives a text or a "
            "ModelResponse"
        )
    said: list[StreamItem] = [ReasoningDelta(item.reasoning)] if item.reasoning else []
    said += [TextDelta(item.text)] if item.text else []
    for index, call in enumerate(item.tool_calls):
        said.append(ToolCallDelta(index, call.id, call.name, call.arguments))
    return [*said, Finished(item)]


def new_call_id() -> str:
    """An id for a tool call to which the provider gave none; ids are unique within a conversation."""
    return f"call_{os.urandom(8).hex()}"


def estimate(request: ModelRequest, response: ModelResponse) -> Usage:
    """About four characters a token, marked as estimated."""
    sent = sum(
        len(tool.name) + len(tool.description) + len(msgspec.json.encode(tool.parameters))
        for tool in request.tools
    )
    images = 0
    for message in request.messages:
        sent += sum(len(call.name) + len(call.arguments) for call in message.tool_calls)
        if isinstance(message.content, str):
            sent += len(message.content)
            continue
        for part in message.content:
            match part:
                case TextPart():
                    sent += len(part.text)
                case ImagePart():
                    images += 1
                case FilePart():
                    sent += len(part.data) * 3 // 4
    got = len(response.text) + len(response.reasoning)
    got += sum(len(call.name) + len(call.arguments) for call in response.tool_calls)
    return Usage(
        input_tokens=_tokens(sent) + images * TOKENS_PER_IMAGE,
        output_tokens=_tokens(got),
        reasoning_output_tokens=_tokens(len(response.reasoning)),
        estimated=True,
    )


def _tokens(characters: int) -> int:
    return math.ceil(characters / CHARS_PER_TOKEN)
