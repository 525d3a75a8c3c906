"""The runtime: stages of the user's, shared state, services, explain, closing."""

from __future__ import annotations

import asyncio
import gc
import weakref
from pathlib import Path
from typing import Any

import pytest

from agentrt import (
    Agent,
    Call,
    CircuitOpen,
    Config,
    ConfigError,
    Context,
    Limits,
    Next,
    PluginError,
    RunLimitExceeded,
    Runtime,
    ThrottledError,
    TransientError,
    tool,
)
from agentrt.telemetry.memory import InMemory
from tests.runtime.doubles import FakeModel, types, wants, watch

pytestmark = [pytest.mark.asyncio, pytest.mark.virtual_time]


@tool(idempotent=True, timeout=7)
async def weather(city: str) -> str:
    """The weather."""
    return f"sunny in {city}"


class Assistant(Agent):
    model = "fake:one"
    tools = (weather,)


def naming(name: str, seen: list[str]) -> Any:
    async def stage(call: Call[Any], call_next: Next[Any]) -> Any:
        seen.append(f"{name}>{call.target}")
        result = await call_next(call)
        seen.append(f"{name}<{call.target}")
        return result

    return stage


async def test_stages_stand_outside_in_from_global_to_tool() -> None:
    seen: list[str] = []

    class Mine(Assistant):
        middleware = (naming("agent", seen),)

    async with Runtime(models={"fake": FakeModel([wants("weather", '{"city": "Oslo"}')], "ok")}) as rt:
        rt.use(naming("tool", seen), tool="weather")
        rt.use(naming("kind", seen), kind="tool")
        rt.use(naming("first", seen))
        rt.use(naming("second", seen))
        rt.use(naming("other", seen), agent="Other")
        await rt.run(Mine, "go")
    assert [s for s in seen if "tool:" in s] == [
        f"{name}{arrow}tool:weather"
        for arrow, names in (
            (">", ("first", "second", "kind", "agent", "tool")),
            ("<", ("tool", "agent", "kind", "second", "first")),
        )
        for name in names
    ]
    assert [s for s in seen if "fake:" in s][:3] == ["first>fake:one", "second>fake:one", "agent>fake:one"]


async def test_a_stage_inside_retry_sees_every_attempt_and_one_outside_sees_the_call() -> None:
    seen: list[str] = []
    async with Runtime(models={"fake": FakeModel(TransientError("down"), "ok")}) as rt:
        rt.use(naming("outside", seen), outside="retry")
        rt.use(naming("inside", seen), inside="retry")
        await rt.run(Assistant, "go")
    assert seen == [
        "outside>fake:one",
        "inside>fake:one",
        "inside>fake:one",
        "inside<fake:one",
        "outside<fake:one",
    ]


async def test_registering_after_the_first_call_is_an_error() -> None:
    async with Runtime(models={"fake": FakeModel("ok")}) as rt:
        await rt.run(Assistant, "go")
        with pytest.raises(ConfigError, match="registered too late"):
            rt.use(naming("late", []))


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ({}, None),
        ({"agent": "Assistant", "tool": "weather"}, None),
        ({"kind": "jobs"}, None),
        (
            {"tool": "wether"},
            "tool 'wether', and Assistant declares none of that name; did you mean 'weather'?",
        ),
        (
            {"tool": "pay"},
            "tool 'pay', and Assistant declares none of that name",
        ),
        (
            {"agent": "Asistant", "tool": "weather"},
            "agent 'Asistant', so nothing of Assistant goes through it; did you mean 'Assistant'?",
        ),
    ],
)
async def test_a_stage_for_what_an_agent_does_not_have_is_told(
    where: dict[str, str], says: str | None
) -> None:
    async with Runtime(models={"fake": FakeModel()}) as rt:
        rt.use(naming("one", []), **where)
        assert rt.stages_without_effect(Assistant) == (
            [] if says is None else [f"the stage stage is for the {says}"]
        )
        rt.use(naming("two", []))  # looking builds nothing


