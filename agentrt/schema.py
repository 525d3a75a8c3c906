"""JSON Schema and strict decoding for the arguments of tools and the structured output of agents.

Values are decoded by msgspec, pydantic's own types by pydantic. What does not fit is told in words for the model.
"""

from __future__ import annotations

import json
import re
import sys
import typing
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

from agentrt.errors import ConfigError, ToolError
from agentrt.json_schema import Schemas, is_pydantic, mentions_pydantic, show
from agentrt.signature import REQUIRED, Parameter, Signature, read_signature

__all__ = ["Arguments", "Output", "OutputError", "ToolArgumentError", "encode_result", "output_decoder"]

T = TypeVar("T")

SHOWN_CHARACTERS = 80
"""How much of an answer that does not fit its message shows."""


class ToolArgumentError(ToolError):
    """The model called a tool with arguments that do not fit; the message is written for the model.

    `argument`: the name of the one that is wrong, or None if it is all of them.
    """

    def __init__(self, message: str, *, argument: str | None = None) -> None:
        super().__init__(message)
        self.argument = argument


class OutputError(ToolError):
    """The model's answer does not fit the output type; the message is written for the model.

    It is one clause about "it", the answer, and ends with how the answer begins.
    """


# --- arguments -----------------------------------------------------------------------------------------


