"""One SQLite file as the runtime's stores use it: opened at first use, by one thread, shared with other processes.

A store gives what makes the file its own (`Format`) and functions of the connection; here is what all have in common:
the write-ahead log, the mode of the file, other programs' databases, and SQLite's errors in our words.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TypeVar

from msgspec import Struct

from agentrt.errors import ConfigError, PermanentError, TransientError
from agentrt.threads import WorkerThreads

__all__ = ["Format", "SqliteFile", "transaction"]

R = TypeVar("R")

Work = Callable[[sqlite3.Connection], R]

_MAKE_ROOM = "Make room on the disk, or give another path"
_OTHER_PLACE = "Let this user write the file and its folder, or give another path"


class Format(Struct, frozen=True, eq=False):
    """What makes a file a store's own.

    `application_id`: marks its files, so that another program's database is not written into. `version`: of the schema.
    `create`: makes the tables of an empty file. `probe`: reads what a damaged file often lost.
    """

    application_id: int
    version: int
    create: Callable[[sqlite3.Connection], None]
    probe: Callable[[sqlite3.Connection], None]


class SqliteFile:
    """The file at `path` (None: a database that ends with the process) in a given format.

    `what`: the store's name in messages ("memory"). `busy_timeout` (s): how long to wait for another process's write
    before `TransientError`. `pragmas`: settings of the connection, for example "synchronous = FULL".

    What was committed survives a killed process; only its owner may read the file. The first use raises `ConfigError`
    if the file is not a database, another program's, damaged, or made by a newer version.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        format: Format,
        *,
        what: str,
        busy_timeout: float,
        pragmas: tuple[str, ...] = ("synchronous = NORMAL",),
    ) -> None:
        self.path = None if path is None or path == ":memory:" else Path(path)
        self.busy_timeout = busy_timeout
        self._format = format
        self._what = what
        self._pragmas = pragmas
        self._place = ":memory:" if self.path is None else str(self.path)
        self._connection: sqlite3.Connection | None = None
        # One thread, so that the connection is used by one call at a time.
        self._thread = WorkerThreads(limit=1, name=f"agentrt {what}")

    async def run(self, work: Work[R]) -> R:
        """Call `work(connection)` in the file's thread. If this is cancelled, the thread goes on to the end of it.

        Raises `TransientError` if another process kept its lock too long (nothing was done then), `PermanentError` for
        any other failure of SQLite's, and what `work` raised.
        """
        return await self._thread.run(self._with_connection, work)

    async def aclose(self) -> None:
        """Close the file; it is opened again if it is used again."""
        if self._connection is not None or self._thread.running:
            await self._thread.run(self._close)
        self._thread.close()

    # --- in the file's thread --------------------------------------------------------------------------

    def _with_connection(self, work: Work[R]) -> R:
        if self._connection is None:
            self._connection = self._open()
        with self._explained():
            return work(self._connection)

    def _open(self) -> sqlite3.Connection:
        if self.path is not None:
            try:
                _make(self.path)
            except OSError as error:
                advice = _MAKE_ROOM if error.errno in (errno.ENOSPC, errno.EDQUOT) else _OTHER_PLACE
                raise ConfigError(
                    f"{self._what}: {self._place} cannot be opened: {error.strerror}: {error.filename}. {advice}"
                ) from error
        try:
            connection = sqlite3.connect(
                self._place, timeout=self.busy_timeout, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise ConfigError(
                f"{self._what}: {self._place} cannot be opened: {error}. {self._advice(error)}"
            ) from error
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        try:
            self._check(connection)  # before anything is changed in what may be another program's
            _use_write_ahead_log(connection, self.busy_timeout)
            for pragma in self._pragmas:
                connection.execute(f"PRAGMA {pragma}")
            with transaction(connection):
                if self._check(connection):
                    self._create(connection)
        except sqlite3.Error as error:
            if _is_busy(error):
                raise TransientError(
                    f"{self._what}: {self._place} is locked by another process", executed=False
                ) from error
            raise ConfigError(
                f"{self._what}: {self._place} cannot be used as a {self._what}: {_said(error)}. {self._advice(error)}"
            ) from _cause(error)

    def _advice(self, error: sqlite3.Error) -> str:
        """What to do about a file that cannot be used."""
        if self.path is not None and self.path.is_dir():
            return "It is a folder: give the path of a file"
        match _primary_code(error):
            case sqlite3.SQLITE_FULL:
                return _MAKE_ROOM
            case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_CANTOPEN:
                return _OTHER_PLACE
            case sqlite3.SQLITE_IOERR:
                return "The disk may be full or failing: look there, or give another path"
            case _:
                return "If it is damaged, move it away and a new one is made; otherwise give another path"

    @contextlib.contextmanager
    def _explained(self) -> Generator[None]:
        """SQLite's errors as ours."""
        try:
            yield
        except sqlite3.Error as error:
            if _is_busy(error):
                raise TransientError(
                    f"{self._what}: {self._place} was locked by another process for more than "
                    f"{self.busy_timeout:g} s",
                    executed=False,
                ) from error
            advice = f". {_MAKE_ROOM}" if _primary_code(error) == sqlite3.SQLITE_FULL else ""
            raise PermanentError(
                f"{self._what}: {self._place} failed: {_said(error)}{advice}", fault="target"
            ) from _cause(error)

    def _check(self, db: sqlite3.Connection) -> bool:
        """True if the database is empty; `ConfigError` if it is not ours."""
        version = db.execute("PRAGMA user_version").fetchone()[0]
        application = db.execute("PRAGMA application_id").fetchone()[0]
        is_empty = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        if is_empty and version == application == 0:
            return True
        if application != self._format.application_id:
            raise ConfigError(
                f"{self._what}: {self._place} is the database of another program; give another path"
            )
        if version > self._format.version:
            raise ConfigError(
                f"{self._what}: {self._place} was made by a newer agentrt (format {version}, this one knows "
                f"{self._format.version}); upgrade agentrt, or give another path"
            )
        self._format.probe(db)
        return False

    def _create(self, db: sqlite3.Connection) -> None:
        self._format.create(db)
        db.execute(f"PRAGMA application_id = {self._format.application_id}")
        db.execute(f"PRAGMA user_version = {self._format.version}")

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


_making = threading.Lock()


def _make(path: Path) -> None:
    """Make the file, if it is missing: SQLite would make it readable for all; its other files take over the mode.

    One that is there is not even opened: closing it would end the locks that other connections of this process hold
    on it (POSIX). Another process would then take itself for the last one, and delete the log that we write into.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        _making,
        contextlib.suppress(FileExistsError),
    ):  # a lock: until it is closed no connection is made here
        os.close(os.open(os.path.realpath(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Generator[None]:
    """All or nothing. Takes the write lock first: an upgrade from reading could fail however long we wait."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _use_write_ahead_log(db: sqlite3.Connection, busy_timeout: float) -> None:
    """Switching the mode does not wait for locks as everything else does, so this waits itself."""
    give_up = time.monotonic() + busy_timeout
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if not _is_busy(error) or time.monotonic() >= give_up:
                raise
            time.sleep(0.02)


def _quotes(error: sqlite3.Error) -> bool:
    """Whether the error's words quote what is stored. Python's own do, of a text that is no UTF-8; SQLite's, which have
    a code, never."""
    return isinstance(error, sqlite3.OperationalError) and getattr(error, "sqlite_errorcode", None) is None


def _said(error: sqlite3.Error) -> str:
    return "a text in it is not UTF-8" if _quotes(error) else str(error)


def _cause(error: sqlite3.Error) -> sqlite3.Error | None:
    return None if _quotes(error) else error


def _primary_code(error: sqlite3.Error) -> int | None:
    """SQLite's code without what it says more exactly; None for an error of Python's own."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _is_busy(error: sqlite3.Error) -> bool:
    return _primary_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
