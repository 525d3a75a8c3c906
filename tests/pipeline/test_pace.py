"""Pace: turns spread over time; a turn that was not used comes back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agentrt.call import Refusal
from agentrt.errors import CircuitOpen, ConfigError, RateLimited, TransientError
from agentrt.middleware.circuit_breaker import CircuitBreaker
from agentrt.middleware.fallback import Fallback
from agentrt.middleware.pace import Pace
from agentrt.middleware.pace_limiter import PaceLimiter
from agentrt.middleware.retry import Retry
from agentrt.middleware.timeout import Timeout
from agentrt.testing import run
from pipeline.doubles import Callee, Observed, entries, now, scenario


@scenario
async def test_a_burst_goes_at_once_and_the_rest_at_the_rate() -> None:
    seen = Observed(Pace(rate=2, per=1, burst=3))
    callee = Callee("ok")
    await asyncio.gather(*(seen.call(callee) for _ in range(7)))
    assert callee.started == [
        0.0,
        0.0,
        0.0,
        pytest.approx(0.5),
        pytest.approx(1.0),
        pytest.approx(1.5),
        pytest.approx(2.0),
    ]


@scenario
async def test_without_a_burst_of_its_own_the_rate_is_the_burst() -> None:
    seen = Observed(Pace(rate=3, per=60))
    callee = Callee("ok")
    await asyncio.gather(*(seen.call(callee) for _ in range(4)))
    assert callee.started == [0.0, 0.0, 0.0, pytest.approx(20.0)]


@scenario
async def test_a_wait_is_in_the_record_and_not_the_attempts() -> None:
    seen = Observed(Timeout(attempt=1), Pace(rate=1, per=10))
    await seen.call(Callee("first"))
    assert await seen.call(Callee("second")) == "second"
    (wait,) = seen.record.waits
    assert (wait.stage, wait.seconds) == ("pace", pytest.approx(10.0))


@scenario
async def test_a_wait_beyond_the_share_is_refused_at_once_for_the_next_target() -> None:
    backup = Callee("b")
    seen = Observed(
        Timeout(attempt=None), Pace(rate=1, per=20), Fallback(backup), idempotent=True, deadline=30
    )
    await seen.call(Callee("first"))
    callee = Callee("never")
    assert await seen.call(callee) == "b"
    assert now() == 0.0
    assert callee.calls == 0
    error = seen.record.errors[0]
    assert isinstance(error, RateLimited)
    assert (error.scope, error.retry_after, error.executed) == ("target", pytest.approx(20.0), False)
    assert [r.stage for r in entries(seen.record, Refusal)] == ["pace"]


@scenario
async def test_a_wait_that_would_end_exactly_on_the_deadline_is_refused() -> None:
    seen = Observed(Timeout(attempt=None), Pace(rate=1, per=10), deadline=10)
    await seen.call(Callee("first"))
    assert isinstance(await seen.failure(Callee("never")), RateLimited)
    assert now() == 0.0


@scenario
async def test_those_behind_in_the_queue_know_how_long_they_would_wait() -> None:
    seen = Observed(Timeout(attempt=None), Pace(rate=1, per=10), deadline=25)
    await seen.call(Callee("first"))
    tasks = [asyncio.create_task(seen.call(Callee("ok"))) for _ in range(4)]
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results[:2] == ["ok", "ok"]
    assert all(isinstance(result, RateLimited) for result in results[2:])


@scenario
async def test_a_rejection_by_the_circuit_breaker_gives_the_turn_back() -> None:
    breaker = CircuitBreaker()
    seen = Observed(Timeout(), breaker, Pace(rate=1, per=100))
    breaker.isolate("a")
    for _ in range(5):
        assert isinstance(await seen.failure(Callee("never")), CircuitOpen)
    breaker.close("a")
    assert await seen.call(Callee("ok")) == "ok"
    assert now() == 0.0


@scenario
async def test_a_turn_given_back_goes_to_the_next_who_waits() -> None:
    breaker = CircuitBreaker()
    pace = Pace(rate=1, per=100)
    rejected = Observed(breaker, pace)
    open_for_others = Observed(pace)
    await open_for_others.call(Callee("first"))
    waiting = asyncio.create_task(rejected.failure(Callee("never")))
    await asyncio.sleep(1)
    behind = asyncio.create_task(open_for_others.call(Callee("behind")))
    breaker.isolate("a")
    assert isinstance(await waiting, CircuitOpen)
    assert await behind == "behind"
    assert now() == pytest.approx(100.0)


@scenario
async def test_a_circuit_open_from_inside_a_nested_call_gives_nothing_back() -> None:
    """That call was made; only its own nested call was not."""
    breaker = CircuitBreaker()
    breaker.isolate("inner")
    inner = Observed(Timeout(), breaker, target="inner")
    outer = Observed(Timeout(), Pace(rate=1, per=10))
    assert isinstance(await outer.failure(inner.call, Callee("never")), CircuitOpen)
    await outer.call(Callee("ok"))
    assert now() == pytest.approx(10.0)


@scenario
async def test_a_failed_attempt_has_used_its_turn() -> None:
    callee = Callee(TransientError("x"), "ok")
    seen = Observed(Pace(rate=1, per=10), Retry(initial_delay=0), idempotent=True)
    assert await seen.call(callee) == "ok"
    assert callee.started == [0.0, pytest.approx(10.0)]


@scenario
async def test_a_cancelled_waiter_loses_nothing() -> None:
    seen = Observed(Pace(rate=1, per=10))
    await seen.call(Callee("first"))
    cancelled = asyncio.create_task(seen.call(Callee("never")))
    await asyncio.sleep(1)
    behind = asyncio.create_task(seen.call(Callee("behind")))
    await asyncio.sleep(1)
    cancelled.cancel()
    assert await behind == "behind"
    assert now() == pytest.approx(10.0)
    assert cancelled.cancelled()


@scenario
async def test_a_waiter_cancelled_in_the_moment_of_its_turn_loses_nothing() -> None:
    seen = Observed(Pace(rate=1, per=10))
    await seen.call(Callee("first"))
    unlucky = asyncio.create_task(seen.call(Callee("never")))
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_at(10.0, unlucky.cancel)
    behind = asyncio.create_task(seen.call(Callee("behind")))
    await asyncio.wait([unlucky, behind])
    assert behind.result() == "behind"
    assert unlucky.cancelled()
    assert now() < 10.1


@scenario
async def test_a_share_that_ends_in_the_queue_is_a_refusal() -> None:
    """It expected its turn in time, but a turn that was to come back did not."""
    pace = Pace(rate=1, per=10)
    seen = Observed(Timeout(attempt=None), pace, Fallback(Callee("b")), idempotent=True, deadline=30)
    await seen.call(Callee("first"))
    waiting = asyncio.create_task(seen.call(Callee("never")))
    await asyncio.sleep(0)
    # Somebody takes the turn directly, as a call on another loop's thread might: the waiter's comes later.
    pace._limiters["a"]._level += 1.0
    assert await waiting == "b"
    assert now() == 15.0
    assert isinstance(seen.calls[-1].record.errors[0], RateLimited)


@scenario
async def test_targets_have_turns_of_their_own() -> None:
    pace = Pace(rate=1, per=10)
    await Observed(pace, target="a").call(Callee("ok"))
    await Observed(pace, target="b").call(Callee("ok"))
    assert now() == 0.0


def test_a_new_loop_begins_with_a_full_bucket() -> None:
    pace = Pace(rate=1, per=100)

    async def one() -> float:
        await Observed(pace).call(Callee("ok"))
        return now()

    assert [run(one), run(one)] == [0.0, 0.0]


@scenario
async def test_the_limiter_of_the_pinned_aiolimiter_behaves_as_we_rely_on() -> None:
    limiter = PaceLimiter(2, 20)
    await limiter.acquire()
    await limiter.acquire()
    assert not limiter.has_capacity()
    assert not limiter.has_waiters()
    assert limiter.wait_for_turn() == pytest.approx(10.0)
    waiting = asyncio.create_task(limiter.acquire())
    await asyncio.sleep(0)
    assert limiter.has_waiters()
    assert limiter.wait_for_turn() == pytest.approx(20.0)
    limiter.give_back()
    await waiting
    assert now() == 0.0
    assert not limiter.has_waiters()
    for _ in range(5):
        limiter.give_back()
    assert limiter.has_capacity(2)
    assert not limiter.has_capacity(2.001)
    assert limiter.wait_for_turn() == 0.0


@scenario
async def test_many_targets_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentrt.middleware.pace.MAX_TARGETS", 5)
    pace = Pace(rate=1, per=1)
    for index in range(9):
        await Observed(pace, target=f"target-{index}").call(Callee("ok"))
    assert list(pace._limiters) == [f"target-{index}" for index in range(4, 9)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0}, "rate must be a number more than 0, not 0"),
        ({"rate": "x"}, "rate must be a number more than 0, not 'x'"),
        ({"rate": 1, "per": 0}, "per must be a number of seconds more than 0, not 0"),
        ({"rate": 5, "burst": 0.5}, "burst must be a number of at least 1, not 0.5"),
        ({"rate": 0.5}, "burst must be a number of at least 1, not 0.5"),
    ],
    ids=str,
)
def test_bad_options_are_refused_with_name_range_and_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Pace(**options)
    assert str(caught.value) == message
