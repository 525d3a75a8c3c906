"""Our signals as the objects of OpenTelemetry's SDK, which its exporters take, and its spans as ours.

The SDK builds its objects with limits, checks and copies of every attribute; ours are redacted and cut to size already
and handed over as they are. Spans are read by their public properties; what an older or foreign one lacks has its
default.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.metrics import export as sdk
from opentelemetry.sdk.resources import Resource as SdkResource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link as SdkLink
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from agentrt.telemetry.signals import (
    Attributes,
    Histogram,
    Link,
    LogLine,
    Metric,
    Point,
    Resource,
    Span,
    SpanEvent,
)
from agentrt.telemetry.signals import SpanKind as OurKind

__all__ = ["from_readable_span", "log_data", "metrics_data", "readable_span", "sdk_resource"]

KINDS: Mapping[OurKind, SpanKind] = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
    "producer": SpanKind.PRODUCER,
    "consumer": SpanKind.CONSUMER,
}
OUR_KINDS: Mapping[Any, OurKind] = {theirs: ours for ours, theirs in KINDS.items()}
SEVERITIES: Mapping[str, SeverityNumber] = {
    "debug": SeverityNumber.DEBUG,
    "info": SeverityNumber.INFO,
    "warning": SeverityNumber.WARN,
    "error": SeverityNumber.ERROR,
    "critical": SeverityNumber.FATAL,
}
UNSET, OK = Status(StatusCode.UNSET), Status(StatusCode.OK)
SAMPLED = TraceFlags(TraceFlags.SAMPLED)
NO_STATE = TraceState()


# --- to the SDK ------------------------------------------------------------------------------------------


class _Resource(SdkResource):
    """The SDK's own writes JSON for each hash, and its exporters hash it once a span."""

    def __init__(self, attributes: Attributes) -> None:
        super().__init__(attributes)
        self._hash = super().__hash__()

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or super().__eq__(other)


_last: tuple[Resource, SdkResource] | None = None


def sdk_resource(resource: Resource) -> SdkResource:
    """The SDK's form of `resource`; the last one is kept, for there is one per process."""
    global _last
    last = _last
    if last is None or last[0] is not resource:
        last = _last = (resource, _Resource(resource.attributes))
    return last[1]


@lru_cache(maxsize=256)
def _scope(name: str) -> InstrumentationScope:
    return InstrumentationScope(
        name, ""
    )  # without a version the exporter for Zipkin writes null, which is refused


def readable_span(span: Span, resource: Resource) -> ReadableSpan:
    """`span` as exporters take it."""
    trace_id = int(span.trace_id, 16)
    events: Sequence[Event] = ()
    if span.events:
        events = [Event(event.name, event.attributes, event.time_ns) for event in span.events]
    links: Sequence[SdkLink] = ()
    if span.links:
        links = [
            SdkLink(_context(int(link.trace_id, 16), link.span_id), link.attributes) for link in span.links
        ]
    if span.status == "unset":
        status = UNSET
    elif span.status == "ok":
        status = OK
    else:
        status = Status(StatusCode.ERROR, span.message)
    return ReadableSpan(
        span.name,
        context=_context(trace_id, span.span_id),
        parent=None if span.parent_id is None else _context(trace_id, span.parent_id),
        resource=sdk_resource(resource),
        attributes=span.attributes,
        events=events,
        links=links,
        kind=KINDS[span.kind],
        status=status,
        start_time=span.start_ns,
        end_time=span.end_ns,
        instrumentation_scope=_scope(span.scope),
    )


def _context(trace_id: int, span_id: str) -> SpanContext:
    return SpanContext(trace_id, int(span_id, 16), False, SAMPLED, NO_STATE)


def metrics_data(metrics: Iterable[Metric], resource: Resource) -> sdk.MetricsData:
    """`metrics` as exporters take them, in one scope."""
    of = sdk.ScopeMetrics(_scope("agentrt"), [_metric(metric) for metric in metrics], "")
    return sdk.MetricsData([sdk.ResourceMetrics(sdk_resource(resource), [of], "")])


def _metric(metric: Metric) -> sdk.Metric:
    temporality = (
        sdk.AggregationTemporality.DELTA if metric.is_delta else sdk.AggregationTemporality.CUMULATIVE
    )
    data: sdk.DataT
    if metric.kind == "histogram":
        data = sdk.Histogram([_distribution(point) for point in metric.points], temporality)
    elif metric.kind == "counter":
        data = sdk.Sum([_number(point) for point in metric.points], temporality, is_monotonic=True)
    else:
        data = sdk.Gauge([_number(point) for point in metric.points])
    return sdk.Metric(metric.name, metric.description, metric.unit, data)


