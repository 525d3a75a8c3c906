"""Writing an audit log: what stands in it, groups, waiting, options."""

from __future__ import annotations

import asyncio
import hmac
import os
import stat
import subprocess
import sys
import threading
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from agentrt.errors import BudgetExceeded, ConfigError, Refused
from agentrt.secrets.protocol import SecretDenied
from agentrt.security.audit import AuditLog, acting
from agentrt.security.audit.log_file import LogFile
from agentrt.security.audit.record import Who
from agentrt.security.audit.segments import segments
from agentrt.telemetry.redaction import Redactor
from security.audits import KEY, checked, items, records, until, written

# --- what stands in it -----------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_an_operation_is_recorded_before_and_after(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "audit.jsonl"
    async with AuditLog(path, key=b"k" * 32) as log:
        with acting(actor="billing", on_behalf_of="user:42"):
            operation = await log.durable_intent("invoice.send", "customer:7", arguments={"b": 1, "a": [2]})
            assert [item["phase"] for item in records(path)] == ["intent"], (
                "it is there before anything is done"
            )
        operation.ended(duration=1.5)
    intent, outcome = records(path)
    assert (intent["action"], intent["resource"], intent["decision"]) == (
        "invoice.send",
        "customer:7",
        "allowed",
    )
    assert (intent["actor"], intent["on_behalf_of"]) == ("billing", "user:42")
    assert intent["arguments_hmac"] == hmac.digest(b"k" * 32, b'{"a":[2],"b":1}', sha256).hex()
    assert "arguments" not in intent
    assert (outcome["intent"], outcome["outcome"], outcome["duration"]) == (intent["seq"], "ok", 1.5)
    assert (outcome["actor"], outcome["on_behalf_of"]) == ("billing", "user:42")
    assert intent["time"].endswith("Z")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("error", "outcome", "decision"),
    [
        (ValueError("x"), "failed", "allowed"),
        (BudgetExceeded("spent"), "failed", "denied"),
        (asyncio.CancelledError(), "cancelled", "allowed"),
        (None, "ok", "allowed"),
    ],
)
async def test_how_it_ended(tmp_path: Path, error: BaseException | None, outcome: str, decision: str) -> None:
    path = tmp_path / "audit.jsonl"
    async with AuditLog(path) as log:
        log.intent("x", "y").ended(error)
    [_, record] = records(path)
    assert (record["outcome"], record["decision"]) == (outcome, decision)
    assert record.get("error") == (None if error is None else type(error).__name__)
    assert record.get("message") == ("spent" if isinstance(error, Refused) else None), (
        "words of others may quote"
    )


@pytest.mark.asyncio
async def test_arguments_are_hashed_redacted_or_left_out_and_never_in_clear(tmp_path: Path) -> None:
    redactor = Redactor()
    redactor.add('p4ss "word" 7')
    for mode in ("hash", "redacted", "none"):
        path = tmp_path / f"{mode}.jsonl"
        async with AuditLog(path, arguments=mode, redactor=redactor) as log:
            log.intent("x", "y", arguments={"city": "Paris", "q": 'is p4ss "word" 7 it?'}).ended(
                ValueError('p4ss "word" 7 is wrong')
            )
        text = path.read_text()
        assert "word" not in text
        assert ("Paris" in text) == (mode == "redacted")
        assert ("is wrong" in text) == (mode == "redacted")
        assert ("arguments_hmac" in text) == (mode == "hash")


@pytest.mark.asyncio
async def test_secrets_are_taken_out_of_every_field(tmp_path: Path) -> None:
    redactor = Redactor()
    redactor.add("hunter2-hunter2")
    path = tmp_path / "audit.jsonl"
    async with AuditLog(path, redactor=redactor) as log:
        with acting(actor="a hunter2-hunter2", on_behalf_of="b hunter2-hunter2"):
            operation = log.intent(
                "do hunter2-hunter2", "to hunter2-hunter2", details={"hunter2-hunter2": "hunter2-hunter2"}
            )
            operation.ended(BudgetExceeded("hunter2-hunter2"), resource="at hunter2-hunter2")
    assert b"hunter2" not in path.read_bytes()
    assert len(records(path)) == 2


