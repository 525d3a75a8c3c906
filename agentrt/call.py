"""What travels through a pipeline, and the one contract of everything in it.

A `Call` is a value: stages pass on a changed copy (`call.replace(...)`). Its `record` is shared by all copies and
only ever appended to: attempts, waits, refusals, target changes. Telemetry, events and budgets read it.

The contract:

    async def middleware(call, call_next): ...      # a function, or an object with this __call__

`call_next` is the rest of the pipeline, one coroutine function. The result is a plain value, or a `Stream` when
`call.stream` is set; a stage need not care which.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from typing import Any, Generic, Protocol, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from agentrt.errors import TRANSIENT, AttemptTimeout, CircuitOpen, DeadlineExceeded, Label, classify
from agentrt.timers import Armed

__all__ = [
    "ENCLOSING",
    "RUN",
    "UNBOUNDED",
    "Attempt",
    "Call",
    "CircuitChange",
    "DefaultServed",
    "Entry",
    "Inline",
    "Inlined",
    "Middleware",
    "Next",
    "Quick",
    "Record",
    "Refusal",
    "Retrying",
    "Run",
    "TargetChange",
    "Wait",
    "deadline_exceeded",
    "run_inline",
]

R = TypeVar("R")
R_contra = TypeVar("R_contra", contravariant=True)

UNBOUNDED = math.inf
"""The deadline of a call that has none."""

ENCLOSING: ContextVar[Armed | None] = ContextVar("agentrt_enclosing", default=None)
"""The limit of the attempt that we are inside of, with its call: nested calls inherit the remaining time."""

RUN: ContextVar[Run | None] = ContextVar("agentrt_run", default=None)
"""The run that we are inside of; `agentrt.current()` gives its context."""


class Attempt(Struct, frozen=True, eq=False):
    """One physical try. Times are loop time in seconds; `error` and `label` are None for a success."""

    target: str
    number: int
    started: float
    ended: float
    error: BaseException | None = None
    label: Label | None = None


class Wait(Struct, frozen=True, eq=False):
    """Time spent waiting by `stage` ("retry", "throttle", "pace", "rate_limit", "bulkhead"), in seconds."""

    stage: str
    target: str
    started: float
    seconds: float


class Retrying(Struct, frozen=True, eq=False):
    """Retry goes on: attempt `number` follows after `delay` seconds because of `error`."""

    target: str
    number: int
    delay: float
    error: BaseException


class Refusal(Struct, frozen=True, eq=False):
    """`stage` did not let the call through to `target`."""

    stage: str
    target: str
    error: BaseException


class CircuitChange(Struct, frozen=True, eq=False):
    """The circuit of `target` changed its state ("closed", "open", "half-open", "isolated") during this call."""

    target: str
    old: str
    new: str


class TargetChange(Struct, frozen=True, eq=False):
    """Fallback gave up on the target `old` because of `error` and goes on with `new`."""

    old: str
    new: str
    error: BaseException


class DefaultServed(Struct, frozen=True, eq=False):
    """Every target failed and Fallback's default was served; `error` is the last failure."""

    error: BaseException


Entry = Attempt | Wait | Retrying | Refusal | CircuitChange | TargetChange | DefaultServed


class Run(Protocol):
    """What a call knows of the run it belongs to. `deadline`: loop time in seconds, infinite if there is none."""

    id: str
    deadline: float
    live: Any
    """Its span; None if it is not traced, and so are its calls."""

    def observe(self, call: Call[Any], entry: Entry) -> None:
        """Sees each entry of a record as it is made (the run turns them into events)."""
        ...

    def collect(self, call: Call[Any]) -> None:
        """Gets each call of this run when it has ended."""
        ...


