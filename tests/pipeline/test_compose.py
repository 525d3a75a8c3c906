"""The composer: inlined and wrapped stages behave the same, and every position of the onion holds."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from agentrt.call import CircuitChange
from agentrt.errors import AttemptTimeout, CircuitOpen, PermanentError, ThrottledError, TransientError
from agentrt.middleware.bulkhead import Bulkhead
from agentrt.middleware.circuit_breaker import CircuitBreaker
from agentrt.middleware.fallback import Fallback
from agentrt.middleware.pace import Pace
from agentrt.middleware.rate_limit import RateLimit
from agentrt.middleware.retry import Retry
from agentrt.middleware.telemetry import Telemetry
from agentrt.middleware.throttle import Throttle
from agentrt.middleware.timeout import Timeout
from agentrt.pipeline import Pipeline
from agentrt.testing import run
from pipeline.doubles import HANG, Callee, Slow, entries, leaves_nothing, now, scenario

# --- both forms of a stage -----------------------------------------------------------------------------


class Wrapped:
    """A built-in stage as a user's wrapper would have it: only its `__call__`, at the same place.

    What its neighbours look for in it (an `available`, a gate) stays visible; its inlined form does not.
    """

    def __init__(self, stage: Any) -> None:
        self.stage = stage
        self.name = stage.name

    async def __call__(self, call: Any, call_next: Any, /) -> Any:
        return await self.stage(call, call_next)

    def __getattr__(self, name: str) -> Any:
        if name in ("inline", "stage"):
            raise AttributeError(name)
        return getattr(self.stage, name)


def as_function(stage: Any) -> Any:
    """The same as a plain async function with the stage's name."""

    async def wrapped(call: Any, call_next: Any) -> Any:
        return await stage(call, call_next)

    wrapped.name = stage.name  # type: ignore[attr-defined]
    return wrapped


async def stubborn() -> str:
    try:
        await asyncio.sleep(100)
    except asyncio.CancelledError:
        pass
    return "all the same"


async def bad_cleanup() -> None:
    try:
        await asyncio.sleep(100)
    finally:
        raise TransientError("cleanup")


async def slow_cleanup() -> None:
    try:
        await asyncio.sleep(100)
    finally:
        await asyncio.sleep(3)


async def stream_bad_cleanup() -> AsyncIterator[int]:
    yield 1
    try:
        await asyncio.sleep(100)
    finally:
        raise TransientError("cleanup")


VALUES: dict[str, Callable[[], Any]] = {
    "value": lambda: Callee("value"),
    "slow value": lambda: Callee(Slow(4, "value")),
    "transient": lambda: Callee(TransientError("x")),
    "transient, then a value": lambda: Callee(TransientError("x"), Slow(2, "value")),
    "foreign": lambda: Callee(ConnectionResetError("x")),
    "bug": lambda: Callee(ValueError("x")),
    "permanent": lambda: Callee(PermanentError("x")),
    "wrong key": lambda: Callee(PermanentError("x", fault="target")),
    "throttled": lambda: Callee(ThrottledError("x", retry_after=7), "value"),
    "open circuit of its own": lambda: Callee(CircuitOpen("x")),
    "hang": lambda: Callee(HANG),
    "hang, then a value": lambda: Callee(HANG, "value"),
    "stubborn": lambda: stubborn,
    "bad cleanup": lambda: bad_cleanup,
    "slow cleanup": lambda: slow_cleanup,
    "cancels itself": lambda: Callee(asyncio.CancelledError("self")),
}

STREAMS: dict[str, Callable[[], Any]] = {
    "items": lambda: Callee([1, Slow(2, 2), 3]),
    "empty": lambda: Callee([]),
    "error first": lambda: Callee([TransientError("x")]),
    "error first, then items": lambda: Callee([TransientError("x")], [1, 2]),
    "error in mid-stream": lambda: Callee([1, 2, TransientError("x")]),
    "bug in mid-stream": lambda: Callee([1, ValueError("x")]),
    "hang first": lambda: Callee([HANG]),
    "hang in mid-stream": lambda: Callee([1, HANG]),
    "slow first": lambda: Callee([Slow(4, 1), 2]),
    "bad cleanup in mid-stream": lambda: stream_bad_cleanup,
}


