"""`agentrt run --session ID`: a stored conversation goes on."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from agentrt.security.keys import new_key
from tests.cli.commands import environment
from tests.cli.conftest import Command
from tests.cli.screen import Screen

COUNTER = '''
async def count(message):
    """How many turns of this conversation there were."""
    from agentrt import current

    session = current().session
    session.state["turns"] = session.state.get("turns", 0) + 1
    if message == "fail":
        raise ValueError("not today")
    return f"turn {session.state['turns']} of {session.id}"
'''

PROMPT = r"\n> $"


@pytest.fixture
def counter(project: Path) -> Path:
    (project / "counter.py").write_text(COUNTER)
    return project


def test_it_goes_on_where_it_was(counter: Path, command: Command) -> None:
    for turn in (1, 2, 3):
        ended = command("run", "counter.py:count", "--session", "ada", "hi")
        assert (ended.code, ended.out) == (0, f"turn {turn} of ada\n")
    assert command("run", "counter.py:count", "--session", "bob", "hi").out == "turn 1 of bob\n"
    assert (counter / ".agentrt" / "state.db").exists()


def test_a_turn_that_failed_is_not_stored(counter: Path, command: Command) -> None:
    command("run", "counter.py:count", "--session", "ada", "hi")
    assert command("run", "counter.py:count", "--session", "ada", "fail").code == 1
    assert command("run", "counter.py:count", "--session", "ada", "hi").out == "turn 2 of ada\n"


def test_without_it_nothing_is_stored(counter: Path, command: Command) -> None:
    assert command("run", "counter.py:count", "hi").code == 0
    assert not (counter / ".agentrt").exists()


def test_an_agents_history_is_what_the_model_is_asked_with(project: Path, command: Command) -> None:
    for message in ("one", "two"):
        assert command("run", "agents:Bot", "--session", "ada", message).code == 0
    (document,) = _documents(project / ".agentrt" / "state.db")
    contents = [m["content"] for m in json.loads(document)["messages"] if m["role"] == "user"]
    assert contents == ["one", "two"]


def test_it_is_encrypted_by_the_configuration(
    counter: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (counter / "agentrt.toml").write_text(
        '[state]\npath = "own.db"\nencrypt = true\n[encryption]\nkeys = ["secret://env/K2", "secret://env/K1"]\n'
    )
    monkeypatch.setenv("K1", new_key())
    monkeypatch.setenv("K2", new_key())
    for turn in (1, 2):
        ended = command("run", "counter.py:count", "--session", "ada", "hi")
        assert ended.out == f"turn {turn} of ada\n"
    (document,) = _documents(counter / "own.db")
    assert document.startswith("art1")
    assert b"turns" not in (counter / "own.db").read_bytes()
    monkeypatch.setenv("K2", new_key())
    ended = command("run", "counter.py:count", "--session", "ada", "hi")
    assert (ended.code, ended.out) == (1, "")
    assert "the stored session 'ada' cannot be decrypted" in ended.err
    assert "Traceback" not in ended.err


def test_what_is_wrong_is_told_before_the_run(
    counter: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("run", "counter.py:count", "--session", "ada", "--set", "state.encrypt=true")
    ended = command(*arguments, "hi")
    assert (ended.code, ended.out) == (2, "")
    assert "state.encrypt is true, but there is no key: set [encryption] keys" in ended.err
    keyed = (*arguments, "--set", 'encryption.keys=["secret://env/K1"]')
    ended = command(*keyed, "hi")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == (
        "error: secret://env/K1: the environment variable K1 is not set\n"
        "  it is one of [encryption] keys (--set encryption.keys)\n"
    )
    monkeypatch.setenv("K1", "hunter2hunter2")
    ended = command(*keyed, "hi")
    assert (ended.code, ended.out) == (2, "")
    assert "secret://env/K1 must be base64 of 32 random bytes" in ended.err
    assert "hunter2" not in ended.err
    ended = command("run", "counter.py:count", "--session", "", "hi")
    assert ended.code == 2
    assert "a session's id is text of 1 to 200 printable characters" in ended.err


def test_a_conversation_on_a_terminal_is_stored_turn_by_turn(counter: Path, command: Command) -> None:
    command("run", "counter.py:count", "--session", "ada", "hi")
    with Screen(
        "run", "counter:count", "--session", "ada", cwd=counter, env=environment(NO_COLOR="1")
    ) as terminal:
        terminal.wait_for(r"> $")
        for turn in (2, 3):
            terminal.send("hi\n")
            assert f"turn {turn} of ada" in terminal.wait_for(PROMPT)
        terminal.press("d")
        assert terminal.end() == 0
    assert command("run", "counter.py:count", "--session", "ada", "hi").out == "turn 4 of ada\n"


def test_a_conversation_goes_on_from_what_somebody_else_stored_meanwhile(
    counter: Path, command: Command
) -> None:
    with Screen(
        "run", "counter:count", "--session", "ada", cwd=counter, env=environment(NO_COLOR="1")
    ) as terminal:
        terminal.wait_for(r"> $")
        terminal.send("hi\n")
        terminal.wait_for(PROMPT)
        assert command("run", "counter.py:count", "--session", "ada", "hi").out == "turn 2 of ada\n"
        terminal.send("hi\n")
        assert "'ada' was saved by somebody else since it was loaded" in terminal.wait_for(PROMPT)
        terminal.send("hi\n")
        assert "turn 3 of ada" in terminal.wait_for(PROMPT)
        terminal.press("d")
        assert terminal.end() == 0


def _documents(path: Path) -> list[str]:
    connection = sqlite3.connect(path)
    try:
        return [document for (document,) in connection.execute("SELECT document FROM documents")]
    finally:
        connection.close()
