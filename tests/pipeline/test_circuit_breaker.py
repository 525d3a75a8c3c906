"""CircuitBreaker: windows, probes, generations, manual control, the bounded registry."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from agentrt.call import Attempt, CircuitChange, Refusal
from agentrt.errors import CircuitOpen, ConfigError, PermanentError, ThrottledError, TransientError
from agentrt.middleware.circuit_breaker import CircuitBreaker, exponential_break
from agentrt.middleware.fallback import Fallback
from agentrt.middleware.retry import Retry
from agentrt.middleware.timeout import Timeout
from agentrt.testing import run
from pipeline.doubles import HANG, Callee, Observed, Slow, entries, now, scenario

GOOD = Callee("ok")
BAD = Callee(TransientError("bad"))


async def feed(seen: Observed, outcomes: str) -> None:
    """Play outcomes: g(ood), b(ad), i(gnored), p(ermanent: the request's fault)."""
    errors: dict[str, Any] = {
        "b": TransientError("bad"),
        "i": ThrottledError("ignored"),
        "p": PermanentError("request"),
    }
    for letter in outcomes:
        if letter == "g":
            await seen.call(GOOD)
        else:
            await seen.failure(Callee(errors[letter]))


# --- the failure rate ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [
        ("bb", "closed"),  # fewer than the minimum
        ("bbb", "closed"),
        ("bbbb", "open"),
        ("gbgb", "open"),  # exactly at the threshold
        ("gggb", "closed"),
        ("bbbg", "closed"),  # a success that completes the minimum never opens
        ("bbbgb", "open"),
        ("bgbggggggb", "closed"),
        ("bbbiiiii", "closed"),  # ignored outcomes are no calls
        ("bbpp", "closed"),
        ("ppbb", "open"),
    ],
)
@pytest.mark.parametrize("window", [{"window_calls": 10}, {"window_seconds": 60.0}], ids=["count", "time"])
@scenario
async def test_the_rate_opens_the_circuit(outcomes: str, state: str, window: dict[str, Any]) -> None:
    breaker = CircuitBreaker(failure_rate=0.5, minimum_calls=4, **window)
    await feed(Observed(breaker), outcomes)
    assert breaker.state("a") == state


@scenario
async def test_a_count_window_forgets_what_falls_out() -> None:
    breaker = CircuitBreaker(failure_rate=0.5, minimum_calls=4, window_calls=4)
    seen = Observed(breaker)
    await feed(seen, "bggg" + "bggg" * 5)
    assert breaker.state("a") == "closed"
    await feed(seen, "bb")  # the last four: g g b b
    assert breaker.state("a") == "open"


@scenario
async def test_ignored_outcomes_evict_nothing_from_a_count_window() -> None:
    breaker = CircuitBreaker(failure_rate=1.0, minimum_calls=2, window_calls=2)
    await feed(Observed(breaker), "b" + "i" * 10 + "b")
    assert breaker.state("a") == "open"


@scenario
async def test_a_time_window_forgets_in_slices() -> None:
    breaker = CircuitBreaker(failure_rate=0.5, minimum_calls=2, window_seconds=60)
    seen = Observed(breaker)
    await feed(seen, "b")
    await asyncio.sleep(53)
    await feed(seen, "ggb")
    assert breaker.state("a") == "open"  # 2 of 4

    breaker = CircuitBreaker(failure_rate=0.5, minimum_calls=2, window_seconds=60)
    seen = Observed(breaker)
    await feed(seen, "b")
    await asyncio.sleep(60)
    await feed(seen, "ggb")
    assert breaker.state("a") == "closed"  # 1 of 3


@scenario
async def test_failures_interleaved_with_successes_open_it() -> None:
    breaker = CircuitBreaker(failure_rate=0.5, window_calls=10)
    await feed(Observed(breaker), "gbbbbgbbbb")
    assert breaker.state("a") == "open"


# --- consecutive failures ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [("bb", "closed"), ("bbb", "open"), ("bbgbb", "closed"), ("bbib", "open"), ("bbpbb", "closed")],
)
@scenario
async def test_consecutive_failures_open_it(outcomes: str, state: str) -> None:
    breaker = CircuitBreaker(failure_threshold=3)
    await feed(Observed(breaker), outcomes)
    assert breaker.state("a") == state


