"""The files that `agentrt secrets scan` looks at: of a folder, of a repository, or what is staged in one."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct

from agentrt.cli.scanner import ALLOW_FILE, AllowList
from agentrt.errors import ConfigError
from agentrt.security.file_errors import Blocked, told
from agentrt.security.no_follow import NoFollow

__all__ = ["Skipped", "Source", "files_below", "staged_files"]

GIT = ("git", "-c", "core.fsmonitor=false", "-c", "core.quotepath=false")
"""Without the file system monitor: it is a program that the repository names, and the repository may be anybody's."""

GIT_ENVIRONMENT = {"LC_ALL": "C", "GIT_NO_LAZY_FETCH": "1", "GIT_ALLOW_PROTOCOL": "none"}
"""Nothing that is missing is fetched: how, the repository says, with programs of its choice. A git that does not know
the first variable (before 2.45) goes by the second, which refuses every protocol."""

GIT_SECONDS = 60.0

ALLOW_FILE_BYTES = 1024 * 1024


class Source(Struct, frozen=True):
    """One file: `path` for people, `known_as` for the allow-list, which is its path from there, and what it has."""

    path: str
    known_as: str
    content: bytes


class Skipped(Struct, frozen=True):
    """A file that was not looked at, and why."""

    path: str
    why: str


Files = Iterator[Source | Skipped]


# --- in folders ----------------------------------------------------------------------------------------


