"""The life of our tokens at a real OpenBao: one login for all, renewal, expiry, revocation, and what a 403 means."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from agentrt_vault import AppRole, VaultSecrets
from servers.http_server import Answer
from servers.openbao import OpenBao

from agentrt.secrets import SecretDenied, SecretUnavailable
from plugins.held_up import again_if_held_up
from plugins.vault import Front, approle, data_of, opened, ref

pytestmark = pytest.mark.asyncio

SECRET_ID = "secret://env/SECRET_ID"
LOGIN, RENEW, LOOKUP, REVOKE = "/login", "/renew-self", "/lookup-self", "/revoke-self"


@pytest.fixture
def name(openbao: OpenBao) -> str:
    name = f"app/{secrets.token_hex(4)}"
    openbao.write(name, {"value": "for-who-may"})
    return name


@pytest.fixture
def policy(openbao: OpenBao, name: str) -> str:
    return openbao.policy({f"secret/data/{name}": ["read"]})


@pytest.fixture
def front(openbao: OpenBao) -> Iterator[Front]:
    with Front(openbao) as front:
        yield front


def by_approle(front: Front, **settings: Any) -> AbstractAsyncContextManager[VaultSecrets]:
    """A provider that logs in by a role of these settings, through `front`."""
    mount, role_id, secret_id = approle(front.server, **settings)
    role = AppRole(role_id=role_id, secret_id=SECRET_ID, mount=mount)
    return opened(front.server, url=front.url, approle=role, secrets={SECRET_ID: secret_id}, kv_version=2)


def tokens_of(front: Front) -> list[str]:
    """The tokens that were used, in the order of their first use."""
    used = [request.headers.get("x-vault-token") for request in front.requests]
    return list(dict.fromkeys(token for token in used if token is not None))


async def read(vault: VaultSecrets, name: str) -> str:
    value: str = data_of(await vault.get(ref(name)))["value"]
    return value


# --- one login for all -------------------------------------------------------------------------------------------


async def test_fifty_readers_at_once_make_one_login(front: Front, name: str, policy: str) -> None:
    async with by_approle(front, token_policies=policy) as vault:
        assert set(await asyncio.gather(*(read(vault, name) for _ in range(50)))) == {"for-who-may"}
        assert front.count(LOGIN) == 1
        assert len(front.requests) == 51


async def test_fifty_readers_with_a_token_that_was_revoked_make_one_more_login(
    front: Front, name: str, policy: str
) -> None:
    async with by_approle(front, token_policies=policy) as vault:
        await read(vault, name)
        front.server.do("POST", "auth/token/revoke", {"token": tokens_of(front)[0]})
        assert set(await asyncio.gather(*(read(vault, name) for _ in range(50)))) == {"for-who-may"}
        assert front.count(LOGIN) == 2
        assert front.count(LOOKUP) == 1
        assert front.count(f"/data/{name}") <= 1 + 2 * 50


async def test_a_reader_that_is_cancelled_leaves_the_login_to_the_others(
    front: Front, name: str, policy: str
) -> None:
    async with by_approle(front, token_policies=policy) as vault:
        front.pause_at[LOGIN] = 0.3
        first = asyncio.create_task(read(vault, name))
        second = asyncio.create_task(read(vault, name))
        await asyncio.to_thread(front.wait_for_requests, 1)
        first.cancel()
        assert await second == "for-who-may"
        with pytest.raises(asyncio.CancelledError):
            await first
        assert front.count(LOGIN) == 1


async def test_a_wrapped_secret_id_is_not_lost_when_its_only_reader_is_cancelled(
    front: Front, name: str, policy: str, tmp_path: Path
) -> None:
    mount, role_id, _ = approle(front.server, token_policies=policy)
    made = front.server.do("POST", f"auth/{mount}/role/app/secret-id", {}, wrap="60s")
    file = tmp_path / "wrapped"
    file.write_text(made["wrap_info"]["token"])
    role = AppRole(role_id=role_id, secret_id_file=str(file), wrapped=True, mount=mount)
    async with opened(front.server, url=front.url, approle=role, kv_version=2) as vault:
        front.pause_at["/unwrap"] = 0.3
        reader = asyncio.create_task(read(vault, name))
        await asyncio.to_thread(front.wait_for_requests, 2)
        reader.cancel()
        await asyncio.wait([reader])
        assert reader.cancelled()
        assert await read(vault, name) == "for-who-may"
        assert front.count("/unwrap") == 1


async def test_a_login_that_runs_when_we_are_closed_leaves_no_token_behind(
    front: Front, name: str, policy: str
) -> None:
    before = set(front.server.tokens())
    async with by_approle(front, token_policies=policy) as vault:
        front.pause_at[LOGIN] = 0.3
        reader = asyncio.create_task(read(vault, name))
        await asyncio.to_thread(front.wait_for_requests, 1)
        reader.cancel()
        await asyncio.wait([reader])
    assert front.count(REVOKE) == 1
    assert set(front.server.tokens()) == before


async def test_a_login_that_hangs_does_not_keep_us_from_closing(
    front: Front, name: str, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentrt_vault.session.REVOKE_LIMIT", 0.1)
    async with by_approle(front, token_policies=policy) as vault:
        front.answer_to[LOGIN] = Answer(500, delay=30.0)
        readers = [asyncio.create_task(read(vault, name)) for _ in range(3)]
        await asyncio.to_thread(front.wait_for_requests, 1)
    done, waiting = await asyncio.wait(readers, timeout=40.0)
    assert not waiting
    for reader in done:
        with pytest.raises(
            SecretUnavailable, match=r"^secret://vault/.* is not read any more: it was closed$"
        ):
            await reader
    assert front.count(LOGIN) == 1  # the next reader has not tried another one
    assert [task for task in asyncio.all_tasks() if "login" in task.get_name()] == []


async def test_closing_that_is_cut_short_leaves_no_login_behind(front: Front, name: str, policy: str) -> None:
    async with by_approle(front, token_policies=policy) as vault:
        front.answer_to[LOGIN] = Answer(500, delay=30.0)
        reader = asyncio.create_task(read(vault, name))
        await asyncio.to_thread(front.wait_for_requests, 1)
        closing = asyncio.create_task(vault.aclose())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([closing, reader], timeout=40.0)
        assert closing.cancelled()
        with pytest.raises(SecretUnavailable, match="it was closed"):
            await reader
        assert [task for task in asyncio.all_tasks() if "login" in task.get_name()] == []


async def test_a_read_that_is_cancelled_at_any_moment_leaves_the_others_alone(
    front: Front, name: str, policy: str
) -> None:
    async with by_approle(front, token_policies=policy) as vault:
        for turns in range(40):
            reader = asyncio.create_task(read(vault, name))
            other = asyncio.create_task(read(vault, name))
            for _ in range(turns):
                await asyncio.sleep(0)
            reader.cancel()
            assert await other == "for-who-may"
            await asyncio.wait([reader])


async def test_a_fork_logs_in_by_itself_and_leaves_the_token_to_its_parent(
    front: Front, name: str, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = os.getpid()
    async with by_approle(front, token_policies=policy) as vault:
        assert await read(vault, name) == "for-who-may"
        with monkeypatch.context() as fork:
            fork.setattr("agentrt_vault.session.os.getpid", lambda: process + 1)
            assert await read(vault, name) == "for-who-may"
            await vault.aclose()
    of_parent, of_fork = tokens_of(front)
    assert front.server.ask("GET", "auth/token/lookup-self", token=of_fork).status == 403
    assert front.server.ask("GET", "auth/token/lookup-self", token=of_parent).status == 200


# --- time --------------------------------------------------------------------------------------------------------


@again_if_held_up
async def test_a_token_is_renewed_in_its_last_third_and_replaced_before_its_last_day(
    front: Front, name: str, policy: str
) -> None:
    clock = asyncio.get_running_loop().time
    async with by_approle(front, token_policies=policy, token_ttl="3s", token_max_ttl="6s") as vault:
        await read(vault, name)
        began, renewed, replaced = clock(), 0.0, 0.0
        while not replaced:
            await asyncio.sleep(0.1)
            assert await read(vault, name) == "for-who-may"
            renewed = renewed or (clock() - began if front.count(RENEW) else 0.0)
            replaced = clock() - began if front.count(LOGIN) == 2 else 0.0
        assert 1.9 < renewed < replaced < 6.5
        assert front.count(LOOKUP) == 0  # no read was ever refused
        assert front.count(REVOKE) == 0  # leases of the old one may be in use
        old, new = tokens_of(front)
    for token in (old, new):
        assert front.server.ask("GET", "auth/token/lookup-self", token=token).status == 403


@again_if_held_up
async def test_a_token_that_has_expired_is_replaced_without_a_request_that_must_fail(
    front: Front, name: str, policy: str
) -> None:
    async with by_approle(front, token_policies=policy, token_ttl="1s") as vault:
        await read(vault, name)
        await asyncio.sleep(1.1)
        assert await read(vault, name) == "for-who-may"
        assert (front.count(LOGIN), front.count(f"/data/{name}"), front.count(RENEW)) == (2, 2, 0)


@again_if_held_up
async def test_a_given_token_is_renewed_too(front: Front, name: str, policy: str) -> None:
    made = front.server.do("POST", "auth/token/create", {"policies": [policy], "period": "5s"})
    token = made["auth"]["client_token"]
    async with opened(front.server, url=front.url, token=token, kv_version=2) as vault:
        began = asyncio.get_running_loop().time()
        while front.count(RENEW) == 0:
            assert asyncio.get_running_loop().time() - began < 6
            await asyncio.sleep(0.1)
            assert await read(vault, name) == "for-who-may"
    left = front.server.ask("GET", "auth/token/lookup-self", token=token).json()["data"]["ttl"]
    assert left >= 4


@again_if_held_up
async def test_a_token_that_cannot_be_renewed_now_is_used_while_it_lasts(
    front: Front, name: str, policy: str
) -> None:
    async with by_approle(front, token_policies=policy, token_ttl="3s") as vault:
        await read(vault, name)
        front.answer_to[RENEW] = Answer(503, b'{"errors": ["not now"]}')
        await asyncio.sleep(2.2)
        assert await read(vault, name) == "for-who-may"
        assert (front.count(RENEW), front.count(LOGIN)) == (1, 1)


@again_if_held_up
async def test_a_batch_token_is_neither_renewed_nor_revoked(
    front: Front, name: str, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with by_approle(front, token_policies=policy, token_ttl="2s", token_type="batch") as vault:
        await read(vault, name)
        await asyncio.sleep(1.5)
        assert await read(vault, name) == "for-who-may"
    assert (front.count(RENEW), front.count(LOGIN), front.count(REVOKE)) == (0, 2, 0)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


# --- what a 403 means --------------------------------------------------------------------------------------------


async def test_a_denial_is_no_reason_to_log_in_again(front: Front, name: str, policy: str) -> None:
    async with by_approle(front, token_policies=policy) as vault:
        for _ in range(5):
            with pytest.raises(SecretDenied, match=r"denies GET secret/data/app/other \(permission denied\)"):
                await vault.get(ref("app/other"))
        assert await read(vault, name) == "for-who-may"
    assert front.count(LOGIN) == 1


async def test_where_a_token_may_not_be_looked_up_one_login_and_one_more_try_are_made(
    front: Front, name: str, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with by_approle(front, token_policies=policy, token_no_default_policy=True) as vault:
        with pytest.raises(SecretDenied):
            await vault.get(ref("app/other"))
        assert (front.count(LOGIN), front.count("/data/app/other")) == (2, 2)
        assert await read(vault, name) == "for-who-may"
        for _ in range(5):
            with pytest.raises(SecretDenied):
                await vault.get(ref("app/other"))
        # The first denial has shown what such a refusal is worth; after a while it is tried again.
        assert (front.count(LOGIN), front.count("/data/app/other")) == (2, 7)
        monkeypatch.setattr("agentrt_vault.session.DENIED_PAUSE", 0.0)
        front.server.do("POST", "auth/token/revoke", {"token": tokens_of(front)[-1]})
        assert await read(vault, name) == "for-who-may"
        assert front.count(LOGIN) == 3


async def test_a_login_that_fails_while_a_token_is_replaced_says_so(
    front: Front, name: str, policy: str
) -> None:
    async with by_approle(front, token_policies=policy) as vault:
        await read(vault, name)
        front.server.do("POST", "auth/token/revoke", {"token": tokens_of(front)[0]})
        front.answer_to[LOGIN] = Answer(503, b'{"errors": ["Vault is sealed"]}')
        with pytest.raises(SecretUnavailable, match="Vault is sealed"):
            await read(vault, name)
        front.answer_to.clear()
        assert await read(vault, name) == "for-who-may"


# --- the end -----------------------------------------------------------------------------------------------------


async def test_a_token_that_cannot_be_revoked_at_the_end_is_told_and_not_shown(
    front: Front, name: str, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with by_approle(front, token_policies=policy, token_ttl="60s") as vault:
        await read(vault, name)
        (token,) = tokens_of(front)
        front.die()
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    said = record.getMessage()
    assert re.search(r"could not be revoked, it ends by itself in [1-6]\d s: vault at", said), said
    assert token not in caplog.text


async def test_a_token_that_had_ended_before_the_end_is_no_matter(
    front: Front, name: str, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with by_approle(front, token_policies=policy) as vault:
        await read(vault, name)
        front.server.do("POST", "auth/token/revoke", {"token": tokens_of(front)[0]})
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_nothing_that_is_secret_is_logged_at_any_level(
    front: Front, name: str, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    mount, role_id, secret_id = approle(front.server, token_policies=policy)
    role = AppRole(role_id=role_id, secret_id=SECRET_ID, mount=mount)
    async with opened(front.server, url=front.url, approle=role, secrets={SECRET_ID: secret_id}) as vault:
        await read(vault, name)
        with pytest.raises(SecretDenied):
            await vault.get(ref("app/other"))
    assert "/data/" in caplog.text  # httpx2 logs paths
    for hidden in (secret_id, "for-who-may", *tokens_of(front)):
        assert hidden not in caplog.text
