"""The agent loop: ask the model, run the tools it wants, tell it the results, until it answers."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from agentrt import events
from agentrt.agent import instructions_of
from agentrt.call import UNBOUNDED
from agentrt.context import Context
from agentrt.errors import (
    CallError,
    ConfigError,
    DeadlineExceeded,
    PermanentError,
    Refused,
    RunLimitExceeded,
    ToolError,
)
from agentrt.models.protocol import (
    Finished,
    Message,
    ModelRequest,
    ModelResponse,
    Part,
    ReasoningDelta,
    TextDelta,
    ToolCall,
)
from agentrt.record_events import describe
from agentrt.timers import Timers
from agentrt.tools import Tool

if TYPE_CHECKING:
    from agentrt.agent import Agent

__all__ = ["converse"]


async def converse(ctx: Context, agent: Agent, message: str | list[Part]) -> Any:
    """One conversation turn of `agent`: returns the final text, or an instance of `agent.output`.

    The finished turn is added to the session's history; a turn that failed leaves the history as it was.
    """
    tools = ctx.tools_of(agent)
    turn = [Message(role="user", content=message)]
    before = [*_system(agent, ctx), *ctx.session.messages]
    request, targets = ctx.request(
        [], tools=list(tools.values()), output=agent.output, settings=agent.settings
    )
    while True:
        ctx.counters.step()
        asked = replace(request, messages=[*before, *turn])
        response = await _ask(ctx, asked, targets)
        turn.append(response.message())
        if not response.tool_calls:
            answer = _answer(ctx, request, response)
            ctx.session.messages.extend(turn)
            return answer
        turn.extend(await _run_tools(ctx, agent, tools, response.tool_calls))


async def _ask(ctx: Context, request: ModelRequest, targets: tuple[str, ...]) -> ModelResponse:
    # A structured answer is taken as a whole: only before its first item can a bad one be asked for again.
    if request.parse is not None or not (ctx.streaming and ctx.is_watched):
        return await ctx.send_model(request, targets)
    response: ModelResponse | None = None
    async with ctx.open_model(request, targets) as stream:
        async for item in stream:
            match item:
                case TextDelta(text):
                    ctx.emit(events.TextDelta(run=ctx.id, at=ctx.elapsed, text=text))
                case ReasoningDelta(text):
                    ctx.emit(events.ReasoningDelta(run=ctx.id, at=ctx.elapsed, text=text))
                case Finished():
                    response = item.response
                case _:
                    pass
    if response is None:
        raise TypeError(
            f"the stream of {targets[0]} ended without `Finished`, the last item of a model's stream"
        )
    return response


def _answer(ctx: Context, request: ModelRequest, response: ModelResponse) -> Any:
    if response.finish == "length":
        ctx.warn(
            "the answer was cut by the length limit of the model or of settings.max_tokens; raise it for "
            "the whole answer"
        )
    elif response.finish == "content_filter":
        raise PermanentError("the provider's content filter withheld the answer", fault="request")
    return response.text if request.parse is None else request.parse(response)


def _system(agent: Agent, ctx: Context) -> list[Message]:
    text = instructions_of(agent, ctx)
    if not isinstance(text, str):
        if inspect.iscoroutine(text):
            text.close()
        raise ConfigError(
            f"the instructions of {ctx.agent_name} must be text, or a plain function of the context that "
            f"returns text, not {type(text).__name__}"
        )
    return [Message(role="system", content=text)] if text else []


# --- tools ---------------------------------------------------------------------------------------------


async def _run_tools(
    ctx: Context, agent: Agent, tools: dict[str, Tool[..., Any]], calls: Sequence[ToolCall]
) -> list[Message]:
    """The answers to `calls`, in their order; several run in parallel.

    A bug in one of them ends the run, but only when the others have finished: a tool that may have an effect
    is never cut off midway by a sibling's failure. One plain exception comes out, never a group.
    """
    if len(calls) == 1:
        return [await _run_tool(ctx, agent, tools, calls[0])]
    tasks = [asyncio.ensure_future(_run_tool(ctx, agent, tools, call)) for call in calls]
    timers = Timers.of(ctx.loop)
    # The run's deadline reaches a tool by itself, because it waits for the cleanup that an earlier limit has begun.
    limits = [timers.arm_at(ctx.deadline, task) for task in tasks] if ctx.deadline < UNBOUNDED else []
    try:
        await asyncio.wait(tasks)
    except asyncio.CancelledError:
        is_over = any(limit.fired for limit in limits)
        for task in tasks:
            if not (is_over and task.cancelling()):
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
    finally:
        for limit in limits:
            timers.disarm(limit)
    failed = [task for task in tasks if task.cancelled() or task.exception() is not None]
    failed.sort(
        key=lambda task: task.cancelled()
    )  # a real exception says more than a tool that cancelled itself
    if failed:
        error = failed[0].exception() if not failed[0].cancelled() else asyncio.CancelledError()
        assert error is not None
        for other in failed[1:]:
            if not other.cancelled():
                error.add_note(f"also failed: {describe(other.exception() or asyncio.CancelledError())}")
        raise error
    return [task.result() for task in tasks]


async def _run_tool(ctx: Context, agent: Agent, tools: dict[str, Tool[..., Any]], call: ToolCall) -> Message:
    number = ctx.number_tool_event()
    started = ctx.elapsed
    if ctx.is_watched:
        ctx.emit(
            events.ToolStarted(run=ctx.id, at=started, call=number, tool=call.name, arguments=call.arguments)
        )
    try:
        tool = tools.get(call.name)
        if tool is None:
            known = ", ".join(tools) or "none"
            raise ToolError(f"there is no tool named {call.name!r}; the tools are: {known}")
        arguments = tool.decode(call.arguments)
        result = await ctx.send_tool(tool, arguments)
        text = tool.encode(result)
    except Exception as error:
        if not _goes_to_model(error, agent, tools.get(call.name)):
            _finished(ctx, call, number, started, "bug", describe(error))
            raise
        _finished(ctx, call, number, started, "error", describe(error))
        return Message(role="tool", content=_tell(error), tool_call_id=call.id, is_error=True)
    except asyncio.CancelledError:
        _finished(ctx, call, number, started, "error", "cancelled")
        raise
    _finished(ctx, call, number, started, "ok", None)
    return Message(role="tool", content=text, tool_call_id=call.id)


def _goes_to_model(error: Exception, agent: Agent, tool: Tool[..., Any] | None) -> bool:
    """Whether a tool's failure is told to the model; else it ends the run."""
    if isinstance(error, RunLimitExceeded) or (isinstance(error, DeadlineExceeded) and error.scope == "run"):
        return False
    if isinstance(error, ToolError):
        return True
    own = None if tool is None else tool.options.on_failure
    how = agent.on_tool_failure if own is None else own
    if how == "raise":
        return False
    transient = () if tool is None else tool.options.transient
    # What the pipeline gave up on; anything else is a bug in the tool.
    return isinstance(
        error, (CallError, Refused, DeadlineExceeded, ConnectionError, TimeoutError, *transient)
    )


def _tell(error: Exception) -> str:
    if isinstance(error, ToolError):
        return f"error: {error}"
    return f"error: the tool failed: {describe(error)}"


def _finished(
    ctx: Context, call: ToolCall, number: int, started: float, outcome: Any, error: str | None
) -> None:
    if ctx.is_watched:
        ctx.emit(
            events.ToolFinished(
                run=ctx.id,
                at=ctx.elapsed,
                call=number,
                tool=call.name,
                outcome=outcome,
                seconds=ctx.elapsed - started,
                error=error,
            )
        )
