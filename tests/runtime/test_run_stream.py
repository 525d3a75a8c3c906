"""A watched run: it is never left behind, whatever happens to whoever watches."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from agentrt import ConfigError, Context, Runtime, tool
from agentrt.run_stream import RunStream
from tests.runtime.doubles import types, watch

pytestmark = [pytest.mark.asyncio, pytest.mark.virtual_time]


async def test_cancelled_while_leaving_the_run_is_still_not_left_behind() -> None:
    ended: list[str] = []

    async def slow(message: str) -> str:
        try:
            await asyncio.sleep(100)
        finally:
            try:
                await asyncio.sleep(50)
            finally:
                await asyncio.sleep(1)
                ended.append("ended")
        return message

    async with Runtime() as rt:

        async def consumer() -> None:
            async with rt.stream(slow, "go") as run:
                async for _ in run:
                    break

        task = asyncio.ensure_future(consumer())
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended == ["ended"]


async def test_a_stream_is_started_once() -> None:
    async def agent(message: str) -> str:
        return message

    async with Runtime() as rt:
        stream = rt.stream(agent, "go")
        with pytest.raises(RuntimeError, match="has not ended yet"):
            stream.result  # noqa: B018
        stream.cancel()  # nothing to cancel
        async with stream:
            with pytest.raises(RuntimeError, match="started already"):
                await stream.__aenter__()


async def test_an_exception_in_the_block_is_what_comes_out() -> None:
    async def failing(message: str) -> str:
        try:
            await asyncio.sleep(100)
        finally:
            raise KeyError("in the cleanup")

    async with Runtime() as rt:
        stream = rt.stream(failing, "go")
        with pytest.raises(ValueError, match="mine"):
            await _fail_in(stream)


async def _fail_in(stream: RunStream) -> None:
    async with stream:
        await asyncio.sleep(1)
        raise ValueError("mine")


async def test_a_cancelled_run_gives_its_last_event_and_then_says_so() -> None:
    async def slow(message: str) -> str:
        await asyncio.sleep(100)
        return message

    seen: list[Any] = []
    async with Runtime() as rt, rt.stream(slow, "go") as run:
        seen.append(await anext(run))
        run.cancel()
        seen.append(await anext(run))
        with pytest.raises(asyncio.CancelledError):
            await anext(run)
        assert [event async for event in run] == []
    assert types(seen) == ["run_started", "run_failed"]


async def test_a_run_that_never_began_raises_its_error() -> None:
    async with Runtime() as rt, rt.stream(object(), "go") as run:
        error = await watch(run, [])
    assert isinstance(error, ConfigError)


async def test_two_who_watch_share_the_events_and_both_end() -> None:
    async def agent(message: str, ctx: Context) -> str:
        for n in range(3):
            await asyncio.sleep(1)
            ctx.warn(str(n))
        return message

    async with Runtime() as rt, rt.stream(agent, "go") as run:

        async def consume() -> list[Any]:
            return [event async for event in run]

        both = await asyncio.gather(consume(), consume())
    assert sorted(types([*both[0], *both[1]])) == ["run_finished", "run_started", *["warning"] * 3]


async def test_what_a_worker_thread_tells_arrives_while_it_works() -> None:
    heard = threading.Event()

    @tool
    def teller(ctx: Context) -> bool:
        ctx.warn("from the thread")
        return heard.wait(5)

    async def agent(message: str, ctx: Context) -> Any:
        return await ctx.tool(teller)

    async with Runtime() as rt, rt.stream(agent, "go") as run:
        async for event in run:
            if event.__struct_config__.tag == "warning":
                heard.set()
    assert run.result.output is True
