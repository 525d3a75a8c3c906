"""Errors, exit codes and tracebacks."""

from __future__ import annotations

import pytest

from agentrt.cli.candidates import similar_to
from agentrt.cli.report import (
    TargetError,
    UserCodeError,
    exit_code,
    report,
    traceback_lines,
    wants_full_traceback,
)
from agentrt.cli.terminal import Terminal
from agentrt.errors import (
    AgentrtError,
    CircuitOpen,
    ConfigError,
    DeadlineExceeded,
    PermanentError,
    PluginError,
    RunLimitExceeded,
    ToolError,
    TransientError,
)
from agentrt.pipeline import Pipeline


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TransientError("x"), 1),
        (PermanentError("x"), 1),
        (CircuitOpen("x"), 1),
        (ToolError("x"), 1),
        (RunLimitExceeded("x", limit="steps"), 1),
        (AgentrtError("x"), 1),
        (ValueError("x"), 1),
        (ConfigError("x"), 2),
        (PluginError("x"), 2),
        (TargetError("x"), 3),
        (UserCodeError("x"), 3),
        (DeadlineExceeded("x", scope="run"), 124),
        (DeadlineExceeded("x", scope="call"), 1),
    ],
)
def test_every_error_has_its_exit_code(error: Exception, code: int) -> None:
    assert exit_code(error) == code


def test_an_error_of_ours_is_one_message_with_its_notes(capsys: pytest.CaptureFixture[str]) -> None:
    error = TransientError("the server is down")
    error.add_note("also failed: a: TransientError: b")
    error.add_note("not retried")
    assert report(error, Terminal()) == 1
    assert capsys.readouterr().err == (
        "error: the server is down\n  also failed: a: TransientError: b\n  not retried\n"
    )


def test_an_error_without_words_is_called_by_its_class(capsys: pytest.CaptureFixture[str]) -> None:
    report(AgentrtError(), Terminal())
    report(KeyError(), Terminal(), doing="Bot")
    assert capsys.readouterr().err == "error: AgentrtError\nerror: Bot failed: KeyError\n"


def test_a_deadline_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(DeadlineExceeded("the run's deadline of 5 s is over", scope="run"), Terminal()) == 124
    assert capsys.readouterr().err == (
        "error: the run's deadline of 5 s is over\n"
        "hint: give the run more time with --timeout SECONDS, or find out what is slow with --jsonl\n"
    )


@pytest.mark.asyncio
async def test_frames_of_ours_between_those_of_the_user_are_left_out_and_that_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def fails() -> None:
        raise ValueError("bug")

    with pytest.raises(ValueError, match="bug") as raised:
        await Pipeline.default(target="x").call(fails)
    report(raised.value, Terminal(), doing="Bot")
    err = capsys.readouterr().err
    assert "agentrt/" not in err.replace(__file__, "")
    assert "<agentrt" not in err
    assert err.endswith(
        "ValueError: bug\nerror: Bot failed: ValueError: bug\n"
        "hint: --traceback shows the frames of agentrt as well\n"
    )
    report(raised.value, Terminal(), full=True)
    assert "<agentrt pipeline" in capsys.readouterr().err


def test_frames_of_ours_are_left_out_even_where_they_raised_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AttributeError) as raised:
        similar_to(1, ["one"])  # type: ignore[arg-type]
    report(raised.value, Terminal(), doing="Bot")
    err = capsys.readouterr().err
    assert __file__ in err
    assert "agentrt/cli/candidates.py" not in err
    assert err.endswith("hint: --traceback shows the frames of agentrt as well\n")
    assert "agentrt/cli/candidates.py" in "".join(traceback_lines(raised.value, full=True))


def test_an_error_without_a_frame_of_the_users_has_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AttributeError) as raised:
        similar_to(1, ["one"])  # type: ignore[arg-type]
    error = raised.value
    assert error.__traceback__ is not None
    error.__traceback__ = error.__traceback__.tb_next
    error.add_note("noted")
    report(error, Terminal(), doing="Bot")
    message = str(error)
    assert capsys.readouterr().err == (
        f"error: Bot failed: AttributeError: {message}\n  noted\n"
        "hint: --traceback shows the frames of agentrt as well\n"
    )
    report(error, Terminal(), full=True)
    assert "agentrt/cli/candidates.py" in capsys.readouterr().err


@pytest.mark.asyncio
async def test_causes_and_members_are_trimmed_too() -> None:
    async def fails() -> None:
        raise ValueError("bug")

    pipeline = Pipeline.default(target="x")
    with pytest.raises(ValueError, match="bug") as raised:
        await pipeline.call(fails)
    worse = RuntimeError("worse")
    worse.__cause__ = raised.value
    text = "".join(traceback_lines(worse, full=False))
    assert "<agentrt" not in text
    assert "ValueError: bug\n\nThe above exception was the direct cause" in text
    text = "".join(traceback_lines(ExceptionGroup("several", [raised.value, worse]), full=False))
    assert "<agentrt" not in text
    assert "ValueError: bug" in text


@pytest.mark.parametrize(
    ("option", "variable", "wanted"),
    [(True, None, True), (False, None, False), (False, "0", False), (False, "", False), (False, "1", True)],
)
def test_whole_tracebacks_by_option_or_variable(
    monkeypatch: pytest.MonkeyPatch, option: bool, variable: str | None, wanted: bool
) -> None:
    monkeypatch.delenv("AGENTRT_TRACEBACK", raising=False)
    if variable is not None:
        monkeypatch.setenv("AGENTRT_TRACEBACK", variable)
    assert wants_full_traceback(option) is wanted
