"""The end of a runtime: everything that it opened is closed, in order and in time, whatever hangs or fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from agentrt.errors import AgentrtError

__all__ = ["CLOSE_SECONDS", "Closer", "close_all", "in_any_time"]

CLOSE_SECONDS = 5.0
LAST_MOMENT = 0.1
"""Seconds that what does not close in its time has, once it is cancelled."""

Closer = tuple[str, Callable[[float], Awaitable[object]]]
"""What is closed, for messages, and how; the function gets the seconds that it has."""


def in_any_time(close: Callable[[], Awaitable[object]]) -> Callable[[float], Awaitable[object]]:
    """How to close what has no use for the seconds that it has."""
    return lambda seconds: close()


async def close_all(closers: list[Closer]) -> None:
    """Close one after the other, in 5 s together.

    Whatever hangs has half of the time that is left, the last one all of it, and is then cancelled; what goes on even
    so is left behind: closing ends in time. The first error is raised at the end, or an `AgentrtError` that names what
    was late.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + CLOSE_SECONDS
    late: list[str] = []
    problems: list[BaseException] = []
    interrupted: asyncio.CancelledError | None = None
    for following, (name, close) in zip(reversed(range(len(closers))), closers, strict=True):
        began = loop.time()
        rest = max(0.0, end - began)
        seconds = rest / 2 if following else max(0.0, rest - LAST_MOMENT)
        task = asyncio.ensure_future(close(seconds))
        try:
            await asyncio.wait([task], timeout=seconds)
            held_up = loop.time() - began - seconds
            if held_up > LAST_MOMENT:
                # The process stood still, or somebody blocked the loop: nobody could do anything in that time.
                end += held_up
                await asyncio.wait([task], timeout=LAST_MOMENT)
            if not task.done():
                late.append(name)
                task.cancel()
                await asyncio.wait([task], timeout=min(LAST_MOMENT, rest))
        except asyncio.CancelledError as error:
            # The caller will not wait any longer; each of the others has a chance to do what takes no time.
            interrupted, end = error, loop.time()
            task.cancel()
            await asyncio.wait([task], timeout=LAST_MOMENT)
        task.add_done_callback(_seen)
        if task.done() and not task.cancelled() and (problem := task.exception()) is not None:
            problems.append(problem)
    if interrupted is not None:
        raise interrupted
    if late:
        raise AgentrtError(
            f"closing the runtime: {', '.join(late)} did not end in time; all of it has {CLOSE_SECONDS:g} s"
        ) from (problems[0] if problems else None)
    if problems:
        for other in problems[1:]:
            problems[0].add_note(f"closing failed as well: {type(other).__name__}: {other}")
        raise problems[0]


def _seen(task: asyncio.Future[object]) -> None:
    if not task.cancelled():
        task.exception()
