"""A caller's cancellation is never retried, converted, counted or swallowed, wherever it strikes."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from typing import Any

import pytest

from agentrt.call import Attempt
from agentrt.errors import AttemptTimeout, CircuitOpen, ThrottledError, TransientError
from agentrt.middleware.bulkhead import Bulkhead
from agentrt.middleware.circuit_breaker import CircuitBreaker
from agentrt.middleware.fallback import Fallback
from agentrt.middleware.pace import Pace
from agentrt.middleware.rate_limit import RateLimit
from agentrt.middleware.retry import Retry
from agentrt.middleware.throttle import Throttle
from agentrt.middleware.timeout import Timeout
from agentrt.testing import run
from pipeline.doubles import HANG, Callee, Observed, Slow, entries, leaves_nothing, now, scenario


class Everything(Observed):
    """All built-in stages, with a second target and a default that must never be used here."""

    def __init__(self, **options: Any) -> None:
        self.backup = Callee("backup", name="backup")
        self.breaker = CircuitBreaker(failure_threshold=1)
        self.bulkhead = Bulkhead(limit=1, queue=5)
        super().__init__(
            Timeout(attempt=10, idle=5),
            self.breaker,
            self.bulkhead,
            Pace(rate=1, per=1),
            Throttle(random=lambda: 0.0),
            RateLimit(limit=2, window=1, max_wait=5),
            Retry(initial_delay=2, jitter="none"),
            Fallback(self.backup, default="default"),
            idempotent=True,
            **options,
        )


async def cancelled_at(seconds: float, work: Any) -> asyncio.Task[Any]:
    """Start `work` as a task and cancel it after `seconds`; it must end as cancelled."""
    task = asyncio.create_task(work)
    await asyncio.sleep(seconds)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    return task


@scenario
async def test_in_the_callee() -> None:
    seen = Everything()
    callee = Callee(HANG)
    await cancelled_at(3, seen.call(callee))
    assert callee.cancelled == [3.0]
    assert now() == 3.0
    assert (callee.calls, seen.backup.calls) == (1, 0)
    assert seen.breaker.state("a") == "closed"
    assert seen.bulkhead.running("a") == 0
    assert isinstance(seen.record.error, asyncio.CancelledError)


@scenario
async def test_in_a_backoff() -> None:
    seen = Observed(Retry(initial_delay=10, jitter="none"), Fallback("b", default="d"), idempotent=True)
    callee = Callee(TransientError("x"))
    await cancelled_at(3, seen.call(callee))
    assert callee.calls == 1
    assert now() == 3.0


@scenario
async def test_in_the_queue_of_a_bulkhead() -> None:
    seen = Everything()
    holder = asyncio.create_task(seen.call(Callee(Slow(5, "held"))))
    await asyncio.sleep(1)
    callee = Callee("never")
    await cancelled_at(1, seen.call(callee))
    assert callee.calls == 0
    assert seen.bulkhead.waiting("a") == 0
    assert await holder == "held"
    assert seen.bulkhead.running("a") == 0


@scenario
async def test_while_waiting_for_its_turn() -> None:
    seen = Everything()
    assert await seen.call(Callee("first")) == "first"
    callee = Callee("never")
    await cancelled_at(0.5, seen.call(callee))
    assert callee.calls == 0
    # It lost nothing of anybody else's: the next turn comes at 1 s.
    assert await seen.call(Callee("second")) == "second"
    assert now() == 1.0


@scenario
async def test_at_a_closed_gate() -> None:
    seen = Observed(Throttle(random=lambda: 0.0), Retry(), Fallback("b", default="d"), idempotent=True)
    callee = Callee(ThrottledError("slow down", retry_after=20))
    await cancelled_at(5, seen.call(callee))
    assert callee.calls == 1
    assert now() == 5.0


@scenario
async def test_between_two_targets() -> None:
    seen = Observed(Timeout(attempt=2), Fallback("b", default="d"), idempotent=True)
    callee = Callee(HANG)
    await cancelled_at(3, seen.call(callee))
    assert len(callee.started) == 2


@scenario
async def test_in_a_default_function() -> None:
    async def default(error: BaseException) -> str:
        await asyncio.sleep(100)
        return "never"

    seen = Observed(Fallback(default=default), idempotent=True)
    await cancelled_at(3, seen.call(Callee(TransientError("x"))))


@scenario
async def test_before_the_call_has_begun() -> None:
    seen = Everything()
    callee = Callee("never")
    task = asyncio.create_task(seen.call(callee))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert callee.calls == 0
    assert seen.bulkhead.running("a") == 0


@pytest.mark.parametrize("order", ["caller first", "limit first"])
@scenario
async def test_in_the_same_tick_as_our_timer(order: str) -> None:
    seen = Everything()
    callee = Callee(HANG)
    loop = asyncio.get_running_loop()
    task: asyncio.Task[Any] | None = None

    def cancel() -> None:
        assert task is not None
        task.cancel()

    if order == "caller first":
        loop.call_at(10.0, cancel)
    task = asyncio.create_task(seen.call(callee))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    if order == "limit first":
        loop.call_at(10.0, cancel)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (callee.calls, seen.backup.calls) == (1, 0)
    assert seen.breaker.state("a") == "closed"


@scenario
async def test_one_tick_after_our_timer_while_the_cleanup_runs() -> None:
    async def callee() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(5)

    seen = Everything()
    await cancelled_at(12, seen.call(callee))
    assert now() == 12.0
    assert seen.backup.calls == 0
    assert seen.breaker.state("a") == "closed"


@pytest.mark.parametrize("idempotent", [True, False])
@scenario
async def test_a_cleanup_that_raises_does_not_hide_it(idempotent: bool) -> None:
    problem = TransientError("cleanup")
    starts = []

    async def callee() -> None:
        starts.append(now())
        try:
            await asyncio.sleep(100)
        finally:
            raise problem

    seen = Everything()
    seen.pipeline.idempotent = idempotent
    task = await cancelled_at(3, seen.call(callee))
    assert starts == [0.0]
    assert seen.backup.calls == 0
    assert seen.breaker.state("a") == "closed"
    assert task.cancelled()
    assert seen.record.error is not None
    assert seen.record.error.__cause__ is problem
    assert [attempt.error for attempt in entries(seen.record, Attempt)] == [problem]


@scenario
async def test_a_users_stage_whose_cleanup_raises_does_not_hide_it_from_retry_and_fallback() -> None:
    """The user's stage stands between the timeout and retry, so the timeout stage cannot tell whose error it is."""

    async def careless(call: Any, call_next: Any) -> Any:
        try:
            return await call_next(call)
        finally:
            raise TransientError("cleanup of a middleware")

    backup, callee = Callee("backup"), Callee(HANG)
    seen = Observed(
        Timeout(), careless, Retry(initial_delay=0), Fallback(backup, default="d"), idempotent=True
    )
    await cancelled_at(3, seen.call(callee))
    assert (callee.calls, backup.calls) == (1, 0)


