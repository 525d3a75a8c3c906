"""Where a command writes: its result to stdout, everything that is said about it to stderr.

Colours only on a terminal, and never with NO_COLOR. What cannot be written to stderr is lost silently: nobody reads
it; what cannot be written to stdout ends the command.
"""

from __future__ import annotations

import os
import stat
import sys
from typing import IO, TYPE_CHECKING, Literal

from agentrt.errors import AgentrtError

if TYPE_CHECKING:
    from agentrt.telemetry.redaction import Redactor

__all__ = ["OutputClosed", "OutputFailed", "Style", "Terminal"]

Style = Literal["bold", "dim", "red", "green", "yellow", "cyan"]

_CODES: dict[Style, str] = {
    "bold": "1",
    "dim": "2",
    "red": "1;31",
    "green": "32",
    "yellow": "33",
    "cyan": "36",
}


class OutputClosed(BaseException):
    """Whoever read our stdout has gone away (`agentrt ... | head`): time to stop, quietly. No error, so that nothing
    on its way reports it."""


class OutputFailed(AgentrtError):
    """stdout cannot take the result: a full disk, for example."""


class Terminal:
    """The standard streams of this process, looked up when they are used.

    `redactor`: takes the secrets that it knows out of what goes to stderr. The result on stdout is the user's, whatever
    it holds.
    """

    def __init__(self) -> None:
        self.redactor: Redactor | None = None
        self._at_line_start = True

    # --- the result ------------------------------------------------------------------------------------

    def write(self, text: str) -> None:
        """Write `text` to stdout as it is, now. Raises OutputClosed or OutputFailed."""
        out = sys.stdout
        if not text or out is None:  # None: the process was started with stdout closed
            return
        try:
            out.write(text)
            out.flush()
        except UnicodeEncodeError:
            self.write(
                text.encode(out.encoding or "utf-8", "backslashreplace").decode(out.encoding or "utf-8")
            )
            return
        except BrokenPipeError:
            self.abandon()
            raise OutputClosed from None
        except OSError as error:
            self.abandon()
            raise OutputFailed(f"cannot write to stdout: {error.strerror or error}") from error
        self._at_line_start = text.endswith("\n")

    def line(self, text: str) -> None:
        """Write `text` to stdout as a line, or several."""
        self.write(text if text.endswith("\n") else text + "\n")

    def end_line(self) -> None:
        """End the line on stdout that was begun, if there is one."""
        if not self._at_line_start:
            self.write("\n")

    def end_interrupted_line(self) -> None:
        """Go on below the line in which the terminal has shown ^C."""
        if self.is_watched:
            self._at_line_start = True
            self.say()

    @staticmethod
    def abandon() -> None:
        """Nothing more to stdout: what is buffered must not fail again when the interpreter ends."""
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())
            os.close(null)
        except (OSError, ValueError):  # a stdout without a file, as in tests
            pass

    # --- what is said about it -------------------------------------------------------------------------

    def say(self, text: str = "") -> None:
        """Write a line, or several, to stderr."""
        self.raw(text + "\n")

    def raw(self, text: str) -> None:
        """Write `text` to stderr as it is, now. A line of the result that was begun in the same place ends first."""
        err = sys.stderr
        if err is None:
            return
        try:
            if not self._at_line_start and _are_one_place(sys.stdout, err):
                self.write("\n")
            err.write(text if self.redactor is None else self.redactor.known(text))
            err.flush()
        except (OSError, ValueError, OutputClosed, OutputFailed):
            pass

    def error(self, message: str) -> None:
        self.say(f"{self.style('error:', 'red')} {message}")

    def warning(self, message: str) -> None:
        self.say(f"{self.style('warning:', 'yellow')} {message}")

    def hint(self, message: str) -> None:
        self.say(f"{self.style('hint:', 'cyan')} {message}")

    def note(self, message: str) -> None:
        """A remark that one may overlook."""
        self.say(self.style(message, "dim"))

    # --- what the streams can do -----------------------------------------------------------------------

    def style(self, text: str, *styles: Style, out: bool = False) -> str:
        """`text` in colour, if stderr (or stdout, with `out`) shows it."""
        stream = sys.stdout if out else sys.stderr
        if not styles or not text or not _shows_colour(stream):
            return text
        return f"\033[{';'.join(_CODES[style] for style in styles)}m{text}\033[0m"

    def can_show(self, characters: str) -> bool:
        """Whether stdout's encoding has all these characters."""
        try:
            characters.encode(getattr(sys.stdout, "encoding", None) or "ascii")
        except (UnicodeEncodeError, LookupError):
            return False
        return True

    @property
    def talks(self) -> bool:
        """Somebody sits there: stdin and stderr are terminals, so a question will be answered."""
        return _is_terminal(sys.stdin) and _is_terminal(sys.stderr)

    @property
    def is_watched(self) -> bool:
        """Somebody reads stderr as it comes."""
        return _is_terminal(sys.stderr)

    def ask(self, question: str) -> bool:
        """A question with Yes as the default; only if `talks`. The end of input means No."""
        self.raw(f"{question} [Y/n] ")
        answer = sys.stdin.readline()
        if not answer:
            self.say()
            return False
        return answer.strip().lower() in ("", "y", "yes")


def _is_terminal(stream: IO[str] | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def _are_one_place(out: IO[str] | None, err: IO[str]) -> bool:
    """Whether what is written to both stands in one text: on a screen, or in one file or pipe (`2>&1`)."""
    if out is None:
        return False
    if _is_terminal(out) and _is_terminal(err):
        return True
    try:
        first, second = os.fstat(out.fileno()), os.fstat(err.fileno())
    except (OSError, ValueError):  # closed, or a stream without a file
        return False
    # Two streams to /dev/null are no text.
    return not stat.S_ISCHR(first.st_mode) and os.path.samestat(first, second)


def _shows_colour(stream: IO[str] | None) -> bool:
    return _is_terminal(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
