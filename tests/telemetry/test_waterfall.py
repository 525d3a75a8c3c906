"""Spans as a tree, where its time went, and the tree as text."""

from __future__ import annotations

import contextlib
import io
import re
from typing import IO, Any, cast

import pytest
from msgspec.structs import replace

from agentrt import Context, Runtime
from agentrt.telemetry import LogLine, Span, SpanEvent
from agentrt.telemetry.look import ASCII, Look, cut, duration, printable
from agentrt.telemetry.span_tree import Tree, build_trees
from agentrt.telemetry.time_shares import own, time_shares
from agentrt.telemetry.waterfall import waterfall
from tests.telemetry.example_runs import (
    EPOCH,
    Recorder,
    busy_run,
    deep_run,
    failed_run,
    large_run,
    simple_run,
)
from tests.telemetry.recording import Kept


def tree_of(recorder: Recorder) -> Tree:
    (tree,) = build_trees(recorder.spans, recorder.logs)
    return tree


def drawn(recorder: Recorder, *, width: int = 110, every: bool = False) -> list[str]:
    return waterfall(tree_of(recorder), Look(width=width), every=every)


def line_of(lines: list[str], name: str) -> str:
    (line,) = [
        line
        for line in lines[2:]
        if not line.startswith(("time ", "failed ")) and re.search(rf"{re.escape(name)} ", line[:48])
    ]
    return line


def extent(line: str) -> tuple[int, int]:
    """The first and the last column of the bar of a line."""
    cells = [at for at, char in enumerate(line) if char in "█━░▏◆" and at > 20]
    return cells[0], cells[-1]


# --- the tree ------------------------------------------------------------------------------------------


def names(tree: Tree) -> list[str]:
    """Every item with dots for its depth."""
    found = []
    stack = [(root, 0) for root in reversed(tree.roots)]
    while stack:
        item, depth = stack.pop()
        found.append("." * depth + item.name)
        stack.extend((below, depth + 1) for below in reversed(getattr(item, "items", [])))
    return found


def test_attempts_waits_and_changes_stand_in_the_order_in_which_they_happened() -> None:
    tree = tree_of(busy_run())
    assert names(tree)[:9] == [
        "invoke_agent TravelPlanner",
        ".search_memory",
        ".chat gpt-5-mini",
        "..attempt 1 openai:gpt-5-mini",
        "..retry",
        "..attempt 2 openai:gpt-5-mini",
        "..circuit closed → open",
        "..fallback",
        "..attempt 1 anthropic:claude-haiku",
    ]


def test_a_retry_and_the_wait_for_it_are_one_moment_as_long_as_the_wait() -> None:
    (call,) = [node for node in tree_of(busy_run()).nodes() if node.name == "chat gpt-5-mini"]
    retry, *others = call.moments
    assert (retry.kind, retry.detail) == ("retry", "TransientError")
    assert retry.seconds == pytest.approx(0.81)
    assert [moment.kind for moment in others] == ["circuit", "fallback"]


@pytest.mark.parametrize("at", [1.0, 3.0], ids=["when it began", "when it was over"])
def test_a_wait_is_drawn_where_it_was_whenever_it_was_noted(at: float) -> None:
    r = Recorder()
    wait = r.event("wait", at, agentrt_stage="throttle", agentrt_seconds=2.0)
    r.add("call", 0.0, 3.0, events=(wait,))
    (moment,) = tree_of(r).roots[0].moments
    assert (moment.name, moment.start, moment.end) == ("wait for throttle", r.at(1.0), r.at(3.0))


def test_a_wait_never_outlasts_its_call() -> None:
    r = Recorder()
    retry = r.event("retry", 1.0, agentrt_delay=30.0)
    r.add("call", 0.0, 2.0, events=(retry,))
    (moment,) = tree_of(r).roots[0].moments
    assert moment.seconds == pytest.approx(1.0)


def test_spans_of_several_traces_become_several_trees_in_order_of_time() -> None:
    trees = build_trees([*failed_run().spans, *busy_run().spans, *simple_run().spans])
    assert [tree.run_id for tree in trees] == ["run-ada-1", "run-7f3a2c", "run-bad"]


