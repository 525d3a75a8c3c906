"""Rate limits in memory: the moving window, turns, waiting, giving back, bounds."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import tracemalloc
from typing import Any

import pytest
from pipeline.doubles import now, scenario

from agentrt.config import Config
from agentrt.errors import ConfigError, PluginError
from agentrt.security.memory_limits import MemoryLimits
from agentrt.security.rate_limits import Decision, RateLimiter, Turn
from agentrt.testing import advance, run

MICRO = 1e-6


async def decisions(limiter: RateLimiter, count: int, limit: int, window: float) -> list[Decision]:
    return await asyncio.gather(*(limiter.check_rate_limit("key", limit, window) for _ in range(count)))


# --- checking ------------------------------------------------------------------------------------------


@scenario
async def test_of_a_thousand_concurrent_hits_at_limit_100_exactly_100_are_allowed() -> None:
    limiter = RateLimiter()
    made = await decisions(limiter, 1000, 100, 60)
    assert [decision.allowed for decision in made] == [True] * 100 + [False] * 900
    assert [decision.remaining for decision in made[:100]] == list(range(99, -1, -1))
    assert made[-1] == Decision(False, 0, 60.0)


@scenario
async def test_a_decision_is_true_if_it_is_allowed() -> None:
    limiter = RateLimiter()
    assert await limiter.check_rate_limit("a", 1, 1)
    assert not await limiter.check_rate_limit("a", 1, 1)


@scenario
async def test_a_fixed_window_would_let_twice_as_much_through_at_its_edge() -> None:
    """100 hits just before the full minute and 100 just after it: a fixed window allows all of them."""
    limiter = RateLimiter()
    await advance(59.9)
    before = await decisions(limiter, 100, 100, 60)
    await advance(0.2)
    after = await decisions(limiter, 100, 100, 60)
    assert sum(map(bool, before)) == 100
    assert sum(map(bool, after)) == 0
    assert after[0].retry_after == pytest.approx(59.8)


@scenario
async def test_each_hit_leaves_by_itself() -> None:
    limiter = RateLimiter()
    for _ in range(3):
        assert await limiter.check_rate_limit("a", 3, 10)
        await advance(2)
    refused = await limiter.check_rate_limit("a", 3, 10)
    assert refused == Decision(False, 0, pytest.approx(4.0))
    await advance(4)
    assert await limiter.check_rate_limit("a", 3, 10)
    assert not await limiter.check_rate_limit("a", 3, 10)
    await advance(2)
    assert await limiter.check_rate_limit("a", 3, 10)


@pytest.mark.parametrize("start", [0.0, 0.1, 12345.678901, 1e6 / 3, 4e6 + 0.1])
@pytest.mark.parametrize("window", [0.001, 0.1, 1 / 3, 60.0, 86_400.0])
def test_retry_after_is_exact(start: float, window: float) -> None:
    async def main() -> None:
        limiter = RateLimiter()
        assert await limiter.check_rate_limit("a", 1, window)
        await advance(window * 0.3)
        wait = (await limiter.check_rate_limit("a", 1, window)).retry_after
        await advance(wait - 2 * MICRO)
        early = await limiter.check_rate_limit("a", 1, window)
        assert not early
        assert early.retry_after == pytest.approx(2 * MICRO, abs=MICRO)
        await advance(early.retry_after)
        assert await limiter.check_rate_limit("a", 1, window)

    run(main, start=start)


@scenario
async def test_a_refused_hit_costs_nothing() -> None:
    limiter = RateLimiter()
    assert await limiter.check_rate_limit("a", 1, 10)
    for _ in range(9):
        await advance(1)
        assert not await limiter.check_rate_limit("a", 1, 10)
    await advance(1)
    assert await limiter.check_rate_limit("a", 1, 10)


@scenario
async def test_a_hit_may_cost_more_and_is_all_or_nothing() -> None:
    limiter = RateLimiter()
    assert await limiter.check_rate_limit("a", 10, 60, cost=7) == Decision(True, 3, 0.0)
    await advance(10)
    assert await limiter.check_rate_limit("a", 10, 60, cost=4) == Decision(False, 3, 50.0)
    assert await limiter.check_rate_limit("a", 10, 60, cost=3) == Decision(True, 0, 0.0)
    await advance(50)
    assert await limiter.check_rate_limit("a", 10, 60, cost=7) == Decision(True, 0, 0.0)


@scenario
async def test_keys_and_windows_are_counted_apart_and_a_limit_may_change() -> None:
    limiter = RateLimiter()
    assert await limiter.check_rate_limit("a", 1, 60)
    assert await limiter.check_rate_limit("b", 1, 60)
    assert await limiter.check_rate_limit("a", 1, 30)
    assert not await limiter.check_rate_limit("a", 1, 60)
    assert await limiter.check_rate_limit("a", 2, 60)
    assert not await limiter.check_rate_limit("a", 1, 60)


@scenario
async def test_reset_forgets_a_key_in_one_window() -> None:
    limiter = RateLimiter()
    for window in (30, 60):
        assert await limiter.check_rate_limit("a", 1, window)
    await limiter.reset("a", 60)
    await limiter.reset("never seen", 60)
    assert not await limiter.check_rate_limit("a", 1, 30)
    assert await limiter.check_rate_limit("a", 1, 60)


# --- waiting -------------------------------------------------------------------------------------------


@scenario
async def test_waiters_get_their_turns_in_order_and_at_the_rate() -> None:
    limiter = RateLimiter()
    served: dict[int, float] = {}

    async def one(index: int) -> None:
        assert await limiter.acquire("a", 2, 1.0, max_wait=100)
        served[index] = now()

    await asyncio.gather(*(one(index) for index in range(100)))
    assert served == {index: pytest.approx(index // 2) for index in range(100)}


@scenario
async def test_a_wait_beyond_max_wait_is_refused_at_once() -> None:
    limiter = RateLimiter()
    assert await limiter.acquire("a", 1, 10, max_wait=0)
    assert await limiter.acquire("a", 1, 10, max_wait=9.9) == Decision(False, 0, 10.0)
    assert now() == 0.0
    assert await limiter.acquire("a", 1, 10, max_wait=10) == Decision(True, 0, 0.0, waited=10.0)
    assert now() == 10.0


@scenario
async def test_nobody_overtakes_those_who_wait() -> None:
    limiter = RateLimiter()
    await limiter.acquire("a", 1, 10, max_wait=0)
    waiting = asyncio.create_task(limiter.acquire("a", 1, 10, max_wait=10))
    await advance(5)
    assert await limiter.check_rate_limit("a", 1, 10) == Decision(False, 0, 15.0)
    await advance(5)
    assert await waiting
    assert not await limiter.check_rate_limit("a", 1, 10)
    await advance(10)
    assert await limiter.check_rate_limit("a", 1, 10)


@scenario
async def test_waiting_sets_one_timer_per_waiter_and_wakes_it_once() -> None:
    store = MemoryLimits()
    asked = 0
    count = store.count

    def counting(*args: Any, **kwargs: Any) -> Turn:
        nonlocal asked
        asked += 1
        return count(*args, **kwargs)

    store.count = counting  # type: ignore[method-assign]
    limiter = RateLimiter(store)
    await asyncio.gather(*(limiter.acquire("a", 1, 1.0, max_wait=1000) for _ in range(500)))
    assert now() == pytest.approx(499.0)
    assert asked == 500


@scenario
async def test_a_cancelled_waiter_gives_its_turn_back_to_those_who_come_later() -> None:
    limiter = RateLimiter()
    await limiter.acquire("a", 1, 10, max_wait=0)
    waiting = [asyncio.create_task(limiter.acquire("a", 1, 10, max_wait=100)) for _ in range(5)]
    await advance(1)
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    assert all(task.cancelled() for task in waiting)
    assert await limiter.acquire("a", 1, 10, max_wait=100)
    assert now() == pytest.approx(10.0)


@scenario
async def test_a_waiter_cancelled_in_the_middle_leaves_the_turns_of_the_others() -> None:
    limiter = RateLimiter()
    await limiter.acquire("a", 1, 10, max_wait=0)
    first, second, third = (asyncio.create_task(limiter.acquire("a", 1, 10, max_wait=100)) for _ in range(3))
    await advance(1)
    second.cancel()
    await first
    assert now() == pytest.approx(10.0)
    await third
    assert now() == pytest.approx(30.0)
    assert (await limiter.check_rate_limit("a", 1, 10)).retry_after == pytest.approx(10.0)


@scenario
async def test_a_turn_in_the_middle_that_was_given_back_is_not_taken_by_one_who_comes_later() -> None:
    limiter = RateLimiter()
    await limiter.acquire("a", 2, 10, cost=2, max_wait=0)
    tasks = [asyncio.create_task(limiter.acquire("a", 2, 10, cost=2, max_wait=100)) for _ in range(2)]
    await advance(1)
    tasks[0].cancel()
    assert await limiter.check_rate_limit("a", 2, 10, cost=1) == Decision(False, 0, 29.0)
    await tasks[1]
    assert now() == 20.0


@scenario
async def test_a_waiter_cancelled_in_the_moment_of_its_turn_has_spent_nothing() -> None:
    limiter = RateLimiter()
    await limiter.acquire("a", 1, 10, max_wait=0)
    unlucky = asyncio.create_task(limiter.acquire("a", 1, 10, max_wait=100))
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_at(10.0, unlucky.cancel)
    await asyncio.wait([unlucky])
    assert unlucky.cancelled()
    assert await limiter.check_rate_limit("a", 1, 10)


@scenario
async def test_a_costly_turn_is_given_back_whole_and_no_more() -> None:
    limiter = RateLimiter()
    await limiter.acquire("a", 5, 10, cost=5, max_wait=0)
    other = asyncio.create_task(limiter.acquire("a", 5, 10, cost=2, max_wait=100))
    unlucky = asyncio.create_task(limiter.acquire("a", 5, 10, cost=3, max_wait=100))
    await advance(1)
    unlucky.cancel()
    await other
    assert await limiter.check_rate_limit("a", 5, 10, cost=3) == Decision(True, 0, 0.0)
    assert not await limiter.check_rate_limit("a", 5, 10)


@scenario
async def test_the_longest_windows_and_waits_can_be_counted() -> None:
    limiter = RateLimiter()
    assert await limiter.check_rate_limit("a", 1, 1e9)
    refused = await limiter.acquire("a", 1, 1e9, max_wait=1e8)
    assert refused == Decision(False, 0, 1e9)
    waiting = asyncio.create_task(limiter.acquire("a", 1, 1e9, max_wait=1e9))
    await advance(1)
    assert not waiting.done()
    waiting.cancel()
    await asyncio.wait([waiting])


# --- opening and closing -------------------------------------------------------------------------------


class Recording:
    """A store that writes down what is asked of it."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    async def open(self, host: Any) -> None:
        self.said.append(("open", host))
        await asyncio.sleep(1)

    async def aclose(self) -> None:
        self.said.append("closed")

    async def hit(self, key: str, limit: int, window: float, *, cost: int, max_wait: float) -> Turn:
        self.said.append((key, limit, window, cost, max_wait))
        return Turn(True, 0.0, limit - cost)

    def give_back(self, key: str, window: float, slot: int, *, cost: int) -> None:
        self.said.append(("back", key, window, slot, cost))

    async def reset(self, key: str, window: float) -> None:
        self.said.append(("reset", key, window))


