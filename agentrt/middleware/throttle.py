"""Throttle: one gate per host and credential, closed while that host asks us to wait.

A throttled answer (429 and its kin) with a Retry-After closes the gate for all calls to that host, not only for the
call that was told: the others would be told the same and make it worse.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from msgspec import Struct

from agentrt import options
from agentrt.call import Call, Next, Refusal, Wait
from agentrt.errors import THROTTLED, RateLimited, ThrottledError
from agentrt.middleware.backoff import after_throttling

__all__ = ["Throttle"]

R = TypeVar("R")

PRUNE_ABOVE = 1000


class _Closure(Struct, eq=False):
    until: float
    asked: float


def _by_target(call: Call[Any]) -> str:
    return call.target


class Throttle:
    """Keeps calls away from a host until the time it asked for has passed.

    `key`: a function of the call that names host and credential (default: the target itself). A call waits at a
    closed gate if the rest of the closure is at most `max_retry_after` (60 s, inclusive) and ends before the
    call's share of the deadline; otherwise it gets `RateLimited(scope="target", retry_after)` at once.
    Each waiter is let through up to 10 % (at most 2 s) later than asked, never earlier.
    """

    name: ClassVar[str] = "throttle"
    gates_throttling: ClassVar[bool] = True

    def __init__(
        self,
        *,
        key: Callable[[Call[Any]], str] = _by_target,
        max_retry_after: float = 60.0,
        random: Callable[[], float] = random.random,
    ) -> None:
        self.key = key
        self.max_retry_after = options.seconds("max_retry_after", max_retry_after, open_=False)
        self._random = random
        self._closures: dict[str, _Closure] = {}

    async def __call__(self, call: Call[R], call_next: Next[R], /) -> R:
        if self._closures:
            await self._pass(call, self.key(call))
        try:
            return await call_next(call)
        except ThrottledError as error:
            # A throttled nested call has closed its own gate; this target did not say anything.
            if call.record.label(error) is THROTTLED:
                self._close(call, error)
            raise

    def _close(self, call: Call[Any], error: ThrottledError) -> None:
        asked = error.retry_after
        if asked is None or not 0.0 < asked < math.inf:
            return
        key = self.key(call)
        until = call.record.time() + asked
        known = self._closures.get(key)
        if known is None or until > known.until:
            if len(self._closures) > PRUNE_ABOVE:
                now = call.record.time()
                self._closures = {k: c for k, c in self._closures.items() if c.until > now}
            self._closures[key] = _Closure(until, asked)

    async def _pass(self, call: Call[Any], key: str) -> None:
        started = call.record.time()
        waited = False
        # Again after each wait: the gate may have been closed anew meanwhile.
        while (closure := self._closures.get(key)) is not None:
            now = call.record.time()
            rest = closure.until - now
            if rest <= 0.0:
                if self._closures.get(key) is closure:
                    del self._closures[key]
                break
            if rest > self.max_retry_after or closure.until >= call.share:
                refusal = RateLimited(
                    f"{call.target}: the provider asked us to wait another {rest:.3g} s",
                    scope="target",
                    retry_after=rest,
                )
                call.note(Refusal(self.name, call.target, refusal))
                raise refusal
            spread = after_throttling(closure.asked, self._random) - closure.asked
            waited = True
            # The spread must not eat the time that the attempt still has.
            await asyncio.sleep(rest + min(spread, 0.5 * (call.share - closure.until)))
        if waited:
            call.note(Wait(self.name, call.target, started, call.record.time() - started))
