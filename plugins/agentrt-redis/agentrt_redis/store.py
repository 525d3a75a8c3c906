"""Rate limits counted on a Redis or Valkey server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from agentrt import options
from agentrt.errors import AgentrtError, ConfigError
from agentrt.plugins import Host
from agentrt.security.memory_limits import MemoryLimits
from agentrt.security.rate_limits import Turn, micros
from agentrt_redis.address import Address
from agentrt_redis.script import HIT

if TYPE_CHECKING:
    from redis.asyncio import BlockingConnectionPool, Redis
    from redis.commands.core import AsyncScript

__all__ = ["RedisLimits"]

SECRET_SCHEME = "secret://"

POLICIES = ("open", "closed", "local")


class RedisLimits:
    """Counts on one server, Redis from 5 or Valkey; by its clock, so those of the processes do not matter.

    `url` ("redis://127.0.0.1:6379/0"; "rediss://" for TLS, "unix:///PATH"), or a `secret://` reference to one.
    `username`; `password`: a `secret://` reference, looked up for every new connection. `ca_file`: certificates to
    trust instead of the system's. `prefix` ("agentrt:rate_limits:"): what the server's keys begin with.
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
        self._url = options.text("url", url)
        self._address = None if url.startswith(SECRET_SCHEME) else Address.parse(url)
        if self._address is not None and self._address.password is not None:
            raise ConfigError('url holds a password: leave it out, and give password = "secret://NAME"')
        if password is not None and not password.startswith(SECRET_SCHEME):
            raise ConfigError('password must be a reference such as "secret://NAME", not the password itself')
        self._username = username
        self._password = password
        self._ca_file = ca_file
        self._prefix = prefix
        self._connections = options.count("connections", connections)
        self._connect_timeout = options.seconds("connect_timeout", connect_timeout)
        self._timeout = options.seconds("timeout", timeout)
        self._queue_timeout = options.seconds("queue_timeout", queue_timeout)
        self.on_failure = options.choice("on_failure", on_failure, POLICIES)
        self._pause = options.seconds("pause", pause)
        self._log = logging.getLogger("agentrt.rate_limits")
        self._secret: Callable[[str], Awaitable[str]] | None = None
        self._local = MemoryLimits()
        self._client: Redis | None = None
        self._script: AsyncScript | None = None
        self._permits = asyncio.Semaphore(self._connections)
        self._failed_at: float | None = None
        self._ask_again = 0.0
        self._returning: set[asyncio.Task[None]] = set()

    async def open(self, host: Host) -> None:
        """Take over the log and the secrets of `host`. No connection is made before the first hit."""
        self._log = host.log
        self._secret = host.secret

    async def aclose(self) -> None:
        """Wait for the turns that are being given back, and close the connections."""
        if self._returning:
            await asyncio.wait(self._returning)
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def hit(self, key: str, limit: int, window: float, *, cost: int, max_wait: float) -> Turn:
        """See `RateLimitStore`. While the server does not answer, `on_failure` decides."""
        arguments = (limit, micros(window), cost, micros(max_wait))
        answer = await self._ask(lambda client: self._run(client, self._name(key, window), arguments))
        if answer is not None:
            taken, wait, remaining, slot = answer
            return Turn(bool(taken), wait / 1e6, remaining, slot)
        if self.on_failure == "open":
            return Turn(True, 0.0, limit - cost, degraded=True)
        if self.on_failure == "closed":
            return Turn(False, self._pause, 0, degraded=True)
        turn = self._local.count(key, limit, window, cost=cost, max_wait=max_wait)
        # A negative slot is one of the local count.
        return Turn(turn.taken, turn.wait, turn.remaining, -turn.slot, degraded=True)

    def give_back(self, key: str, window: float, slot: int, *, cost: int) -> None:
        """See `RateLimitStore`. A turn that cannot be given back leaves the window by itself."""
        if slot <= 0:
            self._local.give_back(key, window, -slot, cost=cost)
            return
        name = self._name(key, window)

        async def remove() -> None:
            await self._ask(lambda client: client.lrem(name, -cost, str(slot)))

        task = asyncio.get_running_loop().create_task(remove(), name="give a turn back")
        self._returning.add(task)
        task.add_done_callback(self._returning.discard)

    async def reset(self, key: str, window: float) -> None:
        """See `RateLimitStore`."""
        await self._local.reset(key, window)
        name = self._name(key, window)
        await self._ask(lambda client: client.delete(name))

    # --- asking ----------------------------------------------------------------------------------------

    async def _ask(self, question: Callable[[Redis], Awaitable[Any]]) -> Any:
        """The server's answer, or None if there is none."""
        from redis.exceptions import RedisError

        now = asyncio.get_running_loop().time
        if self._failed_at is not None and now() < self._ask_again:
            return None
        try:
            async with asyncio.timeout(self._queue_timeout):
                await self._permits.acquire()
        except TimeoutError:
            self._failed(f"all {self._connections} connections are busy for {self._queue_timeout:g} s")
            return None
        try:
            if self._failed_at is not None:
                # It failed, maybe while this one queued. One asks again, the others do not wait for it.
                if now() < self._ask_again:
                    return None
                self._ask_again = now() + self._pause
            answer = await question(await self._connected())
        except (RedisError, OSError, AgentrtError) as error:
            if isinstance(error, ConfigError):
                raise
            self._failed(f"{type(error).__name__}: {error}")
            return None
        finally:
            self._permits.release()
        self._answered()
        return answer

    def _failed(self, why: str) -> None:
        now = asyncio.get_running_loop().time()
        self._ask_again = now + self._pause
        if self._failed_at is None:
            self._failed_at = now
            self._log.warning(
                "rate limits: %s does not count (%s); until it does, on_failure = %r: %s",
                "the server" if self._address is None else self._address.text,
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
                "the server" if self._address is None else self._address.text,
                seconds,
            )

    async def _run(self, client: Redis, name: str, arguments: tuple[int, ...]) -> Any:
        if self._script is None:
            self._script = client.register_script(HIT)
        return await self._script(keys=[name], args=arguments, client=client)

    def _name(self, key: str, window: float) -> str:
        return f"{self._prefix}{micros(window)}:{key}"

    # --- connections -----------------------------------------------------------------------------------

    async def _connected(self) -> Redis:
        """The client; its pool makes connections as they are needed."""
        if self._address is None:
            self._address = Address.parse(await self._resolved(self._url))
        if self._client is None:
            from redis.asyncio import Redis

            self._client = Redis.from_pool(self._pool(self._address))
        return self._client

    def _pool(self, address: Address) -> BlockingConnectionPool:
        from redis.asyncio import BlockingConnectionPool
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        from agentrt_redis.credentials import Credentials

        more: dict[str, Any] = address.connection(self._ca_file)
        username = self._username or address.username
        if self._password is not None or address.password is not None:
            more["credential_provider"] = Credentials(username, lambda: self._secret_word(address))
        return BlockingConnectionPool(
            max_connections=self._connections,
            timeout=self._queue_timeout,
            socket_connect_timeout=self._connect_timeout,
            socket_timeout=self._timeout,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            **more,
        )

    async def _secret_word(self, address: Address) -> str:
        return await self._resolved(self._password) if self._password is not None else address.password or ""

    async def _resolved(self, reference: str) -> str:
        if self._secret is None:
            raise ConfigError(
                f"{reference} is resolved by a runtime: use this store through one, or open it with a host"
            )
        return (await self._secret(reference)).strip()


_MEANINGS = {
    "open": "every hit is allowed",
    "closed": "no hit is allowed",
    "local": "this process counts for itself",
}
