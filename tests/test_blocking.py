"""The watch for tools that block the event loop. It measures real time, so these tests really block, briefly."""

from __future__ import annotations

import asyncio
import inspect
import logging
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable
from types import CodeType
from typing import Any

import pytest
from msgspec import Struct

from agentrt import blocking
from agentrt.blocking import Blocking, BlockingWarning, BlockingWatch
from agentrt.testing import VirtualTimeLoop

pytestmark = pytest.mark.asyncio

THRESHOLD = 0.05


class Executing(Struct, frozen=True, eq=False):
    name: str
    code: CodeType | None = None
    run: Any = None


class Report:
    def __init__(self) -> None:
        self.seen: list[Blocking] = []
        self.threads: list[threading.Thread] = []

    def __call__(self, found: Blocking) -> None:
        self.seen.append(found)
        self.threads.append(threading.current_thread())


@pytest.fixture
def report() -> Report:
    return Report()


async def execute(watch: BlockingWatch, name: str, function: Callable[[], Any], run: Any = None) -> Any:
    task = asyncio.current_task()
    assert task is not None
    outer = watch.enter(task, Executing(name, getattr(function, "__code__", None), run))
    try:
        return await function()
    finally:
        watch.leave(task, outer)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for another thread, which has no way to tell us."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


@pytest.fixture(autouse=True)
def told_in_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the process stands still: only tests of a tool that never lets go want it told from outside."""
    monkeypatch.setattr(blocking, "STUCK_FACTOR", 1000.0)


@pytest.fixture
def told_from_outside(monkeypatch: pytest.MonkeyPatch, told_in_the_loop: None) -> None:
    monkeypatch.setattr(blocking, "STUCK_FACTOR", 1.0)


async def settle(report: Report, count: int = 0) -> None:
    """Wait for so many reports; another, one too many, has some time to come."""
    await until(lambda: len(report.seen) >= count)
    await asyncio.sleep(2 * THRESHOLD)


def block_until_found(watch: BlockingWatch, count: int = 1) -> None:
    """Block as long as it takes: how soon another thread gets a turn is up to the machine."""
    give_up = time.monotonic() + 20
    while len(watch._reported) < count and time.monotonic() < give_up:
        time.sleep(THRESHOLD / 10)


def blocker(watch: BlockingWatch, count: int = 1) -> Callable[[], Any]:
    async def blocks() -> None:
        block_until_found(watch, count)

    return blocks


async def blocks_briefly() -> None:
    time.sleep(4 * THRESHOLD)  # noqa: ASYNC251 (that is the point)


async def test_a_tool_that_blocks_is_named_with_the_line_and_the_duration(report: Report) -> None:
    watch = BlockingWatch(asyncio.get_running_loop(), threshold=THRESHOLD, report=report)
    run = object()

    async def blocks() -> None:
        give_up = time.monotonic() + 20
        while not watch._reported and time.monotonic() < give_up:
            time.sleep(THRESHOLD / 10)  # noqa: ASYNC251

    await execute(watch, "slow", blocks, run)
    await settle(report, 1)
    (found,) = report.seen
    lines, first = inspect.getsourcelines(blocks)
    assert (found.tool, found.over, found.function, found.file) == ("slow", True, "blocks", __file__)
    assert first <= found.line < first + len(lines)
    assert found.run is run
    assert found.inside == ""
    assert THRESHOLD <= found.seconds < 20
    assert report.threads == [threading.current_thread()], "reported in the loop's thread"
    assert found.message.startswith(
        f"tool 'slow' blocked the event loop for {found.seconds:.1f} s at {__file__}:"
    )
    assert "plain `def`" in found.message
    assert "asyncio.to_thread" in found.message


async def test_the_report_comes_before_the_run_goes_on(
    report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    watch = BlockingWatch(loop, threshold=THRESHOLD, report=report)
    queued, call_soon = threading.Event(), loop.call_soon_threadsafe

    def seen(callback: Callable[..., object], *arguments: Any, **options: Any) -> asyncio.Handle:
        handle = call_soon(callback, *arguments, **options)
        if callback == watch._tell:
            queued.set()
        return handle

    monkeypatch.setattr(loop, "call_soon_threadsafe", seen)

    async def blocks() -> None:
        assert queued.wait(30)

    await execute(watch, "slow", blocks)
    assert report.seen == []
    await asyncio.sleep(0)
    assert len(report.seen) == 1, "a run may end at once, and a warning after its end is lost"


async def test_a_tool_is_reported_once(report: Report) -> None:
    watch = BlockingWatch(asyncio.get_running_loop(), threshold=THRESHOLD, report=report)
    await execute(watch, "slow", blocker(watch))
    await settle(report, 1)
    await execute(watch, "slow", blocks_briefly)
    await settle(report, 1)
    await execute(watch, "other", blocker(watch, 2))
    await settle(report, 2)
    assert [found.tool for found in report.seen] == ["slow", "other"]


async def test_the_innermost_line_is_told_beside_the_tools_own(report: Report) -> None:
    watch = BlockingWatch(asyncio.get_running_loop(), threshold=THRESHOLD, report=report)

    async def calls_helper() -> None:
        block_until_found(watch)

    await execute(watch, "slow", calls_helper)
    await settle(report, 1)
    (found,) = report.seen
    assert found.function == "calls_helper"
    assert found.inside.startswith(f"{__file__}:")
    assert f"in calls_helper, inside {__file__}:" in found.message


async def test_the_tool_on_the_loop_is_blamed_not_one_that_waits(report: Report) -> None:
    free = asyncio.Event()
    watch = BlockingWatch(asyncio.get_running_loop(), threshold=THRESHOLD, report=report)
    waiting = asyncio.create_task(execute(watch, "waits", free.wait))
    await asyncio.sleep(0)
    await execute(watch, "blocks", blocker(watch))
    free.set()
    await waiting
    await settle(report, 1)
    assert [found.tool for found in report.seen] == ["blocks"]


async def test_a_tool_that_awaits_for_long_is_fine(report: Report) -> None:
    async def waits() -> None:
        await asyncio.sleep(4 * THRESHOLD)

    watch = BlockingWatch(asyncio.get_running_loop(), threshold=THRESHOLD, report=report)
    await execute(watch, "waits", waits)
    await settle(report)
    assert report.seen == []


async def test_code_outside_of_tools_is_not_watched(report: Report) -> None:
    watch = BlockingWatch(asyncio.get_running_loop(), threshold=THRESHOLD, report=report)

    async def waits() -> None:
        await asyncio.sleep(8 * THRESHOLD)

    waiting = asyncio.create_task(execute(watch, "waits", waits))
    await asyncio.sleep(0)
    time.sleep(4 * THRESHOLD)  # noqa: ASYNC251
    await waiting
    await settle(report)
    assert report.seen == []


async def test_an_inner_tool_is_blamed_and_the_outer_one_is_known_again_after_it(report: Report) -> None:
    watch = BlockingWatch(asyncio.get_running_loop(), threshold=THRESHOLD, report=report)

    async def outer() -> None:
        await execute(watch, "inner", blocker(watch))
        await settle(report, 1)
        block_until_found(watch, 2)

    await execute(watch, "outer", outer)
    await settle(report, 2)
    assert [found.tool for found in report.seen] == ["inner", "outer"]


async def test_a_subtask_is_blamed_on_the_tool_that_is_found_for_it(report: Report) -> None:
    subtasks: dict[asyncio.Task[Any], Executing] = {}

    watch = BlockingWatch(asyncio.get_running_loop(), threshold=THRESHOLD, report=report, find=subtasks.get)

    async def starts() -> None:
        subtask = asyncio.create_task(blocker(watch)())
        subtasks[subtask] = Executing("parent", block_until_found.__code__)
        await subtask

    await execute(watch, "parent", starts)
    await settle(report, 1)
    (found,) = report.seen
    assert (found.tool, found.function) == ("parent", "block_until_found")


@pytest.mark.usefixtures("told_from_outside")
async def test_a_tool_that_never_lets_go_is_reported_from_outside(report: Report) -> None:
    reported = threading.Event()

    def tell(found: Blocking) -> None:
        report(found)
        reported.set()

    async def stuck() -> None:
        reported.wait(30)

    watch = BlockingWatch(asyncio.get_running_loop(), threshold=THRESHOLD, report=tell)
    await execute(watch, "stuck", stuck)
    (found,) = report.seen
    assert not found.over
    assert " s so far at " in found.message
    assert report.threads[0] is not threading.main_thread()


@pytest.mark.usefixtures("told_from_outside")
async def test_a_report_that_fails_does_not_end_the_watch(caplog: pytest.LogCaptureFixture) -> None:
    reported = threading.Event()

    def fail(found: Blocking) -> None:
        reported.set()
        raise ValueError("no report")

    async def stuck() -> None:
        reported.wait(30)

    watch = BlockingWatch(asyncio.get_running_loop(), threshold=THRESHOLD, report=fail)
    with caplog.at_level(logging.ERROR, "agentrt"):
        await execute(watch, "stuck", stuck)
        await until(lambda: bool(caplog.records))
    assert "tool 'stuck' blocks the event loop, and the report of it failed" in caplog.text
    assert watch.is_watching


async def test_the_run_is_told_if_it_can_be() -> None:
    class Run:
        def __init__(self) -> None:
            self.warnings: list[str] = []

        def warn(self, message: str) -> None:
            self.warnings.append(message)

    run = Run()
    found = Blocking("t", 1.0, True, __file__, 1, "f", "", run)
    blocking.warn(found)
    assert run.warnings == [found.message]
    for other in (
        Blocking("t", 1.0, False, __file__, 1, "f", "", run),
        Blocking("t", 1.0, True, __file__, 1, "f", "", None),
    ):
        with pytest.warns(BlockingWarning, match="tool 't' blocked the event loop") as caught:
            blocking.warn(other)
        assert (caught[0].filename, caught[0].lineno) == (__file__, 1)
    assert len(run.warnings) == 1


async def test_the_thread_ends_when_no_tool_executes_and_starts_again(
    report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocking, "LINGER_SECONDS", 0.0)
    watch = BlockingWatch(asyncio.get_running_loop(), threshold=THRESHOLD, report=report)
    assert not watch.is_watching

    async def quick() -> None:
        assert watch.is_watching

    await execute(watch, "quick", quick)
    await until(lambda: not watch.is_watching)
    await execute(watch, "slow", blocker(watch))
    await settle(report, 1)
    assert [found.tool for found in report.seen] == ["slow"]


async def test_a_loop_has_one_watch_and_closed_loops_are_let_go() -> None:
    loop = asyncio.get_running_loop()
    assert BlockingWatch.of(loop) is BlockingWatch.of(loop)
    closed = asyncio.new_event_loop()
    BlockingWatch.of(closed)
    closed.close()
    other = asyncio.new_event_loop()
    try:
        BlockingWatch.of(other)
        assert all(watch.loop is not closed for watch in BlockingWatch._of_loop.values())
    finally:
        other.close()


async def test_a_loop_of_virtual_time_is_not_watched() -> None:
    def scenario() -> bool:
        async def main() -> bool:
            watch = BlockingWatch(asyncio.get_running_loop(), threshold=THRESHOLD)

            async def tool() -> bool:
                await asyncio.sleep(100)
                return watch.is_watching

            return bool(await execute(watch, "tool", tool))

        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            return runner.run(main())

    assert await asyncio.to_thread(scenario) is False


async def test_without_threads_tools_run_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    watch = BlockingWatch(asyncio.get_running_loop(), threshold=THRESHOLD)

    async def tool() -> int:
        return 1

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        assert await execute(watch, "t", tool) == 1
    assert not watch.is_watching


async def test_the_watch_does_not_hold_up_exit_nor_outlive_its_loop_noisily() -> None:
    program = """
        import asyncio, time
        from agentrt.blocking import BlockingWatch

        class Executing:
            name, code, run = "t", None, None

        async def main():
            watch = BlockingWatch.of(asyncio.get_running_loop())
            watch.threshold = 0.4
            task = asyncio.current_task()
            watch.enter(task, Executing())
            await asyncio.sleep(0.05)
            return watch      # never left: the loop closes under the watch

        watch = asyncio.run(main())
        while watch.is_watching:
            time.sleep(0.001)
    """
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


async def test_warnings_stay_quiet_without_blocking() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watch = BlockingWatch(asyncio.get_running_loop(), threshold=THRESHOLD)

        async def waits() -> None:
            await asyncio.sleep(3 * THRESHOLD)

        await execute(watch, "waits", waits)
    assert [warning for warning in caught if warning.category is BlockingWarning] == []
