"""The conversation of `agentrt run` on a terminal: a prompt, an answer as it comes, and again.

    Ctrl-C while the agent answers   cancels the answer; the history stays as it was before it
    Ctrl-C at the prompt             clears the line; a second one in a row quits (130)
    Ctrl-D                           ends (0)

The event loop runs during an answer and rests at the prompt: that is in the main thread, as readline and Python's own
handling of Ctrl-C want it.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import signal
import sys

from agentrt.cli.output import Text
from agentrt.cli.report import INTERRUPTED, OK, TERMINATED
from agentrt.cli.signals import nothing_missed
from agentrt.cli.terminal import Terminal
from agentrt.cli.turns import Turns, run_in
from agentrt.session import Session

__all__ = ["converse"]

PROMPT = "> "


def converse(turns: Turns, terminal: Terminal) -> int:
    """Talk until the user has enough; returns the exit code."""
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")  # it gives `input` editing, and the lines typed before
    with asyncio.Runner() as runner:
        try:
            code = run_in(runner, turns.open()).code
            if code == OK:
                terminal.note(f"{turns.name}: Ctrl-C stops an answer, Ctrl-D ends the conversation.")
                code = _talk(turns, terminal, runner)
        finally:
            closed = run_in(runner, turns.close())
    return code or closed


def _talk(turns: Turns, terminal: Terminal, runner: asyncio.Runner) -> int:
    session = Session()
    interrupted = False
    while True:
        try:
            with nothing_missed():
                message = _read_line(terminal)
        except KeyboardInterrupt:
            if interrupted:
                terminal.say()
                return INTERRUPTED
            interrupted = True
            terminal.say()
            terminal.note("Ctrl-C again quits, Ctrl-D ends the conversation.")
            continue
        interrupted = False
        if message is None:
            return OK
        if not message.strip():
            continue
        outcome = run_in(runner, turns.take(message, Text(terminal, tools=True), session=session))
        if outcome.signal == signal.SIGTERM:
            return TERMINATED
        if outcome.signal == signal.SIGINT:
            terminal.note("stopped")


def _read_line(terminal: Terminal) -> str | None:
    """A line from the terminal, or None at the end of input."""
    if sys.stdout is not None and sys.stdout.isatty():
        try:
            return input(PROMPT)
        except EOFError:
            terminal.say()
            return None
    # The answers go elsewhere: readline would send its prompt there, too.
    terminal.raw(PROMPT)
    line = sys.stdin.readline()
    if not line:
        terminal.say()
        return None
    return line.removesuffix("\n")
