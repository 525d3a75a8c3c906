"""`agentrt audit`: verify, show, tail."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from agentrt import Runtime, tool
from agentrt.cli.audit import _read_lines
from agentrt.config import Config
from agentrt.security.audit import AuditLog, acting
from tests.cli.commands import environment
from tests.cli.conftest import Command

KEY = bytes(range(32)).hex()


@tool(idempotent=True)
async def weather(city: str) -> str:
    if city == "Atlantis":
        raise ValueError("no such city")
    return "sunny"


async def child(message: str, ctx: Any) -> str:
    return str(await ctx.tool(weather, city=message))


async def parent(message: str, ctx: Any) -> str:
    await ctx.tool(weather, city="Paris")
    return str((await ctx.run(child, message)).text)


@pytest.fixture
def log(project: Path) -> Path:
    """A log of three runs, signed and anchored, and the files beside it."""
    from agentrt.security.audit.checkpoints import SigningKey

    path = project / "audit.jsonl"
    (project / "audit.key").write_text(KEY)
    public = SigningKey(KEY, name="k").public._key.public_bytes_raw().hex()
    (project / "audit.pub").write_text(public)
    audit = {
        "path": str(path),
        "signing_key": str(project / "audit.key"),
        "sinks": {"file": {"path": str(project / "anchor.jsonl")}},
    }

    async def run() -> None:
        async with Runtime(Config({"audit": audit, "pipeline": {"retry": False}})) as rt:
            for message, user in (("Rome", "ann"), ("Oslo", "bob"), ("Atlantis", "ann")):
                with acting(on_behalf_of=user):
                    try:
                        await rt.run(parent, message)
                    except ValueError:
                        assert message == "Atlantis"

    asyncio.run(run())
    return path


# --- verify ----------------------------------------------------------------------------------------------


def test_a_good_log(log: Path, command: Command) -> None:
    ended = command("audit", "verify", "audit.jsonl", "--public-key", "audit.pub", "--anchor", "anchor.jsonl")
    assert ended.code == 0
    assert ended.out.startswith("ok: audit.jsonl: ")
    assert "signed through record" in ended.out
    assert "anchored through record" in ended.out
    assert ended.err == ""


def test_what_was_not_shown_is_said(log: Path, command: Command) -> None:
    ended = command("audit", "verify", "audit.jsonl")
    assert ended.code == 0
    assert "note: no public key" in ended.err
    assert "note: no anchor" in ended.err


def test_a_log_that_was_edited(log: Path, command: Command) -> None:
    lines = log.read_bytes().splitlines(keepends=True)
    at = next(number for number, line in enumerate(lines) if b"tool:" in line)
    lines[at] = lines[at].replace(b"tool:", b"tool;")
    log.write_bytes(b"".join(lines))
    ended = command("audit", "verify", "audit.jsonl", "--public-key", "audit.pub")
    assert ended.code == 1
    assert ended.out.splitlines()[0].startswith(f"audit.jsonl:{at + 1}, record {at + 1}: edited: ")
    assert "not ok: 1 problem" in ended.out


def test_a_log_that_was_cut(log: Path, command: Command) -> None:
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-4]))
    ended = command("audit", "verify", "audit.jsonl", "--anchor", "anchor.jsonl", "--public-key", "audit.pub")
    assert ended.code == 1
    assert ": truncated: the log ends here" in ended.out


def test_a_file_that_is_no_audit_log_is_told_as_that(log: Path, command: Command) -> None:
    hint = "does not begin as an audit log: is it the file that [audit] path names?"
    ended = command("audit", "verify", "agents.py")
    assert ended.code == 1
    assert f"hint: agents.py {hint}" in ended.err
    assert f"hint: anchor.jsonl {hint}" in command("audit", "verify", "anchor.jsonl").err
    assert hint not in command("audit", "verify", "audit.jsonl").err
    (log.parent / "one").write_text("no log\n")
    ended = command("audit", "show", "one")
    assert (ended.code, ended.out) == (0, "")
    assert ended.err.endswith("one: 1 line is no line of an audit log; agentrt audit verify says more\n")


def test_the_result_as_json(log: Path, command: Command) -> None:
    ended = command("audit", "verify", "audit.jsonl", "--json", "--public-key", "audit.pub")
    result = json.loads(ended.out)
    assert result["ok"] is True
    assert result["signed_through"] == result["last"] == result["records"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none.jsonl",), "there is no audit log none.jsonl"),
        (("audit.jsonl", "--public-key", "none.pub"), "cannot read none.pub"),
        (("audit.jsonl", "--public-key", "agents.py"), "agents.py is not an ed25519 public key"),
        (("audit.jsonl", "--anchor", "none"), "cannot read the anchor none"),
        (("audit.jsonl", "--anchor", "./audit.jsonl"), "the anchor audit.jsonl is the log itself"),
    ],
)
def test_a_mistake_is_no_verdict(
    log: Path, command: Command, arguments: tuple[str, ...], message: str
) -> None:
    ended = command("audit", "verify", *arguments)
    assert ended.code == 2
    assert message in ended.err
    assert ended.out == ""


# --- show ------------------------------------------------------------------------------------------------


def test_operations_stand_below_their_runs(log: Path, command: Command) -> None:
    shown = [line.split() for line in command("audit", "show", "audit.jsonl").out.splitlines()]
    table = [(row[3], row[4], row[5]) for row in shown]
    assert table[0] == ("config.loaded", "configuration", "ok")
    assert table[1:5] == [
        ("run", "agent:parent", "ok"),
        ("tool.call", "tool:weather", "ok"),
        ("run", "agent:child", "ok"),
        ("tool.call", "tool:weather", "ok"),
    ]
    assert table[-1] == ("tool.call", "tool:weather", "failed")
    text = command("audit", "show", "audit.jsonl").out
    assert "by parent for ann" in text
    assert "ValueError" in text


def test_filters(log: Path, command: Command) -> None:
    def shown(*arguments: str) -> list[str]:
        return command("audit", "show", "audit.jsonl", *arguments).out.splitlines()

    assert len(shown("--action", "tool")) == len(shown("--action", "tool.call")) == 6
    assert len(shown("--actor", "child")) == 6
    assert len(shown("--actor", "bob")) == 4
    run = shown("--actor", "bob", "--action", "run")[0].split("run ")[-1].split()[0]
    assert len(shown("--run", run[:8])) == 4, "the run, its call, its child, and the child's call"
    assert shown("--since", "2100-01-01") == []
    ended = command("audit", "show", "audit.jsonl", "--action", "nix")
    assert (ended.code, ended.out, ended.err) == (0, "", "no operation in audit.jsonl is as asked for\n")
    assert len(shown("--since", "1h")) == len(shown())


def test_lines_as_json(log: Path, command: Command) -> None:
    ended = command("audit", "show", "audit.jsonl", "--action", "tool.call", "--json")
    assert [json.loads(line)["action"] for line in ended.out.splitlines()] == ["tool.call"] * 12


def test_a_time_that_is_none(log: Path, command: Command) -> None:
    ended = command("audit", "show", "audit.jsonl", "--since", "yesterday")
    assert ended.code == 2
    assert "--since takes a time" in ended.err
    assert command("audit", "show", "none").code == 2


def test_control_characters_do_not_reach_the_terminal(project: Path, command: Command) -> None:
    async def write() -> None:
        async with AuditLog(project / "a") as log:
            log.note("x", "\x1b[2Jboo\r\n\x07", details={"\x1b]0;t\x07": "y"})

    asyncio.run(write())
    for what in ("show", "tail"):
        out = command("audit", what, "a").out
        assert "boo" in out
        assert not set(out) & {"\x1b", "\r", "\x07"}


def test_an_operation_without_an_end_is_shown_as_that(project: Path, command: Command) -> None:
    async def write() -> None:
        async with AuditLog(project / "a") as log:
            log.intent("x", "y")

    asyncio.run(write())
    assert "no outcome" in command("audit", "show", "a").out


# --- tail ------------------------------------------------------------------------------------------------


def test_the_last_lines(log: Path, command: Command) -> None:
    ended = command("audit", "tail", "audit.jsonl", "-n", "3")
    assert len(ended.out.splitlines()) == 3
    assert "checkpoint" in ended.out.splitlines()[-1]
    assert ended.out.splitlines()[-2].endswith("closed")
    assert len(command("audit", "tail", "audit.jsonl", "--json").out.splitlines()) == 10


def test_following_goes_on_in_the_next_file(project: Path) -> None:
    path = project / "a"

    async def write(number: int) -> None:
        async with AuditLog(path, rotation=3000) as log:
            for _ in range(3):
                log.note("x", f"thing:{number}")

    asyncio.run(write(0))
    with subprocess.Popen(
        [sys.executable, "-m", "agentrt", "audit", "tail", "a", "-f", "-n", "0", "--json"],
        cwd=project,
        stdout=subprocess.PIPE,
        env=environment(),
        text=True,
    ) as process:
        time.sleep(1.0)
        for number in range(1, 8):
            asyncio.run(write(number))
            time.sleep(0.3)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out = process.communicate(timeout=10)[0]
    assert process.returncode == 130
    things = [item["resource"] for line in out.splitlines() if (item := json.loads(line))["type"] == "record"]
    assert things == [f"thing:{number}" for number in range(1, 8) for _ in range(3)]
    assert len([name for name in os.listdir(project) if name.startswith("a.0")]) >= 1


@pytest.mark.parametrize("cut", [len("first\nha"), len("first\n"), len("fi")])
def test_following_goes_on_where_a_log_was_cut(tmp_path: Path, cut: int) -> None:
    """By the next process that opens it, after one that was killed; or by one whose disk was full for a while."""
    path = tmp_path / "a"
    path.write_bytes(b"first\nhalf a line that is rather long")
    shown: list[bytes] = []
    with path.open("rb") as file:
        read = _read_lines(file, 0, shown.append)
        os.truncate(path, cut)
        read = _read_lines(file, read, shown.append)
        assert shown == [b"first\n"]
        with path.open("ab") as more:
            more.write(b"...\n")
        assert _read_lines(file, read, shown.append) == cut + 4
    assert shown[1:] == [b"ha...\n" if cut == 8 else b"...\n"]


# --- help ------------------------------------------------------------------------------------------------


def test_help_and_no_command(command: Command) -> None:
    assert "verify" in command("audit", "--help").out
    assert command("audit").code == 2
    assert "audit" in command("--help").out
