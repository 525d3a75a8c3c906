"""Many calls: at full speed what is lost is counted, at a usual rate nothing is."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import pytest

from agentrt import Config, Context, Runtime
from agentrt.telemetry import Batch, Histogram
from tests.telemetry.recording import Kept

pytestmark = pytest.mark.asyncio


class Counts:
    """Counts what comes, `seconds` a batch."""

    interval = 0.5

    def __init__(self, seconds: float = 0.0) -> None:
        self.names: Counter[str] = Counter()
        self.ids: set[str] = set()
        self.last: dict[str, Any] = {}
        self._seconds = seconds

    def export(self, batch: Batch, /) -> None:
        time.sleep(self._seconds)
        for span in batch.spans:
            self.names[span.name] += 1
            self.ids.add(span.span_id)
        self.last |= {metric.name: metric for metric in batch.metrics}


def lost(rt: Runtime, name: str, *signals: str) -> int:
    return sum(
        count
        for report in rt.telemetry.report()
        if report.name == name
        for (signal, _), count in report.lost.items()
        if signal in signals
    )


async def work() -> None:
    await asyncio.sleep(0)


@pytest.mark.parametrize("queue", [pytest.param(20_000, marks=pytest.mark.slow), 500])
async def test_of_100_000_calls_at_full_speed_each_is_delivered_or_reported_dropped(queue: int) -> None:
    quick, slow = Counts(), Counts(0.1)
    calls = 100_000

    async def agent(message: str, ctx: Context) -> str:
        async def some(count: int) -> None:
            for _ in range(count):
                await ctx.call("call", "there", work)

        await asyncio.gather(*(some(calls // 50) for _ in range(50)))
        return message

    rt = Runtime(Config({"telemetry": {"queue": queue}}), backends=[("quick", quick), ("slow", slow)])
    async with rt:
        assert (await rt.run(agent, "hi")).text == "hi"
        await rt.telemetry.flush(40.0)
    before = lost(rt, "before any backend", "calls", "runs")
    for name, backend in (("quick", quick), ("slow", slow)):
        assert sum(backend.names.values()) + lost(rt, name, "spans") + before == calls + 1
        assert len(backend.ids) == sum(backend.names.values()), "none is delivered twice"
    counted = sum(point.value.count for point in quick.last["agentrt.call.duration"].points)
    assert counted + lost(rt, "before any backend", "calls") == calls
    dropped = quick.last.get("agentrt.telemetry.dropped")
    assert (dropped is not None) == (before + lost(rt, "slow", "spans") > 0)


async def test_at_4000_calls_a_second_nothing_is_lost() -> None:
    backend, kept = Counts(), Kept(interval=0.5)
    rate, seconds = 4000, 3.0

    async def agent(message: str, ctx: Context) -> str:
        loop = asyncio.get_running_loop()
        began = loop.time()
        made = 0
        while made < rate * seconds:
            due = int((loop.time() - began) * rate) - made
            for _ in range(due):
                await ctx.call("call", "there", work)
            made += due
            await asyncio.sleep(0.005)
        return str(made)

    async with Runtime(backends=[("counts", backend), ("kept", kept)]) as rt:
        made = int((await rt.run(agent, "hi")).text)
        assert await rt.telemetry.flush(40.0)
    assert backend.names["there"] == made >= rate * seconds
    assert len(kept.spans) == made + 1
    assert all(report.lost == {} for report in rt.telemetry.report())
    value = backend.last["agentrt.call.duration"].points[0].value
    assert isinstance(value, Histogram)
    assert value.count == made
