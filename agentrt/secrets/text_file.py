"""Reading a file that holds secrets: a regular one, not too large, UTF-8 text; each failure is one of our errors."""

from __future__ import annotations

import errno
import logging
import os
import stat

from agentrt.secrets.protocol import (
    SecretDenied,
    SecretError,
    SecretInvalid,
    SecretNotFound,
    SecretRef,
    SecretUnavailable,
)

__all__ = ["WritableFiles", "failure", "read_text"]

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
_NOT_PERMITTED = (errno.EACCES, errno.EPERM)

_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""With O_PATH a folder on the way need not be readable."""

_log = logging.getLogger("agentrt.secrets")


class WritableFiles:
    """Warns once for each file that everybody may write: whoever does chooses the secret."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def look(self, path: str, mode: int) -> None:
        if mode & stat.S_IWOTH and path not in self._told:
            self._told.add(path)
            _log.warning("everybody may write the file %s, and it holds a secret; chmod o-w it", path)


def read_text(ref: SecretRef, path: str, *, limit: int, files: WritableFiles) -> str:
    """The text of the file at `path`, whose symbolic links have been resolved. Blocks.

    Raises the errors of `failure`; `SecretInvalid` for anything but a regular file of at most `limit` bytes of UTF-8.
    """
    try:
        descriptor = _open(path)
    except OSError as error:
        raise failure(ref, path, error) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise SecretInvalid(f"{ref}: it is no regular file")
        files.look(path, status.st_mode)
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise failure(ref, path, error) from error
    finally:
        os.close(descriptor)
    if len(data) > limit:
        raise SecretInvalid(f"{ref}: the file is larger than {limit:,} bytes; set max_bytes if that is meant")
    try:
        return data.decode()
    except UnicodeDecodeError:
        # Not chained: the error holds what was read.
        raise SecretInvalid(f"{ref}: the file is not UTF-8 text") from None


def _open(path: str) -> int:
    """Open the file and follow no link, nor any on the way: what is one now was put there since they were resolved."""
    # Not blocking: a FIFO would wait for somebody to write into it.
    how = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    on_the_whole_way = getattr(os, "O_NOFOLLOW_ANY", None)
    if on_the_whole_way is not None:  # macOS
        return os.open(path, how | on_the_whole_way)
    *folders, name = filter(None, path.split("/"))
    folder = os.open("/", _FOLDER)
    try:
        for part in folders:
            below = os.open(part, _FOLDER, dir_fd=folder)
            os.close(folder)
            folder = below
        return os.open(name, how | os.O_NOFOLLOW, dir_fd=folder)
    finally:
        os.close(folder)


def failure(ref: SecretRef, path: str, error: OSError) -> SecretError:
    """Our error for one of the file system's, of the file at `path`."""
    why = error.strerror or type(error).__name__
    if error.errno in _ABSENT:
        return SecretNotFound(f"{ref}: there is no such file")
    if error.errno in _NOT_PERMITTED:
        return SecretDenied(f"{ref}: {path} may not be read by this user ({why})")
    if error.errno == errno.ELOOP:
        return SecretInvalid(f"{ref}: its symbolic links lead nowhere")
    return SecretUnavailable(f"{ref}: {path} cannot be read now ({why})")
