"""Agents are entered once and everything is closed in order and in time."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import weakref
from typing import Any, Self

import pytest

from agentrt import AgentrtError, Config, ConfigError, Context, Runtime, closing, current
from agentrt.runtime import MAX_HOSTED
from agentrt.testing import VirtualTimeLoop
from tests.runtime.doubles import FakeModel

pytestmark = [pytest.mark.asyncio, pytest.mark.virtual_time]


class Managed:
    """Notes what happens to it, and in which task."""

    notes: list[Any]

    def __init__(self) -> None:
        self.task: Any = None

    async def __aenter__(self) -> Self:
        await asyncio.sleep(1)
        with pytest.raises(ConfigError):
            current()
        self.task = asyncio.current_task()
        self.notes.append("entered")
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert asyncio.current_task() is self.task
        self.notes.append("left")

    async def run(self, message: str) -> str:
        return message


async def test_runs_at_once_enter_an_agent_once_and_in_a_task_of_its_own() -> None:
    class Agent(Managed):
        notes: list[Any] = []  # noqa: RUF012

    async def parent(message: str, ctx: Context) -> str:
        return str((await ctx.run(Agent, message)).text)

    async with Runtime() as rt:
        first = asyncio.ensure_future(rt.run(parent, "go"))
        await asyncio.sleep(0.5)
        others = asyncio.gather(rt.run(Agent, "a"), rt.run(Agent, "b"))
        first.cancel()
        assert [result.text for result in await others] == ["a", "b"]
    assert Agent.notes == ["entered", "left"]


async def test_an_agent_that_could_not_be_entered_is_tried_again() -> None:
    class Flaky(Managed):
        notes: list[Any] = []  # noqa: RUF012

        async def __aenter__(self) -> Self:
            self.notes.append("tried")
            if len(self.notes) == 1:
                raise OSError("not yet")
            return self

        async def __aexit__(self, *exc: object) -> None:
            self.notes.append("left")

    async with Runtime() as rt:
        with pytest.raises(OSError, match="not yet"):
            await rt.run(Flaky, "go")
        await rt.run(Flaky, "go")
    assert Flaky.notes == ["tried", "tried", "left"]


async def test_closing_while_an_agent_is_being_entered_ends_that() -> None:
    class Slow(Managed):
        notes: list[Any] = []  # noqa: RUF012

        async def __aenter__(self) -> Self:
            await asyncio.sleep(100)
            return self

    rt = Runtime()
    run = asyncio.ensure_future(rt.run(Slow, "go"))
    await asyncio.sleep(1)
    await rt.aclose()
    with pytest.raises(ConfigError, match="was not entered: the runtime is closed"):
        await run


@pytest.mark.parametrize("stubborn", [False, True])
async def test_closing_ends_in_time_and_reaches_everybody(
    stubborn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closing, "CLOSE_SECONDS", 5.0)
    closed: list[str] = []

    class Hanging:
        async def __aenter__(self) -> None: ...

        async def __aexit__(self, *exc: object) -> None:
            try:
                await asyncio.sleep(100)
            except asyncio.CancelledError:
                if not stubborn:
                    raise
                await asyncio.sleep(20)

        async def run(self, message: str) -> str:
            return message

    class Good(Hanging):
        async def __aexit__(self, *exc: object) -> None:
            await asyncio.sleep(0.1)
            closed.append("good")

    rt = Runtime()
    await rt.run(Good, "go")
    for _ in range(2):
        await rt.run(Hanging(), "go")
    started = asyncio.get_running_loop().time()
    with pytest.raises(AgentrtError, match="the agent Hanging, the agent Hanging did not end in time"):
        await rt.aclose()
    assert asyncio.get_running_loop().time() - started <= 5.0
    assert closed == ["good"]
    await asyncio.sleep(30)  # those that were left behind end, too


async def test_what_closes_while_the_process_stands_still_is_not_late() -> None:
    closed: list[str] = []

    class Quick:
        async def __aenter__(self) -> None: ...

        async def __aexit__(self, *exc: object) -> None:
            await asyncio.sleep(2)
            for _ in range(5):
                await asyncio.sleep(0)
            closed.append("closed")

        async def run(self, message: str) -> str:
            return message

    rt = Runtime()
    await rt.run(Quick, "go")
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    loop.call_later(1, loop.block, 100)
    await rt.aclose()
    assert closed == ["closed"]


async def test_a_caller_that_does_not_wait_for_the_end_still_lets_everybody_close() -> None:
    closed: list[str] = []

    class First:
        async def __aenter__(self) -> None: ...

        async def __aexit__(self, *exc: object) -> None:
            closed.append("first")

        async def run(self, message: str) -> str:
            return message

    class Hanging(First):
        async def __aexit__(self, *exc: object) -> None:
            await asyncio.sleep(100)

    rt = Runtime()
    await rt.run(First, "go")
    await rt.run(Hanging, "go")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await rt.aclose()
    assert closed == ["first"]


async def test_the_first_error_of_closing_is_raised_and_notes_the_others() -> None:
    class Failing:
        def __init__(self, text: str) -> None:
            self.text = text

        async def __aenter__(self) -> None: ...

        async def __aexit__(self, *exc: object) -> None:
            raise OSError(self.text)

        async def run(self, message: str) -> str:
            return message

    rt = Runtime()
    await rt.run(Failing("opened first"), "go")
    await rt.run(Failing("opened last"), "go")
    with pytest.raises(OSError, match="opened last") as caught:
        await rt.aclose()
    assert caught.value.__notes__ == ["closing failed as well: OSError: opened first"]


async def test_agents_are_closed_before_what_they_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_TOKEN", "value")
    found: list[Any] = []

    class Using:
        async def __aenter__(self) -> None: ...

        async def __aexit__(self, *exc: object) -> None:
            found.append(await rt.secret("API_TOKEN"))
            found.append(await (await rt.memory()).search("cat"))

        async def run(self, message: str, ctx: Context) -> str:
            return await ctx.secret("API_TOKEN") + await ctx.memory.add("a cat", key="cat")

    rt = Runtime(Config({"memory": {"path": ":memory:"}}))
    async with rt:
        await rt.run(Using, "go")
    assert found[0] == "value"
    assert [item.text for item in found[1]] == ["a cat"]


async def test_a_closed_runtime_says_so() -> None:
    async def agent(message: str) -> str:
        return message

    rt = Runtime(models={"fake": FakeModel()})
    async with rt:
        hosted = await rt.host(agent)
    for run in (rt.run(agent, "go"), rt.run(hosted, "go"), rt.secret("x"), rt.memory(), rt.__aenter__()):
        with pytest.raises(ConfigError, match="this runtime is closed"):
            await run
    await rt.aclose()


async def test_telemetry_that_was_opened_is_closed_when_another_fails_to_open() -> None:
    closed: list[str] = []

    class Backend:
        async def aclose(self) -> None:
            closed.append("first")

        def collect(self, call: Any) -> None: ...

    class Failing(Backend):
        async def open(self, host: Any) -> None:
            raise AgentrtError("no")

    rt = Runtime(backends=[("first", Backend()), ("second", Failing())])
    with pytest.raises(AgentrtError, match="no"):
        await rt.__aenter__()
    assert closed == ["first"]


async def test_agents_are_told_apart_by_identity_and_not_kept_for_ever() -> None:
    @dataclasses.dataclass
    class Equal:
        name: str

        async def run(self, message: str) -> int:
            return id(self)

    first, second = Equal("same"), Equal("same")
    passing = Equal("passing")
    kept = weakref.ref(passing)
    async with Runtime() as rt:
        for agent in (first, second, first):
            assert (await rt.run(agent, "go")).output == id(agent)
        await rt.run(passing, "go")
        del passing
        for _ in range(MAX_HOSTED):
            await rt.host(Equal("other"))
        gc.collect()
        assert kept() is None


async def test_a_hosted_agent_of_one_run_is_made_anew_for_each() -> None:
    class Short:
        scope = "run"

        async def run(self, message: str) -> Any:
            return self

    async with Runtime() as rt:
        hosted = await rt.host(Short)
        outputs = [(await rt.run(hosted, "go")).output for _ in range(3)]
    assert len({id(output) for output in outputs}) == 3


async def test_an_agent_that_swallows_its_own_exception_has_no_output() -> None:
    class Swallowing:
        scope = "run"

        async def __aenter__(self) -> None: ...

        async def __aexit__(self, *exc: object) -> bool:
            return True

        async def run(self, message: str) -> str:
            raise KeyError("bug")

    async with Runtime() as rt:
        result = await rt.run(Swallowing, "go")
    assert (result.output, result.text) == (None, "")
