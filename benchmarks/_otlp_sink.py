"""A receiver of OTLP over HTTP in a process of its own, so that what it costs is not counted; it counts what it gets.

    with Sink() as sink:
        ...                # send to sink.url
        sink.seen()        # {"spans": 5000, "metrics": {"agent.tool.calls": 5000.0}, "recent": [...]}

As a program it prints its port and serves until its standard input ends.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import urllib.request
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

RECENT = 100
"""The last spans that are kept whole."""


class Sink:
    """Starts the program and asks it."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        port = self._process.stdout.readline().strip()
        if not port:
            raise RuntimeError(f"the OTLP sink ended at once, with status {self._process.wait()}")
        self.url = f"http://127.0.0.1:{port}"
        return self

    def seen(self) -> dict[str, Any]:
        """The number of spans, the sum or count of each metric, and the last spans."""
        with urllib.request.urlopen(f"{self.url}/seen", timeout=10.0) as answer:
            seen: dict[str, Any] = json.load(answer)
            return seen

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.communicate()


class _Counted:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.spans = 0
        self.metrics: dict[str, float] = {}
        self.recent: deque[dict[str, Any]] = deque(maxlen=RECENT)

    def traces(self, body: bytes) -> bytes:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
            ExportTraceServiceRequest,
            ExportTraceServiceResponse,
        )

        request = ExportTraceServiceRequest.FromString(body)
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans += len(scope.spans)
                self.recent += [
                    {
                        "name": span.name,
                        "trace_id": span.trace_id.hex(),
                        "span_id": span.span_id.hex(),
                        "parent_id": span.parent_span_id.hex() or None,
                        "attributes": len(span.attributes),
                    }
                    for span in scope.spans[-RECENT:]
                ]
        return ExportTraceServiceResponse().SerializeToString()

    def totals(self, body: bytes) -> bytes:
        from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
            ExportMetricsServiceRequest,
            ExportMetricsServiceResponse,
        )

        request = ExportMetricsServiceRequest.FromString(body)
        for resource in request.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    # Cumulative: the last one holds all.
                    self.metrics[metric.name] = sum(
                        point.count for point in metric.histogram.data_points
                    ) or sum(point.as_double or point.as_int for point in metric.sum.data_points)
        return ExportMetricsServiceResponse().SerializeToString()

    def lines(self, body: bytes) -> bytes:
        from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
            ExportLogsServiceRequest,
            ExportLogsServiceResponse,
        )

        ExportLogsServiceRequest.FromString(body)
        return ExportLogsServiceResponse().SerializeToString()

    def json(self) -> bytes:
        seen = {"spans": self.spans, "metrics": self.metrics, "recent": list(self.recent)}
        return json.dumps(seen).encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    counted: _Counted

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        counted = self.counted
        taking = {"traces": counted.traces, "metrics": counted.totals, "logs": counted.lines}
        take = taking.get(self.path.removeprefix("/v1/"))
        if take is None or self.headers.get("content-encoding", "identity") != "identity":
            self._answer(415, "text/plain", b"it takes plain traces, metrics and logs")
            return
        with self.counted.lock:
            answer = take(body)
        self._answer(200, "application/x-protobuf", answer)

    def do_GET(self) -> None:
        with self.counted.lock:
            answer = self.counted.json()
        self._answer(200, "application/json", answer)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: it would be a line for each request."""

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    handler = type("Handler", (_Handler,), {"counted": _Counted()})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(server.server_port, flush=True)
        sys.stdin.read()
        server.shutdown()


if __name__ == "__main__":
    main()
