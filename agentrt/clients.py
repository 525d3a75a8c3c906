"""The model clients of a runtime, made and opened at first use, one per prefix."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from msgspec.structs import replace

from agentrt.call import ENCLOSING, RUN, Call
from agentrt.errors import ConfigError, PluginError, ResultRejected
from agentrt.models.collect import estimate
from agentrt.models.protocol import (
    Finished,
    ModelClient,
    ModelRequest,
    ModelResponse,
    ReasoningDelta,
    StreamItem,
    TextDelta,
    ToolCallDelta,
    visible,
)
from agentrt.plugins import close_plugin
from agentrt.schema import OutputError
from agentrt.stream import Stream

__all__ = ["Clients"]


class Clients:
    """Finds the client of a target `prefix:model`.

    `make(prefix)` makes one; `host` is what its `open` gets. Those in `given` are ready, and not ours to close.
    """

    def __init__(
        self,
        make: Callable[[str], ModelClient],
        host: Any,
        *,
        given: Mapping[str, ModelClient] | None = None,
    ) -> None:
        self._make = make
        self._host = host
        self._given = dict(given or {})
        self._clients: dict[str, ModelClient] = {}
        self._opening: dict[str, asyncio.Task[None]] = {}
        self._closed = False

    def client(self, target: str) -> tuple[ModelClient, str]:
        """The client of a target, perhaps not opened yet, and the model's name for it."""
        prefix, colon, model = target.partition(":")
        if not colon or not model:
            raise ConfigError(
                f'a model is named "prefix:name", for example "openai:gpt-5-mini", not {target!r}'
            )
        client = self._given.get(prefix) or self._clients.get(prefix)
        if client is None:
            if self._closed:
                raise _closing()
            try:
                client = self._clients[prefix] = self._make(prefix)
            except PluginError as error:
                raise PluginError(f'model "{target}": {error}') from error
        return client, model

    async def opened(self, target: str) -> tuple[ModelClient, str]:
        """The same, opened. Several calls at once open it once; a cancelled one does not stop the others."""
        client, model = self.client(target)
        prefix = target.partition(":")[0]
        if prefix in self._given:
            return client, model
        open_ = getattr(client, "open", None)
        if open_ is None:
            return client, model
        task = self._opening.get(prefix)
        if task is None:
            # Outside the run that happens to be first: neither its deadline nor its end concerns the others.
            context = contextvars.copy_context()
            context.run(_leave_the_run)
            loop = asyncio.get_running_loop()
            task = loop.create_task(open_(self._host), name=f"open {prefix}", context=context)
            self._opening[prefix] = task
            task.add_done_callback(partial(self._opened, prefix))
        if not task.done() or task.cancelled() or task.exception() is not None:
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                if task.cancelled() and not _is_cancelled():
                    raise _closing() from None  # `aclose` cancelled the opening, nobody this call
                raise
        return client, model

    def _opened(self, prefix: str, task: asyncio.Task[None]) -> None:
        failed = task.cancelled() or task.exception() is not None
        if failed and self._opening.get(prefix) is task:
            # A later call may succeed where this one failed: the weights may be there by then.
            del self._opening[prefix]

    async def check(self, target: str) -> None:
        """Raise what the first request to `target` would fail with before it is sent, as far as its client can tell."""
        client, model = self.client(target)
        check = getattr(client, "check", None)
        if check is not None:
            await check(model, self._host)

    def gate(self, call: Call[Any]) -> str:
        """Host and credential of a call's target: what a throttled answer speaks for."""
        prefix, _, model = call.target.partition(":")
        client = self._given.get(prefix) or self._clients.get(prefix)
        identity = getattr(client, "identity", None)
        return str(identity(model)) if identity is not None else prefix

    async def terminal(self, call: Call[Any]) -> Any:
        """What the pipeline calls for a model: one attempt on one target."""
        client, model = await self.opened(call.target)
        request: ModelRequest = call.request
        asked = replace(request, model=model)
        if call.stream:
            stream = await Stream.open(client.stream(asked), visible=visible)
            used_by = _Usage(call, asked)
            stream.observe(used_by.see)
            stream.on_settle(used_by.settled)  # first of all, so that every stage finds it in the record
            return stream
        response = await client.complete(asked)
        call.record.response = response
        used = call.record.usage
        call.record.usage = response.usage if used is None else used + response.usage
        # An answer that was withheld is not malformed: asking again would not help.
        if asked.parse is not None and not response.tool_calls and response.finish != "content_filter":
            try:
                asked.parse(response)
            except (ValueError, OutputError) as error:
                cut = "; it was cut by the length limit" if response.finish == "length" else ""
                raise ResultRejected(
                    f"{call.target}: the answer is not what was asked for: {error}{cut}", value=response
                ) from error
        return response

    async def aclose(self) -> None:
        """Close all clients; one that fails to close does not keep the others open."""
        self._closed = True
        opening = list(self._opening.values())
        for task in opening:
            task.cancel()
        await asyncio.gather(*opening, return_exceptions=True)
        clients, self._clients, self._opening = self._clients, {}, {}
        # All at once, so that one that hangs does not take the time of the others.
        for outcome in await asyncio.gather(*map(close_plugin, clients.values()), return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome


class _Usage:
    """Notes in a call's record what its stream used: what the provider says, or an estimate if it was broken off."""

    __slots__ = ("_call", "_finished", "_reasoning", "_request", "_text")

    def __init__(self, call: Call[Any], request: ModelRequest) -> None:
        self._call = call
        self._request = request
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._finished: ModelResponse | None = None

    def see(self, item: StreamItem) -> None:
        match item:
            case TextDelta(text):
                self._text.append(text)
            case ReasoningDelta(text):
                self._reasoning.append(text)
            case ToolCallDelta():
                self._text.append(item.name + item.arguments)
            case Finished():
                self._finished = item.response

    def settled(self, error: BaseException | None) -> None:
        record = self._call.record
        if self._finished is not None:
            usage, record.response = self._finished.usage, self._finished
        else:
            # What came until then was used, and nobody says how much it was.
            said = ModelResponse(text="".join(self._text), reasoning="".join(self._reasoning))
            usage = estimate(self._request, said)
        record.usage = usage if record.usage is None else record.usage + usage


def _leave_the_run() -> None:
    RUN.set(None)
    ENCLOSING.set(None)


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _closing() -> ConfigError:
    return ConfigError("the model is not asked any more: the runtime is closed")
