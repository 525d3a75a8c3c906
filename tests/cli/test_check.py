"""`agentrt check`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agentrt import plugins
from agentrt.security.audit.checkpoints import PublicKey
from agentrt.security.audit.verify import verify
from agentrt.security.keys import new_key
from tests.cli.conftest import Command


def lines(out: str) -> list[tuple[str, str, str]]:
    """State, subject and text of each line."""
    return [tuple(line.split(None, 2)) for line in out.splitlines()]  # type: ignore[misc]


def test_all_is_well(command: Command) -> None:
    ended = command("check", "agents:Bot")
    assert (ended.code, ended.err) == (0, "")
    found = {about: text for state, about, text in lines(ended.out) if state == "ok"}
    assert found["target"] == "agents:Bot is imported"
    assert found["configuration"] == "nothing is set: all defaults"
    assert found["agent"] == "Bot"
    assert found["model"] == "scripted:echo"
    assert found["pipelines"] == "4: model, memory, secret, call"
    assert {state for state, *_ in lines(ended.out)} == {"ok"}


def test_every_problem_is_found_at_once(project: Path, command: Command) -> None:
    ended = command("check", "agents:Bot", "-m", "openai:gpt-5", "-m", "nope:x", "-m", "scripted:echo")
    assert ended.code == 2
    problems = [text for state, _, text in lines(ended.out) if state == "problem"]
    assert problems[0] == "openai: there is no API key; set OPENAI_API_KEY, or api_key in [models.openai]"
    assert problems[1].startswith("model \"nope:x\": there is no plugin 'nope' in the group agentrt.models")
    assert ("ok", "model", "scripted:echo") in lines(ended.out)
    assert ended.err.endswith("problems found\n")


def test_a_mistake_in_the_configuration_does_not_hide_one_in_the_target(command: Command) -> None:
    ended = command("check", "agents:Bott", "--set", "run.timeout=soon")
    assert ended.code == 2
    assert [(state, about) for state, about, _ in lines(ended.out)][:2] == [
        ("problem", "configuration"),
        ("problem", "target"),
    ]
    assert "did you mean agents:Bot?" in ended.out
    assert ended.err == "error: 2 problems found\n"


def test_options_that_only_show_when_something_is_made(project: Path, command: Command) -> None:
    (project / "agentrt.toml").write_text(
        "[run.limits]\nsteps = -1\n[models.openai]\nbase_url = 'nonsense'\n"
    )
    ended = command("check", "agents:Bot")
    problems = {about: text for state, about, text in lines(ended.out) if state == "problem"}
    assert problems["runtime"].startswith("agentrt.toml:2: ")
    assert "https://host/path" in problems["model"]
    (project / "agentrt.toml").write_text("[pipeline.retry]\nmax_attempts = 0\n")
    ended = command("check", "agents:Bot")
    assert ended.code == 2
    assert "agentrt.toml:2: [pipeline.retry] max_attempts must be a whole number" in ended.out


def test_a_key_that_is_there_and_one_by_reference(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    assert command("check", "agents:OpenBot").code == 0
    monkeypatch.setenv("OPENAI_API_KEY", "secret://env/MY_KEY")
    ended = command("check", "agents:OpenBot")
    assert ended.code == 2
    assert "MY_KEY is not set" in ended.out
    monkeypatch.setenv("MY_KEY", "x")
    assert command("check", "agents:OpenBot").code == 0


KEYS = """
[models.openai]
api_key = "secret://env/MY_KEY"
[encryption]
keys = ["secret://env/KEY_2"]
[audit]
path = "audit.jsonl"
strict = true
key = "secret://env/AUDIT_KEY"
signing_key = "./audit.key"
"""


def test_the_keys_of_encryption_and_audit_are_looked_at_and_that_is_recorded(
    project: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "agentrt.toml").write_text(KEYS)
    monkeypatch.setenv("MY_KEY", "x")
    monkeypatch.setenv("KEY_2", "short")
    ended = command("check", "agents:OpenBot")
    assert ended.code == 2
    (about, encryption), audit = [found[1:] for found in lines(ended.out) if found[0] == "problem"]
    assert about == "encryption"
    assert encryption.startswith(
        "agentrt.toml:5: [encryption] keys: secret://env/KEY_2 must be base64 of 32 random"
    )
    assert audit == (
        "audit",
        "secret://env/AUDIT_KEY: the environment variable AUDIT_KEY is not set; it is [audit] key",
    )

    (project / "audit.key").write_text("07" * 32)
    (project / "audit.pub").write_text(
        Ed25519PrivateKey.from_private_bytes(b"\7" * 32).public_key().public_bytes_raw().hex()
    )
    monkeypatch.setenv("KEY_2", new_key(id="2026"))
    monkeypatch.setenv("AUDIT_KEY", "a" * 32)
    ended = command("check", "agents:OpenBot")
    assert ended.code == 0
    assert ("ok", "encryption", "with the key 2026") in lines(ended.out)
    assert ("ok", "audit", "to audit.jsonl, with signed checkpoints") in lines(ended.out)
    assert not (project / "audit.jsonl").exists(), "a service may be writing it"
    read = reads(project / "audit-commands.jsonl")
    assert read.count(("secret://env/MY_KEY", "ok")) == 2, "without the log's own keys as well as with them"
    assert read.count(("secret://env/AUDIT_KEY", "failed")) == 1
    key = PublicKey((project / "audit.pub").read_text(), name="key")
    assert verify(project / "audit-commands.jsonl", public_key=key).ok


def test_secrets_check_needs_no_keys_of_the_audit_log_to_write_it(
    project: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "agentrt.toml").write_text(KEYS)
    monkeypatch.setenv("MY_KEY", "x")
    monkeypatch.setenv("KEY_2", "short")
    ended = command("secrets", "check")
    assert ended.code == 1
    assert "ok       secret://env/MY_KEY     env  models.openai.api_key (agentrt.toml:3)\n" in ended.out
    assert "missing  secret://env/AUDIT_KEY  env  audit.key (agentrt.toml:9)\n" in ended.out
    assert not (project / "audit.jsonl").exists()
    read = reads(project / "audit-commands.jsonl")
    assert ("secret://env/MY_KEY", "ok") in read
    assert ("secret://env/AUDIT_KEY", "failed") in read


UNWRITABLE = "[models.openai]\napi_key = 'secret://env/MY_KEY'\n[audit]\npath = 'file/a.jsonl'\n"


def test_a_log_that_cannot_be_written_is_warned_of_or_keeps_from_looking(
    project: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "agentrt.toml").write_text(UNWRITABLE)
    (project / "file").write_text("")
    monkeypatch.setenv("MY_KEY", "x")
    warned = command("secrets", "check")
    assert warned.code == 0
    assert "a part of the path is a file" in warned.out + warned.err
    refused = command("secrets", "check", "--set", "audit.strict=true")
    assert refused.code != 0
    assert "a part of the path is a file" in refused.out + refused.err


@pytest.mark.parametrize("options", [(), ("--set", "audit.strict=true")])
@pytest.mark.parametrize("agent", ["agents:OpenBot", "agents:Bot"])
def test_a_log_that_could_not_be_written_is_a_problem_with_its_setting(
    project: Path, command: Command, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], agent: str
) -> None:
    (project / "agentrt.toml").write_text(UNWRITABLE)
    (project / "file").write_text("")
    monkeypatch.setenv("MY_KEY", "x")
    before = sorted(project.rglob("*"))
    ended = command("check", agent, *options)
    assert ended.code == 2
    [found] = [text for state, about, text in lines(ended.out) if (state, about) == ("problem", "audit")]
    assert found == (
        f"agentrt.toml:4: [audit] path: the audit log {project}/file/a.jsonl cannot be written: "
        "a part of the path is a file and not a directory: choose another path"
    )
    assert not [text for state, about, text in lines(ended.out) if (state, about) == ("ok", "audit")]
    assert [path for path in sorted(project.rglob("*")) if "__pycache__" not in str(path)] == before


def test_a_log_that_could_be_written_is_ok_and_nothing_is_left_there(project: Path, command: Command) -> None:
    ended = command("check", "agents:Bot", "--set", "audit.path=logs/a.jsonl")
    assert (ended.code, ended.err) == (0, "")
    assert ("ok", "audit", "to logs/a.jsonl, without checkpoints") in lines(ended.out)
    assert not (project / "logs").exists()


def reads(log: Path) -> list[tuple[str, str]]:
    """The reads of secrets that have ended, in a log."""
    found = [json.loads(line) for line in log.read_text().splitlines()]
    return [
        (item["resource"], item["outcome"])
        for item in found
        if item.get("action") == "secret.read" and item["phase"] == "outcome"
    ]


def test_sinks_of_the_audit_log_are_made(project: Path, command: Command) -> None:
    ended = command("check", "agents:Bot", "--set", "audit.path=a.jsonl", "--set", "audit.sinks.fil.path=b")
    assert ended.code == 2
    assert "there is no plugin 'fil' in the group agentrt.audit; did you mean 'file'?" in ended.out


def test_every_secrets_provider_that_is_configured_is_made(project: Path, command: Command) -> None:
    (project / "agentrt.toml").write_text(
        "[secrets.providers.file]\npath = 'secrets'\n[secrets.providers.shared]\nplugin = 'env'\nprefix = 'S_'\n"
    )
    assert ("ok", "secrets", "from env, file, shared") in lines(command("check", "agents:Bot").out)
    (project / "agentrt.toml").write_text(
        "[secrets]\nprovider = 'evn'\n[secrets.providers.file]\npth = 'secrets'\n[secrets.providers.none]\nx = 1\n"
    )
    ended = command("check", "agents:Bot")
    problems = [text for state, _, text in lines(ended.out) if state == "problem"]
    assert (ended.code, ended.err) == (2, "error: 3 problems found\n")
    assert problems[0].startswith("agentrt.toml:2: there is no secrets provider 'evn'; did you mean 'env'?")
    assert problems[1].startswith(
        "agentrt.toml:4: [secrets.providers.file] has no 'pth'; did you mean 'path'?"
    )
    assert problems[2].startswith("agentrt.toml:5: ")
    assert "'none'" in problems[2]


def test_weights_that_are_missing(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentrt.models.weights.find", lambda name: None)
    ended = command("check", "agents:Bot", "-m", "local:smollm2")
    assert ended.code == 2
    assert "agentrt models pull smollm2" in ended.out


def test_a_bug_in_the_users_module_is_one_line_and_its_traceback(project: Path, command: Command) -> None:
    (project / "broken.py").write_text("import agents\n1 / 0\n")
    ended = command("check", "broken:X")
    assert ended.code == 2
    assert ("problem", "target", "cannot import broken: ZeroDivisionError: division by zero") in lines(
        ended.out
    )
    assert f'File "{project}/broken.py", line 2' in ended.err
    assert "importlib" not in ended.err


def test_an_agent_without_run_and_one_that_cannot_be_made(project: Path, command: Command) -> None:
    ended = command("check", "agents:NoRun")
    assert "the class NoRun has no method `run`" in ended.out
    (project / "unmade.py").write_text(
        "class Unmade:\n    def __init__(self): {}['key']\n    async def run(self, message): ...\n"
    )
    ended = command("check", "unmade:Unmade")
    assert ended.code == 2
    assert ("problem", "agent", "KeyError: 'key'") in lines(ended.out)


def test_an_order_that_cannot_work_is_a_warning(project: Path, command: Command) -> None:
    ended = command("check", "agents:Bot", "--set", "pipeline.model.timeout.attempt=500")
    assert ended.code == 0
    (warning,) = [text for state, about, text in lines(ended.out) if state == "warning"]
    assert warning.startswith("model: a first retry could never start")


def test_tools_are_checked(project: Path, command: Command) -> None:
    (project / "tooled.py").write_text(
        "from agentrt import Agent\n"
        "async def add(a: int, b: int) -> int: ...\n"
        "async def weird(a: object) -> int: ...\n"
        "class Good(Agent):\n    model = 'scripted:echo'\n    tools = [add]\n"
        "class Bad(Agent):\n    model = 'scripted:echo'\n    tools = [add, weird]\n"
    )
    assert ("ok", "agent", "Good, with 1 tool") in lines(command("check", "tooled:Good").out)
    ended = command("check", "tooled:Bad")
    assert ended.code == 2
    assert "tool 'weird'" in ended.out


def test_a_broken_plugin_that_nobody_uses_is_a_warning(project: Path, command: Command) -> None:
    (project / "acme-1.2.dist-info").mkdir()
    (project / "acme-1.2.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: acme\nVersion: 1.2\n"
    )
    (project / "acme-1.2.dist-info" / "entry_points.txt").write_text("[agentrt.models]\nacme = acme:Client\n")
    (project / "acme.py").write_text("raise OSError('no licence')\n")
    plugins.forget()
    ended = command("check", "agents:Bot")
    plugins.forget()
    assert ended.code == 0
    wanted = "acme of acme 1.2, group agentrt.models: broken: OSError: no licence"
    assert ("warning", "plugins", wanted) in lines(ended.out)


def test_a_script_that_is_not_there(command: Command) -> None:
    ended = command("check", "agents:Bot", "-m", "scripted:nowhere", "-m", "scripted:nowhere.json")
    assert ended.code == 2
    problems = [text for state, about, text in lines(ended.out) if state == "problem"]
    assert problems[0].startswith("there is no script named 'nowhere'; there are: echo")
    assert "nowhere.json" in problems[1]


def test_json(command: Command) -> None:
    findings = json.loads(command("check", "agents:Bot", "--json").out)
    assert {"state": "ok", "about": "model", "text": "scripted:echo"} in findings


def test_configured_fallback_targets_are_checked(project: Path, command: Command) -> None:
    (project / "agentrt.toml").write_text(
        '[pipeline.model.fallback]\ntargets = ["openai:gpt-5", "scripted:x.json"]\n'
    )
    (project / "x.json").write_text('["hello"]')
    ended = command("check", "agents:Bot")
    assert ended.code == 2
    assert [text for state, about, text in lines(ended.out) if state == "ok" and about == "model"] == [
        "scripted:echo",
        "scripted:x.json",
    ]
    assert "openai: there is no API key" in ended.out


@pytest.mark.parametrize(
    ("declaration", "about", "text"),
    [
        ("model = None", "agent", "Wrong has no model: "),
        ("model = 5", "agent", "Wrong.model must be a name "),
        ("model = [5]", "agent", "`model` of Wrong must be a name or a list of names, not [5]"),
        ("output = 'str'", "agent", "Wrong.output must be a type, not 'str'"),
        ("output = complex", "output", "the output type is `complex`, which has no JSON form"),
        ("limits = 3", "agent", "Wrong.limits must be Limits(...), not 3"),
        ("tools = 3", "agent", "Wrong.tools must be a list of functions"),
        ("tools = [3]", "tools", "3 is a int; a tool is a function or a method"),
        ("instructions = 3", "agent", "Wrong.instructions must be text"),
    ],
)
def test_what_an_agent_declares_is_checked_and_each_mistake_told_once(
    project: Path, command: Command, declaration: str, about: str, text: str
) -> None:
    (project / "wrong.py").write_text(
        f"from agentrt import Agent\nclass Wrong(Agent):\n    model = 'scripted:echo'\n    {declaration}\n"
    )
    ended = command("check", "wrong:Wrong")
    assert ended.code == 2
    ((where, what),) = [(a, t) for state, a, t in lines(ended.out) if state == "problem"]
    assert where == about
    assert what.startswith(text)
    assert ended.err == "error: 1 problem found\n"


def test_an_agent_with_a_run_of_its_own_needs_no_model(project: Path, command: Command) -> None:
    (project / "own.py").write_text(
        "from agentrt import Agent\nclass Own(Agent):\n    async def run(self, message): ...\n"
    )
    assert command("check", "own:Own").code == 0


def test_the_memory_is_checked(project: Path, command: Command) -> None:
    (project / "agentrt.toml").write_text("[memory]\npath = 3\n")
    ended = command("check", "agents:Echo")
    assert ended.code == 2
    assert [about for state, about, _ in lines(ended.out) if state == "problem"] == ["memory"]
    assert not (project / ".agentrt").exists()


def test_a_model_that_cannot_be_made_is_told_once(command: Command) -> None:
    ended = command("check", "agents:Bot", "-m", "nope:x")
    assert len([state for state, *_ in lines(ended.out) if state == "problem"]) == 1
