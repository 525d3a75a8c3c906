"""A server that is a program of its own: started on free ports, awaited, stopped by its pid."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar
from urllib.parse import urlsplit

__all__ = [
    "Program",
    "Reply",
    "ServerError",
    "eventually",
    "fetch",
    "find_debian",
    "find_wheel",
    "free_ports",
]

T = TypeVar("T")

_ENVIRONMENTS = Path(__file__).parents[2] / ".dev"


class ServerError(Exception):
    """A server is not there, did not start or does not answer."""


def find_wheel(name: str, program: str) -> Path:
    """`program`, relative to the environment that `./dev test` makes for tests/servers/NAME.lock."""
    # Whole is one with a stamp; of several, for different Pythons, the last renewed fits the lock.
    stamps = sorted(
        _ENVIRONMENTS.glob(f"server-{name}-*/agentrt-stamp"), key=lambda path: path.stat().st_mtime
    )
    found = [path for stamp in stamps for path in stamp.parent.glob(program)]
    if not found:
        command = "./dev test --slow" if name == "phoenix" else "./dev test"
        where = _ENVIRONMENTS / f"server-{name}-*" / program
        raise ServerError(f"the server {name} is not set up: no {where}. `{command}` makes it.")
    return found[-1]


def find_debian(program: str) -> Path:
    """A program of a Debian package that `./dev servers` installs."""
    folders = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/usr/local/sbin"
    found = shutil.which(program, path=folders)
    if found is None:
        raise ServerError(f"the server {program} is not installed. `./dev servers` does it.")
    return Path(found)


_PORTS = range(10_240, 32_000)
"""Below those that systems give to clients: such a one may be taken the moment after it was found free."""

_random = random.SystemRandom()  # nobody's seed makes two suites choose the same


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface on which nobody listens, all different."""
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(found) < count:
            port = _random.choice(_PORTS)
            listener = stack.enter_context(socket.socket())
            try:
                listener.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                found.append(port)
    return found


@dataclass(frozen=True, slots=True)
class Reply:
    """What an HTTP server answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def fetch(
    url: str,
    *,
    method: str = "GET",
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = 5.0,
) -> Reply:
    """One HTTP request on a connection of its own, through no proxy; any status is an answer.

    `timeout`: seconds for each step on the wire. OSError and http.client.HTTPException are the caller's.
    """
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    with contextlib.closing(connection):
        connection.request(method, path, body, dict(headers or {}))
        response = connection.getresponse()
        return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())


async def eventually(ask: Callable[[], T], *, what: str, timeout: float = 30.0) -> T:
    """The first true answer of `ask`, which is called in a thread every 50 ms.

    Servers give no notice of what arrived, so they have to be asked. Fails after `timeout` seconds, naming `what`.
    """
    ends = time.monotonic() + timeout
    while True:
        if answer := await asyncio.to_thread(ask):
            return answer
        if time.monotonic() > ends:
            raise AssertionError(f"no {what} within {timeout:g} s; the last answer was {answer!r}")
        await asyncio.sleep(0.05)


class Program:
    """A running server. Subclasses say how it is started (`argv`) and what shows that it answers (`ready`).

    A context manager. Its output is kept in a file; `output()` gives the end of it.
    """

    name: ClassVar[str]
    ports_needed: ClassVar[int] = 1
    start_limit: ClassVar[float] = 30.0  # seconds until it must answer
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self) -> None:
        self.ports: list[int] = []
        self.user: tuple[int, int] | None = None  # user and group id, if it may not be ours
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = Path()
        self._stack = contextlib.ExitStack()

    # ------------------------------------------------------------------------------------- what differs
    def argv(self, folder: Path) -> Sequence[str | Path]:
        """The command line, for `self.ports`; `folder` is an empty one that is removed afterwards."""
        raise NotImplementedError

    def environment(self, folder: Path) -> Mapping[str, str]:
        """Variables beside those that every server gets."""
        del folder
        return {}

    def ready(self) -> bool:
        """Whether it answers now. OSError means no."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------- what is alike
    @property
    def pid(self) -> int:
        if self._process is None:
            raise ServerError(f"{self.name} is not running")
        return self._process.pid

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._folder = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix=f"agentrt-{self.name}-"))
            )
            stack.callback(self.stop)
            self._start()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def stop(self) -> None:
        """Ends it: `stop_signal`, after 5 s SIGKILL. Returns when it is gone."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(self.stop_signal)
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def output(self, limit: int = 6000) -> str:
        """The last `limit` characters that it wrote."""
        path = self._folder / "output"
        return path.read_text(errors="replace")[-limit:] if path.exists() else ""

    def _start(self) -> None:
        # Between our choice of a port and its use another program can take it.
        for attempts_left in (2, 1, 0):
            self.ports = free_ports(self.ports_needed)
            self._launch()
            if self._await_answer():
                return
            self.stop()
            if not attempts_left or "in use" not in self.output().lower():
                raise ServerError(
                    f"{self.name} ended before it answered, or did not answer within {self.start_limit:g} s. "
                    f"Its output ends:\n{self.output()}"
                )

    def _launch(self) -> None:
        work = self._folder / "work"
        work.mkdir(exist_ok=True)
        # Its own exporters, credentials and proxies are none of ours.
        kept = ("PATH", "HOME", "LANG", "TMPDIR", "SYSTEMROOT")
        variables = {name: os.environ[name] for name in kept if name in os.environ}
        variables.update(PYTHONUNBUFFERED="1", **self.environment(work))
        user, group = self.user or (None, None)
        with open(self._folder / "output", "wb") as output:
            self._process = subprocess.Popen(
                [str(word) for word in self.argv(work)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=work,
                env=variables,
                user=user,
                group=group,
                extra_groups=None if user is None else [],
            )

    def _await_answer(self) -> bool:
        process = self._process
        assert process is not None
        ends = time.monotonic() + self.start_limit
        while process.poll() is None and time.monotonic() < ends:
            try:
                if self.ready():
                    return True
            except (OSError, http.client.HTTPException):
                pass  # not yet; the limit and the process tell when that is an error
            time.sleep(0.02)
        return False
