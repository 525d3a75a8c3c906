"""agentrt-gcp: Google's real client against a gRPC server of Google's published messages."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from agentrt_gcp import GcpSecrets
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth import jwt
from servers.certificates import Certificate
from servers.faulty import Refusing
from servers.gcp_secrets import GcpSecretManager
from servers.http_server import HttpServer

from agentrt import plugins
from agentrt.errors import ConfigError
from agentrt.secrets import (
    SecretDenied,
    SecretInvalid,
    SecretNotFound,
    SecretRef,
    SecretThrottled,
    SecretUnavailable,
    SecretValue,
)
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

ref = partial(secret_ref, "gcp")
SECRETS = "projects/p/secrets"


@pytest.fixture
def gcp(gcp_secrets: GcpSecretManager, monkeypatch: pytest.MonkeyPatch) -> GcpSecretManager:
    """The service, and an environment that says nothing of GCP."""
    for name in ("GOOGLE_CLOUD_PROJECT", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    return gcp_secrets


def provider(server: GcpSecretManager, **options: Any) -> GcpSecrets:
    return GcpSecrets(**{"project": "p", "endpoint": server.url, **options})


async def read(server: GcpSecretManager, text: str, **options: Any) -> SecretValue:
    return await read_once(provider(server, **options), ref(text))


async def refused(server: GcpSecretManager, text: str, kind: type[Exception], **options: Any) -> str:
    return await refusal(provider(server, **options), ref(text), kind)


class TestConformance(SecretsProviderTests):
    @pytest.fixture(autouse=True)
    def started(self, gcp: GcpSecretManager) -> None:
        self.gcp = gcp

    def make(self) -> GcpSecrets:
        return provider(self.gcp)

    def store(self, name: str, value: str) -> SecretRef:
        self.gcp.add(f"{SECRETS}/{name}", value.encode())
        return SecretRef(name)

    def denied(self) -> Any:
        return self.gcp.failing(grpc.StatusCode.PERMISSION_DENIED)

    def throttling(self) -> Any:
        return self.gcp.failing(grpc.StatusCode.RESOURCE_EXHAUSTED, "Quota exceeded")

    def failing(self) -> Any:
        return self.gcp.failing(grpc.StatusCode.UNAVAILABLE)

    def hanging(self) -> Any:
        return self.gcp.hanging()


# ------------------------------------------------------------------------------------------------- reading
@pytest.mark.asyncio
async def test_a_version_is_a_number_an_alias_or_the_latest(gcp: GcpSecretManager) -> None:
    for data in (b"one", b"two", b"three"):
        gcp.add(f"{SECRETS}/db", data)
    gcp.set_alias(f"{SECRETS}/db", "stable", 2)
    assert await read(gcp, "db") == SecretValue("three", "3")
    assert await read(gcp, "db?version=latest") == SecretValue("three", "3")
    assert await read(gcp, "db?version=1") == SecretValue("one", "1")
    assert await read(gcp, "db?version=stable") == SecretValue("two", "2")
    assert [call[1] for call in gcp.calls[:1]] == [f"{SECRETS}/db/versions/latest"]


@pytest.mark.asyncio
async def test_a_whole_name_is_of_any_project_and_a_location_stands_before_a_short_one(
    gcp: GcpSecretManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    gcp.add("projects/other/secrets/db", b"other's")
    gcp.add("projects/p/locations/europe-west3/secrets/db", b"regional")
    assert (await read(gcp, "projects/other/secrets/db")).value == "other's"
    assert (await read(gcp, "db", location="europe-west3")).value == "regional"
    assert (await read(gcp, "projects/p/locations/europe-west3/secrets/db")).value == "regional"
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "other")
    assert (await read(gcp, "db", project=None)).value == "other's"


@pytest.mark.asyncio
async def test_the_checksum_is_checked_and_a_wrong_one_tells_no_value(gcp: GcpSecretManager) -> None:
    gcp.add(f"{SECRETS}/wrong", VALUE.encode(), checksum=7)
    gcp.add(f"{SECRETS}/none", VALUE.encode(), checksum=None)
    with pytest.raises(SecretUnavailable, match=r"^secret://gcp/wrong: .* its checksum is another") as caught:
        await read(gcp, "wrong")
    assert VALUE not in "".join(traceback.format_exception(caught.value))
    assert (await read(gcp, "none")).value == VALUE


@pytest.mark.asyncio
async def test_what_is_no_text_is_refused_without_it(gcp: GcpSecretManager) -> None:
    gcp.add(f"{SECRETS}/binary", b"\xff\xfe" + VALUE.encode())
    with pytest.raises(SecretInvalid, match=r"^secret://gcp/binary: the secret is binary .* base64") as told:
        await read(gcp, "binary")
    assert told.value.__cause__ is None
    assert told.value.__context__ is None


@pytest.mark.asyncio
async def test_the_list_has_the_names_of_all_pages(gcp: GcpSecretManager) -> None:
    for number in range(130):
        gcp.add(f"{SECRETS}/n{number:03}", VALUE.encode())
    gcp.add("projects/other/secrets/m", VALUE.encode())
    secrets = provider(gcp)
    assert await secrets.list() == [f"n{number:03}" for number in range(130)]
    assert await secrets.list("n01") == [f"n01{number}" for number in range(10)]
    await secrets.aclose()
    assert [call[:2] for call in gcp.calls] == [("ListSecrets", "projects/p")] * 6


# ------------------------------------------------------------------------------------------------- failures
@pytest.mark.asyncio
async def test_what_is_not_there_is_not_found(gcp: GcpSecretManager) -> None:
    said = await refused(gcp, "missing", SecretNotFound)
    assert said.startswith("secret://gcp/missing: NotFound from GCP Secret Manager: Secret [projects/p/")
    assert said.endswith("Check the name, the version and `project`")
    gcp.add(f"{SECRETS}/db", b"one")
    await refused(gcp, "db?version=2", SecretNotFound)


@pytest.mark.asyncio
async def test_a_version_that_is_off_is_invalid_and_one_that_is_destroyed_not_found(
    gcp: GcpSecretManager,
) -> None:
    for state in ("DISABLED", "DESTROYED"):
        gcp.set_state(f"{SECRETS}/db", gcp.add(f"{SECRETS}/db", b"one"), state)
    said = await refused(gcp, "db?version=1", SecretInvalid)
    assert "is in DISABLED state. Enable the version, or name another one" in said
    said = await refused(gcp, "db", SecretNotFound)
    assert "is in DESTROYED state. Add a new version, or name another one" in said


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a%20b", "a secret's name in GCP has 1 to 255 letters"),
        ("a/b", "is whole: projects/PROJECT/secrets/NAME"),
        ("projects/p/secrets/..", "a secret's name in GCP"),
        ("db?version=1%2F2", "a version in GCP is a number, an alias or 'latest'"),
    ],
)
@pytest.mark.asyncio
async def test_what_gcp_has_no_names_for_is_not_asked(gcp: GcpSecretManager, text: str, says: str) -> None:
    assert says in await refused(gcp, text, SecretInvalid)
    assert gcp.calls == []


@pytest.mark.parametrize(
    ("code", "kind", "says"),
    [
        (
            "PERMISSION_DENIED",
            SecretDenied,
            "Allow secretmanager.versions.access (roles/secretmanager.secretA",
        ),
        ("UNAUTHENTICATED", SecretDenied, "GCP does not accept the credentials"),
        ("RESOURCE_EXHAUSTED", SecretThrottled, "because"),
        ("INVALID_ARGUMENT", SecretInvalid, "Correct the name or the version"),
        ("FAILED_PRECONDITION", SecretInvalid, "Enable the version"),
        ("UNAVAILABLE", SecretUnavailable, "check the network, `endpoint` and `ca_file`"),
        ("INTERNAL", SecretUnavailable, "because"),
        ("UNKNOWN", SecretUnavailable, "because"),
        ("ABORTED", SecretUnavailable, "because"),
        ("DEADLINE_EXCEEDED", SecretUnavailable, "raise `timeout`"),
        ("UNIMPLEMENTED", SecretUnavailable, "What answers at `endpoint` is not Secret Manager"),
    ],
)
@pytest.mark.asyncio
async def test_an_error_of_the_service_becomes_the_right_one_and_is_not_tried_again(
    code: str, kind: type[Exception], says: str, gcp: GcpSecretManager
) -> None:
    with gcp.failing(grpc.StatusCode[code]):
        said = await refused(gcp, "db", kind)
    assert said.startswith("secret://gcp/db: ")
    assert says in said
    # Refused credentials are found anew once: the file that they are from may have others by now.
    assert len(gcp.calls) == (2 if code == "UNAUTHENTICATED" else 1)


@pytest.mark.asyncio
async def test_throttling_and_failing_say_when_to_come_again(gcp: GcpSecretManager) -> None:
    for code, kind in (("RESOURCE_EXHAUSTED", SecretThrottled), ("UNAVAILABLE", SecretUnavailable)):
        with gcp.failing(grpc.StatusCode[code], retry_after=7.5), pytest.raises(kind) as caught:
            await read(gcp, "db")
        assert vars(caught.value)["retry_after"] == 7.5


@pytest.mark.asyncio
async def test_a_list_that_is_denied_names_its_permission(gcp: GcpSecretManager) -> None:
    secrets = provider(gcp)
    with (
        gcp.failing(grpc.StatusCode.PERMISSION_DENIED),
        pytest.raises(SecretDenied, match=r"^the list of the secrets in gcp: .*secretmanager.secrets.list"),
    ):
        await secrets.list()
    await secrets.aclose()


@pytest.mark.asyncio
async def test_a_server_that_is_down_is_told_long_before_the_timeout(
    gcp: GcpSecretManager, refusing: Refusing
) -> None:
    secrets = provider(gcp, endpoint=refusing.url, timeout=600.0)
    await secrets.open(None)  # type: ignore[arg-type]
    began = time.monotonic()
    with pytest.raises(SecretUnavailable, match=r"^secret://gcp/db: ServiceUnavailable .*Connection refused"):
        await secrets.get(ref("db"))
    assert time.monotonic() - began < 20.0
    await secrets.aclose()


@pytest.mark.asyncio
async def test_a_server_that_comes_back_is_found_within_seconds(gcp: GcpSecretManager) -> None:
    gcp.add(f"{SECRETS}/db", VALUE.encode())
    secrets = provider(gcp)
    assert (await secrets.get(ref("db"))).value == VALUE
    await asyncio.to_thread(gcp.stop)
    ends = time.monotonic() + 2.0
    while time.monotonic() < ends:
        with pytest.raises(SecretUnavailable):
            await secrets.get(ref("db"))
        await asyncio.sleep(0.1)
    await asyncio.to_thread(gcp.start)
    tries = 0
    while True:
        try:
            found = await secrets.get(ref("db"))
            break
        except SecretUnavailable:
            tries += 1
            assert tries < 60, "it is not found for 6 s"
            await asyncio.sleep(0.1)
    assert found.value == VALUE
    await secrets.aclose()


@pytest.mark.asyncio
async def test_a_server_that_does_not_answer_is_unavailable_after_the_timeout(gcp: GcpSecretManager) -> None:
    began = time.monotonic()
    with gcp.hanging():
        assert "raise `timeout`" in await refused(gcp, "db", SecretUnavailable, timeout=0.3)
    assert time.monotonic() - began < 20.0


# ---------------------------------------------------------------------------------------------- credentials
def service_account(folder: Path, key: rsa.RSAPrivateKey) -> Path:
    """The file that GCP gives for an account's key."""
    path = folder / "account.json"
    pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    account = {
        "type": "service_account",
        "client_email": "agents@p.iam.gserviceaccount.com",
        "private_key": key.private_bytes(*pem).decode(),
        "private_key_id": "1",
        "token_uri": "https://oauth2.googleapis.com/token",
        "project_id": "p",
    }
    path.write_text(json.dumps(account))
    return path


