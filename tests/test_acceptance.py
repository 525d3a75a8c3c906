"""The scripts of acceptance fail when what they look at is broken, left out or not there."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parent / "accept"

TESTS = """
import pytest

def test_good():
    pass

@pytest.mark.parametrize("value", [1, 2])
def test_each(value):
    pass

class TestTogether:
    def test_inside(self):
        pass

def test_bad():
    assert False

@pytest.mark.skip
def test_skipped():
    pass

@pytest.mark.xfail
def test_not_yet():
    assert False
"""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("_acceptance", FOLDER / "_acceptance.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "_acceptance", module)
    return module


@pytest.fixture
def place(script: ModuleType, tmp_path: Path) -> Any:
    """A place whose clone is a folder with `TESTS`, and whose `./dev test` is pytest."""

    class Here(script.Place):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            self.home = tmp_path

        def run(self, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
            assert command[:2] == ("./dev", "test")
            words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *command[2:]]
            return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)

    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "test_it.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return Here()


@pytest.mark.parametrize(
    "name", ["test_good", "test_each", "test_each[2]", "TestTogether", "TestTogether::test_inside"]
)
def test_tests_that_pass_prove_a_line(place: Any, name: str) -> None:
    assert "tests in" in place.prove(f"some/test_it.py::{name}")


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        (["test_bad"], "1 failed"),
        (["test_good", "test_skipped"], "skipped: some/test_it.py::test_skipped"),
        (["test_good", "test_not_yet"], "skipped: some/test_it.py::test_not_yet"),
        (["test_good", "test_nowhere"], "not found"),
        (["test_each[1]", "test_each[3]"], "not found"),
    ],
)
def test_nothing_else_does(script: ModuleType, place: Any, nodes: list[str], says: str) -> None:
    with pytest.raises(script.Failed, match=says):
        place.prove(*(f"some/test_it.py::{node}" for node in nodes))


def test_a_test_that_was_left_out_proves_nothing(script: ModuleType, place: Any) -> None:
    left_out = "def pytest_collection_modifyitems(items):\n    del items[1:]\n"
    (place.home / "conftest.py").write_text(left_out)
    with pytest.raises(script.Failed, match=r"no test was run of some/test_it.py::test_each"):
        place.prove("some/test_it.py::test_good", "some/test_it.py::test_each")


def run_lines(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    def broken(place: Any) -> str:
        raise script.Failed("it is broken")

    acceptance = script.Acceptance("example", "An example.")
    acceptance.line("this works")(lambda place: "seen")
    acceptance.line("this does not")(broken)
    monkeypatch.setattr(script, "Place", lambda folder: None)
    monkeypatch.setattr(sys, "argv", ["example", *arguments])
    return int(acceptance.main())


def test_a_line_that_fails_fails_the_script(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_lines(script, monkeypatch) == 1
    out = capsys.readouterr().out
    assert "PASS  this works\n      seen\nFAIL  this does not\n      Failed: it is broken\n" in out
    assert out.endswith("1 of 2 lines passed\n")
    assert run_lines(script, monkeypatch, "--only", "works") == 0


def test_a_name_that_no_line_has_is_no_success(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as exited:
        run_lines(script, monkeypatch, "--only", "nothing of this")
    assert exited.value.code == 2


@pytest.mark.parametrize("path", sorted(FOLDER.glob("[!_]*.py")), ids=lambda path: path.stem)
def test_every_test_that_a_line_names_is_there(
    script: ModuleType, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(FOLDER)  # where a script finds its other files
    named: list[str] = []

    class Noting(script.Acceptance):  # type: ignore[name-defined,misc]
        def proved(self, name: str, *nodes: str, **marks: bool) -> None:
            named.extend(nodes)

    script.Acceptance = Noting  # type: ignore[attr-defined]
    spec = importlib.util.spec_from_file_location(f"accept_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    for node in named:
        file, *names = node.partition("[")[0].split("::")
        place = FOLDER.parents[1] / file
        assert place.exists(), node
        assert all(f"def {name}(" in place.read_text() for name in names), node
