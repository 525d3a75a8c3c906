"""Our telemetry in each of its states, around the pipeline that `overhead` measures."""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Self

from _measure import Invalid
from _otlp_sink import RECENT, Sink
from _resilience import Callee, stages
from _telemetry import QUEUE, TARGET, Seen, SeenSpan, repeat_paced

from agentrt import Limits, Runtime
from agentrt.config import Config
from agentrt.middleware.telemetry import Telemetry
from agentrt.pipeline import Pipeline
from agentrt.telemetry.memory import InMemory
from agentrt.telemetry.signals import Batch, Histogram, Metric

STATES = ("off", "sampled_out", "memory", "null", "otlp")
HOUR = Limits(seconds=3600.0)


class NullBackend:
    """Takes everything and only counts it."""

    def __init__(self) -> None:
        self.spans = 0
        self.metrics: dict[str, float] = {}
        self.recent: deque[Any] = deque(maxlen=RECENT)

    def export(self, batch: Batch) -> None:
        self.spans += len(batch.spans)
        self.recent.extend(batch.spans[-RECENT:])
        if batch.metrics:
            self.metrics = totals(batch.metrics)


class Ours:
    """A runtime whose telemetry is in one of `STATES`; its calls are made inside of a run."""

    def __init__(self, state: str, *, sink: Sink | None = None, endpoint: str | None = None) -> None:
        self.name = state
        self.callee = Callee()
        self.roots = 0
        self.has_spans = state in ("null", "otlp")
        self.has_metrics = state != "off"
        self._sink = sink
        self._null = NullBackend()
        settings: dict[str, Any] = {"none": {}}
        if state == "memory":
            settings = {"memory": {}}
        elif state == "otlp":
            settings = {"otlp": {"endpoint": endpoint if sink is None else sink.url}}
        elif state == "sampled_out":
            settings["sample"] = 0.0
        backends = [("null", self._null)] if state in ("sampled_out", "null") else []
        self.runtime = Runtime(
            Config({"telemetry": {**settings, "queue": QUEUE}, "log": {"level": "error"}}), backends=backends
        )
        telemetry = self.runtime.telemetry
        if (telemetry.collect is None) != (state == "off"):
            raise Invalid(f"{state}: telemetry is on where it should be off, or the other way round")
        pipeline = Pipeline(
            inner_first=[
                *stages(self.callee)[:-1],
                Telemetry(collect=telemetry.collect, tracing=telemetry.tracing),
            ],
            kind="tool",
            operation="service",
            target=TARGET,
            idempotent=True,
            deadline=self.callee.deadline,
        )
        self.call: Callable[[], Any] = partial(pipeline.call, self.callee.serve)
        self._pipeline = pipeline
        self._agent = _Agent()

    async def __aenter__(self) -> Self:
        await self.runtime.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    async def make_calls(self, count: int) -> int:
        call, serve = self._pipeline.call, self.callee.serve
        took = 0

        async def work() -> None:
            nonlocal took
            started = time.thread_time_ns()
            for _ in range(count):
                await call(serve)
            took = time.thread_time_ns() - started

        await self._run(work)
        return took

    async def make_calls_paced(self, count: int, *, per_second: float) -> None:
        await self._run(lambda: repeat_paced(self.call, count, per_second=per_second))

    async def _run(self, work: Callable[[], Any]) -> None:
        self.roots += 1
        self._agent.work = work
        await self.runtime.run(self._agent, "go", limits=HOUR)

    async def flush(self) -> None:
        if self.has_metrics and not await self.runtime.telemetry.flush(30.0):
            raise Invalid(f"{self.name}: telemetry was not delivered within 30 s")

    def seen(self) -> Seen:
        lost = [count for report in self.runtime.telemetry.report() for count in _lost(report)]
        if self._sink is not None:
            seen = self._sink.seen()
            recent = [SeenSpan(**span) for span in seen["recent"]]
            return Seen(seen["spans"], seen["metrics"], recent, sum(lost))
        if self.name == "memory":
            return Seen(0, totals(self.runtime.telemetry.metrics()), [], sum(lost))
        recent = [
            SeenSpan(span.name, span.trace_id, span.span_id, span.parent_id, len(span.attributes))
            for span in self._null.recent
        ]
        return Seen(self._null.spans, self._null.metrics, recent, sum(lost))

    def kept(self) -> tuple[int, int]:
        """How many calls the memory holds, and how many it has let go."""
        for _, backend in self.runtime.telemetry.backends:
            if isinstance(backend, InMemory):
                return len(backend), backend.dropped
        raise Invalid(f"{self.name}: there is no memory")

    async def aclose(self) -> None:
        await self.runtime.aclose()


class _Agent:
    name = "service"

    def __init__(self) -> None:
        self.work: Callable[[], Any] | None = None

    async def run(self, message: str) -> str:
        assert self.work is not None
        await self.work()
        return message


def totals(metrics: tuple[Metric, ...]) -> dict[str, float]:
    """The sum of each counter, the count of each histogram."""
    return {
        metric.name: sum(
            point.value.count if isinstance(point.value, Histogram) else point.value
            for point in metric.points
        )
        for metric in metrics
    }


def _lost(report: Any) -> list[int]:
    return [count for (signal, _), count in report.lost.items() if signal in ("spans", "calls", "runs")]


async def shutdown_seconds(calls: int) -> float:
    """How long a runtime takes to end whose collector accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as hole:
        ours = Ours("otlp", endpoint=f"http://127.0.0.1:{hole.getsockname()[1]}")
        await ours.__aenter__()
        await ours.make_calls(calls)
        started = time.monotonic()
        await ours.aclose()
        took = time.monotonic() - started
    seen = sum(count for report in ours.runtime.telemetry.report() for count in _lost(report))
    if seen != calls + ours.roots:
        raise Invalid(
            f"nothing could be delivered, and {seen} of {calls + ours.roots} spans are reported as lost"
        )
    return took
