"""Writes a file as a whole: a temporary file in the same folder, then a rename. All by the folder's descriptor.

A reader sees the old file or the new one, and so does the world after a crash: the data is on the disk before the name
points to it. The rename replaces the name itself: neither a link nor another name of the old file is written through.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable

from agentrt.security.file_errors import Blocked
from agentrt.security.file_paths import TEMPORARY_PREFIX, TEMPORARY_SUFFIX, is_temporary

__all__ = ["check_target", "remove_leftovers", "replace", "settle"]

LEFTOVER_SECONDS = 60.0
"""A temporary file so old that nobody holds locked is what a process left that was killed."""

LEFTOVERS_AT_ONCE = 100_000
"""Entries of a folder that are looked through for them."""


def check_target(folder: int, name: str) -> os.stat_result | None:
    """The file that `name` in `folder` is now, or None. Raises `Blocked` or `OSError` for what is not replaced."""
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if stat.S_ISLNK(found.st_mode):
        raise Blocked("symlink", "it is a symbolic link; nothing is written through one, nor over it")
    if not stat.S_ISREG(found.st_mode):
        raise Blocked("kind", "it is no regular file")
    if not found.st_mode & 0o222:
        raise PermissionError(errno.EACCES, "the file is read-only")
    return found


def replace(
    folder: int,
    name: str,
    data: bytes | bytearray | memoryview,
    mode: int | None,
    is_wanted: Callable[[], bool],
) -> bool:
    """Make `data` the content of `name` in `folder`; False if at the last moment it was not wanted any more.

    `mode`: permission bits; None keeps those of the file that is replaced, and gives a new one 0o644 less the umask.
    Raises `Blocked` or `OSError`; the old file is then as it was. A crash may still undo it until `settle`.
    """
    old = check_target(folder, name)
    temporary = f"{TEMPORARY_PREFIX}{os.urandom(8).hex()}{TEMPORARY_SUFFIX}"
    created = os.open(
        temporary,
        os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
        # Only a new file of no given mode is for others from the beginning; here the kernel applies the umask.
        0o644 if mode is None and old is None else 0o600,
        dir_fd=folder,
    )
    try:
        try:
            # Whoever tidies up leaves a locked file alone, and a killed process holds no lock. Where a file system has
            # no locks, the file's age still tells.
            with contextlib.suppress(OSError):
                fcntl.flock(created, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _write_all(created, data)
            old = check_target(folder, name)
            if mode is not None:
                os.fchmod(created, mode)
            elif old is not None:
                os.fchmod(created, stat.S_IMODE(old.st_mode) & 0o777)
            _to_disk(created)
            if not is_wanted():
                return False
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            temporary = ""
        finally:
            os.close(created)
    finally:
        if temporary:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=folder)
    return True


def settle(folder: int) -> None:
    """Bring the names in `folder` to the disk. Some file systems cannot and say EINVAL; they do it by themselves."""
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def remove_leftovers(folder: int) -> int:
    """Remove the temporary files that killed processes left in `folder`; tells how many."""
    removed = 0
    with os.scandir(folder) as entries:
        for entry, _ in zip(entries, range(LEFTOVERS_AT_ONCE), strict=False):
            if is_temporary(entry.name) and entry.is_file(follow_symlinks=False):
                removed += _remove_if_left(folder, entry.name)
    return removed


def _remove_if_left(folder: int, name: str) -> bool:
    try:
        found = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return False  # gone, or not ours to read
    try:
        if time.time() - os.fstat(found).st_mtime < LEFTOVER_SECONDS:
            return False
        fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(name, dir_fd=folder)
    except OSError:
        return False  # somebody writes it, or has removed it
    finally:
        os.close(found)
    return True


def _write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _to_disk(descriptor: int) -> None:
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is None:
        os.fsync(descriptor)
        return
    try:
        fcntl.fcntl(descriptor, full)  # macOS: fsync alone stops at the drive's cache
    except OSError:
        os.fsync(descriptor)  # not every file system has it
