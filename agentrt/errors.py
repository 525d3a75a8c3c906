"""Every error that agentrt raises, and what each kind of failure means to the pipeline.

    AgentrtError
    |-- CallError                what was called failed                        raised by
    |   |-- TransientError       may work next time                            clients, tools
    |   |-- ThrottledError       the target asks us to slow down               clients      .retry_after
    |   |-- PermanentError       will fail again                               clients      .fault
    |   |-- AttemptTimeout       an attempt ran into its limit                 timeout      .limit .cut
    |   `-- ResultRejected       `retry_result` refused the value              the terminal .value
    |-- Refused                  we did not run it (executed is always False)
    |   |-- CircuitOpen          the target's circuit is open                  circuit_breaker .retry_after
    |   |-- RateLimited          the wait for a turn would be too long         stages that wait .scope .retry_after
    |   |-- BulkheadFull         too many calls are running and queued         bulkhead
    |   |-- BudgetExceeded       a budget is spent                             budget
    |   `-- AuditUnavailable     it could not be recorded (security.audit)     audit
    |-- DeadlineExceeded         the total time of a call or run is over       timeout, the runtime .scope
    |-- RunLimitExceeded         a run's limit (steps, calls, tokens)          the agent loop  .limit
    |-- ToolError                a tool tells the model what went wrong        tool authors
    |   `-- UnsafeInput          a text is not what it is used as              security.sanitize .rule
    |-- SecretError              see secrets.protocol                          secrets providers
    |-- FileError                see security.file_errors                      FileAccess
    |-- DecryptionFailed         a token was changed, or is another's          security.encryption
    |-- SessionUnreadable        a stored conversation was changed             conversations
    |-- ConfigError              a mistake in configuration or usage           config, the command line
    `-- PluginError              a plugin cannot be found, loaded or opened    plugins

What the pipeline does with an error is its `Label`, given by `classify`. Cancellation stays
`asyncio.CancelledError`: it is never retried, converted, counted or swallowed.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from msgspec import Struct

__all__ = [
    "AgentrtError",
    "AttemptTimeout",
    "BudgetExceeded",
    "BulkheadFull",
    "CallError",
    "CircuitOpen",
    "ConfigError",
    "DeadlineExceeded",
    "Label",
    "PermanentError",
    "PluginError",
    "RateLimited",
    "Refused",
    "ResultRejected",
    "RunLimitExceeded",
    "ThrottledError",
    "ToolError",
    "TransientError",
    "classify",
]


class AgentrtError(Exception):
    """Base of every error of agentrt."""


class CallError(AgentrtError):
    """The thing that was called failed.

    `executed` tells whether the call may have had an effect: False proves that nothing was done, True that
    it was, None (the default) that nobody knows. Only a proof lets a call that is not idempotent be repeated.
    """

    def __init__(self, message: str, *, executed: bool | None = None) -> None:
        super().__init__(message)
        self.executed = executed


class TransientError(CallError):
    """A failure that may not happen again: a lost connection, a server error.

    `retry_after`: seconds after which the target invites a retry (a 503 may say so), or None.
    """

    def __init__(
        self, message: str, *, retry_after: float | None = None, executed: bool | None = None
    ) -> None:
        super().__init__(message, executed=executed)
        self.retry_after = retry_after


class ThrottledError(CallError):
    """The target asks us to slow down (429 and its kin); nothing was done.

    `retry_after`: seconds until the target wants to be asked again, or None if it did not say.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message, executed=False)
        self.retry_after = retry_after


class PermanentError(CallError):
    """A failure that a retry would only repeat.

    `fault`: "request" (400, 422, content filter: no target would take it) or "target" (401, 403, unknown
    model, quota exhausted: another target may). `context_too_long` marks the one fault of a request that
    another target may accept.
    """

    def __init__(
        self,
        message: str,
        *,
        fault: Literal["request", "target"] = "request",
        context_too_long: bool = False,
        executed: bool | None = None,
    ) -> None:
        super().__init__(message, executed=False if fault == "target" and executed is None else executed)
        self.fault = fault
        self.context_too_long = context_too_long


class AttemptTimeout(CallError, TimeoutError):
    """One attempt ran into a limit of its own.

    `limit`: "attempt", "first_item" or "idle"; `seconds`: that limit. `cut` is True when the attempt was
    ended early because its target's share of the deadline was over; `elapsed` is how long it ran, in seconds.
    """

    def __init__(
        self,
        message: str,
        *,
        limit: Literal["attempt", "first_item", "idle"] = "attempt",
        seconds: float = 0.0,
        elapsed: float = 0.0,
        cut: bool = False,
    ) -> None:
        super().__init__(message)
        self.limit = limit
        self.seconds = seconds
        self.elapsed = elapsed
        self.cut = cut


class ResultRejected(CallError):
    """`Retry(retry_result=...)` refused the result; `value` is that result."""

    def __init__(self, message: str, *, value: Any) -> None:
        super().__init__(message, executed=True)
        self.value = value


class Refused(AgentrtError):
    """We did not run the call. Nothing was done, so `executed` is False."""

    executed: bool | None = False

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class CircuitOpen(Refused):
    """The circuit breaker of the target is open; `retry_after`: seconds until it admits a probe."""