def files_below(path: str, *, max_bytes: int) -> tuple[AllowList, Files]:
    """The file `path`, or the files below it: those that git does not ignore, where there is a repository."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    if not stat.S_ISDIR(mode):
        folder, name = os.path.split(path)
        top = _top(folder or ".")
        return _allow_list(top), _read(folder or ".", [name], top, max_bytes, is_named=True)
    names = _known_to_git(path)
    top = _top(path)
    return _allow_list(top), _read(path, _walk(path) if names is None else names, top, max_bytes)


def _read(folder: str, names: Iterable[str], top: str, max_bytes: int, *, is_named: bool = False) -> Files:
    """`is_named`: by the user, who means what a link leads to. Below a folder no link is followed, nor any on the way:
    what it leads to has its own turn, or is none of ours."""
    below_top = os.path.relpath(os.path.realpath(folder), top)
    for name in names:
        path = os.path.normpath(os.path.join(folder, name))
        try:
            content = _content(path, max_bytes) if is_named else _content_below(folder, name, max_bytes)
        except FileNotFoundError:
            continue  # git knows it, and it was deleted
        except Blocked:
            continue
        except OSError as error:
            yield Skipped(path, error.strerror or type(error).__name__)
            continue
        if content is None:
            continue
        if len(content) > max_bytes:
            yield Skipped(path, f"it is larger than {max_bytes:,} bytes")
        else:
            yield Source(path, os.path.normpath(os.path.join(below_top, name)), content)


def _content(path: str, max_bytes: int) -> bytes | None:
    """Up to one byte more than `max_bytes`; None if this is no regular file. A FIFO does not hang us."""
    return _taken(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), max_bytes)


def _content_below(folder: str, name: str, max_bytes: int) -> bytes | None:
    """As `_content`, of what is in `folder` itself. Raises `Blocked` for a link, at the end or on the way, and for a
    name that leads out: an index that somebody else wrote can have any."""
    parts = name.removesuffix("/").split("/")
    if ".." in parts or "" in parts:
        raise Blocked("path", "it leads out of the folder")
    root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        descriptor = NoFollow().open(root, parts, os.O_RDONLY | os.O_NONBLOCK)
    finally:
        os.close(root)
    return _taken(descriptor, max_bytes)


def _taken(descriptor: int, max_bytes: int) -> bytes | None:
    """What `_content` says, of an open file, which is closed."""
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(max_bytes + 1)
    finally:
        os.close(descriptor)


def _walk(folder: str) -> Iterator[str]:
    for above, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != ".git")
        for name in sorted(names):
            yield os.path.relpath(os.path.join(above, name), folder)


# --- in a repository -----------------------------------------------------------------------------------


def staged_files(paths: Sequence[str], *, max_bytes: int) -> tuple[AllowList, Files]:
    """What the next commit would change, with the content that is staged, whatever the work tree has.

    `paths`: only these files and folders; none means all.
    """
    if _git("rev-parse", "--is-inside-work-tree") is None:  # `git diff` would compare any two files there
        raise ConfigError("--staged needs a git repository, and there is none here")
    how = ("--cached", "--raw", "-z", "--no-renames", "--no-ext-diff", "--abbrev=64")
    fields = (_git("diff", *how, "--", *paths) or b"").split(b"\0")
    blobs: list[tuple[str, str]] = []
    for head, path in zip(fields[0::2], fields[1::2], strict=False):
        _, mode, _, blob, change = head.decode().split(" ")
        # Neither what is deleted, nor a link, nor the commit of a submodule.
        if change[0] != "D" and mode.startswith("100"):
            blobs.append((os.fsdecode(path), blob))
    # Not `git show`: what is staged under this name can be a commit, and a commit is shown with programs of its own.
    allowed = _git("cat-file", "blob", f":{ALLOW_FILE}", may_fail=True)
    return AllowList.parse((allowed or b"").decode("utf-8", "replace"), where=ALLOW_FILE), _blobs(
        blobs, max_bytes
    )


def _blobs(blobs: Sequence[tuple[str, str]], max_bytes: int) -> Files:
    if not blobs:
        return
    asked = [*GIT, "cat-file", "--batch"]
    with subprocess.Popen(
        asked,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **GIT_ENVIRONMENT},
    ) as git:
        assert git.stdin is not None
        assert git.stdout is not None
        for path, blob in blobs:
            git.stdin.write(f"{blob}\n".encode())
            git.stdin.flush()
            answer = git.stdout.readline().split()
            if len(answer) != 3:
                raise ConfigError(
                    f"git cannot read what is staged as {told(path)}: is the repository complete?"
                )
            size = int(answer[2])
            content = git.stdout.read(min(size, max_bytes + 1))
            rest = size - len(content) + 1  # and the line end behind it
            while rest > 0:
                rest -= len(git.stdout.read(min(rest, 1 << 20))) or rest
            if size > max_bytes:
                yield Skipped(path, f"it is larger than {max_bytes:,} bytes")
            else:
                yield Source(path, path, content)


def _known_to_git(folder: str) -> list[str] | None:
    """Names below `folder` that are tracked, or new and not ignored; None where there is no repository."""
    listed = _git("ls-files", "-z", "--cached", "--others", "--exclude-standard", folder=folder)
    if listed is None:
        return None
    return sorted({os.fsdecode(name) for name in listed.split(b"\0") if name})


def _top(folder: str) -> str:
    """The top of the repository that `folder` is in; `folder` itself where there is none."""
    top = _git("rev-parse", "--show-toplevel", folder=folder)
    return os.path.realpath(folder if top is None else os.fsdecode(top).removesuffix("\n"))


def _allow_list(folder: str) -> AllowList:
    path = os.path.join(folder, ALLOW_FILE)
    try:
        content = _content_below(folder, ALLOW_FILE, ALLOW_FILE_BYTES)
    except FileNotFoundError:
        return AllowList()
    except Blocked:
        content = None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    if content is None:
        raise ConfigError(f"{path}: it must be a regular file, and no link to one")
    if len(content) > ALLOW_FILE_BYTES:
        raise ConfigError(f"{path}: it is larger than {ALLOW_FILE_BYTES:,} bytes")
    return AllowList.parse(content.decode("utf-8", "replace"), where=path)


def _git(*arguments: str, folder: str = ".", may_fail: bool = False) -> bytes | None:
    """What git prints; None if there is no repository, or no git, or (with `may_fail`) nothing of the kind."""
    try:
        done = subprocess.run(
            [*GIT, "-C", folder, *arguments],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **GIT_ENVIRONMENT},
            timeout=GIT_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        return None
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"git {arguments[0]} did not end in {GIT_SECONDS:g} s") from error
    if done.returncode == 0:
        return done.stdout
    said = done.stderr.decode("utf-8", "replace").strip()
    if may_fail or "not a git repository" in said or "must be run in a work tree" in said:
        return None
    raise ConfigError(
        f"git {arguments[0]} failed in {folder}: {told(said.splitlines()[0]) if said else 'it said nothing'}"
    )
