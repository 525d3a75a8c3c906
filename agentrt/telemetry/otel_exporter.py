"""Any exporter that is installed for OpenTelemetry, by its name.

[telemetry.otlp_json_file]                  # the name of its entry point
path = "spans.json"                         # the parameters of its constructor
[telemetry.otlp_json_file.metrics]          # those of one signal alone
path = "metrics.json"
"""

from __future__ import annotations

import contextvars
import inspect
import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from typing import Any
from weakref import ref

from agentrt.decode import choices
from agentrt.errors import ConfigError, PluginError, TransientError
from agentrt.telemetry.signals import Batch, Signal
from agentrt.telemetry.suppress import instrumentation_suppressed
from agentrt.telemetry.wanted import SIGNALS, wanted

__all__ = ["OtelExporter", "find", "installed"]

GROUPS: Mapping[Signal, str] = {
    "spans": "opentelemetry_traces_exporter",
    "metrics": "opentelemetry_metrics_exporter",
    "logs": "opentelemetry_logs_exporter",
}
OTLP = "otlp_proto_http"
"""What `otlp` means here. To OpenTelemetry for Python it is gRPC, against its own specification."""

INSTEAD: Mapping[str, str] = {
    "prometheus": "install agentrt-prometheus and use [telemetry.prometheus]",
}
"""Readers that we have a backend for."""


def installed() -> dict[str, dict[Signal, EntryPoint]]:
    """Every exporter that is installed, by name and signal."""
    found: dict[str, dict[Signal, EntryPoint]] = {}
    for signal, group in GROUPS.items():
        for point in entry_points(group=group):
            found.setdefault(point.name, {}).setdefault(signal, point)
    return found


def find(name: str) -> dict[Signal, EntryPoint]:
    """The entry points of the exporter `name`, by signal. Raises PluginError, which lists what there is."""
    there = installed()
    found = there.get(OTLP if name == "otlp" else name)
    if found is None:
        raise PluginError(
            f"there is no OpenTelemetry exporter {name!r}{choices(name, set(there))}. More come in packages "
            "named opentelemetry-exporter-..."
        )
    return found


class OtelExporter:
    """Hands batches to an exporter of OpenTelemetry's.

    `name`: of its entry point. `options`: the parameters of its constructors; a table under "spans", "metrics" or
    "logs" holds those of one signal. `signals`, also among the options: what to hand over; all that the exporter
    takes by default.

    An exporter that says it failed raises `TransientError` with what it logged; its own errors pass through. Exporters
    may try again by themselves, for as long as they like.
    """

    def __init__(
        self, *, name: str, options: Mapping[str, Any] | None = None, signals: Sequence[str] | None = None
    ) -> None:
        points = find(name)
        given = dict(options or {})
        if signals is None:
            signals = given.pop("signals", None)
        self.name = name
        self.signals = tuple(points) if signals is None else wanted(signals)
        for signal in self.signals:
            if signal not in points:
                raise ConfigError(f"signals: the exporter {name} takes no {signal}, only {', '.join(points)}")
        own: dict[str, Mapping[str, Any]] = {
            signal: given.pop(signal) for signal in SIGNALS if isinstance(given.get(signal), Mapping)
        }
        self._exporters: dict[Signal, Any] = {
            signal: _make(name, signal, points[signal], {**given, **own.get(signal, {})})
            for signal in self.signals
        }
        for exporter in self._exporters.values():
            _listen_to(exporter)
        self.delta = _wants_delta(self._exporters.get("metrics"))
        self.said: str | None = None
        """What the exporter logged last in an export that has not ended: why it tries again by itself."""
        self._batch: Batch | None = None
        self._last: ref[Batch] | None = None
        self._left: list[Signal] = []

    def export(self, batch: Batch, /) -> None:
        """Deliver `batch`. What was delivered of it is not handed over again when it is tried again."""
        if batch is not self._batch:
            self._batch, self._last = batch, ref(batch)
            self._left = [signal for signal in self.signals if getattr(batch, signal)]
        first: Exception | None = None
        with instrumentation_suppressed():
            for signal in list(self._left):
                try:
                    self._hand_over(signal, batch)
                except Exception as error:
                    first = first or error  # the other signals have nothing to do with it
                else:
                    self._left.remove(signal)
        if first is not None:
            raise first
        self._batch = None

    def undelivered(self, batch: Batch, /) -> dict[Signal, int]:
        """How many spans, points and lines of `batch` did not arrive: all of a signal whose exporter failed."""
        counts = batch.counts
        if self._last is None or self._last() is not batch:
            return counts
        return {signal: counts[signal] for signal in list(self._left)}

    async def aclose(self) -> None:
        """Shut the exporters down; those that keep something back write it."""
        exporters, self._exporters = self._exporters, {}
        with instrumentation_suppressed():
            for exporter in exporters.values():
                exporter.shutdown()

    def _hand_over(self, signal: Signal, batch: Batch) -> None:
        from agentrt.telemetry import otel_sdk

        exporter = self._exporters[signal]
        with _heard(self._note) as said:
            if signal == "spans":
                result = exporter.export(
                    [otel_sdk.readable_span(span, batch.resource) for span in batch.spans]
                )
            elif signal == "metrics":
                result = exporter.export(otel_sdk.metrics_data(batch.metrics, batch.resource))
            else:
                result = exporter.export(otel_sdk.log_data(batch.logs, batch.resource))
        self.said = None
        # Each signal has an enumeration of its own, with SUCCESS and FAILURE; some exporters return nothing.
        if getattr(result, "name", "SUCCESS") != "SUCCESS":
            why = f": {said[-1]}" if said else ", and did not say why"
            raise TransientError(f"the exporter {self.name} did not deliver the {signal}{why}")

    def _note(self, said: str) -> None:
        self.said = said


