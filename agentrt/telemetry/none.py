"""No telemetry."""

from __future__ import annotations

from typing import Any, ClassVar

from agentrt.call import Call

__all__ = ["NoTelemetry"]


class NoTelemetry:
    """Takes nothing: with it alone, calls are not even handed over."""

    is_used: ClassVar[bool] = False

    def collect(self, call: Call[Any], /) -> None:
        del call
