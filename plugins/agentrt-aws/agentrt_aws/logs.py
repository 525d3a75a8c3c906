"""The backend `cloudwatch_logs`."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec

from agentrt import options
from agentrt.errors import ConfigError, PermanentError
from agentrt.telemetry.delivery import GRACE, Delivery, Part, Rejected, cut_texts, parts
from agentrt.telemetry.signals import Batch, LogLine, Signal
from agentrt_aws.client import AwsClient, Place
from agentrt_aws.ids import xray_trace_id

__all__ = ["CloudWatchLogs", "encode"]

TABLE = "[telemetry.cloudwatch_logs]"
REQUEST_BYTES = 1_000_000
"""Of the 1,048,576 that the service takes; here of the request as it is sent, which escapes our JSON once more."""
REQUEST_EVENTS = 10_000
EVENT_OVERHEAD = 60
"""Bytes around each event in the request. The service itself counts 26."""
EVENT_BYTES = 256 * 1024 - 26
REQUEST_SPAN_MS = 24 * 3600 * 1000
RETENTIONS = (
    1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653,
)  # fmt: skip
CUTS = (64_000, 8_000, 1_000)
"""Characters that texts of an event that is too large are cut to, until it fits."""


class CloudWatchLogs:
    """Log lines, as JSON.

    `log_group` (/agentrt/SERVICE), `log_stream` (HOST-PID): where they go; `create` (True): both are made if they are
    missing. `retention`: days that a group made here keeps its lines (for ever). `region`, `profile`, `endpoint`: as
    boto finds them. `interval`: seconds between two batches (5.0). `timeout`: seconds for one batch (10.0).
    """

    signals: tuple[Signal, ...] = ("logs",)

    def __init__(
        self,
        *,
        log_group: str | None = None,
        log_stream: str | None = None,
        create: bool = True,
        retention: int | None = None,
        region: str | None = None,
        profile: str | None = None,
        endpoint: str | None = None,
        interval: float = 5.0,
        timeout: float = 10.0,
    ) -> None:
        if log_group is not None and not re.fullmatch(r"[A-Za-z0-9_./#-]{1,512}", log_group):
            raise ConfigError(f"log_group may have letters, digits and _ . / # -, not {log_group!r}")
        if log_stream is not None and not re.fullmatch(r"[^:*]{1,512}", log_stream):
            raise ConfigError(f"log_stream must have no : and no *, unlike {log_stream!r}")
        if retention is not None and retention not in RETENTIONS:
            raise ConfigError(
                f"retention must be one of {', '.join(map(str, RETENTIONS))} days, not {retention!r}"
            )
        self.interval = options.seconds("interval", interval)
        self.timeout = options.seconds("timeout", timeout) + GRACE
        self.log_group = log_group
        self.log_stream = log_stream
        self._create = create
        self._retention = retention
        place = Place(TABLE, region=region, profile=profile, endpoint=endpoint, timeout=timeout)
        self._client = AwsClient("logs", place)
        self._delivery = Delivery(TABLE, self._parts, self._send, signal="logs", timeout=timeout)
        self.undelivered = self._delivery.undelivered

    async def export(self, batch: Batch, /) -> None:
        if self.log_group is None:
            self.log_group = f"/agentrt/{re.sub(r'[^A-Za-z0-9_./#-]', '_', batch.resource.service)}"[:512]
        if self.log_stream is None:
            self.log_stream = re.sub("[:*]", "_", f"{socket.gethostname()}-{os.getpid()}")
        await self._delivery.deliver(batch)

    async def aclose(self) -> None:
        await self._client.aclose()

    def _parts(self, batch: Batch) -> Iterator[Part]:
        service = batch.resource.service
        lines = sorted(batch.logs, key=lambda line: line.time_ns)
        events = [(line.time_ns // 1_000_000, encode(line, service).decode()) for line in lines]
        while events:
            # What is further apart than a day must not be in one request.
            ends = events[0][0] + REQUEST_SPAN_MS
            near = [event for event in events if event[0] < ends]
            events = events[len(near) :]
            yield from parts(
                near, count=REQUEST_EVENTS, size=REQUEST_BYTES, size_of=lambda event: len(json.dumps(event[1])),
                each=EVENT_OVERHEAD,
            )  # fmt: skip

    async def _send(self, part: Part) -> None:
        request = {
            "logGroupName": self.log_group,
            "logStreamName": self.log_stream,
            "logEvents": [{"timestamp": time, "message": text} for time, text in part.items],
        }
        try:
            answer = await self._client.call("put_log_events", request)
        except PermanentError as error:
            if not self._create or _code(error) != "ResourceNotFoundException":
                raise
            await self._make()
            answer = await self._client.call("put_log_events", request)
        _check(answer.get("rejectedLogEventsInfo") or {}, len(part.items))

    async def _make(self) -> None:
        """The group and the stream, whichever is missing."""
        group = {"logGroupName": self.log_group}
        if await self._made("create_log_group", group) and self._retention is not None:
            await self._client.call("put_retention_policy", {**group, "retentionInDays": self._retention})
        await self._made("create_log_stream", {**group, "logStreamName": self.log_stream})

    async def _made(self, operation: str, request: dict[str, Any]) -> bool:
        """False if it was there already, perhaps made by another process just now."""
        try:
            await self._client.call(operation, request)
        except PermanentError as error:
            if _code(error) != "ResourceAlreadyExistsException":
                raise
            return False
        return True


def encode(line: LogLine, service: str) -> bytes:
    """A line as JSON, cut until it is at most `EVENT_BYTES` long."""
    value = _value(line, service)
    encoded = _json(value)
    for length in CUTS:
        if len(encoded) <= EVENT_BYTES:
            return encoded
        encoded = _json({**cut_texts(value, length), "truncated": True})
    if len(encoded) > EVENT_BYTES:
        encoded = _json({**cut_texts(value, CUTS[-1]), "attributes": {}, "truncated": True})
    return encoded


def _value(line: LogLine, service: str) -> dict[str, Any]:
    time = datetime.fromtimestamp(line.time_ns // 1000 / 1e6, UTC)
    value: dict[str, Any] = {
        "time": time.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "level": line.level,
        "message": line.message,
        "logger": line.logger,
        "service": service,
    }
    if line.trace_id is not None:
        value["trace_id"] = line.trace_id
        # In this form the consoles of X-Ray and CloudWatch find it.
        value["xray_trace_id"] = xray_trace_id(line.trace_id)
    if line.span_id is not None:
        value["span_id"] = line.span_id
    if line.exception is not None:
        value["exception"] = line.exception
    if line.attributes:
        value["attributes"] = line.attributes
    return value


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value, enc_hook=str)


def _code(error: PermanentError) -> str:
    from agentrt_aws.failures import code_of

    return code_of(error.__cause__)


def _check(rejected: dict[str, int], count: int) -> None:
    """The service takes a request and says which of its events, by their order, it threw away."""
    old = max(rejected.get("tooOldLogEventEndIndex", 0), rejected.get("expiredLogEventEndIndex", 0))
    new = count - rejected.get("tooNewLogEventStartIndex", count)
    if old or new:
        raise Rejected(
            f"{TABLE} {old + new} of {count} log lines were refused: {old} too old (more than 14 days, or than the "
            f"group's retention), {new} more than 2 hours in the future. Check the machine's clock",
            count=old + new,
        )
