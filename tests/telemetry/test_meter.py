"""Metrics add up: whatever is recorded, whenever it is read, and however many tags there are."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrt.errors import ConfigError
from agentrt.telemetry import Histogram, Metric, Point
from agentrt.telemetry.call_metrics import CallMetrics
from agentrt.telemetry.meter import MAX_METRICS, MAX_SERIES, OVERFLOW, Deltas, Instrument, Meter

COUNTER = Instrument("c", "counter", "{item}")
GAUGE = Instrument("g", "gauge")
TIMES = Instrument("h", "histogram", "s", bounds=(0.1, 1.0, 10.0))

# Eighths are added without rounding; the others lie on a bound.
VALUES = st.integers(0, 800).map(lambda eighths: eighths / 8) | st.sampled_from([0.1, 1.0, 10.0])
RECORDED = st.tuples(st.sampled_from([COUNTER, GAUGE, TIMES]), st.sampled_from(["a", "b"]), VALUES)


def record(meter: Meter, instrument: Instrument, tag: str, value: float) -> None:
    with meter.lock:
        meter.series(instrument, {"tag": tag}).add(value)


def points(metrics: tuple[Metric, ...]) -> dict[tuple[str, str], Point]:
    return {(metric.name, point.attributes["tag"]): point for metric in metrics for point in metric.points}


def is_about(found: Any, expected: float) -> bool:
    return math.isclose(found, expected, rel_tol=1e-9, abs_tol=1e-9)


def check(value: Any, kind: str, values: list[float]) -> None:
    """`value` is what `values` come to."""
    if kind == "counter":
        assert is_about(value, sum(values))
    elif kind == "gauge":
        assert value == values[-1]
    else:
        assert isinstance(value, Histogram)
        assert (value.count, sum(value.counts)) == (len(values), len(values))
        assert is_about(value.sum, sum(values))
        edges = [-math.inf, *value.bounds, math.inf]
        for low, high, count in zip(edges, edges[1:], value.counts, strict=False):
            assert count == sum(low < each <= high for each in values)


@given(st.lists(RECORDED, max_size=50))
def test_a_snapshot_is_what_all_values_come_to(recorded: list[tuple[Instrument, str, float]]) -> None:
    meter = Meter()
    sums: dict[tuple[str, str], list[float]] = {}
    for instrument, tag, value in recorded:
        record(meter, instrument, tag, value)
        sums.setdefault((instrument.name, tag), []).append(value)
    found = points(meter.snapshot())
    assert found.keys() == sums.keys()
    for key, point in found.items():
        check(point.value, {"c": "counter", "g": "gauge", "h": "histogram"}[key[0]], sums[key])
        assert point.start_ns == meter.start_ns
        if isinstance(point.value, Histogram):
            assert (point.value.min, point.value.max) == (min(sums[key]), max(sums[key]))


@given(st.lists(st.none() | RECORDED, max_size=60))
def test_the_deltas_between_snapshots_come_to_the_whole(
    steps: list[tuple[Instrument, str, float] | None],
) -> None:
    meter, deltas = Meter(), Deltas()
    total: dict[tuple[str, str], Any] = {}
    since: dict[tuple[str, str], list[float]] = {}
    ends: dict[tuple[str, str], int] = {}
    for step in [*steps, None]:
        if step is not None:
            record(meter, *step)
            since.setdefault((step[0].name, step[1]), []).append(step[2])
            continue
        metrics = deltas.of(meter.snapshot())
        assert all(metric.is_delta == (metric.kind != "gauge") for metric in metrics)
        found = points(metrics)
        sums = {key for key in since if since[key] and key[0] != "g"}
        # A counter to which only zeros were added has nothing to say.
        silent = {key for key in sums if key[0] == "c" and key in ends and not sum(since[key])}
        assert {key for key in found if key[0] != "g"} - silent == sums - silent
        for key, point in found.items():
            if key[0] == "g":
                continue
            check(point.value, "counter" if key[0] == "c" else "histogram", since[key])
            if isinstance(point.value, Histogram):
                assert point.value.min <= min(since[key])
                assert point.value.max >= max(since[key])
            assert point.start_ns >= ends.get(key, 0), "what was told already is told again"
            ends[key] = point.time_ns
            total.setdefault(key, []).extend(since[key])
        since = {}
    whole = points(meter.snapshot())
    for key, values in total.items():
        check(whole[key].value, "counter" if key[0] == "c" else "histogram", values)


def test_a_series_that_begins_late_does_not_reach_back_to_the_start() -> None:
    meter, deltas = Meter(), Deltas()
    record(meter, COUNTER, "a", 1.0)
    (first,) = points(deltas.of(meter.snapshot())).values()
    record(meter, COUNTER, "b", 1.0)
    (second,) = points(deltas.of(meter.snapshot())).values()
    assert first.start_ns == meter.start_ns
    assert second.start_ns == first.time_ns


def test_the_first_2000_sets_of_tags_are_kept_and_the_rest_is_added_up() -> None:
    meter = Meter()
    for number in range(3 * MAX_SERIES):
        record(meter, COUNTER, f"t{number}", 1.0)
        record(meter, COUNTER, "t0", 1.0)
    (metric,) = meter.snapshot()
    assert len(metric.points) == MAX_SERIES
    by_tag = {point.attributes.get("tag"): point.value for point in metric.points}
    assert by_tag["t0"] == 1 + 3 * MAX_SERIES
    (overflow,) = [point for point in metric.points if point.attributes == OVERFLOW]
    assert overflow.value == 3 * MAX_SERIES - (MAX_SERIES - 1)
    assert sum(by_tag.values()) == 6 * MAX_SERIES  # type: ignore[arg-type]


def test_a_metric_of_another_kind_with_the_same_name_is_an_error() -> None:
    meter = Meter()
    record(meter, COUNTER, "a", 1.0)
    with pytest.raises(ConfigError, match="'c' is a counter, not a gauge"):
        meter.series(Instrument("c", "gauge"), {})


def test_names_of_ours_are_not_to_be_had_for_another_kind_even_before_their_first_value() -> None:
    meter = Meter()
    CallMetrics(meter)
    with pytest.raises(ConfigError, match=r"'agent\.tool\.calls' is a counter, not a gauge"):
        meter.series(Instrument("agent.tool.calls", "gauge"), {})
    assert meter.snapshot() == ()


def test_a_thousand_metrics_are_enough() -> None:
    meter = Meter()
    for number in range(MAX_METRICS):
        meter.series(Instrument(f"m{number}", "counter"), {})
    with pytest.raises(ConfigError, match="put what differs into its tags"):
        meter.series(Instrument("one more", "counter"), {})
    meter.series(Instrument("m7", "counter"), {"old": "ones go on"})


def test_tags_may_be_lists_and_come_in_any_order() -> None:
    meter, deltas = Meter(), Deltas()
    first = meter.series(COUNTER, {"tag": ["a", "b"], "n": 1})
    assert meter.series(COUNTER, {"n": 1, "tag": ["a", "b"]}) is first
    assert meter.series(COUNTER, {"n": 1, "tag": ["b", "a"]}) is not first
    first.add(2.0)
    (metric,) = deltas.of(meter.snapshot())
    assert metric.points[0].attributes == {"tag": ["a", "b"], "n": 1}


def test_a_meter_that_begins_anew_keeps_its_names_and_forgets_its_values() -> None:
    meter = Meter()
    record(meter, COUNTER, "a", 1.0)
    with meter.lock:
        meter.reset()
        assert meter.snapshot() == ()
        record(meter, COUNTER, "a", 2.0)
    (point,) = points(meter.snapshot()).values()
    assert point.value == 2.0
    with pytest.raises(ConfigError):
        meter.series(Instrument("c", "gauge"), {})


def test_what_counts_calls_begins_anew_with_its_meter() -> None:
    meter = Meter()
    first, second = CallMetrics(meter), CallMetrics(meter)
    for each in (first, second):
        each.run("agent", 1.0, None)
    meter.reset()
    second.run("agent", 1.0, ValueError("no"))
    first.run("agent", 1.0, None)
    counts = {
        metric.name: [p.value.count if isinstance(p.value, Histogram) else p.value for p in metric.points]
        for metric in meter.snapshot()
    }
    assert counts == {
        "agent.execution.duration": [1, 1],
        "gen_ai.invoke_agent.duration": [1, 1],
        "agent.execution.errors": [1.0],
    }


def test_a_value_recorded_in_the_middle_of_another_does_not_hang() -> None:
    meter = Meter()
    with meter.lock:  # as a `__del__` that the garbage collector runs in there would
        record(meter, COUNTER, "a", 1.0)
        assert len(meter.snapshot()) == 1
