"""Worker threads for what blocks: synchronous tools, SQLite.

The executors of asyncio and anyio wait at interpreter exit for threads that are stuck. These threads are daemons: a
call that runs into its limit abandons its thread and goes on, and a stuck thread holds up nothing, not even exit.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from queue import Empty, SimpleQueue
from typing import Any, TypeVar, TypeVarTuple

from agentrt import options
from agentrt.call import ENCLOSING

__all__ = ["AbandonedThread", "WorkerThreads", "has_work", "is_worker", "shared"]

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

_log = logging.getLogger("agentrt")


class AbandonedThread(asyncio.Future[None]):
    """Done when a thread that could not be cancelled has ended; `thread` is the thread's name."""

    thread: str


class WorkerThreads:
    """Up to `limit` (32) daemon threads, started when needed; an idle one ends after `idle_seconds` (30).

    More calls wait their turn, first come first served. An abandoned thread counts until it ends. `name` names the
    threads of calls that have no name of their own. Usable from any number of event loops.
    """

    def __init__(self, *, limit: int = 32, idle_seconds: float = 30.0, name: str = "agentrt worker") -> None:
        self.limit = options.count("limit", limit)
        self.idle_seconds = options.seconds("idle_seconds", idle_seconds)
        self.name = name
        self._reset()

        _pools.add(self)

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._workers: set[_Worker] = set()
        self._idle: list[_Worker] = []
        self._waiting: deque[_Job] = deque()

    @property
    def running(self) -> list[str]:
        """The names of the calls that have a thread now, abandoned ones included."""
        with self._lock:
            return [worker.job.name for worker in self._workers if worker.job is not None]

    @property
    def waiting(self) -> int:
        """How many calls wait for a thread."""
        return len(self._waiting)

    async def run(self, function: Callable[[*Ts], R], *args: *Ts, name: str | None = None) -> R:
        """Call `function(*args)` in a thread, with a copy of the context; `name` names the thread meanwhile.

        Raises what the function raised. When the awaiting task is cancelled, this returns at once: a call that
        has no thread yet is withdrawn, else its thread is abandoned, and the record of the enclosing call knows of
        it (`Record.abandoned`) until the thread has ended.
        """
        loop = asyncio.get_running_loop()
        job = _Job(loop, copy_context(), function, args, name or self.name)
        self._submit(job)
        try:
            await job.finished
        except asyncio.CancelledError as error:
            self._cancel(job, error)
            raise
        result: R = job.result()
        return result

    def has_work(self, loop: asyncio.AbstractEventLoop) -> bool:
        """True while a call from `loop` runs or waits here."""
        with self._lock:
            workers = list(self._workers)
            jobs = [*self._waiting, *(w.job for w in workers), *(w.ended for w in workers)]
        return any(job is not None and job.loop is loop for job in jobs)

    def close(self) -> None:
        """End the idle threads now; busy ones end with their work. The pool stays usable."""
        with self._lock:
            idle, self._idle = self._idle, []
            self._workers.difference_update(idle)
        for worker in idle:
            worker.inbox.put(None)

    # --- in the loop's thread --------------------------------------------------------------------------

    def _submit(self, job: _Job) -> None:
        if self._pid != os.getpid():
            self._reset()  # a fork leaves the threads behind, and perhaps the lock held
        with self._lock:
            if self._idle:
                # The most recent one, so that the others may grow old and end.
                worker = self._idle.pop()
                worker.job = job
                worker.inbox.put(job)
                return
            if len(self._workers) >= self.limit:
                self._waiting.append(job)
                return
            worker = _Worker(self)
            worker.job = job
            self._workers.add(worker)
        worker.inbox.put(job)
        try:
            worker.start()
        except RuntimeError:
            # The system has no more threads, or the interpreter is about to exit.
            with self._lock:
                self._workers.discard(worker)
                if not self._workers:
                    raise
                self._waiting.append(job)

    def _cancel(self, job: _Job, error: asyncio.CancelledError) -> None:
        busy: set[str] = set()
        with self._lock:
            was_waiting = job.state == "waiting"
            if was_waiting:
                job.state = "ended"
                if job in self._waiting:
                    self._waiting.remove(job)
                    busy.update(worker.job.name for worker in self._workers if worker.job is not None)
            elif job.state == "running":
                job.abandoned = AbandonedThread(loop=job.loop)
                job.abandoned.thread = job.name
        if was_waiting:
            error.executed = False  # type: ignore[attr-defined]
            names = ", ".join(sorted(busy)) or "other calls"
            error.add_note(
                f"{job.name!r} never started: all {self.limit} worker threads were busy with {names}"
            )
        elif job.abandoned is not None:
            error.add_note(f"the worker thread {job.name!r} cannot be cancelled and goes on")
            _tell_record(job.abandoned)

    # --- in the worker's thread ------------------------------------------------------------------------

    def _begin(self, job: _Job) -> bool:
        """False if `job` was withdrawn on its way here."""
        with self._lock:
            if job.state != "waiting":
                return False
            job.state = "running"
            return True

    def _end(self, worker: _Worker, job: _Job) -> _Job | None:
        """`job` is over; take the next one, or be idle before anybody hears of the result and asks again."""
        with self._lock:
            job.state = "ended"
            worker.ended = job
            worker.job = self._waiting.popleft() if self._waiting else None
            if worker.job is None:
                self._idle.append(worker)
            return worker.job

    def _wait(self, worker: _Worker) -> _Job | None:
        """The next job of an idle worker; None if the thread should end."""
        try:
            return worker.inbox.get(timeout=self.idle_seconds)
        except Empty:
            with self._lock:
                if worker in self._idle:
                    self._idle.remove(worker)
                    self._workers.discard(worker)  # not a moment later: a call must not wait for this thread
                    return None
        return worker.inbox.get()  # given out just now

    def _gone(self, worker: _Worker) -> None:
        with self._lock:
            self._workers.discard(worker)