@scenario
async def test_a_store_is_opened_once_by_the_first_who_needs_it() -> None:
    store = Recording()
    host: Any = object()
    async with RateLimiter(store, host=host) as limiter:
        await asyncio.gather(*(limiter.check_rate_limit("a", 5, 1) for _ in range(3)))
        await limiter.reset("a", 1)
    assert store.said == [("open", host), *[("a", 5, 1.0, 1, 0.0)] * 3, ("reset", "a", 1.0), "closed"]


@scenario
async def test_opening_that_is_cancelled_is_done_by_the_next() -> None:
    store = Recording()
    host: Any = object()
    limiter = RateLimiter(store, host=host)
    first = asyncio.create_task(limiter.check_rate_limit("a", 5, 1))
    second = asyncio.create_task(limiter.check_rate_limit("b", 5, 1))
    await advance(0.5)
    first.cancel()
    assert await second
    assert [said[0] for said in store.said] == ["open", "open", "b"]


@scenario
async def test_long_and_broken_keys_are_kept_as_their_digest() -> None:
    store = Recording()
    limiter = RateLimiter(store)
    for key in ("k" * 200, "k" * 201, "é" * 100, "é" * 101, "\ud800", "user:42"):
        await limiter.check_rate_limit(key, 1, 1)
    kept = [said[0] for said in store.said]
    assert kept[0] == "k" * 200
    assert kept[2] == "é" * 100
    assert kept[5] == "user:42"
    digests = [kept[1], kept[3], kept[4]]
    assert len(set(digests)) == 3
    assert all(digest.startswith("blake2b:") and len(digest) == 48 for digest in digests)


