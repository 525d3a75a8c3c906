"""A process that is killed in the middle of writing leaves a log that verifies up to its last committed group."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentrt.security.audit.segments import segments
from security.audits import KEY, checked, records

PROGRAM = """
import asyncio, os, sys
from agentrt.security.audit import AuditLog, FileAnchor

async def main(path, key, anchor):
    log = AuditLog(path, strict=True, signing_key=key.encode(), checkpoint_every=20, rotation=40_000,
                   sinks=[("file", FileAnchor(path=anchor))])
    await log.open()

    async def operate(name):
        number = 0
        while True:
            operation = await log.durable_intent("x", f"{os.getpid()}:{name}:{number}", arguments={"n": number})
            # What is told here is on the disk.
            os.write(1, f"{os.getpid()}:{name}:{number}\\n".encode())
            operation.ended()
            number += 1

    await asyncio.gather(*(operate(str(name)) for name in range(20)))

asyncio.run(main(*sys.argv[1:]))
"""


def killed(path: Path, after: float) -> set[str]:
    """Have a process write, and kill it; the operations whose intent it was told to be on the disk."""
    command = [sys.executable, "-c", PROGRAM, str(path), KEY, str(path.with_name("anchor.jsonl"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        told = process.stdout.readline()
        time.sleep(after)
        process.kill()
        told += process.stdout.read()
    assert process.returncode == -signal.SIGKILL
    return {line.decode() for line in told.split(b"\n")[:-1]}


def kill_again_and_again(path: Path, times: int, *, seed: int) -> None:
    chance = random.Random(seed)
    told: set[str] = set()
    for _ in range(times):
        told |= killed(path, chance.uniform(0.0, 0.1))
        report = checked(path, anchor=path.with_name("anchor.jsonl"))
        assert report.ok, report.problems
        assert not report.closed
    begun = {
        record["resource"]
        for file in segments(path)
        for record in _whole(file)
        if record["phase"] == "intent"
    }
    assert told <= begun, "what was acknowledged is there"
    assert len(told) >= times
    assert sum(file.read_bytes().count(b'{"type":"opened"') for file in segments(path)) >= times


def _whole(file: Path) -> list[dict[str, str]]:
    """The records of a file whose last line may be torn."""
    data = file.read_bytes()
    whole = file.with_name("whole")
    whole.write_bytes(data[: data.rfind(b"\n") + 1])  # nothing at all, if it was just begun
    return records(whole)


def test_a_process_that_is_killed_20_times_leaves_a_good_log(tmp_path: Path) -> None:
    kill_again_and_again(tmp_path / "audit.jsonl", 20, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(2, 6))
def test_a_process_that_is_killed_100_times_leaves_a_good_log(tmp_path: Path, seed: int) -> None:
    kill_again_and_again(tmp_path / "audit.jsonl", 100, seed=seed)
