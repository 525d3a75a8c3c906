"""Spans on the call path, as OpenTelemetry's API sees them.

A span of ours is one small object in OpenTelemetry's context. Its ids are made when somebody asks for them: a span of
the user's own inside it, a log line, or the processor when the call is over. Everything else about a call is in its
record, and is made into a span off the path.

Only what traces imports this file: it loads the OpenTelemetry API.
"""

from __future__ import annotations

import os
import random
import threading
import time
from abc import ABCMeta
from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, Self

from msgspec import Struct, StructMeta
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, Status, StatusCode, TraceFlags

from agentrt.telemetry.caps import attribute_value
from agentrt.telemetry.conventions import error_text, error_type
from agentrt.telemetry.signals import Link, SpanEvent, SpanStatus

__all__ = [
    "CURRENT",
    "KEY",
    "LiveSpan",
    "Sampler",
    "UserSpan",
    "attach",
    "current_ids",
    "detach",
    "not_sampled",
]

MAX_ATTRIBUTES = 128
MAX_EVENTS = 128

KEY = next(iter(trace.set_span_in_context(trace.INVALID_SPAN, Context())))
"""Where OpenTelemetry's context keeps the current span."""

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_NOT_SAMPLED = TraceFlags(TraceFlags.DEFAULT)
_STATUS: dict[StatusCode, SpanStatus] = {
    StatusCode.UNSET: "unset",
    StatusCode.OK: "ok",
    StatusCode.ERROR: "error",
}
_ids = threading.Lock()
_PLAIN = frozenset((str, int, float, bool))


class _Current:
    """The current context by OpenTelemetry's public functions, where its implementation is not the usual one."""

    get = staticmethod(otel_context.get_current)
    set = staticmethod(otel_context.attach)
    reset = staticmethod(otel_context.detach)


def _current() -> Any:
    """The context variable behind the public functions: on the call path they would cost more than all the rest."""
    found = getattr(otel_context._RUNTIME_CONTEXT, "_current_context", None)
    return found if isinstance(found, ContextVar) else _Current


CURRENT = _current()


class _SpanStruct(StructMeta, ABCMeta):
    """For a Struct that is a `trace.Span`: a call makes one, and a Struct is made in half the time."""


