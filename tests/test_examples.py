"""Every example runs, as its docstring says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


def run(*arguments: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def agentrt(*arguments: str, cwd: Path = ROOT) -> str:
    return run("-m", "agentrt", *arguments, cwd=cwd)


def example(name: str) -> str:
    return str(EXAMPLES / name)


def test_every_example_is_run_here() -> None:
    text = Path(__file__).read_text()
    assert [path.name for path in sorted(EXAMPLES.glob("*.py")) if path.name not in text] == []


def test_echo() -> None:
    assert agentrt("run", example("echo.py") + ":Echo", "hello") == "hello\n"


def test_the_assistant_is_explained_without_its_model() -> None:
    # It needs the real model: the acceptance script and tests/cli run it; here its pipelines are built.
    drawn = agentrt("explain", example("assistant.py") + ":Assistant")
    assert "circuit_breaker" in drawn


def test_pipeline_alone() -> None:
    assert run(example("pipeline_alone.py")).splitlines()[0] == "charged 42"


def test_middleware() -> None:
    assert agentrt("run", example("middleware.py") + ":Assistant", "hello") == "hello\n"


def test_plain_agent() -> None:
    out = agentrt("run", example("plain_agent.py") + ":Researcher", "the moon")
    assert out == "Summary of a page about the moon\nSummary of another page about the moon\n"


def test_streaming() -> None:
    assert agentrt("run", "--stream", example("streaming.py") + ":count", "3").split() == ["0", "1", "2"]
    assert run(example("streaming.py")).splitlines()[-1] == "to be or not to be"


@pytest.mark.slow
def test_fallback_with_its_backoff() -> None:
    assert agentrt("run", example("fallback.py") + ":Assistant", "hello") == "hello\n"


def test_fallback_says_why() -> None:
    quick = ("--set", "pipeline.retry.initial_delay=0.01")
    lines = agentrt("run", "--jsonl", *quick, example("fallback.py") + ":Assistant", "hello").splitlines()
    events = [json.loads(line) for line in lines]
    (fallback,) = [event for event in events if event["type"] == "fallback"]
    assert (fallback["old"], fallback["new"]) == ("scripted:down", "scripted:echo")
    assert "the first provider is down" in fallback["error"]
    assert events[-1]["degraded"] is True


def test_structured_output() -> None:
    quick = ("--set", "pipeline.retry.initial_delay=0.01")
    out = agentrt("run", *quick, example("structured_output.py") + ":Extractor", "Ada Lovelace, 1815")
    assert json.loads(out) == {"name": "Ada Lovelace", "born": 1815}


def test_memory_survives_the_process(tmp_path: Path) -> None:
    agentrt("run", example("memory.py") + ":Notebook", "remember: the cat is called Ada", cwd=tmp_path)
    out = agentrt("run", example("memory.py") + ":Notebook", "what is the cat called?", cwd=tmp_path)
    assert out == "the cat is called Ada\n"


def test_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREETING_TOKEN", "abc")
    out = agentrt("run", example("secrets.py") + ":Guarded", "hello")
    assert out == "hello, with ********** of 3 characters\n"


def test_file_agent() -> None:
    out = agentrt("run", example("file_agent.py") + ":Clerk", "tidy up")
    assert out == "- [ ] buy apples\n- [ ] call Ada\n"


def test_audit() -> None:
    assert run(example("audit.py")).splitlines() == [
        "Done.",
        "as it was written: True - the order in clear: False",
        "after an edit: False - edited",
        "cut off: False - truncated",
    ]


def test_encryption() -> None:
    assert run(example("encryption.py")).splitlines() == [
        "Ada likes red wine",
        "decryption failed",
        "2 moved to 2026",
        "Ada likes red wine",
    ]


def test_boundaries() -> None:
    found, echoed, passed, refused, counted, guarded = run(example("boundaries.py")).splitlines()
    assert found == """[("O'Brien",)] []"""
    assert echoed == "a && b; $(touch owned)"
    assert passed == "passed"
    assert refused.startswith("refused (parent): the path has '..' at character 0")
    assert counted == "[(2,)]"
    assert guarded.startswith(
        "the statement calls the function 'load_extension', which is not among those allowed"
    )


def test_telemetry() -> None:
    lines = run(example("telemetry.py")).splitlines()
    assert lines[0] == "Who wrote Dubliners?"
    assert [line for line in lines if line.startswith("span")] == [
        "span invoke_agent Librarian in nothing",
        "span look up in invoke_agent Librarian",
        "span chat echo in look up",
    ]
    assert "metric books.requested {'shelf': 'fiction'} 1 {book}" in lines
    (told,) = [line for line in lines if line.startswith("log info looked up")]
    assert "'title': 'Dubliners'" in told
    assert "'password': '[redacted]'" in told
    assert lines[-1].startswith("printer: 3 spans delivered, 2 logs delivered, ")


def test_logging_json(tmp_path: Path) -> None:
    out = agentrt(
        *("run", "--set", 'log.outputs=["./shop.jsonl"]', example("logging_json.py") + ":Shop", "3 apples"),
        cwd=tmp_path,
    )
    assert out == "3 apples are on their way\n"
    everything = [json.loads(line) for line in (tmp_path / "shop.jsonl").read_text().splitlines()]
    lines = [line for line in everything if line["logger"] != "agentrt.runs"]  # that one started
    assert [(line["logger"], line["message"]) for line in lines] == [
        ("agentrt.run", "order received"),
        ("stock", "12 apples left"),
        ("logging_json", "parcel packed"),
    ]
    assert lines[0]["context"] == {"number": 3, "what": "apples"}
    assert lines[2]["context"] == {"warehouse": "north"}
    assert {line["agent"] for line in lines} == {"Shop"}
    assert len({line["run"] for line in lines}) == 1


def test_rate_limits() -> None:
    assert run(example("rate_limits.py")).splitlines() == [
        "pages about moon; pages about sun; then it was told to wait 60 s",
        "newsletter: sent",
        "newsletter: not again for 60 minutes",
        "waited 0.0",
        "waited 0.1",
        "['200 hello', '200 hello', '429 too many requests']",
    ]
