"""Plugins: classes found by entry point, loaded by name when asked for.

The keyword-only parameters of a plugin's constructor are its options (`agentrt.decode`). Afterwards, both optional:
`async def open(self, host)` before it is used and `async def aclose(self)` at the end. agentrt's own plugins are listed
here as well, so that nothing has to be scanned for them: that would be a good part of a command's start-up time.

One distribution's broken plugin breaks only itself: `PluginError` names plugin, distribution and cause.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Literal, Protocol, TypeVar

from msgspec import Struct

from agentrt.clock import Clock
from agentrt.decode import Where, build, choices
from agentrt.errors import AgentrtError, ConfigError, PluginError

__all__ = [
    "BESIDE",
    "BUILT_IN",
    "GROUPS",
    "Host",
    "PluginInfo",
    "choices_in",
    "close_plugin",
    "forget",
    "list_plugins",
    "load",
    "make",
    "names",
    "open_plugin",
]

T = TypeVar("T")

BUILT_IN: Mapping[str, Mapping[str, str]] = {
    "agentrt.secrets": {
        "dotenv": "agentrt.secrets.dotenv:Dotenv",
        "env": "agentrt.secrets.env:Env",
        "file": "agentrt.secrets.file:File",
    },
    "agentrt.telemetry": {
        "console": "agentrt.telemetry.console:Console",
        "file": "agentrt.telemetry.file:File",
        "jaeger": "agentrt.telemetry.otlp:Jaeger",
        "memory": "agentrt.telemetry.memory:InMemory",
        "none": "agentrt.telemetry.none:NoTelemetry",
        "otlp": "agentrt.telemetry.otlp:Otlp",
    },
    "agentrt.models": {
        "anthropic": "agentrt.models.anthropic:Anthropic",
        "local": "agentrt.models.local:Local",
        "openai": "agentrt.models.openai:OpenAI",
        "scripted": "agentrt.models.scripted:Scripted",
    },
    "agentrt.adapters": {},
    "agentrt.engines": {},
    "agentrt.state": {"sqlite": "agentrt.state.sqlite:SqliteState"},
    "agentrt.rate_limits": {"memory": "agentrt.security.memory_limits:MemoryLimits"},
    "agentrt.audit": {"file": "agentrt.security.audit.sinks:FileAnchor"},
}
"""agentrt's own entry points, as pyproject.toml has them (a test compares)."""

BESIDE: Mapping[str, Mapping[str, str]] = {
    "agentrt.secrets": {
        "aws": "agentrt-aws",
        "azure": "agentrt-azure",
        "gcp": "agentrt-gcp",
        "vault": "agentrt-vault",
    },
    "agentrt.telemetry": {
        "cloudwatch_logs": "agentrt-aws",
        "cloudwatch_metrics": "agentrt-aws",
        "datadog": "agentrt-datadog",
        "prometheus": "agentrt-prometheus",
        "xray": "agentrt-aws",
        "zipkin": "agentrt-zipkin",
    },
    "agentrt.rate_limits": {"redis": "agentrt-redis"},
}
"""Our other distributions that have a plugin, for whoever has not installed them."""

GROUPS = tuple(BUILT_IN)
OWN = "agentrt"


class Host(Protocol):
    """What a plugin's `open(host)` gets from the runtime."""

    @property
    def clock(self) -> Clock:
        """Monotonic seconds."""
        ...

    @property
    def log(self) -> logging.Logger: ...

    async def call(
        self, kind: str, target: str, fn: Callable[[], Awaitable[T]], /, *, idempotent: bool = False
    ) -> T:
        """`await fn()` through the pipeline of `kind`: `target` names what is called ("secret:vault")."""
        ...

    async def secret(self, reference: str, /) -> str:
        """The value of a `secret://` reference. Ask again for each use, rather than keeping it: it may be rotated, and
        it is kept for you."""
        ...

    async def secret_rejected(self, reference: str, value: str, /) -> str:
        """The value of a `secret://` reference for one who was refused (401) with `value`: it is fetched anew, at most
        once in 30 s. The same value again: it is what the reference leads to, and it is wrong."""
        ...


class PluginInfo(Struct, frozen=True):
    """One line of `agentrt plugins`. `target`: "module:Class". `state`: "ok", "shadowed: ..." or "broken: ..."."""

    group: str
    name: str
    distribution: str
    version: str
    target: str
    state: str = "ok"

    @property
    def source(self) -> str:
        """The distribution with its version."""
        return f"{self.distribution} {self.version}"


def load(group: str, name: str, *, where: Where | None = None) -> type:
    """The class of plugin `name`, or `name@distribution` where two distributions offer the same name.

    Raises `PluginError` if there is none, two distributions offer it, or it cannot be imported. `where`: where
    the name was given.
    """
    return _import(_find(group, name, where), where)


def make(group: str, name: str, options: Mapping[str, Any], *, where: Where | None = None) -> Any:
    """Plugin `name` with `options`, a table as a configuration file has it, which stands at `where`.

    Raises `ConfigError` for an unknown option or a bad value, `PluginError` for everything that is wrong with the
    plugin itself.
    """
    where = where if where is not None else Where()
    info = _find(group, name, where)
    cls = _import(info, where)
    try:
        return build(cls, options, where=where)
    except ConfigError:
        raise
    except Exception as error:
        raise _failed(info, "be made", error, where) from error


async def open_plugin(group: str, name: str, plugin: Any, host: Host) -> None:
    """`await plugin.open(host)`, if it has one.

    Errors of agentrt propagate (a provider that is not reachable says so itself), any other becomes a
    `PluginError`.
    """
    opener = getattr(plugin, "open", None)
    if opener is None:
        return
    try:
        await opener(host)
    except AgentrtError:
        raise
    except Exception as error:
        raise _failed(_find(group, name, None), "be opened", error, None) from error


