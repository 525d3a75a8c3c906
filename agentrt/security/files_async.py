"""`FileAccess` off the event loop: each operation in a worker thread."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING, BinaryIO

from agentrt import threads
from agentrt.security.file_listing import Info, Listing

if TYPE_CHECKING:
    from agentrt.security.files import FileAccess

__all__ = ["AsyncFileAccess"]

Path = str | os.PathLike[str]


class AsyncFileAccess:
    """The operations of a `FileAccess`, to be awaited; `FileAccess.aio` is one.

    A thread cannot be cancelled: it ends its work when the awaiting task has been cancelled long ago. A file that it
    opens then is closed, and what it has not written yet is not written.
    """

    def __init__(self, files: FileAccess) -> None:
        self._files = files

    async def open_read(self, path: Path) -> BinaryIO:
        """As `FileAccess.open_read`. Reading from the file blocks; a whole file is better read by `read_bytes`."""
        handing = _Handing()
        try:
            return await threads.shared().run(handing.open, self._files, path, name="open file")
        except asyncio.CancelledError:
            handing.refuse()
            raise

    async def read_bytes(self, path: Path) -> bytes:
        """As `FileAccess.read_bytes`."""
        return await threads.shared().run(self._files.read_bytes, path, name="read file")

    async def read_text(self, path: Path, *, encoding: str = "utf-8") -> str:
        """As `FileAccess.read_text`."""
        return await threads.shared().run(
            lambda: self._files.read_text(path, encoding=encoding), name="read file"
        )

    async def list(self, path: Path = "", *, limit: int = 1000) -> Listing:
        """As `FileAccess.list`."""
        return await threads.shared().run(lambda: self._files.list(path, limit=limit), name="list files")

    async def stat(self, path: Path) -> Info:
        """As `FileAccess.stat`."""
        return await threads.shared().run(self._files.stat, path, name="look at file")

    async def write(
        self,
        path: Path,
        data: bytes | bytearray | memoryview | str,
        *,
        parents: bool = False,
        mode: int | None = None,
    ) -> int:
        """As `FileAccess.write`. Cancelled, it writes nothing, unless the new file is there already."""
        given_up = threading.Event()
        try:
            return await threads.shared().run(
                lambda: self._files._write(path, data, parents, mode, lambda: not given_up.is_set()),
                name="write file",
            )
        except asyncio.CancelledError:
            given_up.set()
            raise

    async def delete(self, path: Path) -> None:
        """As `FileAccess.delete`."""
        await threads.shared().run(self._files.delete, path, name="delete file")


class _Handing:
    """Hands an open file from the thread to the task, or closes it if the task does not wait any more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None
        self._is_refused = False

    def open(self, files: FileAccess, path: Path) -> BinaryIO:
        file = files.open_read(path)
        with self._lock:
            self._file = file
            is_refused = self._is_refused
        if is_refused:
            file.close()
        return file

    def refuse(self) -> None:
        """In the loop's thread: the task was cancelled."""
        with self._lock:
            self._is_refused = True
            file = self._file
        if file is not None:
            file.close()