async def test_a_stage_of_an_agents_own_for_a_tool_it_does_not_have_is_told() -> None:
    class Mine(Assistant):
        middleware = ((naming("one", []), {"tool": "wether"}), naming("two", []))

    async def plain(message: str) -> str:
        return message

    async with Runtime(models={"fake": FakeModel()}) as rt:
        (said,) = rt.stages_without_effect(Mine)
        assert "'wether', and Mine declares none" in said
        assert rt.stages_without_effect(plain) == []
        rt.use(naming("three", []), tool="pay")
        assert rt.stages_without_effect(plain) == []  # which tools its code calls nobody knows


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ({"outside": "retries"}, "no stage named 'retries'; the places are chaos, timeout"),
        ({"outside": "retry", "inside": "retry"}, "not both"),
    ],
)
async def test_a_wrong_place_is_refused_at_once(where: dict[str, str], says: str) -> None:
    async with Runtime() as rt:
        with pytest.raises(ConfigError, match=says):
            rt.use(naming("x", []), **where)


async def test_what_is_no_stage_is_refused() -> None:
    async with Runtime() as rt:
        with pytest.raises(ConfigError, match="a stage is an async function"):
            rt.use(3)  # type: ignore[arg-type]


async def test_the_circuit_of_a_target_is_shared_by_agents() -> None:
    class Other(Agent):
        model = "fake:one"

    failing = FakeModel(*[TransientError("down")] * 30)
    async with Runtime(models={"fake": failing}) as rt:
        for _ in range(4):
            with pytest.raises(TransientError):
                await rt.run(Assistant, "go")
        with pytest.raises(CircuitOpen):
            await rt.run(Other, "go")


async def test_a_throttled_host_is_left_alone_until_it_wants_to_be_asked() -> None:
    model = FakeModel(ThrottledError("slow down", retry_after=20), "one", "two")
    async with Runtime(models={"fake": model}) as rt:
        loop = asyncio.get_running_loop()
        started = loop.time()
        results = await asyncio.gather(rt.run(Assistant, "a"), _later(rt, 5))
        assert 20 <= loop.time() - started <= 22.1
    assert sorted(r.text for r in results) == ["one", "two"]
    assert len(model.requests) == 3


async def _later(rt: Runtime, seconds: float) -> Any:
    await asyncio.sleep(seconds)
    return await rt.run(Assistant, "b")


async def test_explain_has_a_pipeline_for_each_kind_and_tool_with_sources() -> None:
    class Two(Assistant):
        model = ("fake:one", "fake:two")

    config = Config({"pipeline": {"retry": {"max_attempts": 5}, "tool": {"deadline": 33}}})
    rt = Runtime(config, models={"fake": FakeModel()})
    pipelines = dict(rt.explain(Two))
    assert list(pipelines) == ["model", "tool:weather", "memory", "secret", "call"]
    model = {stage.name: stage for stage in pipelines["model"].describe()}
    assert list(model) == ["timeout", "circuit_breaker", "throttle", "retry", "fallback", "telemetry"]
    assert (model["retry"].options["max_attempts"], model["retry"].sources["max_attempts"]) == (5, "in code")
    assert model["fallback"].options["targets"] == ("fake:two",)
    assert model["fallback"].sources["targets"] == "the agent's models"
    assert (model["timeout"].options["attempt"], model["timeout"].options["idle"]) == (60.0, 30.0)
    timeout = {stage.name: stage for stage in pipelines["tool:weather"].describe()}["timeout"]
    assert (timeout.options["attempt"], timeout.sources["attempt"]) == (7, "@tool")
    assert (pipelines["tool:weather"].deadline, pipelines["memory"].deadline) == (33, 5)
    assert pipelines["call"].deadline is None
    rt.use(naming("still allowed", []))


async def test_configuration_turns_stages_on_and_off() -> None:
    config = Config({"pipeline": {"circuit_breaker": False, "bulkhead": {"limit": 2, "queue": 1}}})
    rt = Runtime(config, models={"fake": FakeModel()})
    names = [stage.name for stage in dict(rt.explain(Assistant))["model"].describe()]
    assert names == ["timeout", "bulkhead", "throttle", "retry", "fallback", "telemetry"]


