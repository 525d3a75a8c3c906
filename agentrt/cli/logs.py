"""Log records and Python's warnings on stderr.

A record is `LEVEL logger: message`, unlike what the command itself says (`error: ...`): a failure that was logged and
got over must not look like the command's own. An error of agentrt's that comes again, with every turn of a conversation
for example, is said once.
"""

from __future__ import annotations

import logging
import warnings
from typing import TextIO

from agentrt.cli.terminal import Style, Terminal

__all__ = ["show_logs", "show_warnings"]

DEFAULT_LEVEL = "warning"
MAX_TOLD = 1000
"""So many different errors are remembered."""
_STYLES: dict[int, Style] = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "red"}


class _Handler(logging.Handler):
    """Writes `LEVEL logger: message`, with the time if records from "info" down are shown."""

    def __init__(self, terminal: Terminal, *, with_time: bool) -> None:
        super().__init__()
        self._terminal = terminal
        self._with_time = with_time
        self._told: set[tuple[str, str]] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.ERROR or not record.name.startswith("agentrt."):
            return bool(super().filter(record))
        what = (record.name, record.getMessage())
        if what in self._told:
            return False
        if len(self._told) < MAX_TOLD:
            self._told.add(what)
        return bool(super().filter(record))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._terminal.say(self.format(record))
        except Exception:
            self.handleError(record)

    def format(self, record: logging.LogRecord) -> str:
        style = _STYLES.get(record.levelno, "dim")
        text = f"{self._terminal.style(record.levelname, style)} {record.name}: {super().format(record)}"
        return f"{self._time(record)} {text}" if self._with_time else text

    def _time(self, record: logging.LogRecord) -> str:
        import time

        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        return self._terminal.style(f"{clock}.{int(record.msecs):03d}", "dim")


def show_logs(level: str | None, terminal: Terminal) -> None:
    """Send the records of all loggers from `level` ("warning") up to stderr; called again, it changes the level."""
    number = logging.getLevelNamesMapping()[(level or DEFAULT_LEVEL).upper()]
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler, _Handler):
            root.removeHandler(handler)
    root.addHandler(_Handler(terminal, with_time=number <= logging.INFO))
    root.setLevel(number)


def show_warnings(terminal: Terminal) -> None:
    """Show warnings of agentrt in one line, with the place only if that is the user's; all others as Python does."""
    as_python_does = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if file is None and category.__module__.startswith("agentrt"):
            terminal.warning(str(message))
        else:
            as_python_does(message, category, filename, lineno, file, line)

    warnings.showwarning = show
