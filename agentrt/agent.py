"""The base class of agents: a declared model, instructions and tools, and the loop model -> tools -> model."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from agentrt.call import RUN
from agentrt.errors import ConfigError
from agentrt.models.protocol import Part, Settings

if TYPE_CHECKING:
    from agentrt.context import Context
    from agentrt.limits import Limits

__all__ = ["Agent", "AgentWarning", "check_attributes", "instructions_of"]


class Agent:
    """Subclass it and set what is needed:

        class Assistant(Agent):
            model = ["openai:gpt-5-mini", "local:smollm2"]   # the rest are fallback targets
            instructions = "You answer questions about the weather."
            tools = [weather]

    A class is instantiated once per process and keeps per-conversation state in `ctx.session`, never on itself
    (`scope = "run"` makes one per run). `__aenter__` and `__aexit__` are honoured.
    """

    model: str | Sequence[str] | None = None
    """`prefix:name`, or several: the first one is asked, the rest are fallback targets."""
    instructions: str | Callable[[Context], str] = ""
    """The system message, or a function of the context that makes it: `lambda ctx: ...`, or a method with or without
    `ctx`."""
    tools: Sequence[Any] = ()
    """Functions made with `@tool`, or plain functions."""
    output: Any = None
    """A type: the answer is JSON of it, validated, and `run` returns an instance."""
    settings: Settings = Settings()
    """Sampling settings."""
    limits: Limits | None = None
    """Limits of one run; a run that is given limits of its own ignores these."""
    middleware: Sequence[Any] = ()
    """Stages for every call of this agent, or `(stage, {"kind": "tool", "outside": "retry"})` pairs."""
    on_tool_failure: Literal["tell", "raise"] = "tell"
    """A tool call that the pipeline gave up on: tell the model, or end the run."""
    scope: ClassVar[Literal["process", "run"]] = "process"

    async def run(self, message: str | list[Part]) -> Any:
        """Answer one message; returns the model's text, or an `output`."""
        run = RUN.get()
        if run is None:
            raise ConfigError(
                f"{type(self).__name__}.run needs a runtime around it: use `agentrt run ...`, or "
                "`async with Runtime() as rt: await rt.run(agent, message)`"
            )
        return await cast("Context", run).converse(self, message)


class AgentWarning(UserWarning):
    """An attribute of an agent that looks like a misspelt one of `Agent`."""


def check_attributes(agent: Agent) -> None:
    """Raise ConfigError for an attribute that cannot be meant: when the agent is hosted, not in its first run."""
    name = type(agent).__name__
    for attribute, (is_right, wanted) in _ATTRIBUTES.items():
        value = getattr(agent, attribute)
        if not is_right(value):
            raise ConfigError(f"{name}.{attribute} must be {wanted}, not {value!r}")
    _warn_of_misspelt(agent)


def instructions_of(agent: Agent, ctx: Context) -> Any:
    """What the agent's instructions are in this run; of a function, what it returned."""
    instructions = agent.instructions
    if not callable(instructions):
        return instructions
    maker: Any = instructions
    positional = _positional(maker)
    if positional is None or positional:
        return maker(ctx)
    # Nothing is left that takes the context: a method that wants only its agent, or a function of the context that
    # became a method because it stands in a class body.
    function = getattr(maker, "__func__", maker)
    return maker() if function is maker or _positional(function) == ["self"] else function(ctx)


def _positional(function: Any) -> list[str] | None:
    """The parameters that are given by position; None if nobody can say."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    return [
        p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)
    ]


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _is_limits(value: Any) -> bool:
    from agentrt.limits import Limits

    return value is None or isinstance(value, Limits)


_ATTRIBUTES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model": (
        lambda value: value is None or isinstance(value, str) or _is_list(value),
        'a name such as "openai:gpt-5-mini" or a list of names',
    ),
    "instructions": (
        lambda value: isinstance(value, str) or callable(value),
        "text, or a function of the context",
    ),
    "tools": (_is_list, "a list of functions, for example [search]"),
    "output": (lambda value: not isinstance(value, str | int | float | list | dict | tuple), "a type"),
    "settings": (lambda value: isinstance(value, Settings), "Settings(...)"),
    "limits": (_is_limits, "Limits(...)"),
    "middleware": (_is_list, "a list of stages"),
    "on_tool_failure": (lambda value: value in ("tell", "raise"), '"tell" or "raise"'),
    "scope": (lambda value: value in ("process", "run"), '"process" or "run"'),
}


def _warn_of_misspelt(agent: Agent) -> None:
    own = {attribute for cls in type(agent).__mro__ if cls not in (Agent, object) for attribute in vars(cls)}
    for attribute in sorted(own - set(vars(Agent))):
        if attribute.startswith("_") or callable(getattr(agent, attribute)):
            continue
        import difflib

        near = difflib.get_close_matches(attribute, _ATTRIBUTES, n=1, cutoff=0.85)
        if near:
            warnings.warn(
                f"{type(agent).__name__}.{attribute} means nothing to agentrt; did you mean {near[0]!r}?",
                AgentWarning,
                stacklevel=2,
            )
