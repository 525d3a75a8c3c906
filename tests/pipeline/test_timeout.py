"""Timeout: limits of an attempt, of a share, of a call; exact ties; what nested calls inherit."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from agentrt.call import ENCLOSING, Attempt, Refusal
from agentrt.errors import AttemptTimeout, ConfigError, DeadlineExceeded, TransientError
from agentrt.middleware.bulkhead import Bulkhead
from agentrt.middleware.circuit_breaker import CircuitBreaker
from agentrt.middleware.fallback import Fallback
from agentrt.middleware.retry import Retry
from agentrt.middleware.timeout import Timeout
from agentrt.pipeline import Pipeline
from agentrt.testing import VirtualTimeLoop
from pipeline.doubles import HANG, Callee, Observed, Slow, entries, now, scenario


@scenario
async def test_a_value_in_time_is_the_value() -> None:
    seen = Observed(Timeout(attempt=10))
    assert await seen.call(Callee(Slow(9.999, "value"))) == "value"
    assert seen.record.errors == []


@scenario
async def test_an_attempt_ends_exactly_at_its_limit() -> None:
    callee = Callee(HANG)
    error = await Observed(Timeout(attempt=10.5)).failure(callee)
    assert isinstance(error, AttemptTimeout)
    assert (error.limit, error.seconds, error.elapsed, error.cut) == ("attempt", 10.5, 10.5, False)
    assert error.executed is None
    assert callee.cancelled == [10.5]
    assert now() == 10.5
    assert "callee" not in str(error)
    assert str(error) == "a: no result within its attempt limit of 10.5 s"


@scenario
async def test_attempt_timeout_is_a_timeout_error_caused_by_the_cancellation() -> None:
    error = await Observed(Timeout(attempt=1)).failure(Callee(HANG))
    assert isinstance(error, TimeoutError)
    assert isinstance(error.__cause__, asyncio.CancelledError)


@scenario
async def test_a_result_that_comes_with_the_limit_in_one_tick_is_cancelled_like_any_task() -> None:
    """Whoever is called first by the loop wins; a result that was not handed over yet is lost."""
    error = await Observed(Timeout(attempt=10)).failure(Callee(Slow(10.0, "tie")))
    assert isinstance(error, AttemptTimeout)


@scenario
async def test_a_callee_that_returns_in_spite_of_our_limit_has_succeeded() -> None:
    async def stubborn() -> str:
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            return "all the same"
        return "never"

    breaker = CircuitBreaker(failure_threshold=1)
    seen = Observed(Timeout(attempt=10), breaker)
    assert await seen.call(stubborn) == "all the same"
    assert breaker.state("a") == "closed"
    assert seen.record.errors == []


@scenario
async def test_a_cleanup_that_raises_is_the_cause_of_the_timeout_and_a_failure() -> None:
    problem = ValueError("cleanup")

    async def callee() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            raise problem

    breaker = CircuitBreaker(failure_threshold=1)
    seen = Observed(Timeout(attempt=10), breaker)
    error = await seen.failure(callee)
    assert isinstance(error, AttemptTimeout)
    assert error.__cause__ is problem
    assert breaker.state("a") == "open"
    attempts = entries(seen.record, Attempt)
    assert [attempt.error for attempt in attempts] == [error]
    assert (attempts[0].started, attempts[0].ended) == (0.0, 10.0)


@scenario
async def test_a_slow_cleanup_is_awaited_and_nothing_else_exceeds_the_limit() -> None:
    cleaned: list[float] = []

    async def callee() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(7)
            cleaned.append(now())

    error = await Observed(Timeout(attempt=10)).failure(callee)
    assert isinstance(error, AttemptTimeout)
    assert cleaned == [17.0]


@scenario
async def test_the_cleanup_does_not_count_as_the_targets_time() -> None:
    """Cut at 5 of its 12 seconds, it has not run half of its limit, however long it cleans up."""

    async def callee() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(4)

    breaker = CircuitBreaker(failure_threshold=1)
    seen = Observed(Timeout(attempt=12), breaker, Fallback(Callee("b")), idempotent=True, deadline=10)
    assert await seen.call(callee) == "b"
    cut = seen.record.errors[0]
    assert isinstance(cut, AttemptTimeout)
    assert (cut.cut, cut.elapsed) == (True, 5.0)
    assert breaker.state("a") == "closed"


@scenario
async def test_a_blocked_loop_does_not_make_a_limit_ours_twice() -> None:
    """The limit passes while the callee blocks the loop, and the callee returns before the timer could fire."""

    async def callee() -> str:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        loop.block(50)
        return "done"

    seen = Observed(Timeout(attempt=10))
    assert await seen.call(callee) == "done"
    assert await seen.call(Callee("next")) == "next"


@scenario
async def test_concurrent_attempts_each_have_their_own_limit() -> None:
    pipeline = Observed(Timeout(attempt=10))
    ends: dict[int, float] = {}

    async def one(index: int) -> None:
        await asyncio.sleep(index)
        if index % 2:
            await pipeline.call(Callee(Slow(1)))
        else:
            with pytest.raises(AttemptTimeout):
                await pipeline.call(Callee(HANG))
        ends[index] = now()

    await asyncio.gather(*(one(index) for index in range(20)))
    assert ends == {index: index + (1.0 if index % 2 else 10.0) for index in range(20)}


@scenario
async def test_without_a_limit_an_attempt_may_take_any_time() -> None:
    assert await Observed(Timeout(attempt=None)).call(Callee(Slow(9e5, "late"))) == "late"


# --- deadline and share --------------------------------------------------------------------------------


@scenario
async def test_the_deadline_ends_the_call() -> None:
    callee = Callee(HANG)
    error = await Observed(Timeout(attempt=60), deadline=10).failure(callee)
    assert isinstance(error, DeadlineExceeded)
    assert isinstance(error, TimeoutError)
    assert (error.scope, error.ran) == ("call", pytest.approx(10 / 60))
    assert callee.cancelled == [10.0]
    assert str(error) == "a: the deadline of the call is over (this call had 10 s)"


@scenario
async def test_an_exact_tie_of_limit_and_deadline_is_the_attempts() -> None:
    error = await Observed(Timeout(attempt=10), deadline=10).failure(Callee(HANG))
    assert isinstance(error, AttemptTimeout)
    assert not error.cut


@scenario
async def test_a_deadline_holds_without_a_timeout_stage() -> None:
    error = await Observed(deadline=3).failure(Callee(HANG))
    assert isinstance(error, DeadlineExceeded)
    assert now() == 3.0


@scenario
async def test_three_targets_share_180_seconds_as_90_45_45() -> None:
    second, third = Callee(HANG), Callee(HANG)
    first = Callee(HANG)
    seen = Observed(Timeout(attempt=None), Fallback(second, third), idempotent=True, deadline=180)
    error = await seen.failure(first)
    assert (first.cancelled, second.cancelled, third.cancelled) == ([90.0], [135.0], [180.0])
    assert isinstance(error, DeadlineExceeded)
    cut = seen.record.errors[:2]
    assert all(isinstance(e, AttemptTimeout) and e.cut for e in cut)
    assert error is seen.record.errors[2]


@scenario
async def test_an_attempt_that_could_only_start_after_its_time_is_refused_and_proves_it() -> None:
    async def slow_middleware(call: Any, call_next: Any) -> Any:
        await asyncio.sleep(5)
        return await call_next(call)

    callee = Callee("never")
    seen = Observed(Timeout(), CircuitBreaker(), slow_middleware, deadline=5)
    error = await seen.failure(callee)
    assert isinstance(error, DeadlineExceeded)
    assert error.executed is False
    assert callee.calls == 0
    assert entries(seen.record, Refusal)[0].error is error
    assert seen.record.attempts == []


@scenario
async def test_a_share_that_ran_out_while_queued_leads_to_the_next_target() -> None:
    async def slow_middleware(call: Any, call_next: Any) -> Any:
        if call.target == "a":
            await asyncio.sleep(5)
        return await call_next(call)

    callee, backup = Callee("never"), Callee("backup")
    seen = Observed(Timeout(), slow_middleware, Fallback(backup), idempotent=True, deadline=10)
    assert await seen.call(callee) == "backup"
    error = seen.record.errors[0]
    assert isinstance(error, AttemptTimeout)
    assert error.cut
    assert error.executed is False
    assert callee.calls == 0


@scenario
async def test_the_call_and_its_share_can_be_read_inside() -> None:
    seen_by: list[tuple[float, float, float]] = []

    async def look(call: Any, call_next: Any) -> Any:
        seen_by.append((call.deadline, call.share, call.remaining))
        return await call_next(call)

    seen = Observed(look, Timeout(), Fallback(Callee("b")), idempotent=True, deadline=20)
    assert await seen.call(Callee(TransientError("x"))) == "b"
    assert seen_by == [(20.0, 10.0, 20.0), (20.0, 20.0, 20.0)]
    assert await Observed(look).call(Callee("ok")) == "ok"
    assert seen_by[-1] == (math.inf, math.inf, math.inf)


# --- nested calls --------------------------------------------------------------------------------------


@scenario
async def test_a_nested_call_inherits_the_remaining_time() -> None:
    inner = Observed(Timeout(attempt=60), target="inner", deadline=100)
    deadlines: list[float] = []

    async def look(call: Any, call_next: Any) -> Any:
        deadlines.append(call.deadline)
        return await call_next(call)

    inner.pipeline = inner.pipeline.place(look)

    async def outer_callee() -> Any:
        await asyncio.sleep(4)
        return await inner.call(Callee("ok"))

    assert await Observed(Timeout(attempt=10)).call(outer_callee) == "ok"
    assert await Observed(Timeout(attempt=60), deadline=7).call(outer_callee) == "ok"
    assert deadlines == [10.0, 11.0]  # the second call starts at 4 s


@pytest.mark.parametrize("inner_attempt", [None, 60.0, 10.0])
@scenario
async def test_the_outer_limit_reached_inside_a_nested_call_is_the_outers(
    inner_attempt: float | None,
) -> None:
    inner = Observed(Timeout(attempt=inner_attempt), target="inner")
    callee = Callee(HANG)
    outer = Observed(Timeout(attempt=10))
    error = await outer.failure(inner.call, callee)
    assert isinstance(error, AttemptTimeout)
    assert error is outer.record.errors[-1]
    assert str(error).startswith("a:")
    assert callee.cancelled == [10.0]


@scenario
async def test_limits_of_three_levels_that_end_together_leave_nothing_behind() -> None:
    inmost = Observed(Timeout(attempt=10), target="inmost")
    middle = Observed(Timeout(attempt=10), target="middle")
    outer = Observed(Timeout(attempt=10))
    callee = Callee(HANG)

    async def middle_call() -> Any:
        return await middle.call(inmost.call, callee)

    error = await outer.failure(middle_call)
    assert isinstance(error, AttemptTimeout)
    assert str(error).startswith("a:")
    assert now() == 10.0


@scenario
async def test_an_inner_deadline_is_a_transient_failure_that_does_not_count_for_the_outer_target() -> None:
    inner = Observed(Timeout(attempt=None), target="inner", deadline=2)
    breaker = CircuitBreaker(failure_threshold=1)
    outer = Observed(Timeout(attempt=60), breaker, Retry(jitter="none"), idempotent=True)
    callee = Callee(HANG, "ok")
    # The nested call itself may make one attempt only: its outer call repeats it.
    assert await outer.call(inner.call, callee) == "ok"
    assert breaker.state("a") == "closed"
    assert callee.calls == 2


@scenario
async def test_a_nested_failure_counts_for_the_inner_target_only() -> None:
    inner_breaker = CircuitBreaker(failure_threshold=1)
    outer_breaker = CircuitBreaker(failure_threshold=1)
    inner = Observed(Timeout(), inner_breaker, target="inner")
    outer = Observed(Timeout(), outer_breaker, target="outer")
    error = TransientError("x")
    assert await outer.failure(inner.call, Callee(error)) is error
    assert inner_breaker.state("inner") == "open"
    assert outer_breaker.state("outer") == "closed"


@scenario
async def test_a_nested_attempt_timeout_counts_for_the_inner_target_only() -> None:
    inner_breaker = CircuitBreaker(failure_threshold=1)
    outer_breaker = CircuitBreaker(failure_threshold=1)
    inner = Observed(Timeout(attempt=1), inner_breaker, target="inner")
    outer = Observed(Timeout(), outer_breaker, target="outer")
    assert isinstance(await outer.failure(inner.call, Callee(HANG)), AttemptTimeout)
    assert inner_breaker.state("inner") == "open"
    assert outer_breaker.state("outer") == "closed"


@scenario
async def test_a_nested_call_gets_one_attempt_per_target_if_the_outer_one_repeats_it() -> None:
    def nested() -> Pipeline:
        return Pipeline(
            inner_first=[Timeout(), Retry(initial_delay=0), Fallback("backup")], target="in", idempotent=True
        )

    async def count(outer: Observed) -> int:
        callee = Callee(TransientError("x"))
        with pytest.raises(TransientError):
            await outer.call(nested().call, callee)
        return callee.calls

    repeats = Retry(initial_delay=0)
    assert await count(Observed(Timeout(), repeats, idempotent=True)) == 3 * 2
    assert await count(Observed(Timeout(), repeats, idempotent=False)) == 3 * 2
    assert await count(Observed(Timeout(), idempotent=True)) == 3 * 2
    assert await count(Observed(Timeout(), Retry(max_attempts=1), idempotent=True)) == 3 * 2


@scenario
async def test_after_a_call_the_enclosing_limit_is_gone() -> None:
    seen = Observed(Timeout())
    await seen.call(Callee("ok"))
    assert ENCLOSING.get() is None
    await seen.failure(Callee(TransientError("x")))
    assert ENCLOSING.get() is None


@scenario
async def test_a_task_that_outlives_the_attempt_that_started_it_is_not_bounded_by_it() -> None:
    """The context of the attempt goes with the task, but its limit is over."""
    other = Observed(Timeout(attempt=60), Retry(initial_delay=0), target="other", idempotent=True)
    results: list[Any] = []

    async def background() -> None:
        await asyncio.sleep(100)
        results.append(await other.call(Callee(HANG if not results else "ok", "ok")))

    async def callee() -> asyncio.Task[None]:
        return asyncio.create_task(background())

    for attempt in (10.0, None):
        results.clear()
        outer = Observed(Timeout(attempt=attempt), Retry(), target="outer", idempotent=True)
        await (await outer.call(callee))
        assert results == ["ok"]
        # Nor are its failures noted in the record of that call.
        assert outer.record.nested is None


@scenario
async def test_a_task_that_belongs_to_a_running_attempt_is_bounded_by_it() -> None:
    inner = Observed(Timeout(attempt=60), target="inner")

    async def callee() -> Any:
        return await asyncio.create_task(inner.call(Callee(HANG)))

    error = await Observed(Timeout(attempt=10), target="outer").failure(callee)
    assert isinstance(error, AttemptTimeout)
    assert now() == 10.0


# --- streams -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attempt", "first_item", "limit", "seconds"),
    [(60.0, 30.0, "first_item", 30.0), (20.0, 30.0, "attempt", 20.0), (30.0, 30.0, "attempt", 30.0)],
)
@scenario
async def test_the_first_item_has_the_smaller_limit(
    attempt: float, first_item: float, limit: str, seconds: float
) -> None:
    seen = Observed(Timeout(attempt=attempt, first_item=first_item))
    with pytest.raises(AttemptTimeout) as caught:
        await seen.collect(Callee([HANG]).stream)
    assert (caught.value.limit, caught.value.seconds, caught.value.cut) == (limit, seconds, False)
    assert now() == seconds


@scenario
async def test_a_value_knows_neither_first_item_nor_idle() -> None:
    seen = Observed(Timeout(attempt=60, first_item=1, idle=1))
    assert await seen.call(Callee(Slow(59, "value"))) == "value"


@scenario
async def test_after_the_first_item_the_attempt_limit_is_gone() -> None:
    callee = Callee([1, Slow(100, 2), Slow(100, 3)])
    assert await Observed(Timeout(attempt=10, first_item=10)).collect(callee.stream) == [1, 2, 3]


@scenario
async def test_idle_bounds_each_wait_for_an_item() -> None:
    seen = Observed(Timeout(attempt=10, idle=5))
    callee = Callee([1, Slow(4, 2), Slow(4, 3), HANG])
    got, error = await seen.broken_stream(callee.stream)
    assert got == [1, 2, 3]
    assert isinstance(error, AttemptTimeout)
    assert (error.limit, error.seconds) == ("idle", 5.0)
    assert str(error) == "a: no further item within its idle limit of 5 s"
    assert now() == 13.0
    assert callee.closed == 1
    assert seen.record.errors == [error]


@scenario
async def test_idle_time_counts_only_while_the_consumer_waits() -> None:
    seen = Observed(Timeout(idle=5))
    got = []
    async with seen.stream(Callee([1, Slow(4, 2), Slow(4, 3)]).stream) as stream:
        async for item in stream:
            await asyncio.sleep(60)
            got.append(item)
    assert got == [1, 2, 3]


@pytest.mark.parametrize("idle", [None, 30.0])
@scenario
async def test_the_deadline_bounds_a_committed_stream(idle: float | None) -> None:
    seen = Observed(Timeout(attempt=9, idle=idle), deadline=10)
    with pytest.raises(DeadlineExceeded):
        await seen.collect(Callee([1, Slow(6, 2), HANG]).stream)
    assert now() == 10.0


@scenario
async def test_a_pull_after_the_deadline_ends_at_once() -> None:
    seen = Observed(Timeout(attempt=9), deadline=10)
    callee = Callee([1, 2])
    async with seen.stream(callee.stream) as stream:
        assert await anext(stream) == 1
        await asyncio.sleep(20)
        with pytest.raises(DeadlineExceeded):
            await anext(stream)
    assert callee.closed == 1


@scenario
async def test_an_exact_tie_of_idle_and_deadline_is_the_streams() -> None:
    seen = Observed(Timeout(attempt=9, idle=10), deadline=10)
    with pytest.raises(AttemptTimeout) as caught:
        await seen.collect(Callee([1, HANG]).stream)
    assert caught.value.limit == "idle"


@scenario
async def test_after_the_commit_point_the_share_no_longer_applies() -> None:
    seen = Observed(Timeout(attempt=4), Fallback(Callee("b").stream), idempotent=True, deadline=10)
    assert await seen.collect(Callee([1, Slow(8, 2)]).stream) == [1, 2]


@scenario
async def test_a_first_item_that_is_too_late_for_the_share_leads_to_the_next_target() -> None:
    backup = Callee(["b"])
    seen = Observed(Timeout(attempt=9), Fallback(backup.stream), idempotent=True, deadline=10)
    callee = Callee([HANG])
    assert await seen.collect(callee.stream) == ["b"]
    assert callee.cancelled == [5.0]
    assert callee.closed == 1


@scenario
async def test_calls_inside_a_pull_inherit_the_streams_remaining_time() -> None:
    deadlines = []
    inner = Observed(Timeout(), target="inner")

    async def look(call: Any, call_next: Any) -> Any:
        deadlines.append(call.deadline)
        return await call_next(call)

    inner.pipeline = inner.pipeline.place(look)

    async def source() -> Any:
        yield await inner.call(Callee("first"))
        yield await inner.call(Callee("second"))

    assert await Observed(Timeout(attempt=9, idle=5), deadline=20).collect(source) == ["first", "second"]
    assert deadlines == [9.0, 5.0]


# --- with queues, and options --------------------------------------------------------------------------


@scenario
async def test_time_in_a_queue_does_not_count_as_the_attempts() -> None:
    seen = Observed(Timeout(attempt=10), Bulkhead(limit=1, queue=5))
    callee = Callee(Slow(8, "ok"))
    assert await asyncio.gather(*(seen.call(callee) for _ in range(3))) == ["ok"] * 3
    assert now() == 24.0


@pytest.mark.parametrize("option", ["attempt", "first_item", "idle"])
@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan, "5", True])
def test_a_bad_limit_is_refused_with_name_range_and_value(option: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        Timeout(**{option: value})
    assert str(caught.value) == f"{option} must be a number of seconds more than 0, not {value!r}"
