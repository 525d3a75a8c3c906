"""The fetches of a manager: one at a time for each secret, whoever asks, and what becomes of the slot afterwards.

A fetch belongs to no reader: it runs in a task of its own, outside the run that happened to be first, so that neither a
reader's cancellation nor its deadline takes the value from the others.
"""

from __future__ import annotations

import asyncio
import logging
import random
import weakref
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from typing import TypeAlias

from agentrt.config.sections import SecretsCacheSection
from agentrt.errors import ConfigError, PermanentError
from agentrt.secrets.cache import REST, Kept, is_unavailable, keep, rest
from agentrt.secrets.leases import Leases
from agentrt.secrets.protocol import Secret, SecretNotFound, SecretRef, SecretUnavailable, SecretValue
from agentrt.secrets.providers import Providers, apart
from agentrt.secrets.slots import Slot, Watch

__all__ = ["Fetches"]

_Together: TypeAlias = asyncio.Task[Mapping[SecretRef, str | SecretValue]]

SOONEST = 1.0
"""Seconds between two fetches that nobody asked for."""

_INSIDE: ContextVar[tuple[weakref.ref[asyncio.Task[Kept]], ...]] = ContextVar(
    "agentrt_secrets_inside", default=()
)
"""The fetches that wait for whatever runs here: a provider may need a secret of another one to log in."""

_log = logging.getLogger("agentrt.secrets")


