"""Rate limits in a runtime: from the configuration and from code, over runs, kinds, agents and processes."""

from __future__ import annotations

from typing import Any

import pytest
from pipeline.doubles import now, scenario
from servers.valkey import Valkey

from agentrt import Agent, Config, ConfigError, Context, RateLimited, Runtime, Session, tool
from agentrt.middleware import RateLimit
from agentrt.models.scripted import Scripted, Step


@tool(idempotent=True)
async def look() -> str:
    """Look."""
    return "seen"


@tool(idempotent=True)
async def touch() -> str:
    """Touch."""
    return "felt"


async def looks_four_times(message: str, ctx: Context) -> list[str]:
    return [await outcome(ctx, look) for _ in range(4)]


async def looks_and_touches(message: str, ctx: Context) -> list[str]:
    return [await outcome(ctx, fn) for fn in (look, touch, look, touch)]


async def outcome(ctx: Context, fn: Any) -> str:
    try:
        return str(await ctx.tool(fn))
    except RateLimited as refusal:
        return refusal.scope


def limited(**options: Any) -> Config:
    return Config({"pipeline": {"tool": {"rate_limit": {"window": 60, **options}}}})


async def output_of(runtime: Runtime, agent: Any, **more: Any) -> Any:
    return (await runtime.run(agent, "go", **more)).output


@scenario
async def test_a_limit_for_tools_counts_each_run_by_itself() -> None:
    async with Runtime(limited(limit=3)) as runtime:
        for _ in range(2):
            assert await output_of(runtime, looks_four_times) == ["seen", "seen", "seen", "run"]


@scenario
async def test_a_key_with_the_session_counts_a_conversation() -> None:
    async with Runtime(limited(limit=5, key="{session}")) as runtime:
        conversation = Session()
        assert await output_of(runtime, looks_four_times, session=conversation) == ["seen"] * 4
        assert await output_of(runtime, looks_four_times, session=conversation) == ["seen", *["run"] * 3]
        assert await output_of(runtime, looks_four_times) == ["seen"] * 4


@scenario
async def test_with_max_wait_a_run_takes_its_time() -> None:
    async with Runtime(limited(limit=2, window=5, max_wait=30)) as runtime:
        assert await output_of(runtime, looks_four_times) == ["seen"] * 4
        assert now() == pytest.approx(5.0)


@scenario
async def test_a_stage_from_code_for_one_tool() -> None:
    async with Runtime() as runtime:
        runtime.use(RateLimit(limit=1, window=60, scope="target"), tool="look")
        assert await output_of(runtime, looks_and_touches) == ["seen", "felt", "target", "felt"]


@scenario
async def test_stages_of_agents_and_tools_and_the_runtime_itself_share_one_count() -> None:
    class Looking(Agent):
        middleware = (RateLimit(limit=3, window=60, key="shared"),)

        async def run(self, message: str, ctx: Context) -> list[str]:
            return await looks_four_times(message, ctx)

    @tool(middleware=[RateLimit(limit=3, window=60, key="shared")])
    async def smell() -> str:
        """Smell."""
        return "smelt"

    async def smells(message: str, ctx: Context) -> str:
        return await outcome(ctx, smell)

    async with Runtime() as runtime, Runtime() as other:
        assert await runtime.rate_limits.check_rate_limit("shared", 3, 60)
        assert await output_of(runtime, Looking) == ["seen", "seen", "run", "run"]
        assert await output_of(runtime, smells) == "run"
        # Another runtime counts for itself, though class and tool are the same objects.
        assert await output_of(other, Looking) == ["seen", "seen", "seen", "run"]


@scenario
async def test_two_limits_stand_in_one_pipeline_under_two_names() -> None:
    class PerSession(RateLimit):
        name = "per_session"

    async with Runtime(limited(limit=3)) as runtime:
        runtime.use(PerSession(limit=4, window=60, key="{session}"), kind="tool", outside="rate_limit")
        conversation = Session()
        assert await output_of(runtime, looks_four_times, session=conversation) == ["seen"] * 3 + ["run"]
        assert await output_of(runtime, looks_four_times, session=conversation) == ["run"] * 4


