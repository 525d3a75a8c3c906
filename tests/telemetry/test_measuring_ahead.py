"""Who asks for the metrics has all of them, and does not do the work of the thread that makes spans."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt import Context, Runtime
from agentrt.telemetry.meter import Instrument, Meter
from agentrt.telemetry.processor import Measured, Processor
from tests.telemetry.recording import Kept, line, processor, span, until

ORDERS = Instrument("orders", "counter")


def order(**tags: Any) -> Measured:
    return Measured(ORDERS, 1.0, tags)


def asleep(*backends: Any, meter: Meter, queue: int = 20_000) -> Processor:
    """A processor whose thread does nothing by itself."""
    made = processor(*backends, meter=meter, queue=queue)
    made._pending.is_idle = False
    return made


def orders(meter: Meter) -> float:
    found = [metric for metric in meter.snapshot() if metric.name == "orders"]
    return sum(point.value for metric in found for point in metric.points if isinstance(point.value, float))


@pytest.mark.asyncio
async def test_metrics_are_complete_and_what_waits_goes_on_waiting() -> None:
    async def agent(message: str, ctx: Context) -> str:
        rt.telemetry._processor._pending.is_idle = False  # from here on the thread is told of nothing
        for _ in range(300):
            await ctx.call("tool", "t", nothing)
            ctx.record_metric("orders", 1, kind="counter")
        for _ in range(2):
            found = {metric.name: metric for metric in rt.telemetry.metrics()}
            assert [point.value for point in found["orders"].points] == [300.0]
            assert [point.value for point in found["agent.tool.calls"].points] == [300.0]
            assert len(rt.telemetry._processor._pending.items) >= 600, "no spans are made in the loop"
        return message

    async def nothing() -> None:
        pass

    kept = Kept(signals=("spans", "metrics"))
    async with Runtime(backends=[("kept", kept)]) as rt:
        await rt.run(agent, "hi")
    assert Counter(each.name for each in kept.spans) == {"execute_tool t": 300, "invoke_agent agent": 1}
    assert kept.metrics["orders"].points[0].value == kept.metrics["agent.tool.calls"].points[0].value == 300.0


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(st.just("offer"), st.integers(0, 700)) | st.tuples(st.sampled_from(["measure", "drain"]), st.just(0)),
        max_size=10,
    ),
    st.integers(1, 1500),
)  # fmt: skip
def test_each_value_counts_once_and_each_signal_is_made_once(
    steps: list[tuple[str, int]], queue: int
) -> None:
    meter, kept = Meter(), Kept(signals=("spans", "logs"))
    made = asleep(kept, meter=meter, queue=queue)
    offered = 0
    for step, count in steps:
        if step == "offer":
            for number in range(offered, offered + count):
                made.offer((order(), span(str(number)), line())[number % 3])
            offered += count
        elif step == "measure":
            assert made.measure()
            too_many = made.lost.get(("metrics", "queue full"), 0)
            assert orders(meter) + too_many == len(range(0, offered, 3))
        else:
            made.drain()
    made.close(10.0)
    lost = made.lost
    assert {reason for _, reason in lost} <= {"queue full"}
    for signal, first, got in (
        ("metrics", 0, orders(meter)),
        ("spans", 1, len(kept.spans)),
        ("logs", 2, len(kept.lines)),
    ):
        assert got + lost.get((signal, "queue full"), 0) == len(range(first, offered, 3))
    assert len({each.name for each in kept.spans}) == len(kept.spans)


def test_a_tag_that_asks_for_the_metrics_while_it_is_read_does_no_harm() -> None:
    meter, kept = Meter(), Kept()

    class Curious:
        def __str__(self) -> str:
            assert made.measure()
            return "curious"

        __repr__ = __str__

    made = asleep(kept, meter=meter)
    for _ in range(3):
        made.offer(order(tag=Curious()))
    assert made.measure()
    made.offer(order(tag=Curious()))
    made.close(10.0)
    assert (orders(meter), made.lost) == (4.0, {})


def test_a_value_that_cannot_be_recorded_is_lost_once() -> None:
    meter = Meter()
    made = asleep(Kept(), meter=meter)
    made.offer(Measured(Instrument("orders", "gauge"), 1.0, {}))
    made.offer(order())  # of another kind
    for _ in range(2):
        assert made.measure()
        assert made.lost == {("metrics", "failed"): 1}
    made.close(10.0)
    assert made.lost == {("metrics", "failed"): 1}


class Hangs:
    """Its text comes when it is released."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.release = threading.Event()

    def __str__(self) -> str:
        self.entered.set()
        self.release.wait(30)
        return "late"

    __repr__ = __str__


def test_what_was_measured_is_not_lost_with_what_is_given_up() -> None:
    meter, hanging = Meter(), Hangs()
    made = processor(Kept(), meter=meter)
    made.take(Hangs, lambda item: line(str(item)))
    made.offer(hanging)
    assert hanging.entered.wait(10)
    for item in (order(), line(), order(), span()):
        made.offer(item)
    assert made.measure()
    made.offer(order())
    made.close(0.3)
    assert orders(meter) == 2.0
    assert made.lost == {("spans", "shutdown"): 2, ("logs", "shutdown"): 1, ("metrics", "shutdown"): 1}
    hanging.release.set()
    thread = made._thread
    assert thread is not None
    until(lambda: not thread.is_alive())
    assert made.lost == {("spans", "shutdown"): 2, ("logs", "shutdown"): 1, ("metrics", "shutdown"): 1}


def test_who_asks_does_not_wait_for_ever_for_a_value_that_hangs() -> None:
    meter, hanging = Meter(), Hangs()
    made = processor(Kept(), meter=meter)
    made.offer(order(tag=hanging))
    assert hanging.entered.wait(10)
    assert not made.measure(0.05)
    hanging.release.set()
    made.close(10.0)
    assert orders(meter) == 1.0
