"""The suite for authors of backends, applied to the plugins of this repository."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import aioboto3
import pytest
from agentrt_aws import CloudWatchLogs, CloudWatchMetrics, XRay
from agentrt_datadog import Datadog
from agentrt_prometheus import Prometheus
from agentrt_zipkin import Zipkin
from servers.http_server import Answer, HttpServer, Request
from servers.otlp import Collector
from servers.programs import Moto
from servers.zipkin import Zipkin as ZipkinServer

from agentrt.testing import TelemetryBackendTests
from plugins.aws import aws_error, lead
from plugins.datadog_intake import KEY, DatadogIntake


class ToHttpServer(TelemetryBackendTests):
    """Of a backend whose server is `self.server`."""

    server: HttpServer

    @contextmanager
    def failing(self) -> Generator[None]:
        self.server.answer(self.failure())
        yield
        self.server.answer()

    def failure(self) -> Answer:
        return Answer(503)

    @contextmanager
    def hanging(self) -> Generator[None]:
        self.server.answer(Answer(delay=60.0))
        yield


# ---------------------------------------------------------------------------------------------------- Zipkin
class TestZipkin(ToHttpServer):
    secrets: ClassVar[Mapping[str, str]] = {"secret://env/ZIPKIN_TOKEN": "abc"}

    @pytest.fixture(autouse=True)
    def started(self, zipkin: ZipkinServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server = self.zipkin = zipkin
        monkeypatch.setenv("ZIPKIN_TOKEN", "abc")

    def make(self) -> Zipkin:
        headers = {"authorization": "Bearer secret://env/ZIPKIN_TOKEN"}
        return Zipkin(endpoint=self.zipkin.endpoint, headers=headers)

    def delivered(self) -> str:
        return json.dumps(self.zipkin.spans)


# ------------------------------------------------------------------------------------------------ Prometheus
class TestPrometheus(TelemetryBackendTests):
    """What is scraped is gone with the backend, so that here nothing is looked for afterwards."""

    def make(self) -> Prometheus:
        return Prometheus(port=0)


class Gateway(HttpServer):
    """A pushgateway: each push replaces a group; here all that was ever pushed is kept."""

    def respond(self, request: Request) -> Answer:
        return Answer(200 if request.method == "PUT" else 405)


class TestPrometheusGateway(ToHttpServer):
    @pytest.fixture(autouse=True)
    def started(self) -> Iterator[None]:
        with Gateway() as self.server:
            yield

    def make(self) -> Prometheus:
        return Prometheus(gateway=self.server.url)

    def delivered(self) -> bytes:
        return b"\n".join(request.body for request in self.server.requests)


# --------------------------------------------------------------------------------------------------- Datadog
class DatadogTests(ToHttpServer):
    @pytest.fixture(autouse=True)
    def plain(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("DD_ENV", "DD_VERSION", "DD_SERVICE", "DD_SITE", "DD_AGENT_HOST"):
            monkeypatch.delenv(name, raising=False)


class TestDatadogAgent(DatadogTests):
    @pytest.fixture(autouse=True)
    def started(self, collector: Collector) -> None:
        self.server = self.collector = collector

    def make(self) -> Datadog:
        return Datadog(endpoint=self.collector.url)

    def delivered(self) -> str:
        names = [each.name for each in (*self.collector.spans, *self.collector.metrics)]
        return "\n".join([*names, *(line.body.string_value for line in self.collector.logs)])


class TestDatadogIntake(DatadogTests):
    secrets: ClassVar[Mapping[str, str]] = {"secret://env/DD_API_KEY": KEY}

    @pytest.fixture(autouse=True)
    def started(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setenv("DD_API_KEY", KEY)
        with DatadogIntake() as self.intake:
            self.server = self.intake
            yield

    def make(self) -> Datadog:
        return Datadog(api_key="secret://env/DD_API_KEY", intake=self.intake.url)

    def delivered(self) -> str:
        return json.dumps([self.intake.logs, self.intake.series, self.intake.distributions])


# ------------------------------------------------------------------------------------------------------- AWS
class AwsTests(TelemetryBackendTests):
    """Deliveries go to moto; what fails, to a server of ours."""

    @pytest.fixture(autouse=True)
    def started(self, moto: Moto, monkeypatch: pytest.MonkeyPatch) -> None:
        self.moto = moto
        for name, value in moto.variables.items():
            monkeypatch.setenv(name, value)

    def call(self, service: str, target: str, body: dict[str, Any], *, path: str = "/") -> Any:
        return asyncio.run(self.moto.call(service, target, body, path=path))


class TestCloudWatchLogs(AwsTests):
    def make(self) -> CloudWatchLogs:
        return CloudWatchLogs(log_group="g", log_stream="s")

    def delivered(self) -> str:
        request = {"logGroupName": "g", "logStreamName": "s"}
        return json.dumps(self.call("logs", "Logs_20140328.GetLogEvents", request))


class TestCloudWatchMetrics(AwsTests):
    def make(self) -> CloudWatchMetrics:
        return CloudWatchMetrics(namespace="agents")

    def delivered(self) -> str:
        async def names() -> list[str]:
            async with aioboto3.Session().client("cloudwatch") as client:
                answer = await client.list_metrics(Namespace="agents")
            return [metric["MetricName"] for metric in answer["Metrics"]]

        return "\n".join(asyncio.run(names()))


class TestXRay(AwsTests):
    def make(self) -> XRay:
        return XRay()

    def delivered(self) -> str:
        now = time.time()
        times = {"StartTime": now - 3600, "EndTime": now + 3600}
        summaries = self.call("xray", "", times, path="/TraceSummaries")["TraceSummaries"]
        wanted = {"TraceIds": [each["Id"] for each in summaries]}
        return json.dumps(self.call("xray", "", wanted, path="/Traces")) if summaries else ""


class Takes(HttpServer):
    """Answers `own` unless it is told otherwise."""

    def __init__(self, own: Answer) -> None:
        super().__init__()
        self.own = own

    def respond(self, request: Request) -> Answer:
        del request
        return self.own


class AwsFailureTests(ToHttpServer):
    """The same three before a server of ours that answers as told."""

    @pytest.fixture(autouse=True)
    def started(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        with self.server_that_takes_all() as self.server:
            lead(monkeypatch, self.server)
            yield

    def server_that_takes_all(self) -> HttpServer:
        return Takes(Answer(200, b"{}", {"Content-Type": "application/x-amz-json-1.1"}))

    def failure(self) -> Answer:
        return aws_error("ServiceUnavailableException", status=503)


class TestCloudWatchLogsThatFail(AwsFailureTests):
    def make(self) -> CloudWatchLogs:
        return CloudWatchLogs(log_group="g", log_stream="s")


class TestXRayThatFails(AwsFailureTests):
    def make(self) -> XRay:
        return XRay()


class TestXRayByOtlpThatFails(AwsFailureTests):
    def server_that_takes_all(self) -> HttpServer:
        return Takes(Answer(200))

    def make(self) -> XRay:
        return XRay(mode="otlp", endpoint=self.server.url)
