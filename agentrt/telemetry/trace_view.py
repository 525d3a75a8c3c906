"""The spans of this process, kept to be drawn: what `agentrt run --trace` looks at."""

from __future__ import annotations

import threading
from collections import deque
from typing import ClassVar

from agentrt import options
from agentrt.telemetry.signals import Batch, LogLine, Span
from agentrt.telemetry.span_tree import Tree, build_trees

__all__ = ["TraceView"]


class TraceView:
    """A backend that keeps the last `max_spans` (20,000) spans and as many log lines.

    `left_out` counts the spans that had to go. A run ends last, so that of a run too large the end is left.
    """

    signals: ClassVar[tuple[str, ...]] = ("spans", "logs")

    def __init__(self, *, max_spans: int = 20_000) -> None:
        self.max_spans = options.count("max_spans", max_spans)
        self.left_out = 0
        self._lock = threading.Lock()  # batches come in the backend's thread
        self._spans: deque[Span] = deque(maxlen=self.max_spans)
        self._logs: deque[LogLine] = deque(maxlen=self.max_spans)

    def export(self, batch: Batch, /) -> None:
        with self._lock:
            self.left_out += max(0, len(self._spans) + len(batch.spans) - self.max_spans)
            self._spans.extend(batch.spans)
            self._logs.extend(batch.logs)

    def trees(self) -> list[Tree]:
        """What is kept, as one tree for each trace, in order of time."""
        with self._lock:
            spans, logs = list(self._spans), list(self._logs)
        return build_trees(spans, logs)
