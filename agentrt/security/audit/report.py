"""What a verification has found."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

__all__ = ["Kind", "Place", "Problem", "Report"]

TOLD = 50
"""So many problems, and notes of each kind, are told; the others are counted."""

Kind = Literal["edited", "missing", "order", "rebuilt", "checkpoint", "truncated", "foreign"]


class Problem(Struct, frozen=True):
    """What is wrong with one line. `line`: its number in `file`, from 1. `seq`: the record's, if it has one.

    `kind`: "edited" (it has not the hash that it says), "missing" (records before it are not there), "order" (it
    stands where it was not written), "rebuilt" (it was replaced, and its hash made anew), "checkpoint" (forged, or of
    something else), "truncated" (the end is cut off), "foreign" (no line of a log).
    """

    file: str
    line: int
    seq: int | None
    kind: Kind
    message: str

    def __str__(self) -> str:
        record = "" if self.seq is None else f", record {self.seq:,}"
        return f"{self.file}:{self.line}{record}: {self.kind}: {self.message}"


class Place(Struct, frozen=True):
    """A line: its number in `file`, from 1."""

    file: str
    line: int


class Report(Struct, kw_only=True):
    """What a verification found. `records`: the lines that were read. `signed`: whether signatures were looked at;
    `signed_through`: the last record that a good one covers. `anchored_through`: the last record that an anchor covers.
    `closed`: the log was closed as it should. `problems`: the first ones; `problem_count`: all. `notes`: what else
    there is to know, and what was not shown."""

    path: str
    log: str | None = None
    files: int = 0
    records: int = 0
    first: int | None = None
    last: int | None = None
    checkpoints: int = 0
    signed: bool = False
    signed_through: int = 0
    anchored_through: int | None = None
    closed: bool = False
    problems: list[Problem] = []
    problem_count: int = 0
    notes: list[str] = []

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong with it, as far as was shown."""
        return not self.problem_count
