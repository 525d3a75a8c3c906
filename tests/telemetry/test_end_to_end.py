"""A run with a retry, a fallback, a tool and a child run, as every backend's server can be asked about it afterwards.

And the process around it: SIGTERM, and what the OTEL_* variables turn on and off.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import aioboto3
import pytest
from msgspec import Struct
from opentelemetry import trace
from servers.otlp import Collector, Received, attributes
from servers.program import free_ports
from servers.programs import Ddapm, Moto, Phoenix, Prometheus, Pushgateway
from telemetry.everywhere import BACKENDS, Everywhere, own_tracer_provider

from agentrt import Agent, TransientError, current, tool
from agentrt.config import Config
from agentrt.models.scripted import Scripted, Step, StepCall
from agentrt.runtime import Runtime
from agentrt.telemetry.exporting import Delivered
from agentrt.telemetry.file import read
from agentrt.telemetry.signals import LogLine, Metric, Span

# Name, and the name of the span around it.
TREE = [
    ("invoke_agent Planner", None),
    ("chat first", "invoke_agent Planner"),
    ("attempt 1", "chat first"),
    ("attempt 2", "chat first"),
    ("execute_tool look_up", "invoke_agent Planner"),
    ("ask the register", "execute_tool look_up"),
    ("SELECT cities", "ask the register"),
    ("invoke_agent Child", "SELECT cities"),
    ("chat echo", "invoke_agent Child"),
    ("chat second", "invoke_agent Planner"),
    ("attempt 1", "chat second"),  # of the first target, as number 2 is
    ("attempt 1", "chat second"),
    ("attempt 2", "chat second"),
]


class Child(Agent):
    model = "scripted:echo"


@tool
async def look_up(city: str) -> str:
    """Look a city up."""
    ctx = current()
    ctx.log("warning", "looking up", city=city)
    ctx.record_metric("trips.looked_up", 2, {"city": city}, kind="counter", unit="{trip}")
    ctx.record_metric("register.age", 1.5, kind="gauge", unit="s")
    # The second is what a database's instrumentation does.
    with (
        ctx.start_span("ask the register", {"register": "cities", "rows": 3}),
        trace.get_tracer("sql").start_as_current_span("SELECT cities", attributes={"db.rows": 7}),
    ):
        return str((await ctx.run(Child, f"about {city}")).text)


class Planner(Agent):
    model = ("scripted:first", "scripted:second")
    tools = (look_up,)


class Seen(Struct, frozen=True):
    """The servers after the run, its id, and the reports of the backends."""

    everywhere: Everywhere
    run_id: str
    reports: list[Delivered]


async def the_run(everywhere: Everywhere) -> Seen:
    down = [Step(error=TransientError("down"))] * 2
    wish = StepCall("look_up", {"city": "Lisbon"})
    Scripted.script("first", [Step(error=TransientError("overloaded")), Step(tool_calls=[wish]), *down])
    Scripted.script("second", ["Go to Lisbon."])
    tables = everywhere.settings(service="travel", resource={"service.version": "1.2"})
    retry = {"max_attempts": 2, "initial_delay": 0.01}
    async with Runtime(Config({"telemetry": tables, "pipeline": {"retry": retry}})) as runtime:
        result = await runtime.run(Planner, "Where to?")
        assert (result.text, result.degraded) == ("Go to Lisbon.", True)
        assert await runtime.telemetry.flush(30.0)
        await asyncio.to_thread(everywhere.look, runtime)
    return Seen(everywhere, result.run_id, runtime.telemetry.report())


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, _moto: Moto, _ddapm: Ddapm) -> Iterator[Seen]:
    _moto.reset()
    _ddapm.reset()
    folder = tmp_path_factory.mktemp("run")
    with Everywhere(folder, moto=_moto, ddapm=_ddapm, dimensions=("city",)) as everywhere:
        found = everywhere.run(the_run(everywhere))
        onward = everywhere.onward
        onward.wait_for(
            lambda: len(onward.spans) >= len(TREE) and len(onward.logs) >= 3, what="all of rotel's"
        )
        yield found


# --- spans ---------------------------------------------------------------------------------------------


def test_nothing_was_lost(seen: Seen) -> None:
    assert {each.name: each.lost for each in seen.reports} == {n: {} for n in BACKENDS if n != "memory"}


class Found(Struct, frozen=True):
    """A span as a server tells of it."""

    name: str
    id: str
    parent: str
    trace: str


def drawn(spans: list[Found]) -> Counter[tuple[str, str | None]]:
    """Each span's name with its parent's. All are of one trace, and each came once."""
    names = {span.id: span.name for span in spans}
    assert len(names) == len(spans)
    assert len({span.trace for span in spans}) == 1
    return Counter((span.name, names[span.parent] if span.parent else None) for span in spans)


def by_otlp(received: Received) -> list[Found]:
    return [
        Found(each.name, each.span_id.hex(), each.parent_span_id.hex(), each.trace_id.hex())
        for each in received.spans
    ]


def by_file(seen: Seen) -> list[Found]:
    spans = [each for each in read(seen.everywhere.file) if isinstance(each, Span)]
    return [Found(each.name, each.span_id, each.parent_id or "", each.trace_id) for each in spans]


def by_zipkin(seen: Seen) -> list[Found]:
    assert seen.everywhere.zipkin.refused == []
    return [
        Found(each["name"], each["id"], each.get("parentId", ""), each["traceId"])
        for each in seen.everywhere.zipkin.spans
    ]


def by_datadog(seen: Seen) -> list[Found]:
    requests = asyncio.run(seen.everywhere.ddapm.received("traces"))
    scopes = [
        scope for each in requests for block in each["resource_spans"] for scope in block["scope_spans"]
    ]
    return [
        Found(each["name"], each["span_id"], each.get("parent_span_id", ""), each["trace_id"])
        for scope in scopes
        for each in scope["spans"]
    ]


def segments(seen: Seen) -> list[dict[str, Any]]:
    trace_id = by_file(seen)[0].trace
    wanted = {"TraceIds": [f"1-{trace_id[:8]}-{trace_id[8:]}"]}
    answer = asyncio.run(seen.everywhere.moto.call("xray", "", wanted, path="/Traces"))
    return [json.loads(each["Document"]) for found in answer["Traces"] for each in found["Segments"]]


def by_xray(seen: Seen) -> list[Found]:
    return [
        Found(
            each["annotations"].get("span_name", each["name"]),
            each["id"],
            each.get("parent_id", ""),
            each["trace_id"],
        )
        for each in segments(seen)
    ]


SPANS = {
    "otlp": lambda seen: by_otlp(seen.everywhere.collector),
    "rotel": lambda seen: by_otlp(seen.everywhere.onward),
    "jaeger": lambda seen: by_otlp(seen.everywhere.jaeger),
    "otlp_proto_http": lambda seen: by_otlp(seen.everywhere.stock),
    "xray_otlp": lambda seen: by_otlp(seen.everywhere.signed),
    "xray": by_xray,
    "datadog": by_datadog,
    "zipkin": by_zipkin,
    "file": by_file,
}


@pytest.mark.parametrize("backend", SPANS)
def test_the_server_has_the_tree_of_the_run(seen: Seen, backend: str) -> None:
    assert drawn(SPANS[backend](seen)) == Counter(TREE)


def test_every_server_has_the_same_trace(seen: Seen) -> None:
    base64 = {"datadog"}  # as protobuf's JSON has bytes
    ids = {name: found(seen)[0].trace for name, found in SPANS.items() if name not in base64}
    ids["xray"] = ids["xray"].removeprefix("1-").replace("-", "")
    assert len(set(ids.values())) == 1


def test_the_console_shows_the_run(seen: Seen) -> None:
    text = seen.everywhere.console.getvalue()
    assert "Planner, ok" in text
    for name in ("invoke_agent Child", "ask the register", "SELECT cities", "fallback", "retry"):
        assert name in text


@pytest.mark.parametrize("server", ["collector", "onward", "stock", "jaeger"])
def test_a_span_has_the_attributes_and_events_of_its_call(seen: Seen, server: str) -> None:
    received: Collector = getattr(seen.everywhere, server)
    spans = {span.name: span for span in received.spans}
    second = attributes(spans["chat second"].attributes)
    assert {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "scripted",
        "gen_ai.request.model": "second",
        "gen_ai.response.finish_reasons": ["stop"],
        "agentrt.target": "scripted:second",
        "agentrt.attempts": 3,
        "agentrt.degraded": True,
        "agentrt.run.id": seen.run_id,
    }.items() <= second.items()
    assert second["gen_ai.usage.input_tokens"] > 0
    assert spans["chat second"].kind == spans["chat second"].SPAN_KIND_CLIENT
    events = [(event.name, attributes(event.attributes)) for event in spans["chat second"].events]
    assert [name for name, _ in events] == ["retry", "wait", "fallback"]
    assert events[0][1]["agentrt.attempt.number"] == 2
    assert events[2][1] == {
        "agentrt.target": "scripted:second",
        "agentrt.fallback.from": "scripted:first",
        "error.type": "agentrt.errors.TransientError",
    }
    assert attributes(spans["ask the register"].attributes) == {"register": "cities", "rows": 3}
    assert attributes(spans["SELECT cities"].attributes) == {"db.rows": 7}
    failed = [span for span in received.spans if span.status.code == span.status.STATUS_CODE_ERROR]
    assert sorted(span.status.message for span in failed) == ["down", "down", "overloaded"]


def test_xray_can_be_searched_for_what_a_call_was(seen: Seen) -> None:
    found = {each["annotations"].get("span_name", each["name"]): each for each in segments(seen)}
    root, second = found["invoke_agent Planner"], found["chat second"]
    assert root["name"] == "travel"
    assert second["annotations"]["gen_ai_request_model"] == "second"
    assert second["annotations"]["agentrt_degraded"] is True
    assert [event["name"] for event in second["metadata"]["agentrt"]["events"]] == [
        "retry",
        "wait",
        "fallback",
    ]


def test_zipkin_can_be_searched_for_what_a_call_was(seen: Seen) -> None:
    found = {each["name"]: each for each in seen.everywhere.zipkin.spans}
    assert found["invoke_agent Planner"]["localEndpoint"]["serviceName"] == "travel"
    assert found["chat second"]["tags"]["gen_ai.request.model"] == "second"
    assert found["chat second"]["annotations"][2]["value"].startswith('"fallback"')


# --- metrics -------------------------------------------------------------------------------------------


def value(received: Received, name: str, **wanted: Any) -> tuple[str, Any]:
    """Unit and last value of a metric for these attributes; of a histogram the count and the bounds."""
    metric = [each for each in received.metrics if each.name == name][-1]
    data = getattr(metric, metric.WhichOneof("data"))
    (point,) = [each for each in data.data_points if wanted.items() <= attributes(each.attributes).items()]
    if metric.WhichOneof("data") == "histogram":
        return metric.unit, (point.count, list(point.explicit_bounds)[:3])
    return metric.unit, getattr(point, point.WhichOneof("value"))


@pytest.mark.parametrize("server", ["collector", "onward", "stock"])
def test_an_otlp_server_has_the_metrics(seen: Seen, server: str) -> None:
    received: Collector = getattr(seen.everywhere, server)
    assert value(received, "trips.looked_up", city="Lisbon") == ("{trip}", 2)
    assert value(received, "register.age") == ("s", 1.5)
    assert value(received, "agent.tool.calls") == ("{call}", 1)
    assert value(received, "agentrt.retries") == ("{attempt}", 2)
    assert value(received, "agentrt.fallbacks", **{"agentrt.fallback": "scripted:second"}) == ("{change}", 1)
    chat = {"gen_ai.request.model": "second"}
    bounds = [0.01, 0.02, 0.04]
    assert value(received, "gen_ai.client.operation.duration", **chat) == ("s", (1, bounds))
    tokens = {**chat, "gen_ai.token.type": "output"}
    assert value(received, "gen_ai.client.token.usage", **tokens) == ("{token}", (1, [1, 4, 16]))
    for name in ("gen_ai.invoke_agent.duration", "agent.execution.duration"):
        run = {"gen_ai.agent.name": "Planner"}
        assert value(received, name, **run) == ("s", (1, [0.1, 0.2, 0.4]))
    assert value(received, "gen_ai.execute_tool.duration", **{"gen_ai.tool.name": "look_up"})[1][0] == 1


def test_the_scrape_has_the_metrics(seen: Seen) -> None:
    for text in (seen.everywhere.scraped.decode(), seen.everywhere.pushed.requests[-1].body.decode()):
        for line in (
            'trips_looked_up_total{city="Lisbon"} 2.0',
            "register_age_seconds 1.5",
            'agentrt_retries_total{agentrt_kind="model",agentrt_target="scripted:first"} 2.0',
            'agent_tool_calls_total{gen_ai_operation_name="execute_tool",gen_ai_tool_name="look_up"} 1.0',
        ):
            assert line in text
        target = re.search(r"^target_info\{(.*)\} 1.0$", text, re.MULTILINE)
        assert target is not None
        labels = set(re.sub('service_instance_id="[0-9a-f-]{36}"', "", target[1]).split(","))
        assert labels == {"", 'service_name="travel"', 'service_version="1.2"'}
        # Of what is counted it is no label: the series of a process that begins anew go on.
        assert text.count("service_instance_id") == 1


def test_cloudwatch_has_the_metrics(seen: Seen) -> None:
    async def ask() -> dict[str, Any]:
        now = datetime.now(UTC)
        async with aioboto3.Session().client("cloudwatch") as client:
            answer = await client.get_metric_statistics(
                Namespace="agents",
                MetricName="trips.looked_up",
                Dimensions=[{"Name": "service.name", "Value": "travel"}, {"Name": "city", "Value": "Lisbon"}],
                StartTime=now - timedelta(minutes=30),
                EndTime=now + timedelta(minutes=30),
                Period=3600,
                Statistics=["Sum"],
            )
        (point,) = answer["Datapoints"]
        return dict(point)

    assert asyncio.run(ask())["Sum"] == 2.0


def test_datadog_has_the_metrics_by_both_ways(seen: Seen) -> None:
    requests = asyncio.run(seen.everywhere.ddapm.received("metrics"))
    scopes = [
        scope for each in requests for block in each["resource_metrics"] for scope in block["scope_metrics"]
    ]
    metrics = {each["name"]: each for scope in scopes for each in scope["metrics"]}
    (point,) = metrics["trips.looked_up"]["sum"]["data_points"]
    assert (metrics["trips.looked_up"]["unit"], point["as_double"]) == ("{trip}", 2.0)
    (series,) = [each for each in seen.everywhere.intake.series if each["metric"] == "trips.looked_up"]
    assert series["points"][0]["value"] == 2.0
    assert {"service:travel", "city:Lisbon"} <= set(series["tags"])
    durations = {each["metric"] for each in seen.everywhere.intake.distributions}
    assert "gen_ai.client.operation.duration" in durations


# --- log lines -----------------------------------------------------------------------------------------


def tool_ids(seen: Seen) -> tuple[str, str]:
    """Trace id and span id of the tool's call, in which the line was written."""
    (span,) = [each for each in by_file(seen) if each.name == "execute_tool look_up"]
    return span.trace, span.id


