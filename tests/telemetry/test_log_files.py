"""Log files by themselves: rotation, several writers, half a line; and the thread that writes them."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest

from agentrt.telemetry.log_file import LineThread, LogFile


def test_a_file_is_rotated_by_its_size(tmp_path: Path) -> None:
    told: list[str] = []
    file = LogFile(str(tmp_path / "a.log"), max_bytes=1000, keep=2, tell=told.append)
    file.open()
    for start in range(0, 100, 10):
        file.write([b"%099d\n" % number for number in range(start, start + 10)])
    file.write([b"x" * 5000 + b"\n"])
    file.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.log", "a.log.1", "a.log.2"]
    sizes = [(tmp_path / name).stat().st_size for name in ("a.log", "a.log.1", "a.log.2")]
    assert sizes == [5001, 1000, 1000]
    assert (tmp_path / "a.log.1").read_bytes() == b"".join(b"%099d\n" % n for n in range(90, 100))
    assert told == []


def test_two_writers_of_one_file_lose_nothing(tmp_path: Path) -> None:
    told: list[str] = []
    files = [LogFile(str(tmp_path / "a.log"), max_bytes=2000, keep=50, tell=told.append) for _ in range(2)]
    for number in range(200):
        files[number % 2].write([b"%099d\n" % number])
    for file in files:
        file.close()
    lines = sorted(int(line) for path in tmp_path.iterdir() for line in path.read_bytes().splitlines())
    assert lines == list(range(200))
    assert len(list(tmp_path.iterdir())) == 10


def test_a_file_that_another_process_has_just_rotated_is_not_rotated_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.log"
    file = LogFile(str(path), max_bytes=1000, keep=5, tell=print)
    file.write([b"x" * 999 + b"\n"])

    def lock(fd: int, operation: int) -> None:
        if operation == fcntl.LOCK_EX:  # the other one had the lock until now
            path.rename(tmp_path / "a.log.1")
            path.write_bytes(b"theirs\n")

    monkeypatch.setattr("agentrt.telemetry.log_file.fcntl.flock", lock)
    file.write([b"ours\n"])
    file.close()
    assert path.read_bytes() == b"theirs\nours\n"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.log", "a.log.1"]


def test_a_file_that_was_moved_away_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    file = LogFile(str(path), max_bytes=None, keep=1, tell=print)
    file.write([b"one\n"])
    path.rename(tmp_path / "b.log")
    file.write([b"two\n"])
    file.close()
    assert ((tmp_path / "b.log").read_text(), path.read_text()) == ("one\n", "two\n")


def test_half_a_line_is_not_the_beginning_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    file = LogFile(str(tmp_path / "a.log"), max_bytes=None, keep=1, tell=told.append)
    write, left = os.write, [15]

    def full(fd: int, data: bytes) -> int:
        if not left[0]:
            raise OSError(28, "No space left on device")
        data = data[: left[0]]
        left[0] -= len(data)
        return write(fd, data)

    monkeypatch.setattr("agentrt.telemetry.log_file.os.write", full)
    file.write([b"one line\n", b"two lines\n", b"three\n"])
    assert file.lost == 2
    left[0] = 1000
    file._retry_at = 0.0
    file.write([b"four\n"])
    file.close()
    assert (tmp_path / "a.log").read_text() == "one line\ntwo li\nfour\n"
    assert told[1].endswith("can be written again; 2 lines are missing in it")


def test_the_queue_is_bounded_by_size_as_well() -> None:
    release = threading.Event()
    done: list[int] = []

    def work(items: list[int]) -> None:
        release.wait(10)
        done.extend(items)

    thread: LineThread[int] = LineThread(work, limit=1000, limit_bytes=100)
    for number in range(20):
        thread.put(number, 10)
    assert thread.dropped == 9
    release.set()
    assert thread.close(10)
    assert done == list(range(11))
