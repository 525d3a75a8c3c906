"""The console backend, and the view that keeps spans for a command."""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import Iterable

import pytest

from agentrt.errors import AgentrtError, ConfigError
from agentrt.telemetry import Batch, LogLine, Resource, Span
from agentrt.telemetry.console import Console
from agentrt.telemetry.trace_view import TraceView
from tests.telemetry.example_runs import Recorder, busy_run, failed_run, simple_run

Captured = pytest.CaptureFixture[str]


def batch(spans: Iterable[Span], logs: Iterable[LogLine] = ()) -> Batch:
    return Batch(Resource({"service.name": "bot"}), tuple(spans), (), tuple(logs))


def in_order_of_end(recorder: Recorder) -> list[Span]:
    """As spans come: when they have ended, the run last."""
    return sorted(recorder.spans, key=lambda span: (span.end_ns, -span.start_ns))


def test_a_run_is_printed_once_when_it_has_ended(capsys: Captured) -> None:
    console = Console()
    for span in in_order_of_end(simple_run()):
        assert capsys.readouterr().err == ""
        console.export(batch([span]))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Assistant · ok · 3.00 s · 2 model calls, 1 tool call")
    assert err.count("\n") == 8
    asyncio.run(console.aclose())
    assert capsys.readouterr() == ("", "")


def test_a_call_outside_of_runs_is_printed_too(capsys: Captured) -> None:
    r = Recorder()
    r.model("gpt-5-mini", 0.0, 1.0, tokens=(5, 1))
    Console().export(batch(r.spans))
    assert capsys.readouterr().err.startswith("chat gpt-5-mini · ok · 1.00 s · 1 model call")


def test_runs_at_the_same_time_are_kept_apart(capsys: Captured) -> None:
    console = Console()
    first, second = in_order_of_end(simple_run()), in_order_of_end(busy_run())
    console.export(batch([first[0], second[0], second[1], first[1]]))
    console.export(batch([*second[2:], first[2]]))
    text = capsys.readouterr().err
    assert text.startswith("TravelPlanner · ok")
    assert "run-ada-1" not in text
    console.export(batch(first[3:]))
    assert "run-ada-1" in capsys.readouterr().err


def test_stdout_may_be_chosen_and_is_looked_up_when_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(stream="stdout", width=70)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    console.export(batch(simple_run().spans))
    assert isinstance(sys.stdout, io.TextIOWrapper)
    written = sys.stdout.buffer
    assert isinstance(written, io.BytesIO)
    lines = written.getvalue().decode("ascii").splitlines()
    assert lines[3].startswith("invoke_agent Assistant")
    assert max(map(len, lines)) <= 70


@pytest.mark.parametrize("stream", [None, "closed"])
def test_without_a_stream_nothing_happens(monkeypatch: pytest.MonkeyPatch, stream: str | None) -> None:
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", None if stream is None else closed)
    Console().export(batch(simple_run().spans))


def test_a_name_that_the_stream_has_no_characters_for_is_printed_in_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    r = Recorder()
    r.agent("日本", 0.0, 1.0)
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(raw, "latin-1"))
    Console().export(batch(r.spans))
    assert b"invoke_agent \\u65e5\\u672c" in raw.getvalue()


def test_what_has_not_ended_is_printed_at_the_end(capsys: Captured) -> None:
    console = Console()
    console.export(batch(simple_run().spans[1:3]))
    assert capsys.readouterr().err == ""
    asyncio.run(console.aclose())
    assert "chat gpt-5-mini" in capsys.readouterr().err


def test_a_trace_with_its_root_elsewhere_is_printed_after_a_minute(capsys: Captured) -> None:
    console = Console()
    elsewhere = Recorder(trace=8, run="run-remote")
    elsewhere.agent("Remote", 0.0, 1.0, parent="f" * 16)
    console.export(batch(elsewhere.spans))
    early, late = Recorder(trace=9, start=30.0), Recorder(trace=10, start=70.0)
    early.add("early", 0.0, 1.0)
    console.export(batch(early.spans))
    assert "Remote" not in capsys.readouterr().err
    late.add("late", 0.0, 1.0)
    console.export(batch(late.spans))
    text = capsys.readouterr().err
    assert "invoke_agent Remote" in text
    assert "late" in text


def test_no_more_spans_wait_than_allowed(capsys: Captured) -> None:
    console = Console(max_spans=10)
    for trace in range(1, 8):
        r = Recorder(trace=trace)
        r.add(f"one {trace}", 0.0, 1.0, parent="f" * 16)
        r.add(f"two {trace}", 0.0, 1.0, parent="f" * 16)
        console.export(batch(r.spans))
    text = capsys.readouterr().err
    assert "one 1" in text
    assert "one 2" in text
    assert "one 3" not in text


def test_similar_calls_are_all_printed_if_wanted(capsys: Captured) -> None:
    r = Recorder()
    root = r.agent("A", 0.0, 30.0)
    for number in range(30):
        r.tool("fetch", number, number + 1, parent=root)
    Console().export(batch(r.spans))
    assert "27 more" in capsys.readouterr().err
    Console(every=True).export(batch(r.spans))
    assert capsys.readouterr().err.count("execute_tool fetch  ") == 30


def test_a_reader_that_has_gone_away_is_told_and_nothing_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(sys, "stderr", Gone())
    with pytest.raises(AgentrtError, match="cannot write to stderr: Broken pipe"):
        Console().export(batch(failed_run().spans))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stream": "stdin"}, "stream must be one of 'stderr', 'stdout', not 'stdin'"),
        ({"width": 10}, "width must be a whole number of at least 40, not 10"),
        ({"max_spans": 0}, "max_spans must be a whole number of at least 1, not 0"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Console(**options)  # type: ignore[arg-type]


# --- the view ------------------------------------------------------------------------------------------


def test_a_view_has_the_trees_of_all_batches_with_their_logs() -> None:
    view = TraceView()
    busy = busy_run()
    view.export(batch(busy.spans[:7]))
    view.export(batch([*busy.spans[7:], *simple_run().spans], busy.logs))
    first, second = view.trees()
    assert (first.run_id, second.run_id) == ("run-ada-1", "run-7f3a2c")
    assert sum(len(node.logs) for node in second.nodes()) == 3
    assert view.left_out == 0


def test_a_view_keeps_the_last_spans_and_counts_the_others() -> None:
    view = TraceView(max_spans=3)
    spans = in_order_of_end(simple_run())
    view.export(batch(spans[:2]))
    view.export(batch(spans[2:]))
    assert view.left_out == 1
    (tree,) = view.trees()
    assert tree.title == "Assistant"
    assert len(list(tree.nodes())) == 3
