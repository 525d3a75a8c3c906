"""Accounts that a real OpenBao makes in a real Postgres: who may log in there, until when, and not any more."""

from __future__ import annotations

import asyncio
import secrets
from datetime import datetime
from typing import Any

import psycopg
import pytest
from agentrt_vault import AppRole, VaultSecrets
from servers.openbao import OpenBao
from servers.postgres import Database

from agentrt.secrets import SecretDenied, SecretInvalid, SecretNotFound, SecretUnavailable, SecretValue
from agentrt.secrets.json_key import inside
from plugins.held_up import again_if_held_up
from plugins.vault import account_role, approle, data_of, opened, ref

pytestmark = pytest.mark.asyncio


async def logs_in(database: Database, account: dict[str, str]) -> bool:
    """Whether Postgres lets in who comes with this account."""

    def connect() -> bool:
        url = database.url_of(account["username"], account["password"])
        try:
            with psycopg.connect(url, connect_timeout=5) as connection:
                row = connection.execute("SELECT current_user").fetchone()
                return row == (account["username"],)
        except psycopg.OperationalError as error:
            # The second, if the account goes between its password and the session.
            refusals = ("password authentication failed", f'role "{account["username"]}" does not exist')
            if not any(refusal in str(error) for refusal in refusals):
                raise
            return False

    return await asyncio.to_thread(connect)


async def gone(database: Database, account: dict[str, str]) -> None:
    """Waits until the account cannot log in any more: a token's end takes its leases along after a moment."""
    ends = asyncio.get_running_loop().time() + 40
    while await logs_in(database, account):
        assert asyncio.get_running_loop().time() < ends, "the account is still there after 40 s"
        await asyncio.sleep(0.1)


def valid_until(database: Database, account: dict[str, str]) -> datetime:
    moment: datetime = database.execute(
        "SELECT rolvaliduntil FROM pg_roles WHERE rolname = %s", [account["username"]]
    )[0][0]
    return moment


def leases(server: OpenBao, mount: str, role: str) -> list[str]:
    reply = server.ask("LIST", f"sys/leases/lookup/{mount}/creds/{role}")
    if reply.status == 404:
        return []
    keys: list[str] = reply.json()["data"]["keys"]
    return keys


def no_leases(server: OpenBao, mount: str, role: str) -> bool:
    return not leases(server, mount, role)


def lost_by_the_server(server: OpenBao, mount: str) -> int:
    """Leases that it made, could not note down, and could not take back either, as it says."""
    return server.output(limit=1_000_000).count(f"failed to register lease: request_path={mount}/")


# --- an account and its lease -----------------------------------------------------------------------------------


async def test_an_account_is_made_for_who_asks_and_works(openbao: OpenBao, postgres: Database) -> None:
    mount, role = account_role(openbao, postgres)
    async with opened(openbao, dynamic=[mount]) as vault:
        one = await vault.get(ref(f"{mount}/creds/{role}"))
        two = await vault.get(ref(f"{mount}/creds/{role}"))
        assert (one.ttl, one.renewable, one.version) == (3600.0, True, None)
        assert one.lease is not None
        assert one.lease.startswith(f"{mount}/creds/{role}/")
        assert one.lease != two.lease
        account = data_of(one)
        assert inside(one.value, ref(f"{mount}/creds/{role}#username")) == account["username"]
        assert account["username"] != data_of(two)["username"]
        assert await logs_in(postgres, account)
        assert account["password"] not in repr(one)
        for value in (one, two):
            await vault.revoke(value)


async def test_a_renewed_lease_is_renewed_in_the_database(openbao: OpenBao, postgres: Database) -> None:
    mount, role = account_role(openbao, postgres, ttl="60s")
    async with opened(openbao, dynamic=[mount]) as vault:
        found = await vault.get(ref(f"{mount}/creds/{role}"))
        before = valid_until(postgres, data_of(found))
        await asyncio.sleep(1.1)
        renewed = await vault.renew(found)
        assert (renewed.value, renewed.lease, renewed.renewable) == (found.value, found.lease, True)
        assert renewed.ttl == 60.0
        assert valid_until(postgres, data_of(found)) > before
        await vault.revoke(renewed)


async def test_a_revoked_account_cannot_log_in_any_more(openbao: OpenBao, postgres: Database) -> None:
    mount, role = account_role(openbao, postgres)
    async with opened(openbao, dynamic=[mount]) as vault:
        found = await vault.get(ref(f"{mount}/creds/{role}"))
        assert await logs_in(postgres, data_of(found))
        await vault.revoke(found)
        assert not await logs_in(postgres, data_of(found))
        await vault.revoke(found)  # it had ended: no matter
        with pytest.raises(
            SecretNotFound, match=r"does not renew the lease \(lease not found\): it has ended"
        ):
            await vault.renew(found)


