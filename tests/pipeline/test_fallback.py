"""Fallback: the next target, a default, shares of the time, and the causes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agentrt.call import RUN, DefaultServed, TargetChange
from agentrt.errors import (
    AttemptTimeout,
    BulkheadFull,
    CircuitOpen,
    ConfigError,
    DeadlineExceeded,
    PermanentError,
    TransientError,
)
from agentrt.middleware.bulkhead import Bulkhead
from agentrt.middleware.circuit_breaker import CircuitBreaker
from agentrt.middleware.fallback import Fallback
from agentrt.middleware.retry import Retry
from agentrt.middleware.timeout import Timeout
from agentrt.pipeline import Pipeline
from agentrt.stream import Stream
from pipeline.doubles import HANG, Callee, Observed, Slow, entries, now, scenario


@scenario
async def test_a_success_needs_no_fallback() -> None:
    backup = Callee("b")
    seen = Observed(Fallback(backup, default="d"), idempotent=True)
    assert await seen.call(Callee("ok")) == "ok"
    assert backup.calls == 0
    assert not seen.record.degraded


@scenario
async def test_targets_are_tried_in_order_until_one_serves() -> None:
    errors = [TransientError("1"), TransientError("2")]
    second, third, fourth = Callee(errors[1], name="second"), Callee("third", name="third"), Callee("no")
    seen = Observed(Fallback(second, third, fourth), idempotent=True)
    assert await seen.call(Callee(errors[0])) == "third"
    assert fourth.calls == 0
    record = seen.record
    assert record.degraded
    assert record.errors == errors
    assert [(c.old, c.new, c.error) for c in entries(record, TargetChange)] == [
        ("a", "second", errors[0]),
        ("second", "third", errors[1]),
    ]
    assert [(a.target, a.error) for a in record.attempts] == [
        ("a", errors[0]),
        ("second", errors[1]),
        ("third", None),
    ]


@scenario
async def test_functions_are_called_with_the_same_arguments() -> None:
    async def fail(*args: Any) -> Any:
        raise TransientError("x")

    async def backup(*args: Any) -> Any:
        return args

    assert await Observed(Fallback(backup), idempotent=True).call(fail, 1, "two") == (1, "two")


@scenario
async def test_names_go_to_the_terminal_as_targets() -> None:
    async def terminal(call: Any) -> Any:
        if call.target != "gamma":
            raise TransientError(call.target)
        return f"{call.request} from {call.target}"

    pipeline = Pipeline(
        inner_first=[Fallback("beta", "gamma")], target="alpha", idempotent=True, terminal=terminal
    )
    assert await pipeline.send(pipeline.new_call("hello")) == "hello from gamma"


@scenario
async def test_when_all_fail_the_last_real_failure_is_raised_with_the_others_as_notes() -> None:
    errors = [TransientError("first"), ConnectionError("second"), TransientError("third")]
    seen = Observed(Fallback(Callee(errors[1], name="b"), Callee(errors[2], name="c")), idempotent=True)
    assert await seen.failure(Callee(errors[0])) is errors[2]
    assert errors[2].__notes__ == [
        "also failed: a: TransientError: first",
        "also failed: b: ConnectionError: second",
    ]
    assert seen.record.errors == errors


@scenario
async def test_a_refusal_is_raised_only_if_nothing_was_tried() -> None:
    breaker = CircuitBreaker()
    breaker.isolate("b")
    real = TransientError("real")
    seen = Observed(breaker, Fallback(Callee("never", name="b")), idempotent=True)
    assert await seen.failure(Callee(real)) is real
    assert any("CircuitOpen" in note for note in real.__notes__)
    breaker.isolate("a")
    assert isinstance(await seen.failure(Callee("never")), CircuitOpen)
    assert [type(error) for error in seen.record.errors] == [CircuitOpen, CircuitOpen]


@scenario
async def test_a_failure_before_a_refusal_on_the_same_target_is_not_lost() -> None:
    """The circuit opens during the backoff, and the next target refuses as well: the real failure comes out."""
    breaker = CircuitBreaker()
    breaker.isolate("b")
    real = TransientError("real")
    seen = Observed(
        breaker,
        Retry(initial_delay=5, jitter="none"),
        Fallback(Callee("never", name="b")),
        idempotent=True,
    )
    task = asyncio.create_task(seen.failure(Callee(real)))
    await asyncio.sleep(1)
    breaker.isolate("a")
    assert await task is real


@scenario
async def test_the_first_error_that_allows_no_next_target_stops_the_chain() -> None:
    bug = ValueError("bug")
    third = Callee("never")
    seen = Observed(Fallback(Callee(bug), third), idempotent=True)
    assert await seen.failure(Callee(TransientError("x"))) is bug
    assert third.calls == 0
    assert bug.__notes__ == ["also failed: a: TransientError: x"]


@pytest.mark.parametrize(
    "on",
    [KeyError, (KeyError, OSError), lambda e: isinstance(e, KeyError)],
    ids=["type", "tuple", "function"],
)
@scenario
async def test_on_names_errors_for_which_the_next_target_is_taken_too(on: Any) -> None:
    assert await Observed(Fallback(Callee("b"), on=on), idempotent=True).call(Callee(KeyError("x"))) == "b"
    assert await Observed(Fallback(default="d", on=on), idempotent=True).call(Callee(KeyError("x"))) == "d"
    bug = ValueError("x")
    assert await Observed(Fallback(Callee("b"), on=on), idempotent=True).failure(Callee(bug)) is bug


@scenario
async def test_on_does_not_override_the_rule_on_effects() -> None:
    error = KeyError("x")
    assert await Observed(Fallback(Callee("b"), on=KeyError)).failure(Callee(error)) is error


@scenario
async def test_on_everything_still_lets_a_cancellation_through() -> None:
    seen = Observed(Fallback(Callee("b"), default="d", on=BaseException), idempotent=True)
    with pytest.raises(asyncio.CancelledError):
        await seen.call(Callee(asyncio.CancelledError()))


@scenario
async def test_giving_up_on_a_target_is_logged_a_wrong_key_as_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    await Observed(Fallback(Callee("b", name="b")), idempotent=True).call(Callee(TransientError("down")))
    wrong = PermanentError("wrong key", fault="target")
    await Observed(Fallback(default="d"), idempotent=True).call(Callee(wrong))
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [
        (logging.WARNING, "a failed (TransientError: down), going on with b"),
        (logging.ERROR, "a failed (PermanentError: wrong key), going on with the default"),
    ]


# --- defaults ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["default", None, False, 0, ()])
@scenario
async def test_any_value_can_be_the_default(value: Any) -> None:
    seen = Observed(Fallback(default=value), idempotent=True)
    error = TransientError("x")
    assert await seen.call(Callee(error)) is value
    assert seen.record.degraded
    assert [served.error for served in entries(seen.record, DefaultServed)] == [error]
    assert seen.record.error is None


@scenario
async def test_a_default_function_may_be_sync_or_async_and_gets_the_last_error() -> None:
    last = TransientError("last")
    got: list[BaseException] = []

    async def later(error: BaseException) -> str:
        got.append(error)
        await asyncio.sleep(1)
        return "async"

    def at_once(error: BaseException) -> str:
        got.append(error)
        return "sync"

    first = Callee(TransientError("first"))
    assert await Observed(Fallback(Callee(last), default=later), idempotent=True).call(first) == "async"
    assert await Observed(Fallback(Callee(last), default=at_once), idempotent=True).call(first) == "sync"
    assert got == [last, last]


@scenario
async def test_an_error_of_a_default_function_comes_out_with_the_failure_as_its_context() -> None:
    problem, real = KeyError("default"), TransientError("real")

    def default(error: BaseException) -> None:
        raise problem

    seen = Observed(Fallback(default=default), idempotent=True)
    assert await seen.failure(Callee(real)) is problem
    assert problem.__context__ is real
    assert seen.record.errors == [real]


@scenario
async def test_a_default_value_after_a_refusal_costs_no_time() -> None:
    seen = Observed(Timeout(), Bulkhead(limit=1), Fallback(default="busy"))
    holder = asyncio.create_task(seen.call(Callee(Slow(5, "held"))))
    await asyncio.sleep(1)
    assert await seen.call(Callee("never")) == "busy"
    assert now() == 1.0
    assert await holder == "held"


@scenario
async def test_no_default_for_a_call_in_doubt() -> None:
    error = TransientError("x")
    assert await Observed(Fallback(default="d"), idempotent=False).failure(Callee(error)) is error
    timed_out = await Observed(Timeout(attempt=1), Fallback(default="d")).failure(Callee(HANG))
    assert isinstance(timed_out, AttemptTimeout)
    deadline = await Observed(Timeout(), Fallback(default="d"), deadline=1).failure(Callee(HANG))
    assert isinstance(deadline, DeadlineExceeded)


@scenario
async def test_a_default_function_is_bounded_by_the_deadline() -> None:
    async def slow(error: BaseException) -> str:
        await asyncio.sleep(1000)
        return "never"

    seen = Observed(Timeout(), Fallback(default=slow), idempotent=True, deadline=10)
    error = await seen.failure(Callee(TransientError("x")))
    assert isinstance(error, DeadlineExceeded)
    assert now() == 10.0


@scenario
async def test_a_default_functions_own_timeout_is_its_own() -> None:
    own = TimeoutError("its own")

    async def default(error: BaseException) -> None:
        await asyncio.sleep(1)
        raise own

    seen = Observed(Timeout(), Fallback(default=default), idempotent=True, deadline=200)
    assert await seen.failure(Callee(TransientError("x"))) is own


# --- shares --------------------------------------------------------------------------------------------


async def shares(*stages: Any, **options: Any) -> list[float]:
    """The share of each turn, as seconds from the start of the call."""
    got: list[float] = []
    began = now()

    async def look(call: Any, call_next: Any) -> Any:
        got.append(call.share - began)
        return await call_next(call)

    seen = Observed(look, *stages, **({"idempotent": True, "deadline": 100} | options))
    await asyncio.gather(seen.call(Callee(TransientError("x"))), return_exceptions=True)
    return got


def failing(name: str) -> Callee:
    return Callee(TransientError("x"), name=name)


@scenario
async def test_each_turn_gets_half_of_what_is_left_while_another_follows() -> None:
    assert await shares(Fallback(failing("b"), failing("c"))) == [50.0, 50.0, 100.0]
    assert await shares(Fallback(failing("b"))) == [50.0, 100.0]
    assert await shares(Fallback(default=lambda e: 0)) == [50.0]
    assert await shares(Fallback(failing("b"), default=lambda e: 0)) == [50.0, 50.0]
    assert await shares(Fallback(default="value")) == [100.0]


@scenario
async def test_a_call_that_may_not_be_tried_elsewhere_has_the_whole() -> None:
    assert await shares(Fallback(failing("b")), idempotent=False) == [100.0]


@scenario
async def test_without_a_deadline_there_is_nothing_to_share() -> None:
    assert await shares(Fallback(failing("b")), deadline=None) == [float("inf"), float("inf")]


@scenario
async def test_a_target_whose_circuit_is_open_does_not_count_as_available() -> None:
    breaker = CircuitBreaker()
    breaker.isolate("b")
    # What is refused never gets as far as the stage that looks.
    assert await shares(breaker, Fallback(failing("b"))) == [100.0]
    assert await shares(breaker, Fallback(failing("b"), failing("c"))) == [50.0, 100.0]
    breaker.close("b")
    breaker.isolate("c")
    assert await shares(breaker, Fallback(failing("b"), failing("c"))) == [50.0, 100.0]


@scenario
async def test_a_circuit_due_for_a_probe_counts_as_available() -> None:
    breaker = CircuitBreaker(failure_threshold=1, reset_timeout=30)
    await Observed(breaker, target="b").failure(Callee(TransientError("x")))
    assert await shares(breaker, Fallback(Callee("x", name="b"))) == [100.0]
    await asyncio.sleep(30)
    assert await shares(breaker, Fallback(Callee("x", name="b"))) == [50.0, 100.0]


@scenario
async def test_a_share_covers_all_attempts_and_waits_on_its_target() -> None:
    callee, backup = Callee(Slow(3, TransientError("x"))), Callee("b")
    seen = Observed(
        Timeout(attempt=4),
        Retry(initial_delay=2, backoff="constant", jitter="none", max_attempts=100),
        Fallback(backup),
        idempotent=True,
        deadline=30,
    )
    assert await seen.call(callee) == "b"
    assert callee.started == [0.0, 5.0, 10.0]
    assert backup.started == [13.0]  # the next wait would end at the share, 15 s


@scenario
async def test_a_queue_wait_ends_with_the_share_as_its_own_refusal() -> None:
    seen = Observed(
        Timeout(attempt=None), Bulkhead(limit=1, queue=5), Fallback(Callee("b")), idempotent=True, deadline=10
    )
    plain = Observed(Timeout(attempt=None), *seen.pipeline.stages[1:2])
    holder = asyncio.create_task(plain.call(Callee(Slow(20, "held"))))
    await asyncio.sleep(0)
    assert await seen.call(Callee("never")) == "b"
    assert now() == 5.0
    assert [type(error) for error in seen.record.errors] == [BulkheadFull]
    await holder


@pytest.mark.parametrize("of_run", [False, True])
@scenario
async def test_a_queue_wait_that_meets_the_deadline_is_the_deadline(of_run: bool) -> None:
    class OneRun:
        id = "run"
        deadline = 10.0

        def observe(self, call: Any, entry: Any) -> None: ...

    bulkhead = Bulkhead(limit=1, queue=5)
    holder = asyncio.create_task(Observed(Timeout(attempt=None), bulkhead).call(Callee(Slow(20, "held"))))
    await asyncio.sleep(0)
    if of_run:
        token = RUN.set(OneRun())
        # Nothing was done, but after the run's deadline not even a default value is served.
        seen = Observed(Timeout(), bulkhead, Fallback(default="late"))
        error = await seen.failure(Callee("never"))
        RUN.reset(token)
    else:
        # Not idempotent, so its target has the whole deadline; afterwards a default function is too late.
        seen = Observed(Timeout(), bulkhead, Fallback(default=lambda e: "late"), deadline=10)
        error = await seen.failure(Callee("never"))
    assert isinstance(error, DeadlineExceeded)
    assert error.scope == ("run" if of_run else "call")
    assert error.executed is False
    assert now() == 10.0
    assert seen.record.errors == [error]
    await holder


# --- streams -------------------------------------------------------------------------------------------


@scenario
async def test_a_stream_falls_back_until_its_first_item() -> None:
    backup = Callee(["b1", "b2"], name="backup")
    callee = Callee([TransientError("before the first item")])
    seen = Observed(Fallback(backup.stream), idempotent=True)
    assert await seen.collect(callee.stream) == ["b1", "b2"]
    assert callee.closed == 1
    assert seen.record.degraded


@scenario
async def test_after_the_first_item_an_error_propagates_and_nothing_is_repeated() -> None:
    backup, error = Callee(["b"]), TransientError("mid-stream")
    seen = Observed(Retry(), Fallback(backup.stream, default="d"), idempotent=True)
    callee = Callee([1, 2, error])
    assert await seen.broken_stream(callee.stream) == ([1, 2], error)
    assert (callee.calls, backup.calls) == (1, 0)


@scenario
async def test_a_default_for_a_stream() -> None:
    async def items(error: BaseException) -> AsyncIterator[str]:
        yield "x"
        yield "y"

    async def opened(error: BaseException) -> Any:
        return await Stream.open(items(error))

    fail = Callee([TransientError("x")]).stream
    assert await Observed(Fallback(default="value"), idempotent=True).collect(fail) == ["value"]
    assert await Observed(Fallback(default=lambda e: "made"), idempotent=True).collect(fail) == ["made"]
    assert await Observed(Fallback(default=items), idempotent=True).collect(fail) == ["x", "y"]
    assert await Observed(Fallback(default=opened), idempotent=True).collect(fail) == ["x", "y"]

    class Endless:
        def __aiter__(self) -> AsyncIterator[str]:
            return items(ValueError())

    assert await Observed(Fallback(default=Endless()), idempotent=True).collect(fail) == ["x", "y"]


@scenario
async def test_a_streamed_default_settles_for_telemetry() -> None:
    seen = Observed(Fallback(default="value"), idempotent=True)
    async with seen.stream(Callee([TransientError("x")]).stream) as stream:
        assert not seen.calls
        assert [item async for item in stream] == ["value"]
    assert seen.record.degraded
    assert len(seen.calls) == 1


# --- options -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [None, 3, ["x"]])
def test_a_bad_target_is_refused(target: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        Fallback(target)
    assert str(caught.value) == f"a fallback target is a name or an async function, not {target!r}"


def test_a_bad_on_is_refused() -> None:
    with pytest.raises(ConfigError, match="on must be exception types or a function of the error, not 'x'"):
        Fallback("b", on="x")  # type: ignore[arg-type]


@scenario
async def test_a_function_as_target_needs_a_pipeline_of_functions() -> None:
    async def terminal(call: Any) -> Any:
        raise TransientError("x")

    pipeline = Pipeline(inner_first=[Fallback(Callee("b"))], idempotent=True, terminal=terminal)
    with pytest.raises(ConfigError, match="pipeline that calls functions"):
        await pipeline.send(pipeline.new_call({"not": "a function"}))
