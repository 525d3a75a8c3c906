"""What a record learns, as the event that tells of it."""

from __future__ import annotations

from typing import Any

from agentrt import events
from agentrt.call import Call, CircuitChange, DefaultServed, Entry, Retrying, TargetChange, Wait

__all__ = ["as_event", "describe"]


def as_event(call: Call[Any], entry: Entry, *, run: str, at: float) -> events.Event | None:
    """The event of an entry of `call`'s record; None for what no one needs to be told."""
    match entry:
        case Retrying():
            return events.Retry(
                run=run,
                at=at,
                kind=call.kind,
                target=entry.target,
                attempt=entry.number,
                delay=entry.delay,
                error=describe(entry.error),
            )
        case TargetChange():
            return events.Fallback(
                run=run, at=at, kind=call.kind, old=entry.old, new=entry.new, error=describe(entry.error)
            )
        case DefaultServed():
            return events.Fallback(
                run=run, at=at, kind=call.kind, old=call.target, new=None, error=describe(entry.error)
            )
        case CircuitChange():
            return events.CircuitChanged(run=run, at=at, target=entry.target, old=entry.old, new=entry.new)
        case Wait() if entry.stage != "retry":
            return events.Waiting(
                run=run, at=at, target=entry.target, stage=entry.stage, seconds=entry.seconds
            )
        case _:
            return None


def describe(error: BaseException) -> str:
    """An error in one line: its class and message."""
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
