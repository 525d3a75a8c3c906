"""What a memory is. The runtime makes each use of it a call of kind "memory" through the pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from msgspec import Struct

__all__ = ["Item", "Memory"]


class Item(Struct, frozen=True):
    """Something remembered. `score`: how well it fits the query, more is better; only the order means something.

    `created`: seconds since the epoch.
    """

    id: str
    text: str
    metadata: dict[str, Any]
    score: float
    created: float


class Memory(Protocol):
    """Remembers texts and finds them again.

    Optional: `async def aclose(self)` at the end. Failures are those of `agentrt.errors`: `TransientError` for what
    may work next time, `PermanentError` for what will not.
    """

    async def add(
        self, text: str, *, metadata: Mapping[str, Any] | None = None, key: str | None = None
    ) -> str:
        """Remember `text` with `metadata` (values that have a JSON form) and return the item's id.

        `key`: at most one item has it. Adding the same again changes nothing and returns the same id; another text
        replaces the item, under a new id. So an `add` with a key may be repeated.
        """
        ...

    async def search(self, query: str, *, limit: int = 5) -> list[Item]:
        """Up to `limit` items, the best match first. Any text is a valid query; one without words finds nothing."""
        ...

    async def forget(self, id: str) -> None:
        """Forget the item with this id; nothing happens if there is none."""
        ...
