"""Options of classes: what a signature says, and what is said about a table that does not fit it."""

from __future__ import annotations

import datetime
import enum
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NewType, Protocol, TypedDict

import msgspec
import pytest

from agentrt.config.sections import LogSection
from agentrt.decode import (
    Text,
    Where,
    build,
    decode,
    dotted,
    holds_secret,
    options_of,
    parse_text,
    shown,
)
from agentrt.errors import ConfigError, PluginError

HERE = Where(("models", "acme"), lambda path: f"agentrt.toml:{len(path)}")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Point(msgspec.Struct):
    x: int
    y: int = 0


class Headers(TypedDict, total=False):
    accept: str


@dataclass
class Size:
    width: int


@dataclass(kw_only=True)
class Named:
    name: str
    tags: list[str] = field(default_factory=list)


class Budget:
    def __init__(self, *, ratio: float = 0.2, minimum: int = 10) -> None:
        if ratio < 0:
            raise ConfigError(f"ratio must be at least 0, not {ratio!r}")
        self.ratio = ratio
        self.minimum = minimum


class Reference:
    def __init__(self, text: str) -> None:
        self.text = text

    @classmethod
    def parse(cls, text: str) -> Reference:
        if not text.startswith("ref:"):
            raise ValueError("it does not begin with ref:")
        return cls(text)


class Ticker(Protocol):
    def time(self) -> float: ...


UserId = NewType("UserId", int)


class Wide:
    """One option of every kind that a signature can have."""

    def __init__(
        self,
        *names: str,
        text: str = "",
        number: float = 0.0,
        count: int = 0,
        flag: bool = False,
        maybe: float | None = None,
        either: float | Callable[[int], float] = 1.0,
        word: Literal["a", "b"] = "a",
        colour: Colour = Colour.RED,
        items: Sequence[str] = (),
        table: Mapping[str, int] | None = None,
        point: Point | None = None,
        points: list[Point] | None = None,
        headers: Headers | None = None,
        size: Size | None = None,
        day: datetime.date | None = None,
        path: Path = Path(),
        reference: Reference | None = None,
        budget: Budget | Any | None = ...,
        user: UserId = UserId(0),
        bounded: Annotated[int, msgspec.Meta(ge=1, le=9)] = 1,
        anything: Any = None,
        untyped=None,  # type: ignore[no-untyped-def]
        clock: Ticker | None = None,
        on_error: Callable[[Exception], None] | None = None,
        kind: type[Exception] | None = None,
        logger: logging.Logger | None = None,
    ) -> None:
        self.given = {name: value for name, value in locals().items() if name != "self"}


def made(**table: Any) -> dict[str, Any]:
    return build(Wide, table, where=HERE).given


def refused(cls: type = Wide, **table: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        build(cls, table, where=HERE)
    return str(caught.value)


def test_what_only_code_can_give_is_no_option() -> None:
    assert not {"clock", "on_error", "kind", "logger"} & set(options_of(Wide))
    assert "untyped" in options_of(Wide)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("text", "x", "x"),
        ("number", 3, 3.0),
        ("count", 3, 3),
        ("flag", True, True),
        ("flag", False, False),
        ("maybe", False, None),
        ("maybe", 0, 0.0),
        ("either", 2, 2.0),
        ("word", "b", "b"),
        ("colour", "blue", Colour.BLUE),
        ("items", ["a"], ["a"]),
        ("table", {"a": 1}, {"a": 1}),
        ("point", {"x": 1}, Point(1)),
        ("points", [{"x": 1}], [Point(1)]),
        ("headers", {"accept": "*"}, {"accept": "*"}),
        ("size", {"width": 3}, Size(3)),
        ("day", datetime.date(2026, 1, 2), datetime.date(2026, 1, 2)),
        ("path", "a/b", Path("a/b")),
        ("user", 7, 7),
        ("bounded", 9, 9),
        ("anything", [1, "a"], [1, "a"]),
        ("anything", False, False),
        ("untyped", 3, 3),
        ("names", ["a", "b"], ("a", "b")),
    ],
)
def test_a_value_becomes_what_the_annotation_says(name: str, value: Any, expected: Any) -> None:
    given = made(**{name: value})[name]
    assert given == expected
    assert type(given) is type(expected)


