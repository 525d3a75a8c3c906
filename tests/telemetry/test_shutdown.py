"""The end of a runtime, whatever its backends do: in time, with the answer, and with an account of everything."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from servers.faulty import BlackHole, Refusing

from agentrt import Config, Context, Runtime
from agentrt.errors import AgentrtError, ThrottledError, TransientError
from agentrt.telemetry import Batch
from tests.telemetry.recording import Kept, until

CALLS = 20
SPANS = CALLS + 1

AT_ONCE = 20.0
"""Seconds: far less than what hangs does so, far more than a busy machine stands still."""

pytestmark = pytest.mark.asyncio


async def agent(message: str, ctx: Context) -> str:
    for _ in range(CALLS):
        await ctx.call("call", "there", lambda: asyncio.sleep(0))
    return f"answer to {message}"


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Lets go what hangs, so that no thread outlives its test."""
    event = threading.Event()
    yield event
    event.set()


def backends(release: threading.Event) -> dict[str, Kept]:
    def block(batch: Batch) -> None:
        release.wait(30)

    async def hang(batch: Batch) -> None:
        while True:
            await asyncio.sleep(0.01)
            if release.is_set():
                return

    async def stubborn(batch: Batch) -> None:
        while not release.is_set():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                continue

    async def in_a_thread(batch: Batch) -> None:
        await asyncio.to_thread(release.wait, 30)

    async def slow(batch: Batch) -> None:
        await asyncio.sleep(0.05)

    def always(outcome: Any) -> list[Any]:
        return 1000 * [outcome]

    return {
        "blocks": Kept(*always(block)),
        "hangs": Kept(*always(hang)),
        "is stubborn": Kept(*always(stubborn)),
        "hangs in a thread": Kept(*always(in_a_thread)),
        "refuses": Kept(*always(ConnectionRefusedError())),
        "raises": Kept(*always(ValueError("no"))),
        "exits": Kept(*always(SystemExit(1))),
        "throttles": Kept(*always(ThrottledError("429", retry_after=20.0))),
        "is busy": Kept(*always(TransientError("busy"))),
        "is slow": Kept(*always(slow), batch_size=8),
        "is well": Kept(),
    }


NAMES = list(backends(threading.Event()))
LOSING = [name for name in NAMES if name not in ("is slow", "is well")]


def hand_on(rt: Runtime) -> None:
    """Give the backends what came until now: nothing of it is lost before them, however little time is left."""
    assert rt.telemetry._processor.drain(40.0)


async def delivered(rt: Runtime, *names: str) -> None:
    """Wait until these backends have everything."""
    hand_on(rt)

    def have_it() -> bool:
        reports = {report.name: report for report in rt.telemetry.report()}
        return all(reports[name].delivered.get("spans") == SPANS for name in names)

    await asyncio.to_thread(until, have_it, 40.0)


def check_account(rt: Runtime, kept: dict[str, Kept], *, losing: bool = False) -> None:
    """Each backend delivered or lost each span, once."""
    for report in rt.telemetry.report():
        delivered = report.delivered.get("spans", 0)
        lost = sum(count for (signal, _), count in report.lost.items() if signal == "spans")
        assert delivered + lost == SPANS, report
        if losing or report.name in LOSING:
            assert lost == SPANS, report
        else:
            assert delivered == len(kept[report.name].spans) == SPANS, report


@pytest.mark.parametrize("name", NAMES)
async def test_one_backend(name: str, release: threading.Event, caplog: pytest.LogCaptureFixture) -> None:
    kept = {name: backends(release)[name]}
    rt = Runtime(backends=list(kept.items()))
    async with rt:
        started = time.monotonic()
        result = await rt.run(agent, "hi")
        assert time.monotonic() - started < AT_ONCE
        assert result.text == "answer to hi"
        hand_on(rt)
        started = time.monotonic()
        await rt.telemetry.aclose(0.5 if name in LOSING else 40.0)
        assert time.monotonic() - started < AT_ONCE
    check_account(rt, kept)
    told = [record.getMessage() for record in caplog.records if name in record.getMessage()]
    assert len([text for text in told if "telemetry lost" in text]) == (name in LOSING)
    assert len(told) <= 2, "once while it lasts, once at the end"