@pytest.mark.parametrize("server", ["collector", "onward", "stock"])
def test_an_otlp_server_has_the_log_lines_with_ids(seen: Seen, server: str) -> None:
    received: Collector = getattr(seen.everywhere, server)
    (line,) = [each for each in received.logs if each.body.string_value == "looking up"]
    assert (line.trace_id.hex(), line.span_id.hex()) == tool_ids(seen)
    assert line.severity_text == "WARNING"
    assert attributes(line.attributes)["city"] == "Lisbon"
    names = {attributes(each.attributes).get("service.name") for each in received.resources}
    assert names == {"travel"}


def test_cloudwatch_has_the_log_lines_with_ids(seen: Seen) -> None:
    wanted = {"logGroupName": "g", "logStreamName": "s"}
    answer = asyncio.run(seen.everywhere.moto.call("logs", "Logs_20140328.GetLogEvents", wanted))
    lines = [json.loads(event["message"]) for event in answer["events"]]
    (line,) = [each for each in lines if each["message"] == "looking up"]
    assert (line["trace_id"], line["span_id"]) == tool_ids(seen)
    assert (line["level"], line["attributes"]["city"]) == ("warning", "Lisbon")


def test_datadog_has_the_log_lines_with_ids(seen: Seen) -> None:
    trace_id, span_id = tool_ids(seen)
    (line,) = [each for each in seen.everywhere.intake.logs if each["message"] == "looking up"]
    assert (line["dd.trace_id"], line["dd.span_id"]) == (str(int(trace_id[16:], 16)), str(int(span_id, 16)))
    assert (line["service"], line["status"]) == ("travel", "warning")
    requests = asyncio.run(seen.everywhere.ddapm.received("logs"))
    assert "looking up" in json.dumps(requests)


