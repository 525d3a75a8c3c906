"""A runtime's audit log: runs, calls, refusals, cancellation, secrets, files and the configuration, and no secret."""

from __future__ import annotations

import asyncio
import hmac
import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import pytest
from runtime.doubles import FakeModel, wants

from agentrt import Agent, Runtime, tool
from agentrt.config import Config
from agentrt.errors import BudgetExceeded, ConfigError, RunLimitExceeded
from agentrt.file_tools import file_tools
from agentrt.limits import Limits
from agentrt.order import ORDER
from agentrt.security.audit import AuditUnavailable, acting
from agentrt.security.audit.verify import verify
from agentrt.security.files import AccessDenied, FileAccess
from security.audits import KEY, checked, items, records

SECRET = "hunter2-correct-horse-battery"


@tool(idempotent=True)
async def weather(city: str) -> str:
    return f"sunny in {city}"


class Assistant(Agent):
    model = "fake:m"
    tools = (weather,)


def runtime(path: Path, *steps: Any, sections: dict[str, Any] | None = None, **audit: Any) -> Runtime:
    config = {"audit": {"path": str(path), **audit}, **(sections or {})}
    return Runtime(Config(config), models={"fake": FakeModel(*steps)})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def told(path: Path) -> list[tuple[str, str, str]]:
    """What stands in a log, in short."""
    return [(item["phase"], item["action"], item.get("outcome", "")) for item in records(path)]


def text(path: Path) -> str:
    return path.read_text()


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


# --- secrets, files, configuration -----------------------------------------------------------------------


@pytest.mark.asyncio
@pytest.mark.parametrize("strict", [True, False])
async def test_reading_and_revealing_a_secret(
    path: Path, monkeypatch: pytest.MonkeyPatch, strict: bool
) -> None:
    monkeypatch.setenv("DB_PASSWORD", SECRET)
    monkeypatch.setenv("SIGNING", KEY)

    async def agent(message: str, ctx: Any) -> str:
        return "got it" if await ctx.secret("DB_PASSWORD") == SECRET else "no"

    async with runtime(path, strict=strict, signing_key="secret://SIGNING") as rt:
        assert (await rt.run(agent, "hi")).text == "got it"
    reads = [(item["resource"], item["phase"]) for item in records(path, action="secret.read")]
    assert reads == [
        ("secret://env/SIGNING", "intent"),
        ("secret://env/SIGNING", "outcome"),
        ("secret://env/DB_PASSWORD", "intent"),
        ("secret://env/DB_PASSWORD", "outcome"),
    ], "the log's own key as well, which was read before it was open"
    revealed = records(path, action="secret.reveal")
    assert [item["resource"] for item in revealed] == ["secret://SIGNING", "secret://DB_PASSWORD"]
    assert revealed[1]["actor"] == "agent"
    assert checked(path).ok


@pytest.mark.asyncio
async def test_file_access(path: Path, tmp_path: Path) -> None:
    """Of tools in their threads, and of the agent's own code."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("x")
    files = FileAccess({"docs": tmp_path / "docs"}, "read")
    read_file = next(tool for tool in file_tools(files) if tool.name == "read_file")

    async def agent(message: str, ctx: Any) -> None:
        assert "x" in await ctx.tool(read_file, path="docs/a.txt")
        with pytest.raises(AccessDenied):
            await files.aio.write("docs/../../b.txt", "y")

    async with runtime(path) as rt:
        result = await rt.run(agent, "hi")
    [read] = records(path, action="file.read")
    [write] = records(path, action="file.write")
    assert (read["decision"], read["actor"], read["details"]) == ("allowed", "agent", {"root": "docs"})
    assert (write["decision"], write["run"]) == ("denied", result.run_id)
    assert write["details"]["reason"]


@pytest.mark.asyncio
async def test_the_configuration_is_named_but_not_told(path: Path) -> None:
    async with runtime(path, sections={"run": {"timeout": 12345}}):
        pass
    [record] = records(path, action="config.loaded")
    assert record["details"] == {"settings": "run.timeout audit.path"}
    assert len(record["arguments_hmac"]) == 64
    assert "12345" not in text(path)


@pytest.mark.asyncio
async def test_no_secret_is_in_the_log_of_a_run_in_which_everything_fails(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DB_PASSWORD", SECRET)

    @tool(idempotent=True)
    async def login(password: str) -> str:
        raise BudgetExceeded(f"no more logins with {password}")

    async def agent(message: str, ctx: Any) -> None:
        secret = await ctx.secret("DB_PASSWORD")
        with acting(actor=f"agent {secret}", on_behalf_of=secret):
            try:
                await ctx.tool(login, password=secret)
            except BudgetExceeded:
                pass

            async def fail() -> None:
                raise ValueError(f"bad {secret}")

            try:
                await ctx.call("http", f"https://x/?password={secret}", fail)
            except ValueError:
                pass
            await ctx.run(boom, f"use {secret}")

    async def boom(message: str, ctx: Any) -> None:
        raise RuntimeError(message)

    for arguments in ("hash", "redacted", "none"):
        async with runtime(path, arguments=arguments) as rt:
            await rt.secret(
                "DB_PASSWORD"
            )  # from now on it is known; nobody can tell what a user types before
            with pytest.raises(RuntimeError):
                await rt.run(agent, f"the password is {SECRET}")
    assert SECRET not in text(path)
    assert "[redacted]" in text(path)
    assert len(records(path, outcome="failed")) == 3 * 4
    assert checked(path, None).ok


# --- the stage -------------------------------------------------------------------------------------------


def test_the_stage_stands_outermost(path: Path) -> None:
    assert ORDER[-1] == "audit"
    rt = runtime(path)
    for _, pipeline in rt.explain(Assistant):
        names = [stage.name for stage in pipeline.describe()]
        assert names[-2:] == ["telemetry", "audit"]
    [stage] = [stage for stage in pipeline.describe() if stage.name == "audit"]
    assert stage.options["strict"] is False
    assert stage.options["path"] == str(path)


def test_a_users_stage_stands_inside_of_it(path: Path) -> None:
    async def mine(call: Any, call_next: Any) -> Any:
        return await call_next(call)

    rt = runtime(path)
    rt.use(mine)
    names = [stage.name for stage in dict(rt.explain(Assistant))["model"].describe()]
    assert names[-3:] == ["mine", "telemetry", "audit"]


def test_without_a_path_there_is_no_stage_and_nothing_is_loaded() -> None:
    program = """
