"""Secrets from the environment."""

from __future__ import annotations

import pytest

from agentrt.secrets import SecretInvalid, SecretNotFound, SecretRef
from agentrt.secrets.env import Env

pytestmark = pytest.mark.asyncio


async def test_a_name_is_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTRT_TEST_KEY", "value")
    assert await Env().get(SecretRef("AGENTRT_TEST_KEY")) == "value"


async def test_a_prefix_stands_before_each_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYAPP_KEY", "value")
    assert await Env(prefix="MYAPP_").get(SecretRef("KEY")) == "value"


async def test_a_variable_that_is_missing_or_empty_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MYAPP_KEY", raising=False)
    with pytest.raises(
        SecretNotFound, match=r"^secret://env/KEY: the environment variable MYAPP_KEY is not set$"
    ):
        await Env(prefix="MYAPP_").get(SecretRef("KEY", "env"))
    monkeypatch.setenv("MYAPP_KEY", "")
    with pytest.raises(SecretInvalid, match="MYAPP_KEY is empty"):
        await Env(prefix="MYAPP_").get(SecretRef("KEY"))


async def test_a_variable_has_no_versions() -> None:
    with pytest.raises(SecretInvalid, match="environment variables have no versions"):
        await Env().get(SecretRef("PATH", version="2"))


async def test_a_name_that_no_variable_can_have_is_refused() -> None:
    with pytest.raises(SecretInvalid, match=r"^secret://env/%5Cud800: no environment variable can have such"):
        await Env().get(SecretRef("\ud800", "env"))
