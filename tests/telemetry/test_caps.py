"""Caps: any value becomes a legal attribute, and what is too long is cut so that it is still what it was."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import deque
from enum import Enum
from typing import Any

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrt.telemetry.caps import DROPPED, attribute_value, cap_attributes, cap_text, json_within, plain

MESSAGES = "gen_ai.input.messages"


class Broken:
    def __repr__(self) -> str:
        raise ValueError("no")


class Treacherous:
    """Not even its class can be asked for."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise RuntimeError("not bound")

    def __repr__(self) -> str:
        raise RuntimeError("not bound")


class Color(Enum):
    RED = "red"


@dataclasses.dataclass
class Order:
    item: str
    count: int
    hidden: str = dataclasses.field(default="not shown", repr=False)


class Place(msgspec.Struct):
    city: str


class Person(pydantic.BaseModel):
    name: str
    password: pydantic.SecretStr = pydantic.Field(default=pydantic.SecretStr("hunter22"))
    quiet: str = pydantic.Field(default="not shown", repr=False)


def depth(levels: int) -> Any:
    value: Any = "the bottom"
    for _ in range(levels):
        value = [value]
    return value


# --- text ----------------------------------------------------------------------------------------------


def test_a_short_text_is_the_same_object() -> None:
    text = "short" * 2
    assert cap_text(text, 10) is text


def test_a_long_text_says_how_much_is_gone() -> None:
    capped = cap_text("x" * 130_000, 10_000)
    assert len(capped.encode()) <= 10_000
    assert capped.endswith("x…[cut: 117 KB]")


def test_a_text_is_cut_between_characters() -> None:
    for limit in range(50, 70):
        kept, mark, _ = cap_text("🦊" * 100, limit).partition("…")
        assert mark
        assert set(kept) == {"🦊"}


@given(st.text(st.characters()), st.integers(0, 200))
def test_a_text_never_exceeds_its_limit(text: str, limit: int) -> None:
    assert len(cap_text(text * 10, limit).encode()) <= limit


def test_lone_surrogates_are_replaced() -> None:
    assert cap_text("a\ud800b", 100) == "a?b"


# --- attributes ----------------------------------------------------------------------------------------


def test_small_attributes_are_the_same_object() -> None:
    attributes = {"a": "text", "b": 1, "c": 1.5, "d": True, "e": ["x", "y"], "f": [1, 2], "é": "é"}
    assert cap_attributes(attributes) is attributes


def test_too_many_attributes_keep_the_first_and_say_how_many_went() -> None:
    capped = cap_attributes({f"k{n}": n for n in range(200)})
    assert capped == {**{f"k{n}": n for n in range(128)}, DROPPED: 72}
    assert cap_attributes(capped) == capped


def test_dropped_ones_add_up() -> None:
    capped = cap_attributes({f"k{n}": n for n in range(10)}, count=5)
    assert cap_attributes({**capped, "more": 1}, count=5)[DROPPED] == 6


def test_json_under_a_known_key_stays_json_and_other_text_is_cut() -> None:
    text = json.dumps([{"role": "user", "content": "long " * 5000}, {"role": "user", "content": "short"}])
    capped = cap_attributes({MESSAGES: text, "note": text}, value_bytes=2000)
    first, second = json.loads(capped[MESSAGES])
    assert first["role"] == "user"
    assert "…[cut: " in first["content"]
    assert second == {"role": "user", "content": "short"}
    assert len(capped[MESSAGES].encode()) <= 2000
    assert capped["note"].startswith(text[:1900])


def test_what_only_looks_like_json_is_cut_as_text() -> None:
    text = "{not json " + "x" * 5000
    assert cap_attributes({MESSAGES: text}, value_bytes=100)[MESSAGES].startswith("{not json xx")


def test_json_too_deep_to_read_is_cut_as_text() -> None:
    text = "[" * 50_000 + "]" * 50_000
    assert cap_attributes({MESSAGES: text}, value_bytes=100)[MESSAGES].startswith("[[[")


def test_a_long_list_of_texts_stays_a_list_and_one_of_numbers_becomes_json() -> None:
    capped = cap_attributes({"texts": ["word"] * 10_000, "numbers": [123456] * 10_000}, value_bytes=1000)
    assert {type(item) for item in capped["texts"]} == {str}
    assert any(item.startswith("…[") for item in capped["texts"])
    assert len(json.dumps(capped["texts"])) <= 1500
    numbers = json.loads(capped["numbers"])
    assert numbers[0] == numbers[-1] == 123456


def test_a_value_that_is_no_attribute_becomes_one() -> None:
    capped = cap_attributes({"a": {"b": 1}, "c": None, "d": (1, 2), "e": 1 << 70})
    assert capped == {"a": '{"b":1}', "c": "None", "d": [1, 2], "e": str(1 << 70)}


def test_a_long_key_is_cut() -> None:
    (key,) = cap_attributes({"k" * 1000: 1})
    assert len(key.encode()) <= 256


def test_keys_that_become_the_same_count_as_dropped() -> None:
    capped = cap_attributes({"k" * 1000 + "a": 1, "k" * 1000 + "b": 2})
    assert capped[DROPPED] == 1
    assert len(capped) == 2


# --- JSON of any value ---------------------------------------------------------------------------------


def test_what_fits_is_plain_json() -> None:
    value = {"a": [1, 2.5, True, None, "é"], "b": {"c": "d"}}
    assert json.loads(json_within(value, 1000)) == value


def test_the_longest_text_is_cut_first() -> None:
    value = {"short": "s" * 300, "long": "l" * 10_000, "longer": "m" * 20_000}
    fitted = json.loads(json_within(value, 4000))
    assert fitted["short"] == value["short"]
    assert "…[cut: " in fitted["long"]
    assert "…[cut: " in fitted["longer"]
    assert len(json_within(value, 4000)) > 3500


