"""What is in a folder, and what a name is."""

from __future__ import annotations

import heapq
import itertools
import os
import stat
from operator import attrgetter
from typing import Literal

from msgspec import Struct

from agentrt.security.file_paths import is_temporary

__all__ = ["Entry", "Info", "Kind", "Listing", "info_of", "list_folder"]

Kind = Literal["file", "directory", "symlink", "other"]

LOOKED_AT = 100_000
"""Entries of a folder that are looked at for one listing; of a larger one the first by name are not known."""


class Entry(Struct, frozen=True):
    """One name in a folder. `size`: bytes, for a file; else 0. A link is not followed: its kind is "symlink"."""

    name: str
    kind: Kind
    size: int


class Listing(Struct, frozen=True):
    """The first entries of a folder by name. `truncated`: there are more than are listed."""

    entries: tuple[Entry, ...]
    truncated: bool


class Info(Struct, frozen=True):
    """What a name is. `size` in bytes; `modified`: seconds since 1970; `links`: the names that the file has."""

    kind: Kind
    size: int
    modified: float
    links: int


def info_of(found: os.stat_result) -> Info:
    return Info(_kind(found.st_mode), found.st_size, found.st_mtime, found.st_nlink)


def list_folder(folder: int, limit: int) -> Listing:
    """The first `limit` entries of an open folder, sorted by name; files that are being written are left out."""
    with os.scandir(folder) as found:
        looked_at = itertools.islice(found, LOOKED_AT)
        visible = (entry for entry in looked_at if not is_temporary(entry.name))
        # One more than asked for tells whether there are more, without all of them in memory.
        first = heapq.nsmallest(limit + 1, visible, key=attrgetter("name"))
        is_cut = next(found, None) is not None
        entries = tuple(entry for entry in map(_entry, first[:limit]) if entry is not None)
    return Listing(entries, is_cut or len(first) > limit)


def _entry(found: os.DirEntry[str]) -> Entry | None:
    try:
        status = found.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None  # removed since
    kind = _kind(status.st_mode)
    return Entry(found.name, kind, status.st_size if kind == "file" else 0)


def _kind(mode: int) -> Kind:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "directory"
    return "symlink" if stat.S_ISLNK(mode) else "other"
