"""The backend `zipkin`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from agentrt import options
from agentrt.plugins import Host
from agentrt.telemetry.delivery import GRACE, Delivery, Part, parts
from agentrt.telemetry.http import HttpSender, check_url
from agentrt.telemetry.secret_headers import SecretHeaders
from agentrt.telemetry.signals import Batch, Signal
from agentrt_zipkin.encoding import encode

__all__ = ["Zipkin"]

ENDPOINT = "http://127.0.0.1:9411/api/v2/spans"
VARIABLE = "OTEL_EXPORTER_ZIPKIN_ENDPOINT"
REQUEST_BYTES = 4 * 1024 * 1024
REQUEST_SPANS = 1000


class Zipkin:
    """Spans, as Zipkin v2 JSON.

    `endpoint`: where to; by default OTEL_EXPORTER_ZIPKIN_ENDPOINT, or http://127.0.0.1:9411/api/v2/spans. `headers`:
    more of them, such as an authorization that a proxy wants; `secret://` references in them are resolved.
    `interval`: seconds between two batches (5.0). `timeout`: seconds that the delivery of one may take (10.0).
    """

    signals: tuple[Signal, ...] = ("spans",)

    def __init__(
        self,
        *,
        endpoint: str | None = None,
        headers: Mapping[str, str] | None = None,
        interval: float = 5.0,
        timeout: float = 10.0,
    ) -> None:
        self.endpoint = (
            check_url(VARIABLE, os.environ.get(VARIABLE) or ENDPOINT)
            if endpoint is None
            else check_url("endpoint", endpoint)
        )
        self.interval = options.seconds("interval", interval)
        self.timeout = options.seconds("timeout", timeout) + GRACE
        self._headers = SecretHeaders({"content-type": "application/json", **(headers or {})})
        self._http = HttpSender(
            "zipkin", key_setting="[telemetry.zipkin] headers", url_setting="[telemetry.zipkin] endpoint",
            timeout=timeout,
        )  # fmt: skip
        self._delivery = Delivery("zipkin", self._parts, self._send, signal="spans", timeout=timeout)
        self.undelivered = self._delivery.undelivered

    async def open(self, host: Host) -> None:
        """Look up the secrets in the headers."""
        await self._headers.open(host)

    async def export(self, batch: Batch, /) -> None:
        await self._delivery.deliver(batch)

    async def aclose(self) -> None:
        await self._http.aclose()

    def _parts(self, batch: Batch) -> Iterator[Part]:
        encoded = (encode(span, batch.resource) for span in batch.spans)
        return parts(encoded, count=REQUEST_SPANS, size=REQUEST_BYTES)

    async def _send(self, part: Part) -> None:
        body = b"[" + b",".join(part.items) + b"]"
        await self._headers.through(lambda headers: self._http.send(self.endpoint, body, headers=headers))
