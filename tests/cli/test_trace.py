"""`agentrt trace`: a stored run, in the terminal and as a page."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from agentrt.cli.run_trace import RunTrace, check_page
from agentrt.cli.terminal import Terminal
from agentrt.errors import ConfigError
from agentrt.telemetry import Batch, LogLine, Metric, Point, Resource
from agentrt.telemetry.file import File
from tests.cli.commands import environment
from tests.cli.conftest import Command
from tests.cli.screen import Screen
from tests.telemetry.example_runs import Recorder, busy_run, failed_run, simple_run

Captured = pytest.CaptureFixture[str]


def batch(*recorders: Recorder) -> Batch:
    spans = tuple(span for recorder in recorders for span in recorder.spans)
    logs = tuple(line for recorder in recorders for line in recorder.logs)
    return Batch(Resource({"service.name": "bot"}), spans, (), logs)


@pytest.fixture
def stored(project: Path) -> Path:
    """t.jsonl with three runs, written by the file backend."""
    path = project / "t.jsonl"
    backend = File(path=path)
    for recorder in (simple_run(), busy_run(), failed_run()):
        backend.export(batch(recorder))
    return path


def test_the_last_run_is_drawn_on_stdout_and_it_says_that_there_are_others(
    stored: Path, command: Command
) -> None:
    ended = command("trace", "t.jsonl")
    assert ended.code == 0
    assert ended.out.startswith("Assistant · failed · 410 ms · 1 model call · run run-bad\n")
    assert "failed  chat gpt-5-mini: PermanentError: 401 Unauthorized" in ended.out
    assert ended.err == "the last of 3 runs; --list shows them, --run ID another one\n"
    assert command("trace", "t.jsonl", "--last").err == ""


@pytest.mark.parametrize("wanted", ["run-7f3a2c", "run-7f3a2c-", f"{2:032x}"])
def test_a_run_is_found_by_its_id_that_of_its_trace_or_how_it_begins(
    stored: Path, command: Command, wanted: str
) -> None:
    ended = command("trace", "t.jsonl", "--run", wanted)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("Summarizer" if wanted.endswith("-") else "TravelPlanner · ok · 9.30 s")


def test_a_child_run_is_drawn_alone(stored: Path, command: Command) -> None:
    ended = command("trace", "t.jsonl", "--run", "run-7f3a2c-child")
    assert ended.out.startswith("Summarizer · ok · 2.06 s · 1 model call · 1,600 → 400 tokens")
    assert "TravelPlanner" not in ended.out


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("run-7f3a22", "t.jsonl has no run 'run-7f3a22'; did you mean run-7f3a2c?"),
        ("zzz", "t.jsonl has no run 'zzz'; --list shows the runs that there are"),
        ("", "t.jsonl has no run ''; --list shows the runs that there are"),
        (
            "run-",
            "t.jsonl has several runs that begin with 'run-': run-ada-1, run-7f3a2c, run-7f3a2c-child, run-bad",
        ),
    ],
)
def test_a_run_that_is_not_there_is_an_error(
    stored: Path, command: Command, wanted: str, message: str
) -> None:
    ended = command("trace", "t.jsonl", "--run", wanted)
    assert (ended.code, ended.out, ended.err) == (2, "", f"error: {message}\n")


def test_the_list_has_a_line_for_each_run(stored: Path, command: Command) -> None:
    ended = command("trace", "t.jsonl", "--list")
    assert (ended.code, ended.err) == (0, "")
    head, *lines = ended.out.splitlines()
    assert head.split() == ["began", "run", "name", "took", "spans", "state"]
    assert [re.split(r"\s{2,}", line)[1:] for line in lines] == [
        ["run-ada-1", "Assistant", "3.00 s", "4", "ok"],
        ["run-7f3a2c", "TravelPlanner", "9.30 s", "14", "ok, 1 failure inside"],
        ["run-bad", "Assistant", "410 ms", "2", "failed: PermanentError"],
    ]


def test_a_page_is_written_with_all_runs_or_the_chosen_one(
    stored: Path, project: Path, command: Command
) -> None:
    ended = command("trace", "t.jsonl", "--html", "run.html")
    assert (ended.code, ended.out, ended.err) == (0, "", "the timeline is in run.html\n")
    page = (project / "run.html").read_text()
    assert page.startswith("<!doctype html>")
    assert all(run in page for run in ("run-ada-1", "run-7f3a2c", "run-bad"))
    command("trace", "t.jsonl", "--html", "run.html", "--run", "run-bad")
    assert "run-ada-1" not in (project / "run.html").read_text()
    ended = command("trace", "t.jsonl", "--html", "-", "--last")
    assert ended.out.startswith("<!doctype html>")
    assert ended.out.rstrip().endswith("</html>")


def test_rotated_files_are_read_if_wanted(project: Path, command: Command) -> None:
    backend = File(path=project / "t.jsonl", max_bytes=3000)
    for recorder in (simple_run(), failed_run()):
        backend.export(batch(recorder))
    assert (project / "t.jsonl.1").exists()
    assert len(command("trace", "t.jsonl", "--list").out.splitlines()) == 2
    assert len(command("trace", "t.jsonl", "--list", "--older").out.splitlines()) == 3


def test_all_similar_calls_are_drawn_if_wanted(project: Path, command: Command) -> None:
    r = Recorder()
    root = r.agent("A", 0.0, 30.0)
    for number in range(30):
        r.tool("fetch", number, number + 1, parent=root)
    File(path=project / "t.jsonl").export(batch(r))
    assert "27 more" in command("trace", "t.jsonl").out
    assert command("trace", "t.jsonl", "--all").out.count("execute_tool fetch  ") == 30


# --- what may be wrong ---------------------------------------------------------------------------------


def test_a_missing_file_is_an_error_that_names_a_similar_one(stored: Path, command: Command) -> None:
    ended = command("trace", "t.jsnl")
    assert (ended.code, ended.err) == (2, "error: there is no file t.jsnl; did you mean t.jsonl?\n")
    ended = command("trace", "nowhere/t.jsonl")
    assert (ended.code, ended.err) == (2, "error: there is no file nowhere/t.jsonl\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "f is empty: no run has been written to it yet"),
        (b"\n\n", "f is empty: no run has been written to it yet"),
        (b"Dear diary,\n", 'f has no telemetry in it: FILE is what the backend "file" writes'),
        (b'{"level": "info", "message": "hi"}\n[1]\n', "f has no telemetry in it"),
        (b"\x00\xff\xfe" * 100, "f has no telemetry in it"),
    ],
)
def test_a_file_without_runs_is_an_error(
    project: Path, command: Command, content: bytes, message: str
) -> None:
    (project / "f").write_bytes(content)
    ended = command("trace", "f")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"error: {message}")
    assert ended.err.count("\n") == 1


def test_metrics_and_logs_alone_are_no_run(project: Path, command: Command) -> None:
    metric = Metric("m", "counter", "1", "", (Point({}, 1.0, 0, 1),))
    line = LogLine(1, "info", "hi", "bot")
    resource = Resource({"service.name": "bot"})
    File(path=project / "t.jsonl").export(Batch(resource, (), (metric,), (line,)))
    ended = command("trace", "t.jsonl")
    assert (ended.code, ended.err) == (
        2,
        "error: t.jsonl has metrics or log lines but no spans: there is no run to show\n",
    )


def test_a_torn_line_is_left_out_with_a_warning(stored: Path, command: Command) -> None:
    with stored.open("ab") as file:
        file.write(b'{"type": "span", "name": "cut off he')
    ended = command("trace", "t.jsonl", "--last")
    assert (ended.code, ended.err) == (
        0,
        "warning: t.jsonl: 1 line was no telemetry, or torn, and left out\n",
    )
    assert ended.out.startswith("Assistant · failed")


def test_a_folder_is_no_file(project: Path, command: Command) -> None:
    ended = command("trace", ".")
    assert (ended.code, ended.err) == (2, "error: cannot read .: Is a directory\n")


@pytest.mark.parametrize(
    "arguments", [("--run", "x", "--last"), ("--last", "--list"), ("--run", "x", "--list")]
)
def test_only_one_choice_can_be_made(stored: Path, command: Command, arguments: tuple[str, ...]) -> None:
    ended = command("trace", "t.jsonl", *arguments)
    assert ended.code == 2
    assert ended.err.startswith("error: --run, --last and --list exclude each other\n")


def test_a_list_is_no_page(stored: Path, command: Command) -> None:
    ended = command("trace", "t.jsonl", "--list", "--html", "x.html")
    assert ended.code == 2
    assert "--list and --html exclude each other" in ended.err


def test_a_page_that_cannot_be_written_is_told_before_anything_is_done(
    project: Path, command: Command
) -> None:
    ended = command("trace", "missing.jsonl", "--html", "no/where.html")
    assert (ended.code, ended.err) == (2, "error: --html no/where.html: there is no folder no\n")
    with pytest.raises(ConfigError, match="this is a folder; name a file"):
        check_page(str(project), option="--trace-html")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_a_full_disk_is_an_error(stored: Path, command: Command) -> None:
    ended = command("trace", "t.jsonl", "--last", "--html", "/dev/full")
    assert (ended.code, ended.err) == (2, "error: cannot write /dev/full: No space left on device\n")


def test_a_terminal_gets_its_columns(stored: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = command("trace", "t.jsonl", "--run", "run-7f3a2c").out
    assert "\033" not in plain
    assert max(map(len, plain.splitlines()[1:])) <= 110


# --- a run that has just ended -------------------------------------------------------------------------


def test_each_run_is_drawn_once_on_stderr(capsys: Captured) -> None:
    traced = RunTrace(Terminal(), drawn=True, page=None)
    ((name, view),) = traced.backends
    assert name == "trace"
    view.export(batch(simple_run()))
    traced.draw()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("\nAssistant · ok")
    view.export(batch(failed_run()))
    traced.end()
    assert capsys.readouterr().err.startswith("\nAssistant · failed")


def test_a_page_alone_draws_nothing(tmp_path: Path, capsys: Captured) -> None:
    page = tmp_path / "run.html"
    traced = RunTrace(Terminal(), drawn=False, page=str(page))
    traced.view.export(batch(simple_run()))
    traced.draw()
    traced.end()
    assert "run-ada-1" in page.read_text()
    assert capsys.readouterr().err == f"the timeline is in {page}\n"


def test_what_is_missing_is_said(capsys: Captured) -> None:
    RunTrace(Terminal(), drawn=True, page=None).end()
    assert capsys.readouterr().err.startswith("warning: there is no trace to show: nothing was traced")
    traced = RunTrace(Terminal(), drawn=True, page=None)
    traced.view.export(batch(simple_run()))
    traced.view.left_out = 2
    traced.end()
    assert capsys.readouterr().err.startswith(
        "warning: the trace is not whole: 2 spans were too many to keep\n"
    )


def test_run_draws_the_trace_and_writes_the_page(project: Path, command: Command) -> None:
    ended = command("run", "agents:Bot", "hi", "--trace", "--trace-html", "run.html")
    assert (ended.code, ended.out) == (0, "hi\n")
    assert re.match(r"\nBot · ok · .*1 model call · \d+ → \d+ tokens", ended.err)
    assert re.search(r"^└ chat echo .*█", ended.err, re.MULTILINE)
    assert ended.err.endswith("the timeline is in run.html\n")
    assert "chat echo" in (project / "run.html").read_text()


PLANNER = """
import asyncio

