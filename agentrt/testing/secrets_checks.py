"""What the suite for providers of secrets stands on: a provider's life in a test, what it reads, what it shows."""

from __future__ import annotations

import asyncio
import logging
import math
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from typing import Any, ClassVar

from msgspec.structs import replace

from agentrt.plugins import close_plugin
from agentrt.secrets.json_key import inside
from agentrt.secrets.protocol import SecretRef, SecretsProvider, SecretValue
from agentrt.testing.plain_host import PlainHost
from agentrt.testing.suite import check

__all__ = [
    "NAME",
    "ProviderTrial",
    "block_of",
    "check_value",
    "let_through",
    "named",
    "read",
    "text_of",
    "whole",
]

NAME = "tested"
"""The provider's name in references."""


class ProviderTrial:
    """What the author of a provider has to write, and how the tests use it."""

    secrets: ClassVar[Mapping[str, str]] = {}
    credentials: ClassVar[Sequence[str]] = ()
    patience: ClassVar[float] = 20.0

    # --- what a plugin's author writes ------------------------------------------------------------------

    def make(self) -> SecretsProvider:
        """A new provider that reads from a working service of the tests. Called several times in a test."""
        raise NotImplementedError(f"{type(self).__name__} needs `def make(self)`, which returns the provider")

    def store(self, name: str, value: str) -> SecretRef:
        """Put `value` under `name` (letters and digits) into the service, or replace what is there, and return the
        reference by which the provider finds it. Called in another thread than the provider; may block."""
        raise NotImplementedError(
            f"{type(self).__name__} needs `def store(self, name, value)`, which returns a SecretRef"
        )

    # --- inside -----------------------------------------------------------------------------------------

    def _stored(self, word: str, value: str) -> SecretRef:
        known: list[str] = self.__dict__.setdefault("_stored_values", [])
        known.append(value)
        ref = self.store(f"conformance{word}", value)
        check(isinstance(ref, SecretRef), f"`store` must return a SecretRef, not {type(ref).__name__}")
        return named(ref)

    async def _open(self, provider: Any) -> None:
        if hasattr(provider, "open"):
            await provider.open(PlainHost(self.secrets))

    def _run(
        self, scenario: Callable[[Any], Awaitable[None]], provider: SecretsProvider | None = None
    ) -> None:
        """`scenario` with a provider from `open` to `aclose`, which must leave no task."""

        async def life() -> None:
            used = self.make() if provider is None else provider
            try:
                await self._open(used)
                await scenario(used)
            finally:
                await close_plugin(used)

        self._alone(life)

    def _alone(self, life: Callable[[], Awaitable[None]]) -> None:
        async def bounded() -> None:
            try:
                async with asyncio.timeout(self.patience):
                    await life()
            except TimeoutError as error:
                raise AssertionError(f"it took more than {self.patience:g} s") from error
            own = asyncio.current_task()
            await asyncio.sleep(0)  # for the callbacks of what has just ended
            tasks = [repr(task) for task in asyncio.all_tasks() if task is not own]
            check(not tasks, f"after aclose there are tasks left: {', '.join(tasks)}")

        with log_lines() as lines:
            asyncio.run(bounded())
        for line in lines:
            self._check_text("a log line", line)

    def _refuses(
        self, word: str, block: Callable[[], AbstractContextManager[object]], kind: type[Exception]
    ) -> Exception:
        """What a provider raises in `block`, whether it was made before it or inside."""
        ref = self._stored(word, f"a-value-never-{word}")
        errors: list[Exception] = []

        async def before(provider: SecretsProvider) -> None:
            await read(provider, ref)
            async with block_of(block):
                errors.append(await self._error(read(provider, ref), kind))

        async def within() -> None:
            async with block_of(block):
                provider = self.make()
                try:
                    await self._error(self._opened_and_read(provider, ref), kind)
                finally:
                    await close_plugin(provider)

        self._run(before)
        self._alone(within)
        return errors[0]

    async def _opened_and_read(self, provider: SecretsProvider, ref: SecretRef) -> str:
        await self._open(provider)
        return await read(provider, ref)

    async def _error(self, reading: Awaitable[Any], *kinds: type[Exception]) -> Exception:
        names = " or ".join(kind.__name__ for kind in kinds)
        try:
            await reading
        except kinds as error:
            self._check_silent(error)
            return error
        except Exception as error:
            raise let_through(f"where {names} was expected it", error) from error
        raise AssertionError(f"it gave a value where {names} was expected")

    def _check_silent(self, error: Exception) -> None:
        self._check_text("an error's traceback", "".join(traceback.format_exception(error)))
        self._check_text("an error's repr", repr(error))

    def _check_text(self, where: str, text: str) -> None:
        values: list[str] = self.__dict__.get("_stored_values", [])
        check(not any(value in text for value in values), f"{where} shows the value of a secret")
        check(not any(word in text for word in self.credentials), f"{where} shows the provider's credentials")


# --- reading ---------------------------------------------------------------------------------------------


def named(ref: SecretRef) -> SecretRef:
    return ref if ref.provider is not None else replace(ref, provider=NAME)


def whole(ref: SecretRef) -> SecretRef:
    """As the manager asks: the key inside JSON is its own business."""
    return replace(named(ref), key=())


async def read(provider: SecretsProvider, ref: SecretRef) -> str:
    return inside(text_of(await provider.get(whole(ref))), ref)


def text_of(found: str | SecretValue) -> str:
    value = found.value if isinstance(found, SecretValue) else found
    check(isinstance(value, str), f"a value must be text, not {type(value).__name__}")
    return value


def check_value(found: str | SecretValue) -> None:
    text_of(found)
    if not isinstance(found, SecretValue):
        return
    for name in ("version", "lease"):
        text = getattr(found, name)
        check(text is None or (isinstance(text, str) and text != ""), f"`{name}` must be a text or None")
    fine = found.ttl is None or (
        isinstance(found.ttl, int | float) and math.isfinite(found.ttl) and found.ttl > 0
    )
    check(fine, f"`ttl` must be a number of seconds above 0 or None, not {found.ttl!r}")
    check(isinstance(found.renewable, bool), "`renewable` must be True or False")
    check(found.value not in repr(found), "the repr of the value shows it")


def let_through(what: str, error: Exception) -> AssertionError:
    return AssertionError(
        f"{what} raised {type(error).__module__}.{type(error).__name__} ({error}): raise SecretNotFound, "
        "SecretInvalid, SecretDenied, SecretThrottled or SecretUnavailable, as it is meant"
    )


@asynccontextmanager
async def block_of(enter: Callable[[], AbstractContextManager[object]]) -> AsyncGenerator[None]:
    """A block of the author's: entered and left in another thread, where it may block."""
    block = enter()
    await asyncio.to_thread(block.__enter__)
    try:
        yield
    finally:
        await asyncio.to_thread(block.__exit__, None, None, None)


@contextmanager
def log_lines() -> Generator[list[str]]:
    """Everything that is logged from level INFO on, as text with tracebacks."""
    lines: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    root, handler = logging.getLogger(), Collect(logging.INFO)
    level = root.level
    root.addHandler(handler)
    root.setLevel(min(level, logging.INFO) if level else logging.INFO)
    try:
        yield lines
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
