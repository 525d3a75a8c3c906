"""Finished calls and runs as spans."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from agentrt.call import (
    Attempt,
    Call,
    CircuitChange,
    DefaultServed,
    Entry,
    Refusal,
    Retrying,
    TargetChange,
    Wait,
)
from agentrt.telemetry.caps import attribute_value
from agentrt.telemetry.content import Content
from agentrt.telemetry.conventions import Described, describe, error_text, error_type
from agentrt.telemetry.redaction import Redactor
from agentrt.telemetry.signals import Attributes, Span, SpanEvent, SpanStatus
from agentrt.telemetry.tracing import KEY, LiveSpan, UserSpan, exception_attributes

__all__ = ["CallSpans", "call_spans", "own_span", "run_span"]

MAX_KNOWN = 5000
_known: dict[tuple[str, str, str], Described] = {}


class CallSpans:
    """Makes the spans of finished calls.

    Most calls go as calls usually do: the first attempt succeeds, and nobody adds anything to the span. Such a span is
    made clean at once. What is the same for all calls of a kind, operation and target goes through `clean`, which
    redacts a span and cuts it to size, only the first time, and again when the `redactor` has learnt of a secret.
    `content`: what was said is told as well, and nothing is usual.
    """

    def __init__(
        self, *, redactor: Redactor, clean: Callable[[Span], Span], content: Content | None = None
    ) -> None:
        self._redactor = redactor
        self._clean = clean
        self._content = content
        self._generation: object = None
        self._known: dict[tuple[str, str, str], Span] = {}
        self._run: tuple[str | None, Attributes] = (None, {})

    def add(
        self, spans: list[Span], clean: set[int], call: Call[Any], live: LiveSpan, *, offset: int
    ) -> None:
        """Add what `call` comes to to `spans`, and to `clean` the place of a span that need not be made clean any more.
        `offset`: nanoseconds from the call's clock to the epoch."""
        record = call.record
        if record.error is None and record.noted is None and live.more is None and self._content is None:
            span = self._usual(call, live, offset)
            clean.add(len(spans))
            spans.append(span)
        else:
            spans.extend(call_spans(call, live, offset, self._content))

    def _usual(self, call: Call[Any], live: LiveSpan, offset: int) -> Span:
        record = call.record
        if self._redactor.generation is not self._generation:
            self._known, self._run = {}, (None, {})
            self._generation = self._redactor.generation
        known = self._known.get((call.kind, call.operation, record.target)) or self._describe(call)
        attributes = known.attributes.copy()
        if call.run is not None:
            run = call.run.id
            if run != self._run[0]:
                self._run = (run, self._cleaned({"agentrt.run.id": run}))
            attributes.update(self._run[1])
        own = _own_attributes(call)
        if own:
            attributes.update(self._cleaned(own))
        trace_id, span_id = live.ids
        ended = record.ended if record.ended is not None else record.time()
        return Span(
            known.name,
            f"{trace_id:032x}",
            f"{span_id:016x}",
            _parent(live),
            int(record.started * 1e9) + offset,
            int(ended * 1e9) + offset,
            known.kind,
            attributes,
        )

    def _describe(self, call: Call[Any]) -> Span:
        """What is the same for all such calls."""
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        key = (call.kind, call.operation, call.record.target)
        described = describe(*key)
        known = self._known[key] = self._clean(
            Span(described.name, "", "", None, 0, 0, described.span_kind, described.attributes)
        )
        return known

    def _cleaned(self, attributes: Attributes) -> Attributes:
        return self._clean(Span("", "", "", None, 0, 0, attributes=attributes)).attributes


