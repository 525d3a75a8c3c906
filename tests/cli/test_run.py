"""`agentrt run` with one message, as a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.commands import agentrt, environment
from tests.cli.conftest import Command


def test_the_answer_is_all_there_is_on_stdout(project: Path) -> None:
    ended = agentrt("run", "agents:Echo", "hello there", cwd=project)
    assert (ended.code, ended.out, ended.err) == (0, "hello there\n", "")


@pytest.mark.parametrize(
    "target", ["agents:Echo", "agents.py:Echo", "./agents.py:Echo", "agents:make", "agents:words"]
)
def test_a_target_is_a_module_or_a_file_and_a_class_a_factory_or_a_generator(
    project: Path, target: str
) -> None:
    ended = agentrt("run", target, "hi", cwd=project)
    assert (ended.code, ended.out.strip(), ended.err) == (0, "hi", "")


def test_a_factory_is_called_with_the_flag(project: Path) -> None:
    assert agentrt("run", "agents:make", "hi", "--factory", cwd=project).out == "hi\n"


def test_a_structured_output_is_json(project: Path) -> None:
    ended = agentrt("run", "agents:structured", "hi", cwd=project)
    assert json.loads(ended.out) == {"said": "hi", "n": [1, 2]}


def test_no_output_prints_nothing(project: Path) -> None:
    ended = agentrt("run", "agents:nothing", "hi", cwd=project)
    assert (ended.code, ended.out) == (0, "")


def test_python_m_and_the_console_script_are_the_same(project: Path) -> None:
    script = Path(sys.executable).with_name("agentrt")
    done = subprocess.run(
        [script, "run", "agents:Echo", "hi"], cwd=project, env=environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "hi\n", "")


# --- the message from stdin ----------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [(), ("-",)])
def test_stdin_that_is_no_terminal_is_the_message(project: Path, arguments: tuple[str, ...]) -> None:
    ended = agentrt("run", "agents:Echo", *arguments, cwd=project, stdin="two\nlines\n")
    assert (ended.code, ended.out) == (0, "two\nlines\n")


def test_a_message_wins_over_stdin(project: Path) -> None:
    assert agentrt("run", "agents:Echo", "argument", cwd=project, stdin="stdin").out == "argument\n"


def test_a_megabyte_is_a_message_like_any_other(project: Path) -> None:
    text = "0123456789abcde\n" * 65536
    ended = agentrt("run", "agents:Echo", cwd=project, stdin=text)
    assert (ended.code, ended.out, ended.err) == (0, text, "")


def test_a_byte_order_mark_is_not_part_of_the_message(project: Path) -> None:
    assert agentrt("run", "agents:Echo", cwd=project, stdin=b"\xef\xbb\xbfhi").out == "hi\n"


@pytest.mark.parametrize("message", ["", "  \n"])
def test_an_empty_message_is_wrong_usage(project: Path, message: str) -> None:
    ended = agentrt("run", "agents:Echo", message, cwd=project)
    wanted = "error: the message is empty: give it as an argument, or on stdin\n"
    assert (ended.code, ended.out, ended.err) == (2, "", wanted)
    assert agentrt("run", "agents:Echo", cwd=project, stdin=message) == ended


def test_binary_stdin_is_refused(project: Path) -> None:
    ended = agentrt("run", "agents:Echo", cwd=project, stdin=b"abc\x89PNG\r\n\x1a\n")
    assert ended.code == 2
    assert ended.err == (
        "error: stdin is not text: byte 3 is 0x89, which is no UTF-8; a message is UTF-8 text\n"
    )


def test_nul_bytes_are_refused(project: Path) -> None:
    ended = agentrt("run", "agents:Echo", cwd=project, stdin=b"ab\0c")
    assert ended.code == 2
    assert ended.err == "error: stdin is not text: byte 2 is NUL; a message is UTF-8 text\n"


def test_an_argument_that_is_no_utf8_is_refused(project: Path) -> None:
    command = [os.fsencode(sys.executable), b"-m", b"agentrt", b"run", b"agents:Echo", b"caf\xe9"]
    done = subprocess.run(command, cwd=project, env=environment(PYTHONUTF8="1"), capture_output=True)
    assert done.returncode == 2
    assert b"the message is not UTF-8 text" in done.stderr


def test_stdin_that_is_closed_is_told(project: Path) -> None:
    command = f"{sys.executable} -m agentrt run agents:Echo <&-"
    done = subprocess.run(command, shell=True, cwd=project, env=environment(), capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "error: there is no message, and stdin is closed: give it as an argument, or on stdin\n"
    )


def test_stdin_that_cannot_be_read_is_told(project: Path) -> None:
    command = f"{sys.executable} -m agentrt run agents:Echo 0>only-for-writing"
    done = subprocess.run(command, shell=True, cwd=project, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: cannot read the message from stdin: Bad file descriptor\n"


# --- streams and events --------------------------------------------------------------------------------


def test_stream_shows_the_text_once(project: Path) -> None:
    ended = agentrt("run", "agents:Bot", "--stream", "one two three", cwd=project)
    assert (ended.code, ended.out, ended.err) == (0, "one two three\n", "")


def test_a_stream_that_breaks_leaves_its_text_one_error_and_exit_code_1(project: Path) -> None:
    (project / "script.json").write_text(
        '[{"chunks": ["partial ", "text"], "error": {"message": "the connection was lost"}}, "again"]'
    )
    ended = agentrt("run", "agents:Bot", "-m", "scripted:script.json", "--stream", "hi", cwd=project)
    assert (ended.code, ended.out) == (1, "partial text\n")
    assert ended.err == "error: the connection was lost\n"


def test_text_that_is_returned_but_was_not_streamed_follows_at_the_end(project: Path) -> None:
    assert agentrt("run", "agents:Echo", "--stream", "hi", cwd=project).out == "hi\n"
    assert json.loads(agentrt("run", "agents:structured", "--stream", "hi", cwd=project).out)["said"] == "hi"


def test_jsonl_prints_every_event_as_a_line(project: Path) -> None:
    ended = agentrt("run", "agents:Bot", "--jsonl", "one two", cwd=project)
    lines = [json.loads(line) for line in ended.out.splitlines()]
    assert [line["type"] for line in lines] == [
        "run_started",
        "model_started",
        "text_delta",
        "text_delta",
        "model_finished",
        "run_finished",
    ]
    assert lines[-1]["output"] == "one two"
    assert (ended.code, ended.err) == (0, "")


def test_jsonl_ends_in_run_failed_when_the_agent_fails(project: Path) -> None:
    ended = agentrt("run", "agents:Boom", "--jsonl", "hi", cwd=project)
    last = json.loads(ended.out.splitlines()[-1])
    assert (ended.code, last["type"], last["error"], last["message"]) == (
        1,
        "run_failed",
        "ValueError",
        "no: hi",
    )
    assert ended.err.endswith("error: Boom failed: ValueError: no: hi\n")


def test_jsonl_ends_in_run_failed_when_nothing_could_be_run(project: Path) -> None:
    ended = agentrt("run", "agents:Nope", "--jsonl", "hi", cwd=project)
    (line,) = ended.out.splitlines()
    assert (ended.code, json.loads(line)["type"], json.loads(line)["error"]) == (
        3,
        "run_failed",
        "TargetError",
    )
    assert ended.err.count("error:") == 1


def test_jsonl_shows_why_the_answer_came_from_the_fallback(project: Path) -> None:
    (project / "down.json").write_text(
        '[{"error": {"type": "permanent", "fault": "target", "message": "no"}}]'
    )
    ended = agentrt(
        "run", "agents:Bot", "-m", "scripted:down.json", "-m", "scripted:echo", "--jsonl", "hi", cwd=project
    )
    lines = {line["type"]: line for line in map(json.loads, ended.out.splitlines())}
    assert lines["fallback"]["old"] == "scripted:down.json"
    assert lines["fallback"]["new"] == "scripted:echo"
    assert lines["fallback"]["error"] == "PermanentError: no"
    assert lines["run_finished"]["degraded"] is True


def test_stream_and_jsonl_exclude_each_other(project: Path) -> None:
    ended = agentrt("run", "agents:Bot", "--stream", "--jsonl", "hi", cwd=project)
    assert (ended.code, ended.out) == (2, "")
    assert "exclude each other" in ended.err


# --- options -------------------------------------------------------------------------------------------


def test_timeout_ends_the_run_with_exit_code_124(project: Path) -> None:
    ended = agentrt("run", "agents:Slow", "--timeout", "0.2", "30", cwd=project)
    assert (ended.code, ended.out) == (124, "")
    assert "cleaned up" in ended.err
    assert "the run's deadline of 0.2 s is over" in ended.err


def test_the_timeout_of_the_configuration_counts_too(project: Path) -> None:
    (project / "agentrt.toml").write_text("[run]\ntimeout = 0.2\n")
    assert agentrt("run", "agents:Slow", "30", cwd=project).code == 124
    assert agentrt("run", "agents:Slow", "--timeout", "30", "0.3", cwd=project).out == "finished\n"


def test_set_wins_over_the_environment_and_that_over_the_file(project: Path) -> None:
    (project / "agentrt.toml").write_text('[agent]\nmodel = "scripted:file.json"\n')
    file = agentrt("run", "agents:Bot", "hi", cwd=project)
    assert "file.json" in file.err
    env = {"AGENTRT_AGENT__MODEL": "scripted:env.json"}
    assert "env.json" in agentrt("run", "agents:Bot", "hi", cwd=project, env=env).err
    option = "agent.model=scripted:echo"
    assert agentrt("run", "agents:Bot", "hi", "--set", option, cwd=project, env=env).out == "hi\n"


def test_config_names_another_file(project: Path) -> None:
    (project / "other.toml").write_text('[agent]\nmodel = "scripted:other.json"\n')
    assert "other.json" in agentrt("run", "agents:Bot", "hi", "--config", "other.toml", cwd=project).err


def test_an_environment_file_never_overrides(project: Path) -> None:
    (project / ".env").write_text("AGENTRT_AGENT__MODEL=scripted:from-file.json\n")
    assert "from-file.json" in agentrt("run", "agents:Bot", "hi", "--env-file", ".env", cwd=project).err
    env = {"AGENTRT_AGENT__MODEL": "scripted:echo"}
    assert agentrt("run", "agents:Bot", "hi", "--env-file", ".env", cwd=project, env=env).out == "hi\n"


def test_app_dir_is_where_modules_come_from(project: Path) -> None:
    outside = project / "elsewhere"
    outside.mkdir()
    assert agentrt("run", "agents:Echo", "hi", cwd=outside).code == 3
    assert agentrt("run", "agents:Echo", "hi", "--app-dir", "..", cwd=outside).out == "hi\n"


def test_configure_is_called_before_the_first_pipeline_is_built(project: Path) -> None:
    (project / "tuned.py").write_text(
        "import sys\n"
        "from agents import Bot\n"
        "async def loud(call, call_next):\n"
        "    print('loud', call.target, file=sys.stderr)\n"
        "    return await call_next(call)\n"
        "def configure(runtime):\n"
        "    runtime.use(loud, kind='model')\n"
    )
    ended = agentrt("run", "tuned:Bot", "hi", cwd=project)
    assert (ended.code, ended.out, ended.err) == (0, "hi\n", "loud scripted:echo\n")


def test_logs_go_to_stderr_from_the_level_on_that_is_configured(project: Path) -> None:
    (project / "chatty.py").write_text(
        "import logging\n"
        "from agentrt import current\n"
        "async def chatty(message):\n"
        "    current().log('info', 'from the agent')\n"
        "    logging.getLogger('library').warning('from a library')\n"
        "    return message\n"
    )
    quiet = agentrt("run", "chatty:chatty", "hi", cwd=project)
    assert (quiet.out, quiet.err) == ("hi\n", "WARNING library: from a library\n")
    loud = agentrt("run", "chatty:chatty", "hi", "--set", "log.level=info", cwd=project)
    assert loud.out == "hi\n"
    assert " INFO agentrt.run: from the agent\n" in loud.err


def test_a_limit_ends_the_run_with_exit_code_1(project: Path) -> None:
    ended = agentrt("run", "agents:Bot", "hi", "--set", "run.limits.tokens=1", cwd=project)
    assert ended.code == 0  # the call that goes beyond it is the last
    (project / "two.py").write_text(
        "from agentrt import current\n"
        "async def two(message):\n"
        "    for _ in range(2):\n"
        "        await current().model(message, model='scripted:echo')\n"
    )
    ended = agentrt("run", "two:two", "hi", "--set", "run.limits.model_calls=1", cwd=project)
    assert ended.code == 1
    assert ended.err.startswith("error: this run may use 1 model call and wants another")
    assert "Traceback" not in ended.err


# --- stdout that cannot be written ---------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--stream", "--jsonl", "--timeout=60"])
def test_a_broken_pipe_ends_quietly(project: Path, option: str) -> None:
    command = (
        f"{sys.executable} -m agentrt run agents:words {option} "
        f'"$(seq 200000 | tr "\\n" " " | head -c 100000)" | true; echo ${{PIPESTATUS[0]}}'
    )
    done = subprocess.run(
        ["bash", "-c", command], cwd=project, env=environment(), capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("141\n", "")


def test_a_broken_pipe_of_the_help_is_quiet_too(project: Path) -> None:
    command = f"{sys.executable} -m agentrt run --help | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=project, env=environment(), capture_output=True, text=True
    )
    assert done.stdout in ("141\n", "0\n")  # 0 if the reader was not gone in time
    assert done.stderr == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_a_full_disk_is_told(project: Path) -> None:
    command = f"{sys.executable} -m agentrt run agents:Echo hi > /dev/full"
    done = subprocess.run(
        ["bash", "-c", command], cwd=project, env=environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (
        1,
        "error: cannot write to stdout: No space left on device\n",
    )


def test_stdout_that_is_closed_does_no_harm(project: Path) -> None:
    command = f"{sys.executable} -m agentrt run agents:Echo hi >&-"
    done = subprocess.run(
        ["bash", "-c", command], cwd=project, env=environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_characters_that_the_terminal_has_not_are_escaped(project: Path) -> None:
    env = {"PYTHONIOENCODING": "ascii"}
    ended = agentrt("run", "agents:Echo", cwd=project, stdin="caf\u00e9", env=env)
    assert (ended.code, ended.out) in ((0, "caf\\xe9\n"), (0, "caf\u00e9\n"))


# --- start-up ------------------------------------------------------------------------------------------


def test_run_loads_nothing_that_it_does_not_use(project: Path) -> None:
    code = (
        "import sys\n"
        "from agentrt.cli.main import main\n"
        "try:\n"
        "    main(['run', 'agents:Echo', 'hi'])\n"
        "finally:\n"
        "    heavy = {'rich', 'loguru', 'httpx2', 'importlib.metadata', 'opentelemetry', 'anyio', 'tomllib'}\n"
        "    print(sorted(heavy & set(sys.modules)))\n"
    )
    env = {name: value for name, value in environment().items() if not name.startswith("COV")}
    done = subprocess.run([sys.executable, "-c", code], cwd=project, env=env, capture_output=True, text=True)
    assert done.stdout == "hi\n[]\n"


LEAVING = """
import asyncio, sys
from agentrt import Agent
from agentrt.models.scripted import Scripted, Step

