"""The command itself: help, version, what is left to it."""

from __future__ import annotations

import importlib
from pathlib import Path

import click
import pytest

from agentrt import __version__
from agentrt.cli.main import COMMANDS
from tests.cli.conftest import Command


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version(command: Command, option: str) -> None:
    assert command(option).out == f"agentrt {__version__}\n"


@pytest.mark.parametrize("arguments", [(), *((name,) for name in COMMANDS), ("models", "pull")])
def test_every_help_has_an_example(command: Command, arguments: tuple[str, ...]) -> None:
    ended = command(*arguments, "--help")
    assert (ended.code, ended.err) == (0, "")
    path = " ".join(("agentrt", *arguments))
    assert ended.out.startswith(f"Usage: {path} ")
    assert ended.out.count(path) >= 2
    assert max(map(len, ended.out.splitlines())) <= 100


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_says_the_same_as_each_command(name: str) -> None:
    made: click.Command = getattr(importlib.import_module(f"agentrt.cli.{name}"), name)
    assert made.short_help == COMMANDS[name]


def test_without_a_command_it_is_the_help(command: Command) -> None:
    ended = command()
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("Usage: agentrt ")


def test_a_bug_of_our_own_is_shown_whole(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr("agentrt.cli.plugins.list_plugins", fails)
    ended = command("plugins")
    assert ended.code == 1
    assert "agentrt/cli/main.py" in ended.err
    assert ended.err.endswith("error: agentrt failed: RuntimeError: ours\n")


def test_a_note_about_the_configuration_is_a_warning(project: Path, command: Command) -> None:
    (project / "agentrt.toml").write_text("")
    (project / "pyproject.toml").write_text("[tool.agentrt.run]\ntimeout = 3\n")
    ended = command("run", "agents:Echo", "hi")
    assert (ended.code, ended.out) == (0, "hi\n")
    assert ended.err.startswith("warning: agentrt.toml is used; [tool.agentrt] in pyproject.toml")
