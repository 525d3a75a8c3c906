"""The sections of the configuration whose keys are ours to name. The others belong to plugins and stages."""

from __future__ import annotations

import re
from typing import Literal

from msgspec import UNSET, Struct, UnsetType, field
from msgspec.structs import force_setattr, replace

from agentrt import options
from agentrt.errors import ConfigError

__all__ = [
    "KINDS",
    "LEVELS",
    "STAGES",
    "AgentSection",
    "AuditSection",
    "LogOutput",
    "LogSection",
    "RateLimitsSection",
    "RunSection",
    "SecretsCacheSection",
    "TelemetrySection",
]

STAGES = (
    "timeout",
    "circuit_breaker",
    "bulkhead",
    "pace",
    "throttle",
    "rate_limit",
    "retry",
    "fallback",
    "telemetry",
)
"""The stages of the pipeline that a configuration file can set, from the call outward."""

KINDS = ("model", "tool", "memory", "secret", "call")
"""The kinds of calls that have tables of their own; "call" is every other kind."""

LEVELS = ("debug", "info", "warning", "error", "critical")

STDERR = "stderr"
"""The output of logs that is no file."""

MIN_ROTATION = 1000
"""Bytes: a file that is rotated with every line is a mistake."""


class RunSection(Struct, frozen=True, kw_only=True):
    """[run]

    `timeout` (s, more than 0): how long a run may take, `false` for no limit; not set: what the command says (none
    on the command line, 600 s when served). The table [run.limits] is `Limits`.
    """

    timeout: float | UnsetType | None = UNSET

    def __post_init__(self) -> None:
        if isinstance(self.timeout, int | float):
            options.seconds("timeout", self.timeout)

    def timeout_or(self, default: float | None) -> float | None:
        """The configured timeout in seconds (None: no limit), or `default` if none is configured."""
        return default if isinstance(self.timeout, UnsetType) else self.timeout


class AgentSection(Struct, frozen=True, kw_only=True):
    """[agent]

    `model`: instead of the agent's own, one name or a list whose others are fallback targets.
    """

    model: str | list[str] | None = None

    def __post_init__(self) -> None:
        names = [self.model] if isinstance(self.model, str) else self.model
        if names is not None and (not names or not all(":" in name for name in names)):
            raise ConfigError(f'model must be "prefix:model" or a list of such names, not {self.model!r}')

    @property
    def models(self) -> list[str]:
        """`model` as a list; empty if it is not set."""
        return [self.model] if isinstance(self.model, str) else list(self.model or [])