@again_if_held_up
async def test_a_lease_near_its_last_day_is_not_renewed_but_taken_anew(
    openbao: OpenBao, postgres: Database
) -> None:
    mount, role = account_role(openbao, postgres, ttl="4s", max_ttl="6s")
    clock = asyncio.get_running_loop().time
    async with opened(openbao, dynamic=[mount]) as vault:
        found, began = await vault.get(ref(f"{mount}/creds/{role}")), clock()
        renewed = 0

        async def renew_on_and_on() -> None:
            nonlocal renewed
            while clock() - began < 6.0:
                await asyncio.sleep(0.2)
                assert (await vault.renew(found)).lease == found.lease
                renewed += 1

        with pytest.raises(SecretInvalid, match=r"renews the lease for \d s only, of 4: its max_ttl"):
            await renew_on_and_on()
        assert renewed > 2
        assert await logs_in(postgres, data_of(found))  # there is time to take another one
        again = await vault.get(ref(f"{mount}/creds/{role}"))
        assert again.ttl == 4.0
        await vault.revoke(again)


async def test_a_value_without_a_lease_is_neither_renewed_nor_revoked(openbao: OpenBao) -> None:
    async with opened(openbao) as vault:
        with pytest.raises(SecretInvalid, match="a value without a lease cannot be renewed"):
            await vault.renew(SecretValue("x"))
        await vault.revoke(SecretValue("x"))


async def test_a_static_account_says_when_its_password_changes(openbao: OpenBao, postgres: Database) -> None:
    mount, _ = account_role(openbao, postgres)
    user = f"static{secrets.token_hex(4)}"
    postgres.execute(f"CREATE ROLE {user} LOGIN PASSWORD 'before'")
    role = {"db_name": "pg", "username": user, "rotation_period": "1h"}
    openbao.do("POST", f"{mount}/static-roles/fixed", role)
    async with opened(openbao, dynamic=[mount]) as vault:
        found = await vault.get(ref(f"{mount}/static-creds/fixed"))
        assert (found.lease, found.renewable) == (None, False)
        assert found.ttl is not None
        assert 3590 <= found.ttl <= 3600
        assert await logs_in(postgres, data_of(found))
        openbao.do("POST", f"{mount}/rotate-role/fixed")
        assert not await logs_in(postgres, data_of(found))
        assert await logs_in(postgres, data_of(await vault.get(ref(f"{mount}/static-creds/fixed"))))
        assert await vault.list(f"{mount}/static-creds/") == [f"{mount}/static-creds/fixed"]


# --- our token and its leases --------------------------------------------------------------------------------------


def by_approle(server: OpenBao, mount: str, rules: dict[str, list[str]], **settings: Any) -> Any:
    policy = server.policy({f"{mount}/creds/*": ["read"], **rules})
    at, role_id, secret_id = approle(server, token_policies=policy, **settings)
    role = AppRole(role_id=role_id, secret_id="secret://env/S", mount=at)
    return opened(server, approle=role, secrets={"secret://env/S": secret_id}, dynamic=[mount])


async def test_the_end_of_our_token_is_the_end_of_its_accounts(openbao: OpenBao, postgres: Database) -> None:
    """So what a crash of the manager left is cleared away with the login."""
    mount, role = account_role(openbao, postgres)
    async with by_approle(openbao, mount, {}) as vault:
        found = await vault.get(ref(f"{mount}/creds/{role}"))
        assert await logs_in(postgres, data_of(found))
    await gone(postgres, data_of(found))
    assert no_leases(openbao, mount, role)


@again_if_held_up
async def test_a_lease_is_said_to_last_no_longer_than_our_token(openbao: OpenBao, postgres: Database) -> None:
    mount, role = account_role(openbao, postgres, ttl="1h")
    async with by_approle(openbao, mount, {}, token_ttl="60s") as vault:
        found = await vault.get(ref(f"{mount}/creds/{role}"))
        assert found.ttl is not None
        assert 55 < found.ttl <= 60
        await asyncio.sleep(1.2)
        renewed = await vault.renew(found)  # the token first
        assert renewed.ttl is not None
        assert renewed.ttl > 59


@again_if_held_up
async def test_where_our_token_comes_to_its_last_day_its_leases_are_taken_anew(
    openbao: OpenBao, postgres: Database
) -> None:
    mount, role = account_role(openbao, postgres, ttl="1h")
    async with by_approle(openbao, mount, {}, token_ttl="9s", token_max_ttl="9s") as vault:
        found = await vault.get(ref(f"{mount}/creds/{role}"))
        await asyncio.sleep(6.1)  # the manager comes after two thirds
        with pytest.raises(SecretInvalid, match=r"our token was replaced, .* get the secret again"):
            await vault.renew(found)
        again = await vault.get(ref(f"{mount}/creds/{role}"))
        assert again.ttl is not None
        assert again.ttl > 4
        await gone(postgres, data_of(found))  # with the first token
        assert await logs_in(postgres, data_of(again))


