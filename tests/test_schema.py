"""Decoding what models send, and encoding what tools return."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Callable
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, TypedDict

import msgspec
import pydantic
import pytest

from agentrt.errors import ConfigError, ToolError
from agentrt.schema import Arguments, OutputError, ToolArgumentError, encode_result, output_decoder


class Unit(enum.Enum):
    CELSIUS = "celsius"
    FAHRENHEIT = "fahrenheit"


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.5
    more: list[Point] = dataclasses.field(default_factory=list)


class Place(TypedDict):
    name: str
    zip: NotRequired[str]


class Pair(NamedTuple):
    left: int
    right: str = "r"


class Cat(msgspec.Struct, tag=True):
    lives: int


class Dog(msgspec.Struct, tag=True):
    tricks: int


class Model(pydantic.BaseModel):
    x: int
    when: datetime.date | None = None


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)
    pair: tuple[int, datetime.date]


def arguments(function: Callable[..., Any]) -> Arguments:
    return Arguments.of(function, tool="t")


def weather(city: str, days: int = 1, unit: Unit = Unit.CELSIUS) -> str:
    """The weather.

    Args:
        city: where
    """
    return ""


def everything(
    f: float | None = None,
    i: int | None = None,
    p: Point | None = None,
    place: Place | None = None,
    pair: Pair | None = None,
    animal: Cat | Dog | None = None,
    m: Model | None = None,
    ms: list[Model] | None = None,
    strict: Strict | None = None,
    when: datetime.datetime | None = None,
    id: uuid.UUID | None = None,
    price: decimal.Decimal | None = None,
    data: bytes | None = None,
    tags: set[str] | None = None,
    table: dict[str, Point] | None = None,
    size: Annotated[int, msgspec.Meta(ge=1)] | None = None,
    letter: Literal["a", "b"] | None = None,
    anything: Any = None,
) -> None: ...


EVERYTHING = arguments(everything)


def test_the_schema_of_a_tool() -> None:
    assert arguments(weather).schema == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "where"},
            "days": {"type": "integer", "default": 1},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
        },
        "required": ["city"],
        "additionalProperties": False,
    }


def test_a_tool_without_parameters() -> None:
    def ping() -> None: ...

    none = arguments(ping)
    assert none.schema == {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
    assert (
        none.decode("")
        == none.decode(" \n")
        == none.decode(b"")
        == none.decode("{}")
        == none.decode({})
        == {}
    )
    with pytest.raises(ToolArgumentError, match=r"^there is no argument `x`; this tool takes none$"):
        none.decode('{"x": 1}')


def test_an_unsupported_annotation_names_tool_parameter_and_annotation() -> None:
    def bad(callback: Callable[[int], str]) -> None: ...

    with pytest.raises(
        ConfigError, match=r"tool 't': parameter 'callback' is annotated .*Callable\[\[int\], str\]"
    ):
        arguments(bad)


def test_what_pydantic_cannot_show_is_refused_too() -> None:
    class Odd(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
        callback: Callable[[int], int]

    def bad(odd: Odd) -> None: ...

    with pytest.raises(ConfigError, match=r"tool 't': parameter 'odd' is annotated `Odd`, .*pydantic"):
        Arguments.of(bad, tool="t", scope=locals())


def test_a_default_that_json_cannot_show_is_not_in_the_schema() -> None:
    def odd(x: Any = object(), y: Unit = Unit.CELSIUS) -> None: ...  # noqa: B008

    assert arguments(odd).schema["properties"]["x"] == {}
    assert arguments(odd).schema["required"] == []


# --- decoding ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [str, str.encode, json.loads], ids=["text", "bytes", "mapping"])
def test_arguments_become_python_values_and_missing_ones_stay_missing(form: Any) -> None:
    decoded = arguments(weather).decode(form('{"city": "Rome", "unit": "fahrenheit"}'))
    assert decoded == {"city": "Rome", "unit": Unit.FAHRENHEIT}


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({"f": 1}, {"f": 1.0}),
        ({"i": 5.0}, {"i": 5}),
        ({"p": {"x": 1.0, "more": [{"x": 2.0, "y": 3}]}}, {"p": Point(1, 0.5, [Point(2, 3.0)])}),
        ({"place": {"name": "Rome"}}, {"place": {"name": "Rome"}}),
        ({"pair": [1]}, {"pair": Pair(1, "r")}),
        ({"animal": {"type": "Dog", "tricks": 2}}, {"animal": Dog(2)}),
        ({"m": {"x": 1, "when": "2026-01-02"}}, {"m": Model(x=1, when=datetime.date(2026, 1, 2))}),
        ({"ms": [{"x": 1}, {"x": 2}]}, {"ms": [Model(x=1), Model(x=2)]}),
        ({"when": "2026-01-02T03:04:05"}, {"when": datetime.datetime(2026, 1, 2, 3, 4, 5)}),
        (
            {"id": "12345678-1234-5678-1234-567812345678"},
            {"id": uuid.UUID("12345678123456781234567812345678")},
        ),
        ({"price": "1.10"}, {"price": decimal.Decimal("1.10")}),
        ({"data": "aGk="}, {"data": b"hi"}),
        ({"tags": ["a", "b", "a"]}, {"tags": {"a", "b"}}),
        ({"table": {"k": {"x": 1}}}, {"table": {"k": Point(1)}}),
        ({"anything": {"deep": [1, None]}}, {"anything": {"deep": [1, None]}}),
        ({"f": None, "i": None}, {"f": None, "i": None}),
    ],
)
def test_every_kind_of_value(sent: dict[str, Any], expected: dict[str, Any]) -> None:
    decoded = EVERYTHING.decode(json.dumps(sent))
    assert decoded == expected
    assert [type(value) for value in decoded.values()] == [type(value) for value in expected.values()]
    assert EVERYTHING.decode(sent) == expected


def test_a_strict_pydantic_model_takes_what_json_can_express() -> None:
    decoded = EVERYTHING.decode('{"strict": {"pair": [1, "2026-01-02"]}}')
    assert decoded == {"strict": Strict(pair=(1, datetime.date(2026, 1, 2)))}


def test_python_values_in_a_mapping_pass() -> None:
    given = {"p": Point(1), "m": Model(x=1), "when": datetime.datetime(2026, 1, 2)}
    assert EVERYTHING.decode(MappingProxyType(given)) == given


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({"i": "5"}, "argument `i`: expected int | null, got str at $.i"),
        ({"i": 5.5}, "argument `i`: expected int | null, got float at $.i"),
        ({"i": True}, "argument `i`: expected int | null, got bool at $.i"),
        ({"f": "1"}, "argument `f`: expected float | null, got str at $.f"),
        ({"p": {}}, "argument `p`: the field `x` is missing at $.p"),
        ({"p": {"x": 1, "z": 1}}, "argument `p`: there is no field `z` at $.p"),
        (
            {"p": {"x": 1, "more": [{"x": 1}, {"x": "a"}]}},
            "argument `p`: expected int, got str at $.p.more[1].x",
        ),
        ({"p": {"x": 1, "more": [{"x": 1, "z": 1}]}}, "argument `p`: there is no field `z` at $.p.more[0]"),
        ({"place": {"name": "a", "zap": 1}}, "argument `place`: there is no field `zap` at $.place"),
        (
            {"animal": {"type": "Cat", "lives": 1, "x": 2}},
            "argument `animal`: there is no field `x` at $.animal",
        ),
        (
            {"animal": {"type": "Cow"}},
            "argument `animal`: invalid value 'Cow' at $.animal.type; allowed are 'Cat', 'Dog'",
        ),
        ({"table": {"k": {"x": "a"}}}, "argument `table`: expected int, got str at $.table[...].x"),
        ({"table": {"k": {"x": 1, "q": 2}}}, "argument `table`: there is no field `q` at $.table.k"),
        ({"letter": "c"}, "argument `letter`: invalid enum value 'c' at $.letter; allowed are 'a', 'b'"),
        ({"size": 0}, "argument `size`: expected int >= 1 at $.size"),
        ({"when": "soon"}, "argument `when`: invalid RFC3339 encoded datetime at $.when"),
        ({"m": {"x": "a"}}, "argument `m`: input should be a valid integer"),
        ({"ms": [{"x": 1}, {}]}, "argument `ms`: field required at $.ms[1].x"),
        ({"zap": 1}, "there is no argument `zap`; the arguments are `f`, `i`, `p`"),
    ],
)
def test_what_does_not_fit_is_told_precisely(sent: dict[str, Any], message: str) -> None:
    for form in (json.dumps(sent), sent):
        with pytest.raises(ToolArgumentError) as caught:
            EVERYTHING.decode(form)
        assert str(caught.value).startswith(message)
        assert caught.value.argument == next(iter(sent))


def counted(scores: dict[int, int], by_id: dict[str, dict[uuid.UUID, int]] | None = None) -> None: ...


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ('{"scores": {"a": 1}}', "argument `scores`: a key is wrong, expected int, got str at $.scores"),
        (
            '{"scores": {}, "by_id": {"q": {"a": 1}}}',
            "argument `by_id`: a key is wrong, invalid UUID at $.by_id[...]",
        ),
    ],
)
def test_a_key_that_does_not_fit_is_told_precisely(sent: str, message: str) -> None:
    with pytest.raises(ToolArgumentError) as caught:
        arguments(counted).decode(sent)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "argument `city` is missing"),
        ("{}", "argument `city` is missing"),
        ('{"city": 1}', "argument `city`: expected str, got int at $.city"),
        (
            '{"city": "Rome", "unit": "k"}',
            "invalid enum value 'k' at $.unit; allowed are 'celsius', 'fahrenheit'",
        ),
        ("[]", "the arguments must be a JSON object, not an array"),
        ("null", "the arguments must be a JSON object, not null"),
        ('"Rome"', "the arguments must be a JSON object, not a string"),
        ("5", "the arguments must be a JSON object, not a number"),
        ("{", "the arguments are not valid JSON: Input data was truncated"),
        ('{"city": "Rome"} please', "the arguments are not valid JSON: JSON is malformed"),
        ('{"city": NaN}', "the arguments are not valid JSON: JSON is malformed"),
        ('{"city": "\ud800"}', "the arguments are not valid JSON: 'utf-8' codec can't encode"),
        (b'{"city": "\xff"}', "the arguments are not valid JSON: "),
        ('{"city": "Rome", "days": 1e400}', "argument `days`: number out of range at $.days"),
    ],
)
def test_text_that_does_not_fit(text: str | bytes, message: str) -> None:
    with pytest.raises(ToolArgumentError) as caught:
        arguments(weather).decode(text)
    assert message in str(caught.value)
    assert isinstance(caught.value, ToolError)


def test_several_pydantic_problems_are_told_at_once() -> None:
    with pytest.raises(ToolArgumentError) as caught:
        EVERYTHING.decode('{"m": {"x": "a", "when": "b"}}')
    assert "at $.m.x; " in str(caught.value)
    assert str(caught.value).endswith("at $.m.when")


def test_a_key_that_two_members_of_a_union_might_have_is_judged_by_each() -> None:
    def pick(value: list[Point] | Point) -> None: ...

    pick_ = arguments(pick)
    assert pick_.decode('{"value": [{"x": 1}]}') == {"value": [Point(1)]}
    with pytest.raises(ToolArgumentError, match=r"there is no field `z` at \$\.value\[0\]"):
        pick_.decode('{"value": [{"x": 1, "z": 1}]}')


def test_a_schema_holds_what_its_decoder_takes_and_nothing_of_pydantic_is_imported_without_need() -> None:
    program = """
        import sys
        from agentrt.schema import Arguments, encode_result
        def search(query: str, limit: int = 5): ...
        assert Arguments.of(search, tool="t").decode('{"query": "x"}') == {"query": "x"}
        assert encode_result([1], tool="t") == "[1]"
        assert "pydantic" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=30)