@scenario
async def test_a_users_stage_that_is_cancelled_in_a_wait_of_its_own_does_not_hide_it() -> None:
    async def careless(call: Any, call_next: Any) -> Any:
        try:
            await asyncio.sleep(100)
        finally:
            raise TransientError("cleanup of a middleware")

    backup, callee = Callee("backup"), Callee(HANG)
    seen = Observed(
        Timeout(), careless, Retry(initial_delay=0), Fallback(backup, default="d"), idempotent=True
    )
    await cancelled_at(3, seen.call(callee))
    assert (callee.calls, backup.calls) == (0, 0)


@scenario
async def test_a_call_made_in_a_cleanup_is_still_retried() -> None:
    """A task that is being cancelled may have to undo something through the pipeline."""
    seen = Observed(Timeout(attempt=5), Retry(initial_delay=1, jitter="none"), idempotent=True)
    undo = Callee(TransientError("x"), HANG, "undone")
    results = []

    async def work() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            results.append(await seen.call(undo))

    await cancelled_at(3, work())
    assert results == ["undone"]
    assert undo.calls == 3


@scenario
async def test_a_call_that_is_refused_in_a_cleanup_is_refused_and_moves_on() -> None:
    breaker = CircuitBreaker()
    breaker.isolate("a")
    results: list[Any] = []

    async def work(seen: Observed) -> None:
        try:
            await asyncio.sleep(100)
        finally:
            results.append(await seen.failure(Callee("never")))
            fallback = seen.pipeline.replace(Fallback(Callee("backup")))
            results.append(await fallback.call(Callee("never")))

    await cancelled_at(3, work(Observed(Timeout(), breaker, Retry())))
    assert isinstance(results[0], CircuitOpen)
    assert results[1] == "backup"