@pytest.mark.asyncio
async def test_a_service_account_signs_what_is_sent_over_tls(
    tmp_path: Path, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    path = str(service_account(tmp_path, key))
    with GcpSecretManager(certificate) as server:
        server.add(f"{SECRETS}/db", VALUE.encode())
        options = {"project": None, "ca_file": str(certificate.ca)}
        assert (await read(server, "db", credentials_file=path, **options)).value == VALUE
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", path)
        assert (await read(server, "db", **options)).value == VALUE
        await refused(
            server, "db", SecretUnavailable, project=None
        )  # the authority is not one that gRPC knows
    form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    for _, _, authorization in server.calls:
        token = authorization.removeprefix("Bearer ")
        claims = jwt.decode(token, certs=key.public_key().public_bytes(*form), verify=True)
        assert claims["iss"] == "agents@p.iam.gserviceaccount.com"
    assert len(server.calls) == 2


@pytest.mark.asyncio
async def test_a_key_that_was_replaced_in_its_file_is_read_anew_at_most_once_in_a_while(
    tmp_path: Path, certificate: Certificate
) -> None:
    old, new = (rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2))
    form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    taken = old

    def accepts(authorization: str) -> bool:
        try:
            jwt.decode(authorization.removeprefix("Bearer "), certs=taken.public_key().public_bytes(*form))
        except ValueError:
            return False
        return True

    path = str(service_account(tmp_path, old))
    with GcpSecretManager(certificate) as server:
        server.accepts = accepts
        server.add(f"{SECRETS}/db", VALUE.encode())
        secrets = provider(server, ca_file=str(certificate.ca), credentials_file=path)
        assert (await secrets.get(ref("db"))).value == VALUE
        service_account(tmp_path, new)
        taken = new
        found = await asyncio.gather(*(secrets.get(ref("db")) for _ in range(5)))
        assert [value.value for value in found] == [VALUE] * 5
        taken, before = old, len(server.calls)
        with pytest.raises(SecretDenied, match="GCP does not accept the credentials"):
            await secrets.get(ref("db"))
        assert len(server.calls) == before + 1
        await secrets.aclose()