@scenario
async def test_cancelled_calls_do_not_reset_a_streak() -> None:
    breaker = CircuitBreaker(failure_threshold=2)
    seen = Observed(breaker)
    await feed(seen, "b")
    task = asyncio.create_task(seen.call(Callee(HANG)))
    await asyncio.sleep(1)
    task.cancel()
    await asyncio.wait([task])
    assert breaker.state("a") == "closed"
    await feed(seen, "b")
    assert breaker.state("a") == "open"


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [("sss", "open"), ("bsb", "open"), ("sgss", "closed"), ("ssi", "closed"), ("ssis", "open")],
)
@scenario
async def test_a_slow_call_is_one_of_the_consecutive_failures(outcomes: str, state: str) -> None:
    breaker = CircuitBreaker(failure_threshold=3, slow_call=5)
    seen = Observed(breaker)
    for outcome in outcomes:
        if outcome == "s":
            await seen.call(Callee(Slow(5)))
        else:
            await feed(seen, outcome)
    assert breaker.state("a") == state


# --- slow calls ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "state"), [(4.99, "closed"), (5.0, "open"), (6.0, "open")])
@pytest.mark.parametrize("with_timeout", [True, False])
@scenario
async def test_slow_calls_open_it(seconds: float, state: str, with_timeout: bool) -> None:
    breaker = CircuitBreaker(slow_call=5, slow_rate=0.5, minimum_calls=2, window_calls=10)
    seen = Observed(*([Timeout()] if with_timeout else []), breaker)
    await feed(seen, "g")
    await seen.call(Callee(Slow(seconds)))
    assert breaker.state("a") == state


@scenario
async def test_slow_rate_is_all_calls_unless_given() -> None:
    breaker = CircuitBreaker(slow_call=5, minimum_calls=2, window_calls=4)
    seen = Observed(breaker)
    await feed(seen, "g")
    for _ in range(3):
        await seen.call(Callee(Slow(6)))
    assert breaker.state("a") == "closed"
    await seen.call(Callee(Slow(6)))
    assert breaker.state("a") == "open"


@scenario
async def test_a_slow_call_that_fails_counts_as_both() -> None:
    breaker = CircuitBreaker(slow_call=5, slow_rate=1.0, failure_rate=1.0, minimum_calls=1, window_calls=2)
    await Observed(breaker).failure(Callee(Slow(6, TransientError("x"))))
    assert breaker.state("a") == "open"


@scenario
async def test_time_in_a_queue_is_not_the_targets() -> None:
    from agentrt.middleware.bulkhead import Bulkhead

    breaker = CircuitBreaker(slow_call=5, minimum_calls=1)
    seen = Observed(Timeout(), breaker, Bulkhead(limit=1, queue=9))
    await asyncio.gather(*(seen.call(Callee(Slow(4))) for _ in range(4)))
    assert now() == 16.0
    assert breaker.state("a") == "closed"


@scenario
async def test_a_streams_duration_runs_to_its_first_item() -> None:
    breaker = CircuitBreaker(slow_call=5, slow_rate=0.5, minimum_calls=1)
    seen = Observed(Timeout(), breaker)
    await seen.collect(Callee([Slow(4, 1), Slow(50, 2)]).stream)
    assert breaker.state("a") == "closed"
    await seen.collect(Callee([Slow(5, 1)]).stream)
    assert breaker.state("a") == "open"


@scenario
async def test_a_refusal_of_a_breaker_that_watches_for_slow_calls_is_no_attempt() -> None:
    breaker = CircuitBreaker(slow_call=5)
    breaker.isolate("a")
    seen = Observed(Timeout(), breaker)
    await seen.failure(GOOD)
    assert seen.record.attempts == []


# --- open, half-open, closed ---------------------------------------------------------------------------


async def opened(**options: Any) -> tuple[CircuitBreaker, Observed]:
    options = {"failure_threshold": 1, "reset_timeout": 30.0} | options
    breaker = CircuitBreaker(**options)
    seen = Observed(Timeout(attempt=None), breaker)
    await feed(seen, "b")
    assert breaker.state("a") == "open"
    return breaker, seen