@scenario
async def test_a_busy_model_leaves_the_answer_to_the_next_streamed_or_not() -> None:
    Scripted.script("rate-limits-busy", [Step(text="from the first")] * 9)
    Scripted.script("rate-limits-free", [Step(text="from the second")] * 9)

    class Assistant(Agent):
        model = ("scripted:rate-limits-busy", "scripted:rate-limits-free")

    config = Config(
        {
            "pipeline": {
                "model": {"rate_limit": {"limit": 1, "window": 60, "scope": "target", "key": "{target}"}}
            }
        }
    )
    async with Runtime(config) as runtime:
        assert await output_of(runtime, Assistant) == "from the first"
        second = await runtime.run(Assistant, "go")
        assert (second.output, second.degraded) == ("from the second", True)
    async with Runtime(config) as runtime:
        outputs = []
        for _ in range(2):
            async with runtime.stream(Assistant, "go") as run:
                async for _event in run:
                    pass
            outputs.append(run.result.output)
        assert outputs == ["from the first", "from the second"]


@scenario
async def test_explain_shows_the_limit_and_where_it_was_set() -> None:
    config = Config.load(
        overrides=["pipeline.tool.rate_limit.limit=3", "pipeline.tool.rate_limit.window=0.5"], environ={}
    )
    async with Runtime(config) as runtime:
        (described,) = (
            stage
            for kind, pipeline in runtime.explain(type("Looking", (Agent,), {"tools": [look]}))
            if kind == "tool:look"
            for stage in pipeline.describe()
            if stage.name == "rate_limit"
        )
    assert described.options["limit"] == 3
    assert described.options["window"] == 0.5
    assert described.sources["limit"] == "--set pipeline.tool.rate_limit.limit"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"limit": 3}, r"\[pipeline.rate_limit\] needs the option 'window': a number"),
        ({"window": 3}, r"\[pipeline.rate_limit\] needs the option 'limit': a whole number"),
        (
            {"limit": 3, "window": 0},
            r"\[pipeline.rate_limit\] window must be a number of seconds at least 0.001",
        ),
        (
            {"limit": 3, "window": 1, "scope": "user"},
            r"pipeline.rate_limit.scope must be one of 'run', 'target'",
        ),
        ({"limit": 3, "window": 1, "key": "{user}"}, r"key must be text with no other fields than \{run\}"),
        ({"limits": 3}, r"\[pipeline.rate_limit\] has no 'limits'; did you mean 'limit'"),
    ],
    ids=str,
)
def test_mistakes_in_the_configuration_are_told_at_once(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Runtime(Config({"pipeline": {"rate_limit": table}}))
    with pytest.raises(ConfigError, match="there is no section"):
        Config({"rate_limit": {"limit": 1}})


@pytest.mark.asyncio
async def test_runtimes_share_a_count_on_a_server_whose_password_is_a_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The limit is for every kind of call, those that fetch the password included."""
    with Valkey(password="right-word") as server:
        monkeypatch.setenv("VALKEY_PASSWORD", "right-word")
        config = Config(
            {
                "rate_limits": {
                    "backend": "redis",
                    "redis": {
                        "url": server.url,
                        "password": "secret://VALKEY_PASSWORD",
                        "on_failure": "closed",
                    },
                },
                "pipeline": {"rate_limit": {"limit": 5, "window": 60, "key": "{kind} of all"}},
            }
        )
        async with Runtime(config) as one, Runtime(config) as other:
            assert await output_of(one, looks_four_times) == ["seen"] * 4
            assert await output_of(other, looks_four_times) == ["seen", "run", "run", "run"]
            decision = await other.rate_limits.check_rate_limit("tool of all", 5, 60)
            assert (decision.allowed, decision.degraded) == (False, False)


@scenario
async def test_an_agent_counts_with_the_whole_runtime() -> None:
    async def ask(message: str, ctx: Context) -> bool:
        return bool(await ctx.rate_limits.check_rate_limit("user:42", 1, 60.0))

    async with Runtime() as runtime:
        assert (await runtime.run(ask, "hi")).output is True
        assert (await runtime.run(ask, "hi")).output is False


@scenario
async def test_an_agent_asks_the_limiter_of_its_runtime() -> None:
    async def careful(message: str, ctx: Context) -> list[bool]:
        return [bool(await ctx.rate_limits.check_rate_limit("user:42", 2, 60)) for _ in range(2)]

    async with Runtime() as runtime:
        assert await output_of(runtime, careful) == [True, True]
        assert await output_of(runtime, careful) == [False, False]
        assert not await runtime.rate_limits.check_rate_limit("user:42", 2, 60)
