"""Agents that ask for a secret, for the plugins of all secrets services."""

from __future__ import annotations

import asyncio

from agentrt.context import Context
from agentrt.secrets import SecretRef

__all__ = ["VALUE", "Crowd", "Reader", "ref"]

VALUE = "s3cr3t-of-the-tests"


def ref(provider: str, text: str) -> SecretRef:
    """`text`: the rest of a reference behind `provider`."""
    return SecretRef.parse(f"secret://{provider}/{text}")


class Reader:
    """Asks for the secret that the message names, `readers` times at once."""

    readers = 1

    async def run(self, message: str, ctx: Context) -> str:
        found = await asyncio.gather(*(ctx.secret(message) for _ in range(self.readers)))
        assert len(set(found)) == 1
        return f"{len(found)} readers got {len(found[0])} characters"


class Crowd(Reader):
    readers = 500
