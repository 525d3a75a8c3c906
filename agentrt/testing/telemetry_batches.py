"""Batches for the tests of telemetry backends: what can come, as it can come, each with a mark to find it by."""

from __future__ import annotations

import os
import time

from msgspec import Struct

from agentrt.telemetry.signals import (
    Attributes,
    Batch,
    Histogram,
    Link,
    LogLine,
    Metric,
    MetricKind,
    Point,
    Resource,
    Signal,
    Span,
    SpanEvent,
    SpanKind,
)

__all__ = ["EMPTY", "EVERY_TYPE", "LONG", "MANY", "TEXTS", "Marked", "Source"]

SECOND = 1_000_000_000
KINDS: tuple[SpanKind, ...] = ("internal", "client", "server", "producer", "consumer")
LEVELS = ("debug", "info", "warning", "error", "critical")
BOUNDS = (0.1, 1.0, 10.0)

# --- attributes: everything that redaction and the caps let through ----------------------------------------

EMPTY: Attributes = {}

EVERY_TYPE: Attributes = {
    "text": "a text",
    "empty": "",
    "yes": True,
    "no": False,
    "zero": 0,
    "negative": -5,
    "large": 2**63 - 1,
    "smallest": -(2**63),
    "fraction": 0.25,
    "tiny": 5e-324,
    "huge": 1.7976931348623157e308,
    "texts": ["a", ""],
    "flags": [True, False],
    "numbers": [1, -2],
    "fractions": [0.5, 2.0],
    "nothing": [],
}

TEXTS: Attributes = {
    "quotes": "\"double\", 'single', \\ and <b>&amp;</b>",
    "lines": "one\ntwo\r\nthree\ttab\u2028and\u2029",
    "control": "\x00\x07\x1b[31mred\x1b[0m\x7f",
    "other scripts": "größe, 数字, مرحبا, שלום",
    "emoji": "👩‍🚀 🇵🇹",
    "combined": "e\u0301 \u200d\ufeff\U0010ffff",
    "naïve.Schlüssel": "the name itself",
    "a name with spaces, and = : / {}": "the name itself",
    "n" * 256: "the name itself",
}

LONG: Attributes = {"long": "x" * 32_768, "long and wide": "語" * 10_922, "long list": ["item"] * 2_000}

MANY: Attributes = {f"attribute.{number}": number for number in range(128)}


class Marked(Struct, frozen=True):
    """A batch, and by signal the words that must be found where it arrived."""

    batch: Batch
    marks: dict[Signal, tuple[str, ...]]


