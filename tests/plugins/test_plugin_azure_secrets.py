"""agentrt-azure: Azure's real client and its real credentials against an HTTPS server with the challenge."""

from __future__ import annotations

import asyncio
import json
import logging
import stat
import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest
from agentrt_azure import AzureSecrets
from servers.certificates import Certificate
from servers.faulty import Refusing
from servers.http_server import Answer, HttpServer
from servers.key_vault import TENANT, TOKEN, KeyVault, key_vault_error

from agentrt import plugins
from agentrt.config import Config
from agentrt.errors import ConfigError
from agentrt.runtime import Runtime
from agentrt.secrets import (
    SecretDenied,
    SecretInvalid,
    SecretNotFound,
    SecretRef,
    SecretThrottled,
    SecretUnavailable,
    SecretValue,
)
from agentrt.testing.plain_host import PlainHost
from agentrt.testing.secrets_suite import SecretsProviderTests
from plugins.secret_readers import (
    VALUE,
    agents_read,
    on_two_loops,
    read_once,
    refusal,
    survives_a_cancelled_reader,
)
from plugins.secret_readers import ref as secret_ref

ref = partial(secret_ref, "azure")
PASSWORD = "the-application's-own-password"
PASSWORD_REF = "secret://env/APPLICATION_PASSWORD"
JSON = {"Content-Type": "application/json"}
OTHER = b'{"id": "https://localhost/secrets/db/1", "attributes": {}}'


@pytest.fixture
def vault(key_vault: KeyVault, monkeypatch: pytest.MonkeyPatch) -> KeyVault:
    """The vault, and an environment that says nothing of Azure."""
    from azure.keyvault.secrets._shared import http_challenge_cache

    for name in (
        "AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_FEDERATED_TOKEN_FILE",
        "AZURE_AUTHORITY_HOST", "IDENTITY_ENDPOINT", "IDENTITY_HEADER", "MSI_ENDPOINT",
    ):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    # The client keeps the challenge of each host and port for as long as the process lives, and ports come again.
    http_challenge_cache.clear()
    return key_vault


def options(vault: KeyVault, **more: Any) -> dict[str, Any]:
    """As an application, whose tokens come from the same server."""
    return {**at(vault), **APPLICATION, "authority": vault.url, **more}


APPLICATION = {
    "identity": "client_secret",
    "tenant_id": TENANT,
    "client_id": "the-application",
    "client_secret": PASSWORD,
}


def at(vault: KeyVault) -> dict[str, Any]:
    return {"vault_url": vault.url, "ca_file": vault.ca, "verify_challenge": False}


async def read(text: str, **given: Any) -> SecretValue:
    return await read_once(AzureSecrets(**given), ref(text))


async def refused(text: str, kind: type[Exception], **given: Any) -> str:
    return await refusal(AzureSecrets(**given), ref(text), kind)


class TestConformance(SecretsProviderTests):
    secrets: ClassVar[Mapping[str, str]] = {PASSWORD_REF: PASSWORD}
    credentials = (PASSWORD, TOKEN)

    @pytest.fixture(autouse=True)
    def started(self, vault: KeyVault) -> None:
        self.vault = vault

    def make(self) -> AzureSecrets:
        return AzureSecrets(**options(self.vault, client_secret=PASSWORD_REF))

    def store(self, name: str, value: str) -> SecretRef:
        self.vault.add(name, value)
        return SecretRef(name)

    def denied(self) -> Any:
        return self.vault.failing(key_vault_error(403, "Forbidden", inner="ForbiddenByRbac"))

    def throttling(self) -> Any:
        return self.vault.failing(key_vault_error(429, "Throttled", **{"Retry-After": "2"}))

    def failing(self) -> Any:
        return self.vault.failing(Answer(503))

    def hanging(self) -> Any:
        return self.vault.hanging()


# ------------------------------------------------------------------------------------------------- reading
@pytest.mark.asyncio
async def test_a_version_is_its_id(vault: KeyVault) -> None:
    first, second = vault.add("db", "one"), vault.add("db", "two")
    assert await read("db", **options(vault)) == SecretValue("two", second)
    assert await read(f"db?version={first}", **options(vault)) == SecretValue("one", first)
    assert vault.reads() == ["/secrets/db/", f"/secrets/db/{first}"]


