"""The suite for authors of providers finds what is wrong: a good provider passes, and each mistake fails its test."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from agentrt.errors import TransientError
from agentrt.secrets import (
    SecretDenied,
    SecretInvalid,
    SecretNotFound,
    SecretRef,
    SecretThrottled,
    SecretUnavailable,
    SecretValue,
)
from agentrt.testing import SecretsProviderTests, virtual_time

TESTS = sorted(name for name in vars(SecretsProviderTests) if name.startswith("test_"))


class Service:
    """What every provider of this module reads from. `state`: what it answers; `leases`: those that run."""

    def __init__(self) -> None:
        self.secrets: dict[str, list[str]] = {}
        self.state = "well"
        self.leases: set[str] = set()

    @contextmanager
    def being(self, state: str) -> Generator[None]:
        self.state = state
        try:
            yield
        finally:
            self.state = "well"


class Good:
    """Does everything that a provider may do."""

    service: Service

    def __init__(self, *, url: str = "memory:") -> None:
        self.url = url

    async def open(self, host: Any) -> None:
        await self.answer("*")

    async def get(self, ref: SecretRef, /) -> str | SecretValue:
        await self.answer(ref.name)
        versions = self.service.secrets.get(ref.name)
        number = len(versions or ()) if ref.version is None else int(ref.version)
        if not versions or not 0 < number <= len(versions):
            raise SecretNotFound(f"{ref}: there is none")
        if ref.name == "leased":
            lease = f"lease-{len(self.service.leases)}"
            self.service.leases.add(lease)
            return SecretValue(versions[-1], lease=lease, ttl=60.0, renewable=True)
        return SecretValue(versions[number - 1], version=str(number))

    async def answer(self, name: str) -> None:
        await asyncio.sleep(0)
        match self.service.state:
            case "denied":
                raise SecretDenied(f"{name}: no")
            case "throttling":
                raise SecretThrottled(f"{name}: later", retry_after=2.0)
            case "failing":
                raise SecretUnavailable(f"{name}: 503")
            case "hanging":
                await asyncio.sleep(3600.0)
            case _:
                pass

    async def get_many(self, refs: Sequence[SecretRef], /) -> Mapping[SecretRef, str | SecretValue]:
        return {ref: await self.get(ref) for ref in refs if ref.name in self.service.secrets}

    async def list(self, prefix: str = "", /) -> Sequence[str]:
        return [name for name in self.service.secrets if name.startswith(prefix)]

    async def renew(self, value: SecretValue, /) -> SecretValue:
        if value.lease not in self.service.leases:
            raise SecretNotFound("the lease is over")
        return value

    async def revoke(self, value: SecretValue, /) -> None:
        assert value.lease is not None
        self.service.leases.discard(value.lease)

    async def aclose(self) -> None:
        await asyncio.sleep(0)


def suite(kind: type[Any]) -> type[SecretsProviderTests]:
    class Suite(SecretsProviderTests):
        credentials = ("the-login-token",)

        def __init__(self) -> None:
            self.service = kind.service = Service()
            self.service.secrets["leased"] = ["user"]

        def make(self) -> Any:
            return kind()

        def store(self, name: str, value: str) -> SecretRef:
            self.service.secrets.setdefault(name, []).append(value)
            return SecretRef(name)

        def leased(self) -> SecretRef:
            return SecretRef("leased")

        def denied(self) -> Any:
            return self.service.being("denied")

        def throttling(self) -> Any:
            return self.service.being("throttling")

        def failing(self) -> Any:
            return self.service.being("failing")

        def hanging(self) -> Any:
            return self.service.being("hanging")

    return Suite


@contextmanager
def quickly() -> Generator[None]:
    """What is wrong stays so: there is nothing to wait for, and the clock of the event loops jumps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agentrt.testing.backend_thread.LEFT", 0.3)
        patch.setattr(asyncio, "run", lambda main: virtual_time.run(lambda: main))
        yield


def failed(kind: type[Any]) -> dict[str, str]:
    """The tests of the suite that fail, and what they say."""
    made = suite(kind)
    found: dict[str, str] = {}
    with quickly():
        for name in TESTS:
            try:
                getattr(made(), name)()
            except AssertionError as error:
                found[name] = str(error)
    return found


def only(kind: type[Any], test: str) -> str:
    """What the one test says that fails."""
    found = failed(kind)
    assert list(found) == [test], found
    return found[test]


def test_a_good_provider_passes_all_of_them() -> None:
    assert len(TESTS) == 27
    assert failed(Good) == {}
    for name in TESTS:  # and on a real clock
        getattr(suite(Good)(), name)()


def test_a_provider_that_only_reads_passes() -> None:
    class Least:
        service: Service

        async def get(self, ref: SecretRef, /) -> str:
            versions = self.service.secrets.get(ref.name)
            if versions is None or ref.version is not None:
                raise SecretNotFound(f"{ref}: there is none")
            return versions[-1]

    class TestLeast(SecretsProviderTests):
        def make(self) -> Any:
            return Least()

        def store(self, name: str, value: str) -> SecretRef:
            Least.service.secrets[name] = [value]
            return SecretRef(name)

    Least.service = Service()
    ran = 0
    for name in TESTS:
        test = getattr(TestLeast(), name)
        if test is not None:
            test()
            ran += 1
    assert ran == 18


