"""Log files: lines are appended by a thread, so that a slow disk holds up nobody, and the file is rotated by its size.

Several processes may write to one file: each line goes there with one write at the end of the file, and whoever finds
that the file was moved away (by another process, by logrotate) goes on in the new one.
"""

from __future__ import annotations

import fcntl
import os
import stat
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

__all__ = ["LineThread", "LogFile"]

T = TypeVar("T")

_NEWLINE = ord("\n")
RETRY_SECONDS = 1.0
"""A file that could not be written to is tried again after this time."""


class LogFile:
    """A file that lines are appended to.

    At `max_bytes` (None: never) it becomes FILE.1, FILE.1 becomes FILE.2 and so on; the last `keep` stay. `tell` gets
    one sentence when lines begin to be lost and one when that is over. `lost`: lines that are in no file. For use by
    one thread at a time.
    """

    def __init__(self, path: str, *, max_bytes: int | None, keep: int, tell: Callable[[str], object]) -> None:
        self.path = Path(path).expanduser()
        self.lost = 0
        self._max_bytes = max_bytes
        self._rotate_at = max_bytes
        self._keep = keep
        self._tell = tell
        self._fd: int | None = None
        self._is_torn = False
        self._complete = 0
        self._lost_before = 0  # of `lost`: those that were told
        self._retry_at: float | None = None  # monotonic; set while lines are being lost
        self._cannot_rotate = False

    def open(self) -> None:
        """Open the file, or tell why that is impossible."""
        try:
            self._open()
        except OSError as error:
            self._failed(error)

    def write(self, lines: Sequence[bytes]) -> None:
        """Append `lines`, each of which ends in a newline. Never raises: what cannot be written is counted."""
        if self._retry_at is not None and time.monotonic() < self._retry_at:
            self.lost += len(lines)
            return
        left = list(lines)
        self._complete = 0
        try:
            self._follow()
            while left:
                self._append(b"".join(self._part(left)))
                del left[: self._complete]
        except OSError as error:
            self.lost += len(left) - self._complete
            self._failed(error)
        else:
            self._recovered()

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    # --- inside ----------------------------------------------------------------------------------------

    def _open(self) -> int:
        self.close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Without O_NONBLOCK a pipe that nobody reads would keep us here.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        self._fd = os.open(self.path, flags, 0o666)
        os.set_blocking(self._fd, True)
        return self._fd

    def _follow(self) -> None:
        """Be in the file that has the name now."""
        if self._fd is None or not self._is_in_place(self._fd):
            self._open()

    def _is_in_place(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(fd))
        except FileNotFoundError:
            return False

    def _part(self, lines: list[bytes]) -> list[bytes]:
        """The first lines, as many as fit into the file; at least one. The file is a new one if it was full."""
        fd = self._open() if self._fd is None else self._fd
        status = os.fstat(fd)
        if self._rotate_at is None or not stat.S_ISREG(status.st_mode):
            return lines
        size = status.st_size
        if size and size + len(lines[0]) > self._rotate_at:
            self._rotate(fd, size)
            size = os.fstat(self._open() if self._fd is None else self._fd).st_size
        room = max(self._rotate_at or 0, size) - size
        taken = 0
        for line in lines:
            room -= len(line)
            if room < 0 and taken:
                break
            taken += 1
        return lines[:taken]

    def _append(self, data: bytes) -> None:
        """Write `data`; `_complete` counts its lines that are in the file, also if OSError is raised midway."""
        fd = self._open() if self._fd is None else self._fd
        # Half a line that an error left there must not become the beginning of this one.
        self._complete = -1 if self._is_torn else 0
        data = b"\n" + data if self._is_torn else data
        try:
            while data:
                written = os.write(fd, data)
                self._complete += data.count(b"\n", 0, written)
                self._is_torn = data[written - 1] != _NEWLINE
                data = data[written:]
        finally:
            self._complete = max(self._complete, 0)

    def _rotate(self, fd: int, size: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            try:
                if self._is_in_place(fd):  # else another process was faster
                    for number in range(self._keep - 1, 0, -1):
                        if (old := self._old(number)).exists():
                            old.replace(self._old(number + 1))
                    self.path.replace(self._old(1))
            finally:
                fcntl.flock(fd, fcntl.LOCK_UN)
            self._open()
            self._rotate_at = self._max_bytes
        except OSError as error:
            # The lines matter more: on with the file that we have, and another try some megabytes later.
            self._rotate_at = size + (self._max_bytes or 0)
            if not self._cannot_rotate:
                self._cannot_rotate = True
                self._tell(f"the log {self.path} cannot be rotated and keeps growing: {_reason(error)}")

    def _old(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")

    def _failed(self, error: OSError) -> None:
        if self._retry_at is None:
            self._tell(
                f"cannot write the log {self.path}: {_reason(error)}; its lines are lost until that works"
            )
        self._retry_at = time.monotonic() + RETRY_SECONDS
        self.close()

    def _recovered(self) -> None:
        if self._retry_at is None:
            return
        self._retry_at = None
        lost, self._lost_before = self.lost - self._lost_before, self.lost
        self._tell(f"the log {self.path} can be written again; {lost} lines are missing in it")


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


class LineThread(Generic[T]):
    """Hands over what it is given to `work`, in batches, in a thread of its own.

    At most `limit` (10,000) items and `limit_bytes` (64 MB, by what `put` is told) wait; more are dropped and counted
    in `dropped`. At a `flush` the last batch may be empty. After a fork the child begins with an empty queue and a
    thread of its own: what waited belongs to the parent. `work` must not raise.
    """

    def __init__(
        self,
        work: Callable[[list[T]], None],
        *,
        limit: int = 10_000,
        limit_bytes: int = 64_000_000,
        name: str = "agentrt log",
    ) -> None:
        self.dropped = 0
        self._work = work
        self._limit = limit
        self._limit_bytes = limit_bytes
        self._name = name
        self._reset()
        _threads.add(self)

    def _reset(self) -> None:
        self._items: deque[tuple[T, int] | threading.Event] = deque()
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_closing = False
        # Each is written by one side only: those who put (one at a time), and the thread.
        self._count_in = 0
        self._count_out = 0
        self._bytes_in = 0
        self._bytes_out = 0

    def __len__(self) -> int:
        """How many wait or are being worked on."""
        return self._count_in - self._count_out

    def put(self, item: T, size: int) -> None:
        """Take `item`, of about `size` bytes. Callers take turns: one `put` at a time."""
        if len(self) >= self._limit or self._bytes_in - self._bytes_out > self._limit_bytes:
            self.dropped += 1
            return
        self._count_in += 1
        self._bytes_in += size
        self._items.append((item, size))
        if not self._wake.is_set():
            self._wake.set()
        if self._thread is None:
            self._start()

    def flush(self, seconds: float) -> bool:
        """Wait until all that was put so far has been worked on, at most `seconds`; False if that was too short."""
        if self._thread is None:
            return not len(self)
        reached = threading.Event()
        self._items.append(reached)
        self._hurry.set()
        self._wake.set()
        return reached.wait(seconds)

    def close(self, seconds: float) -> bool:
        """`flush`, then end the thread as soon as it has nothing to do."""
        reached = self.flush(seconds)
        self._is_closing = True
        self._hurry.set()
        self._wake.set()
        return reached

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                thread.start()
                self._thread = thread

    def _run(self) -> None:
        while True:
            self._wake.wait()
            # Lines come in bursts: one batch of many costs those who log less than many wake-ups.
            self._hurry.wait(GATHER_SECONDS)
            self._hurry.clear()
            self._wake.clear()
            while self._items:
                self._take_batch()
            if self._is_closing:
                return

    def _take_batch(self) -> None:
        batch: list[T] = []
        size = 0
        reached: threading.Event | None = None
        while self._items and len(batch) < BATCH and reached is None:
            item = self._items.popleft()
            if isinstance(item, threading.Event):
                reached = item
            else:
                batch.append(item[0])
                size += item[1]
        self._work(batch)
        # Not before: what is being written takes memory as well.
        self._count_out += len(batch)
        self._bytes_out += size
        if reached is not None:
            reached.set()


GATHER_SECONDS = 0.05
BATCH = 500

_threads: weakref.WeakSet[LineThread[Any]] = weakref.WeakSet()


def _after_fork() -> None:
    for thread in list(_threads):
        thread._reset()


os.register_at_fork(after_in_child=_after_fork)
