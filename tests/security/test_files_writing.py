"""`FileAccess.write` and `delete`: whole or not at all, inside or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from agentrt.errors import ConfigError
from agentrt.security import file_writing
from agentrt.security.files import AccessDenied, FileAccess, FileError
from tests.security.jails import CANARY, WAYS, World, jail, open_descriptors

by_each_way = pytest.mark.parametrize("way", WAYS)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@by_each_way
def test_a_file_is_made_and_replaced(way: str, world: World) -> None:
    with jail(way, world.root) as files:
        assert files.write("a/new", "é") == 2
        assert files.write("a/new", b"bytes") == 5
        assert files.write("a/new", memoryview(bytearray(b"view"))) == 4
        assert files.read_text("a/new") == "view"
        assert files.write("a/empty", b"") == 0
        assert files.read_bytes("a/empty") == b""
    assert sorted(os.listdir(world.root / "a")) == ["b", "empty", "new"]


@by_each_way
def test_missing_folders_are_made_only_when_asked_for(way: str, world: World) -> None:
    with jail(way, world.root) as files:
        with pytest.raises(FileNotFoundError, match="'x/y/z': its folder does not exist; parents=True makes"):
            files.write("x/y/z", "x")
        files.write("x/y/z", "x", parents=True)
        files.write("x/y/w", "w", parents=True)
        assert [entry.name for entry in files.list("x/y").entries] == ["w", "z"]
        with pytest.raises(FileError, match="Not a directory"):
            files.write("x/y/z/deeper", "x", parents=True)


@by_each_way
def test_nothing_is_written_through_or_over_a_link(way: str, world: World) -> None:
    (world.root / "file").symlink_to(world.outside / "canary")
    (world.root / "folder").symlink_to(world.outside)
    (world.root / "dangling").symlink_to(world.outside / "new")
    (world.root / "inside").symlink_to("a/b/f")
    with jail(way, world.root) as files:
        for path in ("file", "folder", "dangling", "inside", "folder/canary", "folder/new", "folder/x/new"):
            with pytest.raises(AccessDenied) as refused:
                files.write(path, "x", parents=True)
            assert refused.value.rule in ("symlink", "escape")
            with pytest.raises(AccessDenied):
                files.delete(path)
    assert world.is_untouched()
    assert (world.root / "a" / "b" / "f").read_text() == "inside"


@by_each_way
def test_a_write_takes_the_place_of_a_hard_link_and_leaves_its_file(way: str, world: World) -> None:
    os.link(world.outside / "canary", world.root / "hard")
    with jail(way, world.root) as files:
        files.write("hard", "ours")
    assert (world.root / "hard").read_text() == "ours"
    assert (world.outside / "canary").read_text() == CANARY


@by_each_way
@pytest.mark.parametrize(
    "name", ["a\nb", "a\rb", "a\x1b[2Jb", "a\x7f", "a\u202etxt.exe", "a\u2028b", "a\x85b"]
)
def test_a_new_name_has_no_characters_that_deceive(way: str, world: World, name: str) -> None:
    with jail(way, world.root) as files:
        for path in (name, f"{name}/file"):
            with pytest.raises(AccessDenied, match="a new name must not have the character") as refused:
                files.write(path, "x", parents=True)
            assert name not in str(refused.value)
        (world.root / name).write_text("an old one")
        assert files.read_text(name) == "an old one"


@by_each_way
def test_permission_bits_are_kept_or_as_asked(way: str, world: World) -> None:
    old = os.umask(0o027)
    try:
        with jail(way, world.root) as files:
            files.write("new", "x")
            assert mode_of(world.root / "new") == 0o640
            files.write("private", "x", mode=0o600)
            files.write("private", "y")
            assert mode_of(world.root / "private") == 0o600
            files.write("script", "x", mode=0o755)
            assert mode_of(world.root / "script") == 0o755
            (world.root / "script").chmod(0o4755)
            files.write("script", "y")
            assert (
                mode_of(world.root / "script") == 0o755
            )  # what is written anew is nobody's to run as another
            for mode in (0o4755, -1):
                with pytest.raises(ConfigError, match="mode must be"):
                    files.write("script", "x", mode=mode)
    finally:
        os.umask(old)


def test_a_private_file_is_at_no_moment_readable_for_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    (world.root / "private").write_text("old")
    (world.root / "private").chmod(0o600)
    modes = []
    write_all = file_writing._write_all

    def look(descriptor: int, data: bytes) -> None:
        modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        write_all(descriptor, data)
        modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))

    monkeypatch.setattr(file_writing, "_write_all", look)
    with FileAccess(world.root, "write") as files:
        files.write("private", "new")
        files.write("other", "new", mode=0o640)
    assert modes == [0o600] * 4


@by_each_way
def test_a_read_only_file_stays(way: str, world: World) -> None:
    (world.root / "kept").write_text("kept")
    (world.root / "kept").chmod(0o444)
    with jail(way, world.root) as files:
        for change in (lambda: files.write("kept", "x"), lambda: files.delete("kept")):
            with pytest.raises(FileError, match="the file is read-only"):
                change()
    assert (world.root / "kept").read_text() == "kept"


@by_each_way
def test_an_access_for_reading_changes_nothing(way: str, world: World) -> None:
    with jail(way, world.root, "read") as files:
        for change in (lambda: files.write("new", "x"), lambda: files.delete("a/b/f")):
            with pytest.raises(AccessDenied, match="for reading only") as refused:
                change()
            assert refused.value.rule == "mode"
    assert sorted(os.listdir(world.root)) == ["a"]


@by_each_way
def test_size_and_quota(way: str, world: World) -> None:
    with jail(way, world.root, max_bytes=10, quota=15) as files:
        with pytest.raises(AccessDenied, match="11 bytes are more than the 10 that are allowed"):
            files.write("new", b"x" * 11)
        files.write("new", b"x" * 10)
        with pytest.raises(AccessDenied, match="6 bytes are more than the 5 left of 15"):
            files.write("new", b"y" * 6)
        with pytest.raises(FileNotFoundError):
            files.write("none/new", b"x" * 5)
        assert files.written == 10  # what failed costs nothing
        files.write("new", b"z" * 5)
        with pytest.raises(AccessDenied) as refused:
            files.write("new", b"z")
        assert refused.value.rule == "quota"
        assert files.read_bytes("new") == b"zzzzz"


def test_the_quota_holds_for_many_threads(world: World) -> None:
    with FileAccess(world.root, "write", quota=50) as files:
        outcomes: list[bool] = []

        def write(number: int) -> None:
            try:
                files.write(f"{number}", b"x" * 10)
                outcomes.append(True)
            except AccessDenied:
                outcomes.append(False)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == [False] * 15 + [True] * 5
        assert files.written == 50


def test_text_that_has_no_bytes_is_refused(world: World) -> None:
    with FileAccess(world.root, "write") as files, pytest.raises(FileError, match="character 1 of the text"):
        files.write("new", "a\ud800")
    assert sorted(os.listdir(world.root)) == ["a"]


@by_each_way
def test_a_file_is_deleted_and_nothing_else(way: str, world: World) -> None:
    with jail(way, world.root) as files:
        files.delete("a/b/f")
        with pytest.raises(FileNotFoundError):
            files.delete("a/b/f")
        with pytest.raises(FileError, match="Is a directory"):
            files.delete("a/b")
        with pytest.raises(AccessDenied, match="names no file below a root"):
            files.delete(".")


# --- whole or not at all -------------------------------------------------------------------------------


@by_each_way
@pytest.mark.parametrize("step", ["write", "fsync", "rename"])
def test_an_error_leaves_the_old_file_and_nothing_else(
    way: str, step: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/a/path/that/is/not/yours")

    before = open_descriptors()
    with jail(way, world.root, quota=100) as files:
        monkeypatch.setattr(os, step, fail)
        with pytest.raises(FileError) as raised:
            files.write("a/b/f", "new")
        monkeypatch.undo()
        assert str(raised.value) == "write 'a/b/f': No space left on device"
        assert files.written == 0
        assert files.read_text("a/b/f") == "inside"
    assert os.listdir(world.root / "a" / "b") == ["f"]
    assert open_descriptors() == before


@by_each_way
def test_no_folder_is_made_if_one_of_them_is_refused(way: str, world: World) -> None:
    told: list[tuple[object, ...]] = []
    with jail(way, world.root, on_access=lambda *decision: told.append(decision)) as files:
        with pytest.raises(AccessDenied, match=r"U\+202E") as denied:
            files.write("first/sec\u202eond/f", "new", parents=True)
        assert denied.value.rule == "path"
    assert not (world.root / "first").exists()
    assert [allowed for _, _, _, allowed, _ in told] == [False]


@by_each_way
@pytest.mark.parametrize(("number", "fails"), [(errno.EIO, True), (errno.EINVAL, False)])
def test_what_is_there_counts_though_the_folder_cannot_be_brought_to_the_disk(
    way: str, number: int, fails: bool, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def fail(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, "not this folder")
        fsync(descriptor)

    with jail(way, world.root, quota=5) as files:
        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(FileError, match="not this folder") if fails else contextlib.nullcontext():
            files.write("f", "abcde")
        monkeypatch.undo()
        assert (files.read_text("f"), files.written) == ("abcde", 5)
        with pytest.raises(AccessDenied, match="left of"):
            files.write("f", "f")


def test_a_reader_never_meets_half_a_file(world: World) -> None:
    with FileAccess(world.root, "write") as files:
        files.write("state", b"0" * 300_000)
        is_over = threading.Event()

        def write() -> None:
            number = 0
            while not is_over.is_set():
                number += 1
                files.write("state", b"%d" % (number % 10) * 300_000)

        thread = threading.Thread(target=write)
        thread.start()
        seen = set()
        begun = time.monotonic()
        try:
            # Longer, if the disk has not taken a write in that time.
            while (passed := time.monotonic() - begun) < 1.0 or (len(seen) < 2 and passed < 40.0):
                content = files.read_bytes("state")
                assert len(content) == 300_000
                assert len(set(content)) == 1
                seen.add(content[0])
        finally:
            is_over.set()
            thread.join()
        assert len(seen) > 1


WRITER = """
import sys
from agentrt.security.files import FileAccess

