"""Finds the tool that blocks the event loop, and the line where it does.

While an async tool executes, a daemon thread asks the loop for a sign of life a few times a second. If none comes, it
looks at what the loop's thread is doing. A tool pays for two entries in a dict.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import warnings
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, Protocol

from msgspec import Struct

from agentrt import options

__all__ = ["Blocking", "BlockingWarning", "BlockingWatch", "Executing", "warn"]

_log = logging.getLogger("agentrt")

Place = tuple[str, int, str, str]

LINGER_SECONDS = 5.0
"""The watching thread ends when no tool has executed for so long."""

STUCK_FACTOR = 10.0
"""After so many times the threshold the watching thread tells by itself of a tool that still blocks."""


class BlockingWarning(RuntimeWarning):
    """A tool blocked the event loop: nothing else could run meanwhile."""


class Executing(Protocol):
    """What is known of a tool that executes."""

    @property
    def name(self) -> str: ...

    @property
    def code(self) -> CodeType | None: ...

    @property
    def run(self) -> Any: ...


class Blocking(Struct, frozen=True, eq=False):
    """`tool` blocked the loop for `seconds` (and still does, unless `over`) in `function` at `file`:`line`.

    `inside` is the innermost line, if that is in another function. `run`: the run that the tool executed for, or None.
    """

    tool: str
    seconds: float
    over: bool
    file: str
    line: int
    function: str
    inside: str
    run: Any

    @property
    def message(self) -> str:
        so_far = "" if self.over else " so far"
        inside = f", inside {self.inside}" if self.inside else ""
        return (
            f"tool {self.tool!r} blocked the event loop for {self.seconds:.1f} s{so_far} at {self.file}:{self.line} "
            f"in {self.function}{inside}: nothing else ran meanwhile. Make the tool a plain `def`, which runs in a "
            "worker thread, or put the blocking part into `await asyncio.to_thread(...)`"
        )


def warn(blocking: Blocking) -> None:
    """Tell the run, if it can be told, else warn with Python's own means, at the line that blocks."""
    tell: Callable[[str], None] | None = getattr(blocking.run, "warn", None)
    if tell is not None and blocking.over:  # while the loop is blocked we are in another thread
        tell(blocking.message)
        return
    warnings.warn_explicit(blocking.message, BlockingWarning, blocking.file, blocking.line)


