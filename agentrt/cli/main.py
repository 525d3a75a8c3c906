"""The command `agentrt`: finds the command that is asked for, and turns how it ends into an exit code."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from agentrt import __version__
from agentrt.cli.report import CLOSED, INTERRUPTED, OK, TERMINATED, USAGE, report, wants_full_traceback
from agentrt.cli.signals import Terminated, end_at_sigterm
from agentrt.cli.terminal import OutputClosed, Terminal
from agentrt.errors import AgentrtError

__all__ = ["cli", "main"]

COMMANDS = {
    "run": "Run an agent on a message, or talk to it.",
    "explain": "Draw what every call of an agent goes through.",
    "check": "Find out what is wrong before running anything.",
    "trace": "Show a stored run: where its time went, what failed.",
    "audit": "Verify an audit log, and show what is in it.",
    "plugins": "List plugins, with version and state.",
    "secrets": "Look at secrets without showing them; find them in files.",
    "models": "List and fetch the models that run here.",
    "completion": "Print the completion script of a shell.",
}
"""The commands in the order of the help. Each is in the module of its name, which is imported when it is used."""

COMPLETION = "_AGENTRT_COMPLETE"
"""Set by the script of `agentrt completion` to ask for what may follow."""

EXAMPLES = """\b
Examples:
  agentrt run my_agent:Agent "What is the capital of France?"
  agentrt run examples/assistant.py:Assistant
  agentrt explain my_agent:Agent
  agentrt run --help
"""


class _Interrupted(BaseException):
    """Ctrl-C outside a run."""


class _Commands(click.Group):
    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _past_click():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with _past_click():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f"agentrt.cli.{cmd_name}"), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            ctx.fail(_no_command(args[0]))
        return super().resolve_command(ctx, args)


@contextmanager
def _past_click() -> Generator[None]:
    """Click would end with exit code 1 if the pipe breaks while it prints help, and say something at Ctrl-C."""
    try:
        yield
    except BrokenPipeError:
        Terminal.abandon()
        raise OutputClosed from None
    except KeyboardInterrupt:
        raise _Interrupted from None


@click.group(
    cls=_Commands,
    epilog=EXAMPLES,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, "-V", "--version", prog_name="agentrt", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> int | None:
    """The runtime for Python agents: every model, tool, memory and secret call goes through one resilient
    pipeline."""
    return help_instead(ctx)


def help_instead(ctx: click.Context) -> int | None:
    """The help, and the exit code of wrong usage, for a group that was called without a command."""
    if ctx.invoked_subcommand is not None:
        return None
    ctx.obj.say(ctx.get_help())
    return USAGE


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The entry point of the console script. Never returns: it exits with the command's code."""
    terminal = Terminal()
    end_at_sigterm()
    try:
        code = _run(arguments, terminal)
    except OutputClosed:
        code = CLOSED
    except (KeyboardInterrupt, _Interrupted):
        terminal.end_interrupted_line()
        code = INTERRUPTED
    except Terminated:
        code = TERMINATED
    sys.exit(code)


def _run(arguments: Sequence[str] | None, terminal: Terminal) -> int:
    if COMPLETION in os.environ:
        importlib.import_module("agentrt.cli.completion")  # it has the script for bash
    try:
        code: Any = cli.main(
            None if arguments is None else list(arguments),
            prog_name="agentrt",
            complete_var=COMPLETION,
            obj=terminal,
            standalone_mode=False,
        )
    except click.ClickException as error:
        return _misused(error, terminal)
    except Exception as error:
        # Outside a run whatever is no error of ours is our own bug: nothing of it is to be hidden.
        full = wants_full_traceback(False) or not isinstance(error, AgentrtError)
        return report(error, terminal, full=full, doing="agentrt")
    return code if isinstance(code, int) else OK


def _misused(error: click.ClickException, terminal: Terminal) -> int:
    """One message, and where the help is; not the whole usage."""
    message = " ".join(error.format_message().split())  # click puts what can be chosen on lines of its own
    is_sentence = message[1:2].islower()
    terminal.error((message[:1].lower() + message[1:] if is_sentence else message).rstrip("."))
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx is not None else "agentrt"
        terminal.hint(f"{path} --help shows how it is used")
        return USAGE
    return error.exit_code


def _no_command(name: str) -> str:
    import difflib

    similar = difflib.get_close_matches(name, COMMANDS, n=1)
    if similar:
        return f"there is no command {name!r}; did you mean {similar[0]}?"
    if ":" in name:
        return f"there is no command {name!r}; to run an agent say: agentrt run {name}"
    return f"there is no command {name!r}; there are: {', '.join(COMMANDS)}"
