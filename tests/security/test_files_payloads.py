"""Everything that is meant to get out of a jail, executed: what is outside is neither read, listed nor changed."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.security.files import FileAccess, FileError
from tests.security.jails import CANARY, WAYS, World, jail, open_descriptors
from tests.security.traversals import HARMLESS, traversals

by_each_way = pytest.mark.parametrize("way", WAYS)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """With links of every kind that an earlier program, or another agent, could have left."""
    world = World(tmp_path)
    links = {
        "out": "../../outside",
        "absolute": world.outside,
        "chain": "out",
        "magic": "/proc/self/root",
        "up": "..",
        "deep": "a/b",
        "a/b/up": "../../..",
        "self": ".",
        "loop": "loop",
    }
    for name, target in links.items():
        (world.root / name).symlink_to(target)
    return world


@by_each_way
def test_no_traversal_gets_out(way: str, world: World) -> None:
    paths = traversals(os.fspath(world.outside / "canary"))
    assert len(paths) > 10_000
    before = open_descriptors()
    refused = 0
    with jail(way, world.root, "read") as files:
        for path in paths:
            for operation in ("read", "list"):
                outcome = operate(files, operation, path)
                refused += outcome.startswith("AccessDenied")
                assert CANARY not in outcome
                assert "Entry(name='canary'" not in outcome
                assert os.fspath(world.root) not in outcome.replace(path, "")
    assert refused > 5_000
    assert open_descriptors() == before


@by_each_way
def test_no_traversal_changes_what_is_outside(
    way: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: None
    )  # thousands of files: the disk is not in question
    paths = traversals(os.fspath(world.outside / "canary"))[:: 1 if way == "openat2" else 5]
    with jail(way, world.root) as files:
        for path in paths:
            with contextlib.suppress(FileError):
                files.delete(path)
            with contextlib.suppress(FileError):
                files.write(path, "overwritten", parents=True)
    assert world.is_untouched()


@by_each_way
@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_names_are_names(way: str, world: World, name: str) -> None:
    with jail(way, world.root) as files:
        files.write(f"a/{name}", name)
        assert files.read_text(f"a/{name}") == name
        assert (world.root / "a" / name).read_text() == name
        assert name in [entry.name for entry in files.list("a").entries]
        files.delete(f"a/{name}")
        assert not (world.root / "a" / name).exists()


# --- trees that nobody thought of ----------------------------------------------------------------------

NAMES = st.one_of(
    st.sampled_from(["a", "b", "c", "..a", "...", "canary", "x" * 255]),
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=8),
    # Bytes that are no UTF-8: the system takes any but "/" and NUL.
    st.binary(min_size=1, max_size=8).filter(lambda name: not {0, 0x2F} & set(name)).map(os.fsdecode),
).filter(lambda name: name not in (".", "..") and len(os.fsencode(name)) <= 255)

PARTS = st.one_of(NAMES, st.sampled_from(["..", ".", "", "a", "b", "c"]))
PATHS = st.builds(
    lambda front, parts: front + "/".join(parts),
    st.sampled_from(["", "", "", "/", "./", "../", "a/../"]),
    st.lists(PARTS, min_size=1, max_size=5),
)
TARGETS = st.one_of(
    PATHS,
    st.sampled_from(
        ["..", "../..", "../../outside", "../../outside/canary", "OUTSIDE", "ROOT", "/proc/self/root"]
    ),
)
THINGS = st.lists(
    st.tuples(
        st.lists(NAMES, min_size=1, max_size=3), st.sampled_from(["file", "folder", "link", "fifo"]), TARGETS
    ),
    max_size=12,
)


def build(world: World, things: list[tuple[list[str], str, str]]) -> None:
    for parts, kind, target in things:
        path = world.root.joinpath(*parts)
        with contextlib.suppress(OSError):
            if not path.parent.resolve().is_relative_to(world.root):
                continue  # through a link that we made: the tree is to be inside
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "file":
                path.touch(exist_ok=False)
                path.write_text("inside")
            elif kind == "folder":
                path.mkdir()
            elif kind == "fifo":
                os.mkfifo(path)
            else:
                places = {"OUTSIDE": world.outside, "ROOT": world.root}
                path.symlink_to(places.get(target, target))


@contextlib.contextmanager
def fresh_world() -> Iterator[World]:
    with tempfile.TemporaryDirectory() as folder:
        yield World(Path(folder).resolve())


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["read", "list", "stat", "write", "delete"]), PATHS), min_size=1, max_size=12
)


def operate(files: FileAccess, operation: str, path: str) -> str:
    """What came of it, in words that are the same wherever the root is."""
    try:
        if operation == "read":
            return files.read_text(path)
        if operation == "list":
            return repr(files.list(path).entries)
        if operation == "stat":
            return files.stat(path).kind
        if operation == "write":
            return str(files.write(path, "written", parents=True))
        files.delete(path)
        return "deleted"
    except FileError as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=60)
@given(things=THINGS, operations=OPERATIONS)
def test_in_any_tree_nothing_gets_out(
    way: str, things: list[tuple[list[str], str, str]], operations: list[tuple[str, str]]
) -> None:
    before = len(os.listdir("/dev/fd"))
    with fresh_world() as world, pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        build(world, things)
        with jail(way, world.root) as files:
            for operation, path in operations:
                outcome = operate(files, operation, path)
                assert CANARY not in outcome
                assert os.fspath(world.root) not in outcome
        assert world.is_untouched()
    assert len(os.listdir("/dev/fd")) <= before


@pytest.mark.skipif("openat2" not in WAYS, reason="this system has no openat2")
@settings(max_examples=60)
@given(things=THINGS, paths=st.lists(PATHS, min_size=1, max_size=12))
def test_without_links_both_ways_are_the_same(
    things: list[tuple[list[str], str, str]], paths: list[str]
) -> None:
    with fresh_world() as world:
        build(world, things)
        with (
            jail("openat2", world.root, "read", symlinks="refuse") as kernel,
            jail("walk", world.root, "read") as walk,
        ):
            for operation in ("read", "list", "stat"):
                for path in paths:
                    assert operate(kernel, operation, path) == operate(walk, operation, path)
