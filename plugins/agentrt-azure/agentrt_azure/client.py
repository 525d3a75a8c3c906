"""Azure's own client of Key Vault with its credential: made when they are first needed, for the event loop that runs.

The retries of both are off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentrt.errors import ConfigError
from agentrt_azure.credentials import make_credential

__all__ = ["AzureClient"]


class AzureClient:
    """`fields`: of the credential. `ca_file`: certificates to trust. `verify_challenge`: whether the vault may ask only
    for tokens of its own domain. `timeout`: seconds for connecting, and for an answer."""

    def __init__(
        self,
        vault_url: str,
        credential: str,
        fields: Mapping[str, str],
        *,
        ca_file: str | None,
        verify_challenge: bool,
        timeout: float,
    ) -> None:
        self.vault_url = vault_url
        self.credential = credential
        self.fields = dict(fields)
        self.ca_file = ca_file
        self.verify_challenge = verify_challenge
        self.timeout = timeout
        self._client: Any = None
        self._credential: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def ready(self) -> Any:
        """The client of the running loop."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._client, self._credential, self._loop = None, None, loop
        if self._client is None:
            self._make()
        return self._client

    async def aclose(self) -> None:
        """Closes both, the client and the credential: each has connections of its own."""
        client, self._client = self._client, None
        credential, self._credential = self._credential, None
        if client is None or self._loop is not asyncio.get_running_loop():
            return
        try:
            await client.close()
        finally:
            await credential.close()

    def _make(self) -> None:
        from azure.keyvault.secrets.aio import SecretClient

        transport: dict[str, Any] = {
            "retry_total": 0,
            "connection_timeout": self.timeout,
            "read_timeout": self.timeout,
        }
        if self.ca_file is not None:
            if not Path(self.ca_file).is_file():
                raise ConfigError(f"ca_file of the secrets provider azure is no file: {self.ca_file}")
            transport["connection_verify"] = self.ca_file
        self._credential = make_credential(self.credential, self.fields, transport)
        self._client = SecretClient(
            self.vault_url,
            self._credential,
            verify_challenge_resource=self.verify_challenge,
            **transport,
        )
