"""Telemetry: what becomes of the record of each call. Backends are plugins of the group `agentrt.telemetry`."""

from agentrt.telemetry.protocol import Collect, TelemetryBackend, combine

__all__ = ["Collect", "TelemetryBackend", "combine"]
