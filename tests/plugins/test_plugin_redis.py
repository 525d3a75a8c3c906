"""agentrt-redis on a real Valkey: counting, turns, processes, clocks, connections."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest
import pytest_asyncio
from agentrt_redis import RedisLimits
from security.moving_window import Model
from servers.program import eventually
from servers.valkey import Valkey

from agentrt.config import Config
from agentrt.errors import ConfigError
from agentrt.plugins import make
from agentrt.security.rate_limits import Decision, RateLimiter, micros

pytestmark = pytest.mark.asyncio

PATIENT: dict[str, Any] = {"timeout": 20, "connect_timeout": 20, "queue_timeout": 20}
"""The tests may run on a machine that has better things to do."""


@pytest_asyncio.fixture
async def limiter(valkey: Valkey) -> AsyncIterator[RateLimiter]:
    async with RateLimiter(RedisLimits(url=valkey.url, on_failure="closed", **PATIENT)) as made:
        yield made


# --- counting ------------------------------------------------------------------------------------------


async def test_of_a_thousand_concurrent_hits_at_limit_100_exactly_100_are_allowed(
    limiter: RateLimiter,
) -> None:
    made = await asyncio.gather(*(limiter.check_rate_limit("key", 100, 60) for _ in range(1000)))
    assert sum(map(bool, made)) == 100
    assert sorted((decision.remaining for decision in made if decision), reverse=True) == list(
        range(99, -1, -1)
    )
    assert all(55 < decision.retry_after <= 60 for decision in made if not decision)
    assert not any(decision.degraded for decision in made)


_CHILD = """
import asyncio, json, sys, time
from agentrt.security.rate_limits import RateLimiter
from agentrt_redis import RedisLimits

async def main(url, hits, limit, window, gate):
    patient = {"timeout": 30, "connect_timeout": 30, "queue_timeout": 30}
    async with RateLimiter(RedisLimits(url=url, on_failure="closed", **patient)) as limiter:
        await limiter.check_rate_limit("warm up", 100, 60)
        # All begin together.
        print("ready", flush=True)
        sys.stdin.readline()
        made = await asyncio.gather(*(limiter.check_rate_limit("key", limit, window) for _ in range(hits)))
        print(json.dumps([sum(map(bool, made)), sum(d.degraded for d in made)]))

url, hits, limit, window, skew = sys.argv[1], *map(float, sys.argv[2:])
if skew:
    real, monotonic = time.time, time.monotonic
    time.time = lambda: real() + skew
asyncio.run(main(url, int(hits), int(limit), window, 0))
"""


def start(url: str, *, hits: int, limit: int, window: float, skew: float = 0.0) -> subprocess.Popen[str]:
    words = [url, str(hits), str(limit), str(window), str(skew)]
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


async def results(children: list[subprocess.Popen[str]]) -> list[list[int]]:
    def work() -> list[list[int]]:
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        return [json.loads(child.communicate(timeout=50)[0]) for child in children]

    return await asyncio.to_thread(work)


async def test_of_a_thousand_hits_from_four_processes_exactly_100_are_allowed(valkey: Valkey) -> None:
    children = [start(valkey.url, hits=250, limit=100, window=600) for _ in range(4)]
    counted = await results(children)
    assert sum(allowed for allowed, _ in counted) == 100
    assert sum(degraded for _, degraded in counted) == 0


async def test_processes_whose_clocks_are_hours_apart_share_one_window(valkey: Valkey) -> None:
    """The server's clock counts; by theirs each would have a window of its own."""
    children = [
        start(valkey.url, hits=100, limit=50, window=600, skew=skew) for skew in (-7200.0, 0.0, 7200.0)
    ]
    counted = await results(children)
    assert sum(allowed for allowed, _ in counted) == 50


