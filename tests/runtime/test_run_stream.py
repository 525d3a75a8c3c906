"""A watched run: it is never left behind, whatever happens to whoever watches."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest

from agentrt import ConfigError, Context, Runtime, tool
from agentrt.events import ReasoningDelta, TextDelta, encode
from agentrt.run_stream import FINE, PIECE, RunStream
from agentrt.testing import run as run_on_virtual_time
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
        return heard.wait(50)

    async def agent(message: str, ctx: Context) -> Any:
        return await ctx.tool(teller)

    async with Runtime() as rt, rt.stream(agent, "go") as run:
        async for event in run:
            if event.__struct_config__.tag == "warning":
                heard.set()
    assert run.result.output is True


async def test_text_that_nobody_reads_is_joined_and_none_of_it_lost() -> None:
    words = [f"w{n} " for n in range(50_000)]

    async def talker(message: str) -> Any:
        for n, word in enumerate(words):
            yield word
            if n % 100 == 0:
                await asyncio.sleep(0)

    async with Runtime() as rt, rt.stream(talker, "go") as run:
        assert run._task is not None
        await asyncio.wait([run._task])
        waiting = len(run._events)
        seen = [event async for event in run]
    assert waiting < FINE + 2 + sum(map(len, words)) / PIECE + 1
    assert "".join(event.text for event in seen if isinstance(event, TextDelta)) == "".join(words)
    assert types(seen[:1]) == ["run_started"]
    assert types(seen[-1:]) == ["run_finished"]
    assert [event.at for event in seen] == sorted(event.at for event in seen)


async def test_joined_text_stays_before_what_its_run_does_next_and_apart_from_reasoning() -> None:
    async def agent(message: str, ctx: Context) -> str:
        for _ in range(FINE):
            ctx.warn("much")
        for text in ("a", "b"):
            ctx.emit(TextDelta(run=ctx.id, at=ctx.elapsed, text=text))
        ctx.emit(ReasoningDelta(run=ctx.id, at=ctx.elapsed, text="why"))
        ctx.emit(TextDelta(run=ctx.id, at=ctx.elapsed, text="c"))
        ctx.warn("between")
        for text in ("d", "e"):
            ctx.emit(TextDelta(run=ctx.id, at=ctx.elapsed, text=text))
        return message

    async with Runtime() as rt, rt.stream(agent, "go") as run:
        seen = [event async for event in run]
    told = [event for event in seen if getattr(event, "message", "") != "much"]
    assert types(told) == [
        *("run_started", "text_delta", "reasoning_delta", "text_delta", "warning", "text_delta"),
        "run_finished",
    ]
    assert [getattr(event, "text", "") for event in told[1:6]] == ["ab", "why", "c", "", "de"]


async def test_texts_of_children_at_the_same_time_are_joined_each_on_its_own() -> None:
    async def child(message: str) -> Any:
        for n in range(5000):
            yield f"{message}{n} "
            await asyncio.sleep(1)

    async def parent(message: str, ctx: Context) -> list[str]:
        results = await asyncio.gather(*(ctx.run(child, name) for name in ("x", "y", "z")))
        return [result.text for result in results]

    async with Runtime() as rt, rt.stream(parent, "go") as run:
        await asyncio.sleep(10_000)
        waiting = len(run._events)
        seen = [event async for event in run]
    assert waiting < FINE + 50
    said: dict[str, str] = {}
    for event in seen:
        if isinstance(event, TextDelta):
            said[event.run] = said.get(event.run, "") + event.text
    assert sorted(said.values()) == sorted(run.result.output)


async def test_text_is_given_as_it_came_to_whoever_reads_in_time() -> None:
    async def talker(message: str) -> Any:
        for n in range(3 * FINE):
            yield str(n)
            await asyncio.sleep(1)

    async with Runtime() as rt, rt.stream(talker, "go") as run:
        texts = [event.text async for event in run if isinstance(event, TextDelta)]
    assert texts == [str(n) for n in range(3 * FINE)]


async def test_a_run_that_nobody_reads_ends_all_the_same() -> None:
    async def talker(message: str) -> Any:
        for n in range(3 * FINE):
            yield str(n)
            await asyncio.sleep(0.01)

    async with Runtime() as rt, rt.stream(talker, "go") as run:
        await asyncio.sleep(60)
        assert run.result.text.startswith("012")


async def test_nothing_comes_after_the_last_event() -> None:
    late: list[asyncio.Task[None]] = []

    async def agent(message: str, ctx: Context) -> str:
        async def tell() -> None:
            await asyncio.sleep(1)
            ctx.warn("too late")

        late.append(asyncio.ensure_future(tell()))
        return message

    async with Runtime() as rt, rt.stream(agent, "go") as run:
        await asyncio.sleep(5)
        assert types([event async for event in run]) == ["run_started", "run_finished"]
    await late[0]


def _broken() -> Any:
    raise KeyError("no such thing")


@pytest.mark.parametrize(
    ("agent", "message", "error"),
    [
        (object(), "go", "ConfigError"),
        (_broken, "go", "KeyError"),
        (lambda: None, "go", "ConfigError"),
        (str.upper, " ", "ConfigError"),
    ],
)
async def test_a_run_that_never_began_gives_a_run_failed_and_raises_its_error(
    agent: Any, message: str, error: str
) -> None:
    seen: list[Any] = []
    async with Runtime() as rt, rt.stream(agent, message) as run:
        raised = await watch(run, seen)
    assert types(seen) == ["run_failed"]
    assert (seen[0].error, seen[0].message, seen[0].run) == (error, str(raised), "")
    assert type(raised).__name__ == error


@pytest.mark.parametrize("message", ["", " \n", []])
async def test_an_empty_message_gives_a_run_failed(message: Any) -> None:
    async def agent(message: str) -> str:
        return message

    seen: list[Any] = []
    async with Runtime() as rt, rt.stream(agent, message) as run:
        raised = await watch(run, seen)
        assert isinstance(raised, ConfigError)
    assert types(seen) == ["run_failed"]
    assert seen[0].message == "the message is empty"


async def test_a_run_that_is_cancelled_before_it_began_gives_a_run_failed() -> None:
    async def agent(message: str) -> str:
        return message

    async with Runtime() as rt, rt.stream(agent, "go") as run:
        run.cancel()
        assert types([await anext(run)]) == ["run_failed"]
        with pytest.raises(asyncio.CancelledError):
            await anext(run)


async def test_reading_before_the_run_was_started_says_how_to_start_it() -> None:
    async with Runtime() as rt:
        with pytest.raises(RuntimeError, match="async with"):
            await anext(rt.stream(object(), "go"))


async def test_a_thread_that_outlives_the_loop_may_still_tell_something() -> None:
    told: list[BaseException | None] = []
    may_end, ended = threading.Event(), threading.Event()

    @tool(timeout=1)
    def stubborn(ctx: Context) -> None:
        may_end.wait(50)
        try:
            ctx.warn("nobody listens")
            told.append(None)
        except BaseException as error:
            told.append(error)
        ended.set()

    async def agent(message: str, ctx: Context) -> Any:
        return await ctx.tool(stubborn)

    async def run_it() -> None:
        async with Runtime() as rt, rt.stream(agent, "go") as run:
            await watch(run, [])

    thread = threading.Thread(target=run_on_virtual_time, args=(run_it,))
    thread.start()
    await asyncio.to_thread(thread.join, 50)
    assert not thread.is_alive()
    may_end.set()
    assert await asyncio.to_thread(ended.wait, 50)
    assert told == [None]


def _contains_itself() -> list[Any]:
    output: list[Any] = ["x"]
    output.append(output)
    return output


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("a\ud800b", "a\\ud800b"),
        ({"k": "a\ud800b"}, "{'k': 'a\\ud800b'}"),
        (_contains_itself(), "['x', [...]]"),
        (["a", "\ud800"], ["a", "\\ud800"]),
    ],
    ids=["surrogate", "nested", "recursive", "list"],
)
async def test_every_output_can_be_encoded(output: Any, said: Any) -> None:
    async def agent(message: str) -> Any:
        return output

    async with Runtime() as rt, rt.stream(agent, "go") as run:
        seen = [event async for event in run]
    assert types(seen[-1:]) == ["run_finished"]
    line = json.loads(encode(seen[-1]))
    assert (line["type"], line["output"], line["run"]) == ("run_finished", said, run.result.run_id)


async def test_an_output_that_cannot_be_shown_fails_the_run_with_its_event() -> None:
    class Shy:
        def __str__(self) -> str:
            raise ValueError("not for show")

    async def agent(message: str) -> Any:
        return Shy()

    seen: list[Any] = []
    async with Runtime() as rt, rt.stream(agent, "go") as run:
        error = await watch(run, seen)
    assert isinstance(error, ValueError)
    assert types(seen)[-1] == "run_failed"
