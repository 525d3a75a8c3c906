"""How agentrt-vault comes by a token, from a real OpenBao: AppRole, wrapped secret_ids, JWT, Kubernetes, given ones."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agentrt_vault import AppRole, Jwt, Kubernetes, VaultSecrets
from servers.certificates import make_certificate
from servers.http_server import Answer, HttpServer, Request
from servers.openbao import OpenBao

from agentrt.config import Config
from agentrt.errors import ConfigError
from agentrt.runtime import Runtime
from agentrt.secrets import SecretDenied
from agentrt.testing.plain_host import PlainHost
from plugins.vault import Signer, approle, data_of, opened, ref

pytestmark = pytest.mark.asyncio

SECRET_ID = "secret://env/SECRET_ID"


@pytest.fixture
def name(openbao: OpenBao) -> str:
    name = f"app/{secrets.token_hex(4)}"
    openbao.write(name, {"value": "for-who-may"})
    return name


@pytest.fixture
def policy(openbao: OpenBao, name: str) -> str:
    """May read the secret `name`, and only that."""
    return openbao.policy({f"secret/data/{name}": ["read"]})


# --- AppRole -------------------------------------------------------------------------------------------------


async def test_approle_logs_in_when_something_is_read_and_its_token_is_gone_at_the_end(
    openbao: OpenBao, name: str, policy: str
) -> None:
    mount, role_id, secret_id = approle(openbao, token_policies=policy)
    before = set(openbao.tokens())
    settings = AppRole(role_id=role_id, secret_id=SECRET_ID, mount=mount)
    async with opened(openbao, approle=settings, secrets={SECRET_ID: secret_id}) as vault:
        assert set(openbao.tokens()) == before
        for _ in range(3):
            assert data_of(await vault.get(ref(name))) == {"value": "for-who-may"}
        assert len(set(openbao.tokens()) - before) == 1
    assert set(openbao.tokens()) == before


async def test_a_secret_id_may_stand_in_a_file_that_is_read_at_each_login(
    openbao: OpenBao, name: str, policy: str, tmp_path: Path
) -> None:
    mount, role_id, secret_id = approle(openbao, token_policies=policy)
    file = tmp_path / "secret-id"
    settings = AppRole(role_id=role_id, secret_id_file=str(file), mount=mount)
    async with opened(openbao, approle=settings) as vault:
        with pytest.raises(SecretDenied, match=r"secret_id_file: .*/secret-id cannot be read: No such file"):
            await vault.get(ref(name))
        file.write_text(f"{secret_id}\n")
        assert data_of(await vault.get(ref(name))) == {"value": "for-who-may"}


async def test_a_role_may_want_no_secret_id(openbao: OpenBao, name: str, policy: str) -> None:
    bound = {"bind_secret_id": False, "secret_id_bound_cidrs": ["127.0.0.1/32"]}
    mount = openbao.mount("approle", auth=True)
    openbao.do("POST", f"auth/{mount}/role/app", {**bound, "token_policies": policy})
    role_id = openbao.do("GET", f"auth/{mount}/role/app/role-id")["data"]["role_id"]
    async with opened(openbao, approle=AppRole(role_id=role_id, mount=mount)) as vault:
        assert data_of(await vault.get(ref(name))) == {"value": "for-who-may"}


async def test_a_login_that_is_refused_is_denied_and_shows_nothing(openbao: OpenBao, name: str) -> None:
    mount, role_id, _ = approle(openbao)
    wrong = "0aaaaaaa-wrong-secret-id"
    settings = AppRole(role_id=role_id, secret_id=SECRET_ID, mount=mount)
    async with opened(openbao, approle=settings, secrets={SECRET_ID: wrong}) as vault:
        with pytest.raises(
            SecretDenied, match=f"refused the login at auth/{mount}/login: .*role_id and"
        ) as denied:
            await vault.get(ref(name))
    assert wrong not in str(denied.value)
    assert role_id not in str(denied.value)


async def test_a_method_that_is_not_there_is_told(openbao: OpenBao, name: str) -> None:
    settings = AppRole(role_id="x", secret_id=SECRET_ID, mount="nowhere")
    async with opened(openbao, approle=settings, secrets={SECRET_ID: "y"}) as vault:
        with pytest.raises(
            SecretDenied, match=r"login at auth/nowhere/login: .*: check `mount`, `namespace`, role_id"
        ):
            await vault.get(ref(name))


@pytest.mark.parametrize("first", ["secret://vault/approle#id", "secret://vault/app/db"])
@pytest.mark.parametrize("default", ["env", "vault"])
async def test_a_secret_id_that_is_kept_in_the_vault_it_opens_is_refused_at_once(
    openbao: OpenBao, first: str, default: str
) -> None:
    login = {"role_id": "x", "secret_id": "secret://vault/approle#id"}
    providers = {"vault": {"url": openbao.url, "approle": login}}
    async with Runtime(Config({"secrets": {"provider": default, "providers": providers}})) as runtime:
        async with asyncio.timeout(30):
            with pytest.raises(ConfigError, match="is kept in that same Vault, which opens only with it"):
                await runtime.secrets.get(first)


async def test_a_default_provider_that_opens_with_one_of_its_own_is_refused(openbao: OpenBao) -> None:
    login = {"role_id": "x", "secret_id": "secret://SECRET_ID"}
    providers = {"vault": {"url": openbao.url, "approle": login}}
    async with Runtime(Config({"secrets": {"provider": "vault", "providers": providers}})) as runtime:
        async with asyncio.timeout(30):
            with pytest.raises(ConfigError, match="is kept in that same Vault, which opens only with it"):
                await runtime.secrets.get("secret://vault/app/db")


async def test_a_secret_id_that_is_not_there_is_no_secret_that_was_not_found(
    openbao: OpenBao, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SECRET_ID", raising=False)
    login = {"role_id": "x", "secret_id": SECRET_ID}
    providers = {"vault": {"url": openbao.url, "approle": login}}
    async with Runtime(Config({"secrets": {"providers": providers}})) as runtime:
        with pytest.raises(
            SecretDenied, match="secret_id = secret://env/SECRET_ID: the environment variable"
        ):
            await runtime.secrets.get("secret://vault/app/db")


async def test_a_reference_needs_a_runtime(openbao: OpenBao) -> None:
    vault = VaultSecrets(url=openbao.url, approle=AppRole(role_id="x", secret_id=SECRET_ID))
    with pytest.raises(
        ConfigError, match="secret_id is the reference secret://env/SECRET_ID, and only a runtime"
    ):
        await vault.get(ref("app/db"))
    await vault.aclose()


class Rotating(PlainHost):
    """Leads to `later` after what it gave was refused."""

    def __init__(self, reference: str, given: str, later: str) -> None:
        super().__init__({reference: given})
        self.later = {reference: later}
        self.refused: list[str] = []

    async def secret_rejected(self, reference: str, value: str, /) -> str:
        self.refused.append(value)
        return self.later[reference]


async def test_a_secret_id_that_was_rotated_is_taken_when_the_old_one_is_refused(
    openbao: OpenBao, name: str, policy: str
) -> None:
    mount, role_id, secret_id = approle(openbao, token_policies=policy)
    for later, works in ((f"{secret_id}\n", True), ("a-wrong-one\n", False)):
        host = Rotating(SECRET_ID, "a-wrong-one\n", later)
        settings = AppRole(role_id=role_id, secret_id=SECRET_ID, mount=mount)
        async with opened(openbao, approle=settings) as vault:
            await vault.open(host)
            if works:
                assert data_of(await vault.get(ref(name))) == {"value": "for-who-may"}
            else:
                with pytest.raises(SecretDenied, match=f"^secret://vault/{name}: .* refused the login at"):
                    await vault.get(ref(name))
        assert host.refused == ["a-wrong-one\n"]  # as it was given, or nobody would know it again


async def test_a_new_wrapping_token_is_taken_when_the_old_one_is_used_up(
    openbao: OpenBao, name: str, policy: str
) -> None:
    mount, role_id, _ = approle(openbao, token_policies=policy)
    used = _wrapped(openbao, mount)
    openbao.ask("POST", "sys/wrapping/unwrap", token=used)
    host = Rotating(SECRET_ID, used, _wrapped(openbao, mount))
    settings = AppRole(role_id=role_id, secret_id=SECRET_ID, wrapped=True, mount=mount)
    async with opened(openbao, approle=settings) as vault:
        await vault.open(host)
        assert data_of(await vault.get(ref(name))) == {"value": "for-who-may"}
    assert host.refused == [used]


async def test_a_token_that_was_rotated_is_taken_when_the_old_one_is_refused(
    openbao: OpenBao, name: str, policy: str
) -> None:
    old, new = (
        openbao.do("POST", "auth/token/create", {"policies": [policy]})["auth"]["client_token"]
        for _ in range(2)
    )
    host = Rotating("secret://env/T", old, new)
    async with opened(openbao, token="secret://env/T") as vault:
        await vault.open(host)
        assert data_of(await vault.get(ref(name))) == {"value": "for-who-may"}
        assert host.refused == []
        openbao.do("POST", "auth/token/revoke", {"token": old})
        assert data_of(await vault.get(ref(name))) == {"value": "for-who-may"}
        assert host.refused == [old]


# --- wrapped secret_ids ----------------------------------------------------------------------------------------


def _wrapped(server: OpenBao, mount: str) -> str:
    token: str = server.do("POST", f"auth/{mount}/role/app/secret-id", {}, wrap="60s")["wrap_info"]["token"]
    return token


async def test_a_wrapped_secret_id_is_unwrapped_once_and_serves_later_logins(
    openbao: OpenBao, name: str, policy: str, tmp_path: Path
) -> None:
    mount, role_id, _ = approle(openbao, token_policies=policy)
    file = tmp_path / "wrapped"
    file.write_text(_wrapped(openbao, mount))
    settings = AppRole(role_id=role_id, secret_id_file=str(file), wrapped=True, mount=mount)
    async with opened(openbao, approle=settings) as vault:
        for _ in range(2):
            before = set(openbao.tokens())
            assert data_of(await vault.get(ref(name))) == {"value": "for-who-may"}
            (accessor,) = set(openbao.tokens()) - before
            openbao.do("POST", "auth/token/revoke-accessor", {"accessor": accessor})
        file.write_text(_wrapped(openbao, mount))  # a new one is unwrapped, too
        assert data_of(await vault.get(ref(name))) == {"value": "for-who-may"}
    assert openbao.ask("POST", "sys/wrapping/lookup", {"token": file.read_text()}).status == 400


async def test_a_wrapping_token_that_was_used_before_says_that_somebody_did(
    openbao: OpenBao, name: str, tmp_path: Path
) -> None:
    mount, role_id, _ = approle(openbao)
    wrapping = _wrapped(openbao, mount)
    openbao.ask("POST", "sys/wrapping/unwrap", token=wrapping)
    file = tmp_path / "wrapped"
    file.write_text(wrapping)
    settings = AppRole(role_id=role_id, secret_id_file=str(file), wrapped=True, mount=mount)
    async with opened(openbao, approle=settings) as vault:
        with pytest.raises(SecretDenied, match=r"has expired or was used before\. If none of your") as denied:
            await vault.get(ref(name))
    assert wrapping not in str(denied.value)


async def test_a_wrapped_secret_id_of_another_mount_is_not_used(
    openbao: OpenBao, name: str, tmp_path: Path
) -> None:
    mount, role_id, _ = approle(openbao)
    other, _, _ = approle(openbao)
    file = tmp_path / "wrapped"
    file.write_text(_wrapped(openbao, other))
    settings = AppRole(role_id=role_id, secret_id_file=str(file), wrapped=True, mount=mount)
    async with opened(openbao, approle=settings) as vault:
        with pytest.raises(SecretDenied, match=f"auth/{other}/role/app/secret-id', not by a secret-id of"):
            await vault.get(ref(name))


async def test_a_wrapping_token_that_was_exchanged_is_not_used(
    openbao: OpenBao, name: str, tmp_path: Path
) -> None:
    mount, role_id, _ = approle(openbao)
    other = openbao.do("POST", "sys/wrapping/wrap", {"secret_id": "of-an-attacker"}, wrap="60s")
    wrapping = other["wrap_info"]["token"]
    file = tmp_path / "wrapped"
    file.write_text(wrapping)
    settings = AppRole(role_id=role_id, secret_id_file=str(file), wrapped=True, mount=mount)
    async with opened(openbao, approle=settings) as vault:
        with pytest.raises(
            SecretDenied, match=r"was made by 'sys/wrapping/wrap', not .* somebody exchanged it"
        ):
            await vault.get(ref(name))
    assert openbao.ask("POST", "sys/wrapping/lookup", {"token": wrapping}).status == 200


async def test_in_a_namespace_a_wrapped_secret_id_is_known_as_what_it_is(
    openbao: OpenBao, tmp_path: Path
) -> None:
    inner = OpenBao()
    inner.ports, inner.namespace = openbao.ports, f"team{secrets.token_hex(4)}"
    openbao.do("POST", f"sys/namespaces/{inner.namespace}")
    inner.do("POST", "sys/mounts/secret", {"type": "kv", "options": {"version": "2"}})
    inner.write("db", {"value": "of-the-team"})
    policy = inner.policy({"secret/data/db": ["read"]})
    mount, role_id, _ = approle(inner, token_policies=policy)
    file = tmp_path / "wrapped"
    file.write_text(_wrapped(inner, mount))
    settings = AppRole(role_id=role_id, secret_id_file=str(file), wrapped=True, mount=mount)
    async with opened(openbao, namespace=inner.namespace, approle=settings) as vault:
        assert data_of(await vault.get(ref("db"))) == {"value": "of-the-team"}


# --- JWT and Kubernetes ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def signer() -> Signer:
    return Signer()


def _claims(**more: Any) -> dict[str, Any]:
    now = int(time.time())
    return {"iss": "tests", "sub": "agent", "aud": ["vault"], "iat": now, "exp": now + 600, **more}


async def test_a_signed_token_logs_in_and_one_of_another_key_does_not(
    openbao: OpenBao, name: str, policy: str, signer: Signer, tmp_path: Path
) -> None:
    mount = openbao.mount("jwt", auth=True)
    openbao.do(
        "POST", f"auth/{mount}/config", {"jwt_validation_pubkeys": [signer.public], "bound_issuer": "tests"}
    )
    role = {"role_type": "jwt", "user_claim": "sub", "bound_audiences": ["vault"], "token_policies": policy}
    openbao.do("POST", f"auth/{mount}/role/agent", role)
    file = tmp_path / "jwt"
    async with opened(openbao, jwt=Jwt(file=str(file), role="agent", mount=mount)) as vault:
        file.write_text(Signer().sign(_claims()))
        with pytest.raises(SecretDenied, match=f"refused the login at auth/{mount}/login") as denied:
            await vault.get(ref(name))
        assert file.read_text() not in str(denied.value)
        file.write_text(signer.sign(_claims(exp=int(time.time()) - 600)))
        with pytest.raises(SecretDenied, match="check the role and the token in"):
            await vault.get(ref(name))
        file.write_text(signer.sign(_claims()) + "\n")
        assert data_of(await vault.get(ref(name))) == {"value": "for-who-may"}


class ApiServer(HttpServer):
    """As much of Kubernetes as reviews the tokens of service accounts: it knows those that `signer` signed."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[str, str] = {}  # account by token
        self.reviewers: list[str] = []

    def respond(self, request: Request) -> Answer:
        if (request.method, request.path) != ("POST", "/apis/authentication.k8s.io/v1/tokenreviews"):
            return Answer(404)
        self.reviewers.append(request.headers["authorization"])
        review = json.loads(request.body)
        account = self.known.get(review["spec"]["token"])
        review["status"] = {"authenticated": False, "error": "unknown"}
        if account is not None:
            groups = ["system:serviceaccounts", "system:authenticated"]
            user = {"username": f"system:serviceaccount:{account}", "uid": "uid-1", "groups": groups}
            review["status"] = {"authenticated": True, "user": user, "audiences": ["vault"]}
        return Answer(201, json.dumps(review).encode(), {"Content-Type": "application/json"})