class Fetches:
    """Fetches through `providers`, keeps by `settings`, gives leases to `leases`. `made`: the `Secret` for watchers.
    `on_value`: told each value that was fetched."""

    def __init__(
        self,
        providers: Providers,
        settings: SecretsCacheSection,
        leases: Leases,
        *,
        made: Callable[[SecretRef, Kept], Secret],
        on_value: Callable[[str], object] | None,
    ) -> None:
        self._providers = providers
        self._settings = settings
        self._leases = leases
        self._made = made
        self._on_value = on_value
        self._tasks: set[asyncio.Task[object]] = set()
        self._closed = False

    async def current(self, slot: Slot, *, wait: bool = False) -> Kept:
        """What a reader gets of a slot whose value is missing or no longer fresh. `wait`: for a fetch in any case."""
        now, kept = asyncio.get_running_loop().time(), slot.kept
        if kept is not None and not wait:
            in_outage = slot.is_down and now < kept.retry + REST
            if now < kept.end or (now < kept.last and in_outage):
                if now >= kept.retry:
                    _ = self._fetch(slot)
                return kept
        elif now < slot.missing_until:
            raise SecretNotFound(slot.missing)
        try:
            return await self._shared(slot.ref, self._fetch(slot))
        except Exception as error:
            kept = slot.kept
            if kept is not None and is_unavailable(error) and asyncio.get_running_loop().time() < kept.last:
                return kept
            raise

    async def anew(self, slot: Slot) -> Kept:
        """A value whose fetch has begun after this was called."""
        if slot.fetch is not None:
            self._check_circle(slot.ref, slot.fetch)
            await asyncio.wait([slot.fetch])
        return await self._shared(slot.ref, self._fetch(slot, anew=True))

    def together(self, slots: list[Slot]) -> None:
        refs = [slot.ref for slot in slots]
        if self._closed or not refs:
            return
        together = apart(self._providers.get_many(refs), f"{len(refs)} secrets")
        self._own(together)
        for slot in slots:
            _ = self._fetch(slot, together=together)

    def plan(self, slot: Slot) -> None:
        """Fetch without being asked what has a lease, which would end, and what somebody wants to be told of."""
        slot.stop_timer()
        kept = slot.kept
        if self._closed or not (slot.watches or (kept is not None and kept.leased is not None)):
            return
        loop = asyncio.get_running_loop()
        soonest = loop.time() + (REST if kept is None else SOONEST)
        when = soonest if kept is None else max(kept.soft, kept.retry, soonest)
        slot.timer = loop.call_at(when, self._due, slot)

    async def aclose(self) -> None:
        """Cancel what is under way; nothing is fetched from now on."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- inside ----------------------------------------------------------------------------------------

    async def _shared(self, ref: SecretRef, fetch: asyncio.Task[Kept]) -> Kept:
        """The value from the one fetch that is under way for all readers; cancelling a reader leaves it alone."""
        self._check_circle(ref, fetch)
        try:
            return await asyncio.shield(fetch)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if fetch.cancelled() and task is not None and not task.cancelling():
                raise _closing(ref) from None  # `aclose` cancelled the fetch, nobody this reader
            raise

    def _check_circle(self, ref: SecretRef, fetch: asyncio.Task[Kept]) -> None:
        """Whether `fetch` waits for us, who are about to wait for it. Raises ConfigError."""
        self._providers.check_circle(ref.provider or "")
        if not fetch.done() and any(each() is fetch for each in _INSIDE.get()):
            raise ConfigError(
                f"{ref} is needed in order to read {ref}: take the secret by which its provider logs in from another "
                "provider"
            )

    def _fetch(
        self,
        slot: Slot,
        *,
        anew: bool = False,
        together: _Together | None = None,
    ) -> asyncio.Task[Kept]:
        """The task that fetches; all who ask meanwhile wait for the same one. `anew`: a lease is not renewed.
        `together`: the task that reads several."""
        if slot.fetch is not None:
            return slot.fetch
        if self._closed:
            raise _closing(slot.ref)
        slot.stop_timer()
        task = slot.fetch = apart(self._fetched(slot, anew, together), f"secret {slot.ref}")
        self._own(task)
        task.add_done_callback(lambda task: _ended(slot, task))
        return task

    def _own(self, task: asyncio.Task[object]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_seen)

    async def _fetched(
        self,
        slot: Slot,
        anew: bool,
        together: _Together | None,
    ) -> Kept:
        _go_inside()
        try:
            renewed = None if anew or together is not None else await self._renewed(slot)
            granted = None if renewed is None or slot.kept is None else slot.kept.granted
            found = await self._read(slot.ref, together) if renewed is None else renewed
            provider = await self._providers.provider(slot.ref.provider or "")
        except Exception as error:
            self._failed(slot, error)
            raise
        now = asyncio.get_running_loop().time()
        ttl: float | None = getattr(provider, "cache_ttl", None)
        kept = keep(found, now, self._settings, ttl=ttl, draw=random.random())
        if granted is not None:
            kept.granted = granted
        if self._on_value is not None:
            self._on_value(kept.value)
        if kept.leased is not None:
            self._leases.add(slot.ref, kept.leased, now=now)
        if slot.fetch is asyncio.current_task():  # else it was invalidated meanwhile
            self._keep(slot, kept)
        return kept

    async def _read(self, ref: SecretRef, together: _Together | None) -> str | SecretValue:
        if together is None:
            return await self._providers.get(ref)
        try:
            found = (await asyncio.shield(together)).get(ref)
        except PermanentError:
            return await self._providers.get(ref)  # the one that is at fault must not take the others along
        if found is None:
            raise SecretNotFound(f"{ref}: the provider has no such secret")
        return found

    async def _renewed(self, slot: Slot) -> SecretValue | None:
        """The lease of the slot's value with more time, None if there is none that can have it."""
        kept = slot.kept
        if kept is None or kept.leased is None or not kept.leased.renewable:
            return None
        provider = await self._providers.provider(slot.ref.provider or "")
        if asyncio.get_running_loop().time() >= kept.last or not hasattr(provider, "renew"):
            return None
        try:
            renewed = await self._providers.renew(slot.ref, kept.leased)
        except Exception as error:
            if is_unavailable(error):
                raise
            _log.info("the lease of %s cannot be renewed, and another one is taken: %s", slot.ref, error)
            return None
        # Towards the most that a lease may last, renewing gives less and less.
        enough = renewed.ttl is None or kept.granted is None or renewed.ttl >= kept.granted / 2
        return renewed if enough else None

    def _keep(self, slot: Slot, kept: Kept) -> None:
        slot.kept, slot.missing_until = kept, 0.0
        if slot.is_down:
            slot.is_down = False
            _log.info("%s is read again", slot.ref)
        for watch in list(slot.watches):
            waiting = watch.changed(kept, self._made)
            if waiting is not None:
                self._own(apart(_awaited(watch, waiting), f"rotation of {watch.ref}"))
        self.plan(slot)

    def _failed(self, slot: Slot, error: Exception) -> None:
        """Note what became of a slot whose fetch failed: its value stays if the provider did not answer."""
        if slot.fetch is not asyncio.current_task():
            return
        now, kept = asyncio.get_running_loop().time(), slot.kept
        if isinstance(error, SecretNotFound):
            slot.missing, slot.missing_until = str(error), now + self._settings.negative_ttl
        if kept is not None and is_unavailable(error) and now < kept.last:
            kept.retry = rest(error, kept, now)
            if not slot.is_down:
                slot.is_down = True
                _log.warning(
                    "%s cannot be fetched; its value of %.0f s ago is used for at most %.0f s more: %s",
                    slot.ref,
                    now - kept.fetched,
                    kept.last - now,
                    error,
                )
        elif kept is not None:
            slot.kept = None
            _log.warning("%s cannot be fetched, and its value is forgotten: %s", slot.ref, error)
        self.plan(slot)

    def _due(self, slot: Slot) -> None:
        slot.timer = None
        if not self._closed:
            _ = self._fetch(slot)


def _go_inside() -> None:
    """For the fetch that is the current task. Those that are over are left out: a timer keeps its context."""
    fetch: asyncio.Task[Kept] | None = asyncio.current_task()
    assert fetch is not None
    around = [each for each in _INSIDE.get() if (other := each()) is not None and not other.done()]
    _INSIDE.set((*around, weakref.ref(fetch)))


async def _awaited(watch: Watch, waiting: Awaitable[None]) -> None:
    try:
        await waiting
    except Exception as error:
        watch.failed(error)


def _ended(slot: Slot, task: asyncio.Task[Kept]) -> None:
    if slot.fetch is task:
        slot.fetch = None


def _seen(task: asyncio.Task[object]) -> None:
    if not task.cancelled():
        task.exception()  # seen here, too: all its readers may be gone


def _closing(ref: SecretRef) -> SecretUnavailable:
    return SecretUnavailable(f"{ref} is not read any more: the runtime is closing")
