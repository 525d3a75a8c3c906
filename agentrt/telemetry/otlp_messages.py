"""Our signals as the messages of OTLP, OpenTelemetry's own protobuf classes.

Built directly, not by way of the SDK's objects and its encoder: that takes three times as long. Attributes repeat (the
same model, the same target), so that most of them are encoded once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, InstrumentationScope, KeyValue
from opentelemetry.proto.logs.v1 import logs_pb2
from opentelemetry.proto.metrics.v1 import metrics_pb2
from opentelemetry.proto.resource.v1 import resource_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

from agentrt.telemetry.signals import (
    Attributes,
    Histogram,
    LogLine,
    Metric,
    Point,
    Resource,
    Signal,
    Span,
)

__all__ = ["RESPONSES", "Messages"]

RESPONSES: Mapping[Signal, type[Any]] = {
    "spans": ExportTraceServiceResponse,
    "metrics": ExportMetricsServiceResponse,
    "logs": ExportLogsServiceResponse,
}

KINDS: Mapping[str, Any] = {
    "internal": trace_pb2.Span.SPAN_KIND_INTERNAL,
    "server": trace_pb2.Span.SPAN_KIND_SERVER,
    "client": trace_pb2.Span.SPAN_KIND_CLIENT,
    "producer": trace_pb2.Span.SPAN_KIND_PRODUCER,
    "consumer": trace_pb2.Span.SPAN_KIND_CONSUMER,
}
STATUS: Mapping[str, Any] = {
    "ok": trace_pb2.Status.STATUS_CODE_OK,
    "error": trace_pb2.Status.STATUS_CODE_ERROR,
}
SEVERITIES: Mapping[str, Any] = {
    "debug": logs_pb2.SEVERITY_NUMBER_DEBUG,
    "info": logs_pb2.SEVERITY_NUMBER_INFO,
    "warning": logs_pb2.SEVERITY_NUMBER_WARN,
    "error": logs_pb2.SEVERITY_NUMBER_ERROR,
    "critical": logs_pb2.SEVERITY_NUMBER_FATAL,
}
SAMPLED = 1
"""The one trace flag that W3C defines; what reaches a backend is sampled."""

CACHED = 4096
"""Attributes kept encoded; when there are more, all are forgotten."""
CACHED_TEXT = 80
"""Characters of the longest text worth keeping: prompts and ids do not repeat."""


class Messages:
    """Makes the requests. One per backend: its cache is not locked."""

    def __init__(self) -> None:
        self._pairs: dict[tuple[str, Any, type], KeyValue] = {}

    def spans(self, spans: Iterable[Span], resource: Resource) -> ExportTraceServiceRequest:
        scopes: dict[str, list[trace_pb2.Span]] = {}
        for span in spans:
            scopes.setdefault(span.scope, []).append(self._span(span))
        return ExportTraceServiceRequest(
            resource_spans=[
                trace_pb2.ResourceSpans(
                    resource=self._resource(resource),
                    scope_spans=[
                        trace_pb2.ScopeSpans(scope=_scope(name), spans=group)
                        for name, group in scopes.items()
                    ],
                )
            ]
        )

    def metrics(self, metrics: Iterable[Metric], resource: Resource) -> ExportMetricsServiceRequest:
        encoded = [self._metric(metric) for metric in metrics]
        scope = metrics_pb2.ScopeMetrics(scope=_scope("agentrt"), metrics=encoded)
        return ExportMetricsServiceRequest(
            resource_metrics=[
                metrics_pb2.ResourceMetrics(resource=self._resource(resource), scope_metrics=[scope])
            ]
        )

    def logs(self, lines: Iterable[LogLine], resource: Resource) -> ExportLogsServiceRequest:
        """The name of its logger is a line's scope, as OpenTelemetry has it."""
        scopes: dict[str, list[logs_pb2.LogRecord]] = {}
        for line in lines:
            scopes.setdefault(line.logger, []).append(self._line(line))
        return ExportLogsServiceRequest(
            resource_logs=[
                logs_pb2.ResourceLogs(
                    resource=self._resource(resource),
                    scope_logs=[
                        logs_pb2.ScopeLogs(scope=_scope(name), log_records=group)
                        for name, group in scopes.items()
                    ],
                )
            ]
        )

    # ------------------------------------------------------------------------------------------- one of each
    def _span(self, span: Span) -> trace_pb2.Span:
        message = trace_pb2.Span(
            trace_id=bytes.fromhex(span.trace_id),
            span_id=bytes.fromhex(span.span_id),
            parent_span_id=b"" if span.parent_id is None else bytes.fromhex(span.parent_id),
            name=_text(span.name),
            kind=KINDS[span.kind],
            start_time_unix_nano=span.start_ns,
            end_time_unix_nano=span.end_ns,
            attributes=self._attributes(span.attributes),
            flags=SAMPLED,
        )
        for event in span.events:
            message.events.add(
                name=_text(event.name),
                time_unix_nano=event.time_ns,
                attributes=self._attributes(event.attributes),
            )
        for link in span.links:
            message.links.add(
                trace_id=bytes.fromhex(link.trace_id),
                span_id=bytes.fromhex(link.span_id),
                attributes=self._attributes(link.attributes),
            )
        if span.status != "unset":
            message.status.code = STATUS[span.status]
            message.status.message = _text(span.message)
        return message

    def _metric(self, metric: Metric) -> metrics_pb2.Metric:
        message = metrics_pb2.Metric(
            name=metric.name, unit=metric.unit, description=_text(metric.description)
        )
        temporality = (
            metrics_pb2.AGGREGATION_TEMPORALITY_DELTA
            if metric.is_delta
            else metrics_pb2.AGGREGATION_TEMPORALITY_CUMULATIVE
        )
        if metric.kind == "histogram":
            message.histogram.aggregation_temporality = temporality
            message.histogram.data_points.extend(self._distribution(point) for point in metric.points)
        elif metric.kind == "counter":
            message.sum.aggregation_temporality = temporality
            message.sum.is_monotonic = True
            message.sum.data_points.extend(self._number(point) for point in metric.points)
        else:
            message.gauge.data_points.extend(self._number(point) for point in metric.points)
            for number in message.gauge.data_points:
                number.ClearField("start_time_unix_nano")  # a last value began at no time
        return message

    def _number(self, point: Point) -> metrics_pb2.NumberDataPoint:
        message = metrics_pb2.NumberDataPoint(
            attributes=self._attributes(point.attributes),
            start_time_unix_nano=point.start_ns,
            time_unix_nano=point.time_ns,
        )
        value: Any = point.value
        if isinstance(value, int) and -(2**63) <= value < 2**63:
            message.as_int = value
        else:
            message.as_double = value
        return message

    def _distribution(self, point: Point) -> metrics_pb2.HistogramDataPoint:
        value = point.value
        if not isinstance(value, Histogram):
            raise TypeError(f"a point of a histogram holds a Histogram, not {value!r}")
        message = metrics_pb2.HistogramDataPoint(
            attributes=self._attributes(point.attributes),
            start_time_unix_nano=point.start_ns,
            time_unix_nano=point.time_ns,
            count=value.count,
            sum=value.sum,
            bucket_counts=value.counts,
            explicit_bounds=value.bounds,
        )
        if value.count:
            message.min, message.max = value.min, value.max
        return message

    def _line(self, line: LogLine) -> logs_pb2.LogRecord:
        attributes = line.attributes
        if line.exception is not None:
            attributes = {**attributes, "exception.stacktrace": line.exception}
        message = logs_pb2.LogRecord(
            time_unix_nano=line.time_ns,
            observed_time_unix_nano=line.time_ns,
            severity_number=SEVERITIES.get(line.level, logs_pb2.SEVERITY_NUMBER_UNSPECIFIED),
            severity_text=line.level.upper(),
            body=AnyValue(string_value=_text(line.message)),
            attributes=self._attributes(attributes),
        )
        if line.trace_id is not None:
            message.trace_id = bytes.fromhex(line.trace_id)
            message.flags = SAMPLED
        if line.span_id is not None:
            message.span_id = bytes.fromhex(line.span_id)
        return message

    # -------------------------------------------------------------------------------------------- attributes
    def _resource(self, resource: Resource) -> resource_pb2.Resource:
        return resource_pb2.Resource(attributes=self._attributes(resource.attributes))

    def _attributes(self, attributes: Attributes) -> list[KeyValue]:
        pairs = self._pairs
        encoded: list[KeyValue] = []
        for key, value in attributes.items():
            kind = type(value)
            if kind is list or kind is tuple or (kind is str and len(value) > CACHED_TEXT):
                encoded.append(KeyValue(key=_text(key), value=_value(value)))
                continue
            try:
                # The type is part of it: True == 1 == 1.0.
                pair = pairs.get((key, value, kind))
            except TypeError:  # not hashable, so nothing that OTLP has a type for
                encoded.append(KeyValue(key=_text(key), value=_value(value)))
                continue
            if pair is None:
                if len(pairs) >= CACHED:
                    pairs.clear()
                pair = pairs[key, value, kind] = KeyValue(key=_text(key), value=_value(value))
            encoded.append(pair)
        return encoded


def _scope(name: str) -> InstrumentationScope:
    return InstrumentationScope(name=_text(name))


def _value(value: Any) -> AnyValue:
    """Never fails: one strange attribute must not cost the batch that it is in."""
    if isinstance(value, str):
        return AnyValue(string_value=_text(value))
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, list | tuple):
        return AnyValue(array_value=ArrayValue(values=[_value(each) for each in value]))
    return AnyValue(string_value=_text(str(value)))


def _text(text: str) -> str:
    """Protobuf takes no lone surrogates, which file names and broken models have."""
    if text.isascii():
        return text
    return text.encode("utf-8", "replace").decode()
