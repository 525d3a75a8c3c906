"""Pipeline: placement, changed copies, what it describes and warns of, and the call that it makes."""

from __future__ import annotations

import asyncio
import math
import warnings
from functools import partial
from typing import Any

import pytest

from agentrt.call import RUN
from agentrt.errors import ConfigError, DeadlineExceeded, TransientError
from agentrt.middleware.bulkhead import Bulkhead
from agentrt.middleware.circuit_breaker import CircuitBreaker
from agentrt.middleware.defaults import default_stages
from agentrt.middleware.fallback import Fallback
from agentrt.middleware.pace import Pace
from agentrt.middleware.retry import Retry
from agentrt.middleware.telemetry import Telemetry
from agentrt.middleware.throttle import Throttle
from agentrt.middleware.timeout import Timeout
from agentrt.order import ORDER, stage_name
from agentrt.pipeline import Pipeline, PipelineWarning
from agentrt.testing import run
from pipeline.doubles import HANG, Callee, Observed, now, scenario


def stage(name: str) -> Any:
    async def middleware(call: Any, call_next: Any) -> Any:
        return await call_next(call)

    middleware.__name__ = name
    return middleware


def names(pipeline: Pipeline) -> list[str]:
    return [stage_name(item) for item in pipeline.stages]


def five(**options: Any) -> Pipeline:
    return Pipeline(
        inner_first=[Timeout(), CircuitBreaker(), Retry(), Fallback(default=None), Telemetry()], **options
    )


# --- placement -----------------------------------------------------------------------------------------


def test_the_list_is_written_from_the_call_outward() -> None:
    assert names(five()) == ["timeout", "circuit_breaker", "retry", "fallback", "telemetry"]
    assert [d.name for d in five().describe()] == names(five())


def test_the_list_is_a_keyword_so_that_nobody_guesses() -> None:
    with pytest.raises(TypeError):
        Pipeline([Timeout()])  # type: ignore[misc]


def test_a_stage_is_placed_directly_beside_the_named_one() -> None:
    assert names(five().place(stage("x"), outside="retry")) == [
        "timeout",
        "circuit_breaker",
        "retry",
        "x",
        "fallback",
        "telemetry",
    ]
    assert names(five().place(stage("x"), inside="retry")) == [
        "timeout",
        "circuit_breaker",
        "x",
        "retry",
        "fallback",
        "telemetry",
    ]
    assert names(five().place(stage("x"), inside="timeout"))[0] == "x"
    assert names(five().place(stage("x"), outside="telemetry"))[-1] == "x"


def test_the_default_place_is_just_inside_telemetry() -> None:
    assert names(five().place(stage("x")))[-2:] == ["x", "telemetry"]


@pytest.mark.parametrize("side", ["inside", "outside"])
def test_at_one_place_the_first_registered_is_outermost(side: str) -> None:
    pipeline = five()
    for name in ("first", "second", "third"):
        pipeline = pipeline.place(stage(name), **{side: "retry"})
    placed = [name for name in names(pipeline) if name in ("first", "second", "third")]
    assert placed == ["third", "second", "first"]
    default = five().place(stage("first")).place(stage("second"))
    assert names(default)[-3:] == ["second", "first", "telemetry"]


def test_places_inside_one_and_outside_its_neighbour_stay_with_their_own() -> None:
    pipeline = (
        five()
        .place(stage("in"), inside="retry")
        .place(stage("out"), outside="circuit_breaker")
        .place(stage("in2"), inside="retry")
        .place(stage("out2"), outside="circuit_breaker")
    )
    assert names(pipeline)[1:7] == ["circuit_breaker", "out2", "out", "in2", "in", "retry"]


