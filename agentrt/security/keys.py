"""The keys of `Encryption`: a ring of them by id, of which one encrypts and all decrypt.

    ring = KeyRing.from_texts(os.environ["KEY_2026"], os.environ["KEY_2025"])    the first is the primary
    ring = await KeyRing.from_references(["secret://vault/agents#k2", "secret://vault/agents#k1"], resolve)

A key is 32 random bytes; as text, base64 of them, perhaps after an id of your own: `2026-07:BASE64`. Without one the id
is derived from the key, so that nobody has to keep a list. Ids are public: each token says which key made it.

Rotation without downtime: give every process the new key as a second one; then make it the first; then `rewrap` what
is stored; then leave the old one out. At each step every process can read what any other wrote.
"""

from __future__ import annotations

import binascii
import hmac
import os
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NoReturn

from agentrt.errors import ConfigError

__all__ = ["KEY_BYTES", "KeyRing", "new_key"]

KEY_BYTES = 32
MAX_ID = 32
_ID = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_ID}}}")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{43}=?")
"""Of 32 bytes, in either alphabet, padded or not."""

_MAKE_ONE = "make one with `openssl rand -base64 32`"


def new_key(*, id: str | None = None) -> str:
    """A new key as text, to be put into a secret store. `id`: of your own, else it is derived from the key."""
    text = binascii.b2a_base64(os.urandom(KEY_BYTES), newline=False).decode()
    return text if id is None else f"{_checked_id(id)}:{text}"


