"""`sanitize_input`: text passes unchanged or is refused with the rule that it broke."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agentrt.errors import AgentrtError, ConfigError, ToolError
from agentrt.security.sanitize import UnsafeInput, Use, sanitize_input
from security.payloads import HARMLESS, NAUGHTY

USES: tuple[Use, ...] = ("sql", "shell", "path")


def refusal(text: str | bytes, type: Use, **options: bool) -> UnsafeInput:
    with pytest.raises(UnsafeInput) as caught:
        sanitize_input(text, type, **options)
    return caught.value


# ------------------------------------------------------------------------------------------------- what passes
def test_there_are_enough_harmless_texts() -> None:
    assert len(set(HARMLESS)) >= 150


@pytest.mark.parametrize("type", USES)
def test_harmless_text_passes_as_the_same_object(type: Use) -> None:
    for text in HARMLESS:
        assert sanitize_input(text, type) is text


def test_a_value_for_sql_has_lines_and_tabs_and_begins_with_anything() -> None:
    for text in ("two\nlines\r\n\tindented", "", "-1", "--", "/etc/passwd", "..", "a\u2028b"):
        assert sanitize_input(text, "sql") is text


def test_an_argument_has_a_tab_and_may_be_empty() -> None:
    for text in ("a\tb", "", "/etc/passwd", "../x", "a-", "+x", "@file"):
        assert sanitize_input(text, "shell") is text


def test_an_argument_may_be_allowed_lines_and_a_dash() -> None:
    message = "Subject\n\nBody"
    assert sanitize_input(message, "shell", allow_lines=True) is message
    assert sanitize_input("-1", "shell", allow_leading_dash=True) == "-1"


@pytest.mark.parametrize(
    "path", ["a", "a/b.txt", ".", "./a", "a/.", "-rf", ".env", "...", "ab:c:d", "1:30.log", "~", " "]
)
def test_relative_paths_pass(path: str) -> None:
    assert sanitize_input(path, "path") is path


def test_nothing_is_normalised() -> None:
    for text in ("cafe\u0301", "caf\u00e9", "\ufb01", "\u212b"):
        for type in USES:
            assert sanitize_input(text, type) is text


def test_bytes_come_back_decoded() -> None:
    assert sanitize_input("Grüße".encode(), "sql") == "Grüße"


def test_flags_of_tag_characters_and_variants_of_ideographs_pass() -> None:
    flags = [text for text in HARMLESS if "\U0001f3f4" in text]
    assert len(flags) == 2
    assert sanitize_input("\u8fbb\U000e0101\u8fbb\U000e0100", "path")


# ------------------------------------------------------------------------------------------- what is refused
@pytest.mark.parametrize("type", USES)
@pytest.mark.parametrize(
    ("rule", "text"), [(rule, text) for rule, texts in NAUGHTY.items() for text in texts]
)
def test_characters_that_deceive_are_refused_everywhere(rule: str, text: str, type: Use) -> None:
    error = refusal(text, type)
    assert error.rule == rule
    assert error.offset is not None
    assert f"U+{ord(text[error.offset]):04X}" in str(error)


@pytest.mark.parametrize("line", ["\n", "\r", "\u2028", "\u2029"])
def test_line_breaks_are_refused_in_arguments_and_paths(line: str) -> None:
    for type in USES[1:]:
        error = refusal(f"ab{line}c", type)
        assert (error.rule, error.offset) == ("line", 2)


@pytest.mark.parametrize(
    ("path", "rule", "offset"),
    [
        ("", "empty", 0),
        ("/etc/passwd", "absolute", 0),
        ("//host/share", "absolute", 0),
        ("..", "parent", 0),
        ("../a", "parent", 0),
        ("a/..", "parent", 2),
        ("a/../../b", "parent", 2),
        ("./..", "parent", 2),
        ("a//b", "empty_name", 2),
        ("a/", "empty_name", 2),
        ("C:", "drive", 0),
        ("c:/x", "drive", 0),
        ("a\\..\\b", "backslash", 1),
        ("\\\\host\\share", "backslash", 0),
        ("a\tb", "tab", 1),
        ("a/" + "b" * 256, "length", 2),
        ("a/" + "ä" * 128, "length", 2),
        ("a/" * 2047 + "ab", "length", None),
    ],
)
def test_paths_that_are_not_below_a_root_are_refused(path: str, rule: str, offset: int | None) -> None:
    error = refusal(path, "path")
    assert (error.rule, error.offset) == (rule, offset)


def test_the_longest_path_passes() -> None:
    path = "/".join(["b" * 255] * 15 + ["c" * 255])
    assert len(path) == 4095
    assert sanitize_input(path, "path") is path


def test_an_argument_that_begins_with_a_dash_is_refused() -> None:
    for text in ("-", "-rf", "--output=/etc/passwd"):
        error = refusal(text, "shell")
        assert (error.rule, error.offset) == ("leading_dash", 0)


@pytest.mark.parametrize(("type", "limit"), [("sql", 1_000_000), ("shell", 131_071)])
def test_length_is_measured_in_bytes(type: Use, limit: int) -> None:
    assert sanitize_input("x" * limit, type)
    assert refusal("x" * (limit + 1), type).rule == "length"
    assert refusal("ä" * (limit // 2 + 1), type).rule == "length"
    with pytest.raises(UnsafeInput, match="at most 4 bytes"):
        sanitize_input("äää", type, max_length=4)
    assert sanitize_input("ää", type, max_length=4)


@pytest.mark.parametrize(
    "text", [b"\xff", b"ab\xc0\xae", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"ab\xe2\x82"]
)
def test_bytes_that_are_no_utf_8_are_refused(text: bytes) -> None:
    error = refusal(text, "path")
    assert error.rule == "utf8"
    assert error.offset == (2 if text.startswith(b"ab") else 0)
    assert error.__context__ is None  # the decoder's error holds the text


def test_what_is_no_text_is_refused() -> None:
    for value in (None, 7, ["a"], bytearray(b"a")):
        assert refusal(value, "sql").rule == "type"  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------- errors and options
def test_the_error_says_rule_place_and_character_and_not_the_text() -> None:
    error = refusal("my secret text\u202eis long", "sql")
    assert isinstance(error, ToolError)
    assert isinstance(error, AgentrtError)
    assert isinstance(error, ValueError)
    assert str(error) == (
        "the value for SQL has U+202E RIGHT-TO-LEFT OVERRIDE at character 14, which shows text in another order than "
        "it has; leave it out"
    )


@pytest.mark.parametrize(
    ("type", "options"),
    [
        ("html", {}),
        ("SQL", {}),
        ("sql", {"max_length": 0}),
        ("sql", {"allow_leading_dash": True}),
        ("path", {"allow_lines": True}),
    ],
)
def test_wrong_options_are_mistakes_of_usage(type: Use, options: dict[str, bool]) -> None:
    with pytest.raises(ConfigError):
        sanitize_input("x", type, **options)


# --------------------------------------------------------------------------------------------------- property
_BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
_TAGGED = [
    "\U0001f3f4" + "".join(chr(0xE0000 + ord(c)) for c in f"gb{n}") + "\U000e007f"
    for n in ("eng", "sct", "wls")
]


def is_refused(character: str, type: Use) -> bool:
    """The rules once more, from the properties in Python's database of Unicode."""
    code = ord(character)
    if character == "\t":
        return type == "path"
    if character in "\n\r\u2028\u2029":
        return type != "sql"
    return (
        unicodedata.category(character) in ("Cc", "Cs")
        or unicodedata.bidirectional(character) in _BIDI
        or 0x206A <= code <= 0x206F
        or 0xFFF9 <= code <= 0xFFFB
        or 0xFDD0 <= code <= 0xFDEF
        or code & 0xFFFE == 0xFFFE
        or 0xE0000 <= code <= 0xE0FFF
    )


