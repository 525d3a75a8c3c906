"""Worker threads, with real threads: events, not sleeps, order what happens."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, NoReturn

import pytest

from agentrt import threads
from agentrt.call import ENCLOSING
from agentrt.errors import AttemptTimeout, BulkheadFull, ConfigError
from agentrt.middleware.bulkhead import Bulkhead
from agentrt.middleware.retry import Retry
from agentrt.middleware.timeout import Timeout
from agentrt.pipeline import Pipeline
from agentrt.threads import AbandonedThread, WorkerThreads, has_work, shared

pytestmark = pytest.mark.asyncio

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


class Gate:
    """A function that blocks until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self._open = threading.Event()

    def __call__(self) -> str:
        self.entered.set()
        assert self._open.wait(30)
        return "passed"

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


@pytest.fixture
def pool() -> Iterator[WorkerThreads]:
    pool = WorkerThreads(limit=2)
    yield pool
    pool.close()


async def entered(gate: Gate) -> None:
    assert await asyncio.to_thread(gate.entered.wait, 30)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for another thread, which has no way to tell us."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def cancel(task: asyncio.Task[Any]) -> asyncio.CancelledError:
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    return caught.value


# --- results -------------------------------------------------------------------------------------------


async def test_a_call_runs_in_a_named_daemon_thread_and_returns_its_result(pool: WorkerThreads) -> None:
    def look(a: int, b: int) -> tuple[int, str, bool, bool]:
        thread = threading.current_thread()
        return a + b, thread.name, thread.daemon, thread is threading.main_thread()

    assert await pool.run(look, 1, 2, name="tool:look") == (3, "tool:look", True, False)
    assert (await pool.run(look, 1, 2))[1] == "agentrt worker"


async def test_the_context_is_copied(pool: WorkerThreads) -> None:
    VARIABLE.set("outside")

    def change() -> str:
        seen = VARIABLE.get()
        VARIABLE.set("inside")
        return seen

    assert await pool.run(change) == "outside"
    assert VARIABLE.get() == "outside"


async def test_an_error_is_the_same_object(pool: WorkerThreads) -> None:
    error = ValueError("no")

    def fail() -> NoReturn:
        raise error

    with pytest.raises(ValueError, match="no") as caught:
        await pool.run(fail)
    assert caught.value is error


@pytest.mark.parametrize("kind", [StopIteration, StopAsyncIteration, GeneratorExit, asyncio.CancelledError])
async def test_what_would_steer_a_coroutine_comes_out_as_a_runtime_error(
    pool: WorkerThreads, kind: type[BaseException]
) -> None:
    def fail() -> NoReturn:
        raise kind

    with pytest.raises(RuntimeError, match=f"'t' raised {kind.__name__}") as caught:
        await pool.run(fail, name="t")
    assert isinstance(caught.value.__cause__, kind)


async def test_base_exceptions_come_out_and_the_thread_lives_on(pool: WorkerThreads) -> None:
    class Odd(BaseException): ...

    def fail() -> NoReturn:
        raise Odd

    with pytest.raises(Odd):
        await pool.run(fail)
    assert await pool.run(lambda: "alive") == "alive"


async def test_nothing_of_a_call_lives_on_in_an_idle_thread(pool: WorkerThreads) -> None:
    class Big: ...

    def use(big: Big) -> Big:
        return big

    big = Big()
    reference = weakref.ref(big)
    await pool.run(use, big)
    del big
    await pool.run(lambda: None)  # the thread has let go of the first call
    gc.collect()
    assert reference() is None


# --- threads -------------------------------------------------------------------------------------------


async def test_an_idle_thread_is_used_again(pool: WorkerThreads) -> None:
    first = await pool.run(threading.get_ident)
    for _ in range(20):
        await asyncio.sleep(0)
        assert await pool.run(threading.get_ident) == first


async def test_an_idle_thread_ends_and_a_new_one_takes_over() -> None:
    pool = WorkerThreads(limit=1, idle_seconds=0.01)
    thread = await pool.run(threading.current_thread)
    await asyncio.to_thread(thread.join, 30)
    assert not thread.is_alive()
    assert await pool.run(threading.current_thread) is not thread


async def test_closing_ends_idle_threads_and_the_pool_stays_usable(pool: WorkerThreads) -> None:
    thread = await pool.run(threading.current_thread)
    pool.close()
    await asyncio.to_thread(thread.join, 30)
    assert not thread.is_alive()
    assert await pool.run(lambda: 1) == 1


