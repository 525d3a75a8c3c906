"""The agent loop: model, tools, model; limits, failures, history, streaming, cancellation."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from agentrt import (
    Agent,
    ConfigError,
    Context,
    DeadlineExceeded,
    Limits,
    PermanentError,
    RunLimitExceeded,
    Runtime,
    Session,
    ToolError,
    TransientError,
    tool,
)
from agentrt.events import ModelFinished, ReasoningDelta, TextDelta
from agentrt.middleware import Fallback
from agentrt.models.protocol import ModelResponse, Usage
from agentrt.models.protocol import TextDelta as StreamedText
from tests.runtime.doubles import FakeModel, types, wants, watch

pytestmark = [pytest.mark.asyncio, pytest.mark.virtual_time]


@tool(idempotent=True)
async def weather(city: str, days: int = 1) -> str:
    """The weather in a city."""
    return f"sunny in {city} for {days}"


class Assistant(Agent):
    model = "fake:one"
    instructions = "Be brief."
    tools = (weather,)


def runtime_with(*steps: Any, delay: float = 0.0) -> tuple[Runtime, FakeModel]:
    model = FakeModel(*steps, delay=delay)
    return Runtime(models={"fake": model}), model


async def test_model_tool_model_gives_the_answer_and_its_record() -> None:
    runtime, model = runtime_with([wants("weather", '{"city": "Oslo"}')], "It is sunny.")
    async with runtime:
        result = await runtime.run(Assistant, "weather?")
    assert result.text == "It is sunny."
    assert result.usage == Usage(20, 10)
    assert [call.target for call in result.record] == ["fake:one", "tool:weather", "fake:one"]
    assert not result.degraded
    second = model.requests[1].messages
    assert [message.role for message in second] == ["system", "user", "assistant", "tool"]
    assert (second[3].content, second[3].tool_call_id) == ("sunny in Oslo for 1", "call-1")
    assert [spec.name for spec in model.requests[0].tools] == ["weather"]


async def test_the_history_of_a_session_goes_into_the_next_turn() -> None:
    runtime, model = runtime_with("one", "two")
    session = Session()
    async with runtime:
        await runtime.run(Assistant, "first", session=session)
        await runtime.run(Assistant, "second", session=session)
    said = [(message.role, message.content) for message in model.requests[1].messages]
    assert said == [
        ("system", "Be brief."),
        ("user", "first"),
        ("assistant", "one"),
        ("user", "second"),
    ]
    assert len(session.messages) == 4


async def test_a_turn_that_failed_leaves_the_history_as_it_was() -> None:
    runtime, _ = runtime_with(PermanentError("no"), "fine")
    session = Session()
    async with runtime:
        with pytest.raises(PermanentError):
            await runtime.run(Assistant, "first", session=session)
        assert session.messages == []


async def test_several_tool_calls_run_in_parallel_and_answer_in_order() -> None:
    @tool(idempotent=True)
    async def slow(n: int) -> int:
        await asyncio.sleep(10 - n)
        return n

    class Many(Agent):
        model = "fake:one"
        tools = (slow,)

    runtime, model = runtime_with([wants("slow", f'{{"n": {n}}}', id=f"c{n}") for n in range(3)], "done")
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with runtime:
        await runtime.run(Many, "go")
    assert loop.time() - started == pytest.approx(10)
    answers = [m for m in model.requests[1].messages if m.role == "tool"]
    assert [(m.tool_call_id, m.content) for m in answers] == [("c0", "0"), ("c1", "1"), ("c2", "2")]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (wants("weather", '{"city": 3}'), "city"),
        (wants("weather", "{"), "JSON"),
        (wants("wether"), "no tool named 'wether'; the tools are: weather"),
    ],
)
async def test_bad_arguments_and_unknown_tools_go_back_to_the_model(call: Any, says: str) -> None:
    runtime, model = runtime_with([call], "sorry")
    async with runtime:
        assert (await runtime.run(Assistant, "go")).text == "sorry"
    told = model.requests[1].messages[-1]
    assert told.is_error
    assert says in str(told.content)


async def test_a_tool_error_of_the_author_goes_back_to_the_model() -> None:
    @tool
    async def picky() -> str:
        raise ToolError("ask for a city in Norway")

    class Picky(Agent):
        model = "fake:one"
        tools = (picky,)

    runtime, model = runtime_with([wants("picky")], "ok")
    async with runtime:
        await runtime.run(Picky, "go")
    assert model.requests[1].messages[-1].content == "error: ask for a city in Norway"


class Failing(Agent):
    model = "fake:one"


async def test_what_the_pipeline_gave_up_on_is_told_to_the_model_by_default() -> None:
    tries: list[int] = []

    @tool(idempotent=True)
    async def flaky() -> str:
        tries.append(1)
        raise ConnectionError("gone")

    agent = Failing()
    agent.tools = (flaky,)
    runtime, model = runtime_with([wants("flaky")], "ok")
    async with runtime:
        await runtime.run(agent, "go")
    assert len(tries) == 3
    assert "ConnectionError: gone" in str(model.requests[1].messages[-1].content)


async def test_on_tool_failure_raise_ends_the_run() -> None:
    @tool
    async def flaky() -> str:
        raise ConnectionError("gone")

    agent = Failing()
    agent.tools = (flaky,)
    agent.on_tool_failure = "raise"
    runtime, _ = runtime_with([wants("flaky")], "ok")
    async with runtime:
        with pytest.raises(ConnectionError, match="gone"):
            await runtime.run(agent, "go")


async def test_a_bug_in_a_tool_ends_the_run_after_its_siblings_have_finished() -> None:
    finished: list[str] = []

    @tool
    async def broken() -> str:
        raise KeyError("bug")

    @tool
    async def paying() -> str:
        await asyncio.sleep(5)
        finished.append("paid")
        return "paid"

    agent = Failing()
    agent.tools = (broken, paying)
    runtime, _ = runtime_with([wants("broken", id="a"), wants("paying", id="b")], "never")
    async with runtime:
        with pytest.raises(KeyError, match="bug"):
            await runtime.run(agent, "go")
    assert finished == ["paid"]


async def test_cancelling_a_run_cancels_its_running_tools() -> None:
    seen: list[str] = []

    @tool
    async def slow(n: int) -> str:
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            await asyncio.sleep(1)
            seen.append(f"cleaned {n}")
            raise
        return "never"

    agent = Failing()
    agent.tools = (slow,)
    runtime, _ = runtime_with([wants("slow", '{"n": 1}', id="a"), wants("slow", '{"n": 2}', id="b")])
    async with runtime:
        task = asyncio.ensure_future(runtime.run(agent, "go"))
        await asyncio.sleep(3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert sorted(seen) == ["cleaned 1", "cleaned 2"]


@pytest.mark.parametrize(
    ("limits", "name"),
    [
        (Limits(steps=2), "steps"),
        (Limits(model_calls=2), "model_calls"),
        (Limits(tool_calls=1), "tool_calls"),
        (Limits(tokens=20), "tokens"),
    ],
)
async def test_a_limit_ends_the_run_and_names_itself(limits: Limits, name: str) -> None:
    again = [wants("weather", '{"city": "Oslo"}')]
    runtime, _ = runtime_with(*[again] * 10)
    async with runtime:
        with pytest.raises(RunLimitExceeded, match=name.replace("_", " ").removesuffix("s")) as caught:
            await runtime.run(Assistant, "go", limits=limits)
    assert caught.value.limit == name


async def test_the_seconds_of_a_run_are_its_deadline() -> None:
    runtime, _ = runtime_with("late", delay=50)
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with runtime:
        with pytest.raises(DeadlineExceeded) as caught:
            await runtime.run(Assistant, "go", limits=Limits(seconds=7))
    assert caught.value.scope == "run"
    assert loop.time() - started == pytest.approx(7)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)


async def test_the_deadline_also_ends_an_agent_that_makes_no_calls() -> None:
    async def sleeper(message: str) -> str:
        await asyncio.sleep(100)
        return message

    async with Runtime() as runtime:
        with pytest.raises(DeadlineExceeded, match="the run's deadline of 3 s is over"):
            await runtime.run(sleeper, "go", limits=Limits(seconds=3))


class Person(msgspec.Struct):
    name: str
    age: int


class Extractor(Agent):
    model = "fake:one"
    output = Person


async def test_a_structured_output_is_validated_and_asked_for_again() -> None:
    runtime, model = runtime_with('{"name": "Ada"}', '{"name": "Ada", "age": 36}')
    async with runtime:
        result = await runtime.run(Extractor, "who?")
    assert result.output == Person("Ada", 36)
    assert result.text == '{"name":"Ada","age":36}'
    assert model.requests[0].output_schema is not None
    assert len(model.requests) == 2


async def test_a_fallback_target_answers_and_the_run_is_degraded() -> None:
    class Two(Agent):
        model = ("bad:one", "fake:two")

    bad = FakeModel(*[TransientError("down")] * 3)
    good = FakeModel("fine")
    async with Runtime(models={"bad": bad, "fake": good}) as runtime:
        async with runtime.stream(Two, "go", deltas=False) as run:
            seen = [event async for event in run]
        result = run.result
    assert (result.text, result.degraded) == ("fine", True)
    assert types(seen) == [
        "run_started",
        "model_started",
        "retry",
        "retry",
        "fallback",
        "model_finished",
        "run_finished",
    ]


async def test_a_streamed_run_gives_each_piece_once() -> None:
    runtime, _ = runtime_with([wants("weather", '{"city": "Oslo"}')], "It is sunny")
    async with runtime, runtime.stream(Assistant, "go") as run:
        seen = [event async for event in run]
    assert types(seen) == [
        "run_started",
        "model_started",
        "model_finished",
        "tool_started",
        "tool_finished",
        "model_started",
        "text_delta",
        "text_delta",
        "text_delta",
        "model_finished",
        "run_finished",
    ]
    assert "".join(e.text for e in seen if hasattr(e, "text")) == "It is sunny "
    assert [event.at for event in seen] == sorted(event.at for event in seen)


async def test_a_stream_that_breaks_in_the_middle_keeps_its_text_and_is_not_repeated() -> None:
    runtime, model = runtime_with(("part ", TransientError("cut")), "whole answer")
    seen: list[Any] = []
    async with runtime, runtime.stream(Assistant, "go") as run:
        error = await watch(run, seen)
    assert isinstance(error, TransientError)
    assert types(seen) == ["run_started", "model_started", "text_delta", "run_failed"]
    assert len(model.requests) == 1


async def test_a_stream_that_breaks_before_its_first_item_is_retried() -> None:
    runtime, model = runtime_with((TransientError("early"),), "whole answer")
    async with runtime, runtime.stream(Assistant, "go") as run:
        seen = [event async for event in run]
    assert "".join(e.text for e in seen if hasattr(e, "text")) == "whole answer "
    assert len(model.requests) == 2


async def test_leaving_a_stream_cancels_and_awaits_the_run() -> None:
    ended: list[str] = []

    async def slow(message: str, ctx: Context) -> str:
        try:
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(1)
            ended.append("cleaned")
        return message

    async with Runtime() as runtime:
        async with runtime.stream(slow, "go") as run:
            async for _ in run:
                break
        assert ended == ["cleaned"]
        with pytest.raises(asyncio.CancelledError):
            run.result  # noqa: B018


async def test_an_answer_cut_by_the_length_limit_says_so() -> None:
    runtime, _ = runtime_with(ModelResponse(text="half", finish="length"))
    async with runtime, runtime.stream(Assistant, "go", deltas=False) as run:
        seen = [event async for event in run]
    assert types(seen) == ["run_started", "model_started", "model_finished", "warning", "run_finished"]
    assert "cut by the length limit" in seen[3].message


async def test_a_child_run_inherits_limits_deadline_and_the_stream_of_events() -> None:
    async def child(message: str, ctx: Context) -> str:
        return (await ctx.model("inner")).text

    async def parent(message: str, ctx: Context) -> str:
        inner = await ctx.run(child, message)
        return f"parent of {inner.text}"

    model = FakeModel("answer")
    async with Runtime(models={"fake": model}) as runtime:
        runtime.config = type(runtime.config)({"agent": {"model": "fake:one"}})
        async with runtime.stream(parent, "go", limits=Limits(model_calls=1, seconds=9)) as run:
            seen = [event async for event in run]
        assert run.result.text == "parent of answer"
    started = [event for event in seen if event.__struct_config__.tag == "run_started"]
    assert [event.agent for event in started] == ["parent", "child"]
    assert started[1].parent == started[0].run


async def test_a_direct_call_of_an_async_tool_goes_through_the_pipeline() -> None:
    async def agent(message: str, ctx: Context) -> str:
        return await weather("Oslo") + await ctx.tool(weather, city="Bergen", days=2)

    async with Runtime() as runtime:
        result = await runtime.run(agent, "go")
    assert result.text == "sunny in Oslo for 1sunny in Bergen for 2"
    assert [call.target for call in result.record] == ["tool:weather", "tool:weather"]
    assert await weather("Rome") == "sunny in Rome for 1"


async def test_ctx_call_sends_any_function_through_the_pipeline() -> None:
    keys: list[str | None] = []

    async def agent(message: str, ctx: Context) -> str:
        async def pay() -> str:
            keys.append(ctx.idempotency_key)
            if len(keys) < 2:
                raise ConnectionError("gone")
            return "paid"

        return await ctx.call("payment", "bank", pay, idempotent=True)

    async with Runtime() as runtime:
        result = await runtime.run(agent, "go")
    assert result.text == "paid"
    assert len(set(keys)) == 1
    assert result.record[0].target == "bank"
    assert result.record[0].kind == "payment"


async def test_an_agent_without_a_model_says_how_to_give_it_one() -> None:
    class Nameless(Agent):
        pass

    async with Runtime() as runtime:
        with pytest.raises(ConfigError, match="Nameless has no model: set `model"):
            await runtime.run(Nameless, "go")


@pytest.mark.parametrize("message", ["", "  \n"])
async def test_an_empty_message_is_refused(message: str) -> None:
    async with Runtime() as runtime:
        with pytest.raises(ConfigError, match="the message is empty"):
            await runtime.run(Assistant, message)


async def test_two_tools_of_one_name_are_refused() -> None:
    agent = Failing()
    agent.tools = (weather, tool(name="weather")(weather.function))
    runtime, _ = runtime_with("x")
    async with runtime:
        with pytest.raises(ConfigError, match="several tools named weather"):
            await runtime.run(agent, "go")


async def test_an_agent_outside_a_runtime_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"Assistant\.run needs a runtime"):
        await Assistant().run("hi")


async def test_concurrent_runs_do_not_mix() -> None:
    async def agent(message: str, ctx: Context) -> str:
        await asyncio.sleep(1)
        ctx.session.state["said"] = message
        return f"{message} {ctx.session.state['said']}"

    async with Runtime() as runtime:
        results = await asyncio.gather(*(runtime.run(agent, f"m{n}") for n in range(50)))
    assert [r.text for r in results] == [f"m{n} m{n}" for n in range(50)]
    assert len({r.run_id for r in results}) == 50


async def test_what_a_provider_wants_back_stays_with_the_assistants_message() -> None:
    thinking = ModelResponse(
        tool_calls=[wants("weather", '{"city": "Oslo"}')],
        finish="tool_calls",
        continuation=[{"type": "thinking", "signature": "abc"}],
    )
    runtime, model = runtime_with(thinking, "done")
    async with runtime:
        await runtime.run(Assistant, "go")
    assert model.requests[1].messages[2].continuation == [{"type": "thinking", "signature": "abc"}]


async def _from_a_cache(call: Any, call_next: Any) -> Any:
    return ModelResponse(text="kept", reasoning="why", tool_calls=[])


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize(
    "stage", [Fallback(default="Later."), Fallback(default=lambda error: "Later.")], ids=["value", "function"]
)
async def test_a_text_is_a_models_answer_by_default(stage: Any, watched: bool) -> None:
    runtime, _ = runtime_with(PermanentError("gone", fault="target"))
    runtime.use(stage, kind="model")
    async with runtime:
        if not watched:
            assert (await runtime.run(Assistant, "hi")).text == "Later."
            return
        async with runtime.stream(Assistant, "hi") as run:
            assert await watch(run, []) is None
    assert run.result.text == "Later."


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize(
    "stage", [_from_a_cache, Fallback(default=ModelResponse(text="kept", reasoning="why"))]
)
async def test_an_answer_that_no_model_gave_is_one_in_a_watched_run_as_well(
    stage: Any, watched: bool
) -> None:
    runtime, _ = runtime_with(PermanentError("gone", fault="target"))
    runtime.use(stage, kind="model", **({} if isinstance(stage, Fallback) else {"inside": "timeout"}))
    seen: list[Any] = []
    async with runtime:
        if not watched:
            assert (await runtime.run(Assistant, "hi")).text == "kept"
            return
        async with runtime.stream(Assistant, "hi") as run:
            assert await watch(run, seen) is None
    assert run.result.text == "kept"
    assert [e.text for e in seen if isinstance(e, TextDelta | ReasoningDelta)] == ["why", "kept"]
    (finished,) = [event for event in seen if isinstance(event, ModelFinished)]
    assert (finished.finish, finished.input_tokens) == ("stop", 0)


async def test_a_whole_answer_with_tool_calls_stands_in_for_a_stream() -> None:
    answers = [ModelResponse(tool_calls=[wants("weather", '{"city": "Oslo"}')], finish="tool_calls")]

    async def stage(call: Any, call_next: Any) -> Any:
        return answers.pop() if answers else await call_next(call)

    runtime, _ = runtime_with("It is sunny.")
    runtime.use(stage, kind="model")
    async with runtime, runtime.stream(Assistant, "hi") as run:
        assert await watch(run, []) is None
    assert [call.target for call in run.result.record] == ["fake:one", "tool:weather", "fake:one"]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"text": 1}, "{'text': 1} was served instead of a model's answer"),
        (None, "did it forget `return await"),
    ],
)
async def test_a_stage_that_answers_with_something_else_is_told_so(answer: Any, message: str) -> None:
    async def stage(call: Any, call_next: Any) -> Any:
        return answer

    runtime, _ = runtime_with("never")
    runtime.use(stage, kind="model")
    async with runtime, runtime.stream(Assistant, "hi") as run:
        error = await watch(run, [])
    assert isinstance(error, TypeError)
    assert message in str(error)


async def test_a_client_whose_stream_has_no_finished_is_told_so() -> None:
    class Hasty(FakeModel):
        async def stream(self, request: Any, /) -> Any:
            yield StreamedText("half")

    async with Runtime(models={"fake": Hasty()}) as runtime, runtime.stream(Assistant, "hi") as run:
        error = await watch(run, [])
    assert isinstance(error, TypeError)
    assert "the stream of fake:one ended without `Finished`" in str(error)
