"""From the call path to the backends: a bounded queue, and a thread that makes signals of what is in it.

The call path pays for an append. Everything else happens here: a call's record becomes spans and is added to the
metrics, all of it is redacted and cut to size, once for all backends.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from agentrt.call import Call
from agentrt.errors import ConfigError
from agentrt.telemetry.call_metrics import CallMetrics
from agentrt.telemetry.caps import VALUE_BYTES, attribute_value, cap_attributes, cap_text
from agentrt.telemetry.content import Content
from agentrt.telemetry.conventions import DROPPED
from agentrt.telemetry.exporting import Exporting
from agentrt.telemetry.logs import not_forwarded
from agentrt.telemetry.meter import Instrument, Meter
from agentrt.telemetry.redaction import Redactor
from agentrt.telemetry.signals import Attributes, LogLine, Span, SpanEvent

__all__ = ["EndedRun", "Measured", "Processor"]

logger = logging.getLogger("agentrt.telemetry")

ACCUMULATE = 0.05
"""Seconds for which the thread lets things come before it looks."""

CHUNK = 512
"""Items between two looks at the clock: the lock of the metrics is not held longer."""


class EndedRun(Struct, frozen=True, eq=False):
    """A run as it ended; times on its loop's clock. `live`: its span, None if it is not traced. `calls`: those of a run
    that was not sampled and failed, to be told all the same."""

    agent: str
    attributes: Attributes
    started: float
    ended: float
    time: Callable[[], float]
    error: BaseException | None
    live: Any = None
    calls: tuple[Call[Any], ...] = ()


class Measured(Struct, frozen=True):
    """A value given to `record_metric`."""

    instrument: Instrument
    value: float
    tags: Attributes


class Processor:
    """`offer` takes finished calls (`Call`), runs, spans, log lines and measured values from any thread.

    `limit`: items that may wait (20,000); more are dropped and counted. `keep_failures`: calls and runs that failed
    become spans even if their trace was not sampled. `captures`: the content of calls becomes part of their spans.
    """

    def __init__(
        self,
        *,
        meter: Meter,
        redactor: Redactor,
        exporters: list[Exporting],
        limit: int = 20_000,
        keep_failures: bool = False,
        value_bytes: int = VALUE_BYTES,
        captures: bool = False,
        observe: Callable[[list[Span]], None] | None = None,
    ) -> None:
        self.exporters = exporters
        self.dropped: Counter[str] = Counter()
        self.made: Counter[str] = Counter()
        self._meter = meter
        self._calls = CallMetrics(meter)
        self._redactor = redactor
        self._limit = limit
        self._keep_failures = keep_failures
        self._value_bytes = value_bytes
        self._content = Content(redactor, value_bytes=value_bytes) if captures else None
        self._observe = observe
        self._makers: dict[type, Callable[[Any, _Made], None]] = {
            Call: self._call,
            EndedRun: self._run_ended,
            Measured: self._measured,
            LogLine: lambda line, made: made.lines.append(line),
            Span: lambda span, made: made.spans.append(span),
        }
        self._wants_spans = False
        self._failures = 0
        self._clock: tuple[Any, int] = (None, 0)
        self._begin()

    def _begin(self) -> None:
        self._pending: deque[Any] = deque()
        self._draining = threading.Lock()
        self._wake = threading.Event()
        self._is_idle = True
        self._is_closing = False
        self._thread: threading.Thread | None = None

    def take(self, kind: type, maker: Callable[[Any], Span | LogLine | None]) -> None:
        """Also take items of `kind`: `maker` makes a signal of one."""

        def make(item: Any, made: _Made) -> None:
            signal = maker(item)
            if isinstance(signal, Span):
                made.spans.append(signal)
            elif signal is not None:
                made.lines.append(signal)

        self._makers[kind] = make

    # --- on the call path -------------------------------------------------------------------------------

    def offer(self, item: Any, /) -> None:
        """Queue `item`; never waits."""
        pending = self._pending
        if len(pending) >= self._limit:
            self._drop(item)
            return
        pending.append(item)
        if self._is_idle:
            self._is_idle = False
            self._start()

    def add(self, item: Any, /) -> None:
        """Add `item` to the metrics at once. Without a backend that exports this is all there is to do, and a queue
        would only hold on to requests and errors."""
        with self._meter.lock:
            self._make(item, _Made())

    def _drop(self, item: Any) -> None:
        name = {"Call": "calls", "EndedRun": "runs", "Measured": "metrics", "LogLine": "logs"}.get(
            type(item).__name__, "spans"
        )
        self.dropped[name] += 1

    def start(self) -> None:
        """Begin to hand on what comes, for there are backends that export it."""
        self._wants_spans = any("spans" in exporter.wants for exporter in self.exporters)
        for exporter in self.exporters:
            if "metrics" in exporter.wants:
                exporter.start()

    def _start(self) -> None:
        if self._thread is None and not self._is_closing:
            self._thread = threading.Thread(target=self._run, name="agentrt telemetry", daemon=True)
            self._thread.start()
        self._wake.set()

    # --- in the thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        not_forwarded()
        while not self._is_closing:
            self._wake.wait()
            if not self._is_closing:
                time.sleep(ACCUMULATE)
            self._wake.clear()
            self.drain()
            self._is_idle = True
            if self._pending:  # came before we said that we are idle
                self._is_idle = False
                self._wake.set()

    def drain(self) -> None:
        """Make signals of everything that waits, here and now."""
        with self._draining:
            while self._pending:
                self._drain_chunk()

    def _drain_chunk(self) -> None:
        made = _Made()
        pending = self._pending
        with self._meter.lock:
            for _ in range(min(CHUNK, len(pending))):
                self._make(pending.popleft(), made)
            self._count_dropped()
        if not made.spans and not made.lines:
            return
        spans = [self._clean_span(span) for span in made.spans]
        lines = [self._clean_line(line) for line in made.lines]
        self.made["spans"] += len(spans)
        self.made["logs"] += len(lines)
        if self._observe is not None:
            self._observe(spans)
        for exporter in self.exporters:
            exporter.offer(spans, lines)

    def _make(self, item: Any, made: _Made) -> None:
        try:
            self._makers[type(item)](item, made)
        except Exception:
            self._failures += 1
            self.dropped["spans"] += 1
            if self._failures == 1:
                kind = type(item).__name__
                logger.exception("telemetry could not be made of a %s; further ones are only counted", kind)

    def _call(self, call: Call[Any], made: _Made) -> None:
        self._calls.call(call)
        record = call.record
        if not self._wants_spans:
            return
        live = record.span
        if live is None:
            if record.error is None or not self._keep_failures or call.run is not None:
                return
            live = _unsampled()
        from agentrt.telemetry.call_spans import call_spans

        made.spans.extend(call_spans(call, live, self._offset(record.time), self._content))

    def _run_ended(self, run: EndedRun, made: _Made) -> None:
        self._calls.run(run.agent, run.ended - run.started, run.error)
        if not self._wants_spans or run.live is None:
            return
        from agentrt.telemetry.call_spans import call_spans, run_span

        offset = self._offset(run.time)
        for call in run.calls:
            made.spans.extend(call_spans(call, _unsampled(run.live), offset))
        made.spans.append(
            run_span(
                run.live,
                agent=run.agent,
                attributes=dict(run.attributes),
                start_ns=int(run.started * 1e9) + offset,
                end_ns=int(run.ended * 1e9) + offset,
                error=run.error,
            )
        )

    def _measured(self, measured: Measured, made: _Made) -> None:
        del made
        try:
            tags = self._redactor.attributes(
                {str(name): attribute_value(value) for name, value in measured.tags.items()}
            )
            tags = {
                name: tuple(v) if isinstance(v, list) else v
                for name, v in cap_attributes(tags, value_bytes=256).items()
            }
            self._meter.series(measured.instrument, tags).add(measured.value)
        except ConfigError as error:
            self.dropped["metrics"] += 1
            if not self._failures:
                self._failures += 1
                logger.warning("record_metric: %s; what does not fit is counted and not told again", error)

    def _count_dropped(self) -> None:
        """Drops of this queue as a metric. The caller holds the lock of the meter."""
        for signal, count in self.dropped.items():
            tags = {"agentrt.signal": signal, "agentrt.reason": "queue full"}
            self._meter.series(DROPPED, tags).sum = float(count)

    def note_dropped(self, backend: str, signal: str, reason: str, count: int) -> None:
        """Count what a backend lost, as a metric."""
        tags = {"agentrt.backend": backend, "agentrt.signal": signal, "agentrt.reason": reason}
        with self._meter.lock:
            self._meter.series(DROPPED, tags).sum += count

    def _offset(self, clock: Callable[[], float]) -> int:
        """Nanoseconds from a loop's clock to the epoch: the same for all of a trace, unless the system's clock was
        set."""
        known, offset = self._clock
        now = time.time_ns() - int(clock() * 1e9)
        if known != clock or abs(now - offset) > 50_000_000:
            self._clock = (clock, now)
            return now
        return offset

    # --- redaction and size -----------------------------------------------------------------------------

    def _clean_span(self, span: Span) -> Span:
        span = self._redactor.span(span)
        attributes = cap_attributes(span.attributes, value_bytes=self._value_bytes)
        events = span.events and tuple(map(self._cut_event, span.events))
        name, message = cap_text(span.name, 256), cap_text(span.message, 2048)
        same = attributes is span.attributes and all(a is b for a, b in zip(events, span.events, strict=True))
        if same and name is span.name and message is span.message:
            return span
        return replace(span, name=name, message=message, attributes=attributes, events=events)

    def _cut_event(self, event: SpanEvent) -> SpanEvent:
        attributes = cap_attributes(event.attributes, value_bytes=self._value_bytes)
        return event if attributes is event.attributes else replace(event, attributes=attributes)

    def _clean_line(self, line: LogLine) -> LogLine:
        line = self._redactor.line(line)
        return replace(
            line,
            message=cap_text(line.message, self._value_bytes),
            attributes=cap_attributes(line.attributes, value_bytes=self._value_bytes),
            exception=None if line.exception is None else cap_text(line.exception, self._value_bytes),
        )

    # --- the end ----------------------------------------------------------------------------------------

    def flush(self, seconds: float) -> bool:
        """Deliver everything that came until now; False if that was not done in `seconds`. Blocks."""
        until = time.monotonic() + seconds
        self.drain()
        flushed = [exporter.flush(max(0.0, until - time.monotonic())) for exporter in self.exporters]
        return all(flushed)

    def close(self, seconds: float) -> None:
        """Deliver what waits, all backends at once, and count what is not delivered in `seconds` as lost. Blocks."""
        until = time.monotonic() + seconds
        self._is_closing = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(max(0.0, until - time.monotonic()))
        self.drain()
        for exporter in self.exporters:
            exporter.close(until)
        for exporter in self.exporters:
            if not exporter.ended(until - time.monotonic()):
                exporter.abandon()

    def after_fork(self) -> None:
        """In the child: begin anew; what waits is the parent's."""
        self._begin()
        self.dropped.clear()
        self.made.clear()
        for exporter in self.exporters:
            exporter.after_fork()
        if self.exporters:
            self.start()


class _Made:
    """What a chunk of items came to."""

    __slots__ = ("lines", "spans")

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.lines: list[LogLine] = []


def _unsampled(parent: Any = None) -> Any:
    """A span made afterwards, for what was not sampled and failed."""
    from opentelemetry.context.context import Context

    from agentrt.telemetry.tracing import KEY, LiveSpan

    return LiveSpan(Context() if parent is None else Context({KEY: parent}))
