"""Shell completion."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.commands import environment
from tests.cli.conftest import Command

BASH = """
compopt() { options="$2"; }
COMP_LINE=$1 COMP_POINT=${#1}
_agentrt_completion agentrt
printf '%s|%s' "$options" "${COMPREPLY[*]}"
"""


def complete(project: Path, line: str) -> tuple[str, str]:
    """Options of the completion and what bash offers at the end of `line`."""
    script = subprocess.run(
        [sys.executable, "-m", "agentrt", "completion", "bash"],
        cwd=project, env=environment(), capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    path = f"{Path(sys.executable).parent}:{environment()['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script + BASH, "bash", line],
        cwd=project, env=environment(PATH=path), capture_output=True, text=True,
    )  # fmt: skip
    assert done.stderr == ""
    options, _, offered = done.stdout.partition("|")
    return options, offered


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("agentrt ex", "explain"),
        ("agentrt run agents.py:Ec", "Echo"),
        ("agentrt run agents:Ech", "Echo"),
        ("agentrt run --app", "--app-dir"),
        ("agentrt models pull ", "smollm2"),
        ("agentrt explain agents:Bot --kind se", "secret"),
        ("agentrt run nothing_there.py:", ""),
    ],
)
def test_bash_offers_what_may_follow_the_cursor(project: Path, line: str, offered: str) -> None:
    assert complete(project, line) == ("", offered)


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("agentrt run agents.p", "agents.py:"),
        ("agentrt run agents:Bot --set run.time", "run.timeout="),
        ("agentrt run agents:Bot --set pipeline.model.dead", "pipeline.model.deadline="),
    ],
)
def test_bash_leaves_no_blank_where_more_has_to_follow(project: Path, line: str, offered: str) -> None:
    assert complete(project, line) == ("nospace", offered)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_a_script_that_it_understands(command: Command, shell: str, tmp_path: Path) -> None:
    ended = command("completion", shell)
    assert (ended.code, ended.err) == (0, "")
    assert "_AGENTRT_COMPLETE" in ended.out
    if shutil.which(shell):
        script = tmp_path / "script"
        script.write_text(ended.out)
        done = subprocess.run([shell, "-n", script], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_zsh_and_fish_are_offered_targets(project: Path) -> None:
    env = environment(_AGENTRT_COMPLETE="zsh_complete", COMP_WORDS="agentrt run agents:E", COMP_CWORD="2")
    done = subprocess.run(
        [sys.executable, "-m", "agentrt"], cwd=project, env=env, capture_output=True, text=True
    )
    assert "Echo" in done.stdout
    env = environment(
        _AGENTRT_COMPLETE="fish_complete", COMP_WORDS="agentrt run agents:E", COMP_CWORD="agents:E"
    )
    done = subprocess.run(
        [sys.executable, "-m", "agentrt"], cwd=project, env=env, capture_output=True, text=True
    )
    assert "plain,agents:Echo" in done.stdout
