"""What a model client is asked and what it answers. A plugin of the group `agentrt.models` implements `ModelClient`.

A model is named `prefix:model`; the prefix finds the client, which gets the rest as `request.model`. Clients do not
retry, time out or fall back: the pipeline around them does. They raise the errors of `agentrt.errors`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, Literal, Protocol

from msgspec import Struct

from agentrt.clock import Clock

__all__ = [
    "FilePart",
    "FinishReason",
    "Finished",
    "Host",
    "ImagePart",
    "Message",
    "ModelClient",
    "ModelRequest",
    "ModelResponse",
    "Part",
    "ReasoningDelta",
    "Settings",
    "StreamItem",
    "TextDelta",
    "TextPart",
    "ToolCall",
    "ToolCallDelta",
    "ToolSpec",
    "Usage",
    "visible",
]

FinishReason = Literal["stop", "tool_calls", "length", "content_filter"]


class TextPart(Struct, frozen=True, tag_field="type", tag="text"):
    """Text of a message."""

    text: str


class ImagePart(Struct, frozen=True, tag_field="type", tag="image"):
    """An image: `url`, or base64 `data` with its `media_type`."""

    url: str | None = None
    data: str | None = None
    media_type: str = "image/png"


class FilePart(Struct, frozen=True, tag_field="type", tag="file"):
    """A file: base64 `data` with its `media_type` and `name`."""

    data: str
    media_type: str
    name: str = "file"


Part = TextPart | ImagePart | FilePart


class ToolCall(Struct, frozen=True):
    """The model asks for a tool; `arguments` is the JSON text as the model wrote it, not yet checked."""

    id: str
    name: str
    arguments: str


class Message(Struct, frozen=True, omit_defaults=True):
    """One turn of a conversation, in the field's conventional shape.

    `content`: text or a list of parts. An assistant's message may have `tool_calls`; a "tool" message answers one
    of them by `tool_call_id`, and `is_error` marks a failure that the model should know of. `continuation`: what
    `ModelResponse.continuation` held (`ModelResponse.message()` carries it over).
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str | list[Part] = ""
    tool_calls: list[ToolCall] = []
    tool_call_id: str | None = None
    is_error: bool = False
    continuation: list[dict[str, Any]] = []


class ToolSpec(Struct, frozen=True):
    """A tool as the model sees it; `parameters` is the JSON Schema of its arguments, an object."""

    name: str
    description: str
    parameters: dict[str, Any]


class Settings(Struct, frozen=True, omit_defaults=True):
    """Sampling settings; None leaves the provider's default. `extra`: fields of the wire that have no name here."""

    temperature: float | None = None
    max_tokens: int | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: list[str] | None = None
    reasoning_effort: str | None = None
    extra: dict[str, Any] = {}


class ModelRequest(Struct, frozen=True):
    """One request. `output_schema`: a JSON Schema that the answer's text must follow, named `output_name`.

    `parse`: turns the answer into what was asked for, or raises `ValueError`: the pipeline then rejects the answer
    and may ask again. Clients ignore it.
    """

    model: str
    messages: list[Message]
    tools: list[ToolSpec] = []
    output_schema: dict[str, Any] | None = None
    output_name: str = "output"
    settings: Settings = Settings()
    parse: Callable[[ModelResponse], Any] | None = None


class Usage(Struct, frozen=True):
    """Tokens, named as in OpenTelemetry. `estimated`: the provider did not say, this is our guess.

    `input_tokens` includes those read from and written to the provider's cache, `output_tokens` the reasoning ones.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    reasoning_output_tokens: int = 0
    estimated: bool = False
    cache_creation_input_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cache_read_input_tokens + other.cache_read_input_tokens,
            self.reasoning_output_tokens + other.reasoning_output_tokens,
            self.estimated or other.estimated,
            self.cache_creation_input_tokens + other.cache_creation_input_tokens,
        )

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens


class ModelResponse(Struct, frozen=True):
    """One answer. `finish` is "length" when the length limit cut it, "content_filter" when the provider withheld or
    refused it. `model`, `id`: as the provider named them. `continuation`: what it wants back, unchanged, with
    this answer in the next request (Anthropic's signed thinking); other clients leave it out.
    """

    text: str = ""
    tool_calls: list[ToolCall] = []
    finish: FinishReason = "stop"
    usage: Usage = Usage()
    reasoning: str = ""
    model: str = ""
    id: str = ""
    continuation: list[dict[str, Any]] = []

    def message(self) -> Message:
        """This answer as the assistant's turn of the conversation."""
        return Message(
            role="assistant",
            content=self.text,
            tool_calls=self.tool_calls,
            continuation=self.continuation,
        )


class TextDelta(Struct, frozen=True):
    """A piece of the answer's text."""

    text: str


class ReasoningDelta(Struct, frozen=True):
    """A piece of the model's reasoning."""

    text: str


class ToolCallDelta(Struct, frozen=True):
    """A piece of tool call number `index`: the first one has `id` and `name`, each may add to `arguments`."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


class Finished(Struct, frozen=True):
    """The last item of every stream: the whole answer, put together."""

    response: ModelResponse


StreamItem = TextDelta | ReasoningDelta | ToolCallDelta | Finished


def visible(item: StreamItem) -> bool:
    """Whether a consumer would see this item: the first such one commits the stream."""
    return not isinstance(item, Finished)


class Host(Protocol):
    """What a client gets from whoever opens it."""

    @property
    def clock(self) -> Clock: ...

    async def secret(self, reference: str, /) -> str:
        """The value of a `secret://` reference."""
        ...

    async def secret_rejected(self, reference: str, value: str, /) -> str:
        """The value of a `secret://` reference for one who was refused (401) with `value`: it is fetched anew, at most
        once in 30 s. The same value again: it is what the reference leads to, and it is wrong."""
        ...


class ModelClient(Protocol):
    """Talks to one provider. The constructor's keyword-only parameters are its options in `[models.PREFIX]`.

    Optional: `async def open(self, host: Host)` before the first request, `async def aclose(self)` at the end;
    `async def check(self, model: str, host: Host)`: raises what a request to that model would fail with before it is
    sent (no key, no weights); it is called before `open`, and sends nothing to the provider;
    `identity(model) -> str`: what stands for host and credential (never a secret's value), the same for all calls that
    a provider throttles together; `target(model) -> str`: the name of what an attempt goes to.
    """

    async def complete(self, request: ModelRequest, /) -> ModelResponse:
        """One whole answer."""
        ...

    def stream(self, request: ModelRequest, /) -> AsyncIterator[StreamItem]:
        """The answer piece by piece, `Finished` last; whoever stops earlier calls its `aclose()`.

        A body that ends without the wire's proper end raises `TransientError`, it never becomes an answer.
        """
        ...
