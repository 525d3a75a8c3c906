"""Verification: a log as it was written is good; whatever is done to it afterwards is named."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.errors import ConfigError
from agentrt.security.audit import AuditLog, FileAnchor
from agentrt.security.audit.checkpoints import PublicKey, SigningKey
from agentrt.security.audit.segments import segments
from agentrt.security.audit.verify import Report, verify
from security.audits import KEY, OTHER_KEY, PUBLIC, SIGNING, checked, items, kinds, lines, rebuilt, written


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A signed log of 10 operations with an anchor beside it."""
    path = tmp_path / "audit.jsonl"
    asyncio.run(written(path, anchor=tmp_path / "anchor.jsonl"))
    return path


def anchor(log: Path) -> Path:
    return log.with_name("anchor.jsonl")


# --- as it was written -----------------------------------------------------------------------------------


def test_a_log_as_it_was_written_is_good(log: Path) -> None:
    report = checked(log, anchor=anchor(log))
    assert report.ok, report.problems
    assert report.closed
    assert report.records == report.last == len(lines(log))
    assert report.signed_through == report.anchored_through == report.last
    assert report.checkpoints >= 3
    assert report.notes == []


def test_what_is_not_shown_is_said(log: Path) -> None:
    notes = "\n".join(checked(log, None).notes)
    assert "no public key" in notes
    assert "cut off the end" in notes
    assert "no anchor" in notes


def test_another_program_can_verify_it_from_the_page(log: Path) -> None:
    """As docs/audit.md says, with nothing of ours."""
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(_public_hex()))
    before, signed = "0" * 64, 0
    for number, line in enumerate(log.read_bytes().splitlines(), start=1):
        item = json.loads(line)
        body = line[: -len(b',"hash":""}') - 64]
        assert hashlib.sha256(body).hexdigest() == item["hash"]
        assert (item["seq"], item["prev"]) == (number, before)
        before = item["hash"]
        if item["type"] == "checkpoint":
            text = b"agentrt audit checkpoint 1\n" + line[: line.rindex(b',"signature":"')]
            key.verify(base64.b64decode(item["signature"]), text)
            signed += 1
    assert signed >= 3


def _public_hex() -> str:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(KEY)).public_key().public_bytes_raw().hex()


# --- what an attacker does -------------------------------------------------------------------------------


def tampered(log: Path, change: Callable[[list[bytes]], list[bytes]]) -> Path:
    log.write_bytes(b"".join(change(lines(log))))
    return log


def test_an_edit_names_file_line_and_record(log: Path) -> None:
    changed = tampered(log, lambda all_: [*all_[:4], all_[4].replace(b"tool:", b"tool;"), *all_[5:]])
    [problem] = checked(changed).problems
    assert (problem.file, problem.line, problem.seq, problem.kind) == (str(log), 5, 5, "edited")
    assert "not the hash" in problem.message


def test_an_edit_with_its_hash_made_anew_names_the_record_that_was_replaced(log: Path) -> None:
    from agentrt.security.audit.chain import TAIL, seal

    def change(all_: list[bytes]) -> list[bytes]:
        line, _ = seal(all_[4][: -TAIL - 1].replace(b"tool:", b"tool;"))
        return [*all_[:4], line, *all_[5:]]

    [problem] = checked(tampered(log, change)).problems
    assert (problem.line, problem.seq, problem.kind) == (5, 5, "rebuilt")


def test_a_deletion_names_what_is_missing(log: Path) -> None:
    [problem] = checked(tampered(log, lambda all_: all_[:4] + all_[6:])).problems
    assert (problem.line, problem.seq, problem.kind) == (5, 7, "missing")
    assert problem.message == "records 5 to 6 are not there"


def test_another_order_is_named(log: Path) -> None:
    report = checked(tampered(log, lambda all_: [*all_[:4], all_[5], all_[4], *all_[6:]]))
    assert kinds(report) == ["missing", "order", "missing"]
    assert report.problems[1].seq == 5


def test_a_line_that_stands_twice_is_named(log: Path) -> None:
    report = checked(tampered(log, lambda all_: [*all_[:5], all_[4], *all_[5:]]))
    assert kinds(report)[0] == "order"


def test_a_beginning_that_is_missing_is_named(log: Path) -> None:
    report = checked(tampered(log, lambda all_: all_[3:]))
    assert kinds(report)[0] == "missing"
    assert "records 1 to 3 are not there" in report.problems[0].message


