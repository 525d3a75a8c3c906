"""Rate limits: so many hits of a key in any window of time, whoever counts them.

The algorithm is the exact moving window: a hit at the moment t is allowed while fewer than `limit` hits lie in
(t - window, t]. A fixed window lets twice the limit through around its edge; an approximated one (sliding window
counter) errs in both directions. The price is one number per hit that is remembered.

A hit that may wait is not tried again and again: it books its turn, the moment at which it will be allowed behind all
that booked before it. So nobody overtakes, nobody wakes in vain, and one question to the store is enough, however many
processes wait. Counting is the store's work (`RateLimitStore`), in memory or on a server.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from msgspec import Struct

from agentrt import options
from agentrt.errors import ConfigError
from agentrt.plugins import Host, close_plugin, open_plugin

if TYPE_CHECKING:
    from agentrt.config import Config

__all__ = ["GROUP", "MAX_LIMIT", "Decision", "RateLimitStore", "RateLimiter", "Turn", "micros"]

GROUP = "agentrt.rate_limits"

MAX_LIMIT = 1_000_000
"""The store remembers every hit of a window, so a limit has one."""

MIN_WINDOW = 0.001
"""Seconds: a shorter one is below what a network and an event loop can keep."""

MAX_SECONDS = 1e9
"""About 30 years: what lies beyond is a mistake, and would not fit into the stores' numbers."""

MAX_KEY = 200
"""Longer keys, in bytes, are kept as their digest."""


class Decision(Struct, frozen=True):
    """What a rate limit says; true in a condition if the hit is allowed.

    `remaining`: hits that would still be allowed now. `retry_after`: seconds after which the same hit will be allowed
    if nobody else comes first, 0.0 if it is allowed. `degraded`: the store did not answer, and its failure policy
    decided. `waited`: seconds that `acquire` waited for the turn.
    """

    allowed: bool
    remaining: int
    retry_after: float
    degraded: bool = False
    waited: float = 0.0

    def __bool__(self) -> bool:
        return self.allowed


class Turn(Struct, frozen=True):
    """What a store answers. `taken`: the hit is counted, and its turn comes in `wait` seconds, 0.0 for now; else
    nothing is counted, and it would come in `wait` seconds. `remaining`, `degraded`: as in `Decision`. `slot`: the
    turn on the store's own clock, in microseconds, for `give_back`."""

    taken: bool
    wait: float
    remaining: int
    slot: int = 0
    degraded: bool = False


class RateLimitStore(Protocol):
    """Counts hits. A plugin of the group `agentrt.rate_limits`; `open(host)` and `aclose()` are optional."""

    async def hit(self, key: str, limit: int, window: float, *, cost: int, max_wait: float) -> Turn:
        """Count `cost` hits of `key` at the first moment from now on at which `limit` in `window` seconds allows them,
        behind all that are booked already; nothing if that moment is more than `max_wait` seconds away.

        One step: whatever else is counted at the same time comes before or after it. `cost` is at most `limit`.
        A key and a window name one count; another limit on both looks at the same hits. Moments lie on a grid
        of microseconds.
        """
        ...

    def give_back(self, key: str, window: float, slot: int, *, cost: int) -> None:
        """Forget a turn that will not be used, as far as possible. Returns at once, and never raises; what takes time
        goes on in the background until `aclose`."""
        ...

    async def reset(self, key: str, window: float) -> None:
        """Forget all hits of `key` in `window`."""
        ...


