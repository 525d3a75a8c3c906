"""What is kept elsewhere: sinks are fed once it is on the disk, in order, and again until they take it."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from agentrt import Runtime
from agentrt.config import Config
from agentrt.errors import ConfigError
from agentrt.security.audit import AuditLog, FileAnchor
from agentrt.security.audit import sinks as sinks_module
from agentrt.security.audit.record import Checkpoint, decode
from agentrt.security.audit.sinks import Sinks
from agentrt.security.audit.writer import Writer
from security.audits import KEY, checked, items, lines, records, room, runtime, until, written


class Kept:
    """Keeps what it gets; fails as often as it is told to."""

    def __init__(self, *, failures: int = 0) -> None:
        self.failures = failures
        self.got: list[bytes] = []
        self.closed = False

    async def checkpoint(self, line: bytes, /) -> None:
        await asyncio.sleep(0)
        if self.failures:
            self.failures -= 1
            raise ConnectionError("no answer")
        self.got.append(line)

    async def aclose(self) -> None:
        self.closed = True


class KeptRecords(Kept):
    def __init__(self) -> None:
        super().__init__()
        self.lines = b""

    async def records(self, lines: bytes, /) -> None:
        self.lines += lines


async def run_log(path: Path, *sinks: Any, count: int = 10) -> None:
    named = [(f"sink{number}", sink) for number, sink in enumerate(sinks)]
    async with AuditLog(path, signing_key=KEY.encode(), checkpoint_every=4, sinks=named) as log:
        for number in range(count):
            (await log.durable_intent("x", str(number))).ended()


@pytest.mark.asyncio
async def test_each_checkpoint_goes_to_each_sink_in_order(tmp_path: Path) -> None:
    path, first, second = tmp_path / "a", Kept(), Kept()
    await run_log(path, first, second)
    expected = [line for line in lines(path) if b'"type":"checkpoint"' in line]
    assert len(expected) > 3
    assert first.got == second.got == expected
    assert [item.number for line in expected if isinstance(item := decode(line), Checkpoint)] == list(
        range(1, len(expected) + 1)
    )


@pytest.mark.asyncio
async def test_a_sink_may_have_the_lines_too(tmp_path: Path) -> None:
    sink = KeptRecords()
    await run_log(tmp_path / "a", sink)
    assert sink.lines == b"".join(lines(tmp_path / "a"))


@pytest.mark.asyncio
async def test_a_sink_that_fails_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sinks_module, "FIRST_RETRY", 0.001)
    failing, sound = Kept(failures=5), Kept()
    await run_log(tmp_path / "a", failing, sound)
    assert failing.got == sound.got
    said = [record.getMessage() for record in caplog.records]
    assert (
        sum("the audit sink sink0 failed and is tried again: ConnectionError" in text for text in said) == 1
    )
    assert sum("the audit sink sink0 works again" in text for text in said) == 1


@pytest.mark.asyncio
@pytest.mark.virtual_time
async def test_a_sink_that_hangs_holds_nothing_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """On virtual time, and so without a limit for the thread that writes: a machine may stand still."""

    class Hangs(Kept):
        async def checkpoint(self, line: bytes, /) -> None:
            await asyncio.Event().wait()

    sound = Kept()
    log = AuditLog(
        tmp_path / "a", signing_key=KEY.encode(), checkpoint_every=2, sinks=[("a", Hangs()), ("b", sound)]
    )
    await log.open()
    for number in range(6):
        log.intent("x", str(number)).ended()
        await asyncio.to_thread(_wait_for_records, log, 2 * number + 2)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await log.aclose(100)
    assert loop.time() - began == pytest.approx(30), "the sinks have their part of the time, and no more"
    assert checked(tmp_path / "a").closed
    assert len(sound.got) > 5
    assert "the audit sink a did not take" in caplog.text


def _wait_for_records(log: AuditLog, count: int) -> None:
    while log.statistics.written < count:
        time.sleep(0.005)


@pytest.mark.asyncio
async def test_what_waits_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks_module, "WAITING", 3)
    monkeypatch.setattr(sinks_module, "FIRST_RETRY", 0.001)
    all_written = asyncio.Event()

    class Late(Kept):
        async def checkpoint(self, line: bytes, /) -> None:
            await all_written.wait()
            await super().checkpoint(line)

    sink = Late(failures=1)
    async with AuditLog(
        tmp_path / "a", signing_key=KEY.encode(), checkpoint_every=1, sinks=[("a", sink)]
    ) as log:
        for number in range(20):
            (await log.durable_intent("x", str(number))).ended()
        all_written.set()
    assert 0 < len(sink.got) <= 5
    assert sink.got[-1] == lines(tmp_path / "a")[-1], "the last one covers all that were dropped"
    anchor = tmp_path / "anchor"
    anchor.write_bytes(b"".join(sink.got))
    assert checked(tmp_path / "a", anchor=anchor).ok


@pytest.mark.asyncio
async def test_the_file_anchor_appends_and_goes_on_after_half_a_line(tmp_path: Path) -> None:
    path, anchor = tmp_path / "a", tmp_path / "elsewhere" / "anchor.jsonl"
    await written(path, 5, anchor=anchor)
    assert anchor.stat().st_mode & 0o777 == 0o600
    with anchor.open("ab") as file:
        file.write(b'{"type":"checkp')
    await written(path, 5, anchor=anchor)
    report = checked(path, anchor=anchor)
    assert report.ok, report.problems
    assert report.anchored_through == report.last


@pytest.mark.asyncio
async def test_a_log_that_was_cut_while_nobody_looked_shows_after_it_went_on(tmp_path: Path) -> None:
    path, anchor = tmp_path / "a", tmp_path / "anchor.jsonl"
    await written(path, 10, anchor=anchor)
    whole = lines(path)
    path.write_bytes(b"".join(whole[: len(whole) // 2]))
    await written(path, 10, anchor=anchor)
    assert checked(path).ok, "it looks as if it had never been longer"
    report = checked(path, anchor=anchor)
    assert {problem.kind for problem in report.problems} == {"checkpoint"}
    assert "is not the one that the anchor has" in report.problems[0].message


@pytest.mark.asyncio
async def test_sinks_are_configured_opened_and_closed(tmp_path: Path) -> None:
    anchor = tmp_path / "anchor.jsonl"
    (tmp_path / "key").write_text(KEY)
    audit = {
        "path": str(tmp_path / "a"),
        "signing_key": str(tmp_path / "key"),
        "sinks": {"mine": {"plugin": "file", "path": str(anchor)}},
    }
    async with Runtime(Config({"audit": audit})):
        pass
    assert [item["type"] for item in items(anchor)] == ["checkpoint", "checkpoint"]
    report = checked(tmp_path / "a", anchor=anchor)
    assert report.ok, report.problems
    assert report.anchored_through == report.last


class Calls(KeptRecords):
    """A sink whose work goes through the pipeline, as that of a webhook does."""

    def __init__(self, runtime: list[Runtime]) -> None:
        super().__init__()
        self.runtime = runtime

    async def records(self, lines: bytes, /) -> None:
        async def send() -> None:
            self.lines += lines

        await self.runtime[0].invoke("http", "webhook", send, idempotent=True)


@pytest.mark.asyncio
@pytest.mark.parametrize("strict", [True, False])
async def test_what_a_sink_calls_makes_no_records(tmp_path: Path, strict: bool) -> None:
    """Each would make another call."""
    runtimes: list[Runtime] = []
    path, sink = tmp_path / "a", Calls(runtimes)
    rt = Runtime(Config({"audit": {"path": str(path), "strict": strict}}))
    assert rt.audit is not None
    log = AuditLog(path, strict=strict, sinks=[("calls", sink)])
    rt.audit.log = log
    runtimes.append(rt)

    async def agent(message: str) -> str:
        return "x"

    async with rt:
        await rt.run(agent, "hi")
        await until(lambda: sink.lines.count(b'"action":"run"') == 2)
        size = path.stat().st_size
        await asyncio.sleep(0.2)
        assert path.stat().st_size == size, "nothing is written any more"
    assert [item["action"] for item in items(path) if item["type"] == "record"] == ["run", "run"]
    assert sink.lines.count(b'"action":"run"') == 2


@pytest.mark.parametrize("path", ["", "."])
def test_an_anchor_needs_a_file(path: str) -> None:
    with pytest.raises(ConfigError, match="path must be the name of a file"):
        FileAnchor(path=Path(path))


@pytest.mark.asyncio
async def test_a_loop_that_is_gone_is_told_and_the_log_is_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a"

    def elsewhere() -> AuditLog:
        """Opened on a loop of its own, which is closed with the log still open."""

        async def opened() -> AuditLog:
            log = AuditLog(path, signing_key=KEY.encode(), sinks=[("a", Kept())])
            await log.open()
            await asyncio.sleep(0.1)
            return log

        return asyncio.run(opened())

    log = await asyncio.to_thread(elsewhere)
    log.note("x", "y")
    await asyncio.to_thread(log.close)
    assert checked(path).closed
    assert "missed what was written after their event loop was closed" in caplog.text


@pytest.mark.asyncio
async def test_an_anchor_that_takes_half_a_line_has_not_taken_it(tmp_path: Path) -> None:
    anchor = FileAnchor(path=tmp_path / "anchor")
    await anchor.checkpoint(b"a" * 100 + b"\n")
    with room(150), pytest.raises(OSError, match="No space left"):
        await anchor.checkpoint(b"b" * 100 + b"\n")
    await anchor.checkpoint(b"b" * 100 + b"\n")
    assert anchor.path.read_bytes().splitlines()[-1] == b"b" * 100


def fed(rt: Runtime, sink: Any) -> None:
    """Give the runtime a sink that is no plugin."""
    assert rt.audit is not None
    log = rt.audit.log
    rt.audit._sinks.append(("made", sink))
    log._sinks = Sinks([("made", sink)])
    log._writer._kept, log._writer._written = log._sinks.checkpoint, log._sinks.records


@pytest.mark.asyncio
async def test_what_a_sink_does_to_take_a_record_makes_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "the-token-of-the-webhook")

    class Webhook(KeptRecords):
        token = ""

        async def open(self, host: Any) -> None:
            self.host = host

        async def records(self, lines: bytes, /) -> None:
            self.token = self.token or await self.host.secret("secret://env/TOKEN")
            await super().records(lines)

    path, sink = tmp_path / "a", Webhook()
    rt = runtime(path)
    fed(rt, sink)
    async with rt:
        assert rt.audit is not None
        rt.audit.log.intent("x", "y").ended()
        await until(lambda: sink.lines.count(b'"action":"x"') == 2)
        groups = rt.audit.log.statistics.groups
        await asyncio.sleep(0.2)
        assert rt.audit.log.statistics.groups == groups
    assert records(path, action="secret.reveal") == []


@pytest.mark.asyncio
@pytest.mark.parametrize("times", [1, 2])
async def test_a_log_that_opens_though_nobody_waits_any_more_keeps_its_sinks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    sink, started, go_on = Kept(), threading.Event(), threading.Event()
    start = Writer.start

    def slow(self: Writer, keys: Any) -> None:
        started.set()
        assert go_on.wait(30)
        start(self, keys)

    monkeypatch.setattr(Writer, "start", slow)
    rt = runtime(tmp_path / "a", signing_key=str(key_file(tmp_path)))
    fed(rt, sink)
    assert rt.audit is not None
    opening = asyncio.ensure_future(rt.audit.open())
    await asyncio.to_thread(started.wait)
    for _ in range(times):
        opening.cancel()
        await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert rt.audit.log.is_open
    assert not sink.closed
    await rt.aclose()
    assert sink.closed
    assert len(sink.got) == 2


def key_file(folder: Path) -> Path:
    path = folder / "key"
    path.write_text(KEY)
    return path
