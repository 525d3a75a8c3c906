"""Stream: the commit point, settling once, closing, and what a dropped one leaves."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agentrt.call import RUN, Attempt
from agentrt.errors import AttemptTimeout, ConfigError, DeadlineExceeded, ThrottledError, TransientError
from agentrt.middleware.circuit_breaker import CircuitBreaker
from agentrt.middleware.fallback import Fallback
from agentrt.middleware.retry import Retry
from agentrt.middleware.timeout import Timeout
from agentrt.stream import Stream
from agentrt.testing import VirtualTimeLoop, run
from pipeline.doubles import HANG, Callee, Observed, Slow, entries, now, scenario


class Settled:
    """Notes how a stream settled."""

    def __init__(self) -> None:
        self.causes: list[BaseException | None] = []

    def __call__(self, error: BaseException | None) -> None:
        self.causes.append(error)

    @property
    def how(self) -> str:
        (cause,) = self.causes
        if cause is None:
            return "success"
        return "neutral" if isinstance(cause, asyncio.CancelledError) else "failure"


async def opened(*items: Any) -> tuple[Stream[Any], Settled, Callee]:
    callee = Callee(list(items))
    stream = await Stream.open(callee.stream())
    settled = Settled()
    stream.on_settle(settled)
    return stream, settled, callee


# --- the commit point ----------------------------------------------------------------------------------


@scenario
async def test_opening_pulls_the_first_item_and_loses_none() -> None:
    stream, _, _ = await opened(Slow(3, 1), Slow(3, 2))
    assert now() == 3.0
    assert [item async for item in stream] == [1, 2]
    assert now() == 6.0


@scenario
async def test_a_preamble_is_held_back_until_the_first_visible_item() -> None:
    callee = Callee([("start", 1), ("meta", 2), Slow(2, ("text", 3)), ("meta", 4)])
    stream = await Stream.open(callee.stream(), visible=lambda item: item[0] == "text")
    assert now() == 2.0
    assert [item async for item in stream] == [("start", 1), ("meta", 2), ("text", 3), ("meta", 4)]


@scenario
async def test_an_error_after_the_preamble_is_before_the_commit_point() -> None:
    callee = Callee([("meta", 1), TransientError("x")])
    with pytest.raises(TransientError):
        await Stream.open(callee.stream(), visible=lambda item: item[0] == "text")
    assert callee.closed == 1


@scenario
async def test_a_stream_without_an_item_is_an_empty_answer_and_a_success() -> None:
    breaker = CircuitBreaker(failure_threshold=1)
    seen = Observed(Timeout(), breaker, Retry(), Fallback(Callee(["b"]).stream), idempotent=True)
    assert await seen.collect(Callee([]).stream) == []
    assert breaker.state("a") == "closed"
    assert seen.record.error is None
    assert not seen.record.degraded


@scenario
async def test_retry_until_the_first_item_never_repeats_one() -> None:
    callee = Callee([TransientError("1")], [Slow(1, TransientError("2"))], ["x", "y"])
    seen = Observed(Retry(initial_delay=1, jitter="none"), idempotent=True)
    assert await seen.collect(callee.stream) == ["x", "y"]
    assert callee.calls == callee.closed == 3


@scenario
async def test_an_error_in_mid_stream_is_raised_after_the_items_before_it_and_nothing_is_spliced() -> None:
    error = TransientError("mid")
    callee = Callee(["x", "y", error], ["x", "y", "z"])
    seen = Observed(Retry(), Fallback(Callee(["other"]).stream), idempotent=True)
    assert await seen.broken_stream(callee.stream) == (["x", "y"], error)
    assert callee.calls == 1
    assert [(a.error, a.number) for a in entries(seen.record, Attempt)] == [(error, 1)]


@scenario
async def test_a_function_may_return_its_iterator_from_a_coroutine() -> None:
    async def function() -> AsyncIterator[int]:
        await asyncio.sleep(1)
        return Callee([1, 2]).stream()

    assert await Observed(Timeout()).collect(function) == [1, 2]


@scenario
async def test_a_function_that_streams_nothing_is_told_so() -> None:
    async def function() -> int:
        return 3

    with pytest.raises(ConfigError) as caught:
        await Observed(Timeout()).collect(function)
    assert "a is to be streamed" in str(caught.value)
    assert "returned int, which is not an async iterator" in str(caught.value)


# --- settling ------------------------------------------------------------------------------------------


@scenario
async def test_the_proper_end_is_a_success() -> None:
    stream, settled, _ = await opened(1, 2)
    assert await anext(stream) == 1
    assert await anext(stream) == 2
    assert settled.causes == []
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    assert settled.how == "success"
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    await stream.aclose()
    assert settled.how == "success"


@scenario
async def test_closing_early_is_a_success_and_closes_the_source() -> None:
    stream, settled, callee = await opened(1, 2, 3)
    async with stream:
        assert await anext(stream) == 1
    assert settled.how == "success"
    assert callee.closed == 1
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


@scenario
async def test_an_error_of_the_consumer_is_not_the_streams() -> None:
    stream, settled, callee = await opened(1, 2, 3)
    with pytest.raises(ValueError, match="consumer"):
        async with stream:
            raise ValueError("consumer")
    assert settled.how == "success"
    assert callee.closed == 1


@scenario
async def test_an_error_is_a_failure_once() -> None:
    error = TransientError("x")
    stream, settled, callee = await opened(1, error)
    assert await anext(stream) == 1
    with pytest.raises(TransientError) as caught:
        await anext(stream)
    assert caught.value is error
    await stream.aclose()
    assert settled.causes == [error]
    assert callee.closed == 1


@scenario
async def test_a_cancellation_of_a_pending_item_is_neutral() -> None:
    stream, settled, callee = await opened(1, HANG)

    async def consume() -> None:
        async with stream:
            async for _ in stream:
                pass

    task = asyncio.create_task(consume())
    await asyncio.sleep(1)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert settled.how == "neutral"
    assert callee.closed == 1


@scenario
async def test_a_cancellation_between_items_is_neutral() -> None:
    stream, settled, callee = await opened(1, 2)

    async def consume() -> None:
        async with stream:
            await anext(stream)
            await asyncio.sleep(100)

    task = asyncio.create_task(consume())
    await asyncio.sleep(1)
    task.cancel()
    await asyncio.wait([task])
    assert settled.how == "neutral"
    assert callee.closed == 1


@scenario
async def test_closing_while_the_task_is_being_cancelled_is_neutral() -> None:
    stream, settled, _ = await opened(1, 2)

    async def consume() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            await stream.aclose()

    task = asyncio.create_task(consume())
    await asyncio.sleep(1)
    task.cancel()
    await asyncio.wait([task])
    assert settled.how == "neutral"


@scenario
async def test_a_stream_of_a_cleanup_settles_like_any_other() -> None:
    """Opened while its task was being cancelled already: closing it early is a success."""
    hows: list[str] = []

    async def report() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            stream, settled, _ = await opened(1, 2)
            async with stream:
                await anext(stream)
            hows.append(settled.how)

    task = asyncio.create_task(report())
    await asyncio.sleep(1)
    task.cancel()
    await asyncio.wait([task])
    assert hows == ["success"]


@pytest.mark.parametrize("limits", [{}, {"idle": 30.0}, {"attempt": None}], ids=str)
@scenario
async def test_a_cleanup_that_raises_does_not_hide_the_cancellation(limits: dict[str, Any]) -> None:
    breaker = CircuitBreaker(failure_threshold=1)
    seen = Observed(Timeout(**limits), breaker)

    async def source() -> AsyncIterator[int]:
        yield 1
        try:
            await asyncio.sleep(100)
        finally:
            raise TransientError("cleanup")

    task = asyncio.create_task(seen.collect(source))
    await asyncio.sleep(1)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert breaker.state("a") == "closed"
    assert isinstance(seen.record.error, asyncio.CancelledError)


@scenario
async def test_an_error_of_the_source_counts_although_the_consumer_swallowed_a_cancellation() -> None:
    error = TransientError("x")
    stream, settled, _ = await opened(1, Slow(5, error))

    async def consume() -> None:
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            pass
        await anext(stream)
        await anext(stream)

    task = asyncio.create_task(consume())
    await asyncio.sleep(1)
    task.cancel()
    await asyncio.wait([task])
    assert task.exception() is error
    assert settled.causes == [error]


# --- with the breaker ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("items", "state"),
    [
        ([1, 2], "closed"),
        ([1, TransientError("x")], "open"),
        ([1, ThrottledError("x")], "closed"),
        ([1, HANG], "open"),
    ],
    ids=["end", "transient", "throttled", "idle"],
)
@scenario
async def test_a_streams_outcome_counts_when_it_settles(items: list[Any], state: str) -> None:
    breaker = CircuitBreaker(failure_threshold=1)
    seen = Observed(Timeout(idle=5), breaker)
    async with seen.stream(Callee(items).stream) as stream:
        assert breaker.state("a") == "closed"
        try:
            async for _ in stream:
                pass
        except (TransientError, ThrottledError, AttemptTimeout):
            pass
    assert breaker.state("a") == state


@scenario
async def test_an_open_stream_does_not_count_yet() -> None:
    breaker = CircuitBreaker(failure_rate=0.5, minimum_calls=2, window_calls=2)
    seen = Observed(Timeout(), breaker)
    async with seen.stream(Callee([1, 2]).stream):
        await seen.failure(Callee(TransientError("x")))
    # The stream's success came after the failure: 1 of 2, but a success never opens.
    assert breaker.state("a") == "closed"
    await seen.failure(Callee(TransientError("x")))
    assert breaker.state("a") == "open"


async def half_open(**options: Any) -> tuple[CircuitBreaker, Observed]:
    breaker = CircuitBreaker(failure_threshold=1, reset_timeout=30, **options)
    seen = Observed(Timeout(attempt=None), breaker)
    await seen.failure(Callee(TransientError("x")))
    await asyncio.sleep(30)
    return breaker, seen


@scenario
async def test_a_probe_succeeds_at_its_first_item_and_fails_later_in_the_new_window() -> None:
    breaker, seen = await half_open()
    async with seen.stream(Callee([Slow(1, 1), Slow(1, TransientError("late"))]).stream) as stream:
        assert breaker.state("a") == "closed"
        assert await anext(stream) == 1
        with pytest.raises(TransientError):
            await anext(stream)
    assert breaker.state("a") == "open"


@scenario
async def test_a_probes_permit_is_free_from_its_first_item_on() -> None:
    breaker, seen = await half_open(success_threshold=2)
    async with seen.stream(Callee([1, HANG]).stream):
        assert breaker.state("a") == "half-open"
        assert await seen.call(Callee("the second probe")) == "the second probe"
        assert breaker.state("a") == "closed"


@scenario
async def test_a_probe_that_fails_after_its_first_item_while_half_open_changes_nothing() -> None:
    breaker, seen = await half_open(success_threshold=2)
    await seen.broken_stream(Callee([1, TransientError("late")]).stream)
    assert breaker.state("a") == "half-open"
    await seen.call(Callee("ok"))
    assert breaker.state("a") == "closed"


@pytest.mark.parametrize("ending", [[2], [TransientError("x")], [ValueError("x")]], ids=str)
@scenario
async def test_a_slow_probe_that_streams_opens_it_again_and_its_end_changes_nothing(
    ending: list[Any],
) -> None:
    breaker, seen = await half_open(slow_call=5)
    callee = Callee([Slow(6, 1), *ending])
    async with seen.stream(callee.stream) as stream:
        assert breaker.state("a") == "open"
        try:
            async for _ in stream:
                pass
        except (TransientError, ValueError):
            pass
    assert breaker.state("a") == "open"
    await asyncio.sleep(24)
    assert breaker.state("a") == "open"


@scenario
async def test_a_slow_stream_counts_as_slow_when_it_ends() -> None:
    breaker = CircuitBreaker(slow_call=5, minimum_calls=1)
    seen = Observed(Timeout(), breaker)
    async with seen.stream(Callee([Slow(6, 1), 2]).stream) as stream:
        assert breaker.state("a") == "closed"
        assert [item async for item in stream] == [1, 2]
        assert breaker.state("a") == "open"


# --- closing -------------------------------------------------------------------------------------------


class Badly:
    """A source whose `aclose` fails, as a connection's may."""

    def __init__(self, *items: Any) -> None:
        self.items = list(items)

    def __aiter__(self) -> Badly:
        return self

    async def __anext__(self) -> Any:
        item = self.items.pop(0)
        if isinstance(item, BaseException):
            raise item
        return item

    async def aclose(self) -> None:
        raise RuntimeError("cannot close")


