"""For tests of what a real server counts in seconds: who is held up himself cannot keep to them."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import ParamSpec

import pytest

from plugins.vault import Front

__all__ = ["again_if_held_up"]

P = ParamSpec("P")

LOOK = 0.02
"""Seconds between two looks at the clock."""

LATE = 0.2
"""Seconds: the loop was held up if a look came so much later than it should."""

TRIES = 4


def again_if_held_up(test: Callable[P, Awaitable[None]]) -> Callable[P, Awaitable[None]]:
    """Run `test` again if it failed while this process stood still for a moment. What is wrong fails in each try, and
    at once where the machine is quiet. A `Front` among its arguments begins anew."""

    @functools.wraps(test)
    async def tried(*args: P.args, **kwargs: P.kwargs) -> None:
        for _ in range(TRIES - 1):
            delays: list[float] = []
            watch = asyncio.create_task(_watch(delays))
            try:
                await test(*args, **kwargs)
            except (Exception, pytest.fail.Exception):
                await asyncio.sleep(2 * LOOK)  # for the look that was held up
                if max(delays, default=0.0) < LATE:
                    raise
            else:
                return
            finally:
                watch.cancel()
            for value in kwargs.values():
                if isinstance(value, Front):
                    value.requests.clear()
                    value.answer_to.clear()
        await test(*args, **kwargs)

    return tried


async def _watch(delays: list[float]) -> None:
    clock = asyncio.get_running_loop().time
    while True:
        began = clock()
        await asyncio.sleep(LOOK)
        delays.append(clock() - began - LOOK)
