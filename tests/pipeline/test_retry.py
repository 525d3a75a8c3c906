"""Retry: who is repeated, when, how often, and what comes out in the end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agentrt.call import Retrying, Wait
from agentrt.errors import (
    AttemptTimeout,
    CircuitOpen,
    DeadlineExceeded,
    Label,
    PermanentError,
    ResultRejected,
    ThrottledError,
    TransientError,
)
from agentrt.middleware.circuit_breaker import CircuitBreaker
from agentrt.middleware.fallback import Fallback
from agentrt.middleware.retry import Retry
from agentrt.middleware.throttle import Throttle
from agentrt.middleware.timeout import Timeout
from pipeline.doubles import Callee, Observed, Slow, entries, now, scenario


def steady(**options: Any) -> Retry:
    return Retry(**({"jitter": "none"} | options))


@scenario
async def test_a_first_success_is_one_attempt() -> None:
    callee = Callee("ok")
    seen = Observed(steady(), idempotent=True)
    assert await seen.call(callee) == "ok"
    assert callee.calls == 1
    assert not seen.record.entries
    assert [(a.number, a.error) for a in seen.record.attempts] == [(1, None)]


@scenario
async def test_attempts_follow_with_growing_waits_up_to_the_maximum() -> None:
    errors = [TransientError(str(n)) for n in range(4)]
    callee = Callee(*errors)
    seen = Observed(steady(max_attempts=4), idempotent=True)
    assert await seen.failure(callee) is errors[3]
    assert callee.started == [0.0, 1.0, 3.0, 7.0]
    record = seen.record
    assert record.errors == errors
    assert [a.number for a in record.attempts] == [1, 2, 3, 4]
    assert [(r.number, r.delay, r.error) for r in entries(record, Retrying)] == [
        (2, 1.0, errors[0]),
        (3, 2.0, errors[1]),
        (4, 4.0, errors[2]),
    ]
    assert [(w.stage, w.started, w.seconds) for w in entries(record, Wait)] == [
        ("retry", 0.0, 1.0),
        ("retry", 1.0, 2.0),
        ("retry", 3.0, 4.0),
    ]


@scenario
async def test_stages_inside_see_the_number_of_the_attempt() -> None:
    numbers = []

    async def look(call: Any, call_next: Any) -> Any:
        numbers.append(call.attempt)
        return await call_next(call)

    seen = Observed(look, steady(), Fallback(Callee("b")), idempotent=True)
    assert await seen.call(Callee(TransientError("x"))) == "b"
    assert numbers == [1, 2, 3, 1]


@scenario
async def test_max_attempts_counts_per_target() -> None:
    first, second = Callee(TransientError("a")), Callee(TransientError("b"), TransientError("b"), "ok")
    assert await Observed(steady(), Fallback(second), idempotent=True).call(first) == "ok"
    assert (first.calls, second.calls) == (3, 3)


@scenario
async def test_one_attempt_is_no_retry() -> None:
    callee = Callee(TransientError("x"))
    await Observed(Retry(max_attempts=1), idempotent=True).failure(callee)
    assert callee.calls == 1


@scenario
async def test_a_call_without_proof_is_not_repeated() -> None:
    callee = Callee(TransientError("x"), "ok")
    await Observed(steady()).failure(callee)
    assert callee.calls == 1
    callee = Callee(TransientError("x", executed=True), "ok")
    await Observed(steady()).failure(callee)
    assert callee.calls == 1


@scenario
async def test_a_proof_that_nothing_was_done_allows_a_repetition() -> None:
    callee = Callee(TransientError("x", executed=False), "ok")
    assert await Observed(steady()).call(callee) == "ok"


@scenario
async def test_idempotency_can_be_said_per_call() -> None:
    seen = Observed(steady(), idempotent=False)
    callee = Callee(TransientError("x"), "ok")
    assert await seen.pipeline.send(seen.pipeline.new_call(callee, idempotent=True)) == "ok"
    seen = Observed(steady(), idempotent=True)
    callee = Callee(TransientError("x"), "ok")
    with pytest.raises(TransientError):
        await seen.pipeline.send(seen.pipeline.new_call(callee, idempotent=False))


# --- time ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("deadline", "calls"), [(4.0, 2), (4.5, 2), (3.0, 1), (2.9, 1)])
@scenario
async def test_a_backoff_that_would_end_on_or_past_the_deadline_gives_up_at_once(
    deadline: float, calls: int
) -> None:
    callee = Callee(Slow(1, TransientError("x")))
    seen = Observed(
        Timeout(attempt=None), steady(initial_delay=2, max_attempts=2), idempotent=True, deadline=deadline
    )
    error = await seen.failure(callee)
    assert callee.calls == calls
    if calls == 1:
        assert isinstance(error, TransientError)
        assert now() == 1.0


@scenario
async def test_a_backoff_that_would_end_past_the_share_moves_on_at_once() -> None:
    callee = Callee(Slow(1, TransientError("x")))
    seen = Observed(
        Timeout(attempt=1.5), steady(initial_delay=3), Fallback(Callee("b")), idempotent=True, deadline=10
    )
    assert await seen.call(callee) == "b"
    assert callee.calls == 2  # 1 s, wait 3 s, 1 s; the next wait of 6 s would end after the share's 5 s
    assert now() == 5.0


@scenario
async def test_the_deadline_bounds_attempts_and_waits_together() -> None:
    callee = Callee(Slow(1, TransientError("x")))
    seen = Observed(
        Timeout(attempt=2), steady(max_attempts=100, backoff="constant"), idempotent=True, deadline=10
    )
    await seen.failure(callee)
    assert now() <= 10.0
    assert callee.started == [0.0, 2.0, 4.0, 6.0, 8.0]


# --- what the server says ------------------------------------------------------------------------------


@pytest.mark.parametrize("error_type", [ThrottledError, TransientError])
@scenario
async def test_retry_after_is_honoured_even_beyond_max_delay(error_type: Any) -> None:
    callee = Callee(error_type("x", retry_after=45.0), "ok")
    seen = Observed(steady(random=lambda: 0.0), idempotent=True)
    assert await seen.call(callee) == "ok"
    assert callee.started == [0.0, 45.0]


@scenario
async def test_retry_after_is_never_early_and_spreads_by_a_tenth_or_two_seconds() -> None:
    for asked, latest in ((10.0, 11.0), (50.0, 52.0)):
        began = now()
        callee = Callee(ThrottledError("x", retry_after=asked), "ok")
        assert await Observed(steady(random=lambda: 1.0), idempotent=True).call(callee) == "ok"
        assert callee.started[1] - began == latest


@pytest.mark.parametrize(("asked", "calls"), [(60.0, 2), (60.1, 1), (float("inf"), 1), (1e9, 1)])
@scenario
async def test_beyond_max_retry_after_it_gives_up_at_once(asked: float, calls: int) -> None:
    """The limit is inclusive and compared before the jitter."""
    callee = Callee(ThrottledError("x", retry_after=asked), "ok")
    seen = Observed(steady(random=lambda: 1.0), Fallback(Callee("b")), idempotent=True)
    assert await seen.call(callee) == ("ok" if calls == 2 else "b")
    if calls == 1:
        assert now() == 0.0


@scenario
async def test_retry_after_beyond_the_deadline_gives_up_at_once() -> None:
    error = TransientError("x", retry_after=20)
    seen = Observed(Timeout(attempt=3), steady(), idempotent=True, deadline=10)
    assert await seen.failure(Callee(error)) is error
    assert now() == 0.0


class Foreign(ConnectionError):
    """An exception of some client library, which carries whatever it likes."""

    def __init__(self, retry_after: Any) -> None:
        super().__init__("foreign")
        self.retry_after = retry_after


@pytest.mark.parametrize(
    "asked", [0, -5, float("nan"), None, "10", "Wed, 21 Oct 2015 07:28:00 GMT", [1], b"3"]
)
@scenario
async def test_a_retry_after_that_is_zero_negative_or_unreadable_means_our_own_backoff(asked: Any) -> None:
    callee = Callee(Foreign(asked), "ok")
    assert await Observed(steady(initial_delay=3), idempotent=True).call(callee) == "ok"
    assert callee.started == [0.0, 3.0]


@scenario
async def test_decorrelated_jitter_grows_from_the_last_wait() -> None:
    callee = Callee(TransientError("x"))
    seen = Observed(Retry(backoff="decorrelated", max_attempts=4, random=lambda: 1.0), idempotent=True)
    await seen.failure(callee)
    assert callee.started == [0.0, 3.0, 12.0, 39.0]


@scenario
async def test_a_callable_backoff_is_asked_with_the_number_of_failed_attempts() -> None:
    asked: list[int] = []

    def waits(n: int) -> float:
        asked.append(n)
        return 2.0

    callee = Callee(TransientError("x"))
    await Observed(steady(backoff=waits), idempotent=True).failure(callee)
    assert callee.started == [0.0, 2.0, 4.0]
    assert asked[-2:] == [1, 2]


# --- with a gate ---------------------------------------------------------------------------------------


@scenario
async def test_where_there_is_a_gate_retry_does_not_sleep_by_itself() -> None:
    callee = Callee(ThrottledError("x", retry_after=20), "ok")
    seen = Observed(Throttle(random=lambda: 0.0), steady(random=lambda: 0.0), idempotent=True)
    assert await seen.call(callee) == "ok"
    assert callee.started == [0.0, 20.0]
    assert [w.stage for w in seen.record.waits] == ["throttle"]


@scenario
async def test_a_503_with_retry_after_closes_no_gate_and_delays_its_own_retry() -> None:
    callee = Callee(TransientError("x", retry_after=20), "ok")
    seen = Observed(Throttle(random=lambda: 0.0), steady(random=lambda: 0.0), idempotent=True)
    task = asyncio.create_task(seen.call(callee))
    await asyncio.sleep(1)
    assert await seen.call(Callee("other")) == "other"
    assert now() == 1.0
    assert await task == "ok"
    assert callee.started == [0.0, 20.0]


@scenario
async def test_a_nested_throttled_answer_still_delays_the_outer_retry() -> None:
    """The inner target's gate is not ours: nobody else would keep the outer call from coming back at once."""
    inner = Observed(Timeout(), target="inner")
    outer = Observed(Timeout(), Throttle(), steady(random=lambda: 0.0), idempotent=True)
    callee = Callee(ThrottledError("x", retry_after=20), "ok")
    assert await outer.call(inner.call, callee) == "ok"
    assert callee.started == [0.0, 20.0]


