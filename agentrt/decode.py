"""Options of a class, decoded from a table of a configuration file.

The options of a class are the keyword-only parameters of its constructor (the fields, if it is a msgspec Struct); a
`*parameter` is an option that takes a list. Plugins, pipeline stages and the sections of the configuration all come
through here, so that a mistake is refused in the same words everywhere: where it stands, what it is, what is allowed.
"""

from __future__ import annotations

import enum
import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Literal, TypeVar, Union

import msgspec
from msgspec import Struct

from agentrt.errors import ConfigError, PluginError

__all__ = [
    "Option",
    "Path",
    "Text",
    "Where",
    "build",
    "choices",
    "decode",
    "dotted",
    "holds_secret",
    "options_of",
    "parse_text",
    "shown",
]

T = TypeVar("T")
Path = tuple[str, ...]
"""The keys that lead to a value, from the outermost table inwards."""

_SECRET_NAMES = frozenset({"apikey", "passwd", "credential", "credentials", "pwd"})
_SECRET_WORDS = (
    "api_key",
    "access_key",
    "authorization",
    "password",
    "private_key",
    "secret",
    "secret_key",
    "token",
)


class Text(str):
    """A value that came as text (environment, command line): the option that it is for decides what it means."""

    __slots__ = ()


class Where(Struct, frozen=True, eq=False):
    """Where a table stands, for messages: its `path`, and a function from the path of a value to its origin
    ("agentrt.toml:12", "AGENTRT_RUN__TIMEOUT", "" if it has none). `also`: keys of this table that somebody else reads.
    The default stands for values given in code."""

    path: Path = ()
    origin: Callable[[Path], str] | None = None
    also: Collection[str] = ()

    def below(self, *names: str) -> Where:
        """Where a value or table inside this one stands."""
        return Where((*self.path, *names), self.origin)

    def error(self, message: str) -> ConfigError:
        """`message`, said of the value at this path."""
        return ConfigError(f"{self.prefix}{message}")

    def unknown(self, name: str, allowed: Collection[str]) -> ConfigError:
        """The error for a key that is none of `allowed`."""
        table = f"[{dotted(self.path)}]" if self.path else "the configuration"
        return self.below(name).error(f"{table} has no {name!r}{choices(name, {*allowed, *self.also})}")

    @property
    def prefix(self) -> str:
        """ "agentrt.toml:12: ", the beginning of a message; nothing for a table that nobody wrote."""
        place = str(self)
        return f"{place}: " if place else ""

    def __str__(self) -> str:
        return "in code" if self.origin is None else self.origin(self.path)


class Option(Struct, frozen=True, eq=False):
    """One option of a class, and what a configuration file may say for it.

    `plain`: the type that msgspec converts to; `made`: classes that are made from text (`parse(text)`, paths);
    `nested`: a class that is made from a table of its own; `none`: None is allowed, in a file written `false`;
    `spread`: the list becomes positional arguments; `allowed`: all that in words.
    """

    name: str
    required: bool
    allowed: str
    plain: Any = None
    made: tuple[Any, ...] = ()
    nested: type | None = None
    none: bool = False
    spread: bool = False


# --- from a table to an object ---------------------------------------------------------------------------


def decode(cls: type, table: Mapping[str, Any], *, where: Where) -> dict[str, Any]:
    """The values of `table` as the options of `cls` want them.

    Raises `ConfigError` for an unknown key or a value of the wrong type.
    """
    options = options_of(cls)
    for name in table:
        if name not in options:
            raise where.unknown(name, options)
    return {name: _take(options[name], value, where.below(name)) for name, value in table.items()}


def build(
    cls: type[T],
    table: Mapping[str, Any],
    *,
    where: Where,
    defaults: Mapping[str, Any] | None = None,
    tables: Mapping[str, Where] | None = None,
) -> T:
    """An object of `cls`, with the options of `table`.

    `defaults`: options already decoded, for those that the table leaves out; `tables`: the tables that these come from,
    by option. Raises `ConfigError`, also for a value that the constructor refuses with `ConfigError` or `ValueError`;
    anything else that it raises propagates.
    """
    values = {**(defaults or {}), **decode(cls, table, where=where)}
    spread: list[Any] = []
    for option in options_of(cls).values():
        if option.required and option.name not in values:
            raise where.error(f"{_bracketed(where)}needs the option {option.name!r}: {option.allowed}")
        if option.spread:
            spread = values.pop(option.name, [])
    try:
        return cls(*spread, **values)
    except (ConfigError, ValueError) as error:
        raise _refused(str(error), values, where, tables or {}) from error