def test_the_file_has_all_three_signals(seen: Seen) -> None:
    lines = read(seen.everywhere.file)
    found = list(lines)
    assert {type(each) for each in found} == {Span, Metric, LogLine}
    assert (lines.skipped, lines.resource.service) == (0, "travel")


# --- servers of the system, and slow ones --------------------------------------------------------------


class Sleeper(Agent):
    model = "scripted:echo"


@pytest.mark.servers
@pytest.mark.asyncio
async def test_prometheus_answers_about_a_run(prometheus: Prometheus) -> None:
    (port,) = free_ports(1)
    tables = {"telemetry": {"service": "travel", "prometheus": {"port": port, "interval": 0.2}}}
    async with Runtime(Config(tables)) as runtime:
        for _ in range(3):
            await runtime.run(Sleeper, "hi")
        await prometheus.scrape(f"127.0.0.1:{port}")
        (calls,) = await prometheus.query_until(
            'gen_ai_client_operation_duration_seconds_count{gen_ai_request_model="echo"} == 3'
        )
        assert calls["metric"]["gen_ai_provider_name"] == "scripted"
        (runs,) = await prometheus.query(
            "sum by (gen_ai_agent_name) (agent_execution_duration_seconds_count)"
        )
        assert (runs["metric"], runs["value"][1]) == ({"gen_ai_agent_name": "Sleeper"}, "3")
        (info,) = await prometheus.query("target_info")
        assert info["metric"]["service_name"] == "travel"


