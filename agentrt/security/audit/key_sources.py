"""Where the keys of a log come from: given, in a file, or a secret."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from agentrt.errors import ConfigError
from agentrt.security.audit.checkpoints import SigningKey, key_id
from agentrt.security.audit.tickets import Keys

__all__ = ["keys_of"]

MIN_KEY = 16
"""Bytes: a shorter key can be guessed."""


async def keys_of(
    key: bytes | str | None,
    signing_key: bytes | str | None,
    secret: Callable[[str], Awaitable[str]] | None,
) -> Keys:
    """The keys of a log, each given as it is, as a `secret://` reference, which `secret` resolves, or as a file.

    Without `key` a random one is made. Raises ConfigError, without a word of what is no key, and what `secret` raises,
    with a note that says which key it is.
    """
    own = await _key_bytes("key", key, secret)
    signing = await _key_bytes("signing_key", signing_key, secret)
    if own is None:
        own = os.urandom(32)
    elif len(own) < MIN_KEY:
        raise ConfigError(
            f"[audit] key has {len(own)} bytes, but must have at least {MIN_KEY}: openssl rand -hex 32"
        )
    signer = None if signing is None else SigningKey(signing, name="[audit] signing_key")
    return Keys(own, key_id(own), signer)


async def _key_bytes(
    name: str, key: bytes | str | None, secret: Callable[[str], Awaitable[str]] | None
) -> bytes | None:
    """The key itself, of a `secret://` reference or a file."""
    if key is None or isinstance(key, bytes):
        return key
    if key.startswith("secret://"):
        if secret is None:
            raise ConfigError(
                f"[audit] {name} is a secret, but nothing here resolves secrets; give the key itself"
            )
        return await _resolved(name, key, secret)
    try:
        return await asyncio.to_thread(_read, key)
    except (OSError, ValueError, RuntimeError) as error:  # what is no path at all, `~` of nobody
        why = (isinstance(error, OSError) and error.strerror) or error
        raise ConfigError(
            f"[audit] {name} names a file that cannot be read ({why}); give a file, or secret://NAME"
        ) from error


async def _resolved(name: str, reference: str, secret: Callable[[str], Awaitable[str]]) -> bytes:
    """The key that a reference leads to."""
    try:
        value = await secret(reference)
    except Exception as error:  # it names the reference, but not who wants it
        note = f"it is [audit] {name}"
        if note not in getattr(error, "__notes__", ()):  # a failure may be remembered
            error.add_note(note)
        raise
    try:
        return value.strip().encode()
    except UnicodeEncodeError:
        pass  # not chained: it has the key in it
    raise ConfigError(f"[audit] {name}: what {reference} leads to is no text")


def _read(path: str) -> bytes:
    return Path(path).expanduser().read_bytes()