async def test_configured_models_win_over_the_agents_own() -> None:
    other = FakeModel("other")
    config = Config({"agent": {"model": "other:x"}})
    async with Runtime(config, models={"fake": FakeModel("own"), "other": other}) as rt:
        assert (await rt.run(Assistant, "go")).text == "other"
    assert other.requests[0].model == "x"


async def test_an_unknown_prefix_lists_what_there_is() -> None:
    class Wrong(Agent):
        model = "opnai:gpt-5"

    async with Runtime() as rt:
        with pytest.raises(PluginError, match=r"opnai.*openai"):
            await rt.run(Wrong, "go")


@pytest.mark.parametrize("model", ["gpt-5", "openai:", ["openai:x", "y"]])
async def test_a_model_without_a_prefix_is_refused(model: Any) -> None:
    class Wrong(Agent):
        pass

    Wrong.model = model
    async with Runtime() as rt:
        with pytest.raises(ConfigError, match='a model is named "prefix:name"'):
            await rt.run(Wrong, "go")


async def test_calls_are_collected_by_the_telemetry_backends() -> None:
    async with Runtime(models={"fake": FakeModel([wants("weather", '{"city": "Oslo"}')], "ok")}) as rt:
        await rt.run(Assistant, "go")
        (_, backend) = rt.telemetry.backends[0]
        assert isinstance(backend, InMemory)
        assert [(call.kind, call.ok) for call in backend] == [
            ("model", True),
            ("tool", True),
            ("model", True),
        ]


async def test_with_telemetry_off_a_run_still_has_its_record() -> None:
    config = Config({"telemetry": {"memory": False}})
    async with Runtime(config, models={"fake": FakeModel("ok")}) as rt:
        result = await rt.run(Assistant, "go")
    assert [call.target for call in result.record] == ["fake:one"]
    assert rt.telemetry.backends == []


async def test_a_secret_comes_from_the_environment_through_the_pipeline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("API_TOKEN", "s3cret-value")

    async def agent(message: str, ctx: Context) -> str:
        return await ctx.secret("API_TOKEN") + await ctx.secret("secret://env/API_TOKEN")

    async with Runtime() as rt:
        result = await rt.run(agent, "go")
        assert result.text == "s3cret-value" * 2
        (_, backend) = rt.telemetry.backends[0]
        assert [call.kind for call in backend] == ["secret"]


async def test_memory_survives_a_restart_and_is_a_call_of_its_own_kind(tmp_path: Path) -> None:
    async def agent(message: str, ctx: Context) -> str:
        if message == "remember":
            return await ctx.memory.add("the cat is called Ada", key="cat")
        return " ".join(item.text for item in await ctx.memory.search(message))

    config = Config({"memory": {"path": str(tmp_path / "memory.db")}})
    async with Runtime(config) as rt:
        await rt.run(agent, "remember")
    async with Runtime(config) as rt:
        result = await rt.run(agent, "what is the cat called?")
    assert result.text == "the cat is called Ada"
    assert [(call.kind, call.operation) for call in result.record] == [("memory", "search_memory")]


async def test_a_warning_goes_to_whoever_watches() -> None:
    async def agent(message: str, ctx: Context) -> str:
        ctx.warn("mind the gap")
        return "ok"

    async with Runtime() as rt, rt.stream(agent, "go") as run:
        seen = [event async for event in run]
    assert types(seen) == ["run_started", "warning", "run_finished"]


async def test_a_failed_run_reports_what_was_tried() -> None:
    class Two(Agent):
        model = ("bad:one", "bad:two")

    bad = FakeModel(*[TransientError(f"down {n}") for n in range(6)])
    events: list[Any] = []
    async with Runtime(models={"bad": bad}) as rt, rt.stream(Two, "go", deltas=False) as run:
        error = await watch(run, events)
    assert isinstance(error, TransientError)
    assert str(error) == "down 5"
    assert events[-1].error == "TransientError"
    assert [cause.partition(": ")[2] for cause in events[-1].causes] == [f"down {n}" for n in range(5)]
    assert any("down 2" in note for note in error.__notes__)


