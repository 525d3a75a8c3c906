"""Fallback: the next target when retry has given up, then a default.

The deadline is shared: each target's turn gets half of the time that is left while another one can follow, the
last one all of it.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, ClassVar, TypeVar

from agentrt import options
from agentrt.call import (
    UNBOUNDED,
    Call,
    DefaultServed,
    Inline,
    Next,
    Quick,
    TargetChange,
    deadline_exceeded,
    run_inline,
)
from agentrt.errors import ConfigError, Label, PermanentError, Refused, proves_not_executed
from agentrt.stream import Stream

__all__ = ["Fallback"]

R = TypeVar("R")
logger = logging.getLogger("agentrt.fallback")

ErrorTest = type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], bool]


class Fallback:
    """Tries the call's own target, then each of `targets`, then serves `default`.

    A target is a name that the terminal knows ("anthropic:claude-haiku") or an async function that is called
    with the same arguments. `default`: a value, or a function (sync or async) of the last error; for a stream a
    value becomes a stream of one item and an async iterable is streamed. `on`: exception types, or a function
    of the error, for which the next target is taken as well.

    When all fail, the last real failure is raised, the same object, with the earlier ones as notes; all of them
    stand in the record. A call that may have had an effect moves on only if it is idempotent.
    """

    name: ClassVar[str] = "fallback"

    def __init__(
        self,
        *targets: str | Callable[..., Any],
        default: Any = ...,
        on: ErrorTest | None = None,
    ) -> None:
        for target in targets:
            if not isinstance(target, str) and not callable(target):
                raise ConfigError(f"a fallback target is a name or an async function, not {target!r}")
        self.targets = targets
        self.default = default
        options.error_test("on", on)
        self.on = on
        self.routes: tuple[tuple[str, Callable[..., Any] | None], ...] = tuple(
            (target, None) if isinstance(target, str) else (_name_of(target), target) for target in targets
        )
        self.has_default = default is not ...
        self.default_runs = callable(default)

    @property
    def is_used(self) -> bool:
        return bool(self.routes) or self.has_default

    async def __call__(self, call: Call[R], call_next: Next[R], /) -> R:
        return await run_inline(self, call, call_next)

    def inline(self, call_next: Next[Any], inner: Sequence[Any], /) -> Inline:
        turns = _Turns(self, call_next, inner)
        if not self.routes and not self.default_runs:
            return Inline(recover=turns.others)
        not_closed = turns.not_closed

        def begin_first_turn(call: Call[Any]) -> None:
            deadline = call.deadline
            if deadline < UNBOUNDED and call.idempotent and (not not_closed or turns.another_follows(0)):
                record = call.record
                now = record.time()
                record.share = now + (deadline - now) * 0.5

        quick = Quick(_QUICK_ENTER, {"not_closed": not_closed, "UNBOUNDED": UNBOUNDED})
        return Inline(enter=begin_first_turn, recover=turns.others, quick_enter=quick)


# The first target's share when all circuits are closed.
_QUICK_ENTER = """
if call.deadline < $UNBOUNDED and call.idempotent:
    if $not_closed:
        $stage.enter(call)
    else:
        record.share = now + (call.deadline - now) * 0.5
