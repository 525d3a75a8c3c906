"""Backoff: how long to wait before a retry.

Exponential with full jitter and decorrelated jitter after "Exponential Backoff and Jitter" (AWS Architecture Blog,
2015). The jitter comes after the cap: jitter before it makes all clients sleep exactly the cap.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Literal

from agentrt import options
from agentrt.errors import ConfigError

__all__ = ["BACKOFFS", "JITTERS", "Backoff", "after_throttling"]

BACKOFFS = ("exponential", "linear", "constant", "decorrelated")
JITTERS = ("full", "none")

Growth = Literal["exponential", "linear", "constant", "decorrelated"] | Callable[[int], float]


class Backoff:
    """Seconds to wait after failed attempt number `n` (1-based).

    `growth`: "exponential" `initial * 2 ** (n - 1)`, "linear" `initial * n`, "constant" `initial`, "decorrelated"
    (between `initial` and three times the previous delay), or a function of `n`. All are capped at `maximum`
    and then, with `jitter` "full", drawn evenly between 0 and that (decorrelated is jittered by itself).
    """

    __slots__ = ("_random", "growth", "initial", "jitter", "maximum")

    def __init__(
        self,
        growth: Growth,
        *,
        initial: float,
        maximum: float,
        jitter: str,
        random: Callable[[], float] = random.random,
    ) -> None:
        if not callable(growth):
            options.choice("backoff", growth, BACKOFFS)
        self.growth = growth
        self.initial = options.seconds("initial_delay", initial, open_=False)
        self.maximum = options.seconds("max_delay", maximum, open_=False)
        if self.maximum < self.initial:
            raise ConfigError(
                f"max_delay must be at least initial_delay ({self.initial:g} s), not {self.maximum!r}"
            )
        self.jitter = options.choice("jitter", jitter, JITTERS)
        self._random = random

    def delay(self, n: int, *, previous: float | None = None) -> float:
        """The wait after attempt `n`; `previous` is the last one, for "decorrelated"."""
        if self.growth == "decorrelated":
            last = self.initial if previous is None else previous
            low, high = self.initial, max(self.initial, last * 3.0)
            return min(self.maximum, low + (high - low) * self._random())
        longest = self.longest(n)
        return longest * self._random() if self.jitter == "full" else longest

    def longest(self, n: int) -> float:
        """The longest wait that `delay(n)` can give (for "decorrelated": for n = 1)."""
        growth = self.growth
        if callable(growth):
            grown = max(0.0, float(growth(n)))
        elif growth == "exponential":
            grown = self.initial * 2.0 ** min(n - 1, 64)
        elif growth == "linear":
            grown = self.initial * n
        elif growth == "decorrelated":
            grown = self.initial * 3.0
        else:
            grown = self.initial
        return min(self.maximum, grown)


def after_throttling(retry_after: float, random: Callable[[], float] = random.random) -> float:
    """Never earlier than the server asked, and up to 10 % (at most 2 s) later: clients do not return in step."""
    return retry_after + min(2.0, retry_after * 0.1) * random()
