"""What is done while exporting leaves no telemetry of its own: it would be exported, too, and so for ever."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

__all__ = ["instrumentation_suppressed"]

# Instrumentation packages of different ages look at different keys.
_PLAIN_KEYS = ("suppress_instrumentation", "suppress_http_instrumentation")


@contextmanager
def instrumentation_suppressed() -> Generator[None]:
    """Inside, OpenTelemetry's instrumentation of HTTP clients, gRPC and the like makes no spans."""
    from opentelemetry import context

    inside = context.get_current()
    keys = (context._SUPPRESS_INSTRUMENTATION_KEY, context._SUPPRESS_HTTP_INSTRUMENTATION_KEY)
    for key in (*keys, *_PLAIN_KEYS):
        inside = context.set_value(key, True, inside)
    token = context.attach(inside)
    try:
        yield
    finally:
        context.detach(token)
