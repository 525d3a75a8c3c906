"""One run as signals: what the tests of the backends send."""

from __future__ import annotations

import time
from typing import Any

from agentrt.telemetry.signals import (
    Attributes,
    Batch,
    Histogram,
    LogLine,
    Metric,
    MetricKind,
    Point,
    Resource,
    Span,
    SpanEvent,
)

__all__ = [
    "CHAT_ID", "DURATION", "NOW", "RESOURCE", "ROOT_ID", "TOKENS", "TOOL_ID", "TRACE_ID", "batch", "counter",
    "gauge", "line", "logs", "spans",
]  # fmt: skip

NOW = time.time_ns() - 60 * 1_000_000_000
RESOURCE = Resource(
    {
        "service.name": "planner",
        "service.version": "1.2",
        "deployment.environment.name": "test",
        # A different one in each process, and so never a label of what is counted.
        "service.instance.id": "ffffffff",
    }
)
TRACE_ID, ROOT_ID, CHAT_ID, TOOL_ID = f"{NOW // 10**9:08x}" + "ab" * 12, "11" * 8, "22" * 8, "33" * 8
TRACEBACK = (
    "Traceback (most recent call last):\n"
    '  File "tools.py", line 7, in search\n    raise OSError("no disk")\nOSError: no disk'
)


def spans() -> tuple[Span, ...]:
    """An agent that talks to a model and calls a tool, which fails."""
    ms = 1_000_000
    failed = {"exception.type": "OSError", "exception.message": "no disk", "exception.stacktrace": TRACEBACK}
    return (
        Span("invoke_agent planner", TRACE_ID, ROOT_ID, None, NOW, NOW + 900 * ms, "internal",
             {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "planner"}),
        Span("chat gpt-x", TRACE_ID, CHAT_ID, ROOT_ID, NOW + 10 * ms, NOW + 510 * ms + 7_000, "client",
             {"gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt-x", "gen_ai.provider.name": "openai",
              "gen_ai.usage.input_tokens": 12, "agentrt.degraded": False, "gen_ai.response.finish_reasons": ["stop"]},
             events=(SpanEvent("retry", NOW + 100 * ms, {"agentrt.delay": 0.5}), SpanEvent("wait", NOW + 90 * ms))),
        Span("execute_tool search", TRACE_ID, TOOL_ID, ROOT_ID, NOW + 520 * ms, NOW + 800 * ms, "internal",
             {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "search", "error.type": "OSError"},
             events=(SpanEvent("exception", NOW + 800 * ms, failed),), status="error", message="no disk"),
    )  # fmt: skip


def logs() -> tuple[LogLine, ...]:
    """Two lines of the run, the later one first."""
    return (
        LogLine(
            NOW + 800_000_000,
            "error",
            "the tool failed",
            "tools",
            {"tool": "search"},
            TRACE_ID,
            TOOL_ID,
            TRACEBACK,
        ),
        LogLine(NOW, "info", "começa: ☃", "agent", {"attempt": 1}, TRACE_ID, ROOT_ID),
    )


def line(message: str = "hello", *, at_ns: int = NOW, **attributes: Any) -> LogLine:
    return LogLine(at_ns, "info", message, "test", attributes)


def _metric(
    name: str, kind: MetricKind, unit: str, value: float | Histogram, attributes: Attributes, *, delta: bool
) -> Metric:
    point = Point(attributes, value, NOW - 5_000_000_000, NOW)
    return Metric(name, kind, unit, f"what {name} says", (point,), delta)


def counter(
    name: str, value: float = 3.0, *, unit: str = "{call}", delta: bool = False, **attributes: Any
) -> Metric:
    return _metric(name, "counter", unit, value, attributes, delta=delta)


def gauge(name: str, value: float, *, unit: str = "1", **attributes: Any) -> Metric:
    return _metric(name, "gauge", unit, value, attributes, delta=False)


# 0.05 0.15 0.15 0.9 7.0
DURATION = Histogram(5, 8.25, 0.05, 7.0, (0.1, 0.2, 1.0, 5.0), (1, 2, 1, 0, 1))
TOKENS = Histogram(2, 30.0, 10.0, 20.0, (1.0, 4.0, 16.0, 64.0), (0, 0, 1, 1, 0))


def batch(*, delta: bool = False, metrics: tuple[Metric, ...] | None = None) -> Batch:
    """All of it: the spans, four metrics and two log lines."""
    chat = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt-x"}
    usual = (
        _metric("gen_ai.client.operation.duration", "histogram", "s", DURATION, chat, delta=delta),
        _metric("gen_ai.client.token.usage", "histogram", "{token}", TOKENS,
                {**chat, "gen_ai.token.type": "input"}, delta=delta),
        _metric("agent.tool.calls", "counter", "{call}", 3.0, {"gen_ai.tool.name": "search"}, delta=delta),
        _metric("agent.queue.fill", "gauge", "1", 0.25, {}, delta=False),
    )  # fmt: skip
    return Batch(RESOURCE, spans(), usual if metrics is None else metrics, logs())