# --- output --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type_", [Point, Place, Cat, Model])
def test_an_object_is_asked_for_as_it_is(type_: type) -> None:
    output = output_decoder(type_)
    assert output.name == type_.__name__
    assert output.schema["type"] == "object"
    assert "result" not in output.schema["properties"]
    assert not output.wrapped


@pytest.mark.parametrize(
    ("type_", "name", "text", "value"),
    [
        (int, "int", '{"result": 5}', 5),
        (list[Point], "list", '{"result": [{"x": 1}]}', [Point(1)]),
        (Cat | Dog, "Cat_Dog", '{"result": {"type": "Cat", "lives": 9}}', Cat(9)),
        (Unit, "Unit", '{"result": "celsius"}', Unit.CELSIUS),
        (dict[str, int], "dict", '{"result": {"a": 1}}', {"a": 1}),
        (Literal["a"], "Literal", '{"result": "a"}', "a"),
    ],
)
def test_anything_else_is_wrapped_into_an_object(type_: Any, name: str, text: str, value: Any) -> None:
    output = output_decoder(type_)
    assert (output.name, output.wrapped) == (name, True)
    assert output.schema["required"] == ["result"]
    assert output.decode(text) == value


def test_a_recursive_output_type_has_a_whole_root() -> None:
    schema = output_decoder(Point).schema
    assert schema["properties"]["more"]["items"] == {"$ref": "#/$defs/Point"}
    assert schema["$defs"]["Point"]["required"] == ["x"]