async def test_all_of_them_at_once_take_no_longer_than_one(release: threading.Event) -> None:
    kept = backends(release)
    rt = Runtime(backends=list(kept.items()))
    async with rt:
        assert (await rt.run(agent, "hi")).text == "answer to hi"
        await delivered(rt, "is slow", "is well")
        started = time.monotonic()
        await rt.telemetry.aclose(1.5)
        assert time.monotonic() - started < AT_ONCE
    check_account(rt, kept)


async def test_the_whole_runtime_ends_in_its_budget(
    release: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentrt.closing.CLOSE_SECONDS", 1.0)
    kept = {name: backends(release)[name] for name in ("blocks", "is stubborn", "is well")}
    rt = Runtime(backends=list(kept.items()))
    given: list[float] = []
    aclose = rt.telemetry.aclose

    async def observed(seconds: float) -> None:
        given.append(seconds)
        await aclose(seconds)

    monkeypatch.setattr(rt.telemetry, "aclose", observed)
    with contextlib.suppress(AgentrtError):  # if the machine stands still in the 0.05 s that telemetry leaves
        async with rt:
            assert (await rt.run(agent, "hi")).text == "answer to hi"
            await delivered(rt, "is well")
            started = time.monotonic()
    assert time.monotonic() - started < AT_ONCE
    assert given[0] < 0.9
    await asyncio.to_thread(until, lambda: all(r.lost or r.delivered for r in rt.telemetry.report()), 40.0)
    check_account(rt, kept)


@pytest.mark.parametrize("kind", [BlackHole, Refusing])
async def test_a_collector_that_is_not_well(kind: Any, caplog: pytest.LogCaptureFixture) -> None:
    with kind() as server:
        config = Config({"telemetry": {"otlp": {"endpoint": server.url}}})
        rt = Runtime(config)
        async with rt:
            assert (await rt.run(agent, "hi")).text == "answer to hi"
            hand_on(rt)
            started = time.monotonic()
            await rt.telemetry.aclose(1.0)
            assert time.monotonic() - started < AT_ONCE
    (report,) = rt.telemetry.report()
    assert sum(count for (signal, _), count in report.lost.items() if signal == "spans") == SPANS
    assert len([r for r in caplog.records if "telemetry lost: otlp" in r.getMessage()]) == 1


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
async def test_a_collector_that_never_answered_is_not_waited_for(protocol: str) -> None:
    with Refusing() as server:
        rt = Runtime(Config({"telemetry": {"otlp": {"endpoint": server.url, "protocol": protocol}}}))
        async with rt:
            assert (await rt.run(agent, "hi")).text == "answer to hi"
            started = time.monotonic()
            await rt.telemetry.aclose(40.0)
            assert time.monotonic() - started < AT_ONCE
    (report,) = rt.telemetry.report()
    assert report.lost["spans", "shutdown"] == SPANS
    assert "refused" in str(report) or "connection attempts failed" in str(report)


async def test_a_queue_full_for_nobody_is_given_up_as_soon() -> None:
    kept = Kept(*(100_000 * [ConnectionRefusedError()]), batch_size=1, signals=("spans",))
    rt = Runtime(backends=[("kept", kept)])
    async with rt:
        assert (await rt.run(agent, "hi")).text == "answer to hi"
        started = time.monotonic()
        await rt.telemetry.aclose(40.0)
        assert time.monotonic() - started < AT_ONCE
    check_account(rt, {"kept": kept}, losing=True)


class Away:
    """A backend where nobody is, from the shutdown's begin for some seconds."""

    interval = 0.02
    signals = ("spans",)

    def __init__(self, *, was_there: bool, seconds: float) -> None:
        self.is_there = was_there
        self.seconds = seconds
        self.back_at: float | None = None
        self.spans: list[Any] = []
        self.tries = 0

    def leave(self) -> None:
        self.is_there = False
        self.back_at = time.monotonic() + self.seconds

    def export(self, batch: Batch) -> None:
        self.tries += 1
        if not self.is_there and (self.back_at is None or time.monotonic() < self.back_at):
            raise TransientError("nobody is there") from ConnectionRefusedError()
        self.spans += batch.spans


@pytest.mark.parametrize(("was_there", "seconds"), [(True, 1.5), (False, 0.3)])
async def test_a_collector_that_comes_back_during_the_shutdown_gets_what_waits(
    was_there: bool, seconds: float
) -> None:
    away = Away(was_there=was_there, seconds=seconds)
    rt = Runtime(backends=[("away", away)])
    async with rt:
        await rt.run(agent, "hi")
        assert await rt.telemetry.flush(30.0 if was_there else 0.5) == was_there
        away.leave()
        await rt.run(agent, "again")
        await rt.telemetry.aclose(40.0)
    (report,) = rt.telemetry.report()
    assert (report.lost, report.delivered["spans"], len(away.spans)) == ({}, 2 * SPANS, 2 * SPANS)
    assert away.tries < 40, "it is not pressed"


async def test_the_reason_of_a_loss_is_told_if_an_exporter_tries_again_by_itself(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Refusing() as server:
        table = {"otlp_proto_http": {"endpoint": f"{server.url}/v1/traces", "signals": ["spans"]}}
        rt = Runtime(Config({"telemetry": table}))
        async with rt:
            await rt.run(agent, "hi")
            await rt.telemetry.flush(0.0)
            (exporter,) = rt.telemetry._exporters
            await asyncio.to_thread(until, lambda: exporter.backend.said, 40.0)
            await rt.telemetry.aclose(0.5)
    (told,) = [text for text in caplog.messages if "telemetry lost" in text]
    assert f"{SPANS} spans lost (shutdown)" in told
    assert "it was at work for " in told
    assert "refused" in told


async def test_a_cancelled_close_returns_at_once(release: threading.Event) -> None:
    rt = Runtime(backends=[("blocks", backends(release)["blocks"])])
    async with rt:
        await rt.run(agent, "hi")
        await begun_and_cancelled(rt, 40.0)
        (report,) = rt.telemetry.report()
        assert (report.lost, report.delivered) == ({}, {}), "its time is not over"
        release.set()
        await asyncio.to_thread(until, lambda: rt.telemetry.report()[0].delivered, 40.0)


async def test_a_cancelled_close_loses_no_count(release: threading.Event) -> None:
    kept = {name: backends(release)[name] for name in ("blocks", "is well")}
    rt = Runtime(backends=list(kept.items()))
    async with rt:
        await rt.run(agent, "hi")
        await delivered(rt, "is well")
        await begun_and_cancelled(rt, 0.5)
        await asyncio.to_thread(
            until,
            lambda: all(report.lost or report.name == "is well" for report in rt.telemetry.report()),
            60.0,
        )
    check_account(rt, kept)


async def test_a_close_that_is_cancelled_before_it_has_a_thread_goes_on(release: threading.Event) -> None:
    kept = Kept()
    rt = Runtime(backends=[("kept", kept)])
    async with rt:
        await rt.run(agent, "hi")
        busy = asyncio.create_task(rt.telemetry._ends.run(release.wait, 30))
        await asyncio.sleep(0)
        await begun_and_cancelled(rt, 40.0)
        await asyncio.to_thread(until, lambda: kept.closed, 30.0)
        release.set()
        await busy
    check_account(rt, {"kept": kept}, losing=False)


async def test_without_threads_a_cancelled_close_counts_what_waits(
    release: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    rt = Runtime(backends=[("blocks", backends(release)["blocks"])])
    async with rt:
        await rt.run(agent, "hi")
        busy = asyncio.create_task(rt.telemetry._ends.run(release.wait, 30))
        await asyncio.sleep(0)
        hand_on(rt)
        with monkeypatch.context() as without:
            without.setattr(threading.Thread, "start", refuse)
            await begun_and_cancelled(rt, 40.0)
        (report,) = rt.telemetry.report()
        assert report.lost["spans", "shutdown"] == SPANS
        release.set()
        await busy


async def begun_and_cancelled(rt: Runtime, seconds: float) -> None:
    """A close that has `seconds`, and is cancelled when it has begun."""
    hand_on(rt)
    closing = asyncio.create_task(rt.telemetry.aclose(seconds))
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing


async def test_a_run_is_not_held_up_by_backends_whose_queues_are_full(release: threading.Event) -> None:
    kept = {name: backends(release)[name] for name in ("blocks", "is busy")}
    rt = Runtime(Config({"telemetry": {"queue": 10}}), backends=list(kept.items()))
    async with rt:
        started = time.monotonic()
        for _ in range(20):
            assert (await rt.run(agent, "hi")).text == "answer to hi"
        assert time.monotonic() - started < AT_ONCE
        await rt.telemetry.aclose(0.3)
    before = dict.fromkeys(("calls", "runs"), 0)
    for report in rt.telemetry.report():
        if report.name == "before any backend":
            for (signal, _), count in report.lost.items():
                before[signal] = before.get(signal, 0) + count
    for report in rt.telemetry.report():
        if report.name != "before any backend":
            lost = sum(count for (signal, _), count in report.lost.items() if signal == "spans")
            assert lost + before["calls"] + before["runs"] == 20 * SPANS


async def test_errors_of_the_users_keep_their_way_out(release: threading.Event) -> None:
    async def fails(message: str, ctx: Context) -> str:
        raise KeyError(message)

    kept = {name: backends(release)[name] for name in ("blocks", "raises")}
    async with Runtime(backends=list(kept.items())) as rt:
        with pytest.raises(KeyError, match="hi"):
            await rt.run(fails, "hi")
        await rt.telemetry.aclose(0.2)


async def test_calls_of_flush_that_hang_do_not_hold_up_the_end(release: threading.Event) -> None:
    kept = {"blocks": backends(release)["blocks"]}
    rt = Runtime(backends=list(kept.items()))
    async with rt:
        await rt.run(agent, "hi")
        hand_on(rt)
        flushes = [asyncio.create_task(rt.telemetry.flush(600.0)) for _ in range(4)]
        await asyncio.sleep(0.1)
        started = time.monotonic()
        await rt.telemetry.aclose(0.5)
        assert time.monotonic() - started < AT_ONCE
        assert await asyncio.gather(*flushes) == 4 * [False]
    check_account(rt, kept)


# --- processes ------------------------------------------------------------------------------------------

PROGRAM = """
import asyncio, sys, threading, time
from agentrt import Runtime

class Hangs:
    interval = 0.01
    timeout = 600.0
    {export}

async def agent(message, ctx):
    return message

async def main():
    async with Runtime(backends=[("hangs", Hangs())]) as rt:
        result = await rt.run(agent, "the answer")
        print(result.text, flush=True)
        await asyncio.sleep(0.2)  # until it hangs
        await rt.telemetry.aclose(0.3)

asyncio.run(main())
"""


@pytest.mark.parametrize(
    "export",
    [
        "def export(self, batch): time.sleep(600)",
        "async def export(self, batch): await asyncio.sleep(600)",
        "async def export(self, batch): await asyncio.to_thread(time.sleep, 600)",
        "async def export(self, batch): await asyncio.get_running_loop().run_in_executor(None, time.sleep, 600)",
        "def export(self, batch): threading.Event().wait()",
        "def open(self, host): time.sleep(600)\n    def export(self, batch): pass",
        "def export(self, batch): pass\n    async def aclose(self): await asyncio.to_thread(time.sleep, 600)",
    ],
    ids=["blocks", "hangs", "to_thread", "executor", "for ever", "open", "aclose"],
)
async def test_a_process_ends_although_a_backend_hangs(export: str) -> None:
    started = time.monotonic()
    ended = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", PROGRAM.format(export=export)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert time.monotonic() - started < 40.0
    assert (ended.returncode, ended.stdout) == (0, "the answer\n")
    assert "Traceback" not in ended.stderr
    assert "Exception" not in ended.stderr


async def test_a_process_that_never_closes_its_runtime_ends_too() -> None:
    program = textwrap.dedent(
        """
        import asyncio, time
        from agentrt import Runtime

        class Hangs:
            interval = 0.01
            def export(self, batch): time.sleep(600)

        async def agent(message):
            return message

        async def main():
            rt = Runtime(backends=[("hangs", Hangs())])
            rt.telemetry.open()
            print((await rt.run(agent, "the answer")).text, flush=True)
            await asyncio.sleep(0.2)

        asyncio.run(main())
        """
    )
    started = time.monotonic()
    ended = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert time.monotonic() - started < 40.0
    assert (ended.returncode, ended.stdout) == (0, "the answer\n")
    assert "Traceback" not in ended.stderr
