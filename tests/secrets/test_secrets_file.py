"""Secrets in a directory of files."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentrt.config import Config
from agentrt.errors import ConfigError
from agentrt.runtime import Runtime
from agentrt.secrets import SecretDenied, SecretInvalid, SecretNotFound, SecretRef, SecretUnavailable
from agentrt.secrets.file import File

pytestmark = pytest.mark.asyncio


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory of secrets, and beside it a file that is none."""
    (tmp_path / "outside").write_text("not a secret of ours")
    folder = tmp_path / "secrets"
    folder.mkdir()
    return folder


async def read(folder: Path, name: str) -> str:
    return await File(path=folder).get(SecretRef(name, "file"))


@pytest.mark.parametrize(
    ("written", "value"),
    [
        (b"value", "value"),
        (b"value\n", "value"),
        (b"value\r\n", "value"),
        (b"value\n\n", "value\n"),
        (b" value \n", " value "),
        (b"one\ntwo\n", "one\ntwo"),
        (b"\xef\xbb\xbfvalue", "\ufeffvalue"),
        ("schlüssel".encode(), "schlüssel"),
    ],
)
async def test_one_newline_at_the_end_is_not_part_of_the_value(
    folder: Path, written: bytes, value: str
) -> None:
    (folder / "a").write_bytes(written)
    assert await read(folder, "a") == value


async def test_a_file_in_a_folder_below_is_read_and_the_names_are_listed(folder: Path) -> None:
    (folder / "db").mkdir()
    (folder / "db" / "password").write_text("p")
    (folder / "token").write_text("t")
    assert await read(folder, "db/password") == "p"
    assert sorted(await File(path=folder).list()) == ["db/password", "token"]
    assert await File(path=folder).list("db/") == ["db/password"]


async def test_the_links_of_kubernetes_are_followed_and_its_own_folders_are_not_shown(folder: Path) -> None:
    data = folder / "..2026_11_24"
    data.mkdir()
    (data / "token").write_text("t")
    (folder / "..data").symlink_to(data.name)
    (folder / "token").symlink_to("..data/token")
    assert await read(folder, "token") == "t"
    assert await File(path=folder).list() == ["token"]
    for name in ("..data/token", "..2026_11_24/token"):
        with pytest.raises(SecretInvalid, match="its name is not that of a file below"):
            await read(folder, name)


async def test_a_directory_that_is_a_link_itself_is_fine(folder: Path, tmp_path: Path) -> None:
    (folder / "a").write_text("value")
    (tmp_path / "link").symlink_to(folder)
    assert await read(tmp_path / "link", "a") == "value"


@pytest.mark.parametrize("target", ["../outside", "/etc/passwd", "absolute"])
async def test_a_link_that_leads_out_is_not_followed(folder: Path, tmp_path: Path, target: str) -> None:
    (folder / "a").symlink_to(tmp_path / "outside" if target == "absolute" else target)
    with pytest.raises(SecretInvalid, match=r"it is a link to a place that is not below") as caught:
        await read(folder, "a")
    assert "passwd" not in str(caught.value)


async def test_a_folder_that_is_a_link_out_is_not_entered(folder: Path, tmp_path: Path) -> None:
    (folder / "up").symlink_to(tmp_path)
    with pytest.raises(SecretInvalid):
        await read(folder, "up/outside")
    assert await File(path=folder).list() == []


async def test_a_folder_that_is_swapped_for_a_link_meanwhile_is_not_entered(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "db").mkdir()
    (folder / "db" / "outside").write_text("ours")
    provider = File(path=folder)
    resolve = provider._resolved

    def swapped(ref: SecretRef) -> str:
        path = resolve(ref)
        (folder / "db").rename(folder / "was")
        (folder / "db").symlink_to(tmp_path)
        monkeypatch.setattr(provider, "_resolved", resolve)
        return path

    monkeypatch.setattr(provider, "_resolved", swapped)
    with pytest.raises(SecretInvalid, match="a link to a place that is not below"):
        await provider.get(SecretRef("db/outside", "file"))


async def test_a_name_that_is_no_text_is_not_listed_and_refused(folder: Path) -> None:
    (folder / "a").write_text("value")
    (folder / os.fsdecode(b"\xff")).write_text("value")
    assert await File(path=folder).list() == ["a"]
    with pytest.raises(SecretInvalid, match=r"secret://file/%5Cudcff: its name"):
        await read(folder, "\udcff")


async def test_a_link_that_leads_nowhere_or_in_a_circle_is_an_error(folder: Path) -> None:
    (folder / "gone").symlink_to("nowhere")
    (folder / "circle").symlink_to("circle")
    with pytest.raises(SecretNotFound):
        await read(folder, "gone")
    with pytest.raises(SecretInvalid, match="its symbolic links lead nowhere"):
        await read(folder, "circle")


