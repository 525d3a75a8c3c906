"""Tools as a type checker sees them: checked by mypy and pyright, never run."""

from typing import Any, assert_type

from agentrt.schema import Output, output_decoder
from agentrt.threads import WorkerThreads
from agentrt.tools import Tool, as_tool, tool


@tool
async def weather(city: str, days: int = 1) -> str:
    return f"{city} {days}"


@tool(idempotent=True, timeout=10, transient=(OSError,))
def add(a: int, b: int) -> int:
    return a + b


class Agent:
    @tool
    async def search(self, query: str) -> list[str]:
        return [query]


assert_type(add(1, 2), int)
assert_type(as_tool(add), Tool[..., Any])
assert_type(output_decoder(int), Output[int])
assert_type(output_decoder(int).decode("1"), int)


async def run() -> None:
    assert_type(await weather("Rome", days=2), str)
    assert_type(await Agent().search("q"), list[str])
    assert_type(await WorkerThreads().run(add, 1, 2), int)
    await weather(1)  # type: ignore[arg-type]
    await Agent().search()  # type: ignore[call-arg]
