"""Every backend at once, each with a server of its own behind it that keeps what came.

Real servers where there are any that the tests can run (rotel, Datadog's test agent, moto), with a recorder in front of
those that do not show the bytes; receivers of ours for the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
from collections.abc import Coroutine, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec
import pytest
from opentelemetry import trace
from opentelemetry.util._once import Once
from plugins.datadog_intake import KEY, DatadogIntake
from servers.http_server import Answer, HttpServer, Request
from servers.otlp import Collector
from servers.program import fetch, free_ports
from servers.programs import Ddapm, Moto, Rotel
from servers.zipkin import Zipkin

from agentrt.runtime import Runtime

T = TypeVar("T")

__all__ = ["BACKENDS", "Everywhere", "Recorder", "own_tracer_provider"]

BACKENDS = (
    "cloudwatch_logs", "cloudwatch_metrics", "console", "datadog", "datadog_intake", "file", "jaeger", "memory",
    "otlp", "otlp_proto_http", "prometheus", "pushed", "rotel", "xray", "xray_otlp", "zipkin",
)  # fmt: skip


class Recorder(HttpServer):
    """Passes everything on to the server at `onward`, and keeps it as any `HttpServer` does."""

    def __init__(self, onward: str) -> None:
        super().__init__()
        self._onward = onward

    def respond(self, request: Request) -> Answer:
        # The body came decompressed, and the two connections are not one.
        dropped = ("content-encoding", "content-length", "transfer-encoding", "connection", "host")
        headers = {name: value for name, value in request.headers.items() if name not in dropped}
        reply = fetch(
            self._onward + request.path,
            method=request.method,
            body=request.body,
            headers=headers,
            timeout=20.0,
        )
        kept = {
            name: value for name, value in reply.headers.items() if name not in (*dropped, "date", "server")
        }
        return Answer(reply.status, reply.body, kept)


class Everywhere:
    """A context manager. `tables`: the backends' tables of [telemetry]; `settings`: all of [telemetry]."""

    def __init__(self, folder: Path, *, moto: Moto, ddapm: Ddapm, dimensions: tuple[str, ...] = ()) -> None:
        self.file = folder / "telemetry.jsonl"
        self.console = io.StringIO()
        self.collector, self.onward, self.jaeger, self.stock, self.signed = (Collector() for _ in range(5))
        self.zipkin = Zipkin()
        self.intake = DatadogIntake()
        self.pushed = HttpServer()
        self.agent, self.aws = Recorder(ddapm.otlp), Recorder(moto.url)
        self.moto, self.ddapm = moto, ddapm
        self.rotel = Rotel(onward="")
        self.scraped = b""
        self.kept = b""
        self._dimensions = dimensions
        (self._port,) = free_ports(1)
        self._stack = contextlib.ExitStack()

    @property
    def servers(self) -> tuple[HttpServer, ...]:
        return (
            self.collector, self.onward, self.jaeger, self.stock, self.signed, self.zipkin, self.intake,
            self.pushed, self.agent, self.aws,
        )  # fmt: skip

    def __enter__(self) -> Self:
        with self._stack as stack:
            for server in self.servers:
                stack.enter_context(server)
            self.rotel.onward = self.onward.url
            stack.enter_context(self.rotel)
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            for name, value in {**self.moto.variables, "AWS_ENDPOINT_URL": self.aws.url}.items():
                patch.setenv(name, value)
            stack.enter_context(own_tracer_provider())
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def tables(self) -> dict[str, dict[str, Any]]:
        stock = {
            signal: {"endpoint": f"{self.stock.url}/v1/{path}"}
            for signal, path in (("spans", "traces"), ("metrics", "metrics"), ("logs", "logs"))
        }
        return {
            "memory": {},
            "console": {"stream": "stdout", "width": 400},
            "file": {"path": str(self.file)},
            "otlp": {"endpoint": self.collector.url, "compression": "gzip"},
            "rotel": {"plugin": "otlp", "protocol": "grpc", "endpoint": self.rotel.grpc},
            "jaeger": {"endpoint": self.jaeger.url},
            "otlp_proto_http": stock,
            "zipkin": {"endpoint": self.zipkin.endpoint},
            "prometheus": {"port": self._port},
            "pushed": {"plugin": "prometheus", "gateway": self.pushed.url, "job": "nightly"},
            "cloudwatch_logs": {"log_group": "g", "log_stream": "s"},
            "cloudwatch_metrics": {
                "namespace": "agents",
                "dimensions": ["service.name", "gen_ai.tool.name", *self._dimensions],
            },
            "xray": {},
            "xray_otlp": {"plugin": "xray", "mode": "otlp", "endpoint": self.signed.url},
            "datadog": {"endpoint": self.agent.url},
            "datadog_intake": {"plugin": "datadog", "api_key": KEY, "intake": self.intake.url},
        }

    def settings(self, **more: Any) -> dict[str, Any]:
        """[telemetry] with all of `tables`."""
        return {"register_global": True, **more, **self.tables}

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run `main` to its end, the console going to `console`."""
        with contextlib.redirect_stdout(self.console):
            return asyncio.run(main)

    def look(self, runtime: Runtime) -> None:
        """While the runtime is there: what is scraped, and what is in memory."""
        self.scraped = fetch(f"http://127.0.0.1:{self._port}/metrics").body
        (memory,) = [backend for name, backend in runtime.telemetry.backends if name == "memory"]
        self.kept = msgspec.json.encode(list(memory))

    def received(self) -> Mapping[str, bytes]:
        """All bytes that came, by backend: bodies decompressed, with paths and headers."""
        parts: dict[str, bytes] = {
            "console": self.console.getvalue().encode(),
            "file": self.file.read_bytes(),
            "memory": self.kept,
            "prometheus": self.scraped,
        }
        for name, server in {
            "otlp": self.collector, "rotel": self.onward, "jaeger": self.jaeger, "otlp_proto_http": self.stock,
            "zipkin": self.zipkin, "pushed": self.pushed, "xray_otlp": self.signed, "datadog": self.agent,
            "datadog_intake": self.intake,
        }.items():  # fmt: skip
            parts[name] = b"\n".join(map(_bytes, server.requests))
        for name, service in {
            "cloudwatch_logs": "logs",
            "cloudwatch_metrics": "monitoring",
            "xray": "xray",
        }.items():
            scope = re.compile(rf"/{service}/aws4_request")
            asked = [each for each in self.aws.requests if scope.search(each.headers["authorization"])]
            parts[name] = b"\n".join(map(_bytes, asked))
        assert set(parts) == set(BACKENDS)
        return parts


def _bytes(request: Request) -> bytes:
    head = "\n".join(f"{name}: {value}" for name, value in request.headers.items())
    return f"{request.method} {request.path}\n{head}\n\n".encode() + request.body


@contextlib.contextmanager
def own_tracer_provider() -> Iterator[None]:
    """OpenTelemetry's tracer provider, which a process sets once, is as if this process had none; put back after."""
    before = trace._TRACER_PROVIDER, trace._TRACER_PROVIDER_SET_ONCE
    trace._TRACER_PROVIDER, trace._TRACER_PROVIDER_SET_ONCE = None, Once()
    try:
        yield
    finally:
        trace._TRACER_PROVIDER, trace._TRACER_PROVIDER_SET_ONCE = before
