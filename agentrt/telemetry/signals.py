"""What telemetry is made of once it has left the call path: spans, metrics, log lines, and batches of them.

Plain values in the vocabulary of OpenTelemetry, without its SDK: a backend can be written knowing only this file.
Times are nanoseconds since the epoch. Texts are redacted and cut to size already.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct

__all__ = [
    "Attributes",
    "Batch",
    "Histogram",
    "Link",
    "LogLine",
    "Metric",
    "MetricKind",
    "Point",
    "Resource",
    "Signal",
    "Span",
    "SpanEvent",
    "SpanKind",
    "SpanStatus",
]

Attributes = dict[str, Any]
"""Names to text, bool, int, float, or a list of one of these."""

Signal = Literal["spans", "metrics", "logs"]
SpanKind = Literal["internal", "client", "server", "producer", "consumer"]
SpanStatus = Literal["unset", "ok", "error"]
MetricKind = Literal["counter", "gauge", "histogram"]


class SpanEvent(Struct, frozen=True, omit_defaults=True):
    """Something that happened at one moment of a span."""

    name: str
    time_ns: int
    attributes: Attributes = {}


class Link(Struct, frozen=True, omit_defaults=True):
    """Another span that this one has to do with."""

    trace_id: str
    span_id: str
    attributes: Attributes = {}


class Span(Struct, frozen=True, omit_defaults=True):
    """A finished operation. Ids are hexadecimal, 32 and 16 digits; `parent_id` is None for the root of a trace.

    `status` "error" has its `message`. `scope`: the library that made it.
    """

    name: str
    trace_id: str
    span_id: str
    parent_id: str | None
    start_ns: int
    end_ns: int
    kind: SpanKind = "internal"
    attributes: Attributes = {}
    events: tuple[SpanEvent, ...] = ()
    links: tuple[Link, ...] = ()
    status: SpanStatus = "unset"
    message: str = ""
    scope: str = "agentrt"

    @property
    def seconds(self) -> float:
        """How long it took."""
        return (self.end_ns - self.start_ns) / 1e9


class Histogram(Struct, frozen=True):
    """A distribution: `counts[i]` values were at most `bounds[i]`, the last of `counts` greater than all bounds."""

    count: int
    sum: float
    min: float
    max: float
    bounds: tuple[float, ...]
    counts: tuple[int, ...]


class Point(Struct, frozen=True):
    """The value of a metric for one set of attributes: a number, or a `Histogram`.

    Counters and histograms add up what came since `start_ns`; of a gauge it is the last value.
    """

    attributes: Attributes
    value: float | Histogram
    start_ns: int
    time_ns: int


class Metric(Struct, frozen=True):
    """A metric with its points. `is_delta`: each batch has what came since the one before, not since the start."""

    name: str
    kind: MetricKind
    unit: str
    description: str
    points: tuple[Point, ...]
    is_delta: bool = False


class LogLine(Struct, frozen=True, omit_defaults=True):
    """One record of a log. `level`: "debug", "info", "warning", "error" or "critical". `exception`: a traceback as
    text. `trace_id`, `span_id`: where it was written, if in a trace."""

    time_ns: int
    level: str
    message: str
    logger: str
    attributes: Attributes = {}
    trace_id: str | None = None
    span_id: str | None = None
    exception: str | None = None


class Resource(Struct, frozen=True):
    """Who sends it: `attributes` has at least "service.name"."""

    attributes: Attributes

    @property
    def service(self) -> str:
        return str(self.attributes["service.name"])


class Batch(Struct, frozen=True, weakref=True):
    """What a backend gets to deliver at once. Any of the lists may be empty, not all of them."""

    resource: Resource
    spans: tuple[Span, ...] = ()
    metrics: tuple[Metric, ...] = ()
    logs: tuple[LogLine, ...] = ()

    @property
    def counts(self) -> dict[Signal, int]:
        """The number of spans, log lines and metric points."""
        points = sum(len(metric.points) for metric in self.metrics)
        return {"spans": len(self.spans), "logs": len(self.logs), "metrics": points}

    def __len__(self) -> int:
        """All of them."""
        return sum(self.counts.values())

    def json(self) -> bytes:
        """All of it as one JSON document."""
        return msgspec.json.encode(self)
