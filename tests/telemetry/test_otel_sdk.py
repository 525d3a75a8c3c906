"""Our signals and the objects of OpenTelemetry's SDK: one says what the other said."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource as SdkResource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from telemetry.samples import NOW, RESOURCE, batch, line, metrics, span

from agentrt.telemetry.otel_sdk import (
    from_readable_span,
    log_data,
    metrics_data,
    readable_span,
    sdk_resource,
)
from agentrt.telemetry.otlp_messages import Messages
from agentrt.telemetry.signals import Metric, Point, Resource


def test_a_span_comes_back_as_it_went() -> None:
    parent = span("invoke_agent shop", scope="mine")
    for each in (parent, span(parent=parent)):
        assert from_readable_span(readable_span(each, RESOURCE)) == each


@pytest.mark.parametrize("kind", ["internal", "server", "client", "producer", "consumer"])
@pytest.mark.parametrize("status", ["unset", "ok", "error"])
def test_each_kind_and_status_comes_back(kind: Any, status: Any) -> None:
    import msgspec

    message = "no route" if status == "error" else ""
    sent = msgspec.structs.replace(span(), kind=kind, status=status, message=message)
    assert from_readable_span(readable_span(sent, RESOURCE)) == sent


def test_the_stock_encoders_make_of_them_what_ours_makes() -> None:
    sent = batch()
    messages = Messages()
    theirs = encode_spans([readable_span(each, sent.resource) for each in sent.spans])
    ours = messages.spans(sent.spans, sent.resource)
    for block in theirs.resource_spans:
        for scope in block.scope_spans:
            for each in scope.spans:
                each.flags = 1  # theirs also say that the parent is not remote, which we do not know
                for link in each.links:
                    link.flags = 0
    assert ours == theirs
    assert messages.metrics(sent.metrics, sent.resource) == encode_metrics(
        metrics_data(sent.metrics, sent.resource)
    )
    assert messages.logs(sent.logs, sent.resource) == encode_logs(log_data(sent.logs, sent.resource))


def test_a_log_line_outside_of_a_trace_has_no_ids_even_if_a_span_is_current() -> None:
    tracer = TracerProvider().get_tracer("t")
    with tracer.start_as_current_span("exporting"):
        (record,) = log_data([line()], RESOURCE)
    assert (record.log_record.trace_id, record.log_record.span_id) == (0, 0)
    assert record.log_record.trace_flags == 0


def test_temporality_is_kept() -> None:
    for is_delta in (True, False):
        data = metrics_data(metrics(is_delta=is_delta), RESOURCE)
        total, _, distribution = data.resource_metrics[0].scope_metrics[0].metrics
        for each in (total, distribution):
            found: Any = each.data
            assert (found.aggregation_temporality.name == "DELTA") is is_delta


def test_the_resource_is_made_once_and_is_equal_to_the_sdks() -> None:
    made = sdk_resource(RESOURCE)
    assert sdk_resource(RESOURCE) is made
    assert made == SdkResource(RESOURCE.attributes)
    assert hash(made) == hash(SdkResource(RESOURCE.attributes))
    other = sdk_resource(Resource({"service.name": "other"}))
    assert other != made


def test_a_point_that_does_not_fit_its_metric_is_refused() -> None:
    (_, _, histogram) = metrics()
    number = Point({}, 1.0, NOW, NOW)
    with pytest.raises(TypeError, match="holds a Histogram"):
        metrics_data([Metric("m", "histogram", "s", "", (number,))], RESOURCE)
    with pytest.raises(TypeError, match="holds a number"):
        metrics_data([Metric("m", "counter", "1", "", histogram.points)], RESOURCE)


def test_a_span_that_the_sdk_recorded_is_read() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("third.party")
    with tracer.start_as_current_span("outer") as outer:
        link = trace.Link(outer.get_span_context(), {"n": 1})
        inner = tracer.start_span("inner", kind=trace.SpanKind.SERVER, links=[link])
        inner.set_attributes({"list": ["a", "b"], "flag": True, "map": {"a": [1, None]}, "raw": b"xyz"})
        inner.record_exception(ValueError("bad"))
        inner.set_status(trace.StatusCode.ERROR, "ValueError: bad")
        inner.end()
    provider.shutdown()
    inner_span, outer_span = (from_readable_span(each) for each in exporter.get_finished_spans())
    assert (inner_span.name, inner_span.kind, inner_span.scope) == ("inner", "server", "third.party")
    assert inner_span.parent_id == outer_span.span_id
    assert inner_span.trace_id == outer_span.trace_id
    assert outer_span.parent_id is None
    assert inner_span.attributes == {
        "list": ["a", "b"],
        "flag": True,
        "map": '{"a":[1,null]}',
        "raw": "xyz",
    }
    assert inner_span.links[0].span_id == outer_span.span_id
    assert inner_span.status == "error"
    assert inner_span.message == "ValueError: bad"
    (event,) = inner_span.events
    assert event.name == "exception"
    assert event.attributes["exception.message"] == "bad"
    assert outer_span.start_ns <= inner_span.start_ns <= inner_span.end_ns <= outer_span.end_ns


def test_missing_parts_have_defaults() -> None:
    found = from_readable_span(ReadableSpan("bare"))
    assert (found.name, found.start_ns, found.end_ns, found.kind) == ("bare", 0, 0, "internal")
    assert (len(found.trace_id), len(found.span_id), found.parent_id) == (32, 16, None)
    assert (found.attributes, found.events, found.links, found.status) == ({}, (), (), "unset")
    strange = SimpleNamespace(start_time=5, events=[SimpleNamespace(name="e")], links=[object()], kind="odd")
    found = from_readable_span(strange)
    assert (found.name, found.start_ns, found.end_ns) == ("unnamed", 5, 5)
    assert [(event.name, event.time_ns) for event in found.events] == [("e", 5)]
    assert (found.links, found.kind, found.scope) == ((), "internal", "unknown")
