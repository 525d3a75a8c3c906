"""`file_tools`: what a model gets, and what it is told when it asks for something else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from agentrt import Agent, Runtime, ToolError
from agentrt.errors import ConfigError
from agentrt.file_tools import file_tools
from agentrt.models.scripted import Script, Scripted, Step, StepCall
from agentrt.security.files import FileAccess
from tests.security.jails import CANARY, World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def tools_of(world: World, mode: Any = "write", **options: Any) -> dict[str, Any]:
    return {tool.name: tool for tool in file_tools(FileAccess(world.root, mode), **options)}


def test_who_may_only_read_has_no_tool_to_write(world: World) -> None:
    assert list(tools_of(world)) == ["read_file", "write_file", "list_files"]
    assert list(tools_of(world, "read")) == ["read_file", "list_files"]
    with pytest.raises(ConfigError, match="file_tools takes a FileAccess"):
        file_tools(world.root)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="max_output"):
        tools_of(world, max_output=10)


def test_a_model_is_told_what_to_send(world: World) -> None:
    tools = tools_of(world)
    for tool in tools.values():
        assert tool.options.idempotent
        assert not tool.is_async  # so the pipeline executes it in a thread
        assert tool.description
        assert all(part["description"] for name, part in tool.schema["properties"].items())
    assert tools["write_file"].schema["required"] == ["path", "content"]
    assert tools["list_files"].schema.get("required", []) == []
    assert tools["read_file"].schema["properties"]["start_line"]["minimum"] == 1


def test_reading_writing_listing(world: World) -> None:
    tools = tools_of(world)
    assert tools["write_file"]("notes/today.md", "naïve\n") == "wrote 7 bytes to notes/today.md"
    assert tools["read_file"]("notes/today.md") == "naïve\n"
    (world.root / "out").symlink_to(world.outside)
    os.mkfifo(world.root / "pipe")
    (world.root / "two\nlines").touch()
    assert tools["list_files"]().split("\n") == [
        "a/",
        "notes/",
        "out  (a symbolic link)",
        "pipe  (not a file)",
        '"two\\nlines"  0 bytes',
    ]
    assert tools["list_files"]("notes") == "today.md  7 bytes"
    (world.root / "empty").mkdir()
    assert tools["list_files"]("empty") == "[the folder is empty]"
    tools["write_file"]("empty/file", "")
    assert tools["read_file"]("empty/file") == "[the file is empty]"


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("read_file", {"path": "../canary"}, "'..' is not allowed; give the path from the root downwards"),
        ("read_file", {"path": "/etc/passwd"}, "it is absolute; give it relative to the root"),
        ("read_file", {"path": "nothing"}, "no such file or folder; list_files shows what there is"),
        ("read_file", {"path": "a"}, "Is a directory"),
        ("read_file", {"path": "binary"}, "binary is not a text file; read_file reads UTF-8 text only"),
        ("read_file", {"path": "nul"}, "nul is not a text file"),
        ("read_file", {"path": "out/canary"}, "(a rule of this folder; trying again does not help)"),
        ("read_file", {"path": "large"}, "bytes are more than the"),
        ("read_file", {"path": "a/b/f", "start_line": 3}, "start_line=3: the file has 1 lines"),
        ("list_files", {"path": "out"}, "(a rule of this folder; trying again does not help)"),
        ("list_files", {"path": "a/b/f"}, "Not a directory"),
        ("write_file", {"path": "out/new", "content": "x"}, "(a rule of this folder"),
        ("write_file", {"path": "a", "content": "x"}, "Is a directory"),
        ("write_file", {"path": "", "content": "x"}, "it names no file below a root"),
        ("write_file", {"path": "a/b/g", "content": "x" * 2000}, "2,000 bytes are more than the 1,000"),
    ],
)
def test_what_goes_wrong_is_told_so_that_a_model_can_act(
    world: World, name: str, arguments: dict[str, Any], told: str
) -> None:
    (world.root / "binary").write_bytes(b"\x89PNG\xff")
    (world.root / "nul").write_bytes(b"text\0more")
    (world.root / "large").write_bytes(b"x" * 1001)
    (world.root / "out").symlink_to(world.outside)
    tools = {tool.name: tool for tool in file_tools(FileAccess(world.root, "write", max_bytes=1000))}
    with pytest.raises(ToolError) as raised:
        tools[name](**arguments)
    assert told in str(raised.value)
    assert os.fspath(world.root) not in str(raised.value)
    assert world.is_untouched()


def test_a_long_file_comes_in_parts_that_make_up_the_whole(world: World) -> None:
    lines = [f"line {number} " + "x" * (number % 50) for number in range(1, 201)]
    for text in ("\n".join(lines) + "\n", "\n".join(lines), "\n" * 1600, "a\r\n\r\nb\n\n\n" * 160):
        (world.root / "long").write_bytes(text.encode())
        read = tools_of(world, max_output=1000)["read_file"]
        parts: list[str] = []
        start = 1
        for _ in range(100):
            part = read("long", start_line=start)
            assert len(part) < 1200
            body, _, note = part.rpartition("\n[truncated: ")
            if not note.endswith("]"):
                parts.append(part)
                break
            parts.append(body + "\n")
            start = int(note.rpartition("=")[2].rstrip("]"))
        assert len(parts) > 1
        assert "".join(parts) == text


def test_a_line_longer_than_all_is_cut_and_said_so(world: World) -> None:
    (world.root / "long").write_text("short\n" + "x" * 5000 + "\nlast\n")
    read = tools_of(world, max_output=1000)["read_file"]
    first = read("long")
    assert first == "short\n[truncated: lines 1 to 1 of 3 are shown; read on with start_line=2]"
    second = read("long", start_line=2)
    told = "[truncated: line 2 has 5,000 characters, the first 1,000 are shown; read on with start_line=3]"
    assert second == "x" * 1000 + "\n" + told
    assert read("long", start_line=3) == "last\n"
    (world.root / "long").write_text("x" * 5000)
    assert read("long").endswith("\n[truncated: line 1 has 5,000 characters, the first 1,000 are shown]")


def test_a_long_listing_is_cut_and_said_so(world: World) -> None:
    for number in range(50):
        (world.root / "a" / f"{number:03}").touch()
    listed = tools_of(world, max_entries=10)["list_files"]("a").split("\n")
    assert listed[9:] == ["009  0 bytes", "[truncated: the first 10 names are shown, there are more]"]
    listed = tools_of(world, max_output=200)["list_files"]("a").split("\n")
    assert listed[-1] == "[truncated: the first 15 names are shown, there are more]"


@pytest.mark.asyncio
async def test_a_model_works_with_files_in_a_run(world: World) -> None:
    (world.root / "out").symlink_to(world.outside)
    told: list[tuple[Any, ...]] = []

    def told_of(*decision: Any) -> None:
        told.append(decision)

    with FileAccess(world.root, "write", on_access=told_of) as access:

        class Clerk(Agent):
            model = "scripted:files"
            tools = file_tools(access)

        calls = [
            StepCall("read_file", {"path": "a/b/f"}),
            StepCall("read_file", {"path": "out/canary"}),
            StepCall("read_file", {"path": "../canary"}),
            StepCall("write_file", {"path": "report/today.md", "content": "all is well"}),
            StepCall("write_file", {"path": "out/canary", "content": "gone"}),
            StepCall("read_file", {"path": "a/b/f", "start_line": 0}),
        ]
        script: Script = Scripted.script(
            "files", [Step(tool_calls=calls), Step(tool_calls=[StepCall("list_files")]), Step(text="done")]
        )
        async with Runtime() as runtime:
            result = await runtime.run(Clerk, "go")
    assert result.output == "done"
    answers = [message for message in script.requests[-1].messages if message.role == "tool"]
    assert [answer.is_error for answer in answers] == [False, True, True, False, True, True, False]
    assert answers[0].content == "inside"
    assert answers[3].content == "wrote 11 bytes to report/today.md"
    assert answers[6].content == "a/\nout  (a symbolic link)\nreport/"
    everything = repr(script.requests)
    assert CANARY not in everything
    assert os.fspath(world.root) not in everything
    assert (world.root / "report" / "today.md").read_text() == "all is well"
    assert world.is_untouched()
    assert {(operation, allowed) for operation, _, _, allowed, _ in told} == {
        ("read", True),
        ("read", False),
        ("write", True),
        ("write", False),
        ("list", True),
    }