class _Wrong(Good):
    """Passes the value through `change`."""

    async def get(self, ref: SecretRef, /) -> Any:
        found = await super().get(ref)
        assert isinstance(found, SecretValue)
        return self.change(ref, found)

    def change(self, ref: SecretRef, found: SecretValue) -> Any:
        raise NotImplementedError


def test_a_value_that_is_changed_on_the_way_is_found() -> None:
    class Strips(_Wrong):
        def change(self, ref: SecretRef, found: SecretValue) -> SecretValue:
            return SecretValue(found.value.strip(), found.version, found.lease, found.ttl, found.renewable)

    assert "read others" in only(Strips, "test_a_stored_secret_is_read_as_it_was_stored")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (SecretValue("a-value-to-look-at", ttl=0.0), "`ttl` must be a number of seconds above 0"),
        (SecretValue("a-value-to-look-at", version=""), "`version` must be a text or None"),
        (SecretValue(b"bytes"), "a value must be text, not bytes"),  # type: ignore[arg-type]
    ],
)
def test_a_value_of_no_use_is_found(value: SecretValue, says: str) -> None:
    class Odd(_Wrong):
        def change(self, ref: SecretRef, found: SecretValue) -> SecretValue:
            return value if found.value == "a-value-to-look-at" else found

    assert says in only(Odd, "test_what_it_says_of_a_value_can_be_used")


def test_an_error_of_a_library_is_found() -> None:
    class Raw(Good):
        async def get(self, ref: SecretRef, /) -> Any:
            if ref.name not in self.service.secrets:
                raise KeyError(ref.name)
            return await super().get(ref)

    found = failed(Raw)
    assert set(found) >= {
        "test_a_secret_that_is_not_there_is_not_found",
        "test_a_strange_name_is_refused_or_not_found",
    }
    assert "builtins.KeyError" in found["test_a_secret_that_is_not_there_is_not_found"]


def test_a_name_that_leads_somewhere_else_is_found() -> None:
    class Cleans(Good):
        async def get(self, ref: SecretRef, /) -> Any:
            if ".." in ref.name:
                return "root:x:0:0"
            return await super().get(ref)

    assert "led to a secret" in only(Cleans, "test_a_strange_name_is_refused_or_not_found")


def test_a_version_that_is_ignored_is_found() -> None:
    class Newest(Good):
        async def get(self, ref: SecretRef, /) -> Any:
            return await super().get(SecretRef(ref.name, ref.provider))

    assert "is another value than it was" in only(Newest, "test_a_version_is_read_or_refused")


def test_a_provider_that_keeps_values_is_found() -> None:
    class Caches(Good):
        def __init__(self) -> None:
            super().__init__()
            self.kept: dict[SecretRef, Any] = {}

        async def get(self, ref: SecretRef, /) -> Any:
            if ref not in self.kept or self.service.state != "well":
                self.kept[ref] = await super().get(ref)
            return self.kept[ref]

    found = failed(Caches)
    assert "a provider keeps no values" in found["test_a_changed_secret_is_seen"]


def test_readers_that_are_mixed_up_are_found() -> None:
    class Shares(Good):
        async def get(self, ref: SecretRef, /) -> Any:
            self.asked = ref
            await asyncio.sleep(0)
            return await super().get(self.asked)

    assert "got each other's" in failed(Shares)["test_many_readers_at_once_each_get_their_secret"]


def test_a_cancellation_that_is_swallowed_is_found() -> None:
    class Swallows(Good):
        async def get(self, ref: SecretRef, /) -> Any:
            try:
                return await super().get(ref)
            except asyncio.CancelledError:
                raise SecretUnavailable("cancelled") from None

    found = failed(Swallows)
    assert set(found) == {
        "test_a_reader_of_a_service_that_hangs_can_be_cancelled",
        "test_a_reader_that_is_cancelled_leaves_the_provider_well",
    }
    assert (
        "must end as CancelledError, not SecretUnavailable"
        in found["test_a_reader_that_is_cancelled_leaves_the_provider_well"]
    )


@pytest.mark.parametrize("where", ["repr", "message", "cause", "log"])
def test_a_value_that_is_shown_is_found(where: str) -> None:
    class Tells(Good):
        last = ""

        def __repr__(self) -> str:
            return f"Tells({self.last})" if where == "repr" else "Tells()"

        async def get(self, ref: SecretRef, /) -> Any:
            if where == "message" and self.service.state == "failing":
                raise SecretUnavailable(f"cannot send {self.last}")
            if where == "cause" and self.service.state == "failing":
                raise SecretUnavailable("503") from ValueError(f"token=the-login-token {self.last}")
            found = await super().get(ref)
            assert isinstance(found, SecretValue)
            self.last = found.value
            if where == "log":
                logging.getLogger("acme").info("got %s", found.value)
            return found

    said = " ".join(failed(Tells).values())
    shown = {
        "repr": "its repr",
        "message": "an error's traceback",
        "cause": "an error's traceback",
        "log": "a log",
    }
    assert shown[where] in said
    assert "shows the value of a secret" in said
    assert "a-value-nobody-shows" not in said


