"""What a runtime opens when it is first asked for it: memory, conversations, secrets; how plugins see the runtime."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from agentrt.clock import Clock
from agentrt.closing import Closer, in_any_time
from agentrt.config import Config
from agentrt.errors import ConfigError
from agentrt.plugins import close_plugin

if TYPE_CHECKING:
    from agentrt.conversations import Conversations
    from agentrt.memory.protocol import Memory
    from agentrt.secrets.manager import SecretsManager
    from agentrt.security.encryption import Encryption

__all__ = ["Invoke", "PluginHost", "Resources"]

T = TypeVar("T")

DEFAULT_MEMORY = Path(".agentrt") / "memory.db"


class Invoke(Protocol):
    """Makes a plugin's call through the runtime's own pipeline of `kind`."""

    def __call__(
        self, kind: str, target: str, fn: Callable[[], Awaitable[T]], /, *, idempotent: bool = False
    ) -> Awaitable[T]: ...


class PluginHost:
    """What a plugin's `open` gets (`agentrt.plugins.Host`). `secret`: resolves a reference."""

    log = logging.getLogger("agentrt.plugins")

    def __init__(self, invoke: Invoke, secrets: Callable[[], SecretsManager]) -> None:
        self._invoke = invoke
        self._secrets = secrets
        self.loop: asyncio.AbstractEventLoop | None = None

    @property
    def clock(self) -> Clock:
        return asyncio.get_running_loop()

    async def secret(self, reference: str, /) -> str:
        return (await self._secrets().get(reference)).reveal()

    async def secret_rejected(self, reference: str, value: str, /) -> str:
        return (await self._secrets().rejected(reference, value)).reveal()

    async def call(
        self, kind: str, target: str, fn: Callable[[], Awaitable[T]], /, *, idempotent: bool = False
    ) -> T:
        return await self._invoke(kind, target, fn, idempotent=idempotent)


class Resources:
    """`memory`: a store of the user's own, which the user closes. `check_open` raises once the runtime is closed: what
    is open then may still be used, while agents are being closed. `on_value`: told each secret that was fetched.
    `on_reveal`: told the name of each that somebody looks at."""

    def __init__(
        self,
        config: Config,
        invoke: Invoke,
        *,
        memory: Memory | None,
        check_open: Callable[[], object],
        on_value: Callable[[str], object],
        on_reveal: Callable[[str], object],
    ) -> None:
        self.host = PluginHost(invoke, self.secrets)
        self._config = config
        self._invoke = invoke
        self._check_open = check_open
        self._on_value = on_value
        self._on_reveal = on_reveal
        self._memory = memory
        self._memory_is_given = memory is not None
        self._conversations: Conversations | None = None
        self._secrets: SecretsManager | None = None

    def memory(self) -> Memory:
        """The memory store, opened at first use."""
        if self._memory is None:
            self._check_open()
            from agentrt.memory.sqlite import SqliteMemory

            self._memory = self._config.make(SqliteMemory, "memory", defaults={"path": str(DEFAULT_MEMORY)})
        return self._memory

    def conversations(self) -> Conversations:
        """The stored conversations; their store is opened at its first use."""
        if self._conversations is None:
            self._check_open()
            from agentrt.conversations import Conversations

            self._conversations = Conversations.from_config(
                self._config, self._invoke, secret=self.host.secret, host=self.host
            )
        return self._conversations

    async def encryption(self) -> Encryption:
        """With the keys of [encryption] as they are now."""
        self._check_open()
        from agentrt.conversations import encryption_of

        found = await encryption_of(self._config, self.host.secret)
        if found is None:
            raise ConfigError(
                'there are no keys: set `keys = ["secret://env/AGENTRT_KEY"]` in [encryption], each one the reference '
                "of a secret that `openssl rand -base64 32` made"
            )
        return found

    def secrets(self) -> SecretsManager:
        """The secrets, with the providers of the configuration."""
        if self._secrets is None:
            self._check_open()
            from agentrt.secrets.manager import SecretsManager

            self._secrets = SecretsManager.from_config(
                self._config,
                self._invoke,
                host=self.host,
                on_value=self._on_value,
                on_reveal=self._on_reveal,
            )
        return self._secrets

    def closing(self) -> list[Closer]:
        """What to close, with its name, in this order. Nothing more is opened."""
        closing: list[Closer] = []
        if self._memory is not None and not self._memory_is_given:
            closing.append(("the memory", in_any_time(functools.partial(close_plugin, self._memory))))
        if self._conversations is not None:
            closing.append(("the stored conversations", in_any_time(self._conversations.aclose)))
        if self._secrets is not None:
            closing.append(("the secrets", self._secrets.aclose))
        return closing

    def forget(self) -> None:
        """Everything is closed."""
        self._memory = None
