"""agentrt-prometheus: what Prometheus answers is what was recorded."""

from __future__ import annotations

import asyncio
import gzip
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from agentrt_prometheus import Prometheus as Backend
from agentrt_prometheus.gateway import group_path
from agentrt_prometheus.naming import labels_of, metric_name
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from servers.faulty import Refusing
from servers.http_server import HttpServer
from servers.program import Reply, fetch
from servers.programs import Prometheus, Pushgateway

from agentrt import plugins
from agentrt.errors import ConfigError, PermanentError, ThrottledError, TransientError
from agentrt.telemetry.signals import Batch, Metric
from plugins.signals import RESOURCE, batch, counter, gauge

pytestmark = pytest.mark.asyncio


@asynccontextmanager
async def opened(**options: Any) -> AsyncIterator[Backend]:
    backend = Backend(**{"port": 0, **options})
    await backend.open(None)
    try:
        yield backend
    finally:
        await backend.aclose()


async def scrape(backend: Backend, **headers: str) -> Reply:
    url = f"http://127.0.0.1:{backend.port}/metrics"
    return await asyncio.to_thread(fetch, url, headers=headers)


async def samples(backend: Backend) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    reply = await scrape(backend)
    found = {}
    for family in parse_text(reply.body.decode()):
        for sample in family.samples:
            found[sample.name, frozenset(sample.labels.items())] = sample.value
    return found


def only(*metrics: Metric) -> Batch:
    return Batch(RESOURCE, metrics=metrics)


# --------------------------------------------------------------------------------------------------- names
@pytest.mark.parametrize(
    ("name", "unit", "kind", "becomes"),
    [
        ("gen_ai.client.operation.duration", "s", "histogram", "gen_ai_client_operation_duration_seconds"),
        ("gen_ai.client.token.usage", "{token}", "histogram", "gen_ai_client_token_usage"),
        ("agent.tool.calls", "{call}", "counter", "agent_tool_calls"),
        ("bytes.total", "By", "counter", "bytes"),
        ("sent_total", "By", "counter", "sent_bytes"),
        ("speed", "By/s", "gauge", "speed_bytes_per_second"),
        ("calls", "{call}/min", "gauge", "calls_per_minute"),
        ("fill", "1", "gauge", "fill_ratio"),
        ("fill", "1", "counter", "fill"),
        ("load", "%", "gauge", "load_percent"),
        ("wait_seconds", "s", "gauge", "wait_seconds"),
        ("seconds", "s", "gauge", "seconds"),
        ("9 lives // µ", "", "gauge", "_9_lives_"),
        ("€€", "", "gauge", ""),
        ("", "s", "gauge", ""),
    ],
)
async def test_names_get_their_unit(name: str, unit: str, kind: Any, becomes: str) -> None:
    assert metric_name(name, unit, kind) == becomes