@pytest.mark.asyncio
async def test_the_list_has_the_names_of_all_pages(vault: KeyVault) -> None:
    for number in range(60):
        vault.add(f"n{number:02}", VALUE)
    secrets = AzureSecrets(**options(vault))
    assert await secrets.list() == [f"n{number:02}" for number in range(60)]
    assert await secrets.list("n1") == [f"n1{number}" for number in range(10)]
    await secrets.aclose()
    assert vault.reads() == ["/secrets"] * 6


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("db_password", "has 1 to 127 letters, digits and dashes, no underscores, dots or slashes"),
        ("prod/db", "no underscores, dots or slashes"),
        ("db.password", "no underscores, dots or slashes"),
        ("d" * 128, "has 1 to 127 letters"),
        ("db?version=a-b", "a version in Key Vault is its id, of letters and digits"),
    ],
)
@pytest.mark.asyncio
async def test_what_key_vault_has_no_names_for_is_not_asked(vault: KeyVault, text: str, says: str) -> None:
    said = await refused(text, SecretInvalid, **options(vault))
    assert said.startswith(f"secret://azure/{text}: ")
    assert says in said
    assert vault.requests == []


# ------------------------------------------------------------------------------------------------- failures
@pytest.mark.asyncio
async def test_what_is_not_there_is_not_found(vault: KeyVault) -> None:
    said = await refused("missing", SecretNotFound, **options(vault))
    assert said.startswith("secret://azure/missing: Key Vault answered SecretNotFound: A secret with")
    assert said.endswith("Check the name, the version and `vault_url`")
    vault.add("db", VALUE)
    await refused(f"db?version={2:032x}", SecretNotFound, **options(vault))


@pytest.mark.asyncio
async def test_what_is_disabled_is_invalid(vault: KeyVault) -> None:
    vault.add("off", VALUE, enabled=False)
    said = await refused("off", SecretInvalid, **options(vault))
    assert "SecretDisabled: Operation get is not allowed on a disabled secret. Enable the secret or" in said


@pytest.mark.parametrize(
    ("answer", "kind", "says"),
    [
        (
            key_vault_error(403, "Forbidden", inner="ForbiddenByPolicy"),
            SecretDenied,
            "Key Vault Secrets User",
        ),
        (key_vault_error(403, "Forbidden", inner="ForbiddenByRbac"), SecretDenied, "Key Vault Secrets User"),
        (key_vault_error(403, "Forbidden", inner="ForbiddenByFirewall"), SecretDenied, "vault's firewall"),
        (key_vault_error(403, "Forbidden", inner="ForbiddenByConnection"), SecretDenied, "private endpoint"),
        (
            key_vault_error(401, "Unauthorized", "AKV10032: wrong issuer"),
            SecretDenied,
            "AKV10032: wrong issuer",
        ),
        (key_vault_error(429, "Throttled"), SecretThrottled, "Throttled: because"),
        (key_vault_error(400, "BadParameter"), SecretInvalid, "BadParameter: because. Correct the name"),
        (key_vault_error(500, "InternalServerError"), SecretUnavailable, "InternalServerError: because"),
        (Answer(503), SecretUnavailable, "HTTP 503"),
        (Answer(502, b"<html>no</html>", {"Content-Type": "text/html"}), SecretUnavailable, "HTTP 502"),
    ],
    ids=lambda value: str(value.status) if isinstance(value, Answer) else None,
)
@pytest.mark.asyncio
async def test_an_error_of_the_vault_becomes_the_right_one_and_is_not_tried_again(
    answer: Answer, kind: type[Exception], says: str, vault: KeyVault
) -> None:
    with vault.failing(answer):
        said = await refused("db", kind, **options(vault))
    assert said.startswith("secret://azure/db: ")
    assert says in said
    assert len(vault.reads()) == 1


@pytest.mark.asyncio
async def test_throttling_and_failing_say_when_to_come_again(vault: KeyVault) -> None:
    for status, kind in ((429, SecretThrottled), (503, SecretUnavailable)):
        with vault.failing(key_vault_error(status, "Busy", **{"Retry-After": "60"})):
            began = time.monotonic()
            with pytest.raises(kind) as caught:
                await read("db", **options(vault))
        assert vars(caught.value)["retry_after"] == 60.0
        assert time.monotonic() - began < 20.0


