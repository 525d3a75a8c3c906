"""agentrt-aws, CloudWatch Logs: the lines that can be read back are the lines that were sent."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from agentrt_aws import CloudWatchLogs
from agentrt_aws.logs import EVENT_BYTES, encode
from servers.faulty import BlackHole, Refusing
from servers.http_server import Answer, HttpServer
from servers.programs import Moto

from agentrt import plugins
from agentrt.errors import ConfigError, PermanentError, ThrottledError, TransientError
from agentrt.telemetry.signals import Batch, LogLine
from plugins.aws import aws_error, lead, without_credentials
from plugins.signals import NOW, RESOURCE, ROOT_ID, TOOL_ID, TRACE_ID, TRACEBACK, batch, line

pytestmark = pytest.mark.asyncio

DAY = 24 * 3600 * 1_000_000_000


@pytest.fixture
def aws(moto: Moto, monkeypatch: pytest.MonkeyPatch) -> Moto:
    for name, value in moto.variables.items():
        monkeypatch.setenv(name, value)
    return moto


async def send(what: Batch, **options: Any) -> None:
    backend = CloudWatchLogs(**{"log_group": "/agents/planner", "log_stream": "one", **options})
    try:
        await backend.export(what)
    finally:
        await backend.aclose()


async def read(aws: Moto, *, group: str = "/agents/planner", stream: str = "one") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    request: dict[str, Any] = {
        "logGroupName": group,
        "logStreamName": stream,
        "startFromHead": True,
        "limit": 10_000,
    }
    while True:
        answer = await aws.call("logs", "Logs_20140328.GetLogEvents", request)
        if not answer["events"]:
            return found
        found += answer["events"]
        request["nextToken"] = answer["nextForwardToken"]


def of(*lines: LogLine) -> Batch:
    return Batch(RESOURCE, logs=lines)


async def test_lines_arrive_in_order_with_level_trace_and_attributes(aws: Moto) -> None:
    await send(batch())
    first, second = await read(aws)
    assert (first["timestamp"], second["timestamp"]) == (NOW // 10**6, NOW // 10**6 + 800)
    assert json.loads(first["message"]) == {
        "time": datetime.fromtimestamp(NOW // 1000 / 1e6, UTC).isoformat(timespec="microseconds")[:-6] + "Z",
        "level": "info",
        "message": "começa: ☃",
        "logger": "agent",
        "service": "planner",
        "trace_id": TRACE_ID,
        "xray_trace_id": f"1-{TRACE_ID[:8]}-{TRACE_ID[8:]}",
        "span_id": ROOT_ID,
        "attributes": {"attempt": 1},
    }
    failed = json.loads(second["message"])
    assert (failed["level"], failed["span_id"], failed["exception"]) == ("error", TOOL_ID, TRACEBACK)


async def test_group_and_stream_are_made_with_the_retention(aws: Moto) -> None:
    await send(batch(), retention=30)
    (group,) = (await aws.call("logs", "Logs_20140328.DescribeLogGroups", {}))["logGroups"]
    assert (group["logGroupName"], group["retentionInDays"]) == ("/agents/planner", 30)


async def test_a_group_that_is_there_keeps_its_own_retention(aws: Moto) -> None:
    await aws.call("logs", "Logs_20140328.CreateLogGroup", {"logGroupName": "/agents/planner"})
    await send(batch(), retention=30)
    (group,) = (await aws.call("logs", "Logs_20140328.DescribeLogGroups", {}))["logGroups"]
    assert "retentionInDays" not in group
    assert len(await read(aws)) == 2


async def test_without_names_the_service_and_the_process_give_them(aws: Moto) -> None:
    await send(batch(), log_group=None, log_stream=None)
    request = {"logGroupName": "/agentrt/planner"}
    (stream,) = (await aws.call("logs", "Logs_20140328.DescribeLogStreams", request))["logStreams"]
    assert stream["logStreamName"].startswith(socket.gethostname())


async def test_a_missing_group_is_an_error_if_it_shall_not_be_made(aws: Moto) -> None:
    with pytest.raises(PermanentError, match="ResourceNotFoundException"):
        await send(batch(), create=False)


async def test_twelve_thousand_lines_arrive_in_two_requests(aws: Moto) -> None:
    await send(of(*(line(f"line {n}", at_ns=NOW + n * 1_000_000) for n in range(12_000))))
    events = await read(aws)
    assert [json.loads(event["message"])["message"] for event in events] == [
        f"line {n}" for n in range(12_000)
    ]


async def test_requests_keep_to_the_limits(
    answering: Callable[..., HttpServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = answering(200, b"{}", {"Content-Type": "application/x-amz-json-1.1"})
    lead(monkeypatch, server)
    late = [line("x" * 200_000, at_ns=NOW - n) for n in range(12)]
    await send(
        of(*late, line("tomorrow", at_ns=NOW + DAY), *(line("many", at_ns=NOW + 5) for _ in range(10_001)))
    )
    requests = [json.loads(request.body)["logEvents"] for request in server.requests]
    assert sum(map(len, requests)) == 12 + 1 + 10_001
    for events in requests:
        times = [event["timestamp"] for event in events]
        assert times == sorted(times)
        assert times[-1] - times[0] < 24 * 3600 * 1000
        assert len(events) <= 10_000
        assert sum(len(event["message"].encode()) + 26 for event in events) <= 1_048_576
    assert [json.loads(request.body)["logStreamName"] for request in server.requests] == ["one"] * len(
        requests
    )
    assert requests[-1][0]["message"].count("tomorrow") == 1


@pytest.mark.parametrize(
    "large",
    [
        line("é☃" * 200_000),
        line("small", **{f"attribute {n}": "x" * 100 for n in range(5_000)}),
        LogLine(NOW, "error", "m" * 300_000, "t", {"a": ["\x01" * 100_000]}, exception="\n" * 300_000),
    ],
)
async def test_a_line_that_is_too_large_is_cut_and_stays_json(large: LogLine) -> None:
    encoded = encode(large, "planner")
    assert len(encoded) <= EVENT_BYTES
    value = json.loads(encoded)
    assert value["truncated"] is True
    assert value["message"][:5] == large.message[:5]


async def test_lines_that_the_service_throws_away_are_an_error(
    answering: Callable[..., HttpServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    body = json.dumps({"rejectedLogEventsInfo": {"tooOldLogEventEndIndex": 1, "tooNewLogEventStartIndex": 3}})
    lead(monkeypatch, answering(200, body.encode(), {"Content-Type": "application/x-amz-json-1.1"}))
    with pytest.raises(
        PermanentError, match=r"2 of 4 log lines were refused: 1 too old .*, 1 more than 2 hours"
    ):
        await send(of(line("a"), line("b"), line("c"), line("d")))
    backend, what = CloudWatchLogs(log_group="g", log_stream="s"), of(*map(line, "abcdefg"))
    with pytest.raises(PermanentError):
        await backend.export(what)
    await backend.aclose()
    assert backend.undelivered(what) == {"logs": 5}, "the first, and those from the fourth"


@pytest.mark.parametrize(
    ("answer", "kind", "says"),
    [
        (aws_error("UnrecognizedClientException"), PermanentError, "does not accept the credentials; renew"),
        (aws_error("ExpiredTokenException"), PermanentError, "does not accept the credentials; renew"),
        (aws_error("AccessDeniedException"), PermanentError, "Allow logs:PutLogEvents to the user or role"),
        (aws_error("ThrottlingException", **{"Retry-After": "4"}), ThrottledError, "ThrottlingException"),
        (aws_error("ServiceUnavailableException", status=503), TransientError, "ServiceUnavailable"),
        (aws_error("InvalidParameterException", "no good"), PermanentError, "no good"),
        (Answer(500, b"\x00garbage"), TransientError, "HTTP 500|500"),
    ],
)
async def test_what_aws_answers_becomes_an_error(
    answering: Callable[..., HttpServer],
    monkeypatch: pytest.MonkeyPatch,
    answer: Answer,
    kind: type[Exception],
    says: str,
) -> None:
    server = answering(answer.status, answer.body, answer.headers)
    lead(monkeypatch, server)
    with pytest.raises(kind, match=says) as failed:
        await send(batch())
    assert len(server.requests) == 1
    if kind is ThrottledError:
        assert failed.value.retry_after == 4.0
    assert str(failed.value).startswith("[telemetry.cloudwatch_logs] logs:PutLogEvents: ")


async def test_a_batch_that_was_throttled_goes_on_where_it_stopped(
    answering: Callable[..., HttpServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    fine = Answer(200, b"{}", {"Content-Type": "application/x-amz-json-1.1"})
    server = answering()
    server.answer(fine, aws_error("ThrottlingException"), fine)
    lead(monkeypatch, server)
    backend, what = (
        CloudWatchLogs(log_group="g", log_stream="s"),
        of(line("a"), line("b", at_ns=NOW + 2 * DAY)),
    )
    with pytest.raises(ThrottledError):
        await backend.export(what)
    await backend.export(what)
    await backend.aclose()
    sent = [json.loads(json.loads(r.body)["logEvents"][0]["message"])["message"] for r in server.requests]
    assert sent == ["a", "b", "b"]


async def test_aws_that_is_not_there_may_come_back(
    refusing: Refusing, monkeypatch: pytest.MonkeyPatch
) -> None:
    lead(monkeypatch, refusing)  # type: ignore[arg-type]
    with pytest.raises(TransientError, match="Check the network, `region` and `endpoint`"):
        await send(batch())


async def test_aws_that_never_answers_costs_the_timeout(
    black_hole: BlackHole, monkeypatch: pytest.MonkeyPatch
) -> None:
    lead(monkeypatch, black_hole)  # type: ignore[arg-type]
    with pytest.raises(TransientError):
        await send(batch(), timeout=0.3)


async def test_a_missing_region_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    without_credentials(monkeypatch)
    with pytest.raises(PermanentError, match="no region is set: give `region`, or set AWS_DEFAULT_REGION"):
        await send(batch())


async def test_missing_credentials_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    without_credentials(monkeypatch)
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    with pytest.raises(PermanentError, match=r"no usable credentials .*: set AWS_ACCESS_KEY_ID"):
        await send(batch(), endpoint="http://127.0.0.1:9")


async def test_a_missing_profile_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    without_credentials(monkeypatch)
    with pytest.raises(PermanentError, match=r"\(nowhere\) could not be found: correct `profile`"):
        await send(batch(), profile="nowhere")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"log_group": "a b"}, "log_group may have"),
        ({"log_stream": "a:b"}, "log_stream must have no :"),
        ({"retention": 8}, "retention must be one of 1, 3, 5"),
        ({"endpoint": "localhost"}, "endpoint must look like"),
        ({"region": ""}, "region"),
        ({"timeout": 0}, "timeout"),
    ],
)
async def test_options_are_checked(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        CloudWatchLogs(**options)


async def test_the_plugin_is_found_by_its_name() -> None:
    assert plugins.load("agentrt.telemetry", "cloudwatch_logs") is CloudWatchLogs
    assert CloudWatchLogs.signals == ("logs",)
