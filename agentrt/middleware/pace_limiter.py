"""aiolimiter's bucket with two things it has no call for; its version is pinned and a test holds the behaviour."""

from __future__ import annotations

from aiolimiter import AsyncLimiter

__all__ = ["PaceLimiter"]


class PaceLimiter(AsyncLimiter):
    """A leaky bucket of calls of cost 1."""

    __slots__ = ()

    def give_back(self) -> None:
        """Return the turn of a call that was not made after all; the next waiter may go earlier."""
        self._leak()
        self._level = max(0.0, self._level - 1.0)
        self._wake_next()

    def has_waiters(self) -> bool:
        """Whether calls are waiting; a newcomer does not overtake them."""
        return any(not waiter[-1].done() for waiter in self._waiters)

    def wait_for_turn(self) -> float:
        """Seconds until a call that comes now would have its turn, behind all that wait."""
        self._leak()
        waiting = sum(1 for waiter in self._waiters if not waiter[-1].done())
        needed = self._level + waiting + 1.0 - self.max_rate
        return max(0.0, needed / self._rate_per_sec)