def test_a_span_that_comes_twice_counts_once() -> None:
    r = simple_run()
    (tree,) = build_trees([*r.spans, *r.spans])
    assert len(list(tree.nodes())) == 4


def test_children_of_a_lost_parent_stay_together() -> None:
    r = Recorder()
    r.add("a", 0.0, 1.0, parent="f" * 16)
    r.add("b", 1.0, 3.0, parent="f" * 16)
    tree = tree_of(r)
    assert names(tree) == [f"span {'f' * 16}", ".a", ".b"]
    assert tree.roots[0].kind == "missing"
    assert tree.seconds == pytest.approx(3.0)


def test_one_span_of_a_lost_parent_is_a_root_and_says_why() -> None:
    r = Recorder()
    r.add("a", 0.0, 1.0, parent="f" * 16)
    (root,) = tree_of(r).roots
    assert root.remarks == [f"its parent, span {'f' * 16}, is not among the spans"]


def test_a_trace_may_have_several_roots() -> None:
    r = Recorder()
    r.add("late", 2.0, 3.0)
    r.add("early", 0.0, 1.0)
    assert names(tree_of(r)) == ["early", "late"]


def test_parents_in_a_circle_lose_nothing() -> None:
    spans = [
        Span("a", "1" * 32, "a" * 16, "b" * 16, EPOCH, EPOCH + 5),
        Span("b", "1" * 32, "b" * 16, "c" * 16, EPOCH + 1, EPOCH + 5),
        Span("c", "1" * 32, "c" * 16, "a" * 16, EPOCH + 2, EPOCH + 5),
        Span("own parent", "1" * 32, "d" * 16, "d" * 16, EPOCH + 3, EPOCH + 5),
    ]
    (tree,) = build_trees(spans)
    assert names(tree) == ["a", ".c", "..b", "own parent"]
    assert tree.roots[0].remarks == ["its parents form a circle, cut here"]
    assert waterfall(tree, Look())


def test_a_child_whose_clock_is_behind_is_moved_with_all_below_it() -> None:
    r = Recorder()
    root = r.add("root", 100.0, 103.0)
    child = r.add("child", 40.0, 42.0, parent=root)
    r.add("grandchild", 41.0, 41.5, parent=child)
    tree = tree_of(r)
    assert tree.seconds == pytest.approx(3.0)
    _, moved, below = tree.nodes()
    assert moved.start == r.at(100.0)
    assert below.start == r.at(101.0)
    assert moved.remarks == ["drawn 60 s later: its clock was behind its parent's"]
    assert below.remarks == []


def test_clocks_read_one_after_the_other_are_no_remark() -> None:
    r = Recorder()
    root = r.add("root", 1.0, 3.0)
    r.add("child", 0.9995, 2.0, parent=root)
    assert [node.remarks for node in tree_of(r).nodes()] == [[], []]


def test_what_has_not_ended_is_as_long_as_the_trace() -> None:
    r = simple_run()
    spans = [*r.spans[:3], Span("chat x", r.trace_id, "e" * 16, r.spans[0].span_id, r.at(1.5), 0)]
    (tree,) = build_trees(spans)
    *_, last = tree.nodes()
    assert last.is_open
    assert last.end == r.at(3.0)
    assert line_of(waterfall(tree, Look()), "chat x").endswith("has not ended")


def test_a_clock_that_was_set_back_makes_no_negative_time() -> None:
    r = Recorder()
    r.add("call", 2.0, 1.0)
    (node,) = tree_of(r).nodes()
    assert node.seconds == 0
    assert node.remarks == ["ends before it begins: the clock was set back meanwhile"]


def test_log_lines_are_with_the_span_that_wrote_them() -> None:
    r = busy_run()
    r.log("info", "nowhere", 1.0, None)
    r.logs.append(LogLine(r.at(1.0), "info", "in the run", "bot", {"agentrt.run.id": "run-7f3a2c"}))
    logged = {node.name: [line.message for line in node.logs] for node in tree_of(r).nodes() if node.logs}
    assert logged == {
        "invoke_agent TravelPlanner": ["in the run"],
        "chat gpt-5-mini": ["gpt-5-mini is overloaded"],
        "SELECT flights": ["182 rows"],
        "chat claude-haiku": ["answer is ready"],
    }


