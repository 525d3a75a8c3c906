"""Where a command writes."""

from __future__ import annotations

import io
from typing import IO

import pytest

from agentrt.cli.terminal import OutputClosed, OutputFailed, Terminal


class Stream(io.StringIO):
    """A stream that is a terminal or not, and may fail."""

    def __init__(
        self,
        text: str = "",
        *,
        terminal: bool = False,
        encoding: str = "utf-8",
        error: Exception | None = None,
    ) -> None:
        super().__init__(text)
        self.terminal = terminal
        self.error = error
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str, /) -> int:
        if self.error is not None:
            raise self.error
        text.encode(self._encoding)
        return super().write(text)


def use(
    monkeypatch: pytest.MonkeyPatch,
    *,
    out: IO[str] | None = None,
    err: IO[str] | None = None,
    stdin: IO[str] | None = None,
) -> None:
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)
    monkeypatch.setattr("sys.stdin", stdin)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")


def test_a_line_that_was_begun_on_the_screen_is_ended_before_anything_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = Stream(terminal=True)
    use(monkeypatch, out=screen, err=screen)
    terminal = Terminal()
    terminal.write("half a line")
    terminal.say("said")
    terminal.write("more")
    terminal.end_line()
    terminal.end_line()
    assert screen.getvalue() == "half a line\nsaid\nmore\n"


def test_what_is_said_adds_nothing_to_a_result_that_goes_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = Stream(), Stream(terminal=True)
    use(monkeypatch, out=out, err=err)
    terminal = Terminal()
    terminal.write("half a line")
    terminal.say("said")
    assert (out.getvalue(), err.getvalue()) == ("half a line", "said\n")


def test_characters_that_the_encoding_has_not_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Stream(encoding="ascii")
    use(monkeypatch, out=out, err=Stream())
    terminal = Terminal()
    terminal.line("caf\u00e9")
    assert out.getvalue() == "caf\\xe9\n"
    assert not terminal.can_show("\u256d")
    assert terminal.can_show(".-")


def test_a_broken_pipe_and_a_full_disk_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, out=Stream(error=BrokenPipeError()), err=Stream())
    with pytest.raises(OutputClosed):
        Terminal().write("x")
    use(monkeypatch, out=Stream(error=OSError(28, "No space left on device")), err=Stream())
    with pytest.raises(OutputFailed, match="cannot write to stdout: No space left on device"):
        Terminal().write("x")


def test_streams_that_are_closed_or_missing_do_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch)
    terminal = Terminal()
    terminal.write("x")
    terminal.say("y")
    assert not terminal.talks
    closed = Stream()
    closed.close()
    use(monkeypatch, out=Stream(), err=closed, stdin=closed)
    terminal.say("y")
    assert not terminal.talks
    use(monkeypatch, out=Stream(), err=Stream(error=OSError("gone")))
    terminal.error("nobody hears it")


@pytest.mark.parametrize(
    ("variables", "terminal", "coloured"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"NO_COLOR": "1"}, True, False),
        ({"NO_COLOR": ""}, True, True),
        ({"TERM": "dumb"}, True, False),
    ],
)
def test_colours_only_on_terminals_that_want_them(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], terminal: bool, coloured: bool
) -> None:
    err = Stream(terminal=terminal)
    use(monkeypatch, out=Stream(), err=err)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    Terminal().error("no")
    assert err.getvalue() == ("\x1b[1;31merror:\x1b[0m no\n" if coloured else "error: no\n")


@pytest.mark.parametrize(
    ("answer", "wanted"), [("\n", True), ("y\n", True), ("YES\n", True), ("n\n", False), ("", False)]
)
def test_yes_is_what_enter_means_and_no_what_the_end_of_input_means(
    monkeypatch: pytest.MonkeyPatch, answer: str, wanted: bool
) -> None:
    err = Stream(terminal=True)
    use(monkeypatch, out=Stream(), err=err, stdin=Stream(answer, terminal=True))
    terminal = Terminal()
    assert terminal.talks
    assert terminal.ask("Fetch it?") is wanted
    assert err.getvalue().startswith("Fetch it? [Y/n] ")


def test_below_an_echoed_ctrl_c_one_newline_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Stream(terminal=True)
    use(monkeypatch, out=screen, err=screen)
    terminal = Terminal()
    terminal.write("half")
    terminal.end_interrupted_line()
    terminal.note("stopped")
    assert screen.getvalue() == "half\n\x1b[2mstopped\x1b[0m\n"
