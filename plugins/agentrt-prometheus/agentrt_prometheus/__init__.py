"""agentrt's metrics for Prometheus."""

from agentrt_prometheus.backend import Prometheus

__all__ = ["Prometheus"]
