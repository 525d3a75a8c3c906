"""`agentrt secrets scan`: keys that were planted, and what it says of them."""

from __future__ import annotations

import json
import os
import random
import string
import subprocess
import sys
from pathlib import Path

import pytest

from agentrt.cli import scan_files
from agentrt.cli.scanner import ALLOW_FILE, AllowList, text_of
from agentrt.errors import ConfigError
from tests.cli.commands import agentrt
from tests.cli.conftest import Command

ROOT = Path(__file__).parent.parent.parent

LETTERS = string.ascii_letters + string.digits


def _made_up(count: int, characters: str = LETTERS) -> str:
    return "".join(_chance.choice(characters) for _ in range(count))


_chance = random.Random(42)

# Made here, so that this file itself has none.
PLANTED = {
    "github-pat": "token = 'ghp_" + _made_up(36) + "'",
    "openai-api-key": 'OPENAI_API_KEY="sk-proj-' + _made_up(74) + "T3Blbk" + "FJ" + _made_up(74) + '"',
    "anthropic-api-key": "key: sk-ant-api03-" + _made_up(93) + "AA",
    "slack-bot-token": "xoxb-"
    + _made_up(12, string.digits)
    + "-"
    + _made_up(12, string.digits)
    + "-"
    + _made_up(24),
    "stripe-access-token": '{"stripe": "sk_live_' + _made_up(24) + '"}',
    "gcp-api-key": "AIza" + _made_up(35),
    "vault-service-token": "VAULT_TOKEN=hvs." + _made_up(95),
    "npm-access-token": "//registry/:_authToken=npm_" + _made_up(36),
    "generic-api-key": "api_key = '" + _made_up(32) + "'",
    "generic-password": 'password = "' + _made_up(20) + '"',
    "generic-credential-uri": "DSN=postgres://ada:" + _made_up(16) + "@db.acme.io/orders",
    "aws-access-token": "id = 'AKIA"
    + _made_up(16, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567")
    + "'\nsecret = '"
    + _made_up(40)
    + "'",
    # agentrt:allow-secret (the key between the two lines is made up)
    "private-key": "-----BEGIN RSA PRIVATE KEY-----\n"
    + "\n".join(_made_up(64) for _ in range(12))
    + "\n-----END RSA PRIVATE KEY-----",
}


def _parts(planted: str) -> list[str]:
    """Pieces of what was planted that no output may have: any 12 characters in a row of its long words."""
    words = [
        word for line in planted.splitlines() for word in line.replace("'", '"').split('"') if len(word) >= 16
    ]
    return [word[at : at + 12] for word in words for at in range(4, len(word) - 12)]


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "init.defaultBranch=main")
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def repository(project: Path) -> Path:
    git(project, "init", "-q")
    git(project, "add", ".")
    git(project, "commit", "-qm", "agents")
    return project


@pytest.mark.parametrize("rule", PLANTED)
def test_a_planted_key_is_found_and_not_shown(rule: str, project: Path, command: Command) -> None:
    (project / "conf").mkdir()
    (project / "conf" / "settings.txt").write_text(f"# one\n# two\n{PLANTED[rule]}\n# four\n")
    ended = command("secrets", "scan")
    assert ended.code == 1
    assert f"conf/settings.txt:3  {rule} (" in ended.out
    assert "error: 1 secret in 2 files" in ended.err
    as_json = command("secrets", "scan", "--json")
    assert as_json.code == 1
    (found,) = json.loads(as_json.out)
    assert (found["path"], found["line"], found["rule"]) == ("conf/settings.txt", 3, rule)
    assert set(found) == {"path", "line", "column", "rule", "confidence", "description", "preview"}
    everything = ended.out + ended.err + as_json.out + as_json.err
    assert [part for part in _parts(PLANTED[rule]) if part in everything] == []


def test_a_clean_tree(project: Path, command: Command) -> None:
    ended = command("secrets", "scan")
    assert (ended.code, ended.out, ended.err) == (0, "", "no secrets in 1 file\n")
    ended = command("secrets", "scan", "--json", ".", "agents.py")
    assert (ended.code, json.loads(ended.out), ended.err) == (0, [], "")


def test_short_passwords_are_not_shown_at_all(project: Path, command: Command) -> None:
    (project / "a.py").write_text('password = "q7Kfz!p2Lw"\n')
    ended = command("secrets", "scan", "a.py")
    assert ended.out == "a.py:1  generic-password (low)  ******** (10 characters)\n"
    assert "error: 1 secret in 1 file\n" in ended.err


