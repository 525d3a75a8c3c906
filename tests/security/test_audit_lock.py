"""An audit log whose lock or file is changed, moved or removed by somebody else while it is written."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from agentrt.security.audit import AuditLog, AuditUnavailable, lock
from agentrt.security.audit import log as log_module
from agentrt.security.audit.lock import is_at, locked
from agentrt.security.audit.log_file import LogFile
from agentrt.security.audit.record import Opened, now
from agentrt.security.audit.verify import Report
from security.audits import KEY, checked, items, kinds, records

pytestmark = pytest.mark.asyncio


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits here for another process to close its log."""
    monkeypatch.setattr(log_module, "LOCK_SECONDS", 0.0)


async def operate(log: AuditLog, name: str) -> None:
    """One record, on the disk, and nothing after it that the thread might be writing yet."""
    await log.durable_intent("x", name)


def sound(path: Path) -> Report:
    report = checked(path)
    assert report.ok, report.problems
    assert report.closed
    return report


# --- the lock --------------------------------------------------------------------------------------------


async def test_a_lock_that_is_removed_lets_nobody_in_and_is_made_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, name = tmp_path / "a", tmp_path / "a.lock"
    async with AuditLog(path, signing_key=KEY.encode()) as log:
        await operate(log, "before")
        name.unlink()
        with pytest.raises(
            AuditUnavailable, match=r"is written by another process, whose .*a\.lock was removed"
        ):
            await AuditLog(path).open()
        assert "moved or removed" not in caplog.text, "nothing was written since"
        await operate(log, "after")
        assert name.read_text() == f"{os.getpid()}\n"
        with pytest.raises(AuditUnavailable, match=rf"is written by another process \({os.getpid()}\)"):
            await AuditLog(path).open()
        await operate(log, "later")
    [said] = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"the lock of the audit log, {name}, was moved or removed while it was written (")
    assert said.endswith("(it is made anew): leave it there")
    assert [item["resource"] for item in records(path)] == ["before", "after", "later"]
    sound(path)


async def test_a_lock_that_is_replaced_and_held_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, name = tmp_path / "a", tmp_path / "a.lock"
    async with AuditLog(path, signing_key=KEY.encode()) as log:
        await operate(log, "before")
        name.unlink()
        with held(name):
            for _ in range(3):
                await operate(log, "meanwhile")
        await operate(log, "after")
        with pytest.raises(AuditUnavailable, match=rf"another process \({os.getpid()}\)"):
            await AuditLog(path).open()
    [said] = [record.getMessage() for record in caplog.records]
    assert "(another process holds the one that is there now): leave it there" in said
    sound(path)


@contextlib.contextmanager
def held(path: Path) -> Generator[None]:
    fd = locked(path)
    assert fd is not None
    try:
        yield
    finally:
        os.close(fd)


async def test_a_lock_that_cannot_be_made_anew_is_told_and_the_log_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a"
    async with AuditLog(path, strict=True, signing_key=KEY.encode()) as log:
        await operate(log, "before")
        (tmp_path / "a.lock").unlink()
        (tmp_path / "a.lock").mkdir()
        await operate(log, "after")
    assert "(it cannot be made anew: there is a directory of this name" in caplog.text
    sound(path)


async def test_what_is_locked_is_what_the_path_names_once_it_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, moved, real = tmp_path / "a", tmp_path / "moved", fcntl.flock

    def remove_meanwhile(fd: int, operation: int) -> None:
        real(fd, operation)
        if not moved.exists():
            path.rename(moved)

    monkeypatch.setattr(lock.fcntl, "flock", remove_meanwhile)
    fd = locked(path, deadline=time.monotonic() + 60)
    assert fd is not None
    assert is_at(fd, path)
    assert not is_at(fd, moved)
    with held(moved):
        pass  # the one that was not meant is given back
    assert locked(path) is None
    os.close(fd)


async def test_a_writer_that_knows_only_the_lock_does_not_break_the_chain_silently(tmp_path: Path) -> None:
    """One that does not lock the log itself: the chain goes on after its lines."""
    path = tmp_path / "a"
    async with AuditLog(path, signing_key=KEY.encode()) as log:
        await operate(log, "before")
        chain = log._writer.file.chain
        other = type(chain)(chain.seq, chain.head)
        opened = Opened(time=now(), process=1, host="h", version="0", arguments="hash", strict=False)
        with path.open("ab") as file:
            file.write(other.add(opened))
        await operate(log, "after")
    assert sound(path).records == len(items(path))
    assert [item["type"] for item in items(path)].count("opened") == 3


# --- the file --------------------------------------------------------------------------------------------


