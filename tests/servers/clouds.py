"""Fixtures of the clouds' secrets services: the servers are in modules of their own, which bring Google's messages and
cryptography and are loaded by the tests that use them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from servers.certificates import Certificate
    from servers.gcp_secrets import GcpSecretManager
    from servers.key_vault import KeyVault

__all__ = ["certificate", "gcp_secrets", "key_vault"]


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """Of this machine, with the file by which clients trust it."""
    from servers.certificates import make_certificate

    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def gcp_secrets() -> Iterator[GcpSecretManager]:
    """GCP Secret Manager, empty, without TLS."""
    from servers.gcp_secrets import GcpSecretManager

    with GcpSecretManager() as server:
        yield server


@pytest.fixture
def key_vault(certificate: Certificate) -> Iterator[KeyVault]:
    """An Azure Key Vault, empty, and the service that gives its tokens."""
    from servers.key_vault import KeyVault

    with KeyVault(certificate) as server:
        yield server
