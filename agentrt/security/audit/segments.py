"""The files of a log: PATH is written, PATH.000001 was filled first. A file keeps its name once it has a number, so
that it can be copied away or made read-only."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from agentrt.errors import ConfigError

__all__ = ["absolute", "at_one_moment", "expanded", "numbered", "of_commands", "rotated", "segments"]

_NUMBER = re.compile(r"\.(\d{6,})")


def expanded(path: str | os.PathLike[str]) -> Path:
    """The file that `path` means in this process: `{pid}` is its id, `~` the user's folder."""
    return absolute(os.fspath(path).replace("{pid}", str(os.getpid())))


def absolute(text: str) -> Path:
    """The file that `text` means, wherever the process goes to later: a log must not be split by that. Raises
    ConfigError."""
    if "\0" in text:
        raise ConfigError(f"a path cannot have a NUL in it, as {text!r} has")
    try:
        path = Path(text).expanduser().absolute()
    except RuntimeError as error:
        raise ConfigError(f"{text}: there is no such user, or no home folder: give the whole path") from error
    if not path.name:
        raise ConfigError(f"a path must name a file, which {text!r} does not")
    return path


def of_commands(path: str) -> str:
    """The log beside `path` that commands write, which must not wait for the service that writes that one: in
    "audit-commands.jsonl" for "audit.jsonl". Where each process has a log of its own, so has a command."""
    if "{pid}" in path:
        return path
    folder, name = os.path.split(path)
    stem, suffix = os.path.splitext(name)
    return os.path.join(folder, f"{stem}-commands{suffix}")


def numbered(path: Path, number: int) -> Path:
    """The name of the file of this number once it is full."""
    return path.with_name(f"{path.name}.{number:06d}")


def rotated(path: Path) -> list[Path]:
    """The full files of the log at `path`, in order."""
    found = []
    try:
        entries = list(os.scandir(path.parent))
    except FileNotFoundError:
        return []
    for entry in entries:
        if entry.name.startswith(path.name) and entry.is_file():
            match = _NUMBER.fullmatch(entry.name[len(path.name) :])
            if match is not None:
                found.append((int(match[1]), path.with_name(entry.name)))
    return [name for _, name in sorted(found)]


def segments(path: Path) -> list[Path]:
    """All files of the log at `path`, in order; the one that is written last."""
    return [*rotated(path), *([path] if path.is_file() else [])]


def at_one_moment(path: Path) -> tuple[list[Path], BinaryIO | None]:
    """The full files of the log at `path`, in order, and the one after them, opened; None if the last one that there is
    has its number already.

    In this order: the file that is written may get its number once it is open here, and then others follow it. Raises
    OSError.
    """
    written = None
    with suppress(FileNotFoundError):
        written = path.open("rb", buffering=1 << 20)
    try:
        full = rotated(path)
        has_number = written is not None and any(_is_same(written, name) for name in full)
    except BaseException:
        if written is not None:
            written.close()
        raise
    if written is not None and has_number:
        written.close()
        written = None
    return full, written


def _is_same(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False  # removed by somebody meanwhile
