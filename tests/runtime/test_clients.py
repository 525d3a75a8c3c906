"""Model clients are opened once, outside any run, and closed at the end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agentrt import ConfigError, PermanentError, PluginError, Runtime, TransientError, current
from agentrt.clients import Clients
from tests.runtime.doubles import FakeModel

pytestmark = [pytest.mark.asyncio, pytest.mark.virtual_time]


class Opening(FakeModel):
    def __init__(self, *errors: Exception, seconds: float = 1.0) -> None:
        super().__init__()
        self.errors = list(errors)
        self.seconds = seconds
        self.opened = 0
        self.closed = 0

    async def open(self, host: Any) -> None:
        self.opened += 1
        await asyncio.sleep(self.seconds)
        with pytest.raises(ConfigError):
            current()
        if self.errors:
            raise self.errors.pop(0)

    async def aclose(self) -> None:
        self.closed += 1


async def test_calls_at_once_open_a_client_once_and_a_cancelled_one_does_not_stop_it() -> None:
    client = Opening()
    clients = Clients(lambda prefix: client, None)
    first, second = (asyncio.ensure_future(clients.opened("x:one")) for _ in range(2))
    await asyncio.sleep(0.5)
    first.cancel()
    assert await second == (client, "one")
    assert await clients.opened("x:two") == (client, "two")
    assert client.opened == 1
    await clients.aclose()
    assert client.closed == 1


async def test_an_opening_that_failed_is_tried_again_by_the_next_call() -> None:
    client = Opening(TransientError("not yet"))
    clients = Clients(lambda prefix: client, None)
    with pytest.raises(TransientError, match="not yet"):
        await clients.opened("x:one")
    await clients.opened("x:one")
    assert client.opened == 2


async def test_closing_ends_an_opening_and_says_why() -> None:
    client = Opening(seconds=100)
    clients = Clients(lambda prefix: client, None)
    call = asyncio.ensure_future(clients.opened("x:one"))
    await asyncio.sleep(1)
    await clients.aclose()
    with pytest.raises(ConfigError, match="the runtime is closed"):
        await call
    with pytest.raises(ConfigError, match="the runtime is closed"):
        clients.client("y:one")


async def test_a_client_that_fails_to_close_does_not_keep_the_others_open() -> None:
    class Failing(Opening):
        async def aclose(self) -> None:
            raise OSError("stuck")

    made = {"a": Failing(), "b": Opening()}
    clients = Clients(lambda prefix: made[prefix], None)
    clients.client("a:m")
    clients.client("b:m")
    with pytest.raises(OSError, match="stuck"):
        await clients.aclose()
    assert made["b"].closed == 1


async def test_a_broken_plugin_names_the_model_that_wanted_it() -> None:
    def make(prefix: str) -> Any:
        raise PluginError("broken")

    with pytest.raises(PluginError, match='model "x:one": broken'):
        Clients(make, None).client("x:one")


class Checked(Opening):
    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, Any]] = []

    async def check(self, model: str, host: Any) -> None:
        self.asked.append((model, host))
        if model == "locked":
            raise PermanentError("no key", fault="target")


async def test_a_check_asks_the_client_and_opens_nothing() -> None:
    client, host = Checked(), object()
    clients = Clients(lambda prefix: client, host)
    await clients.check("x:one")
    with pytest.raises(PermanentError, match="no key"):
        await clients.check("x:locked")
    assert client.asked == [("one", host), ("locked", host)]
    assert client.opened == 0
    with pytest.raises(ConfigError, match="prefix:name"):
        await clients.check("one")


async def test_a_runtime_checks_clients_of_its_own_and_those_that_it_was_given() -> None:
    given = Checked()
    async with Runtime(models={"fake": given, "plain": Opening()}) as rt:
        await rt.check_model("plain:m")
        with pytest.raises(PermanentError, match="no key"):
            await rt.check_model("fake:locked")
        with pytest.raises(ConfigError, match="no script named 'nowhere'"):
            await rt.check_model("scripted:nowhere")
