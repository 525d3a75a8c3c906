"""JSON Schemas as the providers take them."""

from __future__ import annotations

from typing import Any

import anthropic
import msgspec
import pytest

from agentrt.models.schemas import closed, hoisted, name_of, resolved_root, strict


class City(msgspec.Struct):
    name: str
    size: int | None


class Trip(msgspec.Struct):
    cities: list[City]
    kind: str = "walk"


def thing(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def test_a_root_that_is_a_reference_is_replaced_by_what_it_names() -> None:
    schema = msgspec.json.schema(City)
    assert "$ref" in schema
    root = resolved_root(schema)
    assert root["properties"] == schema["$defs"]["City"]["properties"]
    assert root["$defs"] == schema["$defs"]
    for odd in ({"$ref": "#/$defs/X"}, {"$ref": "#/$defs/X", "$defs": {}}, {"type": "string"}):
        assert resolved_root(odd) == odd


def test_a_schema_that_can_be_strict_is_closed_at_every_level() -> None:
    schema = thing(
        list={"type": "array", "items": thing(a={"type": "string"}), "minItems": 2},
        either={"anyOf": [thing(b={"type": "integer", "minimum": 0}), {"type": "null"}]},
        other={"$ref": "#/$defs/Other"},
    ) | {"$defs": {"Other": thing(c={"enum": ["x"]})}}
    found = strict(schema)
    assert found is not None
    inner = [
        found,
        found["properties"]["list"]["items"],
        found["properties"]["either"]["anyOf"][0],
        found["$defs"]["Other"],
    ]
    assert all(level["additionalProperties"] is False for level in inner)
    assert "additionalProperties" not in schema


def test_msgspecs_own_schemas_can_be_strict() -> None:
    assert strict(msgspec.json.schema(City)) is not None
    assert strict(msgspec.json.schema(Trip)) is None  # kind has a default


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string"},
        {"anyOf": [thing()]},
        {**thing(a={"type": "string"}), "required": []},
        {**thing(), "additionalProperties": True},
        {**thing(), "additionalProperties": {"type": "string"}},
        thing(a={"type": "string", "minLength": 1}),
        thing(a={"type": "string", "format": "phone"}),
        thing(a={"type": "string", "default": "x"}),
        thing(a={"oneOf": [{"type": "string"}]}),
        thing(a={"type": "array", "items": True}),
        thing(a={"$ref": "#/$defs/A", "description": "d"}),
        thing(a={"type": "array", "items": {"type": "object", "properties": {"b": {}}}}),
    ],
)
def test_a_schema_that_strictness_would_change_is_not_made_strict(schema: dict[str, Any]) -> None:
    assert strict(schema) is None


def test_what_anthropic_does_not_check_is_told_to_the_model() -> None:
    schema = thing(
        age={"type": "integer", "minimum": 0, "description": "In years."},
        code={"type": "string", "pattern": "^a", "format": "phone"},
        day={"type": "string", "format": "date"},
        many={"type": "array", "items": {"oneOf": [{"type": "string"}, {"type": "null"}]}, "minItems": 1},
        few={"type": "array", "items": {"allOf": [{"type": "string"}]}, "minItems": 3},
        map={"type": "object", "additionalProperties": {"type": "string"}},
        open={"type": "object", "additionalProperties": True},
    )
    found = closed(schema)["properties"]
    assert found["age"] == {"type": "integer", "description": "In years.\n\n{minimum: 0}"}
    assert found["code"] == {"type": "string", "description": '{pattern: "^a", format: "phone"}'}
    assert found["day"] == {"type": "string", "format": "date"}
    assert found["many"]["items"] == {"anyOf": [{"type": "string"}, {"type": "null"}]}
    assert found["many"]["minItems"] == 1
    assert found["few"]["description"] == "{minItems: 3}"
    assert found["map"]["description"] == '{additionalProperties: {"type":"string"}}'
    assert found["open"] == {"type": "object", "properties": {}, "additionalProperties": False}


def test_the_official_client_would_change_nothing_more() -> None:
    for kind in (City, Trip):
        ours = closed(msgspec.json.schema(kind))
        assert ours["additionalProperties"] is False
        theirs = anthropic.transform_schema(ours)
        assert theirs["properties"] == ours["properties"]
        assert theirs["$defs"] == ours["$defs"]


def test_definitions_move_up_under_names_that_cannot_clash() -> None:
    definitions: dict[str, Any] = {}
    inner = {
        **thing(a={"$ref": "#/$defs/X"}, b={"anyOf": [{"$ref": "#/$defs/X"}, {"$ref": "#/other"}]}),
        "$defs": {"X": thing(c={"$ref": "#/$defs/X"})},
    }
    found = hoisted(inner, "one_", definitions)
    assert "$defs" not in found
    assert found["properties"]["a"] == {"$ref": "#/$defs/one_X"}
    assert found["properties"]["b"] == {"anyOf": [{"$ref": "#/$defs/one_X"}, {"$ref": "#/other"}]}
    assert definitions == {"one_X": thing(c={"$ref": "#/$defs/one_X"})}


def test_a_schemas_name_has_only_what_openai_allows() -> None:
    assert name_of("list[City | None]") == "list_City___None_"
    assert len(name_of("x" * 100)) == 64
    assert name_of("") == "output"
