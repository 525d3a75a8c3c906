"""The key of a provider."""

from __future__ import annotations

import pytest

from agentrt.agent import Agent
from agentrt.clock import SystemClock
from agentrt.config import Config
from agentrt.errors import ConfigError, PermanentError
from agentrt.models.credential import Credential
from agentrt.models.openai import OpenAI
from agentrt.models.scripted import Scripted
from agentrt.runtime import Runtime
from agentrt.secrets.protocol import (
    SecretDenied,
    SecretError,
    SecretInvalid,
    SecretNotFound,
    SecretUnavailable,
)
from agentrt.testing.fault_server import Fault, FaultServer
from tests.models.asking import ask, partly


class Closed:
    """A host whose secrets cannot be had, for a reason."""

    def __init__(self, reason: Exception) -> None:
        self.clock = SystemClock()
        self._reason = reason

    async def secret(self, reference: str, /) -> str:
        raise self._reason


class Vault:
    """A host that knows one secret, which changes each time it is asked for."""

    def __init__(self) -> None:
        self.clock = SystemClock()
        self.asked: list[str] = []

    async def secret(self, reference: str, /) -> str:
        self.asked.append(reference)
        return f"key-{len(self.asked)}\n"


def credential(value: str | None, *, required: bool = True) -> Credential:
    return Credential(value, owner="openai", setting="THE_KEY", required=required)


@pytest.mark.asyncio
async def test_a_key_is_given_as_it_is_but_for_blanks_around_it() -> None:
    assert await credential(" key\n").get() == "key"


@pytest.mark.asyncio
@pytest.mark.parametrize("value", [None, "", "  "])
async def test_no_key_is_fine_unless_one_is_required(value: str | None) -> None:
    assert await credential(value, required=False).get() is None
    with pytest.raises(PermanentError, match="openai: there is no API key: set THE_KEY"):
        await credential(value).get()


@pytest.mark.parametrize("value", ["two words", "line\nbreak", "schlüssel", "bell\x07"])
def test_a_key_that_cannot_be_a_header_is_a_config_error_without_the_key(value: str) -> None:
    with pytest.raises(ConfigError, match="set THE_KEY") as caught:
        credential(value)
    assert value not in str(caught.value)


def test_the_id_tells_keys_apart_and_is_not_one() -> None:
    ids = {credential(value).id for value in ("key-1", "key-2", "secret://env/KEY", None)}
    assert len(ids) == 4
    assert credential("key-1").id == credential("key-1").id
    assert not any("key" in id for id in ids)


@pytest.mark.asyncio
async def test_a_reference_is_resolved_once_when_it_is_needed() -> None:
    vault, key = Vault(), credential("secret://env/KEY")
    key.open(vault)
    assert (vault.asked, key.known) == ([], None)
    assert [await key.get(), await key.get()] == ["key-1", "key-1"]
    assert vault.asked == ["secret://env/KEY"]
    assert key.known == "key-1"


@pytest.mark.asyncio
async def test_a_reference_without_a_runtime_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"secret://env/KEY, and only a runtime resolves those"):
        await credential("secret://env/KEY").get()


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", [SecretNotFound, SecretDenied, SecretInvalid])
async def test_a_reference_that_leads_to_no_key_is_the_targets_fault(kind: type[SecretError]) -> None:
    reason = kind("secret://env/KEY: it is not there")
    key = credential("secret://env/KEY")
    key.open(Closed(reason))
    with pytest.raises(PermanentError) as caught:
        await key.get()
    assert str(caught.value) == "openai: api_key = secret://env/KEY: it is not there"
    assert (caught.value.fault, caught.value.executed) == ("target", False)
    assert caught.value.__cause__ is reason


@pytest.mark.asyncio
async def test_a_provider_of_secrets_that_cannot_be_reached_stays_a_transient_failure() -> None:
    key = credential("secret://env/KEY")
    key.open(Closed(SecretUnavailable("sealed")))
    with pytest.raises(SecretUnavailable):
        await key.get()


@pytest.mark.asyncio
async def test_without_the_secret_of_one_model_the_next_one_answers() -> None:
    config = Config({"models": {"openai": {"api_key": "secret://env/AGENTRT_TEST_NOT_SET"}}})
    Scripted.script("spare", ["from the spare"])

    class Alone(Agent):
        model = "openai:gpt-5-mini"

    class Asks(Agent):
        model = ("openai:gpt-5-mini", "scripted:spare")

    async with Runtime(config) as runtime:
        assert (await runtime.run(Asks(), "hi")).text == "from the spare"
        with pytest.raises(
            PermanentError,
            match=r"^openai: api_key = secret://env/AGENTRT_TEST_NOT_SET: the environment variable .* is not set",
        ):
            await runtime.run(Alone(), "hi")


@pytest.mark.asyncio
async def test_a_key_that_was_refused_is_resolved_anew_for_the_next_request(server: FaultServer) -> None:
    vault = Vault()
    client = OpenAI(base_url=server.openai_url, api_key="secret://vault/openai#key")
    await client.open(vault)
    server.play(Fault.wrong_key(), Fault.ok(), Fault.ok())
    assert isinstance((await partly(client, ask()))[1], PermanentError)
    for _ in range(2):
        await client.complete(ask())
    sent = [request.headers["authorization"] for request in server.requests]
    assert sent == ["Bearer key-1", "Bearer key-2", "Bearer key-2"]
    await client.aclose()


@pytest.mark.asyncio
async def test_a_refused_key_that_was_given_stays() -> None:
    key = credential("key")
    key.refused()
    assert await key.get() == "key"
