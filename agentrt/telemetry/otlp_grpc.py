"""OTLP over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1.logs_service_pb2_grpc import LogsServiceStub
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import MetricsServiceStub
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub

from agentrt.errors import CallError, ConfigError, PermanentError, ThrottledError, TransientError
from agentrt.telemetry.http import KeyRefused, TooLarge
from agentrt.telemetry.otlp_settings import Destination
from agentrt.telemetry.signals import Signal

__all__ = ["OtlpGrpc"]

STUBS: Mapping[Signal, Any] = {
    "spans": TraceServiceStub,
    "metrics": MetricsServiceStub,
    "logs": LogsServiceStub,
}

RECONNECT = 1000
"""Milliseconds between two attempts to connect, at most; gRPC's own two minutes would outlast any restart."""

NOBODY = ("Connection refused", "Domain name not found", "lookup failed", "No route to host")

REPEATABLE = frozenset(
    {"CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS"}
)
"""The codes that the OTLP specification wants repeated, besides RESOURCE_EXHAUSTED with a time to wait."""


class OtlpGrpc:
    """Sends the messages of one signal to its `destination`. `headers`: with their secrets resolved.

    By the plain, threaded client and a future, which can be cancelled: grpc.aio logs errors of its own when two event
    loops of a process use it.
    """

    def __init__(self, name: str, destination: Destination) -> None:
        self.headers: Mapping[str, str] = {}
        self._name = name
        self._destination = destination
        self._channel: Any = None
        self._export: Any = None

    async def send(self, message: Any) -> Any:
        """The response message. Raises TransientError, ThrottledError, TooLarge or PermanentError."""
        if self._export is None:
            self._channel = _channel(self._destination)
            self._export = STUBS[self._destination.signal](self._channel).Export
        loop = asyncio.get_running_loop()
        done = asyncio.Event()
        call = self._export.future(
            message, timeout=self._destination.timeout, metadata=tuple(self.headers.items())
        )
        call.add_done_callback(lambda _: _wake(loop, done))
        try:
            await done.wait()
            return call.result()
        except grpc.RpcError as error:
            raise self._failure(error) from _refusal(error) or error
        finally:
            call.cancel()  # of no effect on one that is done

    async def aclose(self) -> None:
        channel, self._channel, self._export = self._channel, None, None
        if channel is not None:
            channel.close()

    def _failure(self, error: Any) -> CallError:
        target = self._destination
        code = error.code().name
        said = " ".join(str(error.details() or "").split())[:300]
        head = f"{self._name} at {target.url}: gRPC {code}" + (f": {said}" if said else "")
        wait = _retry_delay(error)
        if code == "RESOURCE_EXHAUSTED":
            if wait is not None:
                return ThrottledError(head, retry_after=wait)
            return TooLarge(head) if "larger than max" in said else PermanentError(head)
        if code in REPEATABLE:
            return TransientError(f"{head}. Does it run? Check {target.setting}", retry_after=wait)
        if code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
            return KeyRefused(f"{head}; check headers (OTEL_EXPORTER_OTLP_HEADERS)")
        if code in ("UNIMPLEMENTED", "NOT_FOUND"):
            return PermanentError(
                f"{head}; it takes no {target.signal}: check {target.setting}", fault="target"
            )
        return PermanentError(head)


def _wake(loop: asyncio.AbstractEventLoop, done: asyncio.Event) -> None:
    """Called in a thread of gRPC's."""
    try:
        loop.call_soon_threadsafe(done.set)
    except RuntimeError:
        pass  # the loop has ended meanwhile, and with it whoever waited


def _refusal(error: Any) -> ConnectionRefusedError | None:
    """What gRPC says only in words: that nobody took the connection, or that there is no such host."""
    said = str(error.details() or "")
    if error.code().name != "UNAVAILABLE" or not any(words in said for words in NOBODY):
        return None
    refused = ConnectionRefusedError(said)
    refused.__cause__ = error
    return refused


def _channel(target: Destination) -> Any:
    compression = grpc.Compression.Gzip if target.compression == "gzip" else grpc.Compression.NoCompression
    settings = [
        ("grpc.primary_user_agent", "agentrt"),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", RECONNECT),
    ]
    if not target.secure:
        return grpc.insecure_channel(target.url, options=settings, compression=compression)
    try:
        root, chain, key = (
            None if file is None else file.read_bytes()
            for file in (target.certificate, target.client_certificate, target.client_key)
        )
    except OSError as error:
        raise ConfigError(f"a certificate cannot be read: {error}") from error
    credentials = grpc.ssl_channel_credentials(root, key, chain)
    return grpc.secure_channel(target.url, credentials, options=settings, compression=compression)


def _retry_delay(error: Any) -> float | None:
    """The seconds of google.rpc.RetryInfo: alone in the trailing metadata, or among the details of the status."""
    trailing: Mapping[str, Any] = dict(error.trailing_metadata() or ())
    info = RetryInfo()
    found = False
    try:
        if "google.rpc.retryinfo-bin" in trailing:
            info.ParseFromString(trailing["google.rpc.retryinfo-bin"])
            found = True
        elif "grpc-status-details-bin" in trailing:
            details = Status.FromString(trailing["grpc-status-details-bin"]).details
            found = any(
                detail.Unpack(info) for detail in details if detail.type_url.endswith("/google.rpc.RetryInfo")
            )
    except DecodeError:
        return None  # the status itself says enough
    return info.retry_delay.seconds + info.retry_delay.nanos / 1e9 if found else None
