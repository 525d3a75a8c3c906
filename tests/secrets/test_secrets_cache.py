"""How long a value is used, when it is fetched anew, and what an outage, a refusal or a rotation does to it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from agentrt.errors import CircuitOpen, ConfigError
from agentrt.secrets import (
    Secret,
    SecretDenied,
    SecretInvalid,
    SecretNotFound,
    SecretThrottled,
    SecretUnavailable,
    SecretValue,
)
from agentrt.secrets.manager import SecretsManager
from agentrt.testing import advance

pytestmark = [pytest.mark.asyncio, pytest.mark.virtual_time]

HOUR, DAY = 3600.0, 86_400.0


class Source:
    """A provider whose `answer` is given or raised after `delay` seconds; `asked`: when it was asked."""

    def __init__(self, answer: Any = "one", *, delay: float = 0.0) -> None:
        self.answer = answer
        self.delay = delay
        self.asked: list[float] = []

    async def get(self, ref: Any, /) -> str | SecretValue:
        del ref
        self.asked.append(asyncio.get_running_loop().time())
        answer = self.answer
        if self.delay:
            await asyncio.sleep(self.delay)
        if isinstance(answer, Exception):
            raise answer
        result: str | SecretValue = answer
        return result

    @property
    def calls(self) -> int:
        return len(self.asked)


async def invoke(kind: str, target: str, fn: Any, /, *, idempotent: bool = False) -> Any:
    assert (kind, idempotent) == ("secret", True)
    assert target.startswith("secret:")
    return await fn()


def managed(source: Any, **options: Any) -> SecretsManager:
    return SecretsManager({"env": source}, invoke, **options)


async def value(secrets: SecretsManager, reference: str = "a") -> str:
    return (await secrets.get(reference)).reveal()


# --- while the provider answers --------------------------------------------------------------------------


async def test_near_its_end_a_value_is_still_given_while_one_fetch_replaces_it() -> None:
    source = Source(delay=1.0)
    secrets = managed(source, jitter=1.0)
    await value(secrets)
    source.answer = "two"
    await advance(HOUR - 2.0)  # jitter 1.0: it has been ageing for some time, whatever was drawn
    assert [await value(secrets) for _ in range(50)] == ["one"] * 50
    await advance(1.5)
    assert source.calls == 2
    assert await value(secrets) == "two"


@pytest.mark.parametrize("jitter", [0.1, 0.5])
async def test_the_moment_from_which_it_ages_lies_in_the_last_part_of_its_time(jitter: float) -> None:
    source = Source()
    secrets = managed(source, ttl=100.0, jitter=jitter)
    seen: set[float] = set()
    for _ in range(20):
        began = asyncio.get_running_loop().time()
        await secrets.refresh("a")
        calls = source.calls
        while source.calls == calls:
            await value(secrets)
            await advance(1.0)
        age = source.asked[-1] - began
        assert 100.0 * (1 - jitter) <= age <= 101.0
        seen.add(age)
    assert len(seen) > 3


async def test_nobody_gets_a_value_older_than_its_time_while_the_provider_answers() -> None:
    source = Source()
    secrets = managed(source)
    await value(secrets)
    source.answer = "two"
    await advance(HOUR)
    assert await value(secrets) == "two"


async def test_without_a_time_each_reader_asks_but_those_at_once_share() -> None:
    source = Source(delay=0.5)
    secrets = managed(source, ttl=0.0)
    await asyncio.gather(value(secrets), value(secrets))
    assert source.calls == 1
    await value(secrets)
    assert source.calls == 2


async def test_a_value_that_ends_by_itself_is_never_given_after_its_end() -> None:
    source = Source(SecretValue("one", ttl=60.0))
    secrets = managed(source)
    await value(secrets)
    source.answer = SecretUnavailable("down")
    await advance(59.0)
    assert await value(secrets) == "one"
    await advance(1.0)
    with pytest.raises(SecretUnavailable):
        await value(secrets)


async def test_a_provider_may_say_how_long_its_values_are_kept() -> None:
    source = Source()
    source.cache_ttl = 10.0  # type: ignore[attr-defined]
    secrets = managed(source, jitter=0.0)
    await value(secrets)
    await advance(9.0)
    await value(secrets)
    assert source.calls == 1
    await advance(1.0)
    await value(secrets)
    assert source.calls == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ttl": -1.0}, "ttl must be a number of seconds at least 0, not -1.0"),
        ({"jitter": 1.1}, "jitter must be a number from 0 to 1, not 1.1"),
        ({"stale": float("inf")}, "stale must be a number of seconds"),
        ({"negative_ttl": "30"}, "negative_ttl must be a number of seconds"),
    ],
)
async def test_settings_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        managed(Source(), **options)


# --- when it does not ------------------------------------------------------------------------------------

OUTAGES = [
    SecretUnavailable("sealed"),
    SecretThrottled("slow down"),
    CircuitOpen("open"),
    ConnectionResetError("reset"),
]


@pytest.mark.parametrize("outage", OUTAGES, ids=lambda error: type(error).__name__)
async def test_an_outage_is_bridged_for_a_day_and_not_longer(outage: Exception) -> None:
    source = Source()
    secrets = managed(source)
    await value(secrets)
    source.answer = outage
    await advance(HOUR + DAY - 60.0)
    assert await value(secrets) == "one"
    await advance(61.0)
    with pytest.raises(type(outage)):
        await value(secrets)
    source.answer = "two"
    assert await value(secrets) == "two"


@pytest.mark.parametrize(
    "error", [SecretDenied("no"), SecretNotFound("gone"), SecretInvalid("odd"), KeyError()]
)
async def test_what_is_no_outage_ends_the_use_of_a_value_at_once(error: Exception) -> None:
    source = Source()
    secrets = managed(source)
    await value(secrets)
    source.answer = error
    await advance(HOUR)
    with pytest.raises(type(error)):
        await value(secrets)


async def test_denied_in_the_middle_of_an_outage_ends_it_too() -> None:
    source = Source()
    secrets = managed(source)
    await value(secrets)
    source.answer = SecretUnavailable("down")
    await advance(2 * HOUR)
    assert await value(secrets) == "one"
    source.answer = SecretDenied("no")
    await advance(31.0)
    assert await value(secrets) == "one"  # for all that is known it is still down: this begins the fetch
    await advance(0.1)
    with pytest.raises(SecretDenied):
        await value(secrets)
    source.answer = SecretUnavailable("down")
    with pytest.raises(SecretUnavailable):
        await value(secrets)


async def test_denied_near_the_end_of_a_value_ends_it_for_the_next_reader() -> None:
    source = Source()
    secrets = managed(source, jitter=1.0)
    await value(secrets)
    source.answer = SecretDenied("no")
    await advance(HOUR - 0.5)
    assert await value(secrets) == "one"  # begins the fetch that is denied
    await advance(0.1)
    with pytest.raises(SecretDenied):
        await value(secrets)


async def test_a_provider_that_is_down_is_left_alone_for_half_a_minute_at_a_time() -> None:
    source = Source()
    secrets = managed(source)
    await value(secrets)
    source.answer = SecretUnavailable("down")
    await advance(HOUR)
    for _ in range(120):
        assert await value(secrets) == "one"
        await advance(1.0)
    assert source.calls == 1 + 4
    source.answer = SecretThrottled("later", retry_after=100.0)
    await advance(30.0)
    for _ in range(100):
        await value(secrets)
        await advance(1.0)
    assert source.calls == 1 + 4 + 1


async def test_in_an_outage_only_the_first_reader_waits() -> None:
    source = Source()
    secrets = managed(source)
    await value(secrets)
    source.answer, source.delay = SecretUnavailable("down"), 15.0
    await advance(HOUR)
    loop = asyncio.get_running_loop()
    waits: list[float] = []
    for _ in range(200):
        began = loop.time()
        assert await value(secrets) == "one"
        waits.append(loop.time() - began)
        await advance(1.0)
    assert [wait for wait in waits if wait > 0.0] == [15.0]


async def test_who_comes_long_after_an_outage_waits_for_the_new_value() -> None:
    source = Source()
    secrets = managed(source)
    await value(secrets)
    source.answer = SecretUnavailable("down")
    await advance(HOUR)
    await value(secrets)
    source.answer = "two"
    await advance(60.0)
    assert await value(secrets) == "two"


async def test_an_outage_and_its_end_are_logged_once_without_the_value(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "agentrt.secrets")
    source = Source("the-secret-value")
    secrets = managed(source)
    await value(secrets)
    source.answer = SecretUnavailable("sealed")
    await advance(HOUR)
    for _ in range(10):
        await value(secrets)
        await advance(60.0)
    assert [record.message for record in caplog.records] == [
        "secret://env/a cannot be fetched; its value of 3600 s ago is used for at most 86400 s more: sealed"
    ]
    source.answer = "the-secret-value"
    await value(secrets)
    assert [record.message for record in caplog.records[1:]] == ["secret://env/a is read again"]
    assert "the-secret-value" not in caplog.text


async def test_without_a_value_an_outage_is_an_error_and_is_not_remembered() -> None:
    source = Source(SecretUnavailable("down"))
    secrets = managed(source)
    for _ in range(2):
        with pytest.raises(SecretUnavailable):
            await value(secrets)
    assert source.calls == 2


# --- what is not there -----------------------------------------------------------------------------------


async def test_a_secret_that_is_not_there_is_asked_for_once_in_half_a_minute() -> None:
    source = Source(SecretNotFound("secret://env/a: no such secret"))
    secrets = managed(source)
    found = await asyncio.gather(*(value(secrets) for _ in range(200)), return_exceptions=True)
    for _ in range(20):
        with pytest.raises(SecretNotFound, match=r"^secret://env/a: no such secret$"):
            await value(secrets)
    assert {type(error) for error in found} == {SecretNotFound}
    assert source.calls == 1
    source.answer = "now"
    await advance(29.0)
    with pytest.raises(SecretNotFound):
        await value(secrets)
    await advance(1.0)
    assert await value(secrets) == "now"


async def test_what_is_remembered_as_missing_does_not_grow() -> None:
    secrets = managed(Source(SecretNotFound("no")))
    errors = [(await asyncio.gather(value(secrets), return_exceptions=True))[0] for _ in range(3)]
    assert len({id(error) for error in errors}) == 3  # one that is raised again and again grows a traceback


@pytest.mark.parametrize("error", [SecretDenied("no"), SecretInvalid("odd")])
async def test_only_missing_is_remembered(error: Exception) -> None:
    source = Source(error)
    secrets = managed(source)
    for _ in range(3):
        with pytest.raises(type(error)):
            await value(secrets)
    assert source.calls == 3


async def test_a_refresh_looks_again_for_what_was_missing() -> None:
    source = Source(SecretNotFound("no"))
    secrets = managed(source)
    with pytest.raises(SecretNotFound):
        await value(secrets)
    source.answer = "now"
    assert (await secrets.refresh("a")).reveal() == "now"
    assert await value(secrets) == "now"


# --- on demand -------------------------------------------------------------------------------------------


async def test_a_refresh_fetches_now_and_fails_aloud() -> None:
    source = Source()
    secrets = managed(source)
    await value(secrets)
    source.answer = "two"
    assert (await secrets.refresh("secret://env/a")).reveal() == "two"
    source.answer = SecretUnavailable("down")
    with pytest.raises(SecretUnavailable):
        await secrets.refresh("a")
    assert await value(secrets) == "two"


async def test_a_refresh_does_not_take_the_value_of_a_fetch_that_began_before_it() -> None:
    source = Source(delay=10.0)
    secrets = managed(source)
    reader = asyncio.create_task(value(secrets))
    await advance(5.0)
    source.answer = "two"
    refreshed = await asyncio.gather(*(secrets.refresh("a") for _ in range(5)))
    assert await reader == "one"
    assert {secret.reveal() for secret in refreshed} == {"two"}
    assert source.calls == 2


async def test_what_is_being_fetched_when_it_is_invalidated_is_not_kept() -> None:
    source = Source(delay=10.0)
    secrets = managed(source)
    reader = asyncio.create_task(value(secrets))
    await advance(5.0)
    secrets.invalidate("a")
    source.answer = "two"
    later = asyncio.create_task(value(secrets))
    assert await reader == "one"
    assert await later == "two"
    assert await value(secrets) == "two"
    assert source.calls == 2


# --- somebody was refused --------------------------------------------------------------------------------


async def test_who_was_refused_gets_the_value_of_one_new_fetch() -> None:
    source = Source(delay=0.1)
    secrets = managed(source)
    await value(secrets)
    source.answer = "two"
    found = await asyncio.gather(*(secrets.rejected("a", "one") for _ in range(100)))
    assert {secret.reveal() for secret in found} == {"two"}
    assert source.calls == 2
    assert (await secrets.rejected("a", "one")).reveal() == "two"  # who comes late has not to wait
    assert source.calls == 2


async def test_a_key_that_is_simply_wrong_is_fetched_once_in_half_a_minute() -> None:
    source = Source()
    secrets = managed(source)
    await value(secrets)
    for _ in range(60):
        assert (await secrets.rejected("a", "one")).reveal() == "one"
        await advance(1.0)
    assert source.calls == 1 + 2


async def test_who_was_refused_during_an_outage_is_told_of_it_and_others_keep_the_value() -> None:
    source = Source()
    secrets = managed(source)
    await value(secrets)
    source.answer = SecretUnavailable("down")
    with pytest.raises(SecretUnavailable):
        await secrets.rejected("a", "one")
    assert await value(secrets) == "one"


async def test_a_key_inside_a_secret_can_be_refused() -> None:
    source = Source('{"k": "one"}')
    secrets = managed(source)
    source_two = '{"k": "two"}'
    await value(secrets, "secret://env/a#k")
    source.answer = source_two
    assert (await secrets.rejected("secret://env/a#k", "one")).reveal() == "two"


async def test_a_value_that_is_kept_for_no_time_is_refreshed_and_replaced_with_one_fetch() -> None:
    source = Source()
    secrets = managed(source, ttl=0.0)
    assert (await secrets.refresh("a")).reveal() == "one"
    assert source.calls == 1


@pytest.mark.parametrize("ask", ["get", "refresh", "rejected", "get_many"])
async def test_who_is_cancelled_while_waiting_takes_nothing_from_the_others(ask: str) -> None:
    source = Many({"a": "one", "b": "other"})
    source.delay = 10.0
    secrets = managed(source)
    if ask == "rejected":
        await value(secrets)
    asks: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
        "get": lambda: secrets.get("a"),
        "refresh": lambda: secrets.refresh("a"),
        "rejected": lambda: secrets.rejected("a", "one"),
        "get_many": lambda: secrets.get_many(["a", "b"]),
    }
    cancelled, other = (asyncio.create_task(asks[ask]()) for _ in range(2))
    await advance(0.5)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    found: Any = await other
    assert (found["a"] if ask == "get_many" else found).reveal() == "one"
    await secrets.aclose()


async def test_a_refresh_that_is_cancelled_while_it_waits_for_its_turn_leaves_the_running_fetch() -> None:
    source = Source(delay=10.0)
    secrets = managed(source)
    reader = asyncio.create_task(value(secrets))
    await advance(1.0)
    refreshing = asyncio.create_task(secrets.refresh("a"))
    await advance(1.0)
    refreshing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await refreshing
    assert await reader == "one"
    assert source.calls == 1


@pytest.mark.parametrize("ask", ["refresh", "rejected", "get_many"])
async def test_who_waits_when_it_is_closed_is_told(ask: str) -> None:
    source = Many({"a": "one", "b": "other"})
    secrets = managed(source)
    if ask == "rejected":
        await value(secrets)
    source.delay = 10.0
    asks: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
        "refresh": lambda: secrets.refresh("a"),
        "rejected": lambda: secrets.rejected("a", "one"),
        "get_many": lambda: secrets.get_many(["a", "b"]),
    }
    waiting = asyncio.create_task(asks[ask]())
    await advance(0.5)
    await secrets.aclose()
    with pytest.raises(SecretUnavailable, match="the runtime is closing"):
        await waiting


# --- rotation --------------------------------------------------------------------------------------------


async def test_who_watches_is_told_of_another_value_without_reading() -> None:
    source = Source()
    secrets = managed(source)
    told: list[Secret] = []
    secrets.on_rotate("a", told.append)
    await value(secrets)
    await advance(2 * HOUR)
    assert told == []
    assert source.calls == 3
    source.answer = "two"
    await advance(HOUR)
    assert [secret.reveal() for secret in told] == ["two"]
    assert told[0].name == "secret://a"


async def test_a_coroutine_is_awaited_and_a_failing_callback_harms_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = Source()
    secrets = managed(source)
    told: list[str] = []

    def fails(secret: Secret) -> None:
        raise ValueError("no pool")

    async def fails_later(secret: Secret) -> None:
        await asyncio.sleep(1.0)
        raise ValueError("no pool later")

    async def tells(secret: Secret) -> None:
        await asyncio.sleep(1.0)
        told.append(secret.reveal())

    await value(secrets)
    for callback in (fails, fails_later, tells):
        secrets.on_rotate("a", callback)
    source.answer = "two"
    await secrets.refresh("a")
    await advance(2.0)
    assert told == ["two"]
    assert [record.message for record in caplog.records] == [
        "a callback for the rotation of secret://a failed"
    ] * 2
    assert "no pool later" in caplog.text
    assert "two" not in caplog.text


async def test_who_has_unsubscribed_is_not_told_and_costs_no_fetches() -> None:
    source = Source()
    secrets = managed(source)
    told: list[Secret] = []
    unsubscribe = secrets.on_rotate("a", told.append)
    await value(secrets)
    unsubscribe()
    unsubscribe()
    source.answer = "two"
    await advance(5 * HOUR)
    assert source.calls == 1
    await secrets.refresh("a")
    assert told == []


async def test_only_who_watches_the_key_that_changed_is_told() -> None:
    source = Source('{"user": "u", "password": "one"}')
    secrets = managed(source)
    users: list[Secret] = []
    passwords: list[Secret] = []
    await value(secrets)
    secrets.on_rotate("secret://env/a#user", users.append)
    secrets.on_rotate("secret://env/a#password", passwords.append)
    source.answer = '{"user": "u", "password": "two"}'
    await secrets.refresh("a")
    assert (users, [secret.reveal() for secret in passwords]) == ([], ["two"])


async def test_a_watch_survives_invalidation_a_refusal_and_a_value_of_no_use(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = Source('{"k": "one"}')
    secrets = managed(source)
    told: list[str] = []
    await value(secrets)
    secrets.on_rotate("secret://env/a#k", lambda secret: told.append(secret.reveal()))
    source.answer = '{"other": "x"}'
    await secrets.refresh("a")
    assert "has no key 'k'" in caplog.text
    source.answer = SecretDenied("no")
    with pytest.raises(SecretDenied):
        await secrets.refresh("a")
    secrets.invalidate("a")
    source.answer = '{"k": "two"}'
    await advance(31.0)
    assert told == ["two"]


async def test_a_reference_that_is_watched_and_kept_for_no_time_is_looked_up_once_a_second() -> None:
    source = Source()
    secrets = managed(source, ttl=0.0)
    secrets.on_rotate("a", print)
    await value(secrets)
    await advance(10.5)
    assert source.calls == 11


# --- several ---------------------------------------------------------------------------------------------


class Many(Source):
    def __init__(self, values: dict[str, Any], *, fails: Exception | None = None) -> None:
        super().__init__()
        self.values = values
        self.fails = fails
        self.batches: list[list[str]] = []

    async def get(self, ref: Any, /) -> str | SecretValue:
        self.answer = self.values.get(ref.name, SecretNotFound(f"{ref}: no"))
        return await super().get(ref)

    async def get_many(self, refs: Any, /) -> dict[Any, str]:
        self.batches.append([ref.name for ref in refs])
        await asyncio.sleep(1.0)
        if self.fails is not None:
            raise self.fails
        return {ref: self.values[ref.name] for ref in refs if ref.name in self.values}


async def test_several_secrets_are_one_call_and_kept() -> None:
    source = Many({"a": "1", "b": "2", "c": '{"k": "3"}'})
    secrets = managed(source)
    await value(secrets, "a")
    names = ["a", "b", "secret://env/c#k", "secret://env/b"]
    found, again = await asyncio.gather(secrets.get_many(names), secrets.get_many(names))
    assert {name: secret.reveal() for name, secret in found.items()} == dict(zip(names, "1232", strict=True))
    assert again == found
    assert source.batches == [["b", "c"]]
    await secrets.get_many(names)
    assert (source.calls, len(source.batches)) == (1, 1)


async def test_one_that_is_missing_among_several_is_named_and_remembered() -> None:
    source = Many({"a": "1"})
    secrets = managed(source)
    with pytest.raises(SecretNotFound, match="secret://env/x: the provider has no such secret"):
        await secrets.get_many(["a", "x"])
    with pytest.raises(SecretNotFound):
        await value(secrets, "x")
    assert await value(secrets, "a") == "1"
    assert source.calls == 0


async def test_a_call_for_several_that_is_denied_is_made_one_by_one() -> None:
    source = Many({"a": "1", "b": "2"}, fails=SecretDenied("one of them"))
    secrets = managed(source)
    found = await secrets.get_many(["a", "b"])
    assert [secret.reveal() for secret in found.values()] == ["1", "2"]
    assert source.calls == 2


async def test_a_provider_without_it_reads_one_by_one() -> None:
    source = Source()
    secrets = managed(source)
    assert len(await secrets.get_many(["a", "b"])) == 2
    assert source.calls == 2
    assert await secrets.get_many([]) == {}


async def test_names_are_listed_or_it_is_said_that_they_cannot_be() -> None:
    class Lists(Source):
        async def list(self, prefix: str = "", /) -> list[str]:
            return [name for name in ("b/2", "b/1", "a") if name.startswith(prefix)]

    secrets = SecretsManager({"env": Lists(), "plain": Source()}, invoke)
    assert await secrets.list() == ["a", "b/1", "b/2"]
    assert await secrets.list("env", "b/") == ["b/1", "b/2"]
    with pytest.raises(ConfigError, match="the secrets provider 'plain' cannot list what it has"):
        await secrets.list("plain")
    await secrets.aclose()
    with pytest.raises(SecretUnavailable):
        await secrets.list()


# --- what is told ----------------------------------------------------------------------------------------


async def test_each_value_goes_to_the_redactor_and_each_reveal_to_the_audit() -> None:
    values: list[str] = []
    reveals: list[str] = []
    source = Source('{"k": "inner"}')
    secrets = managed(source, on_value=values.append, on_reveal=reveals.append)
    secret = await secrets.get("secret://env/a#k")
    assert values == ['{"k": "inner"}', "inner"]
    assert reveals == []
    assert (secret.reveal(), secret.reveal()) == ("inner", "inner")
    await secrets.rejected("secret://env/a#k", "inner")
    assert reveals == ["secret://env/a#k"] * 2


async def test_an_audit_that_cannot_be_written_keeps_the_value() -> None:
    def refuses(name: str) -> None:
        raise OSError("disk full")

    secret = await managed(Source(), on_reveal=refuses).get("a")
    with pytest.raises(OSError, match="disk full"):
        secret.reveal()
