"""The runtime without a loop of the test's own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agentrt import Agent, ConfigError, Runtime
from tests.runtime.doubles import FakeModel


class Assistant(Agent):
    model = "fake:one"


def test_a_result_is_short_to_look_at() -> None:
    async def main() -> Any:
        async with Runtime(models={"fake": FakeModel("ok")}) as rt:
            return await rt.run(Assistant, "go")

    assert len(repr(asyncio.run(main()))) < 300


def test_a_runtime_belongs_to_one_event_loop() -> None:
    runtime = Runtime(models={"fake": FakeModel("ok", "ok")})
    asyncio.run(runtime.run(Assistant, "go"))
    with pytest.raises(ConfigError, match="belongs to the event loop of its first run"):
        asyncio.run(runtime.run(Assistant, "go"))
