"""Secrets from the environment: the default provider."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from agentrt.secrets.protocol import SecretInvalid, SecretNotFound, SecretRef

__all__ = ["Env"]


class Env:
    """Reads environment variables.

    `prefix` ("") is put before each name: with "MYAPP_", `secret://db` is the variable MYAPP_db.
    """

    def __init__(self, *, prefix: str = "") -> None:
        self.prefix = prefix
        self._environ: Mapping[str, str] = os.environ

    async def get(self, ref: SecretRef, /) -> str:
        variable = self.prefix + ref.name
        if ref.version is not None:
            raise SecretInvalid(f"{ref}: environment variables have no versions")
        try:
            value = self._environ.get(variable)
        except UnicodeEncodeError:  # half of a surrogate pair
            raise SecretInvalid(f"{ref}: no environment variable can have such a name") from None
        if value is None:
            raise SecretNotFound(f"{ref}: the environment variable {variable} is not set")
        if not value:
            raise SecretInvalid(f"{ref}: the environment variable {variable} is empty")
        return value

    async def list(self, prefix: str = "", /) -> Sequence[str]:
        """The variables that begin with the `prefix` of this provider, without it, and with `prefix` then."""
        start = self.prefix + prefix
        return sorted(name[len(self.prefix) :] for name in self._environ if name.startswith(start))