async def test_labels_that_become_the_same_are_joined() -> None:
    assert labels_of({"a.b": 1, "a_b": "x", "9": True, "le": 3}) == {
        "a_b": "1;x", "key_9": "true", "exported_le": "3",
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------ endpoint
async def test_the_endpoint_shows_the_last_values() -> None:
    async with opened() as backend:
        await backend.export(batch())
        await backend.export(only(counter("agent.tool.calls", 5.0, **{"gen_ai.tool.name": "search"})))
        found = await samples(backend)
    assert found["agent_tool_calls_total", frozenset({("gen_ai_tool_name", "search")})] == 5.0
    assert found["agent_queue_fill_ratio", frozenset()] == 0.25
    chat = {("gen_ai_operation_name", "chat"), ("gen_ai_request_model", "gpt-x")}
    name = "gen_ai_client_operation_duration_seconds"
    bounds = ("0.1", "0.2", "1.0", "5.0", "+Inf")
    below = [found[f"{name}_bucket", frozenset({*chat, ("le", bound)})] for bound in bounds]
    assert below == [1, 3, 4, 4, 5]
    assert (found[f"{name}_count", frozenset(chat)], found[f"{name}_sum", frozenset(chat)]) == (5.0, 8.25)
    target = {
        ("service_name", "planner"), ("service_version", "1.2"), ("deployment_environment_name", "test"),
        ("service_instance_id", "ffffffff"),
    }  # fmt: skip
    assert found["target_info", frozenset(target)] == 1.0


async def test_openmetrics_is_given_to_who_accepts_it_and_is_valid() -> None:
    async with opened() as backend:
        await backend.export(batch())
        reply = await scrape(backend, Accept="application/openmetrics-text; version=1.0.0")
        plain = await scrape(backend)
    assert reply.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert plain.headers["content-type"].startswith("text/plain; version=")
    text = reply.body.decode()
    assert text.endswith("# EOF\n")
    families = {family.name: family for family in parse_openmetrics(text)}
    duration = families["gen_ai_client_operation_duration_seconds"]
    assert (duration.type, duration.unit) == ("histogram", "seconds")
    assert families["agent_tool_calls"].type == "counter"
    assert families["target"].type == "info"


async def test_a_scrape_is_compressed_if_it_may() -> None:
    async with opened() as backend:
        await backend.export(batch())
        reply = await scrape(backend, **{"Accept-Encoding": "gzip"})
    assert reply.headers["content-encoding"] == "gzip"
    assert b"agent_tool_calls_total" in gzip.decompress(reply.body)


async def test_before_the_first_batch_the_endpoint_answers_with_nothing() -> None:
    async with opened() as backend:
        reply = await scrape(backend)
    assert (reply.status, reply.body) == (200, b"")


async def test_scope_labels_are_there_if_wanted() -> None:
    async with opened(scope_labels=True) as backend:
        await backend.export(only(gauge("fill", 0.5)))
        found = await samples(backend)
    assert found["fill_ratio", frozenset({("otel_scope_name", "agentrt")})] == 0.5


async def test_a_port_in_use_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127.0.0.1:{port}: the port is in use.*Set another `port`"):
            await Backend(port=port).open(None)


async def test_a_host_that_is_not_ours_is_told() -> None:
    with pytest.raises(PermanentError, match="Check `host` and `port`"):
        await Backend(host="203.0.113.1", port=0).open(None)


async def test_after_the_end_nobody_listens() -> None:
    async with opened() as backend:
        port = backend.port
    with pytest.raises(ConnectionRefusedError):
        await asyncio.to_thread(fetch, f"http://127.0.0.1:{port}/metrics")


async def test_a_scraper_that_hangs_does_not_hold_up_the_end() -> None:
    async with opened() as backend:
        with socket.create_connection(("127.0.0.1", backend.port or 0)) as hanging:
            hanging.sendall(b"GET /metrics HTTP/1.1\r\n")
            await asyncio.sleep(0.1)
            async with asyncio.timeout(20.0):
                await backend.aclose()


async def test_a_forked_process_leaves_its_parents_endpoint_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened() as backend:
        await backend.export(batch())
        endpoint, port = backend._endpoint, backend.port
        with monkeypatch.context() as child:
            child.setattr("agentrt_prometheus.backend.os.getpid", lambda: -1)
            with pytest.raises(ConfigError, match="the port is in use"):
                await backend.export(batch())
            await backend.aclose()
        reply = await asyncio.to_thread(fetch, f"http://127.0.0.1:{port}/metrics")
        assert b"agent_tool_calls_total" in reply.body
        endpoint.close()


async def test_a_metric_with_a_bad_name_is_left_out_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async with opened() as backend:
        with caplog.at_level(logging.WARNING, "agentrt.telemetry.prometheus"):
            for _ in range(3):
                await backend.export(only(counter("€€"), counter("x.y", 2.0), gauge("x-y", 1.0, unit="")))
        found = await samples(backend)
    assert found["x_y_total", frozenset()] == 2.0
    assert not any(name == "x_y" for name, _ in found)
    assert len(caplog.messages) == 2
    assert "no letter or digit" in caplog.messages[0]
    assert "'x.y', a counter, has its name x_y already" in caplog.messages[1]


async def test_ten_thousand_values_of_a_tag_are_ten_thousand_series() -> None:
    metrics = [counter("calls", float(n), user=f"user {n} \n\"'") for n in range(10_000)]
    async with opened() as backend:
        await backend.export(only(*metrics))
        found = await samples(backend)
    assert len(found) == 10_001
    assert found["calls_total", frozenset({("user", "user 77 \n\"'")})] == 77.0


# ----------------------------------------------------------------------------------------------- a gateway
async def test_a_push_replaces_the_group(answering: Callable[..., HttpServer]) -> None:
    server = answering(200)
    async with opened(port=None, gateway=server.url, job="night ly", grouping={"path": "/a b"}) as backend:
        assert backend.port is None
        await backend.export(batch())
    (request,) = server.requests
    assert (request.method, request.path) == ("PUT", "/metrics/job/night%20ly/path@base64/L2EgYg==")
    assert request.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert b'agent_tool_calls_total{gen_ai_tool_name="search"} 3.0' in request.body


async def test_the_group_is_removed_at_the_end_if_wanted(answering: Callable[..., HttpServer]) -> None:
    server = answering(200)
    async with opened(port=None, gateway=server.url, delete_on_exit=True) as backend:
        await backend.export(batch())
    assert [(request.method, request.path) for request in server.requests] == [
        ("PUT", "/metrics/job/planner"),
        ("DELETE", "/metrics/job/planner"),
    ]


async def test_an_empty_label_of_the_group_is_an_equals_sign() -> None:
    assert group_path("j", {"a": ""}) == "/metrics/job/j/a@base64/="


@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [
        (401, PermanentError, r"check \[telemetry.prometheus\] headers"),
        (400, PermanentError, "HTTP 400: refused"),
        (429, ThrottledError, "HTTP 429"),
        (503, TransientError, "HTTP 503"),
        (413, PermanentError, "HTTP 413"),
    ],
)
async def test_what_the_gateway_answers_becomes_an_error(
    answering: Callable[..., HttpServer], status: int, kind: type[Exception], says: str
) -> None:
    async with opened(port=None, gateway=answering(status, b"refused").url) as backend:
        with pytest.raises(kind, match=says):
            await backend.export(batch())


