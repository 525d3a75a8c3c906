"""Secrets from Azure Key Vault: `secret://azure/db-password`."""

from __future__ import annotations

import asyncio
import importlib
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from agentrt import options
from agentrt.errors import AgentrtError, ConfigError, PermanentError
from agentrt.secrets import SecretDenied, SecretInvalid, SecretRef, SecretUnavailable, SecretValue
from agentrt_azure.client import AzureClient
from agentrt_azure.credentials import IdentityName, check_fields, check_https

if TYPE_CHECKING:
    from agentrt.plugins import Host

__all__ = ["AzureSecrets"]

T = TypeVar("T")

MODULES = (
    "aiohttp",
    "azure.keyvault.secrets.aio",
    "azure.identity.aio",
    "agentrt_azure.failures",
)

NAME = re.compile(r"[0-9A-Za-z-]{1,127}")
VERSION = re.compile(r"[0-9A-Za-z]{1,64}")
REFERENCE = "secret://"


class AzureSecrets:
    """Reads from Key Vault. The SDK's own retries are off.

    `vault_url`: https://NAME.vault.azure.net. `identity`: as whom, one of

        default            what of the others works here, and more: see DefaultAzureCredential
        managed_identity   of the machine; `client_id` chooses one that was assigned by a user
        workload_identity  of a Kubernetes pod; `tenant_id`, `client_id`, `token_file` if AZURE_... do not say
        client_secret      of an application: `tenant_id`, `client_id`, `client_secret`, a reference to another secret,
                           whose rotation is followed
        environment        AZURE_CLIENT_ID and the like
        azure_cli          whoever is logged in with `az login`

    `authority`: where tokens come from, in clouds of their own. `ca_file`: certificates to trust, if their authority is
    your own. `verify_challenge` (true): tokens go only to a vault of Azure's domains; false for an address of your own.
    `timeout` (5.0 s): for connecting, and for an answer.
    """

    def __init__(
        self,
        *,
        vault_url: str,
        identity: IdentityName = "default",
        tenant_id: str | None = None,
        client_id: str | None = None,
        client_secret: str | None = None,
        token_file: str | None = None,
        authority: str | None = None,
        ca_file: str | None = None,
        verify_challenge: bool = True,
        timeout: float = 5.0,
    ) -> None:
        self.vault_url = check_https("vault_url", vault_url, "https://NAME.vault.azure.net")
        self.identity = identity
        self.tenant_id = tenant_id
        self.client_id = client_id
        self.token_file = token_file
        self.authority = authority
        self.ca_file = None if ca_file is None else options.text("ca_file", ca_file)
        self.verify_challenge = verify_challenge
        self.timeout = options.seconds("timeout", timeout)
        fields = {
            "tenant_id": tenant_id,
            "client_id": client_id,
            "client_secret": client_secret,
            "token_file": token_file,
            "authority": authority,
        }
        given = check_fields(identity, fields)
        self._reference = given["client_secret"] if _is_reference(given.get("client_secret")) else None
        self._host: Host | None = None
        self._client = AzureClient(
            self.vault_url,
            identity,
            given,
            ca_file=self.ca_file,
            verify_challenge=verify_challenge,
            timeout=self.timeout,
        )

    async def open(self, host: Host) -> None:
        """Loads the SDK, in a thread: it is large. Resolves `client_secret`. The vault is not asked yet."""
        await asyncio.to_thread(_load)
        self._host = host
        if self._reference is not None:
            self._client.fields["client_secret"] = await self._resolved(host.secret(self._reference))

    async def get(self, ref: SecretRef, /) -> SecretValue:
        from agentrt_azure.failures import cause, failure

        _check(ref)
        try:
            found = await self._asked(str(ref), lambda client: client.get_secret(ref.name, ref.version))
        except AgentrtError:
            raise
        except Exception as error:
            raise failure(error, str(ref), permission="get") from cause(error)
        if found.value is None:
            raise SecretUnavailable(f"{ref}: the answer has no value: check `vault_url`")
        return SecretValue(found.value, found.properties.version or None)

    async def list(self, prefix: str = "", /) -> Sequence[str]:
        from agentrt_azure.failures import cause, failure

        what = "the list of the secrets in azure"
        try:
            names = await self._asked(what, _names)
        except AgentrtError:
            raise
        except Exception as error:
            raise failure(error, what, permission="list") from cause(error)
        return sorted(name for name in names if name.startswith(prefix))

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _asked(self, what: str, ask: Callable[[Any], Awaitable[T]]) -> T:
        """`await ask(client)`; once more if the password was refused and the reference leads to another one by now."""
        from agentrt_azure.failures import is_refused_login

        used = self._client.fields.get("client_secret")
        if _is_reference(used):
            raise ConfigError(
                f"{what}: client_secret of the secrets provider azure is a reference, and the provider was not opened"
            )
        client = await self._client.ready()
        try:
            return await ask(client)
        except Exception as error:
            if self._reference is None or self._host is None or used is None or not is_refused_login(error):
                raise
            other = await self._resolved(self._host.secret_rejected(self._reference, used))
            if other == used:
                raise
        if self._client.fields.get("client_secret") != other:  # else another reader has been here
            await self._client.log_in_with(other)
        return await ask(await self._client.ready())

    async def _resolved(self, resolving: Awaitable[str]) -> str:
        try:
            return await resolving
        except PermanentError as error:
            # Not found, not of the form: for its own provider a fault of the request, for us no password.
            raise SecretDenied(
                f"client_secret of the secrets provider azure cannot be had: {error}"
            ) from error


async def _names(client: Any) -> Sequence[str]:
    return [found.name async for found in client.list_properties_of_secrets()]


def _check(ref: SecretRef) -> None:
    if not NAME.fullmatch(ref.name):
        raise SecretInvalid(
            f"{ref}: a secret's name in Key Vault has 1 to 127 letters, digits and dashes, no underscores, dots "
            "or slashes"
        )
    if ref.version is not None and not VERSION.fullmatch(ref.version):
        raise SecretInvalid(f"{ref}: a version in Key Vault is its id, of letters and digits")


def _is_reference(value: str | None) -> bool:
    return value is not None and value.startswith(REFERENCE)


def _load() -> None:
    for module in MODULES:
        importlib.import_module(module)
    # The package imports this one's module at its first use.
    _ = importlib.import_module("azure.core.pipeline.transport").AioHttpTransport
