"""The key of a provider: given, taken from the environment, or a reference that is resolved when it is first needed."""

from __future__ import annotations

import hashlib

from agentrt.errors import ConfigError, PermanentError
from agentrt.models.protocol import Host

__all__ = ["Credential"]

SECRET_SCHEME = "secret://"


class Credential:
    """A key, or none. `id` stands for it in names and logs: a digest's first digits, never the key.

    `value`: the key, a `secret://` reference, or None or "" for no key. `owner` ("openai") and `setting` ("set
    OPENAI_API_KEY ...") are for messages. `required`: without a key no request is made.
    """

    def __init__(self, value: str | None, *, owner: str, setting: str, required: bool) -> None:
        self._owner = owner
        self._setting = setting
        self._required = required
        # A key that was read from a file often ends in a newline.
        given = (value or "").strip()
        self._reference = given if given.startswith(SECRET_SCHEME) else None
        self._key: str | None = None if self._reference else self._checked(given) or None
        self._host: Host | None = None
        self.id = hashlib.sha256(given.encode()).hexdigest()[:8] if given else "none"

    def open(self, host: Host) -> None:
        """`host` resolves references from now on."""
        self._host = host

    @property
    def known(self) -> str | None:
        """The key as far as it is known: to keep it out of messages."""
        return self._key

    async def get(self) -> str | None:
        """The key, or None if there is none and none is needed. A reference is resolved once.

        Raises PermanentError (the target's fault) if a key is required and missing, or its reference leads to none:
        another target may have one. A provider of secrets that cannot be reached now raises its own errors.
        """
        if self._key is not None:
            return self._key
        if self._reference is not None:
            if self._host is None:
                raise ConfigError(
                    f"{self._owner}: the key is the reference {self._reference}, and only a runtime resolves "
                    f"those: run this client in a Runtime, or give the key itself ({self._setting})"
                )
            self._key = self._checked((await self._resolved(self._host, self._reference)).strip())
            return self._key
        if self._required:
            raise PermanentError(f"{self._owner}: there is no API key: set {self._setting}", fault="target")
        return None

    async def _resolved(self, host: Host, reference: str) -> str:
        try:
            return await host.secret(reference)
        except PermanentError as error:
            # Not found, not readable, not of the form: for the provider a fault of the request, for us no key.
            why = str(error).removeprefix(f"{reference}: ")
            raise PermanentError(f"{self._owner}: api_key = {reference}: {why}", fault="target") from error

    def refused(self) -> None:
        """The provider did not take the key: resolve a reference anew when it is next needed."""
        if self._reference is not None:
            self._key = None

    def _checked(self, key: str) -> str:
        if not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigError(
                f"{self._owner}: the API key holds blanks, line breaks or characters outside ASCII: set {self._setting}"
            )
        return key
