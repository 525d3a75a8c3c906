"""Metrics: counters, gauges and histograms, added up where telemetry is processed, read by whoever exports them.

Cheaper than an SDK's instruments by what is not done twice: a series is found once for a set of attributes, and from
then on adding to it is an addition.
"""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from msgspec import Struct

from agentrt.errors import ConfigError
from agentrt.telemetry.signals import Histogram, Metric, MetricKind, Point

__all__ = ["BOUNDS", "Deltas", "Instrument", "Meter", "Series"]

BOUNDS = tuple(0.005 * factor * 10**power for power in range(5) for factor in (1, 2, 5))
"""Bounds of a histogram that says nothing else: 5 ms to 250 s, if it is seconds."""

MAX_SERIES = 2000
"""Sets of attributes of one metric; what comes beyond is added up in one that has `otel.metric.overflow`."""

MAX_METRICS = 1000

OVERFLOW: dict[str, Any] = {"otel.metric.overflow": True}


class Instrument(Struct, frozen=True):
    """A metric's name and nature. `unit`: in UCUM ("s", "{token}", "By"), as OpenTelemetry has it."""

    name: str
    kind: MetricKind
    unit: str = ""
    description: str = ""
    bounds: tuple[float, ...] = BOUNDS


class Series:
    """The values of one metric for one set of attributes."""

    __slots__ = ("attributes", "bounds", "count", "counts", "high", "kind", "low", "start_ns", "sum")

    def __init__(self, instrument: Instrument, attributes: dict[str, Any], start_ns: int) -> None:
        self.attributes = attributes
        self.kind = instrument.kind
        self.bounds = instrument.bounds
        self.start_ns = start_ns
        self.sum = 0.0
        self.count = 0
        self.low = math.inf
        self.high = -math.inf
        self.counts = [0] * (len(instrument.bounds) + 1) if instrument.kind == "histogram" else []

    def add(self, value: float) -> None:
        """Add to a counter, set a gauge, record in a histogram."""
        if self.kind == "counter":
            self.sum += value
        elif self.kind == "gauge":
            self.sum = value
        else:
            self.record(value)

    def record(self, value: float) -> None:
        """The same for what is known to be a histogram."""
        self.sum += value
        self.count += 1
        if value < self.low:
            self.low = value
        if value > self.high:
            self.high = value
        self.counts[bisect_left(self.bounds, value)] += 1

    def point(self, now: int) -> Point:
        value: float | Histogram = self.sum
        if self.kind == "histogram":
            value = Histogram(self.count, self.sum, self.low, self.high, self.bounds, tuple(self.counts))
        return Point(self.attributes, value, self.start_ns, now)