# --- results -------------------------------------------------------------------------------------------


@scenario
async def test_a_rejected_result_is_tried_again_and_in_the_end_carried_by_the_error() -> None:
    judged: list[Any] = []

    def reject(value: Any) -> bool:
        judged.append(value)
        return value is None

    callee = Callee(None)
    seen = Observed(CircuitBreaker(), steady(retry_result=reject), idempotent=True)
    error = await seen.failure(callee)
    assert isinstance(error, ResultRejected)
    assert error.value is None
    assert callee.calls == 3
    assert judged == [None, None, None]  # once per attempt
    assert [type(e) for e in seen.record.errors] == [ResultRejected] * 3


@scenario
async def test_a_bug_in_retry_result_is_a_bug_and_not_retried() -> None:
    callee = Callee("value")
    seen = Observed(steady(retry_result=lambda value: value.missing), idempotent=True)
    assert isinstance(await seen.failure(callee), AttributeError)
    assert callee.calls == 1


@scenario
async def test_a_stream_is_not_judged_by_retry_result() -> None:
    seen = Observed(steady(retry_result=lambda value: True), idempotent=True)
    assert await seen.collect(Callee([1, 2]).stream) == [1, 2]


# --- errors of one's own -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "retry_on",
    [KeyError, (OSError, KeyError), lambda e: isinstance(e, KeyError)],
    ids=["type", "tuple", "function"],
)
@scenario
async def test_retry_on_makes_an_error_transient_for_every_stage(retry_on: Any) -> None:
    breaker = CircuitBreaker(failure_threshold=2)
    callee = Callee(KeyError("x"), "ok")
    seen = Observed(breaker, steady(retry_on=retry_on), idempotent=True)
    assert await seen.call(callee) == "ok"
    assert callee.calls == 2
    await seen.failure(Callee(KeyError("x")))
    assert breaker.state("a") == "open"
    assert (
        await Observed(steady(retry_on=retry_on), Fallback(Callee("b")), idempotent=True).call(
            Callee(KeyError("x"))
        )
        == "b"
    )
    await Observed(steady(retry_on=retry_on), idempotent=True).failure(other := Callee(ValueError("x")))
    assert other.calls == 1


