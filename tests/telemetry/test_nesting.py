"""Spans of others inside ours and ours inside theirs, wherever the work goes: parents are right and nothing leaks."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, TraceIdRatioBased

from agentrt import Agent, Config, Context, Runtime, current, tool
from agentrt.telemetry import Span
from tests.runtime.doubles import FakeModel, wants
from tests.telemetry.everywhere import own_tracer_provider
from tests.telemetry.recording import Kept

pytestmark = pytest.mark.asyncio


class Theirs:
    """A provider of the user's own."""

    def __init__(self, **options: Any) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False, **options)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("theirs")

    def named(self, name: str) -> ReadableSpan:
        (found,) = [span for span in self._exporter.get_finished_spans() if span.name == name]
        return found

    @property
    def names(self) -> list[str]:
        return [span.name for span in self._exporter.get_finished_spans()]


def ids(span: Any) -> tuple[str, str]:
    """Trace id and span id of anybody's span."""
    if isinstance(span, Span):
        return span.trace_id, span.span_id
    context = span.get_span_context()
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


def parent(span: Any) -> tuple[str, str] | None:
    if isinstance(span, Span):
        return None if span.parent_id is None else (span.trace_id, span.parent_id)
    above = span.parent
    return None if above is None else (f"{above.trace_id:032x}", f"{above.span_id:016x}")


def nothing_is_current() -> bool:
    return otel_context.get_current() == {} and trace.get_current_span() is trace.INVALID_SPAN


@contextlib.asynccontextmanager
async def running(*, models: Any = None, **settings: Any) -> AsyncIterator[tuple[Runtime, Kept]]:
    """A runtime after which nothing is current."""
    backend = Kept(interval=60.0)
    config = Config({"telemetry": settings}) if settings else None
    assert nothing_is_current()
    async with Runtime(config, backends=[("kept", backend)], models=models) as rt:
        yield rt, backend
        assert nothing_is_current()
    assert nothing_is_current()
    assert all(report.lost == {} for report in rt.telemetry.report())


async def traced(ctx: Context, theirs: Theirs, name: str) -> None:
    """A call of ours with a span of theirs in it and a call of ours in that."""

    async def inner() -> None:
        with theirs.tracer.start_as_current_span(f"theirs in {name}"):
            await ctx.call("call", f"inner {name}", lambda: asyncio.sleep(0))

    await ctx.call("call", name, inner)


def check(theirs: Theirs, backend: Kept, name: str) -> None:
    ours, between, inner = (
        backend.named(name),
        theirs.named(f"theirs in {name}"),
        backend.named(f"inner {name}"),
    )
    assert parent(between) == ids(ours)
    assert parent(inner) == ids(between)


# --- theirs and ours ------------------------------------------------------------------------------------


async def test_ours_stand_in_theirs_and_theirs_in_ours() -> None:
    theirs = Theirs()

    async def agent(message: str, ctx: Context) -> str:
        with theirs.tracer.start_as_current_span("in the run"):
            await traced(ctx, theirs, "call")
            with ctx.start_span("step"), theirs.tracer.start_as_current_span("in the step"):
                pass
        return message

    async with running() as (rt, backend):
        with theirs.tracer.start_as_current_span("outermost"):
            await rt.run(agent, "hi")
            assert trace.get_current_span().name == "outermost"  # type: ignore[attr-defined]
    root = backend.named("invoke_agent agent")
    assert parent(root) == ids(theirs.named("outermost"))
    assert parent(theirs.named("in the run")) == ids(root)
    assert parent(backend.named("call")) == ids(theirs.named("in the run"))
    check(theirs, backend, "call")
    assert parent(backend.named("step")) == ids(theirs.named("in the run"))
    assert parent(theirs.named("in the step")) == ids(backend.named("step"))
    assert all(span.get_span_context().trace_flags.sampled for span in [theirs.named("in the run")])


async def test_the_spans_of_a_provider_that_was_there_come_to_us_and_ours_go_there() -> None:
    theirs = Theirs()
    with own_tracer_provider():
        trace.set_tracer_provider(theirs.provider)

        async def agent(message: str, ctx: Context) -> str:
            with trace.get_tracer("lib").start_as_current_span("select", attributes={"rows": 3}):
                await ctx.call("call", "there", lambda: asyncio.sleep(0))
            return message

        async with running() as (rt, backend):
            await rt.run(agent, "hi")
            assert await rt.telemetry.flush()
        with trace.get_tracer("lib").start_as_current_span("after the end"):
            pass
    select = backend.named("select")
    assert (select.scope, select.attributes) == ("lib", {"rows": 3})
    assert parent(select) == ids(backend.named("invoke_agent agent"))
    assert parent(backend.named("there")) == ids(select)
    assert sorted(theirs.names) == sorted(["select", "there", "invoke_agent agent", "after the end"])
    assert len(backend.spans) == 3, "ours do not come back"
    for name in ("there", "invoke_agent agent"):
        assert ids(theirs.named(name)) == ids(backend.named(name))
        assert parent(theirs.named(name)) == parent(backend.named(name))


