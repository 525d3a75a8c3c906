"""Environment files: the grammar at the head of agentrt/config/dotenv.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrt.config.dotenv import load_env_file, parse_env
from agentrt.errors import ConfigError


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A=b", "b"),
        ("A = b ", "b"),
        ("  A=b", "b"),
        ("export A=b", "b"),
        ("export\tA=b", "b"),
        ("A=", ""),
        ("A= # only a comment", ""),
        ("A=b # comment", "b"),
        ("A=b#c", "b#c"),
        ("A=#b", "#b"),
        ("A=b c", "b c"),
        ("A=b=c", "b=c"),
        ('A="b"', "b"),
        ('A="b # c" # d', "b # c"),
        ('A="b"#c', "b"),
        ('A=""', ""),
        (r'A="a\nb\tc\r\"\\\$"', 'a\nb\tc\r"\\$'),
        (r'A="\d\ "', "\\d\\ "),
        ('A="two\nlines"', "two\nlines"),
        ("A='two\nlines'", "two\nlines"),
        (r"A='a\n$B'", r"a\n$B"),
        ("A='it # is'", "it # is"),
        ("A=$B ${C}", "$B ${C}"),
        ("A=b'c", "b'c"),
        ("A=-----BEGIN KEY-----", "-----BEGIN KEY-----"),
    ],
)
def test_a_value(line: str, value: str) -> None:
    assert parse_env(line) == {"A": value}
    assert parse_env(f"# before\n\n{line}\nB=c\n") == {"A": value, "B": "c"}
    assert parse_env(f"{line}\r\nB=c\r\n".replace("\n", "\r\n").replace("\r\r", "\r")) == {
        "A": value,
        "B": "c",
    }


def test_the_last_of_two_wins() -> None:
    assert parse_env("A=1\nA=2") == {"A": "2"}


@pytest.mark.parametrize("text", ["", "\n\n", "# c", "   # c\n\t\n"])
def test_nothing_is_nothing(text: str) -> None:
    assert parse_env(text) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A=1\nB", ".env:2: this is not NAME=value; there is no '=' after its first word"),
        ("A=1\n\nexport B", ".env:3: this is not NAME=value; there is no '=' after its first word"),
        ("1A=2", ".env:1: this is not NAME=value; a name has letters, digits and underscores"),
        ("A-B=2", ".env:1: this is not NAME=value; there is no '=' after its first word"),
        ("=2", ".env:1: this is not NAME=value; a name has letters, digits and underscores"),
        ('A=1\nB="open\nC=3', '.env:2: B: the " that begins its value is never closed'),
        ("B='open", ".env:1: B: the ' that begins its value is never closed"),
        ('\nB="x" y', '.env:2: B: only a comment may follow after the closing "'),
        ('A="1\n2"\nB', ".env:3: this is not NAME=value; there is no '=' after its first word"),
        ("A=\0", ".env:1: A holds a NUL character, which no environment variable can"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_never_its_value(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_env(text, name=".env")
    assert str(caught.value) == message


def test_what_is_set_is_never_overridden(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("A=file\nB=file\nEMPTY=file\n")
    environ = {"A": "set", "EMPTY": ""}
    assert load_env_file(file, environ) == ["B"]
    assert environ == {"A": "set", "B": "file", "EMPTY": ""}


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_bytes(b"\xef\xbb\xbfA=1\n")
    environ: dict[str, str] = {}
    load_env_file(file, environ)
    assert environ == {"A": "1"}


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the environment file .*missing: No such file"):
        load_env_file(tmp_path / "missing", {})
    (tmp_path / "binary").write_bytes(b"A=\xff\n")
    with pytest.raises(ConfigError, match=r"cannot read the environment file .*binary: it is not UTF-8 text"):
        load_env_file(tmp_path / "binary", {})


@given(st.text().filter(lambda text: "\0" not in text and "\r" not in text))
def test_any_text_survives_double_quotes(text: str) -> None:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
    assert parse_env(f'A="{escaped}" # end\nB=1') == {"A": text, "B": "1"}
