"""Types to JSON Schema: the subset of 2020-12 that model providers take.

Closed objects with `required`, `anyOf`, `enum`, arrays with one schema for all items, and `$defs` for types that are
used more than once or recur. `msgspec.inspect` reads the types, so that the schema says what its decoder takes.
"""

from __future__ import annotations

import dataclasses
import enum
import re
import sys
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from agentrt.errors import ConfigError
from agentrt.signature import parse_docstring, split_description

__all__ = ["SUPPORTED", "Schemas", "is_pydantic", "mentions_pydantic", "show"]

SUPPORTED = (
    "str, int, float, bool, None, Any, Literal, Enum, Optional and unions, list, tuple, set, dict[str, ...], "
    "dataclasses, TypedDict, NamedTuple, msgspec.Struct, pydantic models, datetime, date, time, timedelta, UUID, "
    "Decimal and bytes"
)

_SIMPLE: dict[str, dict[str, Any]] = {
    "AnyType": {},
    "RawType": {},
    "NoneType": {"type": "null"},
    "BoolType": {"type": "boolean"},
    "IntType": {"type": "integer"},
    "FloatType": {"type": "number"},
    "StrType": {"type": "string"},
    "BytesType": {"type": "string", "contentEncoding": "base64"},
    "ByteArrayType": {"type": "string", "contentEncoding": "base64"},
    "MemoryViewType": {"type": "string", "contentEncoding": "base64"},
    "DateTimeType": {"type": "string", "format": "date-time"},
    "DateType": {"type": "string", "format": "date"},
    "TimeType": {"type": "string", "format": "time"},
    "TimeDeltaType": {"type": "string", "format": "duration"},
    "UUIDType": {"type": "string", "format": "uuid"},
    "DecimalType": {"type": "string", "format": "decimal"},
}
_BOUNDS = {
    "gt": "exclusiveMinimum",
    "ge": "minimum",
    "lt": "exclusiveMaximum",
    "le": "maximum",
    "multiple_of": "multipleOf",
    "pattern": "pattern",
}
_LENGTHS = {"string": "Length", "array": "Items", "object": "Properties"}
_ARRAYS = ("ListType", "SetType", "FrozenSetType", "VarTupleType", "CollectionType")
_NO_KEYS = ("NoneType", "BoolType", "TupleType", "DictType")
_OBJECTS = ("StructType", "DataclassType", "TypedDictType", "NamedTupleType")
_UNTAGGED = ("all Struct types must be tagged", "more than one dataclass", "more than one dict-like")
"""What msgspec says of unions in which nothing tells two objects apart."""


