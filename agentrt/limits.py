"""Limits of one run: they end a run with a clear error before it costs too much."""

from __future__ import annotations

from msgspec import Struct

from agentrt import options
from agentrt.errors import RunLimitExceeded
from agentrt.models.protocol import Usage

__all__ = ["Counters", "Limits"]


class Limits(Struct, frozen=True, kw_only=True):
    """What one run may use; None means no limit.

    `steps` (50): rounds of model and tools. `model_calls`, `tool_calls`: logical calls, retries not counted.
    `tokens`: input and output together; the call that goes beyond it is the last. `seconds`: the run's
    deadline, which ends it with `DeadlineExceeded`; the others end it with `RunLimitExceeded`.
    """

    steps: int | None = 50
    model_calls: int | None = None
    tool_calls: int | None = None
    tokens: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "model_calls", "tool_calls", "tokens"):
            value = getattr(self, name)
            if value is not None:
                options.count(f"limits.{name}", value)
        if self.seconds is not None:
            options.seconds("limits.seconds", self.seconds)


class Counters:
    """What a run, with its child runs, has used so far."""

    __slots__ = ("limits", "model_calls", "steps", "tool_calls", "usage")

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.steps = 0
        self.model_calls = 0
        self.tool_calls = 0
        self.usage = Usage()

    def step(self) -> None:
        self.steps += 1
        _check("steps", self.steps, self.limits.steps)

    def model_call(self) -> None:
        limit = self.limits.tokens
        if limit is not None and self.usage.total_tokens >= limit:
            raise RunLimitExceeded(
                f"this run has used {self.usage.total_tokens} tokens and may use {limit}; raise limits.tokens "
                "if that is too few",
                limit="tokens",
            )
        self.model_calls += 1
        _check("model_calls", self.model_calls, self.limits.model_calls)

    def tool_call(self) -> None:
        self.tool_calls += 1
        _check("tool_calls", self.tool_calls, self.limits.tool_calls)


def _check(name: str, used: int, limit: int | None) -> None:
    if limit is not None and used > limit:
        unit = name.removesuffix("s" if limit == 1 else "").replace("_", " ")
        raise RunLimitExceeded(
            f"this run may use {limit} {unit} and wants another; raise limits.{name} if that is too few",
            limit=name,
        )
