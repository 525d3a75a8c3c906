"""`rt.telemetry`: what users log, measure and trace with, whatever they give it."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from agentrt import Config, ConfigError, Context, Runtime
from agentrt.telemetry import Histogram
from agentrt.telemetry.no_span import NO_SPAN
from tests.telemetry.recording import Kept

pytestmark = pytest.mark.asyncio


@asynccontextmanager
async def runtime(*backends: Any, **settings: Any) -> AsyncIterator[Runtime]:
    config = Config({"telemetry": settings}) if settings else None
    named = [(f"backend{number}", backend) for number, backend in enumerate(backends)]
    async with Runtime(config, backends=named) as rt:
        yield rt


def value(rt: Runtime, name: str) -> Any:
    found = {metric.name: metric for metric in rt.telemetry.metrics()}
    return None if name not in found else found[name].points[0].value


# --- metrics --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exports", [False, True])
async def test_a_metric_has_its_kind_unit_and_tags(exports: bool) -> None:
    async with runtime(*([Kept()] if exports else [])) as rt:
        rt.telemetry.record_metric("orders", 2, {"shop": "Oslo"}, kind="counter", unit="{order}")
        rt.telemetry.record_metric("orders", 3.5, {"shop": "Oslo"}, kind="counter", unit="{order}")
        rt.telemetry.record_metric("queue.length", 7, kind="gauge")
        rt.telemetry.record_metric("step.time", 0.25, unit="s")
        found = {metric.name: metric for metric in rt.telemetry.metrics()}
        assert (found["orders"].kind, found["orders"].unit) == ("counter", "{order}")
        assert found["orders"].points[0].attributes == {"shop": "Oslo"}
        assert found["orders"].points[0].value == 5.5
        assert (found["queue.length"].kind, found["queue.length"].points[0].value) == ("gauge", 7.0)
        times = found["step.time"].points[0].value
        assert isinstance(times, Histogram)
        assert (found["step.time"].kind, times.count, times.sum) == ("histogram", 1, 0.25)


@pytest.mark.parametrize(
    ("name", "given", "kind", "problem"),
    [
        ("", 1, "counter", "is not a metric's name"),
        ("1st", 1, "counter", "is not a metric's name"),
        ("a b", 1, "counter", "is not a metric's name"),
        ("é", 1, "counter", "is not a metric's name"),
        ("a" * 256, 1, "counter", "is not a metric's name"),
        (None, 1, "counter", "is not a metric's name"),
        (b"orders", 1, "counter", "is not a metric's name"),
        ("orders\n", 1, "counter", "is not a metric's name"),
        ("orders", "1", "counter", "must be a number, not a str"),
        ("orders", None, "counter", "must be a number, not a NoneType"),
        ("orders", True, "counter", "must be a number, not a bool"),
        ("orders", 1j, "counter", "must be a number, not a complex"),
        ("orders", float("nan"), "counter", "must be finite, not nan"),
        ("orders", float("inf"), "gauge", "must be finite, not inf"),
        ("orders", -1, "counter", "a counter only goes up; -1 needs kind='gauge'"),
        ("step.duration", -0.5, "histogram", "a duration is not negative, as -0.5 is"),
        ("orders", 1, "summary", "kind must be counter, gauge or histogram, not 'summary'"),
        ("orders", 1, None, "kind must be counter, gauge or histogram, not None"),
    ],
)
async def test_what_is_wrong_with_a_metric_is_told_once_and_fails_nothing(
    name: Any, given: Any, kind: Any, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with runtime() as rt:
        for _ in range(3):
            rt.telemetry.record_metric(name, given, kind=kind)
        assert rt.telemetry.metrics() == ()
    told = [record.getMessage() for record in caplog.records if "record_metric" in record.getMessage()]
    assert len(told) == 1
    assert problem in told[0]


@pytest.mark.parametrize(
    "given",
    [0.5, 2, Fraction(1, 2), Decimal("0.5"), 10**400],
    ids=lambda given: repr(given)[:12],
)
async def test_no_number_fails_a_run(given: Any) -> None:
    async with runtime() as rt:
        rt.telemetry.record_metric("orders", given, kind="gauge")
        assert value(rt, "orders") in (0.5, 2.0, None)


@pytest.mark.parametrize("tags", [["a"], "abc", 5, {"a"}], ids=repr)
async def test_tags_that_are_no_mapping_fail_nothing(tags: Any, caplog: pytest.LogCaptureFixture) -> None:
    async with runtime() as rt:
        rt.telemetry.record_metric("orders", 1, tags, kind="counter")
    assert "tags" in caplog.text


@pytest.mark.parametrize("unit", [None, 5, b"s", "s" * 1000], ids=lambda unit: str(unit)[:9])
async def test_a_unit_that_is_none_does_not_cost_the_others_their_metrics(
    unit: Any, caplog: pytest.LogCaptureFixture
) -> None:
    backend = Kept()
    async with runtime(backend) as rt:
        rt.telemetry.record_metric("orders", 1, kind="counter", unit=unit)
        rt.telemetry.record_metric("others", 1, kind="counter")
    assert "others" in backend.metrics
    assert all(isinstance(metric.unit, str) and len(metric.unit) < 64 for metric in backend.metrics.values())
    assert "unit" in caplog.text


async def test_a_value_of_numpys_kind_is_a_number() -> None:
    class Float64(float):
        """As numpy's is."""

    async with runtime() as rt:
        rt.telemetry.record_metric("orders", Float64(1.5), kind="gauge")
        assert value(rt, "orders") == 1.5


