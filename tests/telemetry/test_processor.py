"""From the call path to the backends: nothing waits for it, and nothing is lost without being counted."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.telemetry import Histogram, LogLine, Span
from agentrt.telemetry.exporting import Exporting
from agentrt.telemetry.meter import MAX_SERIES, Instrument, Meter
from agentrt.telemetry.processor import Measured, Processor
from agentrt.telemetry.redaction import Redactor
from tests.telemetry.recording import Kept, line, processor, span, threads, until

COUNTER = Instrument("orders", "counter")


def close(made: Processor, seconds: float = 30.0) -> None:
    made.close(seconds)


def lost(made: Processor) -> int:
    return sum(made.lost.values())


def value(made: Processor, name: str, **tags: Any) -> Any:
    """The value of the one point of a metric that has these tags."""
    made.drain()
    wanted = {key.replace("_", "."): tag for key, tag in tags.items()}
    found = [
        point.value
        for metric in made._meter.snapshot()
        if metric.name == name
        for point in metric.points
        if wanted.items() <= point.attributes.items()
    ]
    (only,) = found or [None]
    return only


@pytest.fixture
def switching() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


# --- threads --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("switching")
def test_what_many_threads_offer_at_once_all_arrives() -> None:
    backend = Kept()
    made = processor(backend)
    barrier = threading.Barrier(8)

    def work(number: int) -> None:
        barrier.wait()
        for each in range(500):
            made.offer(span(f"{number}-{each}"))
            made.offer(Measured(COUNTER, 1.0, {}))

    workers = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    close(made)
    assert made.lost == {}
    names = [each.name for each in backend.spans]
    assert (len(names), len(set(names))) == (4000, 4000)
    assert backend.metrics["orders"].points[0].value == 4000


@pytest.mark.usefixtures("switching")
def test_one_thread_is_started_however_many_offer_first() -> None:
    before = len(threads("agentrt telemetry"))
    for _ in range(20):
        made = processor(Kept())
        barrier = threading.Barrier(8)

        def first(made: Processor = made, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            made.offer(span())

        workers = [threading.Thread(target=first) for _ in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert len(threads("agentrt telemetry")) - before == 1
        close(made)
        assert len(threads("agentrt telemetry")) == before


@pytest.mark.usefixtures("switching")
def test_no_wake_up_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentrt.telemetry.processor.ACCUMULATE", 0.0)
    backend = Kept(signals=("spans",))
    made = processor(backend)
    for number in range(400):
        made.offer(span())
        if number % 3 == 0:
            made.offer(span())
        until(lambda: not made._pending.items, seconds=30.0)
    close(made)
    assert len(backend.spans) == 400 + 134


@pytest.mark.usefixtures("switching")
def test_every_drop_is_counted_whichever_thread_it_happens_in() -> None:
    made = processor(Kept(), queue=1)
    made._pending.is_idle = False  # nothing is taken out
    made.offer(span())

    def work() -> None:
        for _ in range(2000):
            made.offer(span())

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert made.lost == {("spans", "queue full"): 8000}
    close(made)


def test_drops_are_a_metric() -> None:
    backend = Kept()
    made = processor(backend, queue=1)
    made._pending.is_idle = False
    for _ in range(5):
        made.offer(line())
    assert made.lost == {("logs", "queue full"): 4}
    made.drain()
    assert value(made, "agentrt.telemetry.dropped", agentrt_signal="logs") == 4.0
    close(made)
    (point,) = backend.metrics["agentrt.telemetry.dropped"].points
    assert point.attributes == {"agentrt.signal": "logs", "agentrt.reason": "queue full"}


def test_what_a_backend_loses_is_a_metric_of_the_others() -> None:
    refusing, taking = Kept(*(99 * [ValueError("no")])), Kept()
    made = processor(refusing, taking)
    made.offer(span())
    made.flush(30.0)
    close(made)
    points = {
        tuple(sorted(point.attributes.items())): point.value
        for point in taking.metrics["agentrt.telemetry.dropped"].points
    }
    key = (("agentrt.backend", "backend0"), ("agentrt.reason", "failed"), ("agentrt.signal", "spans"))
    assert points[key] == 1.0
    assert len(taking.spans) == 1


def test_a_system_without_threads_does_not_fail_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    real = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    backend = Kept(signals=("spans",))
    made = processor(backend)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        made.offer(span())
        made.offer(span())
        assert not made.flush(0.1)
    assert threading.Thread.start is real
    made.offer(span())
    close(made)
    assert len(backend.spans) == 3


# --- what the user does wrong ---------------------------------------------------------------------------


class Unspeakable:
    def __repr__(self) -> str:
        raise SystemExit("no")

    __str__ = __repr__


class Unhashable:
    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "unhashable"


def test_tags_may_be_anything() -> None:
    made = processor(Kept())
    for tag in ({"a": 1}, [1, 2], {3}, Unhashable(), object, None, b"\xff", float("nan"), 10**30, "é" * 9999):
        made.offer(Measured(COUNTER, 1.0, {"tag": tag}))
    made.offer(Measured(COUNTER, 1.0, {1: 2, None: 3}))  # type: ignore[dict-item]
    made.drain()
    assert made.lost == {}
    (metric,) = made._meter.snapshot()
    assert len(metric.points) == 11
    assert all(len(str(tag)) < 300 for point in metric.points for tag in point.attributes.values())
    close(made)


def test_ten_thousand_tag_values_are_two_thousand_series_and_nothing_is_lost() -> None:
    backend = Kept()
    made = processor(backend)
    for number in range(10_000):
        made.offer(Measured(COUNTER, 1.0, {"user": f"u{number}"}))
    close(made)
    (point,) = [p for p in backend.metrics["orders"].points if p.attributes == {"otel.metric.overflow": True}]
    assert len(backend.metrics["orders"].points) == MAX_SERIES
    assert point.value == 10_000 - (MAX_SERIES - 1)
    assert lost(made) == 0


def test_a_metric_of_two_kinds_is_told_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    made = processor(Kept())
    for _ in range(3):
        made.offer(Measured(COUNTER, 1.0, {}))
        made.offer(Measured(Instrument("orders", "gauge"), 5.0, {}))
    made.offer(Measured(Instrument("agent.tool.calls", "gauge"), 5.0, {}))
    close(made)
    assert made.lost == {("metrics", "failed"): 4}
    told = [record.getMessage() for record in caplog.records]
    assert len([text for text in told if "'orders' is a counter, not a gauge" in text]) == 1
    assert len([text for text in told if "'agent.tool.calls' is a counter" in text]) == 1


def test_what_no_signal_can_be_made_of_is_counted_and_the_rest_arrives(
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = Kept(signals=("spans",))
    made = processor(backend)
    made.take(Unspeakable, lambda item: span(repr(item)))
    for _ in range(2):
        made.offer(span("before"))
        made.offer(Unspeakable())
        made.offer(object())
        made.offer(span("after"))
    close(made)
    assert [each.name for each in backend.spans] == 2 * ["before", "after"]
    assert made.lost == {("spans", "failed"): 4}
    assert len([r for r in caplog.records if "could not be made of a Unspeakable" in r.getMessage()]) == 1


def test_what_cannot_be_redacted_is_not_sent() -> None:
    class Failing(Redactor):
        def span(self, span: Span, /) -> Span:
            if span.name == "bad":
                raise ValueError("no")
            return super().span(span)

        def line(self, line: LogLine, /) -> LogLine:
            raise SystemExit("no")

    backend = Kept(signals=("spans", "logs"))
    made = processor(backend, redactor=Failing())
    for name in ("good", "bad", "good"):
        made.offer(span(name))
        made.offer(line())
    close(made)
    assert [each.name for each in backend.spans] == ["good", "good"]
    assert backend.lines == []
    assert made.lost == {("spans", "failed"): 1, ("logs", "failed"): 3}


def test_everything_is_redacted_and_then_cut() -> None:
    redactor = Redactor()
    redactor.add("hunter2hunter2")
    backend = Kept(signals=("spans", "logs", "metrics"))
    made = processor(backend, redactor=redactor, value_bytes=100)
    made.offer(span("hunter2hunter2", attributes={"a": "x" * 95 + "hunter2hunter2"}))
    made.offer(line("y" * 95 + "hunter2hunter2"))
    made.offer(Measured(COUNTER, 1.0, {"who": "hunter2hunter2", "list": ["hunter2hunter2"]}))
    close(made)
    sent = b"".join(batch.json() for batch in backend.batches)
    assert b"hunter2" not in sent
    assert len(backend.spans[0].attributes["a"]) <= 100
    assert len(backend.lines[0].message) <= 100
    assert backend.metrics["orders"].points[0].attributes == {"who": "[redacted]", "list": ["[redacted]"]}


def test_a_log_handler_that_looks_at_metrics_does_not_hang() -> None:
    made = processor(Kept())

    class Looks(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            made.offer(Measured(COUNTER, 1.0, {}))
            made.add(Measured(COUNTER, 1.0, {}))
            looked.append(made.drain(15.0))

    looked: list[bool] = []
    handler = Looks()
    logger = logging.getLogger("agentrt.telemetry")
    logger.addHandler(handler)
    try:
        made.offer(object())
        made.drain()
        made.add(Measured(Instrument("orders", "gauge"), 1.0, {}))
        until(lambda: len(looked) == 2)
    finally:
        logger.removeHandler(handler)
    assert looked == [True, True], "it waited for what its own thread holds"
    assert value(made, "orders") == 4
    close(made)


def test_a_log_handler_that_fails_does_not_end_the_thread(capsys: pytest.CaptureFixture[str]) -> None:
    class Failing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise ValueError("the log is full")

    handler = Failing()
    logger = logging.getLogger("agentrt.telemetry")
    logger.addHandler(handler)
    backend = Kept(signals=("spans",))
    made = processor(backend)
    try:
        made.offer(object())
        until(lambda: made.lost)
        until(lambda: made._pending.is_idle)
        made.offer(span())
        until(lambda: not made._pending.items)
    finally:
        logger.removeHandler(handler)
    close(made)
    assert len(backend.spans) == 1
    assert "the log is full" in capsys.readouterr().err


# --- without a queue ------------------------------------------------------------------------------------


def test_metrics_are_added_at_once_if_nobody_exports() -> None:
    meter = Meter()
    made = processor(meter=meter)
    made.add(Measured(Instrument("h", "histogram"), 0.3, {"a": 1}))
    made.add(Measured(COUNTER, 1.0, {}))
    made.add(Measured(Instrument("orders", "gauge"), 1.0, {}))
    found = {metric.name: metric.points[0].value for metric in meter.snapshot()}
    assert isinstance(found["h"], Histogram)
    assert found["orders"] == 1.0
    assert made.lost == {("metrics", "failed"): 1}
    assert threads("agentrt telemetry") == []


# --- the end --------------------------------------------------------------------------------------------


def test_what_comes_after_the_end_is_counted() -> None:
    backend = Kept()
    made = processor(backend)
    made.offer(span())
    close(made)
    for item in (span(), line(), Measured(COUNTER, 1.0, {})):
        made.offer(item)
    assert made.lost == {("spans", "shutdown"): 1, ("logs", "shutdown"): 1, ("metrics", "shutdown"): 1}
    assert made.dropped == {"spans": 1, "logs": 1, "metrics": 1}


@pytest.mark.usefixtures("switching")
def test_what_is_offered_while_it_closes_is_delivered_or_counted() -> None:
    for _ in range(20):
        backend = Kept(signals=("spans",))
        made = processor(backend)
        offered = [0, 0, 0]
        stop = threading.Event()

        def work(
            number: int, made: Processor = made, offered: list[int] = offered, stop: threading.Event = stop
        ) -> None:
            while not stop.is_set():
                made.offer(span())
                offered[number] += 1

        workers = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for worker in workers:
            worker.start()
        time.sleep(0.005)
        made.close(30.0)
        stop.set()
        for worker in workers:
            worker.join()
        report = made.exporters[0].report()
        assert len(backend.spans) == report.delivered["spans"]
        assert len(backend.spans) + sum(report.lost.values()) + lost(made) == sum(offered)


def test_something_of_the_users_that_hangs_costs_half_of_the_time_and_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    release = threading.Event()

    class Hangs:
        def __repr__(self) -> str:
            release.wait(30)
            return "at last"

    backend = Kept(signals=("spans",))
    made = processor(backend)
    made.take(Hangs, lambda item: span(repr(item)))
    made.offer(span("before"))
    made.drain()
    made.offer(Hangs())
    until(lambda: made._pending._in_hand)
    made.offer(span("after"))
    assert not made.flush(0.05)
    thread = made._thread
    assert thread is not None
    waited: list[float | None] = []
    with monkeypatch.context() as patched:
        patched.setattr(thread, "join", waited.append)  # as if the time was over
        close(made, 40.0)
    assert waited == [20.0]
    assert [each.name for each in backend.spans] == ["before"]
    assert made.lost == {("spans", "shutdown"): 2}
    assert thread.is_alive()
    release.set()
    thread.join(30.0)
    assert not thread.is_alive()
    assert made.lost == {("spans", "shutdown"): 2}
    assert made.exporters[0].report().delivered == {"spans": 1, "logs": 0, "metrics": 0}


def test_closing_gives_all_backends_the_same_time_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    begin, end = Exporting.close, Exporting.ended
    until: list[float] = []
    left: list[float] = []

    def close_one(self: Exporting, moment: float) -> None:
        until.append(moment)
        begin(self, moment)

    def ended(self: Exporting, seconds: float) -> bool:
        assert len(until) == 7, "each has begun to end before the first is waited for"
        left.append(seconds)
        return end(self, seconds)

    monkeypatch.setattr(Exporting, "close", close_one)
    monkeypatch.setattr(Exporting, "ended", ended)
    made = processor(*(Kept(signals=("spans",)) for _ in range(7)))
    made.offer(span())
    close(made, 30.0)
    assert len(set(until)) == 1
    assert len(left) == 7
    assert max(left) < 30.0, "what is left of it, not all of it again"
    assert [exporter.report().delivered["spans"] for exporter in made.exporters] == [1] * 7


def test_what_a_backend_that_hangs_has_not_taken_in_that_time_is_lost() -> None:
    release = threading.Event()

    def hang(batch: Any) -> None:
        release.wait(30)

    made = processor(*(Kept(hang, signals=("spans",)) for _ in range(6)))
    made.offer(span())
    made.drain()
    close(made, 0.2)
    for exporter in made.exporters:
        assert exporter.report().lost == {("spans", "shutdown"): 1}
    release.set()


# --- whatever happens -----------------------------------------------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("span"), st.integers(1, 9)),
        st.tuples(st.just("line"), st.integers(1, 9)),
        st.tuples(st.just("bad"), st.integers(1, 3)),
        st.tuples(st.just("drain"), st.just(0)),
        st.tuples(st.just("flush"), st.just(0)),
        st.tuples(st.just("sleep"), st.just(0)),
        st.tuples(st.just("close"), st.just(0)),
    ),
    max_size=15,
)


@settings(max_examples=60)
@given(STEPS, st.integers(1, 20), st.lists(st.booleans(), max_size=4))
def test_every_item_is_delivered_once_or_lost_once(
    steps: list[tuple[str, int]], queue: int, refusals: list[bool]
) -> None:
    backend = Kept(*[ValueError("no") if each else None for each in refusals], signals=("spans", "logs"))
    made = processor(backend, queue=queue)
    offered = 0
    for step, count in steps:
        if step in ("span", "line", "bad"):
            item: Any = {"span": span(), "line": line(), "bad": object()}[step]
            for _ in range(count):
                made.offer(item)
            offered += count
        elif step == "drain":
            made.drain()
        elif step == "flush":
            made.flush(30.0)
        elif step == "sleep":
            time.sleep(0.002)
        else:
            made.close(30.0)
    made.close(30.0)
    report = made.exporters[0].report()
    assert len(backend.spans) + len(backend.lines) == sum(report.delivered.values())
    assert sum(report.delivered.values()) + sum(report.lost.values()) + lost(made) == offered