async def test_at_the_limit_calls_wait_their_turn(pool: WorkerThreads) -> None:
    gates = [Gate(), Gate()]
    blocked = [asyncio.create_task(pool.run(gate, name=f"gate {n}")) for n, gate in enumerate(gates)]
    for gate in gates:
        await entered(gate)
    order: list[int] = []
    waiting = [asyncio.create_task(pool.run(order.append, n)) for n in range(3)]
    await asyncio.sleep(0)
    assert pool.waiting == 3
    assert sorted(pool.running) == ["gate 0", "gate 1"]
    assert has_work(asyncio.get_running_loop())
    gates[0].open()
    await asyncio.gather(*waiting)
    assert order == [0, 1, 2]
    gates[1].open()
    assert await asyncio.gather(*blocked) == ["passed", "passed"]
    await pool.run(lambda: None)
    assert pool.running == []
    await until(lambda: not has_work(asyncio.get_running_loop()))


async def test_a_waiting_call_can_be_cancelled_and_says_that_nothing_was_done(
    pool: WorkerThreads, gate: Gate
) -> None:
    blocked = [asyncio.create_task(pool.run(gate, name="stuck")) for _ in range(2)]
    await entered(gate)
    ran: list[int] = []
    waiting = asyncio.create_task(pool.run(ran.append, 1, name="late"))
    await asyncio.sleep(0)
    error = await cancel(waiting)
    assert error.executed is False  # type: ignore[attr-defined]
    assert error.__notes__ == ["'late' never started: all 2 worker threads were busy with stuck"]
    assert pool.waiting == 0
    gate.open()
    await asyncio.gather(*blocked)
    await pool.run(lambda: None)
    assert ran == []


async def test_one_pool_serves_several_loops(pool: WorkerThreads) -> None:
    async def inside() -> int:
        return await pool.run(lambda: 2)

    assert await pool.run(lambda: asyncio.run(inside())) == 2


async def test_a_system_without_threads_is_told_or_waited_for(
    pool: WorkerThreads, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threads._Worker, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            await pool.run(lambda: 1)
    blocked = asyncio.create_task(pool.run(gate))
    await entered(gate)
    monkeypatch.setattr(threads._Worker, "start", refuse)
    waiting = asyncio.create_task(pool.run(lambda: 1))
    await asyncio.sleep(0)
    gate.open()
    assert await waiting == 1
    assert await blocked == "passed"


async def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="limit must be"):
        WorkerThreads(limit=0)
    with pytest.raises(ConfigError, match="idle_seconds must be"):
        WorkerThreads(idle_seconds=0)
    assert shared() is shared()
    assert shared().limit == 32


# --- abandoned threads ---------------------------------------------------------------------------------


async def test_a_cancelled_call_returns_at_once_and_its_thread_goes_on(
    pool: WorkerThreads, gate: Gate
) -> None:
    task = asyncio.create_task(pool.run(gate, name="tool:slow"))
    await entered(gate)
    error = await cancel(task)
    assert error.__notes__ == ["the worker thread 'tool:slow' cannot be cancelled and goes on"]
    assert pool.running == ["tool:slow"]


