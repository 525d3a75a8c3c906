"""Who sends the telemetry of a runtime: the service, and which of its instances."""

from __future__ import annotations

import os

from agentrt.config.sections import TelemetrySection
from agentrt.telemetry.signals import Resource

__all__ = ["INSTANCE", "resource_of"]

INSTANCE = "service.instance.id"


def resource_of(settings: TelemetrySection) -> Resource:
    """The resource of a runtime in this process; another one each time, unless `settings` give an id.

    Without an id of each, the totals of several processes of one service are the same series to whoever stores them,
    and each writes over the others'. OpenTelemetry's conventions recommend a random UUID.
    """
    return Resource(
        {"service.name": settings.service or "agentrt", INSTANCE: _random_uuid(), **settings.resource}
    )


def _random_uuid() -> str:
    """Of version 4 (RFC 9562). By hand, for the module `uuid` takes 5 ms to import."""
    bits = int.from_bytes(os.urandom(16), "big")
    bits = bits & ~(0xF << 76) | 4 << 76  # the version
    bits = bits & ~(0x3 << 62) | 2 << 62  # the variant
    digits = f"{bits:032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