@pytest.mark.parametrize("cut", [1, 2, 3, 8, 15])
def test_a_cut_end_shows_by_the_anchor(log: Path, cut: int) -> None:
    tampered(log, lambda all_: all_[:-cut])
    report = checked(log, anchor=anchor(log))
    assert kinds(report) == ["truncated"]
    assert "was cut off" in report.problems[0].message
    without = checked(log)
    assert without.ok
    assert any("no anchor" in note for note in without.notes)


def test_an_end_cut_in_the_middle_of_a_line_shows_by_the_anchor(log: Path) -> None:
    log.write_bytes(log.read_bytes()[:-40])
    assert kinds(checked(log, anchor=anchor(log))) == ["truncated"]


def test_an_empty_log_is_not_good(log: Path) -> None:
    log.write_bytes(b"")
    assert kinds(checked(log)) == ["truncated", "checkpoint"]


def test_a_forged_checkpoint_is_named(log: Path) -> None:
    all_ = items(log)
    at = next(number for number, item in enumerate(all_) if item["type"] == "checkpoint")
    forged = {**all_[at], "signature": base64.b64encode(bytes(64)).decode()}
    log.write_bytes(rebuilt([*all_[:at], forged, *all_[at + 1 :]]))
    report = checked(log)
    assert kinds(report)[0] == "checkpoint"
    assert report.problems[0].seq == at + 1
    assert f"not signed by the key {PUBLIC.id}" in report.problems[0].message
    assert report.signed_through == 0


def test_a_checkpoint_signed_by_another_key_is_named(log: Path) -> None:
    log.write_bytes(rebuilt(items(log), signer=SigningKey(OTHER_KEY, name="another")))
    report = checked(log)
    assert set(kinds(report)) == {"checkpoint"}
    assert len(report.problems) == report.checkpoints


@pytest.mark.parametrize("keeps_checkpoints", [True, False])
def test_a_chain_that_was_made_anew_shows_by_the_signatures(log: Path, keeps_checkpoints: bool) -> None:
    kept = [item for item in items(log) if keeps_checkpoints or item["type"] != "checkpoint"]
    kept = [item for item in kept if item.get("resource") != "tool:3"]
    log.write_bytes(rebuilt(kept))
    assert checked(log, None).ok, "the chain itself is as good as new"
    assert "checkpoint" in kinds(checked(log))
    assert not checked(log, None, anchor=anchor(log)).ok, "the anchor shows it as well, without a key"


@pytest.mark.parametrize("count", [100, 300])
def test_an_end_made_anew_without_checkpoints_shows_beyond_what_may_be_unsigned(
    tmp_path: Path, count: int
) -> None:
    path = tmp_path / "audit.jsonl"
    asyncio.run(written(path, count))
    all_ = items(path)
    first = next(number for number, item in enumerate(all_, start=1) if item["type"] == "checkpoint")
    unsigned = [item for item in all_[first:] if item["type"] != "checkpoint"]
    path.write_bytes(rebuilt([*all_[:first], *unsigned]))
    report = checked(path)
    assert report.signed_through == first
    if len(unsigned) <= all_[first - 1]["next_within"]:
        assert report.ok
        assert any(f"the records after {first} are not signed yet" in note for note in report.notes)
    else:
        [problem] = report.problems
        assert (problem.kind, problem.seq) == ("checkpoint", report.last)
        assert f"the records after {first} are not signed, though" in problem.message