async def test_a_failure_after_abandoning_is_logged(
    pool: WorkerThreads, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> NoReturn:
        gate()
        raise ValueError("too late")

    task = asyncio.create_task(pool.run(fail, name="tool:slow"))
    await entered(gate)
    await cancel(task)
    with caplog.at_level(logging.ERROR, "agentrt"):
        gate.open()
        await pool.run(lambda: None)
        await until(lambda: bool(caplog.records))
    assert "the abandoned worker thread 'tool:slow' failed" in caplog.text
    assert "ValueError: too late" in caplog.text


async def test_a_call_that_ended_just_before_it_was_cancelled_abandons_nothing(pool: WorkerThreads) -> None:
    ended = threading.Event()
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(pool.run(ended.set))
    await asyncio.sleep(0)
    ended.wait(30)
    while pool.has_work(loop):  # blocks the loop on purpose: the result is on its way but not here
        time.sleep(0.001)  # noqa: ASYNC251
    error = await cancel(task)
    assert not hasattr(error, "__notes__")


@pytest.mark.virtual_time
async def test_the_record_of_the_enclosing_call_knows_of_its_thread_until_it_ends(
    pool: WorkerThreads, gate: Gate
) -> None:
    seen: list[Any] = []

    async def watch(call: Any, call_next: Any) -> Any:
        seen.append(call)
        return await call_next(call)

    pipeline = Pipeline(
        inner_first=[Timeout(attempt=0.05), Bulkhead(limit=1), Retry(initial_delay=0.001), watch],
        idempotent=True,
    )
    with pytest.raises(AttemptTimeout):
        await pipeline.call(lambda: pool.run(gate, name="tool:slow"))
    record = seen[0].record
    assert record.is_abandoned
    assert isinstance(record.abandoned, AbandonedThread)
    assert record.abandoned.thread == "tool:slow"
    assert len(record.attempts) == 1, "not retried while the thread runs, although idempotent"
    with pytest.raises(BulkheadFull):
        await pipeline.call(lambda: pool.run(gate))
    gate.open()
    await record.abandoned
    assert not record.is_abandoned

    async def answer() -> int:
        return 1

    assert await pipeline.call(answer) == 1, "the permit is free again"


@pytest.mark.virtual_time
async def test_two_threads_of_one_call_are_abandoned_together(pool: WorkerThreads) -> None:
    gates = [Gate(), Gate()]
    records: list[Any] = []

    async def both() -> None:
        enclosing = ENCLOSING.get()
        assert enclosing is not None
        records.append(enclosing.call.record)
        await asyncio.gather(*(pool.run(gate, name=f"gate {n}") for n, gate in enumerate(gates)))

    pipeline = Pipeline(inner_first=[Timeout(attempt=0.05)])
    with pytest.raises(AttemptTimeout):
        await pipeline.call(both)
    (record,) = records
    assert sorted(record.abandoned.thread.split(", ")) == ["gate 0", "gate 1"]
    gates[0].open()
    await asyncio.sleep(0.02)
    assert record.is_abandoned
    gates[1].open()
    await record.abandoned


# --- the interpreter -----------------------------------------------------------------------------------


def run_python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


async def test_a_stuck_thread_does_not_hold_up_exit() -> None:
    done = await asyncio.to_thread(
        run_python,
        """
        import asyncio, sys, threading
        from agentrt.threads import WorkerThreads

        async def main():
            pool = WorkerThreads()
            entered = threading.Event()
            task = asyncio.create_task(pool.run(lambda: (entered.set(), threading.Event().wait())))
            while not entered.is_set():
                await asyncio.sleep(0.001)
            await pool.run(lambda: None)   # and an idle one
            task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                print("cancelled")

        asyncio.run(main())
        print("closed")
        """,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "cancelled\nclosed\n", "")


async def test_a_thread_that_outlives_its_loop_ends_quietly() -> None:
    done = await asyncio.to_thread(
        run_python,
        """
        import asyncio, threading
        from agentrt.threads import WorkerThreads

        pool, gate, entered = WorkerThreads(), threading.Event(), threading.Event()
        threads = []

        def work():
            threads.append(threading.current_thread())
            entered.set()
            gate.wait()

        async def main():
            task = asyncio.create_task(pool.run(work))
            while not entered.is_set():
                await asyncio.sleep(0.001)

        asyncio.run(main())
        gate.set()
        pool.close()

        async def again():
            return await pool.run(lambda: "again")

        print(asyncio.run(again()))
        """,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "again\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
async def test_a_forked_process_starts_anew() -> None:
    done = await asyncio.to_thread(
        run_python,
        """
        import asyncio, os, sys, warnings
        from agentrt.threads import WorkerThreads

        warnings.simplefilter("ignore", DeprecationWarning)   # 3.12 warns of fork with threads: our case
        pool = WorkerThreads(limit=1)

        async def ask():
            return await pool.run(os.getpid)

        assert asyncio.run(ask()) == os.getpid()
        child = os.fork()
        if child == 0:
            ok = asyncio.run(asyncio.wait_for(ask(), 10)) == os.getpid()
            os._exit(0 if ok else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """,
    )
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


async def test_under_random_load_and_cancellation_no_call_is_lost_and_no_thread_leaks() -> None:
    random = Random(7)
    pool = WorkerThreads(limit=4, idle_seconds=0.002)

    async def call() -> bool:
        task = asyncio.create_task(pool.run(time.sleep, random.random() * 0.002))
        if random.random() < 0.3:
            await asyncio.sleep(random.random() * 0.002)
            task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            return False
        return True

    done = 0
    for _ in range(40):
        async with asyncio.timeout(30):
            done += sum(await asyncio.gather(*(call() for _ in range(random.randrange(1, 20)))))
        if random.random() < 0.2:
            pool.close()
        if random.random() < 0.3:
            await asyncio.sleep(0.004)
        idle = list(pool._idle)  # threads end meanwhile
        assert len({id(worker) for worker in idle}) == len(idle)
        assert len(pool._workers) <= 4
    assert done > 100
    assert pool.waiting == 0
    await until(lambda: not pool._workers)  # idle threads end by themselves
