"""The default pipelines: which stages are on for each kind of call, and with what limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from agentrt.call import Call, Middleware
from agentrt.middleware.circuit_breaker import CircuitBreaker
from agentrt.middleware.fallback import Fallback
from agentrt.middleware.retry import Retry
from agentrt.middleware.telemetry import Telemetry
from agentrt.middleware.throttle import Throttle
from agentrt.middleware.timeout import Timeout

__all__ = ["KINDS", "Limits", "default_stages", "limits_of"]


class Limits(Struct, frozen=True):
    """The time limits of one kind of call, in seconds."""

    attempt: float
    first_item: float | None = None
    idle: float | None = None
    deadline: float | None = None
    max_attempts: int = 3


KINDS = {
    "model": Limits(attempt=60.0, first_item=30.0, idle=30.0, deadline=180.0),
    "tool": Limits(attempt=30.0, deadline=60.0),
    "memory": Limits(attempt=2.0, deadline=5.0),
    "secret": Limits(attempt=5.0, deadline=15.0),
}
OTHER = Limits(attempt=60.0)


def limits_of(kind: str) -> Limits:
    """The limits of a kind; a kind of the user's own has those of `Pipeline.default`."""
    return KINDS.get(kind, OTHER)


def default_stages(
    kind: str, *, collect: Callable[[Call[Any]], object] | None = None
) -> list[Middleware]:
    """The stages that are on for `kind`, from the call outward."""
    limits = limits_of(kind)
    stages: list[Middleware] = [
        Timeout(attempt=limits.attempt, first_item=limits.first_item, idle=limits.idle),
        CircuitBreaker(),
    ]
    if kind == "model":
        stages.append(Throttle())
    return [
        *stages,
        Retry(max_attempts=limits.max_attempts),
        Fallback(),
        Telemetry(collect=collect),
    ]