class Meter:
    """All metrics of a runtime. One thread adds, any thread takes a `snapshot`."""

    def __init__(self) -> None:
        self._instruments: dict[str, Instrument] = {}
        self._series: dict[str, dict[tuple[Any, ...], Series]] = {}
        self._told_of_resets: list[Callable[[], object]] = []
        self.reset()

    def reset(self) -> None:
        """Begin anew, with the same instruments: in a forked process, where what was counted is the parent's and the
        lock perhaps held by a thread that is not there. Series that were kept count for nothing any more."""
        self.lock = threading.RLock()  # a `__del__` may record a value in the middle of an addition
        """Held by whoever adds; not per value: a whole batch of calls is added under it. Under it no code of the
        user's runs, and nothing is logged: a handler that looks at metrics would wait for ever."""
        self.start_ns = time.time_ns()
        self._series = {name: {} for name in self._instruments}
        for tell in self._told_of_resets:
            tell()

    def when_reset(self, tell: Callable[[], object]) -> None:
        """Call `tell()` each time that the meter begins anew: whoever keeps series must forget them."""
        self._told_of_resets.append(tell)

    def reserve(self, instruments: Iterable[Instrument]) -> None:
        """Make these names ours, whatever else is recorded before their first value."""
        with self.lock:
            for instrument in instruments:
                self._instruments[instrument.name] = instrument
                self._series.setdefault(instrument.name, {})

    def series(self, instrument: Instrument, attributes: Mapping[str, Any]) -> Series:
        """Where to add values with these attributes; to be kept by the caller while it likes.

        Raises `ConfigError` if there is a metric of this name and another kind, or there are too many metrics.
        """
        known = self._instruments.get(instrument.name)
        if known is None:
            if len(self._instruments) >= MAX_METRICS:
                raise ConfigError(
                    f"metric {instrument.name!r}: there are {MAX_METRICS} metrics already; put what differs into its "
                    "tags, not into its name"
                )
            known = self._instruments[instrument.name] = instrument
            self._series[instrument.name] = {}
        elif known.kind != instrument.kind:
            raise ConfigError(f"metric {instrument.name!r} is a {known.kind}, not a {instrument.kind}")
        of_metric = self._series[instrument.name]
        key = _key(attributes)
        series = of_metric.get(key)
        if series is None:
            kept = dict(attributes)
            if len(of_metric) >= MAX_SERIES - 1:
                kept = OVERFLOW
                key = tuple(kept.items())
                series = of_metric.get(key)
                if series is not None:
                    return series
            series = of_metric[key] = Series(known, kept, self.start_ns)
        return series

    def snapshot(self) -> tuple[Metric, ...]:
        """Everything since the start, as values."""
        with self.lock:
            now = time.time_ns()
            return tuple(
                Metric(
                    instrument.name,
                    instrument.kind,
                    instrument.unit,
                    instrument.description,
                    tuple(each.point(now) for each in list(series.values())),
                )
                for name, instrument in list(self._instruments.items())
                if (series := self._series[name])
            )


class Deltas:
    """Turns snapshots into what came between two of them, for backends that add up themselves."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, tuple[Any, ...]], Point] = {}
        self._until = 0

    def of(self, snapshot: tuple[Metric, ...]) -> tuple[Metric, ...]:
        """The difference to the snapshot before; points and metrics to which nothing came are left out."""
        metrics = []
        until = max((point.time_ns for metric in snapshot for point in metric.points), default=0)
        for metric in snapshot:
            points = tuple(
                point for each in metric.points if (point := self._difference(metric, each)) is not None
            )
            if points:
                metrics.append(
                    Metric(
                        metric.name,
                        metric.kind,
                        metric.unit,
                        metric.description,
                        points,
                        is_delta=metric.kind != "gauge",
                    )
                )
        self._until = max(until, self._until)
        return tuple(metrics)

    def _difference(self, metric: Metric, point: Point) -> Point | None:
        key = (metric.name, _key(point.attributes))
        last = self._last.get(key)
        self._last[key] = point
        if metric.kind == "gauge":
            return point
        if last is None:
            # It began after the snapshot before this one, or it would have been in there.
            start_ns = max(point.start_ns, self._until)
            return Point(point.attributes, point.value, start_ns, point.time_ns)
        now, before = point.value, last.value
        if isinstance(now, Histogram) and isinstance(before, Histogram):
            if now.count == before.count:
                return None
            counts = tuple(a - b for a, b in zip(now.counts, before.counts, strict=True))
            low, high = _extremes(counts, now)
            total = now.sum - before.sum
            value: float | Histogram = Histogram(
                now.count - before.count, total, low, high, now.bounds, counts
            )
        else:
            assert not isinstance(now, Histogram)
            assert not isinstance(before, Histogram)
            if now == before:
                return None
            value = now - before
        return Point(point.attributes, value, last.time_ns, point.time_ns)


def _key(attributes: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells one set of attributes from another."""
    if not attributes:
        return ()
    return tuple(
        sorted((name, tuple(value) if type(value) is list else value) for name, value in attributes.items())
    )


def _extremes(counts: tuple[int, ...], whole: Histogram) -> tuple[float, float]:
    """The least and the greatest value of an interval, as narrowly as buckets and the whole's extremes know them."""
    filled = [index for index, count in enumerate(counts) if count]
    low = whole.min if filled[0] == 0 else max(whole.min, whole.bounds[filled[0] - 1])
    high = whole.max if filled[-1] == len(whole.bounds) else min(whole.max, whole.bounds[filled[-1]])
    return low, high
