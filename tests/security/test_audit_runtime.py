"""A runtime's audit log: runs, calls, refusals, cancellation."""

from __future__ import annotations

import asyncio
import hmac
import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from runtime.doubles import FakeModel, wants

from agentrt import Agent, Runtime, tool
from agentrt.config import Config
from agentrt.errors import BudgetExceeded, RunLimitExceeded
from agentrt.limits import Limits
from agentrt.security.audit import AuditUnavailable, acting
from agentrt.security.audit.verify import verify
from security.audits import Assistant, checked, items, records, runtime, text, weather


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def told(path: Path) -> list[tuple[str, str, str]]:
    """What stands in a log, in short."""
    return [(item["phase"], item["action"], item.get("outcome", "")) for item in records(path)]


# --- runs and calls --------------------------------------------------------------------------------------


@pytest.mark.asyncio
@pytest.mark.parametrize("strict", [True, False])
async def test_a_run_and_its_calls(path: Path, tmp_path: Path, strict: bool) -> None:
    (tmp_path / "hmac").write_text("h" * 32)
    async with runtime(
        path, [wants("weather", '{"city": "Paris"}')], "done", strict=strict, key=str(tmp_path / "hmac")
    ) as rt:
        with acting(on_behalf_of="user:42"):
            result = await rt.run(Assistant, "hi")
    assert told(path) == [
        ("outcome", "config.loaded", "ok"),
        ("intent", "run", ""),
        ("intent", "model.call", ""),
        ("outcome", "model.call", "ok"),
        ("intent", "tool.call", ""),
        ("outcome", "tool.call", "ok"),
        ("intent", "model.call", ""),
        ("outcome", "model.call", "ok"),
        ("outcome", "run", "ok"),
    ]
    inside = records(path)[1:]
    assert {item["run"] for item in inside} == {result.run_id}
    assert {item["actor"] for item in inside} == {"Assistant"}
    assert {item["on_behalf_of"] for item in inside} == {"user:42"}
    assert len({item["session"] for item in inside}) == 1
    [run] = records(path, action="run", phase="intent")
    assert (run["resource"], run["arguments_hmac"]) == (
        "agent:Assistant",
        hmac.digest(b"h" * 32, b'"hi"', sha256).hex(),
    )
    [call] = records(path, action="tool.call", phase="intent")
    assert call["resource"] == "tool:weather"
    assert call["arguments_hmac"] == hmac.digest(b"h" * 32, b'{"city":"Paris"}', sha256).hex()
    assert "Paris" not in text(path)
    assert all(
        item["duration"] >= 0 for item in records(path, phase="outcome") if item["action"] != "config.loaded"
    )
    assert verify(path).closed


@pytest.mark.asyncio
async def test_the_trace_is_named(path: Path, tmp_path: Path) -> None:
    spans = tmp_path / "spans.jsonl"
    telemetry = {"telemetry": {"file": {"path": str(spans)}}}
    async with runtime(path, "done", sections=telemetry) as rt:
        await rt.run(Assistant, "hi")
    traces = {json.loads(line).get("trace_id") for line in spans.read_text().splitlines()} - {None}
    assert {item["trace"] for item in records(path, action="model.call")} == traces
    assert {item["trace"] for item in records(path, action="run", phase="outcome")} == traces


@pytest.mark.asyncio
async def test_a_child_run_names_its_parent(path: Path) -> None:
    async def child(message: str, ctx: Any) -> str:
        return "yes"

    async def parent(message: str, ctx: Any) -> str:
        return str((await ctx.run(child, "hello")).text)

    async with runtime(path) as rt:
        result = await rt.run(parent, "hi")
    outer, inner = records(path, action="run", phase="intent")
    assert outer["run"] == result.run_id == inner["parent"]
    assert "parent" not in outer


@pytest.mark.asyncio
async def test_the_intent_is_on_the_disk_before_the_first_attempt(path: Path) -> None:
    seen: list[list[str]] = []

    @tool
    async def look() -> str:
        seen.append([item["action"] for item in records(path, phase="intent")])
        return "x"

    async def agent(message: str, ctx: Any) -> str:
        return str(await ctx.tool(look))

    async with runtime(path, strict=True) as rt:
        await rt.run(agent, "hi")
    assert seen == [["run", "tool.call"]]


@pytest.mark.asyncio
async def test_attempts_are_one_operation(path: Path) -> None:
    answers = iter([ConnectionError("x"), ConnectionError("x"), None])

    @tool(idempotent=True)
    async def flaky() -> str:
        error = next(answers)
        if error is not None:
            raise error
        return "x"

    async def agent(message: str, ctx: Any) -> str:
        return str(await ctx.tool(flaky))

    sections = {"pipeline": {"retry": {"initial_delay": 0.001}}}
    async with runtime(path, sections=sections) as rt:
        await rt.run(agent, "hi")
    [outcome] = records(path, action="tool.call", phase="outcome")
    assert (outcome["outcome"], outcome["details"]) == ("ok", {"attempts": "3"})


