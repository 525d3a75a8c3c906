"""The stages of the pipeline, one file each; `defaults` holds the default pipelines.

`from agentrt.middleware import Retry` loads the file of that stage, and no other.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentrt.middleware.bulkhead import Bulkhead as Bulkhead
    from agentrt.middleware.circuit_breaker import CircuitBreaker as CircuitBreaker
    from agentrt.middleware.circuit_breaker import exponential_break as exponential_break
    from agentrt.middleware.fallback import Fallback as Fallback
    from agentrt.middleware.pace import Pace as Pace
    from agentrt.middleware.rate_limit import RateLimit as RateLimit
    from agentrt.middleware.retry import Retry as Retry
    from agentrt.middleware.retry_budget import RetryBudget as RetryBudget
    from agentrt.middleware.telemetry import Telemetry as Telemetry
    from agentrt.middleware.throttle import Throttle as Throttle
    from agentrt.middleware.timeout import Timeout as Timeout

_HOME = {
    "Bulkhead": "bulkhead",
    "CircuitBreaker": "circuit_breaker",
    "Fallback": "fallback",
    "Pace": "pace",
    "RateLimit": "rate_limit",
    "Retry": "retry",
    "RetryBudget": "retry_budget",
    "Telemetry": "telemetry",
    "Throttle": "throttle",
    "Timeout": "timeout",
    "exponential_break": "circuit_breaker",
}

__all__ = [
    "Bulkhead",
    "CircuitBreaker",
    "Fallback",
    "Pace",
    "RateLimit",
    "Retry",
    "RetryBudget",
    "Telemetry",
    "Throttle",
    "Timeout",
    "exponential_break",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'agentrt.middleware' has no attribute {name!r}")
    return getattr(import_module(f"agentrt.middleware.{home}"), name)
