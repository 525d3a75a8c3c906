"""`agentrt run`: one message and its answer, or a conversation."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import Any

import click

from agentrt import options
from agentrt.cli.models import offer_weights
from agentrt.cli.output import Answer, Lines, Printer, Text
from agentrt.cli.project import open_project, project_options
from agentrt.cli.report import report, wants_full_traceback
from agentrt.cli.terminal import Terminal
from agentrt.cli.turns import Turns, run_in
from agentrt.errors import ConfigError

EXAMPLES = """\b
Examples:
  agentrt run my_agent:Agent "What is the capital of France?"
  agentrt run my_agent.py:Agent                      a conversation
  git diff | agentrt run reviewer.py:Agent           the message from stdin
  agentrt run my_agent:Agent -m openai:gpt-5-mini --stream "Tell me a story"
  agentrt run my_agent:Agent --jsonl "Hello" | jq .  every event as JSON
  agentrt run my_agent:Agent --trace "Hello"         where the time went
  agentrt run my_agent:Agent --session ada "And?"    a stored conversation goes on
"""


@click.command(short_help="Run an agent on a message, or talk to it.", epilog=EXAMPLES)
@project_options
@click.argument("message", nargs=-1)
@click.option("--stream", is_flag=True, help="Show text as it comes.")
@click.option("--jsonl", is_flag=True, help="Print every event of the run as a line of JSON.")
@click.option("--timeout", metavar="SECONDS", help="End the run after this time (exit code 124).")
@click.option(
    "--session", metavar="ID", help="Continue the stored conversation ID, or begin it; the turn is stored."
)
@click.option("--trace", is_flag=True, help="Draw at the end where the time went, on stderr.")
@click.option(
    "--trace-html",
    "page",
    metavar="FILE",
    type=click.Path(),
    help="Write the same to FILE, as a page to click through.",
)
@click.option("--traceback", is_flag=True, help="Show whole tracebacks, with the frames of agentrt.")
@click.pass_obj
def run(
    terminal: Terminal,
    /,
    message: tuple[str, ...],
    stream: bool,
    jsonl: bool,
    timeout: str | None,
    session: str | None,
    trace: bool,
    page: str | None,
    traceback: bool,
    **project: Any,
) -> int:
    """Run the agent TARGET on MESSAGE and print its answer.

    TARGET is module:attribute or path/file.py:attribute: a class with `async def run(self, message)`, an
    instance of one, an async function, or a function that makes one of these.

    Without MESSAGE, or with -, stdin is the message; on a terminal a conversation begins instead (Ctrl-C
    stops an answer, Ctrl-D ends the conversation).
    """
    if len(message) > 1:
        raise click.UsageError(f'MESSAGE is one argument: put it in quotes, as in "{" ".join(message)}"')
    if stream and jsonl:
        raise click.UsageError("--stream and --jsonl exclude each other: --jsonl has the text as events")
    printer: Printer = Lines(terminal) if jsonl else Text(terminal) if stream else Answer(terminal)
    full = wants_full_traceback(traceback)
    try:
        seconds = None if timeout is None else _timeout(timeout)
        traced = None
        if trace or page is not None:
            from agentrt.cli.run_trace import RunTrace

            traced = RunTrace(terminal, drawn=trace, page=page)
            # Whoever asks for the trace of this run means this run; an explicit --set still wins.
            project["overrides"] = ("telemetry.sample=1", *project["overrides"])
        opened = open_project(terminal, **project)
        turns = Turns(opened, terminal, timeout=seconds, session=session, full=full, trace=traced)
        text = _read_message(message[0] if message else None)
        if text is None and jsonl:
            raise ConfigError("--jsonl wants a message: as an argument, or on stdin")
        offer_weights(opened, terminal)
    except Exception as error:
        printer.failed(error)
        return report(error, terminal, full=full)
    if text is None:
        from agentrt.cli.conversation import converse

        return converse(turns, terminal)
    with asyncio.Runner() as runner:
        return run_in(runner, turns.take(text, printer, is_last=True)).code


def _timeout(text: str) -> float:
    """The seconds of --timeout; what is no number gets the sentence that a wrong number gets."""
    number: Any = text
    with contextlib.suppress(ValueError):
        number = float(text)
    return options.seconds("--timeout", number)


# --- the message ---------------------------------------------------------------------------------------

WHERE_FROM = "give it as an argument, or on stdin"


def _read_message(argument: str | None) -> str | None:
    """The message, or None for a conversation. Raises ConfigError if it is empty or no text."""
    if argument is None and sys.stdin is not None and sys.stdin.isatty():
        return None
    text = _read_stdin() if argument in (None, "-") else _checked(argument)
    if not text.strip():
        raise ConfigError(f"the message is empty: {WHERE_FROM}")
    return text


def _checked(argument: str) -> str:
    try:
        argument.encode()
    except UnicodeEncodeError:
        raise ConfigError("the message is not UTF-8 text; give it on stdin, converted") from None
    return argument


def _read_stdin() -> str:
    """All of stdin, without the newline that ends its last line."""
    if sys.stdin is None:
        raise ConfigError(f"there is no message, and stdin is closed: {WHERE_FROM}")
    try:
        data = sys.stdin.buffer.read()
    except OSError as error:
        raise ConfigError(f"cannot read the message from stdin: {error.strerror or error}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"byte {error.start} is {data[error.start]:#04x}, which is no UTF-8"
        raise ConfigError(f"stdin is not text: {what}; a message is UTF-8 text") from None
    if "\0" in text:
        raise ConfigError(f"stdin is not text: byte {data.index(0)} is NUL; a message is UTF-8 text")
    return text.removesuffix("\n").removesuffix("\r")
