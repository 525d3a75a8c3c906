"""agentrt's telemetry in Datadog: through the Agent, or straight to the intake."""

from agentrt_datadog.backend import Datadog

__all__ = ["Datadog"]