@scenario
async def test_a_second_cancellation_cuts_a_slow_cleanup() -> None:
    async def callee() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(50)

    task = asyncio.create_task(Everything().call(callee))
    await asyncio.sleep(3)
    task.cancel()
    await asyncio.sleep(3)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert now() == 6.0


@scenario
async def test_our_limit_does_not_cut_the_cleanup_after_a_cancellation() -> None:
    cleaned = []

    async def callee() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(50)
            cleaned.append(now())

    await cancelled_at(3, Everything(deadline=40).call(callee))
    assert cleaned == [pytest.approx(53.0)]


@scenario
async def test_a_callee_that_swallows_it_and_returns_gives_its_value() -> None:
    async def callee() -> str:
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            pass
        return "value"

    task = asyncio.create_task(Everything().call(callee))
    await asyncio.sleep(3)
    task.cancel()
    assert await task == "value"


@pytest.mark.parametrize(
    "how",
    [
        lambda: asyncio.CancelledError(),
        lambda: asyncio.CancelledError("with a message"),
    ],
)
@scenario
async def test_a_callee_that_raises_it_itself_is_let_through_and_counts_neither_way(
    how: Callable[[], BaseException],
) -> None:
    seen = Everything()
    error = how()
    with pytest.raises(asyncio.CancelledError) as caught:
        await seen.call(Callee(error))
    assert caught.value is error
    assert seen.backup.calls == 0
    assert seen.breaker.state("a") == "closed"
    assert await seen.call(Callee("next")) == "next"


@scenario
async def test_a_callee_that_waits_for_a_cancelled_task_is_let_through() -> None:
    other = asyncio.create_task(asyncio.sleep(100))
    other.cancel()
    seen = Everything()

    async def callee() -> None:
        await other

    with pytest.raises(asyncio.CancelledError):
        await seen.call(callee)
    assert seen.backup.calls == 0


@scenario
async def test_a_callee_that_cancels_its_own_task_is_cancelled() -> None:
    seen = Everything()

    async def callee() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(100)

    task = asyncio.create_task(seen.call(callee))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen.breaker.state("a") == "closed"


@scenario
async def test_an_asyncio_timeout_around_the_call_works_and_counts_neither_way() -> None:
    seen = Everything()
    callee = Callee(HANG)
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(4):
            await seen.call(callee)
    assert not isinstance(caught.value, AttemptTimeout)
    assert callee.cancelled == [4.0]
    assert seen.breaker.state("a") == "closed"
    assert seen.backup.calls == 0


@pytest.mark.parametrize("seconds", [9.0, 10.0, 11.0])
@scenario
async def test_an_asyncio_timeout_beside_our_limit_leaves_nothing_stale(seconds: float) -> None:
    seen = Observed(Timeout(attempt=10))
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(seconds):
                await seen.call(Callee(HANG))
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)


@scenario
async def test_a_failing_sibling_in_a_task_group_cancels_the_call() -> None:
    seen = Everything()
    callee = Callee(HANG)

    async def fail() -> None:
        await asyncio.sleep(3)
        raise ValueError("sibling")

    async def both() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(seen.call(callee))
            group.create_task(fail())

    # In a task of its own: before 3.13 a group may leave its task marked as being cancelled.
    with pytest.raises(ExceptionGroup) as caught:
        await asyncio.create_task(both())
    assert [type(error) for error in caught.value.exceptions] == [ValueError]
    assert callee.cancelled == [3.0]
    assert seen.breaker.state("a") == "closed"


