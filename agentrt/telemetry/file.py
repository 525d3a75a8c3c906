"""Spans, metrics and log lines as lines of JSON in a file, which `agentrt trace FILE` shows.

    [telemetry.file]
    path = "telemetry.jsonl"

Several processes may write the same file: each batch is one write, under a lock of the file.
"""

from __future__ import annotations

import errno
import fcntl
import gzip
import os
import shutil
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from agentrt import options
from agentrt.errors import ConfigError
from agentrt.telemetry.file_reader import Reading, read
from agentrt.telemetry.signals import Batch, Resource
from agentrt.telemetry.wanted import SIGNALS, wanted

__all__ = ["File", "Reading", "read"]

LOCK_WAIT = 10.0
"""Seconds to wait for another process that writes, or compresses what it rotates."""
LOCK_POLL = 0.01
MODE = 0o600

REASONS = {
    errno.ENOSPC: "there is no room left on the disk: free some, or lower max_bytes or keep",
    errno.EDQUOT: "the disk quota is used up: free some room, or lower max_bytes or keep",
    errno.EFBIG: "it may not grow further (a limit of this process or of the file system): lower max_bytes",
    errno.EROFS: "the file system is read-only: choose another path",
    errno.EACCES: "it may not be written by this user: choose another path or change its permissions",
    errno.EPERM: "it may not be written by this user: choose another path or change its permissions",
    errno.EISDIR: "there is a directory of this name: choose another path",
    errno.EEXIST: "a part of the path is a file and not a directory: choose another path",
    errno.ENOTDIR: "a part of the path is a file and not a directory: choose another path",
}


class File:
    """Appends a line of JSON per span, metric and log line; a line with the resource stands before its first.

    `path`: the file, made with its directories, readable for its owner only. When it would grow beyond `max_bytes`
    (50,000,000) it becomes `path.1`, the one before `path.2` and so on, up to `keep` (5) of them; `compress`: as
    `path.1.gz` (False). `signals`: what to write ("spans", "metrics", "logs").

    A full disk, a missing permission and the like raise `OSError`, and nothing of the batch is written: it can be
    tried again.
    """

    def __init__(
        self,
        *,
        path: Path,
        max_bytes: int = 50_000_000,
        keep: int = 5,
        compress: bool = False,
        signals: Sequence[str] = SIGNALS,
    ) -> None:
        if not str(path).strip() or str(path) == ".":
            raise ConfigError(f"path must be the name of a file, not {str(path)!r}")
        self.path = Path(path).expanduser().absolute()  # a change of directory later must not split the file
        self.max_bytes = options.count("max_bytes", max_bytes)
        self.keep = options.count("keep", keep)
        self.compress = compress
        self.signals = wanted(signals)
        self._fd: int | None = None
        self._process = 0
        self._resource: Resource | None = None
        self._end = -1
        """The size of the file after our last write: another one means that somebody else wrote."""

    def export(self, batch: Batch, /) -> None:
        """Write `batch`, all of it or nothing. Raises OSError, TimeoutError if the file stays locked."""
        lines = [
            *(_line("span", span) for span in batch.spans if "spans" in self.signals),
            *(_line("metric", metric) for metric in batch.metrics if "metrics" in self.signals),
            *(_line("log", line) for line in batch.logs if "logs" in self.signals),
        ]
        if not lines:
            return
        try:
            self._write(b"".join(lines), batch.resource)
        except OSError as error:
            self._close()
            why = REASONS.get(error.errno or 0, error.strerror or str(error))
            raise OSError(error.errno, f"cannot write telemetry to {self.path}: {why}") from error

    async def aclose(self) -> None:
        """Close the file."""
        self._close()

    # ---------------------------------------------------------------------------------------------- writing
    def _write(self, data: bytes, resource: Resource) -> None:
        fd = self._lock()
        try:
            size = os.fstat(fd).st_size
            if size and size + len(data) > self.max_bytes:
                self._rotate()
                self._close()
                fd = self._lock()
                size = os.fstat(fd).st_size
            if size != self._end or not size or resource != self._resource:
                data = _line("resource", resource) + data
            if size and os.pread(fd, 1, size - 1) != b"\n":
                data = b"\n" + data  # whoever wrote last was killed in the middle of a line
            self._append(fd, data, size)
            self._end, self._resource = size + len(data), resource
        finally:
            if self._fd is not None:
                fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _append(self, fd: int, data: bytes, size: int) -> None:
        written = 0
        try:
            while written < len(data):
                # One write, but for what is larger than the system writes at once, and for a full disk.
                written += os.write(fd, data[written:] if written else data)
        except OSError:
            os.ftruncate(fd, size)
            raise

    def _lock(self) -> int:
        """The file, open, ours alone and still the one of this name."""
        deadline = time.monotonic() + LOCK_WAIT
        while True:
            fd = self._open()
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(
                        errno.ETIMEDOUT, f"another process has held its lock for {LOCK_WAIT:g} s"
                    ) from None
                time.sleep(LOCK_POLL)
                continue
            if self._is_current(fd):
                return fd
            self._close()  # rotated or removed meanwhile, by another process or by logrotate

    def _is_current(self, fd: int) -> bool:
        try:
            named = os.stat(self.path)
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(fd))

    def _open(self) -> int:
        if self._fd is not None and self._process == os.getpid():
            return self._fd
        # After a fork the lock of an inherited descriptor would be one with the parent's.
        self._close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Without O_NONBLOCK a named pipe would wait for a reader.
        fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, MODE)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "it is not a regular file: choose another path")
        self._fd, self._process, self._end = fd, os.getpid(), -1
        return fd

    def _close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    # --------------------------------------------------------------------------------------------- rotation
    def _rotate(self) -> None:
        """Called with the lock. The file itself goes last: until then every other process waits for it."""
        packed = self._old(1, ".gz")
        fresh = packed.with_name(f"{packed.name}.part")  # one name: who is killed here leaves only one behind
        if self.compress:
            self._pack(fresh)
        for suffix in ("", ".gz"):
            self._old(self.keep, suffix).unlink(missing_ok=True)
            for number in range(self.keep - 1, 0, -1):
                old = self._old(number, suffix)
                if old.exists():
                    old.rename(self._old(number + 1, suffix))
        if self.compress:
            fresh.rename(packed)
            self.path.unlink()
        else:
            self.path.rename(self._old(1, ""))

    def _pack(self, into: Path) -> None:
        try:
            descriptor = os.open(into, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, MODE)
            with (
                self.path.open("rb") as plain,
                open(descriptor, "wb") as raw,
                gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=6) as packed,
            ):
                shutil.copyfileobj(plain, packed, 1 << 20)
        except OSError:
            into.unlink(missing_ok=True)
            raise

    def _old(self, number: int, suffix: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}{suffix}")


# --- a line ----------------------------------------------------------------------------------------------

_encoder = msgspec.json.Encoder(enc_hook=str)


def _line(kind: str, item: Any) -> bytes:
    try:
        body = _encoder.encode(item)
    except (ValueError, OverflowError, TypeError):
        body = _encoder.encode(_plain(msgspec.structs.asdict(item)))
    return b'{"type":"%s",%s\n' % (kind.encode(), body[1:])


def _plain(value: Any) -> Any:
    """`value` with whatever JSON does not take (lone surrogates, huge numbers, strange objects) as text."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else str(value)
    if isinstance(value, dict):
        return {_plain(str(name)): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, msgspec.Struct):
        return _plain(msgspec.structs.asdict(value))
    return _plain(str(value))
