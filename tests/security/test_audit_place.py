"""Whether an audit log could be written where it is to be: said as it would be, and nothing is left behind."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentrt.errors import ConfigError
from agentrt.security.audit import AuditLog, AuditUnavailable, FileAnchor
from agentrt.security.audit.place import check_place
from security.audits import written

ROOT = os.geteuid() == 0


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything below `folder`, files with size and time of the last change."""
    found: dict[str, tuple[int, int]] = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        found[str(path)] = (0, 0) if path.is_dir() else (status.st_size, status.st_mtime_ns)
    return found


@pytest.mark.asyncio
@pytest.mark.parametrize("rotates", [True, False])
async def test_a_good_place_is_left_as_it_was(tmp_path: Path, rotates: bool) -> None:
    await written(tmp_path / "there" / "a", 3)
    (tmp_path / "begun").write_bytes(b'{"type":"fi')
    (tmp_path / "empty").touch()
    before = tree(tmp_path)
    for name in ("there/a", "new", "deep/er/a-{pid}", "begun", "empty"):
        check_place(str(tmp_path / name), rotates=rotates)
    assert tree(tmp_path) == before
    async with AuditLog(tmp_path / "there" / "a"):
        check_place(str(tmp_path / "there" / "a"), rotates=rotates)  # a service writes it meanwhile


def _a_link(folder: Path) -> str:
    (folder / "link").symlink_to(folder / "nowhere")
    return "link"


def _a_link_on_the_way(folder: Path) -> str:
    return f"{_a_link(folder)}/a"


def _a_file_on_the_way(folder: Path) -> str:
    (folder / "file").touch()
    return "file/deep/a"


def _a_folder(folder: Path) -> str:
    (folder / "folder").mkdir()
    return "folder"


def _a_folder_in_place_of_the_lock(folder: Path) -> str:
    (folder / "a.lock").mkdir()
    return "a"


def _a_long_name(folder: Path) -> str:
    return "deep/" + "n" * 250  # with its number at the end, once it is full


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (_a_link, "it is a symbolic link: name the file itself"),
        (_a_link_on_the_way, "a part of the path is a file and not a directory: choose another path"),
        (_a_file_on_the_way, "a part of the path is a file and not a directory: choose another path"),
        (_a_folder, "there is a directory of this name: choose another path"),
        (_a_folder_in_place_of_the_lock, "there is a directory of this name: choose another path"),
        (_a_long_name, "File name too long"),
        (lambda folder: "/proc/audit/a", "its folder is not there and cannot be made: choose another path"),
    ],
)
def test_a_place_that_cannot_be_written_is_told(
    tmp_path: Path, make: Callable[[Path], str], why: str
) -> None:
    path = tmp_path / make(tmp_path)
    before = tree(tmp_path)
    with pytest.raises(AuditUnavailable) as caught:
        check_place(str(path), rotates=True)
    assert str(caught.value) == f"the audit log {path} cannot be written: {why}"
    assert tree(tmp_path) == before


def test_what_is_there_and_is_no_log_is_told(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine\n")
    os.mkfifo(tmp_path / "pipe")
    for name, why in (("notes", "notes is no audit log"), ("pipe", "pipe, which is not a regular file")):
        with pytest.raises(ConfigError, match=why):
            check_place(str(tmp_path / name), rotates=True)


def test_a_path_that_is_none() -> None:
    for path, why in (
        ("~nobody-of-this-name/a", "there is no such user"),
        ("a\0b", "cannot have a NUL"),
        ("/", "must name a file"),
    ):
        for take in (
            lambda path: check_place(path, rotates=True),
            AuditLog,
            lambda path: FileAnchor(path=path),
        ):
            with pytest.raises(ConfigError, match=why):
                take(path)


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A folder that nobody may write to, below folders that anybody may look into."""
    folder = Path(tempfile.mkdtemp())
    for name in ("a", "a.lock"):
        (folder / name).touch()
        (folder / name).chmod(0o666)
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_a_folder_in_which_this_user_may_not_write(read_only: Path) -> None:
    """Root may write anywhere: then as somebody else, in another process."""
    process = multiprocessing.get_context("fork").Process(target=_in_a_read_only_folder, args=(read_only,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert sorted(os.listdir(read_only)) == ["a", "a.lock"]


def _in_a_read_only_folder(folder: Path) -> None:
    if ROOT:
        os.setuid(65534)
    logging.getLogger("agentrt.audit").disabled = True
    why = "cannot be written: this user may not write there: choose another path or change its permissions"
    for name in ("b", "deep/b"):
        with pytest.raises(AuditUnavailable, match=why):
            check_place(str(folder / name), rotates=False)
    check_place(str(folder / "a"), rotates=False)
    with pytest.raises(AuditUnavailable, match=why):  # it could not be given its number once it is full
        check_place(str(folder / "a"), rotates=True)


@pytest.mark.skipif(not ROOT or shutil.which("mount") is None, reason="mounting needs root")
@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("size=64k,ro", "the file system is read-only"),
        ("size=4k", "there is no room left on the disk: free some"),
    ],
)
def test_a_disk_that_takes_nothing(tmp_path: Path, options: str, why: str) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(tmp_path)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("this machine does not let root mount")
    try:
        if "ro" not in options:
            (tmp_path / "full").write_bytes(bytes(4096))
        with pytest.raises(AuditUnavailable, match=why):
            check_place(str(tmp_path / "a"), rotates=True)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
