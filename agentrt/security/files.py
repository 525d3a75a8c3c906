"""`FileAccess`: files below a root and nowhere else. It hands out open files, never paths.

    files = FileAccess("/srv/workspace", "write")
    text = files.read_text("notes/today.md")
    files.write("notes/tomorrow.md", text.upper(), parents=True)
    text = await files.aio.read_text("notes/today.md")          # the same, off the event loop

Between a check of a path and a later use of it a folder can be swapped for a link. Here the look-up and the opening
are one step in the kernel (`agentrt.security.openat2`), or a walk that follows no link (`agentrt.security.no_follow`).
docs/files.md tells what is promised and what is not.
"""

from __future__ import annotations

import errno
import io
import os
import stat as bits
import threading
from collections.abc import Callable, Sequence
from typing import BinaryIO, Literal, Self, TypeVar

from msgspec import Struct

from agentrt import options
from agentrt.call import RUN
from agentrt.errors import ConfigError
from agentrt.security import file_writing
from agentrt.security.file_errors import AccessDenied, Blocked, FileError, FileMissing, NotText, shown, told
from agentrt.security.file_listing import Entry, Info, Kind, Listing, info_of, list_folder
from agentrt.security.file_paths import check_new_name, parts_of
from agentrt.security.file_roots import Resolution, Root, RootPaths, check_kind_of_system, open_roots
from agentrt.security.files_async import AsyncFileAccess

__all__ = [
    "AccessDenied",
    "Entry",
    "FileAccess",
    "FileError",
    "FileMissing",
    "Info",
    "Kind",
    "Listing",
    "NotText",
    "OnAccess",
]

R = TypeVar("R")

Path = str | os.PathLike[str]
Data = bytes | bytearray | memoryview | str

OnAccess = Callable[[str, str, str, bool, str], object]
"""`on_access(operation, root, path, allowed, reason)`, called in the thread that does the work. The audit log of the
run that asks is told by itself."""

READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
"""A FIFO must not hang us, nor a terminal become ours, before we see what was opened."""

FOLDER = os.O_RDONLY | os.O_DIRECTORY

MEBIBYTE = 1024 * 1024

TIDIED = 1024
"""Folders that are remembered as looked through for what killed processes left."""


class _Asked(Struct, frozen=True, eq=False):
    """What was asked for. `path` is printable; `root` is None for the folder of all named roots."""

    operation: str
    path: str
    root: Root | None
    parts: tuple[str, ...]


