"""agentrt's spans in Zipkin."""

from agentrt_zipkin.backend import Zipkin

__all__ = ["Zipkin"]