def test_a_class_with_parse_is_made_from_text() -> None:
    assert made(reference="ref:1")["reference"].text == "ref:1"
    assert refused(reference="x") == "agentrt.toml:3: models.acme.reference: it does not begin with ref:"


def test_a_class_of_the_same_package_has_a_table_of_its_own() -> None:
    budget = made(budget={"ratio": 1})["budget"]
    assert (budget.ratio, budget.minimum) == (1.0, 10)
    assert made(budget=False)["budget"] is None
    assert refused(budget={"rato": 1}) == (
        "agentrt.toml:4: [models.acme.budget] has no 'rato'; did you mean 'ratio'? There are: minimum, ratio"
    )
    assert refused(budget={"ratio": -1}) == (
        "agentrt.toml:4: [models.acme.budget] ratio must be at least 0, not -1.0"
    )
    assert refused(budget=3) == "agentrt.toml:3: models.acme.budget must be a table or false (off), not 3"


def test_an_option_that_is_left_out_keeps_the_default_of_the_signature() -> None:
    given = made()
    assert given["number"] == 0.0
    assert given["budget"] is ...
    assert given["names"] == ()


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("text", 3, "text"),
        ("number", "x", "a number"),
        ("number", True, "a number"),
        ("count", 1.5, "a whole number"),
        ("flag", "x", "true or false"),
        ("maybe", True, "a number or false (off)"),
        ("word", "c", "one of 'a', 'b'"),
        ("colour", "green", "one of 'red', 'blue'"),
        ("items", "a", "a list of texts"),
        ("table", [1], "a table of whole numbers or false (off)"),
        ("point", 3, "a table or false (off)"),
        ("day", "x", "a date or false (off)"),
        ("path", 3, "a path"),
        ("names", "a", "a list of texts"),
    ],
)
def test_a_wrong_type_is_named_with_what_is_allowed(name: str, value: Any, allowed: str) -> None:
    given = str(value).lower() if isinstance(value, bool) else repr(value)
    if name == "day":
        assert f"models.acme.{name}" in refused(**{name: value})
    else:
        assert (
            refused(**{name: value}) == f"agentrt.toml:3: models.acme.{name} must be {allowed}, not {given}"
        )


def test_a_value_inside_a_list_or_beyond_a_bound_is_named() -> None:
    assert refused(items=["a", 3]) == (
        "agentrt.toml:3: models.acme.items[1]: expected str, got int, not ['a', 3]"
    )
    assert refused(bounded=10) == "agentrt.toml:3: models.acme.bounded: expected int <= 9, not 10"
    assert refused(points=[{"x": "a"}]).startswith(
        "agentrt.toml:3: models.acme.points[0].x: expected int, got str"
    )


def test_an_unknown_key_in_a_table_of_a_list_gets_a_suggestion_and_the_list() -> None:
    outputs = [{"to": "a.log"}, {"to": "b.log", "levle": "info"}]
    assert refused(cls=LogSection, outputs=outputs) == (
        "agentrt.toml:3: models.acme.outputs[1] has no 'levle'; did you mean 'level'? "
        "There are: format, keep, level, rotation, to"
    )


def test_an_unknown_key_gets_a_suggestion_and_the_list() -> None:
    assert refused(cls=Budget, minimun=1) == (
        "agentrt.toml:3: [models.acme] has no 'minimun'; did you mean 'minimum'? There are: minimum, ratio"
    )
    assert (
        refused(cls=Budget, zzz=1) == "agentrt.toml:3: [models.acme] has no 'zzz'; there are: minimum, ratio"
    )
    assert refused(cls=Budget, MINIMUM=1).endswith("did you mean 'minimum'? There are: minimum, ratio")


