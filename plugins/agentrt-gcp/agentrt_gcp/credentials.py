"""Credentials from the file that `credentials_file` names, by its kind.

Google's own function for any kind warns that a file may name a program to run; here only kinds are taken that run
none. For the others there is GOOGLE_APPLICATION_CREDENTIALS.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from agentrt.errors import ConfigError

__all__ = ["from_file"]

HEAD = "credentials_file of the secrets provider gcp"
POOL_FIELDS = ("audience", "subject_token_type", "token_url")
"""Without them Google's class is made, and fails later."""


def from_file(content: bytes, scopes: Sequence[str]) -> tuple[Any, str | None]:
    """(credentials, project) of a service account or a workload identity."""
    try:
        settings: Any = json.loads(content)
    except ValueError:
        settings = None
    # Outside of the handler: the decoder's error holds the whole file.
    if not isinstance(settings, dict):
        raise ConfigError(f"{HEAD} is no JSON object; take the file as GCP gives it")
    kind = settings.get("type")
    try:
        return _of_kind(kind, settings, scopes), settings.get("project_id")
    except (ValueError, KeyError) as error:
        raise ConfigError(
            f"{HEAD} cannot be used as {kind!r} ({type(error).__name__}: {str(error)[:200]}); take the file as GCP "
            "gives it"
        ) from None


def _of_kind(kind: object, settings: dict[str, Any], scopes: Sequence[str]) -> Any:
    if kind == "service_account":
        from google.oauth2 import service_account

        account: Any = service_account.Credentials
        return account.from_service_account_info(settings, scopes=scopes)
    source = settings.get("credential_source")
    if kind == "external_account" and isinstance(source, dict) and "executable" not in source:
        from google.auth import aws, identity_pool

        missing = [field for field in POOL_FIELDS if not settings.get(field)]
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
        pool: Any = aws.Credentials if "environment_id" in source else identity_pool.Credentials
        return pool.from_info(settings, scopes=scopes)
    raise ConfigError(
        f"{HEAD} is of the type {kind!r}; it takes 'service_account' and 'external_account' without a program to run: "
        "for any other set GOOGLE_APPLICATION_CREDENTIALS"
    )
