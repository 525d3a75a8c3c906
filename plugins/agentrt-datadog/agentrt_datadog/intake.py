"""Metrics and log lines by the API of Datadog's intake."""

from __future__ import annotations

import gzip
import logging
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from agentrt.errors import ConfigError, PermanentError
from agentrt.plugins import Host
from agentrt.telemetry.delivery import Delivery, Part, parts
from agentrt.telemetry.http import HttpSender
from agentrt.telemetry.secret_headers import SecretHeaders
from agentrt.telemetry.signals import Batch, Histogram, Metric
from agentrt_datadog.encoding import distributions, encode_log, host_name, series, tags_of, usable_name

__all__ = ["Intake"]

logger = logging.getLogger("agentrt.telemetry.datadog")

TABLE = "[telemetry.datadog]"
LEVEL = 1
LOGS, SERIES, DISTRIBUTIONS = "logs", "series", "distributions"
PATHS = {LOGS: "/api/v2/logs", SERIES: "/api/v2/series", DISTRIBUTIONS: "/api/v1/distribution_points"}
LOG_COUNT = 1000
LOG_BYTES = 5_000_000
SERIES_COUNT = 10_000
SERIES_BYTES = 2_000_000
"""Of 5 MB. Compressed they may be 500 KB: what is more is answered with 413, and goes in halves."""
DISTRIBUTION_BYTES = 3_000_000


class Intake:
    """`bases`: addresses of the logs' intake and of the API. `tags`: of everything."""

    def __init__(
        self, *, api_key: str, bases: tuple[str, str], tags: Mapping[str, str], timeout: float
    ) -> None:
        if not api_key.isascii() or not api_key.isprintable() or " " in api_key:
            raise ConfigError(
                f"the API key holds blanks, line breaks or characters outside ASCII: set {TABLE} api_key"
            )
        self._headers = SecretHeaders({"dd-api-key": api_key})
        self._bases = {LOGS: bases[0], SERIES: bases[1], DISTRIBUTIONS: bases[1]}
        self._tags = dict(tags)
        self._http = HttpSender(
            "datadog",
            key_setting=f"`api_key` and `site` of {TABLE}: a key is valid for one site",
            url_setting=f"`site` and `intake` of {TABLE}",
            timeout=timeout,
        )
        self._host = host_name()
        self._left_out: set[str] = set()
        self._delivery = Delivery("datadog", self._parts, self._send, timeout=timeout)
        self.undelivered = self._delivery.undelivered

    async def open(self, host: Host) -> None:
        await self._headers.open(host)

    async def export(self, batch: Batch, /) -> None:
        await self._delivery.deliver(batch)

    async def aclose(self) -> None:
        await self._http.aclose()

    def _parts(self, batch: Batch) -> Iterator[Part]:
        tags = tags_of({**self._tags, **_deployment(batch)})
        logs = (encode_log(line, batch.resource, tags, self._host) for line in batch.logs)
        yield from parts(logs, to=LOGS, count=LOG_COUNT, size=LOG_BYTES, signal="logs")
        usable = [metric for metric in batch.metrics if self._is_usable(metric)]
        plain = series(usable, tags, self._host, self._leave_out)
        yield from _metric_parts(plain, to=SERIES, size=SERIES_BYTES)
        spread = (
            (item, int(place == 0))
            for metric in usable
            for point in metric.points
            if isinstance(point.value, Histogram)
            for place, item in enumerate(distributions(metric, point, tags, self._host))
        )
        yield from _metric_parts(spread, to=DISTRIBUTIONS, size=DISTRIBUTION_BYTES)

    async def _send(self, part: Part) -> None:
        items = part.items if part.to == LOGS else [item for item, _ in part.items]
        body = b"[" + b",".join(items) + b"]"
        if part.to != LOGS:
            body = b'{"series":' + body + b"}"
        own = {"content-type": "application/json"}
        if part.to == DISTRIBUTIONS:
            # The one encoding that this endpoint documents.
            own["content-encoding"], body = "deflate", zlib.compress(body, LEVEL)
        else:
            own["content-encoding"], body = "gzip", gzip.compress(body, LEVEL)
        url = self._bases[part.to] + PATHS[part.to]
        answer = await self._headers.through(
            lambda key: self._http.send(url, body, headers={**own, **key}, secret=key["dd-api-key"])
        )
        _check(answer, part)

    def _is_usable(self, metric: Metric) -> bool:
        if usable_name(metric.name):
            return True
        self._leave_out(metric.name, "its name has no letter that Datadog allows", len(metric.points))
        return False

    def _leave_out(self, name: str, why: str, points: int = 1) -> None:
        self._delivery.leave_out("metrics", points)
        if name not in self._left_out:
            self._left_out.add(name)
            logger.warning("the metric %r is not sent: %s", name, why)


def _metric_parts(items: Iterable[tuple[bytes, int]], *, to: str, size: int) -> Iterator[Part]:
    """`items`: encoded, with the number of points that each stands for."""
    return parts(
        items,
        to=to,
        count=SERIES_COUNT,
        size=size,
        size_of=lambda item: len(item[0]),
        signal="metrics",
        count_of=lambda item: item[1],
    )


def _deployment(batch: Batch) -> dict[str, Any]:
    attributes = batch.resource.attributes
    found = {
        "service": attributes.get("service.name"),
        "env": attributes.get("deployment.environment.name"),
        "version": attributes.get("service.version"),
    }
    return {name: value for name, value in found.items() if value}


def _check(answer: bytes, part: Part) -> None:
    """A success may come with errors."""
    try:
        value = msgspec.json.decode(answer)
    except msgspec.DecodeError:
        return  # the intake of logs answers with nothing
    errors = value.get("errors") if isinstance(value, dict) else None
    if errors:
        said = "; ".join(map(str, errors))[:300]
        raise PermanentError(f"{TABLE} some of {len(part.items)} {part.to} were not taken: {said}")
