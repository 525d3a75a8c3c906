"""Each server of the tests does what the tests of the backends count on."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import http.client
import json
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpanExporter
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter

from servers.faulty import BlackHole, Refusing
from servers.http_server import Answer, HttpServer
from servers.otlp import Collector, Received, Tap, attributes
from servers.program import Program, ServerError, eventually, fetch, find_debian, find_wheel, free_ports
from servers.programs import Ddapm, Moto, Phoenix, Prometheus, Pushgateway, Rotel
from servers.zipkin import Zipkin, problems_of

RESOURCE = Resource({"service.name": "servers-test"})
PARENT, CHILD = "invoke_agent weather", "chat gpt"


def send_spans(exporter: SpanExporter) -> None:
    """A parent and a child, by the stock SDK; returns when they are exported."""
    provider = TracerProvider(resource=RESOURCE, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    tokens = {"gen_ai.usage.input_tokens": 7}
    with tracer.start_as_current_span(PARENT), tracer.start_as_current_span(CHILD, attributes=tokens):
        pass
    provider.shutdown()


def send_metric(endpoint: str) -> None:
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(endpoint), export_interval_millis=60_000)
    provider = MeterProvider([reader], resource=RESOURCE, shutdown_on_exit=False)
    provider.get_meter("test").create_counter("agent.tool.calls", unit="1").add(3, {"tool": "search"})
    provider.shutdown()


def send_log(endpoint: str) -> None:
    provider = LoggerProvider(resource=RESOURCE, shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(OTLPLogExporter(endpoint)))
    provider.get_logger("test").emit(body="rain expected", severity_text="WARN", attributes={"city": "Oslo"})
    provider.shutdown()


def send_all(base: str) -> None:
    send_spans(OTLPSpanExporter(f"{base}/v1/traces"))
    send_metric(f"{base}/v1/metrics")
    send_log(f"{base}/v1/logs")


async def check_spans(received: Received) -> None:
    parent, child = await received.span(PARENT), await received.span(CHILD)
    assert child.parent_span_id == parent.span_id
    assert attributes(child.attributes) == {"gen_ai.usage.input_tokens": 7}


# ------------------------------------------------------------------------------------- OTLP: oteltap, rotel
@pytest.mark.asyncio
async def test_oteltap_takes_all_three_signals_of_the_stock_exporters(oteltap: Tap) -> None:
    await asyncio.to_thread(send_all, oteltap.url)
    await check_spans(oteltap)
    metric = await oteltap.metric("agent.tool.calls")
    assert (metric.unit, metric.sum.data_points[0].as_int) == ("1", 3)
    record = await oteltap.log("rain")
    assert attributes(record.attributes) == {"city": "Oslo"}


@pytest.mark.asyncio
async def test_what_oteltap_did_not_get_is_missed(oteltap: Tap) -> None:
    await asyncio.to_thread(send_spans, OTLPSpanExporter(f"{oteltap.url}/v1/traces"))
    await check_spans(oteltap)
    with pytest.raises(
        AssertionError, match=r"no span 'other' within 0\.1 s; there are: chat gpt, invoke_agent"
    ):
        await oteltap.span("other", timeout=0.1)


@pytest.mark.asyncio
async def test_rotel_passes_on_what_came_by_http(rotel: Rotel, collector: Collector) -> None:
    await asyncio.to_thread(send_all, rotel.url)
    await check_spans(collector)
    assert (await collector.metric("agent.tool.calls")).sum.data_points[0].as_int == 3
    assert (await collector.log("rain")).severity_text == "WARN"
    assert all(attributes(each.attributes)["service.name"] == "servers-test" for each in collector.resources)


@pytest.mark.asyncio
async def test_rotel_passes_on_what_came_by_grpc(rotel: Rotel, collector: Collector) -> None:
    await asyncio.to_thread(send_spans, GrpcSpanExporter(endpoint=rotel.grpc, insecure=True))
    await check_spans(collector)


# ----------------------------------------------------------------------------------------- our own collector
def test_the_collector_keeps_signals_and_resources(collector: Collector) -> None:
    send_all(collector.url)
    assert [span.name for span in collector.spans] == [CHILD, PARENT]
    assert [metric.name for metric in collector.metrics] == ["agent.tool.calls"]
    assert [record.body.string_value for record in collector.logs] == ["rain expected"]
    names = {attributes(each.attributes)["service.name"] for each in collector.resources}
    assert names == {"servers-test"}


def test_the_collector_refuses_what_is_no_otlp(collector: Collector) -> None:
    def post(path: str, body: bytes, kind: str = "application/x-protobuf") -> int:
        headers = {"Content-Type": kind}
        return fetch(collector.url + path, method="POST", body=body, headers=headers).status

    assert post("/v1/traces", b"\xff\xff") == 400
    assert post("/v1/traces", b"{}", "application/json") == 415
    assert post("/v2/traces", b"") == 404
    assert not collector.spans


def test_the_collector_keeps_only_what_it_acknowledged(collector: Collector) -> None:
    collector.answer(Answer(400), None)
    send_spans(OTLPSpanExporter(f"{collector.url}/v1/traces"))
    assert [span.name for span in collector.spans] == [PARENT]
    assert len(collector.requests) == 2


def test_a_stock_exporter_tries_again_after_503(collector: Collector) -> None:
    collector.answer(Answer(503, headers={"Retry-After": "0"}), None)
    send_spans(OTLPSpanExporter(f"{collector.url}/v1/traces", timeout=30))
    assert [span.name for span in collector.spans] == [CHILD, PARENT]
    assert len(collector.requests) == 3


# -------------------------------------------------------------------------------------------------- Datadog
@pytest.mark.asyncio
async def test_the_datadog_agent_gives_back_all_three_signals(ddapm: Ddapm) -> None:
    await asyncio.to_thread(send_all, ddapm.otlp)
    assert PARENT in json.dumps(await ddapm.received("traces"))
    assert "agent.tool.calls" in json.dumps(await ddapm.received("metrics"))
    assert "rain expected" in json.dumps(await ddapm.received("logs"))


@pytest.mark.asyncio
async def test_the_datadog_agent_takes_grpc_and_is_empty_for_each_test(ddapm: Ddapm) -> None:
    for signal in ("traces", "metrics", "logs"):
        assert fetch(f"{ddapm.otlp}/test/session/{signal}").json() == []
    await asyncio.to_thread(send_spans, GrpcSpanExporter(endpoint=ddapm.grpc, insecure=True))
    assert CHILD in json.dumps(await ddapm.received("traces"))


# ------------------------------------------------------------------------------------------------------ AWS
async def logs(moto: Moto, operation: str, **fields: Any) -> Any:
    return await moto.call("logs", f"Logs_20140328.{operation}", fields)


@pytest.mark.asyncio
async def test_moto_gives_back_log_events(moto: Moto) -> None:
    place = {"logGroupName": "agentrt", "logStreamName": "run"}
    await logs(moto, "CreateLogGroup", logGroupName="agentrt")
    await logs(moto, "CreateLogStream", **place)
    now = int(time.time() * 1000)
    await logs(moto, "PutLogEvents", **place, logEvents=[{"timestamp": now, "message": "rain"}])
    events = (await logs(moto, "GetLogEvents", **place, startFromHead=True))["events"]
    assert [(event["timestamp"], event["message"]) for event in events] == [(now, "rain")]


@pytest.mark.asyncio
async def test_moto_is_empty_for_each_test_and_tells_of_what_is_missing(moto: Moto) -> None:
    await logs(moto, "CreateLogGroup", logGroupName="agentrt")
    moto.reset()
    assert (await logs(moto, "DescribeLogGroups"))["logGroups"] == []
    with pytest.raises(ServerError, match="ResourceNotFoundException"):
        await logs(moto, "CreateLogStream", logGroupName="agentrt", logStreamName="run")


@pytest.mark.asyncio
async def test_moto_gives_back_segments(moto: Moto) -> None:
    now = time.time()
    trace = f"1-{int(now):08x}-{'0' * 23}1"
    segment = {
        "id": "70de5b6f19ff9a0a",
        "trace_id": trace,
        "name": "agent",
        "start_time": now,
        "end_time": now,
    }
    path = "/TraceSegments"
    await moto.call("xray", "", {"TraceSegmentDocuments": [json.dumps(segment)]}, path=path)
    found = await moto.call("xray", "", {"TraceIds": [trace]}, path="/Traces")
    assert json.loads(found["Traces"][0]["Segments"][0]["Document"])["name"] == "agent"


# ----------------------------------------------------------------------------------------------- Prometheus
METRICS = b"""\
# HELP agent_tool_calls_total Calls of tools.
# TYPE agent_tool_calls_total counter
agent_tool_calls_total{tool="search"} 3
"""
TEXT = {"Content-Type": "text/plain; version=0.0.4"}


@pytest.mark.servers
@pytest.mark.asyncio
async def test_prometheus_scrapes_and_answers_promql(
    prometheus: Prometheus, answering: Callable[..., HttpServer]
) -> None:
    target = answering(200, METRICS, TEXT)
    assert await prometheus.query("agent_tool_calls_total") == []
    await prometheus.scrape(f"127.0.0.1:{target.port}")
    (series,) = await prometheus.query_until('sum by (tool) (agent_tool_calls_total{job="test"})')
    assert (series["metric"], series["value"][1]) == ({"tool": "search"}, "3")
    assert [each["type"] for each in await prometheus.metadata("agent_tool_calls_total")] == ["counter"]
    with pytest.raises(ServerError, match="parse error"):
        await prometheus.query("sum(")


@pytest.mark.servers
@pytest.mark.asyncio
async def test_prometheus_scrapes_what_was_pushed(prometheus: Prometheus, pushgateway: Pushgateway) -> None:
    url = f"{pushgateway.url}/metrics/job/short_run"
    assert (await asyncio.to_thread(fetch, url, method="PUT", body=METRICS)).status == 200
    assert [group["labels"]["job"] for group in await pushgateway.groups()] == ["short_run"]
    await prometheus.scrape(pushgateway.address)
    (series,) = await prometheus.query_until('agent_tool_calls_total{job="short_run"}')
    assert series["value"][1] == "3"


# -------------------------------------------------------------------------------------------------- Phoenix
@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.asyncio
async def test_phoenix_gives_back_spans(phoenix: Phoenix) -> None:
    await asyncio.to_thread(send_spans, OTLPSpanExporter(f"{phoenix.url}/v1/traces"))
    spans = {span["name"]: span for span in await phoenix.spans(count=2)}
    assert spans[CHILD]["parent_id"] == spans[PARENT]["context"]["span_id"]


# --------------------------------------------------------------------------------------------------- Zipkin
def span(**changes: Any) -> dict[str, Any]:
    """A right span with changes; None leaves a field out."""
    fields = {
        "traceId": "463ac35c9f6413ad48485a3953bb6124",
        "id": "a2fb4a1d1a96d312",
        "parentId": "0020000000000001",
        "name": "chat",
        "kind": "CLIENT",
        "timestamp": 1_700_000_000_000_000,
        "duration": 1200,
        "localEndpoint": {"serviceName": "agent", "ipv4": "127.0.0.1", "port": 80},
        "annotations": [{"timestamp": 1_700_000_000_000_001, "value": "retry"}],
        "tags": {"error": "timeout"},
        **changes,
    }
    return {name: value for name, value in fields.items() if value is not None}


def post_spans(zipkin: Zipkin, body: Any, kind: str = "application/json") -> int:
    headers = {"Content-Type": kind}
    return fetch(zipkin.endpoint, method="POST", body=json.dumps(body).encode(), headers=headers).status


def test_zipkin_takes_right_spans(zipkin: Zipkin) -> None:
    assert post_spans(zipkin, [span(), span(traceId="463ac35c9f6413ad", parentId=None, kind=None)]) == 202
    assert post_spans(zipkin, []) == 202
    assert zipkin.wait_for_spans(2)[0] == span()


def test_zipkin_takes_a_compressed_body(zipkin: Zipkin) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    body = gzip.compress(json.dumps([span()]).encode())
    assert fetch(zipkin.endpoint, method="POST", body=body, headers=headers).status == 202
    assert zipkin.spans == [span()]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"traceId": None}, "no traceId"),
        ({"traceId": "463ac35c9f6413ad48"}, "traceId: not 16 or 32 digits"),
        ({"traceId": "463AC35C9F6413AD"}, "traceId: not 16 or 32 digits of lower-case hex"),
        ({"traceId": "0" * 32}, "traceId: all zeros"),
        ({"id": None}, "no id"),
        ({"id": "a2fb4a1d1a96d312a2fb4a1d1a96d312"}, "id: not 16 digits"),
        ({"id": 7}, "id: not 16 digits"),
        ({"parentId": "xyz"}, "parentId: not 16 digits"),
        ({"parentId": "a2fb4a1d1a96d312"}, "parentId: is the span itself"),
        ({"name": 3}, "name: not a string"),
        ({"kind": "INTERNAL"}, "kind: 'INTERNAL' is not one of CLIENT"),
        ({"timestamp": 1.7e15}, "timestamp: not a whole number of microseconds"),
        ({"timestamp": 1_700_000_000_000_000_000}, "timestamp: not microseconds since 1970"),
        ({"timestamp": 1_700_000_000}, "timestamp: not microseconds since 1970"),
        ({"duration": 0}, "duration: not a whole number of microseconds from 1 up"),
        ({"duration": 1.5}, "duration: not a whole number"),
        ({"duration": True}, "duration: not a whole number"),
        ({"tags": {"tokens": 7}}, "tags: tokens is not a string: 7"),
        ({"tags": []}, "tags: not an object"),
        ({"annotations": [{"value": "x"}]}, "annotations: not a timestamp and a value"),
        ({"localEndpoint": {"ipv4": "localhost"}}, "localEndpoint: ipv4: not an address"),
        ({"remoteEndpoint": {"port": "80"}}, "remoteEndpoint: port: not a port"),
        ({"localEndpoint": {"service": "x"}}, "localEndpoint: service: unknown field"),
        ({"shared": "true"}, "shared: not a boolean"),
        ({"parent_id": "a2fb4a1d1a96d312"}, "unknown field 'parent_id'"),
    ],
)
def test_zipkin_refuses_a_bad_span(zipkin: Zipkin, changes: dict[str, Any], problem: str) -> None:
    assert post_spans(zipkin, [span(), span(**changes)]) == 400
    assert zipkin.refused[0].startswith(f"[1] {problem}")
    assert zipkin.spans == []


def test_zipkin_refuses_what_is_no_list_of_spans(zipkin: Zipkin) -> None:
    assert post_spans(zipkin, span()) == 400
    assert post_spans(zipkin, ["x"]) == 400
    assert post_spans(zipkin, [span()], "text/plain") == 400
    assert fetch(zipkin.endpoint).status == 405
    assert fetch(f"{zipkin.url}/api/v1/spans", method="POST").status == 404
    assert list(problems_of(span())) == []


def test_zipkin_can_answer_errors(zipkin: Zipkin) -> None:
    zipkin.answer(Answer(503), None)
    assert post_spans(zipkin, [span()]) == 503
    assert zipkin.spans == []
    assert post_spans(zipkin, [span()]) == 202


# ------------------------------------------------------------------------------------ servers that are unwell
def test_a_server_answers_as_told(answering: Callable[..., HttpServer]) -> None:
    server = answering(429, b"slow down", {"Retry-After": "7"})
    for _ in range(2):
        reply = fetch(server.url)
        assert (reply.status, reply.body, reply.headers["retry-after"]) == (429, b"slow down", "7")
    assert len(server.requests) == 2


def test_a_server_can_answer_late(answering: Callable[..., HttpServer]) -> None:
    server = answering(delay=3600.0)
    with pytest.raises(TimeoutError):
        fetch(server.url, timeout=0.1)


def test_a_server_can_answer_what_is_no_http(answering: Callable[..., HttpServer]) -> None:
    server = answering(raw=b"\x00garbage\r\n\r\n")
    with pytest.raises(http.client.BadStatusLine):
        fetch(server.url)


def test_a_chunked_body_is_put_together(collector: Collector) -> None:
    with socket.create_connection(("127.0.0.1", collector.port)) as connection:
        connection.sendall(
            b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 404")
    assert collector.requests[0].body == b"abcde"


def test_a_server_dies_in_mid_run_and_can_be_revived() -> None:
    with HttpServer(dies_after=2) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=50)
        for _ in range(2):
            connection.request("GET", "/")
            assert connection.getresponse().read() == b""
        connection.request("GET", "/")
        with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
            connection.getresponse()
        connection.close()
        server.die()  # done by itself; this waits for it
        with pytest.raises(ConnectionRefusedError):
            fetch(server.url)
        assert len(server.requests) == 2
        server.revive()
        assert fetch(server.url).status == 200


def test_dying_cuts_what_is_under_way() -> None:
    with HttpServer(Answer(delay=3600.0)) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=50)
        connection.request("GET", "/")
        server.wait_for_requests(1)
        server.die()
        with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
            connection.getresponse()
        connection.close()


def test_a_bug_in_a_server_is_the_tests_failure() -> None:
    class Broken(HttpServer):
        def respond(self, request: Any) -> Answer:
            raise LookupError(request.path)

    server = Broken().__enter__()
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        fetch(server.url)
    with pytest.raises(LookupError):
        server.__exit__(None, None, None)


def test_the_black_hole_takes_all_and_answers_nothing(black_hole: BlackHole) -> None:
    with contextlib.closing(
        http.client.HTTPConnection("127.0.0.1", black_hole.port, timeout=50)
    ) as connection:
        connection.request("POST", "/", b"x" * 1_000_000)
        connection.sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.getresponse()
        until = time.monotonic() + 30
        while black_hole.received <= 1_000_000 and time.monotonic() < until:
            time.sleep(0.01)
        assert black_hole.received > 1_000_000
    assert black_hole.connections == 1


def test_the_refusing_port_refuses(refusing: Refusing) -> None:
    with pytest.raises(ConnectionRefusedError):
        fetch(refusing.url)


# ------------------------------------------------------------------------------------------- programs at all
class Script(Program):
    """A program of two lines of shell; it answers from the time the file `ready` is there."""

    name = "script"

    def __init__(self, script: str, *, limit: float = 40.0) -> None:
        super().__init__()
        self.script = script
        type(self).start_limit = limit

    def argv(self, folder: Any) -> list[str]:
        return ["sh", "-c", self.script.format(port=self.ports[0], folder=folder)]

    def ready(self) -> bool:
        return (self._folder / "work" / "ready").exists()


def test_a_program_is_stopped_by_its_pid() -> None:
    with Script("echo started; touch ready; exec sleep 60") as program:
        process = program._process
        assert process is not None
        assert program.output() == "started\n"
    assert process.returncode == -15
    with pytest.raises(ServerError, match="script is not running"):
        _ = program.pid


class Loading(Script):
    """Is asked, however late it begins, and does not answer."""

    def ready(self) -> bool:
        while "loading" not in self.output():
            time.sleep(0.01)
        return False


def test_a_program_that_ends_or_hangs_is_told_with_its_output() -> None:
    with pytest.raises(ServerError, match=r"script ended before it answered(.|\n)*bad option"):
        Script("echo bad option; exit 2").__enter__()
    with pytest.raises(ServerError, match=r"did not answer within 0\.2 s(.|\n)*loading"):
        Loading("echo loading; exec sleep 60", limit=0.2).__enter__()


def test_a_port_that_was_taken_meanwhile_is_changed() -> None:
    # It fails as long as there is no file `second`.
    script = "if [ -e second ]; then touch ready; exec sleep 60; fi; touch second; echo Address already in use; exit 1"
    with Script(script) as program:
        assert program.output() == ""


def test_a_server_that_is_not_set_up_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr("servers.program._ENVIRONMENTS", tmp_path)
    with pytest.raises(ServerError, match=r"rotel is not set up: .*`\./dev test` makes it"):
        find_wheel("rotel", "bin/rotel")
    with pytest.raises(ServerError, match=r"phoenix is not set up: .*`\./dev test --slow` makes it"):
        find_wheel("phoenix", "bin/phoenix")
    with pytest.raises(ServerError, match=r"nothing-such is not installed\. `\./dev servers` does it"):
        find_debian("nothing-such")


def test_an_environment_that_is_not_whole_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr("servers.program._ENVIRONMENTS", tmp_path)
    for version in ("3.11", "3.12"):
        program = tmp_path / f"server-moto-{version}" / "bin" / "moto_server"
        program.parent.mkdir(parents=True)
        program.touch()
    (tmp_path / "server-moto-3.11" / "agentrt-stamp").touch()
    assert find_wheel("moto", "bin/moto_server").parts[-3] == "server-moto-3.11"


def test_free_ports_differ() -> None:
    assert len(set(free_ports(20))) == 20


@pytest.mark.asyncio
async def test_what_never_comes_is_told_with_the_last_answer() -> None:
    with pytest.raises(AssertionError, match=r"no spans within 0\.1 s; the last answer was \[\]"):
        await eventually(list, what="spans", timeout=0.1)