async def test_a_gateway_that_is_not_there_may_come_back(refusing: Refusing) -> None:
    async with opened(port=None, gateway=refusing.url) as backend:
        with pytest.raises(TransientError, match=r"cannot be reached.*\[telemetry.prometheus\] gateway"):
            await backend.export(batch())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"port": 70_000}, "port must be a whole number from 0 to 65535"),
        ({"job": "x"}, "give the `gateway`, too"),
        ({"gateway": "localhost:9091"}, "gateway must look like"),
        ({"gateway": "http://g", "grouping": {"a-b": "c"}}, "'a-b' is no name of a label"),
        ({"gateway": "http://g", "grouping": {"job": "c"}}, "'job' is no name of a label"),
        ({"interval": -1}, "interval"),
    ],
)
async def test_options_are_checked(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Backend(**options)


async def test_the_plugin_is_found_by_its_name_and_wants_cumulative_metrics() -> None:
    assert plugins.load("agentrt.telemetry", "prometheus") is Backend
    assert Backend.signals == ("metrics",)
    assert not getattr(Backend, "delta", False)
    assert Backend().port == 9464


# --------------------------------------------------------------------------------------------- real servers
@pytest.mark.servers
async def test_prometheus_scrapes_and_answers_in_promql(prometheus: Prometheus) -> None:
    async with opened() as backend:
        await backend.export(batch())
        await prometheus.scrape(f"127.0.0.1:{backend.port}")
        (calls,) = await prometheus.query_until("agent_tool_calls_total")
        (mean,) = await prometheus.query(
            'gen_ai_client_operation_duration_seconds_sum{gen_ai_request_model="gpt-x"}'
            " / gen_ai_client_operation_duration_seconds_count"
        )
        (median,) = await prometheus.query(
            "histogram_quantile(0.5, sum by (le) (gen_ai_client_operation_duration_seconds_bucket))"
        )
        (joined,) = await prometheus.query(
            "agent_tool_calls_total * on (instance) group_left (service_name) target_info"
        )
        (about,) = await prometheus.metadata("gen_ai_client_operation_duration_seconds")
    assert (calls["metric"]["gen_ai_tool_name"], calls["value"][1]) == ("search", "3")
    assert float(mean["value"][1]) == pytest.approx(8.25 / 5)
    assert 0.1 < float(median["value"][1]) <= 0.2
    assert joined["metric"]["service_name"] == "planner"
    assert (about["type"], about["unit"]) == ("histogram", "seconds")
    assert about["help"] == "what gen_ai.client.operation.duration says"


@pytest.mark.servers
async def test_prometheus_takes_ten_thousand_series(prometheus: Prometheus) -> None:
    async with opened() as backend:
        await backend.export(only(*(counter("calls", 1.0, user=f"u{n}") for n in range(10_000))))
        await prometheus.scrape(f"127.0.0.1:{backend.port}")
        (number,) = await prometheus.query_until("count(calls_total)")
    assert number["value"][1] == "10000"


@pytest.mark.servers
async def test_a_short_run_is_seen_through_the_pushgateway(
    prometheus: Prometheus, pushgateway: Pushgateway
) -> None:
    options = {"port": None, "gateway": pushgateway.url, "job": "nightly", "grouping": {"instance": "a/b"}}
    async with opened(**options) as backend:
        await backend.export(batch())
    (group,) = await pushgateway.groups()
    assert group["labels"] == {"job": "nightly", "instance": "a/b"}
    await prometheus.scrape(pushgateway.address, job="gateway")
    (calls,) = await prometheus.query_until('agent_tool_calls_total{job="nightly", instance="a/b"}')
    assert calls["value"][1] == "3"


@pytest.mark.servers
async def test_a_removed_group_is_gone_from_the_pushgateway(pushgateway: Pushgateway) -> None:
    async with opened(port=None, gateway=pushgateway.url, delete_on_exit=True) as backend:
        await backend.export(batch())
        assert len(await pushgateway.groups()) == 1
    assert await pushgateway.groups() == []
