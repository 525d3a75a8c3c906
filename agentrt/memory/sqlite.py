"""Memory in one SQLite file, found again by full-text search (FTS5): no service, no dependency.

Text is cut into words here, not by SQLite: its tokenizers know neither scripts without spaces nor emoji, and user text
must never be read as a query language. A query finds the items that share a word with it, ranked by bm25.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import sqlite3
import time
import unicodedata
from collections.abc import Generator, Mapping
from typing import Any

import msgspec

from agentrt import options
from agentrt.errors import ConfigError, PermanentError
from agentrt.memory.protocol import Item
from agentrt.sqlite_file import Format, SqliteFile, transaction

__all__ = ["SqliteMemory"]

APPLICATION_ID = 0x61677274
"""Marks our files ("agrt"), so that another program's database is not written into."""

SCHEMA_VERSION = 1

QUERY_WORDS = 64
QUERY_CHARACTERS = 10_000
"""Of a query the first so many count: different words, and characters."""

SCHEMA = (
    """CREATE TABLE items (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        key TEXT UNIQUE,
        text TEXT NOT NULL,
        metadata TEXT NOT NULL,
        created REAL NOT NULL
    )""",
    # The words are made in Python, separated by spaces: `ascii` takes every other character as part of a word.
    "CREATE VIRTUAL TABLE words USING fts5(line, tokenize = 'porter ascii')",
    "CREATE TRIGGER forget AFTER DELETE ON items BEGIN DELETE FROM words WHERE rowid = old.id; END",
)


class SqliteMemory:
    """Remembers up to `max_items` (10,000) texts; the oldest are forgotten first.

    `path`: the file, made when first used, or None (the default) for a memory that ends with the process. Several
    processes may use one file. `max_item_bytes` (65,536): of a text and its metadata together. `busy_timeout` (1.0 s):
    how long to wait for another process's write before `TransientError`.

    What was added survives a killed process (write-ahead log); only its owner may read the file. When first used it
    raises `ConfigError` if the file is not a database, another program's, damaged, or made by a newer version, or
    if SQLite has no FTS5.
    """

    def __init__(
        self,
        *,
        path: str | os.PathLike[str] | None = None,
        max_items: int = 10_000,
        max_item_bytes: int = 65_536,
        busy_timeout: float = 1.0,
    ) -> None:
        self.max_items = options.count("max_items", max_items)
        self.max_item_bytes = options.count("max_item_bytes", max_item_bytes)
        self.busy_timeout = options.seconds("busy_timeout", busy_timeout, open_=False)
        self._file = SqliteFile(path, _FORMAT, what="memory", busy_timeout=self.busy_timeout)
        self.path = self._file.path

    async def add(
        self, text: str, *, metadata: Mapping[str, Any] | None = None, key: str | None = None
    ) -> str:
        """See `Memory.add`. Raises `PermanentError` for a text that is too long or blank."""
        text = _sound(text)
        encoded = _encode(metadata)
        size = len(text.encode()) + len(encoded)
        if not text.strip():
            raise PermanentError("there is nothing to remember: the text is blank", executed=False)
        if size > self.max_item_bytes:
            raise PermanentError(
                f"an item of {size} bytes is too long to remember; max_item_bytes is {self.max_item_bytes}",
                executed=False,
            )
        key = None if key is None else _sound(key)
        return await self._file.run(lambda db: self._add(db, text, encoded, key))

    async def search(self, query: str, *, limit: int = 5) -> list[Item]:
        """See `Memory.search`. Items of the same score come newest first."""
        limit = options.count("limit", limit)
        match = _match(query)
        if not match:
            return []
        return await self._file.run(lambda db: _search(db, match, limit))

    async def forget(self, id: str) -> None:
        """See `Memory.forget`."""
        if not (id.isascii() and id.isdigit() and len(id) < 19):
            return  # never an id of ours
        await self._file.run(lambda db: _forget(db, int(id)))

    async def aclose(self) -> None:
        """Close the file; the memory opens it again if it is used again."""
        await self._file.aclose()

    def _add(self, db: sqlite3.Connection, text: str, metadata: str, key: str | None) -> str:
        with transaction(db):
            if key is not None:
                found = db.execute("SELECT id, text, metadata FROM items WHERE key = ?", (key,)).fetchone()
                if found is not None and found[1:] == (text, metadata):
                    return str(found[0])
                db.execute("DELETE FROM items WHERE key = ?", (key,))
            row = (key, text, metadata, time.time())
            cursor = db.execute("INSERT INTO items (key, text, metadata, created) VALUES (?, ?, ?, ?)", row)
            id_ = cursor.lastrowid
            db.execute("INSERT INTO words (rowid, line) VALUES (?, ?)", (id_, _words(text)))
            db.execute(
                "DELETE FROM items WHERE id <= (SELECT id FROM items ORDER BY id DESC LIMIT 1 OFFSET ?)",
                (self.max_items,),
            )
        return str(id_)


