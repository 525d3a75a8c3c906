"""Leases: renewed before they end, replaced when they cannot be, given back when the runtime closes."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any

import pytest

from agentrt.secrets import Secret, SecretDenied, SecretNotFound, SecretUnavailable, SecretValue
from agentrt.secrets.manager import SecretsManager
from agentrt.testing import advance

pytestmark = [pytest.mark.asyncio, pytest.mark.virtual_time]


class Database:
    """Hands out users for `ttl` seconds, renews them up to `max_ttl` seconds from the start, as Vault does."""

    def __init__(self, *, ttl: float = 60.0, max_ttl: float = 600.0, renewable: bool = True) -> None:
        self.ttl = ttl
        self.max_ttl = max_ttl
        self.renewable = renewable
        self.ends: dict[str, float] = {}
        self.began: dict[str, float] = {}
        self.renewals: list[float] = []
        self.revoked: list[str] = []
        self.fails: Exception | None = None
        self.revoke_delay = 0.0
        self.closed = False

    async def get(self, ref: Any, /) -> SecretValue:
        if self.fails is not None:
            raise self.fails
        lease = f"lease-{len(self.ends) + 1}"
        self.began[lease] = now()
        self.ends[lease] = now() + self.ttl
        return SecretValue(f"user-{len(self.ends)}", lease=lease, ttl=self.ttl, renewable=self.renewable)

    async def renew(self, value: SecretValue, /) -> SecretValue:
        self.renewals.append(now())
        if self.fails is not None:
            raise self.fails
        lease = value.lease
        assert lease is not None
        assert now() < self.ends[lease], "renewed after its end"
        end = min(now() + self.ttl, self.began[lease] + self.max_ttl)
        self.ends[lease] = end
        return SecretValue(value.value, lease=lease, ttl=max(end - now(), 0.001), renewable=True)

    async def revoke(self, value: SecretValue, /) -> None:
        assert not self.closed, "revoked after the provider was closed"
        if self.revoke_delay:
            await asyncio.sleep(self.revoke_delay)
        if self.fails is not None:
            raise self.fails
        assert value.lease is not None
        self.revoked.append(value.lease)

    async def aclose(self) -> None:
        self.closed = True


def now() -> float:
    return asyncio.get_running_loop().time()


async def invoke(kind: str, target: str, fn: Any, /, *, idempotent: bool = False) -> Any:
    assert (kind, target, idempotent) == ("secret", "secret:env", True)
    return await fn()


def managed(database: Any) -> SecretsManager:
    return SecretsManager({"env": database}, invoke)


async def value(secrets: SecretsManager) -> str:
    return (await secrets.get("db")).reveal()


async def test_a_lease_is_renewed_after_two_thirds_of_it_though_nobody_reads() -> None:
    database = Database()
    secrets = managed(database)
    assert await value(secrets) == "user-1"
    await advance(200.0)
    assert database.renewals == [40.0, 80.0, 120.0, 160.0, 200.0]
    assert await value(secrets) == "user-1"
    assert len(database.ends) == 1
    await secrets.aclose()


async def test_a_lease_lasts_as_it_says_whatever_the_time_of_other_values() -> None:
    database = Database(ttl=6000.0, max_ttl=1e9)
    secrets = SecretsManager({"env": database}, invoke, ttl=60.0)
    await value(secrets)
    await advance(3999.0)
    assert database.renewals == []
    await secrets.aclose()


async def test_a_fork_gives_back_only_what_it_has_taken_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database()
    secrets = managed(database)
    await value(secrets)
    process = os.getpid()
    monkeypatch.setattr("agentrt.secrets.leases.os.getpid", lambda: process + 1)
    await advance(50.0)
    assert database.renewals == [40.0]  # which does not make it ours
    assert (await secrets.get("other")).reveal() == "user-2"
    await secrets.aclose()
    assert database.revoked == ["lease-2"]


async def test_when_it_cannot_last_longer_another_one_is_taken_before_it_ends() -> None:
    database = Database(ttl=60.0, max_ttl=100.0)
    secrets = managed(database)
    told: list[Secret] = []
    assert await value(secrets) == "user-1"
    secrets.on_rotate("db", told.append)
    for _ in range(1000):
        current = await value(secrets)
        lease = current.replace("user", "lease")
        assert now() < database.ends[lease], "a user whose lease is over"
        await advance(1.0)
    assert len(database.ends) > 8
    assert [secret.reveal() for secret in told] == [f"user-{n}" for n in range(2, len(database.ends) + 1)]
    await secrets.aclose()


@pytest.mark.parametrize(
    "error", [SecretDenied("revoked by hand"), SecretNotFound("unknown lease"), KeyError()]
)
async def test_a_lease_that_is_not_renewed_is_replaced(error: Exception) -> None:
    class Refuses(Database):
        async def renew(self, value: SecretValue, /) -> SecretValue:
            raise error

    database = Refuses()
    secrets = managed(database)
    await value(secrets)
    await advance(41.0)
    assert await value(secrets) == "user-2"
    await secrets.aclose()


class OnlyReads:
    def __init__(self, database: Database) -> None:
        self.get = database.get


@pytest.mark.parametrize("provider", [Database(renewable=False), OnlyReads(Database())])
async def test_without_a_way_to_renew_another_one_is_taken(provider: Any) -> None:
    secrets = managed(provider)
    await value(secrets)
    await advance(41.0)
    assert await value(secrets) == "user-2"
    await secrets.aclose()


async def test_during_an_outage_it_is_tried_several_times_and_ends_when_it_ends() -> None:
    database = Database()
    secrets = managed(database)
    await value(secrets)
    database.fails = SecretUnavailable("sealed")
    await advance(59.5)
    assert await value(secrets) == "user-1"
    assert 3 <= len(database.renewals) <= 20
    await advance(0.5)
    with pytest.raises(SecretUnavailable):
        await value(secrets)
    database.fails = None
    assert await value(secrets) == "user-2"
    await secrets.aclose()


async def test_an_outage_that_ends_in_time_costs_nothing() -> None:
    database = Database()
    secrets = managed(database)
    await value(secrets)
    database.fails = SecretUnavailable("sealed")
    await advance(45.0)
    database.fails = None
    await advance(60.0)
    assert await value(secrets) == "user-1"
    await secrets.aclose()


async def test_a_refresh_takes_another_one_and_does_not_renew() -> None:
    database = Database()
    secrets = managed(database)
    await value(secrets)
    assert (await secrets.refresh("db")).reveal() == "user-2"
    assert database.renewals == []
    await secrets.aclose()


async def test_at_the_end_every_lease_that_still_runs_is_given_back_before_the_provider_closes() -> None:
    database = Database(ttl=600.0)
    secrets = managed(database)
    await value(secrets)
    await advance(100.0)
    await secrets.refresh("db")
    secrets.invalidate()
    await value(secrets)
    await secrets.aclose()
    assert sorted(database.revoked) == ["lease-1", "lease-2", "lease-3"]
    assert database.closed


async def test_what_has_ended_is_not_given_back() -> None:
    database = Database(ttl=60.0, renewable=False)
    secrets = managed(database)
    await value(secrets)
    secrets.invalidate()
    await advance(61.0)
    await value(secrets)
    await secrets.aclose()
    assert database.revoked == ["lease-2"]


async def test_giving_back_has_a_time_and_a_failure_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "agentrt.secrets")
    database = Database(ttl=6000.0)
    database.revoke_delay = 1e6
    secrets = managed(database)
    await value(secrets)
    began = now()
    await secrets.aclose(2.0)
    assert now() - began == pytest.approx(1.2)
    assert database.closed
    failing = Database(ttl=6000.0)
    secrets = managed(failing)
    await value(secrets)
    failing.fails = SecretUnavailable("sealed")
    await secrets.aclose()
    assert [record.message for record in caplog.records] == [
        "the lease of secret://env/db was not revoked within 1.2 s; it ends by itself",
        "the lease of secret://env/db was not revoked, it ends by itself: sealed",
    ]


async def test_closing_that_is_cancelled_still_closes_the_provider() -> None:
    database = Database(ttl=6000.0)
    database.revoke_delay = 1e6
    secrets = managed(database)
    await value(secrets)
    closing = asyncio.create_task(secrets.aclose(100.0))
    await advance(1.0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert database.closed


async def test_nothing_is_renewed_after_the_end() -> None:
    database = Database()
    secrets = managed(database)
    await value(secrets)
    await secrets.aclose()
    await advance(1000.0)
    assert database.renewals == []
    with pytest.raises(SecretUnavailable, match="the runtime is closing"):
        await value(secrets)
