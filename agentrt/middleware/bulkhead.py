"""Bulkhead: so many calls at a time to one target, and a bounded queue of those that wait."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar, cast

from agentrt import options
from agentrt.call import UNBOUNDED, Call, Next, Refusal, Wait, deadline_exceeded
from agentrt.errors import BulkheadFull
from agentrt.stream import Stream

__all__ = ["Bulkhead"]

R = TypeVar("R")


class Bulkhead:
    """Lets `limit` calls run at a time on each target; up to `queue` (0) more wait, first come first served.

    A call beyond both is refused with `BulkheadFull`, as is one whose share of the deadline ends while it waits (with
    `DeadlineExceeded` if it is the deadline itself).
    A stream holds its permit until it settles, and an abandoned worker thread until the thread has ended.
    """

    name: ClassVar[str] = "bulkhead"

    def __init__(self, *, limit: int, queue: int = 0) -> None:
        self.limit = options.count("limit", limit)
        self.queue = options.count("queue", queue, minimum=0)
        self._compartments: dict[str, _Compartment] = {}

    def running(self, target: str) -> int:
        """How many calls hold a permit of `target` now."""
        compartment = self._compartments.get(target)
        return 0 if compartment is None else compartment.running

    def waiting(self, target: str) -> int:
        """How many calls wait for a permit of `target` now."""
        compartment = self._compartments.get(target)
        return 0 if compartment is None else len(compartment.waiters)

    async def __call__(self, call: Call[R], call_next: Next[R], /) -> R:
        target = call.target
        compartment = self._compartments.get(target)
        if compartment is None:
            compartment = self._compartments[target] = _Compartment()
        if compartment.running < self.limit and not compartment.waiters:
            compartment.running += 1
        else:
            await self._wait(call, compartment)
        release = self._releaser(target, compartment)
        try:
            result = await call_next(call)
        except BaseException:
            abandoned = call.record.abandoned
            if abandoned is not None and not abandoned.done():
                abandoned.add_done_callback(lambda _: release(None))
            else:
                release(None)
            raise
        if call.stream:
            cast("Stream[Any]", result).on_settle(release)
        else:
            release(None)
        return result

    async def _wait(self, call: Call[Any], compartment: _Compartment) -> None:
        now = call.record.time()
        if len(compartment.waiters) >= self.queue:
            raise self._refusal(call, f"{compartment.running} calls are running and {self.queue} may wait")
        if now >= call.share:
            raise self._late(call)
        turn: asyncio.Future[None] = call.record.loop.create_future()
        compartment.waiters.append(turn)
        try:
            async with asyncio.timeout_at(None if call.share == UNBOUNDED else call.share):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                # The permit was ours already when the cancellation came: hand it on, or it leaks.
                self._release(call.target, compartment)
            elif turn in compartment.waiters:
                compartment.waiters.remove(turn)
            if isinstance(error, TimeoutError):
                raise self._late(call) from None
            raise
        call.note(Wait(self.name, call.target, now, call.record.time() - now))

    def _releaser(self, target: str, compartment: _Compartment) -> Callable[[BaseException | None], None]:
        def release(error: BaseException | None) -> None:
            self._release(target, compartment)

        return release

    def _release(self, target: str, compartment: _Compartment) -> None:
        compartment.hand_on()
        if not compartment.running and not compartment.waiters:
            self._compartments.pop(target, None)

    def _late(self, call: Call[Any]) -> Exception:
        """The wait met the call's deadline, or the share of this target: then another one may serve."""
        if call.share < call.deadline:
            return self._refusal(call, "no permit came free in this target's share of the deadline")
        late = deadline_exceeded(call)
        late.executed = False
        call.note(Refusal(self.name, call.target, late))
        return late

    def _refusal(self, call: Call[Any], why: str) -> BulkheadFull:
        refusal = BulkheadFull(f"{call.target}: {why}")
        call.note(Refusal(self.name, call.target, refusal))
        return refusal


class _Compartment:
    """One target's permits. A released permit goes straight to the first waiter, so nobody overtakes."""

    __slots__ = ("running", "waiters")

    def __init__(self) -> None:
        self.running = 0
        self.waiters: deque[asyncio.Future[None]] = deque()

    def hand_on(self) -> None:
        while self.waiters:
            turn = self.waiters.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1