@scenario
async def test_retry_on_everything_still_leaves_an_open_circuit_alone() -> None:
    inner_breaker = CircuitBreaker()
    inner_breaker.isolate("inner")
    inner = Observed(Timeout(), inner_breaker, target="inner")
    outer_breaker = CircuitBreaker(failure_threshold=1)
    outer = Observed(Timeout(), outer_breaker, steady(retry_on=Exception), idempotent=True)
    assert isinstance(await outer.failure(inner.call, Callee("never")), CircuitOpen)
    assert now() == 0.0
    assert outer_breaker.state("a") == "closed"


@scenario
async def test_retry_on_does_not_blame_this_target_for_a_nested_failure() -> None:
    inner = Observed(Timeout(), target="inner")
    breaker = CircuitBreaker(failure_threshold=1)
    outer = Observed(Timeout(), breaker, steady(retry_on=KeyError), idempotent=True)
    callee = Callee(KeyError("x"), "ok")
    assert await outer.call(inner.call, callee) == "ok"
    assert breaker.state("a") == "closed"


@scenario
async def test_retry_on_never_catches_a_cancellation() -> None:
    callee = Callee(asyncio.CancelledError())
    seen = Observed(steady(retry_on=BaseException), idempotent=True)
    with pytest.raises(asyncio.CancelledError):
        await seen.call(callee)
    assert callee.calls == 1