# --- bounds --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys", [50_000, pytest.param(1_000_000, marks=[pytest.mark.slow, pytest.mark.timeout(300)])]
)
def test_keys_that_are_not_used_any_more_are_forgotten(keys: int) -> None:
    """Each of them once, a thousand a second, with a window of 2 s: two thousand live at a time."""

    async def main() -> tuple[int, int]:
        store = MemoryLimits()
        most = 0
        tracemalloc.start()
        for index in range(keys):
            if index % 100 == 0:
                await asyncio.sleep(0.1)
            assert store.count(f"user:{index}", 5, 2.0, cost=1, max_wait=0).taken
            most = max(most, len(store))
        taken, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most, taken

    most, taken = run(main)
    assert 2_000 <= most < 2_500
    assert taken < 2_000_000


def test_more_keys_than_max_keys_forget_the_oldest_and_this_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> MemoryLimits:
        store = MemoryLimits(max_keys=1000)
        assert store.count("other", 1, 30.0, cost=1, max_wait=0).taken
        for index in range(20_000):
            assert store.count(f"user:{index}", 1, 60.0, cost=1, max_wait=0).taken
        # Another limit's key is not pushed out, the youngest of this one are there, the oldest begin anew.
        assert not store.count("other", 1, 30.0, cost=1, max_wait=0).taken
        assert not store.count("user:19500", 1, 60.0, cost=1, max_wait=0).taken
        assert store.count("user:0", 1, 60.0, cost=1, max_wait=0).taken
        return store

    with caplog.at_level(logging.WARNING):
        assert len(run(main)) == 1000
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "more than 1000 keys are in use" in caplog.text


