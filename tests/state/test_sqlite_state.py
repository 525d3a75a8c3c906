"""State in SQLite: documents by id, one writer at a time, nothing lost and nothing left."""
# ruff: noqa: ASYNC240

from __future__ import annotations

import asyncio
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
import traceback
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.errors import ConfigError, PermanentError, TransientError
from agentrt.memory.sqlite import SqliteMemory
from agentrt.state import Entry, StateConflict, StateStore, Stored
from agentrt.state import sqlite as module
from agentrt.state.sqlite import SqliteState

pytestmark = pytest.mark.asyncio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "state.db"


@pytest_asyncio.fixture
async def state(path: Path) -> AsyncIterator[SqliteState]:
    made = SqliteState(path=path)
    yield made
    await made.aclose()


async def test_it_is_a_state_store(state: SqliteState) -> None:
    store: StateStore = state
    assert await store.load("a") is None
    await store.save("a", "one", revision="1", replaces=None)
    assert await store.load("a") == Stored("one", "1")
    await store.save("a", "two", revision="2", replaces="1")
    assert await store.load("a") == Stored("two", "2")
    assert await store.delete("a") is True
    assert await store.delete("a") is False
    assert await store.load("a") is None


async def test_a_revision_that_is_not_the_last_one_replaces_nothing(state: SqliteState) -> None:
    await state.save("a", "one", revision="1", replaces=None)
    with pytest.raises(
        StateConflict, match="the stored session 'a' was saved by somebody else since it was loaded"
    ) as caught:
        await state.save("a", "other", revision="x", replaces=None)
    assert caught.value.executed is False
    with pytest.raises(StateConflict):
        await state.save("a", "other", revision="x", replaces="0")
    assert await state.load("a") == Stored("one", "1")
    await state.delete("a")
    with pytest.raises(StateConflict, match="'a' was deleted since it was loaded"):
        await state.save("a", "two", revision="2", replaces="1")
    assert await state.load("a") is None


async def test_a_save_may_be_repeated(state: SqliteState) -> None:
    for _ in range(2):
        await state.save("a", "one", revision="1", replaces=None)
    for _ in range(2):
        await state.save("a", "two", revision="2", replaces="1")
    assert await state.load("a") == Stored("two", "2")


async def test_the_last_saved_is_listed_first(state: SqliteState, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 30.0, 20.0, 40.0])
    monkeypatch.setattr(module.time, "time", lambda: next(clock))
    for number, id in enumerate(("chat/a", "chat/b", "chat_c", "chat/ä%_")):
        await state.save(id, "é" * number, revision="1", replaces=None)
    assert await state.list() == [
        Entry("chat/ä%_", 40.0, 6),
        Entry("chat/b", 30.0, 2),
        Entry("chat_c", 20.0, 4),
        Entry("chat/a", 10.0, 0),
    ]
    assert [entry.id for entry in await state.list("chat/")] == ["chat/ä%_", "chat/b", "chat/a"]
    assert [entry.id for entry in await state.list("chat/ä%")] == ["chat/ä%_"]
    assert [entry.id for entry in await state.list(limit=2)] == ["chat/ä%_", "chat/b"]
    with pytest.raises(ConfigError, match="limit must be"):
        await state.list(limit=0)


async def test_what_is_too_long_is_refused(path: Path) -> None:
    state = SqliteState(path=path, max_bytes=10)
    await state.save("a", "é" * 5, revision="1", replaces=None)
    with pytest.raises(
        PermanentError, match="'b' has 12 bytes, too many to be stored; max_bytes is 10"
    ) as caught:
        await state.save("b", "é" * 6, revision="1", replaces=None)
    assert caught.value.executed is False
    await state.aclose()


@pytest.mark.parametrize("options", [{"max_bytes": 0}, {"busy_timeout": -1.0}])
async def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        SqliteState(**options)


async def test_only_its_owner_may_read_the_file(path: Path, state: SqliteState) -> None:
    await state.save("a", "one", revision="1", replaces=None)
    modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in path.parent.iterdir()}
    assert modes["state.db"] == 0o600
    assert set(modes.values()) == {0o600}


async def test_each_save_is_synced(state: SqliteState) -> None:
    await state.load("a")
    for pragma, wanted in (("journal_mode", "wal"), ("synchronous", 2), ("secure_delete", 1)):
        read = await state._file.run(lambda db, name=pragma: db.execute(f"PRAGMA {name}").fetchone()[0])  # type: ignore[misc]
        assert (pragma, read) == (pragma, wanted)


