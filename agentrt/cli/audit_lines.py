"""What `agentrt audit show` and `tail` make of the lines of a log: one row for each operation, its intent and outcome
together, below the run that it was part of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

import click
from msgspec import Struct

from agentrt.errors import ConfigError
from agentrt.security.audit.record import (
    NOT_A_LINE,
    Checkpoint,
    FileBegan,
    Gap,
    Line,
    Opened,
    Record,
    Recovered,
    decode,
)
from agentrt.security.audit.segments import at_one_moment
from agentrt.telemetry.look import duration, printable

__all__ = ["Filter", "Row", "Rows", "lines_of", "moment", "other", "said"]

NO_RUN = ""


class Filter(Struct, frozen=True, kw_only=True):
    """Which records are wanted: those of a run (by the beginning of its id), an action ("tool.call", or "tool" for all
    of them), an actor or whoever it acts for, from a time on."""

    run: str | None = None
    action: str | None = None
    actor: str | None = None
    since: str | None = None

    def wants(self, line: Line) -> bool:
        if self.since is not None and line.time < self.since:
            return False
        if not isinstance(line, Record):
            return self.run is None and self.action is None and self.actor is None
        if self.run is not None and not any(
            run is not None and run.startswith(self.run) for run in (line.run, line.parent)
        ):
            return False
        if (
            self.action is not None
            and line.action != self.action
            and not line.action.startswith(f"{self.action}.")
        ):
            return False
        return self.actor is None or self.actor in (line.actor, line.on_behalf_of)


class Row(Struct, eq=False):
    """One operation: what is known of it so far."""

    record: Record
    seq: int
    outcome: Record | None = None

    @property
    def state(self) -> str:
        """How it ended, in a word."""
        last = self.outcome or self.record
        if last.decision == "denied":
            return "denied"
        return last.outcome or "no outcome"


class Rows:
    """The operations of a log, by run, in the order in which they began."""

    def __init__(self) -> None:
        self.runs: dict[str, list[Row]] = {}
        self.others: list[Line] = []
        self.parents: dict[str, str] = {}
        self._begun: dict[int, Row] = {}

    def add(self, line: Line) -> None:
        if not isinstance(line, Record):
            self.others.append(line)
            return
        if line.phase == "outcome" and line.intent is not None:
            row = self._begun.pop(line.intent, None)
            if row is not None:
                row.outcome = line
                return
        row = Row(line, line.seq)
        if line.phase == "intent":
            self._begun[line.seq] = row
        self.runs.setdefault(line.run or NO_RUN, []).append(row)
        if line.run is not None and line.parent is not None:
            self.parents[line.run] = line.parent

    def table(self) -> Iterator[tuple[int, Row]]:
        """The rows with their depth: what belongs to no run first, then each run with its children inside."""
        for row in self.runs.get(NO_RUN, ()):
            yield 0, row
        children: dict[str, list[str]] = {}
        roots = []
        for run in self.runs:
            parent = self.parents.get(run)
            if run != NO_RUN and parent in self.runs and parent != run:
                children.setdefault(parent, []).append(run)
            elif run != NO_RUN:
                roots.append(run)
        waiting = [(0, run) for run in reversed(roots)]
        while waiting:
            depth, run = waiting.pop()
            for row in self.runs[run]:
                yield depth if row.record.action == "run" else depth + 1, row
            waiting += [(depth + 1, child) for child in reversed(children.get(run, ()))]


def lines_of(path: Path) -> Iterator[tuple[bytes, Line | None]]:
    """Each line of the log at `path` and of the files before it; None for what is no line of a log. Raises
    ConfigError."""
    try:
        full, written = at_one_moment(path)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    with written or nullcontext():
        for name in full:
            try:
                file = name.open("rb")
            except OSError as error:
                raise ConfigError(f"cannot read {name}: {error.strerror}") from error
            yield from _lines(file)
        if written is not None:
            yield from _lines(written)


def _lines(file: BinaryIO) -> Iterator[tuple[bytes, Line | None]]:
    with file:
        for line in file:
            if not line.endswith(b"\n"):
                return  # it is being written
            try:
                yield line, decode(line)
            except NOT_A_LINE:
                yield line, None


def said(row: Row, *, depth: int = 0) -> str:
    """A row in one line of text."""
    record, last = row.record, row.outcome or row.record
    what = f"{'  ' * depth}{record.action}"
    parts = [
        f"{row.seq:>7}",
        record.time[:19].replace("T", " "),
        f"{printable(what):<22}",
        f"{printable(last.resource):<28}",
        f"{row.state:<10}",
        duration(last.duration) if last.duration is not None else "",
    ]
    if depth == 0:
        parts.append(_who(record))
    if last.error is not None:
        parts.append(printable(last.error + (f": {last.message}" if last.message else "")))
    if last.details:
        parts.append(printable(" ".join(f"{name}={value}" for name, value in last.details.items())))
    return "  ".join(part for part in parts if part).rstrip()


def _who(record: Record) -> str:
    run = f"run {record.run}  " if record.run is not None else ""
    behalf = f" for {record.on_behalf_of}" if record.on_behalf_of is not None else ""
    return printable(f"{run}by {record.actor}{behalf}")


def other(line: Line) -> str:
    """A line that is no record, in words."""
    if isinstance(line, Record) and line.phase == "outcome":
        return said(Row(line, line.seq))
    match line:
        case Record():
            text = f"{line.action} {line.resource} begins, {_who(line)}"
        case FileBegan():
            text = f"file {line.number} of the log {line.log}"
        case Opened():
            text = f"opened by process {line.process} on {line.host}, agentrt {line.version}"
        case Checkpoint():
            text = f"checkpoint {line.number}: {line.count:,} records, signed by {line.key}"
        case Gap():
            text = f"gap: {line.lost:,} operations without a record, {line.refused:,} refused: {line.reason}"
        case Recovered():
            text = f"recovered: {line.bytes} bytes of a torn line were cut off"
        case _:  # closed
            text = "closed"
    return f"{line.seq:>7}  {line.time[:19].replace('T', ' ')}  {printable(text)}"


def moment(text: str) -> str:
    """A point in time as records have it: RFC 3339, a date, or how long ago it was ("90s", "15m", "2h", "7d")."""
    unit = {"s": 1, "m": 60, "h": 3600, "d": 86400}.get(text[-1:])
    try:
        if unit is not None and text[:-1].isdecimal():
            when = datetime.now(UTC) - timedelta(seconds=unit * int(text[:-1]))
        else:
            when = datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise click.UsageError(
            f"--since takes a time such as 2026-11-24T12:00, or how long ago: 15m, 2h, 7d, not {text!r}"
        ) from None
    return when.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
