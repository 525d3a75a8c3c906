"""Text for a terminal: which characters and colours it has, and how names and durations are written."""

from __future__ import annotations

import os
import shutil
from typing import IO, Literal, Self
from unicodedata import combining, east_asian_width

from msgspec import Struct

__all__ = ["ASCII", "Colour", "Look", "Strokes", "begun", "cut", "duration", "printable", "width_of"]

Colour = Literal["bold", "dim", "red", "green", "yellow", "cyan", "magenta"]
_CODES: dict[Colour, str] = {
    "bold": "1",
    "dim": "2",
    "red": "1;31",
    "green": "32",
    "yellow": "33",
    "cyan": "36",
    "magenta": "35",
}
WIDTH = 110
"""Columns where no terminal says how many there are."""

MIN_WIDTH = 60


class Strokes(Struct, frozen=True):
    """The characters of a drawing."""

    fork: str = "├ "
    last: str = "└ "
    bar: str = "│ "
    own: str = "█"
    below: str = "━"
    wait: str = "░"
    brief: str = "▏"
    moment: str = "◆"
    failed: str = "✗ "
    more: str = "…"
    dot: str = " · "
    arrow: str = " → "
    micro: str = "µs"
    at_most: str = "≤"


ASCII = Strokes(
    fork="|- ",
    last="`- ",
    bar="|  ",
    own="#",
    below="=",
    wait=".",
    brief="|",
    moment="*",
    failed="x ",
    more="...",
    dot=", ",
    arrow=" -> ",
    micro="us",
    at_most="<=",
)


class Look(Struct, frozen=True):
    """How to draw: columns to fill, characters, and whether there are colours."""

    width: int = WIDTH
    strokes: Strokes = Strokes()
    colours: bool = False

    @classmethod
    def of(cls, stream: IO[str] | None, *, width: int | None = None) -> Self:
        """What `stream` can show: its terminal's columns and colours (never with NO_COLOR), its encoding."""
        is_terminal = stream is not None and not stream.closed and stream.isatty()
        if width is None:
            width = shutil.get_terminal_size((WIDTH, 24)).columns if is_terminal else WIDTH
        coloured = is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        strokes = Strokes()
        try:
            "".join(getattr(strokes, name) for name in Strokes.__struct_fields__).encode(
                getattr(stream, "encoding", None) or "ascii"
            )
        except (UnicodeEncodeError, LookupError):
            strokes = ASCII
        return cls(max(MIN_WIDTH, width), strokes, coloured)

    def paint(self, text: str, colour: Colour | None) -> str:
        if not self.colours or colour is None or not text:
            return text
        return f"\033[{_CODES[colour]}m{text}\033[0m"

    def plain(self, text: str) -> str:
        """Words of ours in the characters that there are."""
        return text if self.strokes is not ASCII else text.replace(" → ", " -> ")


def duration(seconds: float, *, micro: str = "µs") -> str:
    """A duration with its unit and about three digits: "412 ms", "3.42 s", "2 min 05 s"."""
    if seconds < 0.0009995:
        return f"{seconds * 1e6:.0f} {micro}"
    if seconds < 0.9995:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def printable(text: str) -> str:
    """`text` on one line, without what a terminal would take for a command."""
    return "".join(char if char.isprintable() else " " if char.isspace() else "?" for char in text)


def cut(text: str, width: int, more: str = "…") -> str:
    """`text` in `width` columns at most; what is too long loses its middle, for names differ at both ends."""
    if width_of(text) <= width:
        return text
    room = width - len(more)
    if room < 1:
        return more[: max(0, width)]
    head, tail = room - room // 3, room // 3
    return _fitting(text, head) + more + (_fitting(text[::-1], tail)[::-1] if tail else "")


def begun(text: str, width: int, more: str) -> str:
    """As much of a sentence as fits in `width` columns."""
    return text if width_of(text) <= width else _fitting(text, max(0, width - len(more))) + more


def _fitting(text: str, width: int) -> str:
    for place, char in enumerate(text):
        width -= _char_width(char)
        if width < 0:
            return text[:place]
    return text


def width_of(text: str) -> int:
    return len(text) if text.isascii() else sum(map(_char_width, text))


def _char_width(char: str) -> int:
    if combining(char):
        return 0
    return 2 if east_asian_width(char) in "WF" else 1
