"""agentrt-aws, X-Ray: the segments that can be read back are the spans that were sent, and OTLP is signed rightly."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from agentrt_aws import XRay
from agentrt_aws.segments import DOCUMENT_BYTES, document
from agentrt_aws.xray import ANNOTATIONS
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)
from servers.http_server import Answer, HttpServer, Request
from servers.otlp import Collector, attributes
from servers.programs import Moto

from agentrt import plugins
from agentrt.errors import ConfigError, PermanentError, ThrottledError, TransientError
from agentrt.telemetry.signals import Batch, Link, Span, SpanEvent
from agentrt.telemetry.tracing import exception_attributes
from plugins.aws import aws_error, lead, without_credentials
from plugins.signals import CHAT_ID, NOW, RESOURCE, ROOT_ID, TOOL_ID, TRACE_ID, batch

pytestmark = pytest.mark.asyncio

XRAY_ID = f"1-{TRACE_ID[:8]}-{TRACE_ID[8:]}"


@pytest.fixture
def aws(moto: Moto, monkeypatch: pytest.MonkeyPatch) -> Moto:
    for name, value in moto.variables.items():
        monkeypatch.setenv(name, value)
    return moto


async def send(what: Batch, **options: Any) -> None:
    backend = XRay(**options)
    try:
        await backend.export(what)
    finally:
        await backend.aclose()


async def read(aws: Moto) -> dict[str, dict[str, Any]]:
    """The documents of the trace, by id."""
    answer = await aws.call("xray", "", {"TraceIds": [XRAY_ID]}, path="/Traces")
    (trace,) = answer["Traces"]
    documents = [json.loads(segment["Document"]) for segment in trace["Segments"]]
    return {each["id"]: each for each in documents}


def one(**fields: Any) -> Span:
    usual = {"name": "s", "trace_id": TRACE_ID, "span_id": TOOL_ID, "parent_id": ROOT_ID, "start_ns": NOW}
    return Span(**{**usual, "end_ns": NOW + 1_000_000, **fields})


def shown(span: Span) -> dict[str, Any]:
    encoded = document(span, RESOURCE, ANNOTATIONS)
    assert len(encoded) <= DOCUMENT_BYTES
    found: dict[str, Any] = json.loads(encoded)
    return found


# ------------------------------------------------------------------------------------------------ segments
async def test_a_run_is_a_segment_with_subsegments(aws: Moto) -> None:
    await send(batch())
    found = await read(aws)
    root, chat, tool = found[ROOT_ID], found[CHAT_ID], found[TOOL_ID]
    assert {each["trace_id"] for each in found.values()} == {XRAY_ID}
    assert ("type" in root, root["name"], root["annotations"]["span_name"]) == (
        False, "planner", "invoke_agent planner",
    )  # fmt: skip
    assert root["service"] == {"version": "1.2"}
    assert (chat["type"], chat["parent_id"], chat["name"], chat["namespace"]) == (
        "subsegment", ROOT_ID, "chat gpt-x", "remote",
    )  # fmt: skip
    assert (tool["type"], tool["parent_id"], "namespace" in tool) == ("subsegment", ROOT_ID, False)
    assert root["start_time"] == pytest.approx(NOW / 1e9, abs=1e-6)
    assert chat["end_time"] - chat["start_time"] == pytest.approx(0.500007, abs=1e-6)


async def test_attributes_are_annotations_or_metadata(aws: Moto) -> None:
    await send(batch())
    chat = (await read(aws))[CHAT_ID]
    assert chat["annotations"] == {
        "gen_ai_operation_name": "chat",
        "gen_ai_request_model": "gpt-x",
        "gen_ai_provider_name": "openai",
        "gen_ai_usage_input_tokens": 12,
        "agentrt_degraded": False,
    }
    assert chat["metadata"]["agentrt"]["gen_ai.response.finish_reasons"] == ["stop"]
    assert [event["name"] for event in chat["metadata"]["agentrt"]["events"]] == ["retry", "wait"]
    assert chat["metadata"]["resource"]["deployment.environment.name"] == "test"


async def test_a_failure_has_its_cause_and_stack(aws: Moto) -> None:
    await send(batch())
    tool = (await read(aws))[TOOL_ID]
    assert (tool["fault"], "error" in tool, "throttle" in tool) == (True, False, False)
    (failed,) = tool["cause"]["exceptions"]
    assert (failed["type"], failed["message"]) == ("OSError", "no disk")
    assert failed["stack"] == [{"path": "tools.py", "line": 7, "label": "search"}]


async def no_disk() -> None:
    raise OSError("no\n  disk")


async def bad() -> None:
    try:
        await no_disk()
    except OSError as error:
        raise ValueError("bad: worse") from error


async def several() -> None:
    try:
        raise ExceptionGroup("both", [KeyError("x"), TransientError("busy")])
    except ExceptionGroup as error:
        raise RuntimeError from error


async def never_raised() -> None:
    raise RuntimeError("top") from ThrottledError("429")


async def handling() -> None:
    try:
        await bad()
    except ValueError:
        raise RuntimeError  # noqa: B904


@pytest.mark.parametrize(
    ("raises", "expected"),
    [
        (no_disk, [("OSError", "no\n  disk", "no_disk")]),
        (bad, [("ValueError", "bad: worse", "bad"), ("OSError", "no\n  disk", "no_disk")]),
        (
            handling,
            [
                ("RuntimeError", "", "handling"),
                ("ValueError", "bad: worse", "bad"),
                ("OSError", "no\n  disk", "no_disk"),
            ],
        ),
        (
            several,
            [("RuntimeError", "", "several"), ("ExceptionGroup", "both (2 sub-exceptions)", "several")],
        ),
        (
            never_raised,
            [("RuntimeError", "top", "never_raised"), ("agentrt.errors.ThrottledError", "429", "")],
        ),
    ],
)
async def test_what_an_exception_came_from_is_its_cause_with_its_message(
    raises: Callable[[], Awaitable[None]], expected: list[tuple[str, str, str]]
) -> None:
    event = None
    try:
        await raises()
    except Exception as error:
        event = SpanEvent("exception", NOW, exception_attributes(error))
    assert event is not None
    found = shown(one(status="error", events=(event, event)))["cause"]["exceptions"]
    assert len({each["id"] for each in found}) == len(found) == 2 * len(expected)
    for chain in (found[: len(expected)], found[len(expected) :]):
        assert [each.get("cause") for each in chain] == [*(each["id"] for each in chain[1:]), None]
        names = [each.get("stack", [{"label": ""}])[0]["label"] for each in chain]
        assert [
            (each["type"], each["message"], name) for each, name in zip(chain, names, strict=True)
        ] == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no traceback",
        "\n\nDuring handling of the above exception, another exception occurred:\n\n",
        ": :",
    ],
)
async def test_a_traceback_that_is_none_does_no_harm(text: str) -> None:
    said = {"exception.type": "E", "exception.message": "m", "exception.stacktrace": text}
    (first, *_) = shown(one(status="error", events=(SpanEvent("exception", NOW, said),)))["cause"][
        "exceptions"
    ]
    assert (first["type"], first["message"]) == ("E", "m")


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("agentrt.errors.ThrottledError", {"error", "throttle"}),
        ("429", {"error", "throttle"}),
        ("PermanentError", {"error"}),
        ("404", {"error"}),
        ("AttemptTimeout", {"fault"}),
        ("", {"fault"}),
    ],
)
async def test_the_kind_of_a_failure_decides_its_flags(kind: str, flags: set[str]) -> None:
    value = shown(one(status="error", message="no", attributes={"error.type": kind}))
    assert {name for name in ("error", "fault", "throttle") if value.get(name)} == flags
    assert value["cause"]["exceptions"][0]["message"] == "no"


async def test_what_serves_a_request_is_a_segment_with_a_parent() -> None:
    value = shown(one(kind="server"))
    assert ("type" in value, value["parent_id"], value["name"]) == (False, ROOT_ID, "planner")


async def test_names_and_links_are_as_xray_allows() -> None:
    value = shown(one(name="chat “x” <y> | é" + "z" * 300, links=(Link(TRACE_ID, CHAT_ID),)))
    assert value["name"].startswith("chat _x_ _y_ _ éz")
    assert len(value["name"]) == 200
    assert value["metadata"]["agentrt"]["links"] == [f"{XRAY_ID}@{CHAT_ID}"]


@pytest.mark.parametrize(
    "large",
    [
        one(attributes={"prompt": "☃" * 100_000}),
        one(attributes={f"a{n}": "x" * 1000 for n in range(1000)}),
        one(events=tuple(SpanEvent("e", NOW, {"x": "y" * 50}) for _ in range(5_000))),
        one(status="error", events=tuple(
            SpanEvent("exception", NOW, {"exception.message": "m" * 9_000, "exception.type": "E"}) for _ in range(50)
        )),
    ],
)  # fmt: skip
async def test_a_document_that_is_too_large_is_cut(large: Span) -> None:
    value = shown(large)
    assert value["metadata"]["agentrt"]["truncated"] is True
    assert value["id"] == TOOL_ID


async def test_many_spans_go_in_requests_of_fifty(
    answering: Callable[..., HttpServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = answering(200, b"{}")
    lead(monkeypatch, server)
    await send(
        Batch(RESOURCE, tuple(one(span_id=f"{n:016x}", attributes={"x": '"' * 9_000}) for n in range(1, 500)))
    )
    sent = [json.loads(request.body)["TraceSegmentDocuments"] for request in server.requests]
    assert sum(map(len, sent)) == 499
    assert max(map(len, sent)) <= 50
    assert max(len(request.body) for request in server.requests) <= 600_000
    assert server.requests[0].path == "/TraceSegments"


async def test_segments_that_are_not_processed_are_an_error(
    answering: Callable[..., HttpServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    unprocessed = [{"Id": CHAT_ID, "ErrorCode": "InvalidId", "Message": "no good"}]
    lead(monkeypatch, answering(200, json.dumps({"UnprocessedTraceSegments": unprocessed}).encode()))
    with pytest.raises(
        PermanentError, match=rf"1 of 3 segments were not processed; the first, {CHAT_ID}: InvalidId"
    ):
        await send(batch())
    backend, what = XRay(), batch()
    with pytest.raises(PermanentError):
        await backend.export(what)
    await backend.aclose()
    assert backend.undelivered(what) == {"spans": 1}


async def test_throttled_segments_may_be_sent_again(
    answering: Callable[..., HttpServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    unprocessed = [{"Id": CHAT_ID, "ErrorCode": "ThrottlingException"}]
    lead(monkeypatch, answering(200, json.dumps({"UnprocessedTraceSegments": unprocessed}).encode()))
    with pytest.raises(ThrottledError):
        await send(batch())


@pytest.mark.parametrize("mode", ["segments", "otlp"])
@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (aws_error("UnrecognizedClientException", status=403), PermanentError),
        (aws_error("ThrottledException", status=429, **{"Retry-After": "2"}), ThrottledError),
        (aws_error("InternalFailure", status=500), TransientError),
    ],
)
async def test_what_aws_answers_becomes_an_error(
    answering: Callable[..., HttpServer],
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    answer: Answer,
    kind: type[Exception],
) -> None:
    lead(monkeypatch, answering(answer.status, answer.body, answer.headers))
    with pytest.raises(
        kind, match="credentials" if kind is PermanentError else "HTTP|Exception|Failure"
    ) as failed:
        await send(batch(), mode=mode)
    if kind is ThrottledError:
        assert failed.value.retry_after == 2.0


@pytest.mark.parametrize("mode", ["segments", "otlp"])
async def test_missing_credentials_and_regions_are_told(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    without_credentials(monkeypatch)
    with pytest.raises(PermanentError, match=r"\[telemetry.xray\]: no region is set"):
        await send(batch(), mode=mode)
    with pytest.raises(PermanentError, match=r"\[telemetry.xray\]: no usable credentials"):
        await send(batch(), mode=mode, region="eu-central-1", endpoint="http://127.0.0.1:9")


# ---------------------------------------------------------------------------------------------------- otlp
def signature_of(request: Request, *, secret: str, host: str) -> str:
    """Signature Version 4 of a POST, recomputed from AWS's description."""
    authorization = request.headers["authorization"]
    scope = authorization.partition("Credential=")[2].partition(",")[0].split("/", 1)[1]
    names = authorization.partition("SignedHeaders=")[2].partition(",")[0].split(";")
    assert request.headers["host"] == host
    lines = [f"{name}:{' '.join(request.headers[name].split())}\n" for name in names]
    payload = hashlib.sha256(WIRE[-1]).hexdigest()
    canonical = "\n".join(["POST", request.path, "", "".join(lines), ";".join(names), payload])
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    to_sign = "\n".join(["AWS4-HMAC-SHA256", request.headers["x-amz-date"], scope, digest])
    key = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest()


