"""A retry budget keeps retries a small part of the traffic, so that they cannot turn trouble into an outage.

After Finagle's RetryBudget and failsafe-go: a retry on a target is allowed while those made there in the last `per`
seconds are fewer than max(`minimum`, `ratio` x first attempts that ended there in the same time).
"""

from __future__ import annotations

import math

from agentrt import options
from agentrt.errors import ConfigError

__all__ = ["Ledger", "RetryBudget"]

SLICES = 20
"""The window is counted in this many slices; a count is exact to one slice."""

MAX_TARGETS = 10_000


class RetryBudget:
    """Allows retries on each target up to a part of its traffic.

    `ratio` (0.2): retries per first attempt. `per` (60 s): the window. `minimum` (10): retries that are
    always allowed in a window. Give the same object to several `Retry` stages to share it.
    """

    __slots__ = ("ledgers", "minimum", "per", "ratio")

    def __init__(self, *, ratio: float = 0.2, per: float = 60.0, minimum: int = 10) -> None:
        if not isinstance(ratio, int | float) or isinstance(ratio, bool) or not 0.0 <= ratio <= 10.0:
            raise ConfigError(f"ratio must be from 0 to 10, not {ratio!r}")
        self.ratio = float(ratio)
        self.per = options.seconds("per", per)
        self.minimum = options.count("minimum", minimum, minimum=0)
        self.ledgers: dict[str, Ledger] = {}

    def of(self, target: str) -> Ledger:
        """The ledger of one target."""
        ledger = self.ledgers.get(target)
        if ledger is None:
            if len(self.ledgers) >= MAX_TARGETS:
                # A forgotten ledger starts again with `minimum` retries: harmless, and the oldest is likely idle.
                del self.ledgers[next(iter(self.ledgers))]
            ledger = self.ledgers[target] = Ledger(self)
        return ledger

    def __repr__(self) -> str:
        return f"RetryBudget(ratio={self.ratio:g}, per={self.per:g}, minimum={self.minimum})"


class Ledger:
    """First attempts and retries on one target in the last `per` seconds.

    `turn` is when the present slice is over; until then `firsts += 1` is all that a first attempt costs.
    """

    __slots__ = ("_budget", "_old", "_old_firsts", "_old_retries", "_slice", "firsts", "retries", "turn")

    def __init__(self, budget: RetryBudget) -> None:
        self._budget = budget
        self._slice = budget.per / SLICES
        self.turn = -math.inf
        self.firsts = 0
        self.retries = 0
        self._old: list[tuple[int, int, int]] = []  # (slice number, firsts, retries), oldest first
        self._old_firsts = 0
        self._old_retries = 0

    def first(self, now: float) -> None:
        """A first attempt ended (or its stream committed)."""
        if now >= self.turn:
            self.rotate(now)
        self.firsts += 1

    def spend(self, now: float) -> bool:
        """Take one retry, if the budget allows it."""
        if now >= self.turn:
            self.rotate(now)
        budget = self._budget
        firsts = self._old_firsts + self.firsts
        if self._old_retries + self.retries >= max(budget.minimum, budget.ratio * firsts):
            return False
        self.retries += 1
        return True

    def rotate(self, now: float) -> None:
        """Begin the slice of `now` and forget those older than the window."""
        old = self._old
        if self.firsts or self.retries:
            old.append((round(self.turn / self._slice) - 1, self.firsts, self.retries))
            self._old_firsts += self.firsts
            self._old_retries += self.retries
            self.firsts = self.retries = 0
        number = math.floor(now / self._slice)
        self.turn = (number + 1) * self._slice
        while old and old[0][0] <= number - SLICES:
            _, firsts, retries = old.pop(0)
            self._old_firsts -= firsts
            self._old_retries -= retries