def is_ideograph(character: str) -> bool:
    code = ord(character)
    ranges = ((0x3005, 0x3007), (0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF))
    return any(first <= code <= last for first, last in ranges)


def breaks_a_rule(text: str, type: Use) -> bool:
    for flag in _TAGGED:
        text = text.replace(flag, "\u2691")  # no letter: that and a colon would be a drive
    for place in range(len(text) - 1, 0, -1):
        if 0xE0100 <= ord(text[place]) < 0xE01F0 and is_ideograph(text[place - 1]):
            text = text[:place] + text[place + 1 :]
    if any(is_refused(character, type) for character in text):
        return True
    if type == "shell":
        return text.startswith("-")
    if type == "path":
        names = text.split("/")
        drive = len(text) > 1 and text[1] == ":" and text[0].upper() in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
        return "" in names or ".." in names or "\\" in text or drive
    return False


pieces = st.one_of(
    st.characters(),
    st.sampled_from(
        list("'\";|&$`\\/.-:*? \t\r\n\x00\x1b\x7f\x85\u2028\u202e\u2066\u200d\u200f\ufeff\u8fbbC")
    ),
    st.sampled_from(["..", "../", "a/", "\U000e0101", "\u8fbb\U000e0101", "\ufffe", "\ud800", *_TAGGED]),
)
texts = st.lists(pieces, max_size=12).map("".join)


@given(texts, st.sampled_from(USES))
@settings(max_examples=600)
@example("\u8fbb\U000e0101\U000e0101", "sql")
@example("a/./..b/..", "path")
@example(f"{_TAGGED[0]}:", "path")
def test_a_text_passes_unchanged_exactly_if_it_breaks_no_rule(text: str, type: Use) -> None:
    refused: str | None
    try:
        assert sanitize_input(text, type) is text
    except UnsafeInput as error:
        refused = str(error)
    else:
        refused = None
    assert (refused is not None) == breaks_a_rule(text, type)
    assert refused is None or len(refused) < 300


# The first two planes, the one with the tags, and where the others begin and end.
CODES = [
    *range(0x20000),
    *range(0xE0000, 0xE1010),
    *(
        plane + place
        for plane in range(0, 0x110000, 0x10000)
        for place in (0, 1, 0xFFF0, 0xFFFD, 0xFFFE, 0xFFFF)
    ),
]


@pytest.mark.parametrize("type", USES)
def test_every_character_by_itself_is_judged_by_its_properties(type: Use) -> None:
    wrong = []
    for code in CODES:
        character = chr(code)
        try:
            sanitize_input(f"a{character}", type)
        except UnsafeInput:
            refused = True
        else:
            refused = False
        # "a:" is a drive, "a/" ends in an empty name.
        if refused != (is_refused(character, type) or (type == "path" and character in ":/\\")):
            wrong.append(hex(code))
    assert wrong == []
