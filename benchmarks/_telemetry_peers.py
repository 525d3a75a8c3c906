"""The peers of our telemetry: each makes a span with the same attributes and two metrics of each call.

They have no pipeline: what is measured is their telemetry alone. Every factory imports its libraries itself.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from _measure import Invalid
from _otlp_sink import RECENT, Sink
from _resilience import Callee
from _telemetry import (
    ATTRIBUTES,
    CALLS,
    DURATION,
    QUEUE,
    ROOT,
    SPAN,
    TAGS,
    Seen,
    SeenSpan,
    repeat,
    repeat_paced,
)

PEERS: dict[str, str] = {
    "otel_sdk": "",
    "otel_sdk_otlp": "",
    "logfire": "",
    "traceloop": "version 0.40, the last one that can be installed from wheels",
}
"""The peers, and what is to be said of them."""

ENVIRONMENTS = {"traceloop": "traceloop"}
"""Which of them have an environment of their own, by its name."""


class Peer:
    """A peer at work. `call` is one call with its telemetry, `around()` a context manager for a span around many,
    `processors` what has to be flushed, `ends` what has to be ended."""

    has_spans = has_metrics = True

    def __init__(self, name: str, sink: Sink | None, *, queue: int | None) -> None:
        self.name = name
        self.callee = Callee()
        self.roots = 0
        self.sink = sink
        self.queue = queue
        self.spans, self.metrics = _null_exporters()
        self.call: Callable[[], Any]
        self.around: Callable[[], Any]
        self.processors: list[Any] = []
        self.ends: list[Any] = []

    async def make_calls(self, count: int) -> int:
        self.roots += 1
        with self.around():
            return await repeat(self.call, count)

    async def make_calls_paced(self, count: int, *, per_second: float) -> None:
        self.roots += 1
        with self.around():
            await repeat_paced(self.call, count, per_second=per_second)

    async def flush(self) -> None:
        for processor in self.processors:
            if not processor.force_flush(60_000):
                raise Invalid(f"{self.name}: telemetry was not delivered within 60 s")

    def seen(self) -> Seen:
        if self.sink is not None:
            seen = self.sink.seen()
            return Seen(seen["spans"], seen["metrics"], [SeenSpan(**span) for span in seen["recent"]])
        return Seen(self.spans.count, self.metrics.totals, [_seen(span) for span in self.spans.recent])

    async def aclose(self) -> None:
        for each in self.ends:
            each.shutdown()

    async def shutdown_seconds(self) -> float:
        started = time.monotonic()
        await asyncio.to_thread(lambda: [each.shutdown() for each in self.ends])
        return time.monotonic() - started


def make(
    name: str, *, sink: Sink | None = None, endpoint: str | None = None, queue: int | None = QUEUE
) -> Peer:
    """That peer; once in a process, for most of them take global things. `queue`: None is the peer's own default.
    Raises ImportError if it is not installed."""
    peer = Peer(name, sink, queue=queue)
    if name == "otel_sdk_otlp":
        url = endpoint if sink is None else sink.url
        assert url is not None
        _otel_sdk(peer, *_otlp_exporters(url))
    else:
        factories = {"otel_sdk": _otel_sdk, "logfire": _logfire, "traceloop": _traceloop}
        factories[name](peer, peer.spans, peer.metrics)
    return peer


def _otel_sdk(peer: Peer, spans: Any, metrics: Any) -> None:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(spans, max_queue_size=peer.queue))
    reader = PeriodicExportingMetricReader(metrics, export_interval_millis=5000)
    meters = MeterProvider([reader], shutdown_on_exit=False)
    tracer, meter = provider.get_tracer("bench"), meters.get_meter("bench")
    duration = meter.create_histogram(DURATION, "s")
    counter = meter.create_counter(CALLS, "{call}")
    serve, clock, span = peer.callee.serve, time.perf_counter, tracer.start_as_current_span

    async def call() -> str:
        started = clock()
        with span(SPAN, attributes=ATTRIBUTES):
            result = await serve()
        duration.record(clock() - started, TAGS)
        counter.add(1, TAGS)
        return result

    peer.call, peer.around = call, lambda: span(ROOT)
    peer.processors = peer.ends = [provider, meters]


def _logfire(peer: Peer, spans: Any, metrics: Any) -> None:
    import logfire
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    processor = BatchSpanProcessor(spans, max_queue_size=peer.queue)
    reader = PeriodicExportingMetricReader(metrics, export_interval_millis=5000)
    logfire.configure(
        send_to_logfire=False,
        console=False,
        additional_span_processors=[processor],
        metrics=logfire.MetricsOptions(additional_readers=[reader]),
        inspect_arguments=False,
    )
    duration = logfire.metric_histogram(DURATION, unit="s")
    counter = logfire.metric_counter(CALLS, unit="{call}")
    serve, clock, span = peer.callee.serve, time.perf_counter, logfire.span

    async def call() -> str:
        started = clock()
        with span(SPAN, **ATTRIBUTES):
            result = await serve()
        duration.record(clock() - started, TAGS)
        counter.add(1, TAGS)
        return result

    peer.call, peer.around = call, lambda: span(ROOT)
    peer.processors, peer.ends = [processor, reader], [processor, reader]


def _traceloop(peer: Peer, spans: Any, metrics: Any) -> None:
    os.environ["TRACELOOP_TELEMETRY"] = "false"
    os.environ["TRACELOOP_TRACE_CONTENT"] = "false"
    os.environ["TRACELOOP_LOGGING_ENABLED"] = "false"
    if peer.queue is not None:
        os.environ["OTEL_BSP_MAX_QUEUE_SIZE"] = str(peer.queue)
    import contextlib

    from opentelemetry import metrics as otel_metrics
    from opentelemetry import trace
    from traceloop.sdk import Traceloop
    from traceloop.sdk.decorators import tool

    with contextlib.redirect_stdout(None):
        Traceloop.init(
            "bench", exporter=spans, metrics_exporter=metrics, telemetry_enabled=False, instruments=set()
        )
    meter = otel_metrics.get_meter("bench")
    duration = meter.create_histogram(DURATION, "s")
    counter = meter.create_counter(CALLS, "{call}")
    serve, clock = peer.callee.serve, time.perf_counter
    current = trace.get_current_span
    # It gives its spans a kind, a name and a path of its own.
    attributes = {name: ATTRIBUTES[name] for name in (*TAGS, "agentrt.run.id")}

    @tool(name="service")
    async def service() -> str:
        current().set_attributes(attributes)
        return await serve()

    async def call() -> str:
        started = clock()
        result = await service()
        duration.record(clock() - started, TAGS)
        counter.add(1, TAGS)
        return str(result)

    tracer = trace.get_tracer("bench")
    peer.call, peer.around = call, lambda: tracer.start_as_current_span(ROOT)
    peer.processors = peer.ends = [trace.get_tracer_provider(), otel_metrics.get_meter_provider()]


# --- exporters -----------------------------------------------------------------------------------------


def _otlp_exporters(url: str) -> tuple[Any, Any]:
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(f"{url}/v1/traces"), OTLPMetricExporter(f"{url}/v1/metrics")


def _null_exporters() -> tuple[Any, Any]:
    """They take everything and only count it."""
    from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    class Spans(SpanExporter):
        def __init__(self) -> None:
            self.count = 0
            self.recent: deque[Any] = deque(maxlen=RECENT)

        def export(self, spans: Any) -> SpanExportResult:
            self.count += len(spans)
            self.recent.extend(spans[-RECENT:])
            return SpanExportResult.SUCCESS

    class Metrics(MetricExporter):
        def __init__(self) -> None:
            super().__init__()
            self.totals: dict[str, float] = {}

        def export(
            self, metrics_data: Any, timeout_millis: float = 10_000, **kwargs: Any
        ) -> MetricExportResult:
            for resource in metrics_data.resource_metrics:
                for scope in resource.scope_metrics:
                    for metric in scope.metrics:
                        self.totals[metric.name] = sum(
                            getattr(point, "count", None) or getattr(point, "value", 0)
                            for point in metric.data.data_points
                        )
            return MetricExportResult.SUCCESS

        def force_flush(self, timeout_millis: float = 10_000) -> bool:
            return True

        def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None: ...

    return Spans(), Metrics()


def _seen(span: Any) -> SeenSpan:
    return SeenSpan(
        span.name,
        f"{span.context.trace_id:032x}",
        f"{span.context.span_id:016x}",
        None if span.parent is None else f"{span.parent.span_id:016x}",
        len(span.attributes),
    )
