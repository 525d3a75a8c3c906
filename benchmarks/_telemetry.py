"""What is measured, by whom ever it is telemetered: calls of one tool, each a span with attributes and two metrics.

A `Subject` makes the calls and tells what arrived. `measure` times it, `prove` shows that all of it arrived with the
right parents, `lose` how much is lost when too much comes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from _measure import Invalid, TooNoisy
from _resilience import ATTEMPT, PRIMARY, Callee
from msgspec import Struct

TARGET = "tool:service"
SPAN = "execute_tool service"
ROOT = "invoke_agent service"
DURATION = "gen_ai.execute_tool.duration"
CALLS = "agent.tool.calls"
TAGS = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "service"}
"""What the two metrics are told apart by."""
ATTRIBUTES = {
    **TAGS,
    "gen_ai.tool.type": "function",
    "agentrt.kind": "tool",
    "agentrt.target": TARGET,
    "agentrt.run.id": "0123456789abcdef",
}
"""What each span has."""
QUEUE = 20_000
"""Spans that may wait, here and there, so that nothing is lost while it is measured."""
BURST = 40
PROVED = 3


class SeenSpan(Struct, frozen=True):
    """A span as it arrived; `attributes`: how many."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str | None
    attributes: int


class Seen(Struct, frozen=True):
    """What arrived so far. `spans`: all of them, those around the calls included. `metrics`: sums of counters, counts
    of histograms. `reported`: calls that are reported as not delivered. `recent`: the last spans."""

    spans: int
    metrics: Mapping[str, float]
    recent: list[SeenSpan]
    reported: int = 0


class Subject(Protocol):
    """Somebody's telemetry. `name`; `callee`: what is called; `roots`: spans made so far around many calls."""

    name: str
    callee: Callee
    roots: int
    has_spans: bool
    has_metrics: bool

    async def make_calls(self, count: int) -> int:
        """So many calls one after the other, inside of one span. Returns the nanoseconds of CPU of this thread that
        they took, without that span."""
        ...

    async def make_calls_paced(self, count: int, *, per_second: float) -> None:
        """The same at an even pace."""
        ...

    async def flush(self) -> None:
        """Deliver everything that came until now."""
        ...

    def seen(self) -> Seen: ...

    async def aclose(self) -> None: ...


class Cost(Struct, frozen=True):
    """Nanoseconds of CPU of one call: on the path of the call, and in all threads together."""

    path: float
    all_threads: float


async def repeat(call: Callable[[], Any], count: int) -> int:
    started = time.thread_time_ns()
    for _ in range(count):
        await call()
    return time.thread_time_ns() - started


async def repeat_paced(call: Callable[[], Any], count: int, *, per_second: float) -> None:
    """Bursts of 40: at 4,000 calls a second one each 10 ms."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    for made in range(0, count, BURST):
        await asyncio.sleep(max(0.0, started + made / per_second - loop.time()))
        await repeat(call, min(BURST, count - made))


# --- the unit ------------------------------------------------------------------------------------------


class Plain:
    """Calls without telemetry: bare, or inside `asyncio.timeout`."""

    has_spans = has_metrics = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.callee = Callee()
        self.roots = 0

    async def make_calls(self, count: int) -> int:
        serve = self.callee.serve
        if self.name == "bare":
            return await repeat(serve, count)
        started = time.thread_time_ns()
        for _ in range(count):
            async with asyncio.timeout(ATTEMPT):
                await serve()
        return time.thread_time_ns() - started

    async def make_calls_paced(self, count: int, *, per_second: float) -> None:
        await repeat_paced(self.callee.serve, count, per_second=per_second)

    async def flush(self) -> None: ...

    def seen(self) -> Seen:
        return Seen(0, {}, [])

    async def aclose(self) -> None: ...


# --- measuring -----------------------------------------------------------------------------------------


async def measure(subjects: list[Subject], *, calls: int, rounds: int) -> dict[str, Cost]:
    """The best round of each, the subjects taking turns. What is done off the path is waited for, and so counted."""
    everyone: list[Subject] = [Plain("bare"), Plain("timeout"), *subjects]
    path = {subject.name: float("inf") for subject in everyone}
    total = dict(path)
    for subject in everyone:
        await subject.make_calls(calls)
        await subject.flush()
    for _ in range(rounds):
        for subject in everyone:
            all_threads = time.process_time_ns()
            here = await subject.make_calls(calls)
            await subject.flush()
            all_threads = time.process_time_ns() - all_threads
            path[subject.name] = min(path[subject.name], here / calls)
            total[subject.name] = min(total[subject.name], all_threads / calls)
    return {name: Cost(path[name], total[name]) for name in path}


def in_timeouts(costs: Mapping[str, Cost]) -> dict[str, float]:
    """Net costs in units of asyncio.timeout's: `path_x_NAME` and `all_threads_x_NAME`, of "null" without a name."""
    bare, unit = costs["bare"].path, costs["timeout"].path - costs["bare"].path
    if unit <= 0:
        raise TooNoisy("asyncio.timeout was not slower than nothing: the machine is too noisy to measure on")
    figures = {}
    for name, cost in costs.items():
        if name not in ("bare", "timeout"):
            suffix = "" if name == "null" else f"_{name}"
            figures[f"path_x{suffix}"] = round((cost.path - bare) / unit, 3)
            figures[f"all_threads_x{suffix}"] = round((cost.all_threads - bare) / unit, 3)
    return figures