# --- wherever the work goes -----------------------------------------------------------------------------


async def test_tasks_take_their_parents_with_them() -> None:
    theirs = Theirs()
    late: list[asyncio.Task[None]] = []

    async def agent(message: str, ctx: Context) -> str:
        async with asyncio.TaskGroup() as group:
            for number in range(3):
                with ctx.start_span(f"part {number}"):
                    group.create_task(traced(ctx, theirs, f"task {number}"))

        async def outlives() -> None:
            await asyncio.sleep(0.02)
            with theirs.tracer.start_as_current_span("late"):
                pass

        late.append(asyncio.create_task(outlives()))
        return message

    async with running() as (rt, backend):
        await rt.run(agent, "hi")
        await late[0]
    for number in range(3):
        assert parent(backend.named(f"task {number}")) == ids(backend.named(f"part {number}"))
        check(theirs, backend, f"task {number}")
    assert parent(theirs.named("late")) == ids(backend.named("invoke_agent agent"))


async def test_threads_and_executors_with_the_context_take_their_parents_with_them() -> None:
    theirs = Theirs()

    def work(name: str) -> None:
        with theirs.tracer.start_as_current_span(name):
            pass

    async def agent(message: str, ctx: Context) -> str:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1) as pool:

            async def inner() -> None:
                await asyncio.to_thread(work, "to_thread")
                captured = contextvars.copy_context()
                await loop.run_in_executor(pool, captured.run, work, "captured")
                await loop.run_in_executor(pool, work, "without")

            await ctx.call("call", "there", inner)
        return message

    async with running() as (rt, backend):
        await rt.run(agent, "hi")
    there = ids(backend.named("there"))
    assert (parent(theirs.named("to_thread")), parent(theirs.named("captured"))) == (there, there)
    assert parent(theirs.named("without")) is None, "an executor knows nothing of contexts, as everywhere"


async def test_a_span_of_a_run_used_in_a_thread_without_a_context_is_the_runs() -> None:
    def work(ctx: Context) -> None:
        with ctx.start_span("in a thread"):
            pass

    async def agent(message: str, ctx: Context) -> str:
        with ThreadPoolExecutor(1) as pool:
            await asyncio.get_running_loop().run_in_executor(pool, work, ctx)
        return message

    async with running() as (rt, backend):
        await rt.run(agent, "hi")
    assert parent(backend.named("in a thread")) == ids(backend.named("invoke_agent agent"))


async def test_a_worker_fed_by_a_queue_does_the_work_of_the_run_that_asked() -> None:
    theirs = Theirs()
    queue: asyncio.Queue[tuple[contextvars.Context | None, Callable[[], Any], asyncio.Future[None]]]
    queue = asyncio.Queue()

    async def worker() -> None:
        while True:
            captured, work, done = await queue.get()
            await asyncio.get_running_loop().create_task(work(), context=captured)
            done.set_result(None)

    async def agent(message: str, ctx: Context) -> str:
        async def ask() -> None:
            for name, captured in (("captured", contextvars.copy_context()), ("bare", None)):
                done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                await queue.put((captured, lambda name=name: traced(ctx, theirs, name), done))
                await done

        await ctx.call("call", "asks", ask)
        return message

    task = asyncio.create_task(worker())
    async with running() as (rt, backend):
        await rt.run(agent, "hi")
    task.cancel()
    assert parent(backend.named("captured")) == ids(backend.named("asks"))
    check(theirs, backend, "captured")
    assert parent(backend.named("bare")) == ids(backend.named("invoke_agent agent")), "the run is known"
    check(theirs, backend, "bare")


theirs_in_tools = Theirs()


@tool
def blocking(number: int) -> str:
    """Works in a thread."""
    with theirs_in_tools.tracer.start_as_current_span(f"blocking {number}"):
        current().log("info", f"in {number}")
    return "ok"


@tool
async def nested(number: int) -> str:
    """Calls a model."""
    with theirs_in_tools.tracer.start_as_current_span(f"nested {number}"):
        await asyncio.sleep(0)
    return "ok"


class Parallel(Agent):
    model = "fake:one"
    tools = (blocking, nested)


