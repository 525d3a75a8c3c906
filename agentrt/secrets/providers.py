"""The providers of a manager: made and opened when they are first needed, called through the pipeline."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from agentrt.call import ENCLOSING, RUN
from agentrt.errors import ConfigError
from agentrt.plugins import Host, close_plugin, open_plugin
from agentrt.secrets.protocol import SecretRef, SecretsProvider, SecretUnavailable, SecretValue

__all__ = ["Invoke", "Providers", "apart"]

T = TypeVar("T")

GROUP = "agentrt.secrets"

OPEN_SECONDS = 15.0
"""How long a provider may take to open: as long as a call of kind "secret"."""

_OPENING: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar(
    "agentrt_secrets_opening", default=()
)
"""The providers that are being opened, each for a secret that the one before needs in order to open."""

_log = logging.getLogger("agentrt.secrets")


class Invoke(Protocol):
    """How a provider is called: the runtime's pipeline of kind "secret"."""

    def __call__(
        self, kind: str, target: str, fn: Callable[[], Awaitable[T]], /, *, idempotent: bool = False
    ) -> Awaitable[T]: ...


def apart(work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
    """A task outside the run that happens to ask first: neither its deadline nor its end takes it from the others."""
    context = contextvars.copy_context()
    context.run(_leave_the_run)
    return asyncio.get_running_loop().create_task(work, name=name, context=context)


def _leave_the_run() -> None:
    RUN.set(None)
    ENCLOSING.set(None)


class Providers:
    """`made`: the providers by name, or a function that makes the one of a name. `invoke` calls them. `host`: given to
    those that have `open`."""

    def __init__(
        self,
        made: Mapping[str, SecretsProvider] | Callable[[str], SecretsProvider],
        invoke: Invoke,
        host: Host | None,
    ) -> None:
        self._make = made if callable(made) else _from_mapping(made)
        self._invoke = invoke
        self._host = host
        self._opening: dict[str, asyncio.Task[SecretsProvider]] = {}
        self._closed = False

    async def provider(self, name: str) -> SecretsProvider:
        """The provider of this name, opened. Several who ask at once open it once; cancelling one leaves the others."""
        self.check_circle(name)
        task = self._opening.get(name)
        if task is None:
            if self._closed:
                raise SecretUnavailable(f"the secrets provider {name!r} is not asked any more: it is closed")
            task = self._opening[name] = apart(self._opened(name), f"open secrets provider {name}")
            task.add_done_callback(lambda task: self._forget_failed(name, task))
        if task.done():
            return task.result()
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            own = asyncio.current_task()
            if task.cancelled() and own is not None and not own.cancelling():
                raise SecretUnavailable(
                    f"the secrets provider {name!r} is not opened any more: it is closed"
                ) from None
            raise

    def check_circle(self, name: str) -> None:
        """Raises ConfigError if whoever runs now is opening this provider, which is about to wait for it."""
        if name not in _OPENING.get():
            return
        task = self._opening.get(name)
        if task is None or not task.done():
            chain = " -> ".join((*_OPENING.get(), name))
            raise ConfigError(
                f"the secrets provider {name!r} needs a secret of its own in order to open ({chain}): take the secret "
                "by which it logs in from another provider"
            )

    async def get(self, ref: SecretRef) -> str | SecretValue:
        provider = await self.provider(_name(ref))
        return await self._call(ref, partial(provider.get, ref))  # which the audit log can look into

    async def get_many(self, refs: Sequence[SecretRef]) -> Mapping[SecretRef, str | SecretValue]:
        """Several of one provider, which has `get_many`."""
        provider: Any = await self.provider(_name(refs[0]))

        async def read() -> Mapping[SecretRef, str | SecretValue]:
            found: Mapping[SecretRef, str | SecretValue] = await provider.get_many(refs)
            return found

        return await self._call(refs[0], read)

    async def renew(self, ref: SecretRef, value: SecretValue) -> SecretValue:
        provider: Any = await self.provider(_name(ref))

        async def renew() -> SecretValue:
            renewed: SecretValue = await provider.renew(value)
            return renewed

        return await self._call(ref, renew)

    async def revoke(self, ref: SecretRef, value: SecretValue) -> None:
        """End the lease of `value`. Does nothing where the provider cannot."""
        provider: Any = await self.provider(_name(ref))
        if hasattr(provider, "revoke"):
            await self._call(ref, lambda: provider.revoke(value))

    async def list(self, name: str, prefix: str) -> list[str]:
        provider: Any = await self.provider(name)
        if not hasattr(provider, "list"):
            raise ConfigError(
                f"the secrets provider {name!r} cannot list what it has; ask for one by its name"
            )

        async def names() -> list[str]:
            return [*await provider.list(prefix)]

        return await self._invoke("secret", f"secret:{name}", names, idempotent=True)

    async def aclose(self, seconds: float) -> None:
        """Close those that were opened, the first one last, in so many seconds together: one that hangs has half of
        what is left, the last one all of it. Raises the first error, after all are closed."""
        self._closed = True
        opening, self._opening = self._opening, {}
        for task in opening.values():
            task.cancel()
        await asyncio.gather(*opening.values(), return_exceptions=True)
        opened = [
            (name, task.result())
            for name, task in reversed(opening.items())
            if not task.cancelled() and task.exception() is None
        ]
        end = asyncio.get_running_loop().time() + seconds
        problems: list[Exception] = []
        for following, (name, provider) in zip(reversed(range(len(opened))), opened, strict=True):
            left = max(0.0, end - asyncio.get_running_loop().time())
            try:
                await _close(name, provider, left / 2 if following else left)
            except Exception as error:
                problems.append(error)
        for other in problems[1:]:
            problems[0].add_note(f"closing failed as well: {type(other).__name__}: {other}")
        if problems:
            raise problems[0]

    # --- inside ----------------------------------------------------------------------------------------

    async def _call(self, ref: SecretRef, fn: Callable[[], Awaitable[T]]) -> T:
        # Reading, renewing and revoking may all be repeated.
        return await self._invoke("secret", f"secret:{_name(ref)}", fn, idempotent=True)

    async def _opened(self, name: str) -> SecretsProvider:
        provider = self._make(name)
        if self._host is None:
            return provider
        _OPENING.set((*_OPENING.get(), name))  # in this task and those that it starts
        limit = asyncio.timeout(OPEN_SECONDS)
        try:
            async with limit:
                await open_plugin(GROUP, name, provider, self._host)
        except BaseException as error:
            await _close_half_opened(name, provider)
            if limit.expired() and isinstance(error, TimeoutError):
                raise SecretUnavailable(
                    f"the secrets provider {name!r} was not opened within {OPEN_SECONDS:g} s"
                ) from error
            raise
        return provider

    def _forget_failed(self, name: str, task: asyncio.Task[SecretsProvider]) -> None:
        failed = task.cancelled() or task.exception() is not None
        if failed and self._opening.get(name) is task:
            del self._opening[name]  # the next reader may have more luck


async def _close(name: str, provider: SecretsProvider, seconds: float) -> None:
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            await close_plugin(provider)
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise SecretUnavailable(
            f"the secrets provider {name!r} was not closed within {seconds:.1f} s, and is left as it is"
        ) from error


async def _close_half_opened(name: str, provider: SecretsProvider) -> None:
    try:
        await close_plugin(provider)
    except Exception as error:
        # The failure to open is what the caller gets.
        _log.warning("the secrets provider %r, which was not opened, cannot be closed: %r", name, error)


def _name(ref: SecretRef) -> str:
    assert ref.provider is not None
    return ref.provider


def _from_mapping(providers: Mapping[str, SecretsProvider]) -> Callable[[str], SecretsProvider]:
    def find(name: str) -> SecretsProvider:
        try:
            return providers[name]
        except KeyError:
            known = ", ".join(sorted(providers)) or "none"
            raise ConfigError(f"there is no secrets provider {name!r}; there are: {known}") from None

    return find
