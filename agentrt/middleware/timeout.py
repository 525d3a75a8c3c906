"""Timeout: bounds each attempt, and holds the call's share and deadline.

The timer is exact and ours: see `agentrt.timers` for how its cancellation is told from the caller's.
"""

from __future__ import annotations

import asyncio
import math
from asyncio import current_task
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, TypeVar, cast

from agentrt import options
from agentrt.call import (
    ENCLOSING,
    UNBOUNDED,
    Call,
    Inline,
    Next,
    Quick,
    Refusal,
    deadline_exceeded,
    run_inline,
)
from agentrt.errors import AgentrtError, AttemptTimeout, DeadlineExceeded, classify
from agentrt.stream import Stream
from agentrt.timers import Armed, FixedLimit, Task, Timers

__all__ = ["Timeout"]

R = TypeVar("R")


class Timeout:
    """Ends an attempt that takes too long.

    `attempt` (60 s, None for no limit): one attempt. For a stream the time to its first item is limited by the
    smaller of `attempt` and `first_item` (None), afterwards each wait for an item by `idle` (None). All three
    raise `AttemptTimeout`. The call's share and deadline, if shorter, end it too: as
    `AttemptTimeout(cut=True)` (the next target follows) and as `DeadlineExceeded`.
    The callee's own cleanup is awaited; it is the one thing that may exceed a limit.
    """

    name: ClassVar[str] = "timeout"

    def __init__(
        self, *, attempt: float | None = 60.0, first_item: float | None = None, idle: float | None = None
    ) -> None:
        self.attempt = None if attempt is None else options.seconds("attempt", attempt)
        self.first_item = None if first_item is None else options.seconds("first_item", first_item)
        self.idle = None if idle is None else options.seconds("idle", idle)
        self._value_seconds = UNBOUNDED if self.attempt is None else self.attempt
        self._stream_seconds = min(
            self._value_seconds, UNBOUNDED if self.first_item is None else self.first_item
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timers: Timers
        self._value_limit: FixedLimit
        self._stream_limit: FixedLimit
        self._idle_limit: FixedLimit | None

    async def __call__(self, call: Call[R], call_next: Next[R], /) -> R:
        return await run_inline(self, call, call_next)

    def inline(self, call_next: Next[Any], inner: Sequence[Any], /) -> Inline:
        names = {
            "timeout": self,
            "current_task": current_task,
            "Armed": Armed,
            "set_enclosing": ENCLOSING.set,
            "reset_enclosing": ENCLOSING.reset,
        }
        return Inline(
            self.enter,
            self.done,
            self.committed,
            self.failed,
            quick_enter=Quick(_QUICK_ENTER, names),
            quick_done=Quick(_QUICK_DONE),
        )

    def enter(self, call: Call[Any], /) -> Armed:
        record = call.record
        loop = record.loop
        if loop is not self._loop:
            self._bind(loop)
        limit = self._stream_limit if call.stream else self._value_limit
        record.attempt_started = now = record.time()
        when = now + limit.seconds
        task: Any = current_task(loop)
        share = call.share
        # An exact tie of limit and share belongs to the limit.
        if share < when:
            if share <= now:
                raise self._too_late(call)
            armed = self._timers.arm_at(share, task, call)
        else:
            queue = limit.queue
            armed = Armed(when, task, task.cancelling(), call, queue)
            queue[armed] = None
            if limit.handle is None:
                limit.schedule(when)
        armed.token = ENCLOSING.set(armed)
        return armed

    def done(self, armed: Armed, call: Call[Any], /) -> None:
        ENCLOSING.reset(armed.token)
        if armed.fired:
            # The limit fired and the callee returned a value all the same: the value, as asyncio.timeout.
            self._timers.settle(armed)
        elif armed.queue is not None:
            del armed.queue[armed]
        elif armed.handle is not None:
            armed.handle.cancel()

    def committed(self, armed: Armed, call: Call[Any], stream: Stream[Any], /) -> None:
        self.done(armed, call)
        if self._idle_limit is not None or call.deadline < UNBOUNDED:
            stream.limit_pulls(_Pull(call, self._timers, self._idle_limit))

    def failed(self, armed: Armed, call: Call[Any], error: BaseException, /) -> BaseException:
        ours = _end(self._timers, armed)
        call.record.cancelling = armed.cancelling
        if armed.fired and ours and _is_ending(error, armed):
            return self._timed_out(armed, call, error)
        return _caller_first(error, ours=ours)

    def _bind(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timers = timers = Timers.of(loop)
        self._value_limit = timers.fixed(self._value_seconds)
        self._stream_limit = timers.fixed(self._stream_seconds)
        self._idle_limit = None if self.idle is None else timers.fixed(self.idle)

    def _timed_out(self, armed: Armed, call: Call[Any], error: BaseException) -> BaseException:
        own = self._stream_seconds if call.stream else self._value_seconds
        record = call.record
        started = record.attempt_started
        if started is None:  # the terminal noted the cleanup's own failure
            started = next((a.started for a in reversed(record.attempts) if a.error is error), record.started)
        # Until the limit: the cleanup after it says nothing about how long the target would have taken.
        elapsed = armed.when - started
        if armed.queue is not None:
            limit: Literal["attempt", "first_item"] = "attempt"
            if call.stream and self._stream_seconds < self._value_seconds:
                limit = "first_item"
            raised: AttemptTimeout | DeadlineExceeded = AttemptTimeout(
                f"{call.target}: no {'first item' if call.stream else 'result'} within its {limit} limit of "
                f"{own:g} s",
                limit=limit,
                seconds=own,
                elapsed=elapsed,
            )
        elif armed.when >= call.deadline:
            raised = deadline_exceeded(call, ran=elapsed / own)
        else:
            raised = AttemptTimeout(
                f"{call.target}: cut after {elapsed:.3g} s, its share of the deadline is over",
                seconds=own,
                elapsed=elapsed,
                cut=True,
            )
        raised.__cause__ = error
        # What the callee's end knows: a worker thread that goes on without us, or one that never started.
        if getattr(error, "executed", None) is False:
            raised.executed = False
        for note in getattr(error, "__notes__", ()):
            raised.add_note(note)
        call.failed(raised, classify(raised), instead_of=error)
        return raised

    def _too_late(self, call: Call[Any]) -> AgentrtError:
        """The time was over before the attempt could start: nothing was done."""
        late: DeadlineExceeded | AttemptTimeout
        if call.share >= call.deadline:
            late = deadline_exceeded(call)
        else:
            late = AttemptTimeout(
                f"{call.target}: its share of the deadline is over", cut=True, seconds=UNBOUNDED
            )
        late.executed = False
        call.record.attempt_started = None
        call.note(Refusal(self.name, call.target, late))
        return late


# `enter` and `done` for an attempt with its full limit, which ends in time.
_QUICK_ENTER = """
if record.loop is not $timeout._loop:
    $timeout._bind(record.loop)
$limit = $timeout._value_limit
$when = now + $limit.seconds
if record.share < $when or call.deadline < $when:
    $token = $stage.enter(call)
else:
    record.attempt_started = now
    $task = $current_task(record.loop)
    $queue = $limit.queue
    $token = $Armed($when, $task, $task.cancelling(), call, $queue)
    $queue[$token] = None
    if $limit.handle is None:
        $limit.schedule($when)
    $token.token = $set_enclosing($token)
"""
_QUICK_DONE = """
if $token.fired or $token.queue is None:
    $stage.done($token, call)
else:
    $reset_enclosing($token.token)
    del $token.queue[$token]
"""


class _Pull:
    """Bounds each wait for the next item of a committed stream: by `idle`, and by the call's deadline."""

    __slots__ = ("_began", "_call", "_idle", "_timers")

    def __init__(self, call: Call[Any], timers: Timers, idle: FixedLimit | None) -> None:
        self._call = call
        self._timers = timers
        self._idle = idle
        self._began = 0.0

    def arm(self) -> Armed:
        call, timers, idle = self._call, self._timers, self._idle
        now = timers.time()
        task = cast("Task", current_task(timers.loop))
        if idle is not None and now + idle.seconds <= call.deadline:
            armed = idle.arm(now, task, call)
        else:
            if call.deadline <= now:
                raise deadline_exceeded(call)
            self._began = now
            armed = timers.arm_at(call.deadline, task, call)
        armed.token = ENCLOSING.set(armed)
        return armed

    def disarm(self, armed: Armed, /) -> None:
        ENCLOSING.reset(armed.token)
        self._timers.disarm(armed)

    def failed(self, armed: Armed, error: BaseException, /) -> BaseException:
        ours = _end(self._timers, armed)
        if not (armed.fired and ours and _is_ending(error, armed)):
            return _caller_first(error, ours=ours)
        call = self._call
        raised: BaseException
        if armed.queue is not None and self._idle is not None:
            seconds = self._idle.seconds
            raised = AttemptTimeout(
                f"{call.target}: no further item within its idle limit of {seconds:g} s",
                limit="idle",
                seconds=seconds,
                elapsed=seconds,
            )
        else:
            # What the target may take by now is its idle limit: a stream whose items kept coming is not to blame.
            limit = math.inf if self._idle is None else self._idle.seconds
            raised = deadline_exceeded(call, ran=(call.deadline - self._began) / limit)
        raised.__cause__ = error
        call.failed(raised, classify(raised), instead_of=error)
        return raised


def _end(timers: Timers, armed: Armed) -> bool:
    try:
        ENCLOSING.reset(armed.token)
    except ValueError:
        # A coroutine that the garbage collector closes runs its cleanup in a foreign context.
        pass
    return timers.disarm(armed)


def _is_ending(error: BaseException, armed: Armed) -> bool:
    """True if `error` is how the callee ended because of our limit: cancelled, or a cleanup that failed."""
    if isinstance(error, asyncio.CancelledError):
        return armed.delivered
    return isinstance(error, Exception)


def _caller_first(error: BaseException, *, ours: bool) -> BaseException:
    """A caller's cancellation wins over whatever its cleanup raised."""
    if ours or not isinstance(error, Exception):
        return error
    cancelled = asyncio.CancelledError()
    cancelled.__cause__ = error
    return cancelled
