"""Exporters of OpenTelemetry's by name: the stock ones, and some of our own that behave badly."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import context as otel_context
from servers.http_server import Answer, HttpServer
from servers.otlp import Collector, attributes
from telemetry.samples import RESOURCE, batch, metrics, span

from agentrt.errors import ConfigError, PluginError, TransientError
from agentrt.telemetry.otel_exporter import OtelExporter, find, installed
from agentrt.telemetry.signals import Batch

MODULE = """
import logging

from opentelemetry.context import get_value
from opentelemetry.sdk.metrics import Counter
from opentelemetry.sdk.metrics.export import AggregationTemporality, MetricReader
from opentelemetry.sdk.trace.export import SpanExportResult

logger = logging.getLogger(__name__)
calls = []


class Spans:
    def __init__(self, place="here", answer="SUCCESS"):
        self.place, self.answer = place, answer

    def export(self, spans):
        calls.append(("spans", self.place, len(spans), get_value("suppress_instrumentation")))
        logger.warning("about to answer %s", self.answer)
        if self.answer == "raise":
            raise OSError("the disk is gone")
        return None if self.answer == "None" else SpanExportResult[self.answer]

    def shutdown(self):
        calls.append(("shutdown", self.place))


class Metrics:
    _preferred_temporality = {Counter: AggregationTemporality.DELTA}

    def __init__(self, place="here"):
        self.place = place

    def export(self, data):
        calls.append(("metrics", self.place, len(data.resource_metrics[0].scope_metrics[0].metrics)))
        return SpanExportResult.SUCCESS

    def shutdown(self):
        calls.append(("shutdown", self.place))


class Reader(MetricReader):
    def _receive_metrics(self, *arguments, **options): ...
    def shutdown(self, *arguments, **options): ...
"""
POINTS = """
[opentelemetry_traces_exporter]
odd = odd_exporters:Spans
missing = odd_exporters:Nothing
notone = odd_exporters:logger

[opentelemetry_metrics_exporter]
odd = odd_exporters:Metrics
prometheus = odd_exporters:Reader
other_reader = odd_exporters:Reader
"""


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A distribution that offers exporters; the module that they are in."""
    import sys

    (tmp_path / "odd_exporters.py").write_text(MODULE)
    info = tmp_path / "odd_exporters-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-exporters\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    monkeypatch.syspath_prepend(tmp_path)
    import odd_exporters  # type: ignore[import-not-found]

    yield odd_exporters
    del sys.modules["odd_exporters"]


def close(exporter: OtelExporter) -> None:
    asyncio.run(exporter.aclose())


# --- the stock ones --------------------------------------------------------------------------------------


def test_the_console_exporter_prints_all_three_signals() -> None:
    out = io.StringIO()
    exporter = OtelExporter(name="console", options={"out": out})
    assert exporter.signals == ("spans", "metrics", "logs")
    exporter.export(batch())
    close(exporter)
    printed = out.getvalue()
    for word in ("invoke_agent shop", "agent.tool.calls", "it went wrong", '"service.name": "shop"'):
        assert word in printed


@pytest.mark.parametrize("name", ["otlp", "otlp_proto_http"])
def test_the_stock_exporter_of_otlp_delivers(collector: Collector, name: str) -> None:
    ends = {"spans": "traces", "metrics": "metrics", "logs": "logs"}
    options: dict[str, Any] = {
        signal: {"endpoint": f"{collector.url}/v1/{end}"} for signal, end in ends.items()
    }
    exporter = OtelExporter(name=name, options={**options, "headers": {"x-team": "a"}})
    sent = batch()
    exporter.export(sent)
    close(exporter)
    assert [each.name for each in collector.spans] == [each.name for each in sent.spans]
    assert attributes(collector.spans[1].attributes) == sent.spans[1].attributes
    assert [each.name for each in collector.metrics] == [each.name for each in sent.metrics]
    assert collector.logs[0].trace_id.hex() == sent.spans[1].trace_id
    assert {request.headers["x-team"] for request in collector.requests} == {"a"}
    assert attributes(collector.resources[0].attributes) == dict(RESOURCE.attributes)


def test_what_the_stock_exporter_logged_is_the_message_and_nothing_is_logged(
    answering: Callable[..., HttpServer], caplog: pytest.LogCaptureFixture
) -> None:
    server = answering(400)
    options = {"endpoint": server.url, "signals": ["spans"]}
    exporter = OtelExporter(name="otlp_proto_http", options=options)
    with pytest.raises(TransientError, match=r"otlp_proto_http did not deliver the spans: .*400"):
        exporter.export(Batch(RESOURCE, spans=(span(),)))
    close(exporter)
    assert [record for record in caplog.records if record.name.startswith("opentelemetry")] == []


