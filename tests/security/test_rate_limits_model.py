"""Rate limits in memory against a model that counts every window anew, and against the library `limits`."""

from __future__ import annotations

import asyncio
import types
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agentrt.security.memory_limits import MemoryLimits
from agentrt.security.rate_limits import RateLimiter, Turn, micros
from agentrt.testing import VirtualTimeLoop, run
from security.moving_window import Model

KEYS = ("a", "b")
LIMITS = (2, 2, 4)
WINDOWS = (0.5, 1.0)


class Counting(RuleBasedStateMachine):
    """Hits, waits, returned turns and passing time in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=VirtualTimeLoop)
        self.store = MemoryLimits()
        self.models = {(key, window): Model(micros(window)) for key in KEYS for window in WINDOWS}
        self.booked: list[tuple[str, float, int, int]] = []

    def teardown(self) -> None:
        self.runner.close()

    @property
    def now(self) -> int:
        return micros(self.runner.get_loop().time())

    @rule(seconds=st.sampled_from([0.5, 0.25, 0.5, 1.0, 1e-6, 0.1]) | st.floats(0.0, 3.0))
    def time_passes(self, seconds: float) -> None:
        self.runner.run(asyncio.sleep(seconds))

    @rule(
        key=st.sampled_from(KEYS),
        window=st.sampled_from(WINDOWS),
        limit=st.sampled_from(LIMITS),
        cost=st.integers(1, 2),
        max_wait=st.sampled_from([0.0, 0.0, 0.3, 5.0, 5.0]),
    )
    def hit(self, key: str, window: float, limit: int, cost: int, max_wait: float) -> None:
        model, now = self.models[key, window], self.now
        first = model.first(now, limit, cost)
        hit = self.store.hit(key, limit, window, cost=cost, max_wait=max_wait)
        turn: Turn = self.runner.run(hit)
        assert turn.wait == (first - now) / 1e6
        assert turn.taken == (first - now <= micros(max_wait))
        if turn.taken:
            assert turn.slot == first
            model.turns += [first] * cost
            self.booked.append((key, window, first, cost))
            if turn.wait == 0.0:
                assert turn.remaining == limit - model.used(now)

    @precondition(lambda self: self.booked)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        booked = data.draw(st.sampled_from(self.booked))
        self.booked.remove(booked)
        key, window, slot, cost = booked
        if slot <= self.now:
            return  # its turn has come: it was used
        self.store.give_back(key, window, slot, cost=cost)
        for _ in range(cost):
            self.models[key, window].turns.remove(slot)

    @rule(key=st.sampled_from(KEYS), window=st.sampled_from(WINDOWS))
    def reset(self, key: str, window: float) -> None:
        self.runner.run(self.store.reset(key, window))
        self.models[key, window].turns.clear()
        self.booked = [entry for entry in self.booked if entry[:2] != (key, window)]

    @invariant()
    def no_window_holds_more_than_the_limit(self) -> None:
        for model in self.models.values():
            assert all(model.used(turn) <= max(LIMITS) for turn in model.turns)


Counting.TestCase.settings = settings(max_examples=200, stateful_step_count=40)
TestCounting = Counting.TestCase


@given(
    limit=st.integers(1, 5),
    gaps=st.lists(st.sampled_from([0.0, 0.2, 0.5, 0.99, 1.0, 1.01, 3.0]), min_size=1, max_size=60),
)
def test_any_window_anywhere_holds_at_most_the_limit(limit: int, gaps: list[float]) -> None:
    """Looked at from outside, by the loop's clock: what was allowed, and when."""

    async def main() -> None:
        limiter = RateLimiter()
        loop = asyncio.get_running_loop()
        allowed: dict[int, list[float]] = defaultdict(list)
        for gap in gaps:
            await asyncio.sleep(gap)
            if await limiter.check_rate_limit("a", limit, 1.0):
                allowed[0].append(loop.time())
        times = allowed[0]
        for index in range(len(times) - limit):
            assert times[index + limit] - times[index] >= 1.0 - 1e-6

    run(main)


@given(
    limit=st.integers(1, 5),
    window=st.integers(1, 4),
    steps=st.lists(st.tuples(st.integers(0, 8), st.integers(1, 2)), min_size=1, max_size=40),
)
@settings(max_examples=50)
def test_the_library_limits_decides_the_same(limit: int, window: int, steps: list[tuple[int, int]]) -> None:
    """Whole seconds, which it can count. Its window includes both ends, ours one, so no two hits are whole seconds
    apart here."""
    import limits.aio.storage.memory as theirs
    from limits import RateLimitItemPerSecond
    from limits.aio.strategies import MovingWindowRateLimiter

    clock = types.SimpleNamespace(now=1000.0)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        reference = MovingWindowRateLimiter(theirs.MemoryStorage())
        item = RateLimitItemPerSecond(limit, window)
        limiter = RateLimiter()
        for quarters, cost in steps:
            await asyncio.sleep(quarters / 4 + 1e-4)
            clock.now = 1000.0 + loop.time()
            if cost > limit:
                continue
            expected = await reference.hit(item, "a", cost=cost)
            assert bool(await limiter.check_rate_limit("a", limit, window, cost=cost)) == expected

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theirs, "time", types.SimpleNamespace(time=lambda: clock.now))
        run(main)


def test_what_the_library_limits_cannot_count() -> None:
    """Why the count is our own: half a second becomes no window at all."""
    from limits import RateLimitItemPerSecond

    fraction: Any = 0.5
    assert RateLimitItemPerSecond(1, fraction).get_expiry() == 0
    fraction = 1.5
    assert RateLimitItemPerSecond(1, fraction).get_expiry() == 1