@scenario
async def test_a_task_group_inside_a_callee_that_meets_our_limit_is_a_timeout() -> None:
    async def callee() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(100))
            group.create_task(asyncio.sleep(100))

    error = await Observed(Timeout(attempt=10)).failure(callee)
    assert isinstance(error, AttemptTimeout)


@scenario
async def test_keyboard_interrupt_and_system_exit_pass_unchanged() -> None:
    """Neither retried nor counted; asyncio itself cannot be asked to carry on after them in a task."""
    seen = Everything()

    class Stop(BaseException):
        pass

    stop = Stop()
    with pytest.raises(Stop) as caught:
        await seen.call(Callee(stop))
    assert caught.value is stop
    assert seen.backup.calls == 0
    assert seen.breaker.state("a") == "closed"
    assert seen.bulkhead.running("a") == 0


# --- at every await ------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True], ids=["value", "stream"])
@scenario
async def test_at_every_moment_of_a_long_story(streamed: bool) -> None:
    """One call goes through every wait there is; it is cancelled at each quarter of a second of its life."""

    async def story(until: float | None) -> float:
        seen = Everything(deadline=1000)
        # Somebody else holds the bulkhead and the turn at first.
        other = asyncio.create_task(seen.call(Callee(Slow(2, "other"))))
        await asyncio.sleep(0)
        last = [Slow(1, 1), Slow(1, 2)] if streamed else Slow(1, "value")
        wrap: Callable[[Any], Any] = (lambda x: [x]) if streamed else (lambda x: x)
        callee = Callee(
            wrap(Slow(1, ThrottledError("x", retry_after=3))),
            wrap(Slow(1, ThrottledError("x", retry_after=2))),
            last,
        )
        began = now()
        work = seen.collect(callee.stream) if streamed else seen.call(callee)
        task = asyncio.create_task(work)
        if until is None:
            assert await task == ([1, 2] if streamed else "value")
        else:
            await asyncio.sleep(until)
            if not task.done():
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert now() == began + until
        took = now() - began
        await other
        assert seen.backup.calls == 0
        assert seen.bulkhead.running("a") == seen.bulkhead.waiting("a") == 0
        assert seen.breaker.state("a") == "closed"
        # Nothing is wedged: the same pipeline serves the next call.
        assert await seen.call(Callee("again")) == "again"
        return took

    whole = await story(None)
    moment = 0.0
    while moment < whole:
        await story(moment)
        moment += 0.25


def test_a_call_whose_coroutine_is_closed_in_a_foreign_context_leaves_no_limit() -> None:
    """As the garbage collector does with what a loop left behind."""

    async def main() -> None:
        task = asyncio.current_task()
        seen = Observed(Timeout(attempt=10), CircuitBreaker(failure_threshold=1))
        coroutine: Any = seen.call(Callee(HANG))
        contextvars.copy_context().run(coroutine.send, None)
        coroutine.close()
        await leaves_nothing()
        assert task is asyncio.current_task()

    run(main)


EAGER: Any = getattr(asyncio, "eager_task_factory", None)  # since Python 3.12


@pytest.mark.parametrize(
    "factory", [None, *([EAGER] if EAGER else [])], ids=["usual", "eager"][: 2 if EAGER else 1]
)
@scenario
async def test_eager_tasks_are_limited_and_cancelled_like_others(factory: Any) -> None:
    loop = asyncio.get_running_loop()
    loop.set_task_factory(factory)
    seen = Everything()
    assert await loop.create_task(seen.call(Callee("at once"))) == "at once"
    callee = Callee(HANG)
    task = loop.create_task(seen.call(callee))
    await asyncio.sleep(3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    error = await loop.create_task(Observed(Timeout(attempt=10)).failure(Callee(HANG)))
    assert isinstance(error, AttemptTimeout)
    loop.set_task_factory(None)


def test_all_this_holds_in_debug_mode_too() -> None:
    async def main() -> None:
        seen = Everything()
        assert await seen.call(Callee(Slow(3, "ok"))) == "ok"
        await cancelled_at(3, seen.call(Callee(HANG)))
        assert isinstance(await Observed(Timeout(attempt=10)).failure(Callee(HANG)), AttemptTimeout)
        await leaves_nothing()

    run(main, debug=True)
