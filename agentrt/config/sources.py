"""The sources of the configuration, and the one tree that they are merged into.

Every value remembers where it came from. A later source wins value by value; tables are merged.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct

from agentrt.decode import Path, Text, Where, choices, dotted, holds_secret, parse_text
from agentrt.errors import ConfigError

__all__ = [
    "Document",
    "Origin",
    "Tree",
    "find_document",
    "merge_environment",
    "merge_overrides",
    "read_document",
]

FILE = "agentrt.toml"
PROJECT = "pyproject.toml"
PREFIX = "AGENTRT_"


class Document:
    """A configuration file: its name as messages show it, its text, and its table of ours."""

    def __init__(self, name: str, text: str, table: dict[str, Any], *, prefix: Path = ()) -> None:
        self.name = name
        self.text = text
        self.table = table
        self.prefix = prefix

    @functools.cached_property
    def _lines(self) -> dict[Path, int]:
        from agentrt.config.toml_lines import key_lines

        return key_lines(self.text)

    def place(self, path: Path) -> str:
        """ "agentrt.toml:12": the line of the value at `path`, or of the nearest table around it."""
        full = (*self.prefix, *path)
        while full and full not in self._lines:
            full = full[:-1]
        return f"{self.name}:{self._lines[full]}" if full else self.name


class Origin(Struct, frozen=True, eq=False):
    """Where a value came from; `str` gives it as users know it."""

    kind: Literal["file", "environment", "option", "code"]
    name: str
    path: Path = ()
    document: Document | None = None

    def __str__(self) -> str:
        return self.name if self.document is None else self.document.place(self.path)


class Tree:
    """The merged values as nested tables, and the origin of each table and value."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.origins: dict[Path, Origin] = {}

    def merge(self, path: Path, value: Any, origin: Origin) -> None:
        """Put `value` at `path`, over what is there; a table is merged into a table."""
        table = self.values
        for length, name in enumerate(path[:-1], start=1):
            inner = table.get(name)
            if not isinstance(inner, dict):
                inner = table[name] = {}
                self._forget(path[:length])
            self.origins[path[:length]] = self._at(origin, path[:length])
            table = inner
        self._put(table, path, value, origin)

    def _put(self, table: dict[str, Any], path: Path, value: Any, origin: Origin) -> None:
        name = path[-1]
        if not isinstance(value, dict):
            self._forget(path)
            table[name] = value
        else:
            if not isinstance(table.get(name), dict):
                self._forget(path)
                table[name] = {}
            for key, item in value.items():
                self._put(table[name], (*path, key), item, origin)
        self.origins[path] = self._at(origin, path)

    def _forget(self, path: Path) -> None:
        for known in [known for known in self.origins if known[: len(path)] == path]:
            del self.origins[known]

    @staticmethod
    def _at(origin: Origin, path: Path) -> Origin:
        return origin if origin.document is None else Origin(origin.kind, origin.name, path, origin.document)

    def origin(self, path: Path) -> str:
        """Where the value at `path` came from; for one that is missing, the nearest table around it, if any."""
        for length in range(len(path), 0, -1):
            found = self.origins.get(path[:length])
            if found is not None:
                return str(found)
        return ""

    def where(self, *path: str) -> Where:
        return Where(path, self.origin)

    def leaves(self) -> Iterator[tuple[Path, Any]]:
        """Every value that is no table, or an empty one, with its path."""
        return _leaves((), self.values)


def _leaves(path: Path, table: Mapping[str, Any]) -> Iterator[tuple[Path, Any]]:
    for name, value in table.items():
        if isinstance(value, dict) and value:
            yield from _leaves((*path, name), value)
        else:
            yield (*path, name), value


# --- files -----------------------------------------------------------------------------------------------


def find_document(directory: str | os.PathLike[str]) -> tuple[Document | None, list[str]]:
    """The configuration in `directory`: agentrt.toml, else [tool.agentrt] in pyproject.toml. With notes to tell."""
    own, project = os.path.join(directory, FILE), os.path.join(directory, PROJECT)
    if not os.path.exists(own):
        return _read_project(project), []
    document = read_document(own, name=FILE)
    try:
        ignored = _read_project(project) is not None
    except ConfigError:
        ignored = False  # a project file that cannot be read has no part in this
    return document, [f"{FILE} is used; [tool.agentrt] in {PROJECT} beside it is ignored"] if ignored else []


def _read_project(path: str) -> Document | None:
    if not os.path.exists(path):
        return None
    text = _read(path, PROJECT)
    if "agentrt" not in text or "tool" not in text:
        return None  # most projects' files are not ours: parsing them would cost every start
    data = _parse(text, PROJECT)
    table = data.get("tool", {})
    if not isinstance(table, dict) or "agentrt" not in table:
        return None
    return _document(PROJECT, text, table["agentrt"], prefix=("tool", "agentrt"))


def read_document(path: str | os.PathLike[str], *, name: str | None = None) -> Document:
    """The configuration file at `path`; of a file named pyproject.toml the table [tool.agentrt]."""
    name = os.fspath(path) if name is None else name
    text = _read(path, name)
    data = _parse(text, name)
    if os.path.basename(name) != PROJECT:
        return _document(name, text, data, prefix=())
    tool = data.get("tool", {})
    if not isinstance(tool, dict) or "agentrt" not in tool:
        raise ConfigError(f"{name} has no table [tool.agentrt]")
    return _document(name, text, tool["agentrt"], prefix=("tool", "agentrt"))