async def test_closing_closes_what_was_opened_and_only_that() -> None:
    closed: list[str] = []

    class Closing(FakeModel):
        async def aclose(self) -> None:
            closed.append("given")

    async with Runtime(models={"fake": Closing("ok")}) as rt:
        await rt.run(Assistant, "go")
    assert closed == []


async def test_configured_limits_win_over_the_agents_own_and_leave_the_others() -> None:
    class Limited(Assistant):
        limits = Limits(tool_calls=1, model_calls=9)

    again = [wants("weather", '{"city": "Oslo"}')]
    config = Config({"run": {"limits": {"tool_calls": 2}}})
    async with Runtime(config, models={"fake": FakeModel(*[again] * 9)}) as rt:
        with pytest.raises(RunLimitExceeded, match="may use 2 tool calls"):
            await rt.run(Limited, "go")
        with pytest.raises(RunLimitExceeded, match="may use 1 model call and wants another"):
            await rt.run(Limited, "go", limits=Limits(model_calls=1))


async def test_an_output_without_a_json_form_is_given_as_it_is_with_a_warning() -> None:
    class Thing:
        def __str__(self) -> str:
            return "a thing"

    async def agent(message: str) -> Thing:
        return Thing()

    async with Runtime() as rt, rt.stream(agent, "go") as run:
        seen = [event async for event in run]
    assert run.result.text == "a thing"
    assert "returned a value of type Thing, which has no JSON form" in seen[1].message


async def test_two_agents_of_one_name_keep_their_own_stages() -> None:
    seen: list[str] = []

    def make(name: str) -> type[Agent]:
        class Same(Agent):
            model = "fake:one"
            middleware = (naming(name, seen),)

        return Same

    async with Runtime(models={"fake": FakeModel("a", "b")}) as rt:
        await rt.run(make("first"), "go")
        await rt.run(make("second"), "go")
    assert seen == ["first>fake:one", "first<fake:one", "second>fake:one", "second<fake:one"]


