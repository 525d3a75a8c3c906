"""The bounded queue between the call path and the thread of telemetry: an append for those who put something in, and
a count of everything that did not get through."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from agentrt.call import Quick

__all__ = ["Pending"]

_QUICK = """\
if len($items) < $queue.limit:
    $append(call)
    if $queue.is_idle:
        $queue.wake()
else:
    $queue.offer(call)
"""


class Pending:
    """`offer` puts an item in from any thread, `take` and `taken` are for the one thread that works on them. `take` and
    `look_ahead` exclude each other: whoever calls them sees to that.

    `limit`: items that may wait. `signal_of(item)`: under what name a lost one is counted. `start`: called when
    something is there and nobody is at work: `is_idle` was True, and is False from then on. `quick`: the usual case of
    `offer(call)` as source.
    """

    def __init__(self, limit: int, *, signal_of: Callable[[Any], str], start: Callable[[], object]) -> None:
        self._size = limit
        self._signal_of = signal_of
        self._start = start
        self._is_closing = False
        self._is_closed = False
        self.items: deque[Any] = deque()
        self._begin()
        self.quick = Quick(_QUICK, {"queue": self, "items": self.items, "append": self.items.append})

    def _begin(self) -> None:
        self.limit = 0 if self._is_closing else self._size
        self.is_idle = True
        self.items.clear()
        self._in_hand: list[Any] = []
        self._seen = 0
        self._lost: Counter[tuple[str, str]] = Counter()
        self._counting = threading.RLock()  # a `__del__` may log in the middle of it

    def after_fork(self) -> None:
        """In the child: what waits and what was counted is the parent's; what was closed stays closed."""
        self._begin()

    # --- putting in -------------------------------------------------------------------------------------

    def offer(self, item: Any, /) -> None:
        """Queue `item`; never waits. Once it is closed, `item` is counted as lost."""
        if len(self.items) >= self.limit:
            self._lose(item, "shutdown" if self._is_closing else "queue full")
            return
        self.items.append(item)
        if self.is_idle:
            self.wake()

    def wake(self) -> None:
        """Something is there, and nobody is at work."""
        self.is_idle = False
        self._start()

    # --- taking out -------------------------------------------------------------------------------------

    def idle(self) -> bool:
        """The thread has nothing more to do; False if something came meanwhile, and then it is not idle."""
        self.is_idle = True
        if self.items:  # came before we said so
            self.is_idle = False
        return self.is_idle

    def take(self, count: int) -> tuple[list[Any], list[Any]]:
        """At most `count` items, which count as waiting until `taken`; and those of them that nobody has seen yet."""
        items = self.items
        with self._counting:
            in_hand = self._in_hand = [items.popleft() for _ in range(min(count, len(items)))]
            unseen = in_hand[self._seen :]
            self._seen = max(0, self._seen - len(in_hand))
        return in_hand, unseen

    def look_ahead(self) -> list[Any]:
        """What waits and nobody has seen yet. It goes on waiting."""
        with self._counting:
            items = list(self.items)  # in one step, whoever appends meanwhile
            unseen = items[self._seen :]
            self._seen = len(items)
        return unseen

    def taken(self, items: list[Any]) -> bool:
        """They are done with; False if they were given up while something of the user's hung: counted already."""
        with self._counting:
            if self._in_hand is not items:
                return False
            self._in_hand = []
            return True

    # --- what is lost -----------------------------------------------------------------------------------

    @property
    def lost(self) -> dict[tuple[str, str], int]:
        """How many items did not get through, by signal and reason: "queue full", "failed" or "shutdown"."""
        with self._counting:
            if self._is_closed and self.items:
                self.give_up()  # it came while we closed
            return dict(self._lost)

    def note_failed(self, signal: str) -> None:
        """One that was taken came to nothing."""
        with self._counting:
            self._lost[signal, "failed"] += 1

    def _lose(self, item: Any, reason: str) -> None:
        with self._counting:
            self._lost[self._signal_of(item), reason] += 1

    # --- the end ----------------------------------------------------------------------------------------

    def closing(self) -> None:
        """Nothing more gets in."""
        self._is_closing = True
        self.limit = 0

    def give_up(self) -> None:
        """What waits, and what is in the hand of a thread that hangs, is lost; but not the values of metrics that were
        seen: there is no more to do with them."""
        with self._counting:
            waiting = list(self.items)
            seen, unseen = waiting[: self._seen], waiting[self._seen :]
            left = [*self._in_hand, *(item for item in seen if self._signal_of(item) != "metrics"), *unseen]
            self._in_hand, self._seen = [], 0
            self.items.clear()
            for item in left:
                self._lose(item, "shutdown")

    def closed(self) -> None:
        """Nobody takes anything any more."""
        self._is_closed = True