async def test_what_somebody_appends_costs_no_record_when_the_disk_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a"
    async with AuditLog(path, strict=True, signing_key=KEY.encode()) as log:
        await operate(log, "before")
        with path.open("ab") as file:
            file.write(b"somebody was here\nand " + b"there" * 100)
        await operate(log, "between")
        fail_once(monkeypatch)
        with pytest.raises(AuditUnavailable, match="the disk fails"):
            await log.durable_intent("x", "refused")
        await operate(log, "after")
    assert "was changed by somebody else while it was written" in caplog.text
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(line for line in lines if line != b"somebody was here\n"))
    assert len(path.read_bytes().splitlines()) == len(lines) - 1, "a whole line stays, to be named"
    assert [item["resource"] for item in records(path)] == ["before", "between", "after"]
    [recovered] = [item for item in items(path) if item["type"] == "recovered"]
    assert recovered["text"].startswith("and there")
    sound(path)


def fail_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        monkeypatch.undo()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("agentrt.security.audit.log_file._sync", fail)


@pytest.mark.parametrize("cut", [0, 1, 100, -10, -1000])
async def test_what_somebody_cuts_off_shows_and_the_log_can_be_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    path = tmp_path / "a"
    async with AuditLog(path, strict=True, signing_key=KEY.encode()) as log:
        for _ in range(3):
            await operate(log, "before")
        os.truncate(path, cut if cut >= 0 else path.stat().st_size + cut)
        await operate(log, "between")
        fail_once(monkeypatch)
        with pytest.raises(AuditUnavailable, match="the disk fails"):
            await log.durable_intent("x", "refused")
        await operate(log, "after")
    async with AuditLog(path, strict=True, signing_key=KEY.encode()) as log:
        await operate(log, "later")
    assert set(kinds(checked(path))) <= {"missing", "checkpoint"}
    assert "missing" in kinds(checked(path))
    kept = [item["resource"] for item in records(path)]
    assert kept[-3:] == ["between", "after", "later"]


async def test_a_file_that_is_no_log_any_more_is_told_until_it_is_moved_away(tmp_path: Path) -> None:
    path = tmp_path / "a"
    async with AuditLog(path, strict=True, signing_key=KEY.encode()) as log:
        await operate(log, "before")
        path.write_text("mine\n")
        for _ in range(2):
            with pytest.raises(AuditUnavailable, match=r"is no audit log: choose another .* or move it away"):
                await log.durable_intent("x", "refused")
        path.rename(tmp_path / "mine")
        await operate(log, "after")
    assert (tmp_path / "mine").read_text() == "mine\n"
    assert [item["resource"] for item in records(path)] == ["after"]
    assert "missing" in kinds(checked(path))


async def test_a_folder_that_is_moved_away_is_made_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "logs" / "a"
    async with AuditLog(path, strict=True, signing_key=KEY.encode()) as log:
        await operate(log, "before")
        path.parent.rename(tmp_path / "old")
        await operate(log, "after")
        with pytest.raises(AuditUnavailable, match="is written by another process"):
            await AuditLog(path).open()
    assert "(it is made anew)" in caplog.text, "the lock"
    assert "it is begun anew" in caplog.text, "the log"
    assert [item["resource"] for item in records(path)] == ["after"]
    (tmp_path / "old" / "a").rename(tmp_path / "logs" / "a.000001")
    sound(path)


async def test_a_file_that_somebody_makes_while_the_log_rotates_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "a", os.rename
    fds: list[int | None] = []

    def rename(source: Any, target: Any) -> None:
        real(source, target)
        if not fds:
            fds.append(locked(path))
            path.write_text("mine\n")

    async with AuditLog(path, strict=True, rotation=1000, signing_key=KEY.encode()) as log:
        await operate(log, "before")
        monkeypatch.setattr(os, "rename", rename)
        assert path.stat().st_size > 1000
        with pytest.raises(AuditUnavailable, match="is written by another process"):
            await log.durable_intent("x", "refused")
        with pytest.raises(AuditUnavailable, match="was replaced by another file while it was written"):
            await log.durable_intent("x", "refused")
        assert path.read_text() == "mine\n"
        assert fds[0] is not None
        os.close(fds[0])
        path.unlink()
        await operate(log, "after")
    sound(path)


async def test_a_log_file_that_cannot_be_looked_at_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    file = LogFile(path, rotation=None)
    file.open()
    file.append(file.header())
    with path.open("ab") as more:
        more.write(b"half")
    real = os.ftruncate
    monkeypatch.setattr(os, "ftruncate", lambda fd, size: (_ for _ in ()).throw(OSError(errno.EIO, "no")))
    with pytest.raises(OSError, match="no"):
        file.adopt_again()
    monkeypatch.setattr(os, "ftruncate", real)
    assert file.look() == "changed"
    file.adopt_again()
    assert file.look() == "same"
    assert path.read_bytes().endswith(b"}\n")
    file.close()
