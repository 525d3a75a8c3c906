"""The embedded memory, on real files and in real processes."""
# ruff: noqa: ASYNC240

from __future__ import annotations

import asyncio
import math
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agentrt.errors import AttemptTimeout, ConfigError, PermanentError, TransientError
from agentrt.memory import Item, Memory
from agentrt.memory import sqlite as module
from agentrt.memory.sqlite import SqliteMemory
from agentrt.middleware.timeout import Timeout
from agentrt.pipeline import Pipeline

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def memory() -> AsyncIterator[SqliteMemory]:
    memory = SqliteMemory()
    yield memory
    await memory.aclose()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "memory.db"


def texts(items: list[Item]) -> list[str]:
    return [item.text for item in items]


async def test_what_is_added_is_found_with_its_metadata(memory: SqliteMemory) -> None:
    before = await memory.add("Ada likes red wine", metadata={"who": "Ada", "tags": ["a", 1, None]})
    await memory.add("Bob likes tea")
    (item,) = await memory.search("wine")
    assert (item.id, item.text, item.metadata) == (
        before,
        "Ada likes red wine",
        {"who": "Ada", "tags": ["a", 1, None]},
    )
    assert item.score > 0
    assert math.isclose(item.created, time.time(), abs_tol=60)
    checked: Memory = memory  # satisfies the protocol
    assert await checked.search("nothing of this") == []


async def test_the_best_match_comes_first_and_the_limit_holds(memory: SqliteMemory) -> None:
    await memory.add("tea")
    await memory.add("red wine and red cheese")
    await memory.add("red paint, among many other things that were said about it at length")
    found = await memory.search("red wine", limit=5)
    assert texts(found)[0] == "red wine and red cheese"
    assert [item.score for item in found] == sorted((item.score for item in found), reverse=True)
    assert len(await memory.search("red wine", limit=1)) == 1
    with pytest.raises(ConfigError, match="limit must be"):
        await memory.search("red", limit=0)


async def test_of_equal_matches_the_newest_comes_first(memory: SqliteMemory) -> None:
    ids = [await memory.add("the same words") for _ in range(3)]
    assert [item.id for item in await memory.search("same")] == ids[::-1]


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("She likes wine", "liking"),
        ("Ein CAFÉ in Köln", "cafe koln"),
        ("straße", "STRASSE"),
        ("cafe\u0301", "café"),
        ("東京タワーへ行った", "東京"),
        ("東京タワーへ行った", "昨日タワーを見た"),
        ("ガラス", "ガラス"),
        ("我喜欢红酒", "红酒"),
        ("iPhone手机", "手机"),
        ("ฉันชอบไวน์", "ไวน์"),
        ("नमस्ते दुनिया", "नमस्ते"),
        ("привет мир", "ПРИВЕТ"),
        ("robots 🤖 rule", "🤖"),
        ("new🫠face", "face"),
        ("new🫠face", "🫠"),
        ("snake_case_name", "case"),
        ("version 3.14", "3.14"),
        ("don't", "don't"),
        ("a\x00b", "b"),
        ("x² ½", "2"),
    ],
)
async def test_words_are_found_in_every_script_and_spelling(
    memory: SqliteMemory, text: str, query: str
) -> None:
    await memory.add("something else entirely")
    await memory.add(text)
    assert texts(await memory.search(query)) == [text]


@pytest.mark.parametrize(
    "query",
    [
        "",
        " \n\t",
        '"',
        "'",
        "*",
        "()",
        "a OR",
        "NOT b",
        "NEAR(a b)",
        "a AND AND b",
        "column:value",
        "^a -b +c",
        "{a b}: c",
        'a" OR "b',
        "\x00",
        "\ud800",
        "😀😀😀",
        "%",
        "; DROP TABLE items; --",
        "word " * 200_000,
        "x" * 1_000_000,
        " ".join(f"w{n}" for n in range(50_000)),
    ],
)
async def test_no_query_is_a_syntax_error(memory: SqliteMemory, query: str) -> None:
    await memory.add("untouched")
    assert await memory.search(query) == []
    assert texts(await memory.search("untouched")) == ["untouched"]


async def test_query_words_are_words_not_operators(memory: SqliteMemory) -> None:
    await memory.add("to be or not to be")
    await memory.add("near and far")
    assert texts(await memory.search("NOT")) == ["to be or not to be"]
    assert texts(await memory.search("NEAR(")) == ["near and far"]


async def test_a_word_beyond_the_bounds_of_a_query_does_not_count(memory: SqliteMemory) -> None:
    await memory.add("needle")
    assert texts(await memory.search(" ".join([*(f"w{n}" for n in range(63)), "needle"]))) == ["needle"]
    assert await memory.search(" ".join([*(f"w{n}" for n in range(64)), "needle"])) == []


