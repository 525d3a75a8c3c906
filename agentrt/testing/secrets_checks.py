"""What the suite for providers of secrets reads and looks at."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager

from msgspec.structs import replace

from agentrt.secrets.json_key import inside
from agentrt.secrets.protocol import SecretRef, SecretsProvider, SecretValue
from agentrt.testing.suite import check

__all__ = ["NAME", "block_of", "check_value", "let_through", "log_lines", "named", "read", "text_of", "whole"]

NAME = "tested"
"""The provider's name in references."""


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
