"""Tokens as docs/encryption.md describes them, made with nothing of ours: what the real thing is compared with."""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass

from cryptography.hazmat.primitives.ciphers.aead import AESGCM


@dataclass(frozen=True)
class Made:
    """All values on the way to a token."""

    header: bytes
    bound: bytes
    message_key: bytes
    commitment: bytes
    sealed: bytes

    @property
    def token(self) -> str:
        return base64.urlsafe_b64encode(self.header + self.commitment + self.sealed).decode().rstrip("=")


def hkdf_sha256(key: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869, section 2."""
    prk = hmac.new(salt, key, hashlib.sha256).digest()
    okm, block, number = b"", b"", 0
    while len(okm) < length:
        number += 1
        block = hmac.new(prk, block + info + bytes([number]), hashlib.sha256).digest()
        okm += block
    return okm[:length]


def make(*, id: str, key: bytes, salt: bytes, context: bytes, plaintext: bytes) -> Made:
    header = base64.b64decode("art1") + bytes([len(id)]) + id.encode("ascii") + salt
    bound = len(header).to_bytes(8, "big") + header + len(context).to_bytes(8, "big") + context
    okm = hkdf_sha256(key, salt, b"agentrt encryption" + bound, 64)
    sealed = AESGCM(okm[:32]).encrypt(b"\x00" * 12, plaintext, bound)
    return Made(header, bound, okm[:32], okm[32:], sealed)
