"""The order of the stages: every place, what stands where, and orders that cannot work."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, TypeVar

from msgspec import Struct

from agentrt.call import UNBOUNDED, Call, Middleware, Next
from agentrt.errors import ConfigError

__all__ = [
    "ORDER",
    "Off",
    "Placed",
    "check_stage",
    "is_placed",
    "item_name",
    "layout_of",
    "names",
    "order_problems",
    "stage_name",
    "stage_options",
]

R = TypeVar("R")

ORDER = (
    "chaos",
    "timeout",
    "circuit_breaker",
    "bulkhead",
    "pace",
    "throttle",
    "rate_limit",
    "budget",
    "hedge",
    "retry",
    "fallback",
    "cache",
    "telemetry",
    "audit",
)
"""Every place in the pipeline, from the call outward. Whatever waits stands outside the circuit breaker: its wait is
not the target's latency, and a queued attempt meets the breaker when it starts."""


class Off(Struct, frozen=True, eq=False):
    """The place of a built-in stage that is off."""

    name: str


class Placed:
    """A user's stage at its place, with what it was placed beside."""

    def __init__(self, stage: Middleware, anchor: str, *, outside: bool) -> None:
        self.stage = stage
        self.anchor = anchor
        self.outside = outside
        self.name = stage_name(stage)

    async def __call__(self, call: Call[R], call_next: Next[R], /) -> R:
        return await self.stage(call, call_next)


def check_stage(stage: Any) -> None:
    """Raise ConfigError for what cannot be a stage: it is called with the call and the rest of the pipeline."""
    if not callable(stage) or inspect.isclass(stage):
        raise ConfigError(
            "a stage is an async function, or an object with `async def __call__(self, call, call_next)`, not "
            f"{stage!r}"
        )
    try:
        signature = inspect.signature(stage)
    except (TypeError, ValueError):
        return  # a C function, say, that does not tell
    try:
        signature.bind(None, None)
    except TypeError:
        raise ConfigError(
            f"the stage {stage_name(stage)!r} must take two arguments, (call, call_next), not {signature}"
        ) from None


def stage_name(stage: Any) -> str:
    """The name a stage is placed and shown by: its `name`, else that of the function or class."""
    name = getattr(stage, "name", None) or getattr(stage, "__name__", None)
    return str(name or type(stage).__name__)


def stage_options(stage: Any) -> dict[str, Any]:
    """The constructor's parameters of a stage with their present values."""
    if isinstance(stage, Placed):
        stage = stage.stage
    if inspect.isroutine(stage):
        return {}
    options_: dict[str, Any] = {}
    for name, parameter in inspect.signature(type(stage)).parameters.items():
        if name == "random" or not hasattr(stage, name):
            continue
        if parameter.kind is parameter.VAR_POSITIONAL and not getattr(stage, name):
            continue
        value = getattr(stage, name)
        if value is not ...:
            options_[name] = value
    return options_


def order_problems(stages: Sequence[Any], *, seconds: float, idempotent: bool) -> list[str]:
    """What cannot work about this order, one sentence each."""
    names = [stage_name(stage) for stage in stages]
    at = {name: index for index, name in enumerate(names)}
    problems = []
    for inner, outer, why in _KNOWN_BAD:
        if inner in at and outer in at and at[inner] > at[outer]:
            problems.append(f"{inner} stands outside {outer}: {why}")
    by_name = dict(zip(names, stages, strict=True))
    problems.extend(_retry_problem(by_name, seconds=seconds, idempotent=idempotent))
    return problems


_KNOWN_BAD = (
    ("timeout", "retry", "it then bounds all attempts together; for that use deadline="),
    ("timeout", "circuit_breaker", "the breaker then never sees a timeout"),
    ("circuit_breaker", "retry", "it then sees one outcome per call instead of every attempt"),
    ("circuit_breaker", "fallback", "a fallback that works then hides every failure, and it never opens"),
    ("retry", "fallback", "fallback then answers first, and retry is dead code"),
    ("circuit_breaker", "bulkhead", "a queued attempt then met the breaker long before it starts"),
    ("circuit_breaker", "pace", "the wait for a turn then counts as the target's latency"),
    ("circuit_breaker", "throttle", "the wait at the gate then counts as the target's latency"),
    ("circuit_breaker", "rate_limit", "the wait for a turn then counts as the target's latency"),
    ("fallback", "telemetry", "the record then ends before the next target is tried"),
)


def _retry_problem(by_name: dict[str, Any], *, seconds: float, idempotent: bool) -> list[str]:
    """A first retry that could never start: the attempt limit and its backoff fill the first target's share."""
    retry, timeout = by_name.get("retry"), by_name.get("timeout")
    attempt = getattr(timeout, "attempt", None)
    if retry is None or attempt is None or seconds == UNBOUNDED or getattr(retry, "max_attempts", 1) < 2:
        return []
    fallback = by_name.get("fallback")
    shared = idempotent and fallback is not None and (fallback.targets or callable(fallback.default))
    share = seconds / 2 if shared else seconds
    backoff = retry.longest_first_backoff()
    if attempt + backoff < share:
        return []
    problem = (
        f"a first retry could never start: an attempt may take {attempt:g} s and the backoff after it "
        f"{backoff:g} s, but the first target's share of the deadline is {share:g} s; "
        "lower timeout.attempt or raise the deadline"
    )
    return [problem]


def layout_of(stages: list[Any]) -> list[Any]:
    """Add a mark for the place of every built-in stage that is off, where `ORDER` has it."""
    names = [stage_name(stage) for stage in stages]
    for name in names:
        if name in ORDER and names.count(name) > 1:
            raise ConfigError(f"the pipeline has {names.count(name)} stages named {name!r}")
    layout = list(stages)
    previous = -1
    for name in ORDER:
        found = next((i for i, item in enumerate(layout) if item_name(item) == name), None)
        if found is None:
            previous += 1
            layout.insert(previous, Off(name))
        else:
            previous = found
    return layout


def item_name(item: Any) -> str:
    """The name of a place, whether its stage is on or off."""
    return item.name if isinstance(item, Off) else stage_name(item)


def names(layout: Sequence[Any]) -> list[str]:
    """The names of all places of a layout."""
    return [item_name(item) for item in layout]


def is_placed(item: Any, anchor: str) -> bool:
    """Whether `item` was placed inside `anchor`."""
    return isinstance(item, Placed) and item.anchor == anchor and not item.outside