@scenario
async def test_a_source_that_cannot_be_closed_does_not_hide_why_it_failed() -> None:
    error = TransientError("real")
    with pytest.raises(TransientError) as caught:
        await Stream.open(Badly(error))
    assert caught.value is error
    assert error.__notes__ == ["closing the stream failed as well: RuntimeError: cannot close"]

    error = TransientError("real")
    stream = await Stream.open(Badly(1, error))
    assert await anext(stream) == 1
    with pytest.raises(TransientError) as caught:
        await anext(stream)
    assert caught.value is error


@scenario
async def test_a_failure_to_close_does_not_keep_retry_from_its_work() -> None:
    sources = iter([Badly(TransientError("x")), Badly(1, StopAsyncIteration())])
    seen = Observed(Retry(initial_delay=0), idempotent=True)
    assert await seen.collect(lambda: next(sources)) == [1]


@scenario
async def test_a_consumer_that_closes_hears_of_a_failure_to_close() -> None:
    stream = await Stream.open(Badly(1, 2))
    settled = Settled()
    stream.on_settle(settled)
    with pytest.raises(RuntimeError, match="cannot close"):
        await stream.aclose()
    assert settled.how == "success"


@scenario
async def test_a_source_without_aclose_is_fine() -> None:
    class Bare:
        def __aiter__(self) -> Bare:
            return self

        async def __anext__(self) -> int:
            return 1

    async with await Stream.open(Bare()) as stream:
        assert await anext(stream) == 1


