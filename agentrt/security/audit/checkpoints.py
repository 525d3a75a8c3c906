"""Signed checkpoints: ed25519 keys, and what is signed. Needs the extra "security"."""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import TYPE_CHECKING, Any

from agentrt.errors import ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

__all__ = ["SIGNATURE", "SIGNED", "PublicKey", "SigningKey", "key_id"]

SIGNED = b"agentrt audit checkpoint 1\n"
"""What stands before a checkpoint's own bytes in what is signed: the key signs nothing else that looks like it."""

SIGNATURE = b',"signature":"'

_MAKE = "openssl genpkey -algorithm ed25519 -out audit.key"
_MAKE_PUBLIC = "openssl pkey -in audit.key -pubout -out audit.pub"


class SigningKey:
    """A private ed25519 key. `text`: PEM (PKCS #8), or its 32 bytes in base64 or hex. `name`: where it came from, for
    the error if it is none."""

    def __init__(self, text: str | bytes, *, name: str) -> None:
        ed25519, serialization, unsupported = _cryptography()
        pem = text.encode() if isinstance(text, str) else text
        raw = _raw(pem)
        try:
            if raw is not None:
                key: Any = ed25519.Ed25519PrivateKey.from_private_bytes(raw)
            else:
                key = serialization.load_pem_private_key(pem.strip() + b"\n", None)
        except (ValueError, TypeError, unsupported):
            key = None  # not chained: the words of a parser may quote what it read
        if not isinstance(key, ed25519.Ed25519PrivateKey):
            raise ConfigError(
                f"{name} is not an ed25519 private key without a password; make one with: {_MAKE}"
            )
        self._key: Ed25519PrivateKey = key
        self.id = key_id(key.public_key().public_bytes_raw())

    def __repr__(self) -> str:
        return f"<SigningKey {self.id}>"

    def sign(self, body: bytes) -> str:
        """The signature of a checkpoint, in base64."""
        return base64.b64encode(self._key.sign(SIGNED + body)).decode()

    @property
    def public(self) -> PublicKey:
        """The key that signatures are verified with."""
        return PublicKey(self._key.public_key().public_bytes_raw().hex(), name="the signing key")


class PublicKey:
    """A public ed25519 key: PEM, or its 32 bytes in base64 or hex. `name`: where it came from, for errors."""

    def __init__(self, text: str | bytes, *, name: str) -> None:
        ed25519, serialization, unsupported = _cryptography()
        pem = text.encode() if isinstance(text, str) else text
        if b"PRIVATE KEY" in pem:
            raise ConfigError(
                f"{name} is a private key, which should not leave the process that signs: {_MAKE_PUBLIC}"
            )
        raw = _raw(pem)
        try:
            if raw is not None:
                key: Any = ed25519.Ed25519PublicKey.from_public_bytes(raw)
            else:
                key = serialization.load_pem_public_key(pem.strip() + b"\n")
        except (ValueError, TypeError, unsupported):
            key = None
        if not isinstance(key, ed25519.Ed25519PublicKey):
            raise ConfigError(f"{name} is not an ed25519 public key; get it with: {_MAKE_PUBLIC}")
        self._key: Ed25519PublicKey = key
        self.id = key_id(key.public_bytes_raw())

    def __repr__(self) -> str:
        return f"<PublicKey {self.id}>"

    def verifies(self, body: bytes, signature: str) -> bool:
        """Whether `signature` is this key's, of a checkpoint's bytes."""
        from cryptography.exceptions import InvalidSignature

        try:
            self._key.verify(base64.b64decode(signature, validate=True), SIGNED + body)
        except (InvalidSignature, ValueError):
            return False
        return True


def key_id(key: bytes) -> str:
    """What tells keys apart without telling them."""
    return hashlib.sha256(b"agentrt audit key\n" + key).hexdigest()[:16]


def _raw(text: bytes) -> bytes | None:
    """32 bytes in base64 or hex; None if it is something else."""
    text = text.strip()
    if b"-----" in text:
        return None
    for decoded in (binascii.unhexlify, lambda each: base64.b64decode(each, validate=True)):
        try:
            raw = decoded(text)
        except (binascii.Error, ValueError):
            continue
        if len(raw) == 32:
            return raw
    return None


def _cryptography() -> tuple[Any, Any, type[Exception]]:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise ConfigError(
            "signed checkpoints of the audit log need the package cryptography: pip install 'agentrt[security]'"
        ) from error
    return ed25519, serialization, UnsupportedAlgorithm
