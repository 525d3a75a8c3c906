"""The certificates that Vault's provider trusts and shows: files that are none, read beside the loop, and followed."""

from __future__ import annotations

import contextlib
import ssl
import threading
from pathlib import Path
from typing import Any

import pytest
from agentrt_vault import VaultSecrets
from agentrt_vault.tls import FollowedContext, Tls
from servers.certificates import Certificate, make_certificate
from servers.faulty import Refusing

from agentrt.errors import ConfigError
from agentrt.secrets import SecretUnavailable
from plugins.vault import ref


def provider(url: str, **given: Any) -> VaultSecrets:
    return VaultSecrets(**{"url": url, "token": "s.a-token", "kv_version": 2, **given})


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.mark.asyncio
@pytest.mark.parametrize("option", ["ca_file", "client_cert_file"])
@pytest.mark.parametrize(
    ("content", "why"), [(None, "No such file or directory"), ("none", "no certificate .*in PEM")]
)
async def test_a_certificate_that_is_none_is_a_mistake_that_is_told_at_once(
    tmp_path: Path, option: str, content: str | None, why: str
) -> None:
    file = tmp_path / "some.pem"
    if content is not None:
        file.write_text(content)
    vault = provider("https://127.0.0.1:1", **{option: str(file)})
    told = rf"^{option} of the secrets provider vault cannot be used: {file}: {why}"
    with pytest.raises(ConfigError, match=told):
        await vault.get(ref("app/db"))
    await vault.aclose()


@pytest.mark.asyncio
async def test_a_key_with_a_password_asks_nobody_for_it(certificate: Certificate, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    private = serialization.load_pem_private_key(certificate.key, None)
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    key = tmp_path / "locked.key"
    key.write_bytes(private.private_bytes(*form, serialization.BestAvailableEncryption(b"pass")))
    given = {"client_cert_file": str(certificate.ca), "client_key_file": str(key)}
    vault = provider("https://127.0.0.1:1", **given)
    with pytest.raises(ConfigError, match="no certificate with its key in PEM, without a password"):
        await vault.get(ref("app/db"))
    await vault.aclose()


@pytest.mark.asyncio
async def test_certificates_are_read_beside_the_event_loop_and_not_for_plain_http(
    refusing: Refusing, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    make = Tls.context

    def noting(self: Tls, *, trust_env: bool) -> ssl.SSLContext:
        threads.append(threading.current_thread())
        return make(self, trust_env=trust_env)

    monkeypatch.setattr(Tls, "context", noting)
    for url in (refusing.url, refusing.url.replace("http:", "https:")):
        assert threads == []
        vault = provider(url)
        with pytest.raises(SecretUnavailable):
            await vault.get(ref("app/db"))
        await vault.aclose()
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()


def test_half_of_a_new_pair_leaves_the_old_certificate_in_use(
    certificate: Certificate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for folder in (tmp_path / "old", tmp_path / "new"):
        folder.mkdir()
    old, new = make_certificate(tmp_path / "old"), make_certificate(tmp_path / "new")
    file, key = tmp_path / "client.pem", tmp_path / "client.key"
    file.write_bytes(old.chain)
    key.write_bytes(old.key)
    tls = Tls(ca_file=str(certificate.ca), client_cert_file=str(file), client_key_file=str(key))
    followed = FollowedContext(tls, trust_env=False)
    file.write_bytes(new.chain)
    assert followed.is_stale
    followed.renew()
    assert not followed.is_stale
    assert shows(followed.context, certificate, old)
    assert "the certificate so far stays in use" in caplog.text
    key.write_bytes(new.key)
    assert followed.is_stale
    followed.renew()
    assert shows(followed.context, certificate, new)


def shows(client: ssl.SSLContext, certificate: Certificate, expected: Certificate) -> bool:
    """Whether a server with `certificate` sees the expected one of the client's; no network is between them."""
    context = certificate.server_context()
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(expected.ca)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(there, back, server_side=True)
    for side in (client.wrap_bio(back, there, server_hostname="localhost"), server) * 2:
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    return server.getpeercert(binary_form=True) == ssl.PEM_cert_to_DER_cert(expected.chain.decode())
