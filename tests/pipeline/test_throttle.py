"""Throttle: one gate per host and credential, closed for as long as the host asked."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agentrt.call import Refusal, Retrying
from agentrt.errors import ConfigError, RateLimited, ThrottledError, TransientError
from agentrt.middleware.fallback import Fallback
from agentrt.middleware.retry import Retry
from agentrt.middleware.retry_budget import RetryBudget
from agentrt.middleware.throttle import Throttle
from agentrt.middleware.timeout import Timeout
from pipeline.doubles import Callee, Observed, entries, now, scenario


def gate(spread: float = 0.0, **options: Any) -> Throttle:
    return Throttle(random=lambda: spread, **options)


async def close(throttle: Throttle, seconds: float | None, *, target: str = "a") -> None:
    await Observed(throttle, target=target).failure(Callee(ThrottledError("x", retry_after=seconds)))


@scenario
async def test_a_throttled_answer_closes_the_gate_for_all_calls() -> None:
    throttle = gate()
    await close(throttle, 20)
    callee = Callee("ok")
    await asyncio.gather(*(Observed(throttle).call(callee) for _ in range(3)))
    assert callee.started == [20.0, 20.0, 20.0]


@scenario
async def test_never_earlier_plus_a_tenth_at_most_two_seconds() -> None:
    for asked, spread, opens in ((20.0, 1.0, 22.0), (60.0, 1.0, 62.0), (10.0, 0.5, 10.5)):
        throttle = gate(spread)
        began = now()
        await close(throttle, asked)
        callee = Callee("ok")
        await Observed(throttle).call(callee)
        assert callee.started[0] - began == pytest.approx(opens)


@pytest.mark.parametrize("asked", [None, 0.0, -3.0, float("nan")])
@scenario
async def test_without_a_readable_time_the_gate_stays_open(asked: float | None) -> None:
    throttle = gate()
    await close(throttle, asked)
    await Observed(throttle).call(Callee("ok"))
    assert now() == 0.0


@scenario
async def test_other_errors_do_not_close_it() -> None:
    throttle = gate()
    await Observed(throttle).failure(Callee(TransientError("503", retry_after=20)))
    await Observed(throttle).call(Callee("ok"))
    assert now() == 0.0


@scenario
async def test_the_longest_closure_stands() -> None:
    throttle = gate()

    async def late() -> None:
        # Both were under way when the gate closed.
        await asyncio.sleep(1)
        raise ThrottledError("x", retry_after=5)

    underway = asyncio.create_task(Observed(throttle).failure(late))
    await asyncio.sleep(0)
    await close(throttle, 20)
    await underway
    callee = Callee("ok")
    await Observed(throttle).call(callee)
    assert callee.started == [20.0]


@scenario
async def test_a_gate_closed_anew_meanwhile_is_waited_for_again() -> None:
    throttle = gate()

    async def late() -> None:
        await asyncio.sleep(10)
        raise ThrottledError("x", retry_after=30)

    underway = asyncio.create_task(Observed(throttle).failure(late))
    await asyncio.sleep(0)
    await close(throttle, 20)
    seen, callee = Observed(throttle), Callee("ok")
    await seen.call(callee)
    await underway
    assert callee.started == [40.0]
    assert [(w.stage, w.seconds) for w in seen.record.waits] == [("throttle", 40.0)]


@pytest.mark.parametrize(("asked", "waits"), [(60.0, True), (60.001, False)])
@scenario
async def test_beyond_max_retry_after_a_call_is_refused_at_once(asked: float, waits: bool) -> None:
    """Inclusive, and compared before the jitter."""
    throttle = gate(1.0)
    await close(throttle, asked)
    seen = Observed(throttle, Fallback(Callee("b", name="b")), idempotent=True)
    assert await seen.call(Callee("a")) == ("a" if waits else "b")
    if not waits:
        (error,) = seen.record.errors
        assert isinstance(error, RateLimited)
        assert (error.scope, error.retry_after, error.executed) == ("target", pytest.approx(asked), False)
        assert [r.stage for r in entries(seen.record, Refusal)] == ["throttle"]
        assert now() == 0.0


@scenario
async def test_what_counts_is_the_rest_of_the_closure() -> None:
    throttle = gate()
    await close(throttle, 100)
    assert isinstance(await Observed(throttle).failure(Callee("x")), RateLimited)
    await asyncio.sleep(40)
    assert await Observed(throttle).call(Callee("ok")) == "ok"
    assert now() == 100.0


@pytest.mark.parametrize(("deadline", "waits"), [(41.0, True), (40.0, False), (39.0, False)])
@scenario
async def test_a_closure_that_ends_with_or_after_the_share_is_refused_at_once(
    deadline: float, waits: bool
) -> None:
    throttle = gate()
    await close(throttle, 20)
    seen = Observed(
        Timeout(attempt=None), throttle, Fallback(Callee("b", name="b")), idempotent=True, deadline=deadline
    )
    assert await seen.call(Callee("a")) == ("a" if waits else "b")
    assert now() == (20.0 if waits else 0.0)


@scenario
async def test_the_jitter_leaves_time_for_the_attempt() -> None:
    """A closure that ends just before the share: the spread must not eat what is left of it."""
    throttle = gate(1.0)
    await close(throttle, 19)
    seen = Observed(Timeout(attempt=None), throttle, deadline=20)
    assert await seen.call(Callee("ok")) == "ok"
    assert 19.0 <= now() < 20.0


@scenario
async def test_gates_are_per_target_unless_a_key_says_otherwise() -> None:
    throttle = gate()
    await close(throttle, 20, target="host/model-1")
    await Observed(throttle, target="host/model-2").call(Callee("ok"))
    assert now() == 0.0

    throttle = gate(key=lambda call: call.target.split("/")[0])
    await close(throttle, 20, target="host/model-1")
    await Observed(throttle, target="other/model").call(Callee("ok"))
    assert now() == 0.0
    await Observed(throttle, target="host/model-2").call(Callee("ok"))
    assert now() == 20.0


@scenario
async def test_a_nested_throttled_answer_closes_only_its_own_gate() -> None:
    inner_gate, outer_gate = gate(), gate()
    inner = Observed(Timeout(), inner_gate, target="inner")
    outer = Observed(Timeout(), outer_gate, target="outer")
    await outer.failure(inner.call, Callee(ThrottledError("x", retry_after=20)))
    await Observed(outer_gate, target="outer").call(Callee("ok"))
    assert now() == 0.0
    await Observed(inner_gate, target="inner").call(Callee("ok"))
    assert now() == 20.0


@scenario
async def test_a_retry_waits_at_the_gate_once_and_spends_budget() -> None:
    budget = RetryBudget(ratio=0.0, minimum=1)
    seen = Observed(gate(), Retry(budget=budget), idempotent=True)
    callee = Callee(ThrottledError("x", retry_after=20), "ok")
    assert await seen.call(callee) == "ok"
    assert callee.started == [0.0, 20.0]
    assert [r.delay for r in entries(seen.record, Retrying)] == [0.0]
    assert [(w.stage, w.seconds) for w in seen.record.waits] == [("throttle", 20.0)]
    assert budget.of("a").retries == 1


@scenario
async def test_a_closure_too_long_to_wait_for_takes_the_next_target_at_once() -> None:
    seen = Observed(gate(), Retry(), Fallback(Callee("b", name="b")), idempotent=True)
    callee = Callee(ThrottledError("x", retry_after=61), "never")
    assert await seen.call(callee) == "b"
    assert now() == 0.0
    assert callee.calls == 1


@scenario
async def test_throttling_that_goes_on_gives_the_last_error_after_all_attempts() -> None:
    errors = [ThrottledError(str(n), retry_after=10) for n in range(3)]
    callee = Callee(*errors)
    assert await Observed(gate(), Retry(), idempotent=True).failure(callee) is errors[2]
    assert callee.started == [0.0, 10.0, 20.0]


@scenario
async def test_a_throttled_stream_closes_the_gate_too() -> None:
    throttle = gate()
    await Observed(throttle).broken_stream(Callee([ThrottledError("x", retry_after=20)]).stream)
    assert await Observed(throttle).collect(Callee([1]).stream) == [1]
    assert now() == 20.0


@scenario
async def test_old_closures_are_forgotten() -> None:
    throttle = gate()
    for index in range(1001):
        await close(throttle, 20, target=f"target-{index}")
    await asyncio.sleep(30)
    await close(throttle, 20, target="one more")
    assert len(throttle._closures) == 1
    # Passing an open gate forgets it as well.
    await asyncio.sleep(30)
    await Observed(throttle, target="one more").call(Callee("ok"))
    assert not throttle._closures


def test_a_bad_limit_is_refused_with_name_range_and_value() -> None:
    with pytest.raises(ConfigError) as caught:
        Throttle(max_retry_after=-1)
    assert str(caught.value) == "max_retry_after must be a number of seconds at least 0, not -1"
