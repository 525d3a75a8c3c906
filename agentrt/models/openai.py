"""`openai:MODEL`: the chat completions wire, which OpenAI and nearly every other server of models speaks."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterator
from typing import Any, ClassVar, Literal

import msgspec
from msgspec import Raw, Struct

from agentrt import options
from agentrt.errors import CallError, TransientError
from agentrt.models import json_tools
from agentrt.models.collect import Answer
from agentrt.models.credential import Credential
from agentrt.models.failures import Provider, in_band, misfit
from agentrt.models.http import check_url, host_of
from agentrt.models.http_client import HttpClient
from agentrt.models.openai_request import encode
from agentrt.models.protocol import (
    Finished,
    FinishReason,
    ModelRequest,
    ModelResponse,
    StreamItem,
    Usage,
)
from agentrt.models.sse import ServerEvent

__all__ = ["OpenAI"]

DEFAULT_URL = "https://api.openai.com/v1"
ToolMode = Literal["native", "json_schema"]


class OpenAI(HttpClient):
    """A client of the chat completions wire.

    `base_url` (OPENAI_BASE_URL, https://api.openai.com/v1): up to and without `/chat/completions`. `api_key`
    (OPENAI_API_KEY): the key or a `secret://` reference, "" for none; only api.openai.com needs one. `headers` go with
    every request. `organization` (OPENAI_ORG_ID) and `project` (OPENAI_PROJECT_ID) are OpenAI's. `tool_mode`: "native",
    or "json_schema" for weak models that cannot call tools, see `agentrt.models.json_tools`.

    Never retries, follows no redirect and has no timeout: the pipeline does that. Cancelling a call closes its
    connection.
    """

    name: ClassVar[str] = "openai"

    def __init__(
        self,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        headers: dict[str, str] | None = None,
        organization: str | None = None,
        project: str | None = None,
        tool_mode: ToolMode = "native",
    ) -> None:
        options.choice("tool_mode", tool_mode, ("native", "json_schema"))
        url_setting = f"OPENAI_BASE_URL, or base_url in [models.{self.name}]"
        key_setting = f"OPENAI_API_KEY, or api_key in [models.{self.name}]"
        url = check_url(
            base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_URL,
            "base_url" if base_url else "OPENAI_BASE_URL",
        )
        host = host_of(url)
        name = host.rpartition(":")[0]
        sent = {
            "openai-organization": organization or os.environ.get("OPENAI_ORG_ID") or "",
            "openai-project": project or os.environ.get("OPENAI_PROJECT_ID") or "",
        }
        super().__init__(
            provider=Provider(self.name, host, key_setting, url_setting),
            credential=Credential(
                os.environ.get("OPENAI_API_KEY") if api_key is None else api_key,
                owner=self.name,
                setting=key_setting,
                required=name == "api.openai.com",
            ),
            url=f"{url}/chat/completions",
            headers={key: value for key, value in sent.items() if value} | (headers or {}),
            authorization=_bearer,
            is_usual=url == DEFAULT_URL,
        )
        self._official = name.endswith((".openai.com", ".openai.azure.com"))
        self._json_tools = tool_mode == "json_schema"

    async def complete(self, request: ModelRequest, /) -> ModelResponse:
        """One whole answer."""
        if self._json_tools and request.tools:
            return json_tools.read(request, await self._complete(json_tools.ask(request)), self._provider)
        return await self._complete(request)

    def stream(self, request: ModelRequest, /) -> AsyncGenerator[StreamItem, None]:
        """The answer piece by piece, `Finished` last.

        It is whole with a finish reason, after which a server may close without `[DONE]`; without one it is an error.
        """
        if self._json_tools and request.tools:
            return json_tools.read_stream(request, self._stream(json_tools.ask(request)), self._provider)
        return self._stream(request)

    async def _complete(self, request: ModelRequest) -> ModelResponse:
        body = await self._http.post(encode(request, stream=False, official=self._official))
        try:
            chunk = _DECODER.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._malformed(body, error) from error
        answer = Answer()
        for _ in self._take(answer, chunk, body):
            pass
        if not chunk.choices:
            raise self._malformed(body, "it has no choices")
        return answer.response(request)

    async def _stream(self, request: ModelRequest) -> AsyncGenerator[StreamItem, None]:
        events = await self._http.stream(encode(request, stream=True, official=self._official))
        answer = Answer()
        try:
            done = False
            while not done and (batch := await events.read()):
                for event in batch:
                    if event.data == b"[DONE]":
                        done = True
                        break
                    for item in self._take(answer, self._decode(event), event.data):
                        yield item
            if answer.finish is None:
                raise TransientError(
                    f"{self._provider}: the stream ended without a finish reason: the answer is not whole"
                )
            if done:
                await events.drain()
        finally:
            await events.aclose()
        yield Finished(answer.response(request))

    def _decode(self, event: ServerEvent) -> _Chunk:
        if event.name == b"error":
            raise self._in_band(event.data)
        try:
            return _DECODER.decode(event.data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._malformed(event.data, error) from error

    def _take(self, answer: Answer, chunk: _Chunk, raw: bytes) -> Iterator[StreamItem]:
        """Add a chunk to the answer; what of it the consumer sees."""
        if chunk.object == "error" or (chunk.error and bytes(chunk.error) != b"null"):
            raise self._in_band(raw)
        if chunk.id:
            answer.id = chunk.id
        if chunk.model:
            answer.model = chunk.model
        if chunk.usage is not None and chunk.usage.prompt_tokens is not None:
            answer.usage = _usage(chunk.usage)
        for choice in chunk.choices or ():
            if choice.index:
                continue
            if choice.error and bytes(choice.error) != b"null":
                raise self._in_band(b'{"error":%b}' % bytes(choice.error))
            delta = choice.delta if choice.message is None else choice.message
            if delta is not None:
                yield from _take_delta(answer, delta)
            if choice.finish_reason:
                answer.finish = self._finish(choice.finish_reason, answer, raw)
        if answer.finish == "stop" and answer.refused:
            answer.finish = "content_filter"

    def _finish(self, reason: str, answer: Answer, raw: bytes) -> FinishReason:
        if reason in ("error", "insufficient_system_resource"):
            raise TransientError(f"{self._provider}: the model stopped because of an error ({reason})")
        return _FINISH.get(reason, "stop")

    def _in_band(self, raw: bytes) -> CallError:
        return in_band(self._provider, raw, secret=self._credential.known)

    def _malformed(self, body: bytes, why: object) -> CallError:
        return misfit(
            self._provider, f"unreadable ({why})", body, wanted="a completion", secret=self._credential.known
        )


def _bearer(key: str) -> tuple[bytes, bytes]:
    return b"authorization", b"Bearer " + key.encode()


# --- the wire ------------------------------------------------------------------------------------------


class _Function(Struct):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class _ToolCall(Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(Struct):
    content: str | list[dict[str, Any]] | None = None
    reasoning_content: str | None = None
    reasoning: Any = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(Struct):
    index: int = 0
    delta: _Delta | None = None
    message: _Delta | None = None
    finish_reason: str | None = None
    error: Raw = Raw()


class _PromptDetails(Struct):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


class _CompletionDetails(Struct):
    reasoning_tokens: int | None = None


class _Usage(Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    prompt_cache_hit_tokens: int | None = None  # DeepSeek's


class _Chunk(Struct):
    """A completion, or a piece of a streamed one: the fields that are ours, all of which some server leaves out."""

    id: str | None = None
    model: str | None = None
    object: str | None = None
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Raw = Raw()


_DECODER = msgspec.json.Decoder(_Chunk)
_FINISH: dict[str, FinishReason] = {
    "stop": "stop",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",
    "content_filter": "content_filter",
}


def _take_delta(answer: Answer, delta: _Delta) -> Iterator[StreamItem]:
    reasoning = delta.reasoning_content or delta.reasoning
    if reasoning and isinstance(reasoning, str):
        yield answer.add_reasoning(reasoning)
    content = delta.content
    if content:
        if isinstance(content, str):
            yield answer.add_text(content)
        else:
            yield from _take_parts(answer, content)
    if delta.refusal:
        answer.refused = True
        yield answer.add_text(delta.refusal)
    for call in delta.tool_calls or ():
        yield from _take_call(answer, call)


def _take_parts(answer: Answer, parts: list[dict[str, Any]]) -> Iterator[StreamItem]:
    """Mistral's reasoning models answer in parts."""
    for part in parts:
        text = part.get("text")
        if isinstance(text, str) and text:
            yield answer.add_text(text)
        thinking = part.get("thinking")
        for piece in thinking if isinstance(thinking, list) else ():
            if isinstance(piece, dict) and isinstance(piece.get("text"), str):
                yield answer.add_reasoning(piece["text"])


def _take_call(answer: Answer, call: _ToolCall) -> Iterator[StreamItem]:
    """A piece of a tool call. Some servers number all calls of an answer 0, or none: a new id is a new call, and so
    is a name after complete arguments."""
    function = call.function or _Function()
    arguments = function.arguments or ""
    if not isinstance(arguments, str):
        arguments = msgspec.json.encode(arguments).decode()
    index = answer.index_of(call.index, call.id)
    if index is not None and function.name and not call.id and answer.is_whole(index):
        index = None
    if index is None:
        if function.name or call.id:
            yield answer.begin_call(
                id=call.id or "", name=function.name or "", arguments=arguments, number=call.index
            )
    elif arguments:
        yield answer.add_arguments(index, arguments)


def _usage(usage: _Usage) -> Usage:
    prompt, completion = usage.prompt_tokens_details, usage.completion_tokens_details
    cached = (prompt.cached_tokens if prompt else None) or usage.prompt_cache_hit_tokens or 0
    return Usage(
        input_tokens=usage.prompt_tokens or 0,
        output_tokens=usage.completion_tokens or 0,
        cache_read_input_tokens=cached,
        reasoning_output_tokens=(completion.reasoning_tokens if completion else None) or 0,
        cache_creation_input_tokens=(prompt.cache_write_tokens if prompt else None) or 0,
    )
