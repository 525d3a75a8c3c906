"""The default pipelines: which stages are on for each kind of call, and with what options."""

from __future__ import annotations

from typing import Any

from agentrt.call import Middleware
from agentrt.middleware.bulkhead import Bulkhead
from agentrt.middleware.circuit_breaker import CircuitBreaker
from agentrt.middleware.fallback import Fallback
from agentrt.middleware.pace import Pace
from agentrt.middleware.rate_limit import RateLimit
from agentrt.middleware.retry import Retry
from agentrt.middleware.telemetry import Telemetry
from agentrt.middleware.throttle import Throttle
from agentrt.middleware.timeout import Timeout

__all__ = ["DEADLINES", "STAGES", "default_deadline", "default_options", "default_stages"]

STAGES: dict[str, type[Any]] = {
    stage.name: stage
    for stage in (Timeout, CircuitBreaker, Bulkhead, Pace, Throttle, RateLimit, Retry, Fallback, Telemetry)
}
"""The built-in stages by name, from the call outward."""

_TIMEOUTS: dict[str, dict[str, float]] = {
    "model": {"attempt": 60.0, "first_item": 30.0, "idle": 30.0},
    "tool": {"attempt": 30.0},
    "memory": {"attempt": 2.0},
    "secret": {"attempt": 5.0},
}

DEADLINES = {"model": 180.0, "tool": 60.0, "memory": 5.0, "secret": 15.0}
"""The limit of a whole call by kind, in seconds; a kind of the user's own has none."""


def default_deadline(kind: str) -> float | None:
    """Seconds that a whole call of `kind` may take, or None."""
    return DEADLINES.get(kind)


def default_options(kind: str) -> dict[str, dict[str, Any]]:
    """The stages that are on for `kind`, from the call outward, with the options that differ from their own
    defaults."""
    options: dict[str, dict[str, Any]] = {
        "timeout": dict(_TIMEOUTS.get(kind, {})),
        "circuit_breaker": {},
        "throttle": {},
        "retry": {},
        "fallback": {},
        "telemetry": {},
    }
    if kind != "model":
        del options["throttle"]
    return options


def default_stages(kind: str) -> list[Middleware]:
    """The stages that are on for `kind`, from the call outward."""
    return [STAGES[name](**options) for name, options in default_options(kind).items()]
