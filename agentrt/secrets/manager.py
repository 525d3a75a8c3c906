"""Resolves references to secrets: one provider call for any number of readers, kept for a while.

A fetch belongs to no reader: it runs in a task of its own, outside the run that happened to be first, so that neither a
reader's cancellation nor its deadline takes the value from the others.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, TypeVar

from msgspec import Struct

from agentrt import options
from agentrt.call import ENCLOSING, RUN
from agentrt.config import Config
from agentrt.errors import ConfigError
from agentrt.plugins import Host, close_plugin, open_plugin
from agentrt.secrets.json_key import inside
from agentrt.secrets.protocol import (
    Secret,
    SecretRef,
    SecretsProvider,
    SecretUnavailable,
    SecretValue,
    is_reference,
)

__all__ = ["Invoke", "SecretsManager"]

T = TypeVar("T")

GROUP = "agentrt.secrets"
MAX_KEPT = 1000
"""Values that are kept at a time; beyond it the one that was fetched first is forgotten."""

LEASE_PART = 2 / 3
"""A leased value is fetched anew after this part of its lease."""


class Invoke(Protocol):
    """How the manager calls a provider: the runtime's pipeline of kind "secret"."""

    def __call__(
        self, kind: str, target: str, fn: Callable[[], Awaitable[T]], /, *, idempotent: bool = False
    ) -> Awaitable[T]: ...


class _Kept(Struct, frozen=True, eq=False):
    value: str
    until: float


