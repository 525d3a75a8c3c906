"""Telemetry as a runtime has it: what runs and calls report to, what users log, measure and trace with, and its end."""

from __future__ import annotations

import asyncio
import logging
import re
import sys
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from msgspec.structs import replace

from agentrt.call import Call
from agentrt.clock import reader
from agentrt.config.sections import TelemetrySection
from agentrt.errors import ConfigError
from agentrt.telemetry.call_metrics import CallMetrics
from agentrt.telemetry.conventions import error_text
from agentrt.telemetry.exporting import Delivered, Exporting
from agentrt.telemetry.global_provider import GlobalProvider, existing_provider
from agentrt.telemetry.instance import resource_of
from agentrt.telemetry.meter import Instrument, Meter
from agentrt.telemetry.no_span import NO_SPAN, ActiveSpan
from agentrt.telemetry.processor import EndedRun, Measured, Processor
from agentrt.telemetry.protocol import Collect, QuickCollect, combine
from agentrt.telemetry.redaction import Redactor
from agentrt.telemetry.signals import Metric
from agentrt.threads import WorkerThreads

if TYPE_CHECKING:
    from agentrt.middleware.telemetry import Tracing
    from agentrt.telemetry.logs import Logs
    from agentrt.telemetry.run_tracing import Spans

__all__ = ["RuntimeTelemetry"]

logger = logging.getLogger("agentrt.telemetry")

SHUTDOWN_SECONDS = 5.0
"""What the end of telemetry may take if nobody gives it less."""

MetricKindName = Literal["counter", "gauge", "histogram"]
_LARGEST = sys.float_info.max
_METRIC_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.\-/]{0,254}")


