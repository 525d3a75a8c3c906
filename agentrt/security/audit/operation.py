"""An operation that has begun, and how its end is judged."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from agentrt.errors import Refused, RunLimitExceeded
from agentrt.security.audit.record import Decision, Outcome, Record, now
from agentrt.security.audit.tickets import Ticket

if TYPE_CHECKING:
    from agentrt.security.audit.log import AuditLog

__all__ = ["Operation", "judged", "texts"]


class Operation:
    """An operation that has begun: say how it `ended`, once."""

    __slots__ = ("_log", "_started", "_ticket")

    def __init__(self, log: AuditLog, ticket: Ticket, started: float) -> None:
        self._log = log
        self._ticket = ticket
        self._started = started

    def ended(
        self,
        error: BaseException | None = None,
        *,
        resource: str | None = None,
        duration: float | None = None,
        unknown: bool = False,
        trace: str | None = None,
        details: Mapping[str, str] | None = None,
    ) -> None:
        """Record the outcome: of `error` (None: it succeeded). `resource`: what it was done to in the end, if not what
        was meant at first. `duration` (s): default, since it began. `unknown`: it may still be going on."""
        outcome, decision = judged(error)
        intent = self._ticket.record
        record = Record(
            time=now(),
            phase="outcome",
            action=intent.action,
            resource=intent.resource if resource is None else resource,
            actor=intent.actor,
            on_behalf_of=intent.on_behalf_of,
            session=intent.session,
            trace=intent.trace if trace is None else trace,
            run=intent.run,
            parent=intent.parent,
            decision=decision,
            outcome="unknown" if unknown else outcome,
            error=None if error is None else type(error).__name__,
            message=self._log.message(error),
            duration=round(time.monotonic() - self._started if duration is None else duration, 6),
            details=texts(details),
        )
        self._log.put(Ticket(record, intent=self._ticket))


def judged(error: BaseException | None) -> tuple[Outcome, Decision]:
    """The outcome and the decision that an error stands for."""
    if error is None:
        return "ok", "allowed"
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return "cancelled", "allowed"
    if isinstance(error, Refused | RunLimitExceeded):
        return "failed", "denied"
    # Others that refuse (a provider of secrets, the boundary of files) say so in their names.
    denied = any(kind.__name__.endswith("Denied") for kind in type(error).__mro__)
    return "failed", "denied" if denied else "allowed"


def texts(details: Mapping[str, str] | None) -> dict[str, str] | None:
    """Details as they are recorded."""
    return None if details is None else {str(name): str(value) for name, value in details.items()}
