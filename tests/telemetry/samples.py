"""Signals to send, one of everything that a signal can hold."""

from __future__ import annotations

import os
import time

from agentrt.telemetry.signals import (
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

__all__ = ["NOW", "RESOURCE", "batch", "line", "metrics", "span"]

NOW = time.time_ns()
RESOURCE = Resource({"service.name": "shop", "service.version": "1.2", "host.cores": 2})


def span(name: str = "chat gpt-5-mini", *, parent: Span | None = None, scope: str = "agentrt") -> Span:
    """A failed span with attributes of every type, an event and a link."""
    return Span(
        name=name,
        trace_id=os.urandom(16).hex() if parent is None else parent.trace_id,
        span_id=os.urandom(8).hex(),
        parent_id=None if parent is None else parent.span_id,
        start_ns=NOW,
        end_ns=NOW + 1_500_000_000,
        kind="client",
        attributes={
            "gen_ai.request.model": "gpt-5-mini",
            "gen_ai.usage.input_tokens": 12,
            "agentrt.degraded": True,
            "agentrt.seconds": 1.5,
            "gen_ai.response.finish_reasons": ["stop", "length"],
        },
        events=(SpanEvent("retry", NOW + 1, {"agentrt.delay": 0.25}),),
        links=(Link("ab" * 16, "cd" * 8, {"why": "queued"}),),
        status="error",
        message="no route",
        scope=scope,
    )


def metrics(*, is_delta: bool = False) -> tuple[Metric, ...]:
    """A counter, a gauge and a histogram."""
    start, at = NOW - 1_000_000_000, NOW
    values = Histogram(3, 4.75, 0.25, 4.0, (0.5, 1.0), (2, 0, 1))
    return (
        Metric(
            "agent.tool.calls",
            "counter",
            "{call}",
            "Tool calls",
            (Point({"gen_ai.tool.name": "search"}, 7, start, at),),
            is_delta,
        ),
        Metric("queue.load", "gauge", "1", "How full", (Point({}, 0.5, start, at),), is_delta),
        Metric(
            "gen_ai.client.operation.duration",
            "histogram",
            "s",
            "How long",
            (Point({"gen_ai.operation.name": "chat"}, values, start, at),),
            is_delta,
        ),
    )


def line(message: str = "it went wrong", *, of: Span | None = None) -> LogLine:
    """A log line with a traceback, written inside `of`."""
    return LogLine(
        time_ns=NOW,
        level="error",
        message=message,
        logger="shop.cart",
        attributes={"order": 17},
        trace_id=None if of is None else of.trace_id,
        span_id=None if of is None else of.span_id,
        exception="Traceback (most recent call last): ...",
    )


def batch() -> Batch:
    """A parent span and its child, three metrics, and a log line of the child's."""
    parent = span("invoke_agent shop")
    child = span(parent=parent)
    return Batch(RESOURCE, (parent, child), metrics(), (line(of=child),))