async def test_tools_side_by_side_and_in_threads_have_spans_of_their_own() -> None:
    calls = [wants("blocking", f'{{"number": {n}}}', id=f"b{n}") for n in range(3)]
    calls += [wants("nested", f'{{"number": {n}}}', id=f"n{n}") for n in range(3)]
    async with running(models={"fake": FakeModel(calls, "done")}) as (rt, backend):
        await rt.run(Parallel, "go")
    root = backend.named("invoke_agent Parallel")
    tools = {ids(span): span for span in backend.spans if span.name.startswith("execute_tool")}
    assert len(tools) == 6
    assert {parent(span) for span in tools.values()} == {ids(root)}
    for kind in ("blocking", "nested"):
        above = [parent(theirs_in_tools.named(f"{kind} {number}")) for number in range(3)]
        assert len(set(above)) == 3
        assert all(each is not None and tools[each].name == f"execute_tool {kind}" for each in above)
    lines = {line.message: (line.trace_id, line.span_id) for line in backend.lines}
    for number in range(3):
        assert lines[f"in {number}"] == ids(theirs_in_tools.named(f"blocking {number}"))


async def test_a_child_run_stands_in_the_call_that_started_it() -> None:
    theirs = Theirs()

    async def child(message: str, ctx: Context) -> str:
        await traced(ctx, theirs, message)
        return message

    async def agent(message: str, ctx: Context) -> str:
        with ctx.start_span("delegate"):
            await ctx.run(child, "first")
        fresh = contextvars.Context()
        await asyncio.get_running_loop().create_task(ctx.run(child, "second"), context=fresh)
        return message

    async with running() as (rt, backend):
        await rt.run(agent, "hi")
    first, second = sorted(
        [span for span in backend.spans if span.name == "invoke_agent child"], key=lambda span: span.start_ns
    )
    assert parent(first) == ids(backend.named("delegate"))
    assert parent(second) == ids(backend.named("invoke_agent agent"))
    assert parent(backend.named("first")) == ids(first)
    assert parent(backend.named("second")) == ids(second)
    check(theirs, backend, "first")


# --- streams and generators -----------------------------------------------------------------------------


async def test_what_is_done_with_a_streams_items_is_not_inside_its_call() -> None:
    theirs = Theirs()

    async def agent(message: str, ctx: Context) -> str:
        async with ctx.stream_model("hi", model="fake:one") as stream:
            async for _ in stream:
                with theirs.tracer.start_as_current_span("item"):
                    pass
                break
            with theirs.tracer.start_as_current_span("after the break"):
                pass
        with theirs.tracer.start_as_current_span("after the stream"):
            pass
        return message

    async with running(models={"fake": FakeModel("one two three")}) as (rt, backend):
        await rt.run(agent, "hi")
    root = ids(backend.named("invoke_agent agent"))
    for name in ("item", "after the break", "after the stream"):
        assert parent(theirs.named(name)) == root
    assert parent(backend.named("chat one")) == root


async def test_an_agent_that_is_a_generator_leaves_nothing_behind_however_it_ends() -> None:
    theirs = Theirs()
    seen: list[str] = []

    async def agent(message: str, ctx: Context) -> AsyncIterator[str]:
        try:
            for number in range(100):
                await traced(ctx, theirs, f"{message} {number}")
                yield "word "
        finally:
            seen.append(message)

    async with running() as (rt, backend):
        async with rt.stream(agent, "left") as run:
            async for _ in run:
                assert nothing_is_current()
                break
        assert nothing_is_current()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await rt.run(agent, "cancelled")
        assert nothing_is_current()
        await rt.run(agent, "whole")
    assert "whole" in seen
    roots = {ids(span): span for span in backend.spans if span.name == "invoke_agent agent"}
    assert len(roots) == 3
    for number in range(100):
        check(theirs, backend, f"whole {number}")
        above = parent(backend.named(f"whole {number}"))
        assert above is not None
        assert above in roots


async def test_a_generator_that_holds_a_span_and_is_dropped_harms_nobody() -> None:
    async def numbers(ctx: Context) -> AsyncIterator[int]:
        with ctx.start_span("held"):
            for number in range(10):
                yield number

    async def agent(message: str, ctx: Context) -> str:
        dropped = numbers(ctx)
        async for _ in dropped:
            break
        closed = numbers(ctx)
        await asyncio.create_task(anext(closed))  # type: ignore[arg-type]
        await closed.aclose()  # type: ignore[attr-defined]
        del dropped, closed
        gc.collect()
        await asyncio.sleep(0.01)
        return message

    async with running() as (rt, backend):
        await rt.run(agent, "hi")
    assert len([span for span in backend.spans if span.name == "held"]) == 2
    assert backend.named("invoke_agent agent").status == "unset"


async def test_cancelled_calls_leave_nothing_behind() -> None:
    async def agent(message: str, ctx: Context) -> str:
        before = trace.get_current_span()
        for _ in range(3):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await ctx.call("call", "slow", lambda: asyncio.sleep(10))
            assert trace.get_current_span() is before
        return message

    async with running() as (rt, backend):
        await rt.run(agent, "hi")
    slow = [span for span in backend.spans if span.name == "slow"]
    assert len(slow) == 3
    assert {parent(span) for span in slow} == {ids(backend.named("invoke_agent agent"))}


