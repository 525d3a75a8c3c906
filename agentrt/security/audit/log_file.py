"""The file of a log: one writer, whole groups of lines on the disk or nothing of them, a chain across files.

Whoever writes holds locks for as long as the log is open (see `lock`). `LogFile` belongs to one thread.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Literal

from msgspec import Struct

from agentrt.errors import ConfigError
from agentrt.security.audit.chain import Chain, own_hash
from agentrt.security.audit.errors import AuditUnavailable
from agentrt.security.audit.lock import locked
from agentrt.security.audit.record import (
    FORMAT,
    NOT_A_LINE,
    Checkpoint,
    FileBegan,
    Line,
    Recovered,
    decode,
    now,
)
from agentrt.security.audit.segments import numbered, rotated

__all__ = ["LastCheckpoint", "LogFile", "began", "is_beginning"]

LOCK_SECONDS = 2.0
"""How long the end of another process that is about to close the log is waited for."""
_OWN = "give each process a log of its own, for example with {pid} in [audit] path"
FIRST_LINE = 65_536
"""Bytes: no first line of a file is as long."""
SHOWN = 500
"""Characters of a torn line that its `recovered` record shows."""


class LastCheckpoint(Struct, frozen=True):
    """Number and hash of a log's last checkpoint."""

    number: int = 0
    hash: str | None = None


class _Found(Struct, eq=False):
    """What stands in the file that is read: `last`: the last line that is one of a log, with its `hash`. `end`: bytes
    up to the end of the last whole line, whatever that is."""

    header: FileBegan | None = None
    last: Line | None = None
    hash: str = ""
    checkpoint: LastCheckpoint = LastCheckpoint()
    end: int = 0


