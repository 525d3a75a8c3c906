"""agentrt-redis behind a name that leads to another server: what was the primary has become its replica."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from agentrt_redis import RedisLimits
from servers.valkey import Valkey


class Name:
    """A port that leads to `target`, for each connection that is made from then on."""

    def __init__(self, target: Valkey) -> None:
        self.target = target
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def leads(self) -> AsyncIterator[str]:
        """Its url."""
        server = await asyncio.start_server(self._lead, "127.0.0.1", 0)
        try:
            yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        finally:
            server.close()
            await asyncio.gather(*self._tasks)

    async def _lead(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self.target.port)
        for source, sink in ((reader, back), (there, writer)):
            task = asyncio.create_task(_pump(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(65536):
        sink.write(data)
    sink.close()


@pytest.mark.asyncio
async def test_connections_to_a_primary_that_was_replaced_are_not_kept(
    valkey: Valkey, mortal_valkey: Valkey
) -> None:
    name = Name(mortal_valkey)
    async with name.leads() as url:
        store = RedisLimits(url=url, on_failure="closed", pause=0.1, timeout=10, connect_timeout=10)
        hits = [store.hit("k", 100, 60.0, cost=1, max_wait=0.0) for _ in range(5)]
        assert all(turn.taken for turn in await asyncio.gather(*hits)), "five connections are open now"
        assert mortal_valkey.ask(f"REPLICAOF 127.0.0.1 {valkey.port}") == b"+OK\r\n"
        name.target = valkey
        refused = await store.hit("k", 100, 60.0, cost=1, max_wait=0.0)
        assert (refused.taken, refused.degraded) == (False, True)
        await asyncio.sleep(0.2)
        again = [await store.hit("k", 100, 60.0, cost=1, max_wait=0.0) for _ in range(5)]
        assert not any(turn.degraded for turn in again)
        assert [turn.remaining for turn in again] == [99, 98, 97, 96, 95]
        await store.aclose()