class RateLimiter:
    """Rate limits by key.

    `store` (in memory): who counts. `host`: what the store is opened with before its first use; None: it needs no
    opening. It belongs to one event loop.
    """

    def __init__(
        self, store: RateLimitStore | None = None, *, host: Host | None = None, name: str = ""
    ) -> None:
        if store is None:
            from agentrt.security.memory_limits import MemoryLimits

            store = MemoryLimits()
        self._store = store
        self.is_local = bool(getattr(store, "is_local", False))
        """Whether counting itself takes no time: no wait but that for a turn."""
        self._host = host
        self._name = name
        self._is_open = host is None
        self._opening: asyncio.Lock | None = None

    @classmethod
    def from_config(cls, config: Config, host: Host | None = None) -> RateLimiter:
        """The limiter that [rate_limits] describes. It is opened by its first use.

        Raises `ConfigError` for a wrong option, `PluginError` for a backend that is not there.
        """
        table = config.rate_limits()
        return cls(table.make(), host=host, name=table.plugin)

    async def check_rate_limit(self, key: str, limit: int, window: float, *, cost: int = 1) -> Decision:
        """Whether a hit of `key` is allowed now, at most `limit` in any `window` seconds; if it is, it is counted.

        `cost` (1): so many hits at once, all or none. Never waits for a turn. A hit that others wait ahead of is
        refused, and one that is refused costs nothing.
        """
        turn = await self._hit(key, limit, window, cost, 0.0)
        return Decision(turn.taken, turn.remaining, 0.0 if turn.taken else turn.wait, turn.degraded)

    async def acquire(
        self, key: str, limit: int, window: float, *, max_wait: float, cost: int = 1
    ) -> Decision:
        """The same, but waits for its turn if that comes within `max_wait` seconds; else it is refused at once.

        Turns are given in the order in which they were asked for, over all processes that share the store. A waiter
        that is cancelled gives its turn back: those behind it keep theirs, those who come later gain. One that is
        cancelled while a store on the network is being asked may have spent its hit.
        """
        check_wait(max_wait)
        turn = await self._hit(key, limit, window, cost, max_wait)
        if not turn.taken:
            return Decision(False, turn.remaining, turn.wait, turn.degraded)
        if turn.wait > 0.0:
            try:
                await asyncio.sleep(turn.wait)
            except BaseException:
                self._store.give_back(_short(key), float(window), turn.slot, cost=cost)
                raise
        return Decision(True, turn.remaining, 0.0, turn.degraded, turn.wait)

    async def reset(self, key: str, window: float) -> None:
        """Forget the hits of `key` in `window` seconds, and the turns that are booked."""
        await self._ready()
        await self._store.reset(_short(key), _window(window))

    async def aclose(self) -> None:
        """Close the store."""
        await close_plugin(self._store)

    async def __aenter__(self) -> Self:
        await self._ready()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    # --- inside ----------------------------------------------------------------------------------------

    async def _hit(self, key: str, limit: int, window: float, cost: int, max_wait: float) -> Turn:
        check_limit(limit, window)
        if cost != 1:
            options.count("cost", cost)
        if cost > limit:
            raise ConfigError(
                f"cost must be at most the limit of {limit}, not {cost}: it could never be allowed"
            )
        name = _short(key)
        if not self._is_open:
            await self._ready()
        return await self._store.hit(name, limit, float(window), cost=cost, max_wait=max_wait)

    async def _ready(self) -> None:
        """Open the store once; those who come meanwhile wait for it."""
        if self._host is None or self._is_open:
            return
        if self._opening is None:
            self._opening = asyncio.Lock()
        async with self._opening:
            if not self._is_open:
                await open_plugin(GROUP, self._name, self._store, self._host)
                self._is_open = True


def check_limit(limit: int, window: float) -> None:
    """Raise ConfigError for what is no limit per window."""
    are_numbers = type(limit) is int and type(window) in (int, float)
    if are_numbers and 0 < limit <= MAX_LIMIT and MIN_WINDOW <= window <= MAX_SECONDS:
        return  # every check comes by here: the usual case costs next to nothing
    options.count("limit", limit)
    if limit > MAX_LIMIT:
        raise ConfigError(
            f"limit must be at most {MAX_LIMIT:,}, not {limit:,}: every hit of the window is remembered; count in "
            "larger units, such as thousands of tokens"
        )
    _window(window)


def micros(seconds: float) -> int:
    """Microseconds, rounded: sums of floats that mean the same moment give the same number."""
    return round(seconds * 1e6)


def check_wait(max_wait: float) -> float:
    """`max_wait` if it is a wait that a store can count; else raise ConfigError."""
    return _bounded("max_wait", max_wait, 0.0)


def _window(window: float) -> float:
    return _bounded("window", window, MIN_WINDOW)


def _bounded(name: str, value: float, minimum: float) -> float:
    seconds = options.seconds(name, value, minimum=minimum, open_=False)
    if seconds > MAX_SECONDS:
        raise ConfigError(f"{name} must be at most {MAX_SECONDS:,.0f} s, about 30 years, not {value!r}")
    return seconds


def _short(key: str) -> str:
    """A key that a store can keep: a caller who chooses its own must not fill the memory with long ones."""
    if type(key) is str and len(key) <= MAX_KEY and key.isascii() and key.strip():
        return key
    data = options.text("key", key).encode("utf-8", "surrogatepass")
    if len(data) <= MAX_KEY and _is_unicode(data):
        return key
    import hashlib  # here: it brings OpenSSL, and few keys are that long

    return f"blake2b:{hashlib.blake2b(data, digest_size=20).hexdigest()}"


def _is_unicode(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