async def leaves(message):
    sys.exit(5)

async def says_why(message):
    await asyncio.sleep(0)
    sys.exit("enough")

async def leave() -> str:
    sys.exit()

class Tool(Agent):
    model = "scripted:script.json"
    tools = [leave]

class Closing:
    async def __aenter__(self): ...
    async def __aexit__(self, *error): sys.exit(6)
    async def run(self, message): return message

class Opening(Closing):
    async def __aenter__(self): sys.exit(7)

async def asks(message, ctx):
    return (await ctx.model(message, model="scripted:echo")).text

async def asks_any(message, ctx):
    return (await ctx.model(message)).text
"""


@pytest.fixture
def leaving(project: Path) -> Path:
    (project / "leaving.py").write_text(LEAVING)
    (project / "script.json").write_text('[{"tool_calls": [{"name": "leave", "arguments": {}}]}]')
    return project


@pytest.mark.parametrize(
    ("agent", "call", "out"),
    [
        ("leaves", "sys.exit(5)", ""),
        ("says_why", "sys.exit('enough')", ""),
        ("Tool", "sys.exit()", ""),
        ("Closing", "sys.exit(6)", "hi\n"),
        ("Opening", "sys.exit(7)", ""),
    ],
)
def test_sys_exit_in_an_agent_is_a_failure_of_it(
    leaving: Path, command: Command, agent: str, call: str, out: str
) -> None:
    ended = command("run", f"leaving:{agent}", "hi")
    assert (ended.code, ended.out, ended.err) == (1, out, f"error: {agent} called {call}\n")


def test_sys_exit_ends_the_events_with_run_failed(leaving: Path, command: Command) -> None:
    ended = command("run", "leaving:leaves", "hi", "--jsonl")
    assert ended.code == 1
    assert [json.loads(line)["type"] for line in ended.out.splitlines()] == ["run_started", "run_failed"]


@pytest.mark.parametrize(
    ("agent", "model", "warning"),
    [
        ("agents:Echo", "scripted:echo", "warning: --model had no effect: Echo asked no model\n"),
        (
            "leaving:asks",
            "scripted:one",
            "warning: --model had no effect: asks chose its models itself: scripted:echo\n",
        ),
        ("leaving:asks_any", "scripted:echo", ""),
        ("agents:Bot", "scripted:echo", ""),
    ],
)
def test_a_model_that_is_not_asked_is_told(
    leaving: Path, command: Command, agent: str, model: str, warning: str
) -> None:
    ended = command("run", agent, "hi", "-m", model)
    assert (ended.code, ended.out, ended.err) == (0, "hi\n", warning)
