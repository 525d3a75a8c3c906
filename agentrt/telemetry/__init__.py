"""Telemetry: what becomes of the record of each call. Backends are plugins of the group `agentrt.telemetry`."""

from agentrt.telemetry.protocol import CallCollector, Collect, TelemetryBackend, combine
from agentrt.telemetry.signals import (
    Attributes,
    Batch,
    Histogram,
    Link,
    LogLine,
    Metric,
    Point,
    Resource,
    Span,
    SpanEvent,
)

__all__ = [
    "Attributes",
    "Batch",
    "CallCollector",
    "Collect",
    "Histogram",
    "Link",
    "LogLine",
    "Metric",
    "Point",
    "Resource",
    "Span",
    "SpanEvent",
    "TelemetryBackend",
    "combine",
]