def _number(point: Point) -> sdk.NumberDataPoint:
    if isinstance(point.value, Histogram):
        raise TypeError("a point of a counter or gauge holds a number, not a Histogram")
    return sdk.NumberDataPoint(point.attributes, point.start_ns, point.time_ns, point.value)


def _distribution(point: Point) -> sdk.HistogramDataPoint:
    value = point.value
    if not isinstance(value, Histogram):
        raise TypeError(f"a point of a histogram holds a Histogram, not {value!r}")
    return sdk.HistogramDataPoint(
        attributes=point.attributes,
        start_time_unix_nano=point.start_ns,
        time_unix_nano=point.time_ns,
        count=value.count,
        sum=value.sum,
        bucket_counts=value.counts,
        explicit_bounds=value.bounds,
        min=value.min,
        max=value.max,
    )


def log_data(lines: Iterable[LogLine], resource: Resource) -> list[ReadableLogRecord]:
    """`lines` as exporters take them; the name of its logger is a line's scope."""
    of = sdk_resource(resource)
    return [ReadableLogRecord(_record(line), of, _scope(line.logger)) for line in lines]


def _record(line: LogLine) -> LogRecord:
    attributes = line.attributes
    if line.exception is not None:
        attributes = {**attributes, "exception.stacktrace": line.exception}
    record = LogRecord(
        timestamp=line.time_ns,
        observed_timestamp=line.time_ns,
        severity_text=line.level.upper(),
        severity_number=SEVERITIES.get(line.level, SeverityNumber.UNSPECIFIED),
        body=line.message,
        attributes=attributes,
    )
    # It took the span that is current here, in the exporting thread.
    record.trace_id = 0 if line.trace_id is None else int(line.trace_id, 16)
    record.span_id = 0 if line.span_id is None else int(line.span_id, 16)
    record.trace_flags = TraceFlags.get_default() if line.trace_id is None else SAMPLED
    return record


# --- from the SDK ----------------------------------------------------------------------------------------


def from_readable_span(readable: Any) -> Span:
    """A span of the SDK's, or of anything that has some of its properties, as ours.

    A missing end is the start, a missing context a trace of its own. Attributes of types that we do not have become
    text: maps as JSON.
    """
    context = getattr(readable, "context", None)
    parent = getattr(readable, "parent", None)
    start = getattr(readable, "start_time", None) or getattr(readable, "end_time", None) or 0
    status = getattr(readable, "status", None)
    code = getattr(status, "status_code", None)
    scope = getattr(readable, "instrumentation_scope", None)
    events = getattr(readable, "events", None)
    links = getattr(readable, "links", None)
    return Span(
        name=str(getattr(readable, "name", "") or "unnamed"),
        trace_id=f"{context.trace_id:032x}" if context else os.urandom(16).hex(),
        span_id=f"{context.span_id:016x}" if context else os.urandom(8).hex(),
        parent_id=f"{parent.span_id:016x}" if parent else None,
        start_ns=start,
        end_ns=getattr(readable, "end_time", None) or start,
        kind=OUR_KINDS.get(getattr(readable, "kind", None), "internal"),
        attributes=_attributes(getattr(readable, "attributes", None)),
        events=tuple(_event(event, start) for event in events) if events else (),
        links=tuple(_link(link) for link in links if getattr(link, "context", None)) if links else (),
        status="error" if code is StatusCode.ERROR else "ok" if code is StatusCode.OK else "unset",
        message=getattr(status, "description", None) or "",
        scope=getattr(scope, "name", None) or "unknown",
    )


def _event(event: Any, start: int) -> SpanEvent:
    moment = getattr(event, "timestamp", None) or start
    return SpanEvent(str(event.name), moment, _attributes(getattr(event, "attributes", None)))


def _link(link: Any) -> Link:
    context = link.context
    attributes = _attributes(getattr(link, "attributes", None))
    return Link(f"{context.trace_id:032x}", f"{context.span_id:016x}", attributes)


def _attributes(attributes: Mapping[str, Any] | None) -> Attributes:
    if not attributes:
        return {}
    return {
        name: value if type(value) in PLAIN else _value(value)
        for name, value in attributes.items()
        if value is not None
    }


PLAIN = frozenset({str, int, float, bool})


def _value(value: Any) -> Any:
    if isinstance(value, str | int | float):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, Sequence):
        items = [_value(each) for each in value]
        # A list of ours holds one type; the SDK's may hold anything, None too.
        return items if len({type(each) for each in items}) < 2 else [str(each) for each in items]
    if isinstance(value, Mapping):
        try:
            return msgspec.json.encode(dict(value), enc_hook=_jsonable).decode()
        except (ValueError, TypeError, OverflowError):
            return str(value)  # lone surrogates, keys that are no text, huge numbers
    return str(value)


def _jsonable(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else str(value)
