"""A batch of which a part arrived: what did is counted as delivered, the rest as lost, and both make up the whole."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from servers.faulty import BlackHole
from servers.http_server import Answer, HttpServer
from servers.otlp import Collector

from agentrt.errors import PermanentError, TransientError
from agentrt.telemetry import Batch, LogLine, Resource
from agentrt.telemetry.delivery import Delivery, Part, Rejected, parts
from agentrt.telemetry.exporting import Exporting
from agentrt.telemetry.http import TooLarge
from agentrt.telemetry.meter import Instrument, Meter
from agentrt.telemetry.otel_exporter import OtelExporter
from agentrt.telemetry.otlp import Otlp
from agentrt.telemetry.signals import Signal
from tests.telemetry.recording import Kept, exporting, line, span, until

RESOURCE = Resource({"service.name": "test"})


def lines(count: int) -> Batch:
    return Batch(RESOURCE, logs=tuple(LogLine(0, "info", str(n), "l") for n in range(count)))


def end(exporter: Exporting, seconds: float = 40.0) -> None:
    end_ = time.monotonic() + seconds
    exporter.close(end_)
    if not exporter.ended(end_ - time.monotonic()):
        exporter.abandon()


def until_delivered(exporter: Exporting, signal: Signal) -> None:
    """Begin a delivery, and wait until all of `signal` is where it should be and the rest is not."""
    exporter.flush(0.0)

    def has_arrived() -> bool:
        batch = exporter._in_flight
        return batch is not None and exporter.backend.undelivered(batch).get(signal, 0) == 0

    until(has_arrived, 40.0)


# --- what a backend says ----------------------------------------------------------------------------------


class Partial(Kept):
    """Of each batch it says that so much did not arrive."""

    def __init__(self, left: Any, *outcomes: Any, **options: Any) -> None:
        super().__init__(*outcomes, **options)
        self.left = left

    def undelivered(self, batch: Batch, /) -> Any:
        if isinstance(self.left, Exception):
            raise self.left
        return self.left


@pytest.mark.parametrize(
    ("left", "lost"),
    [
        ({}, {}),
        ({"spans": 0}, {}),
        ({"spans": 2}, {"spans": 2}),
        ({"spans": 99, "logs": 1}, {"spans": 5, "logs": 1}),
        ({"spans": -3}, {}),
        (None, {"spans": 5, "logs": 3}),
        ({"spans": "many"}, {"spans": 5, "logs": 3}),
        (ValueError("who knows"), {"spans": 5, "logs": 3}),
    ],
    ids=repr,
)
@pytest.mark.parametrize("outcome", ["refuses", "hangs"])
def test_of_a_batch_that_failed_that_much_is_lost(left: Any, lost: dict[str, int], outcome: str) -> None:
    entered, release = threading.Event(), threading.Event()

    def hang(batch: Batch) -> None:
        entered.set()
        release.wait(30)

    backend = Partial(left, PermanentError("no") if outcome == "refuses" else hang, signals=("spans", "logs"))
    exporter = exporting(backend)
    exporter.offer([span() for _ in range(5)], [line() for _ in range(3)])
    if outcome == "refuses":
        end(exporter)
    else:
        assert entered.wait(30)
        end(exporter, 0.2)
    release.set()
    reason = "failed" if outcome == "refuses" else "shutdown"
    report = exporter.report()
    assert report.lost == {(signal, reason): count for signal, count in lost.items()}
    for signal, count in (("spans", 5), ("logs", 3)):
        assert report.delivered.get(signal, 0) == count - lost.get(signal, 0)


def test_what_was_left_out_of_a_batch_that_was_taken_is_lost() -> None:
    exporter = exporting(Partial({"logs": 1}, signals=("spans", "logs")))
    exporter.offer([span()], [line(), line()])
    end(exporter)
    report = exporter.report()
    assert (report.delivered["spans"], report.delivered["logs"]) == (1, 1)
    assert report.lost == {("logs", "failed"): 1}


def test_points_of_a_snapshot_that_did_not_arrive_are_said_again_and_lost_only_at_the_end() -> None:
    meter = Meter()
    for tag in "abc":
        meter.series(Instrument("c", "counter"), {"tag": tag}).add(1.0)
    backend = Partial({"metrics": 2}, interval=60.0)
    exporter = exporting(backend, meter=meter)
    exporter.start()
    assert exporter.flush(40.0)
    assert (exporter.report().delivered["metrics"], exporter.report().lost) == (1, {})
    end(exporter)
    assert (exporter.report().delivered["metrics"], exporter.report().lost) == (2, {("metrics", "failed"): 2})


# --- a batch in several requests --------------------------------------------------------------------------

ANSWERS: list[Any] = [
    None,
    None,
    PermanentError("bad"),
    PermanentError("wrong key", fault="target"),
    TransientError("busy"),
    TooLarge("413"),
    Rejected("1 was too old", count=1),
    Rejected("all were", count=1000),
    "hang",
]


@settings(max_examples=200)
@given(
    st.lists(st.sampled_from(ANSWERS), max_size=12), st.integers(0, 9), st.integers(1, 4), st.integers(1, 4)
)
def test_what_a_service_has_and_what_is_undelivered_make_up_the_batch(
    answers: list[Any], count: int, size: int, tries: int
) -> None:
    taken = 0

    def split(batch: Batch) -> Any:
        """Two lines an item, but for the last of an odd number; line 4 is left out."""
        numbers = [int(each.message) for each in batch.logs if each.message != "4"]
        if len(numbers) != len(batch.logs):
            delivery.leave_out("logs")
        pairs = [numbers[place : place + 2] for place in range(0, len(numbers), 2)]
        return parts(pairs, count=size, size=1000, signal="logs", count_of=len)

    async def send(part: Part) -> None:
        nonlocal taken
        answer = answers.pop(0) if answers else None
        if answer == "hang":
            await asyncio.sleep(10)
        if isinstance(answer, Rejected):
            taken += part.count - min(answer.count, part.count)
        if answer is not None and answer != "hang":
            raise answer
        taken += sum(map(len, part.items))

    delivery = Delivery("acme", split, send, timeout=10.0)
    batch = lines(count)
    assert delivery.undelivered(batch) == batch.counts, "nothing was begun"

    async def deliver() -> None:
        for _ in range(tries):
            try:
                async with asyncio.timeout(0.01):
                    await delivery.deliver(batch)
            except (TransientError, TimeoutError):
                continue
            except PermanentError:
                pass
            return

    asyncio.run(deliver())
    assert taken + delivery.undelivered(batch).get("logs", 0) == count
    assert delivery.undelivered(lines(count)) == {"spans": 0, "metrics": 0, "logs": count}, "another batch"


# --- OTLP -------------------------------------------------------------------------------------------------

RESPONSES = {
    "/v1/traces": (ExportTraceServiceResponse, "rejected_spans"),
    "/v1/metrics": (ExportMetricsServiceResponse, "rejected_data_points"),
    "/v1/logs": (ExportLogsServiceResponse, "rejected_log_records"),
}


class Choosy(HttpServer):
    """A collector that takes all but two of each request."""

    def respond(self, request: Any) -> Answer:
        made, field = RESPONSES[request.path]
        response = made()
        setattr(response.partial_success, field, 2)
        response.partial_success.error_message = "too old"
        return Answer(200, response.SerializeToString(), {"Content-Type": "application/x-protobuf"})


def metered(points: int) -> Meter:
    meter = Meter()
    for number in range(points):
        meter.series(Instrument("c", "counter"), {"tag": number}).add(1.0)
    return meter


def test_what_a_collector_rejected_is_lost_and_the_rest_delivered() -> None:
    with Choosy() as collector:
        exporter = exporting(Otlp(endpoint=collector.url, delta=True), meter=metered(7), interval=60.0)
        exporter.offer([span() for _ in range(5)], [line() for _ in range(3)])
        end(exporter)
    report = exporter.report()
    assert report.delivered == {"spans": 3, "metrics": 5, "logs": 1}
    assert report.lost == {("spans", "failed"): 2, ("metrics", "failed"): 2, ("logs", "failed"): 2}
    assert report.error is not None
    assert "rejected 2 spans: too old" in report.error


def test_one_signal_that_is_refused_costs_only_its_own() -> None:
    class NoMetrics(Collector):
        def respond(self, request: Any) -> Answer:
            return Answer(400) if request.path == "/v1/metrics" else super().respond(request)

    with NoMetrics() as collector:
        exporter = exporting(Otlp(endpoint=collector.url, delta=True), meter=metered(7))
        exporter.offer([span() for _ in range(5)], [line() for _ in range(3)])
        end(exporter)
        assert (len(collector.spans), len(collector.logs)) == (5, 3)
    report = exporter.report()
    assert (report.delivered["spans"], report.delivered["logs"]) == (5, 3)
    assert report.lost == {("metrics", "failed"): 7}


@pytest.mark.parametrize(("timeout", "seconds"), [(40.0, 0.3), (0.8, 1.5)])
def test_what_arrived_before_a_signal_hung_is_delivered(timeout: float, seconds: float) -> None:
    """Whether the exporter's end comes first or the backend's own limit."""
    with Collector() as collector, BlackHole() as hole:
        otlp = Otlp(endpoint=collector.url, timeout=timeout, signals=("spans", "logs"))
        otlp.destinations["logs"] = replace(otlp.destinations["logs"], url=f"{hole.url}/v1/logs")
        exporter = exporting(otlp)
        exporter.offer([span() for _ in range(5)], [line() for _ in range(3)])
        until_delivered(exporter, "spans")
        end(exporter, seconds)
        assert len(collector.spans) >= 5
    report = exporter.report()
    assert report.delivered["spans"] == 5
    assert report.lost == {("logs", "shutdown"): 3}


@pytest.mark.asyncio
async def test_a_batch_that_is_too_large_in_part_loses_that_part(
    answering: Callable[..., HttpServer],
) -> None:
    server = answering()
    server.answer(Answer(413), Answer(413), None)
    otlp, sent = Otlp(endpoint=server.url), Batch(RESOURCE, spans=(span("a"), span("b"), span("c")))
    with pytest.raises(TooLarge):
        await otlp.export(sent)
    assert otlp.undelivered(sent) == {"spans": 1}
    assert otlp.undelivered(Batch(RESOURCE, spans=sent.spans)) == sent.counts
    await otlp.aclose()


def test_a_stock_exporter_loses_the_signal_that_it_did_not_deliver() -> None:
    class NoTraces(Collector):
        def respond(self, request: Any) -> Answer:
            return Answer(400) if request.path == "/v1/traces" else super().respond(request)

    with NoTraces() as collector:
        tables = {
            signal: {"endpoint": f"{collector.url}/v1/{word}"}
            for signal, word in (("spans", "traces"), ("logs", "logs"))
        }
        stock = OtelExporter(name="otlp_proto_http", options=tables, signals=["spans", "logs"])
        exporter = exporting(stock)
        exporter.offer([span() for _ in range(5)], [line() for _ in range(3)])
        until_delivered(exporter, "logs")
        end(exporter, 1.0)
        assert len(collector.logs) == 3
    report = exporter.report()
    assert (report.delivered["logs"], report.lost) == (3, {("spans", "shutdown"): 5})