@pytest.mark.parametrize(
    "text", ['{"x": 1}', b'{"x": 1}', '\n```json\n{"x": 1}\n```\n', '```\n{"x": 1.0}\n```']
)
def test_code_fences_are_passed_over(text: str | bytes) -> None:
    assert output_decoder(Point).decode(text) == Point(1)


@pytest.mark.parametrize(
    ("type_", "text", "message"),
    [
        (Point, "I think 4", "it is not valid JSON (invalid character at byte 0): 'I think 4'"),
        (Point, '{"x": ', "it is not valid JSON (input data was truncated): '{\"x\":'"),
        (int, "I think 4", "it is not valid JSON (invalid character at byte 0): 'I think 4'"),
        (Point, "", "it is empty"),
        (int, " \n", "it is empty"),
        (Point, '{"x": "a"}', "expected int, got str at $.x"),
        (Point, '{"x": 1}, "result": {"x": 2}', "it is not valid JSON ("),
        (Point, '{"x": 1, "q": 2}', "there is no field `q` at $"),
        (Point, "[]", "expected object, got array at $"),
        (Model, '{"x": "a"}', "input should be a valid integer"),
        (int, "4", "it must be a JSON object, not a number"),
        (int, "{}", "field `result` is missing"),
        (int, '{"result": "a"}', "expected int, got str at $"),
        (
            int,
            '{"result": 1, "q": 2}',
            "there is no field `q`; the fields are `result`",
        ),
    ],
)
def test_an_answer_that_does_not_fit_is_told_precisely(type_: Any, text: str, message: str) -> None:
    with pytest.raises(OutputError) as caught:
        output_decoder(type_).decode(text)
    assert str(caught.value).startswith(message)


