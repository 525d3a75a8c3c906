"""`FileAccess`: what it opens and what it refuses, by each of its ways to look a path up."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentrt.errors import AgentrtError, ConfigError
from agentrt.security.files import AccessDenied, Entry, FileAccess, FileError, FileMissing, NotText
from tests.security.jails import CANARY, WAYS, World, jail, open_descriptors

by_each_way = pytest.mark.parametrize("way", WAYS)
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="about Linux's own calls and folders")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def no_descriptor_is_left() -> Iterator[None]:
    before = open_descriptors()
    yield
    assert open_descriptors() == before


def refusal(way: str, world: World, path: Any, **options: Any) -> AccessDenied:
    with jail(way, world.root, "read", **options) as files, pytest.raises(AccessDenied) as raised:
        files.read_bytes(path)
    assert str(world.root) not in str(raised.value)
    return raised.value


@by_each_way
def test_a_file_below_the_root_is_read(way: str, world: World) -> None:
    with jail(way, world.root, "read") as files:
        assert files.read_text("a/b/f") == "inside"
        assert files.read_text("./a//b/./f") == "inside"
        assert files.read_bytes(Path("a") / "b" / "f") == b"inside"
        with files.open_read("a/b/f") as file:
            assert (file.read(3), file.read()) == (b"ins", b"ide")
            assert isinstance(file.name, int)  # a descriptor, not a path


@by_each_way
@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("../canary", "'..' is not allowed"),
        ("a/../a/b/f", "'..' is not allowed"),
        ("/etc/hostname", "absolute"),
        ("a/b/f\0.txt", "NUL"),
        ("a/" * 2100 + "f", "longer than 4095 bytes"),
        ("a/" * 130 + "f", "deeper than 128"),
        ("x" * 256, "longer than 255 bytes"),
        ("é" * 128, "longer than 255 bytes"),
        ("a/\ud800", "no file name can have"),
        (b"a/b/f", "a path is text, not bytes"),
    ],
)
def test_what_is_no_path_below_a_root_is_refused(way: str, world: World, path: Any, why: str) -> None:
    error = refusal(way, world, path)
    assert error.rule == "path"
    assert why in str(error)
    assert len(str(error)) < 400


@by_each_way
def test_links_that_lead_out_are_refused_and_tell_nothing(way: str, world: World) -> None:
    targets = {
        "file": str(world.outside / "canary"),
        "folder": str(world.outside),
        "up": "../canary",
        "far up": "../" * 30 + "etc/hostname",
        "magic": "/proc/self/root/etc/hostname",
        "missing": str(world.outside / "there is no such file"),
        "chain": "file",
        "absolute": str(world.root / "a" / "b" / "f"),
    }
    for name, target in targets.items():
        (world.root / name).symlink_to(target)
    rules = {name: refusal(way, world, name).rule for name in targets}
    assert set(rules.values()) == ({"escape"} if way == "openat2" else {"symlink"})
    error = refusal(way, world, "folder/canary")
    assert str(world.outside) not in str(error)
    # Whether something is there outside must not show.
    there, missing = (str(refusal(way, world, name)).replace(name, "") for name in ("file", "missing"))
    assert there == missing


@by_each_way
def test_a_link_that_stays_inside_is_followed_where_the_kernel_can_tell(way: str, world: World) -> None:
    (world.root / "link").symlink_to("a/b/f")
    (world.root / "a" / "up").symlink_to("../a/b")
    with jail(way, world.root, "read") as files:
        if way == "openat2":
            assert files.read_text("link") == "inside"
            assert files.read_text("a/up/f") == "inside"
        else:
            for path in ("link", "a/up/f"):
                with pytest.raises(AccessDenied, match="a symbolic link on the way is not followed"):
                    files.read_text(path)


@by_each_way
def test_no_link_is_followed_where_that_is_asked_for(way: str, world: World) -> None:
    (world.root / "link").symlink_to("a/b/f")
    (world.root / "loop").symlink_to("loop")
    assert refusal(way, world, "link", symlinks="refuse").rule == "symlink"
    assert refusal(way, world, "loop", symlinks="refuse").rule == "symlink"
    assert refusal(way, world, "loop").rule == "symlink"


@by_each_way
@pytest.mark.usefixtures("no_descriptor_is_left")
def test_only_regular_files_are_opened(way: str, world: World) -> None:
    os.mkfifo(world.root / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        folder = os.getcwd()
        os.chdir(world.root)  # the name of a socket may have only about 100 characters
        try:
            listening.bind("socket")
        finally:
            os.chdir(folder)
        assert refusal(way, world, "fifo").rule == "kind"
        assert refusal(way, world, "socket").rule == "kind"
    with jail(way, world.root) as files:
        for name in ("fifo", "socket"):
            with pytest.raises(AccessDenied, match="no regular file"):
                files.write(name, "x")
            with pytest.raises(AccessDenied, match="no regular file"):
                files.delete(name)
        with pytest.raises(FileError, match="Is a directory"):
            files.read_text("a")
        with pytest.raises(FileError, match="Is a directory"):
            files.write("a", "x")


@on_linux
@by_each_way
def test_devices_and_the_kernels_own_file_systems_are_refused(way: str) -> None:
    with jail(way, "/dev", "read") as files:
        with pytest.raises(AccessDenied) as device:
            files.read_bytes("null")
        with pytest.raises(AccessDenied) as mounted:
            files.list("pts")
        with pytest.raises(AccessDenied) as link:
            files.list("fd")
        assert [error.value.rule for error in (device, mounted)] == ["kind", "kind"]
        assert link.value.rule in ("escape", "symlink")
    for root in ("/proc", "/proc/self", "/sys"):
        with pytest.raises(ConfigError, match="file system of the kernel's own"):
            FileAccess(root, "read")


@by_each_way
def test_a_hard_link_is_refused_unless_allowed(way: str, world: World) -> None:
    os.link(world.outside / "canary", world.root / "hard")
    assert refusal(way, world, "hard").rule == "hard-link"
    with jail(way, world.root, hard_links="allow") as files:
        assert files.read_text("hard") == CANARY
        assert files.stat("hard").links == 2
        files.write("hard", "a file of its own")
        assert files.read_text("hard") == "a file of its own"
    assert world.is_untouched()


@by_each_way
def test_a_file_larger_than_allowed_is_refused(way: str, world: World) -> None:
    (world.root / "large").write_bytes(b"x" * 11)
    assert refusal(way, world, "large", max_bytes=10).rule == "size"
    with jail(way, world.root, "read", max_bytes=11) as files:
        assert files.read_bytes("large") == b"x" * 11


def test_a_file_that_grows_while_it_is_read_is_refused(world: World) -> None:
    growing = world.root / "growing"
    growing.write_bytes(b"x" * 10)

    def grow(*decision: object) -> None:
        growing.write_bytes(b"x" * 100_000)  # between the check and the reading

    with (
        FileAccess(world.root, "read", max_bytes=20_000, on_access=grow) as files,
        pytest.raises(AccessDenied, match="it grew beyond the 20,000 bytes"),
    ):
        files.read_bytes("growing")
    with FileAccess(world.root, "read", on_access=grow) as files:
        growing.write_bytes(b"x")
        assert len(files.read_bytes("growing")) == 100_000


@by_each_way
@pytest.mark.usefixtures("no_descriptor_is_left")
def test_what_is_not_there_is_a_file_not_found_error(way: str, world: World) -> None:
    with jail(way, world.root) as files:
        for operation in (files.read_bytes, files.open_read, files.list, files.stat, files.delete):
            with pytest.raises(FileNotFoundError) as missing:
                operation("a/nothing")
            assert isinstance(missing.value, FileMissing)
            assert isinstance(missing.value, AgentrtError)
            assert str(missing.value).endswith("'a/nothing': there is no such file or folder")
        with pytest.raises(FileMissing):
            files.write("nothing/here", "x")
        with pytest.raises(FileError, match="Not a directory"):
            files.read_bytes("a/b/f/g")


@by_each_way
def test_bytes_that_are_no_text_say_where(way: str, world: World) -> None:
    (world.root / "binary").write_bytes(b"abc\xff\x00")
    with jail(way, world.root, "read") as files:
        with pytest.raises(NotText, match="no utf-8 text \\(byte 0xff at offset 3\\)"):
            files.read_text("binary")
        assert files.read_text("binary", encoding="latin-1") == "abc\xff\x00"
        with pytest.raises(ConfigError, match="encoding must be one that Python knows"):
            files.read_text("binary", encoding="utf-9")


@by_each_way
def test_line_ends_are_kept(way: str, world: World) -> None:
    with jail(way, world.root) as files:
        files.write("lines", "a\r\nb\rc\n")
        assert files.read_text("lines") == "a\r\nb\rc\n"


# --- listing -------------------------------------------------------------------------------------------


@by_each_way
def test_a_folder_is_listed_by_name_with_kinds_and_without_following(way: str, world: World) -> None:
    (world.root / "out").symlink_to(world.outside)
    (world.root / "z").write_bytes(b"four")
    os.mkfifo(world.root / "fifo")
    with jail(way, world.root, "read") as files:
        listing = files.list()
        assert listing.entries == (
            Entry("a", "directory", 0),
            Entry("fifo", "other", 0),
            Entry("out", "symlink", 0),
            Entry("z", "file", 4),
        )
        assert not listing.truncated
        assert files.list(".") == listing
        with pytest.raises(AccessDenied):
            files.list("out")
        with pytest.raises(FileError, match="Not a directory"):
            files.list("z")
        assert files.stat("out").kind == "symlink"
        assert files.stat("").kind == "directory"
        assert (files.stat("z").kind, files.stat("z").size) == ("file", 4)


@by_each_way
def test_a_listing_is_cut_after_the_first_names(way: str, world: World) -> None:
    for number in range(30):
        (world.root / "a" / f"{number:02}").touch()
    with jail(way, world.root, "read") as files:
        listing = files.list("a", limit=3)
        assert [entry.name for entry in listing.entries] == ["00", "01", "02"]
        assert listing.truncated
        assert not files.list("a", limit=31).truncated  # b is there too
        assert files.list("a", limit=30).truncated
        with pytest.raises(ConfigError, match="limit must be a whole number"):
            files.list("a", limit=0)


# --- roots ---------------------------------------------------------------------------------------------


@by_each_way
def test_named_roots_are_the_first_part_of_a_path(way: str, world: World) -> None:
    other = world.root.parent / "other"
    other.mkdir()
    (other / "g").write_text("other's")
    with jail(way, {"docs": world.root, "out": other}) as files:
        assert files.roots == ("docs", "out")
        assert files.read_text("docs/a/b/f") == "inside"
        assert files.read_text("out/g") == "other's"
        assert [entry.name for entry in files.list().entries] == ["docs", "out"]
        assert files.list("", limit=1).truncated
        assert files.stat("").kind == "directory"
        for path in ("docs/../out/g", "docs/../../other/g"):
            with pytest.raises(AccessDenied, match=r"'\.\.' is not allowed"):
                files.read_text(path)
        with pytest.raises(AccessDenied, match="begins with one of the roots: docs, out") as unknown:
            files.read_text("g")
        with pytest.raises(AccessDenied, match="names no file below a root; the roots are: docs, out"):
            files.write("docs", "x")
        assert unknown.value.rule == "root"


@by_each_way
def test_a_root_that_is_renamed_stays_the_root(way: str, world: World) -> None:
    with jail(way, world.root) as files:
        moved = world.root.with_name("moved")
        world.root.rename(moved)
        world.root.mkdir()
        assert files.read_text("a/b/f") == "inside"
        files.write("new", "x")
        assert (moved / "new").read_text() == "x"


@pytest.mark.parametrize(
    ("roots", "why"),
    [
        ("/", "confines nothing"),
        ("", "a root is the path of a folder"),
        (None, "a root is the path of a folder"),
        ({}, "name at least one folder"),
        ({"": "."}, "one part of a path"),
        ({"a/b": "."}, "one part of a path"),
        ({"..": "."}, "one part of a path"),
        ("/no such folder", "must be a folder that is there"),
        (__file__, "must be a folder that is there"),
        ("a\0b", "is no path"),
    ],
)
@pytest.mark.usefixtures("no_descriptor_is_left")
def test_a_root_has_to_be_a_folder_that_confines(roots: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        FileAccess(roots, "read")


@pytest.mark.usefixtures("no_descriptor_is_left")
def test_one_bad_root_closes_the_good_ones(world: World) -> None:
    with pytest.raises(ConfigError, match="root 'bad' must be a folder"):
        FileAccess({"good": world.root, "bad": world.root / "none"}, "read")


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "w"},
        {"max_bytes": 0},
        {"quota": -1},
        {"symlinks": "follow"},
        {"hard_links": True},
        {"on_access": "print"},
        {"resolution": "realpath"},
    ],
)
def test_options_are_checked(world: World, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        FileAccess(world.root, **{"mode": "read", **options})


@by_each_way
@pytest.mark.usefixtures("no_descriptor_is_left")
def test_nothing_is_opened_after_the_end(way: str, world: World) -> None:
    with jail(way, world.root) as files:
        kept = files.open_read("a/b/f")
        files.close()
        with pytest.raises(AccessDenied, match="is closed"):
            files.read_text("a/b/f")
        with kept:
            assert kept.read() == b"inside"


def test_the_root_is_closed_with_the_last_use_not_before(world: World) -> None:
    # Or the number of the descriptor could mean another folder while a path is looked up in it.
    before = open_descriptors()
    files = FileAccess(world.root, "read")
    (root,) = files._roots.values()
    in_use = root.borrow()
    files.close()
    assert os.fstat(in_use)
    assert open_descriptors() == before + 1
    root.give_back()
    assert open_descriptors() == before


def test_a_jail_that_is_forgotten_lets_go_of_its_root(world: World) -> None:
    before = open_descriptors()
    files = FileAccess(world.root, "read")
    assert open_descriptors() == before + 1
    del files
    assert open_descriptors() == before


# --- decisions -----------------------------------------------------------------------------------------


@by_each_way
def test_every_decision_is_told(way: str, world: World) -> None:
    told: list[tuple[str, str, str, bool, str]] = []
    (world.root / "out").symlink_to(world.outside)
    with jail(way, {"docs": world.root}, "write", on_access=lambda *decision: told.append(decision)) as files:
        files.read_text("docs/a/b/f")
        files.list("docs/a")
        files.stat("docs/a")
        files.write("docs/new", "x")
        files.delete("docs/new")
        for path in ("docs/../x", "other/x", "docs/out/canary"):
            with pytest.raises(AccessDenied):
                files.read_text(path)
        with pytest.raises(FileMissing):
            files.read_text("docs/none")
    allowed = [decision[:4] for decision in told if decision[3]]
    assert allowed == [
        ("read", "docs", "docs/a/b/f", True),
        ("list", "docs", "docs/a", True),
        ("stat", "docs", "docs/a", True),
        ("write", "docs", "docs/new", True),
        ("delete", "docs", "docs/new", True),
    ]
    denied = [(root, path, reason.partition(":")[0]) for _, root, path, ok, reason in told if not ok]
    assert denied == [
        ("", "docs/../x", "path"),
        ("", "other/x", "root"),
        ("docs", "docs/out/canary", "escape" if way == "openat2" else "symlink"),
    ]


@by_each_way
@pytest.mark.usefixtures("no_descriptor_is_left")
def test_nothing_happens_if_the_decision_cannot_be_told(way: str, world: World) -> None:
    def refuse(*decision: object) -> None:
        raise OSError(28, "the audit log is full")

    with jail(way, world.root, "write", on_access=refuse, quota=10) as files:
        for operation in (files.read_bytes, files.open_read, files.list, files.stat, files.delete):
            with pytest.raises(OSError, match="the audit log is full"):
                operation("a/b/f" if operation != files.list else "a")
        for path in ("new", "x/y/new"):
            with pytest.raises(OSError, match="the audit log is full"):
                files.write(path, "x", parents=True)
        assert files.written == 0
    assert sorted(os.listdir(world.root)) == ["a"]
    assert (world.root / "a" / "b" / "f").read_text() == "inside"


def test_what_is_told_can_be_recorded(world: World) -> None:
    told: list[str] = []
    with FileAccess(world.root, "read", on_access=lambda *decision: told.append(decision[2])) as files:
        for path in ("/a\nb", os.fsdecode(b"/\xff"), "\ud800", "x" * 300, "y" * 100_000, 7):
            with pytest.raises(AccessDenied) as raised:
                files.read_text(path)  # type: ignore[arg-type]
            assert len(str(raised.value)) < 400
            assert str(raised.value).isprintable()
    assert told[:4] == ["/a\\nb", "/\\udcff", "\\ud800", "x" * 300]
    assert (len(told[4]), told[5]) == (4096, "(int)")