async def test_lone_surrogates_are_stored_as_question_marks(memory: SqliteMemory) -> None:
    await memory.add("file \ud800 name", key="\ud800")
    assert texts(await memory.search("file")) == ["file ? name"]


async def test_forgetting(memory: SqliteMemory) -> None:
    kept, gone = await memory.add("keep this"), await memory.add("lose this")
    await memory.forget(gone)
    for unknown in (gone, "0", "-1", "", "abc", "1 OR 1", "9" * 30, "²"):
        await memory.forget(unknown)
    assert [item.id for item in await memory.search("this")] == [kept]
    assert await memory.add("later") not in (kept, gone), "an id is never given out again"


async def test_a_key_holds_one_item(memory: SqliteMemory) -> None:
    first = await memory.add("Ada likes wine", key="ada")
    assert await memory.add("Ada likes wine", key="ada") == first, "so an add with a key may be repeated"
    second = await memory.add("Ada likes tea", key="ada")
    assert second != first
    assert texts(await memory.search("ada")) == ["Ada likes tea"]
    third = await memory.add("Ada likes tea", key="ada", metadata={"a": 1})
    assert third != second
    assert [item.metadata for item in await memory.search("ada")] == [{"a": 1}]
    await memory.forget(third)
    assert await memory.add("Ada likes tea", key="ada") != third


async def test_the_oldest_are_forgotten_beyond_the_limit() -> None:
    memory = SqliteMemory(max_items=3)
    for number in range(5):
        await memory.add(f"item number{number}")
    assert sorted(texts(await memory.search("item", limit=10))) == [f"item number{n}" for n in (2, 3, 4)]
    assert await memory.search("number0") == []
    await memory.aclose()


async def test_items_that_cannot_be_remembered_are_refused_and_nothing_was_done(memory: SqliteMemory) -> None:
    small = SqliteMemory(max_item_bytes=20)
    assert await small.add("x" * 18) == "1", "18 bytes and {}"
    for text, metadata, message in (
        ("x" * 19, None, r"an item of 21 bytes is too long to remember; max_item_bytes is 20"),
        ("é" * 10, None, "22 bytes"),
        ("x", {"k": "y" * 20}, "too long to remember"),
        ("", None, "the text is blank"),
        (" \n", None, "the text is blank"),
        ("x", {"k": object()}, "must have a JSON form"),
    ):
        with pytest.raises(PermanentError, match=message) as caught:
            await small.add(text, metadata=metadata)
        assert caught.value.executed is False
        assert caught.value.fault == "request"
    assert len(await small.search("x")) == 0
    await small.aclose()


async def test_options_are_checked() -> None:
    for options in ({"max_items": 0}, {"max_item_bytes": 0}, {"busy_timeout": -1}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            SqliteMemory(**options)  # type: ignore[arg-type]
    assert SqliteMemory(path=":memory:").path is None


# --- the file ------------------------------------------------------------------------------------------


async def test_it_survives_a_restart_and_only_its_owner_may_read_it(path: Path) -> None:
    first = SqliteMemory(path=path)
    await first.add("remember me")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    await first.aclose()
    second = SqliteMemory(path=str(path))
    assert texts(await second.search("remember")) == ["remember me"]
    await second.aclose()
    assert texts(await second.search("remember")) == ["remember me"], "opened again when used again"
    await second.aclose()


async def test_an_unused_memory_makes_no_file_and_no_thread(path: Path) -> None:
    threads = set(threading.enumerate())
    memory = SqliteMemory(path=path)
    await memory.aclose()
    assert not path.parent.exists()
    assert set(threading.enumerate()) <= threads  # one of an earlier test may have ended meanwhile


def prepare(path: Path, *statements: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


async def test_a_newer_file_is_refused_and_left_alone(path: Path) -> None:
    prepare(
        path,
        f"PRAGMA application_id = {module.APPLICATION_ID}",
        "PRAGMA user_version = 2",
        "CREATE TABLE x (y)",
    )
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"newer agentrt \(format 2, this one knows 1\); upgrade agentrt"):
        await SqliteMemory(path=path).search("x")
    assert path.read_bytes() == before


@pytest.mark.parametrize("statements", [["CREATE TABLE x (y)"], ["PRAGMA user_version = 7"]])
async def test_another_programs_file_is_refused_and_left_alone(path: Path, statements: list[str]) -> None:
    prepare(path, *statements)
    before = path.read_bytes()
    with pytest.raises(
        ConfigError, match=r"memory\.db is the database of another program; give another path"
    ):
        await SqliteMemory(path=path).add("x")
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["memory.db"]


@pytest.mark.parametrize(
    "content", [b"this is no database, only text\n" * 100, b"SQLite format 3\0" + bytes(4096)]
)
async def test_a_file_that_is_no_database_is_refused(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"memory\.db cannot be used as a memory: .*move it away"):
        await SqliteMemory(path=path).add("x")
    assert path.read_bytes() == content


async def test_a_damaged_file_is_refused(path: Path) -> None:
    memory = SqliteMemory(path=path)
    for number in range(50):
        await memory.add(f"item {number} " + "word " * 100)
    await memory.aclose()
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    with pytest.raises(ConfigError, match="cannot be used as a memory"):
        await SqliteMemory(path=path).search("word")


async def test_a_file_that_loses_its_tables_later_fails_for_good(path: Path) -> None:
    memory = SqliteMemory(path=path)
    await memory.add("x")
    prepare(path, "DROP TABLE items")
    with pytest.raises(PermanentError, match=r"memory\.db failed: no such table") as caught:
        await memory.add("y")
    assert caught.value.fault == "target"
    await memory.aclose()


async def test_a_path_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "memory.db"):
        with pytest.raises(ConfigError, match=r"memory: .* cannot be opened: "):
            await SqliteMemory(path=path).add("x")