class SecretsManager:
    """Gives secrets by reference.

    `providers`: by name, or a function that makes the provider of a name when it is first asked for. `invoke`
    calls them. `default` ("env"): the provider of references that name none. `ttl` (3600 s): how long a value is kept;
    a leased one at most two thirds of its lease. `host`: given to providers that have `open`. `on_value`: told
    each value that was fetched (telemetry's redactor).
    """

    def __init__(
        self,
        providers: Mapping[str, SecretsProvider] | Callable[[str], SecretsProvider],
        invoke: Invoke,
        *,
        default: str = "env",
        ttl: float = 3600.0,
        host: Host | None = None,
        on_value: Callable[[str], object] | None = None,
    ) -> None:
        self._make = providers if callable(providers) else _from_mapping(providers)
        self._invoke = invoke
        self._default = default
        self._ttl = options.seconds("ttl", ttl, open_=False)
        self._host = host
        self._on_value = on_value
        self._providers: dict[str, SecretsProvider] = {}
        self._opening: dict[str, asyncio.Lock] = {}
        self._kept: dict[SecretRef, _Kept] = {}
        self._fetches: dict[SecretRef, asyncio.Task[str]] = {}
        self._closed = False

    @classmethod
    def from_config(
        cls,
        config: Config,
        invoke: Invoke,
        *,
        host: Host | None = None,
        on_value: Callable[[str], object] | None = None,
    ) -> SecretsManager:
        """With the providers of [secrets]; each plugin is loaded when its first secret is asked for."""
        return cls(
            lambda name: config.secrets(name).make(),
            invoke,
            default=config.secrets_provider,
            host=host,
            on_value=on_value,
        )

    async def get(self, reference: str | SecretRef) -> Secret:
        """The secret that `reference` names: `secret://...`, or a plain name for the default provider.

        Raises the provider's errors, `SecretInvalid` for a key that is not there, `PluginError` or
        `ConfigError` for a provider that is not.
        """
        if isinstance(reference, SecretRef):
            ref = reference
        else:
            ref = SecretRef.parse(reference) if is_reference(reference) else SecretRef(reference)
        whole = SecretRef(ref.name, ref.provider or self._default, (), ref.version)
        kept = self._kept.get(whole)
        if kept is not None and asyncio.get_running_loop().time() < kept.until:
            value = kept.value
        else:
            value = await self._shared(whole)
        if ref.key:
            value = inside(value, ref)
            if self._on_value is not None:
                self._on_value(value)
        return Secret(value, name=str(ref))

    def forget(self, reference: str | SecretRef | None = None) -> None:
        """Fetch this secret (None: every one) anew when it is next asked for."""
        if reference is None:
            self._kept.clear()
            return
        ref = reference
        if isinstance(ref, str):
            ref = SecretRef.parse(ref) if is_reference(ref) else SecretRef(ref)
        self._kept.pop(SecretRef(ref.name, ref.provider or self._default, (), ref.version), None)

    async def aclose(self) -> None:
        """Stop what is being fetched, forget every value and close the providers."""
        self._closed = True
        fetches = list(self._fetches.values())
        for fetch in fetches:
            fetch.cancel()
        await asyncio.gather(*fetches, return_exceptions=True)
        self._kept.clear()
        problems: list[Exception] = []
        for provider in reversed(self._providers.values()):
            try:
                await close_plugin(provider)
            except Exception as error:
                problems.append(error)
        self._providers.clear()
        if problems:
            raise problems[0]

    # --- fetching --------------------------------------------------------------------------------------

    async def _shared(self, ref: SecretRef) -> str:
        """The value from the one fetch that is under way for all readers; cancelling a reader leaves it alone."""
        fetch = self._fetch(ref)
        try:
            return await asyncio.shield(fetch)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if fetch.cancelled() and task is not None and not task.cancelling():
                raise _closing(ref) from None  # `aclose` cancelled the fetch, nobody this reader
            raise

    def _fetch(self, ref: SecretRef) -> asyncio.Task[str]:
        """The task that fetches `ref`; all who ask meanwhile wait for the same one."""
        running = self._fetches.get(ref)
        if running is not None:
            return running
        if self._closed:
            raise _closing(ref)
        context = contextvars.copy_context()
        context.run(_leave_the_run)
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._fetched(ref), name=f"secret {ref}", context=context)
        self._fetches[ref] = task
        task.add_done_callback(lambda _: self._ended(ref, task))
        return task

    def _ended(self, ref: SecretRef, task: asyncio.Task[str]) -> None:
        self._fetches.pop(ref, None)
        if not task.cancelled():
            task.exception()  # seen here, too: all its readers may be gone

    async def _fetched(self, ref: SecretRef) -> str:
        assert ref.provider is not None
        provider = await self._provider(ref.provider)

        async def read() -> str | SecretValue:
            return await provider.get(ref)

        found = await self._invoke("secret", f"secret:{ref.provider}", read, idempotent=True)
        value, lease = (found.value, found.ttl) if isinstance(found, SecretValue) else (found, None)
        keep = self._ttl if lease is None else min(self._ttl, lease * LEASE_PART)
        self._kept.pop(ref, None)
        if len(self._kept) >= MAX_KEPT:
            del self._kept[next(iter(self._kept))]
        self._kept[ref] = _Kept(value, asyncio.get_running_loop().time() + keep)
        if self._on_value is not None:
            self._on_value(value)
        return value

    async def _provider(self, name: str) -> SecretsProvider:
        """The provider of this name, made and opened when it is first needed."""
        async with self._opening.setdefault(name, asyncio.Lock()):
            provider = self._providers.get(name)
            if provider is None:
                provider = self._make(name)
                if self._host is not None:
                    await open_plugin(GROUP, name, provider, self._host)
                self._providers[name] = provider
            return provider


def _closing(ref: SecretRef) -> SecretUnavailable:
    return SecretUnavailable(f"{ref} is not read any more: the runtime is closing")


def _leave_the_run() -> None:
    RUN.set(None)
    ENCLOSING.set(None)


def _from_mapping(providers: Mapping[str, SecretsProvider]) -> Callable[[str], SecretsProvider]:
    def find(name: str) -> SecretsProvider:
        try:
            return providers[name]
        except KeyError:
            known = ", ".join(sorted(providers)) or "none"
            raise ConfigError(f"there is no secrets provider {name!r}; there are: {known}") from None

    return find