class Arguments:
    """The arguments of one tool: their JSON Schema, and the decoder of what a model sends.

    `signature`: what was read from the function. `schema`: a JSON Schema of type "object".
    """

    def __init__(self, signature: Signature, *, tool: str, subject: str | None = None) -> None:
        """`subject` stands in errors for "tool ... parameter ..."."""
        self.signature = signature
        self._adapters: dict[str, Any] = {}
        self.schema = self._build(tool, subject)

    @classmethod
    def of(
        cls,
        function: Callable[..., Any],
        *,
        tool: str,
        scope: Mapping[str, Any] | None = None,
        skip_first: bool = False,
    ) -> Arguments:
        """Those of `function`; raises `ConfigError`, naming `tool`, parameter and annotation, if one has no JSON form.

        `scope`: names of enclosing functions for postponed annotations. `skip_first`: leave out `self`.
        """
        signature = read_signature(function, tool=tool, scope=scope or {}, skip_first=skip_first)
        return cls(signature, tool=tool)

    def decode(self, data: str | bytes | Mapping[str, Any]) -> dict[str, Any]:
        """The arguments as Python values; parameters that the model left out are left out here too.

        `data`: JSON text as the model wrote it (empty text stands for no arguments), or a mapping that was decoded
        already. An int is taken for a float, and 5.0 for an int; nothing else is converted on the quiet.
        Raises `ToolArgumentError`, worded for the model.
        """
        if isinstance(data, Mapping):
            return self.convert(data)
        if not data or data.isspace():
            data = b"{}"
        try:
            values = self._decoder.decode(data)
        except msgspec.ValidationError as error:
            try:
                raw = msgspec.json.decode(data)
            except msgspec.DecodeError:
                raise self._mistake(str(error)) from error
            return self.convert(raw, is_json=True)
        except (msgspec.DecodeError, UnicodeError) as error:
            raise ToolArgumentError(f"the arguments are not valid JSON: {error}") from error
        return self._finish(values, _decode_json(data) if self._is_nested else None, is_json=True)

    def convert(self, data: Any, *, is_json: bool = False) -> dict[str, Any]:
        """The same from a mapping; `is_json`: all its values came from JSON."""
        if isinstance(data, Mapping) and not isinstance(data, dict):
            data = dict(data)
        try:
            values = self._convert(data)
        except msgspec.ValidationError as error:
            raise self._mistake(str(error)) from error
        return self._finish(values, data if self._is_nested else None, is_json=is_json)

    def _convert(self, data: Any) -> Any:
        try:
            return msgspec.convert(data, self._struct, str_keys=True)
        except msgspec.ValidationError as error:
            if "got `float`" not in str(error):
                raise
        # Once more with 5.0 read as 5: JSON does not tell them apart.
        return msgspec.convert(_whole_numbers(data), self._struct, str_keys=True)

    def _finish(self, values: Any, raw: Mapping[str, Any] | None, *, is_json: bool) -> dict[str, Any]:
        if raw is not None:
            self._refuse_unknown(raw)
        arguments = {}
        for name in self._names:
            value = getattr(values, name)
            if value is not UNSET:
                arguments[name] = value
        if self._adapters:
            self._validate_pydantic(arguments, is_json=is_json)
        return arguments

    def _build(self, tool: str, subject: str | None) -> dict[str, Any]:
        parameters = self.signature.parameters
        schemas = Schemas()
        properties: dict[str, Any] = {}
        fields: list[tuple[str, Any, Any] | tuple[str, Any]] = []
        for parameter in parameters:
            annotation = parameter.annotation
            where = (
                subject or f"tool {tool!r}: parameter {parameter.name!r} is annotated `{show(annotation)}`"
            )
            if mentions_pydantic(annotation):
                adapter = _adapter(annotation, where)
                self._adapters[parameter.name] = adapter
                schema = schemas.adopt(adapter.json_schema(ref_template="#/$defs/{model}"))
                annotation = Any
            else:
                schema = schemas.of(annotation, where)
            properties[parameter.name] = _described(schema, parameter)
            if parameter.default is REQUIRED:
                fields.append((parameter.name, annotation))
            else:
                fields.append((parameter.name, typing.Union[annotation, UnsetType], UNSET))  # noqa: UP007
        self._names = tuple(properties)
        self._struct = msgspec.defstruct("Arguments", fields, kw_only=True, forbid_unknown_fields=True)
        self._decoder = msgspec.json.Decoder(self._struct)
        root: dict[str, Any] = {"type": "object", "properties": properties}
        root["required"] = [p.name for p in parameters if p.default is REQUIRED]
        root["additionalProperties"] = False
        self._is_nested = schemas.has_objects
        return schemas.finish(root)

    def _mistake(self, text: str) -> ToolArgumentError:
        problem, path = _split_path(text)
        if missing := re.fullmatch(r"Object missing required field `(.+)`", problem):
            if not path:
                return ToolArgumentError(f"argument `{missing[1]}` is missing", argument=missing[1])
            said = f"the field `{missing[1]}` is missing"
        elif unknown := re.fullmatch(r"Object contains unknown field `(.+)`", problem):
            if not path:
                return self._unknown(unknown[1])
            said = f"there is no field `{unknown[1]}`"
        else:
            said = _plain(problem)
        if not path:
            got = problem.rpartition("got ")[2].strip("`")
            return ToolArgumentError(f"the arguments must be a JSON object, not {_ARTICLES.get(got, got)}")
        name = re.split(r"[.\[]", path[2:], maxsplit=1)[0]
        allowed = _allowed(self.schema, path) if problem.startswith(("Invalid enum", "Invalid value")) else ""
        return ToolArgumentError(f"argument `{name}`: {said} at {path}{allowed}", argument=name)

    def _unknown(self, name: str) -> ToolArgumentError:
        known = ", ".join(f"`{known}`" for known in self._names)
        return ToolArgumentError(
            f"there is no argument `{name}`; "
            + (f"the arguments are {known}" if known else "this tool takes none"),
            argument=name,
        )

    def _refuse_unknown(self, raw: Mapping[str, Any]) -> None:
        """msgspec passes over unknown keys of a dataclass; the schema forbids them, so the model learns of it."""
        for name, value in raw.items():
            if name not in self._adapters:
                found = _unknown_key(value, self.schema["properties"][name], self.schema, f"$.{name}")
                if found is not None:
                    raise ToolArgumentError(f"argument `{name}`: there is no field {found}", argument=name)

    def _validate_pydantic(self, arguments: dict[str, Any], *, is_json: bool) -> None:
        for name, adapter in self._adapters.items():
            if name in arguments:
                try:
                    if is_json:
                        arguments[name] = adapter.validate_json(msgspec.json.encode(arguments[name]))
                    else:
                        arguments[name] = adapter.validate_python(arguments[name])
                except ValueError as error:
                    problems = _pydantic_problems(error, f"$.{name}")
                    raise ToolArgumentError(f"argument `{name}`: {problems}", argument=name) from error


def _described(schema: dict[str, Any], parameter: Parameter) -> dict[str, Any]:
    """The schema of one parameter with its description and default."""
    if parameter.description:
        schema = {**schema, "description": parameter.description}
    if parameter.default is not REQUIRED:
        try:
            schema = {**schema, "default": msgspec.to_builtins(parameter.default, str_keys=True)}
        except Exception:
            pass  # a default that JSON cannot show still applies when the argument is left out
    return schema


