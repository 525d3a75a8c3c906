"""The variables of OpenTelemetry, OTEL_*, in our words.

What a variable says wrongly is told in a warning, and its default is taken: the specification wants a program to start
whatever stands there. OTEL_EXPORTER_OTLP_* is read by the OTLP backend itself; only whether they ask for it is said
here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote

from msgspec import Struct, field

from agentrt.errors import ConfigError, PluginError
from agentrt.telemetry.signals import Signal

__all__ = ["Batching", "OtelEnvironment", "hand_over"]

N = TypeVar("N", int, float)

EXPORTERS: Mapping[Signal, str] = {
    "spans": "OTEL_TRACES_EXPORTER",
    "metrics": "OTEL_METRICS_EXPORTER",
    "logs": "OTEL_LOGS_EXPORTER",
}
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
ENDPOINTS: Mapping[Signal, str] = {
    "spans": "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "metrics": "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
    "logs": "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT",
}
SAMPLERS: Mapping[str, tuple[float | None, bool]] = {
    "always_on": (1.0, False),
    "always_off": (0.0, False),
    "traceidratio": (None, False),
    "parentbased_always_on": (1.0, True),
    "parentbased_always_off": (0.0, True),
    "parentbased_traceidratio": (None, True),
}
"""Name to the ratio (None: that of OTEL_TRACES_SAMPLER_ARG) and whether a parent's decision comes first."""


class Batching(Struct, frozen=True):
    """How one signal is sent; None where no variable says it. `interval`, `timeout`: seconds. `queue`: items that may
    wait, `batch_size`: items sent at once."""

    interval: float | None = None
    timeout: float | None = None
    queue: int | None = None
    batch_size: int | None = None


class OtelEnvironment(Struct, frozen=True):
    """What the environment asks for.

    `disabled`: no telemetry at all. `service`, `resource`: who sends it, the latter without "service.name".
    `exporters`: names to the signals they are wanted for; "otlp" is among them if an endpoint of OTLP is set. `off`:
    signals that nothing is to be exported of. `sample`: the part of all traces to keep, None if no variable says it;
    `parent_based`: where a trace comes from elsewhere, its own decision stands. `spans`, `metrics`, `logs`: how each is
    sent. `value_length`: characters that an attribute's text may have. `config_file`: see `hand_over`; with it nothing
    else counts. `warnings`: what was wrong, a sentence each.
    """

    disabled: bool = False
    service: str | None = None
    resource: Mapping[str, str] = field(default_factory=dict[str, str])
    exporters: Mapping[str, tuple[Signal, ...]] = field(default_factory=dict[str, tuple[Signal, ...]])
    off: tuple[Signal, ...] = ()
    sample: float | None = None
    parent_based: bool = True
    spans: Batching = Batching()
    metrics: Batching = Batching()
    logs: Batching = Batching()
    value_length: int | None = None
    config_file: str | None = None
    warnings: tuple[str, ...] = ()

    @classmethod
    def read(cls, environ: Mapping[str, str] | None = None) -> OtelEnvironment:
        """What `environ` (`os.environ`) asks for. Never fails."""
        variables = _Variables(os.environ if environ is None else environ)
        resource = variables.resource()
        named = resource.pop("service.name", None)
        exporters, off = _exporters(variables)
        sample, parent_based = _sampling(variables)
        length = variables.count("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", minimum=0)
        if length is None:
            length = variables.count("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", minimum=0)
        return cls(
            disabled=variables.flag("OTEL_SDK_DISABLED"),
            service=variables.text("OTEL_SERVICE_NAME") or named,
            resource=resource,
            exporters=exporters,
            off=off,
            sample=sample,
            parent_based=parent_based,
            spans=_batching(variables, "OTEL_BSP_"),
            metrics=Batching(
                interval=variables.seconds("OTEL_METRIC_EXPORT_INTERVAL"),
                timeout=variables.seconds("OTEL_METRIC_EXPORT_TIMEOUT"),
            ),
            logs=_batching(variables, "OTEL_BLRP_"),
            value_length=length,
            config_file=variables.text("OTEL_CONFIG_FILE"),
            warnings=tuple(variables.warnings),
        )


def hand_over(path: str | Path) -> None:
    """Let OpenTelemetry's SDK set itself up from the file that OTEL_CONFIG_FILE names, YAML or JSON.

    Its providers become the global ones of this process. Raises PluginError if the SDK cannot do it as installed,
    ConfigError for what is wrong with the file.
    """
    if not Path(path).is_file():
        raise ConfigError(f"OTEL_CONFIG_FILE: there is no file {str(path)!r}")
    try:
        from opentelemetry.configuration import (  # type: ignore[import-not-found,unused-ignore]
            configure_sdk,
            load_config_file,
        )
    except ImportError as error:
        raise PluginError(
            f"OTEL_CONFIG_FILE ({str(path)!r}) needs another package, which has to fit the installed "
            f"opentelemetry-sdk: pip install opentelemetry-configuration ({error})"
        ) from error
    try:
        configure_sdk(load_config_file(str(path)))
    except Exception as error:
        raise ConfigError(f"OTEL_CONFIG_FILE: {path} cannot be used: {error}") from error


