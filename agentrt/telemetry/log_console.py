"""Log lines on stderr: short ones for people, or what a file would have."""

from __future__ import annotations

import logging
import sys
import time
from typing import Literal, Protocol

from agentrt.telemetry.log_format import Entry, as_json, as_text, one_line, pairs, printable

__all__ = ["Console", "Shown", "Stderr"]

OUTCOMES = "agentrt.runs"
"""The logger that says that runs start and fail."""

MAX_SAID = 1000
"""So many different errors are remembered."""


class Console(Protocol):
    """Where people read. `say` writes a text and ends the line; `style` colours it if it will be seen in colour."""

    def say(self, text: str, /) -> None: ...

    def style(self, text: str, /, *styles: Literal["dim", "red", "yellow"]) -> str: ...


class Stderr:
    """stderr, without colours."""

    def say(self, text: str, /) -> None:
        if sys.stderr is None:
            return
        try:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()
        except (OSError, ValueError):  # closed: there is nobody to tell
            pass

    def style(self, text: str, /, *styles: Literal["dim", "red", "yellow"]) -> str:
        del styles
        return text


class Shown:
    """Shows entries on a console, as "json", as "text" with everything in it, or in short (None), with the time if
    `with_time`. In short, an error of agentrt's that comes again, with every turn of a conversation for example, is
    said once."""

    def __init__(
        self, console: Console, *, format: Literal["text", "json"] | None = None, with_time: bool = False
    ) -> None:
        self._console = console
        self._format = format
        self._with_time = with_time
        self._said: set[tuple[str, str]] = set()

    def show(self, entry: Entry, service: str) -> None:
        """Write `entry`, which is redacted."""
        if self._format == "json":
            self._console.say(as_json(entry, service).decode())
        elif self._format == "text":
            self._console.say(as_text(entry, service))
        elif not self._is_known(entry):
            self._console.say(self._short(entry))

    def _short(self, entry: Entry) -> str:
        """`LEVEL logger: message key=value`, unlike what a command itself says (`error: ...`)."""
        style: Literal["dim", "red", "yellow"] = "dim"
        if entry.number >= logging.WARNING:
            style = "red" if entry.number >= logging.ERROR else "yellow"
        level = self._console.style(entry.level.upper(), style)
        text = f"{level} {one_line(entry.logger)}: {printable(entry.message)}{pairs(entry.context)}"
        if entry.exception is not None:
            text = f"{text}\n{printable(entry.exception)}"
        if not self._with_time:
            return text
        clock = time.strftime("%H:%M:%S", time.localtime(entry.time_ns // 1_000_000_000))
        milliseconds = entry.time_ns // 1_000_000 % 1000
        return f"{self._console.style(f'{clock}.{milliseconds:03d}', 'dim')} {text}"

    def _is_known(self, entry: Entry) -> bool:
        """True for what was said before, and for how a run ended unless somebody follows runs: the command says it."""
        if entry.logger == OUTCOMES and not self._with_time:
            return True
        if entry.number < logging.ERROR or not entry.logger.startswith("agentrt."):
            return False
        what = (entry.logger, entry.message)
        if what in self._said:
            return True
        if len(self._said) < MAX_SAID:
            self._said.add(what)
        return False
