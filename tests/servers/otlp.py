"""Receivers of OTLP over HTTP in this process: oteltap, which is independent of us, and one of ours that can fail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from oteltap import OtelTapHttpProtobufReceiver, OtelTapHttpProtobufReceiverSettings

from servers.http_server import Answer, HttpServer, Request
from servers.program import free_ports

__all__ = ["Collector", "Received", "Tap", "attributes", "open_tap"]

T = TypeVar("T")


def attributes(pairs: Any) -> dict[str, Any]:
    """The attributes of a span, data point, log record, event or resource as Python values."""
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    if kind == "kvlist_value":
        return attributes(value.kvlist_value.values)
    return None if kind is None else getattr(value, kind)


class Received:
    """The signals that a receiver of OTLP got, and how to wait for one, on a loop whose time is real."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.metrics: list[Metric] = []
        self.logs: list[LogRecord] = []

    async def span(self, name: str, *, timeout: float = 30.0) -> Span:
        """The first span of this name, had or to come; fails after `timeout` seconds, as the other two do."""
        return await _first(self.spans, lambda span: span.name == name, f"span {name!r}", timeout)

    async def metric(self, name: str, *, timeout: float = 30.0) -> Metric:
        return await _first(self.metrics, lambda metric: metric.name == name, f"metric {name!r}", timeout)

    async def log(self, text: str, *, timeout: float = 30.0) -> LogRecord:
        """The first record whose body contains `text`."""
        return await _first(
            self.logs, lambda log: text in log.body.string_value, f"log record {text!r}", timeout
        )


async def _first(had: list[T], fits: Callable[[T], bool], what: str, timeout: float) -> T:
    ends = time.monotonic() + timeout
    while True:
        for each in had:
            if fits(each):
                return each
        if time.monotonic() > ends:
            break
        await asyncio.sleep(0.01)
    names = sorted({getattr(each, "name", "a log record") for each in had})
    raise AssertionError(f"no {what} within {timeout:g} s; there are: {', '.join(names) or 'none'}")


class Collector(HttpServer, Received):
    """A collector of ours: `/v1/traces`, `/v1/metrics` and `/v1/logs` as protobuf, with the faults of `HttpServer`.

    `spans`, `metrics` and `logs` are what it acknowledged, `resources` the resource of each block of these.
    """

    def __init__(self, *answers: Answer | None, dies_after: int | None = None) -> None:
        HttpServer.__init__(self, *answers, dies_after=dies_after)
        Received.__init__(self)
        self.resources: list[Resource] = []

    def respond(self, request: Request) -> Answer:
        if request.method != "POST" or request.path not in ("/v1/traces", "/v1/metrics", "/v1/logs"):
            return Answer(404)
        if request.headers.get("content-type") != "application/x-protobuf":
            return Answer(415)
        try:
            response = self._keep(request)
        except DecodeError as error:
            return Answer(400, str(error).encode())
        return Answer(200, response, {"Content-Type": "application/x-protobuf"})

    def _keep(self, request: Request) -> bytes:
        response: Any
        match request.path:
            case "/v1/traces":
                for spans in ExportTraceServiceRequest.FromString(request.body).resource_spans:
                    self.resources.append(spans.resource)
                    self.spans += [span for scope in spans.scope_spans for span in scope.spans]
                response = ExportTraceServiceResponse()
            case "/v1/metrics":
                for metrics in ExportMetricsServiceRequest.FromString(request.body).resource_metrics:
                    self.resources.append(metrics.resource)
                    self.metrics += [metric for scope in metrics.scope_metrics for metric in scope.metrics]
                response = ExportMetricsServiceResponse()
            case _:
                for logs in ExportLogsServiceRequest.FromString(request.body).resource_logs:
                    self.resources.append(logs.resource)
                    self.logs += [record for scope in logs.scope_logs for record in scope.log_records]
                response = ExportLogsServiceResponse()
        return bytes(response.SerializeToString())


class Tap(Received):
    """What oteltap got. It gives no resources and takes no compressed bodies; `Collector` does."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.port = port

    @property
    def url(self) -> str:
        """The base for `/v1/traces`, `/v1/metrics` and `/v1/logs`."""
        return f"http://127.0.0.1:{self.port}"

    async def collect(self, stream: AsyncIterator[T], into: list[T]) -> None:
        async for each in stream:
            into.append(each)  # noqa: PERF401 - one by one as they come, not all at the end


@asynccontextmanager
async def open_tap() -> AsyncGenerator[Tap]:
    """oteltap on a free port."""
    (port,) = free_ports(1)
    tap = Tap(port)
    receiver = OtelTapHttpProtobufReceiver(OtelTapHttpProtobufReceiverSettings(http_port=port))
    streams: list[tuple[AsyncIterator[Any], list[Any]]] = [
        (receiver.stream_traces(), tap.spans),
        (receiver.stream_metrics(), tap.metrics),
        (receiver.stream_logs(), tap.logs),
    ]
    async with receiver:
        collecting = [asyncio.create_task(tap.collect(stream, into)) for stream, into in streams]
        await asyncio.sleep(0)  # a stream begins with its first step, and keeps nothing that came before
        yield tap
    await asyncio.gather(*collecting)  # stopping the receiver ended the streams
