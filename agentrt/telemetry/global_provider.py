"""The tracer provider that the process has already: our spans go there, too, as one library's among others.

Whoever set it up (a vendor's SDK, `opentelemetry-instrument`) expects to find an agent's runs beside everything else.
"""

from __future__ import annotations

import sys
from typing import Any

from agentrt.telemetry.signals import Batch, Signal

__all__ = ["GlobalProvider", "existing_provider", "mark_as_ours"]

_OURS = "_agentrt_is_listening"
SCOPE = "agentrt"
"""The library whose spans ours are."""


def existing_provider() -> Any | None:
    """The SDK's tracer provider that somebody else registered; None if there is none. Imports nothing."""
    trace = sys.modules.get("opentelemetry.trace")
    provider = None if trace is None else trace._TRACER_PROVIDER
    if provider is None or hasattr(provider, _OURS) or not hasattr(provider, "_active_span_processor"):
        return None
    return provider


def mark_as_ours(provider: Any) -> None:
    """Say that `provider` was registered by us, to listen to other libraries: it delivers nothing itself."""
    setattr(provider, _OURS, True)


class GlobalProvider:
    """A backend that hands our spans to the span processors of `provider`, redacted as for all others."""

    signals: tuple[Signal, ...] = ("spans",)
    interval = 0.5

    def __init__(self, provider: Any) -> None:
        self._provider = provider

    def export(self, batch: Batch, /) -> None:
        from agentrt.telemetry.otel_sdk import readable_span

        processor = self._provider._active_span_processor
        for span in batch.spans:
            if span.scope != SCOPE:
                continue  # it came from there: handed back it would come again, and so for ever
            processor.on_end(readable_span(span, batch.resource))

    async def aclose(self) -> None:
        """Have the provider deliver what it holds back; it is not ours to shut down."""
        self._provider.force_flush(2_000)
