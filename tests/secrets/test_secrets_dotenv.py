"""Secrets in a file of variables."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from agentrt.config import Config
from agentrt.runtime import Runtime
from agentrt.secrets import SecretInvalid, SecretNotFound, SecretRef, text_file
from agentrt.secrets.dotenv import Dotenv

pytestmark = pytest.mark.asyncio


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "dev.env"
    path.write_text("# for development\nexport KEY='a value'\nEMPTY=\nDB_URL=postgres://x  # here\n")
    return path


async def test_a_name_is_a_variable_and_does_not_get_into_the_environment(file: Path) -> None:
    provider = Dotenv(path=file)
    assert await provider.get(SecretRef("KEY")) == "a value"
    assert await provider.get(SecretRef("DB_URL")) == "postgres://x"
    assert "DB_URL" not in os.environ
    assert await provider.list() == ["KEY", "EMPTY", "DB_URL"]
    assert await provider.list("DB") == ["DB_URL"]


async def test_what_is_missing_empty_or_has_a_version_is_named(file: Path) -> None:
    provider = Dotenv(path=file)
    with pytest.raises(SecretNotFound, match=rf"^secret://dotenv/NONE: {file} has no variable NONE$"):
        await provider.get(SecretRef("NONE", "dotenv"))
    with pytest.raises(SecretInvalid, match=r"the variable EMPTY in .* is empty"):
        await provider.get(SecretRef("EMPTY"))
    with pytest.raises(SecretInvalid, match="have no versions"):
        await provider.get(SecretRef("KEY", version="1"))


async def test_a_missing_file_is_named(tmp_path: Path) -> None:
    provider = Dotenv(path=tmp_path / "none.env")
    with pytest.raises(SecretNotFound, match=r"there is no file .*/none.env"):
        await provider.get(SecretRef("KEY"))
    with pytest.raises(SecretNotFound, match=r"there is no file .*/none.env"):
        await provider.list()


@pytest.mark.parametrize("line", ["hunter2 is the password", "hunter2", "-hunter2", 'KEY="hunter2'])
async def test_a_line_that_is_none_is_named_without_what_it_says(tmp_path: Path, line: str) -> None:
    file = await asyncio.to_thread(_written, tmp_path / ".env", f"KEY=fine\n{line}\n")
    with pytest.raises(SecretInvalid, match=rf"^secret://KEY: {file}:2: ") as caught:
        await Dotenv(path=file).get(SecretRef("KEY"))
    assert "hunter2" not in repr(caught.value) + repr(caught.value.__cause__)


async def test_the_file_is_read_once_for_several(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[object] = []
    opened = text_file._open

    def counted(path: str) -> int:
        reads.append(path)
        return opened(path)

    monkeypatch.setattr(text_file, "_open", counted)
    config = Config({"secrets": {"provider": "dotenv", "path": str(file)}})
    async with Runtime(config) as runtime:
        found = await runtime.secrets.get_many(["KEY", "DB_URL"])
    assert [secret.reveal() for secret in found.values()] == ["a value", "postgres://x"]
    assert len(reads) == 1


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
