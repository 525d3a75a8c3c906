"""An event loop whose clock jumps: tests of timers run real code, and at once.

**When the clock jumps.** As long as a callback is ready, time stands still. When none is, the loop looks for I/O
without waiting. If there is none either, it jumps to the next timer, but first it gives the real world a chance:

- *I/O.* While a file descriptor is registered (a socket, a pipe; the loop's own self-pipe does not count), it waits up
  to `patience` (0.05 s) of real time for it, once per jump. Loopback traffic inside one process needs far less.
- *Threads.* The same while a job handed to `run_in_executor` is running, or a thread that was started after
  the loop was made is alive: `call_soon_threadsafe` may come from it.

It never waits longer than until the timer would be due in real time, and waiting does not move the clock. A job or a
peer that takes longer than `patience` is overtaken by the next timer, as a slow one would be in reality. But a busy
machine makes nobody slow here: time in which another thread computes or waits for a processor or a disk does not count
(on Linux; up to `LONGEST_WAIT` of it for a jump), nor does time in which the whole process stood still.

**When nothing can happen.** With no timer, no I/O, no thread and no signal handler, nothing will ever wake a task:
instead of hanging, the loop raises `Deadlock`, which says where each task waits. With one of these it waits, as any
loop would.

**A busy loop lets time pass.** On a real clock each turn of the loop takes time, and code may count on it (a poll
with `sleep(0)`; a timer set for "now" by a rounding error). After `SPINS` turns at one moment each further turn
takes 10 µs.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import linecache
import math
import os
import selectors
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

from agentrt import threads

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

__all__ = ["Deadlock", "FakeClock", "VirtualTimeLoop", "advance", "run"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

SPINS = 10_000
"""Turns of the loop at one moment before time moves by itself."""

SPIN_SECONDS = 1e-5

LONGEST_WAIT = 2.0
"""Real seconds that a jump waits at most for threads that are at work."""

SLICE = 0.005
"""Real seconds between two looks at them."""


class Deadlock(RuntimeError):
    """Nothing can ever happen again on a virtual-time loop: the message says where each task waits."""


class FakeClock:
    """A clock for code without a loop: stands still until `advance`. Starts at `start` (0.0 s)."""

    def __init__(self, *, start: float = 0.0) -> None:
        self._now = float(start)

    def time(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Let `seconds` (at least 0) pass."""
        if not seconds >= 0.0:
            raise ValueError(f"a clock only goes forward, not by {seconds!r} s")
        self._now += seconds


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop on virtual time; see the module for its rules.

    `start` (0.0): what its clock shows first, in seconds. `patience` (0.05): real seconds that it waits for I/O
    or threads before a jump. The class itself is a `loop_factory`: `asyncio.Runner(loop_factory=VirtualTimeLoop)`.
    """

    # asyncio's own attributes, which typeshed leaves out.
    _ready: deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]
    _clock_resolution: float
    _signal_handlers: Mapping[int, object]

    def __init__(self, *, start: float = 0.0, patience: float = 0.05) -> None:
        self._now = float(start)
        self._patience = patience
        self._jobs = 0
        self._spins = 0
        self._threads_before = set(threading.enumerate())
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self._now

    @property
    def timers(self) -> list[asyncio.TimerHandle]:
        """The timers that are set and not cancelled, the earliest first: what a test of leaks looks at."""
        return sorted((h for h in self._scheduled if not h.cancelled()), key=asyncio.TimerHandle.when)

    async def advance(self, seconds: float) -> None:
        """Let exactly `seconds` pass, and everything run that is due by then."""
        if not seconds >= 0.0:
            raise ValueError(f"a clock only goes forward, not by {seconds!r} s")
        if seconds > 0.0:
            await asyncio.sleep(seconds)
        # What is ready now may make more ready; a task that polls forever must not keep us.
        for _ in range(1000):
            await asyncio.sleep(0)
            if not self._ready:
                return

    def block(self, seconds: float) -> None:
        """Let `seconds` pass in which the loop cannot run: what code that blocks does to it."""
        if not seconds >= 0.0:
            raise ValueError(f"a clock only goes forward, not by {seconds!r} s")
        self._move_to(self._now + seconds)

    def run_in_executor(
        self, executor: concurrent.futures.Executor | None, func: Callable[[*Ts], T], *args: *Ts
    ) -> asyncio.Future[T]:
        future = super().run_in_executor(executor, func, *args)
        self._jobs += 1
        future.add_done_callback(self._job_done)
        return future

    def _job_done(self, future: asyncio.Future[Any]) -> None:
        self._jobs -= 1

    def _move_to(self, when: float) -> None:
        self._now = when
        self._spins = 0

    def _select(self, real: selectors.BaseSelector, timeout: float | None) -> list[Any]:
        """What the selector does instead of waiting."""
        if timeout is not None and timeout <= 0:
            self._spins += 1
            if self._spins > SPINS:
                self._now += SPIN_SECONDS
            return real.select(0)
        # In this order: a thread that ends in between has written to the self-pipe before.
        reality = self._real_world(real)
        events = real.select(0)
        if events:
            return events
        when = self._scheduled[0].when() if self._scheduled else math.inf
        if when == math.inf:
            if not reality:
                raise Deadlock(self._deadlock())
            return real.select(None)
        if reality and (events := self._wait(real, min(self._patience, when - self._now))):
            return events
        # asyncio runs a timer that is due within the clock's resolution; far from zero that may round away.
        due = when if when + self._clock_resolution > when else math.nextafter(when, math.inf)
        self._move_to(max(due, self._now))
        return events

    def _wait(self, real: selectors.BaseSelector, patience: float) -> list[Any]:
        """Wait for I/O until nothing else has happened in this process for `patience` in all."""
        slices = math.ceil(LONGEST_WAIT / SLICE)
        while patience > 0.0 and slices > 0:
            # What a slice took beyond its length, the process stood still or the thread had no processor. So slices
            # are counted: after it has stood still for however long, the others have their turn all the same.
            slices -= 1
            if events := real.select(min(SLICE, patience)):
                return events
            if not _threads_at_work():
                patience -= SLICE
        return []

    def _real_world(self, real: selectors.BaseSelector) -> bool:
        """Whether something may still come from outside."""
        if len(real.get_map()) > 1 or self._jobs > 0 or self._signal_handlers:
            return True
        if threads.has_work(self):
            return True
        # The idle workers of the default executor and of sync tools live on; their jobs are counted above.
        return any(
            not thread.name.startswith("asyncio_") and not threads.is_worker(thread)
            for thread in threading.enumerate()
            if thread not in self._threads_before
        )

    def _deadlock(self) -> str:
        head = (
            f"nothing can ever happen again at {self._now:g} s: no callback is ready, no timer is set, and no I/O, "
            "thread or signal handler could wake a task. These tasks wait:"
        )
        return "\n".join(
            [head, *(f"  {task.get_name()} {_position(task)}" for task in asyncio.all_tasks(self))]
        )


def run(main: Callable[[], Coroutine[Any, Any, T]], *, start: float = 0.0, debug: bool | None = None) -> T:
    """Run `await main()` on a fresh `VirtualTimeLoop`: `asyncio.run` for tests."""
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(start=start), debug=debug) as runner:
        return runner.run(main())


async def advance(seconds: float) -> None:
    """`VirtualTimeLoop.advance` of the running loop."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop, VirtualTimeLoop):
        raise RuntimeError("advance() needs a VirtualTimeLoop; with pytest: @pytest.mark.virtual_time")
    await loop.advance(seconds)


