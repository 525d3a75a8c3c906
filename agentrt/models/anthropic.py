"""`anthropic:MODEL`: Anthropic's messages wire."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterator
from typing import Any, ClassVar

import msgspec
from msgspec import Raw, Struct

from agentrt import options
from agentrt.errors import CallError, TransientError
from agentrt.models.anthropic_request import OutputMode, encode, output_tool
from agentrt.models.collect import Answer
from agentrt.models.credential import Credential
from agentrt.models.failures import Provider, in_band, misfit
from agentrt.models.http import check_url, host_of
from agentrt.models.http_client import HttpClient
from agentrt.models.protocol import (
    Finished,
    FinishReason,
    ModelRequest,
    ModelResponse,
    StreamItem,
    Usage,
)

__all__ = ["Anthropic"]

DEFAULT_URL = "https://api.anthropic.com"
VERSION = "2023-06-01"


class Anthropic(HttpClient):
    """A client of the messages wire.

    `base_url` (ANTHROPIC_BASE_URL, https://api.anthropic.com): up to and without `/v1/messages`. `api_key`
    (ANTHROPIC_API_KEY): the key or a `secret://` reference, "" for none; only api.anthropic.com needs one. `headers` go
    with every request (`anthropic-beta`). `max_tokens` (16,384): the limit of an answer whose request has none.
    `output_mode`: how an output schema is asked for: "format" by the API's structured output, "tool" by a tool that
    the model has to call, for servers and models without it.

    Never retries, follows no redirect and has no timeout: the pipeline does that. Cancelling a call closes its
    connection.
    """

    name: ClassVar[str] = "anthropic"

    def __init__(
        self,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        headers: dict[str, str] | None = None,
        max_tokens: int = 16_384,
        output_mode: OutputMode = "format",
    ) -> None:
        options.choice("output_mode", output_mode, ("format", "tool"))
        self._max_tokens = options.count("max_tokens", max_tokens)
        self._output_mode: OutputMode = output_mode
        url_setting = "ANTHROPIC_BASE_URL, or base_url in [models.anthropic]"
        key_setting = "ANTHROPIC_API_KEY, or api_key in [models.anthropic]"
        url = check_url(
            base_url or os.environ.get("ANTHROPIC_BASE_URL") or DEFAULT_URL,
            "base_url" if base_url else "ANTHROPIC_BASE_URL",
        ).removesuffix("/v1")
        host = host_of(url)
        super().__init__(
            provider=Provider(self.name, host, key_setting, url_setting),
            credential=Credential(
                os.environ.get("ANTHROPIC_API_KEY") if api_key is None else api_key,
                owner=self.name,
                setting=key_setting,
                required=host.rpartition(":")[0] == "api.anthropic.com",
            ),
            url=f"{url}/v1/messages",
            headers={"anthropic-version": VERSION} | (headers or {}),
            authorization=_x_api_key,
            is_usual=url == DEFAULT_URL,
        )

    async def complete(self, request: ModelRequest, /) -> ModelResponse:
        """One whole answer."""
        body = await self._http.post(self._encode(request, stream=False))
        try:
            message = _MESSAGE.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._malformed(body, error) from error
        if message.type == "error" or (message.error and bytes(message.error) != b"null"):
            raise in_band(self._provider, body, secret=self._credential.known)
        if message.content is None or message.role != "assistant":
            raise self._malformed(body, "it has no content")
        reader = self._reader(request)
        reader.start(message)
        for index, block in enumerate(message.content):
            for _ in reader.begin(index, block):
                pass
            reader.end(index)
        return reader.answer.response(request)

    async def stream(self, request: ModelRequest, /) -> AsyncGenerator[StreamItem, None]:
        """The answer piece by piece, `Finished` last. It is whole with `message_stop`; without, it is an error."""
        events = await self._http.stream(self._encode(request, stream=True))
        reader = self._reader(request)
        try:
            while not reader.stopped and (batch := await events.read()):
                for event in batch:
                    if event.name == b"error":
                        raise in_band(self._provider, event.data, secret=self._credential.known)
                    for item in self._take(reader, event.data):
                        yield item
            if not reader.stopped:
                raise TransientError(
                    f"{self._provider}: the stream ended without message_stop: the answer is not whole"
                )
            await events.drain()
        finally:
            await events.aclose()
        yield Finished(reader.answer.response(request))

    def _encode(self, request: ModelRequest, *, stream: bool) -> bytes:
        return encode(request, stream=stream, max_tokens=self._max_tokens, output_mode=self._output_mode)

    def _reader(self, request: ModelRequest) -> _Reader:
        by_tool = request.output_schema is not None and self._output_mode == "tool"
        return _Reader(output_tool(request) if by_tool else None)

    def _take(self, reader: _Reader, data: bytes) -> Iterator[StreamItem]:
        try:
            event = _EVENT.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._malformed(data, error) from error
        match event.type:
            case "content_block_delta":
                if event.delta is not None:
                    yield from reader.add(event.index, event.delta)
            case "content_block_start":
                if event.content_block is not None:
                    yield from reader.begin(event.index, event.content_block)
            case "content_block_stop":
                reader.end(event.index)
            case "message_start":
                if event.message is not None:
                    reader.start(event.message)
            case "message_delta":
                reader.finish(event.delta, event.usage)
            case "message_stop":
                reader.stopped = True
            case "error":
                raise in_band(self._provider, data, secret=self._credential.known)
            case _:
                pass  # ping, and whatever comes to be: the wire asks clients to pass over it

    def _malformed(self, body: bytes, why: object) -> CallError:
        return misfit(
            self._provider, f"unreadable ({why})", body, wanted="a message", secret=self._credential.known
        )


def _x_api_key(key: str) -> tuple[bytes, bytes]:
    return b"x-api-key", key.encode()


# --- the wire ------------------------------------------------------------------------------------------


class _OutputDetails(Struct):
    thinking_tokens: int | None = None


class _Usage(Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    output_tokens_details: _OutputDetails | None = None


class _Block(Struct):
    type: str
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None
    id: str | None = None
    name: str | None = None
    input: Raw = Raw()


class _Delta(Struct):
    type: str | None = None
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    partial_json: str | None = None
    stop_reason: str | None = None


class _Message(Struct):
    type: str | None = None
    role: str | None = None
    id: str | None = None
    model: str | None = None
    content: list[_Block] | None = None
    stop_reason: str | None = None
    usage: _Usage | None = None
    error: Raw = Raw()


class _Event(Struct):
    type: str
    index: int = 0
    message: _Message | None = None
    content_block: _Block | None = None
    delta: _Delta | None = None
    usage: _Usage | None = None


_MESSAGE = msgspec.json.Decoder(_Message)
_EVENT = msgspec.json.Decoder(_Event)
_FINISH: dict[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    # A long turn with the provider's own tools was cut to be taken up again: not a whole answer either.
    "pause_turn": "length",
    "refusal": "content_filter",
}


class _Open(Struct):
    """A content block that is not over. `call`: its index among the tool calls."""

    type: str
    call: int | None = None
    thinking: list[str] = []
    signature: str = ""


class _Reader:
    """Turns blocks and deltas into the answer. `output_tool`: calls of this one are the answer's text."""

    def __init__(self, output_tool: str | None) -> None:
        self.answer = Answer()
        self.stopped = False
        self._output_tool = output_tool
        self._blocks: dict[int, _Open] = {}
        self._usage = _Usage()

    def start(self, message: _Message) -> None:
        self.answer.id = message.id or ""
        self.answer.model = message.model or ""
        self._finish(message.stop_reason, message.usage)

    def begin(self, index: int, block: _Block) -> Iterator[StreamItem]:
        """A block, which may be whole already (in an answer that is not streamed)."""
        opened = self._blocks[index] = _Open(block.type)
        if block.type == "text":
            if block.text:
                yield self.answer.add_text(block.text)
        elif block.type == "thinking":
            opened.signature = block.signature or ""
            if block.thinking:
                opened.thinking.append(block.thinking)
                yield self.answer.add_reasoning(block.thinking)
        elif block.type == "redacted_thinking":
            self.answer.continuation.append({"type": "redacted_thinking", "data": block.data or ""})
        elif block.type == "tool_use":
            # A streamed block begins with an empty object, and its arguments follow.
            arguments = bytes(block.input).decode() if block.input else ""
            if arguments.replace(" ", "") in ("{}", "null"):
                arguments = ""
            if block.name == self._output_tool:
                opened.type = "output"
                if arguments:
                    yield self.answer.add_text(arguments)
            else:
                item = self.answer.begin_call(id=block.id or "", name=block.name or "", arguments=arguments)
                opened.call = item.index
                yield item

    def add(self, index: int, delta: _Delta) -> Iterator[StreamItem]:
        """A piece of the block `index`."""
        opened = self._blocks.get(index)
        if opened is None:
            opened = self._blocks[index] = _Open("text")
        if delta.text:
            yield self.answer.add_text(delta.text)
        elif delta.partial_json:
            if opened.type == "output":
                yield self.answer.add_text(delta.partial_json)
            elif opened.call is not None:
                yield self.answer.add_arguments(opened.call, delta.partial_json)
        elif delta.thinking:
            opened.thinking.append(delta.thinking)
            yield self.answer.add_reasoning(delta.thinking)
        elif delta.signature:
            opened.signature += delta.signature

    def end(self, index: int) -> None:
        """The block is over: signed thinking is kept for the next request."""
        opened = self._blocks.pop(index, None)
        if opened is not None and opened.signature:
            block: dict[str, Any] = {
                "type": "thinking",
                "thinking": "".join(opened.thinking),
                "signature": opened.signature,
            }
            self.answer.continuation.append(block)

    def finish(self, delta: _Delta | None, usage: _Usage | None) -> None:
        self._finish(delta.stop_reason if delta is not None else None, usage)

    def _finish(self, reason: str | None, usage: _Usage | None) -> None:
        if reason is not None:
            finish = _FINISH.get(reason, "stop")
            # The output tool is how we asked for the text: its call is not one.
            self.answer.finish = "stop" if finish == "tool_calls" and self._output_tool else finish
        if usage is None:
            return
        known = self._usage
        for name in usage.__struct_fields__:
            value = getattr(usage, name)
            if value is not None:
                setattr(known, name, value)
        if known.input_tokens is not None and known.output_tokens is not None:
            self.answer.usage = _total(known)


def _total(usage: _Usage) -> Usage:
    """On this wire `input_tokens` leaves the cached ones out."""
    read, created = usage.cache_read_input_tokens or 0, usage.cache_creation_input_tokens or 0
    details = usage.output_tokens_details
    return Usage(
        input_tokens=(usage.input_tokens or 0) + read + created,
        output_tokens=usage.output_tokens or 0,
        cache_read_input_tokens=read,
        reasoning_output_tokens=(details.thinking_tokens if details else None) or 0,
        cache_creation_input_tokens=created,
    )
