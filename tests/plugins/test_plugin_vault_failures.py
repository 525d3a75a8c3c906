"""A Vault that is sealed, down, slow, standing by or no Vault at all; TLS; and options that are wrong."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from agentrt_vault import AppRole, Jwt, Kubernetes, VaultSecrets
from servers.certificates import Certificate, make_certificate
from servers.faulty import BlackHole, Refusing
from servers.http_server import Answer, HttpServer
from servers.openbao import OpenBao, SealedOpenBao

from agentrt.config import Config
from agentrt.errors import ConfigError
from agentrt.secrets import SecretDenied, SecretError, SecretInvalid, SecretThrottled, SecretUnavailable
from plugins.vault import data_of, opened, ref

TOKEN = "s.a-token-that-nobody-shows"
JSON = {"Content-Type": "application/json"}


def provider(url: str, **given: Any) -> VaultSecrets:
    return VaultSecrets(**{"url": url, "token": TOKEN, "kv_version": 2, **given})


async def failure(vault: VaultSecrets) -> SecretError:
    with pytest.raises(SecretError) as raised:
        await vault.get(ref("app/db"))
    await vault.aclose()
    assert TOKEN not in f"{raised.value} {raised.value!r} {vault!r}"
    assert str(raised.value).startswith("secret://vault/app/db: ")
    assert str(raised.value).count("secret://") == 1
    return raised.value


# --- the server --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module")
def guarded(certificate: Certificate) -> Iterator[SealedOpenBao]:
    key = certificate.ca.parent / "server.key"
    key.write_bytes(certificate.key)
    with SealedOpenBao(tls=(certificate.ca, key)) as server:
        server.do("POST", "sys/mounts/secret", {"type": "kv", "options": {"version": "2"}})
        server.write("app/db", {"value": "behind-the-seal"})
        yield server


@pytest.mark.asyncio
async def test_a_sealed_vault_is_unavailable_until_it_is_unsealed(guarded: SealedOpenBao) -> None:
    async with opened(guarded) as vault:
        assert data_of(await vault.get(ref("app/db"))) == {"value": "behind-the-seal"}
        guarded.seal()
        with pytest.raises(SecretUnavailable, match="is sealed: it gives nothing until it is unsealed"):
            await vault.get(ref("app/db"))
        async with opened(guarded) as other:  # one that has yet to log in
            with pytest.raises(SecretUnavailable, match="is sealed"):
                await other.get(ref("app/db"))
        guarded.unseal()
        assert data_of(await vault.get(ref("app/db"))) == {"value": "behind-the-seal"}


@pytest.mark.asyncio
async def test_tls_needs_an_authority_that_we_trust(
    guarded: SealedOpenBao, certificate: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(guarded, url=guarded.tls_url, ca_file=str(certificate.ca)) as vault:
        assert data_of(await vault.get(ref("app/db"))) == {"value": "behind-the-seal"}
    monkeypatch.setenv("VAULT_CACERT", str(certificate.ca))
    async with opened(guarded, url=guarded.tls_url) as vault:
        assert data_of(await vault.get(ref("app/db"))) == {"value": "behind-the-seal"}
    monkeypatch.delenv("VAULT_CACERT")
    error = await failure(provider(guarded.tls_url))
    assert isinstance(error, SecretUnavailable)
    assert "a certificate that is not accepted (self-signed certificate" in str(error)
    assert "set `ca_file`" in str(error)
    other = make_certificate(tmp_path)
    assert "certificate that is not accepted" in str(
        await failure(provider(guarded.tls_url, ca_file=str(other.ca)))
    )
    error = await failure(provider(guarded.url.replace("http:", "https:")))
    assert "failed in TLS" in str(error)
    assert "does `url` need http:// instead?" in str(error)


@pytest.mark.asyncio
async def test_a_server_may_want_to_see_a_certificate_of_ours(
    guarded: SealedOpenBao, certificate: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "client.key"
    key.write_bytes(certificate.key)
    both = tmp_path / "client.pem"
    both.write_bytes(certificate.chain + certificate.key)
    at = {"url": guarded.mutual_tls_url, "ca_file": str(certificate.ca)}
    shown = {"client_cert_file": str(certificate.ca), "client_key_file": str(key)}
    for files in (shown, {"client_cert_file": str(both)}):
        async with opened(guarded, **at, **files) as vault:
            assert data_of(await vault.get(ref("app/db"))) == {"value": "behind-the-seal"}
    error = await failure(provider(**at))
    assert isinstance(error, SecretUnavailable)
    assert "`client_cert_file`" in str(error)
    monkeypatch.setenv("BAO_CLIENT_CERT", str(certificate.ca))
    monkeypatch.setenv("BAO_CLIENT_KEY", str(key))
    async with opened(guarded, **at) as vault:
        assert data_of(await vault.get(ref("app/db"))) == {"value": "behind-the-seal"}
    # The key of the environment is not that of another certificate.
    async with opened(guarded, **at, client_cert_file=str(both)) as vault:
        assert data_of(await vault.get(ref("app/db"))) == {"value": "behind-the-seal"}
    other = tmp_path / "other"
    other.mkdir()
    strange = make_certificate(other)
    (other / "both.pem").write_bytes(strange.chain + strange.key)
    error = await failure(provider(**at, client_cert_file=str(other / "both.pem")))
    assert "`client_cert_file`" in str(error)


@pytest.mark.asyncio
async def test_a_certificate_of_ours_that_was_replaced_is_shown_from_then_on(
    guarded: SealedOpenBao, certificate: Certificate, tmp_path: Path
) -> None:
    strange = make_certificate(tmp_path)
    both = tmp_path / "both.pem"
    both.write_bytes(strange.chain + strange.key)
    at = {"url": guarded.mutual_tls_url, "ca_file": str(certificate.ca)}
    async with opened(guarded, **at, client_cert_file=str(both)) as vault:
        with pytest.raises(SecretUnavailable, match="`client_cert_file`"):
            await vault.get(ref("app/db"))
        new = tmp_path / "new.pem"
        new.write_bytes(certificate.chain + certificate.key)
        new.replace(both)
        assert data_of(await vault.get(ref("app/db"))) == {"value": "behind-the-seal"}


@pytest.mark.asyncio
async def test_a_quota_that_is_used_up_says_when_to_come_again(openbao: OpenBao) -> None:
    mount = openbao.mount("kv", options={"version": "1"})
    openbao.do("POST", "sys/quotas/config", {"enable_rate_limit_response_headers": True})
    openbao.do("POST", f"sys/quotas/rate-limit/{mount}", {"path": mount, "rate": 1, "interval": "60s"})
    async with opened(openbao, mount=mount, kv_version=1) as vault:
        with pytest.raises(SecretError):
            await vault.get(ref("app/db"))
        with pytest.raises(SecretThrottled) as throttled:
            await vault.get(ref("app/db"))
    assert throttled.value.retry_after is not None
    assert 1 <= throttled.value.retry_after <= 61
    openbao.do("DELETE", f"sys/quotas/rate-limit/{mount}")


# --- no server ---------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_port_where_nobody_listens_is_unavailable(refusing: Refusing) -> None:
    error = await failure(provider(refusing.url))
    assert isinstance(error, SecretUnavailable)
    assert "cannot be reached" in str(error)


@pytest.mark.asyncio
async def test_a_server_that_does_not_answer_is_given_up_and_a_reader_can_be_cancelled(
    black_hole: BlackHole,
) -> None:
    error = await failure(provider(black_hole.url, timeout=0.2))
    assert isinstance(error, SecretUnavailable)
    assert "no answer within 0.2 s" in str(error)
    vault = provider(black_hole.url)
    readers = [asyncio.create_task(vault.get(ref("app/db"))) for _ in range(3)]
    await asyncio.wait(readers, timeout=0.1)
    for reader in readers:
        reader.cancel()
    await asyncio.wait(readers, timeout=40)
    assert all(reader.cancelled() for reader in readers)
    await vault.aclose()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (Answer(500, b'{"errors": ["internal error"]}'), SecretUnavailable, "internal error"),
        (Answer(502, b"<html>bad gateway</html>"), SecretUnavailable, "HTTP 502"),
        (Answer(412, b'{"errors": ["required index state not present"]}'), SecretUnavailable, "index state"),
        (Answer(429, b'{"errors": []}', {"Retry-After": "7"}), SecretThrottled, "HTTP 429"),
        (Answer(400, b'{"errors": ["what is this"]}'), SecretInvalid, "refuses secret/app/db: what is this"),
        (Answer(404, b"<html>not here</html>"), SecretUnavailable, "no answer of Vault's: check `url`"),
        (Answer(200, b"<html>log in</html>"), SecretUnavailable, "no answer of Vault's: check `url`"),
        (Answer(200, b"[1]"), SecretUnavailable, "no answer of Vault's"),
        (Answer(200, b'{"data": "text"}'), SecretInvalid, "no data"),
        (Answer(200, b'{"data": {"data": null}}'), SecretInvalid, "no data"),
        (Answer(302, b"", {"Location": "https://login.example"}), SecretUnavailable, "no answer of Vault's"),
        (Answer(raw=b"\0\1\2\r\n\r\n"), SecretUnavailable, "cannot be reached"),
        (Answer(403, b"<html>forbidden</html>"), SecretUnavailable, "HTTP 403, but no answer of Vault's"),
    ],
)  # fmt: skip
async def test_each_wrong_answer_is_one_of_our_errors(
    answering: Callable[..., HttpServer], answer: Answer, kind: type[SecretError], words: str
) -> None:
    with HttpServer(Answer(403, b'{"errors": ["no lookup"]}'), answer) as server:
        error = await failure(provider(server.url))
        assert type(error) is kind, error
        assert words in str(error)
        assert "<html>" not in str(error)
        # No retries of its own: the look at the token, and the read.
        assert len(server.requests) == 2


@pytest.mark.asyncio
@pytest.mark.parametrize(("said", "ttl"), [("90", 90.0), ("0", 1.0), ('"1h"', None), ("null", None)])
async def test_credentials_without_a_lease_last_as_long_as_they_say_in_seconds(
    said: str, ttl: float | None
) -> None:
    body = f'{{"data": {{"username": "u", "ttl": {said}}}}}'.encode()
    with HttpServer(Answer(403, b"{}"), Answer(200, body)) as server:
        vault = provider(server.url, dynamic=["directory"])
        found = await vault.get(ref("directory/static-creds/app"))
        assert (found.ttl, found.lease) == (ttl, None)
        await vault.aclose()


@pytest.mark.asyncio
async def test_the_servers_words_are_shown_short_and_without_what_we_sent() -> None:
    said = f'{{"errors": ["{TOKEN} is not\\n\\u001b[31m good{"!" * 1000}"]}}'.encode()
    with HttpServer(Answer(500, said)) as server:
        error = await failure(provider(server.url))
    assert "[hidden] is not [31m good!!!" in str(error)
    assert len(str(error)) < 500


# --- redirects -----------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_standby_leads_to_the_active_server(openbao: OpenBao) -> None:
    openbao.write("app/redirected", {"value": "of-the-active-one"})
    path = "/v1/secret/data/app/redirected"
    lookup = Answer(403, b"{}")
    with HttpServer(lookup, Answer(307, headers={"Location": openbao.url + path})) as standby:
        vault = provider(standby.url, token=openbao.token)
        assert data_of(await vault.get(ref("app/redirected"))) == {"value": "of-the-active-one"}
        await vault.aclose()


@pytest.mark.asyncio
async def test_a_redirect_is_followed_once() -> None:
    with HttpServer() as server:
        server.answer(Answer(307, headers={"Location": f"{server.url}/v1/again"}))
        error = await failure(provider(server.url))
        assert "HTTP 307, but no answer of Vault's" in str(error)
        assert len(server.requests) == 2


@pytest.mark.asyncio
async def test_no_token_goes_from_https_to_plain_http(certificate: Certificate, openbao: OpenBao) -> None:
    answer = Answer(307, headers={"Location": f"{openbao.url}/v1/secret/data/app/db"})
    with HttpServer(answer, tls=certificate.server_context()) as server:
        error = await failure(provider(server.url, ca_file=str(certificate.ca)))
    assert "which is not https: check `url`" in str(error)


@pytest.mark.asyncio
async def test_where_plain_http_leads_to_https_the_certificate_counts(
    guarded: SealedOpenBao, certificate: Certificate
) -> None:
    """So a proxy on this machine may lead to a server that is not on it."""
    answer = Answer(307, headers={"Location": f"{guarded.tls_url}/v1/secret/data/app/db"})
    with HttpServer(answer) as server:
        error = await failure(provider(server.url))
        assert "a certificate that is not accepted" in str(error)
        given = {"token": guarded.token, "ca_file": str(certificate.ca)}
        vault = provider(server.url, **given)
        server.answer(Answer(403, b"{}"), answer)
        assert data_of(await vault.get(ref("app/db"))) == {"value": "behind-the-seal"}
        await vault.aclose()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "location", ["", "https://[half", "ftp://host/x", "https:///v1/x", "https://host:port/"]
)
async def test_a_redirect_to_what_is_no_address_is_unavailable(location: str) -> None:
    with HttpServer(Answer(307, headers={"Location": location})) as server:
        error = await failure(provider(server.url))
    assert isinstance(error, SecretUnavailable)


# --- options -------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for vendor in ("VAULT", "BAO"):
        for name in ("ADDR", "TOKEN", "NAMESPACE", "CACERT", "CLIENT_CERT", "CLIENT_KEY"):
            monkeypatch.delenv(f"{vendor}_{name}", raising=False)


URL = "http://127.0.0.1:8200"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "url is missing: where is Vault"),
        ({"url": "vault:8200"}, "url must look like http://"),
        ({"url": URL}, "token is missing: give one of token, token_file"),
        ({"url": URL, "token": " "}, "token is missing"),
        ({"url": URL, "token": TOKEN, "token_file": "f"}, "token and token_file are several ways to log in"),
        ({"url": URL, "token": TOKEN, "jwt": Jwt(file="f")}, "token and jwt are several ways to log in"),
        ({"url": URL, "token": TOKEN, "mount": ""}, "mount must be a mount's path"),
        ({"url": URL, "token": TOKEN, "mount": "../sys"}, "mount must be a mount's path"),
        ({"url": URL, "token": TOKEN, "mounts": ["a/"]}, "mounts must be a mount's path"),
        ({"url": URL, "token": TOKEN, "mounts": "kv"}, "mounts must be a list of mounts"),
        ({"url": URL, "token": TOKEN, "dynamic": ["secret"]}, "share ['secret']: a mount has one engine"),
        ({"url": URL, "token": TOKEN, "client_cert_file": " "}, "client_cert_file must be a name"),
        ({"url": URL, "token": TOKEN, "client_key_file": "k"}, "client_key_file needs a client_cert_file"),
        ({"url": URL, "token": TOKEN, "kv_version": 3}, "kv_version must be 1, 2 or left out, not 3"),
        ({"url": URL, "token": TOKEN, "timeout": 0}, "timeout must be a number of seconds more than 0"),
        ({"url": URL, "token": TOKEN, "namespace": ""}, "namespace must be a name"),
        ({"url": URL, "token": TOKEN, "namespace": "téam"}, "namespace must be a path of printable ASCII"),
    ],
)
def test_a_wrong_option_is_refused_when_the_provider_is_made(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        VaultSecrets(**given)
    assert words in str(refused.value)
    assert TOKEN not in str(refused.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AppRole(role_id=""), "role_id must be a name"),
        (lambda: AppRole(role_id="r", secret_id="in-the-clear"), "secret_id must be a reference"),
        (
            lambda: AppRole(role_id="r", secret_id="secret://env/S", secret_id_file="f"),
            "two places for the same",
        ),
        (lambda: AppRole(role_id="r", wrapped=True), "wrapped needs a secret_id"),
        (lambda: AppRole(role_id="r", mount="/approle"), "mount must be a mount's path"),
        (lambda: Jwt(file=""), "file must be a name"),
        (lambda: Kubernetes(role=""), "role must be a name"),
    ],
)
def test_a_wrong_option_of_a_login_is_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        make()
    assert words in str(refused.value)
    assert "in-the-clear" not in str(refused.value)


def _config(tmp_path: Path, text: str) -> Config:
    file = tmp_path / "agentrt.toml"
    file.write_text(text)
    return Config.load(file)


def test_options_stand_in_a_file(tmp_path: Path) -> None:
    text = f"""