@pytest.fixture
def federated(tmp_path: Path, answering: Callable[..., HttpServer]) -> Callable[..., dict[str, Any]]:
    """Options for a workload identity whose token service answers as told."""

    def make(status: int, body: dict[str, Any], url: str | None = None) -> dict[str, Any]:
        url = answering(status, json.dumps(body).encode()).url if url is None else url
        subject = tmp_path / "subject"
        subject.write_text("a-token-of-the-platform")
        path = tmp_path / "federated.json"
        settings = {
            "type": "external_account",
            "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q",
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "token_url": f"{url}/v1/token",
            "credential_source": {"file": str(subject)},
        }
        path.write_text(json.dumps(settings))
        return {"credentials_file": str(path)}

    return make


@pytest.mark.asyncio
async def test_a_workload_identity_gets_its_token_from_the_token_service(
    certificate: Certificate, federated: Callable[..., dict[str, Any]]
) -> None:
    token = {"access_token": "t0ken", "token_type": "Bearer", "expires_in": 3600}
    token["issued_token_type"] = "urn:ietf:params:oauth:token-type:access_token"
    with GcpSecretManager(certificate) as server:
        server.accepts = lambda authorization: authorization == "Bearer t0ken"
        server.add(f"{SECRETS}/db", VALUE.encode())
        options = {**federated(200, token), "ca_file": str(certificate.ca)}
        assert (await read(server, "db", **options)).value == VALUE
        server.accepts = lambda authorization: False
        said = await refused(server, "db", SecretDenied, **options)
    assert "GCP does not accept the credentials" in said


