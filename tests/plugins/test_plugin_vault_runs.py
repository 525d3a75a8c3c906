"""Runs whose secrets come from a real OpenBao by a login of ours: read, renewed, replaced, given back at the end."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from servers.openbao import OpenBao
from servers.postgres import Database

from agentrt.config import Config
from agentrt.context import Context
from agentrt.runtime import Runtime
from agentrt.secrets import Secret, SecretDenied, SecretUnavailable
from plugins.held_up import again_if_held_up
from plugins.secret_readers import Crowd, Reader
from plugins.test_plugin_vault_leases import logs_in
from plugins.vault import Front, account_role, approle

pytestmark = pytest.mark.asyncio

SECRET_ID = "VAULT_SECRET_ID_OF_THE_TESTS"


@pytest.fixture
def front(openbao: OpenBao) -> Iterator[Front]:
    with Front(openbao) as front:
        yield front


def config(
    front: Front, monkeypatch: pytest.MonkeyPatch, rules: dict[str, list[str]], **more: Any
) -> dict[str, Any]:
    """A configuration whose provider `vault` logs in by AppRole; the secret_id comes from the environment."""
    settings = {name: more.pop(name) for name in list(more) if name.startswith("token_")}
    policy = front.server.policy({"sys/leases/revoke": ["update"], **rules})
    mount, role_id, secret_id = approle(front.server, token_policies=policy, **settings)
    monkeypatch.setenv(SECRET_ID, secret_id)
    login = {"role_id": role_id, "secret_id": f"secret://env/{SECRET_ID}", "mount": mount}
    return {"secrets": {"providers": {"vault": {"url": front.url, "approle": login, **more}}}}


async def test_five_hundred_readers_cost_one_login_and_one_read(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"app/{secrets.token_hex(4)}"
    front.server.write(name, {"username": "app", "password": "password-of-the-app"})
    before = set(front.server.tokens())
    async with Runtime(Config(config(front, monkeypatch, {f"secret/data/{name}": ["read"]}))) as runtime:
        result = await runtime.run(Crowd(), f"secret://vault/{name}#password")
        assert result.text == f"500 readers got {len('password-of-the-app')} characters"
        assert (
            await runtime.run(Reader(), f"secret://vault/{name}#username")
        ).text == "1 readers got 3 characters"
        assert (front.count("/login"), front.count(f"/data/{name}")) == (1, 1)
    assert set(front.server.tokens()) == before


async def until(true: Callable[[], bool], problem: str) -> None:
    """Fails with `problem` if `true` does not become so within 40 s."""
    ends = asyncio.get_running_loop().time() + 40
    while not true():
        assert asyncio.get_running_loop().time() < ends, problem
        await asyncio.sleep(0.02)


class Accountant:
    """Logs in to the database with the account that it was given, and leaves it behind."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.account: dict[str, str] = {}

    async def run(self, message: str, ctx: Context) -> str:
        names = ("username", "password")
        self.account = {name: await ctx.secret(f"{message}#{name}") for name in names}
        return "in" if await logs_in(self.database, self.account) else "out"