@scenario
async def test_open_refuses_with_the_time_left_and_without_calling() -> None:
    breaker, seen = await opened()
    await asyncio.sleep(10)
    callee = Callee("never")
    error = await seen.failure(callee)
    assert isinstance(error, CircuitOpen)
    assert error.retry_after == 20.0
    assert error.executed is False
    assert "a: the circuit is open for another 20 s" in str(error)
    assert callee.calls == 0
    assert [(r.stage, r.error) for r in entries(seen.record, Refusal)] == [("circuit_breaker", error)]
    assert breaker.available("a") is False


@scenario
async def test_a_call_at_exactly_the_reset_timeout_is_a_probe() -> None:
    breaker, seen = await opened()
    await asyncio.sleep(30)
    assert breaker.available("a") is True
    assert breaker.state("a") == "open"  # looking changed nothing
    await feed(seen, "g")
    assert breaker.state("a") == "closed"


@scenario
async def test_reading_the_state_changes_nothing() -> None:
    breaker, seen = await opened()
    await asyncio.sleep(100)
    for _ in range(3):
        assert breaker.state("a") == "open"
        assert breaker.states() == {"a": "open"}
        assert breaker.available("a")
    assert breaker.state("unknown") == "closed"
    assert breaker.available("unknown")
    assert breaker.states() == {"a": "open"}
    await feed(seen, "g")


@scenario
async def test_a_failed_probe_opens_it_again_at_once() -> None:
    breaker, seen = await opened(success_threshold=2)
    await asyncio.sleep(30)
    await feed(seen, "gb")
    assert breaker.state("a") == "open"
    assert isinstance(await seen.failure(GOOD), CircuitOpen)


@scenario
async def test_it_takes_the_threshold_of_good_probes_after_each_break() -> None:
    breaker, seen = await opened(success_threshold=3)
    await asyncio.sleep(30)
    await feed(seen, "gg")
    assert breaker.state("a") == "half-open"
    await feed(seen, "b")
    await asyncio.sleep(30)
    await feed(seen, "gg")
    assert breaker.state("a") == "half-open"  # the good ones of before do not count
    await feed(seen, "g")
    assert breaker.state("a") == "closed"


@scenario
async def test_a_hundred_callers_at_half_open_and_only_as_many_probes() -> None:
    _, seen = await opened(probes=3, success_threshold=3, max_half_open_wait=100)
    await asyncio.sleep(30)
    callee = Callee(Slow(5, "ok"))
    results = await asyncio.gather(*(seen.call(callee) for _ in range(100)), return_exceptions=True)
    assert results.count("ok") == callee.calls == 3
    refusals = [result for result in results if isinstance(result, CircuitOpen)]
    assert len(refusals) == 97
    assert {refusal.retry_after for refusal in refusals} == {100.0}


@scenario
async def test_a_finished_good_probe_frees_its_permit() -> None:
    breaker, seen = await opened(probes=1, success_threshold=3)
    await asyncio.sleep(30)
    await feed(seen, "g")
    task = asyncio.create_task(seen.call(Callee(Slow(5))))
    await asyncio.sleep(1)
    assert isinstance(await seen.failure(GOOD), CircuitOpen)
    await task
    await feed(seen, "g")
    assert breaker.state("a") == "closed"


@pytest.mark.parametrize("outcome", ["i", "cancel"])
@scenario
async def test_an_ignored_probe_frees_its_permit_and_counts_neither_way(outcome: str) -> None:
    breaker, seen = await opened()
    await asyncio.sleep(30)
    for _ in range(3):
        if outcome == "i":
            await feed(seen, "i")
        else:
            task = asyncio.create_task(seen.call(Callee(HANG)))
            await asyncio.sleep(1)
            task.cancel()
            await asyncio.wait([task])
        assert breaker.state("a") == "half-open"
    await feed(seen, "g")
    assert breaker.state("a") == "closed"


