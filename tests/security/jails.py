"""`FileAccess` in each of its ways to look a path up, and what stands outside of it in these tests."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from agentrt.security import no_follow
from agentrt.security.file_roots import Resolution
from agentrt.security.files import FileAccess
from agentrt.security.openat2 import is_supported

__all__ = ["CANARY", "WAYS", "World", "jail", "open_descriptors", "swapping"]

CANARY = "the canary that no jail lets out"

AS_ON_MACOS = "walk as on macOS"


def _ways() -> list[str]:
    root = os.open("/", os.O_RDONLY)
    try:
        return [*(["openat2"] if is_supported(root) else []), "walk", AS_ON_MACOS]
    finally:
        os.close(root)


WAYS = _ways()
"""On Linux the walk uses O_PATH, which macOS does not have: it is tried without as well."""


@contextlib.contextmanager
def jail(way: str, roots: Any, mode: Literal["read", "write"] = "write", **more: Any) -> Iterator[FileAccess]:
    with pytest.MonkeyPatch.context() as patch:
        resolution: Resolution = "openat2" if way == "openat2" else "walk"
        if way == AS_ON_MACOS:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            patch.setattr(no_follow, "FOLDER", flags)
        with FileAccess(roots, mode, resolution=resolution, **more) as files:
            yield files


class World:
    """A folder with `root`, which is the jail, and `outside`, which has the canary."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "jail" / "root"
        self.outside = folder / "outside"
        (self.root / "a" / "b").mkdir(parents=True)
        (self.root / "a" / "b" / "f").write_text("inside")
        (self.outside / "b").mkdir(parents=True)
        for canary in (self.outside / "canary", self.outside / "b" / "f", folder / "jail" / "canary"):
            canary.write_text(CANARY)
        self.before = self.seen()

    def seen(self) -> dict[str, bytes | str]:
        """Everything beside the root."""
        found: dict[str, bytes | str] = {}
        for folder in (self.outside, self.root.parent):
            for path in sorted(folder.rglob("*")):
                if path == self.root or self.root in path.parents:
                    continue
                kind: bytes | str = "folder" if path.is_dir() else path.read_bytes()
                found[str(path)] = kind
        return found

    def is_untouched(self) -> bool:
        return self.seen() == self.before


def open_descriptors() -> int:
    gc.collect()  # what earlier tests have left must not be closed while one counts
    return len(os.listdir("/dev/fd"))


@contextlib.contextmanager
def swapping(first: Path, second: Path) -> Iterator[None]:
    """Exchange two names all the time in a thread, each time in one step, as an attacker would."""
    assert sys.platform == "linux"
    rename = ctypes.CDLL(None, use_errno=True).renameat2
    one, other = os.fsencode(first), os.fsencode(second)
    is_over = threading.Event()

    def swap() -> None:
        while not is_over.is_set():
            assert rename(-100, one, -100, other, 2) == 0  # AT_FDCWD, RENAME_EXCHANGE

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
