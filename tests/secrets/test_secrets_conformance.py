"""The suite for authors of providers, applied to our own."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agentrt.secrets import SecretRef
from agentrt.secrets.dotenv import Dotenv
from agentrt.secrets.env import Env
from agentrt.secrets.file import File
from agentrt.testing import SecretsProviderTests


class TestEnv(SecretsProviderTests):
    @pytest.fixture(autouse=True)
    def environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch

    def make(self) -> Env:
        return Env(prefix="AGENTRT_TEST_")

    def store(self, name: str, value: str) -> SecretRef:
        self.monkeypatch.setenv(f"AGENTRT_TEST_{name}", value)
        return SecretRef(name)


class TestFile(SecretsProviderTests):
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path) -> None:
        self.path = tmp_path / "secrets"
        self.path.mkdir()

    def make(self) -> File:
        return File(path=self.path)

    def store(self, name: str, value: str) -> SecretRef:
        (self.path / name).write_text(value + "\n")
        return SecretRef(name)


class TestFileOfKubernetes(TestFile):
    """All files are replaced at once: a link is turned to another directory."""

    def store(self, name: str, value: str) -> SecretRef:
        old = (self.path / "..data").resolve() if (self.path / "..data").exists() else None
        new = self.path / f"..2026_{len(list(self.path.iterdir()))}"
        new.mkdir()
        for file in old.iterdir() if old is not None else ():
            file.rename(new / file.name)
        (new / name).write_text(value)
        (self.path / "..data_tmp").symlink_to(new.name)
        (self.path / "..data_tmp").replace(self.path / "..data")
        if not (self.path / name).is_symlink():
            (self.path / name).symlink_to(f"..data/{name}")
        if old is not None:
            old.rmdir()
        return SecretRef(name)


class TestDotenv(SecretsProviderTests):
    @pytest.fixture(autouse=True)
    def file(self, tmp_path: Path) -> None:
        self.path = tmp_path / ".env"
        self.values_by_name: dict[str, str] = {}

    def make(self) -> Dotenv:
        return Dotenv(path=self.path)

    def store(self, name: str, value: str) -> SecretRef:
        self.values_by_name[name] = value
        self.path.write_text(
            "".join(f'{key}="{_quoted(text)}"\n' for key, text in self.values_by_name.items())
        )
        return SecretRef(name)

    @contextmanager
    def denied(self) -> Generator[None]:
        """The file system is asked as another user would be: tests may run as root, who may read anything."""
        with pytest.MonkeyPatch.context() as patch:

            def refuse(*arguments: object, **options: object) -> int:
                raise PermissionError(13, "Permission denied")

            patch.setattr("agentrt.secrets.text_file.os.open", refuse)
            yield


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