class Record(Struct, eq=False):
    """What really happened to one call. Times are loop time in seconds; `time` reads that clock.

    `target` and `share` belong to the present turn: where attempts go, and when (loop time) another target must
    have its turn. `started`, `ended`: of the whole call (`ended` is None while it runs); `first_item`: when the first
    item of a stream came. `error`: how it ended, None for a success. `usage`: tokens, as the terminal noted them.
    `abandoned`: a worker thread that could not be cancelled; while it runs the call is not repeated. `cancelling`:
    how often the task was being cancelled when the attempt began that failed last, so before this call. `span`: the
    call's span if it is traced. `response`: what a model answered, for telemetry.
    """

    loop: asyncio.AbstractEventLoop
    time: Callable[[], float]
    started: float
    target: str
    share: float
    ended: float | None = None
    error: BaseException | None = None
    noted: list[Entry] | None = None
    attempt_started: float | None = None
    attempt_number: int = 1
    first_item: float | None = None
    usage: Any = None
    abandoned: asyncio.Future[Any] | None = None
    cancelling: int = 0
    nested: list[tuple[BaseException, Label]] | None = None
    span: Any = None
    response: Any = None

    @property
    def entries(self) -> Sequence[Entry]:
        """What happened, in order. Most calls have nothing to tell but their times, and no list."""
        return self.noted or ()

    @property
    def elapsed(self) -> float:
        """Seconds so far, or of the whole call once it has ended."""
        end = self.ended if self.ended is not None else self.time()
        return end - self.started

    @property
    def degraded(self) -> bool:
        """True if the answer did not come from the first target."""
        return any(isinstance(entry, TargetChange | DefaultServed) for entry in self.entries)

    @property
    def attempts(self) -> list[Attempt]:
        """Every physical try in order, the successful one last.

        Failed tries are in `entries`. The usual try, the first one on the first target that succeeds, is made
        up here from four numbers instead of costing every call an object.
        """
        tries = [entry for entry in self.entries if isinstance(entry, Attempt)]
        if self.attempt_started is not None:
            ended = self.ended if self.ended is not None else self.time()
            label = None if self.error is None else classify(self.error)
            tries.append(
                Attempt(self.target, self.attempt_number, self.attempt_started, ended, self.error, label)
            )
        return tries

    @property
    def is_abandoned(self) -> bool:
        """True while a worker thread of this call goes on without us."""
        return self.abandoned is not None and not self.abandoned.done()

    def let_cancellation_through(self, error: Exception) -> None:
        """Raise CancelledError if the caller has cancelled: then `error` is only what some cleanup came to, and
        nothing may be tried again. A refusal of ours is no cleanup's, and a call may be made in one."""
        task = asyncio.current_task()
        if task is None or task.cancelling() <= self.cancelling:
            return
        if any(isinstance(entry, Refusal) and entry.error is error for entry in self.entries):
            return
        raise asyncio.CancelledError from error

    @property
    def waits(self) -> list[Wait]:
        return [entry for entry in self.entries if isinstance(entry, Wait)]

    @property
    def errors(self) -> list[BaseException]:
        """The failures and refusals of this call in the order they happened, as the objects themselves."""
        return [
            entry.error
            for entry in self.entries
            if isinstance(entry, Attempt | Refusal) and entry.error is not None
        ]

    def label(self, error: BaseException) -> Label:
        """The label that the terminal gave to `error`; one that came later is judged by its class."""
        for entry in reversed(self.entries):
            if type(entry) is Attempt and entry.error is error and entry.label is not None:
                return entry.label
        return classify(error)


class Call(Struct, Generic[R], frozen=True, eq=False):
    """One logical operation on its way inwards. `R` is the type of its result.

    `kind`: "model", "tool", "memory", "secret", or a name of yours. `operation`: what is done ("chat", the
    tool's name). `target`: what an attempt goes to, for example "openai:gpt-5-mini" or "tool:search".
    `request`: what is sent, as the terminal understands it. `idempotent`: it may be repeated.
    `deadline`: loop time in seconds by which all of it must be over, infinite if there is none.
    `attempt`: 1-based, per target.
    `single`: an enclosing call repeats this one, so each target gets one attempt. `covers`: the same for
    calls nested in this one. `key`: an idempotency key, the same for all attempts.
    """

    kind: str
    operation: str
    target: str
    request: Any
    idempotent: bool
    stream: bool
    deadline: float
    attempt: int
    run: Run | None
    record: Record
    parent: Call[Any] | None = None
    single: bool = False
    covers: bool = False
    key: str | None = None

    def replace(self, **changes: Any) -> Call[R]:
        """A copy with some fields changed, sharing the record."""
        return replace(self, **changes)

    @property
    def share(self) -> float:
        """The part of the deadline that belongs to the present target: the loop time at which its turn ends. Never past
        `deadline`, which a stage may have shortened."""
        return min(self.record.share, self.deadline)

    @property
    def remaining(self) -> float:
        """Seconds until `deadline`, never negative; infinite if there is none."""
        return max(0.0, self.deadline - self.record.time())

    def note(self, entry: Entry) -> None:
        """Append to the record, and let the run see it."""
        record = self.record
        if record.noted is None:
            record.noted = [entry]
        else:
            record.noted.append(entry)
        if self.run is not None:
            self.run.observe(self, entry)

    def failed(self, error: BaseException, label: Label, *, instead_of: BaseException | None = None) -> None:
        """Note that the running attempt failed with `error`.

        A stage that turns the failure into another (timeout, when a cleanup raised something else) names the
        one it replaces, so that an attempt never stands in the record twice.
        """
        record = self.record
        now = record.time()
        started = record.attempt_started if record.attempt_started is not None else record.started
        if instead_of is not None and record.noted:
            last = record.noted[-1]
            if type(last) is Attempt and last.error is instead_of:
                record.noted.pop()
                started = last.started
        record.attempt_started = None
        if self.parent is not None:
            enclosing = self.parent.record
            if enclosing.nested is None:
                enclosing.nested = []
            enclosing.nested.append((error, label))
        self.note(Attempt(self.target, self.attempt, started, now, error, label))


