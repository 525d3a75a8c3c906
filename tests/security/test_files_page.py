"""docs/files.md says what there is: its code runs, and its rules are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agentrt.security import files as module

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "files.md").read_text()


def test_the_code_of_the_page_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "today.md").write_text("buy apples")
    first, second = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, object] = {}
    exec(first.replace("/srv/workspace", str(tmp_path)), names)
    assert capsys.readouterr().out == "2026 directory 0\ntoday.md file 10\n"
    assert (names["text"], names["head"]) == ("buy apples", b"buy apples")
    exec(second.replace("/srv/workspace", str(tmp_path)), names)
    assert [tool.name for tool in names["Clerk"].tools] == ["read_file", "write_file", "list_files"]  # type: ignore[attr-defined]


def test_the_page_lists_every_rule_and_every_error() -> None:
    sources = "".join(path.read_text() for path in Path(str(module.__file__)).parent.glob("*.py"))
    rules = set(re.findall(r'Blocked\(\s*"([a-z-]+)"', sources))
    table = re.findall(
        r"^\| ((?:`[a-z-]+`(?:, )?)+) \|", PAGE.partition("| rule | refuses |")[2], re.MULTILINE
    )
    assert set(re.findall(r"`([a-z-]+)`", " ".join(table))) == rules
    errors = {
        name for name in module.__all__ if name in ("AccessDenied", "FileMissing", "NotText", "FileError")
    }
    assert all(f"| `{name}` |" in PAGE for name in errors)
    assert len(errors) == 4


def test_the_page_lists_every_option() -> None:
    import inspect

    options = inspect.signature(module.FileAccess).parameters
    assert [name for name in list(options)[2:] if f"| `{name}` |" not in PAGE] == []