@pytest.mark.asyncio
async def test_credentials_that_give_no_token_are_denied_and_a_token_service_away_is_unavailable(
    certificate: Certificate, federated: Callable[..., dict[str, Any]], refusing: Refusing
) -> None:
    with GcpSecretManager(certificate) as server:
        ca = {"ca_file": str(certificate.ca)}
        bad = federated(400, {"error": "invalid_grant", "error_description": "the token has expired"})
        said = await refused(server, "db", SecretDenied, **bad, **ca)
        assert said.startswith("secret://gcp/db: the credentials give no token (")
        assert "the token has expired" in said
        said = await refused(server, "db", SecretUnavailable, **federated(0, {}, refusing.url), **ca)
        assert said.startswith("secret://gcp/db: there is no token, so Secret Manager was not asked (")
    assert server.calls == []


@pytest.mark.asyncio
async def test_what_is_not_set_up_is_told_with_what_to_set(
    gcp: GcpSecretManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no project is set: give `project`" in await refused(gcp, "db", ConfigError, project=None)
    secure = {"endpoint": "localhost:1"}
    said = await refused(gcp, "db", ConfigError, credentials_file=str(tmp_path / "none"), **secure)
    assert "credentials_file of the secrets provider gcp cannot be read" in said
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none"))
    said = await refused(gcp, "db", SecretDenied, **secure)
    assert said.startswith("secret://gcp/db: there are no usable credentials (")
    assert "gcloud auth application-default login" in said


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is no JSON object"),
        ("[]", "is no JSON object"),
        ('{"type": "authorized_user", "refresh_token": "s3cr3t"}', "is of the type 'authorized_user'"),
        ('{"type": "service_account", "private_key": "s3cr3t"}', "cannot be used as 'service_account'"),
        ('{"type": "external_account", "credential_source": {"executable": {}}}', "without a program to run"),
        (
            '{"type": "external_account", "credential_source": {"file": "s3cr3t"}}',
            "cannot be used as 'external_",
        ),
    ],
)
@pytest.mark.asyncio
async def test_a_file_that_gives_no_credentials_is_told_without_what_it_holds(
    content: str, says: str, gcp: GcpSecretManager, tmp_path: Path
) -> None:
    path = tmp_path / "account.json"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        await read(gcp, "db", credentials_file=str(path), endpoint="localhost:1")
    assert says in str(caught.value)
    assert "s3cr3t" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"project": ""}, "project must be a name"),
        ({"location": " "}, "location must be a name"),
        ({"endpoint": "ftp://x"}, "endpoint must look like"),
        ({"endpoint": "http://secretmanager.googleapis.com"}, "has no TLS"),
        ({"endpoint": "http://127.evil.example"}, "has no TLS"),
        ({"endpoint": "https://host/path"}, "endpoint must look like"),
        ({"endpoint": "host:port"}, "endpoint must look like"),
        ({"credentials_file": ""}, "credentials_file must be a name"),
        ({"timeout": -1.0}, "timeout must be a number of seconds"),
        ({"projct": "x"}, "did you mean 'project'"),
    ],
)
def test_a_wrong_option_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        plugins.make("agentrt.secrets", "gcp", options)