from agentrt import Agent, ToolError, TransientError, tool

left = 2


@tool(idempotent=True)
async def flaky() -> str:
    global left
    left -= 1
    if left >= 0:
        raise TransientError("overloaded")
    return "ok"


@tool
async def book() -> str:
    raise ToolError("no seat left")


class Child(Agent):
    model = "scripted:echo"


class Planner:
    async def run(self, message, ctx):
        await asyncio.gather(ctx.tool(flaky), ctx.tool(book), return_exceptions=True)
        with ctx.start_span("rank"):
            ctx.log("warning", "ranked", count=3)
        return (await ctx.run(Child, message)).text
"""


def test_what_run_has_stored_is_what_trace_draws(project: Path, command: Command) -> None:
    (project / "planner.py").write_text(PLANNER)
    (project / "agentrt.toml").write_text(
        '[telemetry.file]\npath = "t.jsonl"\n[telemetry.console]\nstream = "stderr"\n'
        "[pipeline.retry]\ninitial_delay = 0.02\n"
    )
    ran = command("run", "planner.py:Planner", "hi", "--trace-html", "run.html")
    assert (ran.code, ran.out) == (0, "hi\n")
    stored = command("trace", "t.jsonl")
    assert (stored.code, stored.err) == (0, "")
    # The console backend has drawn it as well.
    assert stored.out in ran.err
    for line in (
        r"Planner · ok · .* · 1 model call, 2 tool calls · .* · 1 failure inside",
        r"├ execute_tool flaky .*░.* 3 attempts$",
        r"│ ├ ✗ attempt 1 .*TransientError: overloaded$",
        r"│ ├ ◆ retry .*░.* TransientError$",
        r"│ └ attempt 3 ",
        r"├ ✗ execute_tool book .*ToolError: no seat left$",
        r"├ rank ",
        r"└ invoke_agent Child ",
        r"  └ chat echo .* tokens",
        r"failed  execute_tool book: ToolError: no seat left$",
    ):
        assert re.search(f"^{line}", stored.out, re.MULTILINE), f"{line}\n{stored.out}"
    assert "ranked" in (project / "run.html").read_text()


def test_a_run_whose_trace_is_asked_for_is_sampled(project: Path, command: Command) -> None:
    (project / "agentrt.toml").write_text("[telemetry]\nsample = 0.0\n")
    assert "chat echo" in command("run", "agents:Bot", "hi", "--trace").err
    ended = command("run", "agents:Bot", "hi", "--trace", "--set", "telemetry.sample=0")
    assert ended.err.startswith(
        "warning: there is no trace to show: nothing was traced, or [telemetry] sample"
    )


def test_a_run_that_fails_is_traced_too(project: Path, command: Command) -> None:
    ended = command("run", "agents:Boom", "hi", "--trace")
    assert (ended.code, ended.out) == (1, "")
    assert "error: Boom failed: ValueError: no: hi" in ended.err
    assert re.search(r"^✗ invoke_agent Boom .*ValueError: no: hi$", ended.err, re.MULTILINE)


def test_a_place_for_the_page_that_does_not_exist_is_told_before_the_run(command: Command) -> None:
    ended = command("run", "agents:Boom", "hi", "--trace-html", "no/run.html")
    assert (ended.code, ended.err) == (2, "error: --trace-html no/run.html: there is no folder no\n")


def test_a_conversation_draws_every_turn(project: Path) -> None:
    with Screen("run", "agents:Bot", "--trace", cwd=project, env=environment()) as screen:
        screen.wait_for("> ")
        screen.send("one\n")
        screen.wait_for("scripted:echo")
        screen.wait_for("> ")
        screen.send("two\n")
        screen.wait_for("scripted:echo")
        screen.wait_for("> ")
        screen.press("d")
        assert screen.end() == 0
        assert screen.text.count("1 model call") == 2
