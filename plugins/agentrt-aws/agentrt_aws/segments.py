"""Spans as segment documents of X-Ray."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import msgspec

from agentrt.telemetry.delivery import cut_texts
from agentrt.telemetry.signals import Resource, Span, SpanEvent
from agentrt_aws.ids import xray_trace_id

__all__ = ["DOCUMENT_BYTES", "document"]

DOCUMENT_BYTES = 64 * 1024
NAME_LENGTH = 200
ANNOTATION_LENGTH = 1000
CUTS = (4_000, 500, 100)
"""Characters that texts of a document that is too large are cut to, until it fits."""

THROTTLED = frozenset({"ThrottledError", "RateLimited", "BulkheadFull", "TooManyRequests", "429"})
CALLER = frozenset(
    {
        "BudgetExceeded",
        "CircuitOpen",
        "ConfigError",
        "PermanentError",
        "Refused",
        "RunLimitExceeded",
        "SecretDenied",
        "SecretInvalid",
        "SecretNotFound",
        "ToolError",
    }
)
"""Errors that are the caller's: X-Ray's "error", shown in yellow. All others are a "fault", in red."""


CHAINED = re.compile(
    r"\n+(?:The above exception was the direct cause of the following exception"
    r"|During handling of the above exception, another exception occurred):\n+"
)
"""Stands in a traceback between an exception and the one that came of it."""
GROUP = re.compile(r"^  [|+] ?", re.MULTILINE)
"""Before each line of a group's traceback; before those of its members it stands twice."""


def document(span: Span, resource: Resource, annotations: Collection[str]) -> bytes:
    """One span as a JSON document of at most `DOCUMENT_BYTES`: the root of a trace and what serves a request as a
    segment, any other as a subsegment, which finds its segment by `parent_id`.

    A segment has the name of the service, a node of X-Ray's map, and its span's name as the annotation `span_name`.
    Attributes named in `annotations` can be searched for; all others are metadata.
    """
    value = _value(span, resource, annotations)
    encoded = _json(value)
    for length in CUTS:
        if len(encoded) <= DOCUMENT_BYTES:
            return encoded
        value["metadata"]["agentrt"] = {**cut_texts(value["metadata"]["agentrt"], length), "truncated": True}
        if "cause" in value:
            value["cause"] = cut_texts(
                {**value["cause"], "exceptions": value["cause"]["exceptions"][:10]}, length
            )
        encoded = _json(value)
    if len(encoded) > DOCUMENT_BYTES:
        value["metadata"] = {"agentrt": {"truncated": True}}
        value.pop("cause", None)
        encoded = _json(value)
    return encoded


def _value(span: Span, resource: Resource, annotations: Collection[str]) -> dict[str, Any]:
    is_segment = span.parent_id is None or span.kind in ("server", "consumer")
    indexed: dict[str, str | bool | int | float] = {"span_name": span.name} if is_segment else {}
    metadata: dict[str, Any] = {}
    for name, attribute in span.attributes.items():
        if name in annotations and isinstance(attribute, str | bool | int | float):
            text = attribute[:ANNOTATION_LENGTH] if isinstance(attribute, str) else attribute
            indexed[re.sub("[^A-Za-z0-9_]", "_", name)] = text
        else:
            metadata[name] = attribute
    # The exceptions of a failure are its cause; those that were only noted are events like any other.
    is_failed = span.status == "error"
    if events := [_event(event) for event in span.events if not is_failed or event.name != "exception"]:
        metadata["events"] = events
    if span.links:
        metadata["links"] = [f"{xray_trace_id(link.trace_id)}@{link.span_id}" for link in span.links]
    value: dict[str, Any] = {
        "name": _name(resource.service if is_segment else span.name),
        "id": span.span_id,
        "trace_id": xray_trace_id(span.trace_id),
        "start_time": span.start_ns / 1e9,
        "end_time": max(span.start_ns, span.end_ns) / 1e9,
        "annotations": indexed,
        "metadata": {"agentrt": metadata, "resource": resource.attributes},
    }
    if span.parent_id is not None:
        value["parent_id"] = span.parent_id
    if not is_segment:
        value["type"] = "subsegment"
        if span.kind in ("client", "producer"):
            value["namespace"] = "remote"  # a node of its own on the map
    elif version := resource.attributes.get("service.version"):
        value["service"] = {"version": str(version)}
    if is_failed:
        value.update(_failure(span))
    return value


def _failure(span: Span) -> dict[str, Any]:
    kind = str(span.attributes.get("error.type", "")).rpartition(".")[2]
    failed: dict[str, Any] = {"cause": {"working_directory": "", "exceptions": _exceptions(span, kind)}}
    if kind in THROTTLED:
        failed.update(error=True, throttle=True)
    elif kind in CALLER or re.fullmatch(r"4\d\d", kind):
        failed["error"] = True
    else:
        failed["fault"] = True
    return failed


def _exceptions(span: Span, kind: str) -> list[dict[str, Any]]:
    found = [event for event in span.events if event.name == "exception"]
    if not found:
        return [{"id": span.span_id, "type": kind or "Error", "message": span.message}]
    made: list[dict[str, Any]] = []
    for event in found:
        made += _exception(event, span, len(made))
    return made


def _exception(event: SpanEvent, span: Span, number: int) -> list[dict[str, Any]]:
    """The exception of an event, and those that it came from, each the `cause` of the one before. Their types and
    messages stand only in the traceback. `number`: of the exceptions that the document has already."""
    said = event.attributes
    *earlier, own = CHAINED.split(str(said.get("exception.stacktrace", "")))
    kind, message = str(said.get("exception.type", "Error")), str(said.get("exception.message", span.message))
    values = [{"type": kind, "message": message, **_stack(own)}]
    for text in reversed(earlier):
        kind, message = _headline(text)
        values.append({"type": kind, "message": message, **_stack(text)})
    # Unique within the trace, as X-Ray wants it.
    ids = [f"{(int(span.span_id, 16) + number + place) % 2**64:016x}" for place in range(len(values))]
    for value, id_, cause in zip(values, ids, [*ids[1:], ""], strict=True):
        value["id"] = id_
        if cause:
            value["cause"] = cause
    return values


def _headline(traceback: str) -> tuple[str, str]:
    """Type and message, which stand after the calls: the first line that is not indented, and what follows it."""
    text = re.sub(r"\A.*Traceback \(most recent call last\):\n", "", GROUP.sub("", traceback).strip("\n"))
    found = re.search(r"^\S.*", text, re.MULTILINE | re.DOTALL)
    kind, _, message = (found[0] if found else text).partition(": ")
    return kind.strip() or "Error", message.partition("\n-+-")[0].strip()


def _stack(traceback: str) -> dict[str, Any]:
    lines = re.findall(r'^ *File "(.*)", line (\d+), in (.*)$', GROUP.sub("", traceback), re.MULTILINE)
    # X-Ray shows the innermost call first.
    stack = [{"path": path, "line": int(line), "label": label} for path, line, label in reversed(lines)]
    return {"stack": stack} if stack else {}


def _event(event: SpanEvent) -> dict[str, Any]:
    return {"name": event.name, "time": event.time_ns / 1e9, **event.attributes}


def _name(text: str) -> str:
    return re.sub(r"[^\w\s.:/%&#=+\\\-@]", "_", text)[:NAME_LENGTH] or "unnamed"


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value, enc_hook=str)
