"""What the tests of the pipeline share: scripted callees, and a stage of virtual time that sees what leaks."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from agentrt.call import ENCLOSING, Call, Record
from agentrt.middleware.telemetry import Telemetry
from agentrt.pipeline import Pipeline
from agentrt.testing import VirtualTimeLoop, run

LONG = 1e7
"""Longer than any limit in these tests: after it every timer has fired."""


def scenario(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test on virtual time, and look at what it leaves behind.

    A limit that was not disarmed would cancel the task in the long silence at the end; a stale cancellation shows
    itself at the next `await`; a timer, task or enclosing call that leaked is still there.
    """

    @functools.wraps(test)
    def played(*args: Any, **kwargs: Any) -> None:
        async def main() -> None:
            await test(*args, **kwargs)
            await leaves_nothing()

        run(main)

    return played


async def leaves_nothing() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0, "a cancellation was not taken back"
    assert ENCLOSING.get() is None, "the limit of an attempt is still visible to later calls"
    await asyncio.sleep(0)
    await loop.advance(LONG)
    assert not loop.timers, "timers are left"
    assert asyncio.all_tasks() == {task}, "tasks are left"


def now() -> float:
    return asyncio.get_running_loop().time()


class Slow:
    """An outcome that takes `seconds` first."""

    def __init__(self, seconds: float, outcome: Any = "slow") -> None:
        self.seconds = seconds
        self.outcome = outcome


HANG = Slow(1e6)


class Callee:
    """Plays its outcomes one by one, the last one for ever: a value, an exception to raise, or `Slow`.

    An outcome that is a list is a stream: its items, slow ones and an exception among them.
    """

    def __init__(self, *outcomes: Any, name: str = "callee") -> None:
        self._outcomes = list(outcomes)
        self.started: list[float] = []
        self.cancelled: list[float] = []
        self.closed = 0
        self.name = name
        self.__qualname__ = name

    @property
    def calls(self) -> int:
        return len(self.started)

    def _next(self) -> Any:
        self.started.append(now())
        return self._outcomes.pop(0) if len(self._outcomes) > 1 else self._outcomes[0]

    async def __call__(self, *args: Any) -> Any:
        return await self._play(self._next())

    async def _play(self, outcome: Any) -> Any:
        while isinstance(outcome, Slow):
            try:
                await asyncio.sleep(outcome.seconds)
            except asyncio.CancelledError:
                self.cancelled.append(now())
                raise
            outcome = outcome.outcome
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    async def stream(self, *args: Any) -> AsyncIterator[Any]:
        try:
            for item in self._next():
                yield await self._play(item)
        finally:
            self.closed += 1


class Observed:
    """A pipeline together with the records of its calls."""

    def __init__(self, *stages: Any, **options: Any) -> None:
        self.calls: list[Call[Any]] = []
        options.setdefault("target", "a")
        self.pipeline = Pipeline(inner_first=[*stages, Telemetry(collect=self.calls.append)], **options)

    @property
    def record(self) -> Record:
        """Of the last call that ended."""
        return self.calls[-1].record

    async def call(self, function: Any, *args: Any) -> Any:
        return await self.pipeline.call(function, *args)

    def stream(self, function: Any, *args: Any) -> Any:
        return self.pipeline.stream(function, *args)

    async def collect(self, function: Any, *args: Any) -> list[Any]:
        """All items of a stream."""
        async with self.pipeline.stream(function, *args) as stream:
            return [item async for item in stream]

    async def broken_stream(self, function: Any, *args: Any) -> tuple[list[Any], BaseException]:
        """The items of a stream and the exception that it ends with."""
        got: list[Any] = []
        try:
            async with self.pipeline.stream(function, *args) as stream:
                async for item in stream:
                    got.append(item)  # noqa: PERF401 - what came before the error counts
        except BaseException as error:
            return got, error
        raise AssertionError(f"no failure, but {got!r}")

    async def failure(self, function: Any, *args: Any) -> BaseException:
        """The exception that a call ends with."""
        try:
            value = await self.pipeline.call(function, *args)
        except BaseException as error:
            return error
        raise AssertionError(f"no failure, but {value!r}")


def entries(record: Record, kind: type[Any]) -> list[Any]:
    return [entry for entry in record.entries if isinstance(entry, kind)]
