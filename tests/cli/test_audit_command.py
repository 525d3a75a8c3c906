"""`agentrt audit`: verify, show, tail."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agentrt import Runtime, tool
from agentrt.cli.audit_follow import Followed
from agentrt.config import Config
from agentrt.errors import ConfigError
from agentrt.security.audit import AuditLog, acting
from agentrt.security.audit.segments import segments
from tests.cli.commands import agentrt, environment
from tests.cli.conftest import Command

KEY = bytes(range(32)).hex()
CURVE = """-----BEGIN PUBLIC KEY-----
MDIwEAYHKoZIzj0CAQYFK4EEAAYDHgAEFuG/AmOOsxW0VNRPgXeRBIuy2pCT0sPj
uxy8cA==
-----END PUBLIC KEY-----
"""  # secp112r1, which the library for keys does not support


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


@pytest.mark.parametrize("content", [b"mine\n" * 60, b"no line end", b'{"a": 1}\n', b"\x7fELF\0\0\n\xff" * 9])
def test_a_file_that_is_no_audit_log_is_told_as_that_and_no_verdict(
    project: Path, command: Command, content: bytes
) -> None:
    (project / "file").write_bytes(content)
    ended = command("audit", "verify", "file")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        "error: file is no audit log: not one line of it is; name the file of [audit] path\n"
    )


def test_a_log_of_which_one_line_is_left_is_one(log: Path, command: Command) -> None:
    line = log.read_bytes().splitlines(keepends=True)[3]
    log.write_bytes(b"nothing\n" * 9 + line + b"nothing\n")
    ended = command("audit", "verify", "audit.jsonl")
    assert ended.code == 1
    assert "audit.jsonl:1, record 1: edited: it is no line of an audit log any more" in ended.out
    log.write_bytes(b'{"type":"fi')  # a process that was killed as it began
    ended = command("audit", "verify", "audit.jsonl")
    assert ended.code == 1
    assert "truncated: there is nothing in it" in ended.out


def test_checkpoints_that_are_taken_for_a_log(log: Path, command: Command) -> None:
    hint = "does not begin as an audit log: is it the file that [audit] path names?"
    assert f"hint: anchor.jsonl {hint}" in command("audit", "verify", "anchor.jsonl").err
    assert hint not in command("audit", "verify", "audit.jsonl").err


def test_what_is_no_line_of_a_log_is_counted(project: Path, command: Command) -> None:
    (project / "one").write_text("no log\n")
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
        (("audit.jsonl", "--public-key", "curve.pub"), "curve.pub is not an ed25519 public key"),
        (("audit.jsonl", "--anchor", "none"), "cannot read the anchor none"),
        (("audit.jsonl", "--anchor", "./audit.jsonl"), "the anchor audit.jsonl is the log itself"),
    ],
)
def test_a_mistake_is_no_verdict(
    log: Path, command: Command, arguments: tuple[str, ...], message: str
) -> None:
    (log.parent / "curve.pub").write_text(CURVE)
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


@pytest.mark.parametrize(
    "time", ["yesterday", "99999999999d", "99999999d", "0001-01-01", "9999-12-31T23:59:59-23:00"]
)
def test_a_time_that_is_none(log: Path, command: Command, time: str) -> None:
    ended = command("audit", "show", "audit.jsonl", "--since", time)
    assert ended.code == 2
    assert "--since takes a time" in ended.err
    assert "Traceback" not in ended.err


def test_a_log_that_is_not_there(command: Command) -> None:
    long = "n" * 300
    for what in ("verify", "show", "tail"):
        for path, message in (
            ("none", "there is no audit log none"),
            ("agents.py/a", "cannot read agents.py/a: Not a directory"),
            (long, f"cannot read {long}: File name too long"),
        ):
            ended = command("audit", what, path)
            assert (ended.code, ended.err) == (2, f"error: {message}\n")


def test_a_log_from_a_pipe_is_verified_and_what_is_none_is_told(log: Path) -> None:
    for content, code, said in (
        (log.read_bytes(), 0, "ok: /dev/stdin"),
        (b"mine\n", 2, "/dev/stdin is no audit log"),
    ):
        ended = agentrt("audit", "verify", "/dev/stdin", cwd=log.parent, stdin=content)
        assert ended.code == code
        assert said in ended.out + ended.err


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
        [sys.executable, "-m", "agentrt", "audit", "tail", "a", "-f", "-n", "1", "--json"],
        cwd=project,
        stdout=subprocess.PIPE,
        env=environment(),
        text=True,
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["type"] == "closed", "the last line: now it follows"
        things: list[str] = []
        for number in range(1, 8):
            asyncio.run(write(number))
            while len(things) < 3 * number:
                item = json.loads(process.stdout.readline())
                things += [item["resource"]] if item["type"] == "record" else []
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=50)
    assert process.returncode == 130
    assert things == [f"thing:{number}" for number in range(1, 8) for _ in range(3)]
    assert len([name for name in os.listdir(project) if name.startswith("a.0")]) >= 1


@pytest.mark.asyncio
async def test_following_misses_no_file_that_was_filled_between_two_looks(tmp_path: Path) -> None:
    path = tmp_path / "a"
    seen: list[int] = []

    def take(line: bytes) -> None:
        seen.append(json.loads(line)["seq"])

    async with AuditLog(path, strict=True, rotation=2000) as log:
        (await log.durable_intent("x", "first")).ended()
        with contextlib.closing(Followed(path)) as followed:
            followed.read(take)
            for rotations in (0, 1, 2, 5):
                files = len(segments(path)) + rotations
                while len(segments(path)) < files or not rotations:
                    (await log.durable_intent("x", "y")).ended()
                    if not rotations:
                        break
                followed.read(take)
            segments(path)[0].unlink()
            await log.aclose()
            followed.read(take)
    last = json.loads(path.read_bytes().splitlines()[-1])
    assert seen == list(range(1, last["seq"] + 1))
    assert last["seq"] > 40


@pytest.mark.asyncio
async def test_following_goes_on_with_another_log_of_the_name_and_leaves_its_older_files(
    tmp_path: Path,
) -> None:
    path, shown = tmp_path / "a", list[bytes]()

    async def write(name: str) -> None:
        async with AuditLog(path, strict=True, rotation=2000) as log:
            for _ in range(10):
                (await log.durable_intent("x", name)).ended()

    await write("old")
    with contextlib.closing(Followed(path)) as followed:
        followed.read(lambda line: None)
        for file in segments(path):
            file.rename(tmp_path / f"moved-{file.name}")
        followed.read(shown.append)
        assert shown == [], "between two names"
        await write("new")
        new = b"".join(file.read_bytes() for file in segments(path))
        (tmp_path / "moved-a.000001").rename(tmp_path / "a.999999")
        followed.read(shown.append)
    assert b"".join(shown) == new


def test_what_follows_and_cannot_be_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.touch()
    with contextlib.closing(Followed(path)) as followed:
        path.unlink()
        path.mkdir()
        with pytest.raises(ConfigError, match=r"cannot read what follows in .*a: Is a directory"):
            followed.read(lambda line: None)


FIRST = b'{"type":"file","seq":1}\n'


@pytest.mark.parametrize("cut", [len(FIRST) + 2, len(FIRST), 2])
def test_following_goes_on_where_a_log_was_cut(tmp_path: Path, cut: int) -> None:
    """By the next process that opens it, after one that was killed; or by one whose disk was full for a while."""
    path = tmp_path / "a"
    path.write_bytes(FIRST + b"half a line that is rather long")
    shown: list[bytes] = []
    with contextlib.closing(Followed(path)) as followed:
        followed.read(shown.append)
        os.truncate(path, cut)
        followed.read(shown.append)
        assert shown == [FIRST]
        with path.open("ab") as more:
            more.write(b"...\n")
        followed.read(shown.append)
    assert shown[1:] == [b"ha...\n" if cut == len(FIRST) + 2 else b"...\n"]


@pytest.mark.parametrize("options", [(), ("-n", "0"), ("--json",), ("-f",)])
def test_what_is_no_log_is_not_shown_as_one(
    project: Path, command: Command, options: tuple[str, ...]
) -> None:
    (project / "notes").write_text("mine\n" * 20)
    ended = command("audit", "tail", "notes", *options)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        "error: notes does not begin as an audit log: name the file of [audit] path; "
        "if it is that, agentrt audit verify says what is wrong\n"
    )


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_what_somebody_has_written_into_a_log_does_not_reach_the_terminal(
    log: Path, command: Command, options: tuple[str, ...]
) -> None:
    with log.open("ab") as file:
        file.write(b'\x1b]0;t\x07\n{"type":"closed","seq":1,"time":"\x1b[2J"}\n')
    for what in ("show", "tail"):
        ended = command("audit", what, "audit.jsonl", *options)
        assert ended.code == 0
        assert not set(ended.out + ended.err) & {"\x1b", "\x07"}
        assert "no line" in ended.err


# --- help ------------------------------------------------------------------------------------------------


def test_help_and_no_command(command: Command) -> None:
    assert "verify" in command("audit", "--help").out
    assert command("audit").code == 2
    assert "audit" in command("--help").out
