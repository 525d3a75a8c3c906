"""The manager: one fetch for all readers, kept for a while, belonging to none of them."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from agentrt.call import ENCLOSING, RUN
from agentrt.config import Config
from agentrt.errors import ConfigError, PluginError
from agentrt.secrets import SecretDenied, SecretInvalid, SecretRef, SecretUnavailable, SecretValue
from agentrt.secrets.manager import SecretsManager
from agentrt.testing import advance

pytestmark = [pytest.mark.asyncio, pytest.mark.virtual_time]


class Provider:
    """Answers after `delay` seconds with what `answers` has for the name; an exception is raised."""

    def __init__(self, answers: dict[str, Any] | None = None, *, delay: float = 0.0) -> None:
        self.answers = {"a": "value-a"} if answers is None else answers
        self.delay = delay
        self.asked: list[SecretRef] = []
        self.host: Any = None
        self.closed = 0
        self.contexts: list[Any] = []

    async def open(self, host: Any) -> None:
        await asyncio.sleep(self.delay)
        self.host = host

    async def get(self, ref: SecretRef, /) -> str | SecretValue:
        self.asked.append(ref)
        self.contexts.append((RUN.get(), ENCLOSING.get()))
        await asyncio.sleep(self.delay)
        answer = self.answers[ref.name]
        if isinstance(answer, Exception):
            raise answer
        result: str | SecretValue = answer
        return result

    async def aclose(self) -> None:
        self.closed += 1


class Invocations:
    """A pipeline that only writes down what goes through it."""

    def __init__(self) -> None:
        self.made: list[tuple[str, str, bool]] = []

    async def __call__(
        self, kind: str, target: str, fn: Callable[[], Awaitable[Any]], /, *, idempotent: bool = False
    ) -> Any:
        self.made.append((kind, target, idempotent))
        return await fn()


def manager(provider: Provider, **options: Any) -> tuple[SecretsManager, Invocations]:
    invoke = Invocations()
    return SecretsManager({"env": provider, "vault": provider}, invoke, **options), invoke


async def value(secrets: SecretsManager, reference: str) -> str:
    return (await secrets.get(reference)).reveal()


async def test_a_reference_or_a_plain_name_is_read_through_the_pipeline() -> None:
    provider = Provider()
    secrets, invoke = manager(provider)
    secret = await secrets.get("secret://vault/a")
    assert secret.reveal() == "value-a"
    assert secret.name == "secret://vault/a"
    assert await value(secrets, "a") == "value-a"
    assert (await secrets.get(SecretRef("a"))).reveal() == "value-a"
    assert invoke.made == [("secret", "secret:vault", True), ("secret", "secret:env", True)]


async def test_a_value_is_kept_for_its_time() -> None:
    provider = Provider()
    secrets, _ = manager(provider, ttl=60.0)
    await secrets.get("a")
    await advance(59.0)
    await secrets.get("a")
    assert len(provider.asked) == 1
    await advance(1.5)
    await secrets.get("a")
    assert len(provider.asked) == 2


async def test_a_forgotten_value_is_read_anew() -> None:
    provider = Provider({"a": "1", "b": "2"})
    secrets, _ = manager(provider)
    for name in ("a", "b"):
        await secrets.get(name)
    secrets.invalidate("secret://env/a")
    await secrets.get("a")
    await secrets.get("b")
    assert [ref.name for ref in provider.asked] == ["a", "b", "a"]
    secrets.invalidate()
    await secrets.get("b")
    assert len(provider.asked) == 4


async def test_five_hundred_readers_make_one_call() -> None:
    provider = Provider(delay=1.0)
    secrets, _ = manager(provider)
    found = await asyncio.gather(*(value(secrets, "a") for _ in range(500)))
    assert set(found) == {"value-a"}
    assert len(provider.asked) == 1


async def test_keys_of_one_secret_share_its_call() -> None:
    provider = Provider({"db": '{"user": "u", "ports": {"main": 5432, "list": [1]}}'})
    seen: list[str] = []
    secrets, _ = manager(provider, on_value=seen.append)
    assert await value(secrets, "secret://env/db#user") == "u"
    assert await value(secrets, "secret://env/db#ports.main") == "5432"
    assert await value(secrets, "secret://env/db#ports.list") == "[1]"
    assert len(provider.asked) == 1
    assert provider.asked[0].key == ()
    assert seen[1:] == ["u", "5432", "[1]"]
    with pytest.raises(SecretInvalid, match=r"^secret://env/db#ports.x: the secret has no key 'ports.x'$"):
        await secrets.get("secret://env/db#ports.x")
    with pytest.raises(SecretInvalid, match=r"has no key 'user.x'"):
        await secrets.get("secret://env/db#user.x")


async def test_a_key_in_what_is_no_json_is_refused_without_showing_it() -> None:
    secrets, _ = manager(Provider({"a": "hunter2"}))
    with pytest.raises(SecretInvalid, match="the secret is not JSON") as caught:
        await secrets.get("secret://env/a#b")
    assert "hunter2" not in repr(caught.value)
    assert caught.value.__cause__ is None


async def test_a_failure_reaches_every_reader_and_is_not_kept() -> None:
    failure = SecretDenied("not for us")
    provider = Provider({"a": failure}, delay=1.0)
    secrets, _ = manager(provider)
    found = await asyncio.gather(*(secrets.get("a") for _ in range(3)), return_exceptions=True)
    assert found == [failure, failure, failure]
    provider.answers["a"] = "now"
    assert await value(secrets, "a") == "now"


async def test_a_cancelled_reader_does_not_take_the_value_from_the_others() -> None:
    provider = Provider(delay=2.0)
    secrets, _ = manager(provider)
    first, second = (asyncio.create_task(value(secrets, "a")) for _ in range(2))
    await advance(1.0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await second == "value-a"
    assert len(provider.asked) == 1


async def test_a_fetch_that_everybody_left_still_fills_the_cache() -> None:
    provider = Provider(delay=2.0)
    secrets, _ = manager(provider)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.0):
            await secrets.get("a")
    await advance(2.0)
    assert await value(secrets, "a") == "value-a"
    assert len(provider.asked) == 1


async def test_a_failure_that_nobody_waited_for_is_silent(recwarn: pytest.WarningsRecorder) -> None:
    provider = Provider({"a": SecretUnavailable("down")}, delay=2.0)
    secrets, _ = manager(provider)
    problems: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.0):
            await secrets.get("a")
    await advance(2.0)
    gc.collect()
    assert problems == []


async def test_a_fetch_belongs_to_no_run() -> None:
    provider = Provider()
    secrets, _ = manager(provider)
    run: Any = object()
    token = RUN.set(run)
    try:
        await secrets.get("a")
    finally:
        RUN.reset(token)
    assert provider.contexts == [(None, None)]


async def test_providers_are_made_and_opened_once_when_first_asked() -> None:
    made: list[str] = []
    provider = Provider(delay=1.0)
    host: Any = object()

    def make(name: str) -> Provider:
        made.append(name)
        return provider

    secrets = SecretsManager(make, Invocations(), host=host)
    assert made == []
    provider.answers["b"] = "value-b"
    await asyncio.gather(secrets.get("a"), secrets.get("b"))
    assert made == ["env"]
    assert provider.host is host


async def test_closing_closes_the_providers_that_were_used_and_stops_fetches() -> None:
    used, unused = Provider(delay=5.0), Provider()
    secrets = SecretsManager({"env": used, "vault": unused}, Invocations())
    reader = asyncio.create_task(secrets.get("a"))
    await advance(1.0)
    await secrets.aclose()
    with pytest.raises(
        SecretUnavailable, match="secret://env/a is not read any more: the runtime is closing"
    ):
        await reader
    assert (used.closed, unused.closed) == (1, 0)
    with pytest.raises(SecretUnavailable, match="the runtime is closing"):
        await secrets.get("a")


async def test_a_provider_that_cannot_be_closed_does_not_keep_the_others_open() -> None:
    class Stuck(Provider):
        async def aclose(self) -> None:
            raise OSError("stuck")

    first, second = Provider(), Stuck()
    secrets = SecretsManager({"env": first, "vault": second}, Invocations())
    await secrets.get("a")
    await secrets.get("secret://vault/a")
    with pytest.raises(OSError, match="stuck"):
        await secrets.aclose()
    assert first.closed == 1


async def test_a_provider_that_hangs_when_it_is_closed_does_not_keep_the_others_open() -> None:
    class Hangs(Provider):
        async def aclose(self) -> None:
            await asyncio.Event().wait()

    first, last = Provider(), Provider()
    secrets = SecretsManager({"first": first, "hangs": Hangs(), "last": last}, Invocations())
    for name in ("first", "hangs", "last"):
        await secrets.get(f"secret://{name}/a")
    clock = asyncio.get_running_loop().time
    began = clock()
    with pytest.raises(
        SecretUnavailable, match=r"^the secrets provider 'hangs' was not closed within 2\.0 s"
    ):
        await secrets.aclose(4.0)
    assert clock() == began + 2.0
    assert (first.closed, last.closed) == (1, 1)


async def test_an_unknown_provider_is_named() -> None:
    secrets, _ = manager(Provider())
    with pytest.raises(ConfigError, match=r"^there is no secrets provider 'aws'; there are: env, vault$"):
        await secrets.get("secret://aws/a")


async def test_providers_come_from_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYAPP_KEY", "mine")
    config = Config({"secrets": {"prefix": "MYAPP_", "providers": {"plain": {"plugin": "env"}}}})
    secrets = SecretsManager.from_config(config, Invocations())
    assert await value(secrets, "KEY") == "mine"
    assert await value(secrets, "secret://plain/MYAPP_KEY") == "mine"
    with pytest.raises(PluginError, match=r"^there is no secrets provider 'nowhere'; there are: .*plain"):
        await secrets.get("secret://nowhere/a")


async def test_only_so_many_values_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentrt.secrets.manager.MAX_KEPT", 2)
    provider = Provider({name: name for name in "abc"})
    secrets, _ = manager(provider)
    for name in "abcba":
        await secrets.get(name)
    assert [ref.name for ref in provider.asked] == ["a", "b", "c", "a"]


# --- opening ---------------------------------------------------------------------------------------------


class Needs:
    """A provider that opens with a secret of another one."""

    def __init__(self, reference: str) -> None:
        self.reference = reference
        self.key = ""
        self.closed = 0

    async def open(self, host: Any) -> None:
        self.key = await host.secret(self.reference)

    async def get(self, ref: SecretRef, /) -> str:
        return f"{ref.name} by {self.key}"

    async def aclose(self) -> None:
        self.closed += 1


class Host:
    """Resolves references with the manager that it is given to."""

    secrets: SecretsManager

    async def secret(self, reference: str, /) -> str:
        return (await self.secrets.get(reference)).reveal()


def chained(**providers: Any) -> SecretsManager:
    host: Any = Host()
    host.secrets = SecretsManager(providers, Invocations(), host=host)
    secrets: SecretsManager = host.secrets
    return secrets


async def test_a_provider_may_open_with_a_secret_of_another_one() -> None:
    secrets = chained(env=Provider(), vault=Needs("secret://env/a"), far=Needs("secret://vault/b"))
    assert await value(secrets, "secret://far/c") == "c by b by value-a"
    await secrets.aclose()


@pytest.mark.parametrize(
    ("providers", "chain"),
    [
        ({"vault": Needs("secret://vault/a")}, "vault -> vault"),
        ({"vault": Needs("secret://other/a"), "other": Needs("secret://vault/b")}, "vault -> other -> vault"),
    ],
)
async def test_a_provider_that_needs_itself_to_open_is_a_mistake_that_is_told(
    providers: dict[str, Needs], chain: str
) -> None:
    secrets = chained(**providers)
    with pytest.raises(ConfigError, match=rf"'vault' needs a secret of its own in order to open \({chain}\)"):
        await secrets.get("secret://vault/x")
    assert all(provider.closed for provider in providers.values())  # what was half open
    await secrets.aclose()


@pytest.mark.parametrize("first", ["secret://vault/a", "secret://vault/x"])
async def test_a_provider_that_opens_with_the_very_secret_that_is_read_waits_for_nothing(first: str) -> None:
    secrets = chained(vault=Needs("secret://vault/a"))
    clock = asyncio.get_running_loop().time
    began = clock()
    found = await asyncio.gather(
        *(secrets.get(reference) for reference in (first, "secret://vault/a", "secret://vault/y")),
        return_exceptions=True,
    )
    for error in found:
        assert isinstance(error, ConfigError)
        assert "'vault' needs a secret of its own in order to open (vault -> vault)" in str(error)
    assert clock() == began
    await secrets.aclose()


class LogsIn(Needs):
    """A provider that asks for that secret when something is read."""

    async def open(self, host: Any) -> None:
        self.host = host

    async def get(self, ref: SecretRef, /) -> str:
        return f"{ref.name} by {await self.host.secret(self.reference)}"


@pytest.mark.parametrize(
    ("providers", "circle"),
    [
        ({"vault": LogsIn("secret://vault/a")}, "vault/a"),
        ({"vault": LogsIn("a")}, "vault/a"),  # the default provider is meant
        ({"vault": LogsIn("secret://other/b"), "other": LogsIn("secret://vault/a")}, "vault/a"),
    ],
)
async def test_a_provider_that_logs_in_with_the_very_secret_that_is_read_waits_for_nothing(
    providers: dict[str, Needs], circle: str
) -> None:
    host: Any = Host()
    secrets = host.secrets = SecretsManager(providers, Invocations(), host=host, default="vault")
    clock = asyncio.get_running_loop().time
    began = clock()
    with pytest.raises(
        ConfigError, match=rf"^secret://{circle} is needed in order to read secret://{circle}: "
    ):
        await secrets.get("secret://vault/a")
    with pytest.raises(ConfigError, match="is needed in order to read"):
        await secrets.refresh("secret://vault/a")
    assert clock() == began
    await secrets.aclose()


async def test_a_callback_for_a_rotation_may_fetch_the_same_secret_again() -> None:
    provider = Provider({"a": "1"})
    secrets, _ = manager(provider)
    seen: list[str] = []

    async def rotated(new: Any) -> None:
        seen.append(new.reveal())
        seen.append((await secrets.refresh("a")).reveal())

    await value(secrets, "a")
    secrets.on_rotate("a", rotated)
    provider.answers["a"] = "2"
    await secrets.refresh("a")
    await asyncio.sleep(1.0)
    assert seen == ["2", "2"]
    await secrets.aclose()


async def test_providers_that_wait_for_each_other_do_not_wait_for_ever() -> None:
    one, other = Needs("secret://other/a"), Needs("secret://one/b")
    secrets = chained(one=one, other=other)
    found = await asyncio.gather(
        secrets.get("secret://one/x"), secrets.get("secret://other/y"), return_exceptions=True
    )
    assert all(isinstance(error, ConfigError | SecretUnavailable) for error in found)
    await secrets.aclose()


async def test_a_provider_that_does_not_open_in_time_is_unavailable_and_tried_again() -> None:
    provider = Provider(delay=3600.0)
    secrets = SecretsManager({"env": provider}, Invocations(), host=Host())  # type: ignore[arg-type]
    with pytest.raises(SecretUnavailable, match=r"^the secrets provider 'env' was not opened within 15 s$"):
        await secrets.get("a")
    assert provider.closed == 1
    provider.delay = 0.0
    assert await value(secrets, "a") == "value-a"
    await secrets.aclose()


async def test_a_provider_that_is_being_opened_when_the_manager_closes_is_let_go() -> None:
    provider = Provider(delay=5.0)
    secrets = SecretsManager({"env": provider}, Invocations(), host=Host())  # type: ignore[arg-type]
    reader = asyncio.create_task(secrets.get("a"))
    await advance(1.0)
    await secrets.aclose()
    with pytest.raises(SecretUnavailable):
        await reader
    assert provider.closed == 1


async def test_listing_waits_for_the_provider_to_open_and_may_be_cancelled() -> None:
    class Lists(Provider):
        async def list(self, prefix: str = "", /) -> list[str]:
            return ["a"]

    provider = Lists(delay=5.0)
    secrets = SecretsManager({"env": provider}, Invocations(), host=Host())  # type: ignore[arg-type]
    first, second = (asyncio.create_task(secrets.list()) for _ in range(2))
    await advance(1.0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await second == ["a"]
    await secrets.aclose()


async def test_what_cannot_be_opened_nor_closed_is_told_of_both(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Provider):
        async def open(self, host: Any) -> None:
            raise SecretDenied("the login was refused")

        async def aclose(self) -> None:
            raise OSError("no socket")

    secrets = SecretsManager({"env": Broken()}, Invocations(), host=Host())  # type: ignore[arg-type]
    with pytest.raises(SecretDenied, match="the login was refused"):
        await secrets.get("a")
    assert [record.message for record in caplog.records] == [
        "the secrets provider 'env', which was not opened, cannot be closed: OSError('no socket')"
    ]
    await secrets.aclose()


async def test_after_the_end_no_provider_is_opened() -> None:
    provider = Provider()
    secrets = SecretsManager({"env": provider}, Invocations(), host=Host())  # type: ignore[arg-type]
    await secrets.aclose()
    for ask in (secrets.get("a"), secrets.refresh("a"), secrets.list()):
        with pytest.raises(SecretUnavailable):
            await ask
    assert provider.host is None


async def test_what_is_watched_is_not_forgotten_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentrt.secrets.manager.MAX_KEPT", 2)
    provider = Provider({name: name for name in "abcdefghij"})
    secrets, _ = manager(provider)
    told: list[str] = []
    for name in "ab":
        secrets.on_rotate(name, lambda secret: told.append(secret.reveal()))
        await secrets.get(name)
    for name in "cdefghij":
        assert await value(secrets, name) == name
    asked = len(provider.asked)
    assert [await value(secrets, name) for name in "ab"] == ["a", "b"]
    assert len(provider.asked) == asked
    provider.answers["a"] = "other"
    await secrets.refresh("a")
    assert told == ["other"]
    await secrets.aclose()


async def test_a_secret_in_place_of_its_name_is_refused_and_not_shown() -> None:
    provider = Provider({})
    secrets, _ = manager(provider)
    key = "sk-proj-" + "a1B2c3D4e5F6g7H8i9J0"
    with pytest.raises(ConfigError, match=r"looks like a secret itself") as refused:
        await secrets.get(key)
    assert key not in str(refused.value)
    assert not provider.asked