@pytest.mark.asyncio
async def test_any_text_and_any_argument_can_be_recorded(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    cyclic: list[Any] = []
    cyclic.append(cyclic)
    strange = [object(), 2**200, float("nan"), "\ud800", {1: {2: b"\xff"}}, cyclic, {"\udfff": 1}]
    async with AuditLog(path) as log:
        for value in strange:
            who = Who(actor="a\ud800", session="s\ud800", run="r\ud800", parent="p\ud800", trace="t\ud800")
            log.intent("x\ud800\n", "ünï\0\ud800", who, arguments=value, details={"a\n": "\udfff"}).ended()
    assert len(records(path)) == 2 * len(strange)
    assert checked(path, None).ok


@pytest.mark.asyncio
async def test_large_arguments_do_not_wait_in_the_queue(tmp_path: Path) -> None:
    path, large = tmp_path / "audit.jsonl", "x" * 1_000_000
    async with AuditLog(path, key=b"k" * 32) as log:
        operation = log.intent("x", "y", arguments=large)
        assert operation._ticket.arguments is None
        operation.ended()
    [intent, _] = records(path)
    assert intent["arguments_hmac"] == hmac.digest(b"k" * 32, f'"{large}"'.encode(), sha256).hex()


@pytest.mark.asyncio
async def test_equal_arguments_have_equal_hashes_and_others_others(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    async with AuditLog(path, key=b"k" * 16) as log:
        for value in ({"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 1, "b": 3}):
            log.note("x", "y", arguments=value)
    first, second, third = (record["arguments_hmac"] for record in records(path))
    assert first == second != third


@pytest.mark.asyncio
async def test_what_is_recorded_before_it_opens_is_kept_up_to_the_bound(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path, queue=5)
    for number in range(8):
        log.note("x", str(number))
    async with log:
        pass
    assert [record["resource"] for record in records(path)] == ["0", "1", "2", "3", "4"]
    [gap] = [item for item in items(path) if item["type"] == "gap"]
    assert gap["lost"] == 3


@pytest.mark.asyncio
async def test_it_is_opened_again_and_the_chain_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    for _ in range(3):
        await written(path, 3)
    report = checked(path)
    assert report.ok, report.problems
    assert report.closed
    assert [item["type"] for item in items(path)].count("opened") == 3


@pytest.mark.asyncio
async def test_the_last_checkpoint_is_found_however_far_back_it_is(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    await written(path, 3)
    numbers = [item["number"] for item in items(path) if item["type"] == "checkpoint"]
    async with AuditLog(path, queue=5000) as log:  # without a key
        for number in range(2000):
            log.note("x", f'{{"type":"checkpoint",{number}')
    await written(path, 1)
    after = [item["number"] for item in items(path) if item["type"] == "checkpoint"]
    assert after == list(range(1, len(after) + 1))
    assert len(after) > len(numbers)
    assert checked(path).ok


# --- groups ----------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_records_of_many_tasks_share_a_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs: list[int] = []
    real = os.fdatasync

    def slow(fd: int) -> None:
        time.sleep(0.005)
        syncs.append(fd)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", slow)
    path = tmp_path / "audit.jsonl"
    async with AuditLog(path, strict=True) as log:

        async def operate(number: int) -> None:
            for _ in range(5):
                (await log.durable_intent("x", str(number))).ended()

        await asyncio.gather(*map(operate, range(100)))
    assert len(records(path)) == 1000
    assert len(syncs) < 250, "500 intents were waited for, one after the other it is as many"
    assert checked(path, None).ok


@pytest.mark.asyncio
async def test_tasks_and_threads_write_at_the_same_time(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    async with AuditLog(path, rotation=50_000, signing_key=KEY.encode(), checkpoint_every=50) as log:

        def threaded(name: str) -> None:
            for number in range(200):
                log.intent("thread", f"{name}:{number}").ended()

        async def task(name: str) -> None:
            for number in range(100):
                (await log.durable_intent("task", f"{name}:{number}")).ended()

        threads = [threading.Thread(target=threaded, args=(str(name),)) for name in range(4)]
        for thread in threads:
            thread.start()
        await asyncio.gather(*(task(str(name)) for name in range(4)))
        for thread in threads:
            await asyncio.to_thread(thread.join)
    every = [record for file in segments(path) for record in records(file)]
    report = checked(path)
    assert report.ok, report.problems
    assert report.files > 3
    for name in range(4):
        mine = [r for r in every if r["phase"] == "intent" and r["resource"].startswith(f"{name}:")]
        assert [r["resource"] for r in mine if r["action"] == "thread"] == [f"{name}:{n}" for n in range(200)]
    intents = {record["seq"]: record for record in every if record["phase"] == "intent"}
    outcomes = [record for record in every if record["phase"] == "outcome"]
    assert len(intents) == len(outcomes) == 1200
    assert all(intents[outcome["intent"]]["resource"] == outcome["resource"] for outcome in outcomes)


@pytest.mark.asyncio
async def test_a_signal_handler_may_record_while_its_thread_records(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    async with AuditLog(path) as log:

        def interrupted() -> None:
            with log._writer._changed:  # a handler runs between any two steps of its thread, here too
                log.note("signal", "SIGTERM")

        thread = threading.Thread(target=interrupted, daemon=True)
        thread.start()
        await asyncio.to_thread(thread.join, 30)
        assert not thread.is_alive()
    assert [record["action"] for record in records(path)] == ["signal"]


@pytest.mark.asyncio
async def test_a_checkpoint_comes_after_some_time(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    async with AuditLog(path, signing_key=KEY.encode(), checkpoint_seconds=0.05) as log:
        await until(lambda: log.statistics.checkpoints == 1)  # of the opening
        log.note("x", "y")
        await until(lambda: log.statistics.checkpoints == 2)
        assert [item["type"] for item in items(path)[-2:]] == ["record", "checkpoint"]
        await asyncio.sleep(0.2)
        assert log.statistics.checkpoints == 2, "nothing new is to be signed"


@pytest.mark.asyncio
async def test_a_program_that_forgets_to_close_it_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    program = f"""
import asyncio
from agentrt.security.audit import AuditLog
async def main():
    log = AuditLog({str(path)!r})
    await log.open()
    for number in range(500):
        log.note("x", str(number))
asyncio.run(main())
"""
    await asyncio.to_thread(subprocess.run, [sys.executable, "-c", program], check=True)
    assert len(records(path)) == 500
    assert checked(path, None).closed


@pytest.mark.asyncio
async def test_opening_that_is_cancelled_leaves_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    real = LogFile.open

    def slow(self: LogFile) -> None:
        go.wait(30)
        real(self)

    monkeypatch.setattr(LogFile, "open", slow)
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    log.note("x", "y")
    opening = asyncio.ensure_future(log.open())
    await asyncio.sleep(0.05)
    opening.cancel()
    await asyncio.sleep(0.05)
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await log.aclose()
    assert len(records(path)) == 1
    async with AuditLog(path):
        pass  # nobody has it any more


# --- waiting ---------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_wait_that_is_cancelled_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    real = LogFile.append
    monkeypatch.setattr(LogFile, "append", lambda self, data: (go.wait(30), real(self, data))[1])
    path = tmp_path / "audit.jsonl"
    async with AuditLog(path, strict=True) as log:
        waiting = asyncio.ensure_future(log.durable_intent("x", "y"))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        go.set()
    intent, outcome = records(path)
    assert (outcome["outcome"], outcome["intent"]) == ("cancelled", intent["seq"])


# --- options ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strict": True, "on_failure": "warn"}, "contradict each other"),
        ({"on_failure": "explode"}, "on_failure must be one of 'refuse', 'warn'"),
        ({"arguments": "clear"}, "arguments must be one of 'hash', 'redacted', 'none'"),
        ({"checkpoint_every": 0}, "checkpoint_every must be a whole number"),
        ({"checkpoint_seconds": 0}, "checkpoint_seconds must be a number of seconds"),
        ({"rotation": 10}, "rotation must be a whole number of at least 1000"),
        ({"queue": 0}, "queue must be"),
        ({"sinks": [("odd", object())]}, "the audit sink odd has no"),
    ],
)
def test_options_are_checked(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AuditLog(tmp_path / "a", **options)


@pytest.mark.asyncio
async def test_what_is_no_text_is_refused_where_it_is_given(tmp_path: Path) -> None:
    strange: Any = 5
    async with AuditLog(tmp_path / "a") as log:
        with pytest.raises(ConfigError, match="action must be a name, not 5"):
            log.intent(strange, "y")
        with pytest.raises(ConfigError, match="resource must be text, not 5"):
            log.intent("x", strange)
        with (
            pytest.raises(ConfigError, match="on_behalf_of must be a name, not 5"),
            acting(on_behalf_of=strange),
        ):
            pass
        log.note("x", "y", details={strange: strange})
    assert records(tmp_path / "a")[0]["details"] == {"5": "5"}


@pytest.mark.asyncio
async def test_keys_come_from_files_and_references(tmp_path: Path) -> None:
    (tmp_path / "signing").write_text(KEY)

    async def secret(reference: str) -> str:
        return {"secret://hmac": "h" * 32}[reference]

    log = AuditLog(tmp_path / "a", key="secret://hmac", signing_key=str(tmp_path / "signing"))
    await log.open(secret)
    log.note("x", "y", arguments=1)
    await log.aclose()
    assert records(tmp_path / "a")[0]["arguments_hmac"] == hmac.digest(b"h" * 32, b"1", sha256).hex()
    assert checked(tmp_path / "a").ok
    with pytest.raises(ConfigError, match="signing_key names a file that cannot be read") as caught:
        await AuditLog(tmp_path / "a", signing_key="hunter2/hunter2").open()
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError, match="key has 5 bytes, but must have at least 16"):
        await AuditLog(tmp_path / "a", key=b"short").open()


@pytest.mark.asyncio
@pytest.mark.parametrize("name", ["key", "signing_key"])
async def test_the_error_of_a_secret_says_which_key_it_is(tmp_path: Path, name: str) -> None:
    error = SecretDenied("secret://vault/audit: denied")

    async def denied(reference: str) -> str:
        raise error  # the same one each time: a failure may be remembered

    options: dict[str, Any] = {name: "secret://vault/audit"}
    for _ in range(2):
        with pytest.raises(SecretDenied) as caught:
            await AuditLog(tmp_path / "a", **options).open(denied)
        assert caught.value is error
    assert error.__notes__ == [f"it is [audit] {name}"]


@pytest.mark.asyncio
async def test_a_key_that_is_no_text_or_no_path_is_told_without_it(tmp_path: Path) -> None:
    async def broken(reference: str) -> str:
        return "hunter2\udcff"  # what the environment makes of a byte that is not UTF-8

    with pytest.raises(ConfigError, match=r"\[audit\] key: what secret://K leads to is no text") as caught:
        await AuditLog(tmp_path / "a", key="secret://K").open(broken)
    assert caught.value.__context__ is None
    for path in ("./hunter2\0", "~nobody-of-this-name/hunter2"):
        with pytest.raises(
            ConfigError, match=r"\[audit\] signing_key names a file that cannot be read"
        ) as caught:
            await AuditLog(tmp_path / "a", signing_key=path).open()
        assert "hunter2" not in str(caught.value)
