"""From the call path to the backends: a bounded queue, and a thread that makes signals of what is in it.

The call path pays for an append. Everything else happens here: a call's record becomes spans and is added to the
metrics, all of it is redacted and cut to size, once for all backends.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Container
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace

from agentrt.call import Call, Quick
from agentrt.errors import ConfigError
from agentrt.telemetry.call_metrics import CallMetrics
from agentrt.telemetry.caps import VALUE_BYTES, attribute_value, cap_attributes, cap_text
from agentrt.telemetry.content import Content
from agentrt.telemetry.conventions import DROPPED
from agentrt.telemetry.exporting import Exporting
from agentrt.telemetry.logs import not_forwarded
from agentrt.telemetry.meter import Instrument, Meter
from agentrt.telemetry.pending import Pending
from agentrt.telemetry.redaction import Redactor
from agentrt.telemetry.signals import Attributes, LogLine, Span, SpanEvent
from agentrt.telemetry.telling import tell

if TYPE_CHECKING:
    from agentrt.telemetry.call_spans import CallSpans

__all__ = ["EndedRun", "Measured", "Processor"]

ACCUMULATE = 0.05
"""Seconds for which the thread lets things come before it looks."""

CHUNK = 512
"""Items that are made into signals at once: the lock of the metrics is not held longer."""

TAG_BYTES = 256
"""What is kept of a value of a metric's tag."""

