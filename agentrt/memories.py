"""The memory as a run sees it: each use of the store is a call through the pipeline."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from agentrt.memory.protocol import Item, Memory

__all__ = ["Memories"]

T = TypeVar("T")


class MemoryCall(Protocol):
    """Makes `await function()` a call of kind "memory"."""

    def __call__(
        self, operation: str, function: Callable[[], Awaitable[T]], *, idempotent: bool
    ) -> Awaitable[T]: ...


class Memories:
    """The runtime's memory, through the pipeline: `ctx.memory`.

    `store`: opens the store at first use. `call`: makes a call of the run.
    """

    def __init__(self, store: Callable[[], Awaitable[Memory]], call: MemoryCall) -> None:
        self._store = store
        self._call = call

    async def add(self, text: str, *, metadata: dict[str, Any] | None = None, key: str | None = None) -> str:
        """Remember `text`; returns its id. The same `key` replaces what it held."""
        store = await self._store()
        return await self._call(
            "add_memory",
            lambda: store.add(text, metadata=metadata, key=key),
            idempotent=key is not None,
        )

    async def search(self, query: str, *, limit: int = 5) -> list[Item]:
        """The best matches for `query`, best first."""
        store = await self._store()
        return await self._call("search_memory", lambda: store.search(query, limit=limit), idempotent=True)

    async def forget(self, id: str) -> None:
        """Forget one item; unknown ids are ignored."""
        store = await self._store()
        await self._call("forget_memory", lambda: store.forget(id), idempotent=True)