async def test_agents_of_one_run_are_not_kept() -> None:
    alive: list[weakref.ref[Any]] = []

    class Short(Agent):
        scope = "run"
        model = "fake:one"

        def __init__(self) -> None:
            alive.append(weakref.ref(self))

        @tool
        async def mine(self) -> str:
            """A tool that is a method."""
            return "mine"

        tools = (mine,)

    async with Runtime(models={"fake": FakeModel([wants("mine")], "a", [wants("mine")], "b")}) as rt:
        await rt.run(Short, "go")
        await rt.run(Short, "go")
        await asyncio.sleep(0)
        gc.collect()
        assert [ref() for ref in alive] == [None, None]


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({"pipeline": {"retry": {"max_attempts": 0}}}, "max_attempts must be a whole number of at least 1"),
        ({"run": {"limits": {"steps": 0}}}, r"limits\.steps must be a whole number of at least 1"),
    ],
)
async def test_a_wrong_option_is_told_when_the_runtime_is_made(tables: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Runtime(Config(tables))


@pytest.mark.parametrize(
    ("kind", "says"),
    [("modle", "did you mean 'model'"), ("tools", "did you mean 'tool'"), (3, "kind must be a name")],
)
async def test_a_kind_that_is_nearly_one_of_ours_is_refused(kind: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Runtime().use(naming("x", []), kind=kind)


async def test_a_kind_of_the_users_own_is_taken() -> None:
    Runtime().use(naming("x", []), kind="payment")


async def one_argument(call: Any) -> Any:
    return call


async def test_a_stage_that_cannot_be_called_as_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'one_argument' must take two arguments, \(call, call_next\)"):
        Runtime().use(one_argument)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Runtime("agentrt.toml"), r"config must be a Config, for example Config\.load"),
        (
            lambda: Runtime().run(Assistant, "hi", limits={"steps": 1}),
            r"limits must be a Limits, for example",
        ),
        (lambda: Runtime().run(Assistant, "hi", session="abc"), r"session must be a Session, for example"),
        (lambda: Runtime().run(Assistant, 3), "the message must be text or a list of parts, not 3"),
    ],
)
async def test_wrong_arguments_are_told_what_they_should_be(make: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        await make()


async def test_a_forgotten_await_is_an_error() -> None:
    async def agent(message: str, ctx: Context) -> Any:
        return ctx.model(message, model="fake:one")

    async with Runtime(models={"fake": FakeModel("ok")}) as rt:
        with pytest.raises(TypeError, match="agent returned something to await; did it forget `await`"):
            await rt.run(agent, "go")


async def test_a_stage_that_forgets_to_return_is_told_so() -> None:
    async def forgetful(call: Call[Any], call_next: Next[Any]) -> Any:
        await call_next(call)

    async with Runtime(models={"fake": FakeModel("ok")}) as rt:
        rt.use(forgetful)
        with pytest.raises(
            TypeError, match="a stage around fake:one returned None instead of the ModelResponse"
        ):
            await rt.run(Assistant, "go")


async def test_a_misspelt_argument_of_a_tool_is_told_before_anything_is_called() -> None:
    async def agent(message: str, ctx: Context) -> Any:
        return await ctx.tool(weather, town="Oslo")

    async with Runtime() as rt:
        with pytest.raises(TypeError, match=r"tool 'weather' has no parameter 'town'; it has: city"):
            await rt.run(agent, "go")


async def test_tools_that_the_agents_own_code_calls_have_their_events() -> None:
    async def agent(message: str, ctx: Context) -> Any:
        return await ctx.tool(weather, city="Oslo")

    async with Runtime() as rt, rt.stream(agent, "go") as run:
        seen = [event async for event in run]
    assert types(seen) == ["run_started", "tool_started", "tool_finished", "run_finished"]
    assert (seen[1].arguments, seen[2].outcome) == ('{"city":"Oslo"}', "ok")


async def test_output_and_tools_exclude_each_other() -> None:
    async def agent(message: str, ctx: Context) -> Any:
        return await ctx.model("hi", model="fake:one", tools=[weather], output=int)  # type: ignore[call-overload]

    async with Runtime(models={"fake": FakeModel("ok")}) as rt:
        with pytest.raises(ConfigError, match="output= or tools=, not both"):
            await rt.run(agent, "go")


async def test_a_memory_of_ones_own_is_used_and_not_closed() -> None:
    class Notes:
        closed = False

        async def search(self, query: str, *, limit: int = 5) -> list[str]:
            return [query]

        async def aclose(self) -> None:
            self.closed = True

    async def agent(message: str, ctx: Context) -> Any:
        return await ctx.memory.search(message)

    notes = Notes()
    async with Runtime(memory=notes) as rt:  # type: ignore[arg-type]
        assert (await rt.run(agent, "cat")).output == ["cat"]
    assert not notes.closed


async def test_pipelines_of_tools_made_anew_in_each_run_do_not_pile_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agentrt.pipelines.MAX_PIPELINES", 5)

    async def agent(message: str, ctx: Context) -> Any:
        @tool
        async def fresh() -> str:
            return message

        return await ctx.tool(fresh)

    async with Runtime() as rt:
        for number in range(20):
            assert (await rt.run(agent, f"m{number}")).output == f"m{number}"
        assert len(rt._pipelines._built) == 5


async def test_a_stage_named_in_the_configuration_is_imported_or_its_place_is_named(tmp_path: Path) -> None:
    file = tmp_path / "agentrt.toml"
    for name, says in (
        ("nowhere:stage", "there is no module 'nowhere'"),
        ("agentrt.errors:nothing", "the module 'agentrt.errors' has no 'nothing'"),
        ("agentrt:__version__", "a stage is an async function"),
    ):
        file.write_text(f'# comment\n[pipeline]\nuse = ["{name}"]\n')
        with pytest.raises(ConfigError, match=rf"agentrt\.toml:3: pipeline\.use: {name}: {says}"):
            Runtime.from_config(file)


async def test_the_text_of_a_models_response_is_its_text() -> None:
    async def agent(message: str, ctx: Context) -> Any:
        return await ctx.model(message, model="fake:one")

    async with Runtime(models={"fake": FakeModel("hello")}) as rt:
        assert (await rt.run(agent, "go")).text == "hello"
