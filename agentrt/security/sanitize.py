"""Text from outside is passed on unchanged, or refused.

`sanitize_input(text, type)` names the use: "sql" is a value that will be bound to a statement, "shell" one element of
a program's arguments, "path" a relative path below a root. In these places a quote, a semicolon or `OR 1=1` is text
like any other, so content is not guessed at. Refused is what the place itself cannot hold, or what shows a reader
something else than what is there:

- what is no Unicode text: invalid UTF-8, lone surrogates, noncharacters (Unicode 16, section 23.7);
- NUL, where C ends a string, and the control characters, with which a terminal or a log is written over;
- bidirectional embeddings, overrides and isolates, which show text in another order than it has (CVE-2021-42574,
  "Trojan Source"; Unicode technical report 36, section 2.5). The marks U+200E, U+200F and U+061C order only their
  neighbours and stand in ordinary Hebrew and Arabic text: they pass;
- what hides text in text: tag characters, except in the flags of England, Scotland and Wales, and supplementary
  variation selectors that select no ideograph;
- what is too long for the place.

Nothing is ever normalised, trimmed, escaped or left out.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Literal, TypeAlias

from agentrt import options
from agentrt.errors import ConfigError, ToolError

__all__ = ["UnsafeInput", "Use", "sanitize_input"]

Use: TypeAlias = Literal["sql", "shell", "path"]

# In bytes of UTF-8. Linux: MAX_ARG_STRLEN (32 pages) and PATH_MAX, each without the NUL that ends them.
_LENGTHS: dict[str, int] = {"sql": 1_000_000, "shell": 131_071, "path": 4_095}
_COMPONENT = 255  # NAME_MAX, in bytes

# (rule, what a class of regular expressions holds, why). The first that fits is named.
_RULES: tuple[tuple[str, str, str], ...] = (
    ("nul", r"\x00", "ends a text in C"),
    ("line", r"\n\r\u2028\u2029", "ends a line, and here a text has one line"),
    ("tab", r"\t", "cannot be told from spaces in a name"),
    ("control", r"\x01-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufff9-\ufffb", "is a control character"),
    ("bidi", r"\u202a-\u202e\u2066-\u2069\u206a-\u206f", "shows text in another order than it has"),
    ("surrogate", r"\ud800-\udfff", "is half of a character and no text"),
    (
        "noncharacter",
        r"\ufdd0-\ufdef" + "".join(f"\\U{plane:04x}fffe\\U{plane:04x}ffff" for plane in range(17)),
        "is no character and never will be",
    ),
    ("invisible", r"\U000e0000-\U000e0fff", "is invisible and hides text"),
)
_WHY = {rule: why for rule, _, why in _RULES}
_CLASSES = {rule: re.compile(f"[{characters}]") for rule, characters, _ in _RULES}

# Most of what no rule refuses, in few ranges: a text of nothing else is done in one quick pass.
_FINE = r"\x20-\x7e\xa0-\u2027\u202f-\u2065\u2070-\ud7ff\ue000-\ufdcf\ufdf0-\ufff8\U00010000-\U0001fffd"

_TAGGED_FLAG = "\U0001f3f4\U000e0067\U000e0062(?:{})\U000e007f".format(
    "|".join("".join(chr(0xE0000 + ord(letter)) for letter in country) for country in ("eng", "sct", "wls"))
)
# Unicode technical standard 37: an ideograph and one selector make a variant that names are written with.
_IDEOGRAPHIC_VARIANT = "[\u3005-\u3007\u3400-\u9fff\uf900-\ufaff\U00020000-\U000323af][\U000e0100-\U000e01ef]"


class _Refused:
    """The characters that are refused for some use."""

    def __init__(self, *passing: str) -> None:
        """`passing`: rules that are none for this use."""
        characters = "".join(characters for rule, characters, _ in _RULES if rule not in passing)
        fine = "".join(characters for rule, characters, _ in _RULES if rule in passing)
        self.perhaps = re.compile(f"[^{_FINE}{fine}]")
        # What passes although it holds such characters comes first, what is refused is the group.
        self.exactly = re.compile(f"{_TAGGED_FLAG}|{_IDEOGRAPHIC_VARIANT}|([{characters}])")


_ONE_LINE = _Refused("tab")  # shell
_LINES = _Refused("tab", "line")  # sql, and shell if told so
_NAME = _Refused()  # path


class UnsafeInput(ToolError, ValueError):
    """A text is not fit for its use; nothing was done with it.

    `rule` names what it broke ("nul", "bidi", "leading_dash", "parent" ...), `offset` is the index of the offending
    character (in bytes given as such: of the byte), or None if no single place is to blame. The message never holds
    the text itself. It is a `ToolError`, so that a model whose tool refuses an argument learns why and may do better.
    """

    def __init__(self, message: str, *, rule: str, offset: int | None = None) -> None:
        super().__init__(message)
        self.rule = rule
        self.offset = offset


def sanitize_input(
    text: str | bytes,
    type: Use,
    *,
    max_length: int | None = None,
    allow_leading_dash: bool = False,
    allow_lines: bool = False,
) -> str:
    """`text`, the same object, if it is fit for the use that `type` names; else `UnsafeInput`.

    `text`: bytes must be UTF-8 and come back decoded.
    `type`: "sql", a value that will be *bound* (never part of the statement); "shell", one element of a list of
    arguments (never part of a command line: see `shell_quote`); "path", a relative path below a root, with "/".
    `max_length`: bytes of UTF-8; by default 1,000,000 for "sql", 131,071 for "shell", 4,095 for "path".
    `allow_leading_dash` (only "shell"): a "-" may come first, as in an option.
    `allow_lines` (only "shell"): line breaks are allowed, as in a commit message. A value for SQL has them anyway,
    because they are content there; a path never, because lists of paths have one a line.

    Raises `UnsafeInput` (a `ToolError` and a `ValueError`) with rule and offset, `ConfigError` for a wrong option.
    """
    if type not in _LENGTHS:
        options.choice("type", type, tuple(_LENGTHS))
    if (allow_leading_dash or allow_lines) and type != "shell":
        name = "allow_leading_dash" if allow_leading_dash else "allow_lines"
        raise ConfigError(f"{name} is for the type 'shell', not for {type!r}")
    limit = _LENGTHS[type] if max_length is None else options.count("max_length", max_length)
    if isinstance(text, bytes):
        checked = _decoded(text, type)
    elif isinstance(text, str):
        checked = text
    else:
        raise UnsafeInput(f"{_what(type)} must be text, not {_type_name(text)}", rule="type")
    _check_length(checked, type, limit)
    _check_characters(
        checked,
        _NAME if type == "path" else _LINES if type == "sql" or allow_lines else _ONE_LINE,
        _what(type),
    )
    if type == "shell" and not allow_leading_dash and checked.startswith("-"):
        raise UnsafeInput(
            f"{_what(type)} begins with '-', so the program would take it for an option; put './' before a file's "
            "name, or allow it with allow_leading_dash=True where it cannot be one",
            rule="leading_dash",
            offset=0,
        )
    if type == "path":
        _check_path(checked)
    return checked


def _check_characters(text: str, refused: _Refused, what: str) -> None:
    if refused.perhaps.search(text) is None:
        return
    for found in refused.exactly.finditer(text):
        character = found.group(1)
        if character is None:
            continue
        rule = next(rule for rule, characters in _CLASSES.items() if characters.match(character))
        raise UnsafeInput(
            f"{what} has {_name(character)} at character {found.start()}, which {_WHY[rule]}; leave it out",
            rule=rule,
            offset=found.start(),
        )


def check_line(text: str, what: str) -> None:
    """Raises `UnsafeInput` for a character that a name of one line cannot have, a tab among them."""
    _check_characters(text, _NAME, what)


def check_lines(text: str, what: str) -> None:
    """Raises `UnsafeInput` for a character that is refused even where lines and tabs are not."""
    _check_characters(text, _LINES, what)


def _check_length(text: str, type: Use, limit: int) -> None:
    # A character has at most 4 bytes: only a long text is encoded to be measured.
    if len(text) * 4 <= limit:
        return
    if len(text) > limit or len(text.encode("utf-8", "surrogatepass")) > limit:
        raise UnsafeInput(f"{_what(type)} may have at most {limit} bytes in UTF-8; shorten it", rule="length")


def _check_path(path: str) -> None:
    what = _what("path")
    if not path:
        raise UnsafeInput(f"{what} is empty; give the name of a file below the root", rule="empty", offset=0)
    if path[0] == "/":
        raise UnsafeInput(f"{what} is absolute; leave out the leading '/'", rule="absolute", offset=0)
    if (backslash := path.find("\\")) >= 0:
        raise UnsafeInput(
            f"{what} has a backslash at character {backslash}, which separates names on some systems; use '/'",
            rule="backslash",
            offset=backslash,
        )
    if path[1:2] == ":" and path[0].isascii() and path[0].isalpha():
        raise UnsafeInput(
            f"{what} begins with a drive letter; give a path below the root", rule="drive", offset=0
        )
    offset = 0
    for component in path.split("/"):
        if not component:
            raise UnsafeInput(
                f"{what} has an empty name at character {offset}; write one '/' between names and none at the end",
                rule="empty_name",
                offset=offset,
            )
        if component == "..":
            raise UnsafeInput(
                f"{what} has '..' at character {offset}; it could lead out of the root: name the directory itself",
                rule="parent",
                offset=offset,
            )
        if len(component) * 4 > _COMPONENT and len(component.encode()) > _COMPONENT:
            raise UnsafeInput(
                f"{what} has a name of more than {_COMPONENT} bytes at character {offset}; shorten it",
                rule="length",
                offset=offset,
            )
        offset += len(component) + 1


def _decoded(text: bytes, type: Use) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        offset = error.start
    # Not `from` the decoder's error: that one holds all of the text.
    raise UnsafeInput(
        f"{_what(type)} is not UTF-8 at byte {offset}; decode it from its own encoding first",
        rule="utf8",
        offset=offset,
    )


def _what(type: Use) -> str:
    return {"sql": "the value for SQL", "shell": "the argument", "path": "the path"}[type]


def _name(character: str) -> str:
    code = f"U+{ord(character):04X}"
    name = unicodedata.name(character, "")
    return f"{code} {name}" if name else code


def _type_name(value: object) -> str:
    return type(value).__name__
