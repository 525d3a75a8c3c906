"""What a boundary refuses inside of a tool goes back to the model as the tool's answer, and nothing was done."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

import pytest

from agentrt import Agent, Runtime, tool
from agentrt.security.sanitize import sanitize_input
from agentrt.security.sql import sql_guard
from tests.runtime.doubles import FakeModel, wants

pytestmark = [pytest.mark.asyncio, pytest.mark.virtual_time]


@tool(idempotent=True)
async def read(path: str) -> str:
    return f"opened {sanitize_input(path, 'path')}"


@tool(idempotent=True)
async def query(sql: str) -> str:
    shop = sqlite3.connect(":memory:")
    try:
        return str(shop.execute(sql_guard(sql, dialect="sqlite", max_rows=10)).fetchall())
    finally:
        shop.close()


class Clerk(Agent):
    model = "fake:one"
    tools = (read, query)


@pytest.mark.parametrize(
    ("name", "arguments", "answer"),
    [
        ("read", {"path": "see you.."}, "opened see you.."),
        (
            "read",
            {"path": "notes/../../etc/passwd"},
            "error: the path has '..' at character 6; it could lead out of the root: name the directory itself",
        ),
        ("query", {"sql": "SELECT 1 + 1"}, "[(2,)]"),
        (
            "query",
            {"sql": "SELECT readfile('/etc/passwd')"},
            "error: the statement calls the function 'readfile', which is not among those allowed; see functions=",
        ),
    ],
)
async def test_the_model_learns_what_was_refused(name: str, arguments: dict[str, Any], answer: str) -> None:
    model = FakeModel([wants(name, json.dumps(arguments))], "done")
    async with Runtime(models={"fake": model}) as runtime:
        result = await runtime.run(Clerk, "go")
    assert result.text == "done"
    assert model.requests[1].messages[-1].content == answer
