"""Spans as Zipkin v2 JSON, by OpenTelemetry's rules for Zipkin."""

from __future__ import annotations

import ipaddress
from typing import Any

import msgspec

from agentrt.telemetry.signals import Attributes, Resource, Span, SpanEvent

__all__ = ["encode"]

KINDS = {"client": "CLIENT", "server": "SERVER", "producer": "PRODUCER", "consumer": "CONSUMER"}
# What a client calls, the best name first.
PEERS = ("peer.service", "server.address", "network.peer.address", "gen_ai.provider.name", "db.name")
PORTS = ("server.port", "network.peer.port")


def encode(span: Span, resource: Resource) -> bytes:
    """One span as a JSON object. Attributes of the resource become tags, too: Zipkin has no other place for them."""
    service = resource.service
    value: dict[str, Any] = {
        "traceId": span.trace_id,
        "id": span.span_id,
        "name": span.name,
        "timestamp": max(1, span.start_ns // 1000),
        # Zipkin drops a duration of 0.
        "duration": max(1, (span.end_ns - span.start_ns) // 1000),
        "localEndpoint": {"serviceName": service},
        "tags": _tags(span, resource),
    }
    if span.parent_id is not None:
        value["parentId"] = span.parent_id
    if span.kind in KINDS:
        value["kind"] = KINDS[span.kind]
    if span.kind in ("client", "producer") and (peer := _peer(span.attributes)):
        value["remoteEndpoint"] = peer
    if span.events:
        value["annotations"] = [
            {"timestamp": max(1, event.time_ns // 1000), "value": _annotation(event)} for event in span.events
        ]
    return msgspec.json.encode(value)


def _tags(span: Span, resource: Resource) -> dict[str, str]:
    tags = {name: _text(value) for name, value in resource.attributes.items() if name != "service.name"}
    tags.update((name, _text(value)) for name, value in span.attributes.items())
    tags["otel.scope.name"] = span.scope
    if span.links:
        tags["links"] = " ".join(f"{link.trace_id}/{link.span_id}" for link in span.links)
    # To Zipkin any tag of this name means that the span failed, "false" as well.
    tags.pop("error", None)
    if span.status != "unset":
        tags["otel.status_code"] = span.status.upper()
    if span.status == "error":
        tags["error"] = span.message or _text(span.attributes.get("error.type", "true"))
    return tags


def _annotation(event: SpanEvent) -> str:
    if not event.attributes:
        return event.name
    return f'"{event.name}": {_json(event.attributes)}'


def _peer(attributes: Attributes) -> dict[str, Any]:
    name = next((attributes[key] for key in PEERS if attributes.get(key)), None)
    if name is None:
        return {}
    peer: dict[str, Any] = {"serviceName": _text(name)}
    port = next((attributes[key] for key in PORTS if key in attributes), None)
    if isinstance(port, int) and 0 < port < 65536:
        peer["port"] = port
    try:
        address = ipaddress.ip_address(_text(attributes.get("network.peer.address", name)))
    except ValueError:
        return peer
    peer[f"ipv{address.version}"] = str(address)
    return peer


def _text(value: Any) -> str:
    """A tag: as it is if it is text, else as JSON says it (true, 1.5, ["a","b"])."""
    return value if isinstance(value, str) else _json(value)


def _json(value: Any) -> str:
    # What no attribute should be is still said somehow.
    return msgspec.json.encode(value, enc_hook=str).decode()