@pytest.mark.parametrize(("wait", "written_off"), [(None, 30.0), (7.0, 7.0)])
@scenario
async def test_a_probe_that_never_ends_is_written_off(wait: float | None, written_off: float) -> None:
    breaker, seen = await opened(max_half_open_wait=wait)
    await asyncio.sleep(30)
    lost = asyncio.create_task(seen.call(Callee(Slow(1000, TransientError("late")))))
    await asyncio.sleep(written_off - 1)
    refusal = await seen.failure(GOOD)
    assert isinstance(refusal, CircuitOpen)
    assert refusal.retry_after == 1.0
    await asyncio.sleep(1)
    await feed(seen, "g")
    assert breaker.state("a") == "closed"
    with pytest.raises(TransientError):
        await lost
    assert breaker.state("a") == "closed"  # its late result is of an earlier generation


@scenario
async def test_only_one_new_probe_takes_the_permit_of_a_lost_one() -> None:
    _, seen = await opened(probes=2, success_threshold=9, max_half_open_wait=10)
    await asyncio.sleep(30)
    lost = [asyncio.create_task(seen.call(Callee(Slow(500)))) for _ in range(2)]
    await asyncio.sleep(10)
    callee = Callee(Slow(3, "ok"))
    results = await asyncio.gather(*(seen.call(callee) for _ in range(20)), return_exceptions=True)
    assert callee.calls == results.count("ok") == 2  # both were overdue
    for task in lost:
        await task


@scenario
async def test_a_late_result_frees_nothing() -> None:
    """The permit of a written-off probe belongs to its successor."""
    breaker, seen = await opened(max_half_open_wait=10, success_threshold=2)
    await asyncio.sleep(30)
    lost = asyncio.create_task(seen.call(Callee(Slow(12, "late"))))
    await asyncio.sleep(10)
    successor = asyncio.create_task(seen.call(Callee(Slow(5, "ok"))))
    await asyncio.sleep(3)
    assert await lost == "late"
    assert isinstance(await seen.failure(GOOD), CircuitOpen)
    assert await successor == "ok"
    assert breaker.state("a") == "half-open"  # one good probe: the late one did not count


@scenario
async def test_a_late_failure_does_not_extend_the_break() -> None:
    breaker = CircuitBreaker(failure_threshold=1, reset_timeout=30)
    seen = Observed(breaker)
    late = asyncio.create_task(seen.failure(Callee(Slow(20, TransientError("late")))))
    await asyncio.sleep(0)
    await feed(seen, "b")
    await late
    await asyncio.sleep(10)
    await feed(seen, "g")
    assert breaker.state("a") == "closed"


@pytest.mark.parametrize("outcome", ["late", TransientError("late")])
@scenario
async def test_a_result_from_before_the_break_decides_nothing_while_half_open(outcome: Any) -> None:
    breaker = CircuitBreaker(failure_threshold=1, reset_timeout=30)
    seen = Observed(breaker)
    late = asyncio.create_task(asyncio.wait_for(seen.call(Callee(Slow(33, outcome))), None))
    await asyncio.sleep(0)
    await feed(seen, "b")
    await asyncio.sleep(30)
    probe = asyncio.create_task(seen.call(Callee(Slow(5, "ok"))))
    await asyncio.wait([late])
    assert breaker.state("a") == "half-open"
    await probe
    assert breaker.state("a") == "closed"
    if isinstance(outcome, Exception):
        assert late.exception() is outcome


@scenario
async def test_the_probes_success_is_not_counted_in_the_new_window() -> None:
    breaker = CircuitBreaker(failure_rate=1.0, minimum_calls=1, window_calls=1, reset_timeout=5)
    seen = Observed(breaker)
    await feed(seen, "b")
    await asyncio.sleep(5)
    await feed(seen, "g")
    assert breaker.state("a") == "closed"
    breaker2 = CircuitBreaker(failure_rate=0.6, minimum_calls=2, window_calls=4, reset_timeout=5)
    seen = Observed(breaker2)
    await feed(seen, "bb")
    await asyncio.sleep(5)
    await feed(seen, "g" + "gbb")  # probe, then 2 of 3; with the probe it would be 2 of 4
    assert breaker2.state("a") == "open"


