"""A run that is watched: its events, in order, while it runs in a task of its own."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from agentrt.events import Event, Sink

if TYPE_CHECKING:
    from agentrt.execution import RunResult

__all__ = ["RunStream"]


class RunStream:
    """`async with` starts the run; iterating gives its events; leaving the block cancels and awaits the run.

    A run that fails gives its run_failed event and then raises its error from the iteration.
    """

    def __init__(self, start: Callable[[Sink], Awaitable[RunResult]]) -> None:
        self._start = start
        self._events: deque[Event] = deque()
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
        assert self._task is not None, "use `async with` first"
        assert self._wake is not None
        while not self._events:
            if self._task.done():
                if not self._raised and not self._task.cancelled() and self._task.exception() is not None:
                    self._raised = True
                    self._task.result()
                if self._task.cancelled() and not self._raised:
                    self._raised = True
                    raise asyncio.CancelledError
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        return self._events.popleft()

    async def _run(self) -> RunResult:
        return await self._start(self._emit)

    def _emit(self, event: Event) -> None:
        self._events.append(event)
        if self._wake is None or self._loop is None:
            return
        if asyncio._get_running_loop() is self._loop:
            self._wake.set()
        else:
            # A sync tool tells something from its worker thread.
            self._loop.call_soon_threadsafe(self._wake.set)

    def _ended(self, task: asyncio.Task[RunResult]) -> None:
        if self._wake is not None:
            self._wake.set()
