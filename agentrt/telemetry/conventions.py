"""The names under which calls and runs are known outside: OpenTelemetry's conventions for generative AI, and beside
them the specification's key metrics.

https://github.com/open-telemetry/semantic-conventions-genai (status: development)
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from agentrt.telemetry.meter import Instrument
from agentrt.telemetry.signals import SpanKind

__all__ = ["Described", "describe", "error_text", "error_type"]


class Described(Struct, frozen=True):
    """What is the same for all calls of a kind, operation and target. `attributes` are for spans, `tags` for metrics:
    few and bounded, never an id of a run, user or conversation."""

    name: str
    span_kind: SpanKind
    attributes: dict[str, Any]
    tags: dict[str, Any]


def describe(kind: str, operation: str, target: str) -> Described:
    """How the conventions call it. `target` is the one that served the call, or was tried last."""
    own = {"agentrt.kind": kind, "agentrt.target": target}
    if kind == "model":
        provider, _, model = target.partition(":")
        tags = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": provider,
            "gen_ai.request.model": model,
        }
        return Described(f"{operation} {model}", "client", {**tags, **own}, tags)
    if kind == "tool":
        name = target.partition(":")[2] or operation
        tags = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": name}
        attributes = {**tags, "gen_ai.tool.type": "function", **own}
        return Described(f"execute_tool {name}", "internal", attributes, tags)
    if kind == "memory":
        tags = {"gen_ai.operation.name": operation}
        return Described(operation, "client", {**tags, **own}, tags)
    return Described(operation, "client", {"agentrt.operation": operation, **own}, own)


def error_type(error: BaseException) -> str:
    """The class of an error with its module, as `error.type`."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def error_text(error: BaseException) -> str:
    """What an error says; one whose own `__str__` fails says that."""
    try:
        return str(error)
    except Exception as failed:
        return f"(its __str__ raised {type(failed).__name__})"


# --- metrics -------------------------------------------------------------------------------------------

_FROM_10_MS = tuple(0.01 * 2**power for power in range(14))
_FROM_100_MS = tuple(0.1 * 2**power for power in range(14))
_TOKENS = tuple(float(4**power) for power in range(14))

OPERATION_DURATION = Instrument(
    "gen_ai.client.operation.duration",
    "histogram",
    "s",
    "Duration of a call of a model or a memory",
    _FROM_10_MS,
)
FIRST_CHUNK = Instrument(
    "gen_ai.client.operation.time_to_first_chunk",
    "histogram",
    "s",
    "Time until the first part of a streamed answer",
    _FROM_10_MS,
)
TOKEN_USAGE = Instrument(
    "gen_ai.client.token.usage", "histogram", "{token}", "Tokens that one call used", _TOKENS
)
TOOL_DURATION = Instrument(
    "gen_ai.execute_tool.duration", "histogram", "s", "Duration of a tool call", _FROM_10_MS
)
AGENT_DURATION = Instrument(
    "gen_ai.invoke_agent.duration", "histogram", "s", "Duration of a run", _FROM_100_MS
)
CALL_DURATION = Instrument(
    "agentrt.call.duration", "histogram", "s", "Duration of a call of another kind", _FROM_10_MS
)

EXECUTION_DURATION = Instrument(
    "agent.execution.duration", "histogram", "s", "Duration of a run", _FROM_100_MS
)
EXECUTION_TOKENS = Instrument("agent.execution.tokens", "counter", "{token}", "Tokens used")
EXECUTION_ERRORS = Instrument("agent.execution.errors", "counter", "{error}", "Runs that failed")
TOOL_CALLS = Instrument("agent.tool.calls", "counter", "{call}", "Tool calls")
MEMORY_TIME = Instrument(
    "agent.memory.retrieval.time", "histogram", "s", "Duration of a search of the memory", _FROM_10_MS
)

RETRIES = Instrument("agentrt.retries", "counter", "{attempt}", "Attempts after the first one on a target")
FALLBACKS = Instrument("agentrt.fallbacks", "counter", "{change}", "Changes to another target or the default")
REFUSALS = Instrument("agentrt.refusals", "counter", "{call}", "Calls that a stage did not let through")
CIRCUIT_CHANGES = Instrument("agentrt.circuit.changes", "counter", "{change}", "Changes of a circuit's state")
DROPPED = Instrument("agentrt.telemetry.dropped", "counter", "{item}", "Telemetry that was not delivered")

INSTRUMENTS = (
    OPERATION_DURATION,
    FIRST_CHUNK,
    TOKEN_USAGE,
    TOOL_DURATION,
    AGENT_DURATION,
    CALL_DURATION,
    EXECUTION_DURATION,
    EXECUTION_TOKENS,
    EXECUTION_ERRORS,
    TOOL_CALLS,
    MEMORY_TIME,
    RETRIES,
    FALLBACKS,
    REFUSALS,
    CIRCUIT_CHANGES,
    DROPPED,
)
"""All of ours: nobody else's metric takes one of these names for something of another kind."""
