"""Targets: modules, files, packages, attributes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentrt.cli.report import TargetError, UserCodeError
from agentrt.cli.target import load_target
from agentrt.errors import ConfigError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    path, modules = sys.path[:], set(sys.modules)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def write(path: str, text: str = "") -> None:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_a_module_in_a_package_by_its_dotted_name() -> None:
    write("pkg/__init__.py")
    write("pkg/deep.py", "class Box:\n    class Inner: ...\n")
    target = load_target("pkg.deep:Box.Inner")
    assert target.value.__qualname__ == "Box.Inner"
    assert target.module.__name__ == "pkg.deep"


def test_a_file_in_a_package_may_import_its_siblings() -> None:
    write("src/pkg/__init__.py")
    write("src/pkg/other.py", "value = 7\n")
    write("src/pkg/main.py", "from .other import value\n")
    assert load_target("src/pkg/main.py:value").value == 7
    assert load_target("src/pkg/__init__.py:other").module.__name__ == "pkg"


def test_a_file_may_import_what_stands_beside_it() -> None:
    write("scripts/beside.py", "value = 8\n")
    write("scripts/script.py", "from beside import value\n")
    assert load_target("scripts/script.py:value").value == 8


def test_a_file_with_the_name_of_another_module_is_loaded_all_the_same() -> None:
    write("json.py", "value = 9\n")
    target = load_target("json.py:value")
    assert (target.value, target.module.__name__) == (9, "agentrt_target_json")
    assert sys.modules["agentrt_target_json"] is target.module


def test_a_file_that_could_be_no_module_is_loaded_all_the_same() -> None:
    write("my-agent.py", "value = 10\n")
    assert load_target("my-agent.py:value").value == 10


def test_a_file_is_loaded_once() -> None:
    write("once.py", "value = object()\n")
    assert load_target("once.py:value").value is load_target("./once.py:value").value


def test_a_file_that_fails_leaves_no_half_module() -> None:
    write("half.py", "value = 1\nraise OSError\n")
    with pytest.raises(UserCodeError):
        load_target("half.py:value")
    assert "half" not in sys.modules


def test_the_app_dir_comes_first_on_the_path() -> None:
    write("lib/inside.py", "value = 11\n")
    assert load_target("inside:value", app_dir="lib").value == 11
    assert sys.path[0] == str(Path("lib").resolve())


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("pkg.deeep:x", "there is no module 'pkg.deeep': the package 'pkg' has none of that name; did you mean pkg.d"),
        ("pkg.zzz:x", "there is no module 'pkg.zzz': the package 'pkg' has none of that name"),
        ("pkg/deep:x", "there is no file pkg/deep; did you mean pkg/deep.py?"),
        ("pkg/:x", "pkg/ is a folder; a target is a file or a module with an attribute"),
        ("nowhere/deep.py:x", "there is no file nowhere/deep.py: there is no folder nowhere in "),
        ("pkg/zzz.py:x", "there is no file pkg/zzz.py in "),
        ("zzz:x", "there is no module 'zzz' in this folder or among the installed packages; the modules here are:"),
        ("pkg.deep:nothing", "pkg.deep has nothing named 'nothing', and no agent either: that is a class with"),
        ("pkg.deep:valeu", "pkg.deep has nothing named 'valeu'; did you mean pkg.deep:value?"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_said_with_what_may_be_meant(target: str, message: str) -> None:
    write("pkg/__init__.py")
    write("pkg/deep.py", "value = 1\n")
    with pytest.raises(TargetError) as raised:
        load_target(target)
    assert str(raised.value).startswith(message)


def test_a_module_hidden_by_pythons_own_is_found_as_a_file() -> None:
    write("types.py", "class Mine:\n    async def run(self, message): ...\n")
    with pytest.raises(TargetError, match=r"for the file in this folder say types\.py:Mine"):
        load_target("types:Mine")
    assert load_target("types.py:Mine").value.__name__ == "Mine"


def test_a_long_list_of_modules_helps_nobody() -> None:
    for number in range(12):
        write(f"module{number}.py")
    with pytest.raises(TargetError, match="--app-dir names another folder"):
        load_target("zzz:x")


def test_a_property_that_fails_is_the_users_bug() -> None:
    write("lazy.py", "def __getattr__(name):\n    raise OSError('no disk')\n")
    with pytest.raises(UserCodeError, match="cannot read value of lazy") as raised:
        load_target("lazy:value")
    assert isinstance(raised.value.__cause__, OSError)


def test_a_mistake_of_usage_at_import_has_its_line() -> None:
    write("uses.py", "\nfrom agentrt.errors import ConfigError\nraise ConfigError('not so')\n")
    with pytest.raises(ConfigError, match=r"^uses\.py:3: not so$"):
        load_target("uses:x")


@pytest.mark.parametrize("target", ["", ":", "x", "x:", ":x", "a.b", "x.py"])
def test_a_text_without_both_parts_is_no_target(target: str) -> None:
    with pytest.raises(ConfigError):
        load_target(target)


@pytest.mark.parametrize("path", ["README.md", "./README.md", "bin/tool"])
def test_a_file_that_is_no_python_file_is_called_that(path: str) -> None:
    write(path, "# Hello")
    with pytest.raises(TargetError, match=f"^{path} is not a Python file: its name must end in .py$"):
        load_target(f"{path}:A")