# --- making one ------------------------------------------------------------------------------------------


def _make(name: str, signal: Signal, point: EntryPoint, options: Mapping[str, Any]) -> Any:
    source = f"the exporter {name} for {signal}, from {point.dist.name if point.dist else point.value},"
    try:
        cls: Any = point.load()
    except Exception as error:
        raise PluginError(f"{source} cannot be loaded: {type(error).__name__}: {error}") from error
    if signal == "metrics":
        _refuse_reader(name, cls)
    if not callable(getattr(cls, "export", None)):
        raise PluginError(f"{source} is no exporter: {cls!r} has no method `export`")
    _check_options(name, signal, cls, options)
    try:
        return cls(**options)
    except Exception as error:
        raise PluginError(f"{source} cannot be made: {type(error).__name__}: {error}") from error


def _refuse_reader(name: str, cls: Any) -> None:
    """A reader collects from a provider of the SDK's by itself; there is nothing to hand it."""
    from opentelemetry.sdk.metrics.export import MetricReader

    if isinstance(cls, type) and issubclass(cls, MetricReader):
        instead = INSTEAD.get(name, "use an exporter, or a plugin of the group agentrt.telemetry")
        raise ConfigError(
            f"{name} is a reader of metrics, not an exporter: it works only inside the SDK of OpenTelemetry. "
            f"Instead, {instead}"
        )


def _check_options(name: str, signal: Signal, cls: Callable[..., Any], options: Mapping[str, Any]) -> None:
    try:
        parameters = inspect.signature(cls).parameters.values()
    except (TypeError, ValueError):
        return  # it does not tell; making it will
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    positional = inspect.Parameter.POSITIONAL_ONLY
    known = [
        each.name for each in parameters if each.kind is not positional and not each.name.startswith("_")
    ]
    for option in options:
        if option not in known:
            raise ConfigError(
                f"{option} is no option of the exporter {name} for {signal}{choices(option, known)}"
            )


def _wants_delta(exporter: Any) -> bool:
    """Whether an exporter of metrics asks for what came since the last batch; the SDK's readers look there, too."""
    preferred = getattr(exporter, "_preferred_temporality", None)
    if not preferred:
        return False
    from opentelemetry.sdk.metrics import Counter
    from opentelemetry.sdk.metrics.export import AggregationTemporality

    return bool(preferred.get(Counter) is AggregationTemporality.DELTA)


# --- what an exporter logs -------------------------------------------------------------------------------

_hearing: contextvars.ContextVar[Callable[[str], object] | None] = contextvars.ContextVar(
    "_hearing", default=None
)


class _Ear(logging.Filter):
    """Keeps what an exporter logs while it works for us, for the error's message: whether and when it is told is
    the business of whoever exports, and a log line about each failure would itself be exported."""

    def filter(self, record: logging.LogRecord) -> bool:
        note = _hearing.get()
        if note is None:
            return True
        note(record.getMessage())
        return False


_ear = _Ear()


def _listen_to(exporter: Any) -> None:
    """By custom the loggers are named as the modules that its class and its bases come from."""
    for cls in type(exporter).__mro__:
        if cls.__module__ not in ("builtins", "abc", "typing"):
            # Ahead of the SDK's own filter, which remembers a message as seen.
            filters = logging.getLogger(cls.__module__).filters
            if _ear not in filters:
                filters.insert(0, _ear)


@contextmanager
def _heard(at_once: Callable[[str], object]) -> Generator[list[str]]:
    """What is said inside; each of it is given to `at_once`, too."""
    said: list[str] = []

    def note(text: str) -> None:
        said.append(text)
        at_once(text)

    token = _hearing.set(note)
    try:
        yield said
    finally:
        _hearing.reset(token)
