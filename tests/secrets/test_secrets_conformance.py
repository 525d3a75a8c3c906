"""The suite for authors of providers, applied to our own."""

from __future__ import annotations

import pytest

from agentrt.secrets import SecretRef
from agentrt.secrets.env import Env
from agentrt.testing import SecretsProviderTests


class TestEnv(SecretsProviderTests):
    @pytest.fixture(autouse=True)
    def environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch

    def make(self) -> Env:
        return Env(prefix="AGENTRT_TEST_")

    def store(self, name: str, value: str) -> SecretRef:
        self.monkeypatch.setenv(f"AGENTRT_TEST_{name}", value)
        return SecretRef(name)