@scenario
async def test_one_key_is_room_for_any_window() -> None:
    store = MemoryLimits(max_keys=1)
    limiter = RateLimiter(store)
    for window in (1, 2, 1, 3, 3):
        assert await limiter.check_rate_limit(f"of {window}", 5, window)
        assert len(store) == 1


@scenario
async def test_many_windows_are_swept_too() -> None:
    store = MemoryLimits()
    store.count("stays", 1, 1000, cost=1, max_wait=0)
    for index in range(2000):
        store.count("a", 1, 1 + index / 1000, cost=1, max_wait=0)
    await advance(10)
    for _ in range(2100):
        store.count("b", 5000, 60, cost=1, max_wait=0)
    assert len(store) == 2


@scenario
async def test_a_key_in_constant_use_does_not_keep_the_others() -> None:
    store = MemoryLimits()
    for index in range(1000):
        await asyncio.sleep(0.1)
        store.count("constant", 100, 1, cost=1, max_wait=0)
        store.count(f"once:{index}", 100, 1, cost=1, max_wait=0)
    assert len(store) < 15


@scenario
async def test_a_log_does_not_keep_what_has_left_its_window() -> None:
    store = MemoryLimits()
    for _ in range(10_000):
        assert store.count("a", 10, 1, cost=1, max_wait=0).taken
        await asyncio.sleep(0.1)
    (logs,) = store._windows.values()
    assert len(logs["a"]) < 100