class LogFile:
    """`path`: of the file that is written. `rotation` (bytes, None: never): the size at which another is begun.
    `patience` (s): so long another process that writes it is waited for.

    After `open`: `chain`: where the log stands; `log`: its id; `checkpoint`: its last one; `torn`: what a process that
    was killed had left of a line, to be recorded.
    """

    def __init__(self, path: Path, *, rotation: int | None, patience: float = LOCK_SECONDS) -> None:
        self.path = path
        self.rotation = rotation
        self.patience = patience
        self.chain = Chain()
        self.log = ""
        self.number = 0
        self.checkpoint = LastCheckpoint()
        self.torn: Recovered | None = None
        self._lock_path = path.with_name(f"{path.name}.lock")
        self._name, self._lock_name = str(path), str(self._lock_path)  # looked at before each group
        self._fd = self._lock = -1
        self._id = self._lock_id = (0, 0)
        self._size = 0
        self._is_untidy = False
        """Whether something may be left behind the first `_size` bytes, of a write that failed."""

    # --- opening -----------------------------------------------------------------------------------------

    def open(self) -> None:
        """Lock the log, find where it stands, and cut off a torn line. Raises OSError; AuditUnavailable if another
        process writes it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + self.patience
        try:
            self._take_lock(deadline)
            self._take(self._opened(deadline))
            self._adopt()
        except BaseException:
            self.close()
            raise

    def _take_lock(self, deadline: float) -> None:
        lock = self._lock_path
        fd = locked(lock, deadline=deadline)
        if fd is None:
            raise AuditUnavailable(
                f"the audit log {self.path} is written by another process{_holder(lock)}: {_OWN}"
            )
        if self._lock >= 0:
            os.close(self._lock)
        self._lock, self._lock_id = fd, _id(os.fstat(fd))
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise  # who holds it is only for the message to another; a full disk says so when it matters

    def _opened(self, deadline: float = 0.0) -> int:
        """The file of the log's name, locked."""
        fd = locked(self.path, flags=os.O_APPEND, deadline=deadline)
        if fd is None:
            raise AuditUnavailable(
                f"the audit log {self.path} is written by another process, whose {self._lock_path} was removed: {_OWN}"
            )
        return fd

    def _take(self, fd: int) -> None:
        """Write to this file from now on."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._id = fd, _id(os.fstat(fd))

    def _adopt(self) -> None:
        """Read where the log stands: in this file or, if nothing is in it, in the one before."""
        found = _read(self.path)
        self._size = os.fstat(self._fd).st_size
        if self._size > found.end:
            torn = os.pread(self._fd, self._size - found.end, found.end)
            self.torn = Recovered(
                time=now(),
                bytes=len(torn),
                sha256=hashlib.sha256(torn).hexdigest(),
                text=torn[:SHOWN].decode("utf-8", "replace"),
            )
            os.ftruncate(self._fd, found.end)
            self._size = found.end
        if found.last is None:
            older = rotated(self.path)
            if older:
                found = _read(older[-1])
                if found.last is None:
                    raise ConfigError(
                        f"{older[-1]} is no file of an audit log, but has the name of one: move it away"
                    )
        if found.header is not None:
            self.log, self.number = found.header.log, found.header.number
        self.checkpoint = found.checkpoint
        if found.last is not None:
            self.chain = Chain(found.last.seq, found.hash)
        elif not self.log:
            self.log = os.urandom(16).hex()

    # --- writing -----------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        return self._fd >= 0

    def header(self) -> bytes:
        """The first line of a file, if the file has none yet."""
        if self._size:
            return b""
        self.number += 1
        return self.chain.add(
            FileBegan(
                time=now(),
                format=FORMAT,
                log=self.log,
                number=self.number,
                checkpoint=self.checkpoint.number,
                checkpoint_hash=self.checkpoint.hash,
            )
        )

    def append(self, data: bytes) -> None:
        """Write whole lines and have them on the disk. Raises OSError, and then nothing of them stays in the file."""
        self._tidy()
        self._is_untidy = True
        written = 0
        try:
            while written < len(data):
                written += os.write(self._fd, data[written:] if written else data)
            _sync(self._fd)
            if not self._size:
                self._sync_folder()
        except OSError:
            with suppress(OSError):  # a disk that fails may refuse that too: it comes before the next write
                self._tidy()
            raise
        self._size += len(data)
        self._is_untidy = False

    def _tidy(self) -> None:
        """Cut off what a write that failed has left."""
        if self._is_untidy:
            os.ftruncate(self._fd, self._size)
            self._is_untidy = False

    def has_lock(self) -> bool:
        """Whether PATH.lock is still the one that is held: somebody may have moved, removed or replaced it."""
        try:
            return _id(os.stat(self._lock_name)) == self._lock_id
        except FileNotFoundError:
            return False

    def look(self) -> Literal["same", "lost", "changed"]:
        """Whether the file is as it was left; "lost": it is not the one of its name any more, somebody moved or removed
        it; "changed": somebody else has written to it, or cut it."""
        try:
            status = os.stat(self._name)
        except FileNotFoundError:
            return "lost"
        if _id(status) != self._id:
            return "lost"
        return "same" if status.st_size == self._size or self._is_untidy else "changed"

    def take_lock_again(self) -> None:
        """Hold the PATH.lock that is there now, or a new one. Raises OSError; AuditUnavailable if another process holds
        it. The file that is written stays locked in any case."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._take_lock(0.0)

    def adopt_again(self) -> None:
        """After somebody else has changed the file: go on at its end, and in the chain where it is longer by now. What
        was cut off stays in the chain, so that it shows. Raises OSError; ConfigError if it is no audit log any more."""
        chain, number, checkpoint = self.chain, self.number, self.checkpoint
        try:
            self._adopt()
        except BaseException:
            self._size = -1  # what is there is still unknown
            raise
        if self.chain.seq <= chain.seq:
            self.chain, self.number, self.checkpoint = chain, number, checkpoint

    @property
    def is_full(self) -> bool:
        return self.rotation is not None and self._size >= self.rotation

    def rotate(self) -> None:
        """Give the full file its number and begin another. Raises OSError or AuditUnavailable, and the log stays as it
        is."""
        self._tidy()
        full = numbered(self.path, self.number)
        if full.exists():
            raise AuditUnavailable(
                f"the audit log {self.path} is full, but {full} exists already: move it away"
            )
        os.rename(self.path, full)
        try:
            fresh = self._opened()
        except BaseException:
            if not self.path.exists():  # what somebody has made there meanwhile is not overwritten
                os.rename(full, self.path)
            raise
        self._take(fresh)
        self._size = 0  # the folder goes to the disk with the first lines

    def reopen(self) -> None:
        """Begin the file anew at its name, after the one that was open is gone; the chain goes on. Raises OSError,
        AuditUnavailable if there is another file of this name."""
        if self.path.exists() and self.path.stat().st_size:
            raise AuditUnavailable(
                f"the audit log {self.path} was replaced by another file while it was written: move that away"
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._take(self._opened())
        self._size, self._is_untidy = 0, False

    def close(self) -> None:
        """Close the file and give the lock back."""
        for fd in (self._fd, self._lock):
            if fd >= 0:
                os.close(fd)
        self._fd = self._lock = -1
        self._is_untidy = False

    def _sync_folder(self) -> None:
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _id(status: os.stat_result) -> tuple[int, int]:
    """What tells a file apart, whatever its name."""
    return status.st_dev, status.st_ino


def _holder(lock: Path) -> str:
    """Who has the lock, as they have written into it, for a message."""
    try:
        with lock.open("rb") as held:
            holder = held.read(20).decode("ascii", "replace").strip()
    except OSError:
        return ""  # it is gone by now
    return f" ({holder})" if holder else ""


def _sync(fd: int) -> None:
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:  # macOS: fsync alone leaves it in the drive's cache
        fcntl.fcntl(fd, full)
    else:
        os.fdatasync(fd)


def _read(path: Path) -> _Found:
    """What a file of a log says about where the log stands. Read from the end: the file may be large."""
    found = _Found()
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return found
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _find(data, found)
        if found.last is None and (found.end or not is_beginning(file)):
            raise ConfigError(f"{path} is no audit log: choose another [audit] path, or move it away")
    if found.last is not None and found.header is None:
        raise ConfigError(
            f"{path} is an audit log without its first line: move it away, and a new one is begun"
        )
    return found


def _find(data: mmap.mmap, found: _Found) -> None:
    """The last line that is one, the first one, and the last checkpoint between them.

    A process that is killed leaves half a line and no more. A whole line that is none of a log is somebody's work: it
    stays where it is, and `verify` names it.
    """
    end = data.rfind(b"\n")
    found.end = end + 1
    while end >= 0 and found.last is None:
        start = data.rfind(b"\n", 0, end) + 1
        line = data[start:end]
        found.last, found.hash = _decoded(line), own_hash(line) or ""
        end = start - 1
    if found.last is None:
        return
    first = _decoded(data[: data.find(b"\n")])
    if not isinstance(first, FileBegan):
        return
    found.header = first
    found.checkpoint = LastCheckpoint(first.checkpoint, first.checkpoint_hash)
    # A line feed inside of a line is escaped: this is how a line begins, and nothing else.
    start = data.rfind(_CHECKPOINT, 0, found.end)
    while start >= 0:
        line = data[start + 1 : data.find(b"\n", start + 1)]
        item = _decoded(line)
        if isinstance(item, Checkpoint):
            found.checkpoint = LastCheckpoint(item.number, own_hash(line))
            return
        start = data.rfind(_CHECKPOINT, 0, start)


def _decoded(line: bytes) -> Line | None:
    """The line's record; None for what is none."""
    if own_hash(line) is None:
        return None
    try:
        return decode(line)
    except NOT_A_LINE:
        return None


def began(file: BinaryIO) -> FileBegan | None:
    """The first line of a file of a log; None if it has none."""
    file.seek(0)
    line = _decoded(file.readline(FIRST_LINE).rstrip(b"\n"))
    return line if isinstance(line, FileBegan) else None


def is_beginning(file: BinaryIO) -> bool:
    """Whether a file in which no line is one of a log is the beginning of one all the same: nothing, a part of the
    first line, or what a crash of the machine left of one (zeros). Of a pipe that was read nobody knows."""
    if not file.seekable():
        return False
    file.seek(0)
    start = file.read(len(_HEADER))
    return _HEADER.startswith(start) or not start.strip(b"\0")


_HEADER = b'{"type":"file",'
_CHECKPOINT = b'\n{"type":"checkpoint",'
