"""Audit: records each call before its first attempt and after its end. It stands outside everything else, and only
where an audit log is configured.

It knows the log by what it needs of it, so that nothing of the log is loaded where there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, TypeVar

from agentrt.call import Call, Next
from agentrt.stream import Stream

__all__ = ["Audit", "Begun"]

R = TypeVar("R")


class Begun(Protocol):
    """An operation that has begun, in the log."""

    def ended(
        self,
        error: BaseException | None = None,
        *,
        resource: str | None = None,
        duration: float | None = None,
        unknown: bool = False,
        details: Mapping[str, str] | None = None,
    ) -> None: ...


Begin = Callable[[Call[Any]], Any]


class Audit:
    """Records calls: `begin(call)` awaits the record of the intent, and raises if the call must not be made without;
    what it returns is told how the call ended. A stream has ended when it settles.

    `path`, `strict`: of the log, to be shown.
    """

    name: ClassVar[str] = "audit"

    def __init__(self, *, begin: Begin, path: str, strict: bool) -> None:
        self._begin = begin
        self.path = path
        self.strict = strict

    async def __call__(self, call: Call[R], call_next: Next[R], /) -> R:
        begun: Begun = await self._begin(call)
        try:
            result = await call_next(call)
        except BaseException as error:
            _ended(begun, call, error)
            raise
        if not isinstance(result, Stream):
            _ended(begun, call, None)
            return result

        def settled(error: BaseException | None) -> None:
            _ended(begun, call, error)

        result.on_settle(settled)
        return result


def _ended(begun: Begun, call: Call[Any], error: BaseException | None) -> None:
    record = call.record
    details: dict[str, str] = {}
    if record.noted is not None:
        attempts = len(record.attempts)
        if attempts > 1:
            details["attempts"] = str(attempts)
        if record.degraded:
            details["degraded"] = "true"
    begun.ended(
        error,
        resource=record.target if record.target != call.target else None,  # another one has answered
        duration=record.elapsed,
        unknown=record.is_abandoned,
        details=details or None,
    )