def test_another_loop_whose_clock_is_behind_begins_anew() -> None:
    limiter = RateLimiter()

    async def once() -> bool:
        return bool(await limiter.check_rate_limit("a", 1, 1000))

    assert run(once, start=500.0)
    assert not run(once, start=600.0)
    assert run(once, start=0.0)


# --- options -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", 1, 1), "key must be a name, not ''"),
        ((7, 1, 1), "key must be a name, not 7"),
        (("a", 0, 1), "limit must be a whole number of at least 1, not 0"),
        (("a", 1.5, 1), "limit must be a whole number of at least 1, not 1.5"),
        (("a", 1, 0), "window must be a number of seconds at least 0.001, not 0"),
        (("a", 1, float("nan")), "window must be a number of seconds at least 0.001, not nan"),
        (("a", 1, 1e10), "window must be at most 1,000,000,000 s, about 30 years, not 10000000000.0"),
        (("a", 1, "1m"), "window must be a number of seconds at least 0.001, not '1m'"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    async def main() -> None:
        await RateLimiter().check_rate_limit(*arguments)

    with pytest.raises(ConfigError) as caught:
        run(main)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cost": 0, "max_wait": 0}, "cost must be a whole number of at least 1, not 0"),
        (
            {"cost": 6, "max_wait": 0},
            "cost must be at most the limit of 5, not 6: it could never be allowed",
        ),
        ({"max_wait": -1}, "max_wait must be a number of seconds at least 0, not -1"),
        ({"max_wait": 1e10}, "max_wait must be at most 1,000,000,000 s, about 30 years, not 10000000000.0"),
        ({"max_wait": float("inf")}, "max_wait must be a number of seconds at least 0, not inf"),
    ],
    ids=str,
)
def test_bad_waits_and_costs_are_refused(arguments: dict[str, Any], message: str) -> None:
    async def main() -> None:
        await RateLimiter().acquire("a", 5, 1, **arguments)

    with pytest.raises(ConfigError) as caught:
        run(main)
    assert str(caught.value) == message


def test_a_limit_too_large_to_remember_says_what_to_do() -> None:
    async def main() -> None:
        await RateLimiter().check_rate_limit("a", 1_000_001, 1)

    with pytest.raises(ConfigError, match=r"at most 1,000,000, not 1,000,001: .* count in larger units"):
        run(main)


# --- configuration -------------------------------------------------------------------------------------


def test_the_backend_is_memory_unless_it_is_configured() -> None:
    table = Config().rate_limits()
    assert (table.group, table.plugin) == ("agentrt.rate_limits", "memory")
    limiter = RateLimiter.from_config(Config({"rate_limits": {"memory": {"max_keys": 7}}}))
    assert isinstance(limiter._store, MemoryLimits)
    assert limiter._store.max_keys == 7


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"backed": "redis"}, r"\[rate_limits\] has no 'backed'; did you mean 'backend'"),
        ({"backend": ""}, r"\[rate_limits\] backend must be a name, not ''"),
        ({"backend": "redis", "redis": 5}, r"\[rate_limits\] has no 'redis'"),
        ({"memory": {"max_key": 5}}, r"\[rate_limits.memory\] has no 'max_key'; did you mean 'max_keys'"),
        ({"memory": {"max_keys": 0}}, r"\[rate_limits.memory\] max_keys must be a whole number"),
    ],
    ids=str,
)
def test_mistakes_in_the_configuration_are_told(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RateLimiter.from_config(Config({"rate_limits": table}))


def test_a_backend_that_is_not_there_is_told() -> None:
    with pytest.raises(PluginError, match=r"there is no plugin 'rediss' in the group agentrt\.rate_limits"):
        RateLimiter.from_config(Config({"rate_limits": {"backend": "rediss"}}))


def test_neither_the_library_limits_nor_redis_is_loaded() -> None:
    code = (
        "import sys, agentrt.runtime, agentrt.middleware.rate_limit, agentrt_redis; "
        "print(*sorted({'limits', 'redis'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
