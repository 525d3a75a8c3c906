"""What a runtime has in its audit log besides runs and calls: secrets, files, the configuration; how it is set up."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Self

import pytest

from agentrt import tool
from agentrt.config import Config
from agentrt.errors import BudgetExceeded, ConfigError
from agentrt.file_tools import file_tools
from agentrt.order import ORDER
from agentrt.security.audit import AuditLog, AuditUnavailable, acting
from agentrt.security.audit import log as log_module
from agentrt.security.audit.log_file import LogFile
from agentrt.security.audit.verify import verify
from agentrt.security.files import AccessDenied, FileAccess
from security.audits import KEY, SECRET, Assistant, checked, items, records, room, runtime, text


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


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
async def test_strict_refuses_files_and_reveals_that_it_cannot_record(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tool's thread waits for the disk; the loop's own thread refuses what the log is known not to take."""
    monkeypatch.setenv("TOKEN", SECRET)
    (tmp_path / "docs").mkdir()
    files = FileAccess({"docs": tmp_path / "docs"}, "write")
    tools = {tool.name: tool for tool in file_tools(files)}

    async def agent(message: str, ctx: Any) -> None:
        secret = await ctx.secrets.get("TOKEN")
        files.write("docs/a.txt", "before")
        with room(len(text(path))):
            with pytest.raises(AuditUnavailable, match="may not grow further"):
                await files.aio.write("docs/a.txt", "after")
            with pytest.raises(AuditUnavailable, match="may not grow further"):
                files.write("docs/a.txt", "after")
            with pytest.raises(AuditUnavailable, match="may not grow further"):
                secret.reveal()
            with pytest.raises(AccessDenied):  # is refused anyway, and said as it is
                files.write("docs/../b.txt", "after")
        assert await ctx.tool(tools["read_file"], path="docs/a.txt") == "before"
        assert secret.reveal() == SECRET

    async with runtime(path, strict=True) as rt:
        await rt.run(agent, "hi")
    [write, denied] = records(path, action="file.write")
    assert (write["decision"], denied["decision"]) == ("allowed", "denied")
    assert len(records(path, action="secret.reveal")) == 1
    assert sum(item.get("refused", 0) for item in items(path) if item["type"] == "gap") == 3
    assert checked(path, None).ok


@pytest.mark.asyncio
async def test_a_thread_does_not_wait_for_ever_for_a_disk_that_hangs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, may_hang, append = threading.Event(), threading.Event(), LogFile.append

    def slow(self: LogFile, data: bytes) -> None:
        if may_hang.is_set():
            assert hangs.wait(30)
        append(self, data)

    monkeypatch.setattr(LogFile, "append", slow)
    async with AuditLog(path, strict=True) as log:
        await log.durable_intent("x", "before")
        monkeypatch.setattr(log_module, "WAIT_SECONDS", 0.1)  # only now: a disk may need longer
        may_hang.set()
        with pytest.raises(AuditUnavailable, match="did not take it in"):
            await asyncio.to_thread(log.announce, "file.read", "a.txt")
        hangs.set()
    told = [(item["decision"], item["outcome"]) for item in records(path, action="file.read")]
    assert told == [("allowed", "ok"), ("denied", "failed")]


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
        *_, telemetry, stage = pipeline.describe()
        assert (telemetry.name, stage.name) == ("telemetry", "audit")
        assert stage.options == {"path": str(path), "strict": False}


def test_a_users_stage_stands_inside_of_it(path: Path) -> None:
    async def mine(call: Any, call_next: Any) -> Any:
        return await call_next(call)

    rt = runtime(path)
    rt.use(mine)
    names = [stage.name for stage in dict(rt.explain(Assistant))["model"].describe()]
    assert names[-3:] == ["mine", "telemetry", "audit"]


def test_no_stage_stands_outside_of_it(path: Path) -> None:
    async def mine(call: Any, call_next: Any) -> Any: ...

    class Careless(Assistant):
        middleware = ((mine, {"outside": "audit"}),)

    rt = runtime(path)
    with pytest.raises(ConfigError, match="the stage mine cannot stand outside of audit"):
        rt.use(mine, outside="audit")
    with pytest.raises(ConfigError, match="the stage mine cannot stand outside of audit"):
        rt.explain(Careless)
    rt.use(mine, outside="telemetry")
    names = [stage.name for stage in dict(rt.explain(Assistant))["model"].describe()]
    assert names[-3:] == ["telemetry", "mine", "audit"]


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
