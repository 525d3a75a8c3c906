"""Whether a log could be written where it is to be, found out without leaving anything there."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from agentrt.errors import ConfigError
from agentrt.security.audit.errors import AuditUnavailable, reason
from agentrt.security.audit.log_file import began, is_beginning
from agentrt.security.audit.segments import expanded, numbered

__all__ = ["check_place"]


def check_place(path: str, *, rotates: bool) -> None:
    """Raises AuditUnavailable if this user could not write a log at `path` now, or make the folder that it is to be in,
    and ConfigError if what is there is no log. `rotates`: another file is begun when this one is full.

    A log that is there may be written by another process meanwhile: it is opened, and not locked.
    """
    file = expanded(path)
    lock = file.with_name(f"{file.name}.lock")
    try:
        is_there = [_check_file(file), _check_openable(lock)]
        folder, missing = _nearest(file.parent)
        if rotates or not all(is_there):
            _check_folder(folder, [*missing, numbered(file, 1).name])
    except OSError as error:
        raise AuditUnavailable(f"the audit log {file} cannot be written: {reason(error)}") from error


def _check_file(path: Path) -> bool:
    """Whether there is a log of this name, which can be written."""
    if not _check_openable(path):
        return False
    with path.open("rb") as file:
        if began(file) is None and not is_beginning(file):
            raise ConfigError(f"{path} is no audit log: choose another [audit] path, or move it away")
    return True


def _check_openable(path: Path) -> bool:
    """Whether there is a regular file of this name, which can be opened as a writer opens it."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return False
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISDIR(mode)):
        raise ConfigError(
            f"the audit log cannot use {path}, which is not a regular file: choose another path"
        )
    # A link and a directory are refused here, with the system's own word for it.
    os.close(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK))
    return True


def _nearest(folder: Path) -> tuple[Path, list[str]]:
    """The nearest folder above that is there, and the names of those that would be made in it."""
    missing: list[str] = []
    while True:
        try:
            mode = os.stat(folder).st_mode
        except FileNotFoundError:
            if folder.is_symlink():  # to nothing: no folder can be made of this name
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
            missing.insert(0, folder.name)
            folder = folder.parent
            continue
        if not stat.S_ISDIR(mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return folder, missing


def _check_folder(folder: Path, names: list[str]) -> None:
    """Raises OSError unless a file can be made in `folder`, and written; and of a name that is too long for one."""
    for name in names:
        with suppress(FileNotFoundError):
            os.lstat(folder / name)
    with tempfile.TemporaryFile(dir=folder) as probe:  # without a name, where the file system can do that
        probe.write(bytes(4096))