def test_failures_are_where_errors_began_without_attempts_that_were_made_good() -> None:
    assert [node.name for node in tree_of(busy_run()).failures()] == ["execute_tool book"]
    assert [node.name for node in tree_of(failed_run()).failures()] == ["chat gpt-5-mini"]


def test_tokens_are_those_of_the_run_or_the_sum_of_its_calls() -> None:
    assert tree_of(busy_run()).tokens == (6120, 1012)
    assert tree_of(simple_run()).tokens == (2024, 351)


# --- where the time went -------------------------------------------------------------------------------


def test_shares_add_up_to_the_time_and_what_runs_at_once_shares_it() -> None:
    r = Recorder()
    root = r.add("root", 0.0, 4.0)
    r.tool("a", 0.0, 2.0, parent=root)
    r.tool("b", 0.0, 2.0, parent=root)
    r.tool("c", 2.0, 3.0, parent=root)
    shares = {share.name: share.seconds for share in time_shares(tree_of(r))}
    assert shares == pytest.approx(
        {"execute_tool a": 1.0, "execute_tool b": 1.0, "execute_tool c": 1.0, "root": 1.0}
    )


def test_attempts_count_for_their_call_and_waits_for_themselves() -> None:
    shares = {share.name: share for share in time_shares(tree_of(busy_run()))}
    assert shares["waiting to retry"].seconds == pytest.approx(0.81)
    assert shares["chat gpt-5-mini"].seconds == pytest.approx(2.68)
    assert "attempt 1" not in shares
    assert sum(share.seconds for share in shares.values()) == pytest.approx(9.3)


def test_spans_of_other_libraries_that_differ_in_a_number_are_one_share() -> None:
    shares = time_shares(tree_of(large_run(200)))
    assert "GET /page/#" in [share.name for share in shares]
    assert "chat gpt-5-mini" in [share.name for share in shares]


def test_own_time_is_what_children_and_waits_leave() -> None:
    r = Recorder()
    root = r.add("root", 0.0, 10.0)
    r.add("a", 1.0, 4.0, parent=root)
    r.add("b", 3.0, 5.0, parent=root)
    r.add("outlives", 9.0, 12.0, parent=root)
    at = [(start - r.epoch, end - r.epoch) for start, end in own(tree_of(r).roots[0])]
    assert at == [(0, 1_000_000_000), (5_000_000_000, 9_000_000_000)]


# --- the text ------------------------------------------------------------------------------------------

SIMPLE = """\
Assistant · ok · 3.00 s · 2 model calls, 1 tool call · 2,024 → 351 tokens
run run-ada-1
                                0         1 s       2 s
invoke_agent Assistant   3.00 s ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━
├ chat gpt-5-mini        1.00 s ██████████                     820 → 41 tokens
├ execute_tool search    500 ms           █████
└ chat gpt-5-mini        1.50 s                ███████████████ 1,204 → 310 tokens
time    chat gpt-5-mini 2.50 s (83%) · execute_tool search 500 ms (17%)
"""


def test_a_run_is_drawn_as_a_person_reads_it() -> None:
    r = simple_run()
    for span in r.spans:
        span.attributes.pop("agentrt.target", None)
    assert drawn(r, width=83) == SIMPLE.splitlines()


def test_tools_at_the_same_time_overlap_and_calls_after_another_do_not() -> None:
    lines = drawn(busy_run())
    search, weather, book = (
        extent(line_of(lines, f"execute_tool {name}")) for name in ("search_flights", "weather", "book")
    )
    assert search[0] == weather[0] == book[0]
    assert search[1] > book[1] > weather[1]
    child = extent(line_of(lines, "invoke_agent Summarizer"))
    assert child[0] > search[1] - 1
    assert extent(line_of(lines, "search_memory"))[1] < search[0]