def _search(db: sqlite3.Connection, match: str, limit: int) -> list[Item]:
    rows = db.execute(
        "SELECT items.id, text, metadata, -bm25(words) AS score, created "
        "FROM words JOIN items ON items.id = words.rowid "
        "WHERE words MATCH ? ORDER BY score DESC, items.id DESC LIMIT ?",
        (match, limit),
    )
    return [
        Item(str(id_), text, msgspec.json.decode(metadata), score, created)
        for id_, text, metadata, score, created in rows
    ]


def _forget(db: sqlite3.Connection, id_: int) -> None:
    with transaction(db):
        db.execute("DELETE FROM items WHERE id = ?", (id_,))


# --- the file ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _full_text_search() -> Generator[None]:
    try:
        yield
    except sqlite3.Error as error:
        if "no such module: fts5" not in str(error):
            raise
        raise ConfigError(
            "memory: this Python's SQLite has no full-text search (FTS5); use a Python whose sqlite3 has it, "
            "or another memory"
        ) from error


def _create(db: sqlite3.Connection) -> None:
    with _full_text_search():
        for statement in SCHEMA:
            db.execute(statement)


def _probe(db: sqlite3.Connection) -> None:
    with _full_text_search():
        db.execute("SELECT id FROM items ORDER BY id DESC LIMIT 1").fetchone()
        db.execute("SELECT rowid FROM words ORDER BY rowid DESC LIMIT 1").fetchone()


_FORMAT = Format(APPLICATION_ID, SCHEMA_VERSION, _create, _probe)


# --- text ----------------------------------------------------------------------------------------------

_WORD = re.compile(r"[^\W_]+|[^\w\s]")

_UNSPACED = re.compile(
    # Thai to Myanmar, Khmer, Han with radicals and extensions, kana, fullwidth and halfwidth kana
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u30ff\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff\uff66-\uff9d"
    "\U00020000-\U0003ffff]"
)


def _pieces(text: str) -> Generator[list[str]]:
    """The words of `text` in a form that is the same for every spelling: no case, no accents, no vowel signs.

    In scripts without spaces each character is a word, and the words of such a run come together. Each symbol (an
    emoji) is a word.
    """
    folded = text.casefold()
    if not folded.isascii():
        folded = unicodedata.normalize("NFKD", _sound(folded))
        folded = "".join(character for character in folded if unicodedata.category(character)[0] != "M")
    for word in _WORD.findall(folded):
        if _UNSPACED.search(word):
            yield _UNSPACED.sub(lambda match: f" {match[0]} ", word).split()
        elif word.isalnum() or unicodedata.category(word) == "So":
            yield [word]


def _words(text: str) -> str:
    """What is indexed: all words, separated by spaces."""
    return " ".join(word for piece in _pieces(text) for word in piece)


def _match(query: str) -> str:
    """The query in FTS5's language: any of its words, of a run without spaces any two neighbours. "" for no words."""
    wanted: dict[str, None] = {}
    for piece in _pieces(query[:QUERY_CHARACTERS]):
        pairs = [f"{first} {second}" for first, second in itertools.pairwise(piece)]
        wanted.update(dict.fromkeys(pairs or piece))
        if len(wanted) >= QUERY_WORDS:
            break
    # Only letters, digits and symbols are left: nothing that the quotes would not hold.
    return " OR ".join(f'"{word}"' for word in list(wanted)[:QUERY_WORDS])


def _sound(text: str) -> str:
    """Text that can be stored: a lone surrogate, which no encoding has, becomes a question mark."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _encode(metadata: Mapping[str, Any] | None) -> str:
    try:
        return msgspec.json.encode(dict(metadata or {})).decode()
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise PermanentError(
            f"the metadata of a memory must have a JSON form: {error}", executed=False
        ) from error
