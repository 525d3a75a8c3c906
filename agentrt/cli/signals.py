"""SIGINT and SIGTERM while a run goes on.

    SIGINT   cancel the run at once; a second one, while it cleans up, ends the process on the spot
    SIGTERM  let the run go on for 20 s, then cancel it; a second one, or SIGINT, cancels at once

The handlers are Python's, not the event loop's, so that they also act while an agent holds up the loop. What cannot
be cancelled then is said after a second, with the way out. A handler of Python's runs between two steps of the main
thread, though, and a signal that comes just before the loop goes to wait, or that another thread receives, does not end
the wait: so the loop also reads what Python writes at each signal.
"""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator
from types import FrameType, TracebackType
from typing import Any, Self

from agentrt.cli.report import INTERRUPTED, TERMINATED

__all__ = ["DRAIN_SECONDS", "Signals", "Terminated", "end_at_sigterm", "nothing_missed"]

DRAIN_SECONDS = 20.0
"""How long a run may go on after SIGTERM."""

LAST_SECONDS = 28.0
"""After SIGTERM the process is gone by then, whatever the agent does: supervisors kill after 30 s."""

BLOCKED_SECONDS = 1.0
"""How long the loop may take to react to SIGINT before the user hears why nothing happens."""

SLICES = 20
"""That time is spent in so many parts: when the whole process stood still during one, the loop has the others."""

BLOCKED = "the event loop is blocked by code that does not await; Ctrl-C again ends the process"


class Signals:
    """Takes SIGINT and SIGTERM for one run, from `__enter__` to `__exit__`.

    `cancel` is called, in the loop, to cancel the run. `note` says something to the user. `received` is the first
    signal that came, `second` the one that cut its time to finish short, `exit_code` the exit code that the first asks
    for. A signal that the process was started to ignore
    stays ignored.
    """

    def __init__(
        self,
        *,
        cancel: Callable[[], object],
        note: Callable[[str], object],
        drain_seconds: float = DRAIN_SECONDS,
        last_seconds: float = LAST_SECONDS,
        blocked_seconds: float = BLOCKED_SECONDS,
    ) -> None:
        self.received: int | None = None
        self.second: int | None = None
        self._cancel = cancel
        self._note = note
        self._drain_seconds = drain_seconds
        self._last_seconds = last_seconds
        self._blocked_seconds = blocked_seconds
        self._is_cancelled = False
        self._has_reacted = False
        self._loop = asyncio.get_running_loop()
        self._previous: dict[int, Any] = {}
        self._draining: asyncio.TimerHandle | None = None
        self._open = contextlib.ExitStack()

    @property
    def exit_code(self) -> int | None:
        if self.received is None:
            return None
        return TERMINATED if self.received == signal.SIGTERM else INTERRUPTED

    def __enter__(self) -> Self:
        self._open.enter_context(_waking(self._loop))
        for number in (signal.SIGINT, signal.SIGTERM):
            previous = signal.getsignal(number)
            if previous is not signal.SIG_IGN:
                self._previous[number] = previous
                signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._has_reacted = True
        if self._draining is not None:
            self._draining.cancel()
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        self._previous.clear()
        self._open.close()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._is_cancelled:
            _die(number)
        is_first = self.received is None
        if is_first:
            self.received = number
        else:
            self.second = number
        # The handler runs in the middle of the loop's system call or of the agent's code: this wakes the loop.
        if is_first and number == signal.SIGTERM:
            self._end_surely()
            self._loop.call_soon_threadsafe(self._drain)
        else:
            self._is_cancelled = True
            self._loop.call_soon_threadsafe(self._react)
            if number == signal.SIGINT:
                _thread.start_new_thread(self._tell_if_blocked, ())

    def _react(self) -> None:
        self._has_reacted = True
        self._cancel()

    def _tell_if_blocked(self) -> None:
        for _ in range(SLICES):
            time.sleep(self._blocked_seconds / SLICES)
            if self._has_reacted:
                return
        _write_stderr(BLOCKED)

    def _drain(self) -> None:
        self._note(f"SIGTERM: the run has {self._drain_seconds:g} s to finish; a second one cancels it")
        self._draining = self._loop.call_later(self._drain_seconds, self._cancel_drained)

    def _cancel_drained(self) -> None:
        if not self._is_cancelled:
            self._is_cancelled = True
            self._cancel()

    def _end_surely(self) -> None:
        """An agent that blocks the loop, or swallows its cancellation, does not keep the process."""
        # Not threading: we may have interrupted the main thread while it holds that module's lock.
        _thread.start_new_thread(_exit_after, (self._last_seconds,))


@contextlib.contextmanager
def _waking(loop: asyncio.AbstractEventLoop) -> Generator[None, None, None]:
    """Each signal ends the loop's wait, at whatever moment and in whatever thread it comes."""
    reader, writer = socket.socketpair()
    with reader, writer:
        reader.setblocking(False)
        writer.setblocking(False)  # as signal.set_wakeup_fd wants it
        loop.add_reader(reader, _read_all, reader)
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            loop.remove_reader(reader)


def _read_all(reader: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while reader.recv(4096):
            pass


def _write_stderr(text: str) -> None:
    """Past sys.stderr, which the interrupted code may hold the lock of; below the ^C that a terminal shows."""
    with contextlib.suppress(OSError):
        os.write(2, f"{os.linesep if os.isatty(2) else ''}{text}\n".encode())


def _exit_after(seconds: float) -> None:
    time.sleep(seconds)
    os._exit(TERMINATED)


def _die(number: int) -> None:
    """End as if there were no handler: the shell sees the signal, and nothing is cleaned up."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


@contextlib.contextmanager
def nothing_missed() -> Generator[None, None, None]:
    """For the time at a prompt: readline looks for signals and then waits for a key, and one that comes in between is
    noticed only with the next key. So a thread sends it again until the main thread has seen it."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)  # as signal.set_wakeup_fd wants it
    over = threading.Event()
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    main = threading.get_ident()

    def resend() -> None:
        while not over.is_set():
            number = os.read(reader, 1)[0]
            while number and not over.wait(0.1):
                signal.pthread_kill(main, number)

    watch = threading.Thread(target=resend, name="agentrt signals", daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        os.write(writer, b"\0")
        watch.join()
        os.close(reader)
        os.close(writer)


class Terminated(BaseException):
    """SIGTERM outside a run."""


def end_at_sigterm() -> None:
    """From now on SIGTERM raises Terminated, so that there are cleanups on the way out."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Terminated

    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, end)
