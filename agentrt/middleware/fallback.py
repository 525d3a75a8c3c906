"""Fallback: the next target when retry has given up, then a default.

The deadline is shared: each target's turn gets half of the time that is left while another one can follow, the
last one all of it.
"""

from __future__ import annotations

import inspect
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, ClassVar, TypeVar, cast

from agentrt.call import UNBOUNDED, Call, DefaultServed, Next, TargetChange
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
        self.on = on
        self._routes: tuple[tuple[str, Callable[..., Any] | None], ...] = tuple(
            (target, None) if isinstance(target, str) else (_name_of(target), target) for target in targets
        )
        self._has_default = default is not ...
        self._default_runs = callable(default)
        self._available: Callable[[str], bool] = _always

    def bind(self, inner: Sequence[Any]) -> Fallback:
        """This stage for one pipeline: `inner` are the stages inside it, from the call outward."""
        bound = object.__new__(type(self))
        bound.__dict__.update(self.__dict__)
        for stage in inner:
            if hasattr(stage, "available"):
                bound._available = stage.available
        return bound

    @property
    def is_used(self) -> bool:
        return bool(self._routes) or self._has_default

    async def __call__(self, call: Call[R], call_next: Next[R], /) -> R:
        # The first turn's share; without a deadline there is nothing to share.
        turn = call
        if call.deadline < UNBOUNDED:
            share = self._share(call, 0)
            if share != call.share:
                turn = call.replace(share=share)
        try:
            return await call_next(turn)
        except Exception as error:
            return await self._others(turn, call_next, error)

    async def _others(self, call: Call[R], call_next: Next[R], error: Exception) -> R:
        """The turns after the first one."""
        record = call.record
        failures = [(call.target, error)]
        turn = call
        for index, (target, function) in enumerate(self._routes, start=1):
            label = record.label(error)
            if not self._may_move_on(call, error, label):
                break
            _log(turn.target, target, error)
            changed = call.request if function is None else _with_function(call.request, function)
            turn = call.replace(
                target=target, attempt=1, share=self._share(call, index), request=changed
            )
            record.target, record.attempt_number = target, 1
            turn.note(TargetChange(failures[-1][0], target, error))
            try:
                return await call_next(turn)
            except Exception as next_error:
                error = next_error
                failures.append((target, error))
        if self._may_serve_default(call, error, record.label(error)):
            _log(turn.target, "the default", error)
            turn.note(DefaultServed(error))
            return await self._serve_default(call, error)
        raise _last_real(failures)

    def _share(self, call: Call[Any], index: int) -> float:
        """When the turn of target number `index` (0 is the call's own) must be over, as loop time."""
        if call.deadline == UNBOUNDED or not call.idempotent:
            return call.deadline
        follows = self._default_runs or any(
            self._available(target) for target, _ in self._routes[index:]
        )
        if not follows:
            return call.deadline
        now = call.record.time()
        return now + max(0.0, call.deadline - now) * 0.5

    def _may_move_on(self, call: Call[Any], error: Exception, label: Label) -> bool:
        if call.record.is_abandoned:
            return False
        wanted = label.next_target or (self.on is not None and _matches(self.on, error))
        return wanted and (call.idempotent or proves_not_executed(error))

    def _may_serve_default(self, call: Call[Any], error: Exception, label: Label) -> bool:
        if not self._has_default or not (call.idempotent or proves_not_executed(error)):
            return False
        if self.on is not None and _matches(self.on, error):
            return True
        return label.default == "any" or (label.default == "value" and not self._default_runs)

    async def _serve_default(self, call: Call[R], error: Exception) -> R:
        value = self.default(error) if self._default_runs else self.default
        if inspect.isawaitable(value):
            value = await value
        if not call.stream or isinstance(value, Stream):
            return cast("R", value)
        if hasattr(value, "__aiter__"):
            return cast("R", await Stream.open(value.__aiter__()))
        return cast("R", Stream(_nothing(), head=deque([value])))


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
    change = getattr(request, "with_function", None)
    if change is None:
        raise ConfigError("an async function as a fallback target needs a pipeline that calls functions")
    return change(function)


async def _nothing() -> AsyncIterator[Any]:
    return
    yield


def _always(target: str) -> bool:
    return True