class LogOutput(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of [log] outputs, as a table.

    `to`: "stderr", or the path of a file (from the working directory), whose folder is made if need be. `level` (that
    of [log]), `format` (that of [log]). For a file: `rotation` ("50 MB"; also a number of bytes, `false` for never):
    the size at which it becomes FILE.1, FILE.1 becomes FILE.2 and so on; `keep` (5): so many old ones stay.
    """

    to: str
    level: str | None = None
    format: Literal["text", "json"] | None = None
    rotation: int | str | bool = "50 MB"
    keep: int = 5

    @property
    def is_file(self) -> bool:
        return self.to != STDERR

    @property
    def max_bytes(self) -> int | None:
        """The size at which a file is rotated, in bytes; None: never."""
        return None if self.rotation is False else _size("outputs: rotation", self.rotation)


class LogSection(Struct, frozen=True, kw_only=True):
    """[log]

    `level`: "debug", "info", "warning", "error" or "critical", in small letters or capitals (default: "warning" on
    stderr, "info" in files and for telemetry backends). `levels`: of single loggers and those below them, wherever
    their lines go. `format`: "text" or "json" (default: short lines for a reader on stderr, text with everything in
    files, JSON in a file named .json or .jsonl). `outputs` (["stderr"]): "stderr", paths, tables as `LogOutput`.
    """

    level: str | None = None
    format: Literal["text", "json"] | None = None
    outputs: list[str | LogOutput] = field(default_factory=lambda: [STDERR])
    levels: dict[str, str] = {}

    def __post_init__(self) -> None:
        if self.level is not None:
            force_setattr(self, "level", _level("level", self.level))
        levels = {name: _level(f"levels: {name}:", level) for name, level in self.levels.items()}
        force_setattr(self, "levels", levels)
        force_setattr(self, "outputs", [_output(output) for output in self.outputs])
        names = [output.to for output in self.sinks]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(f"outputs: {twice!r} stands there twice")

    @property
    def sinks(self) -> list[LogOutput]:
        """`outputs` as tables."""
        return [output for output in self.outputs if isinstance(output, LogOutput)]


class RateLimitsSection(Struct, frozen=True, kw_only=True):
    """[rate_limits]; each table [rate_limits.NAME] has the options of a backend.

    `backend` ("memory"): who counts, a plugin of the group agentrt.rate_limits.
    """

    backend: str = "memory"

    def __post_init__(self) -> None:
        options.text("backend", self.backend)


class SecretsCacheSection(Struct, frozen=True, kw_only=True):
    """[secrets.cache]

    `ttl` (3600 s): how old a value may be while its provider answers; it is fetched anew from a moment in the last
    `jitter` (0.1) of that time on. `stale` (86,400 s): how much longer it is used while the provider is unavailable.
    `negative_ttl` (30 s): for how long a secret that is not there is not asked for again.
    """

    ttl: float = 3600.0
    jitter: float = 0.1
    stale: float = 86_400.0
    negative_ttl: float = 30.0

    def __post_init__(self) -> None:
        options.seconds("ttl", self.ttl, open_=False)
        options.number("jitter", self.jitter, maximum=1.0)
        options.seconds("stale", self.stale, open_=False)
        options.seconds("negative_ttl", self.negative_ttl, open_=False)


class AuditSection(Struct, frozen=True, kw_only=True):
    """[audit]; each table [audit.sinks.NAME] is a plugin that keeps checkpoints elsewhere.

    `path`: the file, whose folder is made if need be; `{pid}` in it is the process's id. Not set: no audit log.
    `strict` (false): each operation waits until its intent is on the disk. `on_failure`: while the log cannot be
    written, operations are refused ("refuse", the default if `strict`) or go on without ("warn", else the default).
    `key`: of the HMAC of arguments, `signing_key`: of checkpoints (ed25519), both `secret://...` or the name of a file.
    `checkpoint_every` (1000 records), `checkpoint_seconds` (60): a checkpoint after so many, or so long. `rotation`
    ("64 MB"; also bytes, `false` for never). `arguments` ("hash"): "redacted" keeps them in clear without secrets,
    "none" not at all.
    """

    path: str | None = None
    strict: bool = False
    on_failure: Literal["refuse", "warn"] | UnsetType = UNSET
    key: str | None = None
    signing_key: str | None = None
    checkpoint_every: int = 1000
    checkpoint_seconds: float = 60.0
    rotation: int | str | bool = "64 MB"
    arguments: Literal["hash", "redacted", "none"] = "hash"

    def __post_init__(self) -> None:
        if self.path is not None:
            options.text("path", self.path)
        if self.strict and self.on_failure == "warn":
            raise ConfigError('strict and on_failure = "warn" contradict each other: strict refuses')
        for name in ("key", "signing_key"):
            value = getattr(self, name)
            if value is not None and not any(mark in value for mark in "/.\\"):
                # It may be the key itself: not a word of it.
                raise ConfigError(
                    f'{name} must be "secret://NAME" or the path of a file such as "./audit.key"'
                )
        options.count("checkpoint_every", self.checkpoint_every)
        options.seconds("checkpoint_seconds", self.checkpoint_seconds)
        _ = self.max_bytes

    @property
    def max_bytes(self) -> int | None:
        """The size at which another file is begun, in bytes; None: never."""
        return None if self.rotation is False else _size("rotation", self.rotation)


class TelemetrySection(Struct, frozen=True, kw_only=True):
    """[telemetry]; each table [telemetry.NAME] turns the backend NAME on.

    `service` ("agentrt"): the service's name in everything that is sent; `resource`: further attributes of it.
    `sample` (1.0): the part of the traces that is kept, 0 to 1, decided when a run begins; `keep_failures` (false): and
    what failed in the others. `capture_content` (false): prompts, answers, and tools' arguments and results are
    sent, redacted. `redact`: regular expressions, `redact_keys`: names of attributes whose values are never sent,
    besides what is known to be secret. `value_bytes` (32,768): longer texts are cut. `queue` (20,000): items that may
    wait; `interval` (5.0 s): between two batches, unless a backend says otherwise. `register_global` (false; always
    in agentrt's commands): if the process has no OpenTelemetry tracer provider, other libraries' spans come to us.
    """

    service: str | None = None
    resource: dict[str, str] = {}
    sample: float = 1.0
    keep_failures: bool = False
    capture_content: bool = False
    redact: list[str] = []
    redact_keys: list[str] = []
    value_bytes: int = 32_768
    queue: int = 20_000
    interval: float = 5.0
    register_global: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.sample <= 1.0:
            raise ConfigError(f"sample must be a number from 0 to 1, not {self.sample!r}")
        options.count("value_bytes", self.value_bytes)
        options.count("queue", self.queue)
        options.seconds("interval", self.interval)
        for pattern in self.redact:
            _expression("redact", pattern)
        if self.service is not None:
            options.text("service", self.service)


def _expression(name: str, pattern: str) -> None:
    """Refuse what is no regular expression here, where the place in the file is known."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{name}: {pattern!r} is not a regular expression: {error}") from error


def _level(name: str, value: str) -> str:
    if value.lower() not in LEVELS:
        options.choice(name, value, LEVELS)
    return value.lower()


def _output(output: str | LogOutput) -> LogOutput:
    made = LogOutput(to=output) if isinstance(output, str) else output
    if made.to.lower() == STDERR:
        made = replace(made, to=STDERR)
    elif not any(mark in made.to for mark in "/.\\") or made.to.endswith("/"):
        raise ConfigError(
            f'outputs: {made.to!r} is neither "stderr" nor a file such as "./{made.to.strip("/") or "agent"}.log"; '
            "logs go to a telemetry backend by its table [telemetry.NAME]"
        )
    if made.level is not None:
        made = replace(made, level=_level("outputs: level", made.level))
    options.count("outputs: keep", made.keep)
    _ = made.max_bytes
    return made


_UNITS = {
    "": 1,
    "B": 1,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "KIB": 1024,
    "MIB": 1024**2,
    "GIB": 1024**3,
}


def _size(name: str, value: int | str | bool) -> int:
    """Bytes: a number, or text such as "50 MB"."""
    text = str(value).strip()
    digits = text.rstrip("KMGIBkmgib ")
    unit = text[len(digits) :].strip().upper()
    if not digits.isdecimal() or unit not in _UNITS or int(digits) * _UNITS[unit] < MIN_ROTATION:
        raise ConfigError(
            f'{name} must be a size of at least {MIN_ROTATION} bytes, such as "50 MB", or false, not {value!r}'
        )
    return int(digits) * _UNITS[unit]