async def test_tags_may_be_changed_after_they_were_given() -> None:
    async with runtime(Kept()) as rt:
        tags: dict[str, Any] = {"a": "before"}
        rt.telemetry.record_metric("orders", 1, tags, kind="counter")
        tags["a"] = "after"
        (metric,) = [each for each in rt.telemetry.metrics() if each.name == "orders"]
    assert metric.points[0].attributes == {"a": "before"}


async def test_ten_thousand_tag_values_become_two_thousand_points() -> None:
    async with runtime() as rt:
        for number in range(10_000):
            rt.telemetry.record_metric("orders", 1, {"user": number}, kind="counter")
        (metric,) = rt.telemetry.metrics()
    assert len(metric.points) == 2000
    assert sum(point.value for point in metric.points) == 10_000  # type: ignore[misc]


# --- logs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "level",
    ["loud", "", "NOTSET2", None, 10, b"info"],
    ids=repr,
)
async def test_a_level_that_is_none_is_an_error_that_says_which_there_are(level: Any) -> None:
    async with runtime() as rt:
        with pytest.raises(ConfigError, match="is not a log level; use debug, info, warning, error"):
            rt.telemetry.log(level, "hello")


async def test_a_context_may_use_any_name(caplog: pytest.LogCaptureFixture) -> None:
    async with runtime() as rt:
        with caplog.at_level(logging.INFO):
            rt.telemetry.log("info", "hello", level=3, message="m", self="me", extra={}, exc_info=False)
    assert "hello" in caplog.text


async def test_lines_reach_the_backends_with_their_context() -> None:
    backend = Kept()
    async with runtime(backend) as rt:
        rt.telemetry.log("WARNING", "100% full", disk="sda", size=3)
        rt.telemetry.log("debug", "not told")
        assert await rt.telemetry.flush()
    (found,) = [each for each in backend.lines if each.logger == "agentrt.run"]
    assert (found.level, found.message) == ("warning", "100% full")
    assert found.attributes == {"disk": "sda", "size": 3}


# --- spans ----------------------------------------------------------------------------------------------


class Mute:
    def __repr__(self) -> str:
        raise RuntimeError("no")


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


async def test_a_span_outside_of_runs_is_the_root_of_a_trace() -> None:
    backend = Kept()
    async with runtime(backend) as rt:
        with rt.telemetry.start_span("import", {"rows": 3}) as outer:
            outer.set_attribute("done", True)
            with rt.telemetry.start_span("part") as inner:
                inner.add_event("half", {"at": 0.5})
        assert await rt.telemetry.flush()
    root, part = backend.named("import"), backend.named("part")
    assert root.parent_id is None
    assert root.attributes == {"rows": 3, "done": True}
    assert (part.parent_id, part.trace_id) == (root.span_id, root.trace_id)
    assert [(event.name, event.attributes) for event in part.events] == [("half", {"at": 0.5})]
    assert root.start_ns <= part.start_ns <= part.end_ns <= root.end_ns


async def test_an_error_that_leaves_a_span_is_on_it_and_stays_the_same() -> None:
    backend = Kept()
    errors = [ValueError("bad"), MuteError("x")]
    errors[0].add_note("while parsing")
    async with runtime(backend) as rt:
        for number, error in enumerate(errors):
            with pytest.raises(type(error)) as caught, rt.telemetry.start_span(f"step{number}"):
                raise error
            assert caught.value is error
        with pytest.raises(asyncio.CancelledError), rt.telemetry.start_span("cancelled"):
            raise asyncio.CancelledError
        assert await rt.telemetry.flush()
    failed = backend.named("step0")
    assert (failed.status, failed.message) == ("error", "ValueError: bad")
    (event,) = failed.events
    assert event.attributes["exception.type"] == "ValueError"
    assert "while parsing" in event.attributes["exception.stacktrace"]
    assert backend.named("step1").status == "error"
    assert backend.named("cancelled").status == "unset"