class LiveSpan(Struct, trace.Span, metaclass=_SpanStruct, eq=False):
    """The span of a run or a call while it is recorded.

    `outer` is the OpenTelemetry context that it was made in, and so says what its parent is. `more`: what the user's
    code said about it.
    """

    outer: Mapping[str, Any]
    more: _More | None = None
    _span_id: int = 0
    """0 until somebody asked; `_trace_id` is then still to be made as well."""
    _trace_id: int = 0

    __repr__ = object.__repr__  # a Struct's would show what the user's context holds

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Nor does rich, which has a Struct's fields in a traceback with local variables."""
        return []

    # --- identity ---------------------------------------------------------------------------------------

    @property
    def parent(self) -> SpanContext | None:
        """The context of the span around this one, whoever made it; None for the root of a trace."""
        parent = self.outer.get(KEY)
        if not isinstance(parent, trace.Span):
            return None
        context = parent.get_span_context()
        return context if context.is_valid else None

    @property
    def ids(self) -> tuple[int, int]:
        """Trace id and span id, made when first asked for."""
        if not self._span_id:
            with _ids:  # the processor and a task that outlived the call may ask at the same time
                if not self._span_id:
                    self._make_ids()
        return self._trace_id, self._span_id

    def adopt(self, trace_id: int, span_id: int) -> None:
        """Have these ids, which others know already."""
        self._trace_id, self._span_id = trace_id, span_id

    def _make_ids(self) -> None:
        lineage: list[LiveSpan] = [self]
        parent = self.outer.get(KEY)
        while isinstance(parent, LiveSpan) and not parent._span_id:
            lineage.append(parent)
            parent = parent.outer.get(KEY)
        if isinstance(parent, LiveSpan):
            trace_id = parent._trace_id
        else:
            context = parent.get_span_context() if isinstance(parent, trace.Span) else None
            trace_id = context.trace_id if context is not None and context.is_valid else _random_id(128)
        for span in reversed(lineage):
            span._trace_id = trace_id
            span._span_id = _random_id(64)

    # --- OpenTelemetry's Span ---------------------------------------------------------------------------

    def get_span_context(self) -> SpanContext:
        trace_id, span_id = self.ids
        return SpanContext(trace_id, span_id, is_remote=False, trace_flags=_SAMPLED)

    def is_recording(self) -> bool:
        return True

    def set_attribute(self, key: str, value: Any) -> None:
        self._more.set(key, value)

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        for key, value in attributes.items():
            self._more.set(key, value)

    def add_event(
        self, name: str, attributes: Mapping[str, Any] | None = None, timestamp: int | None = None
    ) -> None:
        at = time.time_ns() if timestamp is None else timestamp
        kept = {key: _as_it_is(value) for key, value in attributes.items()} if attributes else {}
        self._more.add(SpanEvent(str(name), at, kept))

    def add_link(self, context: SpanContext, attributes: Mapping[str, Any] | None = None) -> None:
        link = Link(f"{context.trace_id:032x}", f"{context.span_id:016x}", dict(attributes or {}))
        if len(self._more.links) < MAX_EVENTS:
            self._more.links.append(link)

    def update_name(self, name: str) -> None:
        self._more.name = str(name)

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        code = status.status_code if isinstance(status, Status) else status
        self._more.status = _STATUS[code]
        self._more.message = (status.description if isinstance(status, Status) else description) or ""

    def record_exception(
        self,
        exception: BaseException,
        attributes: Mapping[str, Any] | None = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        del escaped  # deprecated in the conventions
        self.add_event("exception", {**exception_attributes(exception), **(attributes or {})}, timestamp)

    def end(self, end_time: int | None = None) -> None:
        """Nothing: it ends with its run or call."""

    @property
    def _more(self) -> _More:
        if self.more is None:
            self.more = _More()
        return self.more


class UserSpan(LiveSpan, eq=False, kw_only=True):
    """A span of the user's own, begun now: `with ctx.start_span("step") as span`. `on_end` gets it when it ends."""

    name: str
    on_end: Callable[[UserSpan], None] | None
    started_ns: int
    ended_ns: int = 0
    _is_left: bool = False
    _token: Token[Context] | None = None

    @classmethod
    def begin(
        cls,
        outer: Mapping[str, Any],
        name: str,
        attributes: Mapping[str, Any] | None,
        on_end: Callable[[UserSpan], None],
    ) -> Self:
        span = cls(outer, name=str(name), on_end=on_end, started_ns=time.time_ns())
        if attributes:
            span.set_attributes(attributes)
        return span

    def get_span_context(self) -> SpanContext:
        if not self._is_left:
            return super().get_span_context()
        # It has ended and is current all the same: what comes now belongs to the span around it.
        around = self.outer.get(KEY)
        return around.get_span_context() if isinstance(around, trace.Span) else trace.INVALID_SPAN_CONTEXT

    def end(self, end_time: int | None = None) -> None:
        """End it, now or at `end_time` (nanoseconds since the epoch); once only."""
        on_end, self.on_end = self.on_end, None
        if on_end is not None:
            self.ended_ns = time.time_ns() if end_time is None else end_time
            on_end(self)

    def __enter__(self) -> Self:
        self._token = attach(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_left = not detach(self._token)
        if isinstance(error, Exception) and self._more.status == "unset":
            self.record_exception(error)
            self.set_status(StatusCode.ERROR, f"{type(error).__name__}: {error_text(error)}")
        self.end()


class _More:
    """What the user's code said about a span."""

    __slots__ = ("attributes", "dropped", "events", "links", "message", "name", "status")

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}
        self.events: list[SpanEvent] = []
        self.links: list[Link] = []
        self.name: str | None = None
        self.status: SpanStatus = "unset"
        self.message = ""
        self.dropped = 0

    def set(self, key: str, value: Any) -> None:
        if len(self.attributes) < MAX_ATTRIBUTES or key in self.attributes:
            self.attributes[key] = _as_it_is(value)
        else:
            self.dropped += 1

    def add(self, event: SpanEvent) -> None:
        if len(self.events) < MAX_EVENTS:
            self.events.append(event)
        else:
            self.dropped += 1


def _as_it_is(value: Any) -> Any:
    """What is set may change later, and need not like to be looked at by another thread."""
    return value if type(value) in _PLAIN else attribute_value(value)


def attach(span: trace.Span) -> Token[Context]:
    """Make `span` the current one; the token takes that back."""
    token: Token[Context] = CURRENT.set(Context({**CURRENT.get(), KEY: span}))
    return token


def detach(token: Token[Context] | None) -> bool:
    """Take back what `attach` did. A generator or coroutine that the garbage collector closes does it in a foreign
    context, where there is nothing to take back: then False, and the span stays the current one where it was left."""
    if token is None:
        return True
    try:
        CURRENT.reset(token)
    except ValueError:
        return False
    return True


def not_sampled(outer: Mapping[str, Any]) -> NonRecordingSpan:
    """A span that carries ids and is not recorded: what runs inside it is not sampled either."""
    parent = outer.get(KEY)
    context = parent.get_span_context() if isinstance(parent, trace.Span) else None
    trace_id = context.trace_id if context is not None and context.is_valid else _random_id(128)
    return NonRecordingSpan(SpanContext(trace_id, _random_id(64), is_remote=False, trace_flags=_NOT_SAMPLED))


def current_ids() -> tuple[str, str] | None:
    """Trace id and span id of the current span as hexadecimal text; None outside of any."""
    span = CURRENT.get().get(KEY)
    if not isinstance(span, trace.Span):
        return None
    context = span.get_span_context()
    return (f"{context.trace_id:032x}", f"{context.span_id:016x}") if context.is_valid else None


class Sampler:
    """Head sampling: decides at the root of a trace, by chance.

    `ratio`: the part of the traces that is kept, 0 to 1. `parent_based`: inside a trace of the caller's, that one's
    decision holds.
    """

    __slots__ = ("parent_based", "ratio")

    def __init__(self, ratio: float = 1.0, *, parent_based: bool = True) -> None:
        self.ratio = ratio
        self.parent_based = parent_based

    def __call__(self, outer: Mapping[str, Any]) -> bool:
        if self.parent_based and outer:
            parent = outer.get(KEY)
            if isinstance(parent, LiveSpan):
                return True
            if isinstance(parent, trace.Span) and parent.get_span_context().is_valid:
                return bool(parent.get_span_context().trace_flags.sampled)
        return self.ratio >= 1.0 or random.random() < self.ratio


def exception_attributes(error: BaseException) -> dict[str, Any]:
    """An exception in the words of OpenTelemetry's conventions."""
    import traceback

    return {
        "exception.type": error_type(error),
        "exception.message": error_text(error),
        "exception.stacktrace": "".join(traceback.format_exception(error, limit=-20)),
    }


def _random_id(bits: int) -> int:
    return random.getrandbits(bits) or 1


def _before_fork() -> None:
    """Parent and child must not each make ids of their own for the span that they are inside of."""
    span = CURRENT.get().get(KEY)
    if isinstance(span, LiveSpan):
        _ = span.ids


def _after_fork() -> None:
    """Another thread, which is not there in the child, may have held it."""
    global _ids
    _ids = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)