def _exporters(variables: _Variables) -> tuple[dict[str, tuple[Signal, ...]], tuple[Signal, ...]]:
    exporters: dict[str, tuple[Signal, ...]] = {}
    off: list[Signal] = []
    everywhere = variables.text(ENDPOINT) is not None
    for signal, variable in EXPORTERS.items():
        wanted = variables.text(variable)
        if wanted is None:
            names = ["otlp"] if everywhere or variables.text(ENDPOINTS[signal]) is not None else []
        else:
            names = list(dict.fromkeys(filter(None, (name.strip() for name in wanted.split(",")))))
            nothing = [name for name in names if name.lower() == "none"]
            names = [name for name in names if name not in nothing]
            if nothing and names:
                variables.warn(
                    variable, wanted, f"'none' beside others counts for nothing, {names[0]} is used"
                )
            elif nothing:
                off.append(signal)
        for name in names:
            exporters[name] = (*exporters.get(name, ()), signal)
    return exporters, tuple(off)


def _sampling(variables: _Variables) -> tuple[float | None, bool]:
    name = variables.text("OTEL_TRACES_SAMPLER")
    if name is None:
        return None, True
    found = SAMPLERS.get(name.lower())
    if found is None:
        known = ", ".join(SAMPLERS)
        variables.warn(
            "OTEL_TRACES_SAMPLER", name, f"it must be one of {known}; parentbased_always_on is used"
        )
        return 1.0, True
    ratio, parent_based = found
    if ratio is None:
        given = variables.number("OTEL_TRACES_SAMPLER_ARG", float, "a number from 0 to 1", 0.0, 1.0)
        ratio = 1.0 if given is None else given
    return ratio, parent_based


def _batching(variables: _Variables, prefix: str) -> Batching:
    queue = variables.count(f"{prefix}MAX_QUEUE_SIZE", minimum=1)
    batch_size = variables.count(f"{prefix}MAX_EXPORT_BATCH_SIZE", minimum=1)
    if queue is not None and batch_size is not None and batch_size > queue:
        variables.warn(
            f"{prefix}MAX_EXPORT_BATCH_SIZE", str(batch_size), f"the queue holds only {queue}, which is used"
        )
        batch_size = queue
    return Batching(
        interval=variables.seconds(f"{prefix}SCHEDULE_DELAY"),
        timeout=variables.seconds(f"{prefix}EXPORT_TIMEOUT"),
        queue=queue,
        batch_size=batch_size,
    )


class _Variables:
    """The environment, and what was wrong in it. An empty variable is one that is not set."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.warnings: list[str] = []

    def warn(self, variable: str, value: str, what: str) -> None:
        self.warnings.append(f"{variable}={value!r}: {what}")

    def text(self, variable: str) -> str | None:
        return self._environ.get(variable, "").strip() or None

    def flag(self, variable: str) -> bool:
        value = self.text(variable)
        if value is not None and value.lower() not in ("true", "false"):
            self.warn(variable, value, "it must be 'true' or 'false'; false is used")
        return value is not None and value.lower() == "true"

    def count(self, variable: str, *, minimum: int) -> int | None:
        return self.number(variable, int, f"a whole number of at least {minimum}", minimum, 2**63)

    def seconds(self, variable: str) -> float | None:
        """The variable has whole milliseconds."""
        value = self.number(variable, int, "a whole number of milliseconds greater than 0", 1, 2**53)
        return None if value is None else value / 1000.0

    def number(self, variable: str, parse: Callable[[str], N], what: str, minimum: N, maximum: N) -> N | None:
        text = self.text(variable)
        if text is None:
            return None
        try:
            value = parse(text)
        except ValueError:
            value = None
        if value is None or not minimum <= value <= maximum:
            self.warn(variable, text, f"it must be {what}; the default is used")
            return None
        return value

    def resource(self) -> dict[str, str]:
        """OTEL_RESOURCE_ATTRIBUTES; all of it is left out if a part is wrong, as the specification says."""
        variable = "OTEL_RESOURCE_ATTRIBUTES"
        text = self.text(variable)
        attributes: dict[str, str] = {}
        for pair in filter(None, (pair.strip() for pair in (text or "").split(","))):
            name, equals, value = pair.partition("=")
            if not equals or not name.strip():
                self.warn(variable, text or "", f"{pair!r} must look like name=value; none of it is used")
                return {}
            attributes[unquote(name).strip()] = unquote(value).strip()
        return attributes
