"""`FileAccess.aio`: the same off the event loop, and what becomes of it when the task is cancelled."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agentrt.security.files import AccessDenied, FileAccess, FileMissing
from agentrt.threads import has_work
from tests.security.jails import World, open_descriptors

pytestmark = pytest.mark.asyncio


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


class Gate:
    """An `on_access` that holds every operation up until it is opened."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.opened = threading.Event()

    def __call__(self, *decision: object) -> None:
        self.begun.set()
        assert self.opened.wait(50)


async def threads_are_done() -> None:
    end = time.monotonic() + 50
    while has_work(asyncio.get_running_loop()):
        assert time.monotonic() < end
        await asyncio.sleep(0.001)


@asynccontextmanager
async def cancelled(gate: Gate, work: Coroutine[Any, Any, object]) -> AsyncIterator[None]:
    """`work` is cancelled while its thread is held up; in the block the task is over and the thread is not."""
    task = asyncio.ensure_future(work)
    assert await asyncio.to_thread(gate.begun.wait, 50)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    yield
    gate.opened.set()
    await threads_are_done()


async def test_every_operation_is_there_and_the_same(world: World) -> None:
    with FileAccess(world.root, "write") as files:
        assert await files.aio.read_text("a/b/f") == "inside"
        assert await files.aio.read_text("a/b/f", encoding="ascii") == "inside"
        assert await files.aio.read_bytes("a/b/f") == b"inside"
        with await files.aio.open_read("a/b/f") as file:
            assert file.read() == b"inside"
        assert await files.aio.list("a", limit=5) == files.list("a")
        assert await files.aio.stat("a/b/f") == files.stat("a/b/f")
        assert await files.aio.write("x/new", "new", parents=True, mode=0o600) == 3
        assert (world.root / "x" / "new").stat().st_mode & 0o777 == 0o600
        await files.aio.delete("x/new")
        with pytest.raises(FileMissing):
            await files.aio.read_text("x/new")
        with pytest.raises(AccessDenied):
            await files.aio.read_text("../canary")


def _public(kind: type) -> set[str]:
    return {name for name, value in vars(kind).items() if callable(value) and not name.startswith("_")}


async def test_it_has_all_operations() -> None:
    from agentrt.security.files_async import AsyncFileAccess

    assert _public(AsyncFileAccess) == _public(FileAccess) - {"close"}


async def test_the_loop_goes_on_meanwhile(world: World) -> None:
    gate = Gate()
    with FileAccess(world.root, "read", on_access=gate) as files:
        task = asyncio.ensure_future(files.aio.read_text("a/b/f"))
        assert await asyncio.to_thread(gate.begun.wait, 50)  # only a loop that is free comes on
        gate.opened.set()
        assert await task == "inside"


async def test_a_file_that_nobody_waits_for_any_more_is_closed(world: World) -> None:
    gate = Gate()
    with FileAccess(world.root, "read", on_access=gate) as files:
        before = open_descriptors()
        async with cancelled(gate, files.aio.open_read("a/b/f")):
            assert open_descriptors() == before + 1
        assert open_descriptors() == before


async def test_a_file_that_is_opened_as_the_task_is_cancelled_is_closed(world: World) -> None:
    with FileAccess(world.root, "read") as files:
        before = open_descriptors()
        for delay in range(200):
            task = asyncio.ensure_future(files.aio.open_read("a/b/f"))
            await asyncio.sleep(0)
            time.sleep(delay * 1e-6)  # noqa: ASYNC251 (the thread is to get further each time)
            task.cancel()
            try:
                (await task).close()
            except asyncio.CancelledError:
                pass
        await threads_are_done()
        assert open_descriptors() == before


async def test_a_write_that_was_cancelled_is_not_made(world: World) -> None:
    gate = Gate()
    with FileAccess(world.root, "write", on_access=gate, quota=100) as files:
        before = open_descriptors()
        async with cancelled(gate, files.aio.write("a/b/f", "changed")):
            pass
        assert (world.root / "a" / "b" / "f").read_text() == "inside"
        assert os.listdir(world.root / "a" / "b") == ["f"]
        assert files.written == 0
        assert open_descriptors() == before


@pytest.mark.parametrize(
    "start",
    [
        lambda files: files.aio.read_bytes("a/b/f"),
        lambda files: files.aio.list("a"),
        lambda files: files.aio.stat("a"),
        lambda files: files.aio.write("new", b"x" * 1000),
        lambda files: files.aio.delete("a/b/f"),
    ],
    ids=["read_bytes", "list", "stat", "write", "delete"],
)
async def test_no_descriptor_is_left_when_the_jail_is_closed_and_the_task_cancelled(
    world: World, start: Callable[[FileAccess], Coroutine[Any, Any, object]]
) -> None:
    before = open_descriptors()
    gate = Gate()
    with FileAccess(world.root, "write", on_access=gate) as files:
        async with cancelled(gate, start(files)):
            files.close()
    assert open_descriptors() == before
