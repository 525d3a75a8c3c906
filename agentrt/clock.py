"""Time: one monotonic clock, float seconds, the event loop's own.

Inside a coroutine time is `loop.time()`, so a virtual-time loop (`agentrt.testing`) moves everything at once.
`Clock` is the thin reader for code that has no loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

__all__ = ["Clock", "SystemClock", "reader"]


class Clock(Protocol):
    """Reads monotonic seconds; only differences mean anything."""

    def time(self) -> float: ...


class SystemClock:
    """The monotonic clock of this machine."""

    def time(self) -> float:
        return time.monotonic()


def reader(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """The cheapest function that reads the clock of `loop`.

    asyncio's own loops return `time.monotonic()` from a Python method; calling the C function directly saves
    a frame on a path where every call reads the clock several times. A loop with a clock of its own keeps it.
    """
    if type(loop).time is asyncio.BaseEventLoop.time:
        return time.monotonic
    return loop.time
