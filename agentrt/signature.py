"""What a function's signature and docstring say about its parameters, postponed annotations resolved."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, get_args, get_origin

from msgspec import Struct

from agentrt.errors import ConfigError

__all__ = ["Parameter", "Signature", "parse_docstring", "read_signature"]

REQUIRED = inspect.Parameter.empty
"""The default of a parameter that has none."""

_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")


class Parameter(Struct, frozen=True, eq=False):
    """One parameter that the model fills in; `default` is `REQUIRED` if there is none."""

    name: str
    annotation: Any
    default: Any
    description: str


class Signature(Struct, frozen=True, eq=False):
    """`parameters`: what the model fills in. `context`: the name of the parameter that gets the run's context,
    or None. `positional`: those of all these that can only be given by position, in order. `description`: the
    docstring's prose."""

    parameters: tuple[Parameter, ...]
    context: str | None
    positional: tuple[str, ...]
    description: str


def read_signature(
    function: Callable[..., Any], *, tool: str, scope: Mapping[str, Any], skip_first: bool = False
) -> Signature:
    """Read `function`.

    `scope`: names of the enclosing functions, for annotations that are still text. `skip_first`: the first
    parameter is `self` or `cls`. Raises `ConfigError`, naming `tool` and the parameter, for what no model
    could fill in: `*args`, `**kwargs`, a parameter without annotation, or a name that providers refuse.
    """
    declared = list(inspect.signature(function).parameters.values())[1 if skip_first else 0 :]
    hints = _Hints(function, scope)
    description, described = parse_docstring(function.__doc__, {p.name for p in declared})
    parameters: list[Parameter] = []
    context: inspect.Parameter | None = None
    for parameter in declared:
        problem = _problem(parameter)
        if problem:
            raise ConfigError(f"tool {tool!r}: {problem}")
        try:
            annotation = hints.resolve(parameter)
        except Exception as error:
            if _names_context(parameter.annotation):
                annotation = _Context
            else:
                raise ConfigError(
                    f"tool {tool!r}: the annotation of parameter {parameter.name!r}, {parameter.annotation!r}, "
                    f"cannot be resolved: {error}. Define or import the name before the tool, and not only under "
                    "TYPE_CHECKING"
                ) from error
        is_bare = annotation is REQUIRED and parameter.name == "context"
        if parameter.name == "ctx" or is_bare or is_context(annotation):
            if context is not None:
                raise ConfigError(
                    f"tool {tool!r}: {context.name!r} and {parameter.name!r} would both get the context; keep one"
                )
            context = parameter
            continue
        if annotation is REQUIRED:
            raise ConfigError(
                f"tool {tool!r}: parameter {parameter.name!r} has no annotation; annotate it, for example "
                f"`{parameter.name}: str`, so that the model knows what to send"
            )
        annotation, text = split_description(annotation)
        if parameter.default is None and not _allows_none(annotation):
            annotation = typing.Optional[annotation]  # noqa: UP045 (`|` fails for a few typing objects)
        parameters.append(
            Parameter(
                parameter.name,
                annotation,
                parameter.default,
                text or described.get(parameter.name, ""),
            )
        )
    return Signature(
        tuple(parameters),
        None if context is None else context.name,
        tuple(p.name for p in declared if p.kind is p.POSITIONAL_ONLY),
        description,
    )


def _problem(parameter: inspect.Parameter) -> str | None:
    if parameter.kind is parameter.VAR_POSITIONAL:
        return f"*{parameter.name} has no place in a JSON object; take a list: `{parameter.name}: list[str]`"
    if parameter.kind is parameter.VAR_KEYWORD:
        return f"**{parameter.name} has no fixed names; take a dict: `{parameter.name}: dict[str, str]`"
    if not _NAME.fullmatch(parameter.name):
        return (
            f"parameter {parameter.name!r} has a name that model providers refuse; use up to 64 of the characters "
            "a-z, A-Z, 0-9 and _"
        )
    return None


# --- annotations ---------------------------------------------------------------------------------------


class _Context:
    """Stands for a context class that cannot be imported at run time."""


class _Hints:
    """Resolves a function's annotations one by one, so that an error can name its parameter."""

    def __init__(self, function: Callable[..., Any], scope: Mapping[str, Any]) -> None:
        plain = inspect.unwrap(function)
        plain = getattr(plain, "__func__", plain)
        self._globals = getattr(plain, "__globals__", {})
        # A class body's and an enclosing function's names come first, as they do where Python evaluates at once.
        self._locals = {**_closure(plain), **scope}

    def resolve(self, parameter: inspect.Parameter) -> Any:
        annotation = parameter.annotation
        if annotation is REQUIRED:
            return REQUIRED
        holder = types.SimpleNamespace(__annotations__={parameter.name: annotation})
        hints = typing.get_type_hints(holder, self._globals, self._locals, include_extras=True)
        return hints[parameter.name]


