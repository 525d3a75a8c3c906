"""agentrt-datadog: what the Agent and the intake get is what was sent."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from agentrt_datadog import Datadog
from agentrt_datadog.encoding import LOG_BYTES, POINT_VALUES, distributions, encode_log, usable_name
from agentrt_datadog.intake import Intake
from servers.faulty import Refusing
from servers.http_server import Answer, HttpServer
from servers.otlp import Collector
from servers.programs import Ddapm

from agentrt import plugins
from agentrt.errors import ConfigError, PermanentError, ThrottledError, TransientError
from agentrt.telemetry.signals import Batch, Histogram, LogLine, Metric, Point
from plugins.datadog_intake import KEY, DatadogIntake
from plugins.signals import (
    CHAT_ID,
    NOW,
    RESOURCE,
    ROOT_ID,
    TOOL_ID,
    TRACE_ID,
    TRACEBACK,
    batch,
    counter,
    gauge,
    line,
)

pytestmark = pytest.mark.asyncio

TAGS = ["env:test", "service:planner", "version:1.2"]


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DD_ENV", "DD_VERSION", "DD_SERVICE", "DD_SITE", "DD_AGENT_HOST"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def intake() -> Iterator[DatadogIntake]:
    with DatadogIntake() as server:
        yield server


class Host:
    """Resolves references, as the runtime does."""

    def __init__(self, *values: str) -> None:
        self.values = list(values)

    async def secret(self, reference: str) -> str:
        assert reference == "secret://env/DD_API_KEY"
        return self.values.pop(0)

    async def secret_rejected(self, reference: str, value: str) -> str:
        assert value != self.values[0]
        return await self.secret(reference)


async def send(what: Batch, **options: Any) -> None:
    backend = Datadog(**options)
    try:
        await backend.export(what)
    finally:
        await backend.aclose()


def only(*metrics: Metric) -> Batch:
    return Batch(RESOURCE, metrics=metrics)


def digits(text: str) -> str:
    """An id as the test agent shows it."""
    return base64.b64encode(bytes.fromhex(text)).decode()


def pairs(attributes: list[Any]) -> dict[str, Any]:
    return {each["key"]: next(iter(each["value"].values())) for each in attributes}


# ----------------------------------------------------------------------------------------------- the Agent
async def test_the_agent_gets_spans_with_parents_attributes_and_unified_tags(ddapm: Ddapm) -> None:
    await send(batch(delta=True), endpoint=ddapm.otlp, env="staging", tags={"team": "search"})
    (request,) = await ddapm.received("traces")
    (block,) = request["resource_spans"]
    named = pairs(block["resource"]["attributes"])
    assert (named["service.name"], named["service.version"], named["team"]) == ("planner", "1.2", "search")
    assert named["deployment.environment.name"] == named["deployment.environment"] == "staging"
    root, chat, tool = block["scope_spans"][0]["spans"]
    assert (root["trace_id"], root["span_id"]) == (digits(TRACE_ID), digits(ROOT_ID))
    assert (chat["span_id"], chat["parent_span_id"]) == (digits(CHAT_ID), digits(ROOT_ID))
    assert pairs(chat["attributes"])["gen_ai.usage.input_tokens"] == "12"
    assert tool["status"] == {"message": "no disk", "code": "STATUS_CODE_ERROR"}


async def test_the_agent_gets_metrics_as_deltas(ddapm: Ddapm) -> None:
    await send(batch(delta=True), endpoint=ddapm.otlp)
    (request,) = await ddapm.received("metrics")
    metrics = {each["name"]: each for each in request["resource_metrics"][0]["scope_metrics"][0]["metrics"]}
    duration = metrics["gen_ai.client.operation.duration"]
    assert (duration["unit"], duration["histogram"]["aggregation_temporality"]) == (
        "s", "AGGREGATION_TEMPORALITY_DELTA",
    )  # fmt: skip
    (point,) = duration["histogram"]["data_points"]
    assert (point["count"], point["sum"], point["bucket_counts"]) == ("5", 8.25, ["1", "2", "1", "0", "1"])
    calls = metrics["agent.tool.calls"]["sum"]
    assert calls["aggregation_temporality"] == "AGGREGATION_TEMPORALITY_DELTA"
    assert calls["data_points"][0]["as_double"] == 3.0
    assert pairs(calls["data_points"][0]["attributes"]) == {"gen_ai.tool.name": "search"}


async def test_the_agent_gets_log_lines_with_trace_ids(ddapm: Ddapm) -> None:
    await send(batch(delta=True), endpoint=ddapm.otlp)
    (request,) = await ddapm.received("logs")
    records = [each for scope in request["resource_logs"][0]["scope_logs"] for each in scope["log_records"]]
    found = {each["body"]["string_value"]: each for each in records}
    failed = found["the tool failed"]
    assert (failed["trace_id"], failed["span_id"]) == (digits(TRACE_ID), digits(TOOL_ID))
    assert failed["severity_text"] == "ERROR"
    assert pairs(failed["attributes"])["tool"] == "search"
    assert "começa: ☃" in found


async def test_without_options_the_agent_of_this_machine_gets_all(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Datadog()
    assert set(backend.signals) == {"spans", "metrics", "logs"}
    assert backend.delta is True
    assert backend._agent is not None
    assert backend._agent.destinations["spans"].url == "http://127.0.0.1:4318/v1/traces"
    monkeypatch.setenv("DD_AGENT_HOST", "agent.local")
    agent = Datadog()._agent
    assert agent is not None
    assert agent.destinations["logs"].url == "http://agent.local:4318/v1/logs"


async def test_the_variables_of_datadog_name_the_service(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("DD_ENV", "prod"), ("DD_VERSION", "9"), ("DD_SERVICE", "other")):
        monkeypatch.setenv(name, value)
    await send(batch(delta=True), endpoint=collector.url)
    named = {pair.key: pair.value.string_value for pair in collector.resources[0].attributes}
    assert named["service.name"] == "other"
    assert (named["service.version"], named["deployment.environment.name"]) == ("9", "prod")


async def test_an_agent_that_is_not_there_may_come_back(refusing: Refusing) -> None:
    with pytest.raises(TransientError, match="datadog agent"):
        await send(batch(), endpoint=refusing.url)


# ---------------------------------------------------------------------------------------------- the intake
async def test_log_lines_arrive_with_ids_and_tags(intake: DatadogIntake) -> None:
    await send(batch(delta=True), api_key=KEY, intake=intake.url)
    failed, begun = intake.logs
    assert (failed["message"], failed["status"], failed["service"]) == ("the tool failed", "error", "planner")
    assert (failed["otel.trace_id"], failed["otel.span_id"]) == (TRACE_ID, TOOL_ID)
    assert failed["dd.trace_id"] == str(int(TRACE_ID[16:], 16))
    assert failed["dd.span_id"] == str(int(TOOL_ID, 16))
    assert (failed["error.stack"], failed["tool"], failed["logger.name"]) == (TRACEBACK, "search", "tools")
    assert failed["ddtags"].split(",") == TAGS
    assert (begun["message"], begun["timestamp"]) == ("começa: ☃", NOW // 10**6)


async def test_counters_and_gauges_arrive_as_series(intake: DatadogIntake) -> None:
    await send(batch(delta=True), api_key=KEY, intake=intake.url, tags={"team": "search"})
    found = {item["metric"]: item for item in intake.series}
    calls, fill = found["agent.tool.calls"], found["agent.queue.fill"]
    assert (calls["type"], calls["interval"], fill["type"]) == (1, 5, 3)
    assert calls["points"] == [{"timestamp": NOW // 10**9, "value": 3.0}]
    assert calls["tags"] == [
        "env:test",
        "service:planner",
        "team:search",
        "version:1.2",
        "gen_ai.tool.name:search",
    ]
    assert fill["points"][0]["value"] == 0.25


async def test_histograms_arrive_as_distributions(intake: DatadogIntake) -> None:
    await send(batch(delta=True), api_key=KEY, intake=intake.url)
    found = {item["metric"]: item for item in intake.distributions}
    ((time, values),) = found["gen_ai.client.operation.duration"]["points"]
    assert (time, len(values), min(values), max(values)) == (NOW // 10**9, 5, 0.05, 7.0)
    assert sum(values) == pytest.approx(8.25)
    assert "gen_ai.request.model:gpt-x" in found["gen_ai.client.operation.duration"]["tags"]


async def test_requests_keep_to_the_limits(intake: DatadogIntake) -> None:
    lines = [line(f"{n} " + "x" * 4_000) for n in range(3_500)]
    users = [counter("calls", 1.0, delta=True, user=f"u{n}") for n in range(10_000)]
    await send(Batch(RESOURCE, metrics=tuple(users), logs=tuple(lines)), api_key=KEY, intake=intake.url)
    assert [log["message"].split()[0] for log in intake.logs] == [str(n) for n in range(3_500)]
    assert {item["tags"][-1] for item in intake.series} == {f"user:u{n}" for n in range(10_000)}
    assert len(intake.requests) == 4 + 1


async def test_spans_go_through_the_agent_beside_the_intake(
    intake: DatadogIntake, collector: Collector
) -> None:
    backend = Datadog(api_key=KEY, intake=intake.url, endpoint=collector.url)
    assert set(backend.signals) == {"spans", "metrics", "logs"}
    await backend.export(batch(delta=True))
    await backend.aclose()
    assert (len(collector.spans), len(collector.logs), len(collector.metrics)) == (3, 0, 0)
    assert (len(intake.logs), len(intake.series), len(intake.distributions)) == (2, 2, 2)


async def test_without_an_agent_spans_are_not_asked_for() -> None:
    assert set(Datadog(api_key=KEY).signals) == {"metrics", "logs"}


async def test_what_was_delivered_is_not_sent_again(intake: DatadogIntake, collector: Collector) -> None:
    intake.answer(None, Answer(503), None)
    backend, what = Datadog(api_key=KEY, intake=intake.url, endpoint=collector.url), batch(delta=True)
    with pytest.raises(TransientError, match="HTTP 503"):
        await backend.export(what)
    await backend.export(what)
    await backend.aclose()
    assert (len(collector.spans), len(intake.logs), len(intake.series)) == (3, 2, 2)


async def test_the_agent_being_away_does_not_hold_up_the_intake(
    intake: DatadogIntake, refusing: Refusing
) -> None:
    with pytest.raises(TransientError, match="datadog agent"):
        await send(batch(delta=True), api_key=KEY, intake=intake.url, endpoint=refusing.url)
    assert len(intake.logs) == 2


async def test_a_reference_is_resolved_and_once_more_when_the_key_is_refused(intake: DatadogIntake) -> None:
    backend = Datadog(api_key="secret://env/DD_API_KEY", intake=intake.url)
    await backend.open(Host("an-old-key", KEY))
    await backend.export(batch(delta=True))
    await backend.aclose()
    assert len(intake.logs) == 2


@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [
        (403, PermanentError, "check `api_key` and `site`"),
        (401, PermanentError, "check `api_key` and `site`"),
        (400, PermanentError, "HTTP 400"),
        (404, PermanentError, "check `site` and `intake`"),
        (429, ThrottledError, "HTTP 429"),
        (408, TransientError, "HTTP 408"),
        (503, TransientError, "HTTP 503"),
    ],
)
async def test_what_the_intake_answers_becomes_an_error_without_the_key(
    answering: Callable[..., HttpServer], status: int, kind: type[Exception], says: str
) -> None:
    server = answering(status, f'{{"errors":["no: {KEY}"]}}'.encode(), {"Retry-After": "9"})
    with pytest.raises(kind, match=says) as failed:
        await send(batch(delta=True), api_key=KEY, intake=server.url)
    assert KEY not in str(failed.value)
    if isinstance(failed.value, ThrottledError):
        assert failed.value.retry_after == 9.0


async def test_what_is_too_large_goes_in_halves(intake: DatadogIntake) -> None:
    intake.answer(Answer(413), None)
    await send(Batch(RESOURCE, logs=tuple(line(str(n)) for n in range(10))), api_key=KEY, intake=intake.url)
    assert [log["message"] for log in intake.logs] == [str(n) for n in range(10)]
    assert len(intake.requests) == 3


async def test_a_success_with_errors_is_an_error(answering: Callable[..., HttpServer]) -> None:
    server = answering(202, b'{"errors":["bad tag"]}')
    with pytest.raises(PermanentError, match="some of 1 series were not taken: bad tag"):
        await send(only(counter("calls", delta=True)), api_key=KEY, intake=server.url)


async def test_what_did_not_arrive_is_counted(intake: DatadogIntake, collector: Collector) -> None:
    """Of five spans, four lines and eleven points: a wrong name, a value that is no number, a refused request."""
    backend = Datadog(api_key=KEY, intake=intake.url, endpoint=collector.url)
    large = Histogram(25_000, 0.0, 1.0, 1.0, (2.0,), (25_000, 0))  # three items of 10,000 values at most
    what = Batch(
        RESOURCE,
        metrics=(
            counter("€ 9"),
            gauge("inf", math.inf),
            *(counter("a.b", 2.0, delta=True) for _ in range(3)),  # added up in one
            Metric("h", "histogram", "s", "", (Point({}, large, NOW, NOW), Point({"x": 1}, large, NOW, NOW))),
        ),
        logs=tuple(line(str(n)) for n in range(4)),
    )
    assert backend.undelivered(what) == {"spans": 0, "metrics": 7, "logs": 4}
    intake.answer(None, Answer(400), None)
    with pytest.raises(PermanentError, match="HTTP 400"):
        await backend.export(what)
    assert (len(intake.logs), intake.series) == (4, [])
    assert backend.undelivered(what) == {"metrics": 5}
    assert {item["metric"] for item in intake.distributions} == {"h"}

    intake.answer(Answer(503), None, Answer(503))
    what = batch(delta=True)
    with pytest.raises(TransientError):
        await backend.export(what)
    assert len(collector.spans) == 3
    before = backend.undelivered(what)
    assert before == {name: count for name, count in what.counts.items() if name != "spans"}
    await backend.aclose()


async def test_a_delivery_that_was_cut_off_goes_on_with_what_is_left(
    intake: DatadogIntake, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = asyncio.Event()

    async def hang(self: Intake, batch: Batch, /) -> None:
        begun.set()
        await asyncio.Event().wait()

    backend, what = Datadog(api_key=KEY, intake=intake.url, endpoint=collector.url), batch(delta=True)
    with monkeypatch.context() as patch:
        patch.setattr(Intake, "export", hang)
        exporting = asyncio.create_task(backend.export(what))
        await begun.wait()
        exporting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await exporting
    assert backend.undelivered(what).keys() == {"metrics", "logs"}
    await backend.export(what)
    await backend.aclose()
    assert backend.undelivered(what) == {}
    assert (len(collector.spans), len(intake.logs), len(intake.series)) == (3, 2, 2)


async def test_an_intake_that_is_not_there_may_come_back(refusing: Refusing) -> None:
    with pytest.raises(TransientError, match="cannot be reached"):
        await send(batch(), api_key=KEY, intake=refusing.url)


async def test_bad_names_and_values_are_left_out_and_told_once(
    intake: DatadogIntake, caplog: pytest.LogCaptureFixture
) -> None:
    backend = Datadog(api_key=KEY, intake=intake.url)
    with caplog.at_level(logging.WARNING, "agentrt.telemetry.datadog"):
        for _ in range(2):
            await backend.export(
                only(counter("€ 9"), gauge("inf", math.inf), counter("9 odd name!", delta=True))
            )
    await backend.aclose()
    assert {item["metric"] for item in intake.series} == {"odd_name_"}
    assert len(caplog.messages) == 2


async def test_counts_that_datadog_would_take_for_one_are_added_up(intake: DatadogIntake) -> None:
    twice = counter("a.b", 2.0, delta=True), counter("a.b", 3.0, delta=True)
    await send(only(*twice), api_key=KEY, intake=intake.url)
    assert [item["points"][0]["value"] for item in intake.series] == [5.0]


@pytest.mark.parametrize(
    "large",
    [
        line("é" * 3_000_000),
        line("small", **{f"attribute {n}": "x" * 100 for n in range(20_000)}),
        LogLine(NOW, "error", "m" * 900_000, "t", {}, exception="\n" * 900_000),
    ],
)
async def test_a_line_that_is_too_large_is_cut_and_stays_json(large: LogLine) -> None:
    encoded = encode_log(large, RESOURCE, TAGS, "host")
    assert len(encoded) <= LOG_BYTES
    value = json.loads(encoded)
    assert (value["truncated"], value["service"]) == (True, "planner")


async def test_attributes_do_not_take_the_place_of_what_datadog_reads() -> None:
    value = json.loads(encode_log(line("m", status="odd", service=1), RESOURCE, TAGS, "host"))
    assert (value["status"], value["attributes.status"], value["attributes.service"]) == ("info", "odd", 1)


async def test_a_large_distribution_is_several_points() -> None:
    wide = Histogram(25_000, 25_000.0, 1.0, 1.0, (2.0,), (25_000, 0))
    metric = Metric("m", "histogram", "s", "", (Point({}, wide, NOW, NOW),), True)
    found = [json.loads(each)["points"][0][1] for each in distributions(metric, metric.points[0], [], "h")]
    assert [len(values) for values in found] == [POINT_VALUES, POINT_VALUES, 5_000]


async def test_names_are_letters_digits_dots_and_underscores() -> None:
    assert usable_name("gen_ai.client.token.usage") == "gen_ai.client.token.usage"
    assert usable_name("9 lives/ß") == "lives__"
    assert len(usable_name("x" * 300)) == 200


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"site": "datadoghq.eu"}, "only with an `api_key`"),
        ({"api_key": KEY, "site": "https://datadoghq.eu"}, "site must be one of Datadog's"),
        ({"api_key": ""}, "api_key"),
        ({"api_key": "two words"}, "API key holds blanks"),
        ({"endpoint": "127.0.0.1"}, "endpoint"),
        ({"interval": 0}, "interval"),
    ],
)
async def test_options_are_checked(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Datadog(**options)


async def test_the_site_decides_the_addresses() -> None:
    intake = Datadog(api_key=KEY, site="us5.datadoghq.com")._intake
    assert intake is not None
    assert intake._bases["logs"] == "https://http-intake.logs.us5.datadoghq.com"
    assert intake._bases["series"] == "https://api.us5.datadoghq.com"


async def test_the_plugin_is_found_by_its_name() -> None:
    assert plugins.load("agentrt.telemetry", "datadog") is Datadog
