"""RateLimit: who is let through, who waits, who is refused and what that means to the rest of the pipeline."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from agentrt.call import Attempt, Refusal
from agentrt.errors import (
    CircuitOpen,
    ConfigError,
    DeadlineExceeded,
    RateLimited,
    TransientError,
    classify,
)
from agentrt.middleware.circuit_breaker import CircuitBreaker
from agentrt.middleware.fallback import Fallback
from agentrt.middleware.rate_limit import RateLimit
from agentrt.middleware.retry import Retry
from agentrt.middleware.timeout import Timeout
from agentrt.pipeline import Pipeline
from agentrt.security.memory_limits import MemoryLimits
from agentrt.security.rate_limits import RateLimiter, Turn
from agentrt.testing import advance
from pipeline.doubles import HANG, Callee, Observed, Slow, entries, now, scenario


@scenario
async def test_a_call_beyond_the_limit_is_refused_at_once_and_says_when_to_come_again() -> None:
    seen = Observed(RateLimit(limit=2, window=10))
    callee = Callee("ok")
    for _ in range(2):
        assert await seen.call(callee) == "ok"
    await advance(4)
    error = await seen.failure(callee)
    assert isinstance(error, RateLimited)
    assert (error.scope, error.retry_after, error.executed) == ("run", 6.0, False)
    assert str(error) == (
        "a: the rate limit of 2 in 10 s (key '{kind} of {run}') is used up; the next turn comes in 6 s"
    )
    assert callee.calls == 2
    assert now() == 4.0
    (refusal,) = entries(seen.record, Refusal)
    assert (refusal.stage, refusal.target, refusal.error) == ("rate_limit", "a", error)
    await advance(6)
    assert await seen.call(callee) == "ok"


@scenario
async def test_with_max_wait_calls_wait_their_turn_in_order() -> None:
    seen = Observed(Timeout(attempt=1), RateLimit(limit=1, window=10, max_wait=25))
    callee = Callee("ok")
    results = await asyncio.gather(*(seen.call(callee) for _ in range(4)), return_exceptions=True)
    assert callee.started == [0.0, 10.0, 20.0]
    assert results[:3] == ["ok"] * 3
    assert isinstance(results[3], RateLimited)
    waits = [call.record.waits for call in seen.calls if call.record.error is None]
    assert [[(wait.stage, wait.seconds) for wait in each] for each in waits] == [
        [],
        [("rate_limit", 10.0)],
        [("rate_limit", 20.0)],
    ]


@scenario
async def test_of_a_thousand_calls_at_limit_100_exactly_100_are_made() -> None:
    seen = Observed(RateLimit(limit=100, window=60))
    callee = Callee("ok")
    results = await asyncio.gather(*(seen.call(callee) for _ in range(1000)), return_exceptions=True)
    assert results.count("ok") == callee.calls == 100


# --- streams -------------------------------------------------------------------------------------------


@scenario
async def test_streams_are_counted_waited_for_and_refused_alike() -> None:
    seen = Observed(RateLimit(limit=1, window=10, max_wait=10))
    callee = Callee([1, 2])
    assert await seen.collect(callee.stream) == [1, 2]
    assert await seen.collect(callee.stream) == [1, 2]
    assert callee.started == [0.0, 10.0]
    first = asyncio.create_task(seen.collect(callee.stream))
    await asyncio.sleep(0)
    got, error = await seen.broken_stream(callee.stream)
    assert got == []
    assert isinstance(error, RateLimited)
    assert await first == [1, 2]


# --- what a refusal means ------------------------------------------------------------------------------


@scenario
async def test_a_run_that_used_up_its_allowance_is_not_served_by_another_target() -> None:
    backup = Callee("b")
    seen = Observed(RateLimit(limit=1, window=10), Retry(), Fallback(backup, default="d"), idempotent=True)
    await seen.call(Callee("ok"))
    error = await seen.failure(Callee("never"))
    assert isinstance(error, RateLimited)
    assert classify(error).name == "run_refused"
    assert backup.calls == 0
    assert now() == 0.0


@scenario
async def test_a_target_that_is_busy_leaves_the_call_to_the_next() -> None:
    backup = Callee("b")
    seen = Observed(RateLimit(limit=1, window=10, scope="target"), Fallback(backup), idempotent=True)
    await seen.call(Callee("ok"))
    assert await seen.call(Callee("never")) == "b"
    assert isinstance(seen.record.errors[0], RateLimited)
    assert seen.record.errors[0].scope == "target"
    # The other target has a count of its own, which is now used up as well.
    assert isinstance(await seen.failure(Callee("never")), RateLimited)
    assert backup.calls == 1


@scenario
async def test_every_attempt_counts_and_a_busy_target_leaves_the_real_failure() -> None:
    problem = TransientError("x")
    callee = Callee(problem)
    stage = RateLimit(limit=2, window=60, scope="target")
    seen = Observed(stage, Retry(initial_delay=1, jitter="none"), idempotent=True)
    assert await seen.failure(callee) is problem
    assert callee.calls == 2
    assert [type(error) for error in seen.record.errors] == [TransientError, TransientError, RateLimited]


@scenario
async def test_a_run_whose_allowance_ends_with_a_retry_is_told_that() -> None:
    callee = Callee(TransientError("x"))
    seen = Observed(RateLimit(limit=2, window=60), Retry(initial_delay=1, jitter="none"), idempotent=True)
    assert isinstance(await seen.failure(callee), RateLimited)
    assert callee.calls == 2


@scenario
async def test_a_rejection_by_the_circuit_breaker_leaves_the_hit_spent() -> None:
    breaker = CircuitBreaker()
    seen = Observed(Timeout(), breaker, RateLimit(limit=1, window=10))
    breaker.isolate("a")
    assert isinstance(await seen.failure(Callee("never")), CircuitOpen)
    breaker.close("a")
    assert isinstance(await seen.failure(Callee("never")), RateLimited)


@scenario
async def test_a_refusal_does_not_reach_the_circuit_breaker() -> None:
    breaker = CircuitBreaker(failure_threshold=1)
    seen = Observed(Timeout(), breaker, RateLimit(limit=1, window=10))
    await seen.call(Callee("ok"))
    for _ in range(5):
        await seen.failure(Callee("never"))
    assert breaker.state("a") == "closed"
    assert entries(seen.record, Attempt) == []


# --- deadlines -----------------------------------------------------------------------------------------


@scenario
async def test_a_wait_that_would_pass_the_deadline_is_refused_at_once() -> None:
    seen = Observed(Timeout(attempt=None), RateLimit(limit=1, window=10, max_wait=100), deadline=10)
    await seen.call(Callee("ok"))
    error = await seen.failure(Callee("never"))
    assert isinstance(error, RateLimited)
    assert error.retry_after == 10.0
    assert now() == 0.0


@scenario
async def test_a_wait_that_ends_before_the_deadline_is_waited() -> None:
    seen = Observed(Timeout(attempt=None), RateLimit(limit=1, window=10, max_wait=100), deadline=10.001)
    await seen.call(Callee("ok"))
    assert await seen.call(Callee("ok")) == "ok"
    assert now() == 10.0


@scenario
async def test_a_wait_beyond_the_share_leaves_the_rest_to_the_next_target() -> None:
    backup = Callee("b")
    stage = RateLimit(limit=1, window=20, max_wait=100, scope="target")
    seen = Observed(Timeout(attempt=None), stage, Fallback(backup), idempotent=True, deadline=30)
    await seen.call(Callee("ok"))
    assert await seen.call(Callee("never")) == "b"
    assert now() == 0.0


@scenario
async def test_the_deadline_still_cuts_the_attempt_after_a_wait() -> None:
    seen = Observed(Timeout(attempt=None), RateLimit(limit=1, window=10, max_wait=100), deadline=15)
    await seen.call(Callee("ok"))
    assert isinstance(await seen.failure(Callee(HANG)), DeadlineExceeded)
    assert now() == 15.0


class SlowStore(MemoryLimits):
    """Takes a second to answer, as a server far away might."""

    is_local = False

    async def hit(self, key: str, limit: int, window: float, *, cost: int, max_wait: float) -> Turn:
        await asyncio.sleep(1)
        return await super().hit(key, limit, window, cost=cost, max_wait=max_wait)


@scenario
async def test_a_store_that_does_not_answer_in_time_is_a_refusal_for_the_next_target() -> None:
    backup = Callee("b")
    stage = RateLimit(limit=5, window=20, scope="target", limiter=RateLimiter(SlowStore()))
    seen = Observed(Timeout(attempt=None), stage, Fallback(default=backup), idempotent=True, deadline=1.5)
    assert await seen.call(Callee("never")) == "b"
    assert now() == 0.75
    assert "gave no turn before this call's time was over" in str(seen.record.errors[0])


@scenario
async def test_a_store_that_refuses_because_it_fails_says_so() -> None:
    class Failing(MemoryLimits):
        async def hit(self, key: str, limit: int, window: float, *, cost: int, max_wait: float) -> Turn:
            return Turn(False, 1.0, 0, degraded=True)

    seen = Observed(RateLimit(limit=5, window=20, limiter=RateLimiter(Failing())))
    error = await seen.failure(Callee("never"))
    assert "is decided by its on_failure, as its store does not answer; the next turn comes in 1 s" in str(
        error
    )
    assert isinstance(error, RateLimited)
    assert error.retry_after == 1.0


# --- cancellation --------------------------------------------------------------------------------------


@scenario
async def test_a_cancelled_waiter_gives_its_turn_back() -> None:
    seen = Observed(RateLimit(limit=1, window=10, max_wait=100))
    await seen.call(Callee("ok"))
    task = asyncio.create_task(seen.call(Callee("never")))
    await advance(3)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert await seen.call(Callee("ok")) == "ok"
    assert now() == 10.0


@scenario
async def test_one_cancelled_while_the_store_is_asked_is_cancelled() -> None:
    callee = Callee("never")
    seen = Observed(RateLimit(limit=1, window=10, limiter=RateLimiter(SlowStore())), deadline=5)
    task = asyncio.create_task(seen.call(callee))
    await advance(0.5)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert callee.calls == 0


@scenario
async def test_an_attempt_that_is_cancelled_has_used_its_hit() -> None:
    seen = Observed(RateLimit(limit=1, window=10))
    task = asyncio.create_task(seen.call(Callee(Slow(5))))
    await advance(3)
    task.cancel()
    await asyncio.wait([task])
    assert isinstance(await seen.failure(Callee("never")), RateLimited)


# --- keys ----------------------------------------------------------------------------------------------


def run_named(name: str) -> Any:
    return SimpleNamespace(
        id=name,
        agent_name="Assistant",
        session=SimpleNamespace(id="s1"),
        deadline=1e9,
        live=None,
        observe=lambda call, entry: None,
        collect=lambda call: None,
    )


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({}, "tool of r1"),
        ({"scope": "target"}, "tool:search"),
        ({"key": "everything"}, "everything"),
        ({"key": "{agent}/{session}/{operation}: {target}"}, "Assistant/s1/search: tool:search"),
        ({"key": "a {{brace}} {run}"}, "a {brace} r1"),
        ({"key": lambda call: f"of {call.request}"}, "of 7"),
    ],
    ids=str,
)
def test_the_key_is_made_of_the_call(options: dict[str, Any], key: str) -> None:
    call: Any = SimpleNamespace(
        kind="tool", operation="search", target="tool:search", request=7, run=run_named("r1")
    )
    assert RateLimit(limit=1, window=1, **options)._key(call) == key


def test_outside_a_run_the_fields_of_a_run_are_none() -> None:
    call: Any = SimpleNamespace(kind="call", operation="x", target="x", request=7, run=None)
    stage = RateLimit(limit=1, window=1, key="{run} {agent} {session}")
    assert stage._key(call) == "none none none"


@scenario
async def test_stages_that_share_a_limiter_and_a_key_share_the_count() -> None:
    limiter = RateLimiter()
    one, other = (
        Observed(RateLimit(limit=1, window=10, key="shared", limiter=limiter), target=name) for name in "ab"
    )
    assert await one.call(Callee("ok")) == "ok"
    assert isinstance(await other.failure(Callee("never")), RateLimited)
    apart = Observed(RateLimit(limit=1, window=10, key="shared"))
    assert await apart.call(Callee("ok")) == "ok"


@scenario
async def test_a_stage_takes_the_limiter_of_its_runtime_unless_it_was_given_one() -> None:
    mine, runtimes = RateLimiter(), RateLimiter()
    own = RateLimit(limit=1, window=10, limiter=mine)
    assert own.bound(runtimes) is own

    class PerUser(RateLimit):
        name = "per_user"

    free = PerUser(limit=1, window=10, key="k")
    bound = free.bound(runtimes)
    assert type(bound) is PerUser
    assert bound is not free
    assert await Observed(bound).call(Callee("ok")) == "ok"
    assert not await runtimes.check_rate_limit("k", 1, 10)
    assert await Observed(free).call(Callee("ok")) == "ok"


NO_OTHER = (
    "key must be text with no other fields than {run}, {agent}, {session}, {kind}, {operation}, {target}"
)


# --- building ------------------------------------------------------------------------------------------


def test_its_place_is_outside_the_throttle_and_inside_retry() -> None:
    pipeline = Pipeline.default(target="a").place(RateLimit(limit=1, window=1))
    names = [stage.name for stage in pipeline.describe()]
    assert names == ["timeout", "circuit_breaker", "rate_limit", "retry", "fallback", "telemetry"]
    shown = next(stage for stage in pipeline.describe() if stage.name == "rate_limit")
    assert shown.options == {
        "limit": 1,
        "window": 1.0,
        "key": "{kind} of {run}",
        "max_wait": 0.0,
        "scope": "run",
    }


def test_waiting_inside_the_circuit_breaker_is_a_problem_of_the_pipeline() -> None:
    pipeline = Pipeline(inner_first=[RateLimit(limit=1, window=1), CircuitBreaker()], target="a")
    assert pipeline.problems() == [
        "circuit_breaker stands outside rate_limit: the wait for a turn then counts as the target's latency"
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0, "window": 1}, "limit must be a whole number of at least 1, not 0"),
        ({"limit": 1, "window": 0}, "window must be a number of seconds at least 0.001, not 0"),
        (
            {"limit": 1, "window": 1, "max_wait": -1},
            "max_wait must be a number of seconds at least 0, not -1",
        ),
        ({"limit": 1, "window": 1, "scope": "user"}, "scope must be one of 'run', 'target', not 'user'"),
        ({"limit": 1, "window": 1, "key": ""}, "key must be a name, not ''"),
        (
            {"limit": 1, "window": 1, "key": "{user}"},
            f"{NO_OTHER}, not '{{user}}'",
        ),
        (
            {"limit": 1, "window": 1, "key": "{run!r}"},
            f"{NO_OTHER}, not '{{run!r}}'",
        ),
        (
            {"limit": 1, "window": 1, "key": "{run"},
            "key must be text with fields such as {target}, not '{run': expected '}' before end of string",
        ),
    ],
    ids=str,
)
def test_bad_options_are_refused_with_name_range_and_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RateLimit(**options)
    assert str(caught.value) == message
