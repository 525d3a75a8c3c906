"""What a plugin's `open` gets in its tests, as far as it goes without a runtime."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from agentrt.clock import Clock
from agentrt.errors import ConfigError

__all__ = ["PlainHost"]

T = TypeVar("T")


class PlainHost:
    """`secrets`: what `secret(reference)` knows. Calls go to the function directly, through no pipeline."""

    log = logging.getLogger("agentrt.plugins")

    def __init__(self, secrets: Mapping[str, str] | None = None) -> None:
        self._secrets = dict(secrets or {})

    @property
    def clock(self) -> Clock:
        return asyncio.get_running_loop()

    async def secret(self, reference: str, /) -> str:
        if reference not in self._secrets:
            raise ConfigError(
                f"the tests have no value for {reference!r}: put it into `secrets` of their class"
            )
        return self._secrets[reference]

    async def secret_rejected(self, reference: str, value: str, /) -> str:
        del value
        return await self.secret(reference)

    async def call(
        self, kind: str, target: str, fn: Callable[[], Awaitable[T]], /, *, idempotent: bool = False
    ) -> T:
        del kind, target, idempotent
        return await fn()
