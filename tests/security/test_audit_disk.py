"""An audit log on a disk that fails in the middle of something: the chain goes on where it stood."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from agentrt.security.audit import AuditLog, AuditUnavailable, log_file
from agentrt.security.audit.log_file import LogFile
from agentrt.security.audit.segments import segments
from security.audits import KEY, checked, items, lines, records, until, written


class Failing:
    """Lets each of the given functions fail once with EIO, and then do what it does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *functions: tuple[Any, str]) -> None:
        self.left = {name for _, name in functions}
        for owner, name in functions:
            monkeypatch.setattr(owner, name, self._once(name, getattr(owner, name)))

    def _once(self, name: str, real: Any) -> Any:
        def once(*args: Any) -> Any:
            if name in self.left:
                self.left.remove(name)
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(*args)

        return once


@pytest.mark.asyncio
@pytest.mark.parametrize("rotation", [None, 1000])
async def test_a_group_that_could_not_even_be_cut_off_is_cut_off_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rotation: int | None
) -> None:
    path = tmp_path / "audit.jsonl"
    async with AuditLog(path, signing_key=KEY.encode(), rotation=rotation) as log:
        (await log.durable_intent("x", "before")).ended()
        await until(lambda: log.statistics.written == 2)
        failing = Failing(monkeypatch, (log_file, "_sync"), (os, "ftruncate"))
        with pytest.raises(AuditUnavailable, match="the disk fails"):
            await log.durable_intent("x", "refused")
        assert not failing.left
        (await log.durable_intent("x", "after")).ended()
    report = checked(path)
    assert report.ok, report.problems
    everything = [json.loads(line) for file in segments(path) for line in lines(file)]
    assert [item.get("resource") for item in everything if item["type"] == "record"] == [
        *["before"] * 2,
        *["after"] * 2,
    ]


@pytest.mark.asyncio
async def test_what_is_lost_while_a_group_is_written_is_told_by_a_later_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit.jsonl"
    append = LogFile.append
    rounds = [7, 3]
    async with AuditLog(path, on_failure="warn", queue=5) as log:
        await until(lambda: log.statistics.groups == 1)

        def meanwhile(self: LogFile, data: bytes) -> None:
            for number in range(rounds.pop(0) if rounds else 0):
                log.note("x", f"meanwhile:{number}")
            append(self, data)

        monkeypatch.setattr(LogFile, "append", meanwhile)
        log.note("x", "before")
        await until(lambda: not rounds)
    told = [item["lost"] for item in items(path) if item["type"] == "gap"]
    assert sum(told) == log.statistics.lost > 0
    assert len([item for item in items(path) if item["type"] == "record"]) == 11 - log.statistics.lost
    assert checked(path, None).ok


@pytest.mark.asyncio
async def test_a_folder_that_does_not_reach_the_disk_is_no_second_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit.jsonl"
    Failing(monkeypatch, (LogFile, "_sync_folder"))
    async with AuditLog(path, signing_key=KEY.encode(), on_failure="warn") as log:
        log.intent("x", "y").ended()
        await until(lambda: log.statistics.written == 2)
    assert checked(path).ok, checked(path).problems
    assert [item["type"] for item in items(path)].count("file") == 1


@pytest.mark.asyncio
async def test_a_log_that_opens_late_and_then_fails_once_more_goes_on_where_it_stood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit.jsonl"
    before = len(await written(path, 3))
    Failing(monkeypatch, (LogFile, "open"), (LogFile, "append"))
    async with AuditLog(path, signing_key=KEY.encode(), on_failure="warn") as log:
        log.intent("x", "y").ended()
        await until(lambda: log.statistics.written == 2)
    report = checked(path)
    assert report.ok, report.problems
    assert (report.first, report.records) == (1, report.last)
    assert report.records > before


@pytest.mark.asyncio
async def test_a_group_that_is_being_written_takes_its_part_of_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes back if it cannot be written; by then others may not have taken its place."""
    path, real = tmp_path / "audit.jsonl", LogFile.append
    writing, go = threading.Event(), threading.Event()

    def fail(self: LogFile, data: bytes) -> None:
        if b"in hand" in data:
            writing.set()
            assert go.wait(60)
            monkeypatch.setattr(LogFile, "append", real)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(self, data)

    monkeypatch.setattr(LogFile, "append", fail)
    async with AuditLog(path, on_failure="warn", queue=10) as log:
        for _ in range(6):
            log.note("x", "in hand")
        assert await asyncio.to_thread(writing.wait, 60)
        for _ in range(6):
            log.note("x", "waits")
        assert log.statistics.lost == 2
        go.set()
        await until(lambda: log.statistics.written == 10, seconds=60)
        for _ in range(10):
            log.note("x", "later")
    assert log.statistics.lost == 2
    assert [item["resource"] for item in records(path)] == ["in hand"] * 6 + ["waits"] * 4 + ["later"] * 10
