"""One backend at work: its queue, its thread, and the count of what became of everything.

The queue is bounded and nobody ever waits for it: what does not fit is dropped and counted. The thread has an event
loop of its own for `async def export`; a backend that blocks or hangs holds up only itself.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from msgspec import Struct

from agentrt.errors import ThrottledError, TransientError, classify
from agentrt.telemetry.logs import not_forwarded
from agentrt.telemetry.meter import Deltas, Meter
from agentrt.telemetry.signals import Batch, LogLine, Metric, Resource, Signal, Span
from agentrt.telemetry.suppress import instrumentation_suppressed

__all__ = ["Delivered", "Exporting"]

T = TypeVar("T")
logger = logging.getLogger("agentrt.telemetry")

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
"""Seconds between two tries of one batch, doubled from the first to the longest."""

MAX_TRIES = 8


class Delivered(Struct, frozen=True):
    """What became of one backend's telemetry: items delivered, and lost by signal and reason.

    Reasons: "queue full", "failed" (the backend refused them, or kept failing), "shutdown" (there was no time left).
    """

    name: str
    delivered: dict[str, int]
    lost: dict[tuple[str, str], int]
    error: str | None = None

    def __str__(self) -> str:
        parts = [f"{count} {signal} delivered" for signal, count in self.delivered.items() if count]
        parts += [f"{count} {signal} lost ({reason})" for (signal, reason), count in self.lost.items()]
        text = f"{self.name}: {', '.join(parts) or 'nothing to deliver'}"
        return f"{text}; {self.error}" if self.error and self.lost else text


class Exporting:
    """Delivers to `backend` what is offered, in a thread that starts with the first item.

    `queue`: spans and log lines that may wait. `interval`: seconds between batches unless the backend says.
    `host`: what its `open` gets. `redact`: for the metrics, which do not come through the processor.
    """

    def __init__(
        self,
        name: str,
        backend: Any,
        *,
        meter: Meter,
        resource: Resource,
        host: Any = None,
        queue: int = 20_000,
        interval: float = 5.0,
        redact: Callable[[Metric], Metric] = lambda metric: metric,
        dropped: Callable[[str, str, str, int], None] = lambda backend, signal, reason, count: None,
    ) -> None:
        self.name = name
        self.backend = backend
        signals: Iterable[Signal] = getattr(backend, "signals", ("spans", "metrics", "logs"))
        self.wants = frozenset(signals)
        self._meter = meter
        self._resource = resource
        self._host = host
        self._limit = queue
        self._interval = float(getattr(backend, "interval", interval))
        self._batch_size = int(getattr(backend, "batch_size", 512))
        self._timeout = float(getattr(backend, "timeout", 10.0))
        self._redact = redact
        self._note_dropped = dropped
        self._deltas = Deltas() if getattr(backend, "delta", False) else None
        self._begin()
        self.delivered: Counter[str] = Counter()
        self.lost: Counter[tuple[str, str]] = Counter()
        self.error: str | None = None
        self._told: set[str] = set()

    def _begin(self) -> None:
        """What a thread needs; made anew in a forked process, where the old thread is not."""
        self._waiting: deque[Span | LogLine] = deque()
        self._in_flight: list[Batch] = []
        self._changed = threading.Condition()
        self._ended = threading.Event()
        self._closing_at: float | None = None
        self._flushes = 0
        self._flushed = 0
        self._thread: threading.Thread | None = None

    # --- from other threads -----------------------------------------------------------------------------

    def offer(self, spans: list[Span], lines: list[LogLine]) -> None:
        """Take what this backend wants; what does not fit is counted as lost."""
        with self._changed:
            for signal, items in (("spans", spans), ("logs", lines)):
                if signal not in self.wants or not items:
                    continue
                room = self._limit - len(self._waiting)
                if len(items) > room or self._closing_at is not None:
                    kept = max(0, room) if self._closing_at is None else 0
                    self._lose(signal, "queue full", len(items) - kept)
                    items = items[:kept]
                self._waiting.extend(items)
            self.start()
            if len(self._waiting) >= self._batch_size:
                self._changed.notify_all()

    def start(self) -> None:
        """Start the thread, if it does not run."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, name=f"agentrt telemetry {self.name}", daemon=True
            )
            self._thread.start()

    def flush(self, seconds: float) -> bool:
        """Deliver now what waits; False if that was not done in `seconds`."""
        with self._changed:
            if self._thread is None:
                return True
            self._flushes += 1
            wanted = self._flushes
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._flushed >= wanted or self._ended.is_set(), seconds)

    def close(self, until: float) -> None:
        """Begin to end: what waits is still tried until `until` (`time.monotonic()`), then counted as lost."""
        with self._changed:
            self._closing_at = until
            if self._thread is None and "metrics" not in self.wants:
                self._ended.set()
                return
            self.start()
            self._changed.notify_all()

    def ended(self, seconds: float) -> bool:
        """Wait up to `seconds` for the end after `close`."""
        return self._ended.wait(max(0.0, seconds))

    def abandon(self) -> None:
        """The thread hangs: what it has not delivered is lost."""
        if not self._ended.is_set():
            with self._changed:
                left: list[Span | LogLine | Batch] = [*self._waiting, *self._in_flight]
                self._waiting.clear()
                self._in_flight.clear()
            for item in left:
                self._lose_item(item, "shutdown")

    def report(self) -> Delivered:
        return Delivered(self.name, dict(self.delivered), dict(self.lost), self.error)

    def after_fork(self) -> None:
        """In the child: what waited is the parent's to deliver."""
        self._begin()
        self.delivered.clear()
        self.lost.clear()

    # --- in the thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        not_forwarded()
        try:
            with instrumentation_suppressed(), asyncio.Runner() as runner:
                runner.get_loop().set_default_executor(_DaemonThreads())
                if self._opened(runner):
                    self._serve(runner)
                    self._closed(runner)
        finally:
            with self._changed:
                left = list(self._waiting)
                self._waiting.clear()
            for item in left:
                self._lose_item(item, "shutdown" if self.error is None else "failed")
            self._ended.set()
            with self._changed:
                self._changed.notify_all()

    def _serve(self, runner: asyncio.Runner) -> None:
        next_metrics = time.monotonic() + self._interval
        while True:
            with self._changed:
                wanted = self._flushes
                if (
                    self._closing_at is None
                    and self._flushed == wanted
                    and len(self._waiting) < self._batch_size
                ):
                    self._changed.wait(self._interval if not self._waiting else min(1.0, self._interval))
                closing = self._closing_at is not None
                wanted = self._flushes
            due = time.monotonic() >= next_metrics or wanted > self._flushed or closing
            if due:
                next_metrics = time.monotonic() + self._interval
            self._deliver_waiting(runner, with_metrics=due)
            with self._changed:
                self._flushed = wanted
                self._changed.notify_all()
                if closing and (not self._waiting or self._remaining() <= 0.0):
                    return

    def _deliver_waiting(self, runner: asyncio.Runner, *, with_metrics: bool) -> None:
        while True:
            with self._changed:
                items = [self._waiting.popleft() for _ in range(min(self._batch_size, len(self._waiting)))]
                more = bool(self._waiting)
                metrics = () if more or not with_metrics else self._metrics()
                if not items and not metrics:
                    return
                batch = Batch(
                    self._resource,
                    tuple(item for item in items if isinstance(item, Span)),
                    metrics,
                    tuple(item for item in items if isinstance(item, LogLine)),
                )
                self._in_flight.append(batch)
            reason = self._deliver(runner, batch)
            with self._changed:
                if batch not in self._in_flight:
                    return  # given up while it hung: counted already
                self._in_flight.clear()
            if reason is None:
                self._count(batch)
            else:
                self._lose_item(batch, reason)
            if not more:
                return

    def _metrics(self) -> tuple[Metric, ...]:
        if "metrics" not in self.wants:
            return ()
        snapshot = tuple(map(self._redact, self._meter.snapshot()))
        return snapshot if self._deltas is None else self._deltas.of(snapshot)

    def _deliver(self, runner: asyncio.Runner, batch: Batch) -> str | None:
        """Try until it is delivered, refused, or there is no time left. Returns the reason of a loss."""
        pause = FIRST_PAUSE
        for tried in range(1, MAX_TRIES + 1):
            try:
                self._call(runner, self.backend.export, batch)
                return None
            except Exception as error:
                self.error = f"{type(error).__name__}: {error}"
                if not _may_work_later(error):
                    self._tell(error, "refused", "are lost")
                    return "failed"
                if tried == MAX_TRIES:
                    break
                self._tell(error, "does not take", "wait in a bounded queue meanwhile")
                asked = error.retry_after if isinstance(error, ThrottledError) else None
                if not self._paused(max(pause, min(asked or 0.0, LONGEST_PAUSE))):
                    return "shutdown"
                pause = min(2 * pause, LONGEST_PAUSE)
        return "failed"

    def _paused(self, seconds: float) -> bool:
        """Wait before the next try; False if there is no time for one."""
        until = time.monotonic() + seconds
        with self._changed:
            while (left := until - time.monotonic()) > 0.0:
                if self._closing_at is not None and self._closing_at <= until:
                    return False
                self._changed.wait(left)
        return True

    def _call(self, runner: asyncio.Runner, function: Callable[..., Any], *arguments: Any) -> None:
        timeout = min(self._timeout, self._remaining())

        async def bounded() -> None:
            async with asyncio.timeout(timeout):
                outcome = function(*arguments)
                if outcome is not None:
                    await outcome

        runner.run(bounded())

    def _remaining(self) -> float:
        """Seconds until the end of a shutdown; infinite before one."""
        return float("inf") if self._closing_at is None else max(0.05, self._closing_at - time.monotonic())

    def _opened(self, runner: asyncio.Runner) -> bool:
        open_ = getattr(self.backend, "open", None)
        if open_ is None:
            return True
        try:
            self._call(runner, open_, self._host)
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"
            self._tell(error, "could not be opened", "are lost")
            self._refuse_all()
            return False
        return True

    def _refuse_all(self) -> None:
        """A backend that cannot be opened takes nothing until the runtime ends."""
        while True:
            with self._changed:
                left = list(self._waiting)
                self._waiting.clear()
                closing = self._closing_at is not None
                self._flushed = self._flushes
                self._changed.notify_all()
            for item in left:
                self._lose_item(item, "failed")
            if closing:
                return
            with self._changed:
                self._changed.wait(self._interval)

    def _closed(self, runner: asyncio.Runner) -> None:
        aclose = getattr(self.backend, "aclose", None)
        if aclose is None:
            return
        try:
            self._call(runner, aclose)
        except Exception as error:
            self._tell(error, "could not be closed", "were delivered before")

    # --- counting ---------------------------------------------------------------------------------------

    def _count(self, batch: Batch) -> None:
        self.delivered["spans"] += len(batch.spans)
        self.delivered["logs"] += len(batch.logs)
        self.delivered["metrics"] += sum(len(metric.points) for metric in batch.metrics)

    def _lose_item(self, item: Span | LogLine | Batch, reason: str) -> None:
        if isinstance(item, Batch):
            self._lose("spans", reason, len(item.spans))
            self._lose("logs", reason, len(item.logs))
            if self._deltas is not None or self._closing_at is not None:
                # What a snapshot since the start has to say, the next one says as well.
                self._lose("metrics", reason, sum(len(metric.points) for metric in item.metrics))
        else:
            self._lose("spans" if isinstance(item, Span) else "logs", reason, 1)

    def _lose(self, signal: str, reason: str, count: int) -> None:
        if count:
            self.lost[signal, reason] += count
            self._note_dropped(self.name, signal, reason, count)

    def _tell(self, error: Exception, what: str, then: str) -> None:
        """Once for each kind of failure: telemetry that fails must not fill the log."""
        if what not in self._told:
            self._told.add(what)
            logger.warning(
                "the telemetry backend %s %s (%s: %s); spans, metrics and log lines %s. This is said once",
                self.name,
                what,
                type(error).__name__,
                error,
                then,
            )


class _DaemonThreads(ThreadPoolExecutor):
    """Runs each function in a daemon thread of its own: one that hangs (a name to be looked up, say) would keep the
    process from ending, as the usual executor's threads are waited for."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()

        def work() -> None:
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        threading.Thread(target=work, name="agentrt telemetry worker", daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Nothing is waited for."""


def _may_work_later(error: Exception) -> bool:
    return isinstance(error, TransientError | OSError | TimeoutError) or classify(error).retry
