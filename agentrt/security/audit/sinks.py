"""What is kept elsewhere: plugins of the group `agentrt.audit`.

A checkpoint that stands in another place shows that a log was cut off, which the log alone cannot show. A sink is told
each checkpoint once it is on the disk, in order, and again until it has taken it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import weakref
from collections import deque
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal, Protocol

from agentrt.errors import ConfigError
from agentrt.security.audit.segments import absolute

__all__ = ["AuditSink", "FileAnchor", "Sinks"]

logger = logging.getLogger("agentrt.audit")

WAITING = 1000
"""So much waits for a sink that does not take anything; then the oldest is dropped: a later checkpoint covers it."""
FIRST_RETRY = 1.0
LAST_RETRY = 60.0
"""Seconds between two tries with a sink that failed."""
MODE = 0o600


FEEDING: ContextVar[bool] = ContextVar("agentrt_audit_feeding", default=False)
"""Whether this is a sink at work: what it calls is not recorded, or each record would make another."""


class AuditSink(Protocol):
    """Keeps checkpoints elsewhere. Beside `checkpoint` it may have `async def records(self, lines: bytes, /)`, which
    gets every group of lines that is on the disk, and `open(host)` and `aclose()` as every plugin."""

    async def checkpoint(self, line: bytes, /) -> None:
        """Keep one checkpoint: its line in the log, with the line end. Whatever it raises is tried again."""
        ...


class FileAnchor:
    """Appends checkpoints to a file, which should be on another disk or machine, or one that can only be appended to
    (`chattr +a`). `agentrt audit verify --anchor FILE` reads it.

    `path`: the file, made with its folders.
    """

    def __init__(self, *, path: Path) -> None:
        if not str(path).strip() or str(path) == ".":
            raise ConfigError(f"path must be the name of a file, not {str(path)!r}")
        self.path = absolute(str(path))

    async def checkpoint(self, line: bytes, /) -> None:
        """Append the line; it is on the disk when this returns."""
        await asyncio.to_thread(self._append, line)

    def _append(self, line: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        fd = os.open(self.path, flags, MODE)
        try:
            size = os.fstat(fd).st_size
            if size and os.pread(fd, 1, size - 1) != b"\n":
                line = b"\n" + line  # whoever wrote last was killed in the middle of a line
            if os.write(fd, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            os.fsync(fd)
        finally:
            os.close(fd)


class _Fed:
    """One sink with what waits for it."""

    def __init__(self, name: str, sink: Any) -> None:
        self.name = name
        self.sink = sink
        self.wants_records = hasattr(sink, "records")
        self.waiting: deque[tuple[bool, bytes]] = deque()
        self.arrived = asyncio.Event()
        self.drained = asyncio.Event()
        self.drained.set()
        self.dropped = 0

    def offer(self, is_checkpoint: bool, data: bytes) -> None:
        if not is_checkpoint and not self.wants_records:
            return
        if len(self.waiting) >= WAITING:
            self.waiting.popleft()
            self.dropped += 1
        self.waiting.append((is_checkpoint, data))
        self.drained.clear()
        self.arrived.set()

    async def feed(self) -> None:
        """Hand over what comes, one after the other, for ever."""
        FEEDING.set(True)  # in the task's own context
        retry = 0.0
        while True:
            await self.arrived.wait()
            while self.waiting:
                item = self.waiting[0]
                try:
                    await (self.sink.checkpoint if item[0] else self.sink.records)(item[1])
                except Exception as error:
                    if not retry:
                        logger.error(
                            "the audit sink %s failed and is tried again: %s: %s",
                            self.name,
                            type(error).__name__,
                            error,
                        )
                    retry = min(LAST_RETRY, 2.0 * retry) if retry else FIRST_RETRY
                    await asyncio.sleep(retry)
                    continue
                if self.waiting and self.waiting[0] is item:
                    self.waiting.popleft()
                if retry or self.dropped:
                    logger.warning("the audit sink %s works again; it missed %d", self.name, self.dropped)
                    retry, self.dropped = 0.0, 0
            self.arrived.clear()
            self.drained.set()


class Sinks:
    """Feeds the sinks of a log on the event loop, from the thread that writes."""

    def __init__(self, sinks: Sequence[tuple[str, Any]]) -> None:
        for name, sink in sinks:
            if not hasattr(sink, "checkpoint"):
                raise ConfigError(f"the audit sink {name} has no `async def checkpoint(self, line)`")
        self._sinks = tuple(sinks)
        self._fed: list[_Fed] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        _SINKS.add(self)

    def after_fork(self) -> None:
        """In a forked child: the loop and what waits are the parent's."""
        self._fed, self._tasks, self._loop = [], [], None

    @property
    def want_records(self) -> bool:
        return any(hasattr(sink, "records") for _, sink in self._sinks)

    def open(self) -> None:
        """Begin to feed, on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._fed = [_Fed(name, sink) for name, sink in self._sinks]
        self._tasks = [
            self._loop.create_task(fed.feed(), name=f"agentrt audit sink {fed.name}") for fed in self._fed
        ]

    def checkpoint(self, line: bytes) -> None:
        """A checkpoint is on the disk. From the thread that writes."""
        self._offer(True, line)

    def records(self, lines: bytes) -> None:
        """Lines are on the disk. From the thread that writes."""
        self._offer(False, lines)

    def _offer(self, is_checkpoint: bool, data: bytes) -> None:
        if self._loop is None or not self._fed:
            return
        try:
            self._loop.call_soon_threadsafe(self._feed, is_checkpoint, data)
        except RuntimeError:
            # The loop was closed with the log still open; what is on the disk has nobody to go to.
            logger.error("the audit sinks missed what was written after their event loop was closed")
            self._fed = []

    def _feed(self, is_checkpoint: bool, data: bytes) -> None:
        for fed in self._fed:
            fed.offer(is_checkpoint, data)

    async def aclose(self, seconds: float) -> None:
        """Hand over what waits, within `seconds`, and stop."""
        waits: list[asyncio.Task[Literal[True]]] = []
        try:
            await asyncio.sleep(0)  # what the thread has just offered comes in by the loop
            waits = [asyncio.create_task(fed.drained.wait()) for fed in self._fed]
            if waits:
                await asyncio.wait(waits, timeout=seconds)
        finally:
            for task in [*waits, *self._tasks]:
                task.cancel()
            await asyncio.gather(*waits, *self._tasks, return_exceptions=True)
            for fed in self._fed:
                if fed.waiting:
                    logger.error(
                        "the audit sink %s did not take %d of what was to be kept",
                        fed.name,
                        len(fed.waiting),
                    )
            self._fed, self._tasks, self._loop = [], [], None


_SINKS: weakref.WeakSet[Sinks] = weakref.WeakSet()


def _after_fork() -> None:
    for sinks in list(_SINKS):
        sinks.after_fork()


os.register_at_fork(after_in_child=_after_fork)
