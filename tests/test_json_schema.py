"""Types to JSON Schema."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Generic, Literal, NamedTuple, NotRequired, Required, TypedDict, TypeVar

import msgspec
import pydantic
import pytest

from agentrt.errors import ConfigError
from agentrt.json_schema import Schemas, is_pydantic, mentions_pydantic, show

T = TypeVar("T")


class Unit(enum.Enum):
    FAHRENHEIT = "fahrenheit"
    CELSIUS = "celsius"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@dataclasses.dataclass
class Point:
    x: int
    y: Annotated[float, "how far up"] = 0.5
    tags: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Tree:
    """A tree.

    Attributes:
        children: its branches
    """

    children: list[Tree]


class Options(TypedDict, total=False):
    name: Required[Annotated[str, "who"]]
    age: NotRequired[int]


class Pair(NamedTuple):
    left: int
    right: str = "r"


class Cat(msgspec.Struct, tag="cat"):
    lives: int


class Dog(msgspec.Struct, tag="dog", rename="camel"):
    is_good: bool = True


class Box(msgspec.Struct, Generic[T]):
    content: T


class Row(msgspec.Struct, array_like=True):
    a: int
    b: int


class Model(pydantic.BaseModel):
    """A model."""

    x: int = pydantic.Field(description="the x")
    inner: Inner | None = None


class Inner(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    pair: tuple[int, str]


@pydantic.dataclasses.dataclass
class Checked:
    x: int


class Arbitrary: ...


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: int


def schema(annotation: Any) -> dict[str, Any]:
    """The schema of one type, as the property `x` of an object shows it."""
    schemas = Schemas()
    root = schemas.finish({"properties": {"x": schemas.of(annotation, "here")}})
    return {**root["properties"]["x"], **({"$defs": root["$defs"]} if "$defs" in root else {})}


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (str, {"type": "string"}),
        (int, {"type": "integer"}),
        (float, {"type": "number"}),
        (bool, {"type": "boolean"}),
        (None, {"type": "null"}),
        (Any, {}),
        (bytes, {"type": "string", "contentEncoding": "base64"}),
        (datetime.datetime, {"type": "string", "format": "date-time"}),
        (datetime.date, {"type": "string", "format": "date"}),
        (datetime.time, {"type": "string", "format": "time"}),
        (datetime.timedelta, {"type": "string", "format": "duration"}),
        (uuid.UUID, {"type": "string", "format": "uuid"}),
        (decimal.Decimal, {"type": "string", "format": "decimal"}),
        (Literal["b", "a"], {"type": "string", "enum": ["a", "b"]}),
        (Literal["a", 1], {"enum": [1, "a"]}),
        (Literal[True], {"type": "boolean", "enum": [True]}),
        (Unit, {"type": "string", "enum": ["fahrenheit", "celsius"]}),
        (Level, {"type": "integer", "enum": [1, 2]}),
        (int | None, {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
        (list[int], {"type": "array", "items": {"type": "integer"}}),
        (Sequence[int], {"type": "array", "items": {"type": "integer"}}),
        (list, {"type": "array", "items": {}}),
        (set[str], {"type": "array", "items": {"type": "string"}}),
        (tuple[int, ...], {"type": "array", "items": {"type": "integer"}}),
        (tuple[int, int], {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}),
        (tuple[()], {"type": "array", "items": {}, "minItems": 0, "maxItems": 0}),
        (dict[str, int], {"type": "object", "additionalProperties": {"type": "integer"}}),
        (dict[uuid.UUID, int], {"type": "object", "additionalProperties": {"type": "integer"}}),
        (dict[int | None, int], {"type": "object", "additionalProperties": {"type": "integer"}}),
        (dict[Any, int], {"type": "object", "additionalProperties": {"type": "integer"}}),
        (Mapping[str, Any], {"type": "object", "additionalProperties": True}),
        (
            Annotated[int, msgspec.Meta(ge=1, lt=9, multiple_of=2, description="some")],
            {"type": "integer", "minimum": 1, "exclusiveMaximum": 9, "multipleOf": 2, "description": "some"},
        ),
        (
            Annotated[str, msgspec.Meta(min_length=1, max_length=3, pattern="^a")],
            {"type": "string", "minLength": 1, "maxLength": 3, "pattern": "^a"},
        ),
        (
            Annotated[list[int], msgspec.Meta(min_length=1)],
            {"type": "array", "items": {"type": "integer"}, "minItems": 1},
        ),
        (Annotated[str, "words of ours"], {"type": "string"}),
    ],
)
def test_simple_types(annotation: Any, expected: dict[str, Any]) -> None:
    assert schema(annotation) == expected


def test_a_tuple_of_several_types_tells_their_order_in_words() -> None:
    assert schema(tuple[int, str | None]) == {
        "type": "array",
        "items": {"anyOf": [{"type": "integer"}, {"anyOf": [{"type": "string"}, {"type": "null"}]}]},
        "minItems": 2,
        "maxItems": 2,
        "description": "in this order: integer, string or null",
    }


def test_a_dataclass_is_a_closed_object_with_descriptions_and_defaults() -> None:
    assert schema(Point) == {
        "type": "object",
        "properties": {
            "x": {"type": "integer"},
            "y": {"type": "number", "description": "how far up", "default": 0.5},
            "tags": {"type": "array", "items": {"type": "string"}, "default": []},
        },
        "required": ["x"],
        "additionalProperties": False,
    }


def test_a_typed_dict_keeps_required_and_not_required() -> None:
    assert schema(Options) == {
        "type": "object",
        "properties": {"name": {"type": "string", "description": "who"}, "age": {"type": "integer"}},
        "required": ["name"],
        "additionalProperties": False,
    }


@pytest.mark.parametrize("annotation", [Pair, Row])
def test_a_named_tuple_is_an_array_whose_fields_are_told_in_words(annotation: Any) -> None:
    found = schema(annotation)
    assert found["type"] == "array"
    names = "left (integer), right (string)" if annotation is Pair else "a (integer), b (integer)"
    assert found["description"] == f"in this order: {names}"
    assert (found["minItems"], found["maxItems"]) == ((1, 2) if annotation is Pair else (2, 2))


def test_tagged_structs_make_a_union() -> None:
    cat, dog = schema(Cat | Dog)["anyOf"]
    assert cat["properties"] == {"type": {"type": "string", "enum": ["cat"]}, "lives": {"type": "integer"}}
    assert cat["required"] == ["type", "lives"]
    assert dog["properties"]["isGood"] == {"type": "boolean", "default": True}


def test_a_recursive_type_is_defined_once() -> None:
    assert schema(Tree) == {
        "$ref": "#/$defs/Tree",
        "$defs": {
            "Tree": {
                "description": "A tree.",
                "type": "object",
                "properties": {
                    "children": {
                        "type": "array",
                        "items": {"$ref": "#/$defs/Tree"},
                        "description": "its branches",
                    }
                },
                "required": ["children"],
                "additionalProperties": False,
            }
        },
    }


def test_a_type_used_twice_is_defined_once_and_one_used_once_stands_in_its_place() -> None:
    found = schema(tuple[Point, list[Point]])
    assert found["items"]["anyOf"] == [
        {"$ref": "#/$defs/Point"},
        {"type": "array", "items": {"$ref": "#/$defs/Point"}},
    ]
    assert list(found["$defs"]) == ["Point"]
    assert "$defs" not in schema(list[Point])


def test_generic_structs_have_a_definition_per_argument() -> None:
    found = schema(tuple[Box[int], Box[str]])
    contents = [item["properties"]["content"]["type"] for item in found["items"]["anyOf"]]
    assert contents == ["integer", "string"]


def test_two_classes_of_the_same_name_are_kept_apart() -> None:
    first = dataclasses.make_dataclass("Same", [("a", int)])
    second = dataclasses.make_dataclass("Same", [("b", int)])
    schemas = Schemas()
    refs = [schemas.of(annotation, "here")["$ref"] for annotation in (first, second, first)]
    assert refs == ["#/$defs/Same", "#/$defs/Same_2", "#/$defs/Same"]


def test_a_default_without_a_json_form_is_left_out() -> None:
    made = dataclasses.make_dataclass("Made", [("a", Any, Arbitrary())])
    assert schema(made)["properties"] == {"a": {}}


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        (Arbitrary, "`Arbitrary`"),
        (list[Arbitrary], "`Arbitrary`"),
        (Callable[[int], str], "Callable"),
        (Iterator[int], "Iterator"),
        (object, "`object`"),
        (complex, "`complex`"),
        (type[int], "`type"),
        (str | datetime.date, "more than one str-like type"),
        (list[int] | set[int], "more than one array-like"),
        (dict[bool, int], "the keys of a dict are text in JSON"),
        (dict[tuple[int, str], int], "the keys of a dict are text in JSON"),
        (list[dict[bool | None, int]], "the keys of a dict are text in JSON"),
        (dict[frozenset[int], int], "the keys of a dict are text in JSON"),
        (dict[Annotated[bool, msgspec.Meta(description="d")], int], "the keys of a dict are text in JSON"),
        (dict[Frozen, int], "the keys of a dict are text in JSON"),
        (Literal[1.5], "Literal may only contain"),
        (enum.Enum("Mixed", {"A": 1.5}), "either all str or all int"),
        (dataclasses.make_dataclass("Bad", [("a", "Nowhere")]), "Nowhere"),
    ],
)
def test_what_has_no_json_form_is_refused_with_reason_and_alternatives(annotation: Any, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        schema(annotation)
    message = str(caught.value)
    assert message.startswith("here, which has no JSON form: ")
    assert reason in message
    assert "Supported are str, int" in message


@dataclasses.dataclass
class Left:
    lives: int


@dataclasses.dataclass
class Right:
    lives: int


class Bare(msgspec.Struct):
    lives: int


class Other(msgspec.Struct):
    lives: int


@pytest.mark.parametrize(
    ("annotation", "union"),
    [(Left | Right, "Left | Right"), (list[Bare | Other], "Bare | Other"), (Left | Bare, "Left | Bare")],
)
def test_classes_that_nothing_tells_apart_are_refused_with_the_remedy(annotation: Any, union: str) -> None:
    with pytest.raises(ConfigError) as caught:
        schema(annotation)
    assert str(caught.value) == (
        f"here: JSON does not tell the members of `{union}` apart. "
        "Make each a class with a tag (`class A(msgspec.Struct, tag=True)`), or take one class"
    )


def test_pydantic_schemas_are_adopted_into_our_subset() -> None:
    schemas = Schemas()
    made = schemas.adopt(pydantic.TypeAdapter(Model).json_schema(ref_template="#/$defs/{model}"))
    found = schemas.finish({"properties": {"m": made}})["properties"]["m"]
    inner = found["properties"].pop("inner")
    assert found == {
        "description": "A model.",
        "type": "object",
        "properties": {"x": {"type": "integer", "description": "the x"}},
        "required": ["x"],
        "additionalProperties": False,
    }
    assert inner["anyOf"][0] == {
        "type": "object",
        "properties": {
            "pair": {
                "type": "array",
                "items": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
                "minItems": 2,
                "maxItems": 2,
                "description": "in this order: integer, string",
            }
        },
        "required": ["pair"],
        "additionalProperties": True,
    }


def test_adopted_definitions_do_not_clash_with_ours() -> None:
    schemas = Schemas()
    ours = schemas.of(Tree, "here")
    theirs = schemas.adopt(
        {
            "$defs": {"Tree": {"title": "Tree", "oneOf": [{"type": "integer"}, {"$ref": "#/$defs/Tree"}]}},
            "$ref": "#/$defs/Tree",
        }
    )
    root = schemas.finish({"properties": {"a": ours, "title": theirs}})
    assert root["properties"] == {"a": {"$ref": "#/$defs/Tree"}, "title": {"$ref": "#/$defs/Tree_2"}}
    assert root["$defs"]["Tree_2"] == {"anyOf": [{"type": "integer"}, {"$ref": "#/$defs/Tree_2"}]}


def test_pydantic_types_are_found_wherever_they_are() -> None:
    @dataclasses.dataclass
    class Holder:
        models: dict[str, Model | None]
        again: Holder | None

    Holder.__annotations__["again"] = Holder | None
    Holder.__annotations__["models"] = dict[str, Model | None]
    assert is_pydantic(Model)
    assert is_pydantic(Checked)
    assert not is_pydantic(Point)
    assert not is_pydantic(Model(x=1))
    assert mentions_pydantic(Model | None)
    assert mentions_pydantic(Annotated[list[Checked], "list"])
    assert mentions_pydantic(Holder)
    assert not mentions_pydantic(dict[str, Point])
    assert not mentions_pydantic(Tree)
    assert not mentions_pydantic(Unit)
    assert not mentions_pydantic(Arbitrary)


def test_annotations_are_shown_as_their_author_wrote_them() -> None:
    class Local: ...

    assert show(Local) == "Local"
    assert show(list[int]) == "list[int]"
    assert show(Literal["a"]) == "Literal['a']"
