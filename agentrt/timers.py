"""Timers that cancel a task when its time is up, and tell that cancellation from the caller's.

Nearly every attempt has the same limit, so its deadlines are monotonic: one insertion-ordered dict per
(loop, duration) is a FIFO of them. Arming and disarming are O(1), exact, and one `TimerHandle` is alive per
duration, where a timer per call would sit in the loop's heap. An attempt that a share, a deadline or a
caller's remaining time shortens uses `loop.call_at`.

Two rules of cancellation live here:

- A limit that fires counts as ours only if `uncancel()` brings the task back to where it was when the limit
  was armed (PEP 654 era accounting, as `asyncio.timeout`). Otherwise the caller cancelled too, and wins.
- A task that is already being cancelled is cleaning up. A second limit does not cut that cleanup: it becomes
  *due* and is delivered when the cleanup has ended, if the task goes on at all.
"""

from __future__ import annotations

import asyncio
import math
from contextvars import Context
from typing import Any, Final

from msgspec import Struct

from agentrt.clock import reader

__all__ = ["Armed", "FixedLimit", "Timers"]

Task = asyncio.Task[Any]

# A timer handle keeps the context it was made in, even when cancelled, until the loop drops it: without this, a
# FIFO's one timer would keep the run that happened to set it for up to the whole duration.
_NO_CONTEXT = Context()

LOOK_AGAIN: Final = 0.05
"""Seconds after which a limit that met a running cleanup looks whether that is over. Once it is long overdue it looks
less often, `LOOK_AGAIN_SHARE` of the time that it is: a callee that never ends must not cost 20 looks a second."""

LOOK_AGAIN_SHARE: Final = 0.01


class Armed(Struct, eq=False):
    """A running limit: `task` is cancelled at `when` (loop time, seconds).

    `cancelling` is `task.cancelling()` when it was armed. `call` is the call that it bounds; nested calls
    find it through the context variable `agentrt.call.ENCLOSING` (`token` takes it out again) and never outlive
    `when`. `queue` or `handle` is where it waits. `over`: it fired, and has been taken back.
    """

    when: float
    task: Task
    cancelling: int
    call: Any = None
    queue: dict[Armed, None] | None = None
    handle: asyncio.TimerHandle | None = None
    fired: bool = False
    delivered: bool = False
    over: bool = False
    token: Any = None

    @property
    def is_running(self) -> bool:
        """False once the attempt has ended; a task that it left behind still finds it in its context."""
        if self.fired:
            return not self.over
        if self.queue is not None:
            return self in self.queue
        return self.handle is not None and not self.handle.cancelled()