@pytest.mark.parametrize("anchor", ORDER)
def test_a_stage_that_is_off_still_marks_its_place(anchor: str) -> None:
    empty = Pipeline(inner_first=[])
    for side in ("inside", "outside"):
        assert names(empty.place(stage("x"), **{side: anchor})) == ["x"]  # type: ignore[arg-type]
    around = five().place(stage("in"), inside=anchor).place(stage("out"), outside=anchor)
    on = names(around)
    assert on.index("in") < on.index("out")
    before = [name for name in on[: on.index("in")] if name in ORDER]
    after = [name for name in on[on.index("out") + 1 :] if name in ORDER]
    assert all(ORDER.index(name) < ORDER.index(anchor) for name in before)
    assert all(ORDER.index(name) > ORDER.index(anchor) for name in after)


def test_a_placed_stage_marks_a_place_itself() -> None:
    pipeline = five().place(stage("x"), outside="retry").place(stage("y"), inside="x")
    assert names(pipeline)[2:5] == ["retry", "y", "x"]


def test_an_object_goes_by_its_name_or_class() -> None:
    class Named:
        name = "mine"

        async def __call__(self, call: Any, call_next: Any) -> Any: ...

    class Unnamed:
        async def __call__(self, call: Any, call_next: Any) -> Any: ...

    assert names(five().place(Named()).place(Unnamed()))[-3:] == ["Unnamed", "mine", "telemetry"]


def test_an_unknown_place_is_an_error_that_names_the_places() -> None:
    with pytest.raises(ConfigError) as caught:
        five().place(stage("x"), outside="retries")
    assert str(caught.value) == f"there is no stage named 'retries'; the places are {', '.join(ORDER)}"
    with pytest.raises(ConfigError, match="'nothing'"):
        five().without("nothing")


def test_one_side_only() -> None:
    with pytest.raises(ConfigError) as caught:
        five().place(stage("x"), outside="retry", inside="retry")
    assert str(caught.value) == "place a stage outside= one stage or inside= one, not both"


def test_a_built_in_stage_goes_to_its_own_place_or_nowhere() -> None:
    assert names(five().place(Bulkhead(limit=1)))[1:4] == ["circuit_breaker", "bulkhead", "retry"]
    second = Retry(max_attempts=5)
    pipeline = five().place(second)
    assert names(pipeline).count("retry") == 1
    assert second in pipeline.stages
    with pytest.raises(ConfigError) as caught:
        five().place(Retry(), outside="fallback")
    assert "'retry' has a place of its own" in str(caught.value)


def test_the_same_name_twice_is_an_error() -> None:
    with pytest.raises(ConfigError) as caught:
        Pipeline(inner_first=[Timeout(), Timeout()])
    assert str(caught.value) == "the pipeline has 2 stages named 'timeout'"


# --- changed copies ------------------------------------------------------------------------------------


@scenario
async def test_a_pipeline_is_a_value() -> None:
    original = five(target="t", idempotent=True, deadline=90)
    assert await original.call(Callee("ok")) == "ok"
    changed = original.without("retry").replace(Timeout(attempt=1)).place(stage("x"))
    assert names(original) == ["timeout", "circuit_breaker", "retry", "fallback", "telemetry"]
    assert names(changed) == ["timeout", "circuit_breaker", "fallback", "x", "telemetry"]
    assert (changed.target, changed.idempotent, changed.deadline) == ("t", True, 90.0)
    callee = Callee(HANG)
    assert await changed.call(callee) is None
    assert callee.cancelled == [1.0]


def test_replace_turns_a_stage_on_at_its_place() -> None:
    pipeline = five().replace(Bulkhead(limit=3)).replace(Pace(rate=5)).replace(Throttle())
    assert names(pipeline) == [
        "timeout",
        "circuit_breaker",
        "bulkhead",
        "pace",
        "throttle",
        "retry",
        "fallback",
        "telemetry",
    ]


def test_replace_needs_a_place_of_that_name() -> None:
    with pytest.raises(ConfigError) as caught:
        five().replace(stage("mine"))
    assert "there is no stage named 'mine' to replace; use place(" in str(caught.value)
    placed = five().place(stage("mine"), outside="retry")
    other = stage("mine")
    assert other in placed.replace(other).stages


