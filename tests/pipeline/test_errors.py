"""What each class of error does: to the breaker, to retry, to the next target and to a default."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from agentrt.call import RUN
from agentrt.errors import (
    AttemptTimeout,
    BudgetExceeded,
    BulkheadFull,
    CircuitOpen,
    DeadlineExceeded,
    PermanentError,
    RateLimited,
    ResultRejected,
    RunLimitExceeded,
    ThrottledError,
    ToolError,
    TransientError,
    classify,
    proves_not_executed,
)
from agentrt.middleware.circuit_breaker import CircuitBreaker
from agentrt.middleware.fallback import Fallback
from agentrt.middleware.retry import Retry
from agentrt.middleware.timeout import Timeout
from pipeline.doubles import HANG, Callee, Observed, Slow, scenario

ROWS: dict[str, tuple[Callable[[], BaseException], str, bool, bool, str]] = {
    # error, breaker, retry, next target, default
    "transient": (lambda: TransientError("x"), "failure", True, True, "any"),
    "connection": (lambda: ConnectionResetError("x"), "failure", True, True, "any"),
    "timeout of the callee": (lambda: TimeoutError("x"), "failure", True, True, "any"),
    "throttled": (lambda: ThrottledError("x"), "neutral", True, True, "any"),
    "circuit open": (lambda: CircuitOpen("x"), "neutral", False, True, "any"),
    "bulkhead full": (lambda: BulkheadFull("x"), "neutral", False, True, "any"),
    "rate limited by target": (lambda: RateLimited("x"), "neutral", False, True, "any"),
    "rate limited in run": (lambda: RateLimited("x", scope="run"), "neutral", False, False, "none"),
    "budget": (lambda: BudgetExceeded("x"), "neutral", False, False, "none"),
    "request's fault": (lambda: PermanentError("x"), "success", False, False, "none"),
    "context too long": (lambda: PermanentError("x", context_too_long=True), "success", False, True, "none"),
    "target's fault": (lambda: PermanentError("x", fault="target"), "neutral", False, True, "any"),
    "run's deadline": (lambda: DeadlineExceeded("x", scope="run"), "neutral", False, False, "none"),
    "bug": (lambda: ValueError("x"), "neutral", False, False, "none"),
    "run limit": (lambda: RunLimitExceeded("x", limit="steps"), "neutral", False, False, "none"),
    "tool error": (lambda: ToolError("x"), "neutral", False, False, "none"),
    "group": (lambda: ExceptionGroup("x", [TransientError("y")]), "neutral", False, False, "none"),
}
rows = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())


async def breaker_effect(fail: Callable[[Observed], Any], *, breaker: CircuitBreaker, seen: Observed) -> str:
    """One failure, the outcome in question, another failure, against a threshold of two."""
    bad = Callee(TransientError("known bad"))
    await seen.failure(bad)
    await fail(seen)
    if breaker.state("a") == "open":
        return "failure"
    await seen.failure(bad)
    return "neutral" if breaker.state("a") == "open" else "success"


@rows
@scenario
async def test_the_breaker_counts_it_as_the_table_says(row: Any) -> None:
    make, expected, *_ = row
    breaker = CircuitBreaker(failure_threshold=2)
    seen = Observed(breaker)
    assert await breaker_effect(lambda s: s.failure(Callee(make())), breaker=breaker, seen=seen) == expected


@rows
@scenario
async def test_retry_repeats_it_as_the_table_says(row: Any) -> None:
    make, _, retried, *_ = row
    callee = Callee(make(), "ok")
    seen = Observed(Retry(max_attempts=2, jitter="none"), idempotent=True)
    if retried:
        assert await seen.call(callee) == "ok"
        assert callee.calls == 2
    else:
        error = await seen.failure(callee)
        assert type(error) is type(make())
        assert callee.calls == 1


@rows
@scenario
async def test_the_next_target_follows_as_the_table_says(row: Any) -> None:
    make, _, _, moves, _ = row
    error, backup = make(), Callee("backup")
    seen = Observed(Fallback(backup), idempotent=True)
    if moves:
        assert await seen.call(Callee(error)) == "backup"
        assert seen.record.degraded
    else:
        assert await seen.failure(Callee(error)) is error
        assert backup.calls == 0
        assert not seen.record.degraded


@rows
@pytest.mark.parametrize("function", [False, True], ids=["value", "function"])
@scenario
async def test_a_default_is_served_as_the_table_says(row: Any, function: bool) -> None:
    make, *_, default = row
    error = make()
    seen = Observed(Fallback(default=(lambda e: "default") if function else "default"), idempotent=True)
    if default == "any":
        assert await seen.call(Callee(error)) == "default"
        assert seen.record.degraded
    else:
        assert await seen.failure(Callee(error)) is error


@rows
@scenario
async def test_an_error_in_doubt_is_not_repeated_anywhere(row: Any) -> None:
    """A call that is not idempotent is tried again only if the error proves that nothing was done."""
    make, _, retried, moves, default = row
    error, backup = make(), Callee("backup")
    proven = proves_not_executed(error)

    callee = Callee(error, "ok")
    seen = Observed(Retry(max_attempts=2, jitter="none"))
    if retried and proven:
        assert await seen.call(callee) == "ok"
    else:
        assert await seen.failure(callee) is error
        assert callee.calls == 1

    seen = Observed(Fallback(backup))
    if moves and proven:
        assert await seen.call(Callee(error)) == "backup"
    else:
        assert await seen.failure(Callee(error)) is error
        assert backup.calls == 0

    seen = Observed(Fallback(default="default"))
    if default == "any" and proven:
        assert await seen.call(Callee(error)) == "default"
    else:
        assert await seen.failure(Callee(error)) is error


# --- rows that need time -------------------------------------------------------------------------------


@scenario
async def test_the_full_attempt_limit_is_a_transient_failure() -> None:
    breaker = CircuitBreaker(failure_threshold=2)
    seen = Observed(Timeout(attempt=10), breaker)
    assert await breaker_effect(lambda s: s.failure(Callee(HANG)), breaker=breaker, seen=seen) == "failure"

    callee = Callee(HANG, "ok")
    assert await Observed(Timeout(attempt=10), Retry(), idempotent=True).call(callee) == "ok"
    assert (
        await Observed(Timeout(attempt=10), Fallback(Callee("b")), idempotent=True).call(Callee(HANG)) == "b"
    )


@pytest.mark.parametrize(
    ("attempt", "effect"), [(11.0, "neutral"), (10.0, "failure"), (9.0, "failure"), (None, "neutral")]
)
@scenario
async def test_an_attempt_cut_by_its_share_is_a_failure_from_half_of_its_limit(
    attempt: float | None, effect: str
) -> None:
    # The share of the first of two targets is 5 s.
    breaker = CircuitBreaker(failure_threshold=2)
    backup = Callee("backup")
    seen = Observed(Timeout(attempt=attempt), breaker, Fallback(backup), idempotent=True, deadline=10)

    async def cut(_: Observed) -> None:
        callee = Callee(HANG, "never")
        assert await seen.call(callee) == "backup"
        assert callee.calls == 1  # no retry
        timed_out = seen.record.errors[0]
        assert isinstance(timed_out, AttemptTimeout)
        assert timed_out.cut
        assert timed_out.elapsed == 5.0

    plain = Observed(Timeout(attempt=attempt), breaker)

    async def bad() -> None:
        await plain.failure(Callee(TransientError("known bad")))

    await bad()
    await cut(seen)
    got = "failure" if breaker.state("a") == "open" else None
    if got is None:
        await bad()
        got = "neutral" if breaker.state("a") == "open" else "success"
    assert got == effect


@scenario
async def test_a_cut_attempt_is_not_retried() -> None:
    # The second attempt starts at 4 s and is cut at 5 s; a third would be allowed.
    callee = Callee(Slow(3, TransientError("x")), HANG)
    seen = Observed(
        Timeout(attempt=3.9), Retry(jitter="none"), Fallback(Callee("backup")), idempotent=True, deadline=10
    )
    assert await seen.call(callee) == "backup"
    assert callee.started == [0.0, 4.0]
    assert callee.cancelled == [5.0]


@pytest.mark.parametrize(("attempt", "effect"), [(25.0, "neutral"), (20.0, "failure"), (None, "neutral")])
@scenario
async def test_the_calls_deadline_counts_as_for_a_share(attempt: float | None, effect: str) -> None:
    breaker = CircuitBreaker(failure_threshold=2)
    seen = Observed(Timeout(attempt=attempt), breaker, deadline=10)
    assert await breaker_effect(lambda s: s.failure(Callee(HANG)), breaker=breaker, seen=seen) == effect
    assert any(isinstance(call.record.error, DeadlineExceeded) for call in seen.calls)


@scenario
async def test_after_the_calls_deadline_neither_retry_nor_next_target() -> None:
    callee, backup = Callee(HANG), Callee("backup")
    # Not idempotent, so the first target has the whole deadline.
    seen = Observed(Timeout(attempt=None), Retry(), Fallback(backup), deadline=10)
    error = await seen.failure(callee)
    assert isinstance(error, DeadlineExceeded)
    assert error.scope == "call"
    assert (callee.calls, backup.calls) == (1, 0)


@scenario
async def test_after_the_calls_deadline_a_default_value_but_no_default_function() -> None:
    seen = Observed(Timeout(attempt=None), Fallback(default="late"), idempotent=True, deadline=10)
    assert await seen.call(Callee(HANG)) == "late"
    assert asyncio.get_running_loop().time() == 10.0

    served: list[BaseException] = []
    # A default function has its share of the time, so only a terminal of its own meets the deadline itself.
    error = DeadlineExceeded("over", scope="call")

    async def terminal(call: Any) -> Any:
        raise error

    pipeline = Observed(
        Fallback(default=served.append), idempotent=True, terminal=terminal, classify=classify
    ).pipeline
    with pytest.raises(DeadlineExceeded):
        await pipeline.send(pipeline.new_call("request"))
    assert not served


class OneRun:
    id = "run"

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline

    def observe(self, call: Any, entry: Any) -> None: ...


@scenario
async def test_after_the_runs_deadline_not_even_a_default_value() -> None:
    token = RUN.set(OneRun(5.0))
    try:
        seen = Observed(Timeout(), Fallback(default="late"), idempotent=True, deadline=10)
        error = await seen.failure(Callee(HANG))
    finally:
        RUN.reset(token)
    assert isinstance(error, DeadlineExceeded)
    assert error.scope == "run"
    assert asyncio.get_running_loop().time() == 5.0


@scenario
async def test_a_rejected_result_is_a_failure_everywhere() -> None:
    breaker = CircuitBreaker(failure_threshold=2)
    retry = Retry(max_attempts=1, retry_result=lambda value: value == "bad")
    seen = Observed(breaker, retry, idempotent=True)
    assert await breaker_effect(lambda s: s.failure(Callee("bad")), breaker=breaker, seen=seen) == "failure"

    twice = Retry(max_attempts=2, retry_result=lambda value: value == "bad")
    assert await Observed(twice, idempotent=True).call(Callee("bad", "good")) == "good"
    error = await Observed(twice, idempotent=True).failure(Callee("bad"))
    assert isinstance(error, ResultRejected)
    assert error.value == "bad"
    assert await Observed(twice, Fallback(Callee("next")), idempotent=True).call(Callee("bad")) == "next"


@scenario
async def test_a_cancellation_counts_neither_way_and_stops_everything() -> None:
    breaker = CircuitBreaker(failure_threshold=2)
    backup = Callee("backup")
    callee = Callee(HANG)
    seen = Observed(Timeout(), breaker, idempotent=True)
    resilient = seen.pipeline.replace(Retry()).replace(Fallback(backup, default="default"))

    async def cancel(_: Observed) -> None:
        task = asyncio.create_task(resilient.call(callee))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    assert await breaker_effect(cancel, breaker=breaker, seen=seen) == "neutral"
    assert (callee.calls, backup.calls) == (1, 0)


# --- proof of no effect --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        ThrottledError("x"),
        PermanentError("x", fault="target"),
        CircuitOpen("x"),
        BulkheadFull("x"),
        RateLimited("x"),
        RateLimited("x", scope="run"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_these_prove_that_nothing_was_done(error: BaseException) -> None:
    assert proves_not_executed(error)


@pytest.mark.parametrize(
    "error",
    [
        TransientError("x"),
        TransientError("x", executed=True),
        PermanentError("x"),
        PermanentError("x", fault="target", executed=True),
        AttemptTimeout("x"),
        DeadlineExceeded("x"),
        ResultRejected("x", value=1),
        ConnectionError("x"),
        ValueError("x"),
    ],
    ids=lambda e: f"{type(e).__name__}",
)
def test_these_prove_nothing(error: BaseException) -> None:
    assert not proves_not_executed(error)


def test_a_cancellation_has_a_label_of_its_own() -> None:
    label = classify(asyncio.CancelledError())
    assert (label.breaker, label.retry, label.next_target, label.default) == ("neutral", False, False, "none")


def test_a_nested_label_blames_nobody_here() -> None:
    label = classify(TransientError("x")).nested()
    assert (label.name, label.breaker, label.retry, label.next_target) == ("transient", "neutral", True, True)