async def test_missing_full_text_search_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Without(sqlite3.Connection):
        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            return super().execute(sql.replace("fts5", "fts5_that_is_missing"), *args)

    def connect(*args: Any, **options: Any) -> sqlite3.Connection:
        return real(*args, **options, factory=Without)

    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", connect)
    with pytest.raises(ConfigError, match=r"no full-text search \(FTS5\)"):
        await SqliteMemory().add("x")


async def test_a_failed_add_leaves_nothing_behind(
    memory: SqliteMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    await memory.add("first")

    def fail(text: str) -> str:
        raise RuntimeError("in the middle")

    with monkeypatch.context() as patched:
        patched.setattr(module, "_words", fail)
        with pytest.raises(RuntimeError, match="in the middle"):
            await memory.add("second")
    assert await memory.search("second") == []
    assert await memory.add("third") == "2"


# --- other processes and threads -----------------------------------------------------------------------


async def test_a_lock_held_too_long_is_a_transient_failure_in_which_nothing_was_done(path: Path) -> None:
    memory = SqliteMemory(path=path, busy_timeout=0.01)
    await memory.add("first")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(
        TransientError, match=r"was locked by another process for more than 0\.01 s"
    ) as caught:
        await memory.add("second")
    assert caught.value.executed is False
    assert texts(await memory.search("first")) == ["first"], "reading goes on"
    fresh = SqliteMemory(path=path, busy_timeout=0.01)
    with pytest.raises(TransientError, match="locked by another process"):
        await fresh.search("first")
    other.execute("ROLLBACK")
    other.close()
    assert texts(await fresh.search("first")) == ["first"]
    assert await memory.add("second") == "2"
    await memory.aclose()
    await fresh.aclose()


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


async def test_several_processes_use_one_file_from_its_beginning(path: Path) -> None:
    program = """
        import asyncio, sys
        from agentrt.memory.sqlite import SqliteMemory

        async def main():
            memory = SqliteMemory(path=sys.argv[1], busy_timeout=30)
            for number in range(25):
                await memory.add(f"process{sys.argv[2]} item{number}")
            await memory.aclose()

        asyncio.run(main())
    """
    processes = [start(program, path, number) for number in range(3)]
    for process in processes:
        await asyncio.to_thread(process.communicate, timeout=60)
    assert [process.returncode for process in processes] == [0, 0, 0]
    memory = SqliteMemory(path=path)
    for number in range(3):
        assert len(await memory.search(f"process{number}", limit=100)) == 25
    await memory.aclose()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
async def test_it_survives_a_killed_process(path: Path) -> None:
    program = """
        import asyncio, sys
        from agentrt.memory.sqlite import SqliteMemory

        async def main():
            memory = SqliteMemory(path=sys.argv[1])
            number = 0
            while True:
                await memory.add(f"item {number}")
                print(number, flush=True)
                number += 1

        asyncio.run(main())
    """
    process = start(program, path)
    assert process.stdout is not None
    confirmed = [int(await asyncio.to_thread(process.stdout.readline)) for _ in range(20)]
    process.send_signal(signal.SIGKILL)
    rest = await asyncio.to_thread(process.stdout.read)  # communicate() would pass over what is buffered
    process.stdout.close()
    await asyncio.to_thread(process.wait, 60)
    confirmed += [int(line) for line in rest.split("\n")[:-1]]
    memory = SqliteMemory(path=path)
    found = {int(text.split()[1]) for text in texts(await memory.search("item", limit=100_000))}
    assert found >= set(confirmed)
    assert len(found) - len(confirmed) in (0, 1), "at most the one that was not confirmed yet"
    await memory.add("alive")
    await memory.aclose()


async def test_concurrent_calls_are_served_one_after_another(memory: SqliteMemory) -> None:
    ids = await asyncio.gather(*(memory.add(f"item {n}") for n in range(50)))
    assert len(set(ids)) == 50
    assert len(await memory.search("item", limit=100)) == 50


async def test_a_stuck_call_is_abandoned_and_the_next_one_waits_for_its_thread(
    memory: SqliteMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    await memory.add("first")
    gate = threading.Event()
    real = module._search

    def stuck(*args: Any) -> list[Item]:
        assert gate.wait(30)
        return real(*args)

    monkeypatch.setattr(module, "_search", stuck)
    pipeline = Pipeline(inner_first=[Timeout(attempt=0.05)])
    with pytest.raises(AttemptTimeout):
        await pipeline.call(memory.search, "first")
    later = asyncio.create_task(memory.add("second"))
    await asyncio.sleep(0.01)
    assert not later.done()
    gate.set()
    assert await later == "2"


# --- properties ----------------------------------------------------------------------------------------

VOCABULARY = ["red", "wine", "cat", "東京", "🤖", "café", "42"]


@settings(max_examples=200)
@given(st.text(st.characters(), max_size=200), st.text(st.characters(), max_size=200))
async def test_any_text_can_be_stored_and_any_query_asked(text: str, query: str) -> None:
    memory = SqliteMemory(max_items=1)
    try:
        if text.strip():
            await memory.add(text)
            found = await memory.search(text)
            assert texts(found) == ([module._sound(text)] if module._match(text) else [])
        assert len(await memory.search(query)) <= 1
    finally:
        await memory.aclose()


class MemoryModel(RuleBasedStateMachine):
    """The memory against a plain dict, with restarts."""

    @initialize(max_items=st.integers(1, 6))
    def begin(self, max_items: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.max_items = max_items
        self.runner = asyncio.Runner()
        self.items: dict[str, tuple[str, str | None]] = {}
        self.used: set[str] = set()
        self.open()

    def open(self) -> None:
        self.memory = SqliteMemory(path=Path(self.folder.name) / "memory.db", max_items=self.max_items)

    @rule(
        words=st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=4),
        key=st.sampled_from([None, "a", "b"]),
    )
    def add(self, words: list[str], key: str | None) -> None:
        text = " ".join(words)
        id_ = self.runner.run(self.memory.add(text, key=key, metadata={"words": words}))
        known = next((old for old, (_, its) in self.items.items() if key is not None and its == key), None)
        if known is not None and self.items[known][0] == text:
            assert id_ == known
            return
        assert id_ not in self.used
        self.used.add(id_)
        if known is not None:
            del self.items[known]
        self.items[id_] = (text, key)
        while len(self.items) > self.max_items:
            del self.items[next(iter(self.items))]

    @precondition(lambda self: self.items)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        id_ = data.draw(st.sampled_from(sorted(self.items)))
        self.runner.run(self.memory.forget(id_))
        del self.items[id_]

    @rule()
    def restart(self) -> None:
        self.runner.run(self.memory.aclose())
        self.open()

    @rule(words=st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=2), limit=st.integers(1, 8))
    def search(self, words: list[str], limit: int) -> None:
        found = self.runner.run(self.memory.search(" ".join(words), limit=limit))
        expected = {id_ for id_, (text, _) in self.items.items() if set(words) & set(text.split())}
        ids = [item.id for item in found]
        assert len(ids) == len(set(ids)) == min(limit, len(expected))
        assert set(ids) <= expected
        assert [item.score for item in found] == sorted((item.score for item in found), reverse=True)
        assert all(item.metadata == {"words": item.text.split()} for item in found)

    @invariant()
    def every_item_is_found_and_no_other(self) -> None:
        if hasattr(self, "memory"):
            found = self.runner.run(self.memory.search(" ".join(VOCABULARY), limit=100))
            assert {item.id: item.text for item in found} == {
                id_: text for id_, (text, _) in self.items.items()
            }

    def teardown(self) -> None:
        if hasattr(self, "memory"):
            self.runner.run(self.memory.aclose())
            self.runner.close()
            self.folder.cleanup()


TestMemoryModel = MemoryModel.TestCase
TestMemoryModel.settings = settings(max_examples=40, stateful_step_count=20)