class _JumpingSelector(selectors.BaseSelector):
    """The real selector, with the loop's own way of waiting."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        self._loop = loop
        self._real = selectors.DefaultSelector()

    def register(self, fileobj: FileDescriptorLike, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: FileDescriptorLike) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def modify(self, fileobj: FileDescriptorLike, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.modify(fileobj, events, data)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return self._loop._select(self._real, timeout)

    def get_key(self, fileobj: FileDescriptorLike) -> selectors.SelectorKey:
        return self._real.get_key(fileobj)

    def get_map(self) -> Mapping[FileDescriptorLike, selectors.SelectorKey]:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()


def _threads_at_work() -> bool:
    """Whether a thread of this process, but this one, is running, could run, or waits for a disk. Linux only."""
    own = str(threading.get_native_id())
    try:
        others = [entry for entry in os.listdir("/proc/self/task") if entry != own]
    except OSError:
        return False
    return any(_state(thread) in ("R", "D") for thread in others)


def _state(thread: str) -> str:
    """The state's letter of proc(5); "X" (dead) for a thread that has just ended."""
    try:
        with open(f"/proc/self/task/{thread}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1].decode()
    except OSError:
        return "X"


def _position(task: asyncio.Task[Any]) -> str:
    """Where a suspended task waits: its innermost frame of Python code."""
    coroutine: Any = task.get_coro()
    inner: Any = None
    while coroutine is not None and (frame := _frame(coroutine)) is not None:
        inner = frame
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)
    if inner is None:
        return "somewhere"
    code = inner.f_code
    line = linecache.getline(code.co_filename, inner.f_lineno).strip()
    return f"in {code.co_qualname} at {code.co_filename}:{inner.f_lineno}: {line}"


def _frame(coroutine: Any) -> Any:
    return getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