async def close_plugin(plugin: Any) -> None:
    """`await plugin.aclose()`, if it has one."""
    closer = getattr(plugin, "aclose", None)
    if closer is not None:
        await closer()


def list_plugins() -> list[PluginInfo]:
    """Every plugin of every group, by group and name. Each is imported to see whether it works."""
    found: list[PluginInfo] = []
    for group in GROUPS:
        offered = sorted(
            [*_built_in(group), *(info for info in _third_party() if info.group == group)],
            key=lambda info: (info.name, info.distribution != OWN, info.distribution),
        )
        found.extend(
            _with_state(info, [other for other in offered if other.name == info.name]) for info in offered
        )
    return found


def names(group: str) -> set[str]:
    """The names of all plugins of `group`, whether they work or not."""
    return {*BUILT_IN[group], *(info.name for info in _third_party() if info.group == group)}


def choices_in(group: str, name: str, also: Iterable[str] = ()) -> str:
    """The end of a sentence about a `name` that `group` does not have: what there is, and what could be installed.
    `also`: what else would have done."""
    there = {*names(group), *also}
    more = [f"{each} ({package})" for each, package in BESIDE.get(group, {}).items() if each not in there]
    return choices(name, there) + (f"; with more packages: {', '.join(more)}" if more else "")


def forget() -> None:
    """Look again for third-party plugins at the next use: `sys.path` or what is installed has changed."""
    _third_party.cache_clear()


# --- finding ---------------------------------------------------------------------------------------------


def _find(group: str, name: str, where: Where | None) -> PluginInfo:
    if group not in BUILT_IN:
        raise PluginError(f"there is no plugin group {group!r}; there are: {', '.join(GROUPS)}")
    if name in BUILT_IN[group]:
        return next(info for info in _built_in(group) if info.name == name)
    plain, _, distribution = name.partition("@")
    offered = [*_built_in(group), *(info for info in _third_party() if info.group == group)]
    found = [info for info in offered if info.name == plain and distribution in ("", info.distribution)]
    if len(found) == 1:
        return found[0]
    if found:
        raise _error(
            where,
            f"{' and '.join(info.source for info in found)} both offer a plugin {plain!r} of the group {group}: "
            f"uninstall one, or choose it as {' or '.join(repr(_qualified(info)) for info in found)}",
        )
    beside = BESIDE.get(group, {})
    if name in beside:
        how = f"comes with {beside[name]}: pip install {beside[name]}"
        raise _error(where, f"the plugin {name!r} of the group {group} {how}")
    raise _error(where, f"there is no plugin {name!r} in the group {group}{choices_in(group, plain)}")


def _built_in(group: str) -> list[PluginInfo]:
    from agentrt import __version__

    return [PluginInfo(group, name, OWN, __version__, target) for name, target in BUILT_IN[group].items()]


@functools.cache
def _third_party() -> tuple[PluginInfo, ...]:
    """The plugins of every other distribution, scanned once."""
    from importlib.metadata import distributions

    found: list[PluginInfo] = []
    seen: set[str] = set()
    for distribution in distributions():
        try:
            ours = [point for point in distribution.entry_points if point.group in BUILT_IN]
            if not ours:
                continue  # before its name: reading that parses all of its metadata
            name, version = str(distribution.metadata["Name"]), distribution.version
        except Exception:
            # Broken metadata of something else that is installed; pip complains about it already.
            continue
        key = name.lower().replace("_", "-")
        if key == OWN or key in seen:
            continue  # the first one on sys.path is the one that is imported
        seen.add(key)
        found.extend(PluginInfo(point.group, point.name, name, version, point.value) for point in ours)
    return tuple(found)


def _import(info: PluginInfo, where: Where | None) -> type:
    module, _, attributes = info.target.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for attribute in filter(None, attributes.split(".")):
            found = getattr(found, attribute)
        if not isinstance(found, type):
            raise TypeError(f"its entry point {info.target} names {found!r}, which is not a class")
    except (Exception, SystemExit) as error:
        raise _failed(info, "be loaded", error, where) from error
    return found


def _with_state(info: PluginInfo, same_name: list[PluginInfo]) -> PluginInfo:
    state = "ok"
    try:
        _import(info, None)
    except PluginError as error:
        state = f"broken: {_cause(error.__cause__ or error)}"
    if state == "ok" and len(same_name) > 1 and info is not same_name[0]:
        # agentrt's own stands first: a package that happens to be installed must not get at keys meant for it.
        state = f"shadowed: {same_name[0].source} has the name; choose it as {_qualified(info)!r}"
    elif state == "ok" and len(same_name) > 1 and info.distribution != OWN:
        state = f"shadowed: {same_name[1].source} has the name, too; choose it as {_qualified(info)!r}"
    return PluginInfo(info.group, info.name, info.distribution, info.version, info.target, state)


def _qualified(info: PluginInfo) -> str:
    return f"{info.name}@{info.distribution}"


# --- errors ----------------------------------------------------------------------------------------------


def _failed(
    info: PluginInfo,
    what: Literal["be loaded", "be made", "be opened"],
    error: BaseException,
    where: Where | None,
) -> PluginError:
    return _error(
        where,
        f"the plugin {info.name!r} of the group {info.group}, from {info.source}, cannot {what}: {_cause(error)}",
    )


def _cause(error: BaseException) -> str:
    return str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"


def _error(where: Where | None, message: str) -> PluginError:
    return PluginError(message if where is None or where.origin is None else f"{where.prefix}{message}")