def test_of_a_long_answer_that_does_not_fit_the_first_80_characters_are_told() -> None:
    with pytest.raises(OutputError) as caught:
        output_decoder(Point).decode("ab" * 1000)
    assert str(caught.value) == f"it is not valid JSON (invalid character at byte 0): '{'ab' * 40}...'"


def test_an_output_type_without_json_form_is_refused() -> None:
    class Arbitrary: ...

    with pytest.raises(ConfigError, match=r"^the output type is `Arbitrary`, which has no JSON form"):
        output_decoder(Arbitrary)


# --- results -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is", "as it is"),
        ("größer 🤖", "größer 🤖"),
        ("\ud800", "?"),
        (None, "null"),
        ([1, 2.5, True], "[1,2.5,true]"),
        ({"a": {1}}, '{"a":[1]}'),
        ({1: "a"}, '{"1":"a"}'),
        (Point(1), '{"x":1,"y":0.5,"more":[]}'),
        (Cat(9), '{"type":"Cat","lives":9}'),
        (Unit.CELSIUS, '"celsius"'),
        (datetime.date(2026, 1, 2), '"2026-01-02"'),
        (b"hi", '"aGk="'),
        (decimal.Decimal("1.10"), '"1.10"'),
        (Model(x=1, when=datetime.date(2026, 1, 2)), '{"x":1,"when":"2026-01-02"}'),
        ({"m": [Model(x=1)]}, '{"m":[{"x":1,"when":null}]}'),
        (["\ud800"], '["\\ud800"]'),
    ],
)
def test_results_become_text(value: Any, text: str) -> None:
    assert encode_result(value, tool="t") == text


class Arbitrary: ...


def _endless() -> list[Any]:
    endless: list[Any] = []
    endless.append(endless)
    return endless


@pytest.mark.parametrize(
    ("value", "type_name"),
    [
        (Arbitrary(), "Arbitrary"),
        ([Arbitrary()], "list"),
        (_endless(), "list"),
        ({(1, 2): 3}, "dict"),
        (iter([]), "list_iterator"),
        (lambda: 1, "function"),
    ],
)
def test_a_result_without_json_form_names_tool_and_type(value: Any, type_name: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"tool 't' returned a {type_name}, which cannot be sent to the model"
    ):
        encode_result(value, tool="t")