async def test_what_was_replaced_or_deleted_is_not_in_the_file(path: Path) -> None:
    state = SqliteState(path=path)
    await state.save("a", "SECRET" * 2000, revision="1", replaces=None)
    await state.save("b", "HIDDEN" * 20, revision="1", replaces=None)
    await state.save("a", "x", revision="2", replaces="1")
    await state.delete("b")
    await state.aclose()
    left = b"".join(entry.read_bytes() for entry in path.parent.iterdir())
    assert b"SECRET" not in left
    assert b"HIDDEN" not in left


async def test_what_was_deleted_is_not_in_the_log_either(path: Path, state: SqliteState) -> None:
    await state.save("a", "SECRET" * 2000, revision="1", replaces=None)
    await state.save("a", "HIDDEN" * 20, revision="2", replaces="1")
    await state.delete("a")
    left = b"".join(entry.read_bytes() for entry in path.parent.iterdir())
    assert b"SECRET" not in left
    assert b"HIDDEN" not in left


async def test_a_second_store_of_a_file_does_not_end_the_locks_of_the_first(
    path: Path, state: SqliteState
) -> None:
    """Another process would delete the log under it when it closes the file: what is saved then, nobody else sees."""
    await state.save("a", "one", revision="1", replaces=None)
    second = SqliteState(path=path)
    await second.load("a")
    program = """
        import asyncio, sys
        from agentrt.state.sqlite import SqliteState

        async def main():
            state = SqliteState(path=sys.argv[1])
            print([entry.id for entry in await state.list()])
            await state.aclose()

        asyncio.run(main())
    """
    assert await ended(program, path) == "['a']\n"
    assert path.with_name("state.db-wal").exists()
    await state.save("b", "two", revision="1", replaces=None)
    assert await ended(program, path) == "['b', 'a']\n"
    await second.aclose()


async def test_through_a_link_to_what_is_not_there_yet_only_the_owner_may_read(tmp_path: Path) -> None:
    (tmp_path / "state.db").symlink_to(tmp_path / "elsewhere.db")
    state = SqliteState(path=tmp_path / "state.db")
    await state.load("a")
    await state.aclose()
    assert stat.S_IMODE((tmp_path / "elsewhere.db").stat().st_mode) == 0o600


async def test_a_memorys_file_is_refused(path: Path) -> None:
    memory = SqliteMemory(path=path)
    await memory.add("x")
    await memory.aclose()
    with pytest.raises(ConfigError, match=r"state store: .*state\.db is the database of another program"):
        await SqliteState(path=path).load("a")


async def test_a_newer_or_damaged_file_is_refused(path: Path) -> None:
    state = SqliteState(path=path)
    await state.save("a", "x" * 10_000, revision="1", replaces=None)
    await state.aclose()
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    with pytest.raises(ConfigError, match="cannot be used as a state store"):
        await SqliteState(path=path).load("a")
    path.write_bytes(whole)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(ConfigError, match=r"newer agentrt \(format 2, this one knows 1\)"):
        await SqliteState(path=path).load("a")


async def put(path: Path, column: str, value: str) -> None:
    db = sqlite3.connect(path)
    db.execute(f"UPDATE documents SET {column} = {value}")
    db.commit()
    db.close()


async def test_a_text_that_is_not_utf8_is_told_and_not_shown(path: Path, state: SqliteState) -> None:
    await state.save("a", "one", revision="1", replaces=None)
    await put(path, "document", "CAST(CAST('SECRET' AS BLOB) || x'ff' AS TEXT)")
    for store, error in ((state, PermanentError), (SqliteState(path=path), ConfigError)):
        with pytest.raises(error, match="a text in it is not UTF-8") as caught:
            await store.load("a")
        assert "SECRET" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("column", ["document", "revision"])
async def test_what_is_no_text_is_told(column: str, path: Path, state: SqliteState) -> None:
    await state.save("a", "one", revision="1", replaces=None)
    await put(path, column, "x'7b7d'")
    with pytest.raises(PermanentError, match="'a' is damaged"):
        await state.load("a")


async def test_a_lock_held_too_long_is_a_transient_failure_in_which_nothing_was_done(path: Path) -> None:
    state = SqliteState(path=path, busy_timeout=0.01)
    await state.save("a", "one", revision="1", replaces=None)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(TransientError, match="locked by another process") as caught:
        await state.save("a", "two", revision="2", replaces="1")
    assert caught.value.executed is False
    assert await state.load("a") == Stored("one", "1"), "reading goes on"
    other.execute("ROLLBACK")
    other.close()
    await state.save("a", "two", revision="2", replaces="1")
    await state.aclose()