def test_findings_of_little_confidence_can_be_left_out(project: Path, command: Command) -> None:
    (project / "a.py").write_text(PLANTED["generic-password"] + "\n" + PLANTED["github-pat"] + "\n")
    assert len(command("secrets", "scan").out.splitlines()) == 2
    assert command("secrets", "scan", "--confidence", "high").out.startswith(
        "a.py:2  github-pat (high)  ghp_***"
    )


def test_a_reference_is_no_secret(project: Path, command: Command) -> None:
    (project / "agentrt.toml").write_text('password = "secret://vault/databases/orders#password"\n')
    assert command("secrets", "scan").code == 0


# --- what is allowed -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        [f"{PLANTED['github-pat']}  # agentrt:allow-secret"],
        ["# agentrt:allow-secret", PLANTED["github-pat"]],
        ["<!-- agentrt:allow-secret: an example -->", PLANTED["private-key"]],
        [f"{PLANTED['github-pat']}  # betterleaks:allow"],
        [f"{PLANTED['github-pat']}  # gitleaks:allow"],
    ],
)
def test_a_comment_allows_a_secret(lines: list[str], project: Path, command: Command) -> None:
    (project / "a.py").write_text("\n".join(["first = 1", *lines, "last = 1"]))
    assert command("secrets", "scan").code == 0


def test_a_comment_allows_no_other_secret(project: Path, command: Command) -> None:
    marked = f"{PLANTED['github-pat']}  # agentrt:allow-secret"
    (project / "a.py").write_text(f"{PLANTED['gcp-api-key']}\n{marked}\n\n{PLANTED['stripe-access-token']}\n")
    ended = command("secrets", "scan")
    assert [line.split("  ")[0] for line in ended.out.splitlines()] == ["a.py:1", "a.py:4"]