@pytest.mark.asyncio
async def test_no_stretch_of_a_log_is_longer_than_its_checkpoints_say(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    async with AuditLog(path, signing_key=KEY.encode(), checkpoint_every=500, rotation=100_000) as log:
        for turn in range(8):
            for number in range(200 + turn):
                log.intent("x", str(number)).ended()
            await asyncio.sleep(0.02)
    stretch = 0
    for file in segments(path):
        for item in items(file):
            stretch += 1
            if item["type"] == "checkpoint":
                assert stretch <= item["next_within"] == 500 + 256 + 10
                stretch = 0
    assert checked(path).ok


def test_another_log_in_the_place_of_this_one_shows_by_the_anchor(log: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "audit.jsonl"
    asyncio.run(written(other))
    log.write_bytes(other.read_bytes())
    assert checked(log).ok, "it is a good log, only not this one"
    report = checked(log, anchor=anchor(log))
    assert kinds(report) == ["truncated"]
    assert "no checkpoint of this log" in report.problems[0].message


def test_lines_of_another_log_are_named(log: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "audit.jsonl"
    asyncio.run(written(other))
    tampered(log, lambda all_: [*all_[:4], *lines(other)[4:]])
    assert kinds(checked(log))[0] == "rebuilt"
    assert "checkpoint" in kinds(checked(log))


def test_what_is_no_line_of_a_log_is_named(log: Path) -> None:
    report = checked(tampered(log, lambda all_: [*all_[:4], b"hello\n", *all_[4:]]))
    assert report.problems[0].line == 5
    assert report.problems[0].kind == "edited"


def test_an_anchor_with_foreign_and_torn_lines_is_read(log: Path) -> None:
    keep = anchor(log)
    keep.write_bytes(b"hello\n" + keep.read_bytes() + b'{"type":"chec')
    assert checked(log, anchor=keep).ok


def test_an_anchor_that_an_attacker_wrote_to_proves_nothing_to_whoever_has_the_key(log: Path) -> None:
    keep = anchor(log)
    forged = rebuilt(items(log), signer=SigningKey(OTHER_KEY, name="another")).splitlines(keepends=True)
    keep.write_bytes(b"".join(line for line in forged if b'"type":"checkpoint"' in line) + keep.read_bytes())
    assert checked(log, anchor=keep).ok


_ORIGINAL: dict[str, bytes] = {}


def _original() -> tuple[bytes, bytes]:
    """One log and its anchor for all examples."""
    if not _ORIGINAL:
        with tempfile.TemporaryDirectory() as folder:
            path, keep = Path(folder, "a.jsonl"), Path(folder, "anchor.jsonl")
            asyncio.run(written(path, 6, anchor=keep, every=4))
            _ORIGINAL.update(log=path.read_bytes(), anchor=keep.read_bytes())
    return _ORIGINAL["log"], _ORIGINAL["anchor"]


@st.composite
def _tamperings(draw: st.DrawFn) -> bytes:
    """The log after any edit, deletion, swap, copy or truncation of any line."""
    all_ = _original()[0].splitlines(keepends=True)
    kind = draw(st.sampled_from(["edit", "delete", "swap", "copy", "cut", "cut inside"]))
    at = draw(st.integers(0, len(all_) - 1))
    if kind == "edit":
        line = bytearray(all_[at])
        where = draw(st.integers(0, len(line) - 1))
        line[where] = draw(st.integers(0, 255).filter(lambda byte: byte != line[where]))
        all_[at] = bytes(line)
    elif kind == "delete":
        del all_[at : draw(st.integers(at + 1, len(all_)))]
    elif kind == "swap":
        other = draw(st.integers(0, len(all_) - 1).filter(lambda index: index != at))
        all_[at], all_[other] = all_[other], all_[at]
    elif kind == "copy":
        all_.insert(draw(st.integers(0, len(all_))), all_[at])
    elif kind == "cut":
        del all_[at:]
    else:
        whole = b"".join(all_)
        return whole[: draw(st.integers(0, len(whole) - 1))]
    return b"".join(all_)


@settings(max_examples=300)
@given(data=_tamperings())
def test_any_edit_deletion_swap_copy_or_truncation_of_any_line_is_detected(data: bytes) -> None:
    original, keep = _original()
    assert data != original
    with tempfile.TemporaryDirectory() as folder:
        path, kept = Path(folder, "a.jsonl"), Path(folder, "anchor.jsonl")
        kept.write_bytes(keep)
        path.write_bytes(data)
        report = checked(path, anchor=kept)
        assert not report.ok
        assert all(problem.line <= data.count(b"\n") + 1 for problem in report.problems)


# --- several files ---------------------------------------------------------------------------------------


@pytest.fixture
def rotated(tmp_path: Path) -> Path:
    path = tmp_path / "audit.jsonl"
    asyncio.run(written(path, 40, anchor=tmp_path / "anchor.jsonl", rotation=4000))
    assert len(segments(path)) > 3
    return path


def test_the_chain_goes_on_across_files(rotated: Path) -> None:
    report = checked(rotated, anchor=anchor(rotated))
    assert report.ok, report.problems
    assert report.files == len(segments(rotated))
    for before, after in zip(segments(rotated), segments(rotated)[1:], strict=False):
        assert items(after)[0]["prev"] == items(before)[-1]["hash"]
    assert [items(file)[0]["number"] for file in segments(rotated)] == list(range(1, report.files + 1))


@pytest.mark.parametrize("which", [0, 1, 2, -2])
def test_a_file_that_is_missing_is_named(rotated: Path, which: int) -> None:
    segments(rotated)[which].unlink()
    report = checked(rotated, anchor=anchor(rotated))
    assert kinds(report)[0] == "missing"


def test_the_last_file_missing_shows_by_the_anchor(rotated: Path) -> None:
    rotated.unlink()
    assert kinds(checked(rotated, anchor=anchor(rotated))) == ["truncated"]


def test_files_in_another_order_are_named(rotated: Path) -> None:
    first, second = segments(rotated)[:2]
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)
    assert not checked(rotated).ok


def test_older_files_may_be_removed_if_one_says_so(rotated: Path) -> None:
    for old in segments(rotated)[:2]:
        old.unlink()
    assert kinds(checked(rotated, anchor=anchor(rotated)))[0] == "missing"
    report = checked(rotated, anchor=anchor(rotated), pruned=True)
    assert report.ok, report.problems
    assert "were removed before" in report.notes[0]


def test_an_end_of_an_older_file_that_is_cut_is_named(rotated: Path) -> None:
    old = segments(rotated)[0]
    old.write_bytes(b"".join(lines(old)[:-1]))
    assert kinds(checked(rotated))[0] == "missing"


def test_a_log_can_be_verified_while_it_is_written(tmp_path: Path) -> None:
    """With files that change their names, and an anchor that grows."""
    path, keep = tmp_path / "audit.jsonl", tmp_path / "anchor.jsonl"
    seen: list[Report] = []

    async def write_and_verify() -> None:
        sinks = [("file", FileAnchor(path=keep))]
        log = AuditLog(path, signing_key=KEY.encode(), checkpoint_every=5, rotation=5000, sinks=sinks)
        async with log:
            (await log.durable_intent("x", "y")).ended()
            while not (keep.exists() and keep.stat().st_size):  # it is empty for a moment
                (await log.durable_intent("x", "y")).ended()
            verifying = asyncio.ensure_future(asyncio.to_thread(verify_often))
            while not verifying.done():
                (await log.durable_intent("x", "y")).ended()
            await verifying

    def verify_often() -> None:
        while len(seen) <= 8 or seen[-1].files < 8:
            seen.append(checked(path, anchor=keep))

    asyncio.run(write_and_verify())
    assert [report.problems for report in seen if not report.ok] == []


def test_a_key_that_was_changed_needs_both(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    other = SigningKey(OTHER_KEY, name="the new key")

    async def write() -> None:
        for key in (KEY, OTHER_KEY):
            async with AuditLog(path, signing_key=key.encode()) as log:
                log.note("x", "y")

    asyncio.run(write())
    assert verify(path, public_key=[PUBLIC, other.public]).ok
    assert kinds(verify(path, public_key=PUBLIC)) == ["checkpoint"] * 2
    [first, _] = verify(path, public_key=other.public).problems
    assert f"not signed by the key {other.id}" in first.message


# --- keys ------------------------------------------------------------------------------------------------


def test_keys_are_read_as_pem_base64_and_hex() -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(KEY))
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    forms: list[str | bytes] = [pem, pem.decode(), KEY, base64.b64encode(bytes.fromhex(KEY))]
    assert {SigningKey(form, name="k").id for form in forms} == {SIGNING.id}
    assert PublicKey(public, name="k").id == SIGNING.id == PublicKey(_public_hex(), name="k").id
    with pytest.raises(ConfigError, match="k is a private key, which should not leave"):
        PublicKey(pem, name="k")


@pytest.mark.parametrize("text", ["", "hunter2-hunter2", "-----BEGIN PRIVATE KEY-----\nhunter2\n", "00" * 31])
def test_what_is_no_key_is_refused_without_a_word_of_it(text: str) -> None:
    for kind in (SigningKey, PublicKey):
        if kind is PublicKey and "PRIVATE" in text:
            continue
        with pytest.raises(ConfigError, match=r"\[audit\] signing_key is not an ed25519") as caught:
            kind(text, name="[audit] signing_key")
        assert "hunter2" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_there_must_be_a_log(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no audit log"):
        checked(tmp_path / "none.jsonl")
    asyncio.run(written(tmp_path / "a.jsonl"))
    with pytest.raises(ConfigError, match="cannot read the anchor"):
        checked(tmp_path / "a.jsonl", anchor=tmp_path / "none.jsonl")


def test_memory_does_not_grow_with_the_log(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "a.jsonl"

    async def fill() -> None:
        async with AuditLog(path, queue=30_000) as log:
            for number in range(10_000):
                log.note("x", f"thing:{number}")

    asyncio.run(fill())
    tracemalloc.start()
    try:
        report = checked(path, None)
        assert report.records > 10_000
        assert tracemalloc.get_traced_memory()[1] < 3_000_000 < os.path.getsize(path)
    finally:
        tracemalloc.stop()


def test_only_the_first_problems_are_told_and_all_are_counted(log: Path) -> None:
    data: Any = [line.replace(b'"type":"record"', b'"type":"recorx"') for line in lines(log)] * 20
    log.write_bytes(b"".join(data))
    report = checked(log)
    assert len(report.problems) == 50 < report.problem_count
