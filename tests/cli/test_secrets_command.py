"""`agentrt secrets get | list | check`: what they say, and that no value is in it."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Generator
from pathlib import Path

import pytest

from agentrt.secrets import text_file
from agentrt.security.audit.log_file import LogFile
from agentrt.security.audit.verify import verify
from tests.cli.commands import environment
from tests.cli.conftest import Command
from tests.cli.screen import Screen

VALUE = "the-value-of-the-secret"

CONFIG = """\
[secrets]
provider = "file"
path = "folder"

[models.openai]
api_key = "secret://token"

[models.work]
plugin = "openai"
api_key = "secret://env/AGENTRT_TEST_NONE"
headers = { authorization = "Bearer secret://file/db#password" }
"""


@pytest.fixture
def files(project: Path) -> Path:
    """The folder of secrets of `CONFIG`, which is the configuration."""
    folder = project / "folder"
    folder.mkdir()
    (folder / "token").write_text(VALUE)
    (folder / "db").write_text(json.dumps({"password": VALUE}))
    (project / "agentrt.toml").write_text(CONFIG)
    return folder


def test_get_says_that_a_secret_is_there_and_shows_a_mask(files: Path, command: Command) -> None:
    for reference in ("token", "secret://token", "secret://file/db"):
        ended = command("secrets", "get", reference)
        assert (ended.code, ended.out) == (0, "**********\n")
        assert ended.err == f"{reference} is there; --reveal shows its value on a terminal\n"


def test_get_reveals_on_a_terminal(files: Path, project: Path) -> None:
    screen = Screen("secrets", "get", "secret://token", "--reveal", cwd=project, env=environment())
    assert VALUE in screen.wait_for(VALUE)
    assert screen.process.wait(45) == 0


def test_get_reveals_nowhere_else(files: Path, project: Path, command: Command) -> None:
    ended = command("secrets", "get", "token", "--reveal")
    assert (ended.code, ended.out) == (2, "")
    assert "--reveal prints a secret on a terminal only" in ended.err
    into_a_file = project / "out"
    screen = Screen("secrets", "get", "token", "--reveal", cwd=project, env=environment(), stdout=into_a_file)
    screen.wait_for("on a terminal only")
    assert screen.process.wait(45) == 2
    assert into_a_file.read_text() == ""


def test_get_tells_what_is_wrong(files: Path, command: Command) -> None:
    ended = command("secrets", "get", "none")
    assert (ended.code, ended.out) == (1, "")
    assert "secret://file/none: there is no such file" in ended.err
    ended = command("secrets", "get", "secret://file/db#user")
    assert (ended.code, ended.out) == (1, "")
    assert "the secret has no key 'user'" in ended.err
    assert command("secrets", "get", "secret://a?b=1").code == 2
    assert command("secrets", "get", "secret://vualt/a").code == 2


def test_list_prints_references(files: Path, command: Command) -> None:
    assert command("secrets", "list").out == "secret://file/db\nsecret://file/token\n"
    assert command("secrets", "list", "--prefix", "t").out == "secret://file/token\n"
    ended = command("secrets", "list", "--provider", "file", "--prefix", "x")
    assert (ended.code, ended.out) == (0, "")
    assert ended.err == "the provider file has no secrets that begin with 'x'\n"


@pytest.fixture
def service(project: Path) -> Generator[Path]:
    """An audit log that another process is writing."""
    log = LogFile(project / "audit.jsonl", rotation=None)
    log.open()
    yield log.path
    log.close()


@pytest.mark.parametrize("path", ["audit.jsonl", "audit-{pid}.jsonl"])
def test_what_is_read_beside_a_service_stands_in_a_log_of_the_commands(
    files: Path, command: Command, service: Path, path: str
) -> None:
    (files.parent / "agentrt.toml").write_text(CONFIG + f"[audit]\npath = '{path}'\nstrict = true\n")
    assert command("secrets", "get", "token").code == 0
    assert command("secrets", "list").code == 0
    assert command("secrets", "check").code == 1
    [log] = files.parent.glob("audit-*.jsonl")
    assert (log.name == "audit-commands.jsonl") is (path == "audit.jsonl")
    report = verify(log)
    assert (report.ok, report.closed) == (True, True)
    read = [json.loads(line).get("resource") for line in log.read_text().splitlines()]
    for reference in ("secret://file/token", "secret://env/AGENTRT_TEST_NONE", "secret://file/db"):
        assert reference in read
    assert service.read_text() == ""


def test_check_shows_the_state_of_every_reference(files: Path, command: Command) -> None:
    ended = command("secrets", "check")
    assert ended.code == 1
    assert ended.out == (
        "ok       secret://token                  file  models.openai.api_key (agentrt.toml:6)\n"
        "missing  secret://env/AGENTRT_TEST_NONE  env   models.work.api_key (agentrt.toml:10)\n"
        "         the environment variable AGENTRT_TEST_NONE is not set\n"
        "ok       secret://file/db#password       file  models.work.headers.authorization (agentrt.toml:11)\n"
    )
    assert ended.err == "error: 1 of 3 references cannot be followed\n"
    assert VALUE not in ended.out + ended.err


def test_check_is_content_when_all_can_be_followed(
    files: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTRT_TEST_NONE", VALUE)
    ended = command("secrets", "check", "--json")
    assert (ended.code, ended.err) == (0, "")
    found = json.loads(ended.out)
    assert [(one["state"], one["provider"]) for one in found] == [
        ("ok", "file"),
        ("ok", "env"),
        ("ok", "file"),
    ]
    assert found[0]["setting"] == "models.openai.api_key"
    assert VALUE not in ended.out


def test_check_names_every_way_to_fail(project: Path, command: Command) -> None:
    (project / "folder").mkdir()
    (project / "folder" / "text").write_text(VALUE)
    references = ["secret://file/text#key", "secret://nowhere/a", "secret://a?b=1", "secret://file/none"]
    (project / "agentrt.toml").write_text(
        "[secrets.providers.file]\npath = 'folder'\n[models.x]\nplugin = 'openai'\n[models.x.headers]\n"
        + "".join(f"h{number} = '{reference}'\n" for number, reference in enumerate(references))
    )
    ended = command("secrets", "check", "--json")
    assert ended.code == 1
    states = {one["reference"]: one["state"] for one in json.loads(ended.out)}
    assert list(states.values()) == ["invalid", "unusable", "unusable", "missing"]


@pytest.mark.parametrize(("code", "state"), [(errno.EACCES, "denied"), (errno.EIO, "unavailable")])
def test_check_tells_a_refusal_from_an_outage(
    files: Path, command: Command, monkeypatch: pytest.MonkeyPatch, code: int, state: str
) -> None:
    opened = text_file._open

    def fails(path: str) -> int:
        if path.startswith(str(files)):
            raise OSError(code, os.strerror(code))
        return opened(path)

    (files.parent / "agentrt.toml").write_text(CONFIG + "[pipeline.secret]\nretry = false\n")
    monkeypatch.setattr(text_file, "_open", fails)
    ended = command("secrets", "check", "--json")
    assert ended.code == 1
    assert [one["state"] for one in json.loads(ended.out)] == [state, "missing", state]


def test_without_references_there_is_nothing_to_check(project: Path, command: Command) -> None:
    ended = command("secrets", "check")
    assert (ended.code, ended.out) == (0, "")
    assert ended.err == "the configuration has no references to secrets\n"
    assert json.loads(command("secrets", "check", "--json").out) == []


def test_without_a_command_it_is_the_help(command: Command) -> None:
    ended = command("secrets")
    assert ended.code == 2
    for name in ("get", "list", "check", "scan"):
        assert f"\n  {name} " in ended.err


@pytest.mark.parametrize("name", ["get", "list", "check"])
def test_the_short_help_is_the_one_of_the_group(name: str, command: Command) -> None:
    from agentrt.cli.secrets import COMMANDS, secrets

    made = secrets.get_command(None, name)  # type: ignore[arg-type]
    assert made is not None
    assert made.short_help == COMMANDS[name][1]
    assert command("secrets", name, "--help").code == 0