segments = st.sampled_from(
    ["..", ".", "", "secrets", "outside", "a", "\0", "~", "..a", "%2e%2e", "\\..", "a\n"]
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(parts=st.lists(segments, min_size=1, max_size=6), absolute=st.booleans())
async def test_no_name_leads_out_of_the_directory(folder: Path, parts: list[str], absolute: bool) -> None:
    (folder / "a").write_text("value of a")
    name = ("/" if absolute else "") + "/".join(parts)
    try:
        assert await read(folder, name) == "value of a"
    except (SecretNotFound, SecretInvalid):
        return
    assert name == "a"


async def test_only_regular_files_are_read(folder: Path) -> None:
    os.mkfifo(folder / "fifo")
    (folder / "folder").mkdir()
    (folder / "device").symlink_to("/dev/zero")
    for name in ("fifo", "folder"):
        with pytest.raises(SecretInvalid, match="it is no regular file"):
            await asyncio.wait_for(read(folder, name), 30.0)
    with pytest.raises(SecretInvalid):
        await read(folder, "device")
    assert await File(path=folder).list() == []


async def test_what_is_too_large_empty_or_no_text_is_refused_without_showing_it(folder: Path) -> None:
    (folder / "large").write_text("x" * 101)
    (folder / "empty").write_text("\n")
    (folder / "binary").write_bytes(b"secret\xff\xfe")
    provider = File(path=folder, max_bytes=100)
    with pytest.raises(
        SecretInvalid, match=r"^secret://large: the file is larger than 100 bytes; set max_bytes"
    ):
        await provider.get(SecretRef("large"))
    with pytest.raises(SecretInvalid, match="the file is empty"):
        await provider.get(SecretRef("empty"))
    with pytest.raises(SecretInvalid, match="not UTF-8 text") as caught:
        await provider.get(SecretRef("binary"))
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    (folder / "large").write_text("x" * 100)
    assert len(await provider.get(SecretRef("large"))) == 100


async def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        SecretNotFound, match=r"^secret://file/a: there is no directory .*/none: mount it, or set"
    ):
        await read(tmp_path / "none", "a")
    with pytest.raises(SecretNotFound, match="there is no directory"):
        await File(path=tmp_path / "none").list()


@pytest.mark.parametrize(
    ("code", "kind"),
    [(13, SecretDenied), (5, SecretUnavailable), (116, SecretUnavailable), (2, SecretNotFound)],
)
async def test_what_the_file_system_says_becomes_one_of_our_errors(
    folder: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception]
) -> None:
    (folder / "a").write_text("value")

    def fails(*arguments: object, **options: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("agentrt.secrets.text_file.os.open", fails)
    with pytest.raises(kind):
        await read(folder, "a")


async def test_a_file_that_everybody_may_write_is_warned_of_once(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, mode in (("a", 0o666), ("b", 0o644)):
        (folder / name).write_text("value")
        (folder / name).chmod(mode)
    provider = File(path=folder)
    for name in "aab":
        await provider.get(SecretRef(name))
    assert [record.message for record in caplog.records] == [
        f"everybody may write the file {folder}/a, and it holds a secret; chmod o-w it"
    ]


async def test_replacing_all_files_at_once_disturbs_no_reader(folder: Path) -> None:
    """As Kubernetes does: a new folder, the link turned, the old folder removed."""

    def turn(number: int) -> None:
        new, old = folder / f"..{number}", folder / f"..{number - 1}"
        new.mkdir()
        (new / "a").write_text(f"value-{number}")
        (folder / "..tmp").symlink_to(new.name)
        (folder / "..tmp").replace(folder / "..data")
        if old.exists():
            (old / "a").unlink()
            old.rmdir()

    turn(1)
    (folder / "a").symlink_to("..data/a")
    done = threading.Event()
    seen: set[str] = set()

    def rotate() -> None:
        for number in range(2, 100_000):
            turn(number)
            if number >= 300 and len(seen) > 1:
                break
        done.set()

    thread = threading.Thread(target=rotate)
    thread.start()
    try:
        while not done.is_set():
            seen.add(await read(folder, "a"))
    finally:
        thread.join()
    assert all(value.startswith("value-") for value in seen)
    assert len(seen) > 1


async def test_a_changed_file_is_seen_by_a_runtime_after_its_time(folder: Path) -> None:
    (folder / "a").write_text("one")
    config = Config({"secrets": {"provider": "file", "path": str(folder), "cache_ttl": 0.05}})
    async with Runtime(config) as runtime:
        assert await runtime.secret("a") == "one"
        (folder / "a").write_text("two")
        await asyncio.sleep(0.06)
        assert await runtime.secret("a") == "two"


@pytest.mark.parametrize("path", ["", ".", "/", ".."])
async def test_options_are_checked(path: str) -> None:
    with pytest.raises(ConfigError, match="path must be the directory that holds the secrets"):
        File(path=Path(path))
    with pytest.raises(ConfigError, match="max_bytes must be a whole number"):
        File(max_bytes=0)
    with pytest.raises(ConfigError, match="cache_ttl must be a number of seconds"):
        File(cache_ttl=-1.0)


async def test_a_file_has_no_versions(folder: Path) -> None:
    with pytest.raises(SecretInvalid, match="files have no versions"):
        await File(path=folder).get(SecretRef("a", version="2"))
