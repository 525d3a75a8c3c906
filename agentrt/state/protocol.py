"""What a state store is. A plugin of the group `agentrt.state` implements `StateStore`.

A store keeps documents by id and never looks into them: they may be encrypted before they come here. Writers do not
overwrite each other: a document is replaced only by who has read the revision that is there.
"""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from agentrt.errors import PermanentError

__all__ = ["MAX_ID", "Entry", "StateConflict", "StateStore", "Stored"]

MAX_ID = 200
"""Characters of an id."""


class Stored(Struct, frozen=True):
    """A document as it was stored, with the revision that it has."""

    document: str
    revision: str

    def __repr__(self) -> str:
        return f"Stored(<{len(self.document)} characters>, revision={self.revision!r})"


class Entry(Struct, frozen=True):
    """What can be said of a document without reading it. `saved`: seconds since the epoch; `size`: in bytes."""

    id: str
    saved: float
    size: int


class StateConflict(PermanentError):
    """Somebody else has stored another revision meanwhile; nothing was changed."""

    def __init__(self, message: str) -> None:
        super().__init__(message, fault="request", executed=False)


class StateStore(Protocol):
    """Keeps documents by id. The constructor's keyword-only parameters are its options.

    Optional: `async def open(self, host)` before the first use, `async def aclose(self)` at the end. Failures are those
    of `agentrt.errors`: `TransientError` for what may work next time, `PermanentError` for what will not.
    """

    async def load(self, id: str, /) -> Stored | None:
        """The document of this id; None if there is none."""
        ...

    async def save(self, id: str, document: str, /, *, revision: str, replaces: str | None) -> None:
        """Store `document` as `revision`, in place of the revision `replaces` (None: where there is nothing yet).

        If what is stored has this `revision` already nothing happens, so a save may be repeated. Raises `StateConflict`
        if it has any other than `replaces`. What this returned for survives a crash.
        """
        ...

    async def delete(self, id: str, /) -> bool:
        """Delete the document; False if there is none."""
        ...

    async def list(self, prefix: str = "", /, *, limit: int = 100) -> list[Entry]:
        """Up to `limit` documents whose ids begin with `prefix`, the last saved first."""
        ...
