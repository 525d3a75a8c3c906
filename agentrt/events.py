"""What happens in a run, as a stream of typed events.

The terminal, JSON lines, the trace view and everything else that watches a run consume this one stream. Each event has
the id of its run (a child's events come through its parent's stream) and `at`, seconds since the first run started.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec
from msgspec import Struct

__all__ = [
    "CircuitChanged",
    "Event",
    "Fallback",
    "ModelFinished",
    "ModelStarted",
    "ReasoningDelta",
    "Retry",
    "RunFailed",
    "RunFinished",
    "RunStarted",
    "TextDelta",
    "ToolFinished",
    "ToolStarted",
    "Waiting",
    "Warned",
    "encode",
]


class _Base(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    run: str
    at: float


class RunStarted(_Base, frozen=True, kw_only=True, tag="run_started"):
    """`parent`: the run that started this one, if any."""

    agent: str
    parent: str | None = None


class ModelStarted(_Base, frozen=True, kw_only=True, tag="model_started"):
    """A model call begins; `call` numbers the calls of the run, `target` is the first target."""

    call: int
    target: str


class TextDelta(_Base, frozen=True, kw_only=True, tag="text_delta"):
    """A piece of the answer; never repeated, whatever is retried. Pieces are joined while nobody reads them."""

    text: str


class ReasoningDelta(_Base, frozen=True, kw_only=True, tag="reasoning_delta"):
    """A piece of the model's reasoning."""

    text: str


class ModelFinished(_Base, frozen=True, kw_only=True, tag="model_finished"):
    """`target`: who answered. `finish`: why it stopped; "length" means that the answer was cut."""

    call: int
    target: str
    finish: str
    seconds: float
    input_tokens: int = 0
    output_tokens: int = 0
    estimated: bool = False
    attempts: int = 1


class ToolStarted(_Base, frozen=True, kw_only=True, tag="tool_started"):
    """`arguments`: the JSON text as the model wrote it."""

    call: int
    tool: str
    arguments: str


class ToolFinished(_Base, frozen=True, kw_only=True, tag="tool_finished"):
    """`outcome`: "ok", or "error" when the failure goes back to the model, or "bug" when it ends the run."""

    call: int
    tool: str
    outcome: Literal["ok", "error", "bug"]
    seconds: float
    error: str | None = None


class Retry(_Base, frozen=True, kw_only=True, tag="retry"):
    """Attempt number `attempt` follows after `delay` seconds."""

    kind: str
    target: str
    attempt: int
    delay: float
    error: str


class Waiting(_Base, frozen=True, kw_only=True, tag="waited"):
    """A call waited `seconds` at a gate, for its turn or for a permit (`stage`)."""

    target: str
    stage: str
    seconds: float


class Fallback(_Base, frozen=True, kw_only=True, tag="fallback"):
    """`old` failed with `error`; `new` goes on (None: the default value was served)."""

    kind: str
    old: str
    new: str | None
    error: str


class CircuitChanged(_Base, frozen=True, kw_only=True, tag="circuit"):
    """The circuit breaker of `target` changed its state."""

    target: str
    old: str
    new: str


class Warned(_Base, frozen=True, kw_only=True, tag="warning"):
    """Something the user should know: an answer cut by the length limit, a tool that blocks the loop."""

    message: str


class RunFinished(_Base, frozen=True, kw_only=True, tag="run_finished"):
    """`degraded`: some answer did not come from the first target."""

    output: Any
    seconds: float
    input_tokens: int = 0
    output_tokens: int = 0
    degraded: bool = False


class RunFailed(_Base, frozen=True, kw_only=True, tag="run_failed"):
    """`error`: the exception's class; `causes`: what was tried before, one line each. `run` is empty if there was none
    yet: no message, nothing that could be an agent."""

    error: str
    message: str
    seconds: float
    causes: list[str] = []


Event = (
    RunStarted
    | ModelStarted
    | TextDelta
    | ReasoningDelta
    | ModelFinished
    | ToolStarted
    | ToolFinished
    | Retry
    | Waiting
    | Fallback
    | CircuitChanged
    | Warned
    | RunFinished
    | RunFailed
)

Sink = Callable[[Event], None]


def encode(event: Event) -> bytes:
    """One JSON object without a newline; what JSON cannot say is given as its text."""
    try:
        return msgspec.json.encode(event, enc_hook=str)
    except (UnicodeEncodeError, RecursionError):
        # A lone surrogate somewhere, or an output that contains itself.
        fields = {name: _sayable(getattr(event, name)) for name in event.__struct_fields__}
        return msgspec.json.encode(msgspec.structs.replace(event, **fields))


def _sayable(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return [_sayable(item) for item in value]
    return str(value).encode(errors="backslashreplace").decode()
