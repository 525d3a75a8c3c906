"""What the tests of all secrets services do: read once, be refused, be cancelled, ask from agents."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import pytest

from agentrt.config import Config
from agentrt.context import Context
from agentrt.errors import AgentrtError
from agentrt.plugins import close_plugin
from agentrt.runtime import Runtime
from agentrt.secrets import SecretRef, SecretsProvider, SecretValue

__all__ = [
    "VALUE",
    "Crowd",
    "Reader",
    "agents_read",
    "on_two_loops",
    "read_once",
    "ref",
    "refusal",
    "survives_a_cancelled_reader",
]

VALUE = "s3cr3t-of-the-tests"


def ref(provider: str, text: str) -> SecretRef:
    """`text`: the rest of a reference behind `provider`."""
    return SecretRef.parse(f"secret://{provider}/{text}")


# --- a provider by itself ----------------------------------------------------------------------------------


async def read_once(provider: SecretsProvider, reference: SecretRef) -> SecretValue:
    """What it gives, before it is closed."""
    try:
        found = await provider.get(reference)
    finally:
        await close_plugin(provider)
    assert isinstance(found, SecretValue)
    return found


async def refusal(provider: SecretsProvider, reference: SecretRef, kind: type[Exception]) -> str:
    """The message of the one right error."""
    with pytest.raises(AgentrtError) as caught:
        await read_once(provider, reference)
    assert type(caught.value) is kind, repr(caught.value)
    # Whoever follows the causes of an error comes to an end.
    assert caught.value.__cause__ is not caught.value
    return str(caught.value)


async def survives_a_cancelled_reader(
    provider: SecretsProvider,
    reference: SecretRef,
    hanging: AbstractContextManager[None],
    asked: Callable[[], object],
) -> None:
    """The secret is `VALUE`. `hanging`: the service does not answer meanwhile. `asked`: waits, in a thread, until it
    was asked."""
    with hanging:
        reader = asyncio.ensure_future(provider.get(reference))
        await asyncio.to_thread(asked)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
    assert (await read_once(provider, reference)).value == VALUE


def on_two_loops(provider: SecretsProvider, reference: SecretRef, *, closes: bool = True) -> None:
    """Read `VALUE` on one event loop and then on another, with the provider closed in between or not."""

    async def once() -> str:
        try:
            found = await provider.get(reference)
        finally:
            if closes:
                await close_plugin(provider)
        return found.value if isinstance(found, SecretValue) else found

    assert [asyncio.run(once()) for _ in range(2)] == [VALUE] * 2


# --- agents ------------------------------------------------------------------------------------------------


class Reader:
    """Asks for the secret that the message names, `readers` times at once."""

    readers = 1

    async def run(self, message: str, ctx: Context) -> str:
        found = await asyncio.gather(*(ctx.secret(message) for _ in range(self.readers)))
        assert len(set(found)) == 1
        return f"{len(found)} readers got {len(found[0])} characters"


class Crowd(Reader):
    readers = 500


async def agents_read(table: Mapping[str, object], *expected: tuple[str, str]) -> None:
    """In one runtime with [secrets] `table`: a run for each (reference, value), in which 500 readers ask at once."""
    async with Runtime(Config({"secrets": table})) as runtime:
        for reference, value in expected:
            result = await runtime.run(Crowd, reference)
            assert result.text == f"500 readers got {len(value)} characters"
