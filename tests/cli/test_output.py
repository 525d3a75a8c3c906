"""What is made of a run's events."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agentrt import events
from agentrt.cli.output import Answer, Lines, Printer, Text
from agentrt.cli.terminal import Terminal
from agentrt.models.protocol import Usage
from agentrt.runtime import RunResult

Captured = pytest.CaptureFixture[str]


def result(output: Any, text: str | None = None) -> RunResult:
    return RunResult(output, output if text is None else text, Usage(), "r", False, [])


def started(run: str = "r", parent: str | None = None) -> events.Event:
    return events.RunStarted(run=run, at=0.0, agent="Bot", parent=parent)


def model(run: str = "r") -> events.Event:
    return events.ModelStarted(run=run, at=0.0, call=1, target="m")


def delta(text: str, run: str = "r") -> events.Event:
    return events.TextDelta(run=run, at=0.0, text=text)


def show(printer: Printer, *shown: events.Event) -> None:
    for event in shown:
        printer.event(event)


def test_the_answer_is_shown_at_the_end_only(capsys: Captured) -> None:
    printer = Answer(Terminal())
    show(printer, started(), model(), delta("par"), delta("tial"))
    assert capsys.readouterr().out == ""
    printer.result(result("whole"))
    assert capsys.readouterr().out == "whole\n"


def test_text_that_was_shown_is_not_repeated(capsys: Captured) -> None:
    printer = Text(Terminal())
    show(printer, started(), model(), delta("the "), delta("answer "))
    printer.result(result("the answer"))
    assert capsys.readouterr().out == "the answer \n"


def test_each_model_call_has_its_own_line_and_only_the_last_is_the_answer(capsys: Captured) -> None:
    printer = Text(Terminal())
    show(printer, started(), model(), delta("Let me look."), model(), delta("It is 7."))
    printer.result(result("It is 7."))
    assert capsys.readouterr().out == "Let me look.\nIt is 7.\n"


def test_an_answer_that_is_not_what_was_shown_follows(capsys: Captured) -> None:
    printer = Text(Terminal())
    show(printer, started(), model(), delta("it is 7."))
    printer.result(result("IT IS 7."))
    assert capsys.readouterr().out == "it is 7.\nIT IS 7.\n"


def test_a_structured_answer_is_compared_as_json(capsys: Captured) -> None:
    printer = Text(Terminal())
    show(printer, started(), model(), delta('{"a": '), delta("1}"))
    printer.result(result({"a": 1}, '{"a":1}'))
    assert capsys.readouterr().out == '{"a": 1}\n'
    printer = Text(Terminal())
    show(printer, started(), model(), delta("no json"))
    printer.result(result({"a": 1}, '{"a":1}'))
    assert capsys.readouterr().out == 'no json\n{"a":1}\n'


def test_what_a_child_says_is_not_the_answer(capsys: Captured) -> None:
    printer = Text(Terminal())
    show(printer, started(), started("child", "r"), model("child"), delta("secret", "child"), delta("mine"))
    printer.result(result("mine"))
    assert capsys.readouterr().out == "mine\n"


def test_partial_text_stays_when_a_run_fails(capsys: Captured) -> None:
    printer = Text(Terminal())
    show(printer, started(), model(), delta("partial"))
    printer.failed(ValueError("no"))
    assert capsys.readouterr().out == "partial\n"


def test_tools_are_mentioned_in_a_conversation_only(capsys: Captured) -> None:
    begun = events.ToolStarted(run="r", at=0.0, call=1, tool="add", arguments='{"a":  1,\n "b": 2}')
    failed = events.ToolFinished(
        run="r", at=0.0, call=1, tool="add", outcome="error", seconds=1, error="x" * 200
    )
    fine = events.ToolFinished(run="r", at=0.0, call=1, tool="add", outcome="ok", seconds=1)
    show(Text(Terminal(), tools=True), begun, fine, failed)
    assert capsys.readouterr().err == f'  add {{"a": 1, "b": 2}}\n  add failed: {"x" * 99}…\n'
    show(Text(Terminal()), begun, fine, failed)
    assert capsys.readouterr().err == ""


def test_every_event_is_a_line_and_the_last_one_is_not_doubled(capsys: Captured) -> None:
    printer = Lines(Terminal())
    failed = events.RunFailed(run="r", at=1.0, error="ValueError", message="no", seconds=1.0)
    show(printer, started(), delta("x"), failed)
    printer.failed(ValueError("no"))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["type"] for line in lines] == ["run_started", "text_delta", "run_failed"]


def test_the_failure_of_a_child_does_not_stand_for_that_of_the_run(capsys: Captured) -> None:
    printer = Lines(Terminal())
    failed = events.RunFailed(run="child", at=1.0, error="ValueError", message="no", seconds=1.0)
    show(printer, started(), failed)
    printer.failed(KeyError("other"))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["type"], line["run"]) for line in lines[1:]] == [
        ("run_failed", "child"),
        ("run_failed", "r"),
    ]


def test_warnings_are_shown_and_waits_only_to_those_who_watch(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = [
        events.Warned(run="r", at=0.0, message="cut"),
        events.Retry(run="r", at=0.0, kind="model", target="m", attempt=2, delay=4.2, error="E: x"),
        events.Retry(run="r", at=0.0, kind="model", target="m", attempt=3, delay=0.2, error="E: x"),
        events.Waiting(run="r", at=0.0, target="m", stage="throttle", seconds=3.0),
        events.Waiting(run="r", at=0.0, target="m", stage="throttle", seconds=0.3),
    ]
    show(Answer(Terminal()), *noted)
    assert capsys.readouterr().err == "warning: cut\n"
    monkeypatch.setattr(Terminal, "is_watched", True)
    show(Answer(Terminal()), *noted)
    assert capsys.readouterr().err == (
        "warning: cut\n"
        "m: attempt 2 follows in 4 s (E: x)\n"
        "m: attempt 3 follows (E: x)\n"
        "m: waited 3 s (throttle)\n"
    )


@pytest.mark.parametrize("kind", [Answer, Text])
@pytest.mark.parametrize("watched", [True, False])
def test_an_answer_of_none_is_remarked_upon_where_somebody_watches(
    kind: type[Answer | Text], watched: bool, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Terminal, "is_watched", watched)
    kind(Terminal()).result(result(None, ""))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == ("(the agent returned None)\n" if watched else "")


def test_an_empty_text_is_an_answer(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Terminal, "is_watched", True)
    Answer(Terminal()).result(result(""))
    assert capsys.readouterr() == ("", "")
