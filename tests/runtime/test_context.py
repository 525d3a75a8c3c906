"""What a context gives its agent: calls that belong to the run, tokens, and the small services."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec
import pytest

from agentrt import (
    Agent,
    Config,
    ConfigError,
    Context,
    DeadlineExceeded,
    Limits,
    PermanentError,
    Runtime,
    TransientError,
    current,
    tool,
)
from agentrt.models.protocol import ModelResponse, Usage
from agentrt.telemetry.memory import InMemory
from tests.runtime.doubles import FakeModel, types, wants, watch

pytestmark = [pytest.mark.asyncio, pytest.mark.virtual_time]


class Person(msgspec.Struct):
    name: str


class Extractor(Agent):
    model = "fake:one"
    output = Person


async def test_a_context_that_was_kept_still_makes_calls_of_its_own_run() -> None:
    kept: list[Context] = []

    async def agent(message: str, ctx: Context) -> str:
        kept.append(ctx)
        return message

    async def child(message: str, ctx: Context) -> str:
        await kept[0].model("for the first", model="fake:x")
        return message

    async with Runtime(models={"fake": FakeModel("a", "b")}) as rt:
        await rt.run(agent, "go", limits=Limits(seconds=10))
        await kept[0].model("hi", model="fake:x")
        result = await rt.run(child, "go")
        assert [call.target for call in kept[0].calls] == ["fake:x"] * 2
        assert result.record == []
        await asyncio.sleep(20)
        with pytest.raises(DeadlineExceeded) as caught:
            await kept[0].model("late", model="fake:x")
        assert caught.value.scope == "run"


async def test_the_tokens_of_a_stream_are_noted_and_those_of_a_broken_one_estimated() -> None:
    async def agent(message: str, ctx: Context) -> str:
        await _consume(ctx)
        whole = ctx.usage
        assert whole == Usage(10, 5)
        async with ctx.stream_model("hello", model="fake:x") as stream:
            async for _ in stream:
                break
        assert ctx.usage.estimated
        assert ctx.usage.total_tokens > whole.total_tokens
        left = ctx.usage
        with pytest.raises(TransientError):
            await _consume(ctx)
        assert ctx.usage.total_tokens > left.total_tokens
        return message

    model = FakeModel("one two", "three four", ("some text", TransientError("cut")))  # type: ignore[arg-type]
    async with Runtime(models={"fake": model}) as rt:
        await rt.run(agent, "go")
        backend = rt.telemetry.backends[0][1]
        assert isinstance(backend, InMemory)
        assert next(iter(backend)).usage == Usage(10, 5)


@pytest.mark.parametrize("how", ["left", "failed", "cancelled"])
async def test_telemetry_is_handed_the_estimate_of_a_stream_that_was_broken_off(how: str) -> None:
    async def agent(message: str, ctx: Context) -> str:
        async with ctx.stream_model("x" * 40, model="fake:x") as stream:
            async for _ in stream:
                if how == "left":
                    break
                if how == "cancelled":
                    await asyncio.sleep(100)
        return message

    handed: list[Usage] = []
    model = FakeModel(("four ", "more", TransientError("cut")))  # type: ignore[arg-type]
    async with Runtime(models={"fake": model}) as rt:
        backend = rt.telemetry.backends[0][1]
        assert isinstance(backend, InMemory)
        async with rt.stream(agent, "go", limits=Limits(seconds=10)) as run:
            await watch(run, [])
        handed = [call.usage for call in backend]
    tokens = {"left": 2, "failed": 3, "cancelled": 2}
    assert handed == [Usage(10, tokens[how], estimated=True)]


async def test_the_arguments_of_a_broken_off_tool_call_are_estimated_too() -> None:
    async def agent(message: str, ctx: Context) -> Usage:
        async with ctx.stream_model("hello", model="fake:x") as stream:
            async for _ in stream:
                break
        return ctx.usage

    model = FakeModel([wants("name", '{"city": "Reykjavik, Iceland"}')])
    async with Runtime(models={"fake": model}) as rt:
        result = await rt.run(agent, "go")
    assert result.output == Usage(2, 9, estimated=True)


async def _consume(ctx: Context) -> None:
    async with ctx.stream_model("hello", model="fake:x") as stream:
        async for _ in stream:
            pass


async def test_what_rejected_answers_took_is_counted() -> None:
    async with Runtime(models={"fake": FakeModel('{"x": 1}', '{"name": "Ada"}')}) as rt:
        result = await rt.run(Extractor, "who?")
    assert result.output == Person("Ada")
    assert result.usage == Usage(20, 10)


async def test_a_structured_answer_is_asked_for_again_in_a_watched_run_as_well() -> None:
    model = FakeModel('{"x": 1}', '{"name": "Ada"}')
    async with Runtime(models={"fake": model}) as rt, rt.stream(Extractor, "who?") as run:
        seen = [event async for event in run]
    assert run.result.output == Person("Ada")
    assert types(seen) == ["run_started", "model_started", "retry", "model_finished", "run_finished"]


async def test_a_withheld_structured_answer_is_not_asked_for_again() -> None:
    model = FakeModel(*[ModelResponse(finish="content_filter")] * 3)
    async with Runtime(models={"fake": model}) as rt:
        with pytest.raises(PermanentError, match="content filter"):
            await rt.run(Extractor, "who?")
    assert len(model.requests) == 1


async def test_a_run_is_degraded_if_its_child_is() -> None:
    class Two(Agent):
        model = ("bad:one", "fake:two")

    async def parent(message: str, ctx: Context) -> str:
        return str((await ctx.run(Two, message)).text)

    models = {"bad": FakeModel(*[TransientError("down")] * 3), "fake": FakeModel("ok")}
    async with Runtime(models=models) as rt:
        assert (await rt.run(parent, "go")).degraded


async def test_a_child_has_its_own_usage_and_its_parent_that_of_both() -> None:
    used: list[int] = []

    class Child(Agent):
        model = "fake:two"

    async def parent(message: str, ctx: Context) -> str:
        await ctx.model("hi", model="fake:one")
        used.append((await ctx.run(Child, message)).usage.total_tokens)
        return ""

    answer = ModelResponse(text="ok", usage=Usage(input_tokens=3, output_tokens=4))
    async with Runtime(models={"fake": FakeModel(answer, answer)}) as rt:
        used.append((await rt.run(parent, "go")).usage.total_tokens)
    assert used == [7, 14]


async def test_the_causes_of_a_bug_are_not_what_an_earlier_call_overcame() -> None:
    async def agent(message: str, ctx: Context) -> str:
        await ctx.model("hi", model="fake:x")
        raise KeyError("bug")

    seen: list[Any] = []
    model = FakeModel(TransientError("blip"), "ok")
    async with Runtime(models={"fake": model}) as rt, rt.stream(agent, "go") as run:
        await watch(run, seen)
    assert seen[-1].error == "KeyError"
    assert seen[-1].causes == []


async def test_each_tool_call_of_the_model_has_its_own_number() -> None:
    @tool
    async def good() -> str:
        return "good"

    class Using(Agent):
        model = "fake:one"
        tools = (good,)

    calls = [wants("unknown", id="a"), wants("good", id="b")]
    async with Runtime(models={"fake": FakeModel(calls, "ok")}) as rt, rt.stream(Using, "go") as run:
        seen = [event async for event in run]
    started = [event.call for event in seen if event.__struct_config__.tag == "tool_started"]
    finished = [event.call for event in seen if event.__struct_config__.tag == "tool_finished"]
    assert started == [1, 2]
    assert sorted(finished) == [1, 2]


@pytest.mark.parametrize("count", [1, 2])
async def test_the_deadline_of_a_run_does_not_cut_a_cleanup_that_a_limit_began(count: int) -> None:
    ended: list[int] = []

    @tool(timeout=2)
    async def slow(n: int) -> str:
        try:
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(5)
            ended.append(n)
        return "never"

    class Using(Agent):
        model = "fake:one"
        tools = (slow,)

    calls = [wants("slow", f'{{"n": {n}}}', id=str(n)) for n in range(count)]
    async with Runtime(models={"fake": FakeModel(calls)}) as rt:
        with pytest.raises(DeadlineExceeded):
            await rt.run(Using, "go", limits=Limits(seconds=3))
    assert ended == list(range(count))


def _of_the_context(ctx: Context) -> str:
    return f"for {ctx.agent_name}"


class _Base(Agent):
    model = "fake:one"
    topic = "weather"


class _Lambda(_Base):
    instructions = lambda ctx: f"for {ctx.agent_name}"  # noqa: E731


class _Function(_Base):
    instructions = _of_the_context


class _Static(_Base):
    instructions = staticmethod(_of_the_context)


class _Method(_Base):
    def instructions(self, ctx: Context) -> str:  # type: ignore[override]
        return f"{self.topic} for {ctx.agent_name}"


class _MethodAlone(_Base):
    def instructions(self) -> str:  # type: ignore[override]
        return self.topic


class _LambdaOfSelf(_Base):
    instructions = lambda self: self.topic  # noqa: E731


def _with_its_own() -> Agent:
    agent = _Base()
    agent.instructions = _of_the_context
    return agent


@pytest.mark.parametrize(
    ("agent", "wanted"),
    [
        (_Lambda, "for _Lambda"),
        (_Function, "for _Function"),
        (_Static, "for _Static"),
        (_Method, "weather for _Method"),
        (_MethodAlone, "weather"),
        (_LambdaOfSelf, "weather"),
        (_with_its_own(), "for _Base"),
    ],
)
async def test_instructions_may_be_a_function_wherever_it_stands(agent: Any, wanted: str) -> None:
    model = FakeModel("ok")
    async with Runtime(models={"fake": model}) as rt:
        await rt.run(agent, "go")
    assert (model.requests[0].messages[0].role, model.requests[0].messages[0].content) == ("system", wanted)


async def test_instructions_that_are_no_text_are_refused() -> None:
    class Wrong(Agent):
        model = "fake:one"

        async def instructions(self, ctx: Context) -> str:  # type: ignore[override]
            return "hi"

    async with Runtime(models={"fake": FakeModel("ok")}) as rt:
        with pytest.raises(ConfigError, match=r"must be text, or a plain function .* not coroutine"):
            await rt.run(Wrong, "go")


async def test_the_small_services(caplog: pytest.LogCaptureFixture) -> None:
    async def key(ctx: Context) -> str | None:
        return ctx.idempotency_key

    async def agent(message: str, ctx: Context) -> Any:
        assert current() is ctx
        assert ctx.idempotency_key is None
        ctx.log("info", "hello", answer=42)
        with pytest.raises(ConfigError, match="'loud' is not a log level"):
            ctx.log("loud", "hello")
        with pytest.raises(ConfigError, match="the list of models is empty"):
            await ctx.model("hi", model=[])
        ctx.warn("nobody watches")
        answer = await ctx.model([{"role": "user", "content": "hi"}], model="fake:x", output=Person)
        return answer, await ctx.tool(key), await ctx.tool(key)

    with caplog.at_level(logging.INFO, "agentrt.run"):
        async with Runtime(models={"fake": FakeModel('{"name": "Ada"}')}) as rt:
            result = await rt.run(agent, "go")
    answer, first, second = result.output
    assert answer == Person("Ada")
    assert first != second
    assert first.startswith(result.run_id)
    hello, warning = caplog.records
    assert (hello.getMessage(), hello.context) == ("hello", {"answer": 42})  # type: ignore[attr-defined]
    assert (warning.levelname, warning.getMessage()) == ("WARNING", "nobody watches")


async def test_a_memory_forgets() -> None:
    async def agent(message: str, ctx: Context) -> int:
        id = await ctx.memory.add("a cat")
        await ctx.memory.forget(id)
        return len(await ctx.memory.search("cat"))

    async with Runtime(Config({"memory": {"path": ":memory:"}})) as rt:
        assert (await rt.run(agent, "go")).output == 0


async def test_outside_a_run_there_is_no_current_one() -> None:
    with pytest.raises(ConfigError, match="there is no run here"):
        current()


async def test_wrong_arguments_of_the_context_are_told() -> None:
    async def agent(message: str, ctx: Context) -> Any:
        with pytest.raises(ConfigError, match="not 5"):
            await ctx.model(message, model=5)  # type: ignore[call-overload]
        with pytest.raises(
            ConfigError, match=r"ctx\.call takes an async function of no arguments to call, not 3"
        ):
            await ctx.call("x", "y", 3)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="target must be a name, not ''"):
            await ctx.call("x", "", key)  # type: ignore[arg-type]
        return "ok"

    async def key() -> str:
        return ""

    async with Runtime() as rt:
        assert (await rt.run(agent, "go")).text == "ok"


def _cleaning(log: list[tuple[str, str, float]], name: str, *, timeout: float | None = None) -> Any:
    """A tool that never ends, and cleans up for 5 s once it is cancelled."""

    @tool(name=name, idempotent=True, timeout=timeout)
    async def hanging(ctx: Context) -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            log.append((name, "cancelled", ctx.elapsed))
            try:
                await asyncio.sleep(5)
                log.append((name, "cleaned up", ctx.elapsed))
            except asyncio.CancelledError:
                log.append((name, "cut", ctx.elapsed))
                raise

    return hanging


async def _gathered(first: Any, second: Any, ctx: Context) -> Any:
    return await asyncio.gather(ctx.tool(first), ctx.tool(second))


async def _grouped(first: Any, second: Any, ctx: Context) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(ctx.tool(first))
        group.create_task(ctx.tool(second))


@pytest.mark.parametrize("together", [_gathered, _grouped])
async def test_the_runs_deadline_cancels_each_tool_of_a_gather_once(together: Any) -> None:
    log: list[tuple[str, str, float]] = []

    async def agent(message: str, ctx: Context) -> None:
        await together(_cleaning(log, "a"), _cleaning(log, "b"), ctx)

    async with Runtime() as rt:
        with pytest.raises(DeadlineExceeded) as caught:
            await rt.run(agent, "go", limits=Limits(seconds=10))
    assert caught.value.scope == "run"
    assert sorted(log) == [
        (name, what, pytest.approx(at))
        for name in "ab"
        for what, at in (("cancelled", 10), ("cleaned up", 15))
    ]


async def test_the_runs_deadline_does_not_wait_for_a_cleanup_in_a_gather_of_the_agents_own() -> None:
    # asyncio hands the cancellation on to the children. That a run ends in time goes before the cleanup of a tool
    # that has had its time; awaited directly, or called by the model, it is let finish.
    log: list[tuple[str, str, float]] = []

    async def agent(message: str, ctx: Context) -> None:
        await _gathered(_cleaning(log, "late", timeout=8), _cleaning(log, "b"), ctx)

    async with Runtime() as rt:
        with pytest.raises(DeadlineExceeded, match="the run's deadline of 10 s"):
            await rt.run(agent, "go", limits=Limits(seconds=10))
        assert log[:2] == [("late", "cancelled", pytest.approx(8)), ("late", "cut", pytest.approx(10))]
        await asyncio.sleep(10)
    assert ("b", "cleaned up", pytest.approx(15)) in log


async def test_the_runs_deadline_waits_for_a_cleanup_that_the_agent_awaits_directly() -> None:
    log: list[tuple[str, str, float]] = []

    async def agent(message: str, ctx: Context) -> None:
        await ctx.tool(_cleaning(log, "late", timeout=8))

    async with Runtime() as rt:
        with pytest.raises(TimeoutError):
            await rt.run(agent, "go", limits=Limits(seconds=10))
    assert log == [("late", "cancelled", pytest.approx(8)), ("late", "cleaned up", pytest.approx(13))]


async def test_a_cleanup_that_fails_after_the_runs_deadline_is_its_cause() -> None:
    async def agent(message: str) -> None:
        try:
            await asyncio.sleep(100)
        finally:
            raise KeyError("in the cleanup")

    async with Runtime() as rt:
        with pytest.raises(DeadlineExceeded, match="the run's deadline of 10 s") as caught:
            await rt.run(agent, "go", limits=Limits(seconds=10))
    assert caught.value.scope == "run"
    assert isinstance(caught.value.__cause__, KeyError)
    assert caught.value.__notes__ == ["what was running then failed: KeyError: 'in the cleanup'"]
