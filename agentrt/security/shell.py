"""Programs are started with a list of arguments; `shell_quote` is for where only a command line will do.

For POSIX: there a program gets its arguments as they are. Windows has one command line that each program splits its
own way, and cmd.exe, PowerShell, csh and fish quote by other rules than `sh`.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from agentrt.errors import ConfigError
from agentrt.security.sanitize import sanitize_input

__all__ = ["argv", "shell_quote"]


def argv(
    *command: str,
    values: Iterable[str] = (),
    separator: str | None = "--",
    allow_leading_dash: bool = False,
    allow_lines: bool = False,
) -> list[str]:
    """A list of arguments for `subprocess.run` or `asyncio.create_subprocess_exec`: `command`, "--", `values`.

        argv("git", "log", "--oneline", values=[path])  ->  ["git", "log", "--oneline", "--", path]

    `command` is the program and what its author writes, options too. `values` come from outside: each must pass
    `sanitize_input(value, "shell")`, so none begins with "-", unless `allow_leading_dash` says that none can be an
    option; `allow_lines` lets line breaks pass. `separator` ends the options: most programs know "--"; give None for
    those that do not (`echo`, `find`, `test`), or another word. It is left out where there are no values.
    Raises `UnsafeInput`, or `ConfigError` if `command` is empty or `values` is one text.
    """
    if not command or not command[0]:
        raise ConfigError("argv needs the name of a program as its first argument")
    if isinstance(values, str | bytes):
        raise ConfigError("values must be a list of texts, not one text: write values=[text]")
    arguments = [
        sanitize_input(word, "shell", allow_leading_dash=index > 0, allow_lines=True)
        for index, word in enumerate(command)
    ]
    checked = [
        sanitize_input(value, "shell", allow_leading_dash=allow_leading_dash, allow_lines=allow_lines)
        for value in values
    ]
    if checked and separator is not None:
        arguments.append(sanitize_input(separator, "shell", allow_leading_dash=True))
    return arguments + checked


def shell_quote(text: str, *, allow_leading_dash: bool = False, allow_lines: bool = False) -> str:
    """`text` as one word of a command line for a POSIX `sh` (`dash`, `bash`, `zsh`, `ksh`), quoted by `shlex.quote`.

    The text is checked as by `sanitize_input(text, "shell")` first: quotes do not keep a program from taking "-rf" for
    an option. Where a list of arguments will do, use `argv`. A word that passes through two shells (`ssh host`,
    `sh -c "..."` inside a line) must be quoted twice. Raises `UnsafeInput`.
    """
    return shlex.quote(
        sanitize_input(text, "shell", allow_leading_dash=allow_leading_dash, allow_lines=allow_lines)
    )
