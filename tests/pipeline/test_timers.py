"""Timers: exact FIFO limits, limits at a moment, and whose cancellation it is."""

from __future__ import annotations

import asyncio
import gc
import math

import pytest

from agentrt.testing import VirtualTimeLoop, run
from agentrt.timers import Armed, Timers
from pipeline.doubles import now, scenario


def this_task() -> asyncio.Task[object]:
    task = asyncio.current_task()
    assert task is not None
    return task


def timers() -> Timers:
    return Timers.of(asyncio.get_running_loop())


async def sleep_under(armed: Armed, seconds: float) -> str:
    """Sleep, and end the limit the way a stage does: whose cancellation it was."""
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        if timers().disarm(armed):
            return "ours"
        raise
    timers().disarm(armed)
    return "done"


@scenario
async def test_a_fixed_limit_fires_exactly() -> None:
    limit = timers().fixed(10.0)
    assert await sleep_under(limit.arm(now(), this_task()), 11) == "ours"
    assert now() == 10.0


@scenario
async def test_a_fixed_limit_that_is_disarmed_never_fires() -> None:
    limit = timers().fixed(10.0)
    assert await sleep_under(limit.arm(now(), this_task()), 9) == "done"
    await asyncio.sleep(100)


@scenario
async def test_one_timer_serves_all_limits_of_a_duration() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    limit = timers().fixed(10.0)
    ends: list[float] = []

    async def one() -> None:
        await sleep_under(limit.arm(now(), this_task()), 100)
        ends.append(now())

    tasks = []
    for _ in range(50):
        tasks.append(asyncio.create_task(one()))
        await asyncio.sleep(0.5)
    # 19 of them still run at any time, each asleep, all under one timer of ours.
    assert len(loop.timers) == 19 + 1
    await asyncio.gather(*tasks)
    assert ends == [10.0 + 0.5 * index for index in range(50)]


@scenario
async def test_limits_disarmed_out_of_order_leave_the_others_exact() -> None:
    limit = timers().fixed(10.0)
    task = this_task()
    first = limit.arm(now(), task)
    await asyncio.sleep(1)
    second = limit.arm(now(), task)
    await asyncio.sleep(1)
    third = limit.arm(now(), task)
    timers().disarm(first)
    timers().disarm(third)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(100)
    assert now() == 11.0
    assert timers().disarm(second)


@scenario
async def test_an_unbounded_limit_needs_no_timer() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    limit = timers().fixed(math.inf)
    armed = limit.arm(now(), this_task())
    assert loop.timers == []
    assert armed.when == math.inf
    timers().disarm(armed)


@scenario
async def test_a_limit_at_a_moment_fires_exactly_and_leaves_no_timer() -> None:
    armed = timers().arm_at(3.25, this_task())
    assert await sleep_under(armed, 100) == "ours"
    assert now() == 3.25
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    timers().disarm(timers().arm_at(50.0, this_task()))
    assert loop.timers == []


@scenario
async def test_a_limit_in_the_past_fires_at_once() -> None:
    await asyncio.sleep(5)
    assert await sleep_under(timers().arm_at(1.0, this_task()), 100) == "ours"
    assert now() == 5.0


@pytest.mark.parametrize("caller_first", [True, False])
@scenario
async def test_a_caller_who_cancels_in_the_same_tick_wins(caller_first: bool) -> None:
    loop = asyncio.get_running_loop()

    async def guarded() -> str:
        return await sleep_under(timers().arm_at(10.0, this_task()), 100)

    task = asyncio.create_task(guarded())
    if caller_first:
        loop.call_at(10.0, task.cancel)
    await asyncio.sleep(0)
    if not caller_first:
        loop.call_at(10.0, task.cancel)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert now() == 10.0