async def test_the_account_of_a_run_is_gone_when_the_runtime_has_closed(
    front: Front, postgres: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount, role = account_role(front.server, postgres)
    tables = config(front, monkeypatch, {f"{mount}/creds/{role}": ["read"]}, dynamic=[mount])
    accountant = Accountant(postgres)
    async with Runtime(Config(tables)) as runtime:
        for _ in range(2):
            assert (await runtime.run(accountant, f"secret://vault/{mount}/creds/{role}")).text == "in"
        assert front.count(f"/creds/{role}") == 1  # one account for all that the runtime runs
        assert await logs_in(postgres, accountant.account)
    assert not await logs_in(postgres, accountant.account)
    # Each lease by itself, then our token.
    assert (front.count("/sys/leases/revoke"), front.count("/revoke-self")) == (1, 1)
    assert (
        json.loads(next(r.body for r in front.requests if r.path.endswith("/sys/leases/revoke")))["sync"]
        is True
    )


@again_if_held_up
async def test_a_lease_is_renewed_unasked_and_replaced_before_its_last_day(
    front: Front, postgres: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount, role = account_role(front.server, postgres, ttl="3s", max_ttl="5s")
    tables = config(front, monkeypatch, {f"{mount}/creds/{role}": ["read"]}, dynamic=[mount])
    reference = f"secret://vault/{mount}/creds/{role}"
    seen: list[Secret] = []
    async with Runtime(Config(tables)) as runtime:
        runtime.secrets.on_rotate(reference, seen.append)
        first = json.loads((await runtime.secrets.get(reference)).reveal())
        await until(
            lambda: front.count("/sys/leases/renew") > 0, "the lease is not renewed, for nobody asked"
        )
        assert not seen
        await until(lambda: bool(seen), "no other account came in place of the first")
        assert await logs_in(postgres, first)  # it lasts a while longer, so that who uses it can change
        second = json.loads((await runtime.secrets.get(reference)).reveal())
        assert second["username"] != first["username"]
        assert await logs_in(postgres, second)
        assert front.count("/login") == 1
    for account in (first, second):
        assert not await logs_in(postgres, account)


async def test_an_outage_serves_what_is_kept_and_a_denial_does_not(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"app/{secrets.token_hex(4)}"
    front.server.write(name, {"value": "kept-for-an-outage"})
    tables = config(front, monkeypatch, {f"secret/data/{name}": ["read"]})
    tables["secrets"]["cache"] = {"ttl": 0.2, "jitter": 0.0}
    tables["pipeline"] = {"secret": {"retry": {"max_attempts": 1}}}
    reference = f"secret://vault/{name}#value"
    async with Runtime(Config(tables)) as runtime:
        assert (await runtime.secrets.get(reference)).reveal() == "kept-for-an-outage"
        front.die()
        await asyncio.sleep(0.3)
        assert (await runtime.secrets.get(reference)).reveal() == "kept-for-an-outage"
        with pytest.raises(SecretUnavailable, match="cannot be reached"):
            await runtime.secrets.refresh(reference)
        front.revive()
        front.server.policy({"none": ["read"]}, name=_policy_of(front))
        with pytest.raises(SecretDenied):
            await runtime.secrets.refresh(reference)
        with pytest.raises(SecretDenied):
            await runtime.secrets.get(reference)


async def test_no_span_and_no_log_line_of_a_run_has_what_was_secret(
    front: Front, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"app/{secrets.token_hex(4)}"
    front.server.write(name, {"value": "a-value-for-no-span"})
    tables = config(front, monkeypatch, {f"secret/data/{name}": ["read"]})
    tables["telemetry"] = {"file": {"path": str(tmp_path / "telemetry.jsonl")}}
    async with Runtime(Config(tables)) as runtime:
        await runtime.run(Reader(), f"secret://vault/{name}#value")
        with pytest.raises(SecretDenied) as denied:
            await runtime.run(Reader(), "secret://vault/app/denied")
    told = (tmp_path / "telemetry.jsonl").read_text()
    told += caplog.text + "".join(traceback.format_exception(denied.value))
    assert '"type":"span"' in told
    assert "denies GET secret/data/app/denied" in told
    tokens = {request.headers.get("x-vault-token") for request in front.requests} - {None}
    assert tokens
    for hidden in (*tokens, os.environ[SECRET_ID], "a-value-for-no-span"):
        assert hidden is not None
        assert hidden not in told


def _policy_of(front: Front) -> str:
    """The policy of the token that was used last."""
    token = [
        request.headers["x-vault-token"] for request in front.requests if "x-vault-token" in request.headers
    ][-1]
    policies = front.server.ask("GET", "auth/token/lookup-self", token=token).json()["data"]["policies"]
    (name,) = [policy for policy in policies if policy != "default"]
    return str(name)