def test_a_signal_that_failed_is_alone_tried_again() -> None:
    with Collector(Answer(400), None) as collector:
        exporter = OtelExporter(
            name="otlp_proto_http",
            options={
                "spans": {"endpoint": f"{collector.url}/v1/traces"},
                "metrics": {"endpoint": f"{collector.url}/v1/metrics"},
            },
            signals=["spans", "metrics"],
        )
        sent = batch()
        with pytest.raises(TransientError):
            exporter.export(sent)
        exporter.export(sent)
        close(exporter)
        assert [request.path for request in collector.requests] == ["/v1/traces", "/v1/metrics", "/v1/traces"]


# --- any -------------------------------------------------------------------------------------------------


def test_options_are_those_of_the_constructors_and_may_differ_by_signal(odd: Any) -> None:
    options = {"place": "there", "metrics": {"place": "elsewhere"}, "spans": {"answer": "None"}}
    exporter = OtelExporter(name="odd", options=options)
    assert exporter.signals == ("spans", "metrics")
    exporter.export(batch())
    close(exporter)
    assert odd.calls == [
        ("spans", "there", 2, True),
        ("metrics", "elsewhere", 3),
        ("shutdown", "there"),
        ("shutdown", "elsewhere"),
    ]
    assert otel_context.get_value("suppress_instrumentation") is None


def test_a_wish_for_delta_is_seen(odd: Any) -> None:
    assert OtelExporter(name="odd").delta
    assert not OtelExporter(name="odd", signals=["spans"]).delta
    assert not OtelExporter(name="console").delta


def test_a_failure_says_what_was_logged_and_an_error_of_its_own_passes(odd: Any) -> None:
    sent = Batch(RESOURCE, spans=(span(),))
    failing = OtelExporter(name="odd", options={"spans": {"answer": "FAILURE"}})
    with pytest.raises(TransientError, match="did not deliver the spans: about to answer FAILURE"):
        failing.export(sent)
    raising = OtelExporter(name="odd", options={"spans": {"answer": "raise"}})
    with pytest.raises(OSError, match="the disk is gone"):
        raising.export(Batch(RESOURCE, spans=(span(),), metrics=metrics()))
    assert odd.calls[-1] == ("metrics", "here", 3)  # which have nothing to do with it


def test_what_an_exporter_logs_for_others_is_logged(odd: Any, caplog: pytest.LogCaptureFixture) -> None:
    exporter = OtelExporter(name="odd", signals=["spans"])
    exporter.export(Batch(RESOURCE, spans=(span(),)))
    assert caplog.records == []
    logging.getLogger("odd_exporters").warning("by itself")
    assert [record.getMessage() for record in caplog.records] == ["by itself"]


# --- errors ----------------------------------------------------------------------------------------------


def test_what_is_installed_is_found_by_signal() -> None:
    assert set(find("console")) == {"spans", "metrics", "logs"}
    assert find("otlp") == find("otlp_proto_http")
    assert "otlp_proto_grpc" in installed()


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(
        PluginError, match="no OpenTelemetry exporter 'consol'; did you mean 'console'"
    ) as caught:
        OtelExporter(name="consol")
    assert "otlp_proto_http" in str(caught.value)
    assert "opentelemetry-exporter-" in str(caught.value)


def test_a_reader_is_refused_with_what_to_use_instead(odd: Any) -> None:
    with pytest.raises(ConfigError, match=r"is a reader .* install agentrt-prometheus and use"):
        OtelExporter(name="prometheus")
    with pytest.raises(ConfigError, match="other_reader is a reader of metrics, not an exporter"):
        OtelExporter(name="other_reader")


def test_an_unknown_option_is_named_with_those_there_are(odd: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"plac is no option of the exporter odd for spans; did you mean 'place'"
    ):
        OtelExporter(name="odd", options={"plac": 1})


def test_a_signal_that_it_does_not_take_is_named(odd: Any) -> None:
    with pytest.raises(ConfigError, match="odd takes no logs, only spans, metrics"):
        OtelExporter(name="odd", signals=["logs"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "from odd-exporters, cannot be loaded: AttributeError"),
        ("notone", "is no exporter"),
    ],
)
def test_a_broken_exporter_is_named_with_its_distribution(odd: Any, name: str, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        OtelExporter(name=name)


def test_a_constructor_that_fails_is_told(odd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("boom")

    monkeypatch.setattr(odd.Spans, "__init__", fail)
    with pytest.raises(
        PluginError, match="odd for spans, from odd-exporters, cannot be made: ValueError: boom"
    ):
        OtelExporter(name="odd")