def call_spans(
    call: Call[Any], live: LiveSpan, offset: int, content: Content | None = None
) -> Iterator[Span]:
    """The span of a finished call, and one for each attempt if there was more than the one that succeeded.

    `offset`: nanoseconds from the call's clock to the epoch. `content`: what was said is told as well.
    """
    record = call.record
    key = (call.kind, call.operation, record.target)
    described = _known.get(key)
    if described is None:
        if len(_known) >= MAX_KNOWN:
            _known.clear()
        described = _known[key] = describe(*key)
    trace_id, span_id = live.ids
    trace_text, span_text = f"{trace_id:032x}", f"{span_id:016x}"
    attributes: Attributes = described.attributes.copy()
    if call.run is not None:
        attributes["agentrt.run.id"] = call.run.id
    attributes |= _own_attributes(call)
    ended = record.ended if record.ended is not None else record.time()
    start_ns = int(record.started * 1e9) + offset
    end_ns = int(ended * 1e9) + offset
    status: SpanStatus = "unset"
    message = ""
    events: tuple[SpanEvent, ...] = ()
    attempts: list[Attempt] = []
    error = record.error
    if error is not None or record.noted is not None:
        attempts = record.attempts
        attributes["agentrt.attempts"] = len(attempts)
        if record.degraded:
            attributes["agentrt.degraded"] = True
        events = tuple(_events(call, offset))
        if error is not None:
            status, message = "error", error_text(error)
            attributes["error.type"] = error_type(error)
            events += (SpanEvent("exception", end_ns, exception_attributes(error)),)
        if len(attempts) == 1 and (error is None or attempts[0].error is error):
            attempts = []  # it would only repeat its call
    if content is not None:
        attributes |= content.of(call)
    name = described.name
    if live.more is not None:
        name, attributes, events, status, message = _with_more(
            live, name, attributes, events, status, message
        )
    yield Span(
        name=name,
        trace_id=trace_text,
        span_id=span_text,
        parent_id=_parent(live),
        start_ns=start_ns,
        end_ns=end_ns,
        kind=described.span_kind,
        attributes=attributes,
        events=events,
        links=() if live.more is None else tuple(live.more.links),
        status=status,
        message=message,
    )
    for attempt in attempts:
        yield _attempt(attempt, described, trace_text, span_text, offset)


def run_span(
    live: LiveSpan,
    *,
    agent: str,
    attributes: Attributes,
    start_ns: int,
    end_ns: int,
    error: BaseException | None,
) -> Span:
    """The span of a run."""
    status: SpanStatus = "unset"
    message = ""
    events: tuple[SpanEvent, ...] = ()
    if error is not None:
        status, message = "error", error_text(error)
        attributes["error.type"] = error_type(error)
        events = (SpanEvent("exception", end_ns, exception_attributes(error)),)
    return _made(live, f"invoke_agent {agent}", attributes, events, status, message, start_ns, end_ns)


def own_span(live: UserSpan) -> Span:
    """A span of the user's own (`ctx.start_span`), ended."""
    return _made(live, live.name, {}, (), "unset", "", live.started_ns, live.ended_ns)


def _made(
    live: LiveSpan,
    name: str,
    attributes: Attributes,
    events: tuple[SpanEvent, ...],
    status: SpanStatus,
    message: str,
    start_ns: int,
    end_ns: int,
) -> Span:
    trace_id, span_id = live.ids
    links: Any = ()
    if live.more is not None:
        name, attributes, events, status, message = _with_more(
            live, name, attributes, events, status, message
        )
        links = tuple(live.more.links)
    return Span(
        name=name,
        trace_id=f"{trace_id:032x}",
        span_id=f"{span_id:016x}",
        parent_id=_parent(live),
        start_ns=start_ns,
        end_ns=max(start_ns, end_ns),
        attributes=attributes,
        events=events,
        links=links,
        status=status,
        message=message,
    )


def _parent(live: LiveSpan) -> str | None:
    inside = live.outer.get(KEY)
    if type(inside) is LiveSpan:  # a run or a call: without an object of OpenTelemetry's
        return f"{inside.ids[1]:016x}"
    parent = live.parent
    return None if parent is None else f"{parent.span_id:016x}"


def _with_more(
    live: LiveSpan,
    name: str,
    attributes: Attributes,
    events: tuple[SpanEvent, ...],
    status: SpanStatus,
    message: str,
) -> tuple[str, Attributes, tuple[SpanEvent, ...], SpanStatus, str]:
    """What the user's code added to the span. A failure of ours is not made a success."""
    more = live.more
    assert more is not None
    # A task that outlived the call may still be adding to it.
    attributes |= {str(key): attribute_value(value) for key, value in more.attributes.copy().items()}
    if more.dropped:
        attributes["agentrt.dropped_attributes"] = more.dropped
    added = tuple(
        SpanEvent(event.name, event.time_ns, {k: attribute_value(v) for k, v in event.attributes.items()})
        for event in list(more.events)
    )
    if more.status != "unset" and status != "error":
        status, message = more.status, more.message
    return more.name or name, attributes, (*events, *added), status, message


