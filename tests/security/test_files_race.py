"""A folder that is swapped for a link to outside, all the time, while a jail works below it."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agentrt.security.files import FileAccess, FileError
from tests.security.jails import CANARY, WAYS, World, jail, open_descriptors, swapping

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="names are exchanged with Linux's renameat2")

SECONDS = 2.0


@pytest.fixture
def world(tmp_path: Path) -> World:
    """`a` and `.link` are exchanged: below `a` there is the inside at one moment, the outside at the next."""
    world = World(tmp_path)
    (world.root / ".link").symlink_to(world.outside)
    # A link inside that goes up and down again: the kernel cannot tell where that leads while something is renamed.
    (world.root / "up").symlink_to("a/../a/b")
    return world


class Naive:
    """The usual way: resolve, compare, then use the path. Between the two the world may change."""

    def __init__(self, root: Path) -> None:
        self._root = os.fspath(root)

    def _checked(self, path: str) -> str:
        real = os.path.realpath(os.path.join(self._root, path))
        if not real.startswith(self._root + "/"):
            raise PermissionError(path)
        return real

    def read_text(self, path: str) -> str:
        return Path(self._checked(path)).read_text()

    def write(self, path: str, text: str) -> None:
        Path(self._checked(path)).write_text(text)

    def names(self, path: str) -> list[str]:
        return os.listdir(self._checked(path))


def leaks(world: World, attempt: Callable[[], bool]) -> int:
    """How often `attempt` told that it got out, within the time, while names are exchanged; stops at the first."""
    with swapping(world.root / "a", world.root / ".link"):
        end = time.monotonic() + 20 * SECONDS
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                if attempt():
                    return 1
    return 0


def test_a_check_before_the_use_leaks_reads(world: World) -> None:
    assert leaks(world, lambda: Naive(world.root).read_text("a/b/f") == CANARY)


def test_a_check_before_the_use_leaks_writes(world: World) -> None:
    def attempt() -> bool:
        Naive(world.root).write("a/b/new", "x")
        return (world.outside / "b" / "new").exists()

    assert leaks(world, attempt)
    assert not world.is_untouched()


def test_a_check_before_the_use_leaks_lists(world: World) -> None:
    assert leaks(world, lambda: "canary" in Naive(world.root).names("a"))


class Work:
    """Does everything that a jail can, over and over, and counts what came of it."""

    def __init__(self, files: FileAccess, *, follows: bool) -> None:
        self._files = files
        self._follows = follows
        self.texts: set[str] = set()
        self.names: set[str] = set()
        self.done = dict.fromkeys(("read", "read by link", "list", "stat", "write", "delete"), 0)
        self.refused = 0

    @property
    def has_met_both(self) -> bool:
        """The race took place: both sides of it were met, many times."""
        done = self.done
        seen = min(done["read"], done["list"], 10 * done["write"]) >= 10
        return self.refused > 100 and seen and (done["read by link"] > 0 or not self._follows)

    def round(self, number: int) -> None:
        files = self._files
        self._try("read", lambda: self.texts.add(files.read_text("a/b/f")))
        self._try("read by link", lambda: self.texts.add(files.read_text("up/f")))
        self._try("list", lambda: self.names.update(entry.name for entry in files.list("a").entries))
        self._try("stat", lambda: files.stat("a/canary"))
        if number % 8 == 0:  # each waits for the disk
            self._try("write", lambda: files.write("a/b/new", "new"))
            self._try("write", lambda: files.write(f"a/deep/{number % 3}/new", "new", parents=True))
            self._try("delete", lambda: files.delete("a/b/new"))

    def _try(self, what: str, work: Callable[[], object]) -> None:
        try:
            work()
        except FileError:
            self.refused += 1
        else:
            self.done[what] += 1


@pytest.mark.parametrize("way", WAYS)
def test_no_jail_leaks(way: str, world: World) -> None:
    before = open_descriptors()
    with jail(way, world.root) as files, swapping(world.root / "a", world.root / ".link"):
        work = Work(files, follows=way == "openat2")
        begun = time.monotonic()
        number = 0
        while (passed := time.monotonic() - begun) < SECONDS or (not work.has_met_both and passed < 40.0):
            work.round(number)
            number += 1
    assert work.texts == {"inside"}
    assert work.names <= {"b", "deep"}
    assert work.done["stat"] == 0  # there is a canary outside only
    assert world.is_untouched()
    assert open_descriptors() == before
    assert work.has_met_both
    assert (work.done["read by link"] > 0) == (way == "openat2")
