"""What can be run as an agent, and what the errors say otherwise."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from agentrt import ConfigError, Context, Runtime, current, tool
from agentrt.hosting import host

pytestmark = [pytest.mark.asyncio, pytest.mark.virtual_time]


class Plain:
    async def run(self, message: str) -> str:
        return f"plain {message}"


class WithContext:
    async def run(self, message: str, *, ctx: Context) -> str:
        return f"{message} {ctx.agent_name} {current() is ctx}"


class ByAnnotation:
    async def run(self, where: Context, message: str) -> str:
        raise AssertionError("a positional context is not how it is passed")


async def function(message: str) -> str:
    return f"function {message}"


async def with_context(message: str, context: Any) -> str:
    return f"{message} {context.id == current().id}"


async def generator(message: str) -> AsyncIterator[str]:
    for word in ("one", "two"):
        yield f"{word} {message} "


def factory() -> Plain:
    return Plain()


@pytest.mark.parametrize(
    ("agent", "answer"),
    [
        (Plain, "plain hi"),
        (Plain(), "plain hi"),
        (WithContext, "hi WithContext True"),
        (function, "function hi"),
        (with_context, "hi True"),
        (generator, "one hi two hi "),
        (factory, "plain hi"),
    ],
)
async def test_an_agent_of_every_shape_answers(agent: Any, answer: str) -> None:
    async with Runtime() as runtime:
        result = await runtime.run(agent, "hi")
    assert result.text == answer


async def test_a_context_is_found_by_annotation_wherever_it_stands() -> None:
    class Agent:
        async def run(self, message: str, where: Context) -> str:
            return f"{message} {where.agent_name}"

    async with Runtime() as runtime:
        assert (await runtime.run(Agent, "hi")).output == "hi Agent"


async def test_a_class_is_instantiated_once_per_runtime() -> None:
    made: list[int] = []

    class Counting:
        def __init__(self) -> None:
            made.append(1)

        async def run(self, message: str) -> str:
            return message

    async with Runtime() as runtime:
        await runtime.run(Counting, "a")
        await runtime.run(Counting, "b")
    assert made == [1]


async def test_scope_run_makes_an_instance_for_each_run() -> None:
    made: list[int] = []

    class Counting:
        scope = "run"

        def __init__(self) -> None:
            made.append(1)

        async def run(self, message: str) -> str:
            return message

    async with Runtime() as runtime:
        await runtime.run(Counting, "a")
        await runtime.run(Counting, "b")
    assert made == [1, 1]


async def test_an_agent_is_entered_once_and_left_when_the_runtime_closes() -> None:
    seen: list[str] = []

    class Managed:
        async def __aenter__(self) -> None:
            seen.append("enter")

        async def __aexit__(self, *error: object) -> None:
            seen.append("exit")

        async def run(self, message: str) -> str:
            seen.append(message)
            return message

    async with Runtime() as runtime:
        await runtime.run(Managed, "a")
        await runtime.run(Managed, "b")
    assert seen == ["enter", "a", "b", "exit"]


class NoRun:
    async def arun(self, message: str) -> str:
        return message


class SyncRun:
    def run(self, message: str) -> str:
        return message


class TooMany:
    async def run(self, message: str, other: str) -> str:
        return message


class NoMessage:
    async def run(self) -> str:
        return ""


class NeedsArguments:
    def __init__(self, key: str) -> None:
        self.key = key

    async def run(self, message: str) -> str:
        return message


@tool
async def add(a: int, b: int) -> int:
    return a + b


@pytest.mark.parametrize(
    ("subject", "says"),
    [
        (NoRun, r"NoRun has no method `run` \(it has 'arun'\).*async def run\(self, message\)"),
        (SyncRun, "must be async"),
        (SyncRun(), "must be async"),
        (TooMany, r"it takes \(message, other\)"),
        (NoMessage, "must take the message"),
        (NeedsArguments, r"without arguments \(key\).*--factory"),
        (42, "42 .* is not an agent"),
        (len, "is a plain function with parameters"),
        (add, r"^add is a tool, not an agent; put it into `tools` of an Agent"),
    ],
)
async def test_what_is_no_agent_is_refused_with_a_hint(subject: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        host(subject)


async def test_a_factory_must_make_an_agent() -> None:
    with pytest.raises(ConfigError, match="made another plain function"):
        host(lambda: len, factory=True)
    with pytest.raises(ConfigError, match="--factory needs a function"):
        host(3, factory=True)


async def test_what_a_generator_yields_that_is_no_text_is_a_list() -> None:
    async def numbers(message: str) -> AsyncIterator[int]:
        yield 1
        yield 2

    async with Runtime() as runtime:
        result = await runtime.run(numbers, "hi")
    assert (result.output, result.text) == ([1, 2], "[1,2]")
