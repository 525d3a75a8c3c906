"""Azure's own client of Key Vault with its credential: made when they are first needed, for the event loop that runs.

The retries of both are off.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from typing import Any

from agentrt.errors import ConfigError
from agentrt_azure.credentials import make_credential

__all__ = ["AzureClient"]


class AzureClient:
    """`fields`: of the identity. `ca_file`: certificates to trust. `verify_challenge`: whether the vault may ask only
    for tokens of its own domain. `timeout`: seconds for connecting, and for an answer."""

    def __init__(
        self,
        vault_url: str,
        identity: str,
        fields: Mapping[str, str],
        *,
        ca_file: str | None,
        verify_challenge: bool,
        timeout: float,
    ) -> None:
        self.vault_url = vault_url
        self.identity = identity
        self.fields = dict(fields)
        self.ca_file = ca_file
        self.verify_challenge = verify_challenge
        self.timeout = timeout
        self._client: Any = None
        self._credential: Any = None
        self._session: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def ready(self) -> Any:
        """The client of the running loop."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._client, self._credential, self._session, self._loop = None, None, None, loop
        if self._client is None:
            await self.aclose()  # what an attempt before, which failed, may have left
        if self._client is None:
            self._make()
        return self._client

    async def aclose(self) -> None:
        """Closes both, the client and the credential, and their connections."""
        client, credential, session = self._client, self._credential, self._session
        self._client = self._credential = self._session = None
        if session is None or self._loop is not asyncio.get_running_loop():
            return
        try:
            for each in (client, credential):
                if each is not None:
                    await each.close()
        finally:
            await session.close()

    def _make(self) -> None:
        from azure.core.pipeline.transport import AioHttpTransport
        from azure.keyvault.secrets.aio import SecretClient

        transport = AioHttpTransport(
            session=self._session_with(self._trusted()),
            session_owner=False,
            connection_timeout=self.timeout,
            read_timeout=self.timeout,
        )
        common: dict[str, Any] = {"transport": transport, "retry_total": 0}
        self._session = transport.session
        self._credential = make_credential(self.identity, self.fields, common)
        self._client = SecretClient(
            self.vault_url, self._credential, verify_challenge_resource=self.verify_challenge, **common
        )

    def _trusted(self) -> ssl.SSLContext | None:
        if self.ca_file is None:
            return None
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            raise ConfigError(
                f"ca_file of the secrets provider azure cannot be used: {self.ca_file}: {error}"
            ) from error

    def _session_with(self, trusted: ssl.SSLContext | None) -> Any:
        """The connections of both, as azure-core makes them. Its own option for certificates reads the file again for
        each request, and then no connection is used twice."""
        import aiohttp

        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=True if trusted is None else trusted),
            trust_env=True,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
