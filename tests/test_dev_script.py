"""The `dev` script, as a program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DEV = Path(__file__).parent.parent / "dev"


def dev(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, DEV, *arguments], capture_output=True, text=True, timeout=30)


def test_an_unknown_command_is_answered_with_the_list() -> None:
    done = dev("tset")
    assert done.returncode == 2
    assert "'tset'" in done.stderr
    assert "test" in done.stderr.partition("there are:")[2]
