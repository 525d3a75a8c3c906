"""The conformance suite for providers of secrets, against a real OpenBao that denies, throttles, is sealed, hangs."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import pytest
from agentrt_vault import VaultSecrets
from servers.openbao import SealedOpenBao
from servers.postgres import Postgres

from agentrt.secrets import SecretRef
from agentrt.testing import SecretsProviderTests
from plugins.vault import account_role


@pytest.fixture(scope="module")
def server() -> Iterator[SealedOpenBao]:
    with SealedOpenBao() as server:
        server.do("POST", "sys/mounts/secret", {"type": "kv", "options": {"version": "2"}})
        yield server


RULES = {
    "secret/*": ["create", "read", "update", "list"],
    "+/creds/*": ["read"],
    "sys/leases/revoke": ["update"],
}


class TestVault(SecretsProviderTests):
    @pytest.fixture(autouse=True)
    def _vault(self, server: SealedOpenBao, _postgres: Postgres) -> Iterator[None]:
        self.server = server
        self.policy = server.policy(RULES)
        made = server.do("POST", "auth/token/create", {"policies": [self.policy]})
        self.token = made["auth"]["client_token"]
        type(self).credentials = (self.token,)
        self.mount = "database"
        with _postgres.database() as self.database:
            yield
            server.do("POST", "auth/token/revoke", {"token": self.token})
            if self.mount != "database":
                server.do("DELETE", f"sys/mounts/{self.mount}")

    def make(self) -> VaultSecrets:
        return VaultSecrets(url=self.server.url, token=self.token, dynamic=[self.mount])

    def store(self, name: str, value: str) -> SecretRef:
        self.server.write(name, {"value": value})
        return SecretRef(name, key=("value",))

    def leased(self) -> SecretRef:
        self.mount, role = account_role(self.server, self.database)
        return SecretRef(f"{self.mount}/creds/{role}")

    @contextmanager
    def denied(self) -> Generator[None]:
        self.server.policy({"none": ["read"]}, name=self.policy)
        yield
        self.server.policy(RULES, name=self.policy)

    @contextmanager
    def throttling(self) -> Generator[None]:
        """A quota that is used up, of the server itself."""
        self.server.do("POST", "sys/quotas/rate-limit/tests", {"path": "secret", "rate": 1, "interval": "1h"})
        while self.server.ask("GET", "secret/data/none").status != 429:
            pass
        yield
        self.server.do("DELETE", "sys/quotas/rate-limit/tests")

    @contextmanager
    def failing(self) -> Generator[None]:
        self.server.seal()
        yield
        self.server.unseal()

    @contextmanager
    def hanging(self) -> Generator[None]:
        os.kill(self.server.pid, signal.SIGSTOP)
        yield
        os.kill(self.server.pid, signal.SIGCONT)
