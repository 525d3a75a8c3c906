"""The file backend: what is written can be read again, whatever happens to the disk and the process."""

from __future__ import annotations

import asyncio
import errno
import gzip
import json
import multiprocessing
import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from telemetry.samples import NOW, RESOURCE, batch, line, span

from agentrt.decode import Where
from agentrt.errors import ConfigError
from agentrt.plugins import load, make
from agentrt.telemetry.file import File, read
from agentrt.telemetry.signals import Batch, LogLine, Metric, Resource, Span


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


@contextmanager
def room(path: Path, size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: to whoever writes, the same as a disk that is full."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    sent = batch()
    file = File(path=tmp_path / "t.jsonl")
    file.export(sent)
    found = read(tmp_path / "t.jsonl")
    assert list(found) == [*sent.spans, *sent.metrics, *sent.logs]
    assert found.resource == RESOURCE
    assert found.skipped == 0
    asyncio.run(file.aclose())


def test_each_line_says_what_it_is_and_the_resource_stands_first(tmp_path: Path) -> None:
    file = File(path=tmp_path / "t.jsonl")
    file.export(batch())
    file.export(Batch(RESOURCE, logs=(line(),)))
    file.export(Batch(Resource({"service.name": "other"}), logs=(line(),)))
    kinds = [each["type"] for each in lines(tmp_path / "t.jsonl")]
    assert kinds == ["resource", "span", "span", *["metric"] * 3, "log", "log", "resource", "log"]


def test_only_the_wanted_signals_are_written(tmp_path: Path) -> None:
    file = File(path=tmp_path / "t.jsonl", signals=["metrics"])
    file.export(batch())
    assert all(isinstance(each, Metric) for each in read(tmp_path / "t.jsonl"))
    quiet = File(path=tmp_path / "none.jsonl", signals=["spans"])
    quiet.export(Batch(RESOURCE, logs=(line(),)))
    assert not (tmp_path / "none.jsonl").exists()


def test_directories_are_made_and_only_the_owner_may_read(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "t.jsonl"
    File(path=path).export(batch())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_second_process_of_the_same_name_appends(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    for _ in range(2):
        File(path=path).export(Batch(RESOURCE, spans=(span(),)))
    assert [each["type"] for each in lines(path)] == ["resource", "span"] * 2


# --- rotation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [False, True])
def test_a_full_file_is_rotated_and_the_oldest_goes(tmp_path: Path, compress: bool) -> None:
    path = tmp_path / "t.jsonl"
    file = File(path=path, max_bytes=3_000, keep=2, compress=compress)
    for number in range(40):
        file.export(Batch(RESOURCE, logs=(line(f"line {number}"),)))
    ending = ".gz" if compress else ""
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "t.jsonl",
        f"t.jsonl.1{ending}",
        f"t.jsonl.2{ending}",
    ]
    assert path.stat().st_size <= 3_000
    found = read(path, older=True)
    numbers = [int(each.message.split()[1]) for each in found if isinstance(each, LogLine)]
    assert numbers == list(range(numbers[0], 40))
    assert len(numbers) > 20
    assert found.resource == RESOURCE
    assert found.skipped == 0
    assert stat.S_IMODE((tmp_path / f"t.jsonl.1{ending}").stat().st_mode) == 0o600


def test_a_batch_larger_than_the_limit_is_written_whole(tmp_path: Path) -> None:
    file = File(path=tmp_path / "t.jsonl", max_bytes=100)
    file.export(batch())
    file.export(batch())
    assert len(list(read(tmp_path / "t.jsonl"))) == 6
    assert len(list(read(tmp_path / "t.jsonl.1"))) == 6


@pytest.mark.parametrize("change", ["moved", "removed"])
def test_a_file_that_somebody_else_took_away_is_begun_anew(tmp_path: Path, change: str) -> None:
    path = tmp_path / "t.jsonl"
    file = File(path=path)
    file.export(Batch(RESOURCE, logs=(line("first"),)))
    if change == "moved":
        path.rename(tmp_path / "elsewhere")
    else:
        path.unlink()
    file.export(Batch(RESOURCE, logs=(line("second"),)))
    assert [each["type"] for each in lines(path)] == ["resource", "log"]


def write_many(path: Path, name: str, count: int) -> None:
    file = File(path=path, max_bytes=20_000, keep=1000)
    for number in range(count):
        file.export(Batch(Resource({"service.name": name}), logs=(line(f"{name} {number}"),)))


def test_two_processes_lose_and_mix_nothing_while_they_rotate(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_many, args=(path, name, 500)) for name in ("a", "b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    found = read(path, older=True)
    seen: dict[str, list[int]] = {"a": [], "b": []}
    for each in found:
        assert isinstance(each, LogLine)
        name, number = each.message.split()
        assert found.resource is not None
        assert found.resource.service == name  # each line stands under the resource of its writer
        seen[name].append(int(number))
    assert seen == {"a": list(range(500)), "b": list(range(500))}
    assert found.skipped == 0
    assert len(list(tmp_path.iterdir())) > 5


def test_a_forked_child_takes_a_lock_of_its_own(tmp_path: Path) -> None:
    file = File(path=tmp_path / "t.jsonl")
    file.export(Batch(RESOURCE, logs=(line("parent"),)))
    inherited = file._fd
    file._process = -1  # what a child sees: the descriptor was opened by another process
    file.export(Batch(RESOURCE, logs=(line("child"),)))
    assert inherited is not None
    assert [each.message for each in read(tmp_path / "t.jsonl") if isinstance(each, LogLine)] == [
        "parent",
        "child",
    ]
    assert [each["type"] for each in lines(tmp_path / "t.jsonl")] == ["resource", "log"] * 2


# --- what can go wrong -----------------------------------------------------------------------------------


def test_a_line_torn_by_a_kill_is_skipped_and_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    File(path=path).export(batch())
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    torn = read(path)
    assert len(list(torn)) == 5
    assert torn.skipped == 1
    File(path=path).export(Batch(RESOURCE, logs=(line("after"),)))
    found = read(path)
    last = list(found)[-1]
    assert isinstance(last, LogLine)
    assert last.message == "after"
    assert found.skipped == 1


def test_foreign_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    File(path=path).export(Batch(RESOURCE, logs=(line(),)))
    with path.open("ab") as file:
        file.write(b'hello\n\n[1]\n{"a": 1}\n{"type": "new"}\n{"type": "span", "name": 3}\n\xff\xfe\n')
        file.write(b'{"type": "log"}\n' + b"[" * 100_000 + b"\n")
    File(path=path).export(Batch(RESOURCE, logs=(line(),)))
    found = read(path)
    assert len(list(found)) == 2
    assert found.skipped == 8


def test_a_compressed_file_that_ends_too_soon_gives_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    File(path=path).export(Batch(RESOURCE, logs=tuple(line(os.urandom(64).hex()) for _ in range(500))))
    packed = tmp_path / "t.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes())[:-2000])
    found = read(packed)
    assert 0 < len(list(found)) < 500
    assert found.skipped == 1


def test_reading_what_is_not_there_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.jsonl"):
        read(tmp_path / "nothing.jsonl")


def test_on_a_full_disk_nothing_is_written_and_it_goes_on_when_there_is_room(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    file = File(path=path)
    file.export(Batch(RESOURCE, logs=(line("before"),)))
    before = path.read_bytes()
    full = Batch(RESOURCE, logs=(line("x" * 50_000),))
    with room(path, len(before) + 1_000), pytest.raises(OSError, match="cannot write telemetry to") as caught:
        file.export(full)
    assert caught.value.errno == errno.EFBIG
    assert path.read_bytes() == before  # the kernel wrote a part, which was taken back
    file.export(full)
    found = read(path)
    assert len(list(found)) == 2
    assert found.skipped == 0


def test_a_full_disk_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    file = File(path=tmp_path / "t.jsonl")
    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match="no room left on the disk: free some, or lower max_bytes") as caught:
        file.export(batch())
    assert caught.value.errno == errno.ENOSPC


def test_a_rotation_that_fails_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    file = File(path=path, max_bytes=4_000, compress=True)
    sent = Batch(RESOURCE, logs=tuple(line(os.urandom(500).hex()) for _ in range(3)))
    file.export(sent)
    before = path.read_bytes()
    with room(path, 100), pytest.raises(OSError, match="cannot write telemetry"):
        file.export(sent)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["t.jsonl"]
    file.export(sent)
    assert len(list(read(path, older=True))) == 6


def test_what_a_killed_rotation_left_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    (tmp_path / "t.jsonl.1.gz.part").write_bytes(b"half of it")
    file = File(path=path, max_bytes=100, compress=True)
    file.export(batch())
    file.export(batch())
    assert sorted(each.name for each in tmp_path.iterdir()) == ["t.jsonl", "t.jsonl.1.gz"]
    assert len(list(read(path, older=True))) == 12


def test_a_directory_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").mkdir()
    with pytest.raises(IsADirectoryError, match=r"t\.jsonl: there is a directory of this name"):
        File(path=tmp_path / "t.jsonl").export(batch())


def test_a_file_where_a_directory_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="a part of the path is a file and not a directory"):
        File(path=tmp_path / "file" / "t.jsonl").export(batch())


@pytest.mark.parametrize(
    ("number", "message"), [(errno.EACCES, "may not be written by this user"), (errno.EROFS, "is read-only")]
)
def test_a_missing_permission_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    file = File(path=tmp_path / "t.jsonl")
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OSError, match=message) as caught:
        file.export(batch())
    assert caught.value.errno == number


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        File(path=tmp_path / "pipe").export(batch())


def test_a_lock_that_is_held_for_ever_ends_in_a_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    path = tmp_path / "t.jsonl"
    File(path=path).export(batch())
    monkeypatch.setattr("agentrt.telemetry.file.LOCK_WAIT", 0.05)
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(TimeoutError, match="another process has held its lock"):
            File(path=path).export(batch())


def test_values_that_json_does_not_take_are_written_as_text(tmp_path: Path) -> None:
    strange = Span(
        name="bad \udc80 name",
        trace_id="ab" * 16,
        span_id="cd" * 8,
        parent_id=None,
        start_ns=NOW,
        end_ns=NOW,
        attributes={"huge": 2**70, "object": Path("/x"), "deep": [1, "\udfff"], "set": {1}, "none": None},
    )
    File(path=tmp_path / "t.jsonl").export(Batch(RESOURCE, spans=(strange,)))
    (found,) = read(tmp_path / "t.jsonl")
    assert isinstance(found, Span)
    assert found.name == "bad ? name"
    assert found.attributes == {
        "huge": str(2**70),
        "object": "/x",
        "deep": [1, "?"],
        "set": "{1}",
        "none": None,
    }


# --- options ---------------------------------------------------------------------------------------------


def test_it_is_made_from_a_configuration_table(tmp_path: Path) -> None:
    assert load("agentrt.telemetry", "file") is File
    table = {"path": str(tmp_path / "t.jsonl"), "keep": 2, "signals": ["logs"]}
    made = make("agentrt.telemetry", "file", table, where=Where())
    assert isinstance(made, File)
    assert (made.path, made.keep, made.signals) == (tmp_path / "t.jsonl", 2, ("logs",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "path"),
        ({"path": " "}, "path must be the name of a file"),
        ({"path": "x", "keep": 0}, "keep must be a whole number of at least 1"),
        ({"path": "x", "max_bytes": 0}, "max_bytes must be a whole number of at least 1"),
        ({"path": "x", "signals": ["traces"]}, "signals must be one of 'spans', 'metrics', 'logs'"),
        ({"path": "x", "signals": []}, "not none of them"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make("agentrt.telemetry", "file", options, where=Where())
