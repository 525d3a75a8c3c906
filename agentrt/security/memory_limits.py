"""Rate limits counted in this process.

Not on the library `limits`: its windows are whole seconds (half a second becomes none, and so no limit), it reads the
wall clock, which can be set back, and it says whether a hit is allowed but not when the next one will be. See
docs/rate-limits.md for the figures; a test compares the decisions of both.
"""

from __future__ import annotations

import asyncio
import logging
from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from typing import ClassVar

from agentrt import options
from agentrt.plugins import Host
from agentrt.security.rate_limits import Turn, micros

__all__ = ["MemoryLimits"]

COMPACT_ABOVE = 32
"""So many hits that have left the window may lie in a log before they are cut off."""


class MemoryLimits:
    """Counts in memory, for one event loop.

    `max_keys` (100,000): so many keys are kept, about 300 bytes each and 8 for every hit in its window. Beyond it the
    key that was allowed something longest ago is forgotten, and begins anew. A key whose window is empty is forgotten
    by the hits of others.
    """

    is_local: ClassVar[bool] = True

    def __init__(self, *, max_keys: int = 100_000) -> None:
        self.max_keys = options.count("max_keys", max_keys)
        # By window, then by key: the turns in microseconds of the loop's clock, ascending. The key that was allowed
        # something last stands last, so those at the front leave their window first.
        self._windows: OrderedDict[int, OrderedDict[str, array[int]]] = OrderedDict()
        self._keys = 0
        self._latest = 0
        self._is_told = False
        self._log = logging.getLogger("agentrt.rate_limits")

    async def open(self, host: Host) -> None:
        self._log = host.log

    def __len__(self) -> int:
        """How many keys are remembered."""
        return self._keys

    async def hit(self, key: str, limit: int, window: float, *, cost: int, max_wait: float) -> Turn:
        """See `RateLimitStore`."""
        return self.count(key, limit, window, cost=cost, max_wait=max_wait)

    def count(self, key: str, limit: int, window: float, *, cost: int, max_wait: float) -> Turn:
        """`hit`, which awaits nothing."""
        now = self._now()
        span = micros(window)
        logs = self._windows.get(span)
        log = None if logs is None else logs.get(key)
        turn, live = now, 0
        if log:
            gone = bisect_right(log, now - span)
            live = len(log) - gone
            excess = live + cost - limit
            if excess > 0:
                turn = log[gone + excess - 1] + span
            # Behind those who booked: nobody overtakes. Of those before, `log` has none later than now.
            turn = max(turn, now, log[-1] if live else now)
            if gone > COMPACT_ABOVE and 2 * gone > len(log):
                del log[:gone]
        wait = turn - now
        if wait > micros(max_wait):
            return Turn(False, wait / 1e6, max(0, limit - live))
        if logs is None or log is None:
            log = self._begin(span, key)
        else:
            logs.move_to_end(key)
        log.extend([turn] * cost)
        self._sweep(span, now)
        return Turn(True, wait / 1e6, max(0, limit - live - cost), turn)

    def give_back(self, key: str, window: float, slot: int, *, cost: int) -> None:
        """See `RateLimitStore`."""
        logs = self._windows.get(micros(window))
        log = None if logs is None else logs.get(key)
        if log is None:
            return
        first = bisect_left(log, slot)
        del log[first : min(first + cost, bisect_right(log, slot))]
        if not log:
            self._forget(micros(window), key)

    async def reset(self, key: str, window: float) -> None:
        """See `RateLimitStore`."""
        self._forget(micros(window), key)

    def clear(self) -> None:
        """Forget everything."""
        self._windows.clear()
        self._keys = 0

    # --- inside ----------------------------------------------------------------------------------------

    def _now(self) -> int:
        now = micros(asyncio.get_running_loop().time())
        if now < self._latest:
            # Another loop with another clock; one clock never goes back.
            self.clear()
        self._latest = now
        return now

    def _forget(self, span: int, key: str) -> None:
        logs = self._windows.get(span)
        if logs is not None and logs.pop(key, None) is not None:
            self._keys -= 1
            if not logs:
                del self._windows[span]

    def _begin(self, span: int, key: str) -> array[int]:
        """The log of a key that has none, in the place of another's if there are too many."""
        if self._keys >= self.max_keys:
            self._tell()
            # Of the same window, if it has any: who floods one limit must not empty another.
            full = span if span in self._windows else next(iter(self._windows))
            self._forget(full, next(iter(self._windows[full])))
        log = self._windows.setdefault(span, OrderedDict())[key] = array("q")
        self._keys += 1
        return log

    def _tell(self) -> None:
        if not self._is_told:
            self._is_told = True
            self._log.warning(
                "rate limits: more than %d keys are in use, so the oldest are forgotten and begin anew; raise "
                "max_keys in [rate_limits.memory], or count on a server",
                self.max_keys,
            )

    def _sweep(self, span: int, now: int) -> None:
        """Forget up to two keys of this window, and two of another, whose hits have all left. Each hit brings at most
        one key, so they cannot pile up, and no hit has to clean up for many."""
        other = next(iter(self._windows))
        self._windows.move_to_end(other)
        for swept in {span, other}:
            logs = self._windows[swept]
            for _ in range(2):
                key = next(iter(logs), None)
                if key is None or logs[key][-1] + swept > now:
                    break
                self._forget(swept, key)
