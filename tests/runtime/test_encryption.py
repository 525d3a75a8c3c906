"""`rt.encryption()`: with the keys that the configuration names."""

from __future__ import annotations

import pytest

from agentrt import ConfigError, Runtime
from agentrt.config import Config
from agentrt.security.keys import new_key

pytestmark = pytest.mark.asyncio


async def test_the_first_key_encrypts_and_all_decrypt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_OLD", new_key(id="old"))
    monkeypatch.setenv("KEY_NEW", new_key(id="new"))
    old = {"encryption": {"keys": ["secret://env/KEY_OLD"]}}
    both = {"encryption": {"keys": ["secret://env/KEY_NEW", "secret://env/KEY_OLD"]}}
    async with Runtime(Config(old)) as runtime:
        token = (await runtime.encryption()).encrypt("a note", context="notes/1")
    async with Runtime(Config(both)) as runtime:
        encryption = await runtime.encryption()
        assert encryption.decrypt_text(token, context="notes/1") == "a note"
        assert encryption.ring.primary == "new"
        assert not encryption.is_current(token)


async def test_without_keys_it_says_how_to_have_some() -> None:
    async with Runtime() as runtime:
        with pytest.raises(ConfigError, match=r"set `keys = .* in \[encryption\]"):
            await runtime.encryption()


async def test_what_is_no_key_is_told_by_its_reference_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "not-base64-of-32-bytes")
    async with Runtime(Config({"encryption": {"keys": ["secret://env/KEY"]}})) as runtime:
        with pytest.raises(ConfigError, match=r"secret://env/KEY must be base64") as told:
            await runtime.encryption()
    assert "not-base64" not in str(told.value)