def label_at_terminal(call: Call[Any], error: BaseException, known: Label | None) -> Label:
    """The one place where a failure gets its label.

    `known`: what the terminal's own classifier says (a tool's `transient=`), or None; it cannot make an open circuit
    worth a retry. A failure that comes out
    of a nested call is not this target's fault, so this target's breaker does not count it; a nested call that
    ran out of time while this one has some left may succeed when repeated.
    """
    out_of_time = isinstance(error, AttemptTimeout) or (
        isinstance(error, DeadlineExceeded) and error.scope == "call"
    )
    for nested, label in call.record.nested or ():
        if nested is error:
            return (known or (TRANSIENT if out_of_time else label)).nested()
    if known is not None and not isinstance(error, CircuitOpen):
        return known
    if out_of_time:
        return TRANSIENT.nested()
    return classify(error)


def deadline_exceeded(call: Call[Any], *, ran: float = 0.0) -> DeadlineExceeded:
    """The error for a call whose deadline is over; the run's deadline, if that is what it was."""
    of_run = call.run is not None and call.deadline >= call.run.deadline
    seconds = call.deadline - call.record.started
    whose = "the run" if of_run else "the call"
    return DeadlineExceeded(
        f"{call.target}: the deadline of {whose} is over (this call had {seconds:.3g} s)",
        scope="run" if of_run else "call",
        ran=ran,
    )


# --- the contract --------------------------------------------------------------------------------------

Next = Callable[[Call[R]], Awaitable[R]]


class Middleware(Protocol):
    """One stage: does something before, after or instead of `await call_next(call)`."""

    async def __call__(self, call: Call[R], call_next: Next[R], /) -> R: ...


class Quick(Struct, frozen=True, eq=False):
    """Source lines that stand for a function of `Inline` in the usual case, without the cost of calling it.

    In `lines`, `$token` is the stage's token, `$name` anything in `names` or a variable of the stage's own. `call`, its
    `record` and `now` are there to be used, and in `done` `end`, when the result was there; both are read once, and
    nothing is awaited in between. What is not usual calls the function: `$stage.enter(call)`,
    `$stage.done($token, call)`. Values only: what a stream costs is elsewhere.
    """

    lines: str
    names: dict[str, Any] = {}


class Inline(Struct, frozen=True, eq=False):
    """The second form of a built-in stage: functions that the composer puts into one coroutine with its
    neighbours, so that a stage which awaits nothing on the way to success costs no coroutine of its own.

    `enter(call) -> token` may refuse by raising. After it exactly one of the others is called: `done(token, call)`
    with a value, `committed(token, call, stream)` with a stream that has its first item (what is left to do
    happens when the stream settles), `failed(token, call, error)`, which returns the exception that goes on
    outwards, or `recover(call, error)`, a coroutine function whose result or exception takes the place of an
    `Exception`. Each may be None. A stage behaves the same in both forms: its `__call__` is `run_inline`.

    `quick_enter`, `quick_done`: the usual case of `enter` and `done` as source.
    """

    enter: Callable[[Call[Any]], Any] | None = None
    done: Callable[[Any, Call[Any]], None] | None = None
    committed: Callable[[Any, Call[Any], Any], None] | None = None
    failed: Callable[[Any, Call[Any], BaseException], BaseException] | None = None
    recover: Callable[[Call[Any], Exception], Awaitable[Any]] | None = None
    quick_enter: Quick | None = None
    quick_done: Quick | None = None


class Inlined(Protocol):
    """A built-in stage that has the inlined form.

    `call_next` is what it wraps; `inner` are the stages in there, from the call outward: a stage may look
    for what they offer (an `available`, a gate), but never for who they are.
    """

    def inline(self, call_next: Next[Any], inner: Sequence[Any], /) -> Inline: ...


async def run_inline(stage: Inlined, call: Call[R], call_next: Next[R]) -> R:
    """The wrapper form of a stage that has the inlined one."""
    form = stage.inline(call_next, ())
    token = form.enter(call) if form.enter is not None else None
    try:
        result = await call_next(call)
    except BaseException as error:
        if form.recover is not None and isinstance(error, Exception):
            recovered: R = await form.recover(call, error)
            return recovered
        raised = form.failed(token, call, error) if form.failed is not None else error
        if raised is error:
            raise
        raise raised from raised.__cause__
    if call.stream:
        if form.committed is not None:
            form.committed(token, call, result)
    elif form.done is not None:
        form.done(token, call)
    return result