@pytest.mark.servers
@pytest.mark.asyncio
async def test_what_a_short_run_pushed_is_scraped_after_its_end(
    pushgateway: Pushgateway, prometheus: Prometheus
) -> None:
    table = {"gateway": pushgateway.url, "job": "nightly"}
    async with Runtime(Config({"telemetry": {"prometheus": table}})) as runtime:
        await runtime.run(Sleeper, "hi")
    await prometheus.scrape(pushgateway.address, job="gateway")
    (runs,) = await prometheus.query_until('agent_execution_duration_seconds_count{job="nightly"}')
    assert runs["value"][1] == "1"


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.asyncio
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
async def test_phoenix_shows_the_run_as_the_trace_of_an_agent(phoenix: Phoenix, protocol: str) -> None:
    project = f"travel-{protocol[:4]}"
    endpoint = phoenix.url if protocol == "http/protobuf" else phoenix.grpc
    signals = ["spans"]  # it takes nothing else
    tables = {
        "resource": {"openinference.project.name": project},
        "capture_content": True,
        "register_global": True,
        "otlp": {"endpoint": endpoint, "protocol": protocol, "signals": signals},
    }
    with own_tracer_provider():
        wish = StepCall("look_up", {"city": "Lisbon"})
        Scripted.script("first", [Step(tool_calls=[wish]), "Go to Lisbon."])
        async with Runtime(Config({"telemetry": tables})) as runtime:
            await runtime.run(Planner, "Where to?")
    spans = await phoenix.spans(project, count=8)
    found = [
        Found(each["name"], each["context"]["span_id"], each["parent_id"] or "", each["context"]["trace_id"])
        for each in spans
    ]
    assert drawn(found) == Counter(
        [
            ("invoke_agent Planner", None),
            ("chat first", "invoke_agent Planner"),
            ("execute_tool look_up", "invoke_agent Planner"),
            ("ask the register", "execute_tool look_up"),
            ("SELECT cities", "ask the register"),
            ("invoke_agent Child", "SELECT cities"),
            ("chat echo", "invoke_agent Child"),
            ("chat first", "invoke_agent Planner"),
        ]
    )
    kinds = {each["name"]: each["span_kind"] for each in spans}
    assert {kinds["invoke_agent Planner"], kinds["chat first"], kinds["execute_tool look_up"]} == {
        "AGENT", "LLM", "TOOL",
    }  # fmt: skip
