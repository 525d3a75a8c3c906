"""Checkpoints that were kept elsewhere, beside those of a log: what shows that its end was cut off."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

from agentrt.security.audit.chain import TAIL, own_hash
from agentrt.security.audit.checkpoints import SIGNATURE, PublicKey
from agentrt.security.audit.record import NOT_A_LINE, Checkpoint, decode
from agentrt.security.audit.report import Kind, Place

__all__ = ["Anchors", "Kept", "checkpoints_of", "is_signed"]

Kept = Iterator[tuple[Checkpoint, bytes]]
"""Checkpoints with their lines."""
Tell = Callable[[Kind, Place, "int | None", str], None]


class Anchors:
    """Compares the checkpoints of a log with those of `kept`, which were kept elsewhere; both come in order.

    `tell(kind, place, seq, message)`: told what does not fit.
    """

    def __init__(self, kept: Kept, keys: Sequence[PublicKey], *, tell: Tell) -> None:
        self._source = kept
        self._keys = keys
        self._tell = tell
        self._log: str | None = None
        self._next: tuple[Checkpoint, str] | None = None
        self._met = 0
        self.through: int | None = None
        """The last record that the anchor covers."""

    def begin(self, log: str, *, after: int) -> None:
        """The log is known, and what is before its first file."""
        self._log = log
        self._advance()
        while self._next is not None and self._next[0].number <= after:
            self._met += 1
            self._advance()

    def meet(self, place: Place, item: Checkpoint, digest: str) -> None:
        """A checkpoint of the log."""
        while self._next is not None and self._next[0].number < item.number:
            kept = self._next[0]
            self._tell(
                "checkpoint", place, item.seq, f"checkpoint {kept.number}, which the anchor has, is not there"
            )
            self._advance()
        while self._next is not None and self._next[0].number == item.number:
            self._met += 1
            if self._next[1] != digest:
                self._tell(
                    "checkpoint",
                    place,
                    item.seq,
                    f"checkpoint {item.number} is not the one that the anchor has: what is before it was made anew",
                )
            else:
                self.through = item.seq
            self._advance()

    def finish(self, place: Place, seq: int) -> None:
        """The log is over; nothing may be left."""
        if self._log is None:
            return  # no log at all, which was told of
        last = None
        while self._next is not None:
            last = self._next[0]
            self._met += 1
            self._advance()
        if last is not None:
            self._tell(
                "truncated",
                place,
                seq,
                f"the log ends here, but the anchor has checkpoint {last.number}, of record {last.seq:,}: "
                "what was written after this was cut off",
            )
        elif not self._met:
            self._tell("truncated", place, seq, "the anchor has no checkpoint of this log")

    def _advance(self) -> None:
        """To the next checkpoint of this log that is what it says."""
        self._next = None
        for item, line in self._source:
            hashed = hashlib.sha256(line[:-TAIL]).hexdigest()
            if item.log != self._log or own_hash(line) != hashed:
                continue
            if self._keys and not is_signed(line, item, self._keys):
                continue  # somebody else's: it proves nothing
            self._next = (item, hashed)
            return


def checkpoints_of(anchor: BinaryIO) -> Kept:
    """The checkpoints that an anchor keeps now, each with its line."""
    rest = os.fstat(anchor.fileno()).st_size

    def kept() -> Kept:
        nonlocal rest
        for line in anchor:
            rest -= len(line)
            if rest < 0:
                return
            try:
                item = decode(line)
            except NOT_A_LINE:
                continue  # half a line, left by a process that was killed
            if isinstance(item, Checkpoint):
                yield item, line.rstrip(b"\n")

    return kept()


def is_signed(line: bytes, item: Checkpoint, keys: Sequence[PublicKey]) -> bool:
    """Whether one of `keys` has signed the checkpoint `item`, which stands in `line`."""
    body, found, _ = line.rpartition(SIGNATURE)
    return bool(found) and any(key.id == item.key and key.verifies(body, item.signature) for key in keys)
