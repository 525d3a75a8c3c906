"""A batch in several requests: cut to a service's limits, nothing sent twice when the batch is tried again.

    delivery = Delivery("acme", self._parts, self._send, signal="logs", timeout=10.0)
    undelivered = delivery.undelivered

    async def export(self, batch):
        await delivery.deliver(batch)

`parts` cuts to limits, `Delivery` sends and remembers, `cut_texts` makes a single item small enough.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any
from weakref import ref

from msgspec import Struct

from agentrt.errors import PermanentError, TransientError
from agentrt.telemetry.http import TooLarge
from agentrt.telemetry.signals import Batch, Signal

__all__ = ["GRACE", "Delivery", "Part", "Rejected", "cut_texts", "parts"]

GRACE = 1.0
"""Seconds that a backend's `timeout`, the exporter's limit, is longer than its delivery's, which says what was slow."""


class Rejected(PermanentError):
    """A request was taken but for `count` of what was in it."""

    def __init__(self, message: str, *, count: int) -> None:
        super().__init__(message)
        self.count = count


class Part(Struct, frozen=True, eq=False):
    """What goes into one request: encoded `items`. `to`: whatever the backend tells its requests apart by.

    `signal`: of what it holds, if not that of the delivery. `counts`: how many spans, lines or points of a metric each
    item stands for; one, if it is empty.
    """

    items: list[Any]
    to: str = ""
    signal: Signal | None = None
    counts: Sequence[int] = ()

    @property
    def count(self) -> int:
        """Spans, lines or points in it."""
        return sum(self.counts) if self.counts else len(self.items)

    def some(self, start: int, end: int) -> Part:
        """The part with the items from `start` to before `end`."""
        return Part(self.items[start:end], self.to, self.signal, self.counts[start:end])


def parts(
    items: Iterable[Any],
    *,
    to: str = "",
    count: int,
    size: int,
    size_of: Callable[[Any], int] = len,
    each: int = 1,
    signal: Signal | None = None,
    count_of: Callable[[Any], int] | None = None,
) -> Iterator[Part]:
    """`items` in order, at most `count` and `size` bytes a part. An item alone may be larger: the service judges.

    `size_of` gives the bytes of an item, `each` those that come on top of it (a comma, a header). `signal` and
    `count_of`, of an item: as for `Part`.
    """

    def part(items: list[Any]) -> Part:
        return Part(items, to, signal, () if count_of is None else tuple(map(count_of, items)))

    group: list[Any] = []
    used = 0
    for item in items:
        needed = size_of(item) + each
        if group and (len(group) == count or used + needed > size):
            yield part(group)
            group, used = [], 0
        group.append(item)
        used += needed
    if group:
        yield part(group)


def cut_texts(value: Any, length: int) -> Any:
    """`value`, plain data, with each text in it cut to `length` characters: for an item larger than a service takes."""
    if isinstance(value, str):
        return value if len(value) <= length else f"{value[:length]}..."
    if isinstance(value, dict):
        return {key: cut_texts(item, length) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [cut_texts(item, length) for item in value]
    return value


class Delivery:
    """Sends the parts that `split` makes of a batch, one after the other.

    A part that is too large is sent in halves. One that is refused for good is lost, and the rest is sent all the
    same; at the end its error is raised. Where the fault is the target's (a wrong key) the rest is not tried. After
    any other error the same batch, delivered again, goes on with the part that failed.

    `name`: whose it is, for messages. `signal`: what its parts hold, if they do not say so. `timeout`: seconds for all
    that is left of a batch, each time. `undelivered` is what a backend has to have a method of that name do.
    """

    def __init__(
        self,
        name: str,
        split: Callable[[Batch], Iterable[Part]],
        send: Callable[[Part], Awaitable[None]],
        *,
        signal: Signal = "spans",
        timeout: float,
    ) -> None:
        self._signal: Signal = signal
        self._name = name
        self._split = split
        self._send = send
        self._timeout = timeout
        self._batch: Batch | None = None
        self._left: deque[Part] = deque()
        self._refused: PermanentError | None = None
        self._last: ref[Batch] | None = None
        self._lost: Counter[Signal] = Counter()

    async def deliver(self, batch: Batch) -> None:
        """Returns when all of `batch` is delivered."""
        if batch is not self._batch:
            self._batch, self._refused, self._last = batch, None, ref(batch)
            self._left.clear()
            self._lost.clear()
            self._left.extend(self._split(batch))
        try:
            # Later than the limit of a single request, which names the server.
            async with asyncio.timeout(self._timeout + GRACE / 2):
                while self._left:
                    await self._send_first()
        except TimeoutError as error:
            raise TransientError(
                f"{self._name}: a batch was not delivered within {self._timeout:g} s; requests left: {len(self._left)}"
            ) from error
        self._batch, refused = None, self._refused
        if refused is not None:
            raise refused

    def undelivered(self, batch: Batch, /) -> dict[Signal, int]:
        """How many spans, points and lines of the `batch` delivered last did not arrive, as far as is known: those
        that were left out or refused, and those not yet sent."""
        if self._last is None or self._last() is not batch:
            return batch.counts
        counts = Counter(self._lost)
        for part in list(self._left):
            counts[part.signal or self._signal] += part.count
        return dict(counts)

    def leave_out(self, signal: Signal, count: int = 1) -> None:
        """For `split`: so many points, say, of its batch become no part of a request."""
        self._lost[signal] += count

    def _lose_first(self, error: PermanentError, count: int | None = None) -> None:
        part = self._left.popleft()
        self._lost[part.signal or self._signal] += part.count if count is None else min(count, part.count)
        self._refused = self._refused or error

    async def _send_first(self) -> None:
        try:
            await self._send(self._left[0])
        except TooLarge as error:
            self._halve(error)
        except Rejected as error:
            self._lose_first(error, error.count)
        except PermanentError as error:
            if error.fault == "target":
                self._batch = None
                raise
            self._lose_first(error)
        else:
            self._left.popleft()

    def _halve(self, error: TooLarge) -> None:
        part = self._left[0]
        end = len(part.items)
        middle = end // 2
        if not middle:
            self._lose_first(error)
            return
        self._left.popleft()
        self._left.appendleft(part.some(middle, end))
        self._left.appendleft(part.some(0, middle))
