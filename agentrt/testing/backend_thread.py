"""A telemetry backend in a thread with an event loop of its own, as in a runtime, and what it leaves behind."""

from __future__ import annotations

import asyncio
import gc
import os
import queue
import threading
import time
import warnings
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotDone
from types import TracebackType
from typing import Any, Self

from agentrt.telemetry.protocol import TelemetryBackend
from agentrt.telemetry.signals import Batch
from agentrt.testing.plain_host import PlainHost

__all__ = ["LEFT", "SLACK", "BackendThread", "eventually", "leaves_nothing"]

SLACK = 10.0
"""Seconds after which whoever should have ended has not: a busy machine may stop a process for some of them."""

LEFT = 2.0
"""Seconds after which what is still there was left behind."""

LOOKS = 10
"""How often something is looked for at least, however long the machine took from one look to the next."""


class BackendThread:
    """`open`, `export` and `aclose` of `backend` in a thread that ends with the block.

    `timeout`: seconds that each may take; a coroutine is cancelled then, as in a runtime. Whatever has not come back
    `SLACK` seconds later is an AssertionError. `secrets`: what `host.secret(reference)` knows.
    """

    def __init__(
        self, backend: TelemetryBackend, *, timeout: float, secrets: Mapping[str, str] | None = None
    ) -> None:
        self.backend = backend
        self.timeout = timeout
        self._host = PlainHost(secrets)
        self._jobs: queue.SimpleQueue[tuple[Callable[..., object], tuple[Any, ...], Future[None]] | None]
        self._jobs = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="backend under test", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._jobs.put(None)
        self._thread.join(SLACK)
        if error is None and self._thread.is_alive():
            raise AssertionError(
                f"the thread's event loop did not end within {SLACK:g} s: does a function that was handed to "
                "`to_thread` or an executor hang?"
            )

    def open(self) -> None:
        """`await backend.open(host)`, if it has that."""
        opener = getattr(self.backend, "open", None)
        if opener is not None:
            self._do("open", opener, self._host)

    def export(self, batch: Batch) -> None:
        """`backend.export(batch)`. Raises what it raised."""
        self._do("export", self.backend.export, batch)

    def aclose(self) -> None:
        """`await backend.aclose()`, if it has that."""
        closer = getattr(self.backend, "aclose", None)
        if closer is not None:
            self._do("aclose", closer)

    def tasks(self) -> list[str]:
        """The tasks of the thread's event loop that are not done, as text."""
        found: list[str] = []

        async def look() -> None:
            own = asyncio.current_task()
            found.extend(repr(task) for task in asyncio.all_tasks() if task is not own)

        self._do("a look at its tasks", look)
        return found

    def _do(self, what: str, function: Callable[..., object], *arguments: object) -> None:
        done: Future[None] = Future()
        self._jobs.put((function, arguments, done))
        try:
            done.result(self.timeout + SLACK)
        except NotDone as error:
            if done.done():  # it raised that itself
                raise
            raise AssertionError(
                f"{what} was to end within {self.timeout:g} s and did not: it blocks, or it caught its cancellation"
            ) from error

    def _run(self) -> None:
        with asyncio.Runner() as runner:
            while (job := self._jobs.get()) is not None:
                function, arguments, done = job
                try:
                    runner.run(self._bounded(function, arguments))
                except BaseException as error:
                    done.set_exception(error)
                else:
                    done.set_result(None)
                del job, function, arguments, done  # a batch is kept by nobody but the backend

    async def _bounded(self, function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        async with asyncio.timeout(self.timeout):
            outcome = function(*arguments)
            if isinstance(outcome, Awaitable):
                await outcome


def leaves_nothing(life: Callable[[], None]) -> None:
    """Raises AssertionError if each `life` leaves a thread, a socket or a file, or one of them unclosed.

    The first is not looked at: what a library keeps once for the process is kept then. Two more may leave something: a
    server of the tests in this process may need another thread once or twice.
    """
    life()
    left: str | None = None
    for _ in range(3):
        left = _left_by(life)
        if left is None:
            return
    raise AssertionError(f"after aclose there is left: {left}")


def _left_by(life: Callable[[], None]) -> str | None:
    threads, files = set(threading.enumerate()), set(_open_files())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        life()
        gc.collect()
    left = [str(warning.message) for warning in caught if issubclass(warning.category, ResourceWarning)]

    def still() -> list[str]:
        alive = [thread for thread in threading.enumerate() if thread not in threads]
        opened = [what for file, what in _open_files().items() if file not in files]
        return [*(f"the thread {thread.name!r}" for thread in alive), *opened]

    # What a server in this process has of a connection goes a moment after the client's.
    if not eventually(lambda: not still(), LEFT):
        left += still()
    return "; ".join(left) or None


def eventually(fits: Callable[[], bool], seconds: float) -> bool:
    """Whether `fits` becomes true within `seconds`, or a few looks if these take longer: in a time in which the process
    stood still nothing could become true."""
    ends = time.monotonic() + seconds
    looks = 1
    while not fits():
        if looks >= LOOKS and time.monotonic() > ends:
            return False
        time.sleep(0.02)
        looks += 1
    return True


def _open_files() -> dict[tuple[int, int, int], str]:
    """What is open in this process: (descriptor, device, inode) and words for it."""
    found: dict[tuple[int, int, int], str] = {}
    for name in os.listdir("/dev/fd"):
        try:
            status = os.fstat(int(name))
        except OSError:
            continue  # that was the descriptor of the listing itself
        try:
            what = os.readlink(f"/dev/fd/{name}")
        except OSError:
            what = "a file or socket"  # macOS has no links there
        found[int(name), status.st_dev, status.st_ino] = f"{what} (descriptor {name})"
    return found