import sys, asyncio
from agentrt import Runtime
async def agent(message): return "x"
async def main():
    async with Runtime() as rt:
        await rt.run(agent, "hi")
        assert rt.audit is None
        assert all(stage.name != "audit" for _, p in rt.explain(agent) for stage in p.describe())
asyncio.run(main())
assert not [name for name in sys.modules if name.startswith(("agentrt.security.audit", "agentrt.middleware.audit"))]
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.asyncio
async def test_a_runtime_that_is_not_entered_opens_its_log_with_its_first_run(path: Path) -> None:
    rt = runtime(path, "done", strict=True)
    await rt.run(Assistant, "hi")
    await rt.aclose()
    assert verify(path).closed
    assert len(records(path, action="run")) == 2


@pytest.mark.asyncio
async def test_the_end_of_agents_is_still_recorded(path: Path) -> None:
    class Tidy:
        async def __aenter__(self) -> Self:
            return self

        async def __aexit__(self, *error: object) -> None:
            await rt.invoke("http", "goodbye", self.leave)

        async def leave(self) -> None: ...

        async def run(self, message: str) -> str:
            return "x"

    rt = runtime(path)
    async with rt:
        await rt.run(Tidy, "hi")
    assert [item["resource"] for item in records(path, action="http.call")] == ["goodbye", "goodbye"]


@pytest.mark.asyncio
async def test_memory_calls_have_their_operation(path: Path, tmp_path: Path) -> None:
    async def agent(message: str, ctx: Any) -> None:
        await ctx.memory.add("the sky is blue")
        await ctx.memory.search("sky")

    async with runtime(path, sections={"memory": {"path": str(tmp_path / "memory.db")}}) as rt:
        await rt.run(agent, "hi")
    assert [item["action"] for item in records(path, phase="intent")] == [
        "run",
        "memory.add",
        "memory.search",
    ]


@pytest.mark.parametrize(
    ("audit", "message"),
    [
        ({"path": ""}, "path must be a name"),
        ({"path": "a", "strict": True, "on_failure": "warn"}, "contradict each other"),
        ({"path": "a", "arguments": "clear"}, "arguments"),
        ({"path": "a", "rotation": "10"}, "rotation must be a size of at least 1000 bytes"),
        ({"path": "a", "key": SECRET.replace("-", "")}, 'key must be "secret://NAME" or the path of a file'),
        ({"path": "a", "chekpoint_every": 1}, "did you mean 'checkpoint_every'"),
        ({"sinks": {"file": {"path": "b"}}}, r"\[audit.sinks.file\] has nothing to keep: set \[audit\] path"),
    ],
)
def test_the_configuration_is_checked(audit: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Config({"audit": audit})
    assert SECRET.replace("-", "") not in str(caught.value)


def test_models_are_hashed_by_what_is_asked(path: Path) -> None:
    """The same question has the same hash, whatever object asks."""

    async def ask() -> None:
        async with runtime(path, "a", "b", "c") as rt:
            for question in ("what?", "what?", "who?"):
                await rt.run(Assistant, question)

    asyncio.run(ask())
    first, second, third = (
        item["arguments_hmac"] for item in records(path, action="model.call", phase="intent")
    )
    assert first == second != third
