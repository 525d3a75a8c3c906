"""The tests that every telemetry backend should pass. In a plugin's own tests:

    from agentrt.testing import TelemetryBackendTests

    class TestWebhook(TelemetryBackendTests):
        def make(self):
            return Webhook(url=self.server.url)

Plain methods: pytest runs them as they are, without a plugin of its own; fixtures may set up what `make` needs.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import ClassVar

import msgspec
from msgspec import Struct

from agentrt.config import Config
from agentrt.context import Context
from agentrt.errors import AgentrtError, PermanentError, classify
from agentrt.runtime import Runtime
from agentrt.telemetry.exporting import Delivered
from agentrt.telemetry.protocol import TelemetryBackend
from agentrt.telemetry.signals import Attributes, Batch, Signal
from agentrt.telemetry.wanted import SIGNALS
from agentrt.testing import telemetry_batches as batches
from agentrt.testing.backend_thread import LEFT, SLACK, BackendThread, eventually, leaves_nothing
from agentrt.testing.suite import Suite, check, check_options, needs
from agentrt.testing.telemetry_batches import Source

__all__ = ["TelemetryBackendTests"]

NAME = "tested"
RUNS = 20
SHORT = 1.0
"""Seconds that a delivery may take where the server hangs: as when a runtime ends."""
SHUTDOWN = 2.0
"""Seconds that a runtime is given to end in where the server fails."""


class TelemetryBackendTests(Suite):
    """Subclass it and say how to `make` the backend. The more of the other methods there are, the more is tested; tests
    that lack theirs are left out.

    `secrets`: values by `secret://` reference, for a backend that looks some up. `patience`: seconds that what was
    delivered may take to be found (10.0).
    """

    secrets: ClassVar[Mapping[str, str]] = {}
    patience: ClassVar[float] = 10.0

    # --- what a plugin's author writes ------------------------------------------------------------------

    def make(self) -> TelemetryBackend:
        """A new backend that delivers to a working server of the tests. Called several times in a test."""
        raise NotImplementedError(f"{type(self).__name__} needs `def make(self)`, which returns the backend")

    def delivered(self) -> str | bytes:
        """Everything that has arrived until now, in whatever form: names and messages are looked for in it."""
        raise NotImplementedError

    def failing(self) -> AbstractContextManager[object]:
        """A block in which the server fails in a way that passes: 503, or a connection refused."""
        raise NotImplementedError

    def hanging(self) -> AbstractContextManager[object]:
        """A block in which the server takes what it gets and never answers."""
        raise NotImplementedError

    # --- what it is -------------------------------------------------------------------------------------

    def test_its_options_can_be_read_from_a_table(self) -> None:
        check_options(type(self.make()))

    def test_what_it_says_of_itself_can_be_used(self) -> None:
        backend = self.make()
        signals = _signals(backend)
        check(bool(signals), "`signals` is empty: it would get nothing")
        unknown = [signal for signal in signals if signal not in SIGNALS]
        check(not unknown, f"`signals` has {unknown}; there are {', '.join(SIGNALS)}")
        check(isinstance(getattr(backend, "delta", False), bool), "`delta` must be True or False")
        for name in ("interval", "timeout"):
            value = getattr(backend, name, 1.0)
            fine = isinstance(value, int | float) and math.isfinite(value) and value > 0
            check(fine, f"`{name}` must be a number of seconds above 0, not {value!r}")
        size = getattr(backend, "batch_size", 1)
        check(isinstance(size, int) and size > 0, f"`batch_size` must be a whole number from 1, not {size!r}")

    # --- what it takes ----------------------------------------------------------------------------------

    def test_it_takes_each_signal_alone_and_all_together(self) -> None:
        with self._opened() as (thread, source):
            for signal in source.signals:
                _take(thread, source.usual(only=signal).batch, f"{signal} alone")
            _take(thread, source.usual().batch, "all its signals together")

    def test_it_takes_what_has_no_attributes(self) -> None:
        self._takes(batches.EMPTY, "no attributes")

    def test_it_takes_attributes_of_every_type(self) -> None:
        self._takes(batches.EVERY_TYPE, "attributes of every type")

    def test_it_takes_every_text(self) -> None:
        self._takes(batches.TEXTS, "quotes, control characters and other scripts")

    def test_it_takes_the_longest_texts(self) -> None:
        self._takes(batches.LONG, "texts of 32 KB")

    def test_it_takes_as_many_attributes_as_there_can_be(self) -> None:
        self._takes(batches.MANY, "128 attributes")

    def test_it_takes_events_links_and_every_kind_status_and_level(self) -> None:
        with self._opened() as (thread, source):
            _take(thread, source.every_kind(), "every kind of span, metric and line")

    def test_it_takes_one_batch_after_another(self) -> None:
        with self._opened() as (thread, source):
            for number in range(5):
                _take(thread, source.usual().batch, f"batch {number}, whose metrics went on")

    def test_it_takes_a_full_batch(self) -> None:
        with self._opened() as (thread, source):
            size = getattr(thread.backend, "batch_size", 512)
            _take(thread, source.full(size), f"a batch of {size} items")

    @needs("delivered")
    def test_what_was_sent_arrives(self) -> None:
        with self._opened() as (thread, source):
            sent = source.usual()
            _take(thread, sent.batch, "all its signals together")
        self._find(sent.marks)

    # --- how it treats it -------------------------------------------------------------------------------

    def test_it_does_not_change_the_batch(self) -> None:
        with self._opened() as (thread, source):
            batch = source.usual(attributes=batches.EVERY_TYPE).batch
            before = msgspec.msgpack.encode(batch)
            _take(thread, batch, "attributes of every type")
            check(
                msgspec.msgpack.encode(batch) == before,
                "export changed the batch, which other backends get as well: change a copy",
            )

    def test_it_lets_go_of_the_batch(self) -> None:
        with self._opened() as (thread, source):
            _take(thread, source.usual().batch, "all its signals together")  # what is kept once is kept now
            batch = source.usual().batch
            before = sys.getrefcount(batch)
            _take(thread, batch, "all its signals together")
            check(
                eventually(lambda: sys.getrefcount(batch) <= before, LEFT),
                "the batch is still referred to after export: what is kept of every batch fills the memory",
            )

    def test_the_same_batch_may_come_twice(self) -> None:
        with self._opened() as (thread, source):
            batch = source.usual().batch
            _take(thread, batch, "the first time")
            _take(thread, batch, "the same batch again, as after an answer that came too late")

    # --- its life ---------------------------------------------------------------------------------------

    def test_it_may_be_opened_and_closed_twice(self) -> None:
        with self._thread() as thread:
            thread.open()
            thread.open()
            _take(thread, self._source(thread.backend).usual().batch, "after it was opened twice")
            thread.aclose()
            thread.aclose()

    def test_it_may_be_closed_without_having_been_opened(self) -> None:
        with self._thread() as thread:
            thread.aclose()

    def test_it_may_be_used_again_in_another_thread(self) -> None:
        """As in a forked process: what it had is closed or forgotten, and the event loop is another one."""
        backend = self.make()
        source = self._source(backend)
        for life in ("the first thread", "another thread, with another event loop"):
            with self._opened(backend) as (thread, _):
                _take(thread, source.usual().batch, life)

    def test_it_leaves_nothing_behind(self) -> None:
        def life() -> None:
            with self._opened() as (thread, source):
                _take(thread, source.usual().batch, "all its signals together")

        leaves_nothing(life)

    # --- in a runtime -----------------------------------------------------------------------------------

    def test_a_runtime_delivers_everything(self) -> None:
        runs = self._run_agent(self.make(), budget=self.patience)
        check(not runs.report.lost, f"a runtime lost some: {runs.report}")
        check(runs.report.error is None, f"export raised in a runtime: {runs.report.error}")
        runs.check_counts()

    @needs("delivered")
    def test_what_a_run_did_arrives(self) -> None:
        self._find(self._run_agent(self.make(), budget=self.patience).marks)

    # --- when the server fails --------------------------------------------------------------------------

    @needs("failing")
    def test_a_failure_that_passes_is_raised_as_one(self) -> None:
        with self._opened() as (thread, source), self.failing():
            _failure(thread, source.usual().batch)

    @needs("failing", "delivered")
    def test_what_failed_arrives_when_it_is_tried_again(self) -> None:
        with self._opened() as (thread, source):
            sent = source.usual()
            with self.failing():
                _failure(thread, sent.batch)
            _take(thread, sent.batch, "the second try, when the server was well again")
        self._find(sent.marks)

    @needs("failing")
    def test_it_leaves_nothing_behind_after_a_failure(self) -> None:
        def life() -> None:
            with self._opened() as (thread, source), self.failing():
                _failure(thread, source.usual().batch)

        leaves_nothing(life)

    @needs("failing")
    def test_a_run_does_not_notice_failures(self) -> None:
        with self.failing():
            runs = self._run_agent(self.make(), budget=SHUTDOWN)
        runs.check_failure()

    @needs("hanging")
    def test_a_delivery_that_hangs_ends_in_time(self) -> None:
        backend = self.make()
        if inspect.iscoroutinefunction(backend.export):
            limit = SHORT  # cancelled by then, as at the end of a runtime
        else:
            limit = float(
                getattr(backend, "timeout", 10.0)
            )  # nobody can cancel it: it has to keep to that itself
        with self._thread(backend) as thread:
            thread.open()
            with self.hanging():
                thread.timeout = limit
                _failure(thread, self._source(backend).usual().batch)
            thread.aclose()

    @needs("hanging")
    def test_a_server_that_hangs_does_not_hold_up_the_end(self) -> None:
        with self.hanging():
            runs = self._run_agent(self.make(), budget=SHUTDOWN)
        runs.check_failure()

    # --- inside -----------------------------------------------------------------------------------------

    def _thread(self, backend: TelemetryBackend | None = None) -> BackendThread:
        made = self.make() if backend is None else backend
        timeout = float(getattr(made, "timeout", 10.0))
        return BackendThread(made, timeout=timeout, secrets=self.secrets)

    def _source(self, backend: TelemetryBackend) -> Source:
        return Source(_signals(backend), delta=bool(getattr(backend, "delta", False)))

    @contextmanager
    def _opened(self, backend: TelemetryBackend | None = None) -> Generator[tuple[BackendThread, Source]]:
        """A backend from `open` to `aclose`, which must leave no task."""
        with self._thread(backend) as thread:
            thread.open()
            try:
                yield thread, self._source(thread.backend)
            finally:
                thread.aclose()
            tasks = thread.tasks()
            check(not tasks, f"after aclose there are tasks left: {', '.join(tasks)}")

    def _takes(self, attributes: Attributes, what: str) -> None:
        with self._opened() as (thread, source):
            _take(thread, source.usual(attributes=attributes).batch, what)

    def _find(self, marks: Mapping[Signal, tuple[str, ...]]) -> None:
        wanted = [(signal, mark) for signal, of_signal in marks.items() for mark in of_signal]

        def missing() -> list[str]:
            arrived = self.delivered()
            text = arrived if isinstance(arrived, str) else arrived.decode("utf-8", "replace")
            return [f"{signal} ({mark!r})" for signal, mark in wanted if mark not in text]

        if not eventually(lambda: not missing(), self.patience):
            raise AssertionError(
                f"export returned, so that they count as delivered, but {', '.join(missing())} did not arrive within "
                f"{self.patience:g} s"
            )

    def _run_agent(self, backend: TelemetryBackend, *, budget: float) -> _Runs:
        """`RUNS` runs with the backend, and an end that may take `budget` seconds."""
        source = self._source(backend)
        marks: dict[Signal, tuple[str, ...]] = {
            signal: words[:1] for signal, words in source.usual().marks.items()
        }
        word = {signal: words[0] for signal, words in marks.items()}

        async def agent(message: str, ctx: Context) -> str:
            with ctx.start_span(f"conformance {word.get('spans', '')}"):
                ctx.log("info", f"conformance {word.get('logs', '')}")
            ctx.record_metric(f"conformance.{word.get('metrics', 'runs')}", 1.0, kind="counter")
            return message

        async def scenario() -> _Runs:
            config = Config({"telemetry": {"service": "conformance", "none": {}}})
            backends = [(NAME, backend), ("all", _Counting(source.signals))]
            async with Runtime(config, backends=backends) as runtime:
                for _ in range(RUNS):
                    answer = await runtime.run(agent, "hello")
                    check(answer.output == "hello", f"the run ended with {answer.output!r}")
                began = time.monotonic()
                await runtime.telemetry.aclose(budget)
                seconds = time.monotonic() - began
            reports = {report.name: report for report in runtime.telemetry.report()}
            is_whole = "before any backend" not in reports
            return _Runs(reports[NAME], reports["all"], seconds, marks, is_whole)

        return asyncio.run(scenario())


class _Runs(Struct, frozen=True):
    """What became of `RUNS` runs: the backend's report, that of one that takes all, the seconds that the end took, the
    words that must have arrived, and whether the backends were given all (a machine that is held up may be too late).
    """

    report: Delivered
    offered: Delivered
    seconds: float
    marks: dict[Signal, tuple[str, ...]]
    is_whole: bool

    def check_counts(self) -> None:
        """Delivered and lost together are what there was."""
        signals: tuple[Signal, ...] = ("spans", "logs")
        for signal in signals:
            if signal not in self.marks:
                continue
            # The one that takes all may have had no time for all: a machine can stand still for the whole of an end.
            told, there = _accounted(self.report, signal), _accounted(self.offered, signal)
            check(told == there, f"there were {there} {signal}, and {told} are accounted for: {self.report}")

    def check_failure(self) -> None:
        """Nothing arrived; the end was in time all the same, and everything is accounted for."""
        told = bool(self.report.lost) or not self.is_whole
        check(told, f"nothing was delivered, and it was not told: {self.report}")
        check(self.seconds < SHUTDOWN + SLACK, f"the runtime took {self.seconds:.1f} s to end")
        self.check_counts()


class _Counting:
    """Takes everything."""

    def __init__(self, signals: tuple[Signal, ...]) -> None:
        self.signals = signals

    def export(self, batch: Batch, /) -> None:
        del batch


def _accounted(report: Delivered, signal: Signal) -> int:
    """How many of `signal` a backend was offered, as its report tells it."""
    return report.delivered.get(signal, 0) + sum(n for (lost, _), n in report.lost.items() if lost == signal)


def _signals(backend: TelemetryBackend) -> tuple[Signal, ...]:
    return tuple(getattr(backend, "signals", SIGNALS))


def _take(thread: BackendThread, batch: Batch, what: str) -> None:
    try:
        thread.export(batch)
    except Exception as error:
        raise AssertionError(f"{what}: export raised {type(error).__name__}: {error}") from error


def _failure(thread: BackendThread, batch: Batch) -> Exception:
    """What export raises, which must make a runtime try again."""
    try:
        thread.export(batch)
    except AssertionError:
        raise
    except (AgentrtError, OSError) as error:
        if isinstance(error, PermanentError) or not (classify(error).retry or isinstance(error, OSError)):
            raise AssertionError(
                f"export raised {type(error).__name__}: {error}; the batch would be lost. For what may work later "
                "raise TransientError or ThrottledError"
            ) from error
        return error
    except Exception as error:
        raise AssertionError(
            f"export let {type(error).__module__}.{type(error).__name__} through ({error}); the batch would be lost. "
            "Raise an error of agentrt.errors from it, TransientError for what may work later"
        ) from error
    raise AssertionError("export returned, so that the batch counts as delivered, while the server failed")
