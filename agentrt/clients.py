"""The model clients of a runtime, made and opened at first use, one per prefix."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from msgspec.structs import replace

from agentrt.call import Call
from agentrt.errors import ConfigError, PluginError, ResultRejected
from agentrt.models.protocol import ModelClient, ModelRequest, visible
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

    def client(self, target: str) -> tuple[ModelClient, str]:
        """The client of a target, perhaps not opened yet, and the model's name for it."""
        prefix, colon, model = target.partition(":")
        if not colon or not model:
            raise ConfigError(
                f'a model is named "prefix:name", for example "openai:gpt-5-mini", not {target!r}'
            )
        client = self._given.get(prefix) or self._clients.get(prefix)
        if client is None:
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
        task = self._opening.get(prefix)
        if task is None:
            open_ = getattr(client, "open", None)
            if open_ is None:
                return client, model
            task = self._opening[prefix] = asyncio.ensure_future(open_(self._host))
        if not task.done():
            await asyncio.shield(task)
        elif not task.cancelled() and task.exception() is not None:
            # A later call may succeed where this one failed: the weights may be there by then.
            del self._opening[prefix]
            task.result()
        return client, model

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
            return await Stream.open(client.stream(asked), visible=visible)
        response = await client.complete(asked)
        call.record.usage = response.usage
        if asked.parse is not None and not response.tool_calls:
            try:
                asked.parse(response)
            except (ValueError, OutputError) as error:
                raise ResultRejected(
                    f"{call.target}: the answer is not what was asked for: {error}", value=response
                ) from error
        return response

    async def aclose(self) -> None:
        """Close all clients; one that fails to close does not keep the others open."""
        errors: list[Exception] = []
        for task in self._opening.values():
            if not task.done():
                task.cancel()
        clients, self._clients, self._opening = self._clients, {}, {}
        for client in clients.values():
            close = getattr(client, "aclose", None)
            if close is not None:
                try:
                    await close()
                except Exception as error:
                    errors.append(error)
        if errors:
            raise errors[0]