@scenario
async def test_the_terminals_own_classifier_is_believed() -> None:
    mine = Label("transient", "neutral", True, True, "any")
    callee = Callee(KeyError("x"), "ok")
    breaker = CircuitBreaker(failure_threshold=1)
    seen = Observed(
        breaker,
        steady(),
        idempotent=True,
        classify=lambda error: mine if isinstance(error, KeyError) else None,
    )
    assert await seen.call(callee) == "ok"
    assert breaker.state("a") == "closed"
    assert isinstance(await seen.failure(Callee(PermanentError("x"))), PermanentError)
    assert seen.record.attempts[0].label is not mine


# --- what comes out ------------------------------------------------------------------------------------


@scenario
async def test_the_last_error_comes_out_as_the_same_object() -> None:
    first, second = TransientError("1"), ValueError("a bug")
    assert await Observed(steady(), idempotent=True).failure(Callee(first, second)) is second


@scenario
async def test_a_timed_out_attempt_is_over_before_its_retry_starts() -> None:
    running = 0
    most = 0

    async def callee() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(3)
            running -= 1

    error = await Observed(Timeout(attempt=10), steady(), idempotent=True).failure(callee)
    assert isinstance(error, AttemptTimeout)
    assert most == 1
    assert now() == 10 + 3 + 1 + 10 + 3 + 2 + 10 + 3


@scenario
async def test_an_abandoned_thread_forbids_a_repetition() -> None:
    thread: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    calls = 0

    async def terminal(call: Any) -> Any:
        nonlocal calls
        calls += 1
        call.record.abandoned = thread
        raise TransientError("gave up waiting")

    async def send(*stages: Any) -> Any:
        pipeline = Observed(*stages, idempotent=True, terminal=terminal).pipeline
        return await pipeline.send(pipeline.new_call("request"))

    with pytest.raises(TransientError):
        await send(steady(), Fallback("b"))
    assert calls == 1
    thread.set_result(None)
    with pytest.raises(TransientError):
        await send(steady())
    assert calls == 1 + 3


@scenario
async def test_without_time_left_the_deadline_is_what_comes_out() -> None:
    callee = Callee(TransientError("x"), Slow(100))
    seen = Observed(Timeout(attempt=None), steady(), idempotent=True, deadline=5)
    error = await seen.failure(callee)
    assert isinstance(error, DeadlineExceeded)
    assert [type(e) for e in seen.record.errors] == [TransientError, DeadlineExceeded]
