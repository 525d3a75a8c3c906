"""Pace: spreads calls to a target over time, on aiolimiter's leaky bucket."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from agentrt import options
from agentrt.call import UNBOUNDED, Call, Next, Refusal, Wait
from agentrt.errors import CircuitOpen, RateLimited

if TYPE_CHECKING:
    from agentrt.middleware.pace_limiter import PaceLimiter

__all__ = ["Pace"]

R = TypeVar("R")
MAX_TARGETS = 10_000


class Pace:
    """Lets `rate` calls per `per` seconds (1 s) through to each target, up to `burst` (`rate`) at once.

    A call waits its turn, and the wait counts against its share and deadline: one that would be too long is
    refused at once with `RateLimited(scope="target")`. A rejection by the circuit breaker gives the turn back.
    """

    name: ClassVar[str] = "pace"

    def __init__(self, *, rate: float, per: float = 1.0, burst: float | None = None) -> None:
        self.rate = options.number("rate", rate, open_=True)
        self.per = options.seconds("per", per)
        self.burst = options.number("burst", self.rate if burst is None else burst, minimum=1.0)
        self._limiters: dict[str, PaceLimiter] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __call__(self, call: Call[R], call_next: Next[R], /) -> R:
        limiter = self._limiter(call)
        await self._wait(call, limiter)
        try:
            return await call_next(call)
        except CircuitOpen as error:
            if any(entry.stage == "circuit_breaker" and entry.error is error for entry in _refusals(call)):
                limiter.give_back()
            raise

    async def _wait(self, call: Call[Any], limiter: PaceLimiter) -> None:
        if limiter.has_capacity() and not limiter.has_waiters():
            await limiter.acquire()
            return
        started = call.record.time()
        wait = limiter.wait_for_turn()
        if started + wait >= call.share:
            raise self._refusal(call, wait)
        try:
            async with asyncio.timeout_at(None if call.share == UNBOUNDED else call.share):
                await limiter.acquire()
        except TimeoutError:
            raise self._refusal(call, limiter.wait_for_turn()) from None
        call.note(Wait(self.name, call.target, started, call.record.time() - started))

    def _refusal(self, call: Call[Any], wait: float) -> RateLimited:
        refusal = RateLimited(
            f"{call.target}: its turn would come in {wait:.3g} s, after this call's time is over",
            scope="target",
            retry_after=wait,
        )
        call.note(Refusal(self.name, call.target, refusal))
        return refusal

    def _limiter(self, call: Call[Any]) -> PaceLimiter:
        if call.record.loop is not self._loop:
            # A limiter belongs to one loop: its timers and waiters live there.
            self._limiters = {}
            self._loop = call.record.loop
        limiter = self._limiters.get(call.target)
        if limiter is None:
            from agentrt.middleware.pace_limiter import PaceLimiter

            if len(self._limiters) >= MAX_TARGETS:
                del self._limiters[next(iter(self._limiters))]
            limiter = self._limiters[call.target] = PaceLimiter(self.burst, self.burst * self.per / self.rate)
        return limiter


def _refusals(call: Call[Any]) -> list[Refusal]:
    return [entry for entry in call.record.entries if isinstance(entry, Refusal)]
