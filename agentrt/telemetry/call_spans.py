"""Finished calls and runs as spans."""

from __future__ import annotations

import random
from collections.abc import Iterator
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
from agentrt.telemetry.signals import Attributes, Span, SpanEvent, SpanStatus
from agentrt.telemetry.tracing import LiveSpan, UserSpan, exception_attributes

__all__ = ["call_spans", "own_span", "run_span"]

MAX_KNOWN = 5000
_known: dict[tuple[str, str, str], Described] = {}


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
    usage = record.usage
    if usage is not None:
        _add_usage(attributes, usage)
    if call.kind == "model" and record.response is not None:
        _add_response(attributes, record.response)
    ended = record.ended if record.ended is not None else record.time()
    start_ns = int(record.started * 1e9) + offset
    end_ns = int(ended * 1e9) + offset
    if record.first_item is not None:
        attributes["gen_ai.response.time_to_first_chunk"] = record.first_item - record.started
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