[secrets.providers.vault]
url = "{URL}"
mounts = ["kv"]
dynamic = ["database", "team/db"]

[secrets.providers.vault.approle]
role_id = "r"
secret_id = "secret://env/SECRET_ID"
wrapped = true
"""
    made = _config(tmp_path, text).secrets("vault").make()
    assert isinstance(made, VaultSecrets)
    assert made._session._method.name == "approle"


def test_a_secret_id_in_a_file_is_refused_and_not_shown(tmp_path: Path) -> None:
    text = f"""
[secrets.providers.vault]
url = "{URL}"
approle = {{role_id = "r", secret_id = "in-the-clear"}}
"""
    with pytest.raises(ConfigError, match="secret_id must be a reference") as refused:
        _config(tmp_path, text).secrets("vault").make()
    assert "in-the-clear" not in str(refused.value)


def test_importing_the_plugin_loads_no_client() -> None:
    code = "import sys, agentrt_vault; print(*sorted({'httpx2', 'opentelemetry', 'cryptography'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.asyncio
async def test_closing_twice_or_unused_is_fine() -> None:
    vault = provider(URL)
    await vault.aclose()
    await vault.aclose()
    with pytest.raises(SecretDenied):
        await VaultSecrets(url=URL, token="two words").get(ref("app/db"))
