"""An audit log when something is wrong: the disk, what others have left, other processes."""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from agentrt import Runtime
from agentrt.config import Config
from agentrt.errors import ConfigError
from agentrt.security.audit import AuditLog, AuditUnavailable
from agentrt.security.audit import log as log_module
from agentrt.security.audit.log_file import LogFile
from agentrt.security.audit.segments import segments
from security.audits import KEY, checked, items, lines, records, room, until, written

ROOT = os.geteuid() == 0


# --- the disk fails --------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_strict_refuses_what_it_cannot_record_and_recovers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "audit.jsonl"
    async with AuditLog(path, strict=True, signing_key=KEY.encode()) as log:
        (await log.durable_intent("x", "before")).ended()
        await until(lambda: log.statistics.written == 2)
        with room(path.stat().st_size + 100):
            for _ in range(3):
                with pytest.raises(AuditUnavailable, match="may not grow further") as caught:
                    await log.durable_intent("x", "refused")
                assert caught.value.executed is False
                assert str(path) in str(caught.value)
            assert checked(path).ok, "nothing of what failed is in it"
        (await log.durable_intent("x", "after")).ended()
    assert [record["resource"] for record in records(path)] == ["before"] * 2 + ["after"] * 2
    [gap] = [item for item in items(path) if item["type"] == "gap"]
    assert (gap["refused"], gap.get("lost")) == (3, None)
    assert "may not grow further" in gap["reason"]
    assert checked(path).ok
    said = [record.getMessage() for record in caplog.records if record.name == "agentrt.audit"]
    assert len(said) == 2, "one message for the failure, one for its end"