def test_a_class_without_options_says_so() -> None:
    class Nothing:
        pass

    assert build(Nothing, {}, where=HERE)
    assert refused(cls=Nothing, a=1) == "agentrt.toml:3: [models.acme] has no 'a'; there are: none"


def test_a_required_option_that_is_missing_is_named() -> None:
    class Needs:
        def __init__(self, *, limit: int, queue: int = 0) -> None: ...

    assert refused(cls=Needs, queue=1) == (
        "agentrt.toml:2: [models.acme] needs the option 'limit': a whole number"
    )


def test_what_the_constructor_refuses_is_placed_at_its_option() -> None:
    class Picky:
        def __init__(self, *, low: int = 0, high: int = 1, api_key: str = "") -> None:
            if low < 0:
                raise ValueError("low must be at least 0")
            if low > high:
                raise ConfigError("nothing lies between low and high")
            if api_key:
                raise ConfigError(f"api_key is too short: {api_key!r}")

    assert refused(cls=Picky, low=-1) == "agentrt.toml:3: [models.acme] low must be at least 0"
    assert refused(cls=Picky, low=2) == "agentrt.toml:2: [models.acme] nothing lies between low and high"
    assert refused(cls=Picky, api_key="hunter2") == "agentrt.toml:3: [models.acme] api_key is not accepted"


def test_any_other_error_of_the_constructor_is_left_alone() -> None:
    class Broken:
        def __init__(self, *, a: int = 0) -> None:
            raise OSError("no disk")

    with pytest.raises(OSError, match="no disk"):
        build(Broken, {}, where=HERE)


def test_a_struct_is_made_from_its_fields() -> None:
    assert build(Point, {"x": 1}, where=HERE) == Point(1, 0)
    assert refused(cls=Point, x="a") == "agentrt.toml:3: models.acme.x must be a whole number, not 'a'"


def test_a_dataclass_with_keywords_is_made_from_its_fields() -> None:
    assert build(Named, {"name": "x"}, where=HERE) == Named(name="x")
    assert refused(cls=Named) == "agentrt.toml:2: [models.acme] needs the option 'name': text"


def test_defaults_from_code_stand_behind_the_table() -> None:
    assert build(Point, {"x": 1}, where=HERE, defaults={"x": 5, "y": 6}) == Point(1, 6)


def test_values_given_in_code_are_placed_there() -> None:
    with pytest.raises(ConfigError, match=r"^in code: x must be a whole number, not 'a'$"):
        decode(Point, {"x": "a"}, where=Where())


def test_a_constructor_that_is_not_keyword_only_is_the_plugins_fault() -> None:
    class Positional:
        def __init__(self, name: str) -> None: ...

    with pytest.raises(PluginError, match="'name' is not keyword-only"):
        options_of(Positional)


def test_annotations_that_cannot_be_resolved_are_the_plugins_fault() -> None:
    class Unresolved:
        def __init__(self, *, a: Missing = None) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(PluginError, match=r"Unresolved's constructor cannot be understood: NameError"):
        options_of(Unresolved)


def test_a_type_that_cannot_be_read_is_the_plugins_fault() -> None:
    class Ambiguous:
        def __init__(self, *, a: list[int] | tuple[int, int] = ()) -> None: ...  # type: ignore[assignment]

    with pytest.raises(PluginError, match="the type of the option 'a' cannot be read from a file: "):
        build(Ambiguous, {"a": [1]}, where=HERE)


def test_any_annotation_has_words() -> None:
    class Odd:
        def __init__(
            self,
            *,
            day: datetime.date | None = None,
            rows: list[list[int]] | None = None,
            nothing: None = None,
            any_list: list[Any] | None = None,
            bare: dict | None = None,  # type: ignore[type-arg]
            loose: object = 1,
        ) -> None: ...

    assert {name: option.allowed for name, option in options_of(Odd).items()} == {
        "day": "a date or false (off)",
        "rows": "a list of values or false (off)",
        "any_list": "a list of values or false (off)",
        "bare": "a table or false (off)",
        "loose": "any value",
    }


