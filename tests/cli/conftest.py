"""A folder with agents to run, and a process that is put in order again after a command ran in it."""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentrt.cli.main import main
from agentrt.telemetry.logs import current
from tests.cli.commands import AGENTS, Ended, environment

Command = Callable[..., Ended]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the agents of `tests.cli.commands` in agents.py."""
    (tmp_path / "agents.py").write_text(AGENTS)
    return tmp_path


@pytest.fixture
def command(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Command]:
    """The command in this process, in the folder `project`: quick, and seen by coverage."""
    monkeypatch.chdir(project)
    for name in set(os.environ) - set(environment()):
        monkeypatch.delenv(name)
    root = logging.getLogger()
    level, handlers, path, modules = root.level, root.handlers[:], sys.path[:], set(sys.modules)
    show, terminate = warnings.showwarning, signal.getsignal(signal.SIGTERM)

    def run(*arguments: str) -> Ended:
        with pytest.raises(SystemExit) as exited:
            main(arguments)
        out, err = capfd.readouterr()
        return Ended(int(exited.value.code or 0), out, err)

    yield run
    while (logs := current()) is not None:
        logs.close()
    root.setLevel(level)
    root.handlers[:] = handlers
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        # Only the agents: libraries that are loaded twice do not know their own objects any more.
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(project.parent)):
            del sys.modules[name]
    warnings.showwarning = show
    signal.signal(signal.SIGTERM, terminate)