def _refused(
    message: str, values: Mapping[str, Any], where: Where, tables: Mapping[str, Where]
) -> ConfigError:
    """What the constructor said, at the place of the option that its message begins with."""
    subject = message.split(" ", 1)[0].strip("'\"`:")
    option = subject.rpartition(".")[2]
    if option not in values:
        return where.error(f"{_bracketed(where)}{message}")
    where = tables.get(option, where)
    if holds_secret(option):
        message = f"{option} is not accepted"  # the constructor's words may quote the value
    return where.below(option).error(message if "." in subject else f"{_bracketed(where)}{message}")


def _bracketed(where: Where) -> str:
    return f"[{dotted(where.path)}] " if where.path else ""


def _take(option: Option, value: Any, where: Where) -> Any:
    if isinstance(value, dict) and option.nested is not None:
        return build(option.nested, value, where=where)
    if not _holds_text(value):
        return _convert(option, value, where, strict=True)
    try:
        return _take(option, _without_text(value, parse_text), where)
    except ConfigError as refused:
        # `api_key=12345` is a number only for those who want one, and `true` may be somebody's name.
        try:
            return _convert(option, _without_text(value, str), where, strict=False)
        except ConfigError:
            raise refused from None


def _convert(option: Option, value: Any, where: Where, *, strict: bool) -> Any:
    if option.none and (value is None or (value is False and not _takes_bool(option.plain))):
        return None
    if isinstance(value, str):
        for cls in option.made:
            return _make(cls, value, where)
    if option.plain is not None:
        try:
            return msgspec.convert(value, option.plain, strict=strict)
        except msgspec.ValidationError as error:
            raise where.error(_mismatch(option, value, where, str(error))) from None
        except TypeError as error:
            raise PluginError(
                f"the type of the option {option.name!r} cannot be read from a file: {error}"
            ) from error
    raise where.error(f"{dotted(where.path)} must be {option.allowed}, not {shown(where.path, value)}")


def _make(cls: Any, text: str, where: Where) -> Any:
    if _is_path(cls):
        return cls(text)
    try:
        return cls.parse(text)
    except (ConfigError, ValueError) as error:
        raise where.error(f"{dotted(where.path)}: {error}") from error


def _mismatch(option: Option, value: Any, where: Where, detail: str) -> str:
    """What msgspec said, in our words; inside a list or table, or beyond a bound, its own words are the better."""
    name, given = dotted(where.path), shown(where.path, value)
    what, _, inside = detail.partition(" - at `$")
    if not inside and (", got " in what or what.startswith("Invalid enum value")):
        return f"{name} must be {option.allowed}, not {given}"
    place = inside.rstrip("`")
    if unknown := re.fullmatch(r"Object contains unknown field `(.+)`", what):
        known = {each.name for cls in _structs(option.plain) for each in msgspec.structs.fields(cls)}
        return f"{name}{place} has no {unknown[1]!r}{choices(unknown[1], known)}"
    return f"{name}{place}: {what[:1].lower()}{what[1:].replace('`', '')}, not {given}"


def _structs(plain: Any) -> Iterator[type[Struct]]:
    """The Structs that a type mentions, such as those of a list of tables."""
    if isinstance(plain, type) and issubclass(plain, Struct):
        yield plain
    for argument in typing.get_args(plain):
        yield from _structs(argument)


def _takes_bool(plain: Any) -> bool:
    return plain is Any or plain is bool or bool in typing.get_args(plain)


def _holds_text(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_holds_text(item) for item in value.values())
    return isinstance(value, Text)


def _without_text(value: Any, meaning: Callable[[str], Any]) -> Any:
    if isinstance(value, dict):
        return {name: _without_text(item, meaning) for name, item in value.items()}
    return meaning(value) if isinstance(value, Text) else value


