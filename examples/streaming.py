"""Streams: an agent that is an async generator, and a program that watches a run's events.

agentrt run --stream examples/streaming.py:count "3"
python examples/streaming.py
"""

import asyncio
from collections.abc import AsyncIterator

from agentrt import Agent, Runtime


async def count(message: str) -> AsyncIterator[str]:
    """What an async generator yields is streamed."""
    for number in range(int(message)):
        yield f"{number} "
        await asyncio.sleep(0.01)


class Echo(Agent):
    model = "scripted:echo"


async def main() -> None:
    async with Runtime.from_config() as runtime, runtime.stream(Echo, "to be or not to be") as run:
        async for event in run:
            print(f"{event.at:6.3f}  {event}")
    print(run.result.text)


if __name__ == "__main__":
    asyncio.run(main())
