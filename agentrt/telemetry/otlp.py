"""OTLP, OpenTelemetry's own protocol: to its collector, and to every service that speaks it.

    [telemetry.otlp]
    endpoint = "https://collector.example:4318"
    headers = { authorization = "Bearer secret://collector-token" }

The messages and services are OpenTelemetry's, the sending is ours: its exporters tell neither why they failed nor when
to come back, and try again by themselves for as long as a shutdown may last.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol
from weakref import ref

from msgspec import Struct

from agentrt import options
from agentrt.errors import CallError, PermanentError, ThrottledError, TransientError
from agentrt.plugins import Host
from agentrt.telemetry.http import TooLarge
from agentrt.telemetry.otlp_settings import Destination, Given, destination, wants_delta
from agentrt.telemetry.otlp_settings import Protocol as Wire
from agentrt.telemetry.secret_headers import SecretHeaders
from agentrt.telemetry.signals import Batch, Resource, Signal
from agentrt.telemetry.suppress import instrumentation_suppressed
from agentrt.telemetry.wanted import SIGNALS, wanted

__all__ = ["Jaeger", "Otlp"]

logger = logging.getLogger("agentrt.telemetry")

GRACE = 1.0
"""Seconds that the exporter's limit is longer than ours, so that ours, which names the address, is told."""


class _Sends(Protocol):
    """One signal's way out. `headers`: what goes with each message, with their secrets resolved."""

    headers: Mapping[str, str]

    async def send(self, message: Any, /) -> Any: ...

    async def aclose(self) -> None: ...


class _Part(Struct, frozen=True, eq=False):
    """What one request has of a batch."""

    signal: Signal
    items: tuple[Any, ...]

    @property
    def count(self) -> int:
        """Spans, points or lines in it."""
        return (
            sum(len(metric.points) for metric in self.items) if self.signal == "metrics" else len(self.items)
        )


