"""Lines of keys in TOML: by example, and against tomllib on documents made at random."""

from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agentrt.config.toml_lines import key_lines

DOCUMENT = '''\
# a comment with = and [brackets]
top = 1
"quoted key" = "a # no comment"
dotted.inner.key = [ # a comment in an array
  "x", "]", { a = 1, b = [2] },
]

[run] # a comment
timeout = 3.5
text = """
not_a_key = 1
[nor.a.table] \\"""
still text"""" # four quotes: one is content
literal = \'\'\'
[x]\'\'\'

[ models . "my host" ]
headers = { Accept = "a,b}", "x y".z = \'}\' }
empty = {}
[[list]]
a = 1
[[list]]
a = 2
[list.sub]
b = 3
[last]
end = "e"'''


def test_every_key_and_header_has_its_line() -> None:
    tomllib.loads(DOCUMENT)
    assert key_lines(DOCUMENT) == {
        ("top",): 2,
        ("quoted key",): 3,
        ("dotted",): 4,
        ("dotted", "inner"): 4,
        ("dotted", "inner", "key"): 4,
        ("run",): 8,
        ("run", "timeout"): 9,
        ("run", "text"): 10,
        ("run", "literal"): 14,
        ("models",): 17,
        ("models", "my host"): 17,
        ("models", "my host", "headers"): 18,
        ("models", "my host", "headers", "Accept"): 18,
        ("models", "my host", "headers", "x y"): 18,
        ("models", "my host", "headers", "x y", "z"): 18,
        ("models", "my host", "empty"): 19,
        ("list",): 20,
        ("list", "a"): 21,
        ("list", "sub"): 24,
        ("list", "sub", "b"): 25,
        ("last",): 26,
        ("last", "end"): 27,
    }


def test_an_empty_document_has_none() -> None:
    assert key_lines("") == {}
    assert key_lines("\n# nothing\n") == {}


def test_windows_line_ends_count_once() -> None:
    assert key_lines("a = 1\r\n[b]\r\nc = 2\r\n")[("b", "c")] == 3


bare = st.text("abcXYZ019_-", min_size=1, max_size=6)
keys = st.one_of(bare, st.text(st.sampled_from("a .#[]='\"\\"), min_size=1, max_size=4))
strings = st.text(st.sampled_from("ab#[]{}=,.'\"\\\n "), max_size=12)
scalars = st.one_of(st.integers(-9, 9), st.booleans(), st.floats(allow_nan=False, width=16), strings)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)),
    max_leaves=6,
)
tables = st.dictionaries(keys, st.dictionaries(keys, values, max_size=4), max_size=4)


def basic(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def multi_line(text: str) -> str:
    return '"""\n' + text.replace("\\", "\\\\").replace('"', '\\"') + '"""'


def key(text: str) -> str:
    return text if text and all(c.isalnum() or c in "_-" for c in text) else basic(text)


def toml(value: Any, *, inline: bool = False) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return basic(value) if inline else multi_line(value)
    if isinstance(value, list):
        return "[" + "".join(f"\n  {toml(item, inline=True)}, # ]" for item in value) + "\n]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key(k)} = {toml(v, inline=True)}" for k, v in value.items()) + "}"
    return str(value)


def paths(table: dict[str, Any], above: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    found = set()
    for name, value in table.items():
        found.add((*above, name))
        if isinstance(value, dict):
            found |= paths(value, (*above, name))
    return found


@given(tables)
def test_any_document_has_a_line_for_each_of_its_keys(document: dict[str, dict[str, Any]]) -> None:
    text = ""
    for name, table in document.items():
        text += f"[{key(name)}] # {name!r}\n"
        text += "".join(f"{key(k)} = {toml(v)}\n\n" for k, v in table.items())
    parsed = tomllib.loads(text)
    lines = key_lines(text)
    assert set(lines) == paths(parsed)
    for path, line in lines.items():
        if len(path) <= 2:
            assert text.split("\n")[line - 1].lstrip("[").startswith(key(path[-1]))