async def test_by_the_clocks_of_the_processes_more_would_be_allowed(valkey: Valkey) -> None:
    """What the library `limits` does with such clocks, and why the script is our own."""
    from limits import RateLimitItemPerSecond
    from limits.aio.storage import RedisStorage
    from limits.aio.strategies import MovingWindowRateLimiter

    storage = RedisStorage(f"async+{valkey.url}", implementation="redispy")
    reference = MovingWindowRateLimiter(storage)
    item = RateLimitItemPerSecond(1, 600)
    allowed = 0
    with pytest.MonkeyPatch.context() as patch:
        for skew in (-7200.0, 0.0, 7200.0):
            patch.setattr("limits.aio.storage.redis.redispy.time.time", lambda skew=skew: 1e9 + skew)
            allowed += await reference.hit(item, "key")
    await storage.bridge.storage.aclose()
    assert allowed == 3


async def test_turns_are_exactly_a_window_apart_by_the_servers_clock(valkey: Valkey) -> None:
    """Also for fractions of milliseconds, and so is `retry_after`, which is the same number."""
    store = RedisLimits(url=valkey.url, on_failure="closed", **PATIENT)
    for window, span in ((100.0, 100_000_000), (12.3456789, 12_345_679)):
        turns = [await store.hit("a", 2, window, cost=1, max_wait=1000) for _ in range(9)]
        slots = [turn.slot for turn in turns]
        assert [late - early for early, late in zip(slots, slots[2:], strict=False)] == [span] * 7
        refused = await store.hit("a", 2, window, cost=1, max_wait=0.0)
        assert not refused.taken
        assert refused.wait == pytest.approx(4 * window, abs=5.0)
    await store.aclose()


@pytest.mark.parametrize("seed", range(4))
async def test_the_script_decides_as_the_model_does(valkey: Valkey, seed: int) -> None:
    """Hits, waits and turns given back, in any order; what time it was, the answers tell."""
    choose = random.Random(seed)
    store = RedisLimits(url=valkey.url, on_failure="closed", **PATIENT)
    models = {window: Model(micros(window)) for window in (0.02, 0.05)}
    booked: list[tuple[float, int, int]] = []
    for _ in range(300):
        window, limit = choose.choice(list(models)), choose.choice((2, 2, 4))
        cost, max_wait = choose.choice((1, 2)), choose.choice((0.0, 0.0, 0.01, 0.1))
        model = models[window]
        turn = await store.hit("a", limit, window, cost=cost, max_wait=max_wait)
        wait = micros(turn.wait)
        now = turn.slot - wait
        assert turn.slot == model.first(now, limit, cost)
        assert turn.taken == (wait <= micros(max_wait))
        if turn.taken:
            model.turns += [turn.slot] * cost
            booked.append((window, turn.slot, cost))
            assert turn.remaining == max(0, limit - model.used(now)) or wait
        booked = [entry for entry in booked if entry[1] > now + 5_000]
        if booked and choose.random() < 0.3:
            window, slot, cost = booked.pop(choose.randrange(len(booked)))
            store.give_back("a", window, slot, cost=cost)
            assert store._returning is not None
            await store._returning
            for _ in range(cost):
                models[window].turns.remove(slot)
        if choose.random() < 0.2:
            await asyncio.sleep(choose.random() * 0.05)
    await store.aclose()


async def test_waiting_for_retry_after_is_enough(limiter: RateLimiter) -> None:
    assert await limiter.check_rate_limit("a", 1, 0.2)
    waits = 0
    while waits < 5:
        refused = await limiter.check_rate_limit("a", 1, 0.2)
        if not refused:  # or else the machine stood still for a whole window
            await asyncio.sleep(refused.retry_after)
            assert await limiter.check_rate_limit("a", 1, 0.2)
            waits += 1


async def test_no_window_of_the_servers_clock_holds_more_than_the_limit(valkey: Valkey) -> None:
    store = RedisLimits(url=valkey.url, on_failure="closed", **PATIENT)
    slots: list[int] = []
    while len(slots) < 16:
        turn = await store.hit("a", 5, 0.4, cost=1, max_wait=0.0)
        if turn.taken:
            slots.append(turn.slot)
        await asyncio.sleep(0.005)
    await store.aclose()
    assert all(late - early >= 400_000 for early, late in zip(slots, slots[5:], strict=False))


