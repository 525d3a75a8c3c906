"""What the clients of providers that are reached over HTTP share: a host, a credential and connections."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from agentrt.models.credential import Credential
from agentrt.models.failures import Provider
from agentrt.models.http import Http
from agentrt.models.protocol import Host

__all__ = ["HttpClient"]


class HttpClient:
    """A `ModelClient` without its wire: its life and its names.

    `url`: where every request is posted to, with `headers` and with what `authorization` makes of the key.
    `is_usual`: the provider's own address, which its targets need not name.
    """

    name: ClassVar[str]

    def __init__(
        self,
        *,
        provider: Provider,
        credential: Credential,
        url: str,
        headers: dict[str, str],
        authorization: Callable[[str], tuple[bytes, bytes]],
        is_usual: bool,
    ) -> None:
        self._provider = provider
        self._credential = credential
        self._http = Http(
            provider, url=url, headers=headers, credential=credential, authorization=authorization
        )
        self._suffix = "" if is_usual else f"@{provider.host}"

    async def open(self, host: Host) -> None:
        """Take `host` for what only the runtime knows: the values of secret references."""
        self._credential.open(host)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def check(self, model: str, host: Host) -> None:
        """Raise what a request would fail with for want of a key."""
        del model
        self._credential.open(host)
        await self._credential.get()

    def identity(self, model: str) -> str:
        """Host and credential: what a provider throttles together."""
        del model
        return f"{self._provider.host}#{self._credential.id}"

    def target(self, model: str) -> str:
        """`NAME:MODEL`, with the host if it is not the provider's own."""
        return f"{self.name}:{model}{self._suffix}"
