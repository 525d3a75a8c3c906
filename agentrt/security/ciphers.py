"""What is used of the package `cryptography`; nothing else imports it here."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

__all__ = ["Fernets", "derive", "seal", "unseal"]

NONCE = bytes(12)
"""Each key encrypts one message, so the pair of key and nonce never comes twice, which is all that GCM asks for. Peers
that derive a key per message and fix the nonce: age (RFC 7539 with a nonce of zeros under a key from HKDF), and the
committing suite of the Amazon S3 Encryption Client (an IV of twelve 0x01 under a key from HKDF)."""

_SHA256 = SHA256()


def derive(key: bytes, salt: bytes, info: bytes) -> tuple[bytes, bytes]:
    """A key for one message, and a value that commits to it: HKDF-SHA256 (RFC 5869), 64 bytes in two halves."""
    made = HKDF(_SHA256, 64, salt, info).derive(key)
    return made[:32], made[32:]


def seal(key: bytes, plaintext: bytes, bound: bytes) -> bytes:
    """AES-256-GCM: the ciphertext with its tag of 16 bytes; `bound` is the associated data."""
    return AESGCM(key).encrypt(NONCE, plaintext, bound)


def unseal(key: bytes, sealed: bytes, bound: bytes) -> bytes | None:
    """What was sealed; None if anything of it was changed."""
    try:
        return AESGCM(key).decrypt(NONCE, sealed, bound)
    except InvalidTag:
        return None


class Fernets:
    """Decrypts what any of these Fernet keys encrypted, however long ago."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._fernet = MultiFernet([Fernet(key) for key in keys])

    def decrypt(self, token: str) -> bytes | None:
        """The plaintext, or None."""
        try:
            # Fernet skips what is no base64, and bits that mean nothing: a changed token could pass.
            if base64.urlsafe_b64encode(base64.urlsafe_b64decode(token)) != token.encode():
                return None
            return self._fernet.decrypt(token)
        except (InvalidToken, binascii.Error, ValueError):
            return None