def test_a_required_parameter_that_no_file_can_hold_is_named() -> None:
    class NeedsCode:
        def __init__(self, *, function: Callable[[], None]) -> None: ...

    assert refused(cls=NeedsCode) == (
        "agentrt.toml:2: [models.acme] needs the option 'function': something that can only be given in code"
    )


# --- text: the environment and the command line ----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("number", "3", 3.0),
        ("number", "1_000", 1000.0),
        ("count", " 7 ", 7),
        ("text", "3", "3"),
        ("text", "true", "true"),
        ("text", '"quoted"', "quoted"),
        ("text", "{not json", "{not json"),
        ("text", "", ""),
        ("flag", "true", True),
        ("flag", "TRUE", True),
        ("flag", "1", True),
        ("flag", "0", False),
        ("maybe", "false", None),
        ("maybe", "null", None),
        ("items", '["a", "b"]', ["a", "b"]),
        ("items", "['a']", ["a"]),
        ("table", "{a = 1}", {"a": 1}),
        ("table", '{"a": 1}', {"a": 1}),
        ("word", "b", "b"),
        ("anything", "3", 3),
        ("anything", "three", "three"),
        ("reference", "ref:9", None),
    ],
)
def test_text_means_what_its_option_wants(name: str, text: str, expected: Any) -> None:
    given = made(**{name: Text(text)})[name]
    if name == "reference":
        assert given.text == "ref:9"
    else:
        assert given == expected
        assert type(given) is type(expected)


def test_text_inside_a_table_means_what_the_table_holds() -> None:
    assert made(table={"a": Text("1")})["table"] == {"a": 1}
    assert made(headers={"accept": Text("1")})["headers"] == {"accept": "1"}
    assert made(budget={"ratio": Text("1")})["budget"].ratio == 1.0


def test_text_that_does_not_fit_is_refused_as_what_it_is() -> None:
    assert refused(number=Text("soon")) == "agentrt.toml:3: models.acme.number must be a number, not 'soon'"
    assert refused(count=Text("1.5")) == "agentrt.toml:3: models.acme.count must be a whole number, not 1.5"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("30", 30),
        ("-1.5e3", -1500.0),
        ("0x10", 16),
        ("2026-01-02", datetime.date(2026, 1, 2)),
        ("3d", "3d"),
        ("'a'", "a"),
        ("[1, 2,]", [1, 2]),
        ("1\nb = 2", "1\nb = 2"),
        ("inf", "inf"),
        ("openai:gpt-5", "openai:gpt-5"),
        ("[" * 10_000, "[" * 10_000),
    ],
)
def test_text_is_json_or_a_toml_value_or_itself(text: str, value: Any) -> None:
    assert parse_text(text) == value


# --- words -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "api_key",
        "API-KEY",
        "token",
        "auth_token",
        "password",
        "db_password",
        "secret",
        "x-api-key",
        "Authorization",
    ],
)
def test_names_of_secrets_are_known(name: str) -> None:
    assert holds_secret(name)


@pytest.mark.parametrize(
    "name", ["max_tokens", "tokens", "key", "keys", "secrets", "token_file", "username", "tokenizer"]
)
def test_names_that_only_look_like_secrets_are_not(name: str) -> None:
    assert not holds_secret(name)


def test_a_secret_is_never_shown() -> None:
    assert shown(("models", "a", "api_key"), "sk-1") == "'***'"
    assert shown(("models", "a", "api_key"), 123) == "'***'"
    assert shown(("models", "a"), {"api_key": "sk-1", "url": "u"}) == "{'api_key': '***', 'url': 'u'}"
    assert shown(("models", "a", "api_key"), "secret://env/A") == "'secret://env/A'"
    assert "sk-1" not in refused(api_key="sk-1")


def test_a_long_value_is_cut() -> None:
    assert len(shown(("a",), "x" * 1000)) == 80


def test_a_path_is_written_as_toml_would() -> None:
    assert dotted(("models", "my-host", "a.b")) == 'models.my-host."a.b"'
