"""Who may write a log: one process, for as long as it has the log open. Locks end with the process that holds them,
however that ends.

Two files are locked: PATH.lock, which stays when the log goes on in another file, and the file that is written, which
keeps others out if PATH.lock is removed or replaced meanwhile.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from pathlib import Path

from agentrt.errors import ConfigError

__all__ = ["MODE", "is_at", "locked"]

MODE = 0o600
POLL = 0.02
"""Seconds between two tries to get a lock."""


def locked(path: Path, *, flags: int = 0, deadline: float = 0.0) -> int | None:
    """The file that `path` names, opened with `flags` besides those that are always needed, made if need be, and
    locked; None if another process had it locked until `deadline` (of `time.monotonic`; at least one try is made).

    What was opened may have another name, or none, by the time it is locked: then it is opened anew. Raises OSError,
    and ConfigError for what is no regular file.
    """
    flags |= os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    while True:
        fd = os.open(path, flags, MODE)
        is_ours = False
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ConfigError(
                    f"the audit log cannot use {path}, which is not a regular file: choose another path"
                )
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = is_at(fd, path)
        except BlockingIOError:
            pass
        finally:
            if not is_ours:
                os.close(fd)
        if is_ours:
            return fd
        if time.monotonic() >= deadline:
            return None
        time.sleep(POLL)


def is_at(fd: int, path: Path) -> bool:
    """Whether `path` names the file that is open as `fd`. Raises OSError."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False
