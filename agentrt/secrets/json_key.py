"""The value at a reference's key inside a secret that is JSON: `secret://aws/db#users.admin`."""

from __future__ import annotations

from typing import Any

import msgspec

from agentrt.secrets.protocol import SecretInvalid, SecretRef

__all__ = ["inside"]


def inside(value: str, ref: SecretRef) -> str:
    """The value at `ref.key`: text as it is, anything else as JSON. All of `value` if the reference has no key.

    Raises `SecretInvalid` if `value` is no JSON or has no such key.
    """
    if not ref.key:
        return value
    try:
        found: Any = msgspec.json.decode(value)
    except msgspec.DecodeError:
        # Not chained: the decoder's words may quote the value.
        raise SecretInvalid(f"{ref} wants a key, but the secret is not JSON") from None
    for depth, name in enumerate(ref.key, start=1):
        if not isinstance(found, dict) or name not in found:
            raise SecretInvalid(f"{ref}: the secret has no key {'.'.join(ref.key[:depth])!r}")
        found = found[name]
    return found if isinstance(found, str) else msgspec.json.encode(found).decode()