"""


class _Turns:
    """The turns after the first one, in one pipeline."""

    def __init__(self, stage: Fallback, call_next: Next[Any], inner: Sequence[Any]) -> None:
        self._stage = stage
        self._next = call_next
        self._available = [inside.available for inside in inner if hasattr(inside, "available")]
        self.not_closed: Collection[str] = next(
            (inside.not_closed for inside in inner if hasattr(inside, "not_closed")), ()
        )

    def another_follows(self, index: int) -> bool:
        """Whether somebody could serve after target number `index` (0 is the call's own)."""
        if self._stage.default_runs:
            return True
        routes = self._stage.routes[index:]
        return any(all(available(target) for available in self._available) for target, _ in routes)

    async def others(self, call: Call[Any], error: Exception) -> Any:
        stage, record = self._stage, call.record
        record.let_cancellation_through(error)
        failures = [(call.target, error)]
        turn = call
        for index, (target, function) in enumerate(stage.routes, start=1):
            if not self._may_move_on(call, error, record.label(error)):
                break
            _log(turn.target, target, error)
            request = call.request if function is None else _with_function(call.request, function)
            record.share = self._share(call, index)
            record.target, record.attempt_number = target, 1
            turn = call.replace(target=target, attempt=1, request=request)
            turn.note(TargetChange(failures[-1][0], target, error))
            try:
                return await self._next(turn)
            except Exception as next_error:
                record.let_cancellation_through(next_error)
                error = next_error
                failures.append((target, error))
        if self._may_serve_default(call, error, record.label(error)):
            _log(turn.target, "the default", error)
            turn.note(DefaultServed(error))
            return await self._default_in_time(call, error)
        raise _last_real(failures)

    def _share(self, call: Call[Any], index: int) -> float:
        """When the turn of target number `index` must be over, as loop time."""
        if call.deadline == UNBOUNDED or not call.idempotent or not self.another_follows(index):
            return call.deadline
        now = call.record.time()
        return now + max(0.0, call.deadline - now) * 0.5

    def _may_move_on(self, call: Call[Any], error: Exception, label: Label) -> bool:
        if call.record.is_abandoned:
            return False
        wanted = label.next_target or self._is_listed(error)
        return wanted and (call.idempotent or proves_not_executed(error))

    def _may_serve_default(self, call: Call[Any], error: Exception, label: Label) -> bool:
        if not self._stage.has_default or not (call.idempotent or proves_not_executed(error)):
            return False
        if label.default == "any" or self._is_listed(error):
            return True
        return label.default == "value" and not self._stage.default_runs

    def _is_listed(self, error: Exception) -> bool:
        on = self._stage.on
        return on is not None and _matches(on, error)

    async def _default_in_time(self, call: Call[Any], error: Exception) -> Any:
        """The default; a function of the user's has what is left of the call's deadline."""
        if call.deadline == UNBOUNDED or not (self._stage.default_runs or call.stream):
            return await self._serve_default(call, error)
        limit = asyncio.timeout_at(call.deadline)
        try:
            async with limit:
                return await self._serve_default(call, error)
        except TimeoutError as late:
            if limit.expired():
                raise deadline_exceeded(call) from late
            raise

    async def _serve_default(self, call: Call[Any], error: Exception) -> Any:
        default = self._stage.default
        value = default(error) if self._stage.default_runs else default
        if inspect.isawaitable(value):
            value = await value
        if not call.stream or isinstance(value, Stream):
            return value
        if hasattr(value, "__aiter__"):
            return await Stream.open(value.__aiter__())
        return Stream.of(value)


def _last_real(failures: Sequence[tuple[str, Exception]]) -> Exception:
    """The failure to raise: the last one of a target, a refusal of ours only if there is no other."""
    chosen = failures[-1]
    for target, error in reversed(failures):
        if not isinstance(error, Refused):
            chosen = (target, error)
            break
    for target, error in failures:
        if error is not chosen[1]:
            chosen[1].add_note(f"also failed: {target}: {type(error).__name__}: {error}")
    return chosen[1]


def _log(old: str, new: str, error: Exception) -> None:
    # A wrong key or model will not mend itself, so somebody should look.
    permanent = isinstance(error, PermanentError)
    logger.log(
        logging.ERROR if permanent else logging.WARNING,
        "%s failed (%s: %s), going on with %s",
        old,
        type(error).__name__,
        error,
        new,
    )


def _matches(test: ErrorTest, error: BaseException) -> bool:
    if isinstance(test, type | tuple):
        return isinstance(error, test)
    return test(error)


def _name_of(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__qualname__", None) or type(function).__qualname__)


def _with_function(request: Any, function: Callable[..., Any]) -> Any:
    """The same arguments for another function."""
    if isinstance(request, partial):
        return partial(function, *request.args, **request.keywords)
    if callable(request):
        return function
    raise ConfigError("an async function as a fallback target needs a pipeline that calls functions")
