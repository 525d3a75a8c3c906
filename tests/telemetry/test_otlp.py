"""OTLP: what is sent is what a collector gets, and each of its failures is an error that says what to do."""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from google.protobuf.any_pb2 import Any as Any_
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry import context as otel_context
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2_grpc
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.proto.metrics.v1 import metrics_pb2
from servers.faulty import BlackHole, Refusing
from servers.http_server import Answer, HttpServer
from servers.otlp import Collector, Received, Tap, attributes
from servers.programs import Rotel
from telemetry.samples import NOW, RESOURCE, batch, line, metrics, span

from agentrt.decode import Where
from agentrt.errors import CallError, ConfigError, PermanentError, ThrottledError, TransientError
from agentrt.plugins import load, make
from agentrt.secrets import SecretUnavailable
from agentrt.telemetry.http import KeyRefused
from agentrt.telemetry.otlp import Jaeger, Otlp
from agentrt.telemetry.otlp_messages import CACHED, Messages
from agentrt.telemetry.signals import Batch, Resource, Span

pytestmark = pytest.mark.asyncio


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of whoever runs the tests may have a collector of its own."""
    import os

    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)


async def send(otlp: Otlp, sent: Batch) -> None:
    try:
        await otlp.export(sent)
    finally:
        await otlp.aclose()


# --- delivered -------------------------------------------------------------------------------------------


async def check_arrived(sent: Batch, tap: Received) -> None:
    """Everything that `batch()` has, read back from the third party's receiver."""
    parent, child = sent.spans
    top = await tap.span("invoke_agent shop")
    below = await tap.span("chat gpt-5-mini")
    assert (top.span_id.hex(), top.trace_id.hex(), top.parent_span_id) == (
        parent.span_id,
        parent.trace_id,
        b"",
    )
    assert (below.span_id.hex(), below.parent_span_id.hex()) == (child.span_id, parent.span_id)
    assert below.trace_id == top.trace_id
    assert below.kind == below.SPAN_KIND_CLIENT
    assert (below.start_time_unix_nano, below.end_time_unix_nano) == (child.start_ns, child.end_ns)
    assert attributes(below.attributes) == child.attributes
    assert [(e.name, e.time_unix_nano, attributes(e.attributes)) for e in below.events] == [
        ("retry", NOW + 1, {"agentrt.delay": 0.25})
    ]
    assert [(link.trace_id.hex(), attributes(link.attributes)) for link in below.links] == [
        ("ab" * 16, {"why": "queued"})
    ]
    assert (below.status.code, below.status.message) == (below.status.STATUS_CODE_ERROR, "no route")

    calls = await tap.metric("agent.tool.calls")
    assert (calls.unit, calls.description) == ("{call}", "Tool calls")
    assert calls.sum.is_monotonic
    assert calls.sum.aggregation_temporality == metrics_pb2.AGGREGATION_TEMPORALITY_CUMULATIVE
    (point,) = calls.sum.data_points
    assert (point.as_int, attributes(point.attributes)) == (7, {"gen_ai.tool.name": "search"})
    assert point.start_time_unix_nano < point.time_unix_nano == NOW
    load_ = await tap.metric("queue.load")
    assert load_.gauge.data_points[0].as_double == 0.5
    duration = await tap.metric("gen_ai.client.operation.duration")
    (values,) = duration.histogram.data_points
    assert duration.unit == "s"
    assert (values.count, values.sum, values.min, values.max) == (3, 4.75, 0.25, 4.0)
    assert (list(values.explicit_bounds), list(values.bucket_counts)) == ([0.5, 1.0], [2, 0, 1])

    record = await tap.log("it went wrong")
    assert (record.trace_id.hex(), record.span_id.hex()) == (child.trace_id, child.span_id)
    assert (record.severity_text, record.severity_number) == ("ERROR", record.severity_number)
    assert record.severity_number == 17
    assert record.time_unix_nano == NOW
    assert attributes(record.attributes) == {
        "order": 17,
        "exception.stacktrace": "Traceback (most recent call last): ...",
    }