files = FileAccess(sys.argv[1], "write", resolution=sys.argv[2])
number = 0
while True:
    number += 1
    files.write("state", b"%d" % (number % 10) * 1_000_000)
    print(number, flush=True)
"""


@pytest.mark.parametrize("resolution", [way for way in WAYS if way in ("openat2", "walk")])
def test_a_process_that_is_killed_leaves_the_old_file_or_the_new_one(resolution: str, world: World) -> None:
    chance = random.Random(4)
    (world.root / "state").write_bytes(b"0" * 1_000_000)
    left_behind = killed = 0
    while killed < 12 or (left_behind == 0 and killed < 60):
        killed += 1
        arguments = [sys.executable, "-c", WRITER, os.fspath(world.root), resolution]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(chance.uniform(0.0, 0.02))
            process.kill()
        content = (world.root / "state").read_bytes()
        assert len(content) == 1_000_000
        assert len(set(content)) == 1
        left_behind = len(list(world.root.glob(".agentrt-*.part")))
    assert left_behind > 0, "no process was killed while it wrote: the test has shown nothing"
    with FileAccess(world.root, "write") as files:
        assert [entry.name for entry in files.list().entries] == ["a", "state"]
        # They may belong to a process that lives: they go when they are old and nobody holds them.
        files.write("other", "x")
    assert len(list(world.root.glob(".agentrt-*.part"))) == left_behind
    for part in world.root.glob(".agentrt-*.part"):
        os.utime(part, (time.time() - 3600,) * 2)
    with FileAccess(world.root, "write") as files:
        files.write("other", "x")
    assert sorted(os.listdir(world.root)) == ["a", "other", "state"]


def test_an_old_file_that_is_still_being_written_is_not_tidied_away(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    write_all = file_writing._write_all

    def slowly(descriptor: int, data: memoryview) -> None:
        write_all(descriptor, data)
        if bytes(data) == b"slow":
            os.utime(descriptor, (time.time() - 3600,) * 2)
            begun.set()
            assert go_on.wait(50)

    monkeypatch.setattr(file_writing, "_write_all", slowly)
    with FileAccess(world.root, "write") as slow, FileAccess(world.root, "write") as quick:
        thread = threading.Thread(target=slow.write, args=("slow", "slow"))
        thread.start()
        assert begun.wait(50)
        quick.write("quick", "quick")
        go_on.set()
        thread.join()
        assert quick.read_text("slow") == "slow"


def test_folders_that_somebody_else_makes_meanwhile_are_used(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = os.mkdir

    def late(name: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        make(name, mode, dir_fd=dir_fd)
        make(name, mode, dir_fd=dir_fd)  # we come second

    monkeypatch.setattr(os, "mkdir", late)
    with FileAccess(world.root, "write") as files:
        files.write("x/y/new", "new", parents=True)
        assert files.read_text("x/y/new") == "new"


def test_leftovers_that_cannot_be_removed_do_not_stop_a_write(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = world.root / ".agentrt-0.part"
    (world.root / ".agentrt-1.part").symlink_to("nowhere")
    left.touch()
    os.utime(left, (0, 0))
    unlink = os.unlink

    def refuse(name: str, *, dir_fd: int | None = None) -> None:
        if name == left.name:
            raise PermissionError(errno.EPERM, "not yours")
        unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", refuse)
    with FileAccess(world.root, "write") as files:
        files.write("new", "new")
    assert sorted(os.listdir(world.root)) == [".agentrt-0.part", ".agentrt-1.part", "a", "new"]


@by_each_way
@pytest.mark.parametrize("name", [".agentrt-1234.part", ".AGENTRT-1234.PART", "a/.agentrt-x.part"])
def test_the_names_of_files_that_are_being_written_are_kept(way: str, world: World, name: str) -> None:
    (world.root / name).write_text("half")
    with jail(way, world.root) as files:
        for operation in (files.read_text, files.stat, files.delete, lambda path: files.write(path, "x")):
            with pytest.raises(AccessDenied) as refused:
                operation(name)
            assert refused.value.rule == "reserved"
