"""Encryption of what is stored: authenticated, bound to its place, and under a key that the token commits to.

    encryption = Encryption(ring)
    token = encryption.encrypt("Ada likes red wine", context="notes/17")
    encryption.decrypt_text(token, context="notes/17")

A token is base64url, without padding, of

    6a bb 75        version 1; every token begins with the characters `art1`
    n, id           the length of the key's id (1 byte) and the id
    salt            32 random bytes
    commitment      32 bytes
    ciphertext      as long as the plaintext
    tag             16 bytes

With `header` = everything before the commitment and `bound` = len(header) || header || len(context) || context, lengths
as 8 bytes, big endian:

    HKDF-SHA256(ring key, salt, info = "agentrt encryption" || bound) = message key (32 bytes) || commitment (32 bytes)
    AES-256-GCM(message key, nonce of zeros, plaintext, associated data = bound) = ciphertext || tag

Why so. The salt makes a key that encrypts one message only, so a fixed nonce is never used twice with it, and no number
of messages wears a ring key out (`ciphers.NONCE` names who does the same). GCM alone commits to nothing: one
ciphertext can be made to decrypt under two keys (Dodis and others 2018; Len and others 2021, partitioning oracles). The
commitment is the second half of the same HKDF: a PRF of the ring key, so it tells nothing, and by the collision
resistance of SHA-256 it fits one key, one header and one context only (the AWS Encryption SDK's committing suites do
the same with the key). docs/encryption.md has the format with test vectors.
"""

from __future__ import annotations

import binascii
import hmac
import os
from types import ModuleType
from typing import TYPE_CHECKING

import msgspec

from agentrt.errors import AgentrtError, ConfigError
from agentrt.security.keys import KeyRing

if TYPE_CHECKING:
    from agentrt.security.ciphers import Fernets

__all__ = ["MAX_BYTES", "DecryptionFailed", "Encryption"]

VERSION = bytes.fromhex("6abb75")
LABEL = b"agentrt encryption"
SALT_BYTES = 32
COMMITMENT_BYTES = 32
TAG_BYTES = 16

MAX_BYTES = 64 * 2**20
"""Of a plaintext, and of a context: what is kept in memory whole, several times. GCM itself would take 64 GiB."""

_MAX_TOKEN = (MAX_BYTES + 200) * 4 // 3

_FERNET_VERSION = "gAAA"
"""What a Fernet token begins with: 0x80, and the first bytes of a time before 2106."""

_TO_URL = bytes.maketrans(b"+/", b"-_")
_FROM_URL = bytes.maketrans(b"-_+/=", b"+/!!!")
"""A "!" is in no base64: what is not of this alphabet is refused by the decoder."""


_FAILED = (
    "decryption failed: the token was changed or cut, belongs to another context, was made with a key that is not in "
    "the ring, or is no token of ours"
)


class DecryptionFailed(AgentrtError):
    """A token could not be decrypted. It does not say why: who may try tokens must not learn anything from it."""

    def __init__(self, message: str = _FAILED) -> None:
        super().__init__(message)


class Encryption:
    """Encrypts with the primary key of `ring`, decrypts with all of them. Usable from any number of threads.

    `context` says what a token belongs to (a table with a row's id, a session's id): not secret, not stored in the
    token, and the same again is needed to decrypt. So a token that is copied to another place is refused there. Text
    and its UTF-8 are the same context, and the same plaintext.

    Raises `ConfigError` if the package cryptography is missing.
    """

    __slots__ = ("_ciphers", "_fernets", "_head", "_primary", "ring")

    def __init__(self, ring: KeyRing) -> None:
        self.ring = ring
        key, name = ring.key(ring.primary), ring.primary.encode()
        assert key is not None
        self._primary = key
        self._head = VERSION + bytes((len(name),)) + name
        self._ciphers = _load()
        self._fernets: Fernets | None = self._ciphers.Fernets(ring.fernet_keys) if ring.fernet_keys else None

    def __repr__(self) -> str:
        return f"Encryption({self.ring!r})"

    def encrypt(self, plaintext: str | bytes, *, context: str | bytes) -> str:
        """A token for `plaintext` (up to 64 MiB; it may be empty), another one each time.

        Raises `ConfigError` for what is no text or too long, or an empty context.
        """
        data = _as_bytes("the plaintext", plaintext)
        place = _as_context(context)
        salt = os.urandom(SALT_BYTES)
        header = self._head + salt
        bound = _bound(header, place)
        message_key, commitment = self._ciphers.derive(self._primary, salt, LABEL + bound)
        return _encode(header + commitment + self._ciphers.seal(message_key, data, bound))

    def decrypt(self, token: str, *, context: str | bytes) -> bytes:
        """The plaintext of `token`, a Fernet token included if the ring has its key.

        Raises `DecryptionFailed`, always the same, for every reason why a token is refused; `ConfigError` for a
        token or context of the wrong type, or an empty context. Fernet tokens have no context: any is accepted.
        """
        if not isinstance(token, str):
            raise ConfigError(f"a token is text, not {type(token).__name__}")
        place = _as_context(context)
        plaintext = self._decrypted(token, place)
        if plaintext is None:
            raise DecryptionFailed  # here, where no other error is being handled that would stand beside it
        return plaintext

    def decrypt_text(self, token: str, *, context: str | bytes) -> str:
        """The plaintext of `token` as text. Raises as `decrypt` does, and `ConfigError` if it is no UTF-8."""
        text = _as_text(self.decrypt(token, context=context))
        if text is None:
            raise ConfigError("what was decrypted is not text: read it with decrypt(), which gives bytes")
        return text

    def rewrap(self, token: str, *, context: str | bytes) -> str:
        """A new token of the same plaintext and context under the primary key. Raises as `decrypt` does."""
        return self.encrypt(self.decrypt(token, context=context), context=context)

    def is_current(self, token: str) -> bool:
        """Whether `token` names the primary key: the others are those to `rewrap`. It is not decrypted."""
        parts = _parse(token)
        return parts is not None and parts.id == self.ring.primary

    def _decrypted(self, token: str, context: bytes) -> bytes | None:
        if self._fernets is not None and token.startswith(_FERNET_VERSION):
            return self._fernets.decrypt(token) if len(token) <= _MAX_TOKEN else None
        parts = _parse(token)
        key = None if parts is None else self.ring.key(parts.id)
        if parts is None or key is None:
            return None  # told apart by time, perhaps; but a token's form and its key's id are no secrets
        bound = _bound(parts.header, context)
        message_key, commitment = self._ciphers.derive(key, parts.header[-SALT_BYTES:], LABEL + bound)
        # Both are always done, so that time does not tell which of them failed.
        is_committed = hmac.compare_digest(commitment, parts.commitment)
        plaintext: bytes | None = self._ciphers.unseal(message_key, parts.sealed, bound)
        return plaintext if is_committed else None