def test_retries_waits_fallback_circuit_and_errors_are_named() -> None:
    text = "\n".join(drawn(busy_run(), width=160))
    assert re.search(r"├ chat gpt-5-mini +3.49 s .*degraded · 3 attempts · 1,630 → 210 tokens", text)
    assert re.search(r"│ ├ ✗ attempt 1 openai:gpt-5-mini +600 ms +█+ +TransientError: 503 Service", text)
    assert re.search(r"│ ├ ◆ retry +810 ms +░+ +TransientError", text)
    assert re.search(r"│ ├ ◆ circuit closed → open +◆ +openai:gpt-5-mini", text)
    assert re.search(r"│ ├ ◆ fallback +◆ +to anthropic:claude-haiku", text)
    assert re.search(r"├ ✗ execute_tool book +1.47 s +░+█+ +ToolError: no seat left", text)
    assert "failed  execute_tool book: ToolError: no seat left on <LH 123> & no other flight" in text
    assert text.splitlines()[0].startswith("TravelPlanner · ok · 9.30 s · 3 model calls, 3 tool calls, 1 mem")
    assert "1 failure inside · degraded · run run-7f3a2c" in text.splitlines()[0]


def test_a_failed_run_says_so_first_and_the_message_once_more_in_full() -> None:
    lines = drawn(failed_run())
    assert lines[0].startswith("Assistant · failed · 410 ms")
    assert lines[2].startswith("✗ invoke_agent Assistant")
    assert lines[-1] == "failed  chat gpt-5-mini: PermanentError: 401 Unauthorized: the key is wrong"


async def closed() -> None:
    raise OSError("the register is closed")


async def handles(message: str, ctx: Context) -> None:
    with contextlib.suppress(OSError):
        await ctx.call("tool", "look_up", closed)
    raise ValueError("no city of this name")


async def raises_from(message: str, ctx: Context) -> None:
    try:
        await ctx.call("tool", "look_up", closed)
    except OSError as error:
        raise RuntimeError("cannot plan") from error


async def lets_through(message: str, ctx: Context) -> None:
    await ctx.call("tool", "look_up", closed)


@pytest.mark.parametrize(
    ("agent", "run_says", "began"),
    [
        (handles, "ValueError: no city of this name", ["invoke_agent handles", "execute_tool look_up"]),
        (raises_from, "RuntimeError: cannot plan", ["execute_tool look_up"]),
        (lets_through, "OSError", ["execute_tool look_up"]),
    ],
)
@pytest.mark.asyncio
async def test_a_run_says_its_own_error_whatever_failed_before(
    agent: Any, run_says: str, began: list[str]
) -> None:
    kept = Kept(signals=("spans",))
    async with Runtime(backends=[("kept", kept)]) as rt:
        with pytest.raises(Exception, match=r"no city|cannot plan|is closed"):
            await rt.run(agent, "Lisbon")
    (tree,) = build_trees(kept.spans)
    assert [node.name for node in tree.failures()] == began
    lines = waterfall(tree, Look(width=110))
    assert line_of(lines, f"invoke_agent {agent.__name__}").endswith(f" {run_says}")
    assert line_of(lines, "execute_tool look_up").endswith("OSError: the register is closed")
    assert [
        line.removeprefix("failed  ").split(":")[0] for line in lines if line.startswith("failed  ")
    ] == began


def test_what_failed_below_is_why_if_no_traceback_says_otherwise() -> None:
    bare = [replace(span, events=()) for span in failed_run().spans]
    (tree,) = build_trees(bare)
    assert not any(child.failed for node in tree.failures() for child in node.children)


@pytest.mark.parametrize("width", [60, 80, 110, 200])
@pytest.mark.parametrize("make", [simple_run, busy_run, failed_run, lambda: deep_run(40), large_run])
def test_no_line_of_the_tree_is_wider_than_the_terminal(make: object, width: int) -> None:
    lines = drawn(make(), width=width)  # type: ignore[operator]
    assert max(map(len, lines)) <= width


def test_deep_trees_keep_their_names_readable() -> None:
    lines = drawn(deep_run(500), width=80)
    assert len(lines) > 500
    deepest = lines[2 + 500]
    assert re.match(r"49\d… .*└ step", deepest)
    assert "step 499"[:6] in deepest


def test_many_similar_siblings_are_a_few_and_a_count() -> None:
    lines = drawn(large_run())
    assert len(lines) < 40
    assert any(re.match(r"├ … 397 more  chat gpt-5-mini +≤100 ms", line) for line in lines)
    assert any(re.match(r"└ … 795 more, 6 failed  ", line) for line in lines)
    assert sum(line.startswith("├ ✗") for line in lines) == 3
    assert lines[-1] == "        and 4 more failures"