async def test_everything_arrives_by_http(oteltap: Tap) -> None:
    sent = batch()
    await send(Otlp(endpoint=oteltap.url), sent)
    await check_arrived(sent, oteltap)


async def test_everything_arrives_compressed(collector: Collector) -> None:
    sent = batch()
    await send(Otlp(endpoint=collector.url, compression="gzip"), sent)
    await check_arrived(sent, collector)
    assert {request.headers["content-encoding"] for request in collector.requests} == {"gzip"}


@pytest.mark.parametrize("compression", ["none", "gzip"])
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
async def test_everything_arrives_through_a_real_collector(
    rotel: Rotel, collector: Collector, protocol: Any, compression: Any
) -> None:
    sent = batch()
    endpoint = rotel.grpc if protocol == "grpc" else rotel.url
    await send(Otlp(endpoint=endpoint, protocol=protocol, compression=compression), sent)
    await check_arrived(sent, collector)


async def test_the_resource_and_the_scopes_arrive(collector: Collector) -> None:
    sent = Batch(RESOURCE, spans=(span(scope="mine"), span(scope="theirs")), logs=(line(),))
    await send(Otlp(endpoint=collector.url), sent)
    assert [attributes(each.attributes) for each in collector.resources] == [dict(RESOURCE.attributes)] * 2
    messages = Messages()
    (spans,) = messages.spans(sent.spans, RESOURCE).resource_spans
    assert [scope.scope.name for scope in spans.scope_spans] == ["mine", "theirs"]
    (logs,) = messages.logs(sent.logs, RESOURCE).resource_logs
    assert [scope.scope.name for scope in logs.scope_logs] == ["shop.cart"]


async def test_what_is_known_since_the_last_batch_is_sent_as_delta(collector: Collector) -> None:
    otlp = Otlp(endpoint=collector.url, delta=True)
    assert otlp.delta
    await send(otlp, Batch(RESOURCE, metrics=metrics(is_delta=True)))
    first, _, third = collector.metrics
    assert first.sum.aggregation_temporality == metrics_pb2.AGGREGATION_TEMPORALITY_DELTA
    assert third.histogram.aggregation_temporality == metrics_pb2.AGGREGATION_TEMPORALITY_DELTA


async def test_only_the_wanted_signals_are_sent(collector: Collector) -> None:
    await send(Otlp(endpoint=collector.url, signals=["logs"]), batch())
    assert [request.path for request in collector.requests] == ["/v1/logs"]


async def test_jaeger_gets_traces_and_nothing_else(collector: Collector) -> None:
    jaeger = Jaeger(endpoint=collector.url)
    await send(jaeger, batch())
    assert jaeger.signals == ("spans",)
    assert [request.path for request in collector.requests] == ["/v1/traces"]
    assert load("agentrt.telemetry", "jaeger") is Jaeger
    assert Jaeger().destinations["spans"].url == "http://127.0.0.1:4318/v1/traces"


async def test_strange_values_do_not_cost_the_batch(collector: Collector) -> None:
    strange = Span(
        name="bad \udc80",
        trace_id="ab" * 16,
        span_id="cd" * 8,
        parent_id=None,
        start_ns=NOW,
        end_ns=NOW,
        attributes={
            "huge": 2**70,
            "one": 1,
            "true": True,
            "float": 1.0,
            "set": {1},
            "text": "\udfff",
            "n": None,
        },
    )
    await send(Otlp(endpoint=collector.url), Batch(RESOURCE, spans=(strange, span())))
    first, _ = collector.spans
    assert first.name == "bad ?"
    assert attributes(first.attributes) == {
        "huge": str(2**70),
        "one": 1,
        "true": True,
        "float": 1.0,
        "set": "{1}",
        "text": "?",
        "n": "None",
    }
    assert [type(value) for value in attributes(first.attributes).values()][1:4] == [int, bool, float]


async def test_kept_attributes_are_bounded() -> None:
    messages = Messages()
    for number in range(CACHED + 10):
        resource = Resource({"service.name": f"s{number}"})
        (only,) = messages.spans((), resource).resource_spans
        assert attributes(only.resource.attributes) == {"service.name": f"s{number}"}
    assert len(messages._pairs) <= CACHED


