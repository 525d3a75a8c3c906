"""Azure's own client of Key Vault with its credential: made when they are first needed, for the event loop that runs.

The retries of both are off.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from agentrt.errors import ConfigError
from agentrt_azure.credentials import make_credential

__all__ = ["AzureClient"]


@dataclass(frozen=True, slots=True)
class _Made:
    """A client, its credential and the connections of both."""

    client: Any
    credential: Any
    session: Any

    async def aclose(self) -> None:
        try:
            await self.client.close()
            await self.credential.close()
        finally:
            await self.session.close()


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
        self._made: _Made | None = None
        self._retired: _Made | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def ready(self) -> Any:
        """The client of the running loop."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._made, self._retired, self._loop = None, None, loop
        if self._made is None:
            self._made = await self._make()
        return self._made.client

    async def log_in_with(self, client_secret: str) -> None:
        """From now on with this password. The client so far is closed the next time: it may be in use."""
        retired, self._retired, self._made = self._retired, self._made, None
        self.fields["client_secret"] = client_secret
        if retired is not None:
            await retired.aclose()

    async def aclose(self) -> None:
        made, self._made, self._retired = (self._made, self._retired), None, None
        if self._loop is asyncio.get_running_loop():
            for each in made:
                if each is not None:
                    await each.aclose()

    async def _make(self) -> _Made:
        from azure.core.pipeline.transport import AioHttpTransport
        from azure.keyvault.secrets.aio import SecretClient

        session = self._session_with(self._trusted())
        transport = AioHttpTransport(
            session=session,
            session_owner=False,
            connection_timeout=self.timeout,
            read_timeout=self.timeout,
        )
        # A redirect would take the token along, or the password: neither service makes any.
        common: dict[str, Any] = {"transport": transport, "retry_total": 0, "permit_redirects": False}
        try:
            credential = make_credential(self.identity, self.fields, common)
            client = SecretClient(
                self.vault_url,
                credential,
                verify_challenge_resource=self.verify_challenge,
                raw_request_hook=self._check_place,
                **common,
            )
        except BaseException:
            await session.close()
            raise
        return _Made(client, credential, session)

    def _check_place(self, request: Any) -> None:
        """The next page of a list may be anywhere, and whoever is there could ask for a token, too."""
        from agentrt_azure.failures import SentElsewhere

        origin = _origin(request.http_request.url)
        if origin != _origin(self.vault_url):
            raise SentElsewhere(origin)

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


def _origin(url: str) -> str:
    parts = urlsplit(url)
    default = {"https": 443, "http": 80}.get(parts.scheme, 0)
    return f"{parts.scheme}://{parts.hostname}:{parts.port or default}"
