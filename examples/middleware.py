"""Middleware of your own: a function and an object, placed by name.

agentrt run examples/middleware.py:Assistant "hello"
agentrt explain examples/middleware.py:Assistant
"""

import sys
from typing import TypeVar

from agentrt import Agent, Call, Next, Runtime, tool

R = TypeVar("R")


@tool(idempotent=True)
async def shout(text: str) -> str:
    """Say it louder."""
    return text.upper()


class Assistant(Agent):
    model = "scripted:echo"
    tools = (shout,)


async def timing(call: Call[R], call_next: Next[R]) -> R:
    """A function is a stage: do something before, after, or instead of the rest."""
    result = await call_next(call)
    print(f"{call.target}: {call.record.elapsed:.3f} s", file=sys.stderr)
    return result


class Allow:
    """So is an object. This one refuses targets that are not on its list."""

    def __init__(self, *targets: str) -> None:
        self.targets = targets

    async def __call__(self, call: Call[R], call_next: Next[R], /) -> R:
        if call.target not in self.targets:
            raise PermissionError(f"{call.target} is not allowed here")
        return await call_next(call)


def configure(runtime: Runtime) -> None:
    """Called by every command before the pipelines are built."""
    runtime.use(timing)  # every call, just inside telemetry
    runtime.use(Allow("tool:shout"), kind="tool", outside="retry")
