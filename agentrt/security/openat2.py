"""Opening below a folder with Linux's openat2 (5.6): the kernel itself refuses to leave the folder.

RESOLVE_BENEATH fails with EXDEV if the path, or a symbolic link on it, leads out of the folder at any moment, and
RESOLVE_NO_MAGICLINKS refuses links of /proc. Python has no wrapper, so the system call is made through ctypes; the
values are those of linux/openat2.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import sys
from collections.abc import Callable, Sequence

from agentrt.security.file_errors import Blocked

__all__ = ["OpenAt2", "is_supported"]

SYS_OPENAT2 = 437
"""The same on every architecture that got its number after they were unified; those below are known to be."""

MACHINES = frozenset(
    {"x86_64", "i686", "aarch64", "armv7l", "armv8l", "ppc64le", "riscv64", "s390x", "loongarch64"}
)

RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08

TRIES = 128
"""EAGAIN: a rename or mount went on while a ".." of a link was followed, and the kernel cannot tell. It says: again."""


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class OpenAt2:
    """Opens below a folder by openat2. `symlinks`: follow the links that stay below it; else none."""

    name = "openat2"

    def __init__(self, *, symlinks: bool = True) -> None:
        self._resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | (0 if symlinks else RESOLVE_NO_SYMLINKS)
        self._call = _system_call()

    def open(self, root: int, parts: Sequence[str], flags: int) -> int:
        """A descriptor for `parts` below the folder `root`. Raises `Blocked`, or `OSError` as the kernel says it."""
        path = os.fsencode("/".join(parts) or ".")
        sys.audit("open", path, None, flags)
        how = _How(flags | os.O_CLOEXEC, 0, self._resolve)
        for _ in range(TRIES):
            descriptor = self._call(SYS_OPENAT2, root, path, ctypes.byref(how), ctypes.sizeof(how))
            if descriptor >= 0:
                return descriptor
            number = ctypes.get_errno()
            if number not in (errno.EAGAIN, errno.EINTR):
                break
        else:
            raise Blocked("race", "folders on the way were being renamed all the time; try again")
        if number == errno.EXDEV:
            raise Blocked("escape", "a link on the way leads out of the root")
        if number == errno.ELOOP:
            raise Blocked("symlink", "a symbolic link on the way is not followed")
        raise OSError(number, os.strerror(number))


def is_supported(root: int) -> bool:
    """Whether openat2 works here: an old kernel has it not, and a filter of system calls may refuse it."""
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        return False
    try:
        os.close(OpenAt2().open(root, (), os.O_PATH | os.O_DIRECTORY))
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP, errno.EINVAL, errno.E2BIG):
            return False
        raise
    return True


def _system_call() -> Callable[..., int]:
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    call.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t)
    return call