def default_set(collected: list[Any]) -> list[Any]:
    return [
        Timeout(attempt=10, first_item=8, idle=6),
        CircuitBreaker(failure_threshold=2, slow_call=3, reset_timeout=15),
        Retry(initial_delay=1, jitter="none", random=lambda: 0.0),
        Fallback("backup"),
        Telemetry(collect=collected.append),
    ]


def rated_set(collected: list[Any]) -> list[Any]:
    return [
        Timeout(attempt=10),
        CircuitBreaker(failure_rate=0.5, minimum_calls=2, window_calls=4, reset_timeout=15),
        Throttle(random=lambda: 0.0),
        Retry(initial_delay=1, jitter="none", random=lambda: 0.0, budget=None),
        Fallback(default=lambda error: "default"),
        Telemetry(collect=collected.append),
    ]


SETS: dict[str, Callable[[list[Any]], list[Any]]] = {
    "default": default_set,
    "rated": rated_set,
    "timeout": lambda collected: [Timeout(attempt=10, idle=6), Telemetry(collect=collected.append)],
    "breaker": lambda collected: [CircuitBreaker(failure_threshold=1), Telemetry(collect=collected.append)],
    "retry": lambda collected: [
        Retry(jitter="none", random=lambda: 0.0),
        Telemetry(collect=collected.append),
    ],
    "fallback": lambda collected: [Fallback(default="d"), Telemetry(collect=collected.append)],
}


def shown(error: BaseException | None) -> Any:
    return None if error is None else (type(error), str(error), type(error.__cause__))


def what_happened(call: Any) -> Any:
    record = call.record
    return (
        record.started,
        record.ended,
        record.first_item,
        shown(record.error),
        record.degraded,
        [
            (a.target, a.number, a.started, a.ended, shown(a.error), a.label and a.label.name)
            for a in record.attempts
        ],
        [(w.stage, w.started, w.seconds) for w in record.waits],
        [(c.old, c.new) for c in entries(record, CircuitChange)],
        [type(entry).__name__ for entry in record.entries],
    )


async def story(
    make: Any, wrap: Callable[[Any], Any], outcome: Any, cancel_at: float | None, stream: bool
) -> Any:
    """Four calls of one outcome, one after the other, and all that can be seen of them."""
    collected: list[Any] = []
    stages = make(collected)
    breakers = [stage for stage in stages if isinstance(stage, CircuitBreaker)]
    pipeline = Pipeline(
        inner_first=[wrap(stage) for stage in stages], target="a", idempotent=True, deadline=60
    )
    told: list[Any] = []
    for _ in range(4):
        callee = outcome()
        got: list[Any] = []

        async def one(callee: Any = callee, got: list[Any] = got) -> Any:
            if not stream:
                return await pipeline.call(callee)
            async with pipeline.stream(getattr(callee, "stream", callee)) as items:
                async for item in items:
                    got.append(item)  # noqa: PERF401 - what came before an error counts
            return "end"

        task = asyncio.create_task(one())
        if cancel_at is not None:
            asyncio.get_running_loop().call_later(cancel_at, task.cancel)
        await asyncio.wait([task])
        ending: Any = "cancelled" if task.cancelled() else task.exception()
        told.append(
            (
                now(),
                ending if ending == "cancelled" else shown(ending),
                None if ending else task.result(),
                got,
                getattr(callee, "started", None),
                getattr(callee, "cancelled", None),
                getattr(callee, "closed", None),
                [breaker.states() for breaker in breakers],
            )
        )
    await leaves_nothing()
    return told, [what_happened(call) for call in collected]


def play(make: Any, wrap: Callable[[Any], Any], outcome: Any, cancel_at: float | None, stream: bool) -> Any:
    return run(lambda: story(make, wrap, outcome, cancel_at, stream))


GUARDS = ("timeout", "circuit_breaker", "throttle", "telemetry")
CASES = [(name, False) for name in VALUES] + [(name, True) for name in STREAMS]