# --- output --------------------------------------------------------------------------------------------


class Output(Struct, Generic[T], frozen=True, eq=False):
    """A structured output: its `name`, its JSON Schema (always of an object), and `decode` for the model's text.

    A type that is not an object is asked for as `{"result": ...}`, and `decode` takes it out again.
    """

    name: str
    schema: dict[str, Any]
    decoder: Any
    wrapped: bool

    def decode(self, text: str | bytes) -> T:
        """The value; raises `OutputError`, worded for the model. Markdown's code fences around it are passed over."""
        data = _unfenced(text)
        if not data.strip():
            raise OutputError("it is empty")
        try:
            if self.wrapped:
                arguments = self.decoder.decode(data)
            else:
                arguments = self.decoder.convert({"result": _decode_json(data)}, is_json=True)
        except ToolArgumentError as error:
            raise OutputError(f"{_as_answer(str(error))}: {_beginning(data)}") from error
        return typing.cast("T", arguments["result"])


def output_decoder(type_: type[T]) -> Output[T]:
    """Schema and decoder for `output=type_`; raises `ConfigError` if the type has no JSON form."""
    name = re.sub(r"\W+", "_", getattr(type_, "__name__", "") or show(type_)).strip("_")[:64] or "output"
    parameter = Parameter("result", type_, REQUIRED, "")
    signature = Signature((parameter,), None, (), "")
    decoder = Arguments(signature, tool=name, subject=f"the output type is `{show(type_)}`")
    schema = dict(decoder.schema)
    inner = _resolve(schema["properties"]["result"], schema)
    if inner.get("type") != "object" or "properties" not in inner:
        return Output(name, schema, decoder, True)
    root = {key: value for key, value in inner.items() if key != "$defs"}
    if "$defs" in schema:
        root["$defs"] = schema["$defs"]
    return Output(name, root, decoder, False)