async def test_costs_windows_and_limits_are_as_in_memory(limiter: RateLimiter) -> None:
    assert await limiter.check_rate_limit("a", 10, 60, cost=7) == Decision(True, 3, 0.0)
    refused = await limiter.check_rate_limit("a", 10, 60, cost=4)
    assert (refused.allowed, refused.remaining) == (False, 3)
    assert await limiter.check_rate_limit("a", 10, 60, cost=3) == Decision(True, 0, 0.0)
    assert await limiter.check_rate_limit("a", 10, 30) == Decision(True, 9, 0.0)
    assert await limiter.check_rate_limit("a", 12, 60) == Decision(True, 1, 0.0)
    assert await limiter.check_rate_limit("b", 5000, 60, cost=5000) == Decision(True, 0, 0.0)
    await limiter.reset("a", 60)
    assert await limiter.check_rate_limit("a", 10, 60) == Decision(True, 9, 0.0)


async def test_keys_leave_the_server_with_their_window(limiter: RateLimiter, valkey: Valkey) -> None:
    for index in range(50):
        await limiter.check_rate_limit(f"user:{index}", 5, 600)
    assert await asyncio.to_thread(valkey.ask, "DBSIZE") == b":50\r\n"
    for index in range(50):
        await limiter.check_rate_limit(f"user:{index}", 5, 0.2)
    await eventually(lambda: valkey.ask("DBSIZE") == b":50\r\n", what="keys that go", timeout=30.0)


async def test_keys_of_any_text_are_kept_apart(limiter: RateLimiter) -> None:
    keys = ["a b", "a", "ä\n\r\x00", "{a}", "*", "\ud800", "a" * 5000, "a" * 5001]
    for key in keys:
        assert await limiter.check_rate_limit(key, 1, 60), key
    for key in keys:
        assert not await limiter.check_rate_limit(key, 1, 60), key


# --- waiting -------------------------------------------------------------------------------------------


