"""One run: from its first event to its last, within its deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from msgspec import Struct

from agentrt import events
from agentrt.call import RUN, UNBOUNDED, Call
from agentrt.context import Context
from agentrt.errors import ConfigError, DeadlineExceeded
from agentrt.hosting import Hosted
from agentrt.models.protocol import ModelResponse, Part, Usage
from agentrt.record_events import describe
from agentrt.schema import encode_result
from agentrt.timers import Armed, Timers

__all__ = ["RunResult", "execute"]


class RunResult(Struct, frozen=True, eq=False):
    """How a run ended. `output`: what the agent returned; `text`: that as text. `usage`: tokens of the run and its
    children. `degraded`: some answer, here or in a child, did not come from its first target. `record`: the
    calls that were made, in order, each with its record (and without its request)."""

    output: Any
    text: str
    usage: Usage
    run_id: str
    degraded: bool
    record: list[Call[Any]]

    def __repr__(self) -> str:
        return (
            f"RunResult(text={self.text!r}, usage={self.usage}, run_id={self.run_id!r}, degraded={self.degraded}, "
            f"record=<{len(self.record)} calls>)"
        )


def execute(ctx: Context, hosted: Hosted, message: str | list[Part]) -> Coroutine[Any, Any, RunResult]:
    """Run `hosted` on a message, recorded if there is an audit log."""
    if ctx.audit is None:
        return _execute(ctx, hosted, message)
    return ctx.audit.run(ctx, message, lambda: _execute(ctx, hosted, message))


async def _execute(ctx: Context, hosted: Hosted, message: str | list[Part]) -> RunResult:
    if not isinstance(message, str | list):
        raise ConfigError(f"the message must be text or a list of parts, not {message!r}")
    if not message or (isinstance(message, str) and not message.strip()):
        raise ConfigError("the message is empty")
    ctx.emit(
        events.RunStarted(
            run=ctx.id,
            at=ctx.elapsed,
            agent=hosted.name,
            parent=None if ctx.parent is None else ctx.parent.id,
        )
    )
    token = RUN.set(ctx)
    started = ctx.elapsed
    telemetry = ctx.telemetry
    span = telemetry.run_started(ctx)
    armed = _arm(ctx)
    output: Any = None  # what is left when the agent's own `__aexit__` swallows an exception
    try:
        if hosted.per_run and hosted.is_managed:
            async with hosted.subject:
                output = await hosted.run(message, ctx)
        else:
            output = await hosted.run(message, ctx)
        text = _as_text(output, ctx)  # which may be what fails: it asks the agent's own objects
    except BaseException as error:
        raised = _failed(ctx, armed, error)
        telemetry.run_ended(ctx, span, ctx.elapsed - started, raised)
        _report_failure(ctx, raised, ctx.elapsed - started)
        if raised is error:
            raise
        raise raised from raised.__cause__
    finally:
        RUN.reset(token)
    if armed is not None:
        Timers.of(ctx.loop).disarm(armed)
    telemetry.run_ended(ctx, span, ctx.elapsed - started, None)
    if ctx.degraded and ctx.parent is not None:
        ctx.parent.degraded = True
    result = RunResult(output, text, ctx.usage, ctx.id, ctx.degraded, ctx.calls)
    ctx.emit(
        events.RunFinished(
            run=ctx.id,
            at=ctx.elapsed,
            output=output,
            seconds=ctx.elapsed - started,
            input_tokens=ctx.usage.input_tokens,
            output_tokens=ctx.usage.output_tokens,
            degraded=result.degraded,
        )
    )
    return result


def _arm(ctx: Context) -> Armed | None:
    """Bound the run's task by its deadline; a child run is bounded by its parent's."""
    if ctx.deadline == UNBOUNDED or ctx.parent is not None:
        return None
    task = asyncio.current_task()
    assert task is not None
    return Timers.of(ctx.loop).arm_at(ctx.deadline, task)


def _failed(ctx: Context, armed: Armed | None, error: BaseException) -> BaseException:
    if armed is None:
        return error
    ours = Timers.of(ctx.loop).disarm(armed)
    # A cleanup that failed is how it ended because of the deadline, too.
    if armed.delivered and ours and isinstance(error, Exception | asyncio.CancelledError):
        if isinstance(error, DeadlineExceeded) and error.scope == "run":
            return error
        seconds = ctx.counters.limits.seconds
        raised = DeadlineExceeded(f"the run's deadline of {seconds:g} s is over", scope="run")
        raised.__cause__ = error
        if isinstance(error, Exception):
            raised.add_note(f"what was running then failed: {describe(error)}")
        return raised
    return error


def _report_failure(ctx: Context, error: BaseException, seconds: float) -> None:
    if not ctx.is_watched:
        return
    # Only if it is a call that failed: what a good one went through has nothing to do with this error.
    failed = [call for call in ctx.calls[-1:] if call.record.error is not None]
    causes = [describe(cause) for call in failed for cause in call.record.errors if cause is not error]
    ctx.emit(
        events.RunFailed(
            run=ctx.id,
            at=ctx.elapsed,
            error=type(error).__name__,
            message=str(error),
            seconds=seconds,
            causes=causes,
        )
    )


def _as_text(output: Any, ctx: Context) -> str:
    if isinstance(output, str):
        return output
    if output is None:
        return ""
    if isinstance(output, ModelResponse):
        return output.text
    try:
        return encode_result(output, tool=ctx.agent_name)
    except ConfigError:
        kind = type(output).__name__
        ctx.warn(
            f"{ctx.agent_name} returned a value of type {kind}, which has no JSON form; its text is str() of it"
        )
        return str(output)
