"""What agentrt and its plugins say is not taken for a secret: advice survives the redaction of logs and traces."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentrt.telemetry.redaction import Redactor

ROOT = Path(__file__).parents[1]
FOLDERS = ["agentrt", *sorted(f"plugins/{folder.name}" for folder in ROOT.glob("plugins/agentrt-*"))]


def written(part: ast.expr) -> str:
    match part:
        case ast.Constant(value=text):
            return str(text)
        case ast.FormattedValue(value=ast.Name(id="reference")):
            return "secret://env/THING"
        case _:
            return "thing"


def sentences(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each string that reads as a sentence: no docstring, no template of code, no pattern. What an
    f-string puts in is the word "thing"; what is named a reference is one."""
    tree = ast.parse(source)
    parts = {
        id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)
    }
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        match node:
            case ast.JoinedStr(values=values):
                text = "".join(map(written, values))
            case ast.Constant(value=str(text)) if id(node) not in parts and id(node) not in docstrings:
                pass
            case _:
                continue
        if " " in text and not text.startswith(("\n", "{")) and "$" not in text:
            yield node.lineno, text


def test_sentences_are_found() -> None:
    source = 'def f():\n    """password: none"""\n    x = "one two"\n    raise E(f"a key: {x} {reference}")\n'

    assert list(sentences(source)) == [(3, "one two"), (4, "a key: thing secret://env/THING")]


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_advice_reads_like_a_secret_and_is_redacted(folder: str) -> None:
    redactor = Redactor()
    files = [file for file in (ROOT / folder).rglob("*.py") if "tests" not in file.parts]

    lost = [
        f"{file.relative_to(ROOT)}:{line}: {text!r} becomes {redactor.text(text)!r}: write ';' in place of ':'"
        for file in files
        for line, text in sentences(file.read_text())
        if redactor.text(text) != text
    ]

    assert files
    assert lost == []