@pytest.mark.asyncio
async def test_another_target_that_answers_is_named(path: Path) -> None:
    class Careful(Agent):
        model = ("fake:m", "spare:m")

    rt = Runtime(
        Config({"audit": {"path": str(path)}, "pipeline": {"retry": False}}),
        models={"fake": FakeModel(ConnectionError("x")), "spare": FakeModel("done")},
    )
    async with rt:
        await rt.run(Careful, "hi")
    intent, outcome = records(path, action="model.call")
    assert (intent["resource"], outcome["resource"]) == ("fake:m", "spare:m")
    assert outcome["details"]["degraded"] == "true"


@pytest.mark.asyncio
async def test_a_stream_ends_when_it_settles(path: Path) -> None:
    async def agent(message: str, ctx: Any) -> str:
        async with ctx.stream_model("hi") as stream:
            async for _ in stream:
                assert [r["outcome"] for r in records(path, action="model.call", phase="outcome")] == []
        return "x"

    agent.model = "fake:m"  # type: ignore[attr-defined]
    async with runtime(path, "one two three", strict=True) as rt:
        await rt.run(agent, "hi")
    assert [r["outcome"] for r in records(path, action="model.call", phase="outcome")] == ["ok"]


@pytest.mark.asyncio
async def test_a_stream_that_breaks_has_failed(path: Path) -> None:
    async def agent(message: str, ctx: Any) -> str:
        async with ctx.stream_model("hi") as stream:
            async for _ in stream:
                pass
        return "x"

    agent.model = "fake:m"  # type: ignore[attr-defined]
    async with runtime(path, ("one", "two", ConnectionError("x"))) as rt:
        with pytest.raises(ConnectionError):
            await rt.run(agent, "hi")
    assert [r["error"] for r in records(path, action="model.call", phase="outcome")] == ["ConnectionError"]


# --- what does not go well -------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_refusals_are_denials(path: Path) -> None:
    async def refuse(call: Any, call_next: Any) -> Any:
        raise BudgetExceeded("the budget of 3 is spent")

    rt = runtime(path)
    rt.use(refuse, kind="tool")

    async def agent(message: str, ctx: Any) -> str:
        return str(await ctx.tool(weather, city="Paris"))

    async with rt:
        with pytest.raises(BudgetExceeded):
            await rt.run(agent, "hi")
    [outcome] = records(path, action="tool.call", phase="outcome")
    assert (outcome["decision"], outcome["error"]) == ("denied", "BudgetExceeded")
    assert outcome["message"] == "the budget of 3 is spent"
    assert records(path, action="run", phase="outcome")[0]["decision"] == "denied"


@pytest.mark.asyncio
async def test_an_open_circuit_and_a_spent_limit_are_denials(path: Path) -> None:
    async def agent(message: str, ctx: Any) -> None:
        async def fail() -> None:
            raise ConnectionError("x")

        for _ in range(3):
            try:
                await ctx.call("http", "svc", fail)
            except Exception:
                pass
        for _ in range(2):
            await ctx.tool(weather, city="Paris")

    sections = {"pipeline": {"circuit_breaker": {"failure_threshold": 2}, "retry": False}}
    async with runtime(path, sections=sections) as rt:
        with pytest.raises(RunLimitExceeded):
            await rt.run(agent, "hi", limits=Limits(tool_calls=1))
    outcomes = records(path, action="http.call", phase="outcome")
    assert [item["decision"] for item in outcomes] == ["allowed", "allowed", "denied"]
    assert outcomes[-1]["error"] == "CircuitOpen"
    assert records(path, action="run", phase="outcome")[0]["decision"] == "denied"


@pytest.mark.asyncio
async def test_cancellation_is_recorded(path: Path) -> None:
    started = asyncio.Event()

    async def agent(message: str, ctx: Any) -> None:
        async def hang() -> None:
            started.set()
            await asyncio.Event().wait()

        await ctx.call("http", "svc", hang)

    async with runtime(path) as rt:
        run = asyncio.ensure_future(rt.run(agent, "hi"))
        await started.wait()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
    assert told(path)[-2:] == [("outcome", "http.call", "cancelled"), ("outcome", "run", "cancelled")]


@pytest.mark.asyncio
async def test_strict_does_not_begin_what_it_cannot_record(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from agentrt.security.audit.log_file import LogFile

    did: list[str] = []
    real = LogFile.append
    full = False

    def append(self: LogFile, data: bytes) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, data)

    monkeypatch.setattr(LogFile, "append", append)

    @tool(idempotent=True)
    async def act() -> str:
        did.append("x")
        return "x"

    async def agent(message: str, ctx: Any) -> str:
        nonlocal full
        await ctx.tool(act)
        full = True
        try:
            with pytest.raises(AuditUnavailable, match="no room left") as caught:
                await ctx.tool(act)
            assert caught.value.executed is False
        finally:
            full = False
        return str(await ctx.tool(act))

    async with runtime(path, strict=True) as rt:
        await rt.run(agent, "hi")
        full = True
        with pytest.raises(AuditUnavailable):
            await rt.run(agent, "hi")
        full = False
    assert did == ["x", "x"]
    assert sum(item.get("refused", 0) for item in items(path) if item["type"] == "gap") == 2
    assert checked(path, None).ok


@pytest.mark.asyncio
async def test_a_runtime_that_cannot_open_its_log_does_not_open(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AuditUnavailable, match="a part of the path is a file"):
        async with runtime(tmp_path / "file" / "audit.jsonl", on_failure="refuse"):
            pytest.fail("it was opened")