def parse_text(text: str) -> Any:
    """The value that `text` stands for: JSON, or a TOML value, or else the text itself.

    `30` and `1_000` are numbers, `true` and `false` booleans, `["a"]` and `{a = 1}` a list and a table.
    """
    text = str(text)
    start = text.strip()[:1]
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        pass
    if start and start in "[{'\"+-0123456789":
        import tomllib

        try:
            table = tomllib.loads(f"value = {text}")
        except (tomllib.TOMLDecodeError, RecursionError):
            return text
        if len(table) == 1:  # one value, not several lines of them
            return table["value"]
    return text


# --- from a class to its options -------------------------------------------------------------------------


def options_of(cls: type) -> Mapping[str, Option]:
    """The options of `cls` by name: those that a configuration file can hold a value for.

    A parameter of any other type (a function, an object) can only be given in code and is left out. Raises
    `PluginError` if the constructor's annotations cannot be understood.
    """
    return _options_of(cls)


@functools.lru_cache(maxsize=256)
def _options_of(cls: Any) -> Mapping[str, Option]:
    package = cls.__module__.partition(".")[0]
    found = (
        _option(name, hint, package=package, required=required, spread=spread)
        for name, hint, required, spread in _parameters(cls)
    )
    return types.MappingProxyType({option.name: option for option in found if option is not None})


def _parameters(cls: type) -> Iterator[tuple[str, Any, bool, bool]]:
    """(name, type, required, spread) of everything that the constructor takes by keyword, and its `*parameter`."""
    if issubclass(cls, Struct):
        for field in msgspec.structs.fields(cls):
            yield field.name, field.type, field.required, False
        return
    if cls.__init__ is object.__init__:
        return
    try:
        hints = typing.get_type_hints(cls.__init__, include_extras=True)
        signature = inspect.signature(cls.__init__)
    except Exception as error:
        raise PluginError(
            f"the annotations of {cls.__module__}.{cls.__qualname__}'s constructor cannot be understood: "
            f"{type(error).__name__}: {error}"
        ) from error
    for parameter in list(signature.parameters.values())[1:]:
        hint = hints.get(parameter.name, Any)
        required = parameter.default is parameter.empty
        if parameter.kind is parameter.KEYWORD_ONLY:
            yield parameter.name, hint, required, False
        elif parameter.kind is parameter.VAR_POSITIONAL:
            yield parameter.name, hint, False, True
        elif parameter.kind is not parameter.VAR_KEYWORD and required:
            raise PluginError(
                f"{cls.__module__}.{cls.__qualname__} cannot be made from options: "
                f"{parameter.name!r} is not keyword-only"
            )


def _option(name: str, hint: Any, *, package: str, required: bool, spread: bool) -> Option | None:
    plain: list[Any] = []
    made: list[Any] = []
    nested: type | None = None
    members = list(_members(hint))
    none = any(member in (None, type(None)) for member in members)
    for member in members:
        if nested is None and _is_nested(member, package):
            nested = member
        elif _is_plain(member):
            plain.append(member)
        elif isinstance(member, type) and (_is_path(member) or hasattr(member, "parse")):
            made.append(member)
    if len(plain) > 1 or nested is not None or made:
        plain = [member for member in plain if member is not Any]
    if not (plain or made or nested) and not required:
        return None
    words = [_words(member) for member in (*plain, *made)] + (["a table"] if nested else [])
    if none and bool not in plain:
        words.append("false (off)")
    allowed = " or ".join(dict.fromkeys(words)) or "something that can only be given in code"
    kind: Any = Union[tuple(plain)] if plain else None  # noqa: UP007 - made at run time
    if spread:
        kind, allowed = (list[kind] if plain else None), f"a list of {_plural(kind)}"
    return Option(name, required, allowed, kind, tuple(made), nested, none, spread)


def _members(hint: Any) -> Iterator[Any]:
    """The members of a union, those of aliases in it included."""
    hint = getattr(hint, "__value__", hint)  # `type X = ...` of Python 3.12
    if typing.get_origin(hint) in (Union, types.UnionType):
        for member in typing.get_args(hint):
            yield from _members(member)
    else:
        yield hint


_SCALARS = (str, int, float, bool, Any, object)
_CONTAINERS = (
    "list",
    "set",
    "frozenset",
    "tuple",
    "dict",
    "Sequence",
    "Set",
    "Mapping",
    "Collection",
    "Iterable",
)