def test_the_slowest_of_many_is_drawn() -> None:
    r = Recorder()
    root = r.agent("A", 0.0, 30.0)
    for number in range(20):
        r.tool("fetch", number, number + (9.5 if number == 13 else 0.5), parent=root)
    assert any("9.50 s" in line for line in drawn(r))


def test_all_siblings_are_drawn_if_wanted() -> None:
    lines = drawn(large_run(), every=True)
    assert len(lines) > 2000
    assert "more  " not in "\n".join(lines[:-1])


def test_wide_characters_and_long_names_keep_the_columns() -> None:
    r = Recorder()
    root = r.agent("旅行の計画を立てるエージェント" * 3, 0.0, 2.0)
    r.tool("x" * 300, 0.0, 1.0, parent=root)
    r.tool("y", 1.0, 2.0, parent=root)
    wide, long, short = drawn(r)[-4:-1]
    assert "…" in wide
    assert "…" in long
    assert extent(long)[0] == extent(short)[0] - (extent(short)[1] - extent(short)[0] + 1)
    assert extent(wide)[0] + sum(char > "⺀" for char in wide) == extent(long)[0]


def test_nothing_in_a_span_commands_the_terminal() -> None:
    r = Recorder()
    error = ("bad\x1b[2JError", "first\nsecond\x07\r")
    r.add("na\x1b[31mme\nnext", 0.0, 1.0, error=error)
    lines = drawn(r)
    assert "\x1b" not in "".join(lines)
    assert all(char.isprintable() for line in lines for char in line)


def test_no_time_at_all_is_drawn_too() -> None:
    r = Recorder()
    r.add("nothing", 1.0, 1.0)
    assert len(drawn(r)) == 3


class Screen(io.StringIO):
    """A terminal with this encoding."""

    def __init__(self, encoding: str) -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_colours_and_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "77")
    look = Look.of(Screen("utf-8"))
    assert (look.width, look.colours) == (77, True)
    text = "\n".join(waterfall(tree_of(busy_run()), look))
    assert "\033[1;31m✗ execute_tool book\033[0m" in text
    plain = waterfall(tree_of(busy_run()), Look(width=77))
    assert re.sub(r"\033\[[\d;]*m", "", text) == "\n".join(plain)


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colours_are_left_out_where_they_are_not_wanted(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert not Look.of(Screen("utf-8")).colours


def test_what_is_no_terminal_gets_plain_text() -> None:
    assert Look.of(io.StringIO()) == Look(strokes=ASCII)
    assert Look.of(None).width == 110
    with open("/dev/null", "w", encoding="utf-8") as file:
        assert Look.of(cast("IO[str]", file)) == Look()


def test_a_terminal_without_such_characters_gets_others() -> None:
    look = Look.of(Screen("ascii"), width=90)
    text = "\n".join(waterfall(tree_of(busy_run()), look))
    assert look.strokes is ASCII
    assert re.sub(r"\033\[[\d;]*m", "", text).isascii()


# --- texts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 µs"),
        (0.00042, "420 µs"),
        (0.0009996, "1 ms"),
        (0.0123, "12.3 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.00 s"),
        (3.4219, "3.42 s"),
        (9.996, "10.0 s"),
        (59.96, "1 min 00 s"),
        (125.2, "2 min 05 s"),
        (3599.7, "1 h 00 min"),
        (7380.0, "2 h 03 min"),
    ],
)
def test_durations_have_their_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_names_are_cut_in_the_middle() -> None:
    assert cut("execute_tool search_flights", 16) == "execute_to…ights"
    assert cut("short", 16) == "short"
    assert cut("日本語日本語", 7) == "日本…語"
    assert cut("anything", 1) == "…"
    assert cut("anything", 0) == ""


def test_printable_is_one_line() -> None:
    assert printable("a\tb\nc\x1b[0m\u202e") == "a b c?[0m?"


def test_events_that_are_not_ours_are_moments_by_their_name() -> None:
    r = Recorder()
    r.add("call", 0.0, 1.0, events=(SpanEvent("cache hit", r.at(0.5), {"key": 1}),))
    assert re.search(r"└ ◆ cache hit +◆", "\n".join(drawn(r)))
