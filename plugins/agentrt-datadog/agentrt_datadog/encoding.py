"""Metrics and log lines as the API of Datadog's intake describes them."""

from __future__ import annotations

import math
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from agentrt.telemetry.buckets import values_of
from agentrt.telemetry.delivery import cut_texts
from agentrt.telemetry.signals import Histogram, LogLine, Metric, Point, Resource

__all__ = ["distributions", "encode_log", "host_name", "series", "tags_of", "usable_name"]

COUNT, GAUGE = 1, 3
LOG_BYTES = 1_000_000
CUTS = (100_000, 10_000, 1_000)
"""Characters that texts of a line that is too large are cut to, until it fits."""
TAG_LENGTH = 200
NAME_LENGTH = 200
POINT_VALUES = 10_000
UNITS = {
    "s": "second",
    "ms": "millisecond",
    "us": "microsecond",
    "ns": "nanosecond",
    "By": "byte",
    "%": "percent",
}
RESERVED = frozenset(
    {"message", "status", "service", "hostname", "host", "ddsource", "ddtags", "timestamp", "truncated"}
)


def host_name() -> str:
    return socket.gethostname()


def usable_name(name: str) -> str:
    """A metric's name: letters, digits, _ and dots, a letter first; "" if nothing is left of it."""
    return re.sub(r"^[^A-Za-z]+", "", re.sub(r"[^A-Za-z0-9_.]", "_", name))[:NAME_LENGTH]


def tags_of(attributes: Mapping[str, Any]) -> list[str]:
    """Tags, "name:value", in the order of their names."""
    found = []
    for name in sorted(attributes):
        value = attributes[name]
        text = value if isinstance(value, str) else msgspec.json.encode(value, enc_hook=str).decode()
        # Tags of a line stand in one text, with commas between them.
        found.append(f"{name}:{text}".replace(",", "_")[:TAG_LENGTH])
    return found


def series(
    metrics: Iterable[Metric], tags: list[str], host: str, leave_out: Callable[[str, str], None]
) -> Iterator[tuple[bytes, int]]:
    """Counters and gauges, each point as one of `/api/v2/series`, and how many points it stands for.

    Of two with the same name, tags and second Datadog would keep the last: counts are added up. `leave_out`: told the
    name of a metric with a value that cannot be sent, and why.
    """
    found: dict[tuple[str, tuple[str, ...], int], tuple[dict[str, Any], int]] = {}
    for metric in metrics:
        for point in metric.points:
            value = point.value
            if isinstance(value, Histogram):
                continue
            if not math.isfinite(value):
                leave_out(metric.name, f"its value {value!r} is no finite number")
                continue
            item = _series(metric, point, tags, host)
            key = (item["metric"], tuple(item["tags"]), item["points"][0]["timestamp"])
            before, count = found.get(key, (None, 0))
            if before is not None and metric.kind == "counter":
                item["points"][0]["value"] += before["points"][0]["value"]
            found[key] = item, count + 1
    for item, count in found.values():
        yield msgspec.json.encode(item), count


def _series(metric: Metric, point: Point, tags: list[str], host: str) -> dict[str, Any]:
    item: dict[str, Any] = {
        "metric": usable_name(metric.name),
        "type": COUNT if metric.kind == "counter" else GAUGE,
        "points": [{"timestamp": point.time_ns // 10**9, "value": point.value}],
        "tags": [*tags, *tags_of(point.attributes)],
        "resources": [{"type": "host", "name": host}],
    }
    if metric.kind == "counter":
        item["interval"] = max(1, round((point.time_ns - point.start_ns) / 1e9))
    if unit := UNITS.get(metric.unit):
        item["unit"] = unit
    return item


def distributions(metric: Metric, point: Point, tags: list[str], host: str) -> Iterator[bytes]:
    """A histogram as values of `/api/v1/distribution_points`, each as often as it occurred."""
    assert isinstance(point.value, Histogram)
    item = {
        "metric": usable_name(metric.name),
        "type": "distribution",
        "tags": [*tags, *tags_of(point.attributes)],
        "host": host,
    }
    for values in _chunks(values_of(point.value)):
        yield msgspec.json.encode({**item, "points": [[point.time_ns // 10**9, values]]})


def _chunks(values: Iterable[tuple[float, int]]) -> Iterator[list[float]]:
    chunk: list[float] = []
    for value, count in values:
        while count:
            some = min(count, POINT_VALUES - len(chunk))
            chunk += [value] * some
            count -= some
            if len(chunk) == POINT_VALUES:
                yield chunk
                chunk = []
    if chunk:
        yield chunk


def encode_log(line: LogLine, resource: Resource, tags: list[str], host: str) -> bytes:
    """A line as one of `/api/v2/logs`, cut until it is at most 1 MB long: the intake would cut it in the middle."""
    value = _log(line, resource, tags, host)
    encoded = _json(value)
    for length in CUTS:
        if len(encoded) <= LOG_BYTES:
            return encoded
        encoded = _json({**cut_texts(value, length), "truncated": True})
    if len(encoded) > LOG_BYTES:
        bare = LogLine(line.time_ns, line.level, line.message, line.logger, {}, line.trace_id, line.span_id)
        encoded = _json({**cut_texts(_log(bare, resource, tags, host), CUTS[-1]), "truncated": True})
    return encoded


def _log(line: LogLine, resource: Resource, tags: list[str], host: str) -> dict[str, Any]:
    value = {
        (f"attributes.{name}" if name in RESERVED else name): attribute
        for name, attribute in line.attributes.items()
    }
    value.update(
        {
            "ddsource": "agentrt",
            "ddtags": ",".join(tags),
            "hostname": host,
            "service": resource.service,
            "status": line.level,
            "message": line.message,
            "timestamp": line.time_ns // 1_000_000,
            "logger.name": line.logger,
        }
    )
    if line.exception is not None:
        value["error.stack"] = line.exception
    # Datadog's own ids are decimal and of 64 bits; OpenTelemetry's stand beside them.
    if line.trace_id is not None:
        value["dd.trace_id"] = str(int(line.trace_id[16:], 16))
        value["otel.trace_id"] = line.trace_id
    if line.span_id is not None:
        value["dd.span_id"] = str(int(line.span_id, 16))
        value["otel.span_id"] = line.span_id
    return value


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value, enc_hook=str)
