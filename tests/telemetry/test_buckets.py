"""Values that stand for a histogram's: they tell the same count, sum, extremes and buckets."""

from __future__ import annotations

import bisect
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentrt.telemetry.buckets import values_of
from agentrt.telemetry.signals import Histogram

BOUNDS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
NUMBERS = st.lists(st.floats(0.0, 100.0), min_size=1, max_size=60)


def histogram(values: list[float], bounds: tuple[float, ...] = BOUNDS) -> Histogram:
    counts = [0] * (len(bounds) + 1)
    for value in values:
        counts[bisect.bisect_left(bounds, value)] += 1
    return Histogram(len(values), math.fsum(values), min(values), max(values), bounds, tuple(counts))


@given(NUMBERS)
@example([0.1, 0.1])
@example([100.0])
@example([0.15, 0.15, 0.15])
def test_count_sum_and_extremes_are_exact(values: list[float]) -> None:
    found = values_of(histogram(values))
    assert sum(count for _, count in found) == len(values)
    assert found[0][0] == pytest.approx(min(values))
    assert found[-1][0] == pytest.approx(max(values))
    assert math.fsum(value * count for value, count in found) == pytest.approx(
        math.fsum(values), rel=1e-8, abs=1e-9
    )


@given(NUMBERS)
@example([0.12, 0.12])
@example([0.12, 0.3, 0.12, 6.0, 6.0])
@example([100.0, 100.0, 1.192092896e-07])
def test_count_and_sum_are_exact_where_only_the_buckets_of_the_extremes_are_known(
    values: list[float],
) -> None:
    whole = histogram([0.0, 100.0, *values])
    filled = [number for number, count in enumerate(histogram(values).counts) if count]
    edges = (0.0, *BOUNDS, 100.0)
    low, high = edges[filled[0]], edges[filled[-1] + 1]
    between = Histogram(
        len(values),
        math.fsum(values),
        max(whole.min, low),
        min(whole.max, high),
        BOUNDS,
        histogram(values).counts,
    )
    found = values_of(between)
    assert sum(count for _, count in found) == len(values)
    assert math.fsum(value * count for value, count in found) == pytest.approx(
        math.fsum(values), rel=1e-8, abs=1e-9
    )


@given(NUMBERS)
def test_each_value_lies_in_its_bucket(values: list[float]) -> None:
    given_counts = histogram(values).counts
    # A value may lie on the bound between two buckets: how many are at most each bound is what percentiles need.
    found = values_of(histogram(values))
    at_most = [0, *(sum(c for v, c in found if v <= bound + 1e-9) for bound in BOUNDS), len(values)]
    below = [0, *(sum(c for v, c in found if v < bound - 1e-9) for bound in BOUNDS), len(values)]
    total = 0
    for number, count in enumerate(given_counts):
        total += count
        assert below[number + 1] <= total <= at_most[number + 1]


def test_values_ascend_and_occur_once() -> None:
    found = [value for value, _ in values_of(histogram([3.0, 0.05, 0.15, 0.15, 0.7, 9.0]))]
    assert found == sorted(set(found))


def test_nothing_recorded_is_no_value() -> None:
    assert values_of(Histogram(0, 0.0, math.inf, -math.inf, BOUNDS, (0,) * 7)) == []


def test_without_extremes_the_bounds_stand_for_them() -> None:
    found = values_of(Histogram(4, 2.0, math.nan, math.nan, (1.0, 2.0), (4, 0, 0)))
    assert sum(count for _, count in found) == 4
    assert all(0.0 <= value <= 1.0 for value, _ in found)


def test_without_buckets_there_are_the_extremes_and_the_mean() -> None:
    assert values_of(Histogram(4, 10.0, 1.0, 4.0, (), (4,))) == [(1.0, 1), (2.5, 2), (4.0, 1)]