@scenario
async def test_a_slow_probe_opens_it_again() -> None:
    breaker = CircuitBreaker(failure_rate=1.0, minimum_calls=1, slow_call=5, reset_timeout=30)
    seen = Observed(breaker)
    await feed(seen, "b")
    await asyncio.sleep(30)
    await seen.call(Callee(Slow(6)))
    assert breaker.state("a") == "open"


@scenario
async def test_two_targets_have_two_circuits() -> None:
    breaker = CircuitBreaker(failure_threshold=1)
    await feed(Observed(breaker, target="a"), "b")
    assert await Observed(breaker, target="b").call(GOOD) == "ok"
    assert breaker.states() == {"a": "open", "b": "closed"}


# --- how long a break is -------------------------------------------------------------------------------


@scenario
async def test_a_break_can_grow_with_each_in_a_row() -> None:
    asked: list[int] = []

    def seconds(breaks: int) -> float:
        asked.append(breaks)
        return 10.0 * breaks

    breaker, seen = await opened(reset_timeout=seconds)
    for breaks in (1, 2, 3):
        await asyncio.sleep(10.0 * breaks - 1)
        assert isinstance(await seen.failure(GOOD), CircuitOpen)
        await asyncio.sleep(1)
        await feed(seen, "b")
    await asyncio.sleep(40)
    await feed(seen, "g")
    assert breaker.state("a") == "closed"
    await feed(seen, "b")
    assert asked == [1, 2, 3, 4, 1]


def test_exponential_break_grows_to_its_maximum_with_jitter_on_top() -> None:
    plain = exponential_break(10, factor=3, maximum=100, jitter=0)
    assert [plain(n) for n in (1, 2, 3, 4, 1000)] == [10.0, 30.0, 90.0, 100.0, 100.0]
    jittered = exponential_break(10, maximum=100, jitter=0.5)
    drawn = [jittered(1) for _ in range(200)]
    assert all(10.0 <= seconds <= 15.0 for seconds in drawn)
    assert max(drawn) - min(drawn) > 1.0


# --- by hand, events, the registry ---------------------------------------------------------------------


@scenario
async def test_isolated_refuses_until_closed_by_hand() -> None:
    breaker = CircuitBreaker()
    seen = Observed(breaker)
    breaker.isolate("a")
    await asyncio.sleep(1e5)
    error = await seen.failure(GOOD)
    assert isinstance(error, CircuitOpen)
    assert error.retry_after is None
    assert "by hand" in str(error)
    assert (breaker.state("a"), breaker.available("a")) == ("isolated", False)
    breaker.close("a")
    assert await seen.call(GOOD) == "ok"
    assert breaker.available("a")


@scenario
async def test_isolating_while_calls_run_makes_their_results_stale() -> None:
    breaker = CircuitBreaker(failure_threshold=1)
    seen = Observed(breaker)
    running = asyncio.create_task(seen.failure(Callee(Slow(5, TransientError("x")))))
    await asyncio.sleep(1)
    breaker.isolate("a")
    breaker.close("a")
    await running
    assert breaker.state("a") == "closed"


@scenario
async def test_closing_by_hand_forgets_failures() -> None:
    breaker = CircuitBreaker(failure_threshold=2)
    seen = Observed(breaker)
    await feed(seen, "b")
    breaker.close("a")
    await feed(seen, "b")
    assert breaker.state("a") == "closed"


@scenario
async def test_metrics_only_counts_but_never_opens() -> None:
    breaker = CircuitBreaker(failure_threshold=1)
    seen = Observed(breaker)
    breaker.metrics_only("a")
    await feed(seen, "bbb")
    assert breaker.state("a") == "closed"
    breaker.metrics_only("a", on=False)
    await feed(seen, "b")
    assert breaker.state("a") == "open"
    breaker.metrics_only("a")
    assert breaker.state("a") == "closed"


@scenario
async def test_changes_are_told_to_listeners_the_record_and_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="agentrt.circuit_breaker")
    breaker = CircuitBreaker(failure_threshold=1, reset_timeout=5)
    told: list[tuple[str, str, str]] = []
    breaker.subscribe(lambda target, old, new: told.append((target, old, new)))
    seen = Observed(breaker)
    await feed(seen, "b")
    assert [(c.old, c.new) for c in entries(seen.record, CircuitChange)] == [("closed", "open")]
    await asyncio.sleep(5)
    await feed(seen, "g")
    assert [(c.old, c.new) for c in entries(seen.record, CircuitChange)] == [
        ("open", "half-open"),
        ("half-open", "closed"),
    ]
    assert told == [("a", "closed", "open"), ("a", "open", "half-open"), ("a", "half-open", "closed")]
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING", "INFO"]


