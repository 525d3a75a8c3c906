"""The backend `cloudwatch_metrics`."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from agentrt import options
from agentrt.errors import ConfigError
from agentrt.telemetry.buckets import values_of
from agentrt.telemetry.delivery import GRACE, Delivery, Part, parts
from agentrt.telemetry.signals import Attributes, Batch, Histogram, Metric, Point, Signal
from agentrt_aws.client import AwsClient, Place

__all__ = ["DIMENSIONS", "CloudWatchMetrics", "data_of", "unit_of"]

logger = logging.getLogger("agentrt.telemetry.cloudwatch_metrics")

TABLE = "[telemetry.cloudwatch_metrics]"
REQUEST_DATA = 1000
REQUEST_BYTES = 900_000
"""Of 1 MB: what an item needs in the request is estimated."""
DATUM_VALUES = 150
MOST_DIMENSIONS = 30
LARGEST = 2.0**360

DIMENSIONS = (
    "service.name",
    "gen_ai.operation.name",
    "gen_ai.provider.name",
    "gen_ai.request.model",
    "gen_ai.agent.name",
    "gen_ai.tool.name",
    "gen_ai.token.type",
    "error.type",
)
UNITS = {
    "s": "Seconds", "ms": "Milliseconds", "us": "Microseconds",
    "By": "Bytes", "kBy": "Kilobytes", "KBy": "Kilobytes", "MBy": "Megabytes", "GBy": "Gigabytes",
    "TBy": "Terabytes", "bit": "Bits", "kbit": "Kilobits", "Mbit": "Megabits", "Gbit": "Gigabits",
    "%": "Percent", "By/s": "Bytes/Second", "bit/s": "Bits/Second",
}  # fmt: skip


class CloudWatchMetrics:
    """Metrics. Counters and gauges as values, histograms as the values and counts that percentiles need.

    `namespace` (agentrt). `dimensions`: the attributes, of points and of the resource, that become dimensions; each
    combination of their values is a metric that AWS charges for, so that others are left out. `region`, `profile`,
    `endpoint`: as boto finds them. `interval`: seconds between two batches (60.0). `timeout`: seconds for one (10.0).
    """

    signals: tuple[Signal, ...] = ("metrics",)
    delta = True

    def __init__(
        self,
        *,
        namespace: str = "agentrt",
        dimensions: Sequence[str] = DIMENSIONS,
        region: str | None = None,
        profile: str | None = None,
        endpoint: str | None = None,
        interval: float = 60.0,
        timeout: float = 10.0,
    ) -> None:
        if not re.fullmatch(r"[\x21-\x39\x3b-\x7e][\x20-\x7e]{0,254}", namespace) or namespace.startswith(
            "AWS/"
        ):
            raise ConfigError(
                "namespace must be up to 255 characters of ASCII and begin neither with : nor AWS/, unlike "
                f"{namespace!r}"
            )
        if len(dimensions) > MOST_DIMENSIONS:
            raise ConfigError(f"dimensions may be {MOST_DIMENSIONS} names at most, not {len(dimensions)}")
        self.namespace = namespace
        self.dimensions = tuple(options.text("dimensions", name) for name in dimensions)
        self.interval = options.seconds("interval", interval)
        self.timeout = options.seconds("timeout", timeout) + GRACE
        place = Place(TABLE, region=region, profile=profile, endpoint=endpoint, timeout=timeout)
        self._client = AwsClient("cloudwatch", place)
        self._delivery = Delivery(TABLE, self._parts, self._send, signal="metrics", timeout=timeout)
        self.undelivered = self._delivery.undelivered
        self._left_out: set[str] = set()

    async def export(self, batch: Batch, /) -> None:
        await self._delivery.deliver(batch)

    async def aclose(self) -> None:
        await self._client.aclose()

    def _parts(self, batch: Batch) -> Iterator[Part]:
        return parts(
            self._data(batch),
            count=REQUEST_DATA,
            size=REQUEST_BYTES,
            size_of=lambda item: _size(item[0]),
            count_of=lambda item: item[1],
        )

    async def _send(self, part: Part) -> None:
        data = [datum for datum, _ in part.items]
        await self._client.call("put_metric_data", {"Namespace": self.namespace, "MetricData": data})

    def _data(self, batch: Batch) -> Iterator[tuple[dict[str, Any], int]]:
        """Each datum, and how many points it stands for: one with many values is several."""
        for metric in batch.metrics:
            if not _name(metric.name).strip("_ "):
                self._leave_out(metric, "its name has nothing that CloudWatch allows", len(metric.points))
                continue
            for point in metric.points:
                data = list(
                    data_of(
                        metric, point, self._dimensions_of({**batch.resource.attributes, **point.attributes})
                    )
                )
                if not data and not isinstance(point.value, Histogram):
                    self._leave_out(metric, f"its value {point.value!r} is no finite number")
                yield from ((datum, int(place == 0)) for place, datum in enumerate(data))

    def _dimensions_of(self, attributes: Attributes) -> list[dict[str, str]]:
        found = []
        for name in self.dimensions:
            value = _value(attributes[name]) if name in attributes else ""
            if value:
                found.append({"Name": _name(name).lstrip(":"), "Value": value})
        return found

    def _leave_out(self, metric: Metric, why: str, points: int = 1) -> None:
        self._delivery.leave_out("metrics", points)
        if metric.name not in self._left_out:
            self._left_out.add(metric.name)
            logger.warning("the metric %r is not sent: %s", metric.name, why)


def data_of(metric: Metric, point: Point, dimensions: list[dict[str, str]]) -> Iterator[dict[str, Any]]:
    """A point as data of `PutMetricData`; several if it has more values than fit into one."""
    about = {
        "MetricName": _name(metric.name),
        "Dimensions": dimensions,
        "Timestamp": datetime.fromtimestamp(point.time_ns / 1e9, UTC),
        "Unit": unit_of(metric),
    }
    if isinstance(point.value, Histogram):
        values = values_of(point.value)
        for start in range(0, len(values), DATUM_VALUES):
            some = values[start : start + DATUM_VALUES]
            yield {
                **about,
                "Values": [value for value, _ in some],
                "Counts": [float(count) for _, count in some],
            }
    elif math.isfinite(point.value) and abs(point.value) <= LARGEST:
        yield {**about, "Value": float(point.value)}


def unit_of(metric: Metric) -> str:
    """One of CloudWatch's units. What is counted, "{token}", is a "Count"; what it has no word for is "None"."""
    unit = re.sub(r"\{[^}]*\}", "", metric.unit).strip()
    if unit in ("", "1"):
        return "Count" if metric.kind == "counter" or metric.unit.startswith("{") else "None"
    if unit == "/s":
        return "Count/Second"
    return UNITS.get(unit, "None")


def _name(text: str) -> str:
    return "".join(char if " " <= char <= "~" else "_" for char in text)[:255].strip()


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value, enc_hook=str).decode()
    return "".join(char if " " <= char <= "~" else "?" for char in text)[:1024].strip()


def _size(datum: dict[str, Any]) -> int:
    """Bytes in boto's encoding, where each field repeats the whole path to it; not less."""
    dimensions = sum(
        150 + 3 * (len(dimension["Name"]) + len(dimension["Value"])) for dimension in datum["Dimensions"]
    )
    return 300 + 3 * len(datum["MetricName"]) + dimensions + 120 * len(datum.get("Values", ()))
