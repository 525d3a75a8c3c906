"""What the user may have meant."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from agentrt.cli.candidates import (
    agent_names,
    file_named,
    files_and_modules,
    files_in,
    modules_in,
    names_in,
    similar_to,
)

SOURCE = """
import asyncio
from agentrt import Agent

class Loop(Agent): ...
class Plain:
    async def run(self, message): ...
class Streams:
    async def run(self, message, ctx):
        yield message
class Other:
    def run(self): ...
async def function(message, ctx): ...
async def middleware(call, call_next): ...
async def _private(message): ...
def factory(): ...
instance = Plain()
number = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(SOURCE)
    (tmp_path / "_private.py").write_text("")
    (tmp_path / "notes.txt").write_text("")
    for name in ("pkg", "data", "venv", ".git"):
        (tmp_path / name).mkdir()
    (tmp_path / "pkg" / "inner.py").write_text("class Deep:\n    async def run(self, message): ...\n")
    (tmp_path / "pkg" / "__init__.py").write_text("async def packed(message): ...\n")
    (tmp_path / "venv" / "x.py").write_text("")
    return tmp_path


def test_agents_in_a_module_are_what_was_made_there(folder: Path) -> None:
    module = ModuleType("mine")
    exec(compile(SOURCE, "mine.py", "exec"), vars(module))
    assert agent_names(module) == ["Loop", "Plain", "Streams", "function", "instance"]


def test_agents_in_a_file_are_found_without_importing_it(folder: Path) -> None:
    assert names_in("mine.py", ".") == ["Loop", "Plain", "Streams", "function"]
    assert names_in("pkg.inner", ".") == ["Deep"]
    assert names_in("pkg", ".") == ["packed"]
    (folder / "broken.py").write_text("class (")
    assert names_in("broken.py", ".") == names_in("missing.py", ".") == []


def test_modules_and_files_of_a_folder(folder: Path) -> None:
    assert modules_in(".") == ["mine", "pkg"]
    assert files_in(".") == ["_private.py", "mine.py"]
    assert modules_in("missing") == files_in("missing") == []


def test_a_file_in_a_folder_below(folder: Path) -> None:
    assert file_named("inner", ".") == "pkg/inner.py"
    assert file_named("pkg.inner", ".") == "pkg/inner.py"
    assert file_named("nothing", ".") is None


def test_what_a_target_may_begin_with(folder: Path) -> None:
    assert files_and_modules(".", "") == [
        "_private.py:", "mine.py:", "data/", "pkg/", "mine:", "pkg:",
    ]  # fmt: skip
    assert files_and_modules(".", "pkg/") == ["pkg/__init__.py:", "pkg/inner.py:"]
    assert "pkg.inner:" in files_and_modules(".", "pkg.")
    assert files_and_modules(".", "missing/") == []


@pytest.mark.parametrize(
    ("name", "meant"),
    [("assistent", "Assistant"), ("ASSISTANT", "Assistant"), ("zzz", None), ("eco", "Echo")],
)
def test_the_name_that_was_probably_meant(name: str, meant: str | None) -> None:
    assert similar_to(name, ["Assistant", "Echo"]) == meant
