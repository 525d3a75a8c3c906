"""Bulkhead: permits, a bounded queue, and nothing that leaks."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from agentrt.call import Refusal
from agentrt.errors import BulkheadFull, ConfigError, DeadlineExceeded, TransientError
from agentrt.middleware.bulkhead import Bulkhead
from agentrt.middleware.retry import Retry
from agentrt.middleware.timeout import Timeout
from pipeline.doubles import HANG, Callee, Observed, Slow, entries, now, scenario


@scenario
async def test_up_to_the_limit_run_at_a_time_in_the_order_they_came() -> None:
    bulkhead = Bulkhead(limit=2, queue=10)
    seen = Observed(bulkhead)
    order: list[int] = []
    running = most = 0

    async def callee(index: int) -> int:
        nonlocal running, most
        order.append(index)
        running += 1
        most = max(most, running)
        await asyncio.sleep(1)
        running -= 1
        return index

    assert await asyncio.gather(*(seen.call(callee, index) for index in range(7))) == list(range(7))
    assert order == list(range(7))
    assert most == 2
    assert now() == 4.0
    assert bulkhead.running("a") == bulkhead.waiting("a") == 0


@scenario
async def test_beyond_limit_and_queue_it_refuses_at_once() -> None:
    bulkhead = Bulkhead(limit=1, queue=1)
    seen = Observed(bulkhead)
    tasks = [asyncio.create_task(seen.call(Callee(Slow(5)))) for _ in range(2)]
    await asyncio.sleep(1)
    assert (bulkhead.running("a"), bulkhead.waiting("a")) == (1, 1)
    callee = Callee("never")
    error = await seen.failure(callee)
    assert isinstance(error, BulkheadFull)
    assert error.executed is False
    assert str(error) == "a: 1 calls are running and 1 may wait"
    assert now() == 1.0
    assert callee.calls == 0
    assert [(r.stage, r.error) for r in entries(seen.record, Refusal)] == [("bulkhead", error)]
    await asyncio.gather(*tasks)


@scenario
async def test_a_wait_is_in_the_record() -> None:
    seen = Observed(Bulkhead(limit=1, queue=1))
    first = asyncio.create_task(seen.call(Callee(Slow(5))))
    await asyncio.sleep(1)
    await seen.call(Callee("ok"))
    assert [(w.stage, w.started, w.seconds) for w in seen.record.waits] == [("bulkhead", 1.0, 4.0)]
    await first


@scenario
async def test_targets_do_not_share_permits() -> None:
    bulkhead = Bulkhead(limit=1)
    holder = asyncio.create_task(Observed(bulkhead, target="a").call(Callee(Slow(5))))
    await asyncio.sleep(1)
    assert await Observed(bulkhead, target="b").call(Callee("ok")) == "ok"
    assert bulkhead.running("a") == 1
    assert bulkhead.running("b") == 0
    await holder


@pytest.mark.parametrize("outcome", [TransientError("x"), ValueError("x"), asyncio.CancelledError()])
@scenario
async def test_every_outcome_frees_the_permit(outcome: BaseException) -> None:
    bulkhead = Bulkhead(limit=1)
    seen = Observed(bulkhead)
    assert await seen.failure(Callee(outcome)) is outcome
    assert bulkhead.running("a") == 0


@scenario
async def test_a_newcomer_does_not_overtake_those_who_wait() -> None:
    bulkhead = Bulkhead(limit=1, queue=5)
    seen = Observed(bulkhead)
    order: list[str] = []

    async def callee(name: str) -> None:
        order.append(name)
        await asyncio.sleep(1)

    async def newcomer() -> None:
        # Comes in the very moment in which the permit is free and its next owner has not run yet.
        await first
        await seen.call(callee, "newcomer")

    first = asyncio.create_task(seen.call(callee, "first"))
    await asyncio.sleep(0)
    late = asyncio.create_task(newcomer())
    await asyncio.sleep(0)
    waiter = asyncio.create_task(seen.call(callee, "waiter"))
    await asyncio.gather(first, waiter, late)
    assert order == ["first", "waiter", "newcomer"]


@pytest.mark.parametrize("others", [0, 1])
@scenario
async def test_a_waiter_cancelled_in_the_moment_it_gets_its_permit_hands_it_on(others: int) -> None:
    bulkhead = Bulkhead(limit=1, queue=5)
    seen = Observed(bulkhead)

    async def callee() -> None:
        await asyncio.sleep(5)
        # Runs after the permit has been handed over, and before its new owner wakes.
        asyncio.get_running_loop().call_soon(unlucky.cancel)

    first = asyncio.create_task(seen.call(callee))
    await asyncio.sleep(0)
    unlucky = asyncio.create_task(seen.call(Callee("never")))
    await asyncio.sleep(0)
    behind = [asyncio.create_task(seen.call(Callee("behind"))) for _ in range(others)]
    await asyncio.wait([first, unlucky, *behind])
    assert unlucky.cancelled()
    assert [task.result() for task in behind] == ["behind"] * others
    assert bulkhead.running("a") == bulkhead.waiting("a") == 0
    assert not bulkhead._compartments


@scenario
async def test_a_permit_and_the_end_of_the_share_in_one_tick() -> None:
    """Whatever wins, the permit is not lost."""
    for wait in (4.999, 5.0, 5.001):
        bulkhead = Bulkhead(limit=1, queue=5)
        holder = asyncio.create_task(Observed(bulkhead).call(Callee(Slow(wait))))
        await asyncio.sleep(0)
        seen = Observed(Timeout(), bulkhead, deadline=5)
        task = asyncio.create_task(seen.call(Callee("ok")))
        await asyncio.wait([holder, task])
        task.exception()
        assert bulkhead.running("a") == bulkhead.waiting("a") == 0
        assert await Observed(bulkhead).call(Callee("next")) == "next"


@scenario
async def test_a_call_whose_time_is_over_does_not_queue() -> None:
    async def slow(call: Any, call_next: Any) -> Any:
        await asyncio.sleep(5)
        return await call_next(call)

    bulkhead = Bulkhead(limit=1, queue=5)
    holder = asyncio.create_task(Observed(bulkhead).call(Callee(Slow(20))))
    await asyncio.sleep(0)
    seen = Observed(Timeout(), bulkhead, slow, deadline=5)
    assert isinstance(await seen.failure(Callee("never")), DeadlineExceeded)
    assert now() == 5.0
    assert bulkhead.waiting("a") == 0
    await holder


@scenario
async def test_a_stream_keeps_its_permit_until_it_settles() -> None:
    bulkhead = Bulkhead(limit=1)
    seen = Observed(Timeout(), bulkhead)
    async with seen.stream(Callee([1, 2]).stream) as stream:
        assert bulkhead.running("a") == 1
        assert isinstance(await seen.failure(Callee("x")), BulkheadFull)
        assert [item async for item in stream] == [1, 2]
        assert bulkhead.running("a") == 0
    async with seen.stream(Callee([1, 2]).stream):
        assert bulkhead.running("a") == 1
    assert bulkhead.running("a") == 0
    await seen.broken_stream(Callee([1, TransientError("x")]).stream)
    assert bulkhead.running("a") == 0
    await seen.broken_stream(Callee([TransientError("x")]).stream)
    assert bulkhead.running("a") == 0


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@scenario
async def test_a_dropped_stream_gives_its_permit_back() -> None:
    bulkhead = Bulkhead(limit=1)
    seen = Observed(Timeout(), bulkhead)
    callee = Callee([1, 2])
    stream = await seen.pipeline.send(seen.pipeline.new_call(callee.stream, True))
    assert await anext(stream) == 1
    del stream
    gc.collect()
    await asyncio.sleep(0)
    assert bulkhead.running("a") == 0
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert callee.closed == 1


@scenario
async def test_an_abandoned_thread_keeps_its_permit_until_it_ends() -> None:
    thread: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def terminal(call: Any) -> Any:
        call.record.abandoned = thread
        raise TransientError("gave up waiting")

    bulkhead = Bulkhead(limit=1)
    seen = Observed(Timeout(), bulkhead, terminal=terminal)
    with pytest.raises(TransientError):
        await seen.pipeline.send(seen.pipeline.new_call("request"))
    assert bulkhead.running("a") == 1
    thread.set_result(None)
    await asyncio.sleep(0)
    assert bulkhead.running("a") == 0


@scenario
async def test_each_attempt_needs_a_permit_of_its_own() -> None:
    """A backoff holds no permit."""
    bulkhead = Bulkhead(limit=1)
    seen = Observed(Timeout(), bulkhead, Retry(initial_delay=5, jitter="none"), idempotent=True)
    task = asyncio.create_task(seen.call(Callee(TransientError("x"), "ok")))
    await asyncio.sleep(1)
    assert bulkhead.running("a") == 0
    assert await Observed(bulkhead).call(Callee("between")) == "between"
    assert await task == "ok"


@scenario
async def test_waiters_cancelled_in_any_order_leave_the_queue_right() -> None:
    bulkhead = Bulkhead(limit=1, queue=10)
    seen = Observed(bulkhead)
    holder = asyncio.create_task(seen.call(Callee(Slow(10))))
    await asyncio.sleep(0)
    waiters = [asyncio.create_task(seen.call(Callee(HANG if n % 2 else Slow(1, n)))) for n in range(6)]
    await asyncio.sleep(1)
    for index in (3, 1, 5):
        waiters[index].cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert bulkhead.waiting("a") == 3
    assert await asyncio.gather(*waiters[::2]) == [0, 2, 4]
    await holder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "limit must be a whole number of at least 1, not 0"),
        ({"limit": 1.5}, "limit must be a whole number of at least 1, not 1.5"),
        ({"limit": 1, "queue": -1}, "queue must be a whole number of at least 0, not -1"),
    ],
    ids=str,
)
def test_bad_options_are_refused_with_name_range_and_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Bulkhead(**options)
    assert str(caught.value) == message
