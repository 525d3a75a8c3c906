"""Which telemetry backends a runtime has: those that the configuration names, else those that the environment asks
for in OpenTelemetry's words; and the settings that go with them."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from agentrt import plugins
from agentrt.config import Config, PluginTable
from agentrt.config.sections import TelemetrySection
from agentrt.decode import choices
from agentrt.errors import PluginError
from agentrt.telemetry.signals import Signal

__all__ = ["chosen"]

logger = logging.getLogger("agentrt.telemetry")

GROUP = "agentrt.telemetry"
BESIDE = plugins.BESIDE[GROUP]

Backends = list[tuple[str, Any]]


def chosen(
    config: Config, *, own_process: bool, environ: Mapping[str, str] | None = None
) -> tuple[TelemetrySection, Backends]:
    """The settings and the backends by name. What the configuration says wins over OTEL_* variables.

    With OTEL_CONFIG_FILE, in a process of ours, OpenTelemetry's SDK is set up from that file and has everything.
    Raises `ConfigError` and `PluginError`.
    """
    variables = os.environ if environ is None else environ
    settings = config.telemetry
    if not any(name.startswith("OTEL_") for name in variables):
        return settings, [(table.name, _made(table)) for table in config.backends()]
    from agentrt.telemetry.otel_environment import OtelEnvironment, hand_over

    environment = OtelEnvironment.read(variables)
    for warning in environment.warnings:
        logger.warning("%s", warning)
    settings = replace(
        settings,
        service=settings.service or environment.service,
        resource={**environment.resource, **settings.resource},
        sample=_or(config, "sample", settings.sample, environment.sample),
        queue=_or(config, "queue", settings.queue, environment.spans.queue),
        interval=_or(config, "interval", settings.interval, environment.spans.interval),
        value_bytes=_or(config, "value_bytes", settings.value_bytes, environment.value_length),
    )
    if environment.disabled:
        return settings, [("none", _made(_only(config, "none")))]
    if environment.config_file is not None and own_process:
        hand_over(environment.config_file)
        return settings, [("memory", _made(_only(config, "memory")))]
    backends = [(table.name, _made(table)) for table in config.backends()]
    if not config.has_backends:
        backends += [(name, _asked_for(name, signals)) for name, signals in environment.exporters.items()]
    return settings, backends


def _or(config: Config, name: str, configured: Any, asked: Any) -> Any:
    is_configured = config.origin(f"telemetry.{name}") != "default"
    return configured if is_configured or asked is None else asked


def _only(config: Config, name: str) -> PluginTable:
    return PluginTable(GROUP, name, name, {}, config.where("telemetry"))


def _made(table: PluginTable) -> Any:
    if table.plugin in plugins.BUILT_IN[GROUP] or table.plugin.partition("@")[0] in plugins.names(GROUP):
        return table.make()
    if table.plugin in BESIDE:
        extra = BESIDE[table.plugin]
        raise table.where.error(
            f"the telemetry backend {table.plugin!r} comes with {extra}: pip install {extra}"
        )
    from agentrt.telemetry.otel_exporter import OtelExporter, installed

    if table.plugin not in installed():
        there = {*plugins.names(GROUP), *installed()}
        more = [f"{name} ({extra})" for name, extra in sorted(BESIDE.items()) if name not in there]
        raise PluginError(
            f"{table.where}: there is no telemetry backend {table.plugin!r}{choices(table.plugin, there)}"
            + (f"; with more packages: {', '.join(more)}" if more else "")
            + ". A service that takes OTLP is reached by [telemetry.otlp]"
        )
    return OtelExporter(name=table.plugin, options=table.plain_options())


def _asked_for(name: str, signals: tuple[Signal, ...]) -> Any:
    """A backend that OTEL_*_EXPORTER or an endpoint asks for."""
    if name == "otlp":
        from agentrt.telemetry.otlp import Otlp

        return Otlp(signals=signals)
    if name == "console":
        from agentrt.telemetry.console import Console

        return Console()
    from agentrt.telemetry.otel_environment import EXPORTERS

    variable = " and ".join(EXPORTERS[signal] for signal in signals)
    if name in ("zipkin", "prometheus"):  # the specification's names; ours take one signal, too
        if name not in plugins.names(GROUP):
            raise PluginError(f"{variable}={name}: it comes with {BESIDE[name]}: pip install {BESIDE[name]}")
        return plugins.make(GROUP, name, {})
    from agentrt.telemetry.otel_exporter import OtelExporter, installed

    there = {"otlp", "zipkin", "prometheus", "none", *installed()}
    if name not in there:
        raise PluginError(
            f"{variable}={name}: there is no exporter {name!r}{choices(name, there)}. More come in packages "
            "named opentelemetry-exporter-..."
        )
    return OtelExporter(name=name, signals=signals)