def test_without_keeps_the_place_of_a_built_in_stage() -> None:
    pipeline = five().without("retry", "circuit_breaker")
    assert names(pipeline) == ["timeout", "fallback", "telemetry"]
    assert names(pipeline.place(stage("x"), outside="retry")) == ["timeout", "x", "fallback", "telemetry"]
    assert names(pipeline.replace(Retry())) == ["timeout", "retry", "fallback", "telemetry"]
    users = five().place(stage("mine")).without("mine")
    assert names(users) == names(five())


@scenario
async def test_nested_calls_of_a_pipeline_without_retry_are_not_limited_to_one_attempt() -> None:
    inner = Pipeline(inner_first=[Timeout(), Retry(initial_delay=0)], idempotent=True)

    async def attempts(outer: Pipeline) -> int:
        callee = Callee(TransientError("x"))
        with pytest.raises(TransientError):
            await outer.call(inner.call, callee)
        return callee.calls

    outer = Pipeline(inner_first=[Timeout(), Retry(initial_delay=0, max_attempts=2)], idempotent=True)
    assert await attempts(outer) == 2
    assert await attempts(outer.without("retry")) == 3
    assert await attempts(outer.replace(Retry(max_attempts=1))) == 3


# --- description ---------------------------------------------------------------------------------------


def test_describe_has_every_option_and_where_it_was_set() -> None:
    pipeline = five(sources={"timeout.attempt": "agentrt.toml", "retry.max_attempts": "AGENTRT_RETRY"})
    described = {description.name: description for description in pipeline.describe()}
    assert described["timeout"].options == {"attempt": 60.0, "first_item": None, "idle": None}
    assert described["timeout"].sources == {
        "attempt": "agentrt.toml",
        "first_item": "default",
        "idle": "default",
    }
    assert set(described["circuit_breaker"].options) == {
        "failure_rate",
        "window_seconds",
        "window_calls",
        "minimum_calls",
        "failure_threshold",
        "success_threshold",
        "reset_timeout",
        "slow_call",
        "slow_rate",
        "probes",
        "max_half_open_wait",
        "max_targets",
    }
    retry = described["retry"]
    assert retry.options["max_attempts"] == 3
    assert str(retry.options["budget"]) == "RetryBudget(ratio=0.2, per=60, minimum=10)"
    assert retry.sources["max_attempts"] == "AGENTRT_RETRY"
    assert described["fallback"].options == {"default": None, "on": None}
    assert described["telemetry"].options == {"collect": None, "tracing": None}


def test_describe_shows_fallback_targets_and_no_default_if_there_is_none() -> None:
    (description,) = Pipeline(inner_first=[Fallback("b", "c")]).describe()
    assert description.options == {"targets": ("b", "c"), "on": None}
    (description,) = Pipeline(inner_first=[Bulkhead(limit=3)]).describe()
    assert description.options == {"limit": 3, "queue": 0}


def test_describe_shows_a_users_stage_with_its_own_options() -> None:
    class Mine:
        def __init__(self, *, level: int = 3) -> None:
            self.level = level

        async def __call__(self, call: Any, call_next: Any) -> Any: ...

    described = five().place(Mine(level=7)).place(stage("function"), inside="timeout").describe()
    assert (described[0].name, described[0].options) == ("function", {})
    assert (described[-2].name, described[-2].options) == ("Mine", {"level": 7})


def test_the_composed_source_can_be_read() -> None:
    source = five().source()
    assert "async def composed" in source
    assert "await" in source