async def test_attributes_may_be_anything_and_are_kept_as_they_were() -> None:
    backend = Kept()
    loop: list[Any] = []
    loop.append(loop)
    changing = {"a": [1]}
    async with runtime(backend) as rt:
        with rt.telemetry.start_span("odd") as span:
            for number, each in enumerate([Mute(), object(), loop, {1: Mute()}, b"\xff", 10**30, None, 1j]):
                span.set_attribute(f"a{number}", each)
            span.set_attribute("changing", changing)
            span.set_attribute(5, "five")  # type: ignore[arg-type]
            span.add_event("event", {"changing": changing})
            changing["a"].append(2)
            changing["b"] = []
            span.update_name(7)  # type: ignore[arg-type]
        assert await rt.telemetry.flush()
    span_ = backend.named("7")
    assert len(span_.attributes) == 10
    assert span_.attributes["changing"] == '{"a":[1]}'
    assert span_.events[0].attributes["changing"] == '{"a":[1]}'
    assert rt.telemetry.report()[0].lost == {}


async def test_a_span_may_be_ended_by_hand_and_only_once() -> None:
    backend = Kept()
    async with runtime(backend) as rt:
        span = rt.telemetry.start_span("by hand")
        span.end()
        span.end()
        with span:
            pass
        assert await rt.telemetry.flush()
    assert len(backend.spans) == 1


async def test_without_a_backend_for_spans_there_are_none_and_they_cost_nothing() -> None:
    async with runtime(Kept(signals=("metrics",))) as rt:
        assert rt.telemetry.start_span("x") is NO_SPAN
        assert rt.telemetry.tracing is None


# --- the runtime's end ----------------------------------------------------------------------------------


async def test_a_report_tells_of_each_backend() -> None:
    good, bad = Kept(signals=("spans",)), Kept(*(99 * [ValueError("no")]), signals=("spans",))
    async with runtime(good, bad) as rt:
        for _ in range(3):
            with rt.telemetry.start_span("x"):
                pass
        assert not await rt.telemetry.flush()
    first, second = rt.telemetry.report()
    assert str(first) == "backend0: 3 spans delivered"
    assert str(second) == "backend1: 3 spans lost (failed); ValueError: no"


async def test_a_report_says_why_something_reached_no_backend() -> None:
    async with runtime(Kept()) as rt:
        pass
    rt.telemetry.record_metric("late", 1, kind="counter")
    (_, before) = rt.telemetry.report()
    assert before.lost == {("metrics", "shutdown"): 1}


async def test_what_was_lost_is_logged_once_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    async with runtime(Kept(*(99 * [ValueError("no")]), signals=("spans",))) as rt:
        with rt.telemetry.start_span("x"):
            pass
    await rt.aclose()
    told = [record.getMessage() for record in caplog.records if "telemetry lost" in record.getMessage()]
    assert told == ["telemetry lost: backend0: 1 spans lost (failed)"]


async def test_a_runtime_that_was_not_entered_delivers_all_the_same() -> None:
    async def agent(message: str, ctx: Context) -> str:
        with ctx.start_span("step"):
            return message

    backend = Kept()
    rt = Runtime(backends=[("kept", backend)])
    await rt.run(agent, "hi")
    await rt.aclose()
    assert {each.name for each in backend.spans} == {"invoke_agent agent", "step"}
    assert "agent.execution.duration" in backend.metrics


async def test_a_backend_that_collects_sees_the_calls_beside_one_that_exports() -> None:
    class Both(Kept):
        def __init__(self) -> None:
            super().__init__()
            self.calls: list[Any] = []

        def collect(self, call: Any, /) -> None:
            self.calls.append(call)

    async def agent(message: str, ctx: Context) -> str:
        return await ctx.call("call", "there", lambda: asyncio.sleep(0, "done"))

    backend = Both()
    async with runtime(backend) as rt:
        await rt.run(agent, "hi")
    assert len(backend.calls) == 1
    assert {each.name for each in backend.spans} == {"invoke_agent agent", "there"}


async def test_telemetry_that_is_off_does_nothing() -> None:
    async with runtime(memory=False) as rt:
        assert not rt.telemetry.is_on
        assert rt.telemetry.collect is None
        rt.telemetry.record_metric("orders", 1)
        assert rt.telemetry.metrics() == ()
        assert await rt.telemetry.flush()
        assert rt.telemetry.report() == []


async def test_the_facade_loads_no_opentelemetry_until_spans_are_wanted() -> None:
    code = (
        "import sys, agentrt\n"
        "rt = agentrt.Runtime()\n"
        "rt.telemetry.record_metric('a', 1)\n"
        "assert rt.telemetry.start_span('x') and rt.telemetry.metrics()\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    assert await process.wait() == 0