def test_credentials_in_a_message_are_found() -> None:
    class Blabs(Good):
        async def answer(self, name: str) -> None:
            if self.service.state == "denied":
                raise SecretDenied("the-login-token was not accepted")
            await super().answer(name)

    assert "shows the provider's credentials" in only(Blabs, "test_what_may_not_be_read_is_denied")


@pytest.mark.parametrize(
    ("state", "test"),
    [
        ("denied", "test_what_may_not_be_read_is_denied"),
        ("throttling", "test_a_service_that_asks_to_slow_down_throttles"),
    ],
)
def test_a_failure_of_another_kind_is_found(state: str, test: str) -> None:
    class Vague(Good):
        async def answer(self, name: str) -> None:
            if self.service.state == state:
                raise TransientError("something")
            await super().answer(name)

    assert "agentrt.errors.TransientError" in only(Vague, test)


def test_what_is_left_behind_is_found() -> None:
    class Leaks(Good):
        left: list[Any] = []  # noqa: RUF012 - of all

        async def aclose(self) -> None:
            self.left.append(socket.socket())

    found = failed(Leaks)
    for left in Leaks.left:
        left.close()
    assert set(found) == {"test_it_leaves_nothing_behind", "test_it_leaves_nothing_behind_after_a_failure"}
    assert "after aclose there is left: socket" in found["test_it_leaves_nothing_behind"]


def test_a_task_that_goes_on_is_found() -> None:
    class Goes(Good):
        async def open(self, host: Any) -> None:
            await super().open(host)
            self.task = asyncio.ensure_future(asyncio.sleep(3600.0))

    assert "after aclose there are tasks left" in failed(Goes)["test_it_leaves_nothing_behind"]


def test_options_and_methods_of_the_wrong_form_are_found() -> None:
    class Positional(Good):
        def __init__(self, url: str = "") -> None:
            super().__init__(url=url)

        def list(self, prefix: str = "", /) -> Any:
            return super().list(prefix)

    found = failed(Positional)
    assert "must be keyword-only" in found["test_its_options_can_be_read_from_a_table"]
    assert "`list` must be an `async def`" in found["test_its_methods_are_coroutines"]


def test_a_list_of_something_else_is_found() -> None:
    class Values(Good):
        async def list(self, prefix: str = "", /) -> Sequence[str]:
            return [
                name if prefix else f"{name}={versions[-1]}"
                for name, versions in self.service.secrets.items()
            ]

    assert "`list` has no" in only(Values, "test_names_are_listed_and_values_are_not")


def test_a_batch_that_forgets_some_is_found() -> None:
    class Forgets(Good):
        async def get_many(self, refs: Sequence[SecretRef], /) -> Any:
            return dict([*(await super().get_many(refs)).items()][:-1])

    assert "get_many answered for 2 of 3" in only(Forgets, "test_several_at_once_are_the_same_as_one_by_one")


def test_leases_that_are_none_are_found() -> None:
    class NoHandle(_Wrong):
        def change(self, ref: SecretRef, found: SecretValue) -> SecretValue:
            return SecretValue(found.value, found.version, None, found.ttl)

    class GoesOn(Good):
        async def revoke(self, value: SecretValue, /) -> None:
            pass

    class Changes(Good):
        async def renew(self, value: SecretValue, /) -> SecretValue:
            await super().renew(value)
            return SecretValue("another", lease=value.lease, ttl=60.0, renewable=True)

    assert "there is none" in failed(NoHandle)["test_a_lease_says_what_it_is"]
    assert "gave a value where SecretError was expected" in only(GoesOn, "test_a_revoked_lease_is_over")
    assert "is for the same value" in only(Changes, "test_a_renewable_lease_is_renewed")


def test_a_life_that_ends_once_is_found() -> None:
    class Once(Good):
        is_open = True

        async def aclose(self) -> None:
            if not self.is_open:
                raise SecretInvalid("closed already")
            self.is_open = False

    with pytest.raises(SecretInvalid):
        suite(Once)().test_it_may_be_opened_and_closed_twice()


def test_what_takes_too_long_is_found() -> None:
    class Slow(Good):
        async def get(self, ref: SecretRef, /) -> Any:
            await asyncio.sleep(3600.0)

    made = suite(Slow)()
    made.patience = 0.1  # type: ignore[misc]
    with pytest.raises(AssertionError, match=r"it took more than 0\.1 s"):
        made.test_it_shows_no_value()


def test_store_must_say_by_which_reference_it_is_found() -> None:
    made: Any = suite(Good)()
    made.store = lambda name, value: None
    with pytest.raises(AssertionError, match="`store` must return a SecretRef, not NoneType"):
        made.test_it_shows_no_value()
