"""Sync tools run in worker threads, through the same pipeline. Their limits are of virtual time: a thread that begins
late has its time all the same."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from agentrt import Agent, AttemptTimeout, Config, Context, Runtime, tool
from tests.runtime.doubles import FakeModel, wants

pytestmark = [pytest.mark.asyncio, pytest.mark.virtual_time]


async def test_a_stuck_thread_is_named_and_its_call_is_not_repeated() -> None:
    release = threading.Event()
    calls: list[int] = []

    @tool(idempotent=True, timeout=5)
    def stuck() -> str:
        calls.append(1)
        release.wait(50)
        return "late"

    async def agent(message: str, ctx: Context) -> Any:
        return await ctx.tool(stuck)

    try:
        async with Runtime() as runtime:
            with pytest.raises(AttemptTimeout) as caught:
                await runtime.run(agent, "go")
            assert not release.is_set(), "the call is over before the thread is"
    finally:
        release.set()
    assert calls == [1]
    assert caught.value.executed is None
    assert any("'tool:stuck' cannot be cancelled and goes on" in note for note in caught.value.__notes__)


async def test_an_abandoned_thread_keeps_its_permit_until_it_ends() -> None:
    release = threading.Event()

    @tool(timeout=5)
    def stuck() -> str:
        release.wait(50)
        return "late"

    class Two(Agent):
        model = "fake:one"
        tools = (stuck,)

    model = FakeModel([wants("stuck")], [wants("stuck")], "given up")
    config = Config({"pipeline": {"tool": {"bulkhead": {"limit": 1}}}})
    try:
        async with Runtime(config, models={"fake": model}) as runtime:
            await runtime.run(Two, "go")
    finally:
        release.set()
    assert "BulkheadFull" in str(model.requests[2].messages[-1].content)


async def test_a_sync_tool_sees_the_context_of_its_run() -> None:
    from agentrt import current

    @tool
    def whose() -> str:
        return current().id

    async def agent(message: str, ctx: Context) -> bool:
        return await ctx.tool(whose) == ctx.id

    async with Runtime() as runtime:
        assert (await runtime.run(agent, "go")).output is True
