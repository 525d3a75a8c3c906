"""The conversation, on a real terminal."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.cli.commands import environment
from tests.cli.screen import Screen

PROMPT = r"\n> $"

CHATTY = '''
import asyncio
from agentrt import Agent, current, tool


async def count(message):
    """How many turns there were, and how long the history is."""
    session = current().session
    session.state["turns"] = session.state.get("turns", 0) + 1
    return f"turn {session.state['turns']}"


async def slow(message):
    for word in message.split():
        yield f"<{word}> "
        await asyncio.sleep(60 if word == "hold" else 0.1)


async def failing(message):
    raise ValueError("not today")


@tool
async def add(a: int, b: int) -> int:
    """Add."""
    return a + b


class Bot(Agent):
    model = "scripted:script.json"
    tools = [add]
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "chatty.py").write_text(CHATTY)
    return tmp_path


def screen(folder: Path, *arguments: str, stdout: Path | None = None) -> Screen:
    return Screen("run", *arguments, cwd=folder, env=environment(NO_COLOR="1"), stdout=stdout)


def test_it_answers_until_the_end_of_input(folder: Path) -> None:
    with screen(folder, "chatty:count") as terminal:
        begin = terminal.wait_for(r"> $")
        assert begin == "count: Ctrl-C stops an answer, Ctrl-D ends the conversation.\n> "
        terminal.send("hello\n")
        assert terminal.wait_for(PROMPT) == "hello\nturn 1\n> "
        terminal.send("   \n")
        terminal.wait_for(PROMPT)
        terminal.send("again\n")
        assert terminal.wait_for(PROMPT) == "again\nturn 2\n> "
        terminal.press("d")
        assert terminal.end() == 0


def test_text_is_shown_as_it_comes_and_ctrl_c_stops_the_answer(folder: Path) -> None:
    with screen(folder, "chatty:slow") as terminal:
        terminal.wait_for(r"> $")
        terminal.send("one two hold ten\n")
        terminal.wait_for("<hold>")
        terminal.press("c")
        stopped = terminal.wait_for(PROMPT)
        assert "stopped\n" in stopped
        assert "<ten>" not in stopped
        terminal.send("more\n")
        assert "<more>" in terminal.wait_for(PROMPT)
        terminal.press("d")
        assert terminal.end() == 0


def test_ctrl_c_at_the_prompt_clears_the_line_and_a_second_one_quits(folder: Path) -> None:
    with screen(folder, "chatty:count") as terminal:
        terminal.wait_for(r"> $")
        terminal.send("unfinished")
        terminal.wait_for("unfinished")
        terminal.press("c")
        terminal.wait_for(r"Ctrl-C again quits, Ctrl-D ends the conversation.\n> $")
        terminal.send("hello\n")
        assert "turn 1" in terminal.wait_for(PROMPT)
        terminal.send("x")
        terminal.wait_for("x")
        terminal.press("c")
        terminal.wait_for(PROMPT)
        terminal.send("y")
        terminal.wait_for("y")
        terminal.press("c")
        assert terminal.end() == 130


def test_a_failed_turn_is_told_and_the_conversation_goes_on(folder: Path) -> None:
    with screen(folder, "chatty:failing") as terminal:
        terminal.wait_for(r"> $")
        terminal.send("hello\n")
        assert "error: failing failed: ValueError: not today\n" in terminal.wait_for(PROMPT)
        terminal.press("d")
        assert terminal.end() == 0


def test_tool_calls_are_mentioned_and_the_history_is_kept(folder: Path) -> None:
    (folder / "script.json").write_text(
        '[{"tool_calls": [{"name": "add", "arguments": {"a": 1, "b": 2}}]}, "three",'
        ' {"tool_calls": [{"name": "add", "arguments": {"a": "x"}}]}, "sorry"]'
    )
    with screen(folder, "chatty:Bot") as terminal:
        terminal.wait_for(r"> $")
        terminal.send("1 + 2?\n")
        assert '\n  add {"a":1,"b":2}\nthree\n' in terminal.wait_for(PROMPT)
        terminal.send("x?\n")
        assert "\n  add failed: " in terminal.wait_for(PROMPT)
        terminal.press("d")
        assert terminal.end() == 0


def test_sigterm_at_the_prompt_ends_with_143(folder: Path) -> None:
    with screen(folder, "chatty:count") as terminal:
        terminal.wait_for(r"> $")
        terminal.send("hello\n")
        terminal.wait_for(PROMPT)
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.end() == 143


def test_sigterm_during_an_answer_lets_it_finish_and_ends_with_143(folder: Path) -> None:
    with screen(folder, "chatty:slow") as terminal:
        terminal.wait_for(r"> $")
        terminal.send("one two three\n")
        terminal.wait_for("<one>")
        terminal.process.send_signal(signal.SIGTERM)
        terminal.wait_for("<three>")
        assert terminal.end() == 143


def test_jsonl_is_not_for_a_conversation(folder: Path) -> None:
    with screen(folder, "chatty:count", "--jsonl") as terminal:
        assert terminal.end() == 2
        assert "error: --jsonl wants a message" in terminal.text


def test_answers_that_go_elsewhere_leave_the_prompt_on_the_terminal(folder: Path) -> None:
    with screen(folder, "chatty:count", stdout=folder / "answers") as terminal:
        terminal.wait_for(r"> $")
        terminal.send("hello\n")
        assert terminal.wait_for(PROMPT) == "hello\n> "
        terminal.press("d")
        assert terminal.end() == 0
    assert (folder / "answers").read_text() == "turn 1\n"


def test_colours_are_for_terminals_that_want_them(folder: Path) -> None:
    with Screen("run", "chatty:failing", "hi", cwd=folder, env=environment()) as terminal:
        assert terminal.end() == 1
        assert "\x1b[1;31merror:\x1b[0m failing failed" in terminal.text
    with screen(folder, "chatty:failing", "hi") as terminal:
        assert terminal.end() == 1
        assert "\x1b" not in terminal.text


def test_a_message_on_a_terminal_is_no_conversation(folder: Path) -> None:
    with screen(folder, "chatty:count", "hi") as terminal:
        assert terminal.end() == 0
        assert terminal.text == "turn 1\n"


UNFIT = """
import sys
from agentrt import Agent