class _Parts:
    """A token taken apart, nothing of it checked but its form."""

    __slots__ = ("commitment", "header", "id", "sealed")

    def __init__(self, id: str, header: bytes, commitment: bytes, sealed: bytes) -> None:
        self.id = id
        self.header = header
        self.commitment = commitment
        self.sealed = sealed


def _parse(token: str) -> _Parts | None:
    """None for what cannot be a token: a wrong version, too short, no canonical base64."""
    raw = _decode(token)
    if raw is None or not raw.startswith(VERSION) or len(raw) <= len(VERSION):
        return None
    begin = len(VERSION) + 1
    end_of_id = begin + raw[len(VERSION)]
    end_of_header = end_of_id + SALT_BYTES
    end_of_commitment = end_of_header + COMMITMENT_BYTES
    if len(raw) < end_of_commitment + TAG_BYTES:
        return None
    # An id with other characters is none of a ring's: it is not found there.
    id = raw[begin:end_of_id].decode("latin-1")
    return _Parts(id, raw[:end_of_header], raw[end_of_header:end_of_commitment], raw[end_of_commitment:])


def _bound(header: bytes, context: bytes) -> bytes:
    """Both with their lengths, so that no other pair has the same encoding."""
    return b"".join((len(header).to_bytes(8), header, len(context).to_bytes(8), context))


def _encode(raw: bytes) -> str:
    return binascii.b2a_base64(raw, newline=False).translate(_TO_URL).rstrip(b"=").decode()


def _decode(token: str) -> bytes | None:
    """The bytes of a token. One token has one form: padding, other characters and loose bits at the end are refused."""
    if len(token) > _MAX_TOKEN or not token.isascii():
        return None
    plain = token.encode().translate(_FROM_URL) + b"=" * (-len(token) % 4)
    try:
        raw = msgspec.convert(
            plain.decode(), bytes
        )  # as strict as binascii's strict mode, in a quarter of the time
    except msgspec.ValidationError:
        return None
    # The last character may have bits that mean nothing; they must be the zeros that the encoder writes.
    end = len(raw) % 3
    return raw if not end or token.endswith(_encode(raw[-end:])) else None


def _as_bytes(what: str, value: str | bytes) -> bytes:
    if isinstance(value, str):
        data = _utf8(value)
        if data is None:
            raise ConfigError(f"{what} is text that has no UTF-8 form (half of a surrogate pair): give bytes")
    elif isinstance(value, bytes):
        data = value
    else:
        raise ConfigError(f"{what} must be text or bytes, not {type(value).__name__}")
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{what} has {len(data)} bytes; the most is {MAX_BYTES}: encrypt it in parts")
    return data


def _utf8(text: str) -> bytes | None:
    try:
        return text.encode()
    except UnicodeEncodeError:
        return None  # the error would hold the text


def _as_text(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None  # the error would hold the plaintext, and so would a variable where another is raised


def _as_context(context: str | bytes) -> bytes:
    data = _as_bytes("the context", context)
    if not data:
        raise ConfigError(
            "the context is empty: it says what the token belongs to, so that it is refused anywhere else"
        )
    return data


def _load() -> ModuleType:
    try:
        from agentrt.security import ciphers
    except ImportError as error:
        raise ConfigError(
            f"encryption needs the package cryptography: pip install 'agentrt[security]' ({error})"
        ) from error
    return ciphers
