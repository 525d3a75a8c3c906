"""A stream that went through a pipeline.

The terminal opens it: it pulls until the first item that the consumer would see (the commit point). Until
then the pipeline may retry and fall back; afterwards an error propagates and nothing is ever repeated.

A stream *settles* exactly once, and the first cause wins: its proper end or an `aclose` is a success, an error
is a failure, a cancellation or being dropped counts neither way. Whatever a stage holds for the stream (a bulkhead's
permit, a breaker's verdict, telemetry's end time) is released then.
"""

from __future__ import annotations

import asyncio
import warnings
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

__all__ = ["PullLimit", "Settled", "Stream"]

T = TypeVar("T")

Settled = Callable[[BaseException | None], None]
"""Called once: None for a success, the error otherwise (a CancelledError counts neither way)."""


class PullLimit(Protocol):
    """Bounds each wait for the next item. `failed` returns the exception that goes on outwards."""

    def arm(self) -> Any: ...

    def disarm(self, token: Any, /) -> None: ...

    def failed(self, token: Any, error: BaseException, /) -> BaseException: ...


class Stream(Generic[T]):
    """An opened stream of items of type `T`: iterate it once, and close it (`async with` does)."""

    __slots__ = (
        "__weakref__",
        "_cancelling",
        "_head",
        "_labels",
        "_limit",
        "_loop",
        "_observers",
        "_on_settle",
        "_settled",
        "_source",
    )

    def __init__(self, source: AsyncIterator[T], *, head: deque[T] | None = None) -> None:
        self._source: AsyncIterator[T] | None = source
        self._head: deque[T] = head if head is not None else deque()
        self._limit: PullLimit | None = None
        self._on_settle: list[Settled] = []
        self._labels: list[Callable[[BaseException], None]] = []
        self._observers: tuple[Callable[[T], None], ...] = ()
        self._settled = False
        self._loop = asyncio.get_running_loop()
        # A stream may be opened by a task that is being cancelled already (its cleanup reports somewhere).
        self._cancelling = _cancelling()

    @classmethod
    async def open(
        cls,
        source: AsyncIterator[T],
        *,
        visible: Callable[[T], bool] | None = None,
    ) -> Stream[T]:
        """Pull from `source` up to the first item for which `visible` holds (default: any item).

        What came before it is kept and handed out first. A source that ends properly without such an item is
        an empty answer, not an error. Whatever the source raises until then propagates.
        """
        head: deque[T] = deque()
        try:
            async for item in source:
                head.append(item)
                if visible is None or visible(item):
                    break
            return cls(source, head=head)
        except BaseException as error:
            await _close_after(source, error)
            raise

    @classmethod
    def of(cls, value: T) -> Stream[T]:
        """A stream of one item, for whoever has the whole answer already."""
        return cls(_nothing(), head=deque([value]))

    def unfold(self, into: Callable[[T], Iterable[T]]) -> None:
        """Put other items in the place of those that wait to be handed out: a value that was served instead of a
        stream is one item, however a stream of its kind would say it."""
        self._head = deque(item for waiting in self._head for item in into(waiting))

    def on_settle(self, callback: Settled) -> None:
        """Call `callback` when the stream settles; stages register from the inside outwards."""
        self._on_settle.append(callback)

    def limit_pulls(self, limit: PullLimit) -> None:
        """Bound every further wait for an item; the innermost stage that asks is the one that does."""
        if self._limit is None:
            self._limit = limit

    def label_errors(self, label: Callable[[BaseException], None]) -> None:
        """Let the terminal see each error of the source before it settles the stream; a stream that one pipeline
        hands on to another has two, the inner one first."""
        self._labels.append(label)

    def observe(self, see: Callable[[T], None]) -> None:
        """Call `see` with each item as it is handed out; those who asked first see it first."""
        self._observers += (see,)

    def __aiter__(self) -> Stream[T]:
        return self

    async def __anext__(self) -> T:
        if self._head:
            item = self._head.popleft()
            for see in self._observers:
                see(item)
            return item
        source = self._source
        if source is None:
            raise StopAsyncIteration
        limit = self._limit
        token = None
        try:
            if limit is not None:
                token = limit.arm()
            item = await source.__anext__()
        except StopAsyncIteration:
            self._source = None
            if token is not None and limit is not None:
                limit.disarm(token)
            self._settle(None)
            raise
        except BaseException as error:
            self._source = None
            raised = self._pull_failed(limit, token, error)
            await _close_after(source, raised)
            if raised is error:
                raise
            raise raised from raised.__cause__
        if limit is not None:
            limit.disarm(token)
        for see in self._observers:
            see(item)
        return item

    def _pull_failed(self, limit: PullLimit | None, token: Any, error: BaseException) -> BaseException:
        """Settle after the source failed; returns what the consumer sees."""
        for label in self._labels:
            label(error)
        raised = error
        if limit is not None and token is not None:
            raised = limit.failed(token, error)
        elif isinstance(error, Exception) and self._is_cancelled() and _came_of_cancellation(error):
            # Nobody else looked whether this is only what the source's cleanup came to.
            raised = asyncio.CancelledError()
            raised.__cause__ = error
        self._settle(raised)
        return raised

    def _is_cancelled(self) -> bool:
        """True if the consumer's task has been cancelled since the stream was opened."""
        return _cancelling() > self._cancelling

    async def aclose(self) -> None:
        """Stop early. After the commit point this is a success; while being cancelled it is neutral."""
        source, self._source = self._source, None
        self._head.clear()
        self._settle(asyncio.CancelledError() if self._is_cancelled() else None)
        if source is not None:
            await close_source(source)

    async def __aenter__(self) -> Stream[T]:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, asyncio.CancelledError):
            self._settle(error)
        await self.aclose()

    def _settle(self, error: BaseException | None) -> None:
        if self._settled:
            return
        self._settled = True
        callbacks, self._on_settle = self._on_settle, []
        for callback in callbacks:
            callback(error)

    def __del__(self) -> None:
        if getattr(self, "_settled", True):
            return
        if self._source is None and not self._on_settle:
            return
        # The collector may run in any thread, at any moment: only schedule, and only on a loop that lives. The warning
        # comes last, because a filter may turn it into an exception.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_abandon, self._loop, self._source, self._on_settle)
        warnings.warn(
            f"{self!r} was dropped before its end without being closed; use `async with`",
            ResourceWarning,
            stacklevel=2,
            source=self,
        )


