"""Files of environment variables, for `--env-file`.

    file     = { line }
    line     = [ "export" ] name "=" [ value ] [ comment ]  |  comment  |  nothing
    name     = a letter or "_", then letters, digits, "_"
    comment  = "#" up to the end of the line; after an unquoted value only behind a blank
    value    = "..."   may span lines; the escapes are backslash n, r, t, ", $ and backslash itself, any other
                       backslash stays as it is
             | '...'   taken literally, may span lines
             | text up to the end of the line or a comment, without the blanks around it

Nothing is expanded: `$NAME` stays `$NAME`. A name given twice has its last value. Messages name file, line and
variable, never a value.
"""

from __future__ import annotations

import os
import re
from collections.abc import MutableMapping

from agentrt.errors import ConfigError

__all__ = ["load_env_file", "parse_env"]

_BLANK = re.compile(r"(?:\s+|#[^\n]*)*")
_NAME = re.compile(r"(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_]*)[ \t]*(=?)")
_DOUBLE = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_SINGLE = re.compile(r"'([^']*)'")
_PLAIN = re.compile(r"[^\n]*")
_COMMENT = re.compile(r"[ \t]#.*")
_BLANKS = re.compile(r"[ \t]*")
_REST = re.compile(r"[ \t]*(?:#[^\n]*)?(?=\n|\Z)")
_ESCAPE = re.compile(r'\\([nrt"$\\])')
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}


def load_env_file(path: str | os.PathLike[str], environ: MutableMapping[str, str]) -> list[str]:
    """Put the variables of the file at `path` into `environ`, except those that it has already.

    Returns the names that were put. Raises `ConfigError` if the file cannot be read or understood.
    """
    name = os.fspath(path)
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"cannot read the environment file {name}: {reason}") from error
    added = {key: value for key, value in parse_env(text, name=name).items() if key not in environ}
    environ.update(added)
    return list(added)


def parse_env(text: str, *, name: str = "environment file") -> dict[str, str]:
    """The variables in `text`; `name` stands for it in messages."""
    text = text.replace("\r\n", "\n")
    variables: dict[str, str] = {}
    at = 0
    while True:
        at = _end(_BLANK, text, at)
        if at == len(text):
            return variables
        where = f"{name}:{text.count(chr(10), 0, at) + 1}"
        match = _NAME.match(text, at)
        if match is None:
            raise ConfigError(f"{where}: this is not NAME=value; a name has letters, digits and underscores")
        variable, equals = match.groups()
        if not equals:
            # Not the word itself: it may be a line of a value that was to be in quotes.
            raise ConfigError(f"{where}: this is not NAME=value; there is no '=' after its first word")
        value, at = _value(text, match.end(), f"{where}: {variable}")
        if "\0" in value:
            raise ConfigError(f"{where}: {variable} holds a NUL character, which no environment variable can")
        variables[variable] = value


def _value(text: str, at: int, where: str) -> tuple[str, int]:
    quoted = _end(_BLANKS, text, at)
    quote = text[quoted : quoted + 1]
    if quote not in ('"', "'"):
        match = _PLAIN.match(text, at)
        assert match is not None
        return _COMMENT.sub("", match.group()).strip(), match.end()
    match = (_DOUBLE if quote == '"' else _SINGLE).match(text, quoted)
    if match is None:
        raise ConfigError(f"{where}: the {quote} that begins its value is never closed")
    value = match.group(1)
    if quote == '"':
        value = _ESCAPE.sub(lambda found: _ESCAPES.get(found[1], found[1]), value)
    rest = _REST.match(text, match.end())
    if rest is None:
        raise ConfigError(f"{where}: only a comment may follow after the closing {quote}")
    return value, rest.end()


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return at if match is None else match.end()
