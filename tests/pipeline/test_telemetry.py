"""Telemetry: each call is handed over once, with its record, whatever its outcome."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agentrt.errors import AttemptTimeout, TransientError
from agentrt.middleware.fallback import Fallback
from agentrt.middleware.retry import Retry
from agentrt.middleware.telemetry import Telemetry
from agentrt.middleware.timeout import Timeout
from agentrt.pipeline import Pipeline
from pipeline.doubles import HANG, Callee, Observed, Slow, now, scenario


@scenario
async def test_a_success_is_handed_over_once_with_its_times() -> None:
    seen = Observed(Timeout())
    await asyncio.sleep(2)
    await seen.call(Callee(Slow(3)))
    (call,) = seen.calls
    record = call.record
    assert (record.started, record.ended, record.elapsed, record.error) == (2.0, 5.0, 3.0, None)
    (attempt,) = record.attempts
    assert (attempt.target, attempt.number, attempt.started, attempt.ended) == ("a", 1, 2.0, 5.0)
    assert (attempt.error, attempt.label) == (None, None)
    assert not record.degraded
    assert record.waits == []


@scenario
async def test_a_failure_is_handed_over_with_its_error() -> None:
    error = TransientError("x")
    seen = Observed(Timeout())
    await seen.failure(Callee(Slow(1, error)))
    (call,) = seen.calls
    assert call.record.error is error
    assert call.record.ended == 1.0
    (attempt,) = call.record.attempts
    assert attempt.label is not None
    assert attempt.label.name == "transient"


@scenario
async def test_a_cancellation_is_handed_over_too() -> None:
    seen = Observed(Timeout())
    task = asyncio.create_task(seen.call(Callee(HANG)))
    await asyncio.sleep(4)
    task.cancel()
    await asyncio.wait([task])
    (call,) = seen.calls
    assert isinstance(call.record.error, asyncio.CancelledError)
    assert call.record.ended == 4.0
    (attempt,) = call.record.attempts
    assert isinstance(attempt.error, asyncio.CancelledError)
    assert attempt.label is not None
    assert attempt.label.name == "cancelled"


@scenario
async def test_one_record_covers_all_attempts_and_targets() -> None:
    seen = Observed(
        Timeout(attempt=2), Retry(initial_delay=1, jitter="none"), Fallback(Callee("b")), idempotent=True
    )
    await seen.call(Callee(HANG))
    (call,) = seen.calls
    assert call.target == "a"
    assert call.record.target == "callee"
    assert [(a.target, a.number, a.started, a.ended) for a in call.record.attempts] == [
        ("a", 1, 0.0, 2.0),
        ("a", 2, 3.0, 5.0),
        ("a", 3, 7.0, 9.0),
        ("callee", 1, 9.0, 9.0),
    ]
    assert all(isinstance(e, AttemptTimeout) for e in call.record.errors)
    assert call.record.elapsed == 9.0


@scenario
async def test_a_stream_is_handed_over_when_it_settles() -> None:
    seen = Observed(Timeout())
    async with seen.stream(Callee([Slow(1, 1), Slow(2, 2)]).stream) as stream:
        assert [item async for item in stream] == [1, 2]
        (call,) = seen.calls
    assert len(seen.calls) == 1
    record = call.record
    assert (record.first_item, record.ended, record.error) == (1.0, 3.0, None)


@scenario
async def test_a_broken_stream_is_handed_over_with_its_error() -> None:
    error = TransientError("x")
    seen = Observed(Timeout())
    await seen.broken_stream(Callee([1, Slow(2, error)]).stream)
    (call,) = seen.calls
    assert call.record.error is error
    assert call.record.ended == 2.0
    assert [(a.error, a.ended) for a in call.record.attempts] == [(error, 2.0)]


@scenario
async def test_elapsed_runs_while_the_call_does() -> None:
    read: list[float] = []

    async def look(call: Any, call_next: Any) -> Any:
        result = await call_next(call)
        read.append(call.record.elapsed)
        await asyncio.sleep(1)
        read.append(call.record.elapsed)
        assert [a.error for a in call.record.attempts] == [None]
        return result

    seen = Observed(look)
    await seen.call(Callee(Slow(2)))
    assert read == [2.0, 3.0]
    assert seen.record.elapsed == 3.0


@scenario
async def test_the_collected_call_names_its_kind_operation_and_target() -> None:
    collected: list[Any] = []
    pipeline = Pipeline(
        inner_first=[Telemetry(collect=collected.append)],
        target="tool:search",
        kind="tool",
        operation="search",
    )
    await pipeline.call(Callee("ok"))
    call = collected[0]
    assert (call.kind, call.operation, call.target, call.attempt) == ("tool", "search", "tool:search", 1)


def test_without_a_collector_the_stage_is_not_used() -> None:
    assert not Telemetry().is_used
    assert Telemetry(collect=print).is_used


@scenario
async def test_calls_in_flight_each_have_their_own_record() -> None:
    seen = Observed(Timeout())
    await asyncio.gather(*(seen.call(Callee(Slow(n))) for n in range(1, 6)))
    assert sorted(call.record.elapsed for call in seen.calls) == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert now() == 5.0


@pytest.mark.parametrize("fail", [False, True])
@scenario
async def test_observers_of_the_run_see_each_entry_as_it_is_made(fail: bool) -> None:
    from agentrt.call import RUN, Retrying, Wait

    seen_by_run: list[tuple[float, str]] = []

    class OneRun:
        id = "run"
        deadline = 100.0

        def observe(self, call: Any, entry: Any) -> None:
            seen_by_run.append((now(), type(entry).__name__))

    token = RUN.set(OneRun())
    try:
        seen = Observed(Timeout(), Retry(initial_delay=1, jitter="none"), idempotent=True)
        await seen.call(Callee(TransientError("x"), "ok") if fail else Callee("ok"))
    finally:
        RUN.reset(token)
    expected = [(0.0, "Attempt"), (0.0, Retrying.__name__), (1.0, Wait.__name__)]
    assert seen_by_run == (expected if fail else [])
