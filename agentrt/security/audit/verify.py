"""Verification: whether a log is as it was written, and which line is not.

Files are read line by line, one after the other; memory does not grow with the log. What the result does not show is
among its notes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec import Struct

from agentrt.errors import ConfigError
from agentrt.security.audit.anchors import Anchors, Kept, checkpoints_of, is_signed
from agentrt.security.audit.chain import GENESIS, TAIL, own_hash
from agentrt.security.audit.checkpoints import PublicKey
from agentrt.security.audit.log_file import is_beginning
from agentrt.security.audit.record import NOT_A_LINE, Checkpoint, FileBegan, Gap, Recovered, decode
from agentrt.security.audit.report import TOLD, Kind, Place, Problem, Report
from agentrt.security.audit.segments import at_one_moment

__all__ = ["Kind", "Problem", "Report", "verify"]

MAX_LINE = 16_000_000
"""Bytes: no line of ours is as long."""


class _Head(Struct):
    """As much of a line as its place in the chain needs."""

    seq: int
    prev: str
    type: str


_heads = msgspec.json.Decoder(_Head)


def verify(
    path: str | os.PathLike[str],
    *,
    public_key: PublicKey | Sequence[PublicKey] | None = None,
    anchor: str | os.PathLike[str] | None = None,
    pruned: bool = False,
) -> Report:
    """Verify the log at `path`, with the files before it.

    `public_key`: of the checkpoints, or several if it was changed over time; without one only the chain is looked at.
    `anchor`: a file with checkpoints that were kept elsewhere. `pruned`: older files were removed on purpose. Raises
    ConfigError if there is no such log, if not one line of it is one of a log, or if the anchor is the log itself.
    """
    base = Path(path)
    keys = (public_key,) if isinstance(public_key, PublicKey) else tuple(public_key or ())
    report = Report(path=str(base), signed=bool(keys))
    with ExitStack() as stack:
        # In this order: the anchor only has what is in the log already, and the file that is written may get its number
        # once it is open here.
        kept = (
            None
            if anchor is None
            else stack.enter_context(_opened(Path(anchor), name=f"the anchor {anchor}"))
        )
        checkpoints = None if kept is None else checkpoints_of(kept)
        files = _files(base, stack)
        if not files:
            raise ConfigError(f"there is no audit log {base}")
        if kept is not None and _is_one_of(kept, files):
            raise ConfigError(
                f"the anchor {anchor} is the log itself, which shows nothing: give checkpoints that were kept elsewhere"
            )
        reader = _Reader(report, keys, checkpoints, pruned)
        for number, (name, opened) in enumerate(files, start=1):
            with opened if opened is not None else _opened(name) as file:
                reader.read(file, str(name), is_last=number == len(files))
                if number == len(files) and report.first is None and not is_beginning(file):
                    raise ConfigError(
                        f"{base} is no audit log: not one line of it is; name the file of [audit] path"
                    )
        reader.finish()
    return report


def _files(base: Path, stack: ExitStack) -> list[tuple[Path, BinaryIO | None]]:
    """The files of a log at one moment, in order; the one that is written is open already."""
    try:
        full, written = at_one_moment(base)
    except OSError as error:
        raise ConfigError(f"cannot read {base}: {error.strerror}") from error
    files: list[tuple[Path, BinaryIO | None]] = [(name, None) for name in full]
    if written is not None:
        files.append((base, stack.enter_context(written)))
    return files


def _is_one_of(anchor: BinaryIO, files: Sequence[tuple[Path, BinaryIO | None]]) -> bool:
    status = os.fstat(anchor.fileno())
    return any(
        os.path.samestat(status, name.stat() if opened is None else os.fstat(opened.fileno()))
        for name, opened in files
    )


def _opened(path: Path, *, name: str | None = None) -> BinaryIO:
    try:
        return path.open("rb", buffering=1 << 20)
    except OSError as error:
        raise ConfigError(f"cannot read {name or path}: {error.strerror}") from error


class _Reader:
    """Goes through the lines of a log, in order."""

    def __init__(
        self,
        report: Report,
        keys: Sequence[PublicKey],
        kept: Kept | None,
        pruned: bool,
    ) -> None:
        self.report = report
        self._keys = keys
        self._pruned = pruned
        self._anchors = None if kept is None else Anchors(kept, keys, tell=self._tell)
        self._seq = 0
        self._heads: tuple[str, ...] = (GENESIS,)
        """What the next line may say is before it; nothing: anything."""
        self._checkpoint: tuple[int, str | None] = (0, None)
        self._signed_at, self._next_within = 0, 0
        """Where the last good checkpoint stands, and how many lines later the next one does at most (0: unknown)."""
        self._number = 0
        self._before = Place(report.path, 0)
        self._counted: dict[str, int] = {}

    # --- lines -----------------------------------------------------------------------------------------------

    def read(self, file: BinaryIO, name: str, *, is_last: bool) -> None:
        """Read one file."""
        number = 0
        report = self.report
        report.files += 1
        sha256, decode_head, end = hashlib.sha256, _heads.decode, -TAIL - 1
        while line := file.readline(MAX_LINE):
            number += 1
            if not line.endswith(b"\n"):
                self._torn(name, number, is_last=is_last)
                continue
            digest = sha256(line[:end]).hexdigest()
            if line[end:] != b',"hash":"%s"}\n' % digest.encode():
                self._edited(Place(name, number), line[:-1], digest)
                continue
            try:
                head = decode_head(line)
            except NOT_A_LINE:
                self._tell("foreign", Place(name, number), None, "it is no line of an audit log")
                self._heads = (digest,)
                continue
            if head.seq != self._seq + 1 or head.prev not in self._heads:
                self._misplaced(Place(name, number), head)
            self._seq, self._heads = head.seq, (digest,)
            if report.first is None:
                report.first = head.seq
            if head.type != "record" or number == 1:
                self._special(Place(name, number), head, line[:-1], digest)
            self._before = Place(name, number)  # for what the next line may say of this one
        report.records += number

    def _torn(self, name: str, number: int, *, is_last: bool) -> None:
        if is_last:
            self.report.records -= 1
            self._note(
                "torn", f"{name}:{number}: the end of a line that was never finished; it was not committed"
            )
        else:
            self._tell("edited", Place(name, number), self._seq + 1, "the line has no end")

    def _edited(self, place: Place, line: bytes, digest: str) -> None:
        """A line that has not the hash that it says; what follows may go on from either."""
        said = own_hash(line)
        try:
            head = _heads.decode(line)
        except NOT_A_LINE:
            self._tell("edited", place, self._seq + 1, "it is no line of an audit log any more")
            self._seq, self._heads = self._seq + 1, ()
            return
        self._tell("edited", place, head.seq, "it was changed: it has not the hash that it says")
        if said is not None and head.prev not in self._heads and self._heads:
            self._misplaced(place, head)
        self._seq, self._heads = head.seq, (digest,) if said is None else (digest, said)
        self._before = place
        if head.type == "checkpoint":
            self._checkpoint = (self._checkpoint[0] + 1, said)
        if self.report.first is None:
            self.report.first = head.seq

    def _misplaced(self, place: Place, head: _Head) -> None:
        """A line that does not follow from the one before it."""
        expected = self._seq + 1
        if self.report.first is None:
            if self._pruned and head.type == "file":
                self._note("pruned", f"records 1 to {head.seq - 1:,} were removed before {place.file}")
            else:
                what = (
                    f"records 1 to {head.seq - 1:,} are not there"
                    if head.seq > 1
                    else "it is not the first line"
                )
                self._tell("missing", place, head.seq, f"{what}; --pruned says that older files may be gone")
        elif head.seq > expected:
            count = head.seq - expected
            which = (
                f"record {expected:,} is" if count == 1 else f"records {expected:,} to {head.seq - 1:,} are"
            )
            self._tell("missing", place, head.seq, f"{which} not there")
        elif head.seq < expected:
            self._tell("order", place, head.seq, f"it stands where record {expected:,} should")
        elif self._heads:
            self._tell(
                "rebuilt",
                self._before,
                self._seq,
                f"it is not the one that record {head.seq:,} was written after: "
                "it was replaced, and its hash made anew",
            )

    # --- lines that are no records -----------------------------------------------------------------------------

    def _special(self, place: Place, head: _Head, line: bytes, digest: str) -> None:
        self.report.closed = head.type == "closed" or (head.type == "checkpoint" and self.report.closed)
        try:
            item = decode(line)
        except NOT_A_LINE as error:
            self._tell("foreign", place, head.seq, f"it is no line of an audit log: {error}")
            return
        if isinstance(item, FileBegan):
            self._file(place, item)
        elif place.line == 1:
            self._tell("missing", place, head.seq, "the first line of the file is not there")
        if isinstance(item, Checkpoint):
            self._signed(place, item, line, digest)
        elif isinstance(item, Gap):
            lost = (
                f"{item.lost:,} operations have no record"
                if item.lost
                else "no operation is without a record"
            )
            refused = f", {item.refused:,} were refused" if item.refused else ""
            self._note("gap", f"{place.file}:{place.line}: {lost}{refused} since {item.since}: {item.reason}")
        elif isinstance(item, Recovered):
            self._note(
                "recovered",
                f"{place.file}:{place.line}: a process was killed while it wrote; {item.bytes} "
                "bytes of a line were cut off",
            )

    def _file(self, place: Place, item: FileBegan) -> None:
        report = self.report
        if report.log is None:
            report.log = item.log
            if item.number > 1:  # what is before was told of already
                self._checkpoint = (item.checkpoint, item.checkpoint_hash)
            if self._anchors is not None:
                self._anchors.begin(item.log, after=item.checkpoint)
        elif item.log != report.log:
            self._tell("foreign", place, item.seq, f"the file is of another log, {item.log}")
        elif (item.checkpoint, item.checkpoint_hash) != self._checkpoint:
            self._tell(
                "checkpoint", place, item.seq, "it names another last checkpoint than the file before has"
            )
            self._checkpoint = (item.checkpoint, item.checkpoint_hash)
        if place.line != 1:
            self._tell("order", place, item.seq, "the first line of a file stands in the middle of one")
        elif self._number and item.number != self._number + 1:
            self._tell("missing", place, item.seq, f"it is file {item.number}, after file {self._number}")
        self._number = item.number

    def _signed(self, place: Place, item: Checkpoint, line: bytes, digest: str) -> None:
        report = self.report
        report.checkpoints += 1
        number, before = self._checkpoint
        bad = None
        if item.log != report.log:
            bad = "it is of another log"
        elif item.count != item.seq - 1:
            bad = f"it says that {item.count:,} records are before it"
        elif item.number != number + 1 or item.previous != before:
            bad = f"it does not follow checkpoint {number}"
        elif self._keys and not is_signed(line, item, self._keys):
            bad = f"it is not signed by the key {_named(self._keys)}"
        if bad is not None:
            self._tell("checkpoint", place, item.seq, f"checkpoint {item.number}: {bad}")
        elif self._keys:
            self._signed_at, self._next_within = item.seq, item.next_within
            if not report.problem_count:
                report.signed_through = item.seq
        self._checkpoint = (item.number, digest)
        if self._anchors is not None:
            self._anchors.meet(place, item, digest)

    # --- the end -----------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Say what was found, and what was not shown."""
        report = self.report
        report.last = self._seq
        if self._anchors is not None:
            self._anchors.finish(self._before, self._seq)
            report.anchored_through = self._anchors.through
        if not report.records:
            self._tell("truncated", Place(report.path, 1), None, "there is nothing in it")
        elif report.log is None:
            self._tell("foreign", Place(report.path, 1), None, "it has no first line of an audit log")
        if self._keys:
            self._check_signing()
        for kind, count in self._counted.items():
            if count > TOLD:
                report.notes.append(f"{count - TOLD:,} more notes of the kind {kind!r}")
        if not report.closed:
            report.notes.append("the log is still open, or the process that wrote it was killed")
        if not self._keys:
            report.notes.append(
                "no public key: the chain was verified, but whoever could write the files could have made it all anew, "
                "or cut off the end"
            )
        elif report.signed_through < self._seq and report.ok:
            report.notes.append(
                f"the records after {report.signed_through:,} are not signed yet: they could have been made anew or cut"
            )
        if self._anchors is None:
            report.notes.append(
                "no anchor: if the end was cut off together with its checkpoints, this does not show"
            )

    def _check_signing(self) -> None:
        """Whoever makes the end anew without the key can only leave the checkpoints out."""
        if not self.report.checkpoints:
            self._tell(
                "checkpoint", self._before, self._seq, f"nothing is signed by the key {_named(self._keys)}"
            )
        elif 0 < self._next_within < self._seq - self._signed_at:
            self._tell(
                "checkpoint",
                self._before,
                self._seq,
                f"the records after {self._signed_at:,} are not signed, though a checkpoint follows after "
                f"{self._next_within:,} at most: they were made anew, or the log is not signed any more",
            )

    def _tell(self, kind: Kind, place: Place, seq: int | None, message: str) -> None:
        report = self.report
        report.problem_count += 1
        if len(report.problems) < TOLD:
            report.problems.append(Problem(place.file, place.line, seq, kind, message))

    def _note(self, kind: str, message: str) -> None:
        self._counted[kind] = self._counted.get(kind, 0) + 1
        if self._counted[kind] <= TOLD:
            self.report.notes.append(message)


def _named(keys: Sequence[PublicKey]) -> str:
    return " or ".join(key.id for key in keys)