class RateLimited(Refused):
    """The wait for a turn would be too long.

    `scope`: "target" (the target is busy: another may serve) or "run" (this run used up its allowance).
    """

    def __init__(
        self, message: str, *, scope: Literal["target", "run"] = "target", retry_after: float | None = None
    ) -> None:
        super().__init__(message, retry_after=retry_after)
        self.scope = scope


class BulkheadFull(Refused):
    """Too many calls are running and waiting on the target."""


class BudgetExceeded(Refused):
    """A token or cost budget is spent."""


class DeadlineExceeded(AgentrtError, TimeoutError):
    """The total time is over; `scope`: of a "call" or of the whole "run".

    `ran` is the part of the attempt's own limit that the cut attempt had used (1.0: all of it).
    """

    executed: bool | None = None

    def __init__(self, message: str, *, scope: Literal["call", "run"] = "call", ran: float = 0.0) -> None:
        super().__init__(message)
        self.scope = scope
        self.ran = ran


class RunLimitExceeded(AgentrtError):
    """A run used up one of its limits; `limit` names it, for example "model_calls"."""

    def __init__(self, message: str, *, limit: str) -> None:
        super().__init__(message)
        self.limit = limit


class ToolError(AgentrtError):
    """Raised by a tool's author: the message goes back to the model, which may try something else."""


class ConfigError(AgentrtError):
    """A mistake in configuration or usage; the message says what, where, and what is allowed."""


class PluginError(AgentrtError):
    """A plugin cannot be found, loaded or opened; the message names plugin, distribution and cause."""


# --- what each class of error does ---------------------------------------------------------------------


class Label(Struct, frozen=True, eq=False):
    """What the pipeline does with an error.

    `breaker`: how the circuit breaker counts it. `retry`, `next_target`: whether another attempt on the same,
    or the first on the next target, may follow (if a repetition is allowed at all). `default`: which kind
    of `Fallback(default=...)` may be served instead.
    """

    name: str
    breaker: Literal["failure", "success", "neutral"]
    retry: bool
    next_target: bool
    default: Literal["any", "value", "none"]

    def nested(self) -> Label:
        """The label of the same error for the enclosing call: its own target is not to blame."""
        return Label(self.name, "neutral", self.retry, self.next_target, self.default)


TRANSIENT = Label("transient", "failure", True, True, "any")
CUT_LATE = Label("cut", "failure", False, True, "any")
CUT_EARLY = Label("cut", "neutral", False, True, "any")
REJECTED = Label("rejected", "failure", True, True, "any")
THROTTLED = Label("throttled", "neutral", True, True, "any")
TARGET_REFUSED = Label("target_refused", "neutral", False, True, "any")
RUN_REFUSED = Label("run_refused", "neutral", False, False, "none")
REQUEST_FAULT = Label("request_fault", "success", False, False, "none")
CONTEXT_TOO_LONG = Label("context_too_long", "success", False, True, "none")
TARGET_FAULT = Label("target_fault", "neutral", False, True, "any")
CALL_DEADLINE_LATE = Label("deadline", "failure", False, False, "value")
CALL_DEADLINE_EARLY = Label("deadline", "neutral", False, False, "value")
RUN_DEADLINE_LATE = Label("deadline", "failure", False, False, "none")
RUN_DEADLINE_EARLY = Label("deadline", "neutral", False, False, "none")
CANCELLED = Label("cancelled", "neutral", False, False, "none")
UNCLASSIFIED = Label("unclassified", "neutral", False, False, "none")


def classify(error: BaseException) -> Label:
    """The label of any exception, judged by its class and fields alone.

    Inside a pipeline the terminal may know more (a tool's `transient=`, `Retry(retry_on=...)`); there the
    label that it gave stands in the call's record.
    """
    match error:
        case asyncio.CancelledError():
            return CANCELLED
        case AttemptTimeout():
            return _label_cut(error) if error.cut else TRANSIENT
        case DeadlineExceeded():
            late = error.ran >= 0.5
            if error.scope == "run":
                return RUN_DEADLINE_LATE if late else RUN_DEADLINE_EARLY
            return CALL_DEADLINE_LATE if late else CALL_DEADLINE_EARLY
        case PermanentError():
            if error.fault == "target":
                return TARGET_FAULT
            return CONTEXT_TOO_LONG if error.context_too_long else REQUEST_FAULT
        case ThrottledError():
            return THROTTLED
        case ResultRejected():
            return REJECTED
        case TransientError() | ConnectionError() | TimeoutError():
            return TRANSIENT
        case BudgetExceeded():
            return RUN_REFUSED
        case RateLimited():
            return TARGET_REFUSED if error.scope == "target" else RUN_REFUSED
        case Refused():
            return TARGET_REFUSED
        case _:
            return UNCLASSIFIED


def _label_cut(error: AttemptTimeout) -> Label:
    return CUT_LATE if error.elapsed >= 0.5 * error.seconds else CUT_EARLY


def proves_not_executed(error: BaseException) -> bool:
    """True only if the error proves that the call had no effect."""
    return getattr(error, "executed", None) is False
