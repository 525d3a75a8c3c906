"""What a manager knows of one secret, and who wants to be told when it changes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from agentrt.secrets.cache import Kept
from agentrt.secrets.json_key import inside
from agentrt.secrets.protocol import Secret, SecretInvalid, SecretRef

__all__ = ["Known", "Slot", "Watch"]

_log = logging.getLogger("agentrt.secrets")


class Slot:
    """One secret as a provider gives it; the references to keys inside it share it.

    `missing`: what to say until `missing_until`, if there is no such secret. `rejected`: when a value was last fetched
    because somebody had been refused with the one before. `is_down`: it was told that it cannot be fetched.
    """

    __slots__ = (
        "fetch",
        "is_down",
        "kept",
        "missing",
        "missing_until",
        "ref",
        "rejected",
        "timer",
        "watches",
    )

    def __init__(self, ref: SecretRef) -> None:
        self.ref = ref
        self.kept: Kept | None = None
        self.missing = ""
        self.missing_until = 0.0
        self.fetch: asyncio.Task[Kept] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.watches: list[Watch] = []
        self.rejected: float | None = None
        self.is_down = False

    @property
    def is_idle(self) -> bool:
        """Nobody waits for it or is to be told of it."""
        return self.fetch is None and not self.watches

    def stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Known:
    """A reference as somebody wrote it, the slot that it leads to, and the `Secret` made of what was kept there."""

    __slots__ = ("kept", "ref", "secret", "slot")

    def __init__(self, ref: SecretRef, slot: Slot) -> None:
        self.ref = ref
        self.slot = slot
        self.kept: Kept | None = None
        self.secret: Secret | None = None


class Watch:
    """`callback` is told when the value at `ref` is another one than it was."""

    def __init__(
        self, ref: SecretRef, callback: Callable[[Secret], Awaitable[None] | None], kept: Kept | None
    ) -> None:
        self.ref = ref
        self._callback = callback
        self._last = None if kept is None else self._value(kept)

    def changed(self, kept: Kept, make: Callable[[SecretRef, Kept], Secret]) -> Awaitable[None] | None:
        """Tell the callback if the value has changed. What it returns to be awaited is returned; its errors are
        logged: the next one is told all the same."""
        value = self._value(kept)
        before, self._last = self._last, value if value is not None else self._last
        if value is None or before is None or value == before:
            return None
        try:
            return self._callback(make(self.ref, kept))
        except Exception as error:
            self.failed(error)
            return None

    def failed(self, error: BaseException) -> None:
        _log.error("a callback for the rotation of %s failed", self.ref, exc_info=error)

    def _value(self, kept: Kept) -> str | None:
        try:
            return inside(kept.value, self.ref)
        except SecretInvalid as error:
            _log.warning("the new value is of no use to who waits for its rotation: %s", error)
            return None
