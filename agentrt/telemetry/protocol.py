"""What a telemetry backend is. A plugin of the group `agentrt.telemetry` implements `TelemetryBackend`:

    class Webhook:
        def __init__(self, *, url: str) -> None:        # its options: the table [telemetry.webhook]
            self.url = url

        async def export(self, batch: Batch) -> None:   # or a plain `def`
            ...

Each backend works in a thread of its own, behind a bounded queue: it may be slow, hang or fail without an agent
noticing. What it loses is counted, and told at the end.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol

from msgspec import Struct

from agentrt.call import Call, Quick
from agentrt.telemetry.signals import Batch

__all__ = ["CallCollector", "Collect", "QuickCollect", "TelemetryBackend", "combine"]

logger = logging.getLogger("agentrt.telemetry")

Collect = Callable[[Call[Any]], object]
"""Takes each finished call, once; the argument of the telemetry stage."""


class QuickCollect(Struct, frozen=True, eq=False):
    """A `Collect` that also has its usual case as source, for the function that the composer writes."""

    collect: Collect
    quick: Quick

    def __call__(self, call: Call[Any], /) -> None:
        self.collect(call)


class TelemetryBackend(Protocol):
    """Delivers batches of spans, metrics and log lines. The constructor's keyword-only parameters are its options.

    Optional attributes, of the class or the object:
        signals         what it wants of ("spans", "metrics", "logs"); all of them by default
        delta           True: metrics hold what came since the last batch; by default what came since the start
        interval        seconds between two batches (5.0; metrics too), `batch_size` (512) items fill one earlier
        timeout         seconds that one `async def export` may take (10.0)

    Optional methods, run in the backend's thread like `export`: `async def open(self, host)` before the first batch,
    `async def aclose(self)` after the last one. `def undelivered(self, batch)` is asked after an export, in any thread:
    how many of its spans, points of metrics and lines did not arrive, {"logs": 2}. Without it all of a batch did, or
    nothing.
    """

    def export(self, batch: Batch, /) -> Awaitable[None] | None:
        """Deliver `batch`, as a coroutine function or a plain one; returning means delivered.

        Raise `TransientError` or `ThrottledError(retry_after=seconds)` (or let an `OSError` through) for what may
        work later: it is tried again while there is time. Any other error loses the batch; the first is logged.
        """
        ...


class CallCollector(Protocol):
    """A backend that sees each finished call itself, on the call path: for tests and for what must not be late.

    Optional: `open`, `aclose` as above but in the runtime's loop; `is_used`: False keeps it off the call path;
    `redact`: the runtime sets it to a function that takes the secrets out of a text. The call itself has them still.
    """

    def collect(self, call: Call[Any], /) -> None:
        """Note a finished call: `call.record` says what happened.

        Be quick: append to something bounded. Keep neither the call nor its errors for long: they hold on to the
        request and to the frames of the traceback. An error raised here is logged once and never reaches the caller.
        """
        ...


def combine(collectors: Iterable[CallCollector]) -> Collect | None:
    """One function that hands a call to all `collectors`; None if there is none, so that the stage costs nothing."""
    each = [_guarded(collector) for collector in collectors if getattr(collector, "is_used", True)]
    if not each:
        return None
    if len(each) == 1:
        return each[0]

    def collect_all(call: Call[Any]) -> None:
        for collect in each:
            collect(call)

    return collect_all


def _guarded(collector: CallCollector) -> Collect:
    """A backend that fails must not fail the call that it was told about."""
    collect = collector.collect
    failures = 0

    def guarded(call: Call[Any]) -> None:
        nonlocal failures
        try:
            collect(call)
        except Exception:
            failures += 1
            if failures == 1:
                name = f"{type(collector).__module__}.{type(collector).__qualname__}"
                logger.exception("the telemetry backend %s lost a call; further losses are not logged", name)

    return guarded
