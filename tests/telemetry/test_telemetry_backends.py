"""Backends: what is kept of a call, and that a backend cannot harm one."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from typing import Any

import pytest

from agentrt.call import Call
from agentrt.errors import TransientError
from agentrt.middleware.telemetry import Telemetry
from agentrt.models.protocol import Usage
from agentrt.pipeline import Pipeline
from agentrt.plugins import load
from agentrt.telemetry import Collect, combine
from agentrt.telemetry.memory import FinishedCall, InMemory
from agentrt.telemetry.none import NoTelemetry

pytestmark = [pytest.mark.asyncio, pytest.mark.virtual_time]


def pipeline(collect: Collect | None, *, target: str = "here", idempotent: bool = True) -> Pipeline:
    return Pipeline.default(target=target, idempotent=idempotent).replace(Telemetry(collect=collect))


async def answer(delay: float = 1.0) -> str:
    await asyncio.sleep(delay)
    return "ok"


class Fails:
    """Fails `times` times, then answers."""

    def __init__(self, times: int) -> None:
        self.left = times

    async def __call__(self) -> str:
        await asyncio.sleep(1.0)
        if self.left:
            self.left -= 1
            raise TransientError("x" * 5000)
        return "ok"


async def one(memory: InMemory) -> FinishedCall:
    (call,) = memory
    return call


async def test_a_call_is_kept_with_its_time_and_attempt() -> None:
    memory = InMemory()
    await pipeline(memory.collect).call(answer)
    call = await one(memory)
    assert (call.kind, call.operation, call.target, call.first_target) == ("call", "here", "here", "here")
    assert call.elapsed == pytest.approx(1.0)
    assert call.ok
    assert not call.degraded
    (attempt,) = call.attempts
    assert (attempt.number, attempt.target, attempt.failure) == (1, "here", None)
    assert attempt.ended - attempt.started == pytest.approx(1.0)


async def test_failed_attempts_are_kept_as_text() -> None:
    memory = InMemory()
    await pipeline(memory.collect).call(Fails(1))
    call = await one(memory)
    assert call.ok
    first, second = call.attempts
    assert first.failure is not None
    assert first.failure.type == "agentrt.errors.TransientError"
    assert first.failure.label == "transient"
    assert len(first.failure.message) == 2000
    assert (second.number, second.failure) == (2, None)


async def test_a_failed_call_is_kept_with_its_failure() -> None:
    memory = InMemory()
    with pytest.raises(TransientError):
        await pipeline(memory.collect).call(Fails(9))
    call = await one(memory)
    assert not call.ok
    assert call.failure is not None
    assert call.failure.label == "transient"
    assert len(call.attempts) == 3
    assert memory.calls(ok=False) == [call]
    assert memory.calls(ok=True) == []


async def test_a_cancelled_call_is_kept_as_cancelled() -> None:
    memory = InMemory()
    task = asyncio.create_task(pipeline(memory.collect).call(answer))
    await asyncio.sleep(0.5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    call = await one(memory)
    assert call.failure is not None
    assert call.failure.label == "cancelled"


async def test_neither_arguments_nor_errors_are_held() -> None:
    class Big:
        async def fail(self) -> None:
            raise TransientError("no")

    memory = InMemory()
    big = Big()
    gone = weakref.ref(big)
    with pytest.raises(TransientError):
        await pipeline(memory.collect, idempotent=False).call(big.fail)
    del big
    gc.collect()
    assert len(memory) == 1
    assert gone() is None


async def test_the_oldest_go_and_are_counted() -> None:
    memory = InMemory(max_calls=2)
    for number in range(5):
        await pipeline(memory.collect, target=f"t{number}").call(answer)
    assert [call.target for call in memory] == ["t3", "t4"]
    assert memory.dropped == 3
    memory.clear()
    assert (len(memory), memory.dropped) == (0, 0)


async def test_calls_can_be_found() -> None:
    memory = InMemory()
    for target in ("a", "b", "a"):
        await pipeline(memory.collect, target=target).call(answer)
    assert len(memory.calls(target="a")) == 2
    assert len(memory.calls(kind="call", operation="b")) == 1
    assert memory.calls(kind="model") == []
    assert memory.calls(run="r1") == []


async def test_sums_are_made_per_kind_and_target() -> None:
    memory = InMemory()

    async def counted(call: Call[Any]) -> str:
        call.record.usage = Usage(input_tokens=3, output_tokens=2)
        await asyncio.sleep(2.0)
        return "ok"

    stages = [Telemetry(collect=memory.collect)]
    model = Pipeline(inner_first=stages, kind="model", target="scripted:x", terminal=counted)
    for _ in range(2):
        await model.send(model.new_call(None))
    with pytest.raises(TransientError):
        await pipeline(memory.collect).call(Fails(9))
    first, second = memory.summary()
    assert (first.kind, first.target, first.calls, first.failures, first.attempts) == (
        "model",
        "scripted:x",
        2,
        0,
        2,
    )
    assert (first.input_tokens, first.output_tokens) == (6, 4)
    assert first.seconds == pytest.approx(4.0)
    assert (second.target, second.calls, second.failures, second.attempts) == ("here", 1, 1, 3)


async def test_without_a_backend_there_is_nothing_to_call() -> None:
    assert combine([]) is None
    assert combine([NoTelemetry(), NoTelemetry()]) is None
    NoTelemetry().collect(None)  # type: ignore[arg-type]


async def test_several_backends_get_every_call() -> None:
    first, second = InMemory(), InMemory()
    collect = combine([first, NoTelemetry(), second])
    await pipeline(collect).call(answer)
    assert len(first) == len(second) == 1


async def test_a_backend_that_fails_is_logged_once_and_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def collect(self, call: Call[Any], /) -> None:
            raise OSError("disk full")

    memory = InMemory()
    collect = combine([Broken(), memory])
    with caplog.at_level(logging.ERROR, "agentrt.telemetry"):
        for _ in range(3):
            assert await pipeline(collect).call(answer) == "ok"
    assert len(memory) == 3
    (record,) = caplog.records
    assert "Broken lost a call" in record.getMessage()
    assert record.exc_info is not None


async def test_the_built_ins_are_plugins() -> None:
    assert load("agentrt.telemetry", "memory") is InMemory
    assert load("agentrt.telemetry", "none") is NoTelemetry
