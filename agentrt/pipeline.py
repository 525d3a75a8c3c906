"""The pipeline: stages composed once around whatever is called.

The list is written from the call outward, and each stage wraps the ones before it:

    timeout -> circuit_breaker -> retry -> fallback -> telemetry

so that a timeout bounds each attempt, the breaker sees every attempt on its target, retry repeats what the breaker
admits, fallback takes the next target when retry has given up, and one record covers the whole call. `ORDER` has all
the places. A pipeline is a value: `replace`, `without` and `place` return a new one.
"""

from __future__ import annotations

import asyncio
import inspect
import linecache
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Generic, TypeVar, TypeVarTuple, cast

from msgspec import Struct

from agentrt import options
from agentrt.call import ENCLOSING, RUN, UNBOUNDED, Call, Middleware, Next, Record
from agentrt.clock import reader
from agentrt.compose import Classify, Prologue, compose
from agentrt.errors import ConfigError
from agentrt.order import (
    ORDER,
    Off,
    Placed,
    check_stage,
    is_placed,
    item_name,
    layout_of,
    names,
    order_problems,
    stage_name,
    stage_options,
)
from agentrt.stream import Stream

__all__ = ["ORDER", "Pipeline", "PipelineWarning", "StageDescription"]

R = TypeVar("R")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class PipelineWarning(UserWarning):
    """The pipeline can be built, but one of its stages cannot do its work where it stands."""


class StageDescription(Struct, frozen=True):
    """One stage as it stands: its name, its options, and where each was set (by option name)."""

    name: str
    options: dict[str, Any]
    sources: dict[str, str]


