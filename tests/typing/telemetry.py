"""Telemetry as a type checker sees it: what users call, what a backend is, and the tests that its author subclasses."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import ClassVar, assert_type

from agentrt import Context, Runtime
from agentrt.plugins import Host
from agentrt.telemetry import Batch, LogLine, Metric, Span, TelemetryBackend
from agentrt.telemetry.exporting import Delivered
from agentrt.telemetry.signals import Histogram, Signal
from agentrt.testing import TelemetryBackendTests


class Smallest:
    def export(self, batch: Batch, /) -> None:
        assert_type(batch.spans, tuple[Span, ...])
        assert_type(batch.metrics, tuple[Metric, ...])
        assert_type(batch.logs, tuple[LogLine, ...])
        assert_type(batch.json(), bytes)
        for metric in batch.metrics:
            for point in metric.points:
                assert_type(point.value, float | Histogram)


class Whole:
    signals: ClassVar[tuple[Signal, ...]] = ("spans", "logs")
    delta = True
    interval = 1.0
    batch_size = 100
    timeout = 5.0

    def __init__(self, *, url: str) -> None:
        self.url = url

    async def open(self, host: Host) -> None:
        self.url = await host.secret(self.url)

    async def export(self, batch: Batch) -> None:
        assert_type(len(batch), int)

    async def aclose(self) -> None: ...


smallest: TelemetryBackend = Smallest()
whole: TelemetryBackend = Whole(url="http://127.0.0.1")


class NoBackend:
    def export(self, batch: bytes) -> None: ...


wrong: TelemetryBackend = NoBackend()  # type: ignore[assignment]


class TestWhole(TelemetryBackendTests):
    secrets: ClassVar[Mapping[str, str]] = {"secret://env/URL": "http://127.0.0.1"}

    def make(self) -> Whole:
        return Whole(url="secret://env/URL")

    def delivered(self) -> bytes:
        return b""

    @contextmanager
    def failing(self) -> Generator[None]:
        yield


class TestWrong(TelemetryBackendTests):
    def make(self) -> NoBackend:  # type: ignore[override]
        return NoBackend()


async def users(ctx: Context) -> None:
    ctx.log("info", "order received", number=3)
    ctx.record_metric("orders.total", 19.9, {"country": "pt"}, unit="EUR")
    ctx.record_metric("orders", 1, kind="counter")
    ctx.record_metric("orders", 1, kind="sum")  # type: ignore[arg-type]
    with ctx.start_span("parse", {"size": 3}) as span:
        span.set_attribute("found", 2)
        assert_type(span.is_recording(), bool)
    async with Runtime(backends=[("mine", Smallest())]) as runtime:
        assert_type(await runtime.telemetry.flush(), bool)
        assert_type(runtime.telemetry.report(), list[Delivered])
        assert_type(runtime.telemetry.metrics(), tuple[Metric, ...])
