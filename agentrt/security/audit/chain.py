"""The hash chain: each line has the hash of the one before, and its own.

`hash` = SHA-256 over the line's bytes up to `,"hash":`, which have the line's `prev` in them. So a line names what is
before it, and a line that was changed does not have the hash that it says.
"""

from __future__ import annotations

import hashlib

from agentrt.security.audit.record import Line, encode

__all__ = ["GENESIS", "TAIL", "Chain", "own_hash", "seal"]

GENESIS = "0" * 64
"""The `prev` of a log's first line."""

_MARK = b',"hash":"'
TAIL = len(_MARK) + 64 + len(b'"}')
"""Bytes at the end of a line, without the line end, that its hash does not cover."""


class Chain:
    """Where a log stands: `seq` and hash (`head`) of its last line."""

    __slots__ = ("head", "seq")

    def __init__(self, seq: int = 0, head: str = GENESIS) -> None:
        self.seq = seq
        self.head = head

    def add(self, line: Line) -> bytes:
        """The bytes of `line` as the next one, with its line end."""
        line.seq, line.prev = self.seq + 1, self.head
        sealed, self.head = seal(encode(line))
        self.seq += 1
        return sealed


def seal(body: bytes) -> tuple[bytes, str]:
    """A JSON object without its closing brace as a line, and its hash."""
    digest = hashlib.sha256(body).hexdigest()
    return b'%s%s%s"}\n' % (body, _MARK, digest.encode()), digest


def own_hash(line: bytes) -> str | None:
    """The hash that a line (without the line end) says it has; None if it says none."""
    tail = line[-TAIL:]
    if not tail.startswith(_MARK) or not tail.endswith(b'"}'):
        return None
    try:
        return tail[len(_MARK) : -2].decode("ascii")
    except UnicodeDecodeError:
        return None