# --- warnings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inner_first", "problem"),
    [
        ([Retry(), Timeout()], "timeout stands outside retry: it then bounds all attempts together"),
        (
            [CircuitBreaker(), Timeout()],
            "timeout stands outside circuit_breaker: the breaker then never sees",
        ),
        (
            [Retry(), CircuitBreaker()],
            "circuit_breaker stands outside retry: it then sees one outcome per call",
        ),
        ([Fallback("b"), CircuitBreaker()], "circuit_breaker stands outside fallback: a fallback that works"),
        ([Fallback("b"), Retry()], "retry stands outside fallback: fallback then answers first"),
        ([Bulkhead(limit=1), CircuitBreaker()], "circuit_breaker stands outside bulkhead: a queued attempt"),
        ([Pace(rate=1), CircuitBreaker()], "circuit_breaker stands outside pace: the wait for a turn"),
        ([Throttle(), CircuitBreaker()], "circuit_breaker stands outside throttle: the wait at the gate"),
        ([Telemetry(), Fallback("b")], "fallback stands outside telemetry: the record then ends"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@scenario
async def test_known_bad_orders_warn_when_the_pipeline_is_built(inner_first: list[Any], problem: str) -> None:
    pipeline = Pipeline(inner_first=inner_first, target="t")
    with pytest.warns(PipelineWarning) as caught:
        await pipeline.call(Callee("ok"))
    assert [str(warning.message) for warning in caught if problem in str(warning.message)]
    assert any(problem in text for text in pipeline.problems())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        await pipeline.call(Callee("ok"))  # once is enough


@pytest.mark.parametrize(
    ("attempt", "deadline", "fallback", "warns"),
    [
        (60, 180, False, False),
        (60, 180, True, False),
        (60, 61, False, True),
        (60, 61.1, False, False),
        (60, 122, True, True),
        (60, 122.1, True, False),
        (60, None, True, False),
    ],
)
def test_a_first_retry_that_could_never_start_is_a_problem(
    attempt: float, deadline: float | None, fallback: bool, warns: bool
) -> None:
    stages = [Timeout(attempt=attempt), Retry(), *([Fallback("b")] if fallback else [])]
    problems = Pipeline(inner_first=stages, idempotent=True, deadline=deadline).problems()
    assert bool(problems) is warns
    if warns:
        assert "a first retry could never start: an attempt may take 60 s" in problems[0]
        assert "lower timeout.attempt or raise the deadline" in problems[0]


def test_no_problem_where_no_retry_is_made_or_no_limit_set() -> None:
    assert Pipeline(inner_first=[Timeout(attempt=60), Retry(max_attempts=1)], deadline=10).problems() == []
    assert Pipeline(inner_first=[Timeout(attempt=None), Retry()], deadline=10).problems() == []
    assert Pipeline(inner_first=[Timeout(attempt=60)], deadline=10).problems() == []
    # A call that may not be tried elsewhere has the whole deadline.
    stages = [Timeout(attempt=60), Retry(), Fallback("b")]
    assert Pipeline(inner_first=stages, idempotent=False, deadline=122).problems() == []
    # A default value costs no time.
    stages = [Timeout(attempt=60), Retry(), Fallback(default=None)]
    assert Pipeline(inner_first=stages, idempotent=True, deadline=122).problems() == []


@pytest.mark.parametrize("kind", ["model", "tool", "memory", "secret", "other"])
def test_the_default_pipelines_have_no_problem(kind: str) -> None:
    from agentrt.middleware.defaults import default_deadline

    pipeline = Pipeline(inner_first=default_stages(kind), idempotent=True, deadline=default_deadline(kind))
    assert pipeline.problems() == []


# --- defaults ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "timeout", "deadline"),
    [
        ("model", (60.0, 30.0, 30.0), 180.0),
        ("tool", (30.0, None, None), 60.0),
        ("memory", (2.0, None, None), 5.0),
        ("secret", (5.0, None, None), 15.0),
        ("mine", (60.0, None, None), None),
    ],
)
def test_the_table_of_kinds(kind: str, timeout: tuple[Any, ...], deadline: float | None) -> None:
    from agentrt.middleware.defaults import default_deadline

    stages = {stage_name(item): item for item in default_stages(kind)}
    assert list(stages) == [
        "timeout",
        "circuit_breaker",
        *(["throttle"] if kind == "model" else []),
        "retry",
        "fallback",
        "telemetry",
    ]
    limits: Any = stages["timeout"]
    assert (limits.attempt, limits.first_item, limits.idle) == timeout
    retry: Any = stages["retry"]
    assert retry.max_attempts == 3
    assert default_deadline(kind) == deadline


@scenario
async def test_the_default_pipeline_works_alone() -> None:
    pipeline = Pipeline.default(target="payments", idempotent=True)
    assert names(pipeline) == ["timeout", "circuit_breaker", "retry", "fallback", "telemetry"]
    assert (pipeline.target, pipeline.idempotent, pipeline.deadline) == ("payments", True, None)
    callee = Callee(TransientError("x"), "ok")
    assert await pipeline.call(callee) == "ok"
    assert callee.calls == 2
    careful = Pipeline.default()
    assert (careful.target, careful.idempotent) == ("call", False)
    callee = Callee(TransientError("x"), "ok")
    with pytest.raises(TransientError):
        await careful.call(callee)
    with pytest.raises(DeadlineExceeded):
        await Pipeline.default(deadline=3).replace(Timeout(attempt=None)).call(Callee(HANG))


@pytest.mark.parametrize("deadline", [0, -1, math.inf, "5"])
def test_a_bad_deadline_is_refused(deadline: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        Pipeline(inner_first=[], deadline=deadline)
    assert str(caught.value) == f"deadline must be a number of seconds more than 0, not {deadline!r}"


# --- the call ------------------------------------------------------------------------------------------


@scenario
async def test_arguments_reach_the_function() -> None:
    async def function(a: int, b: int, *, c: int = 0) -> tuple[int, int, int]:
        return (a, b, c)

    pipeline = five()
    assert await pipeline.call(function, 1, 2) == (1, 2, 0)
    assert await pipeline.call(partial(function, 1, 2, c=3)) == (1, 2, 3)


@scenario
async def test_a_call_knows_what_it_is() -> None:
    seen: list[Any] = []

    async def look(call: Any, call_next: Any) -> Any:
        seen.append(call)
        return await call_next(call)

    pipeline = Pipeline(
        inner_first=[look], target="t", kind="tool", operation="op", idempotent=True, deadline=7
    )
    await pipeline.call(Callee("ok"))
    await pipeline.send(
        pipeline.new_call(Callee("ok"), target="u", operation="op2", key="k", idempotent=False)
    )
    first, second = seen
    assert (first.kind, first.operation, first.target, first.idempotent) == ("tool", "op", "t", True)
    assert (first.attempt, first.key, first.stream, first.deadline, first.run) == (1, None, False, 7.0, None)
    assert (second.operation, second.target, second.key, second.idempotent) == ("op2", "u", "k", False)
    assert second.record.target == "u"
    assert Pipeline(inner_first=[], target="x").operation == "x"


@scenario
async def test_a_changed_copy_shares_the_record() -> None:
    pipeline = five()
    call = pipeline.new_call("r")
    copy = call.replace(target="other")
    assert (copy.target, call.target) == ("other", "call")
    assert copy.record is call.record


class OneRun:
    id = "run"

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline

    def observe(self, call: Any, entry: Any) -> None: ...


@pytest.mark.parametrize(
    ("own", "of_run", "scope", "ends"), [(10, 5, "run", 5.0), (5, 10, "call", 5.0), (None, 5, "run", 5.0)]
)
@scenario
async def test_a_call_is_never_past_its_runs_deadline(
    own: Any, of_run: float, scope: str, ends: float
) -> None:
    token = RUN.set(OneRun(of_run))
    try:
        error = await Observed(Timeout(attempt=None), deadline=own).failure(Callee(HANG))
    finally:
        RUN.reset(token)
    assert isinstance(error, DeadlineExceeded)
    assert error.scope == scope
    assert now() == ends


def test_one_pipeline_serves_one_loop_after_another() -> None:
    seen = Observed(Timeout(attempt=5), CircuitBreaker(failure_threshold=9), Retry(max_attempts=1))

    async def one() -> None:
        assert await seen.call(Callee("ok")) == "ok"
        assert "no result within" in str(await seen.failure(Callee(HANG)))
        assert seen.record.elapsed == 5.0

    run(one)
    run(one, start=1000.0)
    run(one, start=3.0)


@scenario
async def test_thousands_of_calls_in_flight() -> None:
    pipeline = Pipeline.default(idempotent=True, deadline=30).replace(Timeout(attempt=None))
    callee = Callee(HANG)
    tasks = [asyncio.create_task(pipeline.call(callee)) for _ in range(2000)]
    good = [asyncio.create_task(pipeline.call(Callee("ok"))) for _ in range(2000)]
    results = await asyncio.gather(*tasks, *good, return_exceptions=True)
    assert sum(isinstance(result, DeadlineExceeded) for result in results) == 2000
    assert results.count("ok") == 2000
    assert now() == 30.0


def test_a_deadline_alone_is_nothing_to_warn_of_but_a_chosen_limit_that_does_not_fit_is() -> None:
    pipeline = Pipeline.default(target="payments", idempotent=True, deadline=30)
    assert pipeline.problems() == []
    (problem,) = pipeline.replace(Timeout(attempt=60)).problems()
    assert "a first retry could never start" in problem


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"idempotent": "no"}, "idempotent must be True or False, not 'no'"),
        ({"target": ""}, "target must be a name, not ''"),
        ({"target": 3}, "target must be a name, not 3"),
        ({"deadline": 0}, "deadline must be a number of seconds more than 0, not 0"),
    ],
)
def test_what_a_default_pipeline_cannot_be_made_of(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Pipeline.default(**options)
    assert str(caught.value) == says


def test_what_is_no_stage_cannot_be_placed_or_replace_one() -> None:
    pipeline = Pipeline.default()
    with pytest.raises(ConfigError, match="a stage is an async function"):
        pipeline.place(3, outside="retry")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="a stage is an async function"):
        pipeline.replace(Retry)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="replace takes a stage"):
        pipeline.replace("retry")  # type: ignore[arg-type]


