"""What the thread that writes is given: records on their way, keys, and how to go about it."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from hashlib import sha256
from typing import Literal

from msgspec import Struct

from agentrt.security.audit.checkpoints import SigningKey
from agentrt.security.audit.record import Record

__all__ = ["Keys", "Policy", "Statistics", "Ticket", "Told"]

Told = Callable[["BaseException | None"], None]
"""Told once that a record is on the disk, or why it is not."""


class Ticket:
    """A record on its way. `arguments`: what its HMAC is made of. `intent`: the ticket of an outcome's intent. `told`:
    whoever waits for it. `seq`: once it is written."""

    __slots__ = ("arguments", "intent", "record", "seq", "told")

    def __init__(
        self, record: Record, *, arguments: bytes | None = None, intent: Ticket | None = None
    ) -> None:
        self.record = record
        self.arguments = arguments
        self.intent = intent
        self.told: Told | None = None
        self.seq = 0


class Keys(Struct, frozen=True, eq=False):
    """`arguments`: of the HMAC; `arguments_id`: what tells it apart; `signing`: of the checkpoints, if they are
    signed."""

    arguments: bytes
    arguments_id: str
    signing: SigningKey | None = None

    def hash(self, data: bytes) -> str:
        """The HMAC of arguments, in hex."""
        return hmac.digest(self.arguments, data, sha256).hex()


class Policy(Struct, frozen=True, kw_only=True):
    """`strict`, `on_failure`, `arguments`: as in [audit]. `checkpoint_every` (records), `checkpoint_seconds`: a
    checkpoint after so many, or so long after the first record that none covers. `queue`: records that may wait."""

    strict: bool
    on_failure: Literal["refuse", "warn"]
    arguments: str
    checkpoint_every: int
    checkpoint_seconds: float
    queue: int


class Statistics(Struct):
    """What a log has done: `lost`: operations without a record, `refused`: those that were not begun because of it."""

    written: int = 0
    groups: int = 0
    lost: int = 0
    refused: int = 0
    checkpoints: int = 0