@pytest.fixture
def kubernetes() -> Iterator[ApiServer]:
    with ApiServer() as server:
        yield server


async def test_a_pod_logs_in_by_its_service_account(
    openbao: OpenBao, name: str, policy: str, signer: Signer, kubernetes: ApiServer, tmp_path: Path
) -> None:
    mount = openbao.mount("kubernetes", auth=True)
    reviewer = signer.sign(_claims(sub="system:serviceaccount:vault:reviewer"))
    settings = {
        "kubernetes_host": kubernetes.url,
        "token_reviewer_jwt": reviewer,
        "disable_local_ca_jwt": True,
    }
    authority = make_certificate(tmp_path).chain.decode()  # it insists on one, http or not
    openbao.do(
        "POST",
        f"auth/{mount}/config",
        {**settings, "kubernetes_ca_cert": authority, "disable_iss_validation": True},
    )
    bound = {"bound_service_account_names": ["agent"], "bound_service_account_namespaces": ["prod"]}
    openbao.do("POST", f"auth/{mount}/role/agent", {**bound, "token_policies": policy})
    account = {"namespace": "prod", "serviceaccount": {"name": "agent", "uid": "uid-1"}}
    file = tmp_path / "token"
    async with opened(openbao, kubernetes=Kubernetes(role="agent", file=str(file), mount=mount)) as vault:
        file.write_text(signer.sign(_claims(**{"kubernetes.io": account})))
        with pytest.raises(SecretDenied, match=f"refused the login at auth/{mount}/login"):
            await vault.get(ref(name))
        kubernetes.known[file.read_text()] = "prod:agent"
        assert data_of(await vault.get(ref(name))) == {"value": "for-who-may"}
    assert set(kubernetes.reviewers) == {f"Bearer {reviewer}"}


