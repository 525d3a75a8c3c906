"""agentrt: the production runtime for Python agents.

The names below are loaded when they are first used, so that `import agentrt` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from agentrt.agent import Agent as Agent
    from agentrt.call import Call as Call
    from agentrt.call import Middleware as Middleware
    from agentrt.call import Next as Next
    from agentrt.config import Config as Config
    from agentrt.context import Context as Context
    from agentrt.context import current as current
    from agentrt.errors import AgentrtError as AgentrtError
    from agentrt.errors import AttemptTimeout as AttemptTimeout
    from agentrt.errors import BudgetExceeded as BudgetExceeded
    from agentrt.errors import BulkheadFull as BulkheadFull
    from agentrt.errors import CallError as CallError
    from agentrt.errors import CircuitOpen as CircuitOpen
    from agentrt.errors import ConfigError as ConfigError
    from agentrt.errors import DeadlineExceeded as DeadlineExceeded
    from agentrt.errors import PermanentError as PermanentError
    from agentrt.errors import PluginError as PluginError
    from agentrt.errors import RateLimited as RateLimited
    from agentrt.errors import Refused as Refused
    from agentrt.errors import ResultRejected as ResultRejected
    from agentrt.errors import RunLimitExceeded as RunLimitExceeded
    from agentrt.errors import ThrottledError as ThrottledError
    from agentrt.errors import ToolError as ToolError
    from agentrt.errors import TransientError as TransientError
    from agentrt.errors import classify as classify
    from agentrt.execution import RunResult as RunResult
    from agentrt.limits import Limits as Limits
    from agentrt.pipeline import Pipeline as Pipeline
    from agentrt.pipeline import PipelineWarning as PipelineWarning
    from agentrt.runtime import Runtime as Runtime
    from agentrt.session import Session as Session
    from agentrt.stream import Stream as Stream
    from agentrt.tools import Tool as Tool
    from agentrt.tools import tool as tool

_HOMES = {
    "agent": ("Agent",),
    "call": ("Call", "Middleware", "Next"),
    "config": ("Config",),
    "context": ("Context", "current"),
    "errors": (
        "AgentrtError",
        "AttemptTimeout",
        "BudgetExceeded",
        "BulkheadFull",
        "CallError",
        "CircuitOpen",
        "ConfigError",
        "DeadlineExceeded",
        "PermanentError",
        "PluginError",
        "RateLimited",
        "Refused",
        "ResultRejected",
        "RunLimitExceeded",
        "ThrottledError",
        "ToolError",
        "TransientError",
        "classify",
    ),
    "execution": ("RunResult",),
    "limits": ("Limits",),
    "pipeline": ("Pipeline", "PipelineWarning"),
    "runtime": ("Runtime",),
    "session": ("Session",),
    "stream": ("Stream",),
    "tools": ("Tool", "tool"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Agent",
    "AgentrtError",
    "AttemptTimeout",
    "BudgetExceeded",
    "BulkheadFull",
    "Call",
    "CallError",
    "CircuitOpen",
    "Config",
    "ConfigError",
    "Context",
    "DeadlineExceeded",
    "Limits",
    "Middleware",
    "Next",
    "PermanentError",
    "Pipeline",
    "PipelineWarning",
    "PluginError",
    "RateLimited",
    "Refused",
    "ResultRejected",
    "RunLimitExceeded",
    "RunResult",
    "Runtime",
    "Session",
    "Stream",
    "ThrottledError",
    "Tool",
    "ToolError",
    "TransientError",
    "__version__",
    "classify",
    "current",
    "tool",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'agentrt' has no attribute {name!r}")
    value = getattr(import_module(f"agentrt.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
