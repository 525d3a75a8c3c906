"""The connections to the server, and the secrets they are made with."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrt.errors import ConfigError
from agentrt.plugins import Host
from agentrt_redis.address import Address

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["LOOKING_UP", "Connections", "is_secret"]

LOOKING_UP: ContextVar[bool] = ContextVar("agentrt_redis_looking_up", default=False)
"""True while a secret for a connection is looked up: that may itself be a call that is counted."""


def is_secret(text: str) -> bool:
    """Whether it is a reference to a secret."""
    return text.startswith("secret://")


class Connections:
    """A pool that queues, and never asks twice. Its client is made when it is first needed.

    A password, and a whole url that is a secret, is looked up for every new connection, and looked up anew when the
    server has refused it.
    """

    def __init__(
        self,
        url: str,
        *,
        username: str | None,
        password: str | None,
        ca_file: Path | None,
        limit: int,
        connect_timeout: float,
        timeout: float,
        queue_timeout: float,
    ) -> None:
        self._address = None if is_secret(url) else Address.parse(url)
        if self._address is not None and self._address.password is not None:
            raise ConfigError(
                'url holds a password; leave it out and set the option password, or give "secret://NAME" as url'
            )
        self._url = url
        self._username = username
        self._password = password
        self._ca_file = ca_file
        self._limit = limit
        self._connect_timeout = connect_timeout
        self._timeout = timeout
        self._queue_timeout = queue_timeout
        self._host: Host | None = None
        self._client: Redis | None = None
        self._known: dict[str, str] = {}
        self._refused: set[str] = set()

    def open(self, host: Host) -> None:
        """`host` resolves references from now on."""
        self._host = host

    @property
    def name(self) -> str:
        """The server, for messages."""
        return "the server" if self._address is None else self._address.text

    async def client(self) -> Redis:
        """The client. Raises ConfigError for a url that is a wrong secret."""
        if self._client is None:
            address = self._address
            if address is None:
                address = Address.parse(await self._resolved(self._url))
            if self._client is None:  # another may have been quicker
                self._address, self._client = address, self._made(address)
        return self._client

    async def refused(self) -> None:
        """The server did not take the password: look it up anew for the next connection."""
        self._refused.update(self._known)
        if is_secret(self._url):
            await self.aclose()
            self._address = None

    async def drop_idle(self) -> None:
        """Close the connections that nobody uses: the next question makes a new one."""
        if self._client is not None:
            await self._client.connection_pool.disconnect(inuse_connections=False)

    async def aclose(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    # --- inside ----------------------------------------------------------------------------------------

    def _made(self, address: Address) -> Redis:
        from redis.asyncio import BlockingConnectionPool, Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        more: dict[str, Any] = address.connection(self._ca_file)
        username = self._username or address.username
        password = self._password or address.password
        if password is not None and is_secret(password):
            more["credential_provider"] = _credentials(username, lambda: self._resolved(password))
        elif password is not None or username is not None:
            more.update(username=username, password=password or "")
        # redis-py's own pool raises when all its connections are in use, and its client asks up to four times.
        pool = BlockingConnectionPool(
            max_connections=self._limit,
            timeout=self._queue_timeout,
            socket_connect_timeout=self._connect_timeout,
            socket_timeout=self._timeout,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            **more,
        )
        return Redis.from_pool(pool)

    async def _resolved(self, reference: str) -> str:
        if self._host is None:
            raise ConfigError(
                f"{reference} is resolved by a runtime: use this store through one, or open it with a host"
            )
        token = LOOKING_UP.set(True)
        try:
            # Whoever keeps the secret may be waiting for us: its calls may be counted here.
            async with asyncio.timeout(self._connect_timeout):
                if reference in self._refused:
                    value = await self._host.secret_rejected(reference, self._known[reference])
                    self._refused.discard(reference)
                else:
                    value = await self._host.secret(reference)
        finally:
            LOOKING_UP.reset(token)
        self._known[reference] = value
        return value.strip()


def _credentials(username: str | None, password: Callable[[], Awaitable[str]]) -> Any:
    """What redis-py asks for each new connection."""
    from redis.credentials import CredentialProvider

    class Credentials(CredentialProvider):
        async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
            word = await password()
            return (word,) if username is None else (username, word)

    return Credentials()
