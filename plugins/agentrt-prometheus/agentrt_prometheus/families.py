"""The last value of every series, and the families that Prometheus reads of them."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterator

from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from agentrt.telemetry.signals import Batch, Histogram, Metric, Point, Resource
from agentrt_prometheus.naming import labels_of, metric_name, unit_word

__all__ = ["Families"]

logger = logging.getLogger("agentrt.telemetry.prometheus")

Series = tuple[tuple[str, str], ...]
SCOPE = {"otel_scope_name": "agentrt"}


class Families(Collector):
    """What prometheus_client collects: filled by batches in one thread, read by scrapes in others.

    `scope_labels`: each series says that it is agentrt's. A metric that cannot be shown (nothing of its name is left,
    or another metric of another type has it) is left out, and said once in the log.
    """

    def __init__(self, *, scope_labels: bool = False) -> None:
        self._scope = SCOPE if scope_labels else {}
        self._lock = threading.Lock()
        self._resource: Resource | None = None
        self._metrics: dict[str, Metric] = {}
        self._points: dict[str, dict[Series, Point]] = {}
        self._left_out: set[str] = set()

    def update(self, batch: Batch) -> None:
        """Take over the values of a batch; series that it does not mention keep theirs."""
        with self._lock:
            self._resource = batch.resource
            for metric in batch.metrics:
                self._take(metric)

    def collect(self) -> Iterator[Family]:
        with self._lock:
            resource = self._resource
            known = [(self._metrics[name], list(points.items())) for name, points in self._points.items()]
        if resource is not None:
            target = Family("target", "Who sends this", "info")
            target.add_sample("target_info", labels_of(resource.attributes), 1.0)
            yield target
        for metric, points in known:
            yield self._family(metric, points)

    def _take(self, metric: Metric) -> None:
        name = metric_name(metric.name, metric.unit, metric.kind)
        if not name:
            self._leave_out(metric, "its name has no letter or digit that Prometheus allows")
            return
        known = self._metrics.setdefault(name, metric)
        if known.kind != metric.kind:
            self._leave_out(metric, f"{known.name!r}, a {known.kind}, has its name {name} already")
            return
        points = self._points.setdefault(name, {})
        for point in metric.points:
            points[tuple(labels_of(point.attributes).items())] = point

    def _leave_out(self, metric: Metric, why: str) -> None:
        if metric.name not in self._left_out:
            self._left_out.add(metric.name)
            logger.warning("the metric %r (%s) is not shown: %s", metric.name, metric.kind, why)

    def _family(self, metric: Metric, points: list[tuple[Series, Point]]) -> Family:
        name = metric_name(metric.name, metric.unit, metric.kind)
        word = unit_word(metric.unit, metric.kind)
        family = Family(name, metric.description, metric.kind, word if name.endswith(f"_{word}") else "")
        for series, point in points:
            labels = {**dict(series), **self._scope}
            if isinstance(point.value, Histogram):
                _add_histogram(family, labels, point.value)
            else:
                suffix = "_total" if metric.kind == "counter" else ""
                family.add_sample(name + suffix, labels, float(point.value))
        return family


def _add_histogram(family: Family, labels: dict[str, str], histogram: Histogram) -> None:
    below = 0
    for bound, count in zip((*histogram.bounds, math.inf), histogram.counts, strict=True):
        below += count
        shown = "+Inf" if bound == math.inf else repr(float(bound))
        family.add_sample(f"{family.name}_bucket", {**labels, "le": shown}, float(below))
    family.add_sample(f"{family.name}_count", labels, float(histogram.count))
    family.add_sample(f"{family.name}_sum", labels, float(histogram.sum))
