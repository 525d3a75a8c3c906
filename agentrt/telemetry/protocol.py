"""What a telemetry backend is given. A plugin of the group `agentrt.telemetry` implements `TelemetryBackend`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from agentrt.call import Call

__all__ = ["Collect", "TelemetryBackend", "combine"]

logger = logging.getLogger("agentrt.telemetry")

Collect = Callable[[Call[Any]], object]
"""Takes each finished call, once; the argument of the telemetry stage."""


class TelemetryBackend(Protocol):
    """Takes finished calls. The constructor's keyword-only parameters are its options in `[telemetry.NAME]`.

    Optional: `async def open(self, host)` before the first call, `async def aclose(self)` at the end (send what is
    left there), and `is_used`: False keeps the backend off the call path altogether.
    """

    def collect(self, call: Call[Any], /) -> None:
        """Note a finished call: `call.record` says what happened.

        On the call path, so quick: append to something bounded, and let a task of the backend's own make spans and
        metrics of it. Keep neither the call nor its errors for long: they hold on to the request and to the frames
        of the traceback. An error raised here is logged once and never reaches the caller.
        """
        ...


def combine(backends: Iterable[TelemetryBackend]) -> Collect | None:
    """One function that hands a call to all `backends`; None if there is none, so that the stage costs nothing."""
    collectors = [_guarded(backend) for backend in backends if getattr(backend, "is_used", True)]
    if not collectors:
        return None
    if len(collectors) == 1:
        return collectors[0]

    def collect_all(call: Call[Any]) -> None:
        for collect in collectors:
            collect(call)

    return collect_all


def _guarded(backend: TelemetryBackend) -> Collect:
    """A backend that fails must not fail the call that it was told about."""
    collect = backend.collect
    failures = 0

    def guarded(call: Call[Any]) -> None:
        nonlocal failures
        try:
            collect(call)
        except Exception:
            failures += 1
            if failures == 1:
                name = f"{type(backend).__module__}.{type(backend).__qualname__}"
                logger.exception("the telemetry backend %s lost a call; further losses are not logged", name)

    return guarded
