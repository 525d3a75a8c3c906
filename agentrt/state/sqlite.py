"""State in one SQLite file: no service, no dependency."""

from __future__ import annotations

import os
import sqlite3
import time

from agentrt import options
from agentrt.errors import PermanentError
from agentrt.sqlite_file import Format, SqliteFile, transaction
from agentrt.state.protocol import Entry, StateConflict, Stored

__all__ = ["SqliteState"]

APPLICATION_ID = 0x61677273
"""Marks our files ("agrs")."""

SCHEMA_VERSION = 1

_TABLE = """CREATE TABLE documents (
    id TEXT PRIMARY KEY,
    document TEXT NOT NULL,
    revision TEXT NOT NULL,
    saved REAL NOT NULL
) WITHOUT ROWID"""

_INDEX = "CREATE INDEX last_saved ON documents (saved)"

DEFAULT_PATH = os.path.join(".agentrt", "state.db")


class SqliteState:
    """Keeps documents in the file at `path` (".agentrt/state.db"), made when first used; ":memory:" ends with the
    process.

    `max_bytes` (16,777,216): of one document; a longer one is refused. `busy_timeout` (5.0 s): how long to wait for
    another process's write before `TransientError`.

    Any number of processes may use one file. What `save` returned for survives a killed process and a power failure
    (write-ahead log, synced each time). What is replaced or deleted is overwritten with zeros; `delete` also empties
    the log, in which what was replaced may be until then. Only its owner may read the file. The first use raises
    `ConfigError` if it is not a database, another program's, damaged, or made by a newer version.
    """

    def __init__(
        self,
        *,
        path: str | os.PathLike[str] = DEFAULT_PATH,
        max_bytes: int = 16 * 2**20,
        busy_timeout: float = 5.0,
    ) -> None:
        self.max_bytes = options.count("max_bytes", max_bytes)
        self._file = SqliteFile(
            path,
            _FORMAT,
            what="state store",
            busy_timeout=options.seconds("busy_timeout", busy_timeout, open_=False),
            pragmas=("synchronous = FULL", "secure_delete = ON"),
        )
        self.path = self._file.path

    async def load(self, id: str, /) -> Stored | None:
        """See `StateStore.load`."""
        return await self._file.run(lambda db: _load(db, id))

    async def save(self, id: str, document: str, /, *, revision: str, replaces: str | None) -> None:
        """See `StateStore.save`. Raises `PermanentError` for a document that is too long."""
        size = len(document.encode())
        if size > self.max_bytes:
            raise PermanentError(
                f"{id!r} has {size} bytes, too many to be stored; max_bytes is {self.max_bytes}",
                executed=False,
            )
        await self._file.run(lambda db: _save(db, id, document, revision, replaces))

    async def delete(self, id: str, /) -> bool:
        """See `StateStore.delete`."""
        return await self._file.run(lambda db: _delete(db, id))

    async def list(self, prefix: str = "", /, *, limit: int = 100) -> list[Entry]:
        """See `StateStore.list`."""
        limit = options.count("limit", limit)
        return await self._file.run(lambda db: _list(db, prefix, limit))

    async def aclose(self) -> None:
        """Close the file; it is opened again if it is used again."""
        await self._file.aclose()


# --- in the file's thread ------------------------------------------------------------------------------


def _load(db: sqlite3.Connection, id: str) -> Stored | None:
    row = db.execute("SELECT document, revision FROM documents WHERE id = ?", (id,)).fetchone()
    if row is None:
        return None
    document, revision = row
    if not isinstance(document, str) or not isinstance(revision, str):
        raise PermanentError(f"{id!r} is damaged: what is stored is no text; delete it", executed=False)
    return Stored(document, revision)


def _save(db: sqlite3.Connection, id: str, document: str, revision: str, replaces: str | None) -> None:
    with transaction(db):
        row = db.execute("SELECT revision FROM documents WHERE id = ?", (id,)).fetchone()
        there = None if row is None else row[0]
        if there == revision:
            return  # an earlier attempt of this very save
        if there != replaces:
            what = "was deleted" if there is None else "was saved by somebody else"
            raise StateConflict(
                f"the stored session {id!r} {what} since it was loaded: load it again, and repeat the turn"
            )
        db.execute(
            "INSERT INTO documents (id, document, revision, saved) VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
            "document = excluded.document, revision = excluded.revision, saved = excluded.saved",
            (id, document, revision, time.time()),
        )


def _delete(db: sqlite3.Connection, id: str) -> bool:
    with transaction(db):
        is_deleted = db.execute("DELETE FROM documents WHERE id = ?", (id,)).rowcount > 0
    if is_deleted:
        # The log has what was saved, too, and keeps it until it is full. Not done if others are reading for long.
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return is_deleted


def _list(db: sqlite3.Connection, prefix: str, limit: int) -> list[Entry]:
    rows = db.execute(
        "SELECT id, saved, length(CAST(document AS BLOB)) FROM documents WHERE substr(id, 1, ?) = ? "
        "ORDER BY saved DESC, id LIMIT ?",
        (len(prefix), prefix, limit),
    )
    return [Entry(*row) for row in rows]


# --- the file ------------------------------------------------------------------------------------------


def _create(db: sqlite3.Connection) -> None:
    db.execute(_TABLE)
    db.execute(_INDEX)


def _probe(db: sqlite3.Connection) -> None:
    db.execute("SELECT id, document FROM documents ORDER BY id DESC LIMIT 1").fetchone()
    db.execute("SELECT id FROM documents ORDER BY saved DESC LIMIT 1").fetchone()


_FORMAT = Format(APPLICATION_ID, SCHEMA_VERSION, _create, _probe)
