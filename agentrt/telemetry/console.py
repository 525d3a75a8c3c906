"""Each run on the console, as a tree with its times, when it has ended.

[telemetry.console]
stream = "stderr"
"""

from __future__ import annotations

import sys
from typing import IO, ClassVar, Literal

from agentrt import options
from agentrt.errors import AgentrtError
from agentrt.telemetry.look import Look
from agentrt.telemetry.signals import Batch, Span
from agentrt.telemetry.span_tree import build_trees
from agentrt.telemetry.waterfall import waterfall

__all__ = ["Console"]

PATIENCE_NS = 60_000_000_000
"""A trace of which nothing came for this long, while others went on, has its root elsewhere."""


class Console:
    """Prints every finished trace: runs with all that is below them, and calls made outside of runs.

    `stream`: "stderr" or "stdout". `width`: columns; by default those of the terminal, 110 where there is none.
    `every`: print all of many similar calls, not only some and a count (False). `max_spans` (20,000): so many wait for
    the end of their trace at most; the longest waiting trace goes first, printed as far as it has come.

    A trace has ended when its root has. One whose root is in another process is printed after a minute of silence, or
    at the end.
    """

    signals: ClassVar[tuple[str, ...]] = ("spans",)
    interval: ClassVar[float] = 0.5
    """A run is printed soon after it has ended."""

    def __init__(
        self,
        *,
        stream: Literal["stderr", "stdout"] = "stderr",
        width: int | None = None,
        every: bool = False,
        max_spans: int = 20_000,
    ) -> None:
        self.stream = options.choice("stream", stream, ("stderr", "stdout"))
        self.width = None if width is None else options.count("width", width, minimum=40)
        self.every = every
        self.max_spans = options.count("max_spans", max_spans)
        self._waiting: dict[str, list[Span]] = {}
        self._count = 0

    def export(self, batch: Batch, /) -> None:
        """Keep the spans, and print the traces that have ended with them.

        Raises AgentrtError, and no OSError, if the stream takes nothing: a second try would print some of it twice.
        """
        ended: dict[str, None] = {}
        for span in batch.spans:
            # Moved to the end: the first trace is the one of which nothing came for longest.
            spans = self._waiting.pop(span.trace_id, [])
            self._waiting[span.trace_id] = spans
            spans.append(span)
            self._count += 1
            if span.parent_id is None:
                ended[span.trace_id] = None
        self._print([*ended, *self._silent(max((span.end_ns for span in batch.spans), default=0))])
        while self._count > self.max_spans:
            self._print([next(iter(self._waiting))])

    async def aclose(self) -> None:
        """Print what has not ended yet."""
        self._print(list(self._waiting))

    def _silent(self, now: int) -> list[str]:
        silent = []
        for trace_id, spans in self._waiting.items():
            if spans[-1].end_ns > now - PATIENCE_NS:
                break
            silent.append(trace_id)
        return silent

    def _print(self, traces: list[str]) -> None:
        spans: list[Span] = []
        for trace_id in dict.fromkeys(traces):
            spans += self._waiting.pop(trace_id)
        self._count -= len(spans)
        stream: IO[str] | None = getattr(sys, self.stream)  # now: it may have been replaced since
        if not spans or stream is None or stream.closed:
            return
        look = Look.of(stream, width=self.width)
        drawn = ["\n".join(waterfall(tree, look, every=self.every)) for tree in build_trees(spans)]
        text = "\n\n".join(drawn) + "\n\n"
        encoding = getattr(stream, "encoding", None) or "utf-8"
        try:
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            stream.flush()
        except OSError as error:
            why = error.strerror or type(error).__name__
            raise AgentrtError(f"telemetry.console: cannot write to {self.stream}: {why}") from error