# --- proving -------------------------------------------------------------------------------------------


class Users:
    """The spans that a user makes with OpenTelemetry, with a tracer provider of the user's own."""

    def __init__(self) -> None:
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self._tracer = provider.get_tracer("user")

    async def serve(self) -> str:
        """What the callee does during the proof."""
        with self._tracer.start_as_current_span("inner"):
            return PRIMARY

    def taken(self) -> list[tuple[str, str | None]]:
        """Trace id and parent of each span since the last time."""
        spans = self._exporter.get_finished_spans()
        self._exporter.clear()
        return [
            (
                f"{span.context.trace_id:032x}",
                None if span.parent is None else f"{span.parent.span_id:016x}",
            )
            for span in spans
        ]


async def prove(subject: Subject, *, calls: int) -> None:
    """Show that all of the `calls` made so far arrived, and that users' spans, calls and the span around them are
    parents and children; `Invalid` if not."""
    await subject.flush()
    _check_counts(subject, calls)
    users = Users()
    subject.callee.begin(users.serve)
    try:
        await subject.make_calls(PROVED)
    finally:
        subject.callee.begin()
    await subject.flush()
    _check_counts(subject, calls + PROVED)
    inner = users.taken()
    if not subject.has_spans:
        return
    recent = subject.seen().recent
    made = [span for span in recent if span.name.startswith(("execute_tool", "service"))][-PROVED:]
    root = recent[-1]
    if len(inner) != PROVED or inner != [(span.trace_id, span.span_id) for span in made]:
        raise Invalid(f"{subject.name}: a user's spans inside of calls have {inner} around them, not {made}")
    for span in made:
        if (span.trace_id, span.parent_id) != (root.trace_id, root.span_id):
            raise Invalid(f"{subject.name}: {span} is not inside of {root}")
        if not 5 <= span.attributes <= 16:  # logfire adds where it was called
            raise Invalid(f"{subject.name}: a span has {span.attributes} attributes")


def _check_counts(subject: Subject, calls: int) -> None:
    seen = subject.seen()
    wanted = calls + subject.roots if subject.has_spans else 0
    if seen.reported or seen.spans != wanted:
        raise Invalid(
            f"{subject.name}: {seen.spans} spans of {wanted} arrived, {seen.reported} calls are reported as lost"
        )
    if subject.has_metrics:
        counted = {name: seen.metrics.get(name) for name in (DURATION, CALLS)}
        if counted != dict.fromkeys(counted, calls):
            raise Invalid(f"{subject.name}: the metrics of {calls} calls say {counted}")


# --- losing --------------------------------------------------------------------------------------------


class Fate(Struct, frozen=True):
    """What became of the spans of many calls: `silently` is what is neither delivered nor reported as dropped."""

    calls: int
    delivered: int
    reported: int

    @property
    def lost(self) -> int:
        return self.calls - self.delivered

    @property
    def silently(self) -> int:
        return self.calls - self.delivered - self.reported


async def lose(subject: Subject, *, calls: int, per_second: float | None = None) -> Fate:
    """Make `calls` calls at full speed, or at a pace, then deliver and end; nothing else was made before."""
    if per_second is None:
        await subject.make_calls(calls)
    else:
        await subject.make_calls_paced(calls, per_second=per_second)
    await subject.flush()
    await subject.aclose()
    seen = subject.seen()
    # One span is around all of them, and nobody says whether that is the one that was lost.
    return Fate(calls + subject.roots, seen.spans, seen.reported)