class Otlp:
    """Sends spans, metrics and log lines by OTLP.

    `endpoint`: the base ("http://localhost:4318"; "http://localhost:4317" for gRPC), to which HTTP adds `/v1/traces`,
    `/v1/metrics` and `/v1/logs`. `protocol`: "http/protobuf" (default) or "grpc". `headers`: sent with each request;
    `secret://` references in them are resolved when the backend opens, and anew when the server refuses them.
    `timeout`: seconds that a batch may take, all of it (10). `compression`: "gzip" or "none" (gzip, but none to a
    server on this machine). `certificate`: a file with the authorities to trust; `client_certificate`, `client_key`:
    our own. `insecure`: no TLS, for a gRPC endpoint without http:// or https://. `signals`: what to send. `delta`:
    metrics hold what came since the last batch, not since the start (False).

    What is not given is taken from OTEL_EXPORTER_OTLP_*, each signal's own variables first. Raises `ConfigError` for
    what cannot be meant. A signal that fails does not hold up the others, and what was delivered of a batch is not
    sent again with the rest of it.
    """

    name = "otlp"

    def __init__(
        self,
        *,
        endpoint: str | None = None,
        protocol: Wire | None = None,
        headers: dict[str, str] | None = None,
        timeout: float | None = None,
        compression: Literal["gzip", "none"] | None = None,
        certificate: Path | None = None,
        client_certificate: Path | None = None,
        client_key: Path | None = None,
        insecure: bool | None = None,
        signals: Sequence[str] = SIGNALS,
        delta: bool | None = None,
    ) -> None:
        given = Given(
            None if endpoint is None else options.text("endpoint", endpoint),
            protocol,
            headers,
            timeout,
            compression,
            None if certificate is None else Path(certificate),
            None if client_certificate is None else Path(client_certificate),
            None if client_key is None else Path(client_key),
            insecure,
        )
        self.signals = wanted(signals)
        self.destinations = {signal: destination(signal, given, os.environ) for signal in self.signals}
        """Where each signal goes."""
        self.delta = wants_delta(os.environ) if delta is None else delta
        self._limit = max(target.timeout for target in self.destinations.values())
        self.timeout = self._limit + GRACE
        self._headers = {
            signal: SecretHeaders(target.headers) for signal, target in self.destinations.items()
        }
        self._senders: dict[Signal, _Sends] = {}
        self._process = os.getpid()
        self._messages: Any = None
        self._batch: Batch | None = None
        self._left: list[_Part] = []
        self._refused: CallError | None = None
        self._last: ref[Batch] | None = None
        self._lost: Counter[Signal] = Counter()
        self._told: set[Signal] = set()

    async def open(self, host: Host, /) -> None:
        """Look up the secrets in the headers."""
        for headers in self._headers.values():
            await headers.open(host)

    async def export(self, batch: Batch, /) -> None:
        """Deliver `batch` within `timeout`. Raises TransientError, ThrottledError or PermanentError."""
        if batch is not self._batch:
            self._batch, self._refused, self._last = batch, None, ref(batch)
            self._lost.clear()
            self._left = [part for part in _parts(batch) if part.signal in self.destinations]
        try:
            with instrumentation_suppressed():
                async with asyncio.timeout(self._limit):
                    await self._deliver(batch.resource)
        except TimeoutError as error:
            signal = self._left[-1].signal
            raise TransientError(
                f"{self.name} at {self.destinations[signal].url}: no answer within {self._limit:g} s"
            ) from error
        self._batch, refused = None, self._refused
        if refused is not None:
            raise refused

    def undelivered(self, batch: Batch, /) -> dict[Signal, int]:
        """How many spans, points and lines of `batch` did not arrive, as far as is known: those that were refused, and
        those not yet sent."""
        if self._last is None or self._last() is not batch:
            return batch.counts
        counts = Counter(self._lost)
        for part in list(self._left):
            counts[part.signal] += part.count
        return dict(counts)

    async def aclose(self) -> None:
        """Close the connections."""
        senders, self._senders = self._senders, {}
        for sender in senders.values():
            await sender.aclose()

    async def _deliver(self, resource: Resource) -> None:
        left = self._left
        later: CallError | None = None
        held_up: set[Signal] = set()
        while part := next((part for part in left if part.signal not in held_up), None):
            # Last from now on: should time run out in it, the others come first the next time.
            left[:] = [*(each for each in left if each is not part), part]
            items = part.items
            try:
                await self._send(part, resource)
                left.pop()
            except TooLarge as error:
                middle = len(items) // 2
                if middle:
                    left[-1:] = [_Part(part.signal, items[:middle]), _Part(part.signal, items[middle:])]
                else:
                    self._lose(part, error)
                    left.pop()
            except PermanentError as error:
                self._lose(part, error)
                left.pop()
            except CallError as error:
                later = later or _throttled(error)
                held_up.add(part.signal)
        if later is not None:
            raise later

    def _lose(self, part: _Part, error: CallError, count: int | None = None) -> None:
        """All of `part` is lost, or `count` of it."""
        self._lost[part.signal] += part.count if count is None else min(max(0, count), part.count)
        self._refused = self._refused or error

    async def _send(self, part: _Part, resource: Resource) -> None:
        signal = part.signal
        if self._messages is None:
            from agentrt.telemetry.otlp_messages import Messages

            self._messages = Messages()
        message = getattr(self._messages, signal)(part.items, resource)
        response = await self._headers[signal].through(
            lambda headers: self._sender(signal, headers).send(message)
        )
        partial = response.partial_success
        rejected = sum(
            getattr(partial, name, 0)
            for name in ("rejected_spans", "rejected_data_points", "rejected_log_records")
        )
        where = f"{self.name} at {self.destinations[signal].url}"
        if rejected:
            what = "points of metrics" if signal == "metrics" else signal
            said = f"{where} rejected {rejected} {what}: {partial.error_message}"
            self._lose(part, PermanentError(said), rejected)
        elif partial.error_message and signal not in self._told:
            self._told.add(signal)  # a warning of the collector's: everything was taken
            logger.warning("%s took the %s and says: %s", where, signal, partial.error_message)

    def _sender(self, signal: Signal, headers: Mapping[str, str]) -> _Sends:
        if self._process != os.getpid():
            # Forked: the connections are the parent's.
            self._process, self._senders = os.getpid(), {}
        sender = self._senders.get(signal)
        if sender is None:
            sender = self._senders[signal] = self._make(self.destinations[signal])
        sender.headers = headers
        return sender

    def _make(self, target: Destination) -> _Sends:
        if target.protocol == "grpc":
            from agentrt.telemetry.otlp_grpc import OtlpGrpc

            return OtlpGrpc(self.name, target)
        from agentrt.telemetry.otlp_http import OtlpHttp

        return OtlpHttp(self.name, target)


class Jaeger(Otlp):
    """Jaeger, which takes traces by OTLP. `endpoint`: its OTLP/HTTP port ("http://127.0.0.1:4318"). `timeout`:
    seconds that a batch may take (10). `headers`: for what stands before it, `secret://` references resolved."""

    name = "jaeger"

    def __init__(
        self,
        *,
        endpoint: str = "http://127.0.0.1:4318",
        headers: dict[str, str] | None = None,
        timeout: float = 10.0,
    ) -> None:
        super().__init__(
            endpoint=endpoint, protocol="http/protobuf", headers=headers, timeout=timeout, signals=("spans",)
        )


def _throttled(error: CallError) -> CallError:
    """Whoever says when to come back is busy, not broken, whatever the status was."""
    if isinstance(error, TransientError) and error.retry_after is not None:
        throttled = ThrottledError(str(error), retry_after=error.retry_after)
        throttled.__cause__ = error
        return throttled
    return error


def _parts(batch: Batch) -> Iterator[_Part]:
    if batch.spans:
        yield _Part("spans", batch.spans)
    if batch.metrics:
        yield _Part("metrics", batch.metrics)
    if batch.logs:
        yield _Part("logs", batch.logs)