MAX_TOLD = 100
"""So many different problems are told."""


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
    ) -> None:
        self.exporters = exporters
        self._meter = meter
        self._calls = CallMetrics(meter)
        self._redactor = redactor
        self._pending = Pending(limit, signal_of=_signal_of, start=self._start)
        self.offer = self._pending.offer
        self._keep_failures = keep_failures
        self._value_bytes = value_bytes
        self._content = Content(redactor, value_bytes=value_bytes) if captures else None
        self._measurers: dict[type, Callable[[Any], None]] = {
            Call: self._calls.call,
            EndedRun: self._measure_run,
        }
        self._makers: dict[type, Callable[[Any, _Made], None]] = {
            Call: self._call,
            EndedRun: self._run_ended,
            Measured: lambda measured, made: None,  # it is measured, and that was all
            LogLine: lambda line, made: made.lines.append(line),
            Span: lambda span, made: made.spans.append(span),
        }
        self._wants_spans = any("spans" in exporter.wants for exporter in exporters)
        self._is_started = False
        self._is_closing = False
        self._clock: tuple[Any, int] = (None, 0)
        self._looked_at: Any = None
        self._spans_of_calls: CallSpans | None = None
        self._begin()

    def _begin(self) -> None:
        """What threads share; made anew in a forked process, where the old threads are not."""
        self._told: set[str] = set()
        self._starting = threading.Lock()
        self._draining = threading.Lock()
        self._measuring = threading.RLock()  # the `__str__` of a tag may ask for the metrics
        self._wake = threading.Event()
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

    @property
    def quick_offer(self) -> Quick:
        """The usual case of `offer(call)` as source."""
        return self._pending.quick

    def add(self, item: Any, /) -> None:
        """Add `item` to the metrics at once. Without a backend that exports this is all there is to do, and a queue
        would only hold on to requests and errors."""
        try:
            if type(item) is Measured:
                self._record(item)
            else:
                with self._meter.lock:
                    self._measurers[type(item)](item)
        except Exception as error:
            made = _Made()
            made.fail(item, error)
            self._count_failures(made)
            self._tell(made.failures)

    def start(self) -> None:
        """Begin to hand on what comes, for there are backends that export it."""
        self._is_started = True
        for exporter in self.exporters:
            if "metrics" in exporter.wants:
                exporter.start()

    def _start(self) -> None:
        """Wake the thread, or start it. Without a lock in the usual case, in which a `__del__` may come here again."""
        if self._thread is None:
            with self._starting:
                if self._thread is None:
                    thread = threading.Thread(target=self._run, name="agentrt telemetry", daemon=True)
                    try:
                        thread.start()
                    except RuntimeError:
                        # Too many threads, or the interpreter is about to exit. The next offer tries again, and
                        # flush and close do without.
                        self._pending.is_idle = True
                        return
                    self._thread = thread
        self._wake.set()

    # --- counting what is lost --------------------------------------------------------------------------

    @property
    def lost(self) -> dict[tuple[str, str], int]:
        """What no backend was offered, by signal ("calls", "runs", "spans", "metrics", "logs") and reason: "queue
        full", "failed" (no signal could be made of it) or "shutdown"."""
        return self._pending.lost

    @property
    def dropped(self) -> dict[str, int]:
        """`lost` by signal."""
        sums: Counter[str] = Counter()
        for (signal, _), count in self.lost.items():
            sums[signal] += count
        return dict(sums)

    def note_dropped(self, backend: str, signal: str, reason: str, count: int) -> None:
        """Count what a backend lost, as a metric."""
        tags = {"agentrt.backend": backend, "agentrt.signal": signal, "agentrt.reason": reason}
        with self._meter.lock:
            self._meter.series(DROPPED, tags).sum += count

    def _count_lost(self) -> None:
        """What is lost in here as a metric."""
        lost = self.lost
        if lost:
            with self._meter.lock:
                for (signal, reason), count in lost.items():
                    tags = {"agentrt.signal": signal, "agentrt.reason": reason}
                    self._meter.series(DROPPED, tags).sum = float(count)

    def _count_failures(self, made: _Made) -> None:
        for signal, _, _ in made.failures:
            self._pending.note_failed(signal)

    def _tell(self, failures: list[_Failure]) -> None:
        """Say what failed, each problem once, and never with a lock held: a log's handler may come back to us."""
        for _, what, error in failures:
            if what in self._told or len(self._told) >= MAX_TOLD:
                continue
            self._told.add(what)
            if isinstance(error, ConfigError):
                tell(logging.WARNING, "%s; it is not recorded, and this is said once", what)
            else:
                tell(logging.ERROR, "%s; further ones are only counted", what, error=error)

    # --- in the thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        not_forwarded()
        while not self._is_closing:
            self._wake.wait()
            if not self._is_closing:
                time.sleep(ACCUMULATE)
            self._wake.clear()
            while self._pending.items:
                self.drain()
            if not self._pending.idle():
                self._wake.set()

    def drain(self, seconds: float = 5.0) -> bool:
        """Make signals of everything that waits now, here; False if another thread is at it for `seconds`."""
        if not self._draining.acquire(timeout=max(0.0, seconds)):
            return False
        failures: list[_Failure] = []
        try:
            left = len(self._pending.items)  # what comes meanwhile is for the next time
            while left > 0:
                failures += self._drain_chunk()
                left -= CHUNK
            self._count_lost()
        finally:
            self._draining.release()
        self._tell(failures)
        return True

    def measure(self, seconds: float = 5.0) -> bool:
        """Add everything that waits to the metrics now, here. No signals are made of it: that takes ten times as long,
        and is left to the thread. False if another thread is at it for `seconds`."""
        if not self._measuring.acquire(timeout=max(0.0, seconds)):
            return False
        made = _Made()
        try:
            unseen = self._pending.look_ahead()
            for start in range(0, len(unseen), CHUNK):
                self._measure_all(unseen[start : start + CHUNK], made)
            self._count_failures(made)
            self._count_lost()
        finally:
            self._measuring.release()
        self._tell(made.failures)
        return True

    def _drain_chunk(self) -> list[_Failure]:
        made = _Made()
        self._looked_at = None
        with self._measuring:
            items, unseen = self._pending.take(CHUNK)
            self._measure_all(unseen, made)
        for item in items:
            self._make(item, made)
        spans = self._cleaned(self._clean_span, made.spans, made, done=made.clean)
        lines = self._cleaned(self._clean_line, made.lines, made)
        if not self._pending.taken(items):
            return []
        self._count_failures(made)
        for exporter in self.exporters:
            exporter.offer(spans, lines)
        return made.failures

    def _measure_all(self, items: list[Any], made: _Made) -> None:
        """Add `items` to the metrics; those that run no code of the user's first, under the lock."""
        measurers = self._measurers
        with self._meter.lock:
            for item in items:
                measure = measurers.get(type(item))
                if measure is not None:
                    try:
                        measure(item)
                    except Exception as error:
                        made.fail(item, error, signal="metrics")
        for item in items:
            if type(item) is Measured:
                try:
                    self._record(item)
                except BaseException as error:  # as in `_make`
                    made.fail(item, error)

    def _make(self, item: Any, made: _Made) -> None:
        try:
            self._makers[type(item)](item, made)
        except (
            BaseException
        ) as error:  # of the user's `__repr__`, say: SystemExit from there means nothing to us
            made.fail(item, error)

    def _cleaned(
        self, clean: Callable[[Any], Any], items: list[Any], made: _Made, *, done: Container[int] = ()
    ) -> list[Any]:
        """The items redacted and cut to size, but for those at the places in `done`, which are. One with which that
        does not work is not sent."""
        cleaned = []
        for place, item in enumerate(items):
            try:
                cleaned.append(item if place in done else clean(item))
            except BaseException as error:
                made.fail(item, error)
        return cleaned

    def _measure_run(self, run: EndedRun) -> None:
        self._calls.run(run.agent, run.ended - run.started, run.error)

    def _call(self, call: Call[Any], made: _Made) -> None:
        if not self._wants_spans:
            return
        record = call.record
        live = record.span
        if live is None:
            if record.error is None or not self._keep_failures or call.run is not None:
                return
            live = _unsampled()
        if self._spans_of_calls is None:
            from agentrt.telemetry.call_spans import CallSpans  # now, for it loads the OpenTelemetry API

            self._spans_of_calls = CallSpans(
                redactor=self._redactor, clean=self._clean_span, content=self._content
            )
        self._spans_of_calls.add(made.spans, made.clean, call, live, offset=self._offset(record.time))

    def _run_ended(self, run: EndedRun, made: _Made) -> None:
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

    def _record(self, measured: Measured) -> None:
        tags = {str(name): attribute_value(value) for name, value in measured.tags.items()}
        tags = cap_attributes(self._redactor.attributes(tags), value_bytes=TAG_BYTES)
        with self._meter.lock:
            self._meter.series(measured.instrument, tags).add(measured.value)

    def _offset(self, clock: Callable[[], float]) -> int:
        """Nanoseconds from a loop's clock to the epoch: the same for all of a trace, unless the system's clock was
        set."""
        known, offset = self._clock
        if self._looked_at == known == clock:
            return offset  # once for each chunk is enough
        self._looked_at = clock
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
        """Deliver everything that came until now; False if that was not done in `seconds`, or a backend did not take
        it. Blocks."""
        until = time.monotonic() + seconds
        drained = self.drain(seconds)
        flushed = [exporter.flush(until - time.monotonic()) for exporter in self.exporters]
        return drained and all(flushed)

    def close(self, seconds: float) -> None:
        """Deliver what waits, all backends at once, and count what is not delivered in `seconds` as lost. Blocks."""
        until = time.monotonic() + seconds
        self._is_closing = True
        self._pending.closing()
        self._wake.set()
        # At most half of the time, if something of the user's hangs in there: the backends need theirs.
        thread = self._thread
        if thread is not None:
            thread.join(seconds / 2)
        if (thread is not None and thread.is_alive()) or not self.drain(0.0):
            self._pending.give_up()
            self._count_lost()
        self._pending.closed()
        for exporter in self.exporters:
            exporter.close(until)
        for exporter in self.exporters:
            if not exporter.ended(until - time.monotonic()):
                exporter.abandon()

    def after_fork(self) -> None:
        """In the child: begin anew. What waits and what was counted is the parent's; what was closed stays closed."""
        self._pending.after_fork()
        self._begin()
        self._meter.reset()
        self._redactor.after_fork()
        for exporter in self.exporters:
            exporter.after_fork()
        if self._is_started and not self._is_closing:
            self.start()


