"""The password, looked up for every new connection, so that a new one is followed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from redis.credentials import CredentialProvider

__all__ = ["Credentials"]


class Credentials(CredentialProvider):
    """`username` (the server's default user) and what `password` gives."""

    def __init__(self, username: str | None, password: Callable[[], Awaitable[str]]) -> None:
        self._username = username
        self._password = password

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        password = await self._password()
        return (password,) if self._username is None else (self._username, password)