@scenario
async def test_the_usual_mistakes_with_call_are_explained() -> None:
    async def charge(amount: int) -> int:
        return amount

    async def numbers() -> Any:
        yield 1

    async def said(*arguments: Any) -> str:
        with pytest.raises(TypeError) as caught:
            await Pipeline.default().call(*arguments)
        return " ".join([str(caught.value), *getattr(caught.value, "__notes__", ())])

    assert "give it an async function" in await said(lambda: 3)
    called = charge(3)
    assert "call(function, 3), not function(3)" in await said(called)
    called.close()
    assert "pipeline.stream(function" in await said(numbers)
    pipeline = Pipeline.default()
    await pipeline.call(charge, 1)
    with pytest.raises(TypeError, match=r"Pipeline\.call\(\) missing"):
        await pipeline.call()  # type: ignore[call-overload]


@scenario
async def test_a_call_method_that_was_taken_before_the_first_call_composes_once() -> None:
    pipeline = Pipeline.default()
    call = pipeline.call

    async def one() -> int:
        return 1

    assert await call(one) == 1
    composed = pipeline.__dict__["call"]
    assert await call(one) == 1
    assert pipeline.__dict__["call"] is composed


def test_a_pipeline_shows_its_target_and_stages() -> None:
    shown = "<Pipeline bank: timeout -> circuit_breaker -> retry -> fallback -> telemetry>"
    assert repr(Pipeline.default(target="bank")) == shown