class _Job:
    """One call on its way to a thread and back. `state`: "waiting", "running", "ended", under the pool's lock."""

    __slots__ = (
        "abandoned",
        "args",
        "context",
        "error",
        "finished",
        "function",
        "loop",
        "name",
        "state",
        "value",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        context: Context,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        name: str,
    ) -> None:
        self.loop = loop
        self.finished: asyncio.Future[None] = loop.create_future()
        self.context = context
        self.function: Callable[..., Any] | None = function
        self.args = args
        self.name = name
        self.state = "waiting"
        self.value: Any = None
        self.error: BaseException | None = None
        self.abandoned: AbandonedThread | None = None

    def execute(self) -> None:
        function, args = self.function, self.args
        # Whoever holds the job from now on does not need these, and an abandoned one may live long.
        self.function, self.args = None, ()
        try:
            assert function is not None
            self.value = self.context.run(function, *args)
        except BaseException as error:  # handed to whoever awaits it
            self.error = error

    def result(self) -> Any:
        error, self.error = self.error, None
        if error is None:
            return self.value
        try:
            if isinstance(error, StopIteration | StopAsyncIteration | GeneratorExit | asyncio.CancelledError):
                # These steer coroutines: out of a plain function they are a bug, not a signal.
                raise RuntimeError(f"{self.name!r} raised {type(error).__name__}") from error
            raise error
        finally:
            del error  # or the traceback and this frame hold each other

    def deliver(self) -> None:
        """In the loop's thread: the function has ended."""
        if not self.finished.done():
            self.finished.set_result(None)
        if self.abandoned is not None:
            if self.error is not None:
                _log.error("the abandoned worker thread %r failed", self.name, exc_info=self.error)
                self.error = None
            if not self.abandoned.done():
                self.abandoned.set_result(None)


class _Worker(threading.Thread):
    """`job`: what it was given; `ended`: what it is about to hand back."""

    def __init__(self, pool: WorkerThreads) -> None:
        super().__init__(name=pool.name, daemon=True)
        self.pool = pool
        self.inbox: SimpleQueue[_Job | None] = SimpleQueue()
        self.job: _Job | None = None
        self.ended: _Job | None = None

    def run(self) -> None:
        pool = self.pool
        try:
            job = self.inbox.get()
            while job is not None:
                if pool._begin(job):
                    self.name = job.name
                    job.execute()
                following = pool._end(self, job)
                self.name = pool.name
                _hand_back(job)
                self.ended = None  # nothing of the last call lives on in an idle thread
                job = following
                if job is None:
                    job = pool._wait(self)
        finally:
            pool._gone(self)


def _hand_back(job: _Job) -> None:
    try:
        job.loop.call_soon_threadsafe(job.deliver)
    except RuntimeError:
        pass  # the loop is closed: nobody waits any more


def _tell_record(abandoned: AbandonedThread) -> None:
    """Let the call that we are inside of know that a thread of it goes on."""
    enclosing = ENCLOSING.get()
    if enclosing is None or enclosing.call is None:
        return
    record = enclosing.call.record
    if record.loop is not abandoned.get_loop():
        return
    earlier = record.abandoned
    record.abandoned = abandoned if earlier is None or earlier.done() else _both(earlier, abandoned)


def _both(first: asyncio.Future[Any], second: AbandonedThread) -> AbandonedThread:
    """Done when both are."""
    both = AbandonedThread(loop=second.get_loop())
    both.thread = f"{getattr(first, 'thread', '?')}, {second.thread}"

    def check(_: object) -> None:
        if first.done() and second.done() and not both.done():
            both.set_result(None)

    first.add_done_callback(check)
    second.add_done_callback(check)
    return both


_pools: weakref.WeakSet[WorkerThreads] = weakref.WeakSet()
_shared: WorkerThreads | None = None


def shared() -> WorkerThreads:
    """The threads of everyone who has none of their own."""
    global _shared
    if _shared is None:
        _shared = WorkerThreads()
    return _shared


def has_work(loop: asyncio.AbstractEventLoop) -> bool:
    """True while any pool works for `loop`: a loop of virtual time must let it."""
    return any(pool.has_work(loop) for pool in list(_pools))


def is_worker(thread: threading.Thread) -> bool:
    """Whether `thread` belongs to a pool, busy or idle."""
    return isinstance(thread, _Worker)