def _decode_json(data: str | bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise ToolArgumentError(f"the arguments are not valid JSON: {error}") from error


def _unfenced(text: str | bytes) -> bytes:
    data = text.encode("utf-8", "replace") if isinstance(text, str) else text
    fenced = re.fullmatch(rb"\s*```\w*\s*\n(.*)\n\s*```\s*", data, re.DOTALL)
    return fenced[1] if fenced else data


def _as_answer(message: str) -> str:
    message = message.removeprefix("argument `result`: ").replace("$.result", "$")
    message = message.replace("the arguments are not", "it is not").replace("the arguments must", "it must")
    if invalid := re.fullmatch(r"(it is not valid JSON): (?:JSON is malformed: )?(.*)", message, re.DOTALL):
        reason = re.sub(r" \((byte \d+)\)$", r" at \1", invalid[2])
        return f"{invalid[1]} ({reason[:1].lower()}{reason[1:]})"
    return message.replace("argument", "field")


def _beginning(data: bytes) -> str:
    """The first characters of an answer, in quotes."""
    text = data[: 4 * SHOWN_CHARACTERS + 4].decode("utf-8", "replace").strip()
    return repr(text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}...")


# --- results -------------------------------------------------------------------------------------------


def encode_result(value: Any, *, tool: str) -> str:
    """What the model sees of a tool's result: text as it is, anything else as JSON.

    Raises `ConfigError`, naming `tool` and the type, for a value that has no JSON form.
    """
    if isinstance(value, str):
        if value.isascii():
            return value
        # A lone surrogate (from a file name, say) cannot go over any wire.
        return value.encode("utf-8", "replace").decode()
    try:
        try:
            return msgspec.json.encode(value, enc_hook=_encode_pydantic).decode()
        except UnicodeEncodeError:  # the same surrogate, deeper inside: written as an escape
            return json.dumps(msgspec.to_builtins(value, str_keys=True, enc_hook=_encode_pydantic))
    except (TypeError, ValueError, NotImplementedError, OverflowError, RecursionError) as error:
        raise ConfigError(
            f"tool {tool!r} returned a {show(type(value))}, which cannot be sent to the model: {error}. "
            "Return text, or something that has a JSON form"
        ) from error


# --- words for the model -------------------------------------------------------------------------------

_ARTICLES = {"array": "an array", "str": "a string", "int": "a number", "float": "a number", "null": "null"}


def _split_path(text: str) -> tuple[str, str]:
    """msgspec's message and the path at its end ("" for the whole)."""
    match = re.fullmatch(r"(.*) - at (`key` in )?`(\$.*)`", text, re.DOTALL)
    if match is None:
        return text, ""
    return (f"a key is wrong, {_plain(match[1])}" if match[2] else match[1]), match[3]


def _plain(problem: str) -> str:
    text = problem.replace("`", "")
    return text[:1].lower() + text[1:]


def _resolve(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    return schema


def _allowed(root: dict[str, Any], path: str) -> str:
    """The values that the schema allows at `path`, if it lists them there."""
    found = [root]
    for step in re.findall(r"\.([^.\[]+)|\[(?:\d+|\.\.\.)\]", path):
        inner = [
            choice.get("properties", {}).get(step)
            if step
            else choice.get("items", choice.get("additionalProperties"))
            for choice in _choices(found, root)
        ]
        found = [schema for schema in inner if isinstance(schema, dict)]
    values = [value for choice in _choices(found, root) for value in choice.get("enum", [])]
    return f"; allowed are {', '.join(map(repr, values))}" if values else ""


def _choices(schemas: list[dict[str, Any]], root: dict[str, Any]) -> list[dict[str, Any]]:
    """`schemas` without references and unions."""
    plain: list[dict[str, Any]] = []
    for schema in schemas:
        resolved = _resolve(schema, root)
        plain += _choices(resolved["anyOf"], root) if "anyOf" in resolved else [resolved]
    return plain


def _unknown_key(value: Any, schema: dict[str, Any], root: dict[str, Any], path: str) -> str | None:
    """The first key of an object in `value` that `schema` does not know."""
    schema = _resolve(schema, root)
    if "anyOf" in schema:
        found = [
            _unknown_key(value, member, root, path)
            for member in schema["anyOf"]
            if _fits(value, member, root)
        ]
        return None if None in found else next(iter(found), None)
    if isinstance(value, Mapping):
        properties = schema.get("properties", {})
        others = schema.get("additionalProperties", True)
        for key, inner in value.items():
            if key not in properties and others is False:
                return f"`{key}` at {path}"
            expected = properties.get(key, others)
            found_inside = (
                _unknown_key(inner, expected, root, f"{path}.{key}") if isinstance(expected, dict) else None
            )
            if found_inside is not None:
                return found_inside
    elif isinstance(value, list | tuple) and "items" in schema:
        for index, inner in enumerate(value):
            if (found_inside := _unknown_key(inner, schema["items"], root, f"{path}[{index}]")) is not None:
                return found_inside
    return None


def _fits(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    kind = "object" if isinstance(value, Mapping) else "array" if isinstance(value, list | tuple) else None
    return kind is None or _resolve(schema, root).get("type", kind) == kind


def _whole_numbers(value: Any) -> Any:
    """`value` with 5.0 as 5 everywhere: floats are made from ints again where they are expected."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: _whole_numbers(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_whole_numbers(inner) for inner in value]
    return value


# --- pydantic ------------------------------------------------------------------------------------------


def _adapter(annotation: Any, where: str) -> Any:
    pydantic = sys.modules["pydantic"]
    try:
        adapter = pydantic.TypeAdapter(annotation)
        adapter.json_schema()
    except Exception as error:  # pydantic has a family of errors for types, without a common base
        raise ConfigError(f"{where}, for which pydantic has no JSON form: {error}") from error
    return adapter


def _pydantic_problems(error: ValueError, path: str) -> str:
    """Up to three of the problems that pydantic found, each with its place."""
    problems: list[str] = []
    for problem in getattr(error, "errors", list)()[:3]:
        place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in problem["loc"])
        problems.append(f"{problem['msg'][:1].lower()}{problem['msg'][1:]} at {path}{place}")
    return "; ".join(problems) or str(error)


def _encode_pydantic(value: Any) -> Any:
    if is_pydantic(type(value)):
        return sys.modules["pydantic"].TypeAdapter(type(value)).dump_python(value, mode="json")
    raise TypeError(f"a {show(type(value))} has no JSON form")