class KeyRing:
    """Keys by id; `primary` is the id of the one that encrypts. A ring never changes.

    `keys`: 32 random bytes each; an id is 1 to 32 letters, digits, ".", "_" or "-". `fernet`: Fernet keys whose tokens
    are still decrypted, for a migration; nothing is encrypted with them.

    Raises `ConfigError`. repr shows the ids only, and a ring is not pickled.
    """

    __slots__ = ("_fernet", "_keys", "_primary")

    def __init__(
        self, keys: Mapping[str, bytes], *, primary: str, fernet: Sequence[str | bytes] = ()
    ) -> None:
        self._keys = {_checked_id(id): _checked_key(f"the key {id!r}", key) for id, key in keys.items()}
        if primary not in self._keys:
            raise ConfigError(f"the primary key {primary!r} is none of the ring's: {', '.join(self._keys)}")
        self._primary = primary
        self._fernet = tuple(
            _decoded(f"Fernet key {number}", key if isinstance(key, str) else key.decode("ascii", "replace"))
            for number, key in enumerate(fernet, start=1)
        )

    @classmethod
    def generate(cls, *, id: str | None = None) -> KeyRing:
        """A ring of one new key, which ends with the process: for tests, and what need not outlive it."""
        return cls.from_texts(new_key(id=id))

    @classmethod
    def from_texts(cls, *texts: str, fernet: Sequence[str | bytes] = ()) -> KeyRing:
        """A ring of keys as text, `BASE64` or `ID:BASE64`; the first is the primary."""
        return cls._named({f"key {number}": text for number, text in enumerate(texts, start=1)}, fernet)

    @classmethod
    async def from_references(
        cls,
        references: Sequence[str],
        resolve: Callable[[str], Awaitable[str]],
        *,
        fernet: Sequence[str] = (),
    ) -> KeyRing:
        """A ring of the keys that these references name (`secret://...`); the first is the primary.

        `resolve` gives the value of one. `fernet`: references of Fernet keys. What `resolve` raises propagates.
        Raises `ConfigError` for what is no reference: a key would stand in the message that it is not there.
        """
        for number, reference in enumerate((*references, *fernet), start=1):
            if not reference.startswith("secret://"):
                raise ConfigError(
                    f'number {number} is no reference such as "secret://env/AGENTRT_KEY"; keys themselves are for '
                    "KeyRing.from_texts"
                )
        texts = {reference: await resolve(reference) for reference in references}
        old = {reference: await resolve(reference) for reference in fernet}
        decoded = [_as_fernet(_decoded(reference, text)) for reference, text in old.items()]
        return cls._named(texts, decoded)

    @classmethod
    def _named(cls, texts: Mapping[str, str], fernet: Sequence[str | bytes]) -> KeyRing:
        """`texts` by what a message calls them."""
        keys: dict[str, bytes] = {}
        for name, text in texts.items():
            given, colon, base64 = text.strip().rpartition(":")
            key = _decoded(name, base64)
            id = _checked_id(given, name) if colon else _derived_id(key)
            if id in keys:
                raise ConfigError(f"{name} has the same id as a key before it ({id}): leave one of them out")
            keys[id] = key
        if not keys:
            raise ConfigError(f"a key ring needs a key: {_MAKE_ONE}")
        return cls(keys, primary=next(iter(keys)), fernet=fernet)

    @property
    def primary(self) -> str:
        """The id of the key that encrypts."""
        return self._primary

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of all keys."""
        return tuple(self._keys)

    def key(self, id: str) -> bytes | None:
        """The key of this id; None if the ring has none."""
        return self._keys.get(id)

    @property
    def fernet_keys(self) -> tuple[str, ...]:
        """The Fernet keys, in the form that Fernet takes."""
        return tuple(map(_as_fernet, self._fernet))

    def with_key(self, text: str, *, primary: bool = False) -> KeyRing:
        """This ring and one more key, `BASE64` or `ID:BASE64`; `primary`: it encrypts from now on."""
        added = KeyRing.from_texts(text)
        if added.primary in self._keys:
            raise ConfigError(f"the ring has a key {added.primary!r} already")
        keys = {**self._keys, **added._keys}
        return KeyRing(keys, primary=added.primary if primary else self._primary, fernet=self.fernet_keys)

    def without(self, id: str) -> KeyRing:
        """This ring less one key: its tokens cannot be decrypted any more. The primary cannot be left out."""
        if id == self._primary or id not in self._keys:
            others = ", ".join(other for other in self._keys if other != self._primary) or "none"
            raise ConfigError(f"the key {id!r} cannot be left out; those that can: {others}")
        keys = {other: key for other, key in self._keys.items() if other != id}
        return KeyRing(keys, primary=self._primary, fernet=self.fernet_keys)

    def __repr__(self) -> str:
        fernet = f", fernet={len(self._fernet)}" if self._fernet else ""
        return f"KeyRing(primary={self._primary!r}, ids={list(self._keys)}{fernet})"

    def __copy__(self) -> KeyRing:
        return self

    def __deepcopy__(self, memo: Any) -> KeyRing:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a KeyRing is not pickled: its keys would stand in the pickle; make it anew from its references"
        )


def _derived_id(key: bytes) -> str:
    """8 hexadecimal digits that are the same for the same key. HMAC is a one-way function of the key, and no message is
    ever encrypted with what is made here."""
    return hmac.digest(key, b"agentrt key id", "sha256")[:4].hex()


def _checked_id(id: str, name: str = "a key's id") -> str:
    # `id` may be what somebody wrote before a colon by mistake: it is not shown.
    if not isinstance(id, str) or _ID.fullmatch(id) is None:
        raise ConfigError(f'{name}: an id is 1 to {MAX_ID} letters, digits, ".", "_" or "-"')
    return id


def _checked_key(name: str, key: bytes) -> bytes:
    if not isinstance(key, bytes) or len(key) != KEY_BYTES:
        given = f"{len(key)} bytes" if isinstance(key, bytes) else type(key).__name__
        raise ConfigError(f"{name} must be {KEY_BYTES} random bytes, not {given}; {_MAKE_ONE}")
    # Zeros and other placeholders. 32 random bytes have as few different values once in 10^30 times.
    if len(set(key)) < 10:
        raise ConfigError(f"{name} is not random; {_MAKE_ONE}")
    return key


def _decoded(name: str, text: str) -> bytes:
    """The key that `text` is in base64. The message has nothing of the text, and no cause is chained."""
    text = text.strip()
    if _BASE64.fullmatch(text) is None:
        raise ConfigError(f"{name} must be base64 of {KEY_BYTES} random bytes; {_MAKE_ONE}")
    return _checked_key(name, binascii.a2b_base64(text.replace("-", "+").replace("_", "/").rstrip("=") + "="))


def _as_fernet(key: bytes) -> str:
    return binascii.b2a_base64(key, newline=False).decode().replace("+", "-").replace("/", "_")
