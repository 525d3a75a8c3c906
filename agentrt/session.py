"""A conversation: its history and what agents keep for it."""

from __future__ import annotations

import os
from typing import Any

from msgspec import Struct, field

from agentrt.models.protocol import Message

__all__ = ["Session"]


def _new_id() -> str:
    return os.urandom(8).hex()


class Session(Struct, eq=False):
    """One conversation. `messages`: the finished turns, oldest first (without the instructions).
    `state`: whatever agents keep per conversation; they keep nothing on themselves. `revision`: which one is stored
    (None: nothing is), kept by `Conversations`."""

    id: str = field(default_factory=_new_id)
    messages: list[Message] = []
    state: dict[str, Any] = {}
    revision: str | None = None
