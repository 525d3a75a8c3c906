"""The folders that a `FileAccess` is confined to, held open: a folder that is renamed stays the root."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from agentrt import options
from agentrt.errors import ConfigError
from agentrt.security.file_errors import Blocked
from agentrt.security.no_follow import NoFollow
from agentrt.security.openat2 import OpenAt2, is_supported

__all__ = ["Opener", "Resolution", "Root", "check_kind_of_system", "open_roots"]

Resolution = Literal["auto", "openat2", "walk"]

RootPaths = str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]]

KERNEL_MADE = frozenset(
    {
        0x9FA0,  # proc
        0x62656572,  # sysfs
        0x64626720,  # debugfs
        0x74726163,  # tracefs
        0x73636673,  # securityfs
        0x27E0EB,  # cgroup
        0x63677270,  # cgroup2
        0xCAFE4A11,  # bpf
        0x62656570,  # configfs
        0xDE5E81E4,  # efivarfs
        0x6165676C,  # pstore
        0xF97CFF8C,  # selinuxfs
        0x43415D53,  # smackfs
        0x1CD1,  # devpts
        0x42494E4D,  # binfmt_misc
        0x65735543,  # the control files of fuse
        0x6E736673,  # nsfs
    }
)
"""File systems whose files are questions to the kernel; the numbers are those of linux/magic.h and statfs(2)."""


class Opener(Protocol):
    """Opens what is below a folder and nothing else."""

    name: str

    def open(self, root: int, parts: Sequence[str], flags: int) -> int: ...


class Root:
    """One root, by `name` (empty for the only one). Its descriptor is given out for the length of one use."""

    def __init__(
        self, name: str, path: str | os.PathLike[str], *, symlinks: bool, resolution: Resolution
    ) -> None:
        self.name = name
        where = f"root {name!r}" if name else "the root"
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(
                f"FileAccess: {where} must be a folder that is there: {os.fspath(path)!r}: {error.strerror}"
            ) from error
        except ValueError as error:
            raise ConfigError(f"FileAccess: {where} {os.fspath(path)!r} is no path: {error}") from error
        self._close = weakref.finalize(self, os.close, descriptor)
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._users = 0
        self._is_closed = False
        try:
            self._check(where)
            self.device = os.fstat(descriptor).st_dev
            self.opener = _opener(descriptor, symlinks=symlinks, resolution=resolution)
        except BaseException:
            self._close()
            raise

    def _check(self, where: str) -> None:
        if os.path.samestat(os.fstat(self._descriptor), os.stat("/")):
            raise ConfigError(f"FileAccess: {where} is '/', which confines nothing; name a folder below it")
        if _is_kernel_made(self._descriptor):
            raise ConfigError(f"FileAccess: {where} is on a file system of the kernel's own, such as /proc")

    def borrow(self) -> int:
        """The descriptor, which stays open until `give_back` even if `close` comes in between.

        Otherwise another thread could close it while we resolve, and the number could mean another folder.
        """
        with self._lock:
            if self._is_closed:
                raise Blocked("closed", "this FileAccess is closed")
            self._users += 1
            return self._descriptor

    def give_back(self) -> None:
        with self._lock:
            self._users -= 1
            is_last = self._is_closed and self._users == 0
        if is_last:
            self._close()

    def close(self) -> None:
        """Refuse what comes from now on; the descriptor is closed when nobody uses it."""
        with self._lock:
            self._is_closed = True
            is_unused = self._users == 0
        if is_unused:
            self._close()


def open_roots(roots: RootPaths, *, symlinks: bool, resolution: Resolution) -> dict[str, Root]:
    """The roots by name. Raises `ConfigError` for what is no folder, and for a name that is no part of a path."""
    options.choice("resolution", resolution, ("auto", "openat2", "walk"))
    paths: Mapping[str, str | os.PathLike[str]]
    if isinstance(roots, Mapping):
        paths = roots
        if not paths:
            raise ConfigError("FileAccess: roots is empty; name at least one folder")
        for name in paths:
            if not isinstance(name, str) or not name or "/" in name or name in (".", "..") or "\0" in name:
                raise ConfigError(f"FileAccess: the name of a root is one part of a path, not {name!r}")
    else:
        paths = {"": roots}
    for path in paths.values():
        if not isinstance(path, str | os.PathLike) or not os.fspath(path):
            raise ConfigError(f"FileAccess: a root is the path of a folder, not {path!r}")
    opened: dict[str, Root] = {}
    try:
        for name, path in paths.items():
            opened[name] = Root(name, path, symlinks=symlinks, resolution=resolution)
    except BaseException:
        for root in opened.values():
            root.close()
        raise
    return opened


def check_kind_of_system(descriptor: int, device: int, root: Root) -> None:
    """Raise `Blocked` if an open file of `device` is the kernel's: /proc mounted below a root, for example."""
    if device != root.device and _is_kernel_made(descriptor):
        raise Blocked("kind", "it is on a file system of the kernel's own, such as /proc")


def _opener(descriptor: int, *, symlinks: bool, resolution: Resolution) -> Opener:
    if resolution == "walk":
        return NoFollow()
    if is_supported(descriptor):
        return OpenAt2(symlinks=symlinks)
    if resolution == "openat2":
        raise ConfigError(
            "FileAccess: resolution='openat2' needs Linux 5.6 or later and that no filter of system calls refuses it; "
            "use 'auto'"
        )
    return NoFollow()


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _is_kernel_made(descriptor: int) -> bool:
    """By fstatfs, whose first field is the type on every Linux; Python's fstatvfs leaves it out."""
    if sys.platform != "linux":
        return False
    answer = (ctypes.c_long * 64)()  # the largest struct statfs has 120 bytes
    if _libc().fstatfs(descriptor, ctypes.byref(answer)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return answer[0] & 0xFFFFFFFF in KERNEL_MADE
