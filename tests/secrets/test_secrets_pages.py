"""docs/secrets.md and docs/writing-a-secrets-provider.md: what stands there works as it stands there."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from agentrt import plugins
from agentrt.config import Config
from agentrt.config.sections import SecretsCacheSection
from agentrt.decode import options_of
from agentrt.plugins import BUILT_IN
from agentrt.runtime import Runtime
from agentrt.secrets.manager import SecretsManager
from agentrt.secrets.protocol import SecretsProvider

ROOT = Path(__file__).parent.parent.parent
USING = (ROOT / "docs" / "secrets.md").read_text()
WRITING = (ROOT / "docs" / "writing-a-secrets-provider.md").read_text()
MODULES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", WRITING, re.DOTALL))
PROJECT, TABLE = re.findall(r"```toml\n(.*?)```", WRITING, re.DOTALL)

AGENT = """
async def agent(message, ctx):
    return message + " " + await ctx.secret("secret://acme/GREETING")
"""


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """The module and its distribution in a folder; the environment in which Python finds them."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "acme_store.py").write_text(MODULES["acme_store.py"])
    project = tomllib.loads(PROJECT)["project"]
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    (info / "entry_points.txt").write_text(
        "".join(
            f"[{group}]\n" + "".join(f"{key} = {target}\n" for key, target in names.items())
            for group, names in project["entry-points"].items()
        )
    )
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(tmp_path), str(ROOT / "tests")])}


def run(arguments: list[str], *, env: dict[str, str], cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments], env=env, cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# --- writing a provider ----------------------------------------------------------------------------------


def test_the_plugin_has_at_most_30_lines() -> None:
    lines = MODULES["acme_store.py"].splitlines() + PROJECT.splitlines()[1:]
    assert len([line for line in lines if line.strip()]) <= 30


def test_the_plugin_is_listed_and_an_agent_reads_with_it(installed: dict[str, str], tmp_path: Path) -> None:
    listed = run(["agentrt", "plugins"], env=installed, cwd=tmp_path)
    assert re.search(r"agentrt\.secrets +acme +acme-store +1\.0 +ok", listed)
    (tmp_path / "greets.py").write_text(AGENT)
    (tmp_path / "agentrt.toml").write_text(TABLE)
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "secrets.json").write_text(json.dumps({"GREETING": "from the store"}))
    assert (
        run(["agentrt", "run", "greets.py:agent", "hello"], env=installed, cwd=tmp_path)
        == "hello from the store\n"
    )
    assert run(["agentrt", "secrets", "get", "secret://acme/GREETING"], env=installed, cwd=tmp_path) == (
        "**********\n"
    )


def test_its_tests_pass_without_any_plugin_of_pytest(installed: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "test_acme_store.py").write_text(MODULES["test_acme_store.py"])
    env = {**installed, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    said = run(["pytest", "-q", "-W", "error", "test_acme_store.py"], env=env, cwd=tmp_path)
    assert "18 passed" in said
    assert "18 tests" in WRITING


def test_the_contract_of_the_page_is_that_of_the_protocol() -> None:
    contract = WRITING.partition("## The contract")[2].partition("##")[0]
    told = set(re.findall(r"^\| `(\w+)", contract, re.MULTILINE))
    optional = set(re.findall(r"async def (\w+)\(", SecretsProvider.__doc__ or ""))
    assert told == {"get", "cache_ttl", *optional}


def test_a_provider_can_be_used_without_packaging(tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    exec(compile(MODULES["acme_store.py"], "acme_store.py", "exec"), names)
    (tmp_path / "s.json").write_text('{"K": "value"}')

    async def scenario() -> str:
        async with Runtime() as rt:
            secrets = SecretsManager({"acme": names["Store"](path=tmp_path / "s.json")}, rt.invoke)
            try:
                return (await secrets.get("secret://acme/K")).reveal()
            finally:
                await secrets.aclose()

    assert asyncio.run(scenario()) == "value"


# --- using them ------------------------------------------------------------------------------------------


def test_the_configuration_of_the_page_is_valid() -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", USING, re.DOTALL)
    config = Config(tomllib.loads(block))
    assert [reference.value for reference in config.references()] == ["secret://vault/app/openai#key"]
    assert config.secrets().make().path == Path("/run/secrets")
    assert config.secrets("vault").options == {"url": "https://vault.example:8200"}


def test_the_table_of_the_cache_has_every_setting_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(ttl|jitter|stale|negative_ttl)` \| ([\d.,]+)", USING, re.MULTILINE))
    defaults = SecretsCacheSection()
    assert {name: float(value.replace(",", "")) for name, value in rows.items()} == {
        name: getattr(defaults, name) for name in defaults.__struct_fields__
    }


@pytest.mark.parametrize("name", sorted(BUILT_IN["agentrt.secrets"]))
def test_the_table_of_providers_has_every_option_of_ours(name: str) -> None:
    (row,) = re.findall(rf"^\| `{name}` \|.*\|(.*)\|$", USING, re.MULTILINE)
    assert set(re.findall(r"`(\w+)` \(", row)) == set(options_of(plugins.load("agentrt.secrets", name)))


def test_the_methods_of_the_page_are_those_of_the_manager() -> None:
    rows = re.findall(r"^\| `(?:await )?(\w+)\(.*$", USING.partition("## Rotation")[2], re.MULTILINE)
    public = {name for name in vars(SecretsManager) if not name.startswith("_")}
    assert set(rows) == public - {"from_config", "aclose"}


def test_the_code_of_the_page_follows_a_rotation(tmp_path: Path) -> None:
    code = re.findall(r"```python\nsecrets = rt.secrets.*?```", USING, re.DOTALL)[0]
    code = code.removeprefix("```python\n").removesuffix("```").replace("secret://vault/", "secret://file/")
    body = "\n".join(f"    {line}" for line in code.splitlines())
    names: dict[str, Any] = {}
    exec(f"async def scenario(rt, call_service, reconnect):\n{body}\n    return stop\n", names)
    for name, value in (("api", {"key": "old"}), ("db", {"password": "p"})):
        (tmp_path / "app").mkdir(exist_ok=True)
        (tmp_path / "app" / name).write_text(json.dumps(value))
    asked: list[str] = []

    async def call_service(key: str) -> int:
        asked.append(key)
        (tmp_path / "app" / "api").write_text('{"key": "new"}')  # it is being rotated
        return 200 if key == "new" else 401

    async def scenario() -> None:
        async with Runtime(Config({"secrets": {"providers": {"file": {"path": str(tmp_path)}}}})) as rt:
            stop = await names["scenario"](rt, call_service, print)
            stop()

    asyncio.run(scenario())
    assert asked == ["old", "new"]