# --- a token that is given -----------------------------------------------------------------------------------------


@pytest.fixture
def child(openbao: OpenBao, policy: str) -> str:
    token: str = openbao.do("POST", "auth/token/create", {"policies": [policy]})["auth"]["client_token"]
    return token


async def test_a_given_token_is_used_and_stays(openbao: OpenBao, name: str, child: str) -> None:
    async with opened(openbao, token=child) as vault:
        assert data_of(await vault.get(ref(name))) == {"value": "for-who-may"}
        assert child not in repr(vault)
        assert child not in repr(vault._session._token)
    assert openbao.ask("GET", "auth/token/lookup-self", token=child).status == 200


async def test_a_token_may_be_a_reference(openbao: OpenBao, name: str, child: str) -> None:
    given = {"secret://env/T": f"{child}\n"}
    async with opened(openbao, token="secret://env/T", secrets=given) as vault:
        assert data_of(await vault.get(ref(name))) == {"value": "for-who-may"}


@pytest.mark.parametrize("vendor", ["VAULT", "BAO"])
async def test_address_and_token_may_come_from_the_environment(
    openbao: OpenBao, name: str, child: str, vendor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"{vendor}_ADDR", openbao.url)
    monkeypatch.setenv(f"{vendor}_TOKEN", child)
    vault = VaultSecrets()
    assert data_of(await vault.get(ref(name))) == {"value": "for-who-may"}
    await vault.aclose()


