"""Files below a root as a type checker sees them: checked by mypy and pyright, never run."""

from pathlib import Path
from typing import Any, BinaryIO, assert_type

from agentrt import Agent, Tool
from agentrt.file_tools import file_tools
from agentrt.security.files import Entry, FileAccess, Info, Listing


def tell(operation: str, root: str, path: str, allowed: bool, reason: str) -> None: ...


files = FileAccess({"docs": "/srv/docs", "out": Path("/srv/out")}, "write", quota=10**9, on_access=tell)

assert_type(files.read_text("docs/a.txt"), str)
assert_type(files.read_bytes(Path("docs/a.txt")), bytes)
assert_type(files.open_read("docs/a.txt"), BinaryIO)
assert_type(files.write("out/a.txt", b"data", parents=True, mode=0o600), int)
assert_type(files.list("docs"), Listing)
assert_type(files.list("docs").entries, tuple[Entry, ...])
assert_type(files.stat("docs/a.txt"), Info)

with FileAccess("/srv", "read") as only:
    assert_type(only, FileAccess)

FileAccess("/srv", "w")  # type: ignore[arg-type]
FileAccess("/srv")  # type: ignore[call-arg]


async def off_the_loop() -> None:
    assert_type(await files.aio.read_text("docs/a.txt"), str)
    assert_type(await files.aio.write("out/a.txt", "text"), int)
    assert_type(await files.aio.open_read("docs/a.txt"), BinaryIO)
    assert_type(await files.aio.list(), Listing)


assert_type(file_tools(files), list[Tool[..., Any]])


class Clerk(Agent):
    tools = file_tools(files, max_output=10_000)
