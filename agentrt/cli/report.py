"""What a command says about an error, and the exit code that it ends with.

    0    ok
    1    the agent failed
    2    usage or configuration
    3    the target could not be imported
    124  the run's deadline was over
    130  SIGINT (Ctrl-C)
    141  whoever read stdout has gone away
    143  SIGTERM

A mistake of the user's gets one message: what, where, what to do. A bug in the agent gets the traceback of the
agent's own frames and one line that sums it up.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import TYPE_CHECKING

from agentrt.cli.terminal import Terminal
from agentrt.errors import AgentrtError, ConfigError, DeadlineExceeded, PluginError

if TYPE_CHECKING:
    from traceback import TracebackException

__all__ = [
    "AGENT_ERROR",
    "CLOSED",
    "DEADLINE",
    "IMPORT_ERROR",
    "INTERRUPTED",
    "OK",
    "TERMINATED",
    "USAGE",
    "TargetError",
    "UserCodeError",
    "exit_code",
    "is_hidden",
    "report",
    "traceback_lines",
    "wants_full_traceback",
]

OK = 0
AGENT_ERROR = 1
USAGE = 2
IMPORT_ERROR = 3
DEADLINE = 124
INTERRUPTED = 130
CLOSED = 141
TERMINATED = 143

TRACEBACK_VARIABLE = "AGENTRT_TRACEBACK"


class TargetError(AgentrtError):
    """The target names a module or an attribute that is not there."""


class UserCodeError(AgentrtError):
    """The user's code raised while we imported or called it; the exception itself is the cause."""


def exit_code(error: BaseException) -> int:
    """The exit code for a command that ends with `error`."""
    match error:
        case TargetError() | UserCodeError():
            return IMPORT_ERROR
        case ConfigError() | PluginError():
            return USAGE
        case DeadlineExceeded(scope="run"):
            return DEADLINE
        case _:
            return AGENT_ERROR


def report(error: BaseException, terminal: Terminal, *, full: bool = False, doing: str = "agentrt") -> int:
    """Say on stderr what went wrong, and return the exit code.

    `full`: show every traceback whole. `doing`: what failed, for the line that sums up a traceback.
    """
    shown = error
    if isinstance(error, UserCodeError) and error.__cause__ is not None:
        shown = error.__cause__
    is_known = isinstance(shown, AgentrtError)
    # A mistake in the user's file is shown by Python's own words about it; ours only say what was done.
    lines = traceback_lines(shown, full=full) if full or not is_known else []
    if lines:
        terminal.say("".join(lines).rstrip("\n"))
    if is_known:
        terminal.error(str(error) or type(error).__name__)
    else:
        terminal.error(_summary(error, shown, doing))
    if is_known or not lines:  # else the traceback has shown them
        for note in _notes(error):
            terminal.say(f"  {note}")
    for hint in _hints(error, shown, is_trimmed=not full and not is_known):
        terminal.hint(hint)
    return exit_code(error)


def wants_full_traceback(option: bool) -> bool:
    """Whether tracebacks are shown whole: `--traceback`, or AGENTRT_TRACEBACK set to anything but 0."""
    return option or os.environ.get(TRACEBACK_VARIABLE, "0") not in ("", "0")


def _summary(error: BaseException, shown: BaseException, doing: str) -> str:
    text = str(shown).strip()
    what = type(shown).__name__ + (f": {text.splitlines()[0]}" if text else "")
    if isinstance(error, UserCodeError):
        return f"{error}: {what}"
    return f"{doing} failed: {what}"


def _notes(error: BaseException) -> list[str]:
    """What is worth knowing besides: earlier failures of the same call, what could not be undone."""
    return [line for note in getattr(error, "__notes__", ()) for line in str(note).splitlines()]


def _hints(error: BaseException, shown: BaseException, *, is_trimmed: bool) -> list[str]:
    if isinstance(shown, DeadlineExceeded) and shown.scope == "run":
        return ["give the run more time with --timeout SECONDS, or find out what is slow with --jsonl"]
    if is_trimmed and _has_own_frames(shown):
        return ["--traceback shows the frames of agentrt as well"]
    return []


# --- tracebacks ----------------------------------------------------------------------------------------

_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def traceback_lines(error: BaseException, *, full: bool) -> list[str]:
    """The traceback of `error` and its causes, without the frames of agentrt and of the import system.

    Empty if no other frame is left in any of them: it would only say again what the error says. `full`: everything.
    """
    import traceback

    formatted = traceback.TracebackException.from_exception(error)
    if not full and not _trim(formatted, error):
        return []
    return list(formatted.format())


def _trim(formatted: TracebackException | None, error: BaseException | None) -> bool:
    """Take the hidden frames out of a TracebackException, its causes and its members; whether it shows a place."""
    if formatted is None or error is None:
        return False
    stack = formatted.stack
    stack[:] = [frame for frame in stack if not is_hidden(frame.filename)]
    # The file and line of a SyntaxError stand below the stack.
    shows = [bool(stack) or isinstance(error, SyntaxError)]
    shows.append(_trim(formatted.__cause__, error.__cause__))
    shows.append(_trim(formatted.__context__, error.__context__))
    members = getattr(error, "exceptions", None)
    for inner, member in zip(getattr(formatted, "exceptions", None) or (), members or (), strict=False):
        shows.append(_trim(inner, member))
    return any(shows)


def _has_own_frames(error: BaseException) -> bool:
    """Whether frames of ours were left out that may say something: not those above the first of the user's."""
    files = _files(error.__traceback__)
    first = next((index for index, file in enumerate(files) if not is_hidden(file)), 0)
    return any(_is_own(file) for file in files[first:])


def _files(traceback: TracebackType | None) -> list[str]:
    files = []
    while traceback is not None:
        files.append(traceback.tb_frame.f_code.co_filename)
        traceback = traceback.tb_next
    return files


def is_hidden(filename: str) -> bool:
    """Whether a frame of this file is agentrt's or the import system's."""
    return _is_own(filename) or _is_importing(filename)


def _is_own(filename: str) -> bool:
    # The coroutines of the composer are made from source, and their file is called "<agentrt ...>".
    return filename.startswith((_OWN, "<agentrt "))


def _is_importing(filename: str) -> bool:
    return filename.startswith("<frozen importlib") or f"{os.sep}importlib{os.sep}" in filename
