"""On which line of a TOML document each key stands. tomllib does not tell.

Runs only when a message or `agentrt explain` wants a line, on a document that tomllib has accepted: so this is no
parser, it only has to step over values without losing its place.
"""

from __future__ import annotations

import bisect
import re
import tomllib

from agentrt.decode import Path

__all__ = ["key_lines"]

_SPACE = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_KEY = re.compile(r"""[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'""")
_DOT = re.compile(r"[ \t]*\.[ \t]*")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"""(?:"{0,2})' + r"|'''.*?'''(?:'{0,2})" + r'|"(?:[^"\\\n]|\\.)*"' + r"|'[^'\n]*'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}\n#]*")


def key_lines(text: str) -> dict[Path, int]:
    """The 1-based line of every key and table header, by its path. Inside arrays nothing is noted, except for the
    header of the first table of an array of tables."""
    return _Scanner(text).scan()


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._ends = [match.start() for match in re.finditer("\n", text)]
        self._lines: dict[Path, int] = {}

    def scan(self) -> dict[Path, int]:
        table: Path = ()
        while self._next():
            if self._peek() == "[":
                width = 2 if self._text.startswith("[[", self._at) else 1
                self._at += width
                self._step(_SPACE)
                start = self._at
                table = self._key()
                self._note((), table, start)
                self._step(_SPACE)
                self._at += width
            else:
                self._pair(table)
        return self._lines

    def _pair(self, table: Path | None) -> None:
        """`key = value`; in a table inside an array (None) nothing is noted."""
        start = self._at
        key = self._key()
        if table is not None:
            self._note(table, key, start)
        self._step(_SPACE)
        self._at += 1  # the equals sign
        self._step(_SPACE)
        self._value(None if table is None else (*table, *key))

    def _value(self, path: Path | None) -> None:
        first = self._peek()
        if first in "\"'":
            self._step(_STRING)
        elif first == "[":
            self._items("]", None)
        elif first == "{":
            self._items("}", path)
        else:
            self._step(_SCALAR)

    def _items(self, end: str, path: Path | None) -> None:
        self._at += 1
        while self._next() and self._peek() != end:
            if self._peek() == ",":
                self._at += 1
            elif end == "}":
                self._pair(path)
            else:
                self._value(None)
        self._at += 1

    def _key(self) -> Path:
        parts: list[str] = []
        while True:
            part = self._step(_KEY)
            parts.append(tomllib.loads(f"k={part}")["k"] if part[0] in "\"'" else part)
            match = _DOT.match(self._text, self._at)
            if match is None:
                return tuple(parts)
            self._at = match.end()

    def _note(self, table: Path, key: Path, start: int) -> None:
        line = bisect.bisect_left(self._ends, start) + 1
        for length in range(1, len(key) + 1):
            self._lines.setdefault((*table, *key[:length]), line)

    def _next(self) -> bool:
        self._step(_SPACE)
        return self._at < len(self._text)

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _step(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        assert match is not None, f"not TOML at offset {self._at}"
        self._at = match.end()
        return match.group()