def _is_plain(hint: Any) -> bool:
    """Whether msgspec can make such a value from what a TOML file holds."""
    if any(hint is scalar for scalar in _SCALARS):
        return True
    origin = typing.get_origin(hint) or hint
    if origin is Literal:
        return True
    if origin is typing.Annotated:
        return _is_plain(typing.get_args(hint)[0])
    if hasattr(hint, "__supertype__"):
        return _is_plain(hint.__supertype__)
    if not isinstance(origin, type):
        return False
    if origin.__module__ in ("builtins", "collections.abc") and origin.__name__ in _CONTAINERS:
        return all(
            argument in (..., None, type(None)) or _is_plain(argument)
            for part in typing.get_args(hint)
            for argument in _members(part)
        )
    if origin.__module__ in ("datetime", "decimal", "uuid"):
        return True
    if typing.is_typeddict(origin) or hasattr(origin, "__dataclass_fields__"):
        return True
    return issubclass(origin, Struct | enum.Enum)


def _is_path(cls: type) -> bool:
    return hasattr(cls, "__fspath__")


def _is_nested(hint: Any, package: str) -> bool:
    """A Struct, or a class of the same package that is made from keywords alone, has a table of its own."""
    if not isinstance(hint, type) or hasattr(hint, "parse"):
        return False
    if issubclass(hint, Struct):
        return True
    if hint.__module__.partition(".")[0] != package or inspect.isabstract(hint):
        return False
    if getattr(hint, "_is_protocol", False):
        return False
    parameters = list(inspect.signature(hint.__init__).parameters.values())[1:]
    return bool(parameters) and all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters)


# --- words -----------------------------------------------------------------------------------------------

_WORDS: Mapping[Any, str] = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def _words(hint: Any) -> str:
    """What a value of this type looks like in a file."""
    if isinstance(hint, type) and hint in _WORDS:
        return _WORDS[hint]
    if hint is Any or hint is object:
        return "any value"
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if origin is typing.Annotated:
        return _words(arguments[0])
    if typing.is_typeddict(origin) or hasattr(origin, "__dataclass_fields__"):
        return "a table"
    if isinstance(origin, type) and origin.__module__ in ("builtins", "collections.abc"):
        if origin.__name__ in ("dict", "Mapping"):
            return f"a table of {_plural(arguments[1])}" if len(arguments) > 1 else "a table"
        return f"a list of {_plural(arguments[0])}" if arguments else "a list"
    if isinstance(origin, type) and _is_path(origin):
        return "a path"
    if isinstance(origin, type) and issubclass(origin, enum.Enum):
        return "one of " + ", ".join(repr(member.value) for member in origin)
    return f"a {getattr(origin, '__name__', str(origin))}"


def _plural(hint: Any) -> str:
    return {str: "texts", int: "whole numbers", float: "numbers", bool: "booleans"}.get(hint, "values")


def choices(name: str, allowed: Collection[str]) -> str:
    """The end of a sentence about an unknown name: `; did you mean 'timeout'? There are: limits, timeout`."""
    import difflib

    near = difflib.get_close_matches(name.lower().replace("-", "_"), allowed, n=1)
    known = ", ".join(sorted(allowed)) or "none"
    return f"; did you mean {near[0]!r}? There are: {known}" if near else f"; there are: {known}"


def dotted(path: Path) -> str:
    """A path as it is written in TOML."""
    return ".".join(
        part if part.replace("_", "a").replace("-", "a").isalnum() else f'"{part}"' for part in path
    )


def holds_secret(name: str) -> bool:
    """Whether an option of this name holds a secret: a key, a token, a password."""
    name = name.lower().replace("-", "_")
    return name in _SECRET_NAMES or any(name == word or name.endswith(f"_{word}") for word in _SECRET_WORDS)


def shown(path: Path, value: Any) -> str:
    """A value for messages: short, and never a secret."""
    value = _without_secrets(path, value)
    text = repr(str(value)) if isinstance(value, str) else repr(value)
    if isinstance(value, bool):
        text = text.lower()
    return text if len(text) <= 80 else f"{text[:77]}..."


def _without_secrets(path: Path, value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_secrets((*path, name), item) for name, item in value.items()}
    if isinstance(value, str) and value.startswith("secret://"):
        return str(value)
    if path and holds_secret(path[-1]) and not isinstance(value, bool | None):
        return "***"
    return str(value) if isinstance(value, str) else value
