"""Rate limits counted on a Redis or Valkey server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from agentrt import options
from agentrt.errors import AgentrtError, ConfigError
from agentrt.plugins import Host
from agentrt.security.memory_limits import MemoryLimits
from agentrt.security.rate_limits import Turn, micros
from agentrt_redis.connections import LOOKING_UP, Connections
from agentrt_redis.script import HIT

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from redis.commands.core import AsyncScript

__all__ = ["RedisLimits"]

POLICIES = ("open", "closed", "local")

BATCH = 100
"""So many turns are given back in one question at most."""


class RedisLimits:
    """Counts on one server, Redis from 5 or Valkey; by its clock, so those of the processes do not matter.

    `url` ("redis://127.0.0.1:6379/0"; "rediss://" for TLS, "unix:///PATH"), or a `secret://` reference to one.
    `username`; `password`, or a `secret://` reference, which is looked up for every new connection. `ca_file`:
    certificates to trust instead of the system's. `prefix` ("agentrt:rate_limits:"): what the server's keys begin with.
    `connections` (50): so many at most; further questions queue, up to `queue_timeout` (5.0 s). `connect_timeout`
    (1.0 s), `timeout` (1.0 s): for a connection, for an answer.
    `on_failure` ("local"): what holds when the server does not answer. "open": every hit is allowed; "closed": none
    is; "local": each process counts for itself meanwhile. `pause` (1.0 s): so long it is left alone then, before one
    question tries it again. Nothing is asked twice: a hit whose answer was lost may have been counted.
    """

    def __init__(
        self,
        *,
        url: str = "redis://127.0.0.1:6379/0",
        username: str | None = None,
        password: str | None = None,
        ca_file: Path | None = None,
        prefix: str = "agentrt:rate_limits:",
        connections: int = 50,
        connect_timeout: float = 1.0,
        timeout: float = 1.0,
        queue_timeout: float = 5.0,
        on_failure: Literal["open", "closed", "local"] = "local",
        pause: float = 1.0,
    ) -> None:
        self._limit = options.count("connections", connections)
        self._queue_timeout = options.seconds("queue_timeout", queue_timeout)
        self._connections = Connections(
            options.text("url", url),
            username=username,
            password=password,
            ca_file=ca_file,
            limit=self._limit,
            connect_timeout=options.seconds("connect_timeout", connect_timeout),
            timeout=options.seconds("timeout", timeout),
            queue_timeout=self._queue_timeout,
        )
        self._prefix = prefix
        self.on_failure = options.choice("on_failure", on_failure, POLICIES)
        self._pause = options.seconds("pause", pause)
        self._log = logging.getLogger("agentrt.rate_limits")
        self._local = MemoryLimits()
        self._script: AsyncScript | None = None
        self._permits = asyncio.Semaphore(self._limit)
        self._failed_at: float | None = None
        self._ask_again = 0.0
        self._unused: list[tuple[str, int, int]] = []
        self._returning: asyncio.Task[None] | None = None

    async def open(self, host: Host) -> None:
        """Take over the log and the secrets of `host`. No connection is made before the first hit."""
        self._log = host.log
        self._connections.open(host)

    async def aclose(self) -> None:
        """Wait for the turns that are being given back, and close the connections."""
        if self._returning is not None:
            await asyncio.wait([self._returning])
        await self._connections.aclose()

    async def hit(self, key: str, limit: int, window: float, *, cost: int, max_wait: float) -> Turn:
        """See `RateLimitStore`. While the server does not answer, `on_failure` decides."""
        if LOOKING_UP.get():
            # A call that gets the secret for a connection cannot wait for that connection, whatever the policy.
            return self._locally(key, limit, window, cost, max_wait)
        arguments = (limit, micros(window), cost, micros(max_wait))
        cancelled = _cancelled_since()
        answer = await self._ask(lambda client: self._run(client, self._name(key, window), arguments))
        if cancelled():
            if answer is not None and answer[0]:
                self.give_back(key, window, answer[3], cost=cost)
            raise asyncio.CancelledError
        if answer is not None:
            taken, wait, remaining, slot = answer
            return Turn(bool(taken), wait / 1e6, remaining, slot)
        if self.on_failure == "open":
            return Turn(True, 0.0, limit - cost, degraded=True)
        if self.on_failure == "closed":
            return Turn(False, self._pause, 0, degraded=True)
        return self._locally(key, limit, window, cost, max_wait)

    def _locally(self, key: str, limit: int, window: float, cost: int, max_wait: float) -> Turn:
        turn = self._local.count(key, limit, window, cost=cost, max_wait=max_wait)
        # A negative slot is one of the local count.
        return Turn(turn.taken, turn.wait, turn.remaining, -turn.slot, degraded=True)

    def give_back(self, key: str, window: float, slot: int, *, cost: int) -> None:
        """See `RateLimitStore`. A turn that cannot be given back leaves the window by itself."""
        if slot <= 0:
            self._local.give_back(key, window, -slot, cost=cost)
            return
        self._unused.append((self._name(key, window), slot, cost))
        if self._returning is None or self._returning.done():
            task = asyncio.get_running_loop().create_task(self._return_turns(), name="give turns back")
            self._returning = task

    async def _return_turns(self) -> None:
        """One question for many turns: when a thousand waiters are cancelled, others need the connections. The latest
        ones first, as the server looks for them from that end."""
        while self._unused:
            turns = [self._unused.pop() for _ in range(min(BATCH, len(self._unused)))]
            await self._ask(partial(_remove, turns))

    async def reset(self, key: str, window: float) -> None:
        """See `RateLimitStore`."""
        await self._local.reset(key, window)
        name = self._name(key, window)
        await self._ask(lambda client: client.delete(name))

    # --- asking ----------------------------------------------------------------------------------------

    async def _ask(self, question: Callable[[Redis], Awaitable[Any]]) -> Any:
        """The server's answer, or None if there is none."""
        from redis.exceptions import AuthenticationError, RedisError, ResponseError

        now = asyncio.get_running_loop().time
        if self._failed_at is not None and now() < self._ask_again:
            return None
        if not await self._has_permit():
            self._failed(f"all {self._limit} connections are busy for {self._queue_timeout:g} s")
            return None
        try:
            if self._failed_at is not None:
                # It failed, maybe while this one queued. One asks again, the others do not wait for it.
                if now() < self._ask_again:
                    return None
                self._ask_again = now() + self._pause
            answer = await question(await self._connections.client())
        except (RedisError, OSError, AgentrtError) as error:
            if isinstance(error, ConfigError):
                raise
            if isinstance(error, AuthenticationError):
                await self._connections.refused()
            self._failed(f"{type(error).__name__}: {error}")
            if isinstance(error, ResponseError):
                # It may have become a replica, and its name may lead to another server by now. Only now: what has
                # failed is left alone, so that nobody takes a connection that is being closed.
                await self._connections.drop_idle()
            return None
        finally:
            self._permits.release()
        self._answered()
        return answer

    async def _has_permit(self) -> bool:
        """Wait for one of the connections; False if none came free in time."""
        if not self._permits.locked():
            return await self._permits.acquire()
        try:
            async with asyncio.timeout(self._queue_timeout):
                return await self._permits.acquire()
        except TimeoutError:
            return False

    def _failed(self, why: str) -> None:
        now = asyncio.get_running_loop().time()
        self._ask_again = now + self._pause
        if self._failed_at is None:
            self._failed_at = now
            self._log.warning(
                "rate limits: %s does not count (%s); until it does, on_failure = %r: %s",
                self._connections.name,
                why,
                self.on_failure,
                _MEANINGS[self.on_failure],
            )

    def _answered(self) -> None:
        if self._failed_at is not None:
            seconds = asyncio.get_running_loop().time() - self._failed_at
            self._failed_at = None
            self._local.clear()
            self._log.warning(
                "rate limits: %s counts again, after %.1f s",
                self._connections.name,
                seconds,
            )

    async def _run(self, client: Redis, name: str, arguments: tuple[int, ...]) -> Any:
        if self._script is None:
            self._script = client.register_script(HIT)
        return await self._script(keys=[name], args=arguments, client=client)

    def _name(self, key: str, window: float) -> str:
        return f"{self._prefix}{micros(window)}:{key}"


def _cancelled_since() -> Callable[[], bool]:
    """Tells later whether the running task was cancelled meanwhile, and did not hear of it: `asyncio.wait_for`, by
    which redis-py sends, forgets that on Python 3.11 if it comes at the moment at which the sending ends
    (https://github.com/python/cpython/issues/86296)."""
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    return lambda: task.cancelling() > before


async def _remove(turns: list[tuple[str, int, int]], client: Redis) -> Any:
    """Take turns, each a name, a slot and a cost, out of the server's lists."""
    async with client.pipeline(transaction=False) as pipeline:
        for name, slot, cost in turns:
            pipeline.execute_command("LREM", name, -cost, str(slot))
        return await pipeline.execute()


_MEANINGS = {
    "open": "every hit is allowed",
    "closed": "no hit is allowed",
    "local": "this process counts for itself",
}