def _abandon(
    loop: asyncio.AbstractEventLoop, source: AsyncIterator[Any] | None, on_settle: list[Settled]
) -> None:
    dropped = asyncio.CancelledError("the stream was dropped")
    for callback in on_settle:
        callback(dropped)
    if source is not None:
        closing = loop.create_task(_close_after(source, dropped))
        _closing.add(closing)
        closing.add_done_callback(_closing.discard)


_closing: set[asyncio.Task[None]] = set()


async def close_source(source: AsyncIterator[Any]) -> None:
    """Close an async iterator if it can be closed."""
    close = getattr(source, "aclose", None)
    if close is not None:
        await close()


async def _nothing() -> AsyncIterator[Any]:
    return
    yield


async def _close_after(source: AsyncIterator[Any], error: BaseException) -> None:
    """Close a source that is done for because of `error`, which a failure to close must not replace."""
    try:
        await close_source(source)
    except Exception as problem:
        error.add_note(f"closing the stream failed as well: {type(problem).__name__}: {problem}")


def _cancelling() -> int:
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def _came_of_cancellation(error: BaseException) -> bool:
    """True if `error` was raised while a CancelledError was on its way."""
    context = error.__context__
    while context is not None and not isinstance(context, asyncio.CancelledError):
        context = context.__context__
    return context is not None
