"""What `agentrt run --trace` and `--trace-html` show, and the page that `agentrt trace --html` writes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from agentrt.cli.terminal import Terminal
from agentrt.errors import ConfigError
from agentrt.telemetry.span_tree import Tree
from agentrt.telemetry.trace_view import TraceView

__all__ = ["RunTrace", "check_page", "write_page"]

MOST_RUNS = 100
"""More runs than this make a page too large to open."""

STDOUT = "-"


class RunTrace:
    """Shows the runs of a command: each drawn on stderr (`drawn`) when it has ended, all of them in a file (`page`).

    Raises ConfigError if the page could not be written.
    """

    def __init__(self, terminal: Terminal, *, drawn: bool, page: str | None) -> None:
        if page is not None:
            check_page(page, option="--trace-html")
        self.view = TraceView()
        self._terminal = terminal
        self._drawn = drawn
        self._page = page
        self._shown: set[str] = set()

    @property
    def backends(self) -> Sequence[tuple[str, TraceView]]:
        """What the runtime has to deliver its spans to."""
        return (("trace", self.view),)

    def draw(self) -> None:
        """Draw the runs that have come since the last time."""
        if not self._drawn:
            return
        from agentrt.telemetry.look import Look
        from agentrt.telemetry.waterfall import waterfall

        look = Look.of(sys.stderr)
        for tree in self.view.trees():
            if tree.trace_id not in self._shown:
                self._shown.add(tree.trace_id)
                self._terminal.say("\n" + "\n".join(waterfall(tree, look)))

    def end(self) -> None:
        """Draw what is left, and write the page. Raises ConfigError if it cannot be written."""
        trees = self.view.trees()
        if not trees:
            self._terminal.warning(
                "there is no trace to show: nothing was traced, or [telemetry] sample left it out"
            )
            return
        if self.view.left_out:
            self._terminal.warning(
                f"the trace is not whole: {self.view.left_out:,} spans were too many to keep"
            )
        self.draw()
        if self._page is not None:
            write_page(self._page, trees, self._terminal)


def check_page(page: str, *, option: str) -> None:
    """Raises ConfigError if a page could not be written there, before anything is done for it."""
    folder = os.path.dirname(page) or "."
    if not os.path.isdir(folder):
        raise ConfigError(f"{option} {page}: there is no folder {folder}")
    if os.path.isdir(page):
        raise ConfigError(f"{option} {page}: this is a folder; name a file")
    if page != STDOUT and not os.access(page if os.path.exists(page) else folder, os.W_OK):
        raise ConfigError(f"{option} {page}: it cannot be written; choose another place")


def write_page(page: str, trees: Sequence[Tree], terminal: Terminal) -> None:
    """Write the page of these runs to the file `page` ("-": to stdout). Raises ConfigError if that fails."""
    from agentrt.telemetry.timeline import timeline

    if len(trees) > MOST_RUNS:
        terminal.warning(f"the page has the last {MOST_RUNS} of {len(trees):,} runs")
    text = timeline(trees[-MOST_RUNS:])
    if page == STDOUT:
        terminal.line(text)
        return
    try:
        with open(page, "w", encoding="utf-8") as out:
            out.write(text)
    except OSError as error:
        raise ConfigError(f"cannot write {page}: {error.strerror or error}") from error
    terminal.note(f"the timeline is in {page}")
