"""Plugins: found by name, made from options, and each breaking only itself."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import agentrt
from agentrt import plugins
from agentrt.clock import Clock
from agentrt.decode import Where
from agentrt.errors import ConfigError, PluginError, TransientError
from agentrt.secrets.env import Env
from agentrt.telemetry.memory import InMemory

ROOT = Path(__file__).parent.parent
HERE = Where(("secrets",), lambda path: f"agentrt.toml:{len(path)}")

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a distribution with entry points on sys.path."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)

    def put(name: str, version: str, entry_points: str, **modules: str) -> None:
        info = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(entry_points)
        for module, source in modules.items():
            (tmp_path / f"{module}.py").write_text(source)
        plugins.forget()

    yield put
    plugins.forget()
    for module in set(sys.modules) - before:
        if module.startswith("acme"):
            del sys.modules[module]


KEYRING = """
class Keyring:
    def __init__(self, *, service: str = "agentrt", retries: int = 1) -> None:
        if retries < 0:
            raise ValueError("retries must be at least 0")
        self.service = service
    async def get(self, ref): return "x"
"""


def test_the_table_of_built_ins_is_that_of_pyproject() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    offered = {group: dict(names) for group, names in plugins.BUILT_IN.items() if names}
    assert offered == {group: names for group, names in declared.items() if group.startswith("agentrt.")}


def test_a_built_in_is_loaded_by_name() -> None:
    assert plugins.load("agentrt.secrets", "env") is Env
    assert plugins.load("agentrt.telemetry", "memory") is InMemory


def test_a_built_in_costs_no_scan() -> None:
    code = (
        "import sys; from agentrt import plugins; plugins.make('agentrt.secrets', 'env', {'prefix': 'A'});"
        "print('importlib.metadata' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_scan_is_kept_until_it_is_forgotten(install: Install) -> None:
    install("acme", "1.0", "[agentrt.secrets]\none = acme_a:Keyring\n", acme_a=KEYRING)
    plugins.load("agentrt.secrets", "one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("importlib.metadata.distributions", lambda: pytest.fail("scanned again"))
        plugins.load("agentrt.secrets", "one")
    install("acme-two", "1.0", "[agentrt.secrets]\ntwo = acme_a:Keyring\n")
    plugins.load("agentrt.secrets", "two")


def test_a_third_partys_plugin_is_made_from_its_options(install: Install) -> None:
    install(
        "acme-secrets", "2.1", "[agentrt.secrets]\nkeyring = acme_keyring:Keyring\n", acme_keyring=KEYRING
    )
    made = plugins.make("agentrt.secrets", "keyring", {"service": "mine"}, where=HERE)
    assert made.service == "mine"


def test_a_mistake_in_its_options_is_the_configurations(install: Install) -> None:
    install("acme", "1.0", "[agentrt.secrets]\nkeyring = acme_keyring:Keyring\n", acme_keyring=KEYRING)

    def refused(**options: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            plugins.make("agentrt.secrets", "keyring", options, where=HERE)
        return str(caught.value)

    assert refused(servce="x") == (
        "agentrt.toml:2: [secrets] has no 'servce'; did you mean 'service'? There are: retries, service"
    )
    assert refused(retries="x") == "agentrt.toml:2: secrets.retries must be a whole number, not 'x'"
    assert refused(retries=-1) == "agentrt.toml:2: [secrets] retries must be at least 0"


def test_an_unknown_name_lists_what_exists() -> None:
    with pytest.raises(PluginError) as caught:
        plugins.load("agentrt.models", "opnai", where=HERE)
    message = str(caught.value)
    assert message.startswith("agentrt.toml:1: there is no plugin 'opnai' in the group agentrt.models; ")
    assert message.endswith("did you mean 'openai'? There are: anthropic, local, openai, scripted")


def test_an_empty_group_has_none_and_an_unknown_group_is_named() -> None:
    with pytest.raises(PluginError, match=r"no plugin 'x' in the group agentrt.adapters; there are: none$"):
        plugins.load("agentrt.adapters", "x")
    with pytest.raises(PluginError, match=r"no plugin group 'agentrt.secret'; there are: agentrt.secrets, "):
        plugins.load("agentrt.secret", "env")


@pytest.mark.parametrize(
    ("target", "source", "cause"),
    [
        ("acme_m:Keyring", "import acme_missing", "ModuleNotFoundError: No module named 'acme_missing'"),
        ("acme_m:Keyring", "1/0", "ZeroDivisionError: division by zero"),
        ("acme_m:Keyring", "raise SystemExit(3)", "SystemExit: 3"),
        ("acme_m:Keyring", "def f(:", "SyntaxError: "),
        ("acme_m:Keyring", "", "AttributeError: module 'acme_m' has no attribute 'Keyring'"),
        ("acme_m:made", "made = 3", "TypeError: its entry point acme_m:made names 3, which is not a class"),
        ("acme_m", "", "which is not a class"),
    ],
)
def test_a_plugin_that_cannot_be_loaded_is_named_with_its_cause(
    install: Install, target: str, source: str, cause: str
) -> None:
    install("acme-x", "0.3", f"[agentrt.secrets]\nkeyring = {target}\n", acme_m=source)
    with pytest.raises(PluginError) as caught:
        plugins.load("agentrt.secrets", "keyring", where=HERE)
    message = str(caught.value)
    assert message.startswith(
        "agentrt.toml:1: the plugin 'keyring' of the group agentrt.secrets, from acme-x 0.3, cannot be loaded: "
    )
    assert cause in message
    assert caught.value.__cause__ is not None
    # and breaks only itself
    assert plugins.load("agentrt.secrets", "env") is Env


def test_a_plugin_whose_constructor_fails_is_named_with_its_cause(install: Install) -> None:
    source = "class Bad:\n    def __init__(self, *, a: int = 0): raise OSError('no socket')\n"
    install("acme", "1.0", "[agentrt.secrets]\nbad = acme_bad:Bad\n", acme_bad=source)
    with pytest.raises(
        PluginError, match=r"'bad' .* from acme 1.0, cannot be made: OSError: no socket"
    ) as caught:
        plugins.make("agentrt.secrets", "bad", {}, where=HERE)
    assert isinstance(caught.value.__cause__, OSError)


def test_a_plugin_that_is_not_made_from_options_is_named(install: Install) -> None:
    source = "class Bad:\n    def __init__(self, path): ...\n"
    install("acme", "1.0", "[agentrt.secrets]\nbad = acme_bad:Bad\n", acme_bad=source)
    with pytest.raises(
        PluginError, match=r"from acme 1.0, cannot be made: acme_bad.Bad .* 'path' is not keyword-only"
    ):
        plugins.make("agentrt.secrets", "bad", {}, where=HERE)


def test_two_distributions_with_the_same_name_must_be_told_apart(install: Install) -> None:
    install("acme", "1.0", "[agentrt.secrets]\nkeyring = acme_a:Keyring\n", acme_a=KEYRING)
    install("acme-fork", "2.0", "[agentrt.secrets]\nkeyring = acme_b:Keyring\n", acme_b=KEYRING)
    with pytest.raises(PluginError) as caught:
        plugins.load("agentrt.secrets", "keyring")
    message = str(caught.value)
    assert "acme 1.0" in message
    assert "acme-fork 2.0" in message
    assert "'keyring@acme-fork'" in message
    assert plugins.load("agentrt.secrets", "keyring@acme-fork").__module__ == "acme_b"
    states = {p.source: p.state for p in plugins.list_plugins() if p.name == "keyring"}
    assert states["acme 1.0"] == "shadowed: acme-fork 2.0 has the name, too; choose it as 'keyring@acme'"
    assert states["acme-fork 2.0"].startswith("shadowed: acme 1.0 has the name")


def test_agentrts_own_name_is_its_own_and_another_can_be_chosen(install: Install) -> None:
    install("acme", "1.0", "[agentrt.secrets]\nenv = acme_a:Keyring\n", acme_a=KEYRING)
    assert plugins.load("agentrt.secrets", "env") is Env
    assert plugins.load("agentrt.secrets", "env@acme").__module__ == "acme_a"
    states = [(p.distribution, p.state) for p in plugins.list_plugins() if p.name == "env"]
    assert states == [
        ("agentrt", "ok"),
        ("acme", f"shadowed: agentrt {agentrt.__version__} has the name; choose it as 'env@acme'"),
    ]


def test_the_list_has_every_plugin_with_version_and_state(install: Install) -> None:
    install(
        "acme",
        "1.0",
        "[agentrt.secrets]\nkeyring = acme_a:Keyring\nbroken = acme_nothing:X\n[console_scripts]\nx = y:z\n",
        acme_a=KEYRING,
    )
    listed = {(p.group, p.name): p for p in plugins.list_plugins()}
    own = listed["agentrt.secrets", "env"]
    assert (own.source, own.target, own.state) == (
        f"agentrt {agentrt.__version__}",
        "agentrt.secrets.env:Env",
        "ok",
    )
    assert listed["agentrt.secrets", "keyring"].state == "ok"
    assert listed["agentrt.secrets", "keyring"].source == "acme 1.0"
    assert listed["agentrt.secrets", "broken"].state == (
        "broken: ModuleNotFoundError: No module named 'acme_nothing'"
    )
    assert ("console_scripts", "x") not in listed
    assert {group for group, _ in listed} <= set(plugins.GROUPS)


def test_broken_metadata_of_something_else_is_passed_over(install: Install, tmp_path: Path) -> None:
    install("acme", "1.0", "[agentrt.secrets]\nkeyring = acme_a:Keyring\n", acme_a=KEYRING)
    broken = tmp_path / "broken-1.dist-info"
    broken.mkdir()
    (broken / "entry_points.txt").write_bytes(b"[agentrt.secrets]\nx = \xff\xfe\n")
    plugins.forget()
    assert plugins.load("agentrt.secrets", "keyring").__name__ == "Keyring"


# --- opening and closing ---------------------------------------------------------------------------------


class Host:
    """A host as the runtime gives one."""

    clock: Clock
    log: Any = None

    async def call(self, kind: str, target: str, fn: Any, /, *, idempotent: bool = False) -> Any:
        return await fn()

    async def secret(self, reference: str, /) -> str:
        return reference


class Opened:
    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.host: Any = None
        self.closed = False

    async def open(self, host: Any) -> None:
        if self.error is not None:
            raise self.error
        self.host = host

    async def aclose(self) -> None:
        self.closed = True


async def opened(plugin: Any) -> None:
    await plugins.open_plugin("agentrt.secrets", "env", plugin, Host())


@pytest.mark.asyncio
async def test_open_and_aclose_are_called_if_they_are_there() -> None:
    plugin = Opened()
    await opened(plugin)
    assert isinstance(plugin.host, Host)
    await plugins.close_plugin(plugin)
    assert plugin.closed
    await opened(object())
    await plugins.close_plugin(object())


@pytest.mark.asyncio
async def test_a_plugin_that_cannot_be_opened_is_named() -> None:
    with pytest.raises(PluginError, match=r"'env' .* cannot be opened: OSError: refused"):
        await opened(Opened(OSError("refused")))


@pytest.mark.asyncio
@pytest.mark.parametrize("error", [TransientError("down"), ConfigError("no url"), asyncio.CancelledError()])
async def test_errors_that_mean_something_are_left_alone(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        await opened(Opened(error))
    assert caught.value is error


def test_a_plugin_of_ours_that_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_third_party", lambda: ())
    with pytest.raises(
        PluginError, match=r"'vault' of the group agentrt.secrets comes with .*pip install agentrt-vault$"
    ):
        plugins.load("agentrt.secrets", "vault")
    with pytest.raises(PluginError, match=r"no plugin 'valt'.*with more packages: .*vault \(agentrt-vault\)"):
        plugins.load("agentrt.secrets", "valt")


def test_what_our_other_distributions_offer_is_listed() -> None:
    offered = {
        (info.group, info.name): info.distribution
        for info in plugins.list_plugins()
        if info.distribution.startswith("agentrt-")
    }
    listed = {
        (group, name): package for group, names in plugins.BESIDE.items() for name, package in names.items()
    }
    assert listed == offered
