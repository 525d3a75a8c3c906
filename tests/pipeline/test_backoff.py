"""Backoff: growth, caps, jitter after the cap, and what bad options say."""

from __future__ import annotations

import math
from typing import Any

import pytest

from agentrt.errors import ConfigError
from agentrt.middleware.backoff import Backoff, after_throttling
from agentrt.middleware.retry import Retry


def backoff(growth: Any = "exponential", **options: Any) -> Backoff:
    settings: dict[str, Any] = {"initial": 1.0, "maximum": 30.0, "jitter": "none"} | options
    return Backoff(growth, **settings)


@pytest.mark.parametrize(
    ("growth", "delays"),
    [
        ("exponential", [1, 2, 4, 8, 16, 30, 30]),
        ("linear", [1, 2, 3, 4, 5, 6, 7]),
        ("constant", [1, 1, 1, 1, 1, 1, 1]),
        (lambda n: n * n, [1, 4, 9, 16, 25, 30, 30]),
        (lambda n: -5, [0, 0, 0, 0, 0, 0, 0]),
    ],
)
def test_each_growth_is_capped(growth: Any, delays: list[float]) -> None:
    waits = backoff(growth)
    assert [waits.delay(n) for n in range(1, 8)] == delays


@pytest.mark.parametrize("n", [64, 65, 1100, 10**6])
def test_a_late_attempt_does_not_overflow(n: int) -> None:
    assert backoff("exponential").delay(n) == 30.0
    assert backoff("linear").delay(n) == 30.0


def test_full_jitter_is_drawn_after_the_cap() -> None:
    draws = iter([0.0, 0.25, 0.5, 1.0])
    waits = backoff(jitter="full", random=lambda: next(draws))
    # Attempt 10 is far beyond the cap: the clients still spread over all of it.
    assert [waits.delay(10) for _ in range(4)] == [0.0, 7.5, 15.0, 30.0]


def test_full_jitter_spreads_over_the_whole_range() -> None:
    waits = backoff(jitter="full")
    drawn = [waits.delay(3) for _ in range(2000)]
    assert all(0.0 <= seconds <= 4.0 for seconds in drawn)
    assert min(drawn) < 0.4
    assert max(drawn) > 3.6


def test_decorrelated_lies_between_the_first_delay_and_three_times_the_last() -> None:
    low, high = backoff("decorrelated", random=lambda: 0.0), backoff("decorrelated", random=lambda: 1.0)
    assert low.delay(1) == low.delay(5, previous=7.0) == 1.0
    assert high.delay(1) == 3.0
    assert high.delay(2, previous=3.0) == 9.0
    assert high.delay(4, previous=27.0) == 30.0
    assert high.delay(4, previous=0.0) == 1.0


def test_the_longest_first_wait_is_what_the_pipeline_warns_by() -> None:
    assert Retry().longest_first_backoff() == 1.0
    assert Retry(backoff="decorrelated").longest_first_backoff() == 3.0
    assert Retry(backoff=lambda n: 12.0).longest_first_backoff() == 12.0
    assert Retry(initial_delay=5, max_delay=5).longest_first_backoff() == 5.0


@pytest.mark.parametrize(("asked", "latest"), [(10.0, 11.0), (60.0, 62.0), (1.0, 1.1)])
def test_after_throttling_is_never_early_and_a_little_late(asked: float, latest: float) -> None:
    assert after_throttling(asked, lambda: 0.0) == asked
    assert after_throttling(asked, lambda: 1.0) == pytest.approx(latest)
    assert asked <= after_throttling(asked) <= latest


SECONDS = "must be a number of seconds at least 0, not"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"backoff": "fibonacci"},
            "backoff must be one of 'exponential', 'linear', 'constant', 'decorrelated', not 'fibonacci'",
        ),
        ({"initial_delay": -1}, f"initial_delay {SECONDS} -1"),
        ({"initial_delay": math.inf}, f"initial_delay {SECONDS} inf"),
        ({"max_delay": "x"}, f"max_delay {SECONDS} 'x'"),
        ({"max_delay": 0.5}, "max_delay must be at least initial_delay (1 s), not 0.5"),
        ({"jitter": "equal"}, "jitter must be one of 'full', 'none', not 'equal'"),
        ({"max_attempts": 0}, "max_attempts must be a whole number of at least 1, not 0"),
        ({"max_attempts": 1.5}, "max_attempts must be a whole number of at least 1, not 1.5"),
        ({"max_retry_after": -1}, f"max_retry_after {SECONDS} -1"),
        ({"budget": 5}, "budget must be a RetryBudget or None, not 5"),
        ({"retry_on": "x"}, "retry_on must be exception types or a function of the error, not 'x'"),
        ({"retry_on": (ValueError, 3)}, "retry_on must be exception types or a function of the error, not "),
        ({"retry_on": int}, "retry_on must be exception types or a function of the error, not <class 'int'>"),
        ({"retry_on": ()}, "retry_on must be exception types or a function of the error, not ()"),
        ({"retry_result": 3}, "retry_result must be a function of the result, not 3"),
    ],
    ids=str,
)
def test_bad_options_are_refused_with_name_range_and_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Retry(**options)
    assert str(caught.value).startswith(message)


def test_no_delay_at_all_is_allowed() -> None:
    assert Retry(initial_delay=0, max_delay=0, max_retry_after=0).longest_first_backoff() == 0.0
