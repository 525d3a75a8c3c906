"""Secrets in a directory, one file for each: what Docker, Kubernetes and systemd mount."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from agentrt import options
from agentrt.errors import ConfigError
from agentrt.secrets.protocol import SecretInvalid, SecretNotFound, SecretRef
from agentrt.secrets.text_file import WritableFiles, failure, read_text

__all__ = ["File"]

TRIES = 10
"""Kubernetes replaces all files at once by turning a link: what is found through it may be gone a moment later."""

MAX_LISTED = 10_000


class File:
    """Reads files below the directory `path` ("/run/secrets"): `secret://file/db/password` is its file db/password.

    One newline at the end is not part of the value. `max_bytes` (1,048,576): larger files are refused. `cache_ttl`
    (30 s): after this time a changed file is seen. Symbolic links may lead anywhere below `path`, as those of
    Kubernetes do, and nowhere else. Names that begin with two dots are not read: Kubernetes keeps its own there.
    """

    def __init__(
        self, *, path: Path = Path("/run/secrets"), max_bytes: int = 1_048_576, cache_ttl: float = 30.0
    ) -> None:
        if not str(path).strip("./"):
            raise ConfigError(
                f"path must be the directory that holds the secrets, not {str(path)!r}: it would be all that is here"
            )
        self.path = Path(path)
        self.max_bytes = options.count("max_bytes", max_bytes)
        self.cache_ttl = options.seconds("cache_ttl", cache_ttl, open_=False)
        self._files = WritableFiles()

    async def get(self, ref: SecretRef, /) -> str:
        if ref.version is not None:
            raise SecretInvalid(f"{ref}: files have no versions")
        if not _is_inside(ref.name):
            raise SecretInvalid(f"{ref}: its name is not that of a file below {self.path}")
        return await asyncio.to_thread(self._read, ref)

    async def list(self, prefix: str = "", /) -> Sequence[str]:
        """The files below the directory by their names from there, at most 10,000."""
        return await asyncio.to_thread(self._list, prefix)

    # --- in a thread -----------------------------------------------------------------------------------

    def _read(self, ref: SecretRef) -> str:
        text = self._text(ref)
        if text.endswith("\n"):
            text = text[:-1].removesuffix("\r")
        if not text:
            raise SecretInvalid(f"{ref}: the file is empty")
        return text

    def _text(self, ref: SecretRef) -> str:
        for _ in range(TRIES - 1):
            try:
                return read_text(ref, self._resolved(ref), limit=self.max_bytes, files=self._files)
            except SecretNotFound:
                continue  # perhaps the link was just turned
        return read_text(ref, self._resolved(ref), limit=self.max_bytes, files=self._files)

    def _resolved(self, ref: SecretRef) -> str:
        """The path of the file without symbolic links; it is below the directory."""
        root = os.path.realpath(self.path)
        try:
            found = os.path.realpath(os.path.join(root, ref.name), strict=True)
        except OSError as error:
            if not os.path.isdir(root):
                raise SecretNotFound(f"{ref}: {self._no_directory()}") from error
            raise failure(ref, os.path.join(root, ref.name), error) from error
        if os.path.commonpath([root, found]) != root or found == root:
            raise SecretInvalid(f"{ref}: it is a link to a place that is not below {self.path}")
        return found

    def _no_directory(self) -> str:
        return f"there is no directory {self.path}: mount it, or set `path` of this provider"

    def _list(self, prefix: str) -> Sequence[str]:
        root = os.path.realpath(self.path)
        if not os.path.isdir(root):
            raise SecretNotFound(self._no_directory())
        names = []
        for folder, folders, files in os.walk(root):
            folders[:] = sorted(name for name in folders if not name.startswith(".."))
            for file in sorted(files):
                path = os.path.join(folder, file)
                name = os.path.relpath(path, root)
                if name.startswith(prefix) and _is_inside(name) and _is_regular(path):
                    names.append(name)
                    if len(names) == MAX_LISTED:
                        return names
        return names


def _is_inside(name: str) -> bool:
    """Whether a name can stand in a reference, and cannot lead out of the directory by itself."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False  # bytes that are no UTF-8
    return "\0" not in name and all(part not in ("", ".") and part[:2] != ".." for part in name.split("/"))


def _is_regular(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False  # a link to what is gone
