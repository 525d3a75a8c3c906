"""Retry: another attempt on the same target, when that can help and cannot harm.

Allow-list by label (`agentrt.errors`), idempotency rule, Retry-After, deadline, budget: see docs/pipeline.md for the
order in which they decide.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

from agentrt import options
from agentrt.call import Call, Inline, Next, Quick, Retrying, Wait, run_inline
from agentrt.errors import (
    TARGET_REFUSED,
    THROTTLED,
    ConfigError,
    Refused,
    ThrottledError,
    proves_not_executed,
)
from agentrt.middleware.backoff import Backoff, Growth, after_throttling
from agentrt.middleware.retry_budget import RetryBudget

__all__ = ["Retry", "RetryBudget"]

R = TypeVar("R")
ErrorTest = type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], bool]


class Retry:
    """Repeats a failed attempt.

    `max_attempts` (3): per target, the first included. `backoff` ("exponential", "linear", "constant",
    "decorrelated" or a function of the number of failed attempts), `initial_delay` (1 s), `max_delay` (30 s),
    `jitter` ("full" or "none"). A Retry-After of the target is honoured, never earlier; beyond
    `max_retry_after` (60 s) or the deadline it gives up at once. `budget` (`RetryBudget()`, None for no limit)
    is per target.

    Only labels that say so are retried. `retry_on`: exception types, or a function of the error, to be taken as
    transient as well: the breaker then counts them too. `retry_result`: a function of the result; true rejects it as
    `ResultRejected`. A call that is not idempotent is repeated only if the error proves that nothing was done.
    """

    name: ClassVar[str] = "retry"

    def __init__(
        self,
        *,
        max_attempts: int = 3,
        backoff: Growth = "exponential",
        initial_delay: float = 1.0,
        max_delay: float = 30.0,
        jitter: str = "full",
        max_retry_after: float = 60.0,
        budget: RetryBudget | Any | None = ...,
        retry_on: ErrorTest | None = None,
        retry_result: Callable[[Any], bool] | None = None,
        random: Callable[[], float] = random.random,
    ) -> None:
        self.max_attempts = options.count("max_attempts", max_attempts)
        self.backoff = backoff
        self.initial_delay = initial_delay
        self.max_delay = max_delay
        self.jitter = jitter
        self.max_retry_after = options.seconds("max_retry_after", max_retry_after, open_=False)
        if budget is not ... and not isinstance(budget, RetryBudget | None):
            raise ConfigError(f"budget must be a RetryBudget or None, not {budget!r}")
        self.budget: RetryBudget | None = RetryBudget() if budget is ... else budget
        options.error_test("retry_on", retry_on)
        self.retry_on = retry_on
        if retry_result is not None and not callable(retry_result):
            raise ConfigError(f"retry_result must be a function of the result, not {retry_result!r}")
        self.retry_result = retry_result
        self._random = random
        self._backoff = Backoff(
            backoff, initial=initial_delay, maximum=max_delay, jitter=jitter, random=random
        )

    def longest_first_backoff(self) -> float:
        """The longest wait before a second attempt, in seconds."""
        return self._backoff.longest(1)

    async def __call__(self, call: Call[R], call_next: Next[R], /) -> R:
        return await run_inline(self, call, call_next)

    def inline(self, call_next: Next[Any], inner: Sequence[Any], /) -> Inline:
        again = _Again(self, call_next, inner)
        budget = self.budget
        if budget is None:
            return Inline(recover=again)

        def done(token: None, call: Call[Any]) -> None:
            budget.of(call.target).first(call.record.time())

        def committed(token: None, call: Call[Any], stream: Any) -> None:
            done(token, call)

        quick = Quick(_QUICK_DONE, {"ledgers": budget.ledgers})
        return Inline(done=done, committed=committed, recover=again, quick_done=quick)


# `done` while the present slice of the budget's window lasts.
_QUICK_DONE = """
$ledger = $ledgers.get(call.target)
if $ledger is None or end >= $ledger.turn:
    $stage.done(None, call)
else:
    $ledger.firsts += 1
"""


class _Again:
    """What happens after a first attempt has failed, in one pipeline."""

    def __init__(self, retry: Retry, call_next: Next[Any], inner: Sequence[Any]) -> None:
        self._retry = retry
        self._backoff = retry._backoff
        self._next = call_next
        self._available = [stage.available for stage in inner if hasattr(stage, "available")]
        self._gated = any(getattr(stage, "gates_throttling", False) for stage in inner)

    async def __call__(self, call: Call[Any], error: Exception) -> Any:
        if self._retry.budget is not None and not isinstance(error, Refused):
            self._retry.budget.of(call.target).first(call.record.time())
        real = error
        previous: float | None = None
        while True:
            call.record.let_cancellation_through(error)
            if not isinstance(error, Refused):
                real = error
            delay = self._delay(call, error, previous)
            if delay is None:
                raise _worth_raising(call, error, real)
            previous = delay
            call.note(Retrying(call.target, call.attempt + 1, delay, error))
            if delay > 0.0:
                started = call.record.time()
                await asyncio.sleep(delay)
                call.note(Wait("retry", call.target, started, call.record.time() - started))
            call = call.replace(attempt=call.attempt + 1)
            call.record.attempt_number = call.attempt
            try:
                return await self._next(call)
            except Exception as again:
                error = again

    def _delay(self, call: Call[Any], error: Exception, previous: float | None) -> float | None:
        """Seconds to wait before the next attempt, or None to give up."""
        record = call.record
        if call.attempt >= self._retry.max_attempts or call.single or record.is_abandoned:
            return None
        if not record.label(error).retry:
            return None
        if not (call.idempotent or proves_not_executed(error)):
            return None
        if not all(available(call.target) for available in self._available):
            # This failure (or another's meanwhile) opened the circuit: the real error goes on, no budget is spent.
            return None
        delay = self._wait_for(call, error, previous)
        now = record.time()
        if delay is None or now + delay >= call.share:
            return None
        budget = self._retry.budget
        if budget is not None and not budget.of(call.target).spend(now):
            _mark_exhausted(error)
            return None
        return delay

    def _wait_for(self, call: Call[Any], error: Exception, previous: float | None) -> float | None:
        asked = getattr(error, "retry_after", None)
        # What foreign errors carry under this name may be anything; what is no number is as good as nothing.
        if isinstance(asked, int | float) and asked > 0.0:
            if asked > self._retry.max_retry_after:
                return None
            throttled = isinstance(error, ThrottledError) and call.record.label(error) is THROTTLED
            if throttled and self._gated:
                return 0.0  # the gate of this host is closed: the next attempt waits there, once
            return after_throttling(asked, self._retry._random)
        return self._backoff.delay(call.attempt, previous=previous)


def _worth_raising(call: Call[Any], error: Exception, real: Exception) -> Exception:
    """The last real failure; that its repetition was refused (the circuit opened meanwhile) is only a note to it."""
    if real is error or call.record.label(error) is not TARGET_REFUSED:
        return error
    real.add_note(f"not retried again: {type(error).__name__}: {error}")
    return real


def _mark_exhausted(error: BaseException) -> None:
    """The last error itself goes on, marked `retry_budget_exhausted`."""
    try:
        error.retry_budget_exhausted = True  # type: ignore[attr-defined]
    except AttributeError:
        pass  # an exception class that forbids new attributes still gets the note
    error.add_note("not retried: the retry budget of this target is exhausted")