class RuntimeTelemetry:
    """`rt.telemetry`: `log`, `record_metric` and `start_span` as on a run's context, but outside of runs.

    `backends`: by name; `metrics()`: all metrics of this runtime as they stand; `flush()`: deliver now; `report()`:
    what each backend delivered and lost. `redactor`: takes secrets (`redactor.add(value)`) that must not go out.
    """

    def __init__(
        self,
        settings: TelemetrySection,
        backends: Sequence[tuple[str, Any]],
        *,
        host: Any,
        own_process: bool = False,
    ) -> None:
        self.settings = settings
        self.backends = list(backends)
        if (provider := existing_provider()) is not None:
            self.backends.append(("global provider", GlobalProvider(provider)))
        self.redactor = Redactor(patterns=settings.redact, keys=settings.redact_keys)
        self.meter = Meter()
        self.resource = resource_of(settings)
        self._own_process = own_process
        self._is_closed = False
        self._told: set[str] = set()
        self._flushes = WorkerThreads(limit=2, idle_seconds=1.0, name="agentrt telemetry flush")
        # Its own: the end must not wait for a thread that flushes to what hangs.
        self._ends = WorkerThreads(limit=1, idle_seconds=1.0, name="agentrt telemetry end")
        collectors = [backend for _, backend in self.backends if hasattr(backend, "collect")]
        self._collectors = [each for each in collectors if getattr(each, "is_used", True)]
        for collector in self._collectors:
            if hasattr(collector, "redact"):
                collector.redact = self.redactor.text
        self._exporters = [
            Exporting(
                name,
                backend,
                meter=self.meter,
                resource=self.resource,
                host=_ThreadHost(host),
                queue=settings.queue,
                interval=settings.interval,
                redact=self.redactor.metric,
                dropped=self._note_dropped,
            )
            for name, backend in self.backends
            if hasattr(backend, "export")
        ]
        self.is_on = bool(self._collectors or self._exporters)
        self._processor = Processor(
            meter=self.meter,
            redactor=self.redactor,
            exporters=self._exporters,
            limit=settings.queue,
            keep_failures=settings.keep_failures,
            value_bytes=settings.value_bytes,
            captures=settings.capture_content,
        )
        # Without a backend that exports a call is added to the metrics, and that is all there is to do: a queue would
        # only hold on to requests and errors.
        self._measures = CallMetrics(self.meter)
        self._spans_wanted = any("spans" in each.wants for each in self._exporters)
        self._logs_wanted = any("logs" in each.wants for each in self._exporters)
        self._spans: Spans | None = None
        self.tracing: Tracing | None = None
        """What the telemetry stage makes spans with; None if nobody wants spans."""
        if self._spans_wanted:
            self._trace()
        _forks.add(self)

    def _trace(self) -> None:
        from agentrt.telemetry.run_tracing import Spans

        self._spans = Spans(self.settings, self._processor, own_process=self._own_process)
        self.tracing = self._spans.calls

    # --- what users call --------------------------------------------------------------------------------

    def log(self, level: str, message: str, /, **context: Any) -> None:
        """Log a line; `level` as in the standard library ("info"). It goes to the process's logs, and to backends."""
        self.write_log(level, message, context)

    def write_log(
        self, level: str, message: str, context: Mapping[str, Any], *, extra: Mapping[str, Any] | None = None
    ) -> None:
        """The same with the `extra` that a log record gets."""
        number = logging.getLevelNamesMapping().get(level.upper()) if isinstance(level, str) else None
        if number is None:
            raise ConfigError(f"{level!r} is not a log level; use debug, info, warning, error or critical")
        _run_logger.log(number, message, extra={**(extra or {}), "context": context}, stacklevel=3)
        self._send_line(number, message, context, _run_logger)

    def record_metric(
        self,
        name: str,
        value: float,
        tags: Mapping[str, Any] | None = None,
        *,
        kind: MetricKindName = "histogram",
        unit: str = "",
    ) -> None:
        """Record a value of a metric of yours.

        `kind`: "histogram" (how values are distributed; the default), "counter" (they are added up) or "gauge" (the
        last one counts). `unit`: in UCUM ("s", "By", "{item}"). `tags`: few different values, not ids. What is wrong
        with a metric is logged once and never fails a run.
        """
        problem = _metric_problem(name, value, {} if tags is None else tags, kind, unit)
        if problem is not None:
            self._tell_once(f"record_metric: {problem}; it is not recorded")
            return
        if self.is_on:
            take = self._processor.offer if self._exporters else self._processor.add
            take(Measured(Instrument(name, kind, unit), float(value), dict(tags or {})))

    def start_span(self, name: str, attributes: Mapping[str, Any] | None = None) -> ActiveSpan:
        """A span of your own: `with rt.telemetry.start_span("import") as span: ...`."""
        return NO_SPAN if self._spans is None else self._spans.start(name, attributes, None)

    # --- what the runtime calls -------------------------------------------------------------------------

    @property
    def collect(self) -> Collect | None:
        """What the telemetry stage hands each finished call to; None if nobody wants them."""
        if not self.is_on:
            return None
        own = combine(self._collectors)
        take = self._processor.offer if self._exporters else self._measures.note
        if own is None:
            return QuickCollect(take, self._processor.quick_offer) if self._exporters else take

        def collect(call: Call[Any]) -> None:
            own(call)
            take(call)

        return collect

    def run_started(self, ctx: Any) -> Any:
        """A run begins: its span becomes the current one. Returns what `run_ended` wants back."""
        token = None if self._spans is None else self._spans.run_started(ctx)
        self._tell_of_run(ctx, "info", "run started", {})
        return token

    def run_ended(self, ctx: Any, token: Any, seconds: float, error: BaseException | None) -> None:
        """A run ended after `seconds`."""
        if error is not None:
            self._tell_of_run(ctx, "error", "run failed", {"error": _described(error), "seconds": seconds})
        if self._spans is not None:
            self._spans.leave(token)
        if not self.is_on:
            return
        live, calls = ctx.live, ()
        if live is None and error is not None and self._spans is not None and self.settings.keep_failures:
            live, calls = self._spans.kept(token), tuple(ctx.calls)
        if not self._exporters:
            with self.meter.lock:
                self._measures.run(ctx.agent_name, seconds, error)
            return
        clock = reader(ctx.loop)  # as the calls have it: one offset to the epoch for all of a trace
        ended = clock()
        attributes = {} if live is None else _run_attributes(ctx)  # metrics have no use for them
        self._processor.offer(
            EndedRun(ctx.agent_name, attributes, ended - seconds, ended, clock, error, live, calls)
        )

    def enter_run(self, ctx: Any) -> Any:
        """`ctx` is used by code that its run did not start: what it does is the run's all the same. `leave_run` wants
        back what this returns."""
        return None if self._spans is None else self._spans.enter(ctx)

    def leave_run(self, token: Any) -> None:
        if self._spans is not None:
            self._spans.detach(token)

    def start_run_span(self, ctx: Any, name: str, attributes: Mapping[str, Any] | None) -> ActiveSpan:
        """`ctx.start_span`."""
        if self._spans is None:
            return NO_SPAN
        return self._spans.start(name, attributes, ctx)

    def open(self) -> None:
        """Begin to export."""
        logs = self._own_logs()
        if logs is not None:
            logs.service = self.resource.service
            logs.redact, logs.redact_attributes = self.redactor.text, self.redactor.attributes
            logs.ids = None if self._spans is None else self._spans.current_ids
        if self._exporters:
            self._processor.start()
            if logs is not None and self._logs_wanted:
                logs.forward_to(self._processor.offer)
        if self._spans is not None:
            self._spans.open()

    # --- reading and ending -----------------------------------------------------------------------------

    def metrics(self) -> tuple[Metric, ...]:
        """All metrics, with everything that was recorded until now."""
        with self.meter.lock:
            self._measures.add_noted()
        self._processor.measure()
        return tuple(map(self.redactor.metric, self.meter.snapshot()))

    async def flush(self, seconds: float = 5.0) -> bool:
        """Deliver everything that came until now; False if that was not done in `seconds`."""
        return await self._flushes.run(self._processor.flush, seconds)

    def report(self) -> list[Delivered]:
        """What each exporting backend delivered and lost so far."""
        reports = [exporter.report() for exporter in self._exporters]
        if lost := self._processor.lost:
            reports.append(Delivered("before any backend", {}, lost))
        return reports

    async def aclose(self, seconds: float = SHUTDOWN_SECONDS) -> None:
        """Deliver what waits, all backends at once, within `seconds` whatever hangs; what was lost is logged."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._spans is not None:
            self._spans.close()
        if self._exporters:
            try:
                await self._ends.run(self._close, seconds)
            except asyncio.CancelledError as error:
                if getattr(error, "executed", None) is False:
                    self._close_unattended(seconds)  # its thread had not begun yet: it was withdrawn
                raise
            finally:
                self._tell_losses()

    def _tell_losses(self) -> None:
        told = {exporter.name for exporter in self._exporters if exporter.has_told}
        for report in self.report():
            if report.lost:
                # Why was logged when it happened.
                logger.warning(
                    "telemetry lost: %s", replace(report, error=None) if report.name in told else report
                )

    def _close_unattended(self, seconds: float) -> None:
        """The end in a thread for which nobody waits; without time if the system has no thread for it."""
        thread = threading.Thread(
            target=self._close, args=(seconds,), name="agentrt telemetry end", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:
            self._close(0.0)

    def _close(self, seconds: float) -> None:
        """The part of the end that blocks. One piece, so that it goes on to its own end if nobody waits any more."""
        until = time.monotonic() + seconds
        logs = self._own_logs()
        if logs is not None and self._logs_wanted:
            logs.flush(min(0.5, seconds / 4))
            logs.forward_to(None)
        self._processor.close(until - time.monotonic())

    # --- inside -----------------------------------------------------------------------------------------

    def _after_fork(self) -> None:
        """In the child, which is another instance of the service: its totals begin at 0."""
        self.resource = resource_of(self.settings)
        for exporter in self._exporters:
            exporter.resource = self.resource
        self._processor.after_fork()

    def _own_logs(self) -> Logs | None:
        if not self._own_process:
            return None
        from agentrt.telemetry.logs import current

        return current()

    def _tell_of_run(self, ctx: Any, level: str, message: str, context: dict[str, Any]) -> None:
        number = logging.INFO if level == "info" else logging.ERROR
        if _outcomes.isEnabledFor(number):
            extra = {"run": ctx.id, "agent": ctx.agent_name}
            _outcomes.log(number, message, extra={**extra, "context": context} if context else extra)
        self._send_line(number, message, context, _outcomes)

    def _send_line(
        self, number: int, message: str, context: Mapping[str, Any], source: logging.Logger
    ) -> None:
        """Hand a line to the backends, unless the logs of this process do."""
        if not self._logs_wanted or number < logging.INFO or self._own_logs() is not None:
            return
        from agentrt.telemetry.log_format import level_name, log_line

        ids = None if self._spans is None else self._spans.current_ids
        self._processor.offer(log_line(level_name(number), message, context, logger=source.name, ids=ids))

    def _note_dropped(self, backend: str, signal: str, reason: str, count: int) -> None:
        self._processor.note_dropped(backend, signal, reason, count)

    def _tell_once(self, problem: str) -> None:
        if problem not in self._told and len(self._told) < 1000:
            self._told.add(problem)
            logger.warning("%s", problem)


_run_logger = logging.getLogger("agentrt.run")
_outcomes = logging.getLogger("agentrt.runs")
"""Says that runs start and fail. A failure also reaches the caller, who need not be told twice on a terminal."""


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error_text(error)}"


def _run_attributes(ctx: Any) -> dict[str, Any]:
    usage = ctx.usage
    attributes = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": "agentrt",
        "gen_ai.agent.name": ctx.agent_name,
        "gen_ai.conversation.id": ctx.session.id,
        "gen_ai.usage.input_tokens": usage.input_tokens,
        "gen_ai.usage.output_tokens": usage.output_tokens,
        "agentrt.run.id": ctx.id,
    }
    if ctx.degraded:
        attributes["agentrt.degraded"] = True
    return attributes


def _metric_problem(name: object, value: Any, tags: object, kind: object, unit: object) -> str | None:
    if not isinstance(name, str) or not _METRIC_NAME.fullmatch(name):
        return f"{str(name)[:80]!r} is not a metric's name (a letter, then up to 254 of letters, digits and _ . - /)"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"{name}: the value must be a number, not a {type(value).__name__}"
    if not -_LARGEST <= value <= _LARGEST:  # NaN is in no range
        return f"{name}: the value must be finite, not {value if isinstance(value, float) else 'such an int'}"
    if not isinstance(tags, Mapping):
        return f'{name}: tags must be a mapping such as {{"shop": "Oslo"}}, not {str(tags)[:80]!r}'
    if not isinstance(unit, str) or len(unit) > 63:
        return f'{name}: unit must be a short text such as "s", not {str(unit)[:80]!r}'
    if kind not in ("counter", "gauge", "histogram"):
        return f"{name}: kind must be counter, gauge or histogram, not {kind!r}"
    if kind == "counter" and value < 0:
        return f"{name}: a counter only goes up; {value!r} needs kind='gauge'"
    if kind == "histogram" and value < 0 and (name.endswith(("duration", ".time", "_seconds"))):
        return f"{name}: a duration is not negative, as {value!r} is"
    return None


class _ThreadHost:
    """What a backend's `open` gets: it runs in the backend's thread, what it asks for in the runtime's loop."""

    def __init__(self, host: Any) -> None:
        self._host = host
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def log(self) -> logging.Logger:
        log: logging.Logger = self._host.log
        return log

    @property
    def clock(self) -> Any:
        return asyncio.get_running_loop()

    async def secret(self, reference: str, /) -> str:
        """The value of a `secret://` reference."""
        value: str = await self._there(lambda: self._host.secret(reference))
        return value

    async def secret_rejected(self, reference: str, value: str, /) -> str:
        """The value of a `secret://` reference for one who was refused with `value`."""
        other: str = await self._there(lambda: self._host.secret_rejected(reference, value))
        return other

    async def call(
        self, kind: str, target: str, fn: Callable[[], Awaitable[Any]], /, *, idempotent: bool = False
    ) -> Any:
        """`await fn()` through the runtime's pipeline, in the runtime's loop."""
        return await self._there(lambda: self._host.call(kind, target, fn, idempotent=idempotent))

    async def _there(self, make: Callable[[], Any]) -> Any:
        loop = self._host.loop
        if loop is None or loop.is_closed():
            raise ConfigError("the runtime's event loop does not run (any more)")
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(make(), loop))


