"""agentrt-aws, CloudWatch metrics: the statistics that can be asked for are those of what was recorded."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs

import aioboto3
import pytest
from agentrt_aws import CloudWatchMetrics
from agentrt_aws.metrics import data_of, unit_of
from servers.http_server import Answer, HttpServer, Request
from servers.programs import Moto

from agentrt import plugins
from agentrt.errors import ConfigError, PermanentError, ThrottledError, TransientError
from agentrt.telemetry.signals import Batch, Histogram, Metric, Point
from plugins.aws import lead
from plugins.signals import NOW, RESOURCE, batch, counter, gauge

pytestmark = pytest.mark.asyncio

FINE = Answer(200, b'<PutMetricDataResponse xmlns="http://monitoring.amazonaws.com/doc/2010-08-01/"/>')
CHAT = {"service.name": "planner", "gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt-x"}


@pytest.fixture
def aws(moto: Moto, monkeypatch: pytest.MonkeyPatch) -> Moto:
    for name, value in moto.variables.items():
        monkeypatch.setenv(name, value)
    return moto


async def send(what: Batch, **options: Any) -> None:
    backend = CloudWatchMetrics(**{"timeout": 50.0, **options})
    try:
        await backend.export(what)
    finally:
        await backend.aclose()


async def statistics(name: str, dimensions: dict[str, str], *, namespace: str = "agentrt") -> dict[str, Any]:
    """What CloudWatch knows of a metric in the hour around now."""
    at = datetime.fromtimestamp(NOW / 1e9, UTC)
    async with aioboto3.Session().client("cloudwatch") as client:
        answer = await client.get_metric_statistics(
            Namespace=namespace,
            MetricName=name,
            Dimensions=[{"Name": key, "Value": value} for key, value in dimensions.items()],
            StartTime=at - timedelta(minutes=30),
            EndTime=at + timedelta(minutes=30),
            Period=3600,
            Statistics=["SampleCount", "Sum", "Minimum", "Maximum", "Average"],
        )
    (point,) = answer["Datapoints"]
    return dict(point)


def only(*metrics: Metric) -> Batch:
    return Batch(RESOURCE, metrics=metrics)


def asked(request: Request) -> dict[str, list[str]]:
    return parse_qs(request.body.decode())


def refusal(code: str) -> bytes:
    error = f"<Error><Type>Sender</Type><Code>{code}</Code><Message>because</Message></Error>"
    return f"<ErrorResponse>{error}</ErrorResponse>".encode()


async def test_a_histogram_has_its_count_sum_and_extremes(aws: Moto) -> None:
    await send(batch(delta=True))
    found = await statistics("gen_ai.client.operation.duration", CHAT)
    assert (found["SampleCount"], found["Unit"]) == (5.0, "Seconds")
    assert (found["Minimum"], found["Maximum"]) == (0.05, 7.0)
    assert found["Sum"] == pytest.approx(8.25)
    tokens = await statistics("gen_ai.client.token.usage", {**CHAT, "gen_ai.token.type": "input"})
    assert (tokens["Sum"], tokens["Unit"]) == (30.0, "Count")


async def test_counters_and_gauges_arrive_with_unit_and_dimensions(aws: Moto) -> None:
    await send(batch(delta=True))
    calls = await statistics("agent.tool.calls", {"service.name": "planner", "gen_ai.tool.name": "search"})
    assert (calls["Sum"], calls["Unit"]) == (3.0, "Count")
    fill = await statistics("agent.queue.fill", {"service.name": "planner"})
    assert (fill["Average"], fill["Unit"]) == (0.25, "None")


async def test_two_batches_add_up(aws: Moto) -> None:
    backend = CloudWatchMetrics(namespace="mine", dimensions=())
    for value in (3.0, 4.0):
        await backend.export(only(counter("calls", value, delta=True)))
    await backend.aclose()
    assert (await statistics("calls", {}, namespace="mine"))["Sum"] == 7.0


async def test_ten_thousand_tag_values_are_no_dimensions_unless_wanted(
    answering: Callable[..., HttpServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = answering(FINE.status, FINE.body)
    lead(monkeypatch, server)
    await send(only(*(counter("calls", 1.0, delta=True, user=f"u{n}") for n in range(10_000))))
    requests = [asked(request) for request in server.requests]
    sent = [key for request in requests for key in request if key.endswith(".MetricName")]
    assert len(sent) == 10_000
    assert max(sum(key.endswith(".MetricName") for key in request) for request in requests) <= 1000
    names = {
        value for r in requests for key, (value,) in r.items() if "Dimensions" in key and key.endswith("Name")
    }
    assert names == {"service.name"}


async def test_requests_keep_to_a_megabyte(
    answering: Callable[..., HttpServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = answering(FINE.status, FINE.body)
    lead(monkeypatch, server)
    bounds = tuple(n + 0.1 for n in range(200))
    wide = Histogram(402, 40_200.0, 0.0, 200.0, bounds, (2,) * 201)
    point = Point({"error.type": "x" * 1000}, wide, NOW, NOW)
    await send(only(*(Metric(f"wide.{n}", "histogram", "s", "", (point,), True) for n in range(300))))
    assert len(server.requests) > 2
    assert max(len(request.body) for request in server.requests) <= 1_000_000
    for request in map(asked, server.requests):
        values = [key for key in request if ".Values.member." in key]
        per_datum: dict[str, int] = {}
        for key in values:
            per_datum[key.split(".")[2]] = per_datum.get(key.split(".")[2], 0) + 1
        assert max(per_datum.values()) <= 150


async def test_all_values_of_a_wide_histogram_are_sent() -> None:
    bounds = tuple(float(n) for n in range(1, 400))
    wide = Histogram(400, 79_900.0, 0.5, 399.5, bounds, (1,) * 400)
    metric = Metric("m", "histogram", "s", "", (Point({}, wide, NOW, NOW),), True)
    data = list(data_of(metric, metric.points[0], []))
    assert [len(each["Values"]) for each in data] == [150, 150, 100]
    assert sum(sum(each["Counts"]) for each in data) == 400


@pytest.mark.parametrize(
    ("kind", "unit", "becomes"),
    [
        ("histogram", "s", "Seconds"),
        ("histogram", "{token}", "Count"),
        ("counter", "", "Count"),
        ("gauge", "1", "None"),
        ("gauge", "By/s", "Bytes/Second"),
        ("gauge", "{call}/s", "Count/Second"),
        ("gauge", "%", "Percent"),
        ("gauge", "furlong", "None"),
    ],
)
async def test_units_are_cloudwatchs(kind: Any, unit: str, becomes: str) -> None:
    assert unit_of(Metric("m", kind, unit, "", ())) == becomes


async def test_a_bad_name_and_a_value_that_is_none_are_left_out_and_told_once(
    aws: Moto, caplog: pytest.LogCaptureFixture
) -> None:
    backend = CloudWatchMetrics(timeout=50.0)
    with caplog.at_level(logging.WARNING, "agentrt.telemetry.cloudwatch_metrics"):
        for _ in range(2):
            await backend.export(only(counter("€€"), gauge("nan", math.nan), counter("naïve ☃ calls", 2.0)))
    await backend.aclose()
    assert len(caplog.messages) == 2
    assert "'€€' is not sent: its name has nothing" in caplog.messages[0]
    assert "'nan' is not sent: its value nan" in caplog.messages[1]
    assert (await statistics("na_ve _ calls", {"service.name": "planner"}))["Sum"] == 4.0


async def test_what_is_left_out_and_what_is_refused_is_counted_in_points(
    answering: Callable[..., HttpServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = answering(FINE.status, FINE.body)
    server.answer(Answer(400, refusal("InvalidParameterValue")), FINE)
    lead(monkeypatch, server)
    wide = Histogram(400, 79_900.0, 0.5, 399.5, tuple(float(n) for n in range(1, 400)), (1,) * 400)
    what = only(
        counter("€€"),
        gauge("nan", math.nan),
        *(Metric("wide", "histogram", "s", "", (Point({}, wide, NOW, NOW),), True) for _ in range(300)),
        *(counter("calls", 1.0, delta=True) for _ in range(200)),
    )
    backend = CloudWatchMetrics(timeout=50.0)
    with pytest.raises(PermanentError):
        await backend.export(what)
    await backend.aclose()
    first, *more = (sum(key.endswith(".MetricName") for key in asked(each)) for each in server.requests)
    assert first + sum(more) == 3 * 300 + 200
    assert first <= 900, "only histograms, three data each, of which the first counts"
    assert backend.undelivered(what) == {"metrics": 2 + -(-first // 3)}


async def test_values_of_dimensions_are_ascii_and_never_empty(aws: Moto) -> None:
    odd = {"gen_ai.tool.name": "schön \n" + "x" * 2000, "error.type": "  ", "gen_ai.agent.name": True}
    await send(only(counter("calls", 1.0, **odd)))
    dimensions = {
        "service.name": "planner",
        "gen_ai.agent.name": "true",
        "gen_ai.tool.name": ("sch?n ?" + "x" * 2000)[:1024],
    }
    assert (await statistics("calls", dimensions))["Sum"] == 1.0


@pytest.mark.parametrize(
    ("status", "code", "kind", "says"),
    [
        (403, "InvalidClientTokenId", PermanentError, "does not accept the credentials; renew"),
        (403, "AccessDenied", PermanentError, "Allow cloudwatch:PutMetricData to the user or role"),
        (400, "Throttling", ThrottledError, "Throttling"),
        (400, "InvalidParameterValue", PermanentError, "because"),
        (500, "InternalFailure", TransientError, "InternalFailure"),
    ],
)
async def test_what_aws_answers_becomes_an_error(
    answering: Callable[..., HttpServer],
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    code: str,
    kind: type[Exception],
    says: str,
) -> None:
    lead(monkeypatch, answering(status, refusal(code)))
    with pytest.raises(kind, match=says):
        await send(batch())


async def test_garbage_instead_of_an_answer_may_not_come_again(
    answering: Callable[..., HttpServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    lead(monkeypatch, answering(413, b"<html>"))
    with pytest.raises(TransientError, match="ResponseParserError"):
        await send(batch())


async def test_what_is_too_large_goes_in_halves(
    answering: Callable[..., HttpServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = answering()
    server.answer(Answer(413, refusal("RequestEntityTooLarge")), FINE)
    lead(monkeypatch, server)
    await send(batch())
    names = [
        sorted(value for key, (value,) in asked(request).items() if key.endswith(".MetricName"))
        for request in server.requests
    ]
    assert len(names) == 3
    assert names[0] == sorted(names[1] + names[2])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"namespace": "AWS/mine"}, "namespace must be"),
        ({"namespace": ":mine"}, "namespace must be"),
        ({"namespace": ""}, "namespace must be"),
        ({"dimensions": [f"d{n}" for n in range(31)]}, "30 names at most, not 31"),
        ({"interval": 0}, "interval"),
    ],
)
async def test_options_are_checked(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        CloudWatchMetrics(**options)


async def test_the_plugin_is_found_by_its_name_and_wants_deltas() -> None:
    assert plugins.load("agentrt.telemetry", "cloudwatch_metrics") is CloudWatchMetrics
    assert (CloudWatchMetrics.signals, CloudWatchMetrics.delta) == (("metrics",), True)
