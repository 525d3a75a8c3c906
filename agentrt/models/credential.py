"""The key of a provider: given, taken from the environment, or a reference that is resolved when it is needed.

A reference follows rotation: it is resolved again and again, which costs nothing while the value is kept (see
`agentrt.secrets.cache`), and a key that the provider refuses is replaced at once, if there is another.
"""

from __future__ import annotations

import hashlib
import logging

from agentrt.errors import AgentrtError, ConfigError, PermanentError
from agentrt.models.protocol import Host

__all__ = ["Credential"]

SECRET_SCHEME = "secret://"

FRESH = 10.0
"""Seconds for which a resolved key is used without asking for it again: each time it is asked for is audited."""

_log = logging.getLogger("agentrt.models")


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
        # What the reference led to: the secret as it is, of which the key is what is left without blanks around it.
        self._secret = ""
        self._resolved_at = 0.0
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
        """The key, or None if there is none and none is needed. A reference is resolved anew every 10 s.

        Raises PermanentError (the target's fault) if a key is required and missing, or its reference leads to none:
        another target may have one. A provider of secrets that cannot be reached now raises its own errors.
        """
        if self._reference is not None:
            if self._host is None:
                raise ConfigError(
                    f"{self._owner}: the key is the reference {self._reference}, and only a runtime resolves "
                    f"those: run this client in a Runtime, or give the key itself ({self._setting})"
                )
            if self._key is None or self._host.clock.time() >= self._resolved_at + FRESH:
                self._take(await self._resolved(self._host, self._reference), self._host)
            return self._key
        if self._key is None and self._required:
            raise PermanentError(f"{self._owner}: there is no API key; set {self._setting}", fault="target")
        return self._key

    async def instead_of(self, key: str) -> str | None:
        """Another key, after the provider refused `key` (401): a reference is resolved anew for it. None if there is
        none, or none to be had now, which is logged."""
        if self._reference is None or self._host is None:
            return None
        if self._key == key:
            try:
                self._take(await self._host.secret_rejected(self._reference, self._secret), self._host)
            except AgentrtError as error:
                _log.warning("%s: the key was refused, and no other can be had: %s", self._owner, error)
                return None
        return None if self._key == key else self._key

    async def _resolved(self, host: Host, reference: str) -> str:
        try:
            return await host.secret(reference)
        except PermanentError as error:
            # Not found, not readable, not of the form: for the provider a fault of the request, for us no key.
            why = str(error).removeprefix(f"{reference}: ")
            raise PermanentError(f"{self._owner}: api_key = {reference}: {why}", fault="target") from error

    def _take(self, secret: str, host: Host) -> None:
        self._key = self._checked(secret.strip())
        self._secret, self._resolved_at = secret, host.clock.time()

    def _checked(self, key: str) -> str:
        if not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigError(
                f"{self._owner}: the API key holds blanks, line breaks or characters outside ASCII: set {self._setting}"
            )
        return key