class NoModel(Agent): ...

class NoKey(Agent):
    model = "openai:gpt-5-mini"

class OneKey(Agent):
    model = ["openai:gpt-5-mini", "scripted:echo"]

class NoRun: ...

class Unmade:
    def __init__(self):
        raise ValueError("not made")
    async def run(self, message): ...

class Leaves:
    def __init__(self):
        sys.exit(7)
    async def run(self, message): ...

async def leaves(message):
    sys.exit(5)
"""


@pytest.mark.parametrize(
    ("agent", "code", "said"),
    [
        ("NoModel", 2, "error: NoModel has no model: "),
        ("NoKey", 2, "error: openai: there is no API key; set OPENAI_API_KEY"),
        ("NoRun", 2, "error: the class NoRun has no method `run`"),
        ("Unmade", 1, "Traceback (most recent call last):"),
        ("Leaves", 1, "error: Leaves called sys.exit(7)"),
    ],
)
def test_no_conversation_begins_with_an_agent_that_cannot_run(
    folder: Path, agent: str, code: int, said: str
) -> None:
    (folder / "unfit.py").write_text(UNFIT)
    with screen(folder, f"unfit:{agent}") as terminal:
        assert terminal.end() == code
        assert terminal.text.startswith(said)
        assert terminal.text.count("error: ") == 1


def test_a_model_that_cannot_be_asked_is_told_of_once(folder: Path) -> None:
    (folder / "unfit.py").write_text(UNFIT)
    with screen(folder, "unfit:OneKey") as terminal:
        terminal.wait_for(r"> $")
        terminal.send("one\n")
        assert "there is no API key" in terminal.wait_for(PROMPT)
        terminal.send("two\n")
        assert terminal.wait_for(PROMPT) == "two\ntwo\n> "
        terminal.press("d")
        assert terminal.end() == 0


def test_an_agent_that_calls_sys_exit_fails_its_turn_only(folder: Path) -> None:
    (folder / "unfit.py").write_text(UNFIT)
    with screen(folder, "unfit:leaves") as terminal:
        terminal.wait_for(r"> $")
        for _ in range(2):
            terminal.send("hi\n")
            assert terminal.wait_for(PROMPT) == "hi\nerror: leaves called sys.exit(5)\n> "
        terminal.press("c")
        terminal.wait_for("Ctrl-C again quits")
        terminal.wait_for(PROMPT)
        terminal.press("c")
        assert terminal.end() == 130