class Schemas:
    """Makes the schemas of several types that share their `$defs`."""

    def __init__(self) -> None:
        self._definitions: dict[str, dict[str, Any]] = {}
        self._names: dict[Any, str] = {}

    @property
    def has_objects(self) -> bool:
        """True if a type with named fields occurs."""
        return bool(self._names)

    def of(self, annotation: Any, where: str) -> dict[str, Any]:
        """The schema of `annotation`; `ConfigError` starting with `where` if it has no JSON form."""
        from msgspec import inspect

        try:
            info = inspect.type_info(annotation)
            schema = self._schema(info)
            msgspec.json.Decoder(annotation)
        except Exception as error:  # what the user's own classes may raise while they are looked at
            reason = str(error).partition(" is not supported")[0]
            if any(words in reason for words in _UNTAGGED):
                union = show(reason.rpartition(" - type ")[2].strip("`"))
                raise ConfigError(
                    f"{where}: JSON does not tell the members of `{union}` apart. Make each a class with a tag "
                    "(`class A(msgspec.Struct, tag=True)`), or take one class"
                ) from error
            raise ConfigError(
                f"{where}, which has no JSON form: {reason}. Supported are {SUPPORTED}"
            ) from error
        return schema

    def adopt(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Take in a schema made by pydantic, its `$defs` among ours."""
        theirs = schema.pop("$defs", {})
        names = {name: self._free_name(name) for name in theirs}
        for name, definition in theirs.items():
            self._definitions[names[name]] = _adapted(definition, names)
        return _adapted(schema, names)

    def finish(self, root: dict[str, Any]) -> dict[str, Any]:
        """`root` with the `$defs` it needs; those used in one place only stand there instead."""
        definitions = self._definitions
        uses: dict[str, int] = dict.fromkeys(definitions, 0)
        for schema in (root, *definitions.values()):
            for name in _references(schema):
                uses[name] += 1
        once = {name for name, count in uses.items() if count == 1}
        root = _inlined(root, definitions, once)
        kept = {
            name: _inlined(definitions[name], definitions, once) for name in definitions if name not in once
        }
        return {**root, "$defs": kept} if kept else root

    def _schema(self, info: Any) -> dict[str, Any]:
        kind = type(info).__name__
        if kind == "Metadata":
            return {**self._schema(info.type), **(info.extra_json_schema or {})}
        if kind in _SIMPLE:
            return _constrained(dict(_SIMPLE[kind]), info)
        if kind in _ARRAYS:
            items = self._schema(info.item_type)
            return _constrained({"type": "array", "items": items}, info)
        if kind == "TupleType":
            return _fixed_array([("", self._schema(item)) for item in info.item_types])
        if kind == "DictType":
            _check_key(info.key_type)
            values = self._schema(info.value_type)
            return _constrained({"type": "object", "additionalProperties": values or True}, info)
        if kind == "UnionType":
            return {"anyOf": [self._schema(member) for member in info.types]}
        if kind == "EnumType":
            return _enumeration([member.value for member in info.cls])
        if kind == "LiteralType":
            return _enumeration(sorted(info.values, key=str))
        if kind in _OBJECTS:
            return self._object(info)
        raise TypeError(f"`{show(getattr(info, 'cls', info))}`")

    def _object(self, info: Any) -> dict[str, Any]:
        cls = info.cls
        name = self._names.get(cls)
        if name is None:
            name = self._names[cls] = self._free_name(show(cls))
            self._definitions[name] = {}  # taken, before the fields are looked at
            origin = typing.get_origin(cls) or cls
            prose, descriptions = _field_descriptions(origin)
            if type(info).__name__ == "NamedTupleType" or getattr(info, "array_like", False):
                schema = _fixed_array([(field.name, self._schema(field.type)) for field in info.fields])
                schema["minItems"] = sum(field.required for field in info.fields)
            else:
                schema = self._closed_object(info, descriptions)
            self._definitions[name].update({"description": prose, **schema} if prose else schema)
        return {"$ref": f"#/$defs/{name}"}

    def _closed_object(self, info: Any, descriptions: dict[str, str]) -> dict[str, Any]:
        properties: dict[str, Any] = {}
        required: list[str] = []
        tag = getattr(info, "tag", None)
        if tag is not None:
            properties[info.tag_field] = {
                "type": "string" if isinstance(tag, str) else "integer",
                "enum": [tag],
            }
            required.append(info.tag_field)
        for field in info.fields:
            schema = self._schema(field.type)
            if field.name in descriptions:
                schema["description"] = descriptions[field.name]
            if field.required:
                required.append(field.encode_name)
            else:
                schema.update(_default(field))
            properties[field.encode_name] = schema
        return {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        }

    def _free_name(self, name: str) -> str:
        name = base = re.sub(r"\W+", "_", name).strip("_") or "type"
        number = 2
        while name in self._definitions:
            name, number = f"{base}_{number}", number + 1
        return name


def _check_key(info: Any) -> None:
    if not _is_key(info):
        # msgspec finds out only when it reads one.
        raise TypeError(
            "the keys of a dict are text in JSON, and no text becomes bool, None, a list or an object"
        )


def _is_key(info: Any) -> bool:
    kind = type(info).__name__
    if kind == "Metadata":
        return _is_key(info.type)
    if kind == "UnionType":
        return any(_is_key(member) for member in info.types)
    return kind not in _NO_KEYS and kind not in _ARRAYS and kind not in _OBJECTS


def _constrained(schema: dict[str, Any], info: Any) -> dict[str, Any]:
    for field, keyword in _BOUNDS.items():
        value = getattr(info, field, None)
        if value is not None:
            schema[keyword] = value
    noun = _LENGTHS.get(schema.get("type", ""))
    for field, prefix in (("min_length", "min"), ("max_length", "max")):
        value = getattr(info, field, None)
        if value is not None and noun is not None:
            schema[prefix + noun] = value
    return schema


def _enumeration(values: Sequence[Any]) -> dict[str, Any]:
    kinds = {type(value) for value in values}
    names = {str: "string", int: "integer", bool: "boolean"}
    if len(kinds) == 1 and (kind := kinds.pop()) in names:
        return {"type": names[kind], "enum": list(values)}
    return {"enum": list(values)}


def _fixed_array(items: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """A tuple. Providers want one schema for all items, so the order is told in words."""
    different: list[dict[str, Any]] = []
    for _, schema in items:
        if schema not in different:
            different.append(schema)
    inner = different[0] if len(different) == 1 else {"anyOf": different} if different else {}
    array: dict[str, Any] = {"type": "array", "items": inner, "minItems": len(items), "maxItems": len(items)}
    named = any(name for name, _ in items)
    if named or len(different) > 1:
        words = [f"{name} ({_word(schema)})" if name else _word(schema) for name, schema in items]
        array["description"] = f"in this order: {', '.join(words)}"
    return array


def _word(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_word(member) for member in schema["anyOf"])
    return str(schema.get("type") or schema.get("$ref", "any").rpartition("/")[2])


def _default(field: Any) -> dict[str, Any]:
    """The default of a field as JSON, if it has one that JSON can show."""
    default = field.default
    if field.default_factory in (list, dict, set, tuple):
        default = field.default_factory()
    if default is msgspec.NODEFAULT or default is msgspec.UNSET:
        return {}
    try:
        return {"default": msgspec.to_builtins(default, str_keys=True)}
    except Exception:  # it still applies when the field is left out
        return {}


def _field_descriptions(cls: type) -> tuple[str, dict[str, str]]:
    """What a class says about itself and its fields, in `Annotated` and in its own docstring."""
    hints = typing.get_type_hints(cls, include_extras=True)
    text = cls.__dict__.get("__doc__") or ""
    if text.startswith(f"{cls.__name__}("):
        text = ""  # made up by dataclass or namedtuple
    prose, descriptions = parse_docstring(text, hints)
    for name, hint in hints.items():
        if description := split_description(hint)[1]:
            descriptions[name] = description
    return prose, descriptions


# --- schemas as values ---------------------------------------------------------------------------------

_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")


def _mapped(schema: dict[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """A copy with `change` applied to each schema directly inside."""
    result: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties":
            result[key] = {name: change(inner) for name, inner in value.items()}
        elif key in _LISTS:
            result[key] = [change(inner) for inner in value]
        elif key in ("items", "additionalProperties") and isinstance(value, dict):
            result[key] = change(value)
        else:
            result[key] = value
    return result


def _references(schema: dict[str, Any]) -> list[str]:
    found: list[str] = []

    def look(inner: dict[str, Any]) -> dict[str, Any]:
        if "$ref" in inner:
            found.append(inner["$ref"].rpartition("/")[2])
        return _mapped(inner, look)

    look(schema)
    return found


def _inlined(
    schema: dict[str, Any], definitions: dict[str, dict[str, Any]], names: set[str]
) -> dict[str, Any]:
    if "$ref" in schema and (name := schema["$ref"].rpartition("/")[2]) in names:
        beside = {key: value for key, value in schema.items() if key != "$ref"}
        schema = {**definitions[name], **beside}
    return _mapped(schema, lambda inner: _inlined(inner, definitions, names))


def _adapted(schema: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """A schema of pydantic's in our subset: no titles, closed objects, `anyOf` for `oneOf`, plain tuples."""
    schema = _mapped(schema, lambda inner: _adapted(inner, names))
    schema.pop("title", None)
    schema.pop("discriminator", None)
    if "$ref" in schema:
        schema["$ref"] = f"#/$defs/{names[schema['$ref'].rpartition('/')[2]]}"
    if "oneOf" in schema:
        schema["anyOf"] = schema.pop("oneOf")
    if "prefixItems" in schema:
        items = [("", item) for item in schema.pop("prefixItems")]
        schema = {**_fixed_array(items), **{key: value for key, value in schema.items() if key != "items"}}
    if "properties" in schema:
        schema.setdefault("additionalProperties", False)
        schema.setdefault("required", [])
    return schema


# --- types ---------------------------------------------------------------------------------------------


def is_pydantic(cls: Any) -> bool:
    """True for a model or dataclass of pydantic, which is not imported to find out."""
    return "pydantic" in sys.modules and isinstance(cls, type) and hasattr(cls, "__pydantic_validator__")


def mentions_pydantic(annotation: Any, seen: set[Any] | None = None) -> bool:
    """True if a type of pydantic occurs anywhere in `annotation`, fields of classes included."""
    if "pydantic" not in sys.modules:
        return False
    if is_pydantic(annotation):
        return True
    seen = set() if seen is None else seen
    arguments = typing.get_args(annotation)
    if arguments:
        return any(mentions_pydantic(argument, seen) for argument in arguments)
    if not isinstance(annotation, type) or annotation in seen or issubclass(annotation, enum.Enum):
        return False
    seen.add(annotation)
    if not (
        dataclasses.is_dataclass(annotation)
        or typing.is_typeddict(annotation)
        or issubclass(annotation, msgspec.Struct)
        or hasattr(annotation, "_fields")
    ):
        return False
    try:
        hints = typing.get_type_hints(annotation)
    except Exception:  # reported where the type is really used
        return False
    return any(mentions_pydantic(hint, seen) for hint in hints.values())


_QUALIFIER = re.compile(r"""(?<!['"\w.])(?:[A-Za-z_]\w*\.|<locals>\.)+(?=[A-Za-z_])""")


def show(annotation: Any) -> str:
    """An annotation as its author wrote it."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation.__qualname__.rpartition("<locals>.")[2]
    return _QUALIFIER.sub("", str(annotation))