async def test_a_token_file_is_read_anew_when_its_token_is_not_known_any_more(
    openbao: OpenBao, name: str, policy: str, child: str, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(child)
    async with opened(openbao, token_file=str(file)) as vault:
        assert data_of(await vault.get(ref(name))) == {"value": "for-who-may"}
        openbao.do("POST", "auth/token/revoke", {"token": child})
        with pytest.raises(SecretDenied, match="or it is not valid any more: give another one"):
            await vault.get(ref(name))
        again = openbao.do("POST", "auth/token/create", {"policies": [policy]})["auth"]["client_token"]
        file.write_text(again)
        assert data_of(await vault.get(ref(name))) == {"value": "for-who-may"}


@pytest.mark.parametrize("found", ["", "two words", "tökén", "line\nline"])
async def test_a_file_that_holds_no_token_is_told_without_its_text(
    openbao: OpenBao, tmp_path: Path, found: str
) -> None:
    file = tmp_path / "token"
    file.write_text(found, encoding="utf-8")
    async with opened(openbao, token_file=str(file)) as vault:
        with pytest.raises(
            SecretDenied, match="token: what was found there is empty, or holds blanks"
        ) as denied:
            await vault.get(ref("app/db"))
    assert not found or found not in str(denied.value)


async def test_a_file_that_is_no_text_is_told_without_its_bytes(openbao: OpenBao, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_bytes(b"\xff\xfehidden")
    async with opened(openbao, token_file=str(file)) as vault:
        with pytest.raises(SecretDenied, match="cannot be read: it is not text") as denied:
            await vault.get(ref("app/db"))
    error: BaseException | None = denied.value
    while error is not None:
        assert not isinstance(error, UnicodeDecodeError)
        error = error.__cause__ or error.__context__
