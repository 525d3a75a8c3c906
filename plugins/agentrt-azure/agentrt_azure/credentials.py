"""As whom a vault is asked: one named credential of azure-identity, and the fields that it takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

from agentrt import options
from agentrt.errors import ConfigError

__all__ = ["IdentityName", "check_fields", "check_https", "make_credential"]

IdentityName = Literal[
    "default", "managed_identity", "workload_identity", "client_secret", "environment", "azure_cli"
]

FIELDS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "managed_identity": ("client_id",),
    "workload_identity": ("tenant_id", "client_id", "token_file", "authority"),
    "client_secret": ("tenant_id", "client_id", "client_secret", "authority"),
    "environment": ("authority",),
    "azure_cli": ("tenant_id",),
}
"""The fields of each, which are all optional but for those of client_secret."""

NEEDED = ("tenant_id", "client_id", "client_secret")


def check_fields(identity: str, fields: Mapping[str, str | None]) -> dict[str, str]:
    """The fields that are given. Raises ConfigError for one that the identity has no use for, or lacks."""
    options.choice("identity", identity, FIELDS)
    given = {name: value for name, value in fields.items() if value is not None}
    for name, value in given.items():
        if not isinstance(value, str) or not value.strip():
            raise ConfigError(f"{name} must be a text with something in it")  # client_secret is not shown
        if name not in FIELDS[identity]:
            takes = ", ".join(FIELDS[identity]) or "no field: it looks in all usual places"
            raise ConfigError(f"{name} does not go with identity = {identity!r}, which takes {takes}")
    missing = [name for name in NEEDED if identity == "client_secret" and name not in given]
    if missing:
        raise ConfigError(f"identity = 'client_secret' needs {', '.join(missing)}")
    if "authority" in given:
        check_https("authority", given["authority"], "https://login.microsoftonline.com")
    return given


def check_https(option: str, value: str, example: str) -> str:
    """`value` without a slash at its end. Raises ConfigError if it is no https:// address of a host."""
    try:
        parts = urlsplit(value)
        usable = parts.scheme == "https" and bool(parts.hostname) and parts.port != 0
        usable = usable and not (parts.path.strip("/") or parts.query or parts.username)
    except (ValueError, AttributeError, TypeError):
        usable = False
    if not usable or any(char.isspace() for char in value):
        raise ConfigError(f"{option} must look like {example}, not {value!r}")
    return value.rstrip("/")


def make_credential(identity: str, fields: Mapping[str, str], transport: Mapping[str, Any]) -> Any:
    """A new one; its connections belong to the running event loop. `transport`: options of azure-core.

    Raises ConfigError if the environment lacks what it needs.
    """
    from azure.identity import aio

    try:
        match identity:
            case "managed_identity":
                return aio.ManagedIdentityCredential(client_id=fields.get("client_id"), **transport)
            case "workload_identity":
                return aio.WorkloadIdentityCredential(
                    tenant_id=fields.get("tenant_id"),
                    client_id=fields.get("client_id"),
                    token_file_path=fields.get("token_file"),
                    **_at(fields),
                    **transport,
                )
            case "client_secret":
                return aio.ClientSecretCredential(
                    fields["tenant_id"],
                    fields["client_id"],
                    fields["client_secret"],
                    **_at(fields),
                    **transport,
                )
            case "environment":
                return aio.EnvironmentCredential(**_at(fields), **transport)
            case "azure_cli":
                return aio.AzureCliCredential(tenant_id=fields.get("tenant_id", ""))
            case _:
                return aio.DefaultAzureCredential(**transport)
    except ValueError as error:
        raise ConfigError(
            f"identity = {identity!r} of the secrets provider azure cannot be made: {error}"
        ) from error


def _at(fields: Mapping[str, str]) -> dict[str, str]:
    return {"authority": fields["authority"]} if "authority" in fields else {}