class Timers:
    """All timers of one event loop; `Timers.of(loop)` finds them."""

    __slots__ = ("_due", "_fixed", "loop", "time")

    _of_loop: dict[int, Timers] = {}  # noqa: RUF012 (one per process on purpose)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.time = reader(loop)
        self._fixed: dict[float, FixedLimit] = {}
        self._due: dict[Task, list[Armed]] = {}

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> Timers:
        timers = cls._of_loop.get(id(loop))
        if timers is None or timers.loop is not loop:
            # Timers keep their loop alive, so a weak mapping would never let go: closed loops are dropped here.
            for key, other in list(cls._of_loop.items()):
                if other.loop.is_closed():
                    cls._of_loop.pop(key, None)
            timers = cls._of_loop[id(loop)] = Timers(loop)
        return timers

    def fixed(self, seconds: float) -> FixedLimit:
        """The FIFO of limits of this duration."""
        limit = self._fixed.get(seconds)
        if limit is None:
            limit = self._fixed[seconds] = FixedLimit(self, seconds)
        return limit

    def arm_at(self, when: float, task: Task, call: Any = None) -> Armed:
        """Bound `task` by the moment `when` (loop time)."""
        armed = Armed(when, task, task.cancelling(), call)
        armed.handle = self.loop.call_at(when, self.fire, armed, context=_NO_CONTEXT)
        return armed

    def fire(self, armed: Armed) -> None:
        armed.fired = True
        armed.handle = None
        task = armed.task
        if task.cancelling() > armed.cancelling:
            # Somebody cancelled this task since: its cleanup is running and is not cut. If that was not us (the
            # callee's own asyncio.timeout), nobody tells when it is over.
            self._due.setdefault(task, []).append(armed)
            armed.handle = self.loop.call_later(LOOK_AGAIN, self._look_again, armed, context=_NO_CONTEXT)
        else:
            armed.delivered = True
            task.cancel()

    def disarm(self, armed: Armed) -> bool:
        """End a limit, fired or not; True if nobody else cancelled the task since it was armed."""
        if armed.fired:
            return self.settle(armed)
        if armed.queue is not None:
            del armed.queue[armed]
        elif armed.handle is not None:
            armed.handle.cancel()
        return armed.task.cancelling() <= armed.cancelling

    def settle(self, armed: Armed) -> bool:
        """Take back a limit that has fired; True if nobody else cancelled the task since it was armed."""
        task = armed.task
        armed.over = True
        if armed.handle is not None:
            armed.handle.cancel()
        if armed.delivered:
            ours = task.uncancel() <= armed.cancelling
        else:
            ours = task.cancelling() <= armed.cancelling
        due = self._due.get(task)
        if due is not None:
            if armed in due:
                due.remove(armed)
            if due:
                # Not now: a cancel() that the task meets only after its own guard took it back would be
                # stale, and before Python 3.13 `uncancel()` does not withdraw it. The callback runs only if
                # the task waits again before that guard is reached.
                self.loop.call_soon(self._deliver, due[0])
            else:
                del self._due[task]
        return ours

    def _look_again(self, armed: Armed) -> None:
        delay = max(LOOK_AGAIN, LOOK_AGAIN_SHARE * (self.time() - armed.when))
        armed.handle = self.loop.call_later(delay, self._look_again, armed, context=_NO_CONTEXT)
        self._deliver(armed)

    def _deliver(self, armed: Armed) -> None:
        task = armed.task
        due = self._due.get(task)
        if due is None or armed not in due or task.cancelling() > armed.cancelling:
            return
        if armed.handle is not None:
            armed.handle.cancel()
            armed.handle = None
        due.remove(armed)
        if not due:
            del self._due[task]
        armed.delivered = True
        task.cancel()


class FixedLimit:
    """A FIFO of limits that all last `seconds`: deadlines are monotonic, so one timer serves them all."""

    __slots__ = ("_timers", "handle", "queue", "seconds")

    def __init__(self, timers: Timers, seconds: float) -> None:
        self._timers = timers
        self.seconds = seconds
        self.queue: dict[Armed, None] = {}
        # An unbounded limit waits in its queue like any other; it only never needs a timer.
        self.handle: object | None = None if seconds < math.inf else self

    def arm(self, now: float, task: Task, call: Any = None) -> Armed:
        """Bound `task` by `seconds` from `now`, which must not lie before an earlier call's `now`.

        The timeout stage has this inline.
        """
        queue = self.queue
        when = now + self.seconds
        armed = Armed(when, task, task.cancelling(), call, queue)
        queue[armed] = None
        if self.handle is None:
            self.schedule(when)
        return armed

    def schedule(self, when: float) -> None:
        """Set the timer for the first of the queue."""
        self.handle = self._timers.loop.call_at(when, self._fire, context=_NO_CONTEXT)

    def _fire(self) -> None:
        self.handle = None
        # The loop runs a timer up to its clock's resolution early: what it calls due is due for us too.
        horizon = self._timers.time() + getattr(self._timers.loop, "_clock_resolution", 0.0)
        queue = self.queue
        while queue:
            first = next(iter(queue))
            if first.when > horizon:
                self.schedule(first.when)
                return
            del queue[first]
            self._timers.fire(first)
