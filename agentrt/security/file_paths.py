"""Reads the path that a caller gives for `FileAccess`: its parts, or why it is none. Nothing is looked up here.

Whether the parts stay below the root is decided by the opener, in the kernel, not by looking at text: what is refused
here has no meaning below a root (an absolute path, `..`, NUL) or would not be the same everywhere (names that only some
systems take). No name is compared with another, so file systems that fold case or normalise Unicode open no gap.
"""

from __future__ import annotations

import os
import unicodedata

from agentrt.security.file_errors import Blocked

__all__ = ["TEMPORARY_PREFIX", "TEMPORARY_SUFFIX", "check_new_name", "is_temporary", "parts_of"]

PATH_BYTES = 4095
"""Linux's PATH_MAX without its NUL; a walk part by part would go on beyond."""

NAME_BYTES = 255
DEPTH = 128
"""Parts that a path may have."""

TEMPORARY_PREFIX = ".agentrt-"
TEMPORARY_SUFFIX = ".part"


def parts_of(path: str | os.PathLike[str]) -> list[str]:
    """The names in `path` from the root downwards; empty for the root itself ("" or "."). Raises `Blocked`."""
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(text, str):
        raise Blocked("path", f"a path is text, not {type(text).__name__}")
    if "\0" in text:
        raise Blocked("path", "it has a NUL character")
    if text.startswith("/"):
        raise Blocked("path", "it is absolute; give it relative to the root")
    try:
        raw = os.fsencode(text)
    except UnicodeEncodeError:
        raise Blocked("path", "it has characters that no file name can have") from None
    if len(raw) > PATH_BYTES:
        raise Blocked("path", f"it is longer than {PATH_BYTES} bytes")
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise Blocked("path", "'..' is not allowed; give the path from the root downwards")
    if len(parts) > DEPTH:
        raise Blocked("path", f"it is deeper than {DEPTH} folders")
    if any(len(os.fsencode(part)) > NAME_BYTES for part in parts):
        raise Blocked("path", f"a name in it is longer than {NAME_BYTES} bytes")
    if any(is_temporary(part) for part in parts):
        raise Blocked("reserved", "names of this form are kept for files that are being written")
    return parts


def check_new_name(name: str) -> None:
    """Raise `Blocked` for a name that no file should get: it would do harm where names are printed or listed.

    Refused are control characters, line and paragraph separators and the marks that change the direction of text.
    """
    for character in name:
        category = unicodedata.category(character)
        if category in ("Cc", "Zl", "Zp") or unicodedata.bidirectional(character) in _DIRECTIONS:
            raise Blocked("path", f"a new name must not have the character U+{ord(character):04X}")


_DIRECTIONS = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})


def is_temporary(name: str) -> bool:
    """Whether `name` has the form that files have while they are written, also where case is folded."""
    folded = name.casefold()
    return folded.startswith(TEMPORARY_PREFIX) and folded.endswith(TEMPORARY_SUFFIX)