async def test_a_denial_does_not_part_a_given_token_from_its_leases(
    openbao: OpenBao, postgres: Database
) -> None:
    """A token that may not look itself up is given once more when something is denied, and is the same one."""
    mount, role = account_role(openbao, postgres)
    policy = openbao.policy({f"{mount}/creds/*": ["read"], "sys/leases/renew": ["update"]})
    made = openbao.do("POST", "auth/token/create", {"policies": [policy], "no_default_policy": True})
    async with opened(openbao, token=made["auth"]["client_token"], dynamic=[mount]) as vault:
        found = await vault.get(ref(f"{mount}/creds/{role}"))
        with pytest.raises(SecretDenied):
            await vault.get(ref("app/other"))
        assert (await vault.renew(found)).lease == found.lease
    openbao.do("POST", "auth/token/revoke", {"token": made["auth"]["client_token"]})


async def test_revoking_needs_a_policy_and_says_so(openbao: OpenBao, postgres: Database) -> None:
    mount, role = account_role(openbao, postgres)
    async with by_approle(openbao, mount, {}) as vault:
        found = await vault.get(ref(f"{mount}/creds/{role}"))
        with pytest.raises(
            SecretDenied, match=r"denies PUT sys/leases/revoke .* a policy of our token must allow it"
        ):
            await vault.revoke(found)
    async with by_approle(openbao, mount, {"sys/leases/revoke": ["update"]}) as vault:
        found = await vault.get(ref(f"{mount}/creds/{role}"))
        await vault.revoke(found)
        assert not await logs_in(postgres, data_of(found))


# --- what goes wrong -------------------------------------------------------------------------------------------


async def test_a_role_that_is_not_there_is_not_found(openbao: OpenBao, postgres: Database) -> None:
    mount, role = account_role(openbao, postgres)
    async with opened(openbao, dynamic=[mount, "nowhere"]) as vault:
        with pytest.raises(SecretNotFound, match=f"has no {mount}/creds/none: unknown role: none"):
            await vault.get(ref(f"{mount}/creds/none"))
        with pytest.raises(SecretNotFound, match="has no nowhere/creds/app: no handler for route"):
            await vault.get(ref("nowhere/creds/app"))
        with pytest.raises(SecretInvalid, match="credentials that an engine makes have no versions"):
            await vault.get(ref(f"{mount}/creds/{role}?version=1"))
        assert await vault.list(f"{mount}/creds/") == [f"{mount}/creds/{role}"]
        assert await vault.list(f"{mount}/creds/none") == []


async def test_a_database_that_is_down_is_unavailable_and_its_password_not_shown(
    openbao: OpenBao, postgres: Database
) -> None:
    mount, role = account_role(openbao, postgres)
    admin = f"other{secrets.token_hex(4)}"
    postgres.execute(f"CREATE ROLE {admin} SUPERUSER LOGIN PASSWORD 'password-of-the-engine'")
    place = f"{postgres.server.host}:{postgres.server.port}/{postgres.name}"
    url = f"postgresql://{{{{username}}}}:{{{{password}}}}@{place}"
    engine = {"plugin_name": "postgresql-database-plugin", "allowed_roles": "*", "connection_url": url}
    openbao.do(
        "POST", f"{mount}/config/pg", {**engine, "username": admin, "password": "password-of-the-engine"}
    )
    postgres.execute(f"ALTER ROLE {admin} NOLOGIN")
    postgres.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [admin])
    async with opened(openbao, dynamic=[mount]) as vault:
        with pytest.raises(SecretUnavailable) as failed:
            await vault.get(ref(f"{mount}/creds/{role}"))
    assert "password-of-the-engine" not in str(failed.value)
    postgres.execute(f"DROP ROLE {admin}")


async def test_a_read_that_is_cancelled_leaves_the_provider_well(
    openbao: OpenBao, postgres: Database
) -> None:
    mount, role = account_role(openbao, postgres)
    async with by_approle(openbao, mount, {"sys/leases/revoke": ["update"]}) as vault:

        async def life(vault: VaultSecrets) -> None:
            found = await vault.get(ref(f"{mount}/creds/{role}"))
            renewed = await vault.renew(found)
            await vault.revoke(renewed)

        for pause in (0.0, 0.002, 0.005, 0.01, 0.02, 0.03):
            task = asyncio.create_task(life(vault))
            await asyncio.sleep(pause)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled() or task.exception() is None
        await life(vault)
    # Those of whom nobody heard end with our token, after a moment; but not what the server itself lost sight of, when
    # the request went away while it was writing. (Who reads through a manager never cuts a request short.)
    ends = asyncio.get_running_loop().time() + 40
    while len(leases(openbao, mount, role)) > lost_by_the_server(openbao, mount):
        assert asyncio.get_running_loop().time() < ends, "there is a lease after 40 s"
        await asyncio.sleep(0.1)