@scenario
async def test_closing_drops_what_was_not_handed_out() -> None:
    stream = Stream(Callee([3]).stream(), head=deque([1, 2]))
    assert await anext(stream) == 1
    await stream.aclose()
    assert [item async for item in stream] == []


@scenario
async def test_items_handed_out_are_seen_by_the_terminal() -> None:
    seen: list[int] = []
    stream, _, _ = await opened(1, 2, 3)
    stream.observe(seen.append)
    assert await anext(stream) == 1
    assert seen == [1]
    assert await anext(stream) == 2
    assert seen == [1, 2]
    await stream.aclose()
    assert seen == [1, 2]


# --- dropped -------------------------------------------------------------------------------------------


@scenario
async def test_a_dropped_stream_is_settled_as_neutral_with_a_warning() -> None:
    stream, settled, callee = await opened(1, 2)
    await anext(stream)
    with pytest.warns(ResourceWarning, match="without being closed"):
        del stream
    assert settled.causes == []  # only scheduled: the collector may run anywhere
    await asyncio.sleep(0)
    assert settled.how == "neutral"
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert callee.closed == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@scenario
async def test_a_dropped_stream_is_settled_even_if_warnings_are_errors() -> None:
    stream, settled, _ = await opened(1, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del stream
        gc.collect()
    await asyncio.sleep(0)
    assert settled.how == "neutral"


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_stream_dropped_after_its_loop_does_nothing() -> None:
    kept: list[Any] = []
    settled = Settled()

    async def main() -> None:
        stream, _, _ = await opened(1, 2)
        stream.on_settle(settled)
        kept.append(stream)

    run(main)
    kept.clear()
    gc.collect()
    assert settled.causes == []


@scenario
async def test_a_stream_that_ended_is_dropped_in_silence() -> None:
    stream, settled, _ = await opened(1)
    assert [item async for item in stream] == [1]
    del stream
    gc.collect()
    assert settled.how == "success"


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@scenario
async def test_a_dropped_source_that_cannot_be_closed_troubles_nobody() -> None:
    problems: list[Any] = []
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    loop.set_exception_handler(lambda _, context: problems.append(context))
    stream = await Stream.open(Badly(1, 2))
    del stream
    gc.collect()
    await asyncio.sleep(1)
    gc.collect()
    await asyncio.sleep(1)
    assert problems == []


# --- nested --------------------------------------------------------------------------------------------


@scenario
async def test_a_stream_handed_on_by_an_inner_pipeline_counts_for_the_inner_target_only() -> None:
    inner_breaker = CircuitBreaker(failure_threshold=1)
    outer_breaker = CircuitBreaker(failure_threshold=1)
    inner = Observed(Timeout(), inner_breaker, target="inner")
    outer = Observed(Timeout(), outer_breaker, target="outer")
    error = TransientError("x")

    async def function() -> Any:
        return await inner.pipeline.send(inner.pipeline.new_call(Callee([1, error]).stream, True))

    assert await outer.broken_stream(function) == ([1], error)
    assert inner_breaker.state("inner") == "open"
    assert outer_breaker.state("outer") == "closed"
    assert inner.record.errors == [error]


@scenario
async def test_a_nested_stream_outlives_the_limit_of_the_attempt_that_opened_it() -> None:
    """After the commit point the outer attempt's limit is gone, for the inner stream as well."""
    inner = Observed(Timeout(attempt=60, idle=60), target="inner")
    outer = Observed(Timeout(attempt=10, idle=60), target="outer", deadline=100)

    async def relay() -> AsyncIterator[Any]:
        async with inner.stream(Callee([1, Slow(8, 2), Slow(8, 3)]).stream) as stream:
            async for item in stream:
                yield item

    assert await outer.collect(relay) == [1, 2, 3]
    assert now() == 16.0


@scenario
async def test_a_nested_stream_ends_with_the_outer_calls_deadline() -> None:
    inner = Observed(Timeout(attempt=60), target="inner")
    outer = Observed(Timeout(attempt=10), target="outer", deadline=20)

    async def relay() -> AsyncIterator[Any]:
        async with inner.stream(Callee([1, Slow(8, 2), HANG]).stream) as stream:
            async for item in stream:
                yield item

    got, error = await outer.broken_stream(relay)
    assert got == [1, 2]
    assert isinstance(error, TimeoutError)
    assert now() == 20.0


@pytest.mark.parametrize("limits", [{}, {"idle": 5.0}])
@scenario
async def test_a_stream_may_be_read_by_another_task_than_the_one_that_opened_it(
    limits: dict[str, Any],
) -> None:
    breaker = CircuitBreaker(failure_threshold=1)
    seen = Observed(Timeout(attempt=10, **limits), breaker, deadline=100)
    stream: Stream[Any] = await seen.pipeline.send(
        seen.pipeline.new_call(Callee([1, Slow(3, 2), Slow(3, 3), HANG]).stream, True)
    )

    async def read(count: int) -> list[Any]:
        return [await anext(stream) for _ in range(count)]

    assert await asyncio.create_task(read(2)) == [1, 2]
    assert await asyncio.create_task(read(1)) == [3]
    with pytest.raises(TimeoutError):
        await asyncio.create_task(read(1))
    assert now() == (11.0 if limits else 100.0)
    assert breaker.state("a") == ("open" if limits else "closed")


@pytest.mark.parametrize(
    ("idle", "waited", "state"), [(10, 6, "open"), (10, 5, "open"), (10, 4, "closed"), (None, 90, "closed")]
)
@scenario
async def test_the_deadline_of_a_committed_stream_counts_from_half_of_its_idle_limit(
    idle: float | None, waited: float, state: str
) -> None:
    """A stream whose items kept coming is not to blame for a deadline, nor for a consumer that took its time."""
    breaker = CircuitBreaker(failure_threshold=1)
    seen = Observed(Timeout(attempt=60, idle=idle), breaker, deadline=100)
    async with seen.stream(Callee([1, 2, HANG]).stream) as stream:
        assert await anext(stream) == 1
        await asyncio.sleep(100 - waited)
        assert await anext(stream) == 2
        with pytest.raises(DeadlineExceeded) as caught:
            await anext(stream)
    assert caught.value.ran == (0.0 if idle is None else waited / idle)
    assert breaker.state("a") == state


@scenario
async def test_a_stream_in_a_run_ends_with_the_run() -> None:
    class OneRun:
        id = "run"
        deadline = 5.0

        def observe(self, call: Any, entry: Any) -> None: ...

        def collect(self, call: Any) -> None: ...

    token = RUN.set(OneRun())
    try:
        got, error = await Observed(Timeout(), deadline=50).broken_stream(
            Callee([1, Slow(3, 2), HANG]).stream
        )
    finally:
        RUN.reset(token)
    assert got == [1, 2]
    assert isinstance(error, DeadlineExceeded)
    assert error.scope == "run"
    assert now() == 5.0


@scenario
async def test_the_innermost_limit_of_pulls_is_the_one_that_counts() -> None:
    """A stream that an inner pipeline hands on keeps the inner idle limit."""
    inner = Observed(Timeout(idle=3), target="inner")
    outer = Observed(Timeout(idle=30), target="outer")

    async def function() -> Any:
        return await inner.pipeline.send(inner.pipeline.new_call(Callee([1, HANG]).stream, True))

    got, error = await outer.broken_stream(function)
    assert got == [1]
    assert isinstance(error, AttemptTimeout)
    assert error.seconds == 3.0