async def test_runs_side_by_side_are_traces_of_their_own() -> None:
    theirs = Theirs()

    async def agent(message: str, ctx: Context) -> str:
        await asyncio.sleep(0)
        await traced(ctx, theirs, message)
        return message

    async with running() as (rt, backend):
        await asyncio.gather(*(rt.run(agent, f"run {number}") for number in range(20)))
    assert len({span.trace_id for span in backend.spans}) == 20
    for number in range(20):
        check(theirs, backend, f"run {number}")


# --- sampling -------------------------------------------------------------------------------------------


async def test_in_a_run_that_is_not_sampled_nothing_is_recorded_by_anybody() -> None:
    theirs = Theirs(sampler=ParentBased(TraceIdRatioBased(1.0)))
    flags: list[tuple[bool, bool]] = []

    def look() -> None:
        span = trace.get_current_span()
        flags.append((span.get_span_context().is_valid, span.get_span_context().trace_flags.sampled))

    async def child(message: str, ctx: Context) -> str:
        look()
        return message

    async def agent(message: str, ctx: Context) -> str:
        look()
        await ctx.call("call", "there", lambda: asyncio.to_thread(look))
        await traced(ctx, theirs, "call")
        await ctx.run(child, "hi")
        with ctx.start_span("step") as span:
            assert not span.is_recording()
            span.set_attribute("a", 1)
        return message

    async with running(sample=0.0) as (rt, backend):
        await rt.run(agent, "hi")
        with theirs.tracer.start_as_current_span("outside"):
            pass
    assert flags == 3 * [(True, False)]
    assert backend.spans == []
    assert theirs.names == ["outside"]
    assert backend.metrics["agent.execution.duration"].points[0].value.count == 1  # type: ignore[union-attr]


async def test_the_decision_of_a_trace_that_we_are_called_in_holds() -> None:
    on, off = Theirs(), Theirs(sampler=ALWAYS_OFF)

    async def agent(message: str, ctx: Context) -> str:
        await ctx.call("call", message, lambda: asyncio.sleep(0))
        return message

    async with running(sample=0.0) as (rt, backend):
        with on.tracer.start_as_current_span("on"):
            await rt.run(agent, "in on")
    assert {span.name for span in backend.spans} == {"invoke_agent agent", "in on"}
    async with running(sample=1.0) as (rt, backend):
        with off.tracer.start_as_current_span("off"):
            await rt.run(agent, "in off")
    assert backend.spans == []


async def test_about_the_wanted_part_of_the_runs_is_traced_and_wholly() -> None:
    async def agent(message: str, ctx: Context) -> str:
        await ctx.call("call", "there", lambda: asyncio.sleep(0))
        return message

    async with running(sample=0.5) as (rt, backend):
        for _ in range(200):
            await rt.run(agent, "hi")
    traces: dict[str, set[str]] = {}
    for span in backend.spans:
        traces.setdefault(span.trace_id, set()).add(span.name)
    assert 60 < len(traces) < 140  # 6 standard deviations
    assert all(names == {"invoke_agent agent", "there"} for names in traces.values())


async def test_a_failure_is_kept_though_its_run_was_not_sampled() -> None:
    async def agent(message: str, ctx: Context) -> str:
        await ctx.call("call", "good", lambda: asyncio.sleep(0))
        if message == "fail":
            raise ValueError("no")
        return message

    async with running(sample=0.0, keep_failures=True) as (rt, backend):
        await rt.run(agent, "ok")
        with pytest.raises(ValueError, match="no"):
            await rt.run(agent, "fail")
    root, good = backend.named("invoke_agent agent"), backend.named("good")
    assert (root.status, parent(root)) == ("error", None)
    assert parent(good) == ids(root)


async def test_what_is_kept_of_a_failure_is_one_trace_that_its_log_lines_are_in() -> None:
    async def child(message: str, ctx: Context) -> str:
        ctx.log("info", "in the child")
        raise ValueError("no")

    async def agent(message: str, ctx: Context) -> str:
        ctx.log("info", "in the parent")
        await ctx.run(child, message)
        return message

    async with running(sample=0.0, keep_failures=True) as (rt, backend):
        with pytest.raises(ValueError, match="no"):
            await rt.run(agent, "fail")
    outer, inner = backend.named("invoke_agent agent"), backend.named("invoke_agent child")
    assert parent(outer) is None
    assert parent(inner) == ids(outer)
    lines = {line.message: (line.trace_id, line.span_id) for line in backend.lines}
    assert lines["in the parent"] == ids(outer)
    assert lines["in the child"] == ids(inner)
