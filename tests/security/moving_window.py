"""The moving window as simply as it can be said: what the stores of rate limits are compared with."""

from __future__ import annotations

__all__ = ["Model"]


class Model:
    """Remembers every turn for ever, and tries each moment that can be the first."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.turns: list[int] = []

    def used(self, moment: int) -> int:
        """Turns in the window that ends at `moment`."""
        return sum(1 for turn in self.turns if moment - self.window < turn <= moment)

    def first(self, now: int, limit: int, cost: int) -> int:
        begin = max([now, *self.turns])
        moments = [begin, *(turn + self.window for turn in self.turns if turn + self.window > begin)]
        return min(moment for moment in moments if self.used(moment) + cost <= limit)
