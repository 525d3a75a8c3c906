"""One backend at work: its queue, its thread, and the count of what became of everything.

The queue is bounded and nobody ever waits for it: what does not fit is dropped and counted. The thread has an event
loop of its own for `async def export`; a backend that blocks or hangs holds up only itself.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct

from agentrt import options
from agentrt.errors import ConfigError
from agentrt.telemetry.conventions import error_text
from agentrt.telemetry.daemon_threads import DaemonThreads
from agentrt.telemetry.failures import asked_to_wait, may_work_later, nobody_is_there
from agentrt.telemetry.logs import not_forwarded
from agentrt.telemetry.meter import Deltas, Meter
from agentrt.telemetry.signals import Batch, LogLine, Metric, Resource, Signal, Span
from agentrt.telemetry.suppress import instrumentation_suppressed
from agentrt.telemetry.telling import tell
from agentrt.telemetry.wanted import SIGNALS, wanted

__all__ = ["Delivered", "Exporting"]

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
"""Seconds between two tries of one batch, doubled from the first to the longest."""

MAX_TRIES = 8

ABSENT_SECONDS = 1.0
ABSENT_PAUSE = 0.1
"""Seconds for which a shutdown tries to reach a backend where nobody has ever answered, and between two tries."""


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
        self._meter = meter
        self.resource = resource
        self._host = host
        self._limit = queue
        try:
            self.wants = frozenset(wanted(getattr(backend, "signals", SIGNALS)))
            self._interval = options.seconds("interval", getattr(backend, "interval", interval))
            self._batch_size = options.count("batch_size", getattr(backend, "batch_size", 512))
            self._timeout = options.seconds("timeout", getattr(backend, "timeout", 10.0))
        except ConfigError as error:
            raise ConfigError(f"the telemetry backend {name}: {error}") from error
        self._redact = redact
        self._note_dropped = dropped
        self._deltas = Deltas() if getattr(backend, "delta", False) else None
        self._begin()
        self.delivered: Counter[str] = Counter()
        self.lost: Counter[tuple[str, str]] = Counter()
        self.error: str | None = None
        self._told: set[str] = set()
        self._has_answered = False

    def _begin(self) -> None:
        """What a thread needs; made anew in a forked process, where the old thread is not."""
        self._waiting: deque[Span | LogLine] = deque()
        self._in_flight: Batch | None = None
        self._in_flight_since = 0.0
        # Guards all of the state and the counts. Under it the meter's lock may be taken, never the other way round.
        self._changed = threading.Condition()
        self._ended = threading.Event()
        self._closing_at: float | None = None
        self._closing_since = 0.0
        self._flushes = 0
        self._flushed = 0
        self._undelivered = 0
        self._next_metrics = 0.0
        self._thread: threading.Thread | None = None

    # --- from other threads -----------------------------------------------------------------------------

    def offer(self, spans: list[Span], lines: list[LogLine]) -> None:
        """Take what this backend wants; what does not fit is counted as lost."""
        with self._changed:
            for signal, items in (("spans", spans), ("logs", lines)):
                if signal not in self.wants or not items:
                    continue
                if self._closing_at is not None:
                    self._lose(signal, "shutdown", len(items))
                    continue
                room = max(0, self._limit - len(self._waiting))
                self._lose(signal, "queue full", len(items) - room)
                self._waiting.extend(items[:room])
            if self._waiting:
                self.start()
            if len(self._waiting) >= self._batch_size:
                self._changed.notify_all()

    def start(self) -> bool:
        """Start the thread, if it does not run; False if the system has no thread for it."""
        with self._changed:
            if self._thread is None:
                name = f"agentrt telemetry {self.name}"
                thread = threading.Thread(target=self._run, name=name, daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    # Too many threads, or the interpreter is about to exit. The next offer tries again.
                    self._fail(error)
                    return False
                self._thread = thread
            return True

    def flush(self, seconds: float) -> bool:
        """Deliver now what waits; False if that was not done in `seconds`, or the backend did not take it."""
        with self._changed:
            if self._thread is None:
                return not self._waiting
            if self._ended.is_set():
                return not self.lost
            before = self._undelivered
            self._flushes += 1
            wanted = self._flushes
            self._changed.notify_all()
            is_done = self._changed.wait_for(
                lambda: self._flushed >= wanted or self._ended.is_set(), max(0.0, seconds)
            )
            return is_done and self._undelivered == before

    def close(self, until: float) -> None:
        """Begin to end: what waits is still tried until `until` (`time.monotonic()`), then counted as lost."""
        with self._changed:
            self._closing_at = until
            self._closing_since = time.monotonic()
            is_idle = self._thread is None and not self._waiting and "metrics" not in self.wants
            if is_idle or not self.start():
                self._settle()
            self._changed.notify_all()

    def ended(self, seconds: float) -> bool:
        """Wait up to `seconds` for the end after `close`."""
        return self._ended.wait(max(0.0, seconds))

    def abandon(self) -> None:
        """The thread hangs: what it has not delivered is lost, even if it comes through later."""
        batch = self._in_flight
        left = {} if batch is None else self._left_of(batch)
        with self._changed:
            if self._in_flight is not None:
                # In the meantime it may have become another one.
                self._settle_batch(left if self._in_flight is batch else self._in_flight.counts, "shutdown")
                if self.error is None:
                    self._fail(self._hanging())
            self._settle()

    def _hanging(self) -> TimeoutError:
        """Why something is lost although no call of the backend's failed: one did not return. A backend that tries
        again by itself may have said why, in its attribute `said`."""
        said = getattr(self.backend, "said", None)
        took = time.monotonic() - self._in_flight_since
        return TimeoutError(f"it was at work for {took:.1f} s" + (f", and said: {said}" if said else ""))

    @property
    def has_told(self) -> bool:
        """Whether a failure of this backend was logged."""
        return bool(self._told)

    def report(self) -> Delivered:
        with self._changed:
            return Delivered(self.name, dict(self.delivered), dict(self.lost), self.error)

    def after_fork(self) -> None:
        """In the child: what waited is the parent's to deliver, and what was closed stays closed."""
        closing_at = self._closing_at
        self._begin()
        self.delivered.clear()
        self.lost.clear()
        self.error = None
        self._told.clear()
        if self._deltas is not None:
            self._deltas = Deltas()
        if closing_at is not None:
            self._closing_at = closing_at
            self._ended.set()

    # --- in the thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        not_forwarded()
        try:
            with instrumentation_suppressed(), asyncio.Runner() as runner:
                runner.get_loop().set_default_executor(DaemonThreads())
                if self._opened(runner):
                    self._serve(runner)
                    self._closed(runner)
                # Before the loop is closed: that waits for tasks of the backend's, which may hang.
                with self._changed:
                    self._settle()
        except BaseException as error:
            if self._ended.is_set():
                # A task of the backend's, or a process that ends and so has no thread to close a loop with.
                tell(
                    logging.DEBUG,
                    "the telemetry backend %s left its event loop behind",
                    self.name,
                    error=error,
                )
                return
            # A task of the backend's that raised SystemExit, for example, or a bug of ours.
            self._fail(error)
            tell(logging.ERROR, "the telemetry backend %s can take nothing any more", self.name, error=error)
            self._refuse_all()
            with self._changed:
                self._settle()

    def _settle(self) -> None:
        """Nothing is delivered any more: what waits is lost. The caller holds the lock."""
        if self._waiting:
            self._undelivered += 1
        for item in self._waiting:
            self._lose("spans" if isinstance(item, Span) else "logs", "shutdown", 1)
        self._waiting.clear()
        self._ended.set()
        self._changed.notify_all()

    def _serve(self, runner: asyncio.Runner) -> None:
        self._next_metrics = time.monotonic() + self._interval
        while True:
            with self._changed:
                if (
                    self._closing_at is None
                    and self._flushed == self._flushes
                    and len(self._waiting) < self._batch_size
                ):
                    self._changed.wait(self._interval if not self._waiting else min(1.0, self._interval))
                is_closing = self._closing_at is not None
                wanted = self._flushes
            self._deliver_waiting(runner, with_metrics=is_closing or wanted > self._flushed)
            with self._changed:
                self._flushed = wanted
                self._changed.notify_all()
                if is_closing:
                    return  # nothing was added since, so whatever waits had no time left

    def _deliver_waiting(self, runner: asyncio.Runner, *, with_metrics: bool) -> None:
        """Deliver what waits now, and at its end the metrics (`with_metrics`), or before when their time has come: a
        backend that is always behind has them too. What comes meanwhile is for the next time."""
        left = len(self._waiting)
        is_last = False
        while not is_last:
            is_last = left <= self._batch_size
            now = time.monotonic()
            metrics: tuple[Metric, ...] = ()
            if (with_metrics and is_last) or now >= self._next_metrics:
                self._next_metrics = now + self._interval
                metrics = self._metrics()
            with self._changed:
                size = min(left, self._batch_size, len(self._waiting))
                items = [self._waiting.popleft() for _ in range(size)]
                if not items and not metrics:
                    return
                self._in_flight_since = now
                batch = self._in_flight = Batch(
                    self.resource,
                    tuple(item for item in items if isinstance(item, Span)),
                    metrics,
                    tuple(item for item in items if isinstance(item, LogLine)),
                )
            reason = self._deliver(runner, batch)
            lost = self._left_of(batch, has_failed=reason is not None)
            with self._changed:
                if self._in_flight is not batch:
                    return  # given up while it hung: counted already
                self._settle_batch(lost, reason)
                if self._is_over():
                    return
            left -= size

    def _metrics(self) -> tuple[Metric, ...]:
        if "metrics" not in self.wants:
            return ()
        metrics = self._meter.snapshot()
        if self._deltas is not None:
            metrics = self._deltas.of(metrics)
        return tuple(map(self._redact, metrics))

    def _deliver(self, runner: asyncio.Runner, batch: Batch) -> str | None:
        """Try until it is delivered, refused, or there is no time left. Returns the reason of a loss."""
        pause = FIRST_PAUSE
        tried = 0
        while True:
            error = self._call(runner, self.backend.export, batch)
            if error is None:
                self._has_answered = True
                return None
            self._fail(error)
            if not may_work_later(error):
                self._tell(error, "refuses some of what it gets", "is lost")
                return "failed"
            is_absent = nobody_is_there(error)
            self._has_answered = self._has_answered or not is_absent
            if is_absent and self._closing_at is not None:
                # Known at once and at no cost: as often as it likes, but not for long.
                self._tell(error, "fails for now", "is tried for a moment more")
                if not self._paused_for_absent():
                    return "shutdown"
                continue
            tried += 1
            if tried == MAX_TRIES:
                return "failed"
            self._tell(error, "fails for now", "waits in a bounded queue")
            asked = min(asked_to_wait(error), LONGEST_PAUSE)
            if not self._paused(max(pause, asked), may_hurry=not asked, must_hurry=is_absent):
                return "shutdown"
            pause = min(2 * pause, LONGEST_PAUSE)

    def _paused(self, seconds: float, *, may_hurry: bool, must_hurry: bool) -> bool:
        """Wait before the next try; False if there is no time for one. A shutdown that begins meanwhile has one last
        try at once: if there is no time for another (`may_hurry`), or in any case (`must_hurry`)."""
        until = time.monotonic() + seconds
        with self._changed:
            was_closing = self._closing_at is not None
            while (left := until - time.monotonic()) > 0.0:
                if self._closing_at is not None:
                    if must_hurry:
                        return not self._is_over()
                    if self._closing_at <= until:
                        return may_hurry and not was_closing and not self._is_over()
                self._changed.wait(left)
        return True

    def _paused_for_absent(self) -> bool:
        """Wait, during a shutdown, for somebody to be there; False if there is no time left. Who has answered before is
        waited for as long as may be: he was perhaps restarted."""
        with self._changed:
            assert self._closing_at is not None
            until = self._closing_at
            if not self._has_answered:
                until = min(until, self._closing_since + ABSENT_SECONDS)
            left = until - time.monotonic() - ABSENT_PAUSE
            if left <= 0.0:
                return False
            self._changed.wait(ABSENT_PAUSE)
            return not self._is_over()

    def _call(
        self, runner: asyncio.Runner, function: Callable[..., Any], *arguments: Any
    ) -> BaseException | None:
        """Call a function of the backend's within its time. Returns what it raised: whatever that is, SystemExit and
        CancelledError among it, it ends neither this thread nor its loop."""
        timeout = min(self._timeout, self._remaining())

        async def bounded() -> BaseException | None:
            try:
                async with asyncio.timeout(timeout):
                    outcome = function(*arguments)
                    if inspect.isawaitable(outcome):
                        await outcome
                    elif inspect.isasyncgen(outcome) or inspect.isgenerator(outcome):
                        raise TypeError("it is a generator: there is a `yield` in it, so nothing of it ran")
            except BaseException as error:
                return error
            return None

        return runner.run(bounded())

    def _remaining(self) -> float:
        """Seconds that a call of the backend's may take: until the end of a shutdown, infinite before one."""
        return math.inf if self._closing_at is None else max(0.05, self._closing_at - time.monotonic())

    def _is_over(self) -> bool:
        return self._closing_at is not None and time.monotonic() >= self._closing_at

    def _opened(self, runner: asyncio.Runner) -> bool:
        open_ = getattr(self.backend, "open", None)
        error = None if open_ is None else self._call(runner, open_, self._host)
        if error is None:
            return True
        self._fail(error)
        self._tell(error, "could not be opened", "is lost")
        self._refuse_all()
        return False

    def _refuse_all(self) -> None:
        """A backend that cannot be opened, or broke, takes nothing until the runtime ends."""
        batch = self._in_flight
        left = {} if batch is None else self._left_of(batch)
        with self._changed:
            self._settle_batch(left, "failed")
            while True:
                if self._waiting or self._flushed < self._flushes:
                    self._undelivered += 1
                for item in self._waiting:
                    self._lose("spans" if isinstance(item, Span) else "logs", "failed", 1)
                self._waiting.clear()
                self._flushed = self._flushes
                self._changed.notify_all()
                if self._closing_at is not None:
                    return
                self._changed.wait(self._interval)

    def _closed(self, runner: asyncio.Runner) -> None:
        aclose = getattr(self.backend, "aclose", None)
        error = None if aclose is None else self._call(runner, aclose)
        if error is not None:
            self._tell(error, "could not be closed", "was delivered before")

    # --- counting ---------------------------------------------------------------------------------------

    def _left_of(self, batch: Batch, *, has_failed: bool = True) -> dict[Signal, int]:
        """How much of `batch` did not arrive. The lock must not be held: the backend is asked."""
        ask = getattr(self.backend, "undelivered", None)
        if ask is None:
            return batch.counts if has_failed else {}
        try:
            told = ask(batch)
            return {name: max(0, min(int(told.get(name, 0)), count)) for name, count in batch.counts.items()}
        except Exception as error:
            self._tell(error, "cannot say what it delivered", "is counted as if nothing of the batch was")
            return batch.counts if has_failed else {}

    def _settle_batch(self, left: Mapping[Signal, int], reason: str | None) -> None:
        """Count what became of the batch in flight. The caller holds the lock."""
        batch, self._in_flight = self._in_flight, None
        if batch is None:
            return
        if reason is not None:
            self._undelivered += 1
        for signal, count in batch.counts.items():
            lost = left.get(signal, 0)
            if count > lost or reason is None:
                self.delivered[signal] += count - lost
            if signal != "metrics" or self._deltas is not None or self._closing_at is not None:
                # What a snapshot since the start has to say, the next one says as well.
                self._lose(signal, reason or "failed", lost)

    def _lose(self, signal: str, reason: str, count: int) -> None:
        """Count what is lost. The caller holds the lock."""
        if count > 0:
            self.lost[signal, reason] += count
            self._note_dropped(self.name, signal, reason, count)

    def _fail(self, error: BaseException) -> None:
        self.error = f"{type(error).__name__}: {error_text(error)}"

    def _tell(self, error: BaseException, what: str, then: str) -> None:
        """Once for each kind of failure: telemetry that fails must not fill the log."""
        if what not in self._told:
            self._told.add(what)
            tell(
                logging.WARNING,
                "the telemetry backend %s %s (%s: %s); what it should have %s. This is said once",
                self.name,
                what,
                type(error).__name__,
                error_text(error),
                then,
            )
