"""What the audit log raises."""

from __future__ import annotations

import errno

from agentrt.errors import Refused

__all__ = ["AuditUnavailable", "reason"]


class AuditUnavailable(Refused):
    """An operation was not begun because it could not be recorded, or the log could not be opened.

    Nothing was done (`executed` is False). The message names the file and what to do.
    """


_REASONS = {
    errno.ENOSPC: "there is no room left on the disk: free some",
    errno.EDQUOT: "the disk quota is used up: free some room",
    errno.EFBIG: "the file may not grow further (a limit of this process or of the file system): lower rotation",
    errno.EROFS: "the file system is read-only: choose another path",
    errno.EACCES: "this user may not write there: choose another path or change its permissions",
    errno.EPERM: "this user may not write there: choose another path or change its permissions",
    errno.ELOOP: "it is a symbolic link: name the file itself",
    errno.EISDIR: "there is a directory of this name: choose another path",
    errno.ENOTDIR: "a part of the path is a file and not a directory: choose another path",
    errno.EEXIST: "a part of the path is a file and not a directory: choose another path",
    errno.ENOENT: "its folder is not there and cannot be made: choose another path",
    errno.EMFILE: "this process has too many files open: raise its limit",
    errno.EIO: "the disk fails: look at the system's log",
}


def reason(error: OSError) -> str:
    """Why the file cannot be written, and what to do, in words."""
    return _REASONS.get(error.errno or 0) or error.strerror or str(error) or type(error).__name__