# ------------------------------------------------------------------------------------------------- its life
@pytest.mark.asyncio
async def test_no_value_is_in_a_log_at_any_level(
    gcp: GcpSecretManager, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As a user does who wants to see what Google's client does.
    google = logging.getLogger("google")
    monkeypatch.setattr(google, "propagate", True)
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "google")
    gcp.add(f"{SECRETS}/logged", VALUE.encode())
    assert (await read(gcp, "logged")).value == VALUE
    assert not [record for record in caplog.records if "response" in vars(record)]
    assert VALUE not in caplog.text + repr([vars(record) for record in caplog.records])


@pytest.mark.asyncio
async def test_a_reader_that_is_cancelled_leaves_the_client_usable(gcp: GcpSecretManager) -> None:
    gcp.add(f"{SECRETS}/slow", VALUE.encode())
    was_asked = partial(gcp.wait_for_calls, 1)
    await survives_a_cancelled_reader(provider(gcp), ref("slow"), gcp.hanging(), was_asked)


@pytest.mark.parametrize("closes", [True, False])
def test_two_event_loops_one_after_the_other_work(gcp: GcpSecretManager, closes: bool) -> None:
    gcp.add(f"{SECRETS}/loops", VALUE.encode())
    on_two_loops(provider(gcp), ref("loops"), closes=closes)


# ---------------------------------------------------------------------------------------------- in a runtime
@pytest.mark.asyncio
async def test_five_hundred_readers_of_what_the_configuration_leads_to_are_one_request(
    gcp: GcpSecretManager,
) -> None:
    stored = json.dumps({"user": "app", "password": VALUE})
    gcp.add(f"{SECRETS}/db", stored.encode())
    table = {"provider": "gcp", "project": "p", "endpoint": gcp.url}
    await agents_read(table, ("secret://gcp/db#password", VALUE), ("db", stored))
    assert len(gcp.calls) == 1
