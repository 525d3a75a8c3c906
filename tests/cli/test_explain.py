"""`agentrt explain` and its drawing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentrt.cli.onion import ASCII, Onion, Option, Pen, Stage, Strokes, as_json, draw
from tests.cli.conftest import Command

TRAVEL = """
from agentrt import Agent, tool

@tool(idempotent=True, timeout=10)
async def weather(city: str) -> str: ...

@tool(idempotent=True, timeout=10)
async def news(city: str) -> str: ...

@tool
async def book(city: str) -> str: ...

class Timing:
    def __init__(self, *, slow=2.0):
        self.slow = slow
    async def __call__(self, call, call_next):
        return await call_next(call)

class Travel(Agent):
    model = ["scripted:one", "scripted:two"]
    tools = [weather, news, book]

def configure(runtime):
    runtime.use(Timing(slow=3.0), kind="model", outside="retry")
"""


@pytest.fixture
def travel(project: Path) -> Path:
    (project / "travel.py").write_text(TRAVEL)
    (project / "agentrt.toml").write_text(
        "[pipeline.retry]\nmax_attempts = 5\n[pipeline.tool]\ndeadline = 90\n"
    )
    return project


def test_it_draws_the_onion_from_the_outermost_stage_to_the_call(travel: Path, command: Command) -> None:
    ended = command("explain", "travel:Travel", "--kind", "model")
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[0] == "Travel  travel:Travel"
    assert lines[2] == "model calls · at most 180 s in all · may be repeated"
    names = [line.partition("╭─ ")[2].split(" ")[0] for line in lines if "╭─" in line]
    assert names == ["telemetry", "fallback", "Timing", "retry", "throttle", "circuit_breaker", "timeout"]
    assert lines[-1] == "│ │ │ │ │ │ │ ▶ scripted:one → scripted:two"


@pytest.mark.parametrize("name", ["explain", "check"])
def test_a_stage_for_a_tool_that_is_not_there_is_a_warning(travel: Path, command: Command, name: str) -> None:
    (travel / "typo.py").write_text(TRAVEL.replace('kind="model"', 'tool="wether"'))
    ended = command(name, "typo:Travel", "--set", "agent.model=scripted:echo")
    assert ended.code == 0
    wanted = "the stage Timing is for the tool 'wether', and Travel declares none of that name; did you mean"
    assert wanted in (ended.err if name == "explain" else ended.out)


def test_each_option_has_its_source(travel: Path, command: Command) -> None:
    out = command("explain", "travel:Travel", "--set", "pipeline.model.timeout.idle=7").out
    assert "targets scripted:two  ← the agent's models\n" in out
    assert "max_attempts 5  ← agentrt.toml:2\n" in out
    assert "idle 7 s  ← --set pipeline.model.timeout.idle\n" in out
    assert "attempt 10 s  ← @tool\n" in out
    assert "at most 90 s in all  ← agentrt.toml:4 · " in out
    assert "attempt 60 s · first_item 30 s\n" in out


def test_a_stage_of_the_users_shows_its_place_and_options(travel: Path, command: Command) -> None:
    lines = command("explain", "travel:Travel", "--kind", "model").out.splitlines()
    place = next(index for index, line in enumerate(lines) if "╭─ Timing" in line)
    assert lines[place].endswith("yours, outside retry")
    assert lines[place + 1].endswith("slow 3")


def test_tools_that_are_treated_the_same_share_a_drawing(travel: Path, command: Command) -> None:
    out = command("explain", "travel:Travel", "--kind", "tool").out
    assert "tools weather, news · " in out
    assert "▶ weather(), news()\n" in out
    assert "tool book · at most 90 s in all  ← agentrt.toml:4 · repeated only if nothing was done\n" in out
    assert out.count("▶") == 2


def test_one_tool_alone(travel: Path, command: Command) -> None:
    out = command("explain", "travel:Travel", "--tool", "news").out
    assert "tool news · " in out
    assert "weather" not in out
    ended = command("explain", "travel:Travel", "--tool", "new")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "error: Travel has no tool 'new'; its tools are: weather, news, book\n"


def test_every_kind_is_there_and_no_more(travel: Path, command: Command) -> None:
    out = command("explain", "travel:Travel").out
    assert out.count("▶") == 6
    assert "calls of your own (ctx.call) · no limit in all · repeated only if nothing was done\n" in out
    ended = command("explain", "agents:Echo", "--kind", "model")
    assert (ended.code, ended.err) == (2, "error: Echo declares no model: there is nothing to explain\n")
    assert command("explain", "agents:Echo").out.count("▶") == 3


def test_a_stage_that_is_off_is_not_drawn(travel: Path, command: Command) -> None:
    out = command("explain", "travel:Travel", "--set", "pipeline.retry=false").out
    assert "╭─ retry" not in out
    assert "╭─ fallback" in out


def test_options_that_are_not_set_are_drawn_on_demand(travel: Path, command: Command) -> None:
    assert "window_calls" not in command("explain", "travel:Travel").out
    assert "window_calls off" in command("explain", "travel:Travel", "--all").out


def test_json_has_every_option_with_value_and_source(travel: Path, command: Command) -> None:
    document = json.loads(command("explain", "travel:Travel", "--json").out)
    assert (document["agent"], document["target"]) == ("Travel", "travel:Travel")
    model = document["calls"][0]
    assert (model["kind"], model["targets"], model["deadline_seconds"]) == (
        "model",
        ["scripted:one", "scripted:two"],
        180.0,
    )
    stages = {stage["name"]: stage["options"] for stage in model["stages"]}
    assert stages["retry"]["max_attempts"] == {"value": 5, "source": "agentrt.toml:2"}
    assert stages["circuit_breaker"]["window_calls"] == {"value": None, "source": "default"}
    assert stages["fallback"]["targets"]["value"] == ["scripted:two"]


def test_a_factory_is_explained_too(travel: Path, command: Command) -> None:
    assert command("explain", "agents:make", "--factory").out.startswith("Echo  agents:make\n")


def test_nothing_is_called_and_no_pipeline_is_kept(travel: Path, command: Command) -> None:
    (travel / "touchy.py").write_text(
        "class Touchy:\n"
        "    async def __aenter__(self): raise OSError('opened')\n"
        "    async def __aexit__(self, *error): ...\n"
        "    async def run(self, message): ...\n"
    )
    assert command("explain", "touchy:Touchy").code == 0


# --- the drawing ---------------------------------------------------------------------------------------

ONION = Onion(
    labels=["model"],
    kind="model",
    targets=["a:b"],
    idempotent=True,
    deadline=Option("deadline", 180.0, "default"),
    stages=[
        Stage("telemetry", []),
        Stage(
            "retry",
            [
                Option("max_attempts", 5, "agentrt.toml:3"),
                Option("backoff", "exponential", "default"),
                Option("initial_delay", 1.0, "default"),
            ],
        ),
        Stage("timeout", [Option("attempt", 60.0, "default")]),
    ],
)


def test_the_drawing_is_the_one_in_the_documentation() -> None:
    assert draw(ONION, Pen(Strokes(), 80)) == [
        "model calls · at most 180 s in all · may be repeated",
        "╭─ telemetry",
        "│ ╭─ retry      max_attempts 5  ← agentrt.toml:3",
        "│ │             backoff exponential · initial_delay 1 s",
        "│ │ ╭─ timeout  attempt 60 s",
        "│ │ │ ▶ a:b",
    ]


def test_where_these_characters_are_missing_others_do() -> None:
    assert draw(ONION, Pen(ASCII, 45)) == [
        "model calls, at most 180 s in all, may be repeated",
        ".- telemetry",
        "| .- retry      max_attempts 5  <- agentrt.toml:3",
        "| |             backoff exponential",
        "| |             initial_delay 1 s",
        "| | .- timeout  attempt 60 s",
        "| | | > a:b",
    ]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("attempt", 60.0, "60 s"),
        ("attempt", None, "off"),
        ("failure_rate", 0.5, "0.5"),
        ("gated", True, "yes"),
        ("gated", False, "no"),
        ("targets", ("a", "b"), "a, b"),
        ("targets", (), "none"),
        ("key", len, "len"),
        ("key", OSError, "OSError"),
        ("backoff", "linear", "linear"),
        ("budget", Path("x"), repr(Path("x"))),
    ],
)
def test_values_are_shown_as_people_write_them(name: str, value: object, text: str) -> None:
    assert Option(name, value, "default").text == text


def test_what_json_cannot_say_is_its_text() -> None:
    onion = Onion(
        ["x"],
        "call",
        ["x"],
        False,
        Option("deadline", None, "default"),
        [Stage("s", [Option("on", len, "d")])],
    )
    document = json.loads(as_json([onion], agent="A", target="t"))
    assert document["calls"][0]["stages"][0]["options"]["on"] == {"value": "len", "source": "d"}


def test_configured_fallback_targets_are_what_is_called(travel: Path, command: Command) -> None:
    with (travel / "agentrt.toml").open("a") as file:
        file.write('[pipeline.model.fallback]\ntargets = ["scripted:three"]\n')
    ended = command("explain", "travel:Travel", "--kind", "model")
    assert ended.out.splitlines()[-1] == "│ │ │ │ │ │ │ ▶ scripted:one → scripted:three"
    ended = command("explain", "travel:Travel", "--kind", "model", "--set", "pipeline.model.fallback=false")
    assert ended.out.splitlines()[-1].endswith("▶ scripted:one")
