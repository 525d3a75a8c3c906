"""The base class of agents: a declared model, instructions and tools, and the loop model -> tools -> model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from agentrt.call import RUN
from agentrt.errors import ConfigError
from agentrt.models.protocol import Part, Settings

if TYPE_CHECKING:
    from agentrt.context import Context
    from agentrt.limits import Limits

__all__ = ["Agent"]


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
    """The system message, or a function of the context that makes it."""
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