def _read(path: str | os.PathLike[str], name: str) -> str:
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{name} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}"
        ) from error
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {name}: {error.strerror or error}") from error


def _parse(text: str, name: str) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        what, _, place = str(error).partition(" (at ")
        at = re.match(r"line (\d+), column (\d+)", place)
        if at is not None:
            raise ConfigError(f"{name}:{at[1]}:{at[2]}: this is not TOML: {what}") from error
        raise ConfigError(f"{name}:{text.count(chr(10)) + 1}: this is not TOML: {what} at its end") from error


def _document(name: str, text: str, table: Any, *, prefix: Path) -> Document:
    if not isinstance(table, dict):
        raise ConfigError(f"{name}: {dotted(prefix)} must be a table, not {table!r}")
    document = Document(name, text, table, prefix=prefix)
    for path, text in _texts((), table):
        _check_secret(document, path, text)
    return document


def _texts(path: Path, value: Any) -> Iterator[tuple[Path, str]]:
    """Every text in a table, those in lists included, with the keys that lead to it."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _texts((*path, name), item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(path, item)


_REFERENCE = r"([A-Za-z-]{1,16} )?secret://"
"""How a value begins that holds no secret. A header has a word before it: "Bearer secret://token"."""

_PASSWORD_IN_URL = r"://[^/\s:@]*:[^/\s@]+@"


def _check_secret(document: Document, path: Path, text: str) -> None:
    """Secrets never stand in a configuration file: it is committed, copied and shown."""
    if not text or not path or re.match(_REFERENCE, text):
        return
    variable = f"{PREFIX}{'__'.join(path).upper()}" if all(map(str.isidentifier, path)) else "the environment"
    if holds_secret(path[-1]):
        remedy = f'holds a secret; write a reference such as "secret://env/NAME" instead, or set {variable}'
    elif re.search(_PASSWORD_IN_URL, text):
        remedy = f"holds a URL with a password; set {variable} instead"
    else:
        return
    raise ConfigError(f"{document.place(path)}: {dotted(path)} {remedy}: secrets never stand in a file")


# --- environment and command line ------------------------------------------------------------------------


def merge_environment(
    tree: Tree, environ: Mapping[str, str], *, sections: Sequence[str], settings: Sequence[Path]
) -> list[str]:
    """Merge `AGENTRT_SECTION__KEY` of `environ` into `tree`; returns notes about names that are nearly one.

    `sections`: the tables there are; `settings`: known paths, to recognise a single underscore as a mistake.
    """
    notes: list[str] = []
    meant = {"_".join(path): path for path in settings}
    for variable in sorted(name for name in environ if name.startswith(PREFIX)):
        name = variable[len(PREFIX) :].lower()
        path = tuple(name.split("__"))
        if len(path) > 1 or name in sections:
            _merge_text(tree, path, environ[variable], Origin("environment", variable), sections)
        elif name in meant:
            proper = PREFIX + "__".join(meant[name]).upper()
            raise ConfigError(
                f"{variable} is no setting; did you mean {proper}? Two underscores stand for each dot"
            )
        elif name.partition("_")[0] in sections:
            # Not an error: Kubernetes makes such variables for a service named agentrt-memory.
            notes.append(f"{variable} is ignored: two underscores stand for each dot of a setting")
    return notes


def merge_overrides(
    tree: Tree, overrides: Sequence[str] | Mapping[str, Any], *, sections: Sequence[str]
) -> None:
    """Merge `section.key=value` of the command line, or a mapping given in code, into `tree`."""
    if isinstance(overrides, Mapping):
        for key, value in overrides.items():
            path = _split(key, f"overrides[{key!r}]")
            origin = Origin("option", "overrides")
            _check_section(path, origin, sections)
            tree.merge(path, value, origin)
        return
    for override in overrides:
        key, equals, text = override.partition("=")
        origin = Origin("option", f"--set {key.strip()}")
        if not equals:
            raise ConfigError(f"--set wants section.key=value, not {override!r}")
        _merge_text(tree, _split(key, "--set"), text.strip(), origin, sections)


def _merge_text(tree: Tree, path: Path, text: str, origin: Origin, sections: Sequence[str]) -> None:
    if not all(path):
        raise ConfigError(f"{origin}: a part of its name is empty; write section.key with both")
    _check_section(path, origin, sections)
    value: Any = Text(text)
    if text.lstrip().startswith("{"):
        table = parse_text(text)
        value = table if isinstance(table, dict) else value
    if len(path) == 1 and not isinstance(value, dict):
        raise ConfigError(f"{origin}: [{path[0]}] is a table of settings; name one of them, as {path[0]}.KEY")
    tree.merge(path, value, origin)


def _check_section(path: Path, origin: Origin, sections: Sequence[str]) -> None:
    if path[0] not in sections:
        raise ConfigError(f"{origin}: there is no section {path[0]!r}{choices(path[0], sections)}")


_PART = r"""\s*(?:"([^"]*)"|'([^']*)'|([^.\s"']+))\s*(\.|\Z)"""


def _split(key: str, what: str) -> Path:
    """The parts of a dotted key; a part with a dot of its own stands in quotes."""
    parts: list[str] = []
    pattern = re.compile(_PART)
    at = 0
    while at < len(key) or not parts:
        match = pattern.match(key, at)
        if match is None or (match[4] == "." and match.end() == len(key)):
            raise ConfigError(f"{what}: {key!r} is not a setting's name such as run.timeout")
        parts.append(next(part for part in match.groups() if part is not None))
        at = match.end()
    return tuple(parts)
