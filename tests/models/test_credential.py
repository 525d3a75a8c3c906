"""The key of a provider."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from servers.http_server import Answer, HttpServer, Request

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
from agentrt.testing import FakeClock
from agentrt.testing.fault_server import Fault, FaultServer
from agentrt.tools import tool
from tests.models.asking import ask, partly


class Closed:
    """A host whose secrets cannot be had, for a reason."""

    def __init__(self, reason: Exception) -> None:
        self.clock = SystemClock()
        self._reason = reason

    async def secret(self, reference: str, /) -> str:
        raise self._reason

    async def secret_rejected(self, reference: str, value: str, /) -> str:
        raise self._reason


class Vault:
    """A host that knows one secret: `key`, and `after` when somebody was refused with it."""

    def __init__(self, key: str = "key-1\n", *, after: str = "key-2\n") -> None:
        self.clock = FakeClock()
        self.key = key
        self.after = after
        self.asked: list[str] = []
        self.rejected: list[str] = []

    async def secret(self, reference: str, /) -> str:
        self.asked.append(reference)
        return self.key

    async def secret_rejected(self, reference: str, value: str, /) -> str:
        assert reference.startswith("secret://")
        self.rejected.append(value)
        await asyncio.sleep(0)
        self.key = self.after
        return self.key


def credential(value: str | None, *, required: bool = True) -> Credential:
    return Credential(value, owner="openai", setting="THE_KEY", required=required)


@pytest.mark.asyncio
async def test_a_key_is_given_as_it_is_but_for_blanks_around_it() -> None:
    assert await credential(" key\n").get() == "key"


@pytest.mark.asyncio
@pytest.mark.parametrize("value", [None, "", "  "])
async def test_no_key_is_fine_unless_one_is_required(value: str | None) -> None:
    assert await credential(value, required=False).get() is None
    with pytest.raises(PermanentError, match="openai: there is no API key; set THE_KEY"):
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
async def test_a_reference_is_resolved_when_it_is_needed_and_every_ten_seconds() -> None:
    vault, key = Vault(), credential("secret://env/KEY")
    key.open(vault)
    assert (vault.asked, key.known) == ([], None)
    assert [await key.get(), await key.get()] == ["key-1", "key-1"]
    assert vault.asked == ["secret://env/KEY"]
    assert key.known == "key-1"
    vault.key = "key-of-tomorrow"
    vault.clock.advance(9.9)
    assert await key.get() == "key-1"
    vault.clock.advance(0.1)
    assert await key.get() == "key-of-tomorrow"


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


# --- rotation --------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_request_whose_key_was_refused_is_sent_once_more_with_another(server: FaultServer) -> None:
    vault = Vault()
    client = OpenAI(base_url=server.openai_url, api_key="secret://vault/openai#key")
    await client.open(vault)
    server.play(Fault.wrong_key(), Fault.ok(), Fault.ok())
    for _ in range(2):
        await client.complete(ask())
    sent = [request.headers["authorization"] for request in server.requests]
    assert sent == ["Bearer key-1", "Bearer key-2", "Bearer key-2"]
    assert vault.rejected == ["key-1\n"]
    assert (await partly(client, ask()))[1] is None
    await client.aclose()


@pytest.mark.asyncio
async def test_a_stream_whose_key_was_refused_begins_with_another(server: FaultServer) -> None:
    client = OpenAI(base_url=server.openai_url, api_key="secret://vault/openai#key")
    await client.open(Vault())
    server.play(Fault.wrong_key(), Fault.ok())
    items, error = await partly(client, ask())
    assert error is None
    assert items
    await client.aclose()


@pytest.mark.asyncio
async def test_a_key_that_is_refused_again_fails_and_is_not_shown(server: FaultServer) -> None:
    vault = Vault()
    client = OpenAI(base_url=server.openai_url, api_key="secret://vault/openai#key")
    await client.open(vault)
    server.play(Fault.wrong_key(), Fault.wrong_key())
    with pytest.raises(PermanentError) as caught:
        await client.complete(ask())
    assert caught.value.fault == "target"
    assert len(server.requests) == 2
    assert "key-2" not in str(caught.value)
    await client.aclose()


@pytest.mark.asyncio
@pytest.mark.parametrize("key", ["sk-given", "secret://vault/key"])
async def test_without_another_key_a_refused_request_is_not_sent_again(server: FaultServer, key: str) -> None:
    client = OpenAI(base_url=server.openai_url, api_key=key)
    await client.open(Vault(after="key-1\n"))
    server.play(Fault.wrong_key(), Fault.ok())
    with pytest.raises(PermanentError):
        await client.complete(ask())
    assert len(server.requests) == 1
    await client.aclose()


@pytest.mark.asyncio
async def test_requests_that_are_refused_together_ask_for_another_key_and_late_ones_have_it() -> None:
    vault, key = Vault(), credential("secret://vault/key")
    key.open(vault)
    assert await key.get() == "key-1"
    assert await asyncio.gather(*(key.instead_of("key-1") for _ in range(3))) == ["key-2"] * 3
    asked = len(vault.rejected)
    assert await key.instead_of("key-1") == "key-2"
    assert len(vault.rejected) == asked


@pytest.mark.asyncio
async def test_when_no_other_key_can_be_had_it_is_logged_and_the_refusal_stands(
    caplog: pytest.LogCaptureFixture,
) -> None:
    key = credential("secret://vault/key")
    key.open(Vault())
    assert await key.get() == "key-1"
    key.open(Closed(SecretUnavailable("sealed")))
    assert await key.instead_of("key-1") is None
    assert [record.message for record in caplog.records] == [
        "openai: the key was refused, and no other can be had: sealed"
    ]


@pytest.mark.asyncio
async def test_a_key_that_was_given_has_no_other() -> None:
    key = credential("key")
    assert await key.instead_of("key") is None
    assert await key.get() == "key"


class Guarded(HttpServer):
    """A provider of models that takes one key, and answers the second request of a conversation."""

    key = "key-of-monday"

    def respond(self, request: Request) -> Answer:
        if request.headers["authorization"] != f"Bearer {self.key}":
            return Answer(401, json.dumps({"error": {"message": "Incorrect API key provided"}}).encode())
        messages = json.loads(request.body)["messages"]
        message: dict[str, object] = {"role": "assistant", "content": "done"}
        if messages[-1]["role"] != "tool":
            call = {"id": "1", "type": "function", "function": {"name": "rotate", "arguments": "{}"}}
            message = {"role": "assistant", "tool_calls": [call]}
        finish = "tool_calls" if "tool_calls" in message else "stop"
        body = {"choices": [{"message": message, "finish_reason": finish}], "usage": {}}
        return Answer(200, json.dumps(body).encode(), {"content-type": "application/json"})


@pytest.mark.asyncio
async def test_a_key_that_is_rotated_in_the_middle_of_a_run_fails_no_call(tmp_path: Path) -> None:
    (tmp_path / "openai").write_text("key-of-monday\n")
    with Guarded() as guarded:
        openai = {"base_url": f"{guarded.url}/v1", "api_key": "secret://file/openai"}
        config = Config(
            {"secrets": {"provider": "file", "path": str(tmp_path)}, "models": {"openai": openai}}
        )

        @tool
        async def rotate() -> str:
            (tmp_path / "openai").write_text("key-of-tuesday\n")
            guarded.key = "key-of-tuesday"
            return "rotated"

        class Asks(Agent):
            model = "openai:gpt-5-mini"
            tools = (rotate,)

        async with Runtime(config) as runtime:
            result = await runtime.run(Asks(), "hi")
            assert (await runtime.secrets.get("secret://file/openai")).reveal() == "key-of-tuesday"
    assert result.text == "done"
    assert not result.degraded
    keys = [request.headers["authorization"].removeprefix("Bearer key-of-") for request in guarded.requests]
    assert keys == ["monday", "monday", "tuesday"]
