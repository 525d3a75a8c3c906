"""Which way `FileAccess` looks a path up: openat2, and the walk where the kernel or a filter does not have it."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest

from agentrt.errors import ConfigError
from agentrt.security import openat2
from agentrt.security.file_errors import Blocked
from agentrt.security.files import FileAccess
from agentrt.security.openat2 import OpenAt2, _system_call
from tests.security.jails import WAYS, World, jail

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="about Linux's own calls")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def _failing(number: int, *, times: int = 10**9) -> Any:
    real = _system_call()
    left = [times]

    def call(*arguments: Any) -> int:
        if left[0] > 0:
            left[0] -= 1
            ctypes.set_errno(number)
            return -1
        return real(*arguments)

    return call


@on_linux
@pytest.mark.parametrize("number", [38, 1])  # ENOSYS of an old kernel, EPERM of a filter
def test_without_openat2_the_walk_is_taken(
    number: int, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openat2, "_system_call", lambda: _failing(number))
    with FileAccess(world.root, "read") as files:
        assert files.resolution == "walk"
        assert files.read_text("a/b/f") == "inside"
    with pytest.raises(ConfigError, match=r"needs Linux 5\.6"):
        FileAccess(world.root, "read", resolution="openat2")


FILTERED = """
import ctypes, struct, sys
from agentrt.security.files import FileAccess

libc = ctypes.CDLL(None, use_errno=True)
program = b"".join(struct.pack("HBBI", *line) for line in [
    (0x20, 0, 0, 0),            # load the number of the system call
    (0x15, 0, 1, 437),          # openat2?
    (0x06, 0, 0, 0x00050001),   # then EPERM
    (0x06, 0, 0, 0x7FFF0000),   # else allowed
])
buffer = ctypes.create_string_buffer(program, len(program))
filter = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 4, ctypes.addressof(buffer)))
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, filter, 0, 0) == 0, ctypes.get_errno()
files = FileAccess(sys.argv[1], "read")
print(files.resolution, files.read_text("a/b/f"))
"""


@on_linux
def test_under_a_filter_of_system_calls_the_walk_is_taken(world: World) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FILTERED), str(world.root)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("walk inside\n", "")


@on_linux
@pytest.mark.skipif("openat2" not in WAYS, reason="this kernel has no openat2")
def test_a_lookup_that_a_rename_disturbed_is_repeated_but_not_for_ever(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = os.open(world.root, os.O_RDONLY)
    try:
        monkeypatch.setattr(openat2, "_system_call", lambda: _failing(11, times=3))
        os.close(OpenAt2().open(root, ("a", "b", "f"), os.O_RDONLY))
        monkeypatch.setattr(openat2, "_system_call", lambda: _failing(11))
        with pytest.raises(Blocked, match="renamed all the time"):
            OpenAt2().open(root, ("a", "b", "f"), os.O_RDONLY)
    finally:
        os.close(root)


@pytest.mark.parametrize("way", WAYS)
def test_an_audit_hook_of_python_sees_each_opening(way: str, world: World) -> None:
    seen: list[str] = []
    is_on = threading.Event()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and is_on.is_set() and not isinstance(arguments[0], int):
            seen.append(os.fsdecode(arguments[0]))

    sys.addaudithook(hook)
    with jail(way, world.root, "read") as files:
        is_on.set()
        files.read_bytes("a/b/f")
        is_on.clear()
    assert seen[-1] in ("a/b/f", "f")