def test_a_file_allows_paths_and_rules(
    repository: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one.txt", "two.txt", "tests/three.txt", "tests/deep/four.txt", "vectors/five.txt"):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text(PLANTED["github-pat"] + "\n" + PLANTED["generic-password"] + "\n")
    (repository / ALLOW_FILE).write_text(
        "# what is no secret\n\n./one.txt\ntests/*  generic-password  # made up\nvectors/\n"
    )
    places = [line.split(" (")[0] for line in command("secrets", "scan").out.splitlines()]
    expected = [
        "tests/deep/four.txt:1  github-pat",
        "tests/three.txt:1  github-pat",
        "two.txt:1  github-pat",
        "two.txt:2  generic-password",
    ]
    assert places == expected
    # The patterns are from the top of the repository, wherever the command is given.
    monkeypatch.chdir(repository / "tests")
    places = [line.split(" (")[0] for line in command("secrets", "scan").out.splitlines()]
    assert places == ["deep/four.txt:1  github-pat", "three.txt:1  github-pat"]
    assert command("secrets", "scan", "../one.txt", str(repository / "vectors")).code == 0
    (repository / "link").symlink_to(repository / "vectors")
    monkeypatch.chdir(repository / "link")
    assert command("secrets", "scan").code == 0


def test_an_allow_list_that_cannot_be_read_as_one_is_told(project: Path, command: Command) -> None:
    (project / ALLOW_FILE).write_text("a.py\nb.py generic-password and more\n")
    ended = command("secrets", "scan")
    assert ended.code == 2
    assert f"{ALLOW_FILE}:2: an entry is a pattern of paths and perhaps a rule" in ended.err


def test_patterns() -> None:
    allowed = AllowList.parse("docs/*.md\nsrc\nconf/*  jwt", where="here")
    assert allowed.allows("docs/a.md", "jwt")
    assert allowed.allows("docs/deep/a.md", "jwt")
    assert allowed.allows("src/a/b.py", "jwt")
    assert allowed.allows("conf/x", "jwt")
    assert not allowed.allows("conf/x", "github-pat")
    assert not allowed.allows("srcs/a", "jwt")
    assert not allowed.allows("other/docs/a.md", "jwt")


# --- which files ---------------------------------------------------------------------------------------


def plant(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(PLANTED["github-pat"] + "\n")


def test_what_git_ignores_is_left_out_unless_it_is_named(repository: Path, command: Command) -> None:
    (repository / ".gitignore").write_text(".env\nbuild/\n")
    for name in (".env", "build/out.txt", "new.txt", "tracked.txt"):
        plant(repository / name)
    git(repository, "add", "tracked.txt")
    found = [line.split(":")[0] for line in command("secrets", "scan").out.splitlines()]
    assert found == ["new.txt", "tracked.txt"]
    assert command("secrets", "scan", ".env").out.startswith(".env:1  github-pat")
    assert command("secrets", "scan", "build").code == 0


def test_without_a_repository_every_file_is_scanned_and_no_link_followed(
    project: Path, tmp_path: Path, command: Command
) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    plant(outside / "secret.txt")
    plant(project / "deep" / "er" / "secret.txt")
    (project / "out").symlink_to(outside)
    (project / "file").symlink_to(outside / "secret.txt")
    (project / "loop").symlink_to("loop")
    os.mkfifo(project / "fifo")
    ended = command("secrets", "scan")
    assert [line.split(":")[0] for line in ended.out.splitlines()] == ["deep/er/secret.txt"]
    assert "was not scanned" not in ended.err
    assert command("secrets", "scan", "file").code == 1  # named, it is meant


def test_binary_files_are_left_out_and_other_encodings_are_read(project: Path, command: Command) -> None:
    key = PLANTED["github-pat"]
    (project / "binary").write_bytes(b"\x7fELF\0\0" + key.encode())
    assert command("secrets", "scan").code == 0
    (project / "utf16.txt").write_text(f"one\n{key}", encoding="utf-16")
    (project / "bom.txt").write_text(key, encoding="utf-8-sig")
    (project / "latin1.txt").write_bytes("naïve\n".encode("latin-1") + key.encode())
    (project / "late-nul.txt").write_bytes(b"x\n" * 5000 + b"\0\n" + key.encode())
    found = [line.split("  ")[0] for line in command("secrets", "scan").out.splitlines()]
    assert found == ["bom.txt:1", "late-nul.txt:5002", "latin1.txt:2", "utf16.txt:2"]
    assert text_of(b"\0") is None


def test_a_file_that_is_too_large_is_told(project: Path, command: Command) -> None:
    (project / "large.txt").write_text(PLANTED["github-pat"] + "\n" + "x" * 2000)
    ended = command("secrets", "scan", "--max-bytes", "2000")
    assert ended.code == 0
    assert "large.txt was not scanned: it is larger than 2,000 bytes" in ended.err


def test_a_name_cannot_forge_a_line(project: Path, command: Command) -> None:
    plant(project / "a\nb.txt")
    plant(project / os.fsdecode(b"\xff.txt"))
    ended = command("secrets", "scan")
    assert [line.split("  ")[0] for line in ended.out.splitlines()] == ["a\\nb.txt:1", "\\udcff.txt:1"]
    assert len(json.loads(command("secrets", "scan", "--json").out)) == 2


def test_what_cannot_be_scanned_is_an_error(project: Path, command: Command) -> None:
    assert command("secrets", "scan", "nothing").err.startswith("error: nothing: No such file or directory")
    assert command("secrets", "scan", "nothing").code == 2
    assert command("secrets", "scan", "--confidence", "some").code == 2
    (project / "rules.toml").write_text("rules = 1")
    ended = command("secrets", "scan", "--rules", "rules.toml")
    assert ended.code == 2
    assert "betterleaks: " in ended.err


def test_rules_of_your_own(project: Path, command: Command) -> None:
    (project / "rules.toml").write_text(
        "[extend]\nuseDefault = true\n[[rules]]\nid = 'acme'\ndescription = 'A key of Acme'\n"
        "regex = '''ACME-[0-9]{6}'''\nkeywords = ['acme-']\nconfidence = 'high'\n"
    )
    (project / "a.txt").write_text("x ACME-123456\n" + PLANTED["github-pat"])
    found = [
        line.split("  ")[1] for line in command("secrets", "scan", "--rules", "rules.toml").out.splitlines()
    ]
    assert found == ["acme (high)", "github-pat (high)"]


@pytest.mark.usefixtures("project")
def test_without_the_extra_it_says_what_to_install(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "betterleaks", None)
    ended = command("secrets", "scan")
    assert ended.code == 2
    assert "pip install 'agentrt[scan]'" in ended.err


# --- what is staged ------------------------------------------------------------------------------------


def test_what_is_staged_counts_not_the_work_tree(repository: Path, command: Command) -> None:
    plant(repository / "staged.txt")
    git(repository, "add", "staged.txt")
    (repository / "staged.txt").write_text("taken out again, but not staged\n")
    plant(repository / "agents.py")  # in the work tree only
    ended = command("secrets", "scan", "--staged")
    assert (ended.code, ended.out.count("\n")) == (1, 1)
    assert ended.out.startswith("staged.txt:1  github-pat")
    assert command("secrets", "scan", "--staged", "agents.py").code == 0
    git(repository, "add", "staged.txt")
    ended = command("secrets", "scan", "--staged")
    assert (ended.code, ended.err) == (0, "no secrets in 1 file\n")


def test_odd_things_in_the_index(repository: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(repository / "a\nb 'é.txt")
    (repository / "large.bin").write_bytes(b"x" * 3_000_000)
    (repository / "link").symlink_to("/etc/hostname")
    (repository / "empty").touch()
    git(repository, "rm", "-q", "agents.py")
    git(repository, "add", ".")
    (repository / "deep").mkdir()
    monkeypatch.chdir(repository / "deep")
    ended = command("secrets", "scan", "--staged", "--max-bytes", "2000000")
    assert ended.code == 1
    assert ended.out.startswith("a\\nb 'é.txt:1  github-pat") or ended.out.startswith("a\\nb '\\xe9.txt:1")
    assert ended.out.count("\n") == 1
    assert "large.bin was not scanned: it is larger than 2,000,000 bytes" in ended.err


def test_the_first_commit_of_a_repository_is_scanned(project: Path, command: Command) -> None:
    git(project, "init", "-q")
    plant(project / "a.txt")
    git(project, "add", "a.txt")
    assert command("secrets", "scan", "--staged").out.startswith("a.txt:1  github-pat")


def test_the_allow_list_is_taken_as_it_is_staged(repository: Path, command: Command) -> None:
    plant(repository / "a.txt")
    git(repository, "add", "a.txt")
    (repository / ALLOW_FILE).write_text("a.txt\n")
    assert command("secrets", "scan", "--staged").code == 1
    git(repository, "add", ALLOW_FILE)
    assert command("secrets", "scan", "--staged").code == 0


@pytest.mark.usefixtures("project")
def test_staged_needs_a_repository(command: Command) -> None:
    ended = command("secrets", "scan", "--staged")
    assert ended.code == 2
    assert "--staged needs a git repository" in ended.err


def test_a_repository_runs_no_program_of_its_own(repository: Path, command: Command) -> None:
    ran = repository / "ran"
    monitor = repository / "monitor"
    monitor.write_text(f"#!/bin/sh\ntouch '{ran}'\n")
    monitor.chmod(0o755)
    git(repository, "config", "core.fsmonitor", str(monitor))
    command("secrets", "scan")
    command("secrets", "scan", "--staged")
    assert not ran.exists()


def test_a_commit_in_the_place_of_the_allow_list_is_not_shown(repository: Path, command: Command) -> None:
    """`git show` would run the repository's text converter."""
    ran = repository / "ran"
    (repository / ".gitattributes").write_text("* diff=theirs\n")
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "more")
    git(repository, "config", "diff.theirs.textconv", f"touch '{ran}'; cat")
    commit = git(repository, "rev-parse", "HEAD").strip()
    git(repository, "update-index", "--add", "--cacheinfo", f"160000,{commit},{ALLOW_FILE}")
    plant(repository / "a.txt")
    git(repository, "add", "a.txt")
    assert command("secrets", "scan", "--staged").out.startswith("a.txt:1  github-pat")
    assert not ran.exists()


def test_what_is_missing_is_not_fetched(repository: Path, command: Command) -> None:
    """A repository names the program that a fetch runs."""
    ran = repository / "ran"
    plant(repository / "a.txt")
    git(repository, "add", "a.txt")
    blob = git(repository, "rev-parse", ":a.txt").strip()
    (repository / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    for key, value in {
        "core.repositoryFormatVersion": "1",
        "extensions.partialClone": "origin",
        "remote.origin.promisor": "true",
        "remote.origin.url": str(repository),
        "remote.origin.uploadpack": f"touch '{ran}'; git-upload-pack",
        "protocol.file.allow": "always",
    }.items():
        git(repository, "config", key, value)
    ended = command("secrets", "scan", "--staged")
    assert (ended.code, "git cannot read what is staged as a.txt" in ended.err) == (2, True)
    assert not ran.exists()


def test_an_index_leads_nowhere_else(repository: Path, tmp_path: Path, command: Command) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    plant(outside / "secret.txt")
    plant(repository / "link" / "secret.txt")
    git(repository, "add", "link")
    (repository / "link" / "secret.txt").unlink()
    (repository / "link").rmdir()
    (repository / "link").symlink_to(outside)
    assert git(repository, "ls-files", "link") == "link/secret.txt\n"
    ended = command("secrets", "scan")
    assert (ended.code, ended.out) == (0, "")


@pytest.mark.parametrize("name", ["../{}/secret.txt", "/{}/secret.txt", "a//../../{}/secret.txt"])
def test_names_that_lead_out_are_not_followed(
    name: str, project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plant(tmp_path / "outside" / "secret.txt")
    inside = tmp_path / "inside"
    inside.mkdir()
    place = str(tmp_path / "outside").lstrip("/") if name.startswith("/") else "outside"
    monkeypatch.setattr(scan_files, "_known_to_git", lambda folder: [name.format(place)])
    assert list(scan_files.files_below(str(inside), max_bytes=1000)[1]) == []


@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_an_allow_list_is_a_file_and_no_other_file_is_shown(
    kind: str, project: Path, tmp_path: Path, command: Command
) -> None:
    (tmp_path / "credentials").write_text("[default]\npassword = correct-horse\n")
    if kind == "link":
        (project / ALLOW_FILE).symlink_to(tmp_path / "credentials")
    else:
        os.mkfifo(project / ALLOW_FILE)
    ended = command("secrets", "scan")
    assert ended.code == 2
    assert f"{ALLOW_FILE}: it must be a regular file" in ended.err
    assert "horse" not in ended.err


def test_an_allow_list_is_bounded(project: Path, command: Command) -> None:
    (project / ALLOW_FILE).write_text("# " + "x" * scan_files.ALLOW_FILE_BYTES)
    ended = command("secrets", "scan")
    assert (ended.code, f"{ALLOW_FILE}: it is larger than" in ended.err) == (2, True)


def test_a_wrong_line_of_the_allow_list_is_not_shown() -> None:
    with pytest.raises(ConfigError, match="here:1: an entry") as caught:
        AllowList.parse("password = correct-horse", where="here")
    assert "horse" not in str(caught.value)


def test_what_git_complains_of_is_told(
    repository: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / ".git" / "config").write_text("[core\n")
    ended = command("secrets", "scan")
    assert ended.code == 2
    assert "git ls-files failed in .: fatal: bad config" in ended.err


def test_without_git_every_file_is_scanned(
    repository: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / ".gitignore").write_text("build/\n")
    plant(repository / "build" / "out.txt")
    plant(repository / ".git" / "not-ours.txt")
    monkeypatch.setattr(scan_files, "GIT", ("there is no such program",))
    assert command("secrets", "scan").out.startswith("build/out.txt:1  github-pat")
    ended = command("secrets", "scan", "--staged")
    assert (ended.code, "--staged needs a git repository" in ended.err) == (2, True)


def test_a_repository_that_lacks_what_is_staged_is_told(repository: Path, command: Command) -> None:
    plant(repository / "a.txt")
    git(repository, "add", "a.txt")
    blob = git(repository, "rev-parse", ":a.txt").strip()
    (repository / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    ended = command("secrets", "scan", "--staged")
    assert ended.code == 2
    assert "git cannot read what is staged as a.txt" in ended.err


def test_an_allow_list_that_is_a_folder_is_told(project: Path, command: Command) -> None:
    (project / ALLOW_FILE).mkdir()
    ended = command("secrets", "scan")
    assert ended.code == 2
    assert f"{ALLOW_FILE}: it must be a regular file" in ended.err


def test_git_that_hangs_is_not_waited_for(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_files, "GIT_SECONDS", 0.05)

    def hang(*arguments: object, **options: object) -> None:
        raise subprocess.TimeoutExpired("git", 0.05)

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(ConfigError, match=r"git ls-files did not end in 0\.05 s"):
        scan_files.files_below(str(repository), max_bytes=10)


HOOK = f"#!/bin/sh\nexec '{sys.executable}' -m agentrt secrets scan --staged\n"


def test_as_a_plain_git_hook_it_stops_the_commit(repository: Path) -> None:
    hook = repository / ".git" / "hooks" / "pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(HOOK)
    hook.chmod(0o755)
    plant(repository / "a.txt")
    git(repository, "add", "a.txt")

    def commit(*more: str) -> subprocess.CompletedProcess[str]:
        identity = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org")
        return subprocess.run(
            ["git", *identity, "commit", "-m", "a key", *more],
            cwd=repository,
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )

    refused = commit()
    assert refused.returncode != 0
    assert "a.txt:1  github-pat (high)  ghp_********" in refused.stdout + refused.stderr
    (repository / "a.txt").write_text("no key\n")
    # `commit -a` stages into an index of its own, which the hook is told of.
    accepted = commit("-a")
    assert accepted.returncode == 0, accepted.stderr


def test_the_hook_of_pre_commit_names_what_there_is() -> None:
    text = (ROOT / ".pre-commit-hooks.yaml").read_text()
    assert "entry: agentrt secrets scan --staged\n" in text
    assert "pass_filenames: false\n" in text


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="only a repository knows which files are its own")
def test_this_repository_has_no_secrets() -> None:
    ended = agentrt("secrets", "scan", cwd=ROOT)
    assert ended.code == 0, ended.out