class Source:
    """Makes batches of the `signals` that a backend wants; metrics as deltas if it wants these.

    Metrics grow from batch to batch, as those of a runtime do.
    """

    def __init__(self, signals: tuple[Signal, ...], *, delta: bool) -> None:
        self.signals = signals
        self.delta = delta
        self._resource = Resource({"service.name": "conformance", "service.version": "1.0"})
        self._started = time.time_ns() - 60 * SECOND
        self._last = self._started
        self._made = 0

    def usual(self, *, attributes: Attributes = EMPTY, only: Signal | None = None) -> Marked:
        """A parent span and its failed child, a counter, a gauge and a histogram, and a log line of the child's;
        `attributes` on all of them. `only`: of one signal."""
        # Letters and digits only: what every backend leaves as it is in every name.
        mark = f"c{os.urandom(5).hex()}"
        spans = self._pair(f"conformance {mark}s", attributes)
        metrics = self._metrics(f"conformance.{mark}", attributes)
        line = LogLine(
            spans[1].start_ns, "error", f"conformance {mark}l", "conformance.log", attributes, spans[1].trace_id,
            spans[1].span_id, "Traceback (most recent call last):\n  ...\nOSError: no disk",
        )  # fmt: skip
        batch = self._of(spans=spans, metrics=metrics, logs=(line,), only=only)
        marks: dict[Signal, tuple[str, ...]] = {}
        if batch.spans:
            marks["spans"] = (f"{mark}s",)
        if batch.metrics:
            marks["metrics"] = (f"{mark}counter", f"{mark}gauge", f"{mark}histogram")
        if batch.logs:
            marks["logs"] = (f"{mark}l",)
        return Marked(batch, marks)

    def every_kind(self) -> Batch:
        """Spans of every kind and status with events and links, lines of every level, metrics that are unusual."""
        now, parent = time.time_ns(), self._pair("conformance kinds", EMPTY)[0]
        events = tuple(
            SpanEvent(name, now - number, {"exception.message": "no", **EVERY_TYPE})
            for number, name in enumerate(("retry", "wait", "circuit", "exception", ""))
        )
        links = (Link("ab" * 16, "cd" * 8), Link(parent.trace_id, parent.span_id, EVERY_TYPE))
        spans = [
            Span(
                f"conformance {kind}", parent.trace_id, _id(8), parent.span_id, now, now, kind,
                events=events, links=links, status=status, message="no route" if status == "error" else "",
            )
            for kind in KINDS
            for status in ("unset", "ok", "error")
        ]  # fmt: skip
        spans += [
            _child("", parent),  # a name that was only a secret, or empty from the start
            _child("n" * 256, parent, scope="another.library"),
        ]
        lines = [LogLine(now, level, f"conformance {level}", "conformance.log") for level in LEVELS]
        lines += [LogLine(now, "info", "", ""), LogLine(now, "info", "x" * 32_768, "conformance", TEXTS)]
        whole = Histogram(3, 6.0, 2.0, 2.0, BOUNDS, (0, 0, 3, 0))
        beyond = Histogram(1, 1e9, 1e9, 1e9, BOUNDS, (0, 0, 0, 1))
        metrics = (
            self._metric("conformance.no_unit", "counter", "", 0.0),
            self._metric("conformance/slash-dash.dot", "gauge", "{item}/s", -273.15),
            self._metric("m" * 255, "gauge", "By", 1e300),
            self._metric("conformance.buckets", "histogram", "s", whole, beyond),
            self._metric("conformance.series", "counter", "{call}", *map(float, range(500))),
        )
        return self._of(spans=(parent, *spans), metrics=metrics, logs=tuple(lines))

    def full(self, count: int) -> Batch:
        """As many spans and log lines as fit into a batch of `count`, with the metrics."""
        signals = [signal for signal in ("spans", "logs") if signal in self.signals]
        each = count // max(1, len(signals))
        parent = self._pair("conformance full", EMPTY)[0]
        spans = (parent, *(_child(f"conformance {number}", parent) for number in range(each - 1)))
        now = time.time_ns()
        lines = tuple(LogLine(now + n, "info", f"conformance {n}", "conformance.log") for n in range(each))
        return self._of(spans=spans, metrics=self._metrics("conformance.full", EMPTY), logs=lines)

    # --- parts ------------------------------------------------------------------------------------------

    def _of(
        self,
        *,
        spans: tuple[Span, ...],
        metrics: tuple[Metric, ...],
        logs: tuple[LogLine, ...],
        only: Signal | None = None,
    ) -> Batch:
        wanted = self.signals if only is None else (only,)
        return Batch(
            self._resource,
            spans if "spans" in wanted else (),
            metrics if "metrics" in wanted else (),
            logs if "logs" in wanted else (),
        )

    def _pair(self, name: str, attributes: Attributes) -> tuple[Span, Span]:
        now = time.time_ns()
        # Its first half is the time, as a few services want it.
        trace = f"{now // SECOND:08x}{_id(12)}"
        root = Span(
            name, trace, _id(8), None, now - 2 * SECOND, now, attributes=attributes, status="ok",
            events=(SpanEvent("retry", now - SECOND, attributes),),
        )  # fmt: skip
        child = Span(
            name, trace, _id(8), root.span_id, now - SECOND, now, "client", attributes, status="error",
            message="no route", links=(Link("ab" * 16, "cd" * 8, attributes),),
        )  # fmt: skip
        return root, child

    def _metrics(self, name: str, attributes: Attributes) -> tuple[Metric, ...]:
        self._made += 1
        # A counter's and a histogram's since the start, or since the last batch.
        times = 1 if self.delta else self._made
        durations = Histogram(2 * times, 3.05 * times, 0.05, 3.0, BOUNDS, (times, 0, times, 0))
        # A value of `record_metric` has short attributes, and tuples for lists, so that it can be found again.
        tags = {
            key[:256]: tuple(value[:20]) if isinstance(value, list) else _short(value)
            for key, value in attributes.items()
        }
        made = (
            self._metric(f"{name}counter", "counter", "{call}", 7.0 * times, tags=tags),
            self._metric(f"{name}gauge", "gauge", "1", 0.5 * self._made, tags=tags),
            self._metric(f"{name}histogram", "histogram", "s", durations, tags=tags),
        )
        self._last = made[0].points[0].time_ns
        return made

    def _metric(
        self, name: str, kind: MetricKind, unit: str, *values: float | Histogram, tags: Attributes = EMPTY
    ) -> Metric:
        now = time.time_ns()
        start = self._last if self.delta else self._started
        points = tuple(
            Point(tags if len(values) == 1 else {**tags, "number": number}, value, start, now)
            for number, value in enumerate(values)
        )
        return Metric(name, kind, unit, "", points, self.delta and kind != "gauge")


def _child(name: str, parent: Span, *, scope: str = "agentrt") -> Span:
    """A child that took no time."""
    return Span(name, parent.trace_id, _id(8), parent.span_id, parent.start_ns, parent.start_ns, scope=scope)


def _short(value: object) -> object:
    return value[:80] if isinstance(value, str) else value


def _id(size: int) -> str:
    return os.urandom(size).hex()