async def test_a_cancelled_save_is_whole_or_not_there(
    state: SqliteState, monkeypatch: pytest.MonkeyPatch
) -> None:
    await state.save("a", "one", revision="1", replaces=None)
    entered, gate = threading.Event(), threading.Event()
    real = module._save

    def stuck(*args: Any) -> None:
        entered.set()
        assert gate.wait(30)
        real(*args)

    monkeypatch.setattr(module, "_save", stuck)
    saving = asyncio.create_task(state.save("a", "two", revision="2", replaces="1"))
    await asyncio.to_thread(entered.wait, 30)
    saving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await saving
    gate.set()
    assert await state.load("a") == Stored("two", "2"), "the next call waits for the thread"


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["save", "stale", "again", "delete", "load"]),
        st.sampled_from(["a", "b"]),
        st.text(max_size=5),
    ),
    max_size=30,
)


@settings(max_examples=50)
@given(STEPS)
async def test_it_holds_what_a_dict_would_hold(steps: list[tuple[str, str, str]]) -> None:
    state, model = SqliteState(path=":memory:"), dict[str, Stored]()
    for number, (what, id, text) in enumerate(steps):
        there = model.get(id)
        text = text.encode("utf-8", "replace").decode()
        if what == "save":
            replaces = there.revision if there else None
            await state.save(id, text, revision=str(number), replaces=replaces)
            model[id] = Stored(text, str(number))
        elif what == "stale":
            with pytest.raises(StateConflict):
                await state.save(id, text, revision=str(number), replaces="never")
        elif what == "again" and there is not None:
            await state.save(id, "other", revision=there.revision, replaces="whatever")
        elif what == "delete":
            assert await state.delete(id) is (model.pop(id, None) is not None)
        assert await state.load(id) == model.get(id)
    assert {entry.id for entry in await state.list()} == set(model)
    await state.aclose()


# --- processes -----------------------------------------------------------------------------------------


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


async def ended(program: str, *arguments: object) -> str:
    """What the program prints."""
    out, _ = await asyncio.to_thread(start(program, *arguments).communicate, timeout=60)
    return out


async def test_of_several_writers_each_replaces_what_it_has_read(path: Path) -> None:
    """Four processes count in one document: not one step is lost."""
    program = """
        import asyncio, os, sys
        from agentrt.state import StateConflict
        from agentrt.state.sqlite import SqliteState

        async def main():
            state = SqliteState(path=sys.argv[1], busy_timeout=30)
            for _ in range(25):
                while True:
                    stored = await state.load("counter")
                    number = int(stored.document) if stored else 0
                    replaces = stored.revision if stored else None
                    try:
                        await state.save("counter", str(number + 1), revision=os.urandom(8).hex(), replaces=replaces)
                        break
                    except StateConflict:
                        pass
            await state.aclose()

        asyncio.run(main())
    """
    processes = [start(program, path) for _ in range(4)]
    for process in processes:
        await asyncio.to_thread(process.communicate, timeout=60)
    assert [process.returncode for process in processes] == [0, 0, 0, 0]
    state = SqliteState(path=path)
    stored = await state.load("counter")
    assert stored is not None
    assert stored.document == "100"
    await state.aclose()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
async def test_what_was_saved_survives_a_killed_process(path: Path) -> None:
    program = """
        import asyncio, sys
        from agentrt.state.sqlite import SqliteState

        async def main():
            state = SqliteState(path=sys.argv[1])
            number, before = 0, None
            while True:
                await state.save("a", f"{number} " + "x" * 5000, revision=str(number), replaces=before)
                print(number, flush=True)
                number, before = number + 1, str(number)

        asyncio.run(main())
    """
    process = start(program, path)
    assert process.stdout is not None
    for _ in range(20):
        await asyncio.to_thread(process.stdout.readline)
    process.send_signal(signal.SIGKILL)
    rest = await asyncio.to_thread(process.stdout.read)
    process.stdout.close()
    await asyncio.to_thread(process.wait, 60)
    confirmed = int(["19", *rest.split("\n")[:-1]][-1])
    state = SqliteState(path=path)
    stored = await state.load("a")
    assert stored is not None
    number, _, text = stored.document.partition(" ")
    assert int(number) in (confirmed, confirmed + 1)
    assert text == "x" * 5000
    assert stored.revision == number
    await state.aclose()