@pytest.mark.parametrize("cancel_at", [None, 0.0, 1.5, 10.0], ids=["", "cancel 0", "cancel 1.5", "cancel 10"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: ("stream: " if case[1] else "") + case[0])
@pytest.mark.parametrize("stages", SETS)
def test_a_wrapped_stage_behaves_like_an_inlined_one(
    stages: str, case: tuple[str, bool], cancel_at: float | None
) -> None:
    name, stream = case
    make, outcome = SETS[stages], (STREAMS if stream else VALUES)[name]

    # Retry and fallback look for the breaker inside them; a wrapper of one that stands alone changes nothing.
    wrapped = [stage.name for stage in make([]) if stage.name in GUARDS or len(make([])) == 2]

    def wrapping(names: list[str]) -> Callable[[Any], Any]:
        return lambda stage: Wrapped(stage) if stage.name in names else stage

    inlined = play(make, lambda stage: stage, outcome, cancel_at, stream)
    assert play(make, wrapping(wrapped), outcome, cancel_at, stream) == inlined
    if cancel_at in (None, 1.5) and len(wrapped) > 1:
        for chosen in wrapped:
            assert play(make, wrapping([chosen]), outcome, cancel_at, stream) == inlined, chosen


@pytest.mark.parametrize("case", CASES, ids=lambda case: ("stream: " if case[1] else "") + case[0])
def test_a_guard_behaves_the_same_inside_a_plain_function(case: tuple[str, bool]) -> None:
    name, stream = case
    outcome = (STREAMS if stream else VALUES)[name]

    def make(collected: list[Any]) -> list[Any]:
        return [
            Timeout(attempt=10, idle=6),
            CircuitBreaker(failure_threshold=2),
            Telemetry(collect=collected.append),
        ]

    inlined = play(make, lambda stage: stage, outcome, None, stream)
    assert play(make, as_function, outcome, None, stream) == inlined


@pytest.mark.parametrize("case", CASES, ids=lambda case: ("stream: " if case[1] else "") + case[0])
def test_a_users_stage_between_built_in_ones_changes_nothing(case: tuple[str, bool]) -> None:
    """It splits the inlined group in two."""
    name, stream = case
    outcome = (STREAMS if stream else VALUES)[name]

    async def through(call: Any, call_next: Any) -> Any:
        return await call_next(call)

    def split(at: int) -> Callable[[list[Any]], list[Any]]:
        def make(collected: list[Any]) -> list[Any]:
            stages = default_set(collected)
            return [*stages[:at], through, *stages[at:]]

        return make

    whole = play(default_set, lambda stage: stage, outcome, None, stream)
    for at in range(6):
        assert play(split(at), lambda stage: stage, outcome, None, stream) == whole, at


# --- positions -----------------------------------------------------------------------------------------


class Probe:
    """A user's stage that notes when it is entered and left, and how."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name = name
        self.log = log

    async def __call__(self, call: Any, call_next: Any, /) -> Any:
        self.log.append(f"> {self.name}")
        try:
            result = await call_next(call)
        except BaseException as error:
            self.log.append(f"! {self.name} {type(error).__name__}")
            raise
        self.log.append(f"< {self.name}")
        return result


BUILT_IN = [
    "timeout",
    "circuit_breaker",
    "bulkhead",
    "pace",
    "throttle",
    "rate_limit",
    "retry",
    "fallback",
    "telemetry",
]


def everything(log: list[str], **options: Any) -> Pipeline:
    """All built-in stages with a probe on both sides of each."""
    pipeline = Pipeline(
        inner_first=[
            Timeout(attempt=10),
            options.pop("breaker", CircuitBreaker()),
            options.pop("bulkhead", Bulkhead(limit=1, queue=9)),
            options.pop("pace", Pace(rate=100)),
            Throttle(random=lambda: 0.0),
            RateLimit(limit=100, window=1, max_wait=1),
            Retry(max_attempts=2, initial_delay=1, jitter="none"),
            Fallback("b"),
            Telemetry(collect=lambda call: log.append("telemetry")),
        ],
        target="a",
        idempotent=True,
        **options,
    )
    for name in BUILT_IN:
        pipeline = pipeline.place(Probe(f"outside {name}", log), outside=name)
        pipeline = pipeline.place(Probe(f"inside {name}", log), inside=name)
    return pipeline


def order_inwards() -> list[str]:
    return [f"{side} {name}" for name in reversed(BUILT_IN) for side in ("outside", "inside")]


@pytest.mark.parametrize("stream", [False, True])
@scenario
async def test_a_success_passes_every_position_once_in_order(stream: bool) -> None:
    log: list[str] = []
    pipeline = everything(log)
    if stream:
        async with pipeline.stream(Callee([1]).stream) as items:
            assert [item async for item in items] == [1]
    else:
        assert await pipeline.call(Callee("ok")) == "ok"
    names = order_inwards()
    inwards = [f"> {name}" for name in names]
    outwards = [f"< {name}" for name in reversed(names)]
    if stream:
        assert log == [*inwards, *outwards, "telemetry"]
    else:
        assert log == [*inwards, *outwards[:-1], "telemetry", outwards[-1]]


async def entered(log: list[str], pipeline: Pipeline, function: Any) -> dict[str, int]:
    """How often each position was entered."""
    await asyncio.gather(pipeline.call(function), return_exceptions=True)
    return {name: log.count(f"> {name}") for name in order_inwards()}


@scenario
async def test_retry_repeats_what_is_inside_it_and_fallback_that_again() -> None:
    log: list[str] = []
    counts = await entered(log, everything(log), Callee(TransientError("x")))
    assert counts == {
        name: 1
        if name in ("outside telemetry", "inside telemetry", "outside fallback")
        else 2
        if name in ("inside fallback", "outside retry")
        else 4
        for name in order_inwards()
    }


@scenario
async def test_an_open_circuit_lets_nothing_further_in() -> None:
    log: list[str] = []
    breaker = CircuitBreaker()
    breaker.isolate("a")
    breaker.isolate("b")
    counts = await entered(log, everything(log, breaker=breaker), Callee("never"))
    assert counts["outside circuit_breaker"] == 2
    assert counts["inside circuit_breaker"] == counts["outside timeout"] == counts["inside timeout"] == 0
    assert log.count("! outside circuit_breaker CircuitOpen") == 2


@scenario
async def test_the_timeout_bounds_what_is_inside_it_and_only_that() -> None:
    log: list[str] = []
    await entered(log, everything(log), Callee(HANG))
    assert log.count("! inside timeout CancelledError") == 4
    assert log.count("! outside timeout AttemptTimeout") == 4
    assert log.count("! inside circuit_breaker AttemptTimeout") == 4


@scenario
async def test_who_waits_for_a_permit_has_not_met_the_breaker_yet() -> None:
    log: list[str] = []
    bulkhead = Bulkhead(limit=1, queue=9)
    pipeline = everything(log, bulkhead=bulkhead)
    holder = asyncio.create_task(Pipeline(inner_first=[bulkhead], target="a").call(Callee(Slow(5))))
    await asyncio.sleep(0)
    task = asyncio.create_task(pipeline.call(Callee("ok")))
    await asyncio.sleep(1)
    assert log[-1] == "> outside bulkhead"
    await asyncio.gather(holder, task)


@scenario
async def test_who_waits_for_its_turn_holds_no_permit() -> None:
    log: list[str] = []
    bulkhead = Bulkhead(limit=1)
    pipeline = everything(log, bulkhead=bulkhead, pace=Pace(rate=1, per=10))
    await pipeline.call(Callee("first"))
    log.clear()
    task = asyncio.create_task(pipeline.call(Callee("second")))
    await asyncio.sleep(1)
    assert log[-1] == "> outside pace"
    assert bulkhead.running("a") == 0
    await task


@scenario
async def test_who_waits_at_the_gate_takes_no_turn() -> None:
    log: list[str] = []
    pipeline = everything(log)
    task = asyncio.create_task(pipeline.call(Callee(ThrottledError("x", retry_after=20), "ok")))
    await asyncio.sleep(1)
    assert log[-1] == "> outside throttle"
    assert await task == "ok"


# --- a users' stage ------------------------------------------------------------------------------------


@scenario
async def test_a_stage_may_answer_by_itself() -> None:
    async def cached(call: Any, call_next: Any) -> Any:
        return "cached"

    callee = Callee("never")
    pipeline = Pipeline(inner_first=[Timeout(), CircuitBreaker(), Retry()]).place(cached, outside="retry")
    assert await pipeline.call(callee) == "cached"
    assert callee.calls == 0


@scenario
async def test_a_stage_may_change_the_call_on_its_way_in() -> None:
    async def terminal(call: Any) -> Any:
        return (call.request, call.target, call.attempt)

    async def changed(call: Any, call_next: Any) -> Any:
        return await call_next(call.replace(request=call.request.upper()))

    pipeline = Pipeline(inner_first=[Timeout(), changed], target="t", terminal=terminal)
    assert await pipeline.send(pipeline.new_call("hello")) == ("HELLO", "t", 1)


@scenario
async def test_a_stage_may_shorten_the_deadline() -> None:
    async def shorter(call: Any, call_next: Any) -> Any:
        return await call_next(call.replace(deadline=call.record.time() + 3))

    pipeline = Pipeline(inner_first=[Timeout(attempt=60), shorter], deadline=10)
    with pytest.raises(TimeoutError):
        await pipeline.call(Callee(HANG))
    assert now() == 3.0


@scenario
async def test_a_stage_may_call_twice() -> None:
    async def twice(call: Any, call_next: Any) -> Any:
        return [await call_next(call), await call_next(call)]

    callee = Callee(1, 2)
    pipeline = Pipeline(inner_first=[Timeout(), CircuitBreaker(), twice])
    assert await pipeline.call(callee) == [1, 2]


@scenario
async def test_an_error_of_a_users_stage_inside_the_timeout_is_judged_like_any_other() -> None:
    async def faulty(call: Any, call_next: Any) -> Any:
        if call.attempt == 1:
            raise TransientError("injected")
        return await call_next(call)

    collected: list[Any] = []
    breaker = CircuitBreaker(failure_threshold=1)
    callee = Callee("ok")
    pipeline = Pipeline(
        inner_first=[faulty, Timeout(), breaker, Telemetry(collect=collected.append)], target="a"
    )
    with pytest.raises(TransientError):
        await pipeline.call(callee)
    assert breaker.state("a") == "open"
    (call,) = collected
    assert [type(error) for error in call.record.errors] == [TransientError]
    assert [(a.number, type(a.error)) for a in call.record.attempts] == [(1, TransientError)]

    collected.clear()
    pipeline = Pipeline(
        inner_first=[faulty, Timeout(), Retry(initial_delay=0), Telemetry(collect=collected.append)],
        target="a",
        idempotent=True,
    )
    assert await pipeline.call(callee) == "ok"
    record = collected[0].record
    assert [(a.number, type(a.error)) for a in record.attempts] == [(1, TransientError), (2, type(None))]


@scenario
async def test_the_same_stage_object_may_serve_two_pipelines() -> None:
    breaker, retry = CircuitBreaker(failure_threshold=1), Retry(max_attempts=1)
    first = Pipeline(inner_first=[Timeout(attempt=5), breaker, retry], target="shared")
    second = Pipeline(inner_first=[Timeout(attempt=7), breaker, retry], target="shared")
    with pytest.raises(AttemptTimeout):
        await first.call(Callee(HANG))
    with pytest.raises(CircuitOpen):
        await second.call(Callee("never"))


@scenario
async def test_an_empty_pipeline_calls_the_function() -> None:
    assert await Pipeline(inner_first=[]).call(Callee("ok"), 1, 2) == "ok"
    async with Pipeline(inner_first=[]).stream(Callee([1]).stream) as stream:
        assert [item async for item in stream] == [1]


@scenario
async def test_a_traceback_through_a_composed_pipeline_shows_the_callees_line() -> None:
    async def callee() -> None:
        raise ValueError("here it is")

    pipeline = Pipeline(inner_first=[Timeout(), CircuitBreaker(), Retry(), Telemetry(collect=print)])
    with pytest.raises(ValueError, match="here") as caught:
        await pipeline.call(callee)
    text = "".join(traceback.format_exception(caught.value))
    assert 'raise ValueError("here it is")' in text
    assert "During handling of the above exception" not in text