@scenario
async def test_nested_limits_that_fire_together_are_both_taken_back() -> None:
    for _ in range(2):
        task = this_task()
        outer = timers().arm_at(now() + 10, task)
        inner = timers().arm_at(now() + 10, task)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(100)
        assert timers().disarm(inner) or timers().disarm(outer)
        timers().disarm(outer)
        assert task.cancelling() == 0
        await asyncio.sleep(0)


@scenario
async def test_a_second_limit_does_not_cut_a_running_cleanup_but_ends_what_goes_on_after_it() -> None:
    cleaned = []
    task = this_task()
    outer = timers().arm_at(12.0, task)
    inner = timers().arm_at(10.0, task)
    try:
        await asyncio.sleep(100)
    except asyncio.CancelledError:
        await asyncio.sleep(5)  # the cleanup, beyond the outer limit
        cleaned.append(now())
    assert timers().disarm(inner)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(100)  # the callee goes on, and the outer limit is due
    assert now() == 15.0
    assert timers().disarm(outer)
    assert cleaned == [15.0]


@scenario
async def test_a_due_limit_is_not_delivered_to_a_task_that_ends_its_guard_at_once() -> None:
    task = this_task()
    outer = timers().arm_at(10.0, task)
    inner = timers().arm_at(10.0, task)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(100)
    timers().disarm(inner)
    timers().disarm(outer)
    await asyncio.sleep(0)
    await asyncio.sleep(1)


@pytest.mark.parametrize("first", ["limit", "callee"])
@scenario
async def test_a_limit_that_meets_the_callees_own_timeout_is_not_forgotten(first: str) -> None:
    """Both are due in one turn of the loop, which was busy; the callee catches its own timeout and goes on."""

    async def callee() -> None:
        try:
            async with asyncio.timeout(10):
                await asyncio.sleep(100)
        except TimeoutError:
            await asyncio.sleep(1000)

    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    loop.call_at(9.5, loop.block, 1.0)
    armed = timers().arm_at(9.9 if first == "limit" else 10.1, this_task())
    try:
        with pytest.raises(asyncio.CancelledError):
            await callee()
    finally:
        ours = timers().disarm(armed)
    assert ours
    assert 10.5 <= now() < 11.0


@scenario
async def test_a_limit_due_during_the_callees_own_cleanup_is_delivered_after_it() -> None:
    async def callee() -> None:
        try:
            async with asyncio.timeout(5):
                try:
                    await asyncio.sleep(100)
                finally:
                    await asyncio.sleep(10)  # is not cut at 8 s
        except TimeoutError:
            await asyncio.sleep(1000)

    armed = timers().arm_at(8.0, this_task())
    with pytest.raises(asyncio.CancelledError):
        await callee()
    assert 15.0 <= now() < 17.0
    assert timers().disarm(armed)


@scenario
async def test_a_limit_armed_during_a_cleanup_bounds_that_cleanup() -> None:
    async def callee() -> str:
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            result = await sleep_under(timers().arm_at(now() + 3, this_task()), 50)
            assert now() == 4.0
            assert result == "ours"
            raise
        return "never"

    task = asyncio.create_task(callee())
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("fixed", [True, False])
@scenario
async def test_a_limit_runs_from_arming_to_disarming(fixed: bool) -> None:
    def arm() -> Armed:
        return (
            timers().fixed(10.0).arm(now(), this_task())
            if fixed
            else timers().arm_at(now() + 10, this_task())
        )

    armed = arm()
    assert armed.is_running
    timers().disarm(armed)
    assert not armed.is_running
    armed = arm()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(100)
    assert armed.is_running  # its attempt is cleaning up
    timers().disarm(armed)
    assert not armed.is_running


def test_each_loop_has_its_own_timers_and_closed_loops_are_let_go() -> None:
    async def own() -> int:
        limit = timers().fixed(1.0)
        assert timers().fixed(1.0) is limit
        timers().disarm(limit.arm(now(), this_task()))
        return id(timers())

    for _ in range(20):
        run(own)
    gc.collect()
    assert len(Timers._of_loop) <= 2