class Pipeline:
    """Stages around a terminal.

    `inner_first`: the stages from the call outward. `target`, `kind`, `operation` (default: the target) name
    what is called. `idempotent` (False): a call may be repeated even if its effect is in doubt. `deadline`
    (None, seconds): bounds each whole call, its attempts, waits and targets together. `terminal`: an async function
    of the `Call` (default: call the function given to `call`); `classify`: what it knows about its own errors, a
    function of the error to a `Label` or None. `sources`: where options were set, by "stage.option".
    """

    def __init__(
        self,
        *,
        inner_first: Iterable[Middleware],
        target: str = "call",
        kind: str = "call",
        operation: str | None = None,
        idempotent: bool = False,
        deadline: float | None = None,
        terminal: Next[Any] | None = None,
        classify: Classify | None = None,
        sources: dict[str, str] | None = None,
    ) -> None:
        options.text("target", target)
        options.text("kind", kind)
        if not isinstance(idempotent, bool):
            raise ConfigError(f"idempotent must be True or False, not {idempotent!r}")
        self.target = target
        self.kind = kind
        self.operation = target if operation is None else operation
        self.idempotent = idempotent
        self.deadline = None if deadline is None else options.seconds("deadline", deadline)
        self.sources = sources if sources is not None else {}
        self._terminal = terminal
        self._classify = classify
        self._layout = layout_of(list(inner_first))
        self._value: Next[Any] | None = None
        self._streaming: Next[Any] | None = None
        self._seconds = UNBOUNDED if self.deadline is None else self.deadline
        self._retries = any(
            stage_name(stage) == "retry" and getattr(stage, "max_attempts", 1) > 1 for stage in self.stages
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._time: Callable[[], float]
        self._warned = False
        self._has_chosen_limits = True

    @classmethod
    def default(
        cls, *, target: str = "call", idempotent: bool = False, deadline: float | None = None
    ) -> Pipeline:
        """Timeout (60 s an attempt), circuit breaker, retry (3 attempts), fallback (no further target) and
        telemetry (off), with the default options of each."""
        from agentrt.middleware.defaults import default_stages

        pipeline = cls(
            inner_first=default_stages("call"), target=target, idempotent=idempotent, deadline=deadline
        )
        # Nobody chose the attempt limit, so there is nothing to warn of if it does not fit the deadline.
        pipeline._has_chosen_limits = False
        return pipeline

    def __repr__(self) -> str:
        return f"<Pipeline {self.target}: {' -> '.join(stage_name(stage) for stage in self.stages)}>"

    # --- changing it -----------------------------------------------------------------------------------

    @property
    def stages(self) -> tuple[Middleware, ...]:
        """The stages that are on, from the call outward."""
        return tuple(cast("Middleware", stage) for stage in self._layout if not isinstance(stage, Off))

    def replace(self, stage: Middleware) -> Pipeline:
        """With `stage` instead of the one of the same name, or turned on at that name's place."""
        if isinstance(stage, str):
            raise ConfigError(f"replace takes a stage, for example Retry(max_attempts=5), not {stage!r}")
        check_stage(stage)
        name = stage_name(stage)
        if name not in names(self._layout):
            raise ConfigError(
                f"there is no stage named {name!r} to replace; use place(..., outside=) or inside= for your own"
            )
        changed = self._changed([stage if item_name(item) == name else item for item in self._layout])
        changed._has_chosen_limits = self._has_chosen_limits or name in ("timeout", "retry")
        return changed

    def without(self, *off: str) -> Pipeline:
        """With the stages of these names turned off. Their places stay."""
        for name in off:
            self._check_name(name)
        kept = [
            (Off(item_name(item)) if item_name(item) in ORDER else None) if item_name(item) in off else item
            for item in self._layout
        ]
        return self._changed([item for item in kept if item is not None])

    def place(self, stage: Middleware, *, outside: str | None = None, inside: str | None = None) -> Pipeline:
        """With `stage` directly beside the named one (default: just inside telemetry). At one place, what was
        placed first is outermost. A built-in stage goes to its own place."""
        check_stage(stage)
        if outside is not None and inside is not None:
            raise ConfigError("place a stage outside= one stage or inside= one, not both")
        name = stage_name(stage)
        if name in ORDER:
            if outside is not None or inside is not None:
                raise ConfigError(
                    f"a stage named {name!r} has a place of its own: leave out outside= and inside=, or give a stage "
                    "of yours another `name`"
                )
            return self.replace(stage)
        anchor = outside if outside is not None else inside if inside is not None else "telemetry"
        self._check_name(anchor)
        layout = list(self._layout)
        index = next(i for i, item in enumerate(layout) if item_name(item) == anchor)
        if outside is not None:
            layout.insert(index + 1, Placed(stage, anchor, outside=True))
        else:
            # Those placed here before stay outermost, nearest to the anchor.
            while index > 0 and is_placed(layout[index - 1], anchor):
                index -= 1
            layout.insert(index, Placed(stage, anchor, outside=False))
        return self._changed(layout)

    def describe(self) -> tuple[StageDescription, ...]:
        """The stages from the call outward, with every option and where it was set."""
        return tuple(self._describe(stage) for stage in self.stages)

    def source(self) -> str:
        """The source of the coroutine that the outermost stages were composed to, for the curious."""
        composed: Any = self._value or self._compose_value()
        return "".join(linecache.getlines(composed.__code__.co_filename))

    def problems(self) -> list[str]:
        """What cannot work about this pipeline, one sentence each; its first call warns of them."""
        seconds = self._seconds if self._has_chosen_limits else UNBOUNDED
        return order_problems(self.stages, seconds=seconds, idempotent=self.idempotent)

    # --- calling ---------------------------------------------------------------------------------------

    def call(self, function: Callable[[*Ts], Awaitable[R]], *args: *Ts) -> Coroutine[Any, Any, R]:
        """Call `await function(*args)` through the pipeline; use functools.partial for keyword arguments.

        Raises what the function raised (the same object), or one of our refusals, timeouts or `ResultRejected`.
        """
        composed: Any = self.__dict__.get("call")
        if composed is None:
            composed = self._compose(_INVOKE, stream=False, prologue=self._prologue())
            composed.__name__, composed.__qualname__ = "call", "Pipeline.call"
            # From now on the composed function itself stands where this method was looked up.
            self.__dict__["call"] = composed
        coroutine: Coroutine[Any, Any, R] = composed(function, *args)
        return coroutine

    def stream(
        self, function: Callable[[*Ts], AsyncIterator[T] | Awaitable[AsyncIterator[T]]], *args: *Ts
    ) -> OpenStream[T]:
        """Open what `function(*args)` streams: `async with pipeline.stream(f, x) as stream: async for item in ...`.

        Retry and fallback apply until the first item; after it errors propagate and nothing is repeated.
        """
        return OpenStream(self, partial(function, *args))

    async def send(self, call: Call[R]) -> R:
        """Send a call made by `new_call` through the pipeline."""
        if call.stream:
            return cast("R", await (self._streaming or self._compose_stream())(call))
        return cast("R", await (self._value or self._compose_value())(call))

    def new_call(
        self,
        request: Any,
        stream: bool = False,
        *,
        target: str | None = None,
        operation: str | None = None,
        key: str | None = None,
        idempotent: bool | None = None,
    ) -> Call[Any]:
        """A call to this pipeline's target (or another one), bounded by its deadline, the run's and that of the
        attempt that we are inside of."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._bind(loop)
        now = self._time()
        deadline = now + self._seconds
        run = RUN.get()
        if run is not None and run.deadline < deadline:
            deadline = run.deadline
        repeatable = self.idempotent if idempotent is None else idempotent
        parent: Any = None
        single = False
        enclosing = ENCLOSING.get()
        if enclosing is not None and enclosing.is_running:
            parent = enclosing.call
            single = parent.covers
            # A stream inside a stream lives on after the commit point, when the attempt's limit is gone. Until then
            # that limit ends it by itself.
            when = parent.deadline if stream and parent.stream else enclosing.when
            if when < deadline:
                deadline = when
        return Call(
            self.kind,
            self.operation if operation is None else operation,
            self.target if target is None else target,
            request,
            repeatable,
            stream,
            deadline,
            1,
            run,
            Record(loop, self._time, now, self.target if target is None else target, deadline),
            parent,
            single,
            single or (repeatable and self._retries),
            key,
        )

    # --- inside ----------------------------------------------------------------------------------------

    def _compose_value(self) -> Next[Any]:
        composed: Next[Any] = self._compose(self._terminal or _INVOKE, stream=False)
        self._value = composed
        return composed

    def _compose_stream(self) -> Next[Any]:
        composed: Next[Any] = self._compose(self._terminal or _open, stream=True)
        self._streaming = composed
        return composed

    def _bind(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._time = reader(loop)

    def _prologue(self) -> Prologue:
        """`new_call` as source, for a call that no other encloses."""
        names = {
            "Call": Call,
            "Record": Record,
            "covers": self.idempotent and self._retries,
            "enclosing": ENCLOSING.get,
            "get_running_loop": asyncio.get_running_loop,
            "idempotent": self.idempotent,
            "kind": self.kind,
            "operation": self.operation,
            "partial": partial,
            "pipeline": self,
            "running": RUN.get,
            "seconds": self._seconds,
            "target": self.target,
        }
        return Prologue("function, *args", _PROLOGUE, names)

    def _compose(self, terminal: Next[Any] | str, *, stream: bool, prologue: Prologue | None = None) -> Any:
        self._warn()
        stages = [stage for stage in _holding_deadline(self.stages) if getattr(stage, "is_used", True)]
        retry = next((stage for stage in stages if stage_name(stage) == "retry"), None)
        return compose(
            stages,
            terminal,
            stream=stream,
            classify=self._classify,
            retry_on=getattr(retry, "retry_on", None),
            retry_result=getattr(retry, "retry_result", None),
            prologue=prologue,
        )

    def _changed(self, layout: Sequence[Any]) -> Pipeline:
        changed = object.__new__(type(self))
        changed.__dict__.update(self.__dict__)
        changed._layout = list(layout)
        changed._value = changed._streaming = None
        changed.__dict__.pop("call", None)
        changed._retries = any(
            stage_name(stage) == "retry" and getattr(stage, "max_attempts", 1) > 1 for stage in changed.stages
        )
        changed._warned = False
        return changed

    def _check_name(self, name: str) -> None:
        known = names(self._layout)
        if name not in known:
            raise ConfigError(f"there is no stage named {name!r}; the places are {', '.join(known)}")

    def _describe(self, stage: Middleware) -> StageDescription:
        name = stage_name(stage)
        values = stage_options(stage)
        sources = {option: self.sources.get(f"{name}.{option}", "default") for option in values}
        return StageDescription(name, values, sources)

    def _warn(self) -> None:
        """When it is built, not when it is put together: on the way there an order may be odd for a moment."""
        if self._warned:
            return
        self._warned = True
        for problem in self.problems():
            warnings.warn(f"pipeline of {self.target}: {problem}", PipelineWarning, stacklevel=5)


class OpenStream(Generic[T]):
    """`async with` opens the stream through the pipeline and closes it at the end of the block."""

    def __init__(self, pipeline: Pipeline, request: Any) -> None:
        self._pipeline = pipeline
        self._request = request
        self._stream: Stream[T] | None = None

    async def __aenter__(self) -> Stream[T]:
        stream: Stream[T] = await self._pipeline.send(self._pipeline.new_call(self._request, True))
        self._stream = stream
        return stream

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._stream is not None:
            await self._stream.__aexit__(kind, error, traceback)


def _holding_deadline(stages: Sequence[Middleware]) -> Sequence[Middleware]:
    """Somebody must hold the deadline, also in a pipeline without the timeout stage."""
    if any(stage_name(stage) == "timeout" for stage in stages):
        return stages
    from agentrt.middleware.timeout import Timeout

    return [Timeout(attempt=None), *stages]


# `Pipeline.call` begins with this: `new_call` without the options that it never uses.
_PROLOGUE = """
if enclosing() is None:
    loop = get_running_loop()
    if loop is not pipeline._loop:
        pipeline._bind(loop)
    time = pipeline._time
    now = time()
    deadline = now + seconds
    run = running()
    if run is not None and run.deadline < deadline:
        deadline = run.deadline
    record = Record(loop, time, now, target, deadline)
    request = partial(function, *args) if args else function
    call = Call(kind, operation, target, request, idempotent, False, deadline, 1, run, record, None, False, covers)
else:
    call = pipeline.new_call(partial(function, *args))
    record = call.record
    time = record.time
    now = record.started
"""


# What a function pipeline does with a call: its request is a function of no arguments.
_INVOKE = "call.request()"


async def _open(call: Call[Any]) -> Stream[Any]:
    source = call.request()
    if inspect.isawaitable(source):
        source = await source
    if isinstance(source, Stream):
        return source
    if not hasattr(source, "__aiter__"):
        raise ConfigError(
            f"{call.target} is to be streamed, but {call.request!r} returned {type(source).__name__}, "
            "which is not an async iterator"
        )
    return await Stream.open(source.__aiter__())
