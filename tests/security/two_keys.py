"""One AES-GCM ciphertext that is right under two keys: what GCM alone does not prevent.

The tag is GHASH (a polynomial over GF(2^128) whose coefficients are the blocks) plus a mask, NIST SP 800-38D. That both
keys have the same tag is one linear equation, and one free block of ciphertext solves it. The method is that of Dodis,
Grubbs, Ristenpart and Woodage, "Fast Message Franking" (2018).
"""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

BLOCK = 16
ONE = 1 << 127
"""The number one: GCM writes the lowest power first."""


def seal_for_both(first: bytes, second: bytes, associated: bytes, ciphertext: bytes) -> bytes:
    """`ciphertext` (whole blocks) and one more block, with a tag that is right for both keys under a nonce of zeros."""
    hashes = [_encrypt_block(key, bytes(BLOCK)) for key in (first, second)]
    masks = [int.from_bytes(_encrypt_block(key, bytes(15) + b"\1")) for key in (first, second)]
    length = len(ciphertext) + BLOCK
    lengths = (8 * len(associated)).to_bytes(8) + (8 * length).to_bytes(8)
    padded = associated + bytes(-len(associated) % BLOCK)
    rest = masks[0] ^ masks[1]
    factor = 0
    for hashed in hashes:
        point = int.from_bytes(hashed)
        rest ^= _ghash(point, padded + ciphertext + bytes(BLOCK) + lengths)
        factor ^= _multiply(point, point)  # the free block stands before the lengths: its power is the second
    block = _multiply(rest, _inverse(factor)).to_bytes(BLOCK)
    point = int.from_bytes(hashes[0])
    tag = _ghash(point, padded + ciphertext + block + lengths) ^ masks[0]
    return ciphertext + block + tag.to_bytes(BLOCK)


def _encrypt_block(key: bytes, block: bytes) -> bytes:
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    return encryptor.update(block) + encryptor.finalize()


def _ghash(point: int, blocks: bytes) -> int:
    value = 0
    for at in range(0, len(blocks), BLOCK):
        value = _multiply(value ^ int.from_bytes(blocks[at : at + BLOCK]), point)
    return value


def _multiply(one: int, other: int) -> int:
    product = 0
    for bit in range(127, -1, -1):
        if one >> bit & 1:
            product ^= other
        other = other >> 1 ^ (0xE1 << 120 if other & 1 else 0)
    return product


def _inverse(value: int) -> int:
    """By Fermat: to the power of 2^128 - 2."""
    result, power = ONE, value
    for _ in range(127):
        power = _multiply(power, power)
        result = _multiply(result, power)
    assert _multiply(result, value) == ONE
    return result