@pytest.mark.parametrize(
    "body",
    [b"<html>", b'{"value": "' + VALUE.encode(), OTHER, b'{"id": "' + VALUE.encode() + b'"}'],
    ids=["page", "cut", "other", "id"],
)
@pytest.mark.asyncio
async def test_what_is_no_answer_of_key_vault_is_not_shown(
    body: bytes, vault: KeyVault, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    told = pytest.raises(SecretUnavailable, match=r"^secret://azure/db: .*check `vault_url`")
    with vault.failing(Answer(200, body, JSON)), told as caught:
        await read("db", **options(vault))
    assert VALUE not in "".join(traceback.format_exception(caught.value)) + caplog.text


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.asyncio
async def test_a_redirect_is_not_followed(status: int, vault: KeyVault, certificate: Certificate) -> None:
    with HttpServer(tls=certificate.server_context()) as other:
        leads = {**JSON, "Location": f"https://localhost:{other.port}/secrets/db"}
        with vault.failing(Answer(status, b"{}", leads)):
            said = await refused("db", SecretUnavailable, **options(vault))
        assert said.startswith(f"secret://azure/db: Key Vault answered HTTP {status}: ")
        assert said.endswith("Redirects are not followed: check `vault_url` and what stands between")
        vault.tokens = Answer(status, b"{}", leads)
        await refused("db", SecretDenied, **options(vault))
        assert other.requests == []


@pytest.mark.asyncio
async def test_a_list_that_goes_on_elsewhere_takes_no_token_there(
    vault: KeyVault, certificate: Certificate
) -> None:
    with HttpServer(tls=certificate.server_context()) as other:
        page = {"value": [], "nextLink": f"https://localhost:{other.port}/secrets?page=2"}
        secrets = AzureSecrets(**options(vault))
        told = pytest.raises(
            SecretUnavailable, match=rf"goes on at https://localhost:{other.port}, which is not"
        )
        with vault.failing(Answer(200, json.dumps(page).encode(), JSON)), told:
            await secrets.list()
        await secrets.aclose()
        assert other.requests == []


@pytest.mark.asyncio
async def test_a_list_that_is_denied_names_its_permission(vault: KeyVault) -> None:
    secrets = AzureSecrets(**options(vault))
    told = pytest.raises(SecretDenied, match=r"^the list of the secrets in azure: .*permission 'list'")
    with vault.failing(key_vault_error(403, "Forbidden", inner="ForbiddenByPolicy")), told:
        await secrets.list()
    await secrets.aclose()


@pytest.mark.asyncio
async def test_a_server_that_is_down_is_told_long_before_the_timeout(
    vault: KeyVault, refusing: Refusing
) -> None:
    away = f"https://localhost:{refusing.port}"
    secrets = AzureSecrets(**options(vault, vault_url=away, timeout=600.0))
    await secrets.open(PlainHost({}))
    began = time.monotonic()
    with pytest.raises(SecretUnavailable, match=r"^secret://azure/db: Key Vault, .* cannot be reached"):
        await secrets.get(ref("db"))
    assert time.monotonic() - began < 20.0
    await secrets.aclose()


@pytest.mark.asyncio
async def test_a_server_that_does_not_answer_is_unavailable_after_the_timeout(vault: KeyVault) -> None:
    began = time.monotonic()
    with vault.hanging():
        said = await refused("db", SecretUnavailable, **options(vault, timeout=0.3))
    assert "imeout" in said
    assert time.monotonic() - began < 20.0
    await asyncio.sleep(0.05)  # in which the loop sees the end of the connection


@pytest.mark.asyncio
async def test_an_authority_that_is_not_trusted_is_unavailable(vault: KeyVault) -> None:
    said = await refused("db", SecretUnavailable, **options(vault, ca_file=None))
    assert "check the network, `vault_url` and `ca_file`" in said


@pytest.mark.asyncio
async def test_a_vault_that_wants_a_token_for_another_gets_none(vault: KeyVault) -> None:
    said = await refused("db", SecretDenied, **options(vault, verify_challenge=True))
    assert said.startswith("secret://azure/db: the vault asks for a token that is not for it")
    assert said.endswith("set `verify_challenge = false`")
    assert vault.logins == []


# ---------------------------------------------------------------------------------------------- credentials
@pytest.mark.asyncio
async def test_an_application_logs_in_with_a_password_that_is_a_secret_itself(vault: KeyVault) -> None:
    vault.add("db", VALUE)
    secrets = AzureSecrets(**options(vault, client_secret=PASSWORD_REF))
    with pytest.raises(
        ConfigError, match=r"client_secret .* is a reference, and the provider was not opened"
    ):
        await secrets.get(ref("db"))
    await secrets.open(PlainHost({PASSWORD_REF: PASSWORD}))
    assert [(await secrets.get(ref("db"))).value for _ in range(2)] == [VALUE] * 2
    await secrets.aclose()
    (login,) = vault.logins
    assert login["client_id"] == "the-application"
    assert login["client_secret"] == PASSWORD
    assert login["scope"] == "https://vault.azure.net/.default"


class Rotating(PlainHost):
    """Has another password after `refused` was told to be wrong."""

    def __init__(self, password: str, later: str) -> None:
        super().__init__({PASSWORD_REF: password})
        self.later = later
        self.refused: list[str] = []

    async def secret_rejected(self, reference: str, value: str, /) -> str:
        assert reference == PASSWORD_REF
        self.refused.append(value)
        return self.later


@pytest.mark.asyncio
async def test_an_application_whose_password_was_rotated_logs_in_with_the_new_one(vault: KeyVault) -> None:
    vault.add("db", VALUE)
    host = Rotating("the-old-one", "the-new-one")
    vault.passwords = {"the-new-one"}
    secrets = AzureSecrets(**options(vault, client_secret=PASSWORD_REF))
    await secrets.open(host)
    found = await asyncio.gather(*(secrets.get(ref("db")) for _ in range(5)))
    assert [value.value for value in found] == [VALUE] * 5
    assert set(host.refused) == {"the-old-one"}
    before = len(vault.logins)
    assert await secrets.list() == ["db"]
    assert len(vault.logins) == before
    await secrets.aclose()
    assert {login["client_secret"] for login in vault.logins} == {"the-old-one", "the-new-one"}


@pytest.mark.asyncio
async def test_a_password_that_stays_refused_is_tried_once(vault: KeyVault) -> None:
    vault.passwords = {"another"}
    host = Rotating(PASSWORD, PASSWORD)
    secrets = AzureSecrets(**options(vault, client_secret=PASSWORD_REF))
    await secrets.open(host)
    with pytest.raises(SecretDenied, match="AADSTS7000215"):
        await secrets.get(ref("db"))
    await secrets.aclose()
    assert host.refused == [PASSWORD]
    assert len(vault.logins) == 1


@pytest.mark.asyncio
async def test_a_password_that_cannot_be_had_is_denied(vault: KeyVault) -> None:
    class Nothing(PlainHost):
        async def secret(self, reference: str, /) -> str:
            raise SecretNotFound(f"{reference}: the environment variable is not set")

    secrets = AzureSecrets(**options(vault, client_secret=PASSWORD_REF))
    with pytest.raises(SecretDenied, match=r"cannot be had: secret://env/APPLICATION_PASSWORD: .* not set"):
        await secrets.open(Nothing())
    await secrets.aclose()


@pytest.mark.asyncio
async def test_a_pod_logs_in_with_the_token_of_its_platform(
    vault: KeyVault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault.add("db", VALUE)
    token = tmp_path / "token"
    token.write_text("a-token-of-the-platform")
    fields = {"tenant_id": TENANT, "client_id": "the-pod", "token_file": str(token), "authority": vault.url}
    pod = {**at(vault), "identity": "workload_identity"}
    assert (await read("db", **pod, **fields)).value == VALUE
    assert vault.logins[0]["client_assertion"] == "a-token-of-the-platform"
    assert "cannot be made" in await refused("db", ConfigError, **pod)
    monkeypatch.setenv("AZURE_TENANT_ID", TENANT)
    monkeypatch.setenv("AZURE_CLIENT_ID", "the-pod")
    monkeypatch.setenv("AZURE_FEDERATED_TOKEN_FILE", str(token))
    monkeypatch.setenv("AZURE_AUTHORITY_HOST", vault.url)
    assert (await read("db", **pod)).value == VALUE


@pytest.mark.parametrize("identity", ["environment", "default"])
@pytest.mark.asyncio
async def test_the_environment_says_who_logs_in(
    vault: KeyVault, identity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault.add("db", VALUE)
    monkeypatch.setenv("AZURE_TENANT_ID", TENANT)
    monkeypatch.setenv("AZURE_CLIENT_ID", "the-environment")
    monkeypatch.setenv("AZURE_CLIENT_SECRET", PASSWORD)
    monkeypatch.setenv("AZURE_AUTHORITY_HOST", vault.url)
    assert (await read("db", **at(vault), identity=identity)).value == VALUE
    assert [login["client_id"] for login in vault.logins] == ["the-environment"]


@pytest.mark.asyncio
async def test_an_environment_that_says_nothing_is_denied(vault: KeyVault) -> None:
    said = await refused("db", SecretDenied, **at(vault), identity="environment")
    assert said.startswith("secret://azure/db: there is no usable credential (EnvironmentCredential")
    assert said.endswith("choose `identity`, and give what it needs")


@pytest.mark.asyncio
async def test_a_machine_gets_its_token_from_its_platform(
    vault: KeyVault, answering: Callable[..., HttpServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    vault.add("db", VALUE)
    token = {"access_token": TOKEN, "expires_on": str(int(time.time()) + 3600), "token_type": "Bearer"}
    token["resource"] = "https://vault.azure.net"
    platform = answering(200, json.dumps(token).encode(), JSON)
    monkeypatch.setenv("IDENTITY_ENDPOINT", f"{platform.url}/msi/token")
    monkeypatch.setenv("IDENTITY_HEADER", "the-header")
    machine = {**at(vault), "identity": "managed_identity", "client_id": "the-identity"}
    assert (await read("db", **machine)).value == VALUE
    (request,) = platform.requests
    query = parse_qs(urlsplit(request.path).query)
    assert (query["resource"], query["client_id"]) == (["https://vault.azure.net"], ["the-identity"])
    assert request.headers["x-identity-header"] == "the-header"


@pytest.mark.asyncio
async def test_a_platform_that_is_away_is_unavailable_at_once(
    vault: KeyVault, refusing: Refusing, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = {**at(vault), "identity": "managed_identity"}
    began = time.monotonic()
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", refusing.url)
    said = await refused("db", SecretUnavailable, **machine)
    assert said.startswith("secret://azure/db: there is no token, so Key Vault was not asked (Managed")
    assert time.monotonic() - began < 20.0


@pytest.mark.asyncio
async def test_whoever_is_logged_in_at_the_command_line_is_asked_for(
    vault: KeyVault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault.add("db", VALUE)
    token = {"accessToken": TOKEN, "expires_on": int(time.time()) + 3600, "tokenType": "Bearer"}
    program = tmp_path / "az"
    program.write_text(f"#!/bin/sh\necho '{json.dumps(token)}'\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert (await read("db", **at(vault), identity="azure_cli")).value == VALUE
    program.write_text("#!/bin/sh\necho 'Please run az login to setup account.' >&2\nexit 1\n")
    said = await refused("db", SecretDenied, **at(vault), identity="azure_cli")
    assert "az login" in said


@pytest.mark.parametrize(
    ("tokens", "kind", "says"),
    [
        ((400, "invalid_client", "AADSTS7000215: Invalid client secret"), SecretDenied, "AADSTS7000215"),
        ((401, "invalid_client", "AADSTS7000222: expired client secret"), SecretDenied, "AADSTS7000222"),
        ((429, "throttled", "too many"), SecretThrottled, "too many tokens were asked for"),
        ((503, "unavailable", "later"), SecretUnavailable, "the token service fails"),
    ],
)
@pytest.mark.asyncio
async def test_a_token_service_that_gives_none_is_told(
    tokens: tuple[int, str, str], kind: type[Exception], says: str, vault: KeyVault
) -> None:
    status, error, words = tokens
    body = json.dumps({"error": error, "error_description": words}).encode()
    vault.tokens = Answer(status, body, JSON)
    said = await refused("db", kind, **options(vault))
    assert said.startswith("secret://azure/db: ")
    assert says in said
    assert PASSWORD not in said
    assert len(vault.logins) == 1
    assert vault.reads() == []


@pytest.mark.asyncio
async def test_a_vault_of_another_tenant_is_denied(vault: KeyVault) -> None:
    vault.tenant = "99999999-2222-3333-4444-555555555555"
    said = await refused("db", SecretDenied, **options(vault))
    assert "tenant" in said
    assert vault.logins == []


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"vault_url": "http://v.vault.azure.net"}, "vault_url must look like https://NAME.vault.azure.net"),
        ({"vault_url": "https://v.vault.azure.net/secrets"}, "vault_url must look like"),
        ({"identity": "password"}, "identity must be one of|identity"),
        ({"client_id": "x"}, "client_id does not go with identity = 'default', which takes no field"),
        ({"identity": "azure_cli", "client_id": "x"}, "does not go with .* which takes tenant_id"),
        ({"identity": "client_secret", "client_id": "x"}, "needs tenant_id, client_secret"),
        ({"identity": "environment", "authority": "login"}, "authority must look like https://login"),
        ({"identity": "managed_identity", "client_id": ""}, "client_id must be a text with something"),
        ({"ca_file": ""}, "ca_file must be a name"),
        ({"timeout": 0}, "timeout must be a number of seconds"),
        ({"vault": "x"}, "no 'vault'|vault_url"),
    ],
)
def test_a_wrong_option_is_refused(given: dict[str, Any], says: str) -> None:
    table = {"vault_url": "https://v.vault.azure.net", **given}
    with pytest.raises(ConfigError, match=says):
        plugins.make("agentrt.secrets", "azure", table)


@pytest.mark.asyncio
async def test_a_file_of_certificates_that_is_not_there_is_named(vault: KeyVault) -> None:
    said = await refused("db", ConfigError, **options(vault, ca_file="/nonexistent/ca.pem"))
    assert said.startswith("ca_file of the secrets provider azure cannot be used: /nonexistent/ca.pem: ")


# ------------------------------------------------------------------------------------------------- its life
@pytest.mark.asyncio
async def test_no_value_token_or_password_is_in_a_log_at_any_level(
    vault: KeyVault, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    vault.add("logged", VALUE)
    assert (await read("logged", **options(vault))).value == VALUE
    assert any(record.name.startswith("azure") for record in caplog.records)
    for word in (VALUE, TOKEN, PASSWORD):
        assert word not in caplog.text


@pytest.mark.asyncio
async def test_a_reader_that_is_cancelled_leaves_the_client_usable(vault: KeyVault) -> None:
    vault.add("slow", VALUE)
    was_asked = partial(vault.wait_for, lambda: bool(vault.reads()), what="a read")
    secrets = AzureSecrets(**options(vault))
    await survives_a_cancelled_reader(secrets, ref("slow"), vault.hanging(), was_asked)


def test_two_event_loops_one_after_the_other_work(vault: KeyVault) -> None:
    vault.add("loops", VALUE)
    on_two_loops(AzureSecrets(**options(vault)), ref("loops"))


# ---------------------------------------------------------------------------------------------- in a runtime
@pytest.mark.asyncio
async def test_five_hundred_readers_of_what_the_configuration_leads_to_are_one_request(
    vault: KeyVault, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = json.dumps({"user": "app", "password": VALUE})
    vault.add("db", stored)
    monkeypatch.setenv("APPLICATION_PASSWORD", PASSWORD)
    table = {"provider": "azure", **options(vault, client_secret=PASSWORD_REF)}
    await agents_read(table, ("secret://azure/db#password", VALUE), ("db", stored))
    assert vault.reads() == ["/secrets/db/"]
    assert len(vault.logins) == 1


@pytest.mark.parametrize("read", ["secret://azure/own", "secret://azure/db"])
@pytest.mark.asyncio
async def test_a_password_that_is_kept_in_the_vault_that_it_opens_is_a_mistake_that_is_told_at_once(
    vault: KeyVault, read: str
) -> None:
    table = {"providers": {"azure": options(vault, client_secret="secret://azure/own")}}
    began = time.monotonic()
    async with Runtime(Config({"secrets": table})) as runtime:
        with pytest.raises(ConfigError, match=r"'azure' needs a secret of its own in order to open"):
            await runtime.secrets.get(read)
    assert time.monotonic() - began < 20.0
    assert vault.requests == []
