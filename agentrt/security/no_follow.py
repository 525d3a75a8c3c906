"""Opening below a folder on any POSIX system: folder by folder, each opened inside the one before, no link followed.

For macOS, for kernels before 5.6, and where a filter of system calls refuses openat2. A name that is swapped for a link
while we walk is refused, as one that always was; what `openat2` allows, links that stay below the root, is refused too.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

from agentrt.security.file_errors import Blocked

__all__ = ["NoFollow"]

FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""A folder on the way. With O_PATH it need not be readable, only searchable, as for the kernel; macOS has no O_PATH."""

LINK_ERRORS = frozenset({errno.ELOOP, errno.EMLINK})
"""What opening a link with O_NOFOLLOW gives: Linux and macOS ELOOP, FreeBSD EMLINK. With O_DIRECTORY Linux says
ENOTDIR, as for a file."""


class NoFollow:
    """Opens below a folder by a walk of its own."""

    name = "walk"

    def open(self, root: int, parts: Sequence[str], flags: int) -> int:
        """A descriptor for `parts` below the folder `root`. Raises `Blocked`, or `OSError` as the kernel says it."""
        if not parts:
            return os.open(".", flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
        current = root
        try:
            for name in parts[:-1]:
                following = _open(name, FOLDER, current)
                if current != root:
                    os.close(current)
                current = following
            return _open(parts[-1], flags | os.O_NOFOLLOW | os.O_CLOEXEC, current)
        finally:
            if current != root:
                os.close(current)


def _open(name: str, flags: int, folder: int) -> int:
    try:
        return os.open(name, flags, dir_fd=folder)
    except OSError as error:
        if error.errno in LINK_ERRORS or (error.errno == errno.ENOTDIR and _is_link(name, folder)):
            raise Blocked("symlink", "a symbolic link on the way is not followed") from None
        raise


def _is_link(name: str, folder: int) -> bool:
    """Only to word the refusal: by now the name may be another thing."""
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except OSError:
        return False
