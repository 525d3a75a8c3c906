"""Log records and warnings on stderr."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentrt.cli.logs import show_logs, show_warnings
from agentrt.cli.terminal import Terminal
from agentrt.config.sections import LogSection
from agentrt.pipeline import PipelineWarning
from agentrt.telemetry.logs import RootHandler

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root = logging.getLogger()
    level, handlers, show = root.level, root.handlers[:], warnings.showwarning
    root.handlers.clear()
    yield
    for handler in root.handlers:
        if isinstance(handler, RootHandler):
            handler.logs.close()
    root.setLevel(level)
    root.handlers[:] = handlers
    warnings.showwarning = show


def test_warnings_and_worse_by_default(capsys: Captured) -> None:
    show_logs(LogSection(), Terminal())
    logging.getLogger("lib").info("not this")
    logging.getLogger("lib").warning("but %s", "this")
    assert capsys.readouterr().err == "WARNING lib: but this\n"


def test_with_the_time_from_info_down(capsys: Captured) -> None:
    show_logs(LogSection(level="debug"), Terminal())
    logging.getLogger("lib").debug("x")
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} DEBUG lib: x\n", capsys.readouterr().err)


def test_tracebacks_are_logged_with_their_record(capsys: Captured) -> None:
    show_logs(LogSection(level="error"), Terminal())
    try:
        raise ValueError("x")
    except ValueError:
        logging.getLogger("lib").exception("failed")
    err = capsys.readouterr().err
    assert err.startswith("ERROR lib: failed\nTraceback")
    assert err.endswith("ValueError: x\n")


def test_called_again_it_only_changes_the_level(capsys: Captured) -> None:
    show_logs(LogSection(level="error"), Terminal())
    show_logs(LogSection(level="warning"), Terminal())
    logging.getLogger("lib").warning("once")
    assert capsys.readouterr().err == "WARNING lib: once\n"


def test_a_record_that_cannot_be_formatted_is_no_failure_of_the_program(
    capsys: Captured,
) -> None:
    show_logs(LogSection(), Terminal())
    record = logging.LogRecord("lib", logging.WARNING, "x.py", 1, "%d", ("no number",), None)
    logging.getLogger().handlers[-1].handle(record)
    assert capsys.readouterr().err == "WARNING lib: %d [its arguments do not fit: TypeError]\n"


def test_a_warning_of_ours_is_one_line_and_others_are_as_usual(capsys: Captured) -> None:
    shown: list[str] = []
    warnings.showwarning = lambda message, *more: shown.append(str(message))
    show_warnings(Terminal())
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning(PipelineWarning("retry is dead code"), PipelineWarning, "x.py", 1)
        warnings.showwarning(UserWarning("theirs"), UserWarning, "x.py", 1)
    assert capsys.readouterr().err == "warning: retry is dead code\n"
    assert shown == ["theirs"]


def test_where_logs_are_json_a_warning_is_a_line_of_theirs(capsys: Captured) -> None:
    logs = show_logs(LogSection(format="json"), Terminal())
    show_warnings(Terminal(), logs)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning(PipelineWarning("retry is dead code"), PipelineWarning, "x.py", 1)
        warnings.showwarning(UserWarning("theirs"), UserWarning, "x.py", 2)
    ours, theirs = map(json.loads, capsys.readouterr().err.splitlines())
    assert ours["message"] == "PipelineWarning: retry is dead code"
    assert (theirs["logger"], theirs["context"]) == ("py.warnings", {"file": "x.py", "line": 2})


def test_the_defaults_need_no_loguru() -> None:
    code = (
        "import sys, logging; from agentrt.cli.logs import show_logs; from agentrt.cli.terminal import Terminal\n"
        "from agentrt.config.sections import LogSection; show_logs(LogSection(), Terminal())\n"
        "logging.getLogger('lib').warning('x'); assert 'loguru' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "WARNING lib: x\n")


def test_what_waits_is_written_before_the_command_ends(tmp_path: Path) -> None:
    code = (
        "import sys, logging; from agentrt.cli.logs import show_logs; from agentrt.cli.terminal import Terminal\n"
        "from agentrt.config.sections import LogSection\n"
        "show_logs(LogSection(outputs=['./agent.log']), Terminal())\n"
        "for n in range(1000): logging.getLogger('lib').warning('line %d', n)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = (tmp_path / "agent.log").read_text().splitlines()
    assert len(lines) == 1000
    assert lines[-1].endswith("lib: line 999")


def test_an_error_of_ours_that_comes_again_is_said_once(capsys: Captured) -> None:
    show_logs(LogSection(), Terminal())
    for _ in range(2):
        logging.getLogger("agentrt.fallback").error("no key for %s", "a")
        logging.getLogger("agentrt.fallback").error("no key for %s", "b")
        logging.getLogger("agentrt.fallback").warning("slow")
        logging.getLogger("lib").error("theirs")
    said = capsys.readouterr().err.splitlines()
    assert said.count("ERROR agentrt.fallback: no key for a") == 1
    assert said.count("ERROR agentrt.fallback: no key for b") == 1
    assert said.count("WARNING agentrt.fallback: slow") == 2
    assert said.count("ERROR lib: theirs") == 2
