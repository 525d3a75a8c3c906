"""The pipeline as users type it: checked by mypy and pyright, never run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any, TypeVar, assert_type

from agentrt import Call, Middleware, Next, Pipeline, Stream, classify
from agentrt.call import Attempt, Record, Wait
from agentrt.clock import Clock, SystemClock
from agentrt.errors import (
    AttemptTimeout,
    CircuitOpen,
    DeadlineExceeded,
    Label,
    ResultRejected,
    TransientError,
)
from agentrt.middleware.bulkhead import Bulkhead
from agentrt.middleware.circuit_breaker import CircuitBreaker, exponential_break
from agentrt.middleware.fallback import Fallback
from agentrt.middleware.pace import Pace
from agentrt.middleware.rate_limit import RateLimit
from agentrt.middleware.retry import Retry, RetryBudget
from agentrt.middleware.telemetry import Telemetry
from agentrt.middleware.throttle import Throttle
from agentrt.middleware.timeout import Timeout
from agentrt.testing import FakeClock, VirtualTimeLoop, advance, run

R = TypeVar("R")


class Answer:
    text: str = ""


async def ask(question: str, retries: int) -> Answer:
    return Answer()


async def nothing() -> None: ...


async def tokens(question: str) -> AsyncIterator[str]:
    yield question


async def opened(question: str) -> AsyncIterator[bytes]:
    raise NotImplementedError


# A plain async function and an object are both middleware; the result type passes through.
async def timing(call: Call[R], call_next: Next[R]) -> R:
    assert_type(call.target, str)
    assert_type(call.attempt, int)
    assert_type(call.deadline, float)
    assert_type(call.share, float)
    assert_type(call.remaining, float)
    assert_type(call.idempotent, bool)
    assert_type(call.record, Record)
    result = await call_next(call)
    assert_type(call.record.elapsed, float)
    return result


class Audit:
    name = "audit"

    def __init__(self, *, level: int = 1) -> None:
        self.level = level

    async def __call__(self, call: Call[R], call_next: Next[R], /) -> R:
        return await call_next(call.replace(idempotent=True))


async def untyped(call: Any, call_next: Any) -> Any:
    return await call_next(call)


stages: Sequence[Middleware] = [timing, Audit(), untyped, Timeout(), CircuitBreaker(), Retry(), Fallback()]

pipeline = Pipeline(
    inner_first=[
        Timeout(attempt=60, first_item=30.0, idle=None),
        CircuitBreaker(
            failure_rate=0.5,
            window_seconds=60,
            minimum_calls=10,
            success_threshold=1,
            reset_timeout=exponential_break(30, factor=2, maximum=600, jitter=0.1),
            slow_call=10,
            slow_rate=0.8,
            probes=2,
            max_half_open_wait=30,
        ),
        CircuitBreaker(failure_threshold=5, reset_timeout=lambda breaks: 30.0 * breaks),
        Bulkhead(limit=10, queue=100),
        Pace(rate=5, per=1.0, burst=10),
        Throttle(key=lambda call: call.target, max_retry_after=60),
        RateLimit(limit=5, window=0.5, key="{session}", max_wait=2, scope="target"),
        RateLimit(limit=5, window=60, key=lambda call: call.operation),
        Retry(
            max_attempts=3,
            backoff="decorrelated",
            initial_delay=1,
            max_delay=30,
            jitter="full",
            max_retry_after=60,
            budget=RetryBudget(ratio=0.2, per=60, minimum=10),
            retry_on=(ConnectionError, KeyError),
            retry_result=lambda value: value is None,
        ),
        Retry(backoff=lambda attempt: 0.5 * attempt, budget=None, retry_on=lambda error: bool(error.args)),
        Fallback("openai:gpt-5-mini", ask, default=None, on=KeyError),
        Fallback(default=lambda error: Answer()),
        Telemetry(collect=print),
    ],
    target="openai:gpt-5",
    kind="model",
    operation="chat",
    idempotent=True,
    deadline=180,
    classify=lambda error: classify(error),
    sources={"timeout.attempt": "agentrt.toml"},
)
assert_type(pipeline.replace(Timeout(attempt=None)), Pipeline)
assert_type(pipeline.without("retry", "fallback"), Pipeline)
assert_type(pipeline.place(timing, outside="retry").place(Audit(), inside="timeout").place(untyped), Pipeline)
assert_type(pipeline.problems(), list[str])
assert_type(pipeline.describe()[0].name, str)
assert_type(pipeline.describe()[0].options, dict[str, Any])
assert_type(Pipeline.default(target="payments", idempotent=True, deadline=None), Pipeline)


async def use() -> None:
    # The arguments are checked against the function, and the result has its type.
    assert_type(await pipeline.call(ask, "why", 3), Answer)
    assert_type(await pipeline.call(partial(ask, "why", retries=3)), Answer)
    assert_type(await pipeline.call(nothing), None)
    await pipeline.call(ask, "why", "three")  # type: ignore[arg-type]
    await pipeline.call(ask, "why")  # type: ignore[arg-type]

    async with pipeline.stream(tokens, "why") as stream:
        assert_type(stream, Stream[str])
        async for token in stream:
            assert_type(token, str)
    async with pipeline.stream(opened, "why") as raw:
        assert_type(raw, Stream[bytes])

    call: Call[Answer] = pipeline.new_call("request", operation="chat", key="k", idempotent=False)
    assert_type(await pipeline.send(call), Answer)
    record = call.record
    assert_type(record.attempts, list[Attempt])
    assert_type(record.waits, list[Wait])
    assert_type(record.errors, list[BaseException])
    assert_type(record.degraded, bool)
    assert_type(record.label(TransientError("x")), Label)
    task = asyncio.create_task(pipeline.call(ask, "why", 3))
    assert_type(await task, Answer)

    try:
        await pipeline.call(nothing)
    except CircuitOpen as refused:
        assert_type(refused.retry_after, float | None)
    except AttemptTimeout as late:
        assert_type(late.cut, bool)
        assert_type(late.elapsed, float)
    except DeadlineExceeded as over:
        assert_type(over.executed, bool | None)
    except ResultRejected as rejected:
        print(rejected.value)


def by_hand(breaker: CircuitBreaker) -> None:
    breaker.isolate("openai:gpt-5")
    breaker.close("openai:gpt-5")
    breaker.metrics_only("openai:gpt-5", on=False)
    breaker.subscribe(lambda target, old, new: print(target, old, new))
    assert_type(breaker.state("openai:gpt-5"), str)
    assert_type(breaker.states(), dict[str, str])
    assert_type(breaker.available("openai:gpt-5"), bool)


def with_virtual_time() -> None:
    async def main() -> int:
        await advance(60)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        loop.block(1.5)
        return len(loop.timers)

    assert_type(run(main, start=100.0), int)
    fake = FakeClock(start=5)
    fake.advance(2)
    clocks: list[Clock] = [fake, SystemClock()]
    assert_type(clocks[0].time(), float)