async def test_waiters_are_served_in_order_at_the_rate_and_asked_for_once(
    limiter: RateLimiter, valkey: Valkey
) -> None:
    await limiter.check_rate_limit("warm up", 1, 1)

    async def served(key: str) -> list[int]:
        """Who had their turn, in this order."""
        asked = await commands(valkey, "evalsha")
        order: list[int] = []

        async def one(index: int) -> None:
            assert await limiter.acquire(key, 2, 0.1, max_wait=60)
            order.append(index)

        began = time.monotonic()
        tasks = []
        for index in range(20):
            tasks.append(asyncio.create_task(one(index)))
            # Each has asked before the next does.
            while await commands(valkey, "evalsha") <= asked + index:  # noqa: ASYNC110 - the server is asked
                await asyncio.sleep(0.002)
        await asyncio.gather(*tasks)
        assert time.monotonic() - began >= 0.9
        assert await commands(valkey, "evalsha") == asked + 20
        return order

    # Who stands still between the server's answer and his wait comes later: the order is that of a machine that runs.
    expected = [index // 2 for index in range(20)]
    for attempt in range(5):
        order = await served(f"a{attempt}")
        if [index // 2 for index in order] == expected:
            return
    raise AssertionError(f"they were never served in order, at last {order}")


async def commands(valkey: Valkey, name: str) -> int:
    """How often the server was asked so."""
    said = (await asyncio.to_thread(valkey.ask, "INFO commandstats")).decode()
    line = next(line for line in said.splitlines() if line.startswith(f"cmdstat_{name}:"))
    return int(line.partition("calls=")[2].partition(",")[0])


async def test_a_wait_beyond_max_wait_is_refused_at_once(limiter: RateLimiter) -> None:
    assert await limiter.acquire("a", 1, 1000, max_wait=0)
    began = time.monotonic()
    refused = await limiter.acquire("a", 1, 1000, max_wait=500)
    assert time.monotonic() - began < 20.0
    assert 900 < refused.retry_after <= 1000


async def test_processes_that_share_the_server_wait_in_one_queue(valkey: Valkey) -> None:
    """Two stores here, each with connections of its own."""
    one, other = (RedisLimits(url=valkey.url, on_failure="closed", **PATIENT) for _ in range(2))
    turns = await asyncio.gather(
        *(store.hit("a", 1, 100.0, cost=1, max_wait=10_000) for store in (one, other) * 10)
    )
    slots = sorted(turn.slot for turn in turns)
    assert [late - early for early, late in pairwise(slots)] == [100_000_000] * 19
    await one.aclose()
    await other.aclose()


async def test_a_cancelled_waiter_gives_its_turn_back(limiter: RateLimiter, valkey: Valkey) -> None:
    await limiter.acquire("a", 5, 1000, cost=5, max_wait=0)
    waiting = [asyncio.create_task(limiter.acquire("a", 5, 1000, cost=5, max_wait=9999)) for _ in range(3)]
    await until_turns_are(20, valkey)
    assert (await limiter.check_rate_limit("a", 5, 1000)).retry_after > 3500
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    assert all(task.cancelled() for task in waiting)
    await until_turns_are(5, valkey)
    assert (await limiter.check_rate_limit("a", 5, 1000)).retry_after < 1000


async def until_turns_are(count: int, valkey: Valkey) -> None:
    """Turns of the key "a" in a window of 1000 s."""
    turns = "LLEN agentrt:rate_limits:1000000000:a"
    reply = f":{count}\r\n".encode()
    await eventually(lambda: valkey.ask(turns) == reply, what=f"{count} turns", timeout=30.0)


async def test_many_turns_that_are_given_back_leave_room_for_others(valkey: Valkey) -> None:
    turns = "LLEN agentrt:rate_limits:60000000:k"
    store = RedisLimits(url=valkey.url, connections=1, timeout=10, queue_timeout=60)
    async with RateLimiter(store) as limiter:
        waiters = [asyncio.ensure_future(limiter.acquire("k", 1, 60, max_wait=1e8)) for _ in range(500)]
        await asyncio.sleep(0)
        await limiter.check_rate_limit("other", 5, 60)  # by the one connection, behind all of them
        assert valkey.ask(turns) == b":500\r\n"
        for waiter in waiters:
            waiter.cancel()
        await asyncio.gather(*waiters, return_exceptions=True)
        assert await limiter.check_rate_limit("other", 5, 60)
        assert int(valkey.ask(turns)[1:]) >= 200, "most of them came after the check"
    assert valkey.ask(turns) == b":1\r\n", "the first had its turn at once"


async def test_closing_waits_for_turns_that_are_being_given_back(valkey: Valkey) -> None:
    async with RateLimiter(RedisLimits(url=valkey.url, **PATIENT)) as limiter:
        await limiter.acquire("a", 1, 1000, max_wait=0)
        task = asyncio.create_task(limiter.acquire("a", 1, 1000, max_wait=9999))
        await until_turns_are(2, valkey)
        task.cancel()
        await asyncio.wait([task])
    assert (await asyncio.to_thread(valkey.ask, "LLEN agentrt:rate_limits:1000000000:a")) == b":1\r\n"


@pytest.mark.parametrize("delay", [0.0, 0.0002, 0.0005, 0.001, 0.002, 0.005])
async def test_cancelling_at_any_moment_leaves_the_connections_in_order(
    limiter: RateLimiter, delay: float
) -> None:
    """A connection whose answer nobody waited for must not give it to the next question."""
    for index in range(30):
        task = asyncio.create_task(limiter.check_rate_limit(f"cancelled {index}", 1000, 60, cost=7))
        await asyncio.sleep(delay)
        task.cancel()
        await asyncio.wait([task])
        decision = await limiter.check_rate_limit(f"next {index}", 50, 60)
        assert decision == Decision(True, 49, 0.0)


async def test_a_waiter_is_cancelled_at_whatever_step_it_is(valkey: Valkey) -> None:
    """Python 3.11's `asyncio.wait_for` forgets a cancellation that comes when what it waits for has just ended."""
    store = RedisLimits(url=valkey.url, on_failure="closed", **PATIENT)
    async with RateLimiter(store) as limiter:
        await limiter.acquire("a", 1, 1000, max_wait=0)
        for steps in range(60):
            task = asyncio.create_task(limiter.acquire("a", 1, 1000, max_wait=1e8))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task], timeout=30)
            assert task.cancelled(), f"cancelled at step {steps}"


