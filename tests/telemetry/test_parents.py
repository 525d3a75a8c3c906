"""Spans keep their parents wherever one run's work goes, and forked workers deliver theirs: as seen from outside."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

from opentelemetry import trace
from servers.otlp import Collector
from telemetry.everywhere import own_tracer_provider

from agentrt.config import Config
from agentrt.runtime import Runtime
from agentrt.telemetry.signals import Batch, Span
from tests.cli.commands import environment

TREE = [
    ("around the run", None),
    ("invoke_agent Nest", "around the run"),
    ("outer", "invoke_agent Nest"),
    ("their own", "outer"),
    ("chat echo", "their own"),
    ("in a task", "outer"),
    ("in a thread", "outer"),
    ("in an executor", "invoke_agent Nest"),  # which takes no context along: the run is still known
    ("below the executor's", "in an executor"),
    ("from a queue", "invoke_agent Nest"),  # where the consumer was made
    ("chat echo", "outer"),
    ("in a stream", "outer"),
    ("after the stream", "outer"),
    ("a generator that is closed", "outer"),
    ("after the closed one", "outer"),
    ("a generator that is left", "outer"),
    ("after the left one", "outer"),
    ("ours after the left one", "outer"),
]


def theirs(name: str) -> None:
    """A span of another library's."""
    with trace.get_tracer("theirs").start_as_current_span(name):
        pass


async def task() -> None:
    theirs("in a task")


class Nest:
    async def run(self, message: str, ctx: Any) -> str:
        queue: asyncio.Queue[str | None] = asyncio.Queue()

        async def consume() -> None:
            while (name := await queue.get()) is not None:
                theirs(name)

        consumer = asyncio.create_task(consume())
        with ctx.start_span("outer"):
            with trace.get_tracer("theirs").start_as_current_span("their own"):
                await ctx.model(message, model="scripted:echo")
            await asyncio.create_task(task())
            await asyncio.to_thread(theirs, "in a thread")
            await self.use_an_executor(ctx)
            await queue.put("from a queue")
            await self.close_early(ctx)
        await queue.put(None)
        await consumer
        return "nested"

    async def use_an_executor(self, ctx: Any) -> None:
        def work() -> None:
            with ctx.start_span("in an executor"):
                theirs("below the executor's")

        with ThreadPoolExecutor(1) as pool:
            await asyncio.get_running_loop().run_in_executor(pool, work)

    async def close_early(self, ctx: Any) -> None:
        async def numbers(name: str) -> AsyncGenerator[int]:
            with ctx.start_span(name):
                yield 1
                yield 2

        async with ctx.stream_model("one two three", model="scripted:echo") as stream:
            async for _ in stream:
                theirs("in a stream")
                break
        theirs("after the stream")
        closed = numbers("a generator that is closed")
        await anext(closed)
        await closed.aclose()
        theirs("after the closed one")
        async for _ in numbers("a generator that is left"):
            break
        # The loop closes it in a task of its own, whose context is not this one.
        await asyncio.sleep(0.01)
        theirs("after the left one")
        with ctx.start_span("ours after the left one"):
            pass


class Keeps:
    """A backend that keeps the spans."""

    signals: ClassVar[tuple[str, ...]] = ("spans",)

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def export(self, batch: Batch, /) -> None:
        self.spans += batch.spans


def drawn(spans: list[Span]) -> Counter[tuple[str, str | None]]:
    """Each span's name with its parent's; all are of one trace."""
    names = {span.span_id: span.name for span in spans}
    assert len({span.trace_id for span in spans}) == 1
    return Counter((span.name, names[span.parent_id] if span.parent_id else None) for span in spans)


def test_parents_are_kept_everywhere() -> None:
    keeps = Keeps()

    async def scenario() -> None:
        config = Config({"telemetry": {"register_global": True}})
        async with Runtime(config, backends=[("keeps", keeps)]) as runtime:
            with trace.get_tracer("theirs").start_as_current_span("around the run"):
                assert (await runtime.run(Nest, "hi")).text == "nested"

    with own_tracer_provider():
        asyncio.run(scenario())
    assert drawn(keeps.spans) == Counter(TREE)


FORKING = """
import asyncio
import multiprocessing
import sys

from agentrt import Agent
from agentrt.config import Config
from agentrt.runtime import Runtime


class Bot(Agent):
    model = "scripted:echo"


def work(runtime, number):
    for _ in range(100):
        with runtime.telemetry.start_span(f"in worker {number}"):
            pass
    runtime.telemetry.log("warning", f"worker {number} is done")
    runtime.telemetry.record_metric("done", 1, {"worker": str(number)}, kind="counter")


async def main():
    async with Runtime(Config({"telemetry": {"otlp": {"endpoint": sys.argv[1]}}})) as runtime:
        for _ in range(5):
            await runtime.run(Bot, "before")
        fork = multiprocessing.get_context("fork")
        workers = [fork.Process(target=work, args=(runtime, number)) for number in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            await asyncio.to_thread(worker.join)
            assert worker.exitcode == 0, worker.exitcode
        for _ in range(5):
            await runtime.run(Bot, "after")
    assert [report.lost for report in runtime.telemetry.report()] == [{}]


asyncio.run(main())
"""


def test_forked_workers_deliver_what_is_theirs_and_nothing_twice(
    tmp_path: Path, collector: Collector
) -> None:
    (tmp_path / "forking.py").write_text(FORKING)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "forking.py", collector.url],
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    names = Counter(span.name for span in collector.spans)
    assert names == {"invoke_agent Bot": 10, "chat echo": 10, "in worker 0": 100, "in worker 1": 100}
    assert len({span.span_id for span in collector.spans}) == 220
    lines = Counter(line.body.string_value for line in collector.logs)
    assert lines == {"run started": 10, "worker 0 is done": 1, "worker 1 is done": 1}
    assert len([metric for metric in collector.metrics if metric.name == "done"]) >= 2
