"""SIGINT and SIGTERM: as a process gets them, and the timing on virtual time."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentrt.cli.signals import BLOCKED, Signals, Terminated, end_at_sigterm
from agentrt.testing import advance
from tests.cli.commands import agentrt, environment, start


def begin(process: subprocess.Popen[str], line: str = "began\n") -> None:
    """Wait until the agent runs."""
    assert process.stderr is not None
    assert process.stderr.readline() == line


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=50)
    return process.returncode, out, err


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def launch(project: Path, processes: list[subprocess.Popen[str]]) -> Start:
    def run(*arguments: str) -> subprocess.Popen[str]:
        processes.append(start(*arguments, cwd=project))
        return processes[-1]

    return run


def test_sigint_cancels_at_once_and_exits_with_130(launch: Start) -> None:
    process = launch("run", "agents:Slow", "30")
    begin(process)
    process.send_signal(signal.SIGINT)
    assert end(process) == (130, "", "cleaned up\n")


def test_jsonl_tells_of_the_cancellation(launch: Start) -> None:
    process = launch("run", "agents:Slow", "30", "--jsonl")
    begin(process)
    process.send_signal(signal.SIGINT)
    code, out, err = end(process)
    assert (code, err) == (130, "cleaned up\nerror: cancelled by SIGINT\n")
    assert '"type":"run_failed"' in out.splitlines()[-1]
    assert '"error":"CancelledError"' in out.splitlines()[-1]


def test_sigterm_lets_the_answer_be_finished_and_exits_with_143_all_the_same(launch: Start) -> None:
    process = launch("run", "agents:Slow", "0.5")
    begin(process)
    process.send_signal(signal.SIGTERM)
    code, out, err = end(process)
    assert (code, out) == (143, "finished\n")
    assert err == "SIGTERM: the run has 20 s to finish; a second one cancels it\n"


def test_a_second_sigterm_cancels(launch: Start) -> None:
    process = launch("run", "agents:Slow", "30")
    begin(process)
    process.send_signal(signal.SIGTERM)
    begin(process, "SIGTERM: the run has 20 s to finish; a second one cancels it\n")
    process.send_signal(signal.SIGTERM)
    code, out, err = end(process)
    assert (code, out) == (143, "")
    assert err == "cleaned up\nerror: cancelled: a second SIGTERM came while the run had time to finish\n"


def test_sigint_after_sigterm_cancels_and_the_first_one_decides_the_exit_code(launch: Start) -> None:
    process = launch("run", "agents:Slow", "30")
    begin(process)
    process.send_signal(signal.SIGTERM)
    begin(process, "SIGTERM: the run has 20 s to finish; a second one cancels it\n")
    process.send_signal(signal.SIGINT)
    code, _, err = end(process)
    assert code == 143
    assert err.endswith("error: cancelled: SIGINT came while the run had time to finish\n")


def test_a_second_sigint_ends_a_cleanup_that_does_not(project: Path, launch: Start) -> None:
    (project / "stubborn.py").write_text(
        "import asyncio, sys\n"
        "async def stubborn(message):\n"
        "    print('began', file=sys.stderr, flush=True)\n"
        "    try:\n"
        "        await asyncio.sleep(30)\n"
        "    finally:\n"
        "        print('cleaning', file=sys.stderr, flush=True)\n"
        "        await asyncio.sleep(30)\n"
    )
    process = launch("run", "stubborn:stubborn", "x")
    begin(process)
    process.send_signal(signal.SIGINT)
    begin(process, "cleaning\n")
    process.send_signal(signal.SIGINT)
    assert end(process)[0] == -signal.SIGINT


def test_a_signal_that_does_not_interrupt_the_wait_of_the_loop_is_noticed_all_the_same(
    project: Path, launch: Start
) -> None:
    # As when it comes just before the main thread begins to wait: there, too, the wait goes on.
    (project / "waiting.py").write_text(
        "import asyncio, signal, sys, threading, time\n"
        "def send():\n"
        "    time.sleep(0.3)\n"
        "    signal.pthread_kill(threading.get_ident(), signal.SIGINT)\n"
        "async def waiting(message):\n"
        "    threading.Thread(target=send, daemon=True).start()\n"
        "    print('began', file=sys.stderr, flush=True)\n"
        "    await asyncio.sleep(60)\n"
    )
    process = launch("run", "waiting:waiting", "x")
    begin(process)
    assert end(process)[0] == 130


def test_a_second_sigint_ends_an_agent_that_blocks_the_loop(project: Path, launch: Start) -> None:
    (project / "blocking.py").write_text(
        "import sys, time\n"
        "async def blocking(message):\n"
        "    print('began', file=sys.stderr, flush=True)\n"
        "    end = time.monotonic() + 30\n"
        "    while time.monotonic() < end:\n"
        "        time.sleep(0.05)\n"
    )
    process = launch("run", "blocking:blocking", "x")
    begin(process)
    process.send_signal(signal.SIGINT)
    begin(process, f"{BLOCKED}\n")
    process.send_signal(signal.SIGINT)
    assert end(process)[0] == -signal.SIGINT


def test_a_notice_does_not_stand_in_the_middle_of_a_line_of_the_answer(project: Path) -> None:
    (project / "halves.py").write_text(
        "import asyncio, os, signal\n"
        "async def halves(message):\n"
        "    yield 'one '\n"
        "    await asyncio.sleep(0.05)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    await asyncio.sleep(0.05)\n"
        "    yield 'half'\n"
    )
    command = f"exec {sys.executable} -m agentrt run --stream halves:halves hi 2>&1"
    done = subprocess.run(
        ["bash", "-c", command], cwd=project, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 143
    assert done.stdout == "one \nSIGTERM: the run has 20 s to finish; a second one cancels it\nhalf\n"


def test_signals_while_a_module_is_imported_or_stdin_is_read(project: Path, launch: Start) -> None:
    (project / "late.py").write_text(
        "import sys, time\nprint('began', file=sys.stderr, flush=True)\ntime.sleep(30)\n"
    )
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        process = launch("run", "late:x", "hi")
        begin(process)
        process.send_signal(number)
        assert end(process) == (code, "", "")


def test_signals_while_the_agent_is_opened_or_closed(project: Path, launch: Start) -> None:
    (project / "opening.py").write_text(
        "import asyncio, sys\n"
        "class Opening:\n"
        "    async def __aenter__(self):\n"
        "        print('began', file=sys.stderr, flush=True)\n"
        "        await asyncio.sleep(30)\n"
        "    async def __aexit__(self, *error): ...\n"
        "    async def run(self, message): ...\n"
        "from agentrt import closing\n"
        "closing.CLOSE_SECONDS = 1000.0\n"  # the signal may come late
        "class Closing:\n"
        "    async def __aenter__(self): ...\n"
        "    async def __aexit__(self, *error):\n"
        "        print('began', file=sys.stderr, flush=True)\n"
        "        await asyncio.sleep(40)\n"
        "    async def run(self, message):\n"
        "        return message\n"
    )
    process = launch("run", "opening:Opening", "x")
    begin(process)
    process.send_signal(signal.SIGINT)
    assert end(process) == (130, "", "")
    process = launch("run", "opening:Closing", "x")
    begin(process)
    process.send_signal(signal.SIGINT)
    assert end(process) == (130, "x\n", "")


def test_a_signal_that_was_ignored_from_the_start_stays_ignored(project: Path) -> None:
    (project / "signalling.py").write_text(
        "import asyncio, os, signal\n"
        "async def signalling(message):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    await asyncio.sleep(0.1)\n"
        "    return 'still here'\n"
    )
    command = f"trap '' INT; exec {sys.executable} -m agentrt run signalling:signalling hi"
    done = subprocess.run(
        ["bash", "-c", command], cwd=project, env=environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "still here\n")
    assert agentrt("run", "signalling:signalling", "hi", cwd=project).code == 130


def test_an_agent_that_cancels_itself_is_no_signal(project: Path) -> None:
    (project / "selfish.py").write_text(
        "import asyncio\nasync def selfish(message):\n    raise asyncio.CancelledError\n"
    )
    ended = agentrt("run", "selfish:selfish", "hi", cwd=project)
    assert (ended.code, ended.err) == (1, "error: selfish cancelled its own run\n")


# --- timing --------------------------------------------------------------------------------------------


class Run:
    """What `Signals` is told to cancel and to note."""

    def __init__(self) -> None:
        self.cancelled = 0
        self.notes: list[str] = []

    def cancel(self) -> None:
        self.cancelled += 1

    def signals(self, **options: float) -> Signals:
        return Signals(cancel=self.cancel, note=self.notes.append, **options)


@pytest.mark.virtual_time
@pytest.mark.asyncio
async def test_sigterm_cancels_after_twenty_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("_thread.start_new_thread", lambda function, arguments: None)
    run = Run()
    with run.signals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        await advance(19.9)
        assert (run.cancelled, len(run.notes)) == (0, 1)
        await advance(0.2)
        assert run.cancelled == 1
        assert signals.exit_code == 143
        assert signals.received == signal.SIGTERM


@pytest.mark.virtual_time
@pytest.mark.asyncio
async def test_a_run_that_was_drained_is_not_cancelled_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("_thread.start_new_thread", lambda function, arguments: None)
    run = Run()
    with run.signals():
        os.kill(os.getpid(), signal.SIGTERM)
        await advance(1.0)
    await advance(60.0)
    assert run.cancelled == 0


@pytest.mark.asyncio
async def test_the_process_is_gone_some_time_after_sigterm_whatever_happens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gone = asyncio.Event()
    loop = asyncio.get_running_loop()
    codes: list[int] = []

    def exit_hard(code: int) -> None:
        codes.append(code)
        loop.call_soon_threadsafe(gone.set)

    monkeypatch.setattr("agentrt.cli.signals.os._exit", exit_hard)
    with Run().signals(last_seconds=0.01):
        os.kill(os.getpid(), signal.SIGTERM)
        await gone.wait()
    assert codes == [143]


@pytest.mark.asyncio
async def test_only_a_loop_that_does_not_react_is_called_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    has_told, has_reacted = threading.Event(), threading.Event()
    monkeypatch.setattr("agentrt.cli.signals._write_stderr", lambda text: (told.append(text), has_told.set()))
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    class Watched(Signals):
        def _react(self) -> None:
            super()._react()
            has_reacted.set()

        def _tell_if_blocked(self) -> None:
            assert is_blocked or has_reacted.wait(
                30
            )  # as a loop does that is free, on a machine that is quick
            super()._tell_if_blocked()
            loop.call_soon_threadsafe(ended.set)

    for is_blocked in (False, True):
        run = Run()
        ended.clear()
        with Watched(cancel=run.cancel, note=run.notes.append, blocked_seconds=0.02):
            os.kill(os.getpid(), signal.SIGINT)
            assert not is_blocked or has_told.wait(30)
            await ended.wait()
        assert run.cancelled == 1
        assert told == [BLOCKED] * is_blocked


@pytest.mark.asyncio
async def test_a_process_that_stood_still_is_not_called_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("agentrt.cli.signals._write_stderr", told.append)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        """The process is stopped, for longer than that; then the loop has its turn as well."""
        slept.append(seconds)
        if len(slept) == 2:
            signals._has_reacted = True

    monkeypatch.setattr("agentrt.cli.signals.time", types.SimpleNamespace(sleep=sleep))
    signals = Run().signals()
    signals._tell_if_blocked()
    assert told == []
    signals._has_reacted = False
    signals._tell_if_blocked()
    assert told == [BLOCKED]
    assert sum(slept[2:]) == pytest.approx(1.0)


@pytest.mark.asyncio
async def test_the_handlers_before_are_put_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Run().signals() as signals:
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert signals.exit_code is None


def test_sigterm_outside_a_run_is_an_exception() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        end_at_sigterm()
        with pytest.raises(Terminated):
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
