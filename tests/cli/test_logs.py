"""Log records and warnings on stderr."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator

import pytest

from agentrt.cli.logs import show_logs, show_warnings
from agentrt.cli.terminal import Terminal
from agentrt.pipeline import PipelineWarning

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root = logging.getLogger()
    level, handlers, show = root.level, root.handlers[:], warnings.showwarning
    root.handlers.clear()
    yield
    root.setLevel(level)
    root.handlers[:] = handlers
    warnings.showwarning = show


def test_warnings_and_worse_by_default(capsys: Captured) -> None:
    show_logs(None, Terminal())
    logging.getLogger("lib").info("not this")
    logging.getLogger("lib").warning("but %s", "this")
    assert capsys.readouterr().err == "WARNING lib: but this\n"


def test_with_the_time_from_info_down(capsys: Captured) -> None:
    show_logs("debug", Terminal())
    logging.getLogger("lib").debug("x")
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} DEBUG lib: x\n", capsys.readouterr().err)


def test_tracebacks_are_logged_with_their_record(capsys: Captured) -> None:
    show_logs("error", Terminal())
    try:
        raise ValueError("x")
    except ValueError:
        logging.getLogger("lib").exception("failed")
    err = capsys.readouterr().err
    assert err.startswith("ERROR lib: failed\nTraceback")
    assert err.endswith("ValueError: x\n")


def test_called_again_it_only_changes_the_level(capsys: Captured) -> None:
    show_logs("error", Terminal())
    show_logs("warning", Terminal())
    logging.getLogger("lib").warning("once")
    assert capsys.readouterr().err == "WARNING lib: once\n"


def test_a_record_that_cannot_be_formatted_is_no_failure_of_the_program(
    capsys: Captured,
) -> None:
    show_logs(None, Terminal())
    record = logging.LogRecord("lib", logging.WARNING, "x.py", 1, "%d", ("no number",), None)
    logging.getLogger().handlers[-1].handle(record)
    assert "Logging error" in capsys.readouterr().err


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


def test_an_error_of_ours_that_comes_again_is_said_once(capsys: Captured) -> None:
    show_logs(None, Terminal())
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
