"""Backends that keep what they get and fail as told, and what to offer them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from agentrt.telemetry import Batch, LogLine, Metric, Resource, Span
from agentrt.telemetry.exporting import Exporting
from agentrt.telemetry.meter import Meter
from agentrt.telemetry.processor import Processor
from agentrt.telemetry.redaction import Redactor

__all__ = ["Kept", "exporting", "line", "losses", "processor", "span", "threads", "until"]

RESOURCE = Resource({"service.name": "test"})


class Kept:
    """Keeps what is delivered. `outcomes`: of the first exports, one each; an exception is raised, a function called
    with the batch, None is a success. `signals`, `delta`, `interval`, `batch_size`, `timeout` as for any backend."""

    def __init__(
        self,
        *outcomes: BaseException | Callable[[Batch], Any] | None,
        signals: Iterable[str] = ("spans", "metrics", "logs"),
        delta: bool = False,
        interval: float = 0.02,
        batch_size: int = 512,
        timeout: float = 10.0,
    ) -> None:
        self.outcomes = list(outcomes)
        self.signals = tuple(signals)
        self.delta = delta
        self.interval = interval
        self.batch_size = batch_size
        self.timeout = timeout
        self.batches: list[Batch] = []
        self.tries = 0
        self.opened = 0
        self.closed = 0

    async def open(self, host: Any) -> None:
        self.opened += 1

    def export(self, batch: Batch, /) -> Any:
        self.tries += 1
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if isinstance(outcome, BaseException):
            raise outcome
        returned = None if outcome is None else outcome(batch)
        self.batches.append(batch)
        return returned

    async def aclose(self) -> None:
        self.closed += 1

    @property
    def spans(self) -> list[Span]:
        return [each for batch in list(self.batches) for each in batch.spans]

    @property
    def lines(self) -> list[LogLine]:
        return [each for batch in list(self.batches) for each in batch.logs]

    @property
    def metrics(self) -> dict[str, Metric]:
        """The last that came of each metric."""
        return {each.name: each for batch in list(self.batches) for each in batch.metrics}

    def named(self, name: str) -> Span:
        """The one span of this name."""
        (found,) = [each for each in self.spans if each.name == name]
        return found


def exporting(backend: Any, *, name: str = "kept", meter: Meter | None = None, **options: Any) -> Exporting:
    meter = Meter() if meter is None else meter
    return Exporting(name, backend, meter=meter, resource=RESOURCE, **options)


def processor(*backends: Any, meter: Meter | None = None, queue: int = 20_000, **options: Any) -> Processor:
    """A processor before `backends`, as the facade makes it."""
    meter = Meter() if meter is None else meter
    made: list[Processor] = []
    exporters = [
        exporting(
            backend, name=f"backend{number}", meter=meter, dropped=lambda *loss: made[0].note_dropped(*loss)
        )
        for number, backend in enumerate(backends)
    ]
    options.setdefault("redactor", Redactor())
    made.append(Processor(meter=meter, exporters=exporters, limit=queue, **options))
    made[0].start()
    return made[0]


def span(name: str = "work", **fields: Any) -> Span:
    return Span(name, "a" * 32, "b" * 16, None, 1, 2, **fields)


def line(message: str = "hello", **fields: Any) -> LogLine:
    return LogLine(1, "info", message, "test", **fields)


def losses(exporter: Exporting) -> dict[str, int]:
    """What was lost, by reason."""
    sums: Counter[str] = Counter()
    for (_, reason), count in exporter.report().lost.items():
        sums[reason] += count
    return dict(sums)


def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    """Wait for other threads."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


def threads(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]
