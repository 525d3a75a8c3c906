"""How `agentrt audit tail -f` goes on from file to file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from agentrt.errors import ConfigError
from agentrt.security.audit.log_file import began, is_beginning
from agentrt.security.audit.record import FileBegan
from agentrt.security.audit.segments import at_one_moment

__all__ = ["Followed"]

Take = Callable[[bytes], object]


class Followed:
    """The log at `path`, from the file that is written now on. Raises ConfigError if it cannot be read, or is no log.

    A file gets its number when it is full, and more than one may be filled between two looks: all that came after the
    one that was read are read then, in order.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0
        try:
            self._file: BinaryIO = path.open("rb")
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error
        if began(self._file) is None and not is_beginning(self._file):
            self._file.close()
            raise ConfigError(
                f"{path} does not begin as an audit log: name the file of [audit] path; "
                "if it is that, agentrt audit verify says what is wrong"
            )

    def close(self) -> None:
        self._file.close()

    def read(self, take: Take) -> None:
        """Give the whole lines that were written since the last time to `take`. Raises ConfigError if a file that
        follows cannot be read."""
        is_over = self._is_another()  # asked first: what was written before is read then
        self._read_on(take)
        if is_over:
            for file in self._following():
                self._file.close()
                self._file, self._read = file, 0
                self._read_on(take)

    def _read_on(self, take: Take) -> None:
        """Half a line is read again: it may go on, or be cut off by the next process that opens the log."""
        file = self._file
        file.seek(min(self._read, os.fstat(file.fileno()).st_size))
        self._read = file.tell()
        for line in file:
            if not line.endswith(b"\n"):
                break
            self._read += len(line)
            take(line)

    def _is_another(self) -> bool:
        """Whether the log goes on in another file."""
        try:
            return not os.path.samestat(self._path.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False  # between two names

    def _following(self) -> Iterator[BinaryIO]:
        """The files after this one, one after the other; none if the next one is between two names at this moment."""
        own = began(self._file)
        with ExitStack() as stack:
            try:
                full, written = at_one_moment(self._path)
                if written is not None:
                    stack.callback(written.close)
                if own is not None:
                    yield from self._full(full, own, (written and began(written)) or own)
            except OSError as error:
                raise ConfigError(f"cannot read what follows in {self._path}: {error.strerror}") from error
            if written is not None:
                stack.pop_all()
                yield written

    def _full(self, names: list[Path], own: FileBegan, goes_on: FileBegan) -> Iterator[BinaryIO]:
        """Those of the full files that come after the one that begins with `own`, in the log of `goes_on`: the same
        one, or another that was begun in its place."""
        after = own.number if goes_on.log == own.log else 0
        for name in names:
            if int(name.suffix[1:]) <= after:
                continue
            try:
                file = name.open("rb")
            except FileNotFoundError:
                continue  # somebody has just removed it
            first = began(file)
            if first is not None and first.log == goes_on.log:
                yield file
            else:
                file.close()