class FileAccess:
    """Reads, and with `mode="write"` also writes, files below `roots`, from any thread.

    `roots`: a folder, or folders by name; with names the first part of every path is one of them ("docs/a.txt"). The
    folders are held open until `close`, or the end of a `with` block. `mode`: "read", or "write" for both.
    `max_bytes` (10 MiB): of a file that is read or written. `quota` (None: no limit): bytes that all writes of this
    object together may write. `symlinks` ("inside"): links that stay below the root are followed where the kernel can
    tell; "refuse": none is, which is the same everywhere. `hard_links` ("refuse"): a file with more names than one may
    be one from outside; "allow" reads it. `on_access(operation, root, path, allowed, reason)` is told of every decision
    before anything is handed out or changed; what it raises ends the operation. `resolution` ("auto"): "openat2" or
    "walk" instead of the better one that works here.

    Errors: `AccessDenied` (a rule refused), `FileMissing`, `NotText`, and `FileError` for what the system refused.
    Raises `ConfigError` if a root is no folder.
    """

    def __init__(
        self,
        roots: RootPaths,
        mode: Literal["read", "write"],
        *,
        max_bytes: int = 10 * MEBIBYTE,
        quota: int | None = None,
        symlinks: Literal["inside", "refuse"] = "inside",
        hard_links: Literal["refuse", "allow"] = "refuse",
        on_access: OnAccess | None = None,
        resolution: Resolution = "auto",
    ) -> None:
        self.mode = options.choice("mode", mode, ("read", "write"))
        self.max_bytes = options.count("max_bytes", max_bytes)
        self.quota = None if quota is None else options.count("quota", quota, minimum=0)
        options.choice("symlinks", symlinks, ("inside", "refuse"))
        self._allows_hard_links = options.choice("hard_links", hard_links, ("refuse", "allow")) == "allow"
        if on_access is not None and not callable(on_access):
            raise ConfigError(f"on_access must be a function of five arguments, not {on_access!r}")
        self._on_access = on_access
        self._roots = open_roots(roots, symlinks=symlinks == "inside", resolution=resolution)
        self._lock = threading.Lock()
        self._written = 0
        self._tidied: set[tuple[int, int]] = set()

    @property
    def aio(self) -> AsyncFileAccess:
        """The same operations, to be awaited."""
        return AsyncFileAccess(self)

    @property
    def roots(self) -> tuple[str, ...]:
        """The names of the roots; a single empty name for a root that has none."""
        return tuple(self._roots)

    @property
    def resolution(self) -> str:
        """How paths are looked up here: "openat2" or "walk"."""
        return next(iter(self._roots.values())).opener.name

    @property
    def written(self) -> int:
        """Bytes written so far; they count for `quota`."""
        return self._written

    def close(self) -> None:
        """Let go of the roots. What is under way ends as it would have; files that were handed out stay open."""
        for root in self._roots.values():
            root.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<FileAccess {self.mode} roots={list(self._roots)} {self.resolution}>"

    # --- reading ---------------------------------------------------------------------------------------

    def open_read(self, path: Path) -> BinaryIO:
        """The file at `path`, open for reading bytes; close it, or use `with`. Regular files only.

        Its size is checked when it is opened.
        """
        return io.BufferedReader(self._opened(self._ask("read", path))[0])

    def read_bytes(self, path: Path) -> bytes:
        """The content of the file at `path`; `AccessDenied` if that is more than `max_bytes`."""
        asked = self._ask("read", path)
        file, size = self._opened(asked)
        with file:
            return self._do(asked, lambda: self._read_all(file, size))

    def read_text(self, path: Path, *, encoding: str = "utf-8") -> str:
        """The content of the file at `path` as text, line ends as they are. Raises `NotText` if it is none."""
        try:
            "".encode(encoding)
        except LookupError:
            raise ConfigError(f"encoding must be one that Python knows, not {encoding!r}") from None
        data = self.read_bytes(path)
        try:
            return data.decode(encoding)
        except UnicodeDecodeError as error:
            where = f"byte 0x{data[error.start]:02x} at offset {error.start}"
            name = shown(os.fspath(path))
            raise NotText(
                f"read '{name}': this is no {encoding} text ({where}); read it as bytes",
                operation="read",
                path=name,
            ) from None

    def list(self, path: Path = "", *, limit: int = 1000) -> Listing:
        """The entries of the folder at `path`, sorted by name; at most `limit`. Links are listed, not followed."""
        options.count("limit", limit)
        asked = self._ask("list", path, may_be_top=True)
        if asked.root is None:
            self._tell(asked)
            names = sorted(self._roots)
            return Listing(tuple(Entry(name, "directory", 0) for name in names[:limit]), len(names) > limit)
        folder = self._do(asked, lambda: self._open_folder(asked, asked.parts))
        try:
            self._tell(asked)
            return self._do(asked, lambda: list_folder(folder, limit))
        finally:
            os.close(folder)

    def stat(self, path: Path) -> Info:
        """What is at `path`. A link at the end of the path is not followed."""
        asked = self._ask("stat", path, may_be_top=True)
        if asked.root is None:
            self._tell(asked)
            return Info("directory", 0, 0.0, 1)
        found = self._do(asked, lambda: self._look(asked))
        self._tell(asked)
        return info_of(found)

    # --- writing ---------------------------------------------------------------------------------------

    def write(self, path: Path, data: Data, *, parents: bool = False, mode: int | None = None) -> int:
        """Make `data` (text as UTF-8) the whole content of the file at `path`; returns its size in bytes.

        Whole or not at all: a reader, an error or a crash meets the old file or the new one. `parents`: make folders
        that are missing. `mode`: permission bits up to 0o777; None keeps those of a file that is replaced and gives
        0o644 less the umask to a new one. The owner and further names of the old file are not kept: it is a new file.
        """
        return self._write(path, data, parents, mode, lambda: True)

    def delete(self, path: Path) -> None:
        """Remove the regular file at `path`. Folders, links and devices are refused."""
        asked = self._ask("delete", path)
        self._do(asked, self._check_mode)
        folder = self._do(asked, lambda: self._open_folder(asked, asked.parts[:-1]))
        name = asked.parts[-1]
        try:
            if self._do(asked, lambda: file_writing.check_target(folder, name)) is None:
                raise _failure(asked, FileNotFoundError())
            self._tell(asked)
            self._do(asked, lambda: os.unlink(name, dir_fd=folder))
        finally:
            os.close(folder)

    def _write(
        self, path: Path, data: Data, parents: bool, mode: int | None, is_wanted: Callable[[], bool]
    ) -> int:
        """As `write`; if at the last moment `is_wanted` is false, nothing is changed, and 0 returned."""
        if mode is not None and options.count("mode", mode, minimum=0) > 0o777:
            raise ConfigError(f"mode must be permission bits up to 0o777, not {mode:#o}")
        asked = self._ask("write", path)
        name = asked.parts[-1]
        content = memoryview(_encoded(asked, data) if isinstance(data, str) else data).cast("B")
        self._do(asked, lambda: self._admit(name, content.nbytes))
        is_written = False
        folder = -1
        try:
            folder = self._do(asked, lambda: self._open_parent(asked, may_be_missing=parents))
            if folder >= 0:
                self._do(asked, lambda: file_writing.check_target(folder, name))
            self._tell(asked)  # before the first change, which may be a folder
            if folder < 0:
                folder = self._do(asked, lambda: self._make_parents(asked))
            self._do(asked, lambda: self._tidy(folder))
            is_written = self._do(asked, lambda: file_writing.replace(folder, name, content, mode, is_wanted))
            if is_written:  # and counts, whatever becomes of this
                self._do(asked, lambda: file_writing.settle(folder))
        finally:
            if folder >= 0:
                os.close(folder)
            if not is_written:
                with self._lock:
                    self._written -= content.nbytes
        return content.nbytes if is_written else 0

    # --- decisions -------------------------------------------------------------------------------------

    def _ask(self, operation: str, path: Path, *, may_be_top: bool = False) -> _Asked:
        """Read `path` and find its root; what names no file or folder is refused."""
        name = told(os.fspath(path) if isinstance(path, os.PathLike) else path)
        root = self._roots.get("")
        try:
            parts = tuple(parts_of(path))
            if root is None and parts:
                root, parts = self._named(parts[0]), parts[1:]
            if not may_be_top and not parts:
                known = "" if "" in self._roots else f"; the roots are: {', '.join(self._roots)}"
                raise Blocked("root", f"it names no file below a root{known}")
        except Blocked as blocked:
            raise self._denied(_Asked(operation, name, root, ()), blocked) from None
        return _Asked(operation, name, root, parts)

    def _named(self, name: str) -> Root:
        root = self._roots.get(name)
        if root is None:
            raise Blocked("root", f"a path begins with one of the roots: {', '.join(self._roots)}")
        return root

    def _do(self, asked: _Asked, work: Callable[[], R]) -> R:
        """`work()`, with what is refused or fails put into words and the refusal told."""
        try:
            return work()
        except Blocked as blocked:
            raise self._denied(asked, blocked) from None
        except OSError as error:
            raise _failure(asked, error) from error

    def _denied(self, asked: _Asked, blocked: Blocked) -> AccessDenied:
        self._tell(asked, blocked)
        return AccessDenied(
            f"{asked.operation} '{shown(asked.path)}': {blocked.why}",
            operation=asked.operation,
            path=shown(asked.path),
            rule=blocked.rule,
        )

    def _tell(self, asked: _Asked, blocked: Blocked | None = None) -> None:
        audit = getattr(RUN.get(), "audit", None)  # of the run that this is part of, if it has one
        if self._on_access is None and audit is None:
            return
        root = "" if asked.root is None else asked.root.name
        reason = "" if blocked is None else f"{blocked.rule}: {blocked.why}"
        if audit is not None:
            audit.file_accessed(asked.operation, root, asked.path, blocked is None, reason)
        if self._on_access is not None:
            self._on_access(asked.operation, root, asked.path, blocked is None, reason)

    def _check_mode(self) -> None:
        if self.mode != "write":
            raise Blocked("mode", "this access is for reading only")

    def _admit(self, name: str, size: int) -> None:
        """Refuse what may not be written; else `size` is taken from the quota."""
        self._check_mode()
        check_new_name(name)
        if size > self.max_bytes:
            raise Blocked("size", f"{size:,} bytes are more than the {self.max_bytes:,} that are allowed")
        with self._lock:
            if self.quota is not None and self._written + size > self.quota:
                rest = self.quota - self._written
                raise Blocked("quota", f"{size:,} bytes are more than the {rest:,} left of {self.quota:,}")
            self._written += size

    # --- in the jail: these raise `Blocked` or OSError -------------------------------------------------

    def _open(self, asked: _Asked, parts: Sequence[str], flags: int) -> int:
        root = asked.root
        assert root is not None
        descriptor = root.borrow()
        try:
            return root.opener.open(descriptor, parts, flags)
        finally:
            root.give_back()

    def _opened(self, asked: _Asked) -> tuple[io.FileIO, int]:
        """The regular file that was asked for, and its size."""
        descriptor, size = self._do(asked, lambda: self._open_file(asked))
        try:
            self._tell(asked)
            return io.FileIO(descriptor), size
        except BaseException:
            os.close(descriptor)
            raise

    def _open_file(self, asked: _Asked) -> tuple[int, int]:
        try:
            descriptor = self._open(asked, asked.parts, READ)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a socket, or a device that is not there
                raise Blocked("kind", "it is no regular file") from None
            raise
        try:
            size = self._check_file(asked, descriptor)
            os.set_blocking(descriptor, True)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor, size

    def _check_file(self, asked: _Asked, descriptor: int) -> int:
        status = os.fstat(descriptor)
        if bits.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not bits.S_ISREG(status.st_mode):
            raise Blocked("kind", "it is no regular file")
        self._check_system(asked, descriptor, status)
        if status.st_nlink > 1 and not self._allows_hard_links:
            raise Blocked(
                "hard-link",
                "it has several names (hard links), so it may be a file from outside; hard_links='allow' reads such",
            )
        if status.st_size > self.max_bytes:
            raise Blocked(
                "size", f"{status.st_size:,} bytes are more than the {self.max_bytes:,} that are allowed"
            )
        return status.st_size

    def _check_system(self, asked: _Asked, descriptor: int, status: os.stat_result) -> None:
        if asked.root is not None:
            check_kind_of_system(descriptor, status.st_dev, asked.root)

    def _read_all(self, file: io.FileIO, size: int) -> bytes:
        """At most one byte more than is allowed: the file may grow while it is read."""
        pieces: list[bytes] = []
        taken = 0
        while taken <= self.max_bytes:
            piece = file.read(min(max(size + 1 - taken, 4096), self.max_bytes + 1 - taken))
            if not piece:
                return b"".join(pieces)
            pieces.append(piece)
            taken += len(piece)
        raise Blocked(
            "size", f"it grew beyond the {self.max_bytes:,} bytes that are allowed while it was read"
        )

    def _open_folder(self, asked: _Asked, parts: Sequence[str]) -> int:
        descriptor = self._open(asked, parts, FOLDER)
        try:
            self._check_system(asked, descriptor, os.fstat(descriptor))
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _open_parent(self, asked: _Asked, *, may_be_missing: bool) -> int:
        """The folder of the file that was asked for; -1 if it is missing and may be."""
        try:
            return self._open_folder(asked, asked.parts[:-1])
        except FileNotFoundError:
            if not may_be_missing:
                raise
        self._check_new_folders(asked)
        return -1

    def _check_new_folders(self, asked: _Asked) -> None:
        """Refuse names that missing folders must not get before the first of them is made."""
        names = asked.parts[:-1]
        for depth in range(1, len(names) + 1):
            try:
                os.close(self._open_folder(asked, names[:depth]))
            except FileNotFoundError:
                for name in names[depth - 1 :]:
                    check_new_name(name)
                return

    def _make_parents(self, asked: _Asked) -> int:
        """Make the missing folders, each in the open one above it, and look each up from the root as any path."""
        above = self._open_folder(asked, ())
        for depth, name in enumerate(asked.parts[:-1], 1):
            try:
                try:
                    below = self._open_folder(asked, asked.parts[:depth])
                except FileNotFoundError:
                    check_new_name(name)
                    try:
                        os.mkdir(name, 0o755, dir_fd=above)
                    except FileExistsError:
                        pass
                    below = self._open_folder(asked, asked.parts[:depth])
            finally:
                os.close(above)
            above = below
        return above

    def _look(self, asked: _Asked) -> os.stat_result:
        if not asked.parts:
            folder = self._open_folder(asked, ())
            try:
                return os.fstat(folder)
            finally:
                os.close(folder)
        folder = self._open_folder(asked, asked.parts[:-1])
        try:
            return os.stat(asked.parts[-1], dir_fd=folder, follow_symlinks=False)
        finally:
            os.close(folder)

    def _tidy(self, folder: int) -> None:
        """Once for each folder: remove what killed processes left there."""
        status = os.fstat(folder)
        key = (status.st_dev, status.st_ino)
        with self._lock:
            if key in self._tidied:
                return
            if len(self._tidied) >= TIDIED:
                self._tidied.clear()
            self._tidied.add(key)
        file_writing.remove_leftovers(folder)


def _encoded(asked: _Asked, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise FileError(
            f"{asked.operation} '{shown(asked.path)}': character {error.start} of the text is a lone surrogate, "
            "which UTF-8 has no form for",
            operation=asked.operation,
            path=shown(asked.path),
        ) from None


def _failure(asked: _Asked, error: OSError) -> FileError:
    """What the system refused, in words that name nothing but the path as it was given."""
    if isinstance(error, FileNotFoundError):
        why = "there is no such file or folder"
        if asked.operation == "write":
            why = "its folder does not exist; parents=True makes the folders that are missing"
        return FileMissing(
            f"{asked.operation} '{shown(asked.path)}': {why}",
            operation=asked.operation,
            path=shown(asked.path),
        )
    return FileError(
        f"{asked.operation} '{shown(asked.path)}': {error.strerror or type(error).__name__}",
        operation=asked.operation,
        path=shown(asked.path),
    )
