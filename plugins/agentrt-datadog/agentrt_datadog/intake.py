"""Metrics and log lines by the API of Datadog's intake."""

from __future__ import annotations

import gzip
import logging
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from agentrt.errors import ConfigError, PermanentError
from agentrt.plugins import Host
from agentrt.telemetry.delivery import Delivery, Part, parts
from agentrt.telemetry.http import HttpSender
from agentrt.telemetry.secret_headers import SecretHeaders
from agentrt.telemetry.signals import Batch, Histogram
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

    async def open(self, host: Host) -> None:
        await self._headers.open(host)

    async def export(self, batch: Batch, /) -> None:
        await self._delivery.deliver(batch)

    async def aclose(self) -> None:
        await self._http.aclose()

    def _parts(self, batch: Batch) -> Iterator[Part]:
        tags = tags_of({**self._tags, **_deployment(batch)})
        logs = (encode_log(line, batch.resource, tags, self._host) for line in batch.logs)
        yield from parts(logs, to=LOGS, count=LOG_COUNT, size=LOG_BYTES)
        usable = [metric for metric in batch.metrics if self._is_usable(metric.name)]
        plain = series(usable, tags, self._host, self._leave_out)
        yield from parts(plain, to=SERIES, count=SERIES_COUNT, size=SERIES_BYTES)
        spread = (
            item
            for metric in usable
            for point in metric.points
            if isinstance(point.value, Histogram)
            for item in distributions(metric, point, tags, self._host)
        )
        yield from parts(spread, to=DISTRIBUTIONS, count=SERIES_COUNT, size=DISTRIBUTION_BYTES)

    async def _send(self, part: Part) -> None:
        body = b"[" + b",".join(part.items) + b"]"
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

    def _is_usable(self, name: str) -> bool:
        if usable_name(name):
            return True
        self._leave_out(name, "its name has no letter that Datadog allows")
        return False

    def _leave_out(self, name: str, why: str) -> None:
        if name not in self._left_out:
            self._left_out.add(name)
            logger.warning("the metric %r is not sent: %s", name, why)


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
