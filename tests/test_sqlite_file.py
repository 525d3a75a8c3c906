"""What a store says about a file that it cannot use: what is wrong with it, and what to do."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from agentrt.errors import ConfigError, PermanentError
from agentrt.sqlite_file import Format, SqliteFile

pytestmark = pytest.mark.asyncio


def create(db: sqlite3.Connection) -> None:
    db.execute("CREATE TABLE notes (text TEXT)")


def probe(db: sqlite3.Connection) -> None:
    db.execute("SELECT text FROM notes LIMIT 1").fetchone()


def count(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT count(*) FROM notes").fetchone()[0])


def note_much(db: sqlite3.Connection) -> None:
    db.execute("INSERT INTO notes VALUES (?)", ("x" * 1_000_000,))


def notes(path: Path, *pragmas: str) -> SqliteFile:
    return SqliteFile(path, Format(7, 1, create, probe), what="notes", busy_timeout=1.0, pragmas=pragmas)


async def test_a_full_disk_at_the_first_use_asks_for_room_and_not_to_move_the_file_away(
    tmp_path: Path,
) -> None:
    full = notes(
        tmp_path / "notes.db", "max_page_count = 1"
    )  # what SQLite says then is what it says of a full disk

    with pytest.raises(
        ConfigError, match=r"notes\.db cannot be used as a notes: .* is full\. Make room"
    ) as told:
        await full.run(count)

    assert "move it away" not in str(told.value)
    await full.aclose()


async def test_a_disk_that_is_full_later_asks_for_room(tmp_path: Path) -> None:
    file = notes(tmp_path / "notes.db", "max_page_count = 20")
    assert await file.run(count) == 0

    with pytest.raises(
        PermanentError, match=r"notes\.db failed: database or disk is full\. Make room on the disk"
    ):
        await file.run(note_much)

    assert await file.run(count) == 0
    await file.aclose()


async def test_a_folder_in_place_of_the_file_is_called_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be opened: .*\. It is a folder: give the path of a file$"):
        await notes(tmp_path).run(count)


async def test_a_folder_that_cannot_be_made_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(
        ConfigError, match=r"notes\.db cannot be opened: File exists: .*/file\. Let this user"
    ):
        await notes(tmp_path / "file" / "notes.db").run(count)


async def test_a_file_that_is_no_database_may_be_moved_away(tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("not a database, " * 100)

    with pytest.raises(ConfigError, match=r"file is not a database\. If it is damaged, move it away"):
        await notes(tmp_path / "notes.db").run(count)
