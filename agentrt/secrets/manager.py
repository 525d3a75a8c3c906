"""Resolves references to secrets: one provider call for any number of readers, kept for a while (see `cache`)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TypeVar

from agentrt.config import Config
from agentrt.config.sections import SecretsCacheSection
from agentrt.errors import ConfigError
from agentrt.plugins import Host
from agentrt.secrets.cache import Kept
from agentrt.secrets.fetching import Fetches
from agentrt.secrets.json_key import inside
from agentrt.secrets.leases import Leases
from agentrt.secrets.protocol import (
    Secret,
    SecretRef,
    SecretsProvider,
    SecretUnavailable,
    is_reference,
)
from agentrt.secrets.providers import Invoke, Providers
from agentrt.secrets.slots import Known, Slot, Watch
from agentrt.telemetry.secret_shapes import Shapes

__all__ = ["Invoke", "SecretsManager"]

R = TypeVar("R", bound=str | SecretRef)

MAX_KEPT = 1000
"""Secrets that are kept at a time; beyond it the one that was asked for first is forgotten."""

REJECTED_PAUSE = 30.0
"""Seconds: a secret is fetched anew at most so often because somebody was refused with it."""

REVOKE_PART = 0.6
"""The part of the time to close in which leases are given back; the rest is for the providers."""


class SecretsManager:
    """Gives secrets by reference.

    `providers`: by name, or a function that makes the provider of a name when it is first asked for. `invoke`
    calls them. `default` ("env"): the provider of references that name none. `ttl` (3600 s), `jitter` (0.1), `stale`
    (86,400 s), `negative_ttl` (30 s): as in [secrets.cache]. `host`: given to providers that have `open`.
    `on_value`: told each value that was fetched (telemetry's redactor). `on_reveal`: told the name of each secret
    whose value is taken out of its `Secret`; what it raises, `reveal` raises.
    """

    def __init__(
        self,
        providers: Mapping[str, SecretsProvider] | Callable[[str], SecretsProvider],
        invoke: Invoke,
        *,
        default: str = "env",
        ttl: float = 3600.0,
        jitter: float = 0.1,
        stale: float = 86_400.0,
        negative_ttl: float = 30.0,
        host: Host | None = None,
        on_value: Callable[[str], object] | None = None,
        on_reveal: Callable[[str], object] | None = None,
    ) -> None:
        self.settings = SecretsCacheSection(ttl=ttl, jitter=jitter, stale=stale, negative_ttl=negative_ttl)
        self._providers = Providers(providers, invoke, host)
        self._default = default
        self._on_value = on_value
        self._on_reveal = on_reveal
        self._slots: dict[SecretRef, Slot] = {}
        self._known: dict[str | SecretRef, Known] = {}
        self._leases = Leases()
        self._fetches = Fetches(
            self._providers, self.settings, self._leases, made=self._made, on_value=on_value
        )
        self._closed = False

    @classmethod
    def from_config(
        cls,
        config: Config,
        invoke: Invoke,
        *,
        host: Host | None = None,
        on_value: Callable[[str], object] | None = None,
        on_reveal: Callable[[str], object] | None = None,
    ) -> SecretsManager:
        """With the providers of [secrets]; each plugin is loaded when its first secret is asked for."""
        cache = config.secrets_cache
        return cls(
            lambda name: config.secrets(name).make(),
            invoke,
            default=config.secrets_provider,
            ttl=cache.ttl,
            jitter=cache.jitter,
            stale=cache.stale,
            negative_ttl=cache.negative_ttl,
            host=host,
            on_value=on_value,
            on_reveal=on_reveal,
        )

    # --- reading ---------------------------------------------------------------------------------------

    async def get(self, reference: str | SecretRef) -> Secret:
        """The secret that `reference` names: `secret://...`, or a plain name for the default provider.

        Raises the provider's errors, `SecretInvalid` for a key that is not there, `PluginError` or
        `ConfigError` for a provider that is not.
        """
        known = self._known.get(reference) or self._learn(reference)
        kept = known.slot.kept
        if kept is None or asyncio.get_running_loop().time() >= kept.soft:
            kept = await self._fetches.current(known.slot)
        if kept is known.kept and known.secret is not None:
            return known.secret
        return self._remember(known, kept)

    async def get_many(self, references: Iterable[R]) -> dict[R, Secret]:
        """Several secrets, by the references as they were given; in one call per provider, if that has `get_many`.

        Raises the first error, in the order given, when all are there or have failed.
        """
        wanted = list(references)
        cold: dict[str, list[Slot]] = {}
        now = asyncio.get_running_loop().time()
        for reference in wanted:
            slot = (self._known.get(reference) or self._learn(reference)).slot
            waits = slot.kept is None or now >= max(slot.kept.end, slot.kept.retry)
            others = cold.setdefault(slot.ref.provider or "", [])
            if waits and slot.fetch is None and now >= slot.missing_until and slot not in others:
                others.append(slot)
        for name, slots in cold.items():
            if len(slots) > 1 and hasattr(await self._providers.provider(name), "get_many"):
                self._fetches.together([slot for slot in slots if slot.fetch is None])
        found = await asyncio.gather(*map(self.get, wanted), return_exceptions=True)
        secrets: dict[R, Secret] = {}
        for reference, outcome in zip(wanted, found, strict=True):
            if isinstance(outcome, BaseException):
                raise outcome
            secrets[reference] = outcome
        return secrets

    async def list(self, provider: str | None = None, prefix: str = "") -> list[str]:
        """The names of the secrets that a provider (None: the default one) has, those that begin with `prefix`.

        Raises `ConfigError` if it cannot list them.
        """
        if self._closed:
            raise SecretUnavailable("secrets are not listed any more: the runtime is closing")
        return sorted(await self._providers.list(provider or self._default, prefix))

    # --- rotation --------------------------------------------------------------------------------------

    async def refresh(self, reference: str | SecretRef) -> Secret:
        """The secret, fetched now. If that fails it raises, even where `get` would still give the kept value."""
        known = self._known.get(reference) or self._learn(reference)
        return self._remember(known, await self._fetches.anew(known.slot))

    def invalidate(self, reference: str | SecretRef | None = None) -> None:
        """Forget this secret (None: every one): it is fetched anew when it is next asked for."""
        whole = None if reference is None else self._whole(self._parse(reference))
        for slot in list(self._slots.values()) if whole is None else [self._slots.get(whole)]:
            if slot is not None:
                # What is being fetched is for those who wait for it, and is not kept.
                slot.kept, slot.fetch, slot.missing_until = None, None, 0.0
                self._fetches.plan(slot)

    def on_rotate(
        self, reference: str | SecretRef, callback: Callable[[Secret], Awaitable[None] | None]
    ) -> Callable[[], None]:
        """Call `callback` with the new secret whenever its value has changed; the function returned ends that.

        The secret is then looked up when its time is over, even if nobody reads it. A callback that fails is
        logged. One that returns a coroutine has it awaited in a task of its own.
        """
        known = self._known.get(reference) or self._learn(reference)
        slot, watch = known.slot, Watch(known.ref, callback, known.slot.kept)
        slot.watches.append(watch)
        if slot.kept is not None:
            self._fetches.plan(slot)

        def unsubscribe() -> None:
            if watch in slot.watches:
                slot.watches.remove(watch)
            if not slot.watches and (slot.kept is None or slot.kept.leased is None):
                slot.stop_timer()

        return unsubscribe

    async def rejected(self, reference: str | SecretRef, value: str) -> Secret:
        """The secret for somebody who was refused (401) with `value`: what is kept, if that is another value by now,
        else it is fetched anew, at most once in 30 s. If it is still `value`, that is the secret, and it is wrong.

        Raises what the fetch raised.
        """
        known = self._known.get(reference) or self._learn(reference)
        slot, secret = known.slot, await self.get(reference)
        if slot.fetch is not None and secret._value == value:
            secret = self._remember(known, await self._fetches.current(slot, wait=True))
        now = asyncio.get_running_loop().time()
        if secret._value != value or (slot.rejected is not None and now < slot.rejected + REJECTED_PAUSE):
            return secret
        slot.rejected = now
        return await self.refresh(reference)

    # --- the end ---------------------------------------------------------------------------------------

    async def aclose(self, seconds: float = 5.0) -> None:
        """Stop what is being fetched, forget every value, give the leases back, and close the providers.

        `seconds`: how long it may take; leases that were not given back within six tenths of it are left to end, and a
        provider that hangs does not keep the others from being closed.
        """
        self._closed = True
        end = asyncio.get_running_loop().time() + seconds
        for slot in self._slots.values():
            slot.stop_timer()
            slot.kept = None
        self._known.clear()
        try:
            await self._fetches.aclose()
            await self._leases.revoke(
                self._providers.revoke,
                now=asyncio.get_running_loop().time(),
                seconds=REVOKE_PART * seconds,
            )
        finally:
            await self._providers.aclose(max(0.0, end - asyncio.get_running_loop().time()))

    # --- finding ---------------------------------------------------------------------------------------

    def _learn(self, reference: str | SecretRef) -> Known:
        """The reference with its slot; another slot may have to go for it."""
        ref = self._parse(reference)
        whole = self._whole(ref)
        slot = self._slots.get(whole)
        if slot is None:
            if len(self._slots) >= MAX_KEPT:
                self._drop_one()
            slot = self._slots[whole] = Slot(whole)
        if len(self._known) >= 4 * MAX_KEPT:
            self._known.clear()
        known = self._known[reference] = Known(ref, slot)
        return known

    def _parse(self, reference: str | SecretRef) -> SecretRef:
        if isinstance(reference, SecretRef):
            return reference
        if is_reference(reference):
            return SecretRef.parse(reference)
        if Shapes().clean(reference) != reference:
            # Not shown, not asked for anywhere, and in no audit log.
            raise ConfigError(
                "what was given looks like a secret itself, not like the name of one: put it where a provider finds it,"
                " and give its name or a reference such as secret://env/NAME"
            )
        return SecretRef(reference)

    def _whole(self, ref: SecretRef) -> SecretRef:
        return SecretRef(ref.name, ref.provider or self._default, (), ref.version)

    def _drop_one(self) -> None:
        slot = next((slot for slot in self._slots.values() if slot.is_idle), None)
        if slot is None:
            return  # all of them are in use: they go when they are not
        slot.stop_timer()
        del self._slots[slot.ref]
        self._known = {key: known for key, known in self._known.items() if known.slot is not slot}

    def _remember(self, known: Known, kept: Kept) -> Secret:
        known.secret, known.kept = self._made(known.ref, kept), kept
        return known.secret

    def _made(self, ref: SecretRef, kept: Kept) -> Secret:
        value = inside(kept.value, ref)
        if ref.key and self._on_value is not None:
            self._on_value(value)
        return Secret(value, name=str(ref), on_reveal=self._on_reveal)
