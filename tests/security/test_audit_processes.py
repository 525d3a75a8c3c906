"""An audit log at the end of its process, and in one that was forked and cannot write its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from agentrt.security.audit import AuditLog, AuditUnavailable
from agentrt.security.audit.sinks import Sinks
from security.audits import records

PROGRAM = """
import asyncio, sys
from agentrt.security.audit import AuditLog
from agentrt.security.audit.log_file import LogFile

real = LogFile.append

def append(self, data):
    if self.path.name == "broken":
        raise OSError(5, "Input/output error")
    real(self, data)

LogFile.append = append
logs = [AuditLog(path) for path in sys.argv[1:]]

async def main():
    for log in logs:
        await log.open()
        log.note("x", "the last word")

asyncio.run(main())
"""


def test_a_log_that_cannot_be_closed_at_the_end_keeps_no_other_from_being_written(tmp_path: Path) -> None:
    sound = [tmp_path / name for name in ("a", "b", "c", "d")]
    paths = [*sound[:2], tmp_path / "broken", *sound[2:]]
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, paths)], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0
    assert [[item["resource"] for item in records(path)] for path in sound] == [["the last word"]] * 4
    assert "Traceback" not in ended.stderr
    assert f"1 audit record was lost: the audit log {tmp_path}/broken cannot be written: the disk fails" in (
        ended.stderr
    )


@pytest.mark.asyncio
@pytest.mark.parametrize("policy", ["refuse", "warn"])
async def test_a_fork_that_cannot_write_a_log_of_its_own_is_refused_each_time(
    tmp_path: Path, policy: Literal["refuse", "warn"]
) -> None:
    folder = tmp_path / "logs"
    async with AuditLog(folder / "a-{pid}", on_failure=policy) as log:
        await log.durable_intent("x", "parent")
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
        process = multiprocessing.get_context("fork").Process(target=_cannot_write, args=(log, policy))
        process.start()
        process.join(60)
        folder.chmod(0o700)
        assert process.exitcode == 0
    assert sorted(os.listdir(folder)) == [f"a-{os.getpid()}", f"a-{os.getpid()}.lock"]


def _cannot_write(log: AuditLog, policy: str) -> None:
    if os.geteuid() == 0:
        os.setuid(65534)
    logging.getLogger("agentrt.audit").disabled = True
    for _ in range(3):
        if policy == "refuse":
            with pytest.raises(AuditUnavailable, match=r"could not be recorded: .*may not write"):
                log.intent("x", "child")
        else:
            log.intent("x", "child").ended()
    log.note("x", "what has happened is not refused")
    if policy == "refuse":
        log.close()
        assert log.statistics.lost == 1
    else:
        with pytest.raises(AuditUnavailable, match=r"7 audit records were lost: .*may not write"):
            log.close()


class Kept:
    async def checkpoint(self, line: bytes, /) -> None: ...


@pytest.mark.asyncio
@pytest.mark.parametrize("turns", [1, 2, 3])
async def test_closing_that_is_cancelled_leaves_no_sink_running(turns: int) -> None:
    """After so many turns of the loop."""
    before = asyncio.all_tasks()
    sinks = Sinks([("kept", Kept())])
    sinks.open()
    closing = asyncio.create_task(sinks.aclose(60.0))
    for _ in range(turns):
        await asyncio.sleep(0)
    closing.cancel()
    with contextlib.suppress(asyncio.CancelledError):  # unless there was nothing left to wait for
        await closing
    assert asyncio.all_tasks() == before
