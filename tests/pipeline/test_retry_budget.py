"""RetryBudget: retries stay a part of the traffic, per target and window."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agentrt.errors import ConfigError, TransientError
from agentrt.middleware.bulkhead import Bulkhead
from agentrt.middleware.fallback import Fallback
from agentrt.middleware.retry import Retry
from agentrt.middleware.retry_budget import RetryBudget
from agentrt.middleware.timeout import Timeout
from pipeline.doubles import HANG, Callee, Observed, Slow, now, scenario


def retrying(budget: RetryBudget | None, *, attempts: int = 2) -> Retry:
    return Retry(max_attempts=attempts, initial_delay=0, budget=budget)


async def retries_until_refused(seen: Observed, *, most: int = 100) -> int:
    """How many calls that always fail get a retry before one gets none."""
    for count in range(most):
        callee = Callee(TransientError("x"))
        await seen.failure(callee)
        if callee.calls == 1:
            return count
    return most


@scenario
async def test_the_minimum_is_always_allowed_and_no_more() -> None:
    seen = Observed(retrying(RetryBudget(ratio=0.0, minimum=3)), idempotent=True)
    assert await retries_until_refused(seen) == 3


@scenario
async def test_an_exhausted_budget_gives_the_last_error_itself_marked() -> None:
    seen = Observed(retrying(RetryBudget(ratio=0.0, minimum=0)), idempotent=True)
    error = TransientError("x")
    assert await seen.failure(Callee(error)) is error
    assert error.retry_budget_exhausted is True  # type: ignore[attr-defined]
    assert error.__notes__ == ["not retried: the retry budget of this target is exhausted"]


@scenario
async def test_an_error_without_room_for_a_mark_still_gets_the_note() -> None:
    class Frozen(ConnectionError):
        def __setattr__(self, name: str, value: Any) -> None:
            if not name.startswith("__"):
                raise AttributeError(name)
            super().__setattr__(name, value)

    seen = Observed(retrying(RetryBudget(ratio=0.0, minimum=0)), idempotent=True)
    error = Frozen()
    assert await seen.failure(Callee(error)) is error
    assert "budget" in error.__notes__[0]


@scenario
async def test_an_exhausted_budget_leads_to_the_next_target() -> None:
    seen = Observed(retrying(RetryBudget(ratio=0, minimum=0)), Fallback(Callee("b")), idempotent=True)
    assert await seen.call(Callee(TransientError("x"))) == "b"


@scenario
async def test_the_ratio_is_of_first_attempts_good_and_bad() -> None:
    seen = Observed(retrying(RetryBudget(ratio=0.2, minimum=0)), idempotent=True)
    for _ in range(20):
        await seen.call(Callee("ok"))
    # Call number k brings the first attempts to 20 + k; its retry needs fewer than 0.2 x (20 + k) made before.
    assert await retries_until_refused(seen) == 6


@scenario
async def test_retries_are_no_first_attempts() -> None:
    seen = Observed(retrying(RetryBudget(ratio=0.5, minimum=0), attempts=1000), idempotent=True)
    callee = Callee(TransientError("x"))
    for _ in range(10):
        await seen.failure(callee)
    assert callee.calls - 10 <= 5


@scenario
async def test_after_the_window_the_budget_is_fresh() -> None:
    seen = Observed(retrying(RetryBudget(ratio=0.0, per=60, minimum=3)), idempotent=True)
    assert await retries_until_refused(seen) == 3
    await asyncio.sleep(56)
    assert await retries_until_refused(seen) == 0
    await asyncio.sleep(5)
    assert await retries_until_refused(seen) == 3


@scenario
async def test_old_traffic_earns_nothing() -> None:
    first = Callee(TransientError("x"))
    seen = Observed(retrying(RetryBudget(ratio=0.5, per=10, minimum=0)), idempotent=True)
    for _ in range(50):
        await seen.call(Callee("ok"))
    await asyncio.sleep(11)
    await seen.failure(first)
    assert first.calls == 2  # 1 first attempt x 0.5 allows the retry while none has been made ...
    await seen.failure(first)
    assert first.calls == 3  # ... but not a second one


@scenario
async def test_each_target_has_its_own_budget_and_a_fallbacks_first_attempt_spends_nothing() -> None:
    budget = RetryBudget(ratio=0.0, minimum=1)
    first, second = Callee(TransientError("x")), Callee(TransientError("y"))
    seen = Observed(retrying(budget), Fallback(second), idempotent=True)
    await seen.failure(first)
    assert (first.calls, second.calls) == (2, 2)
    await seen.failure(first)
    assert (first.calls, second.calls) == (3, 3)


@scenario
async def test_a_budget_can_be_shared_between_stages() -> None:
    budget = RetryBudget(ratio=0.0, minimum=1)
    assert await retries_until_refused(Observed(retrying(budget), idempotent=True)) == 1
    assert await retries_until_refused(Observed(retrying(budget), idempotent=True)) == 0


@scenario
async def test_no_budget_is_no_limit() -> None:
    seen = Observed(retrying(None), idempotent=True)
    assert await retries_until_refused(seen, most=50) == 50


@scenario
async def test_a_cancelled_call_is_no_traffic_and_spends_nothing() -> None:
    budget = RetryBudget(ratio=10.0, minimum=0)
    seen = Observed(retrying(budget), idempotent=True)
    for _ in range(5):
        task = asyncio.create_task(seen.call(Callee(HANG)))
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.wait([task])
    assert budget.of("a").firsts == 0


@scenario
async def test_calls_that_we_refused_earn_no_retries() -> None:
    budget = RetryBudget(ratio=1.0, minimum=0)
    bulkhead = Bulkhead(limit=1)
    seen = Observed(Timeout(), bulkhead, retrying(budget), idempotent=True)
    holder = asyncio.create_task(seen.call(Callee(Slow(1))))
    await asyncio.sleep(0.5)
    for _ in range(20):
        await seen.failure(Callee("never"))
    assert budget.of("a").firsts == 0
    await holder
    assert budget.of("a").firsts == 1


@scenario
async def test_streams_count_when_they_commit() -> None:
    budget = RetryBudget(ratio=1.0, minimum=0)
    seen = Observed(retrying(budget), idempotent=True)
    async with seen.stream(Callee([1, 2]).stream) as stream:
        assert budget.of("a").firsts == 1
        assert [item async for item in stream] == [1, 2]
    assert budget.of("a").firsts == 1


@scenario
async def test_a_retry_that_could_not_start_in_time_spends_nothing() -> None:
    budget = RetryBudget(ratio=0.0, minimum=1)
    seen = Observed(
        Timeout(attempt=None),
        Retry(initial_delay=5, jitter="none", budget=budget),
        idempotent=True,
        deadline=7,
    )
    await seen.failure(Callee(Slow(3, TransientError("x"))))
    assert now() == 3.0
    assert budget.of("a").retries == 0


def test_many_targets_are_bounded() -> None:
    budget = RetryBudget()
    for index in range(10_050):
        budget.of(f"target-{index}")
    assert len(budget.ledgers) == 10_000
    assert "target-0" not in budget.ledgers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": -0.1}, "ratio must be from 0 to 10, not -0.1"),
        ({"ratio": 11}, "ratio must be from 0 to 10, not 11"),
        ({"ratio": "x"}, "ratio must be from 0 to 10, not 'x'"),
        ({"per": 0}, "per must be a number of seconds more than 0, not 0"),
        ({"minimum": -1}, "minimum must be a whole number of at least 0, not -1"),
    ],
    ids=str,
)
def test_bad_options_are_refused_with_name_range_and_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RetryBudget(**options)
    assert str(caught.value) == message


def test_a_budget_shows_its_options() -> None:
    assert repr(RetryBudget()) == "RetryBudget(ratio=0.2, per=60, minimum=10)"