def _own_attributes(call: Call[Any]) -> Attributes:
    """What a call that succeeded has to itself: tokens, what the model says of its answer, when that began."""
    record = call.record
    attributes: Attributes = {}
    if record.usage is not None:
        _add_usage(attributes, record.usage)
    if record.response is not None and call.kind == "model":
        _add_response(attributes, record.response)
    if record.first_item is not None:
        attributes["gen_ai.response.time_to_first_chunk"] = record.first_item - record.started
    return attributes


def _add_usage(attributes: Attributes, usage: Any) -> None:
    attributes["gen_ai.usage.input_tokens"] = usage.input_tokens
    attributes["gen_ai.usage.output_tokens"] = usage.output_tokens
    if usage.cache_read_input_tokens:
        attributes["gen_ai.usage.cache_read.input_tokens"] = usage.cache_read_input_tokens
    if usage.reasoning_output_tokens:
        attributes["gen_ai.usage.reasoning.output_tokens"] = usage.reasoning_output_tokens
    if usage.estimated:
        attributes["agentrt.usage.estimated"] = True


def _add_response(attributes: Attributes, response: Any) -> None:
    if response.model:
        attributes["gen_ai.response.model"] = response.model
    if response.id:
        attributes["gen_ai.response.id"] = response.id
    attributes["gen_ai.response.finish_reasons"] = [response.finish]


def _attempt(attempt: Attempt, of: Described, trace_id: str, parent_id: str, offset: int) -> Span:
    attributes: Attributes = {
        "agentrt.kind": of.attributes["agentrt.kind"],
        "agentrt.target": attempt.target,
        "agentrt.attempt.number": attempt.number,
    }
    status: SpanStatus = "unset"
    message = ""
    if attempt.error is not None:
        status, message = "error", error_text(attempt.error)
        attributes["error.type"] = error_type(attempt.error)
        if attempt.label is not None:
            attributes["agentrt.error.label"] = attempt.label.name
    return Span(
        name=f"attempt {attempt.number}",
        trace_id=trace_id,
        span_id=f"{random.getrandbits(64) or 1:016x}",
        parent_id=parent_id,
        start_ns=int(attempt.started * 1e9) + offset,
        end_ns=int(attempt.ended * 1e9) + offset,
        kind=of.span_kind,
        attributes=attributes,
        status=status,
        message=message,
    )


def _events(call: Call[Any], offset: int) -> Iterator[SpanEvent]:
    """What happened between and instead of attempts. An entry without a time of its own has that of the one before."""
    moment = call.record.started
    for entry in call.record.entries:
        if isinstance(entry, Attempt):
            moment = entry.ended
            continue
        if isinstance(entry, Wait):
            moment = entry.started
        name, attributes = _event(entry)
        yield SpanEvent(name, int(moment * 1e9) + offset, attributes)
        if isinstance(entry, Wait):
            moment = entry.started + entry.seconds


def _event(entry: Entry) -> tuple[str, Attributes]:
    match entry:
        case Wait():
            return "wait", {
                "agentrt.stage": entry.stage,
                "agentrt.target": entry.target,
                "agentrt.seconds": entry.seconds,
            }
        case Retrying():
            return "retry", {
                "agentrt.target": entry.target,
                "agentrt.attempt.number": entry.number,
                "agentrt.delay": entry.delay,
                "error.type": error_type(entry.error),
            }
        case Refusal():
            return "refused", {
                "agentrt.stage": entry.stage,
                "agentrt.target": entry.target,
                "error.type": error_type(entry.error),
            }
        case CircuitChange():
            return "circuit", {
                "agentrt.target": entry.target,
                "agentrt.circuit.old": entry.old,
                "agentrt.circuit.new": entry.new,
            }
        case TargetChange():
            return "fallback", {
                "agentrt.target": entry.new,
                "agentrt.fallback.from": entry.old,
                "error.type": error_type(entry.error),
            }
        case DefaultServed():
            return "default served", {"error.type": error_type(entry.error)}
        case _:
            raise AssertionError(entry)
