"""What `agentrt run` makes of a run's events: the answer, the text as it comes, or one JSON line for each.

Answer    the answer at the end
Text      text as the models write it (`--stream`, and the conversation)
Lines     every event as a line of JSON (`--jsonl`)
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from agentrt import events
from agentrt.cli.terminal import Terminal
from agentrt.execution import RunResult
from agentrt.telemetry.redaction import Redactor

__all__ = ["Answer", "Lines", "Printer", "Text"]


class Printer(Protocol):
    """Shows one run on `terminal`. `deltas`: it wants the answers of models in pieces."""

    deltas: bool

    def event(self, event: events.Event) -> None:
        """Called with each event of the run, in order."""
        ...

    def result(self, result: RunResult) -> None:
        """Called at the end of a run that succeeded."""
        ...

    def failed(self, error: BaseException) -> None:
        """Called at the end of one that did not, before the error is reported."""
        ...


class Answer:
    """The result at the end, nothing before."""

    deltas = False

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal

    def event(self, event: events.Event) -> None:
        remark(event, self._terminal)

    def result(self, result: RunResult) -> None:
        if result.text:
            self._terminal.line(result.text)
        note_nothing(result, self._terminal)

    def failed(self, error: BaseException) -> None:
        pass


class Text:
    """Text as it comes. The text of each model call begins on a line of its own; what a child run says is not shown.

    The result follows at the end if it is not the last text that was shown. `tools`: mention tool calls on stderr.
    """

    deltas = True

    def __init__(self, terminal: Terminal, *, tools: bool = False) -> None:
        self._terminal = terminal
        self._tools = tools
        self._run: str | None = None
        self._pieces: list[str] = []

    def event(self, event: events.Event) -> None:
        if self._run is None and isinstance(event, events.RunStarted):
            self._run = event.run
        match event:
            case events.TextDelta() if event.run == self._run:
                self._pieces.append(event.text)
                self._terminal.write(event.text)
            case events.ModelStarted() if event.run == self._run:
                self._terminal.end_line()
                self._pieces.clear()
            case events.ToolStarted() if self._tools:
                self._terminal.note(f"  {event.tool} {_shortened(event.arguments)}")
            case events.ToolFinished() if self._tools and event.error is not None:
                self._terminal.note(f"  {event.tool} failed: {_shortened(event.error)}")
            case _:
                remark(event, self._terminal)

    def result(self, result: RunResult) -> None:
        shown = "".join(self._pieces)
        if not _is_same(shown, result):
            self._terminal.end_line()
            self._terminal.write(result.text)
        self._terminal.end_line()
        if not shown:
            note_nothing(result, self._terminal)

    def failed(self, error: BaseException) -> None:
        self._terminal.end_line()


class Lines:
    """Every event as one line of JSON. A run that fails before it starts ends in a run_failed as well.

    Known secrets are taken out of what is told on the way (arguments, errors), but not out of the answer, which is the
    result.
    """

    deltas = True

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._is_over = False
        self._run: str | None = None

    def event(self, event: events.Event) -> None:
        if self._run is None:
            self._run = event.run
        self._is_over = isinstance(event, events.RunFinished | events.RunFailed) and event.run == self._run
        redactor = self._terminal.redactor
        if redactor is not None and not isinstance(event, events.TextDelta | events.RunFinished):
            told = _redacted(msgspec.json.decode(events.encode(event)), redactor)
            self._terminal.line(msgspec.json.encode(told).decode())
        else:
            self._terminal.line(events.encode(event).decode())

    def result(self, result: RunResult) -> None:
        pass

    def failed(self, error: BaseException) -> None:
        if not self._is_over:
            name, message = type(error).__name__, str(error)
            self.event(
                events.RunFailed(run=self._run or "", at=0.0, error=name, message=message, seconds=0.0)
            )


def _redacted(tree: Any, redactor: Redactor) -> Any:
    """Plain values without the secrets that `redactor` knows."""
    if isinstance(tree, str):
        return redactor.known(tree)
    if isinstance(tree, list):
        return [_redacted(item, redactor) for item in tree]
    if isinstance(tree, dict):
        return {redactor.known(key): _redacted(value, redactor) for key, value in tree.items()}
    return tree


def remark(event: events.Event, terminal: Terminal) -> None:
    """What a user should know while a run goes on: warnings; on a terminal also why nothing seems to happen."""
    match event:
        case events.Warned():
            terminal.warning(event.message)
        case events.Retry() if terminal.is_watched:
            after = f" in {event.delay:.0f} s" if event.delay >= 1.0 else ""
            terminal.note(f"{event.target}: attempt {event.attempt} follows{after} ({event.error})")
        case events.Waiting() if terminal.is_watched and event.seconds >= 1.0:
            terminal.note(f"{event.target}: waited {event.seconds:.0f} s ({event.stage})")
        case _:
            pass


def note_nothing(result: RunResult, terminal: Terminal) -> None:
    """An agent may return None, and nothing is printed then; whoever sits there may wonder whether it ran."""
    if result.output is None and terminal.is_watched:
        terminal.note("(the agent returned None)")


def _is_same(shown: str, result: RunResult) -> bool:
    """Whether `shown` was the result already, perhaps with other blanks."""
    if shown.strip() == result.text.strip():
        return True
    if isinstance(result.output, str):
        return False
    return bool(shown) and _as_json(shown) == _as_json(result.text)


def _as_json(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return object()  # like nothing else


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 100 else text[:99] + "…"
