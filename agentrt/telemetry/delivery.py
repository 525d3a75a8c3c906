"""A batch in several requests: cut to a service's limits, nothing sent twice when the batch is tried again.

    delivery = Delivery("acme", self._parts, self._send, timeout=10.0)

    async def export(self, batch):
        await delivery.deliver(batch)

`parts` cuts to limits, `Delivery` sends and remembers, `cut_texts` makes a single item small enough.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

from msgspec import Struct

from agentrt.errors import PermanentError, TransientError
from agentrt.telemetry.http import TooLarge
from agentrt.telemetry.signals import Batch

__all__ = ["GRACE", "Delivery", "Part", "cut_texts", "parts"]

GRACE = 1.0
"""Seconds that a backend's `timeout`, the exporter's limit, is longer than its delivery's, which says what was slow."""


class Part(Struct, frozen=True, eq=False):
    """What goes into one request: encoded `items`. `to`: whatever the backend tells its requests apart by."""

    items: list[Any]
    to: str = ""


def parts(
    items: Iterable[Any],
    *,
    to: str = "",
    count: int,
    size: int,
    size_of: Callable[[Any], int] = len,
    each: int = 1,
) -> Iterator[Part]:
    """`items` in order, at most `count` and `size` bytes a part. An item alone may be larger: the service judges.

    `size_of` gives the bytes of an item, `each` those that come on top of it (a comma, a header).
    """
    group: list[Any] = []
    used = 0
    for item in items:
        needed = size_of(item) + each
        if group and (len(group) == count or used + needed > size):
            yield Part(group, to)
            group, used = [], 0
        group.append(item)
        used += needed
    if group:
        yield Part(group, to)


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

    `name`: whose it is, for messages. `timeout`: seconds for all that is left of a batch, each time.
    """

    def __init__(
        self,
        name: str,
        split: Callable[[Batch], Iterable[Part]],
        send: Callable[[Part], Awaitable[None]],
        *,
        timeout: float,
    ) -> None:
        self._name = name
        self._split = split
        self._send = send
        self._timeout = timeout
        self._batch: Batch | None = None
        self._left: deque[Part] = deque()
        self._refused: PermanentError | None = None

    async def deliver(self, batch: Batch) -> None:
        """Returns when all of `batch` is delivered."""
        if batch is not self._batch:
            self._left = deque(self._split(batch))
            self._batch, self._refused = batch, None
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

    async def _send_first(self) -> None:
        try:
            await self._send(self._left[0])
        except TooLarge as error:
            self._halve(error)
        except PermanentError as error:
            if error.fault == "target":
                self._batch = None
                raise
            self._refused = self._refused or error
            self._left.popleft()
        else:
            self._left.popleft()

    def _halve(self, error: TooLarge) -> None:
        part = self._left.popleft()
        middle = len(part.items) // 2
        if middle:
            self._left.appendleft(Part(part.items[middle:], part.to))
            self._left.appendleft(Part(part.items[:middle], part.to))
        else:
            self._refused = self._refused or error
