"""`argv` and `shell_quote`. tests/security/test_boundaries_executed.py starts real processes with them."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrt.errors import ConfigError
from agentrt.security.sanitize import UnsafeInput
from agentrt.security.shell import argv, shell_quote


def test_values_stand_behind_the_separator() -> None:
    assert argv("git", "log", "--oneline", values=["a b", "$(x)"]) == [
        "git",
        "log",
        "--oneline",
        "--",
        "a b",
        "$(x)",
    ]


def test_without_values_there_is_no_separator() -> None:
    assert argv("git", "status") == ["git", "status"]
    assert argv("git", "status", values=[]) == ["git", "status"]


def test_a_program_that_does_not_know_the_separator_gets_none_or_its_own() -> None:
    assert argv("echo", values=["x"], separator=None) == ["echo", "x"]
    assert argv("find", values=["x"], separator="-f") == ["find", "-f", "x"]


def test_values_may_be_any_iterable() -> None:
    assert argv("x", values=(text for text in ("a", "b"))) == ["x", "--", "a", "b"]


def test_values_with_a_dash_or_lines_pass_only_if_allowed() -> None:
    for value, option in (("-rf", "allow_leading_dash"), ("a\nb", "allow_lines")):
        with pytest.raises(UnsafeInput):
            argv("x", values=["fine", value])
        options: dict[str, Any] = {option: True}
        assert argv("x", values=[value], **options) == ["x", "--", value]
        with pytest.raises(UnsafeInput):
            shell_quote(value)
        assert shlex.split(shell_quote(value, **options)) == [value]


def test_the_author_s_own_words_may_be_options_but_no_program_begins_with_a_dash() -> None:
    assert argv("sh", "-c", "echo a\necho b") == ["sh", "-c", "echo a\necho b"]
    with pytest.raises(UnsafeInput, match="begins with '-'"):
        argv("-x")


@pytest.mark.parametrize("word", ["a\x00b", "\x1b[2J", "\u202e", "\ud800"])
def test_characters_that_deceive_are_refused_everywhere(word: str) -> None:
    for use in (
        lambda: argv(word),
        lambda: argv("x", word),
        lambda: argv("x", values=[word]),
        lambda: shell_quote(word),
    ):
        with pytest.raises(UnsafeInput):
            use()


def test_mistakes_of_usage_are_named() -> None:
    with pytest.raises(ConfigError, match="name of a program"):
        argv()
    with pytest.raises(ConfigError, match="name of a program"):
        argv("", "x")
    with pytest.raises(ConfigError, match=r"write values=\[text\]"):
        argv("x", values="a b")
    with pytest.raises(UnsafeInput, match="must be text, not int"):
        argv("x", values=[1])  # type: ignore[list-item]


@given(st.text(max_size=40))
def test_a_quoted_word_is_split_into_itself(text: str) -> None:
    try:
        quoted = shell_quote(text, allow_lines=True, allow_leading_dash=True)
    except UnsafeInput:
        return
    assert shlex.split(f"a {quoted} b") == ["a", text, "b"]
