"""`file_tools(access)`: tools with which a model reads, writes and lists files below a root.

    class Clerk(Agent):
        model = "openai:gpt-5-mini"
        tools = file_tools(FileAccess("/srv/workspace", "write"))

Nothing outside of the root can be reached with them, whatever the model asks for: see `agentrt.security.files`.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, NoReturn

from msgspec import Meta

from agentrt import options
from agentrt.errors import ConfigError, ToolError
from agentrt.security.files import AccessDenied, Entry, FileAccess, FileError, FileMissing, NotText
from agentrt.tools import Tool, tool

__all__ = ["file_tools"]


def file_tools(
    access: FileAccess, *, max_output: int = 20_000, max_entries: int = 1000
) -> list[Tool[..., Any]]:
    """`read_file` and `list_files`, and between them `write_file` if `access` may write.

    `max_output` (20,000): characters of a file or a listing that the model gets at a time; what is cut says so and how
    to go on. `max_entries` (1,000): names of a listing. What goes wrong is a `ToolError`, which the model can act on.
    """
    if not isinstance(access, FileAccess):
        raise ConfigError(
            f"file_tools takes a FileAccess, not {access!r}: file_tools(FileAccess(folder, 'read'))"
        )
    options.count("max_output", max_output, minimum=200)
    options.count("max_entries", max_entries)

    # Plain functions: the pipeline executes them in worker threads. All are idempotent, writing too: the same content
    # once more leaves the same file.
    @tool(idempotent=True)
    def read_file(path: str, start_line: Annotated[int, Meta(ge=1)] = 1) -> str:
        """Read a text file. A long file comes in parts; the last line then tells how to read on.

        Args:
            path: The file, relative to the root folder, for example "notes/today.md". No "..", no leading "/".
            start_line: The first line to read, counted from 1.
        """
        try:
            text = access.read_text(path)
        except FileError as error:
            _tell(error)
        if "\0" in text:
            raise ToolError(_BINARY.format(path))
        return _excerpt(text, start_line, max_output)

    @tool(idempotent=True)
    def write_file(path: str, content: str) -> str:
        """Write a text file: `content` becomes all of it, whatever it had before. Missing folders are made.

        Args:
            path: The file, relative to the root folder, for example "notes/today.md". No "..", no leading "/".
            content: The whole new text of the file.
        """
        try:
            size = access.write(path, content, parents=True)
        except FileError as error:
            _tell(error)
        return f"wrote {size:,} bytes to {path}"

    @tool(idempotent=True)
    def list_files(path: str = "") -> str:
        """List a folder: one name in each line, folders with a "/" at the end, files with their size.

        Args:
            path: The folder, relative to the root folder. Empty for the root folder itself.
        """
        try:
            listing = access.list(path, limit=max_entries)
        except FileError as error:
            _tell(error)
        return _listed(listing.entries, listing.truncated, max_output)

    return [read_file, write_file, list_files] if access.mode == "write" else [read_file, list_files]


_BINARY = "{} is not a text file; read_file reads UTF-8 text only"


def _tell(error: FileError) -> NoReturn:
    """Raise `error` as a `ToolError` that says what may help."""
    match error:
        case NotText():
            message = _BINARY.format(error.path)
        case FileMissing():
            message = f"{error}; list_files shows what there is"
        case AccessDenied(rule="path" | "root"):
            message = str(error)  # which says what a path looks like
        case AccessDenied():
            message = f"{error} (a rule of this folder; trying again does not help)"
        case _:
            message = str(error)
    raise ToolError(message) from error


def _excerpt(text: str, start_line: int, limit: int) -> str:
    """The lines from `start_line` on that `limit` characters can hold, and what is missing."""
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()  # what ends with a line end has no further line
    if not lines:
        return "[the file is empty]"
    if start_line > len(lines):
        raise ToolError(f"start_line={start_line}: the file has {len(lines):,} lines")
    rest = text[sum(len(line) + 1 for line in lines[: start_line - 1]) :]
    if len(rest) <= limit:
        return rest
    taken = 0
    end = start_line - 1
    while end < len(lines) and taken + len(lines[end]) + 1 <= limit:
        taken += len(lines[end]) + 1
        end += 1
    if end == start_line - 1:
        cut = f"line {start_line:,} has {len(lines[end]):,} characters, the first {limit:,} are shown"
        following = f"; read on with start_line={start_line + 1}" if start_line < len(lines) else ""
        return f"{lines[end][:limit]}\n[truncated: {cut}{following}]"
    shown = "\n".join(lines[start_line - 1 : end])
    return (
        f"{shown}\n[truncated: lines {start_line:,} to {end:,} of {len(lines):,} are shown; "
        f"read on with start_line={end + 1}]"
    )


def _listed(entries: tuple[Entry, ...], is_truncated: bool, limit: int) -> str:
    if not entries:
        return "[the folder is empty]"
    lines: list[str] = []
    taken = 0
    for entry in entries:
        line = _line(entry)
        taken += len(line) + 1
        if taken > limit:
            is_truncated = True
            break
        lines.append(line)
    if is_truncated:
        lines.append(f"[truncated: the first {len(lines):,} names are shown, there are more]")
    return "\n".join(lines)


def _line(entry: Entry) -> str:
    # A name with a line break would look like two; as a JSON string it is what the model has to send.
    name = entry.name if entry.name.isprintable() else json.dumps(entry.name)
    match entry.kind:
        case "directory":
            return f"{name}/"
        case "file":
            return f"{name}  {entry.size:,} bytes"
        case "symlink":
            return f"{name}  (a symbolic link)"
        case "other":
            return f"{name}  (not a file)"