async def test_exporting_is_not_traced_itself(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    otlp = Otlp(endpoint=collector.url)
    deliver = otlp._deliver

    async def look(resource: Resource) -> None:
        seen.append(otel_context.get_value(otel_context._SUPPRESS_INSTRUMENTATION_KEY))
        seen.append(otel_context.get_value("suppress_http_instrumentation"))
        await deliver(resource)

    monkeypatch.setattr(otlp, "_deliver", look)
    await send(otlp, batch())
    assert seen == [True, True]
    assert otel_context.get_value(otel_context._SUPPRESS_INSTRUMENTATION_KEY) is None


# --- failures over HTTP ----------------------------------------------------------------------------------


async def failure(otlp: Otlp, sent: Batch | None = None) -> CallError:
    with pytest.raises(CallError) as caught:
        await send(otlp, sent or Batch(RESOURCE, spans=(span(),)))
    return caught.value


@pytest.mark.parametrize("status", [429, 503])
async def test_a_busy_collector_says_when_to_come_back(
    answering: Callable[..., HttpServer], status: int
) -> None:
    server = answering(status, b"slow down", {"Retry-After": "7"})
    error = await failure(Otlp(endpoint=server.url))
    assert isinstance(error, ThrottledError)
    assert error.retry_after == 7.0
    assert "slow down" in str(error)
    assert len(server.requests) == 1  # trying again is not done here


@pytest.mark.parametrize("status", [500, 502, 504])
async def test_a_failing_collector_is_worth_another_try(
    answering: Callable[..., HttpServer], status: int
) -> None:
    error = await failure(Otlp(endpoint=answering(status).url))
    assert isinstance(error, TransientError)
    assert f"HTTP {status}" in str(error)


@pytest.mark.parametrize(
    ("status", "fault", "word"),
    [
        (400, "request", "HTTP 400"),
        (401, "target", "check headers"),
        (403, "target", "check headers"),
        (404, "target", "check endpoint"),
        (302, "target", "check endpoint"),
    ],
)
async def test_a_refusal_is_for_good(
    answering: Callable[..., HttpServer], status: int, fault: str, word: str
) -> None:
    error = await failure(Otlp(endpoint=answering(status).url))
    assert isinstance(error, PermanentError)
    assert error.fault == fault
    assert word in str(error)


async def test_a_collector_that_is_down_is_named(refusing: Refusing) -> None:
    error = await failure(Otlp(endpoint=refusing.url))
    assert isinstance(error, TransientError)
    assert f"otlp at 127.0.0.1:{refusing.port} cannot be reached" in str(error)


@pytest.mark.parametrize(
    "raw", [b"\x00garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nshort", b""]
)
async def test_garbage_is_worth_another_try(answering: Callable[..., HttpServer], raw: bytes) -> None:
    assert isinstance(await failure(Otlp(endpoint=answering(raw=raw).url)), TransientError)


async def test_a_success_from_something_that_is_no_collector_is_none(
    answering: Callable[..., HttpServer],
) -> None:
    error = await failure(Otlp(endpoint=answering(200, b"<html>welcome</html>").url))
    assert isinstance(error, PermanentError)
    assert "not as a collector of OTLP does; check endpoint" in str(error)


@pytest.mark.parametrize("body", [b"", b"ok\n", b"{}", b'{"partialSuccess": {}, "more": 1}'])
async def test_any_usual_form_of_success_is_one(answering: Callable[..., HttpServer], body: bytes) -> None:
    server = answering(200, body)
    await send(Otlp(endpoint=server.url), batch())
    assert len(server.requests) == 3


async def test_what_a_collector_rejected_is_told(answering: Callable[..., HttpServer]) -> None:
    response = ExportTraceServiceResponse()
    response.partial_success.rejected_spans = 3
    response.partial_success.error_message = "too old"
    error = await failure(Otlp(endpoint=answering(200, response.SerializeToString()).url))
    assert isinstance(error, PermanentError)
    assert "rejected 3 spans: too old" in str(error)


async def test_a_warning_of_the_collector_is_logged_once(
    answering: Callable[..., HttpServer], caplog: pytest.LogCaptureFixture
) -> None:
    response = ExportTraceServiceResponse()
    response.partial_success.error_message = "use v2 soon"
    otlp = Otlp(endpoint=answering(200, response.SerializeToString()).url)
    with caplog.at_level(logging.WARNING, "agentrt.telemetry"):
        for _ in range(2):
            await otlp.export(Batch(RESOURCE, spans=(span(),)))
    assert [record.getMessage().endswith("use v2 soon") for record in caplog.records] == [True]
    await otlp.aclose()


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
async def test_a_black_hole_costs_the_timeout_and_no_more(
    black_hole: BlackHole, protocol: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    otlp = Otlp(endpoint=black_hole.url, protocol=protocol, timeout=1.0)
    requests: list[Any] = []
    send_part = otlp._send

    async def observed(part: Any, resource: Any) -> None:
        requests.append(part)
        await send_part(part, resource)

    monkeypatch.setattr(otlp, "_send", observed)
    began = time.monotonic()
    error = await failure(otlp, batch())  # of three requests, with one limit
    assert 0.25 < time.monotonic() - began < 20.0
    if protocol != "grpc":  # which knows after 0.3 s that there is no server
        assert len(requests) < 3, "each had the whole time"
    assert isinstance(error, TransientError)


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
async def test_a_cancelled_export_ends_at_once(black_hole: BlackHole, protocol: Any) -> None:
    otlp = Otlp(endpoint=black_hole.url, protocol=protocol, timeout=600.0)
    task = asyncio.create_task(otlp.export(batch()))
    await asyncio.sleep(0.1)
    began = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await otlp.aclose()
    assert time.monotonic() - began < 20.0  # of 600


async def test_a_collector_that_dies_and_comes_back_gets_the_rest(collector: Collector) -> None:
    otlp = Otlp(endpoint=collector.url)
    await otlp.export(Batch(RESOURCE, spans=(span("one"),)))
    await asyncio.to_thread(collector.die)
    with pytest.raises(TransientError):
        await otlp.export(Batch(RESOURCE, spans=(span("two"),)))
    await asyncio.to_thread(collector.revive)
    await otlp.export(Batch(RESOURCE, spans=(span("three"),)))
    await otlp.aclose()
    assert [each.name for each in collector.spans] == ["one", "three"]


# --- a batch with several requests -----------------------------------------------------------------------


async def test_what_was_delivered_of_a_batch_is_not_sent_again() -> None:
    sent = batch()
    with Collector(None, Answer(503), None) as collector:
        otlp = Otlp(endpoint=collector.url)
        with pytest.raises(TransientError):
            await otlp.export(sent)
        await otlp.export(sent)
        await otlp.aclose()
        # Metrics failed; neither did that hold up the logs.
        paths = [request.path for request in collector.requests]
        assert paths == ["/v1/traces", "/v1/metrics", "/v1/logs", "/v1/metrics"]
        assert (len(collector.spans), len(collector.metrics), len(collector.logs)) == (2, 3, 1)


async def test_a_refused_signal_does_not_hold_up_the_others() -> None:
    with Collector(Answer(404), None) as collector:
        error = await failure(Otlp(endpoint=collector.url), batch())
        assert isinstance(error, PermanentError)
        assert (len(collector.spans), len(collector.metrics), len(collector.logs)) == (0, 3, 1)


async def test_a_signal_that_hangs_comes_last_the_next_time(
    black_hole: BlackHole, collector: Collector
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{black_hole.url}/v1/traces")
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        otlp = Otlp(timeout=0.2)
    sent = batch()
    tries = 0
    while tries < 2 or (
        tries < 20 and not collector.logs
    ):  # two do, unless the machine stands still in the second
        with pytest.raises(TransientError):
            await otlp.export(sent)
        tries += 1
    await otlp.aclose()
    assert len({metric.name for metric in collector.metrics}) == 3
    assert collector.logs


async def test_a_batch_that_is_too_large_is_sent_in_halves() -> None:
    with Collector(Answer(413), Answer(413), None) as collector:
        spans = tuple(span(str(number)) for number in range(8))
        await send(Otlp(endpoint=collector.url), Batch(RESOURCE, spans=spans))
        assert sorted(each.name for each in collector.spans) == [str(number) for number in range(8)]
        assert len(collector.requests) == 5


async def test_what_is_too_large_alone_is_lost_and_told() -> None:
    with Collector(Answer(413)) as collector:
        error = await failure(Otlp(endpoint=collector.url))
        assert isinstance(error, PermanentError)
        assert "HTTP 413" in str(error)
        assert len(collector.requests) == 1


# --- headers and secrets ---------------------------------------------------------------------------------


class Host:
    """What `open` needs of a host. `others`: what the reference leads to for one who was refused, in turn."""

    def __init__(self, *others: str) -> None:
        self.others = list(others)
        self.refused: list[str] = []

    async def secret(self, reference: str, /) -> str:
        assert reference == "secret://vault/token"
        return "s3cr3t-value"

    async def secret_rejected(self, reference: str, value: str, /) -> str:
        assert reference == "secret://vault/token"
        self.refused.append(value)
        if not self.others:
            raise SecretUnavailable(f"{reference}: the provider is down")
        return self.others.pop(0)


async def test_secrets_in_headers_are_looked_up_when_it_opens(collector: Collector) -> None:
    otlp = Otlp(
        endpoint=collector.url, headers={"Authorization": "Bearer secret://vault/token", "X-Team": "a"}
    )
    host: Any = Host()
    await otlp.open(host)
    await send(otlp, batch())
    for request in collector.requests:
        assert request.headers["authorization"] == "Bearer s3cr3t-value"
        assert request.headers["x-team"] == "a"
    assert "s3cr3t" not in repr(otlp.destinations)


async def test_a_secret_that_the_server_repeats_is_not_in_the_message(
    answering: Callable[..., HttpServer],
) -> None:
    server = answering(401, b"bad key s3cr3t-value")
    otlp = Otlp(endpoint=server.url, headers={"authorization": "Bearer secret://vault/token"})
    host: Any = Host()
    await otlp.open(host)
    error = await failure(otlp)
    assert "s3cr3t" not in str(error)


async def test_a_refused_key_is_looked_up_anew_and_the_message_sent_once_more(collector: Collector) -> None:
    otlp = Otlp(
        endpoint=collector.url, signals=("spans",), headers={"authorization": "Bearer secret://vault/token"}
    )
    host: Any = Host("n3w-s3cr3t-value\n")
    await otlp.open(host)
    collector.answer(Answer(401), None)
    await send(otlp, batch())
    assert [request.headers["authorization"] for request in collector.requests] == [
        "Bearer s3cr3t-value",
        "Bearer n3w-s3cr3t-value",
    ]
    assert host.refused == ["s3cr3t-value"]
    assert collector.spans


@pytest.mark.parametrize("others", [["s3cr3t-value"], []], ids=["it is the same", "there is none to be had"])
async def test_a_key_that_stays_what_it_was_is_not_sent_twice(
    collector: Collector, others: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    otlp = Otlp(
        endpoint=collector.url, signals=("spans",), headers={"authorization": "Bearer secret://vault/token"}
    )
    host: Any = Host(*others)
    await otlp.open(host)
    collector.answer(Answer(403))
    error = await failure(otlp)
    assert "HTTP 403" in str(error)
    assert len(collector.requests) == 1
    assert ("the provider is down" in caplog.text) is (not others)
    assert "s3cr3t-value" not in caplog.text


# --- gRPC ------------------------------------------------------------------------------------------------


class Services:
    """The three services, which answer as told: a response, or a status with trailing metadata."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.metadata: list[dict[str, str]] = []
        self.fails: list[tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]] = []

    def answer(self, response: Any) -> Any:
        class Servicer:
            def Export(_, request: Any, context: Any) -> Any:
                self.metadata.append(dict(context.invocation_metadata()))
                if self.fails:
                    code, words, trailing = self.fails.pop(0)
                    context.set_trailing_metadata(trailing)
                    context.abort(code, words)
                self.requests.append(request)
                return response

        return Servicer()


@contextmanager
def serving(
    services: Services, *, max_size: int = -1, port: int = 0, credentials: Any = None
) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", max_size)])
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(
        services.answer(ExportTraceServiceResponse()), server
    )
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(
        services.answer(ExportMetricsServiceResponse()), server
    )
    logs_service_pb2_grpc.add_LogsServiceServicer_to_server(
        services.answer(ExportLogsServiceResponse()), server
    )
    if credentials is None:
        port = server.add_insecure_port(f"127.0.0.1:{port}")
    else:
        port = server.add_secure_port(f"127.0.0.1:{port}", credentials)
    server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


async def test_headers_go_with_each_call_by_grpc() -> None:
    services = Services()
    with serving(services) as url:
        await send(Otlp(endpoint=url, protocol="grpc", headers={"X-Key": "k"}), batch())
    assert [each["x-key"] for each in services.metadata] == ["k"] * 3
    assert len(services.requests) == 3


def retry_info(seconds: int) -> tuple[tuple[str, bytes], ...]:
    info = RetryInfo(retry_delay=Duration(seconds=seconds, nanos=500_000_000))
    return (("google.rpc.retryinfo-bin", info.SerializeToString()),)


@pytest.mark.parametrize(
    ("code", "trailing", "kind", "wait"),
    [
        (grpc.StatusCode.UNAVAILABLE, (), TransientError, None),
        (grpc.StatusCode.UNAVAILABLE, retry_info(2), ThrottledError, 2.5),
        (grpc.StatusCode.DATA_LOSS, (), TransientError, None),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, retry_info(3), ThrottledError, 3.5),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, (), PermanentError, None),
        (grpc.StatusCode.INVALID_ARGUMENT, (), PermanentError, None),
        (grpc.StatusCode.UNAUTHENTICATED, (), KeyRefused, None),
        (grpc.StatusCode.UNIMPLEMENTED, (), PermanentError, None),
        (grpc.StatusCode.UNAVAILABLE, (("google.rpc.retryinfo-bin", b"\xff\xff"),), TransientError, None),
    ],
)
async def test_each_status_of_grpc_is_one_of_our_errors(
    code: grpc.StatusCode, trailing: Any, kind: type[CallError], wait: float | None
) -> None:
    services = Services()
    services.fails = [(code, "the reason", trailing)]
    with serving(services) as url:
        error = await failure(Otlp(endpoint=url, protocol="grpc"))
    assert type(error) is kind
    assert getattr(error, "retry_after", None) == wait
    assert f"gRPC {code.name}: the reason" in str(error)


async def test_a_message_that_grpc_finds_too_large_is_sent_in_halves() -> None:
    services = Services()
    spans = tuple(span(str(number)) for number in range(40))
    with serving(services, max_size=5_000) as url:
        await send(Otlp(endpoint=url, protocol="grpc", compression="none"), Batch(RESOURCE, spans=spans))
    got = [
        each.name
        for request in services.requests
        for block in request.resource_spans
        for scope in block.scope_spans
        for each in scope.spans
    ]
    assert sorted(got, key=int) == [str(number) for number in range(40)]


async def test_nobody_listening_by_grpc_is_told(refusing: Refusing) -> None:
    error = await failure(Otlp(endpoint=refusing.url, protocol="grpc", timeout=30.0))
    assert isinstance(error, TransientError)
    assert f"otlp at 127.0.0.1:{refusing.port}: gRPC UNAVAILABLE" in str(error)


async def test_a_restarted_server_is_found_again_by_grpc() -> None:
    services = Services()
    with serving(services) as url:
        otlp = Otlp(endpoint=url, protocol="grpc", timeout=30.0)
        await otlp.export(Batch(RESOURCE, spans=(span(),)))
    sent = Batch(RESOURCE, spans=(span(),))
    with pytest.raises(TransientError):
        await otlp.export(sent)
    with serving(services, port=int(url.rpartition(":")[2])):
        for _ in range(100):
            try:
                await otlp.export(sent)
                break
            except TransientError:
                await asyncio.sleep(0.05)
    await otlp.aclose()
    assert len(services.requests) == 2


async def test_a_time_to_wait_among_the_details_of_the_status_is_found() -> None:
    details = Any_()
    details.Pack(RetryInfo(retry_delay=Duration(seconds=4)))
    status = Status(code=14, message="later", details=[details])
    services = Services()
    services.fails = [
        (grpc.StatusCode.UNAVAILABLE, "later", (("grpc-status-details-bin", status.SerializeToString()),))
    ]
    with serving(services) as url:
        error = await failure(Otlp(endpoint=url, protocol="grpc"))
    assert isinstance(error, ThrottledError)
    assert error.retry_after == 4.0


# --- TLS -------------------------------------------------------------------------------------------------


class Certificates:
    """An authority, and a certificate of its that both the server and the client show."""

    def __init__(self, folder: Path) -> None:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        self.certificate, self.key = folder / "cert.pem", folder / "key.pem"
        self.certificate.write_bytes(certificate.public_bytes(Encoding.PEM))
        self.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


@contextmanager
def https(certificates: Certificates) -> Iterator[str]:
    """A server that wants to see the client's certificate, too."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.certificate, certificates.key)
    context.load_verify_locations(certificates.certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"https://localhost:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def grpcs(certificates: Certificates) -> Iterator[str]:
    pem, key = certificates.certificate.read_bytes(), certificates.key.read_bytes()
    credentials = grpc.ssl_server_credentials([(key, pem)], pem, require_client_auth=True)
    with serving(Services(), credentials=credentials) as url:
        yield url.replace("http://127.0.0.1", "https://localhost")


@pytest.mark.parametrize(("protocol", "server"), [("http/protobuf", https), ("grpc", grpcs)])
async def test_certificates_of_ones_own_are_shown_and_trusted(
    certificates: Certificates, protocol: Any, server: Any
) -> None:
    with server(certificates) as url:
        ours = {"certificate": certificates.certificate, "protocol": protocol, "endpoint": url}
        both = {"client_certificate": certificates.certificate, "client_key": certificates.key}
        await send(Otlp(**ours, **both), batch())
        await failure(Otlp(**ours, timeout=30.0))  # shows none
        untrusted = await failure(Otlp(endpoint=url, protocol=protocol, timeout=30.0))
        assert "certificate" in str(untrusted).lower()


async def test_a_forked_process_makes_connections_of_its_own(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    otlp = Otlp(endpoint=collector.url)
    await otlp.export(Batch(RESOURCE, spans=(span(),)))
    parents = otlp._senders["spans"]
    monkeypatch.setattr("os.getpid", lambda: -1)
    await otlp.export(Batch(RESOURCE, spans=(span(),)))
    assert otlp._senders["spans"] is not parents
    await otlp.aclose()
    await parents.aclose()
    assert len(collector.spans) == 2


# --- options and variables -------------------------------------------------------------------------------


def urls(otlp: Otlp) -> list[str]:
    return [target.url for target in otlp.destinations.values()]


@pytest.mark.parametrize(
    ("endpoint", "base"),
    [
        ("http://c:4318", "http://c:4318"),
        ("http://c:4318/", "http://c:4318"),
        ("https://c/otlp/", "https://c/otlp"),
        ("http://c:4318/v1/traces", "http://c:4318"),
    ],
)
async def test_an_endpoint_for_http_is_a_base(endpoint: str, base: str) -> None:
    assert urls(Otlp(endpoint=endpoint)) == [f"{base}/v1/traces", f"{base}/v1/metrics", f"{base}/v1/logs"]


@pytest.mark.parametrize(
    ("endpoint", "insecure", "address", "secure"),
    [
        ("http://c:4317", None, "c:4317", False),
        ("https://c:4317/", None, "c:4317", True),
        ("https://c", True, "c:443", True),
        ("c:4317", None, "c:4317", True),
        ("c:4317", True, "c:4317", False),
        ("http://[::1]:4317", None, "[::1]:4317", False),
        ("unix:///run/otlp.sock", True, "unix:///run/otlp.sock", False),
    ],
)
async def test_an_endpoint_for_grpc_is_an_address(
    endpoint: str, insecure: bool | None, address: str, secure: bool
) -> None:
    otlp = Otlp(endpoint=endpoint, protocol="grpc", insecure=insecure)
    target = otlp.destinations["spans"]
    assert (target.url, target.secure) == (address, secure)


async def test_the_defaults_are_those_of_the_specification() -> None:
    assert urls(Otlp())[0] == "http://localhost:4318/v1/traces"
    assert urls(Otlp(protocol="grpc"))[0] == "localhost:4317"
    assert not Otlp(protocol="grpc").destinations["spans"].secure
    target = Otlp().destinations["spans"]
    assert (target.protocol, target.timeout, target.compression) == ("http/protobuf", 10.0, "none")
    assert Otlp(endpoint="http://collector:4318").destinations["spans"].compression == "gzip"
    assert Otlp(endpoint="collector:1", protocol="grpc").destinations["spans"].compression == "gzip"


async def test_the_environment_decides_what_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://all:4318/base/")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://m:1/exactly/this")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", "grpc")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://l:4317")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "Api-Key=a%20b, x=1=2")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_HEADERS", "only=logs")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "4000")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_COMPRESSION", "deflate")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "Delta")
    otlp = Otlp(headers={"X": "given"})
    assert urls(otlp) == ["http://all:4318/base/v1/traces", "http://m:1/exactly/this", "l:4317"]
    spans, metrics_, logs = otlp.destinations.values()
    assert spans.headers == {"api-key": "a b", "x": "given"}
    assert logs.headers == {"only": "logs", "x": "given"}
    assert (spans.timeout, metrics_.timeout) == (3.0, 4.0)
    assert (spans.compression, metrics_.compression) == ("none", "deflate")
    assert otlp.delta
    assert not Otlp(delta=False).delta
    given = Otlp(endpoint="http://mine:4318", protocol="http/protobuf")
    assert urls(given) == [f"http://mine:4318/v1/{word}" for word in ("traces", "metrics", "logs")]


async def test_deflate_arrives(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "deflate")
    await send(Otlp(endpoint=collector.url), batch())
    assert len(collector.spans) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"endpoint": "collector:4318"}, "endpoint must begin with http:// or https://"),
        ({"endpoint": "http://"}, "endpoint must begin with"),
        ({"endpoint": "http://c:99999"}, "endpoint must begin with"),
        ({"endpoint": "ftp://c"}, "endpoint must begin with"),
        ({"endpoint": "http://c/path", "protocol": "grpc"}, "has a path, which gRPC has no use for"),
        ({"endpoint": "a b", "protocol": "grpc"}, "must look like"),
        ({"protocol": "http/json"}, "protocol must be"),
        ({"timeout": 0}, "timeout must be a number of seconds"),
        ({"certificate": "/no/such.pem"}, "certificate: there is no file /no/such.pem"),
        ({"signals": ["traces"]}, "signals must be one of"),
        ({"endpont": "http://c"}, "endpoint"),
    ],
)
async def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make("agentrt.telemetry", "otlp", options, where=Where())


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ENDPOINT", "collector:4318"),
        ("PROTOCOL", "http/json"),
        ("TIMEOUT", "soon"),
        ("TRACES_COMPRESSION", "zip"),
        ("HEADERS", "novalue"),
        ("CERTIFICATE", "/no/such.pem"),
    ],
)
async def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{variable}", value)
    with pytest.raises(ConfigError, match=f"^OTEL_EXPORTER_OTLP_{variable}"):
        Otlp()


async def test_a_key_without_its_certificate_is_refused(tmp_path: Any) -> None:
    (tmp_path / "key.pem").write_text("")
    with pytest.raises(ConfigError, match="client_key needs client_certificate"):
        Otlp(client_key=tmp_path / "key.pem")


async def test_a_certificate_that_is_none_is_named(tmp_path: Any) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("nothing")
    otlp = Otlp(endpoint="https://127.0.0.1:1", certificate=file)
    with pytest.raises(ConfigError, match=r"TLS cannot be set up with .*ca\.pem"):
        await otlp.export(batch())
