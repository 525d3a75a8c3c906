"""A run of an agent as all plugins deliver it, from the configuration to the servers; and as they fail to."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from typing import Any

import pytest
from servers.faulty import BlackHole, Refusing
from servers.program import eventually, fetch, free_ports
from servers.programs import Ddapm, Moto
from servers.zipkin import Zipkin

from agentrt.agent import Agent
from agentrt.config import Config
from agentrt.runtime import Runtime
from plugins.aws import without_credentials

pytestmark = pytest.mark.asyncio


class Echo(Agent):
    model = "scripted:echo"


async def answers(runtime: Runtime) -> str:
    return str((await runtime.run(Echo, "hello")).text)


async def segments(moto: Moto, trace: str) -> list[dict[str, Any]]:
    answer = await moto.call("xray", "", {"TraceIds": [f"1-{trace[:8]}-{trace[8:]}"]}, path="/Traces")
    return [json.loads(each["Document"]) for found in answer["Traces"] for each in found["Segments"]]


async def test_one_run_arrives_everywhere(
    zipkin: Zipkin, moto: Moto, ddapm: Ddapm, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in moto.variables.items():
        monkeypatch.setenv(name, value)
    (port,) = free_ports(1)
    tables = {
        "service": "planner",
        "zipkin": {"endpoint": zipkin.endpoint},
        "prometheus": {"port": port},
        "cloudwatch_logs": {"log_group": "g", "log_stream": "s"},
        "cloudwatch_metrics": {"namespace": "agents"},
        "xray": {},
        "datadog": {"endpoint": ddapm.otlp},
    }
    async with Runtime(Config({"telemetry": tables})) as runtime:
        assert await answers(runtime) == "hello"
        runtime.telemetry.log("warning", "a line of ours", number=7)
        runtime.telemetry.record_metric("cache.hits", 2, {"cache": "pages"}, kind="counter")
        assert await runtime.telemetry.flush(20.0)
        scraped = await asyncio.to_thread(fetch, f"http://127.0.0.1:{port}/metrics")
    reports = runtime.telemetry.report()
    assert {report.name for report in reports} == set(tables) - {"service"}
    assert [report.lost for report in reports] == [{}] * 6

    spans = {span["name"]: span for span in zipkin.spans}
    root, chat = spans["invoke_agent Echo"], spans["chat echo"]
    assert chat["parentId"] == root["id"]
    assert root["localEndpoint"]["serviceName"] == "planner"
    assert 'cache_hits_total{cache="pages"} 2.0' in scraped.body.decode()
    assert {each["id"] for each in await segments(moto, root["traceId"])} == {root["id"], chat["id"]}
    request = {"logGroupName": "g", "logStreamName": "s"}
    events = (await moto.call("logs", "Logs_20140328.GetLogEvents", request))["events"]
    lines = {line["message"]: line for line in (json.loads(event["message"]) for event in events)}
    assert lines["a line of ours"]["attributes"] == {"number": 7}
    for signal in ("traces", "metrics", "logs"):
        assert await ddapm.received(signal)


async def test_backends_that_fail_cost_the_run_nothing_and_are_told_once(
    refusing: Refusing,
    black_hole: BlackHole,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    without_credentials(monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        tables = {
            "zipkin": {"endpoint": f"{refusing.url}/api/v2/spans"},
            "prometheus": {"port": taken.getsockname()[1]},
            "cloudwatch_logs": {},
            "xray": {"region": "eu-central-1"},
            "datadog": {"endpoint": black_hole.url, "timeout": 600.0},
        }
        runtime = Runtime(Config({"telemetry": tables}))
        async with runtime:
            for _ in range(5):
                assert await answers(runtime) == "hello"
            await runtime.telemetry.flush(0.1)
            failed = ("prometheus", "cloudwatch_logs", "xray", "zipkin")
            await eventually(
                lambda: all(f"the telemetry backend {name} " in caplog.text for name in failed),
                what="word of all that fail",
                timeout=40.0,
            )
            monkeypatch.setattr("agentrt.closing.CLOSE_SECONDS", 5.0)
            began = time.monotonic()
        assert time.monotonic() - began < 40.0  # of 600
    told = [text for text in caplog.messages if text.startswith("the telemetry backend ")]
    for name, why in {
        "prometheus": "the port is in use",
        "cloudwatch_logs": "no region is set",
        "xray": "no usable credentials",
        "zipkin": "cannot be reached",
    }.items():
        (text,) = [each for each in told if each.startswith(f"the telemetry backend {name} ")]
        assert why in text
    lost = {report.name: report.lost for report in runtime.telemetry.report()}
    assert lost["zipkin"] == {("spans", "shutdown"): 10}
    assert lost["xray"] == {("spans", "failed"): 10}
    assert sum(lost["datadog"].values()) > 0