def _closure(function: Callable[..., Any]) -> dict[str, Any]:
    if not inspect.isfunction(function):
        return {}
    names = function.__code__.co_freevars
    found: dict[str, Any] = {}
    for name, cell in zip(names, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return found


def split_description(annotation: Any) -> tuple[Any, str]:
    """Take the first string out of `Annotated[..., "what it is"]`; the rest of the annotation stays."""
    if get_origin(annotation) is not Annotated:
        inner = _qualified(annotation) or _optional(annotation)
        return annotation, "" if inner is None else split_description(inner)[1]
    kept, *extras = get_args(annotation)
    text = next((extra for extra in extras if isinstance(extra, str)), "")
    others = tuple(extra for extra in extras if not isinstance(extra, str))
    return (Annotated[(kept, *others)] if others else kept), text.strip()


def _qualified(annotation: Any) -> Any:
    """The X of `Required[X]` and `NotRequired[X]`, else None."""
    return (
        get_args(annotation)[0] if get_origin(annotation) in (typing.Required, typing.NotRequired) else None
    )


def _optional(annotation: Any) -> Any:
    """The X of `X | None`, else None."""
    if get_origin(annotation) not in (typing.Union, types.UnionType):
        return None
    members = [member for member in get_args(annotation) if member is not type(None)]
    return members[0] if len(members) == 1 else None


def _allows_none(annotation: Any) -> bool:
    if get_origin(annotation) is Annotated:
        return _allows_none(get_args(annotation)[0])
    return annotation in (None, type(None), Any) or type(None) in get_args(annotation)


def is_context(annotation: Any) -> bool:
    """True for the context class of agentrt, a subclass of it, and each of them or None."""
    if annotation is _Context:
        return True
    if get_origin(annotation) is Annotated:
        return is_context(get_args(annotation)[0])
    inner = _optional(annotation)
    if inner is not None:
        return is_context(inner)
    return isinstance(annotation, type) and any(
        base.__name__.endswith("Context") and base.__module__.partition(".")[0] == "agentrt"
        for base in annotation.__mro__
    )


def _names_context(annotation: Any) -> bool:
    """True for text such as "Context" or "agentrt.Context | None": usually imported for type checkers only."""
    if not isinstance(annotation, str):
        return False
    # Quotes inside the text: the author wrote "Context" with postponed annotations on.
    words = [word.strip(" '\"") for word in annotation.split("|")]
    return [word.rpartition(".")[2] for word in words if word != "None"] == ["Context"]


# --- docstrings ----------------------------------------------------------------------------------------

_GOOGLE = re.compile(r"(args|arguments|parameters|params|attributes)\s*:\s*$", re.IGNORECASE)
_GOOGLE_OTHER = re.compile(r"(returns?|raises|yields?|warns)\s*:\s*$", re.IGNORECASE)
_GOOGLE_ENTRY = re.compile(r"\s+\*{0,2}(\w+)\s*(?:\(.*?\))?\s*:(?:\s+|$)(.*)")
_NUMPY = re.compile(r"(parameters|other parameters|attributes)\s*$", re.IGNORECASE)
_NUMPY_ENTRY = re.compile(r"(\w+(?:\s*,\s*\w+)*)\s*(?::.*)?$")
_SPHINX = re.compile(r":(?:param|parameter|arg|argument)\s+(?:[^:]*\s)?(\w+)\s*:\s*(.*)")
_SPHINX_OTHER = re.compile(r":(?:type|returns?|rtype|raises?|yields?)\b.*:")


def parse_docstring(text: str | None, names: Collection[str]) -> tuple[str, dict[str, str]]:
    """The prose before the first section, and what the docstring says about each of `names`.

    Reads the Google, NumPy and Sphinx styles in their simple forms; what it does not understand stays prose.
    """
    if not text:
        return "", {}
    lines = inspect.cleandoc(text).splitlines()
    described: dict[str, list[str]] = {}
    end = len(lines)
    index = 0
    while index < len(lines):
        line = lines[index]
        if _GOOGLE.match(line):
            end, index = min(end, index), _read_google(lines, index + 1, described)
        elif _is_underlined(lines, index):
            section = index + 2
            end = min(end, index)
            index = _read_numpy(lines, section, described) if _NUMPY.match(line) else section
        elif match := _SPHINX.match(line):
            end, index = min(end, index), _read_sphinx(lines, index + 1, match, described)
        else:
            if _GOOGLE_OTHER.match(line) or _SPHINX_OTHER.match(line):
                end = min(end, index)
            index += 1
    prose = "\n".join(lines[:end]).strip()
    return prose, {name: " ".join(described[name]).strip() for name in names if name in described}


def _read_google(lines: list[str], index: int, described: dict[str, list[str]]) -> int:
    """Entries are indented, their continuations deeper. Returns the index of the first line after them."""
    depth: int | None = None
    current: list[str] = []
    while index < len(lines) and (not lines[index].strip() or lines[index][0].isspace()):
        line = lines[index]
        indent = len(line) - len(line.lstrip())
        if line.strip():
            depth = indent if depth is None else depth
            match = _GOOGLE_ENTRY.match(line) if indent <= depth else None
            if match:
                current = described.setdefault(match[1], [])
                current.append(match[2].strip())
            else:
                current.append(line.strip())
        index += 1
    return index


def _read_numpy(lines: list[str], index: int, described: dict[str, list[str]]) -> int:
    """Entries (`name : type`) are not indented, their descriptions are. Ends at the next underlined heading."""
    current: list[list[str]] = []
    while index < len(lines) and not _is_underlined(lines, index):
        line = lines[index]
        if line.strip() and not line[0].isspace():
            match = _NUMPY_ENTRY.match(line)
            names = re.split(r"\s*,\s*", match[1]) if match else []
            current = [described.setdefault(name, []) for name in names]
        elif line.strip():
            for entry in current:
                entry.append(line.strip())
        index += 1
    return index


def _read_sphinx(lines: list[str], index: int, match: re.Match[str], described: dict[str, list[str]]) -> int:
    entry = described.setdefault(match[1], [])
    entry.append(match[2].strip())
    while index < len(lines) and lines[index].strip() and lines[index][0].isspace():
        entry.append(lines[index].strip())
        index += 1
    return index


def _is_underlined(lines: list[str], index: int) -> bool:
    """A NumPy heading: a word, and dashes below it."""
    return (
        index + 1 < len(lines)
        and re.fullmatch(r"[A-Z][\w ]*", lines[index]) is not None
        and re.fullmatch(r"-{3,}\s*", lines[index + 1]) is not None
    )
