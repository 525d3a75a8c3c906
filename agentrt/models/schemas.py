"""JSON Schemas as the providers take them: each accepts a part of the language only."""

from __future__ import annotations

import re
from typing import Any

import msgspec

__all__ = ["closed", "hoisted", "name_of", "resolved_root", "strict"]

Schema = dict[str, Any]

_STRICT_KEYWORDS = frozenset(
    {
        "type",
        "properties",
        "required",
        "additionalProperties",
        "items",
        "anyOf",
        "enum",
        "const",
        "$ref",
        "$defs",
    }
    | {
        "description",
        "title",
        "pattern",
        "format",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
    }
    | {"multipleOf", "minItems", "maxItems"}
)
_FORMATS = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"}
)


def name_of(name: str) -> str:
    """`name` as OpenAI wants a schema's name: letters, digits, `_` and `-`, at most 64."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:64] or "output"


def resolved_root(schema: Schema) -> Schema:
    """A schema whose root is only a reference into its own `$defs`, with that definition as its root."""
    reference = schema.get("$ref")
    definitions = schema.get("$defs")
    if not isinstance(reference, str) or not isinstance(definitions, dict):
        return schema
    target = definitions.get(reference.removeprefix("#/$defs/"))
    return {**target, "$defs": definitions} if isinstance(target, dict) else schema


def strict(schema: Schema) -> Schema | None:
    """The same schema in OpenAI's strict subset, or None if it cannot be said there without changing its meaning.

    Strict means: an object at the root, every property required, none but those named, known keywords only.
    """
    root = resolved_root(schema)
    if root.get("type") != "object":
        return None
    try:
        return _strict(root)
    except _NotStrict:
        return None


class _NotStrict(Exception):
    pass


def _strict(schema: Schema) -> Schema:
    if not schema.keys() <= _STRICT_KEYWORDS or ("$ref" in schema and len(schema.keys() - {"$defs"}) > 1):
        raise _NotStrict
    if schema.get("format", "date") not in _FORMATS:
        raise _NotStrict
    out = dict(schema)
    if schema.get("type") == "object" or "properties" in schema:
        properties = schema.get("properties", {})
        if schema.get("additionalProperties", False) is not False:
            raise _NotStrict
        if set(schema.get("required", ())) != set(properties):
            raise _NotStrict
        out["properties"] = {name: _strict(value) for name, value in properties.items()}
        out["additionalProperties"] = False
        out["required"] = list(properties)
    if "items" in schema:
        if not isinstance(schema["items"], dict):
            raise _NotStrict
        out["items"] = _strict(schema["items"])
    if "anyOf" in schema:
        out["anyOf"] = [_strict(option) for option in schema["anyOf"]]
    if "$defs" in schema:
        out["$defs"] = {name: _strict(value) for name, value in schema["$defs"].items()}
    return out


def closed(schema: Schema) -> Schema:
    """The schema as Anthropic's structured output takes it.

    Objects take no further properties, and what the API does not check (lengths, ranges, patterns) moves into the
    description, where the model reads it.
    """
    return _closed(resolved_root(schema))


def _closed(schema: Schema) -> Schema:
    rest = dict(schema)
    out: Schema = {}
    if "$defs" in rest:
        out["$defs"] = {name: _closed(value) for name, value in rest.pop("$defs").items()}
    if "$ref" in rest:
        out["$ref"] = rest["$ref"]
        return out
    for keyword in ("type", "enum", "const", "title", "description"):
        if keyword in rest:
            out[keyword] = rest.pop(keyword)
    for keyword, name in (("anyOf", "anyOf"), ("oneOf", "anyOf"), ("allOf", "allOf")):
        if keyword in rest:
            out[name] = [_closed(option) for option in rest.pop(keyword)]
    if out.get("type") == "object":
        out["properties"] = {name: _closed(value) for name, value in rest.pop("properties", {}).items()}
        out["additionalProperties"] = False
        if rest.pop("additionalProperties", False) not in (False, True):
            rest["additionalProperties"] = schema["additionalProperties"]
        if "required" in rest:
            out["required"] = rest.pop("required")
    if isinstance(rest.get("items"), dict):
        out["items"] = _closed(rest.pop("items"))
    if rest.get("minItems") in (0, 1):
        out["minItems"] = rest.pop("minItems")
    if rest.get("format") in _FORMATS:
        out["format"] = rest.pop("format")
    if rest:
        told = ", ".join(f"{key}: {msgspec.json.encode(value).decode()}" for key, value in rest.items())
        out["description"] = f"{out['description']}\n\n{{{told}}}" if "description" in out else f"{{{told}}}"
    return out


def hoisted(schema: Schema, prefix: str, definitions: Schema) -> Schema:
    """The schema as a part of a larger one: its `$defs` move to `definitions`, their names with `prefix`."""
    for name, value in schema.get("$defs", {}).items():
        definitions[prefix + name] = _renamed(value, prefix)
    inner = _renamed({key: value for key, value in schema.items() if key != "$defs"}, prefix)
    assert isinstance(inner, dict)
    return inner


def _renamed(value: Any, prefix: str) -> Any:
    if isinstance(value, list):
        return [_renamed(item, prefix) for item in value]
    if not isinstance(value, dict):
        return value
    out = {key: _renamed(item, prefix) for key, item in value.items()}
    reference = value.get("$ref")
    if isinstance(reference, str) and reference.startswith("#/$defs/"):
        out["$ref"] = f"#/$defs/{prefix}{reference.removeprefix('#/$defs/')}"
    return out
