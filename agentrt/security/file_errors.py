"""The errors of `FileAccess`. They name the path as it was given, and never what is outside of the root.

FileError                  something about a file went wrong             .operation .path
|-- AccessDenied           a rule of the jail refused                    .rule
|-- FileMissing            there is no such file or folder (a FileNotFoundError as well)
`-- NotText                the bytes are not text in the encoding
"""

from __future__ import annotations

import errno

from agentrt.errors import AgentrtError

__all__ = ["AccessDenied", "Blocked", "FileError", "FileMissing", "NotText", "shown", "told"]

SHOWN = 200
TOLD = 4096


class FileError(AgentrtError):
    """A file operation failed. `operation`: "read", "write", "list", "stat" or "delete"; `path`: as it was given."""

    def __init__(self, message: str, *, operation: str, path: str) -> None:
        super().__init__(message)
        self.operation = operation
        self.path = path


class AccessDenied(FileError):
    """A rule of `FileAccess` refused; nothing was done. `rule` is the rule's name, as docs/files.md lists them."""

    def __init__(self, message: str, *, operation: str, path: str, rule: str) -> None:
        super().__init__(message, operation=operation, path=path)
        self.rule = rule


class FileMissing(FileError, FileNotFoundError):
    """There is no such file, or no such folder on the way to it."""

    def __init__(self, message: str, *, operation: str, path: str) -> None:
        super().__init__(message, operation=operation, path=path)
        self.errno = errno.ENOENT


class NotText(FileError):
    """The file's bytes are no text in the encoding that was asked for."""


class Blocked(Exception):
    """Inside the jail: `rule` refuses because of `why`. `FileAccess` makes an `AccessDenied` of it."""

    def __init__(self, rule: str, why: str) -> None:
        super().__init__(rule, why)
        self.rule = rule
        self.why = why


def told(path: object) -> str:
    """`path` for records: all of it, but printable, so that any of them can hold it; cut at 4,096 characters."""
    if not isinstance(path, str):
        return f"({type(path).__name__})"
    if not path.isprintable():
        path = path[:TOLD].encode("unicode_escape", "surrogatepass").decode("ascii")
    return path if len(path) <= TOLD else path[: TOLD - 3] + "..."


def shown(path: object) -> str:
    """`path` for messages: printable, and not longer than 200 characters."""
    printable = told(path)
    return printable if len(printable) <= SHOWN else printable[: SHOWN - 3] + "..."