WIRE: list[bytes] = []


@pytest.fixture
def signed(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> Collector:
    """A collector that boto is led to. `WIRE` has the bodies as they were sent: they are what is signed."""
    from agentrt.telemetry.http import HttpSender

    WIRE.clear()
    sent = HttpSender.send

    async def send(self: HttpSender, url: str, body: bytes = b"", **more: Any) -> bytes:
        WIRE.append(body)
        return await sent(self, url, body, **more)

    monkeypatch.setattr(HttpSender, "send", send)
    lead(monkeypatch, collector)
    return collector


async def test_otlp_is_signed_for_the_region(signed: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "session-token")
    await send(batch(), mode="otlp", region="us-east-2")
    (request,) = signed.requests
    authorization = request.headers["authorization"]
    day = request.headers["x-amz-date"][:8]
    assert request.path == "/v1/traces"
    assert authorization.startswith(
        f"AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/{day}/us-east-2/xray/aws4_request, "
    )
    assert request.headers["x-amz-security-token"] == "session-token"
    expected = signature_of(
        request, secret="wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", host=f"127.0.0.1:{signed.port}"
    )
    assert authorization.endswith(f"Signature={expected}")


async def test_otlp_carries_the_whole_span(signed: Collector) -> None:
    await send(batch(), mode="otlp")
    assert signed.requests[0].headers["content-encoding"] == "gzip"
    root, chat, tool = signed.spans
    assert (root.trace_id.hex(), root.span_id.hex(), chat.parent_span_id.hex()) == (
        TRACE_ID,
        ROOT_ID,
        ROOT_ID,
    )
    assert attributes(chat.attributes)["gen_ai.usage.input_tokens"] == 12
    assert (tool.status.code, tool.status.message) == (2, "no disk")
    assert attributes(signed.resources[0].attributes)["service.name"] == "planner"


async def test_otlp_keeps_to_the_limits(signed: Collector) -> None:
    small = [one(span_id=f"{n:016x}", attributes={"n": n}) for n in range(1, 12_001)]
    large = [one(span_id=f"{n:016x}", attributes={"x": "x" * 150_000}) for n in range(20_000, 20_050)]
    giant = one(name="giant", attributes={"x": "x" * 250_000})
    with pytest.raises(PermanentError, match=r"the span 'giant' has 250\d+ bytes; X-Ray takes 200000"):
        await send(Batch(RESOURCE, (*small, giant, *large)), mode="otlp")
    assert len(signed.spans) == 12_050
    assert max(len(request.body) for request in signed.requests) <= 5_000_000
    assert len(signed.requests) == 3


async def test_otlp_tells_what_was_rejected(
    answering: Callable[..., HttpServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = ExportTracePartialSuccess(rejected_spans=2, error_message="too old")
    lead(monkeypatch, answering(200, ExportTraceServiceResponse(partial_success=partial).SerializeToString()))
    backend, what = XRay(mode="otlp"), batch()
    with pytest.raises(PermanentError, match="2 of 3 spans were rejected: too old"):
        await backend.export(what)
    await backend.aclose()
    assert backend.undelivered(what) == {"spans": 2}


async def test_otlp_answered_with_a_web_page_is_an_error_of_ours(
    answering: Callable[..., HttpServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    lead(monkeypatch, answering(200, b"<html>hello</html>"))
    with pytest.raises(PermanentError, match="answers, but not as X-Ray does: b'<html>"):
        await send(batch(), mode="otlp")


@pytest.mark.parametrize(
    ("region", "url"),
    [
        ("eu-west-1", "https://xray.eu-west-1.amazonaws.com/v1/traces"),
        ("cn-north-1", "https://xray.cn-north-1.amazonaws.com.cn/v1/traces"),
    ],
)
async def test_otlp_goes_to_the_regions_endpoint(
    region: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_credentials(monkeypatch)
    assert XRay(mode="otlp")._url(region) == url
    monkeypatch.setenv("AWS_ENDPOINT_URL_XRAY", "http://127.0.0.1:1/")
    assert XRay(mode="otlp")._url(region) == "http://127.0.0.1:1/v1/traces"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mode": "agent"}, "mode must be one of 'segments', 'otlp'"),
        ({"annotations": [f"a{n}" for n in range(51)]}, "50 names at most, not 51"),
        ({"profile": " "}, "profile"),
    ],
)
async def test_options_are_checked(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        XRay(**options)


async def test_the_plugin_is_found_by_its_name() -> None:
    assert plugins.load("agentrt.telemetry", "xray") is XRay
    assert XRay.signals == ("spans",)