class _Forks:
    """After a fork the child has no threads: its telemetry begins anew."""

    def __init__(self) -> None:
        self._all: weakref.WeakSet[RuntimeTelemetry] = weakref.WeakSet()
        self._is_registered = False
        self._is_finalized = False
        self._is_child = False

    def add(self, telemetry: RuntimeTelemetry) -> None:
        self._all.add(telemetry)
        if not self._is_registered:
            import os

            self._is_registered = True
            if hasattr(os, "register_at_fork"):
                os.register_at_fork(after_in_child=self._after_fork)

    def _after_fork(self) -> None:
        for telemetry in list(self._all):
            telemetry._after_fork()
        self._flush_at_exit()

    def _flush_at_exit(self) -> None:
        """A child that nobody told of telemetry delivers at its end. One of multiprocessing ends without the usual
        exit; its own finalizers run. It forgets those that are there when it begins, which is after us, and then asks
        who wants some."""
        import atexit

        if not self._is_child:  # children of a child have it from there
            self._is_child = True
            atexit.register(self._flush)
        util = sys.modules.get("multiprocessing.util")
        if util is not None and not self._is_finalized:
            self._is_finalized = True
            util.register_after_fork(self, lambda forks: util.Finalize(None, forks._flush, exitpriority=100))

    def _flush(self) -> None:
        for telemetry in list(self._all):
            telemetry._processor.flush(2.0)


_forks = _Forks()
