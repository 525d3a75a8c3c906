"""The virtual-time loop: jumps, real I/O, threads, deadlocks, and its marker for pytest."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
import time
from typing import Any

import pytest

from agentrt.clock import reader
from agentrt.testing import Deadlock, FakeClock, VirtualTimeLoop, advance, run
from agentrt.testing.virtual_time import SPINS


def test_an_hour_of_sleep_takes_no_time_and_moves_the_clock_exactly() -> None:
    async def main() -> float:
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(3600)
        return asyncio.get_running_loop().time() - began

    began = time.monotonic()
    assert run(main) == 3600.0
    assert time.monotonic() - began < 2.0


def test_tasks_wake_in_the_order_of_their_timers() -> None:
    woken: list[float] = []

    async def sleeper(seconds: float) -> None:
        await asyncio.sleep(seconds)
        woken.append(asyncio.get_running_loop().time())

    async def main() -> None:
        await asyncio.gather(sleeper(3), sleeper(1), sleeper(2))

    run(main)
    assert woken == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("start", [0.0, 1.7e9, 1e15])
def test_timers_fire_wherever_the_clock_starts(start: float) -> None:
    async def main() -> float:
        await asyncio.sleep(2)
        return asyncio.get_running_loop().time()

    assert run(main, start=start) == pytest.approx(start + 2, abs=1)


def test_asyncio_timeout_works() -> None:
    async def main() -> None:
        async with asyncio.timeout(5):
            await asyncio.sleep(10)

    with pytest.raises(TimeoutError):
        run(main)


def test_a_wait_that_nothing_can_end_raises_deadlock_and_says_where() -> None:
    async def stuck() -> None:
        await asyncio.get_running_loop().create_future()

    async def main() -> None:
        await asyncio.sleep(7)
        await stuck()

    with pytest.raises(Deadlock, match=r"(?s)at 7 s.*Task-\d+ in .*stuck at .*create_future\(\)"):
        run(main)


def test_a_timer_at_infinity_is_no_timer() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        loop.call_at(float("inf"), future.set_result, None)
        await future

    with pytest.raises(Deadlock):
        run(main)


def test_real_sockets_work_and_do_not_move_the_clock() -> None:
    async def main() -> tuple[bytes, float]:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readline())
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            reading, writing = await asyncio.open_connection("127.0.0.1", port)
            async with asyncio.timeout(30):
                writing.write(b"hello\n")
                answer = await reading.readline()
            writing.close()
            await writing.wait_closed()
        return answer, asyncio.get_running_loop().time()

    answer, now = run(main)
    assert answer == b"hello\n"
    assert now < 30.0


def test_a_peer_in_another_thread_is_waited_for() -> None:
    left, right = socket.socketpair()
    left.setblocking(False)

    def late() -> None:
        time.sleep(0.01)
        right.sendall(b"x")

    async def main() -> bytes:
        thread = threading.Thread(target=late)
        thread.start()
        async with asyncio.timeout(60):
            data = await asyncio.get_running_loop().sock_recv(left, 1)
        thread.join()
        return data

    with left, right:
        assert run(main) == b"x"


def test_a_silent_peer_does_not_keep_timers_from_firing() -> None:
    left, right = socket.socketpair()
    left.setblocking(False)

    async def main() -> None:
        async with asyncio.timeout(60):
            await asyncio.get_running_loop().sock_recv(left, 1)

    with left, right, pytest.raises(TimeoutError):
        run(main)


def test_a_job_in_a_thread_is_waited_for_before_a_jump() -> None:
    async def main() -> tuple[str, float]:
        async with asyncio.timeout(60):
            done = await asyncio.to_thread(lambda: (time.sleep(0.01), "done")[1])
        return done, asyncio.get_running_loop().time()

    assert run(main) == ("done", 0.0)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which thread could run")
def test_a_job_that_computes_is_not_overtaken_however_slow_the_machine_is() -> None:
    def compute() -> str:
        end = time.monotonic() + 0.3  # six times the patience
        while time.monotonic() < end:
            pass
        return "done"

    async def main() -> tuple[str, float]:
        async with asyncio.timeout(60):
            done = await asyncio.to_thread(compute)
        return done, asyncio.get_running_loop().time()

    assert run(main) == ("done", 0.0)


def test_after_the_process_stood_still_a_job_has_its_turn_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agentrt.testing.virtual_time.LONGEST_WAIT", 0.2)
    stood_still = threading.Event()

    def job() -> str:
        assert stood_still.wait(20)
        return "done"

    async def main() -> tuple[str, float]:
        loop: Any = asyncio.get_running_loop()
        real = loop._selector._real
        select = real.select

        def stops(timeout: float | None = None) -> Any:
            if timeout and not stood_still.is_set():
                time.sleep(0.3)  # nothing of the process runs, in truth
                stood_still.set()
                return []
            return select(timeout)

        monkeypatch.setattr(real, "select", stops)
        async with asyncio.timeout(60):
            done = await asyncio.to_thread(job)
        return done, loop.time()

    assert run(main) == ("done", 0.0)


def test_a_job_that_waits_for_something_else_is_overtaken_by_the_next_timer() -> None:
    async def main() -> float:
        answer = threading.Event()
        waiting = asyncio.ensure_future(asyncio.to_thread(answer.wait, 20))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60):
                await asyncio.shield(waiting)
        at = asyncio.get_running_loop().time()
        answer.set()
        await waiting
        return at

    assert run(main) == 60.0


def test_an_idle_worker_thread_does_not_slow_the_jumps() -> None:
    async def main() -> None:
        await asyncio.to_thread(int)
        for _ in range(200):
            await asyncio.sleep(1)

    began = time.monotonic()
    run(main)
    assert time.monotonic() - began < 5.0  # 200 times the patience would be 10 s


def test_without_timers_a_thread_of_ones_own_is_waited_for_as_long_as_it_takes() -> None:
    async def main() -> str:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[str] = loop.create_future()

        def work() -> None:
            time.sleep(0.1)
            loop.call_soon_threadsafe(future.set_result, "late")

        threading.Thread(target=work).start()
        return await future

    assert run(main) == "late"


def test_advance_runs_what_is_due_and_nothing_later() -> None:
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        seen: list[int] = []
        for second in (1, 2, 3):
            loop.call_later(second, seen.append, second)
        await advance(2)
        assert loop.time() == 2.0
        return seen

    assert run(main) == [1, 2]


def test_advance_by_nothing_lets_ready_tasks_run() -> None:
    async def main() -> bool:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        future = loop.create_future()
        loop.call_soon(lambda: loop.call_soon(lambda: loop.call_soon(future.set_result, True)))
        await loop.advance(0)
        return future.done()

    assert run(main)


def test_advance_does_not_wait_for_a_task_that_polls_forever() -> None:
    async def main() -> None:
        async def poll() -> None:
            while True:  # noqa: ASYNC110 - polling is the point
                await asyncio.sleep(0)

        polling = asyncio.create_task(poll())
        await advance(1)
        polling.cancel()

    run(main)


def test_advance_needs_a_virtual_loop() -> None:
    with pytest.raises(RuntimeError, match="VirtualTimeLoop"):
        asyncio.run(advance(1))


def test_block_moves_the_clock_while_the_loop_stands() -> None:
    async def main() -> tuple[float, bool]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        fired: list[float] = []
        loop.call_later(1, lambda: fired.append(loop.time()))
        loop.block(5)
        blocked = not fired
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return fired[0], blocked

    assert run(main) == (5.0, True)


def test_a_task_that_polls_lets_time_pass_in_the_end() -> None:
    async def main() -> int:
        loop = asyncio.get_running_loop()
        turns = 0
        while loop.time() < 0.001:
            turns += 1
            await asyncio.sleep(0)
        return turns

    assert SPINS < run(main) < SPINS + 200


def test_timers_lists_what_is_set() -> None:
    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        loop.call_later(9, int)
        loop.call_later(4, int)
        loop.call_later(5, int).cancel()
        return [handle.when() for handle in loop.timers]

    assert run(main) == [4.0, 9.0]


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_time_never_goes_back(seconds: float) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        with pytest.raises(ValueError, match="forward"):
            loop.block(seconds)
        with pytest.raises(ValueError, match="forward"):
            await loop.advance(seconds)

    run(main)
    with pytest.raises(ValueError, match="forward"):
        FakeClock().advance(seconds)


def test_a_fake_clock_stands_still_until_it_is_advanced() -> None:
    clock = FakeClock(start=10.0)
    assert clock.time() == clock.time() == 10.0
    clock.advance(2.5)
    assert clock.time() == 12.5


def test_our_own_reader_follows_the_virtual_clock() -> None:
    async def main() -> float:
        read = reader(asyncio.get_running_loop())
        await asyncio.sleep(12)
        return read()

    assert run(main) == 12.0


def test_a_child_process_is_waited_for() -> None:
    async def main() -> bytes:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "print('out')", stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
        return output

    assert run(main) == b"out\n"


@pytest.mark.asyncio
@pytest.mark.virtual_time
async def test_the_marker_gives_a_test_a_virtual_loop() -> None:
    assert isinstance(asyncio.get_running_loop(), VirtualTimeLoop)
    await asyncio.sleep(86400)


@pytest.mark.asyncio
async def test_without_the_marker_time_is_real() -> None:
    assert not isinstance(asyncio.get_running_loop(), VirtualTimeLoop)


def test_a_timer_waits_for_a_sync_tools_thread_that_was_idle_before() -> None:
    from agentrt.threads import shared

    async def quick() -> None:
        await shared().run(lambda: None)

    async def scenario() -> str:
        async with asyncio.timeout(30):
            await shared().run(time.sleep, 0.02)
        return "in time"

    run(quick)  # leaves an idle worker behind
    assert run(scenario) == "in time"
