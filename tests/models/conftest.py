"""A fault server, and both clients pointed at it."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from agentrt.models.anthropic import Anthropic
from agentrt.models.openai import OpenAI
from agentrt.testing.fault_server import FaultServer

KEY = "sk-secret-key-of-the-test"


@pytest_asyncio.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with FaultServer() as server:
        yield server


@pytest_asyncio.fixture
async def openai(server: FaultServer) -> AsyncIterator[OpenAI]:
    client = OpenAI(base_url=server.openai_url, api_key=KEY)
    yield client
    await client.aclose()


@pytest_asyncio.fixture
async def anthropic(server: FaultServer) -> AsyncIterator[Anthropic]:
    client = Anthropic(base_url=server.anthropic_url, api_key=KEY)
    yield client
    await client.aclose()


@pytest_asyncio.fixture(params=["openai", "anthropic"])
async def client(request: pytest.FixtureRequest, server: FaultServer) -> AsyncIterator[Any]:
    """Each client in turn: what both wires share."""
    made = (
        OpenAI(base_url=server.openai_url, api_key=KEY)
        if request.param == "openai"
        else Anthropic(base_url=server.anthropic_url, api_key=KEY)
    )
    yield made
    await made.aclose()


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """asyncio reports a task's lost exception to its log, when the garbage collector finds it."""
    yield
    gc.collect(1)  # what this test made is young, and all that was imported is not looked at
    complaints = [record.getMessage() for record in caplog.get_records("call") if record.name == "asyncio"]
    assert complaints == []