class BlockingWatch:
    """Watches one event loop; `BlockingWatch.of(loop)` gives the loop's own.

    `threshold` (0.5 s): how long a tool may keep the loop. `report` (the run's warning, else Python's) is called once
    per tool: in the loop when it is free again, or in the watching thread if it still is not after ten times the
    threshold. `find`: what executes in a task that did not say so itself, such as a subtask of a tool.
    """

    _of_loop: dict[int, BlockingWatch] = {}  # noqa: RUF012 (one per process on purpose)

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        threshold: float = 0.5,
        report: Callable[[Blocking], None] = warn,
        find: Callable[[asyncio.Task[Any]], Executing | None] | None = None,
    ) -> None:
        self.loop = loop
        self.threshold = options.seconds("threshold", threshold)
        self.report = report
        self.find = find
        self._thread_id = threading.get_ident()
        self._executing: dict[asyncio.Task[Any], Executing] = {}
        self._reported: set[str] = set()
        self._lock = threading.Lock()
        self._is_watching = False
        # A loop with a clock of its own (of virtual time) cannot be blocked in any sense that we could measure.
        self._is_needless = abs(loop.time() - time.monotonic()) > 1.0

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> BlockingWatch:
        """The watch of `loop`, made when first asked for."""
        watch = cls._of_loop.get(id(loop))
        if watch is None or watch.loop is not loop:
            # A watch keeps its loop alive, so a weak mapping would never let go: closed loops are dropped here.
            for key, other in list(cls._of_loop.items()):
                if other.loop.is_closed():
                    cls._of_loop.pop(key, None)
            watch = cls._of_loop[id(loop)] = BlockingWatch(loop)
        return watch

    @property
    def is_watching(self) -> bool:
        """True while the watching thread lives."""
        return self._is_watching

    def enter(self, task: asyncio.Task[Any], executing: Executing) -> Executing | None:
        """`task` begins to execute a tool; give what this returns to `leave`."""
        outer = self._executing.get(task)
        self._executing[task] = executing
        if not self._is_watching:
            self._thread_id = threading.get_ident()
            self._start()
        return outer

    def leave(self, task: asyncio.Task[Any], outer: Executing | None) -> None:
        """`task` has ended the tool; `outer` is the one around it."""
        if outer is None:
            self._executing.pop(task, None)
        else:
            self._executing[task] = outer

    # --- in the watching thread ------------------------------------------------------------------------

    def _start(self) -> None:
        with self._lock:
            if self._is_watching or self._is_needless:
                return
            self._is_watching = True
        try:
            threading.Thread(target=self._watch, name="agentrt blocking watch", daemon=True).start()
        except RuntimeError:
            self._is_watching = False  # no thread to be had: the tools run all the same

    def _watch(self) -> None:
        interval = self.threshold / 4
        idle_since: float | None = None
        while True:
            if self._executing:
                idle_since = None
                try:
                    self._check()
                except RuntimeError:
                    break  # the loop is closed
            else:
                now = time.monotonic()
                idle_since = now if idle_since is None else idle_since
                if now - idle_since >= LINGER_SECONDS:
                    break
            time.sleep(interval)
        self._is_watching = False
        if self._executing and not self.loop.is_closed():
            self._start()  # a tool began just now and saw us alive

    def _check(self) -> None:
        """Ask the loop for a sign of life; if none comes, find out why."""
        alive = threading.Event()
        asked = time.monotonic()
        self.loop.call_soon_threadsafe(alive.set)
        if alive.wait(self.threshold / 2):
            return
        early = self._suspect()
        if alive.wait(self.threshold / 2):
            return
        suspect = self._suspect()
        late = time.monotonic() - asked > 2 * self.threshold
        if late or early is None or suspect is None or early[0] is not suspect[0]:
            return  # the whole process was stopped, or many callbacks keep the loop busy, not one tool
        executing, place = suspect
        if executing.name not in self._reported:
            self._reported.add(executing.name)
            told = threading.Lock()
            # Queued now, it runs as soon as the loop is free: before the run, which may end soon, goes on.
            self.loop.call_soon_threadsafe(self._tell, told, asked, executing, place, True)
            if not alive.wait(STUCK_FACTOR * self.threshold):
                try:
                    self._tell(told, asked, executing, place, False)
                except Exception:  # a report that fails, or warnings that are errors, must not end the watch
                    _log.exception(
                        "tool %r blocks the event loop, and the report of it failed", executing.name
                    )
        while not alive.wait(1.0) and not self.loop.is_closed():
            pass

    def _tell(
        self, told: threading.Lock, asked: float, executing: Executing, place: Place, over: bool
    ) -> None:
        """In the loop when it is free again, or else in the watching thread: whichever comes first."""
        if told.acquire(blocking=False):
            seconds = time.monotonic() - asked
            self.report(Blocking(executing.name, seconds, over, *place, executing.run))

    def _suspect(self) -> tuple[Executing, Place] | None:
        """The tool whose turn on the loop it is, and where it is."""
        task = asyncio.current_task(self.loop)
        if task is None:
            return None
        executing = self._executing.get(task)
        if executing is None and self.find is not None:
            executing = self.find(task)
        frame = sys._current_frames().get(self._thread_id)
        if executing is None or frame is None:
            return None
        return executing, _place(frame, executing.code)


def _place(innermost: FrameType, code: CodeType | None) -> Place:
    """File, line and function of the tool, and the innermost line if that is elsewhere."""
    frame: FrameType | None = innermost
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    own = innermost if frame is None else frame
    inside = "" if own is innermost else f"{innermost.f_code.co_filename}:{innermost.f_lineno}"
    return own.f_code.co_filename, own.f_lineno, own.f_code.co_name, inside