def test_a_long_conversation_keeps_its_beginning_and_its_end() -> None:
    messages = [{"role": "user", "content": f"message {n} " + "x" * 200} for n in range(1000)]
    fitted = json.loads(json_within(messages, 8000))
    assert fitted[0] == messages[0]
    assert fitted[-1] == messages[-1]
    (mark,) = [item for item in fitted if "…" in item]
    assert mark == {"…": f"[{1001 - len(fitted)} cut]"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (1 << 64, str(1 << 64)),
        (b"text", "text"),
        (b"\xff\xfe", "//4="),
        ({1: "a", None: "b", (1, 2): "c"}, {"1": "a", "None": "b", "(1, 2)": "c"}),
        ({"x"}, ["x"]),
        (deque([1, 2]), [1, 2]),
        (Color.RED, "red"),
        (Order("tea", 2), {"item": "tea", "count": 2}),
        (Place("Oslo"), {"city": "Oslo"}),
        (Person(name="Ada"), {"name": "Ada", "password": "SecretStr('**********')"}),
        (ValueError("bad"), "ValueError: bad"),
        ("a\ud800", "a?"),
        (Broken(), "<Broken, whose repr raises ValueError>"),
        ([Broken()], ["<Broken, whose repr raises ValueError>"]),
        (Order, f"{Order!r}"),
    ],
)
def test_what_json_has_no_word_for_becomes_text(value: Any, expected: Any) -> None:
    assert json.loads(json_within(value, 1000)) == expected


def test_a_value_inside_itself_ends() -> None:
    value: dict[str, Any] = {"a": 1}
    value["self"] = [value]
    assert json.loads(json_within(value, 1000)) == {"a": 1, "self": ["[inside itself]"]}


def test_the_same_value_twice_is_shown_twice() -> None:
    part = [1]
    assert json.loads(json_within([part, part], 1000)) == [[1], [1]]


def test_deep_nesting_ends() -> None:
    assert "…[deeper]" in json_within(depth(10_000), 1000)


def test_a_mapping_that_changes_while_it_is_read_does_no_harm() -> None:
    class Changing(dict[str, int]):
        def items(self) -> Any:
            raise RuntimeError("dictionary changed size during iteration")

    assert json.loads(json_within(Changing(a=1), 1000)) == "{'a': 1}"


def test_a_huge_list_is_read_only_at_its_ends() -> None:
    tree = plain(range_list := list(range(1_000_000)))
    assert isinstance(tree, list)
    assert len(tree) == 10_001
    assert tree[:2] == range_list[:2]
    assert tree[-1] == range_list[-1]
    assert tree[5000] == "…[990000 cut]"


JSON_LIKE = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=300), st.binary(max_size=80)
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=40),
        st.dictionaries(st.one_of(st.text(max_size=100), st.integers()), inner, max_size=40),
        st.tuples(inner, inner),
    ),
    max_leaves=60,
)


@given(JSON_LIKE, st.integers(64, 3000))
def test_json_within_always_parses_and_fits(value: Any, limit: int) -> None:
    text = json_within(value, limit)
    assert len(text.encode()) <= limit
    json.loads(text)


@given(st.lists(st.text(), min_size=1), st.integers(64, 300))
def test_texts_full_of_escapes_fit(texts: list[str], limit: int) -> None:
    text = json_within([text * 50 + '\x00"\\' * 40 for text in texts], limit)
    assert len(text.encode()) <= limit
    json.loads(text)


# --- legal attributes ----------------------------------------------------------------------------------


def is_legal(value: Any) -> bool:
    if type(value) is list:
        kinds = {type(item) for item in value}
        return len(kinds) <= 1 and all(type(item) is not list and is_legal(item) for item in value)
    if type(value) is str:
        return len(value.encode()) <= 4 * 32_768
    if type(value) is int:
        return -(1 << 63) <= value < 1 << 63
    return type(value) in (bool, float)


@given(JSON_LIKE)
def test_attribute_value_is_always_legal(value: Any) -> None:
    assert is_legal(attribute_value(value))
    assert cap_attributes({"key": attribute_value(value)}) == {"key": attribute_value(value)}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("text", "text"),
        (True, True),
        (3, 3),
        (1.5, 1.5),
        (["a", "b"], ["a", "b"]),
        ((1, 2.5), [1.0, 2.5]),
        ([], []),
        ([1, "a"], '[1,"a"]'),
        ([[1], [2]], "[[1],[2]]"),
        ({"a": 1}, '{"a":1}'),
        (None, "None"),
        (1 << 64, str(1 << 64)),
        (Color.RED, "red"),
        (Broken(), "<Broken, whose repr raises ValueError>"),
    ],
)
def test_each_value_becomes_the_attribute_nearest_to_it(value: Any, expected: Any) -> None:
    found = attribute_value(value)
    assert found == expected
    assert type(found) is type(expected)


def test_an_object_that_fails_at_every_question_becomes_text() -> None:
    assert attribute_value(1 << 50_000) == hex(1 << 50_000)  # its decimal digits are too many for Python
    shown = "<Treacherous, whose repr raises RuntimeError>"
    assert attribute_value(Treacherous()) == shown
    assert json.loads(json_within({"a": Treacherous()}, 1000)) == {"a": shown}


def test_a_huge_value_is_bounded() -> None:
    class Huge:
        def __repr__(self) -> str:
            return "x" * 10_000_000

    for value in (Huge(), "x" * 10_000_000, {"a": "x" * 10_000_000}, ["x" * 1_000_000] * 3, [1] * 1_000_000):
        found = attribute_value(value)
        text = found if isinstance(found, str) else msgspec.json.encode(found)
        assert len(text) <= 4 * 32_768