@pytest.mark.asyncio
async def test_warn_goes_on_and_writes_what_waited(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "audit.jsonl"
    async with AuditLog(path, on_failure="warn", queue=10) as log:
        log.note("x", "before")
        await until(lambda: log.statistics.written == 1)
        with room(path.stat().st_size + 100):
            for number in range(30):
                log.intent("x", f"meanwhile:{number}")
            await until(lambda: log.failure is not None)
            for number in range(30):
                log.intent("x", f"later:{number}")
        await until(lambda: log.failure is None)
        log.note("x", "after")
    resources = [record["resource"] for record in records(path)]
    assert resources[0] == "before"
    assert resources[-1] == "after"
    # Ten wait, and not more, though they came while the thread had some of them in hand: those were put back.
    assert resources[1:-1] == [f"meanwhile:{number}" for number in range(10)]
    [gap] = [item for item in items(path) if item["type"] == "gap"]
    assert gap["lost"] == 50 == log.statistics.lost
    assert sum("cannot be written" in record.getMessage() for record in caplog.records) == 1
    assert checked(path, None).ok


@pytest.mark.asyncio
async def test_refuse_without_waiting_refuses_once_it_is_known(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    async with AuditLog(path, on_failure="refuse") as log:
        log.note("x", "before")
        await until(lambda: log.statistics.written == 1)
        with room(path.stat().st_size + 100):
            operation = log.intent("x", "goes on")
            await until(lambda: log.failure is not None)
            with pytest.raises(AuditUnavailable, match="not begun, because it could not be recorded"):
                log.intent("x", "refused")
            operation.ended()
        await until(lambda: log.failure is None)
        log.intent("x", "after").ended()
    assert [record["resource"] for record in records(path)] == [
        "before",
        "goes on",
        "goes on",
        "after",
        "after",
    ]
    [gap] = [item for item in items(path) if item["type"] == "gap"]
    assert gap["refused"] == 1


@pytest.mark.asyncio
@pytest.mark.skipif(not ROOT or shutil.which("mount") is None, reason="mounting needs root")
async def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """A real one: 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = await asyncio.to_thread(
        subprocess.run, ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("this machine does not let root mount")
    try:
        path = disk / "audit.jsonl"
        async with AuditLog(path, strict=True, rotation=16_000) as log:
            with pytest.raises(AuditUnavailable, match="there is no room left on the disk: free some"):
                await _fill(log)
            full = len(segments(path))
            assert checked(path, None).ok
            segments(path)[0].unlink()
            (await log.durable_intent("x", "after")).ended()
        assert full > 2
        report = checked(path, None, pruned=True)
        assert report.ok, report.problems
        assert any("refused" in note for note in report.notes)
    finally:
        await asyncio.to_thread(subprocess.run, ["umount", str(disk)], check=True)


async def _fill(log: AuditLog) -> None:
    for number in range(1000):
        (await log.durable_intent("x", str(number))).ended()


@pytest.mark.asyncio
async def test_a_place_that_cannot_be_written_is_told_when_it_is_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, why in (
        (tmp_path / "file" / "audit.jsonl", "a part of the path is a file"),
        (Path("/proc/audit/audit.jsonl"), "cannot be written"),
    ):
        log = AuditLog(path, on_failure="refuse")
        with pytest.raises(AuditUnavailable, match=why):
            await log.open()
        await log.aclose()


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A folder that nobody may write to, below folders that anybody may look into."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_a_read_only_folder(read_only: Path) -> None:
    """Root may write anywhere: then as somebody else, in another process."""
    _forked(_in_a_read_only_folder, read_only / "audit.jsonl")
    assert list(read_only.iterdir()) == []


def _in_a_read_only_folder(path: Path) -> None:
    if ROOT:
        os.setuid(65534)
    logging.getLogger("agentrt.audit").disabled = True

    async def refused() -> None:
        with pytest.raises(AuditUnavailable, match="this user may not write there"):
            await AuditLog(path, on_failure="refuse").open()

    async def warned() -> None:
        log = AuditLog(path, on_failure="warn")
        await log.open()
        log.intent("x", "y").ended()
        with pytest.raises(AuditUnavailable, match=r"2 audit records were lost: .* may not write there"):
            await log.aclose()

    asyncio.run(refused())
    asyncio.run(warned())


@pytest.mark.asyncio
async def test_a_log_that_is_moved_away_is_begun_anew_and_this_shows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "audit.jsonl"
    async with AuditLog(path) as log:
        (await log.durable_intent("x", "before")).ended()
        path.rename(tmp_path / "moved")
        (await log.durable_intent("x", "after")).ended()
    assert "moved or removed while it was written" in caplog.text
    assert "records 1 to" in checked(path, None).problems[0].message
    (tmp_path / "moved").rename(tmp_path / "audit.jsonl.000001")
    assert checked(path, None).ok, "what was moved away is all there"


@pytest.mark.asyncio
async def test_a_disk_that_hangs_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentrt.security.audit.log.WAIT_SECONDS", 0.1)
    go, path = threading.Event(), tmp_path / "audit.jsonl"
    real = LogFile.append

    def hang(self: LogFile, data: bytes) -> None:
        go.wait(30)
        real(self, data)

    monkeypatch.setattr(LogFile, "append", hang)
    async with AuditLog(path, strict=True) as log:
        with pytest.raises(AuditUnavailable, match=r"did not take it in 0\.1 s") as caught:
            await log.durable_intent("x", "y")
        assert caught.value.executed is False
        go.set()
    intent, outcome = records(path)
    assert (outcome["intent"], outcome["decision"]) == (intent["seq"], "denied"), (
        "it shows that nothing was done"
    )


@pytest.mark.asyncio
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_nobody_waits_for_a_thread_that_has_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", strict=True)
    await log.open()
    monkeypatch.setattr(LogFile, "append", lambda self, data: 1 / 0)
    with pytest.raises(AuditUnavailable):
        await log.durable_intent("x", "y")
    with pytest.raises(AuditUnavailable, match="its thread failed: ZeroDivisionError"):
        await log.durable_intent("x", "y")
    with pytest.raises(AuditUnavailable, match="the end of the audit log is not in it"):
        await log.aclose()


@pytest.mark.asyncio
async def test_a_full_file_whose_next_name_is_taken_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    async with AuditLog(path, strict=True, rotation=2000) as log:
        (tmp_path / "audit.jsonl.000001").write_text("mine")
        with pytest.raises(AuditUnavailable, match=r"000001 exists already: move it away"):
            await _fill(log)
        (tmp_path / "audit.jsonl.000001").unlink()
        (await log.durable_intent("x", "after")).ended()
    report = checked(path, None)
    assert report.ok, report.problems
    assert report.files == 2


@pytest.mark.asyncio
async def test_records_that_could_not_be_written_at_the_end_are_told(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    await log.open()
    await until(lambda: path.stat().st_size > 0)
    with room(path.stat().st_size):
        log.note("x", "y")
        with pytest.raises(AuditUnavailable, match="1 audit record was lost"):
            await log.aclose()


# --- what was left by others -----------------------------------------------------------------------------


@pytest.mark.asyncio
@pytest.mark.parametrize("left", [b'{"type":"record","seq":', b"\0" * 100, b'{"ty'])
async def test_a_torn_line_is_cut_off_and_that_is_recorded(tmp_path: Path, left: bytes) -> None:
    path = tmp_path / "audit.jsonl"
    await written(path, 3)
    with path.open("ab") as file:
        file.write(left)
    assert any("not committed" in note for note in checked(path).notes)
    await written(path, 3)
    [recovered] = [item for item in items(path) if item["type"] == "recovered"]
    assert (recovered["bytes"], recovered["sha256"]) == (len(left), sha256(left).hexdigest())
    report = checked(path)
    assert report.ok, report.problems
    assert any("were cut off" in note for note in report.notes)


@pytest.mark.asyncio
async def test_a_line_that_was_edited_is_not_mistaken_for_a_torn_one(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    await written(path, 3)
    data = path.read_bytes()
    path.write_bytes(data[:-300].replace(b"tool:2", b"tool:9") + data[-300:])
    await written(path, 3)
    assert {problem.kind for problem in checked(path).problems} == {"edited"}


@pytest.mark.asyncio
async def test_whole_lines_that_are_none_stay_and_are_named(tmp_path: Path) -> None:
    """Only half a line is what a process leaves that is killed: the others were changed, and must not get lost."""
    path = tmp_path / "audit.jsonl"
    await written(path, 3)
    whole = lines(path)
    spoiled = [line.replace(b'"hash":', b'"hush":') for line in whole[-4:]]
    path.write_bytes(b"".join([*whole[:-4], *spoiled]) + b'{"ty')
    await written(path, 3)
    assert lines(path)[: len(whole)] == [*whole[:-4], *spoiled]
    named = {problem.line for problem in checked(path).problems if problem.kind == "edited"}
    assert named == set(range(len(whole) - 3, len(whole) + 1))
    [recovered] = [json.loads(line) for line in lines(path) if b'"type":"recovered"' in line]
    assert recovered["bytes"] == 4


@pytest.mark.asyncio
async def test_a_log_in_which_no_line_is_one_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    await written(path, 3)
    spoiled = path.read_bytes().replace(b'"hash":', b'"hush":')
    path.write_bytes(spoiled)
    with pytest.raises(ConfigError, match="is no audit log"):
        await AuditLog(path).open()
    assert path.read_bytes() == spoiled


@pytest.mark.asyncio
@pytest.mark.parametrize("left", ["", '{"type":"file","seq":1'])
async def test_a_process_that_was_killed_while_it_rotated_is_gone_on_from(tmp_path: Path, left: str) -> None:
    path = tmp_path / "audit.jsonl"
    await written(path, 3)
    path.rename(tmp_path / "audit.jsonl.000001")
    if left:
        path.write_text(left)
    await written(path, 3)
    report = checked(path)
    assert report.ok, report.problems
    assert items(path)[0]["number"] == 2


@pytest.mark.asyncio
async def test_a_file_that_is_no_log_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("my notes\n")
    with pytest.raises(ConfigError, match="is no audit log: choose another"):
        await AuditLog(path).open()
    assert path.read_text() == "my notes\n"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="not a regular file"):
        await AuditLog(tmp_path / "pipe").open()
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(AuditUnavailable):
        await AuditLog(tmp_path / "link", on_failure="refuse").open()


# --- other processes -------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_second_writer_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "LOCK_SECONDS", 0.05)
    path = tmp_path / "audit.jsonl"
    async with AuditLog(path) as log:
        second = AuditLog(path, on_failure="warn")
        with pytest.raises(
            AuditUnavailable, match=rf"another process \({os.getpid()}\): give each .* {{pid}}"
        ):
            await second.open()
        log.note("x", "y")
    assert checked(path, None).ok
    async with AuditLog(path):
        pass  # the lock was given back


@pytest.mark.asyncio
async def test_a_command_waits_for_another_and_not_for_a_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "LOCK_SECONDS", 0.0)
    path, beside = tmp_path / "audit.jsonl", tmp_path / "audit-commands.jsonl"
    service, other = LogFile(path, rotation=None), LogFile(beside, rotation=None)
    service.open()
    other.open()
    with pytest.raises(AuditUnavailable, match="is written by another process"):
        await AuditLog(path).open()
    log = AuditLog(path)
    log.note("x", "before it is opened")
    log.for_command()
    opening = asyncio.ensure_future(log.open())
    await asyncio.sleep(0.1)
    assert not opening.done()
    other.close()
    await opening
    await log.aclose()
    service.close()
    assert [item["resource"] for item in records(beside)] == ["before it is opened"]
    assert path.read_bytes() == b""


@pytest.mark.asyncio
async def test_a_fork_has_a_log_of_its_own_by_pid(tmp_path: Path) -> None:
    async with AuditLog(tmp_path / "audit-{pid}.jsonl", signing_key=KEY.encode()) as log:
        log.intent("x", "parent").ended()
        child = _forked(_work, log, 50)
        log.intent("x", "parent").ended()
    names = sorted(name for name in os.listdir(tmp_path) if name.endswith(".jsonl"))
    assert names == sorted([f"audit-{os.getpid()}.jsonl", f"audit-{child}.jsonl"])
    for name, who, count in ((os.getpid(), "parent", 4), (child, "child", 100)):
        path = tmp_path / f"audit-{name}.jsonl"
        assert [record["resource"] for record in records(path)] == [who] * count
        assert checked(path).ok
        assert checked(path).closed


@pytest.mark.asyncio
async def test_a_fork_does_not_write_to_the_log_of_its_parent(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    for policy in ("refuse", "warn"):
        async with AuditLog(path, on_failure=policy) as log:
            log.intent("x", "parent").ended()
            _forked(_refused if policy == "refuse" else _warned, log)
            log.intent("x", "parent").ended()
    assert {record["resource"] for record in records(path)} == {"parent"}
    assert len(records(path)) == 8
    assert checked(path, None).ok


@pytest.mark.asyncio
async def test_a_runtime_in_a_fork_goes_on_in_a_log_of_its_own(tmp_path: Path) -> None:
    audit = {
        "path": str(tmp_path / "audit-{pid}.jsonl"),
        "strict": True,
        "signing_key": str(tmp_path / "key"),
        "sinks": {"file": {"path": str(tmp_path / "anchor.jsonl")}},
    }
    (tmp_path / "key").write_text(KEY)
    async with Runtime(Config({"audit": audit})) as rt:
        await rt.run(_agent, "hi")
        child = _forked(_run_in_a_fork, Config({"audit": audit}))
        await rt.run(_agent, "hi")
    for pid, count in ((os.getpid(), 2), (child, 1)):
        path = tmp_path / f"audit-{pid}.jsonl"
        assert len(records(path, action="run", phase="outcome")) == count
        report = checked(path, anchor=tmp_path / "anchor.jsonl")
        assert report.ok, report.problems
        assert report.closed
        assert report.anchored_through == report.last


async def _agent(message: str) -> str:
    return "x"


def _run_in_a_fork(config: Config) -> None:
    async def run() -> None:
        async with Runtime(config) as rt:
            await rt.run(_agent, "hi")

    asyncio.run(run())


def _forked(work: Any, *args: Any) -> int:
    process = multiprocessing.get_context("fork").Process(target=work, args=args)
    process.start()
    process.join(50)
    assert process.exitcode == 0
    assert process.pid is not None
    return process.pid


def _work(log: AuditLog, count: int) -> None:
    for _ in range(count):
        log.intent("x", "child").ended()  # and nobody closes it


def _refused(log: AuditLog) -> None:
    with pytest.raises(AuditUnavailable, match="belongs to the process that forked this one"):
        log.intent("x", "child")


def _warned(log: AuditLog) -> None:
    logging.getLogger("agentrt.audit").disabled = True
    log.intent("x", "child").ended()
    assert log.failure is not None
    assert "belongs to the process that forked" in log.failure
    assert log.statistics.lost == 2
