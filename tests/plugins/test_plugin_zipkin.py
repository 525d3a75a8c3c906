"""agentrt-zipkin: what Zipkin gets is what was sent."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from agentrt_zipkin import Zipkin as Backend
from agentrt_zipkin.backend import ENDPOINT
from agentrt_zipkin.encoding import encode
from servers.faulty import BlackHole, Refusing
from servers.http_server import Answer, HttpServer
from servers.zipkin import Zipkin

from agentrt import plugins
from agentrt.errors import ConfigError, PermanentError, ThrottledError, TransientError
from agentrt.telemetry.http import KeyRefused
from agentrt.telemetry.signals import Batch, Link, Span
from plugins.signals import CHAT_ID, NOW, RESOURCE, ROOT_ID, TOOL_ID, TRACE_ID, batch, spans

pytestmark = pytest.mark.asyncio


def backend(server: HttpServer | Refusing | BlackHole, *, timeout: float = 10.0) -> Backend:
    return Backend(endpoint=f"{server.url}/api/v2/spans", timeout=timeout)


async def send(server: HttpServer | Refusing | BlackHole, what: Batch, *, timeout: float = 10.0) -> None:
    client = backend(server, timeout=timeout)
    try:
        await client.export(what)
    finally:
        await client.aclose()


async def test_a_run_arrives_with_parents_kinds_and_times(zipkin: Zipkin) -> None:
    await send(zipkin, batch())
    root, chat, tool = zipkin.wait_for_spans(3)
    assert {span["traceId"] for span in (root, chat, tool)} == {TRACE_ID}
    assert (root["id"], chat["id"], tool["id"]) == (ROOT_ID, CHAT_ID, TOOL_ID)
    assert (root.get("parentId"), chat["parentId"], tool["parentId"]) == (None, ROOT_ID, ROOT_ID)
    assert (root.get("kind"), chat["kind"], tool.get("kind")) == (None, "CLIENT", None)
    assert [span["name"] for span in (root, chat, tool)] == [
        "invoke_agent planner", "chat gpt-x", "execute_tool search",
    ]  # fmt: skip
    assert (chat["timestamp"], chat["duration"]) == ((NOW + 10_000_000) // 1000, 500_007)
    assert root["localEndpoint"] == {"serviceName": "planner"}
    assert chat["remoteEndpoint"] == {"serviceName": "openai"}


async def test_attributes_become_tags_and_events_annotations(zipkin: Zipkin) -> None:
    await send(zipkin, batch())
    _, chat, tool = zipkin.wait_for_spans(3)
    expected = {
        "gen_ai.request.model": "gpt-x",
        "gen_ai.usage.input_tokens": "12",
        "agentrt.degraded": "false",
        "gen_ai.response.finish_reasons": '["stop"]',
        "service.version": "1.2",
        "otel.scope.name": "agentrt",
    }
    assert expected.items() <= chat["tags"].items()
    assert chat["annotations"] == [
        {"timestamp": (NOW + 100_000_000) // 1000, "value": '"retry": {"agentrt.delay":0.5}'},
        {"timestamp": (NOW + 90_000_000) // 1000, "value": "wait"},
    ]
    assert (tool["tags"]["error"], tool["tags"]["otel.status_code"]) == ("no disk", "ERROR")
    assert "error" not in chat["tags"]


async def test_metrics_and_log_lines_are_not_asked_for() -> None:
    assert Backend.signals == ("spans",)


async def test_a_span_without_failure_has_no_error_tag_whatever_its_attributes(zipkin: Zipkin) -> None:
    odd = Span("odd", TRACE_ID, ROOT_ID, None, NOW, NOW, attributes={"error": False})
    await send(zipkin, Batch(RESOURCE, (odd,)))
    (span,) = zipkin.wait_for_spans(1)
    assert "error" not in span["tags"]
    assert span["duration"] == 1


async def test_links_peers_and_odd_values_are_said_as_text(zipkin: Zipkin) -> None:
    span = Span(
        "odd", TRACE_ID, ROOT_ID, None, NOW, NOW + 5_000, "producer",
        {"server.address": "::1", "server.port": 99, "odd": {1, 2}, "nan": float("nan")},
        links=(Link(TRACE_ID, CHAT_ID),), status="error",
    )  # fmt: skip
    await send(zipkin, Batch(RESOURCE, (span,)))
    (got,) = zipkin.wait_for_spans(1)
    assert got["remoteEndpoint"] == {"serviceName": "::1", "port": 99, "ipv6": "::1"}
    assert got["tags"]["links"] == f"{TRACE_ID}/{CHAT_ID}"
    assert got["tags"]["nan"] == "null"
    assert got["tags"]["error"] == "true"


async def test_a_large_batch_goes_in_several_requests(zipkin: Zipkin) -> None:
    many = tuple(
        Span("x", TRACE_ID, f"{n:016x}", None, NOW, NOW + 1000, attributes={"text": "x" * 1000, "n": n})
        for n in range(1, 10_001)
    )
    await send(zipkin, Batch(RESOURCE, many))
    got = zipkin.wait_for_spans(10_000)
    assert [int(span["tags"]["n"]) for span in got] == list(range(1, 10_001))
    assert len(zipkin.requests) == 10
    assert max(len(request.body) for request in zipkin.requests) <= 4 * 1024 * 1024


async def test_what_the_server_finds_too_large_goes_in_halves(zipkin: Zipkin) -> None:
    zipkin.answer(Answer(413), None)
    await send(zipkin, batch())
    assert len(zipkin.wait_for_spans(3)) == 3
    assert len(zipkin.requests) == 3


async def test_a_batch_that_is_tried_again_goes_on_where_it_failed(zipkin: Zipkin) -> None:
    zipkin.answer(Answer(413), None, Answer(503, headers={"Retry-After": "7"}), None)
    client, what = backend(zipkin), batch()
    with pytest.raises(TransientError, match="HTTP 503") as failed:
        await client.export(what)
    assert failed.value.retry_after == 7.0
    await client.export(what)
    await client.aclose()
    assert [span["id"] for span in zipkin.spans] == [ROOT_ID, CHAT_ID, TOOL_ID]


@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [
        (429, ThrottledError, "HTTP 429"),
        (500, TransientError, "HTTP 500"),
        (401, KeyRefused, r"check \[telemetry.zipkin\] headers"),
        (404, PermanentError, r"check \[telemetry.zipkin\] endpoint"),
        (302, PermanentError, r"check \[telemetry.zipkin\] endpoint"),
        (400, PermanentError, "bad span"),
    ],
)
async def test_what_the_server_answers_becomes_an_error(
    answering: Callable[..., HttpServer], status: int, kind: type[Exception], says: str
) -> None:
    server = answering(status, b"bad span", {"Retry-After": "3"})
    with pytest.raises(kind, match=says) as failed:
        await send(server, batch())
    assert type(failed.value) is kind
    if kind is ThrottledError:
        assert failed.value.retry_after == 3.0


async def test_one_span_that_is_too_large_does_not_take_the_others_along(zipkin: Zipkin) -> None:
    zipkin.answer(Answer(413), Answer(413), None)
    with pytest.raises(PermanentError, match="HTTP 413"):
        await send(zipkin, batch())
    assert [span["id"] for span in zipkin.spans] == [CHAT_ID, TOOL_ID]


async def test_a_server_that_is_not_there_may_come_back(refusing: Refusing) -> None:
    with pytest.raises(TransientError, match=r"cannot be reached.*\[telemetry.zipkin\] endpoint"):
        await send(refusing, batch())


async def test_a_server_that_never_answers_costs_the_timeout(black_hole: BlackHole) -> None:
    with pytest.raises(TransientError, match=r"no answer within 0\.2 s"):
        await send(black_hole, batch(), timeout=0.2)


async def test_garbage_instead_of_http_is_a_lost_connection(answering: Callable[..., HttpServer]) -> None:
    with pytest.raises(TransientError):
        await send(answering(raw=b"\x00\x01 what?"), batch())


async def test_a_secret_in_the_headers_is_resolved(zipkin: Zipkin) -> None:
    class Host:
        async def secret(self, reference: str) -> str:
            return {"secret://zipkin-token": "t0p"}[reference]

    client = Backend(endpoint=zipkin.endpoint, headers={"authorization": "Bearer secret://zipkin-token"})
    await client.open(Host())
    await client.export(batch())
    await client.aclose()
    assert zipkin.requests[0].headers["authorization"] == "Bearer t0p"


async def test_options_are_checked_and_the_variable_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Backend().endpoint == ENDPOINT
    monkeypatch.setenv("OTEL_EXPORTER_ZIPKIN_ENDPOINT", "http://collector:9411/api/v2/spans")
    assert Backend().endpoint == "http://collector:9411/api/v2/spans"
    with pytest.raises(ConfigError, match=r"endpoint must look like .* not 'zipkin:9411'"):
        Backend(endpoint="zipkin:9411")
    with pytest.raises(ConfigError, match="interval"):
        Backend(interval=0)


async def test_the_plugin_is_found_by_its_name() -> None:
    assert plugins.load("agentrt.telemetry", "zipkin") is Backend


async def test_a_span_is_small() -> None:
    assert len(encode(spans()[0], RESOURCE)) < 600
