"""Secrets as a type checker sees them: what users call, what a provider is, and the tests that its author writes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import ClassVar, assert_type

from agentrt import Context, Runtime
from agentrt.plugins import Host
from agentrt.secrets import Secret, SecretRef, SecretsProvider, SecretValue
from agentrt.secrets.manager import SecretsManager
from agentrt.testing import SecretsProviderTests


class Smallest:
    async def get(self, ref: SecretRef, /) -> str:
        return ref.name


class Whole:
    cache_ttl = 5.0

    def __init__(self, *, token: str) -> None:
        self.token = token

    async def open(self, host: Host) -> None:
        value = await host.secret(self.token)
        assert_type(await host.secret_rejected(self.token, value), str)

    async def get(self, ref: SecretRef, /) -> SecretValue:
        return SecretValue(ref.name, version="1", lease="l", ttl=60.0, renewable=True)

    async def get_many(self, refs: Sequence[SecretRef], /) -> Mapping[SecretRef, str | SecretValue]:
        return {ref: await self.get(ref) for ref in refs}

    async def list(self, prefix: str = "", /) -> Sequence[str]:
        return [prefix]

    async def renew(self, value: SecretValue, /) -> SecretValue:
        return value

    async def revoke(self, value: SecretValue, /) -> None:
        del value

    async def aclose(self) -> None: ...


providers: list[SecretsProvider] = [Smallest(), Whole(token="secret://env/TOKEN")]


class TestWhole(SecretsProviderTests):
    credentials: ClassVar[Sequence[str]] = ("token",)

    def make(self) -> Whole:
        return Whole(token="secret://env/TOKEN")

    def store(self, name: str, value: str) -> SecretRef:
        del value
        return SecretRef(name)

    @contextmanager
    def failing(self) -> Generator[None]:
        yield


async def used(runtime: Runtime, ctx: Context) -> None:
    assert_type(await ctx.secret("secret://env/KEY"), str)
    assert_type(await runtime.secret("KEY"), str)
    secrets = runtime.secrets
    assert_type(secrets, SecretsManager)
    secret = await secrets.get("KEY")
    assert_type(secret, Secret)
    assert_type(secret.reveal(), str)
    assert_type(await secrets.get_many(["a", "b"]), dict[str, Secret])
    assert_type(await secrets.get_many([SecretRef("a")]), dict[SecretRef, Secret])
    assert_type(await secrets.list("file", "db/"), list[str])
    assert_type(await secrets.refresh("KEY"), Secret)
    assert_type(await secrets.rejected("KEY", "value"), Secret)
    stop = secrets.on_rotate("KEY", lambda new: print(new))
    assert_type(stop, Callable[[], None])

    async def reconnect(new: Secret) -> None:
        del new

    secrets.on_rotate(SecretRef("KEY"), reconnect)
    secrets.invalidate("KEY")
    secrets.invalidate()
    async with Runtime() as own:
        await SecretsManager({"mine": Smallest()}, own.invoke, ttl=60.0, jitter=0.1).aclose(1.0)