@scenario
async def test_a_listener_that_raises_breaks_neither_the_call_nor_the_circuit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    breaker = CircuitBreaker(failure_threshold=1)
    told = []

    def broken(target: str, old: str, new: str) -> None:
        raise RuntimeError("listener")

    breaker.subscribe(broken)
    breaker.subscribe(lambda *change: told.append(change))
    error = TransientError("the real one")
    assert await Observed(breaker).failure(Callee(error)) is error
    assert breaker.state("a") == "open"
    assert told
    assert "listener" in caplog.text


@scenario
async def test_the_registry_forgets_only_circuits_whose_loss_changes_nothing() -> None:
    breaker = CircuitBreaker(failure_threshold=2, max_targets=3)
    await feed(Observed(breaker, target="failing"), "b")
    await feed(Observed(breaker, target="open"), "bb")
    for index in range(10):
        assert await Observed(breaker, target=f"good-{index}").call(GOOD) == "ok"
    assert breaker.states() == {"failing": "closed", "open": "open", "good-9": "closed"}


@pytest.mark.parametrize("window", [{"window_calls": 10}, {"window_seconds": 60.0}, {"failure_threshold": 5}])
@scenario
async def test_a_full_registry_lets_new_targets_through_and_says_so_once(
    window: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    breaker = CircuitBreaker(max_targets=2, **window)
    await feed(Observed(breaker, target="a"), "b")
    await feed(Observed(breaker, target="b"), "b")
    for target in ("c", "d"):
        assert await Observed(breaker, target=target).call(GOOD) == "ok"
    assert set(breaker.states()) == {"a", "b"}
    assert caplog.text.count("max_targets") == 1


@scenario
async def test_a_circuit_isolated_by_hand_is_kept_even_in_a_full_registry() -> None:
    breaker = CircuitBreaker(failure_threshold=2, max_targets=1)
    await feed(Observed(breaker, target="a"), "b")
    breaker.isolate("c")
    with pytest.raises(CircuitOpen):
        await Observed(breaker, target="c").call(GOOD)


@scenario
async def test_what_a_circuit_that_is_not_kept_goes_through_is_not_kept_either() -> None:
    breaker = CircuitBreaker(failure_threshold=1, max_targets=1)
    await feed(Observed(breaker, target="a"), "b")
    for index in range(5):
        await feed(Observed(breaker, target=f"made-up-{index}"), "b")
    assert set(breaker.not_closed) == {"a"}


@scenario
async def test_a_failure_that_aged_out_of_its_window_can_be_forgotten() -> None:
    breaker = CircuitBreaker(max_targets=1, window_seconds=10)
    await feed(Observed(breaker, target="a"), "b")
    await asyncio.sleep(11)
    assert await Observed(breaker, target="b").call(GOOD) == "ok"
    assert breaker.states() == {"b": "closed"}


# --- with retry and fallback ---------------------------------------------------------------------------


@scenario
async def test_a_failure_that_opens_its_own_circuit_goes_on_without_backoff() -> None:
    breaker = CircuitBreaker(failure_threshold=1)
    error = TransientError("the real one")
    callee = Callee(error)
    seen = Observed(breaker, Retry(initial_delay=5, jitter="none"), idempotent=True)
    assert await seen.failure(callee) is error
    assert now() == 0.0
    assert callee.calls == 1


@scenario
async def test_an_open_circuit_is_not_retried_and_leads_straight_to_the_next_target() -> None:
    breaker = CircuitBreaker(failure_threshold=1, reset_timeout=0.001)
    seen = Observed(breaker, Retry(), Fallback(Callee("backup")), idempotent=False)
    breaker.isolate("a")
    assert await seen.call(Callee("never")) == "backup"
    assert now() == 0.0
    assert entries(seen.record, Attempt) == []


@scenario
async def test_a_circuit_that_opens_during_a_backoff_does_not_hide_the_real_failure() -> None:
    breaker = CircuitBreaker(failure_threshold=2)
    error = TransientError("the real one")
    seen = Observed(breaker, Retry(initial_delay=5, jitter="none"), idempotent=True)
    task = asyncio.create_task(seen.failure(Callee(error)))
    await asyncio.sleep(1)
    breaker.isolate("a")
    assert await task is error
    assert now() == 5.0
    assert [type(e) for e in seen.record.errors] == [TransientError, CircuitOpen]


# --- options -------------------------------------------------------------------------------------------

SECONDS = "must be a number of seconds more than 0, not"
RATE = "must be more than 0 and at most 1, not"
COUNT = "must be a whole number of at least 1, not"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"failure_rate": 0}, f"failure_rate {RATE} 0"),
        ({"failure_rate": 1.1}, f"failure_rate {RATE} 1.1"),
        ({"failure_rate": "x"}, f"failure_rate {RATE} 'x'"),
        ({"window_seconds": 0}, f"window_seconds {SECONDS} 0"),
        ({"window_calls": 0}, f"window_calls {COUNT} 0"),
        ({"window_calls": 2.5}, f"window_calls {COUNT} 2.5"),
        ({"minimum_calls": 0}, f"minimum_calls {COUNT} 0"),
        ({"minimum_calls": True}, f"minimum_calls {COUNT} True"),
        (
            {"window_calls": 5},
            "minimum_calls must be at most window_calls (5), not 10: the circuit could never open",
        ),
        ({"failure_threshold": 0}, f"failure_threshold {COUNT} 0"),
        ({"success_threshold": 0}, f"success_threshold {COUNT} 0"),
        ({"reset_timeout": 0}, f"reset_timeout {SECONDS} 0"),
        ({"reset_timeout": None}, f"reset_timeout {SECONDS} None"),
        ({"slow_call": 0}, f"slow_call {SECONDS} 0"),
        ({"slow_call": 1, "slow_rate": 2}, f"slow_rate {RATE} 2"),
        ({"slow_rate": 0.5}, "slow_rate needs slow_call, the number of seconds from which a call is slow"),
        (
            {"failure_threshold": 3, "slow_call": 1, "slow_rate": 0.5},
            (
                "slow_rate has no effect with failure_threshold, which counts consecutive calls that fail or are "
                "slow: leave one of them out"
            ),
        ),
        (
            {"failure_threshold": 3, "window_calls": 20},
            (
                "window_calls has no effect with failure_threshold, which counts consecutive calls that fail or are "
                "slow: leave one of them out"
            ),
        ),
        ({"probes": 0}, f"probes {COUNT} 0"),
        ({"max_half_open_wait": -1}, f"max_half_open_wait {SECONDS} -1"),
        ({"max_targets": 0}, f"max_targets {COUNT} 0"),
    ],
    ids=str,
)
def test_bad_options_are_refused_with_name_range_and_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        CircuitBreaker(**options)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"initial": 0}, f"initial {SECONDS} 0"),
        ({"maximum": 0}, "maximum must be a number of seconds at least 30, not 0"),
        ({"initial": 700.0}, "maximum must be a number of seconds at least 700, not 600.0"),
        ({"factor": 0.5}, "factor must be a number of at least 1, not 0.5"),
        ({"jitter": -0.1}, "jitter must be a number from 0 to 1, not -0.1"),
        ({"jitter": 2}, "jitter must be a number from 0 to 1, not 2"),
    ],
    ids=str,
)
def test_bad_options_of_exponential_break_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        exponential_break(**options)
    assert str(caught.value) == message


def test_a_breaker_can_be_used_on_one_loop_after_another() -> None:
    breaker = CircuitBreaker(failure_threshold=1, reset_timeout=30)

    async def first() -> None:
        await feed(Observed(breaker), "b")

    async def second() -> None:
        assert isinstance(await Observed(breaker).failure(GOOD), CircuitOpen)
        await asyncio.sleep(31)
        assert breaker.available("a")
        await feed(Observed(breaker), "g")

    run(first, start=100.0)
    run(second, start=105.0)
    assert breaker.state("a") == "closed"
