"""How long a fetched value is used. Nothing here waits, calls or reads a clock: times come in as arguments.

    fetched      soft                  end                              last
       |  fresh   |  ageing             |  stale                         |  over
       |  given   |  given, while one   |  the readers wait for a fetch; |  forgotten
       |          |  fetch runs         |  given if the provider is      |
       |          |                     |  unavailable, only then        |

An ordinary value ends after `ttl`, and ages from a moment in the last `jitter` part of it, so that what was fetched
together is not fetched anew together. So who reads regularly never waits, nobody gets a value older than `ttl` while
the provider answers, and an outage of up to `stale` is bridged. A value that ends by itself (a lease) ages from two
thirds of its time on and is never given after its end.

In an outage one reader at most waits for the first fetch to fail. From then on the old value is given at once, while a
fetch is tried behind it whenever the provider has been left alone for `REST`; who comes long after that waits again,
for the provider may be well by then.

A provider that says Denied, NotFound or Invalid has answered: what is kept is forgotten at once.
"""

from __future__ import annotations

import asyncio
from typing import Any

from msgspec import Struct

from agentrt.config.sections import SecretsCacheSection
from agentrt.errors import Refused, classify
from agentrt.secrets.protocol import SecretValue

__all__ = ["LEASE_PART", "REST", "REST_AT_MOST", "Kept", "is_unavailable", "keep", "rest"]

LEASE_PART = 2 / 3
"""A value that ends by itself is fetched or renewed after this part of its time."""

REST = 30.0
"""Seconds for which an unavailable provider is left alone while the value that is kept will do."""

REST_AT_MOST = 300.0
"""Seconds; a provider may ask for more than `REST`, up to this."""


class Kept(Struct, eq=False):
    """A value and its times, in seconds on the loop's clock. `retry`: when it may be fetched again after a failure.

    `leased`: what the provider renews or revokes, None if there is nothing of that; `granted`: the seconds that this
    lease lasted when it was taken.
    """

    value: str
    version: str | None
    fetched: float
    soft: float
    end: float
    last: float
    leased: SecretValue | None = None
    granted: float | None = None
    retry: float = 0.0

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Without the value, as the repr."""
        return [("version", self.version), ("soft", self.soft), ("end", self.end), ("last", self.last)]

    def __repr__(self) -> str:
        return f"Kept(version={self.version!r}, soft={self.soft!r}, end={self.end!r}, last={self.last!r})"


def keep(
    found: str | SecretValue,
    now: float,
    settings: SecretsCacheSection,
    *,
    ttl: float | None = None,
    draw: float = 0.0,
) -> Kept:
    """What is kept of a value that was fetched at `now`.

    `ttl`: how long this provider's values are kept, None for what the settings say. `draw`: a random number from 0 to 1
    for the jitter.
    """
    ttl = settings.ttl if ttl is None else ttl
    value = found.value if isinstance(found, SecretValue) else found
    version = found.version if isinstance(found, SecretValue) else None
    lifetime = found.ttl if isinstance(found, SecretValue) else None
    soft, end = now + ttl * (1.0 - settings.jitter * draw), now + ttl
    last = end + settings.stale
    if isinstance(found, SecretValue) and found.lease is not None:
        if lifetime is not None:
            # Not before: each fetch may make another user in a database.
            soft, end, last = now + lifetime * LEASE_PART, now + lifetime, now + lifetime
        return Kept(value, version, now, soft, end, last, leased=found, granted=lifetime)
    if lifetime is not None:
        soft, end = min(soft, now + lifetime * LEASE_PART), min(end, now + lifetime)
        last = min(last, now + lifetime)
    return Kept(value, version, now, soft, end, last)


def is_unavailable(error: BaseException) -> bool:
    """Whether the provider did not answer: then a value that is kept may be used on. Any other error is an answer, or
    a mistake that must be seen."""
    if isinstance(error, asyncio.CancelledError):
        return False
    return isinstance(error, Refused) or classify(error).name in ("transient", "throttled", "cut", "deadline")


def rest(error: BaseException, kept: Kept, now: float) -> float:
    """When the next fetch may follow one that failed at `now` with `error`."""
    asked = getattr(error, "retry_after", None) or 0.0
    seconds = min(max(REST, asked), REST_AT_MOST)
    if kept.leased is not None:
        # Its end does not wait: some tries must fit in before it.
        seconds = min(seconds, max(1.0, (kept.last - now) / 4))
    return now + seconds