_Failure = tuple[str, str, BaseException]
"""The signal that is lost, what to say, and why."""


class _Made:
    """What a chunk of items came to."""

    __slots__ = ("clean", "failures", "lines", "spans")

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.clean: set[int] = set()
        """Places of spans that are redacted and cut to size already."""
        self.lines: list[LogLine] = []
        self.failures: list[_Failure] = []

    def fail(self, item: Any, error: BaseException, *, signal: str | None = None) -> None:
        """`item` is lost because of `error`, or the `signal` that it should have become."""
        kind = type(item)
        what = f"telemetry could not be made of a {kind.__name__}"
        if isinstance(error, ConfigError):
            what = f"record_metric: {error}"
        self.failures.append((signal or _signal_of(item), what, error))


_SIGNALS: dict[type, str] = {
    Call: "calls",
    EndedRun: "runs",
    Measured: "metrics",
    LogLine: "logs",
    Span: "spans",
}


def _signal_of(item: Any) -> str:
    return _SIGNALS.get(type(item), "spans")


def _unsampled(parent: Any = None) -> Any:
    """A span made afterwards, for what was not sampled and failed."""
    from opentelemetry.context.context import Context

    from agentrt.telemetry.tracing import KEY, LiveSpan

    return LiveSpan(Context() if parent is None else Context({KEY: parent}))
