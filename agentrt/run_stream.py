"""A run that is watched: its events, in order, while it runs in a task of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from msgspec import Struct
from msgspec.structs import replace

from agentrt.events import Event, ReasoningDelta, RunFailed, Sink, TextDelta

if TYPE_CHECKING:
    from agentrt.execution import RunResult

__all__ = ["RunStream"]

FINE = 1000
"""While so many events wait to be read, text that follows text is joined to it."""

PIECE = 4096
"""Characters from which a joined piece of text is long enough."""


class RunStream:
    """`async with` starts the run; iterating gives its events; leaving the block cancels and awaits the run.

    A run that fails gives its run_failed event and then raises its error from the iteration. The run never waits for
    whoever reads. While more than 1000 events are unread, deltas of one run are joined to pieces of a few thousand
    characters: nothing is lost, and what waits is no more than what was said and one event for each thing that was
    done.
    """

    def __init__(self, start: Callable[[Sink], Awaitable[RunResult]]) -> None:
        self._start = start
        self._events: deque[_Unread] = deque()
        self._tails: dict[str, _Unread] = {}
        """By run the unread delta that nothing of the same run has followed."""
        self._has_begun = False
        self._task: asyncio.Task[RunResult] | None = None
        self._wake: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._raised = False

    @property
    def result(self) -> RunResult:
        """The run's result; raises its error if it failed, and RuntimeError while it runs."""
        if self._task is None or not self._task.done():
            raise RuntimeError("the run has not ended yet")
        return self._task.result()

    def cancel(self) -> None:
        """Cancel the run; iteration goes on to its last event."""
        if self._task is not None:
            self._task.cancel()

    async def __aenter__(self) -> Self:
        if self._task is not None:
            raise RuntimeError("this run has been started already; ask the runtime for another stream")
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.ensure_future(self._run())
        self._task.add_done_callback(self._ended)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        task = self._task
        assert task is not None
        if task.done():
            if not self._raised and not task.cancelled():
                task.exception()  # seen: nobody asked for it, and it must not be reported as never retrieved
            return
        interrupted: asyncio.CancelledError | None = None
        while not task.done():
            task.cancel()
            try:
                # asyncio.wait leaves the task's outcome alone: the block's own exception, if any, is what counts.
                await asyncio.wait([task])
            except asyncio.CancelledError as cancelled:
                interrupted = (
                    cancelled  # goes on to the run, as from any awaiting task; it is still not left behind
                )
        if not task.cancelled():
            task.exception()
        if interrupted is not None:
            raise interrupted

    def __aiter__(self) -> RunStream:
        return self

    async def __anext__(self) -> Event:
        task, wake = self._task, self._wake
        if task is None or wake is None:
            raise RuntimeError(
                "the run has not been started: `async with runtime.stream(...) as run` does it"
            )
        while not self._events:
            if task.done():
                if not self._has_begun:
                    self._has_begun = True
                    return _never_began(task)
                if not self._raised:
                    self._raised = True
                    task.result()  # raises the run's error
                raise StopAsyncIteration
            wake.clear()
            await wake.wait()
        unread = self._events.popleft()
        if self._tails.get(unread.event.run) is unread:
            del self._tails[unread.event.run]
        return unread.event

    async def _run(self) -> RunResult:
        return await self._start(self._emit)

    def _emit(self, event: Event) -> None:
        assert self._loop is not None
        if asyncio._get_running_loop() is self._loop:
            self._put(event)
        else:
            # A sync tool tells something from its worker thread, which may outlive the loop.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._put, event)

    def _put(self, event: Event) -> None:
        assert self._task is not None
        assert self._wake is not None
        if self._task.done():
            return  # of something that the run left behind: its last event was the last one
        self._has_begun = True
        unread = _Unread(event)
        if isinstance(event, TextDelta | ReasoningDelta):
            tail = self._tails.get(event.run)
            if tail is not None and len(self._events) >= FINE and tail.takes(event):
                return
            self._tails[event.run] = unread
        else:
            self._tails.pop(event.run, None)
        self._events.append(unread)
        self._wake.set()

    def _ended(self, task: asyncio.Task[RunResult]) -> None:
        if self._wake is not None:
            self._wake.set()


class _Unread(Struct, eq=False):
    """An event that nobody has read yet."""

    event: Event

    def takes(self, more: TextDelta | ReasoningDelta) -> bool:
        """Join `more` to this event, if it is of the same sort and still short."""
        event = self.event
        if not isinstance(event, TextDelta | ReasoningDelta) or type(event) is not type(more):
            return False
        if len(event.text) >= PIECE:
            return False
        self.event = replace(event, text=event.text + more.text)
        return True


def _never_began(task: asyncio.Task[RunResult]) -> Event:
    """The only event of a run that failed before it had a context and an id."""
    error = asyncio.CancelledError() if task.cancelled() else task.exception()
    assert error is not None, "a run that returns has begun"
    return RunFailed(run="", at=0.0, error=type(error).__name__, message=str(error), seconds=0.0)