# --- connections ---------------------------------------------------------------------------------------


async def test_more_questions_than_connections_queue(valkey: Valkey) -> None:
    store = RedisLimits(url=valkey.url, connections=2, on_failure="closed", **PATIENT)
    async with RateLimiter(store) as limiter:
        made = await asyncio.gather(*(limiter.check_rate_limit("a", 500, 60) for _ in range(500)))
        await until_there_are(2, valkey)
    assert all(made)
    assert not any(decision.degraded for decision in made)
    await until_there_are(0, valkey)


async def until_there_are(count: int, valkey: Valkey) -> None:
    """Connections, but for the one that asks. The server sees a little later that one was closed."""

    def are_there() -> bool:
        return valkey.ask("CLIENT LIST").count(b" addr=") == count + 1

    await eventually(are_there, what=f"{count} connections", timeout=30.0)


async def test_a_server_that_forgot_the_script_is_given_it_again(
    limiter: RateLimiter, valkey: Valkey
) -> None:
    assert await limiter.check_rate_limit("a", 2, 60)
    assert await asyncio.to_thread(valkey.ask, "SCRIPT FLUSH") == b"+OK\r\n"
    assert await limiter.check_rate_limit("a", 2, 60) == Decision(True, 0, 0.0)
    assert not await limiter.check_rate_limit("a", 2, 60)


async def test_a_socket_will_do(valkey: Valkey) -> None:
    async with RateLimiter(RedisLimits(url=f"unix://{valkey.socket_path}", on_failure="closed")) as limiter:
        assert await limiter.check_rate_limit("a", 1, 60) == Decision(True, 0, 0.0)


# --- configuration -------------------------------------------------------------------------------------


async def test_it_is_the_backend_redis_of_the_configuration(valkey: Valkey) -> None:
    tables = {"backend": "redis", "redis": {"url": valkey.url, "prefix": "mine:", "on_failure": "open"}}
    async with RateLimiter.from_config(Config({"rate_limits": tables})) as limiter:
        assert await limiter.check_rate_limit("a", 1, 60)
        assert not await limiter.check_rate_limit("a", 1, 60)
    assert await asyncio.to_thread(valkey.ask, "KEYS *") == b"*1\r\n$15\r\nmine:60000000:a\r\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "http://x"}, r"url must be such as redis://HOST:6379/0"),
        ({"url": "redis://x/a"}, r"url must be such as"),
        ({"url": "redis://x:port"}, r"url must be such as"),
        ({"url": "redis://x?db=2"}, r"url must be such as"),
        ({"url": "redis://"}, r"url must be such as"),
        (
            {"url": "redis://me:hunter2@x"},
            r'url holds a password; leave it out and set the option password, or give "secret://NAME" as url',
        ),
        ({"on_failure": "maybe"}, r"on_failure"),
        ({"connections": 0}, r"connections must be a whole number of at least 1"),
        ({"timeout": 0}, r"timeout must be a number of seconds more than 0"),
        ({"pause": -1}, r"pause must be a number of seconds more than 0"),
    ],
    ids=str,
)
async def test_bad_options_are_refused_without_a_secret_in_the_message(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make("agentrt.rate_limits", "redis", options)
    assert "hunter2" not in str(caught.value)


async def test_a_secret_without_a_runtime_says_what_is_needed() -> None:
    limiter = RateLimiter(RedisLimits(url="secret://redis_url"))
    with pytest.raises(ConfigError, match="secret://redis_url is resolved by a runtime"):
        await limiter.check_rate_limit("a", 1, 1)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("redis://cache", "redis://cache:6379/0"),
        ("valkey://cache:7000/3", "valkey://cache:7000/3"),
        ("rediss://[::1]:6380", "rediss://[::1]:6380/0"),
        ("redis://me@cache", "redis://cache:6379/0"),
        ("unix:///run/valkey.sock", "unix:///run/valkey.sock"),
    ],
)
async def test_servers_are_named_without_their_user(url: str, text: str) -> None:
    from agentrt_redis.address import Address

    assert Address.parse(url).text == text
