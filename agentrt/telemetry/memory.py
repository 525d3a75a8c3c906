"""The last calls, kept in memory: the default backend, and the one for tests."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from msgspec import Struct

from agentrt import options
from agentrt.call import Attempt, Call

__all__ = ["Failure", "FinishedAttempt", "FinishedCall", "InMemory", "Summary", "finished"]


class Failure(Struct, frozen=True):
    """An error as text: `type` is its class with module, `label` what it meant to the pipeline."""

    type: str
    message: str
    label: str


class FinishedAttempt(Struct, frozen=True):
    """One physical try; times in seconds of the loop's clock."""

    target: str
    number: int
    started: float
    ended: float
    failure: Failure | None = None


class FinishedCall(Struct, frozen=True):
    """One call as it ended, without its request, result and error objects.

    `target`: the one that served it, or the last one tried; `first_target`: the one it was made to. `usage`: tokens, as
    the model's client noted them. Times in seconds of the loop's clock. `run`: the id of its run, if any.
    """

    kind: str
    operation: str
    target: str
    first_target: str
    run: str | None
    started: float
    ended: float
    first_item: float | None
    usage: Any
    degraded: bool
    attempts: tuple[FinishedAttempt, ...]
    failure: Failure | None

    @property
    def elapsed(self) -> float:
        """Seconds that the whole call took."""
        return self.ended - self.started

    @property
    def ok(self) -> bool:
        return self.failure is None


class Summary(Struct, frozen=True):
    """All kept calls of one kind to one target. `seconds`: of all of them together."""

    kind: str
    target: str
    calls: int
    failures: int
    attempts: int
    seconds: float
    input_tokens: int
    output_tokens: int


class InMemory:
    """Keeps the last `max_calls` (10,000) calls; `dropped` counts the older ones that had to go.

    What is kept is text and numbers: an outage does not fill the memory with tracebacks and requests. Messages of
    errors go through `redact`, which a runtime sets.
    """

    def __init__(self, *, max_calls: int = 10_000) -> None:
        self.max_calls = options.count("max_calls", max_calls)
        self.dropped = 0
        self.redact: Callable[[str], str] = str
        self._calls: deque[FinishedCall | _Usual] = deque(maxlen=self.max_calls)

    def collect(self, call: Call[Any], /) -> None:
        calls = self._calls
        if len(calls) == self.max_calls:
            self.dropped += 1
        record = call.record
        if record.error is None and record.noted is None and record.ended is not None:
            run = call.run
            calls.append(
                (
                    call.kind,
                    call.operation,
                    record.target,
                    call.target,
                    None if run is None else run.id,
                    record.started,
                    record.ended,
                    record.first_item,
                    record.usage,
                    record.attempt_started,
                    record.attempt_number,
                )
            )
        else:
            calls.append(finished(call, self.redact))

    def __len__(self) -> int:
        return len(self._calls)

    def __iter__(self) -> Iterator[FinishedCall]:
        return (_usual(*call) if isinstance(call, tuple) else call for call in list(self._calls))

    def calls(
        self,
        *,
        kind: str | None = None,
        target: str | None = None,
        operation: str | None = None,
        run: str | None = None,
        ok: bool | None = None,
    ) -> list[FinishedCall]:
        """The kept calls, oldest first, that fit everything that is given."""
        return [
            call
            for call in self
            if kind in (None, call.kind)
            and target in (None, call.target)
            and operation in (None, call.operation)
            and run in (None, call.run)
            and ok in (None, call.ok)
        ]

    def summary(self) -> list[Summary]:
        """Sums of the kept calls per kind and target, in the order they first appeared."""
        groups: dict[tuple[str, str], list[FinishedCall]] = {}
        for call in self:
            groups.setdefault((call.kind, call.target), []).append(call)
        return [
            Summary(
                kind,
                target,
                len(calls),
                sum(not call.ok for call in calls),
                sum(len(call.attempts) for call in calls),
                sum(call.elapsed for call in calls),
                sum(getattr(call.usage, "input_tokens", 0) for call in calls),
                sum(getattr(call.usage, "output_tokens", 0) for call in calls),
            )
            for (kind, target), calls in groups.items()
        ]

    def clear(self) -> None:
        """Forget every call and the count of dropped ones."""
        self._calls.clear()
        self.dropped = 0


def finished(call: Call[Any], redact: Callable[[str], str] = str) -> FinishedCall:
    """What is worth keeping of a finished call. `redact` takes the secrets out of the messages of errors."""
    record = call.record
    ended = record.ended if record.ended is not None else record.time()
    error = record.error
    attempts = tuple(_attempt(call, entry, redact) for entry in record.attempts)
    degraded = record.degraded
    failure = None if error is None else _failure(call, error, redact)
    return FinishedCall(
        call.kind,
        call.operation,
        record.target,
        call.target,
        None if call.run is None else call.run.id,
        record.started,
        ended,
        record.first_item,
        record.usage,
        degraded,
        attempts,
        failure,
    )


_Usual = tuple[str, str, str, str, str | None, float, float, float | None, Any, float | None, int]
"""A call whose first attempt succeeded, as few objects as can be: `FinishedCall` is made of it when it is read."""


def _usual(
    kind: str,
    operation: str,
    target: str,
    first_target: str,
    run: str | None,
    started: float,
    ended: float,
    first_item: float | None,
    usage: Any,
    attempt_started: float | None,
    attempt_number: int,
) -> FinishedCall:
    attempts: tuple[FinishedAttempt, ...] = ()
    if attempt_started is not None:
        attempts = (FinishedAttempt(target, attempt_number, attempt_started, ended),)
    return FinishedCall(
        kind, operation, target, first_target, run, started, ended, first_item, usage, False, attempts, None
    )


def _attempt(call: Call[Any], attempt: Attempt, redact: Callable[[str], str]) -> FinishedAttempt:
    failure = None if attempt.error is None else _failure(call, attempt.error, redact)
    return FinishedAttempt(attempt.target, attempt.number, attempt.started, attempt.ended, failure)


def _failure(call: Call[Any], error: BaseException, redact: Callable[[str], str]) -> Failure:
    name = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    return Failure(name, redact(str(error))[:MESSAGE], call.record.label(error).name)


MESSAGE = 2000
"""Characters kept of an error's message; some quote a whole answer."""
