"""What a failure of Azure Key Vault means: one of the errors of `agentrt.secrets`, with what to do.

Codes as in https://learn.microsoft.com/azure/key-vault/general/rest-error-codes. The messages have the service's own
words, which name secrets and identities; never a value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from azure.core import exceptions
from azure.identity import CredentialUnavailableError

from agentrt.errors import AgentrtError
from agentrt.retry_after import retry_after
from agentrt.secrets import (
    SecretDenied,
    SecretInvalid,
    SecretNotFound,
    SecretThrottled,
    SecretUnavailable,
)

__all__ = ["SentElsewhere", "cause", "failure", "is_refused_login"]

SAID = 300
"""Characters of the service's own words that a message keeps."""

NETWORK = exceptions.ServiceRequestError | exceptions.ServiceResponseError | OSError
BLOCKED = frozenset({"ForbiddenByFirewall", "ForbiddenByConnection"})


class SentElsewhere(exceptions.AzureError):
    """The vault's answer leads to another address; nothing was sent there."""


def cause(error: Exception) -> Exception | None:
    """`error`, or None if its words may quote an answer: that of a decoder, and what is none of Azure's errors."""
    told = isinstance(error, exceptions.AzureError | OSError) or _is_of_challenge(error)
    return error if told and not isinstance(error, exceptions.DecodeError) else None


def is_refused_login(error: Exception) -> bool:
    """Whether the token service does not accept the password, rather than the vault the token."""
    response: Any = getattr(error, "response", None)
    if not isinstance(error, exceptions.ClientAuthenticationError) or response is None:
        return False
    return response.status_code in (400, 401) and "/oauth2/" in str(response.request.url)


def failure(error: Exception, what: str, *, permission: str) -> AgentrtError:
    """`what`: was wanted, a reference or the list. `permission`: "get" or "list"."""
    if cause(error) is None:
        return SecretUnavailable(
            f"{what}: what came in answer is not Key Vault's ({type(error).__name__}): check `vault_url` and what "
            "stands between"
        )
    if isinstance(error, exceptions.ClientAuthenticationError):
        return _no_token(error, what)
    if isinstance(error, exceptions.HttpResponseError) and error.response is not None:
        return _answered(error, what, permission)
    said = _said(error)
    if isinstance(error, SentElsewhere):
        return SecretUnavailable(
            f"{what}: the vault says that it goes on at {said}, which is not `vault_url`, and gets no token: set "
            "`vault_url` to the address that the vault itself gives"
        )
    if _is_of_challenge(error):
        return SecretDenied(
            f"{what}: the vault asks for a token that is not for it ({said}): correct `vault_url`; if that is an "
            "address of your own for the vault, set `verify_challenge = false`"
        )
    return SecretUnavailable(
        f"{what}: Key Vault, or the service of its tokens, cannot be reached ({said}): check the network, "
        "`vault_url` and `ca_file`"
    )


def _is_of_challenge(error: Exception) -> bool:
    return isinstance(error, ValueError) and "challenge" in str(error)


def _no_token(error: exceptions.ClientAuthenticationError, what: str) -> AgentrtError:
    """A credential that gives no token, or a vault that does not accept the one it gave (401)."""
    said, response = _said(error), error.response
    status = 0 if response is None else int(response.status_code or 0)
    headers = _headers(response)
    if _by_network(error):
        return SecretUnavailable(f"{what}: there is no token, so Key Vault was not asked ({said})")
    if status == 429:
        return SecretThrottled(
            f"{what}: too many tokens were asked for ({said})", retry_after=retry_after(headers)
        )
    if status >= 500:
        return SecretUnavailable(
            f"{what}: the token service fails ({said})", retry_after=retry_after(headers)
        )
    if isinstance(error, CredentialUnavailableError):
        return SecretDenied(
            f"{what}: there is no usable credential ({said}): choose `identity`, and give what it needs"
        )
    return SecretDenied(
        f"{what}: the credential is not accepted ({said}): check `identity`, its tenant and its secret, and that "
        "neither is expired"
    )


def _answered(error: exceptions.HttpResponseError, what: str, permission: str) -> AgentrtError:
    status, inner = int(error.status_code or 0), _inner_code(error)
    code = inner or getattr(error.error, "code", None) or f"HTTP {status}"
    said = _said(error)
    head = f"{what}: Key Vault answered {code}" + (f": {said}" if said else "")
    wait = retry_after(_headers(error.response))
    if status == 404:
        return SecretNotFound(f"{head}. Check the name, the version and `vault_url`")
    if status == 403 and inner == "SecretDisabled":
        return SecretInvalid(f"{head}. Enable the secret or this version of it, or name another version")
    if status == 403 and inner in BLOCKED:
        return SecretDenied(
            f"{head}. Allow this network in the vault's firewall, or use its private endpoint"
        )
    if status in (401, 403):
        return SecretDenied(
            f"{head}. Give the identity the role 'Key Vault Secrets User', or the permission {permission!r} for "
            "secrets in the vault's access policy"
        )
    if status == 429:
        return SecretThrottled(head, retry_after=wait)
    if 300 <= status < 400:
        return SecretUnavailable(
            f"{head}. Redirects are not followed: check `vault_url` and what stands between"
        )
    if 400 <= status < 500 and status != 408:
        return SecretInvalid(f"{head}. Correct the name or the version in the reference")
    return SecretUnavailable(head, retry_after=wait)


def _by_network(error: BaseException) -> bool:
    """Whether the token service could not be reached, which azure-identity wraps."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, NETWORK):
            return True
        found = found.__cause__
    return False


def _inner_code(error: exceptions.HttpResponseError) -> str:
    inner: Any = getattr(error.error, "innererror", None)
    return str(inner.get("code", "")) if isinstance(inner, Mapping) else ""


def _headers(response: Any) -> Mapping[str, str]:
    headers: Any = getattr(response, "headers", None) or {}
    return {str(name).lower(): str(value) for name, value in headers.items()}


def _said(error: Exception) -> str:
    """The service's own words; not str(error), which may add the whole body of an answer."""
    told: Any = getattr(getattr(error, "error", None), "message", None) or getattr(error, "message", None)
    return " ".join(str(told or error).split())[:SAID].rstrip(".")
