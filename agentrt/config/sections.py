"""The sections of the configuration whose keys are ours to name. The others belong to plugins and stages."""

from __future__ import annotations

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import force_setattr

from agentrt import options
from agentrt.errors import ConfigError

__all__ = ["KINDS", "LEVELS", "STAGES", "AgentSection", "LogSection", "RunSection"]

STAGES = (
    "timeout",
    "circuit_breaker",
    "bulkhead",
    "pace",
    "throttle",
    "retry",
    "fallback",
    "telemetry",
)
"""The stages of the pipeline that a configuration file can set, from the call outward."""

KINDS = ("model", "tool", "memory", "secret", "call")
"""The kinds of calls that have tables of their own; "call" is every other kind."""

LEVELS = ("debug", "info", "warning", "error", "critical")


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


class LogSection(Struct, frozen=True, kw_only=True):
    """[log]

    `level`: "debug", "info", "warning", "error" or "critical", in small letters or capitals.
    """

    level: str | None = None

    def __post_init__(self) -> None:
        if self.level is not None:
            if self.level.lower() not in LEVELS:
                options.choice("level", self.level, LEVELS)
            force_setattr(self, "level", self.level.lower())
