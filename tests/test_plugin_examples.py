"""The plugins of docs/plugins.md are complete: installed as they stand there, they work."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentrt import plugins
from agentrt.agent import Agent
from agentrt.config import Config
from agentrt.runtime import Runtime

DOCS = Path(__file__).parent.parent / "docs"
MODULES = ("acme_vault", "acme_lines", "acme_echo")


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every module and every distribution of the page, on sys.path."""
    page = (DOCS / "plugins.md").read_text()
    site = tmp_path / "site"
    site.mkdir()
    for name, source in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", page, re.DOTALL):
        (site / name).write_text(source)
    for text in re.findall(r"```toml\n# pyproject.toml\n(.*?)```", page, re.DOTALL):
        project = tomllib.loads(text)["project"]
        info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 1.0\n")
        lines = [
            f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in names.items())
            for group, names in project["entry-points"].items()
        ]
        (info / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(site)
    monkeypatch.chdir(tmp_path)
    plugins.forget()
    yield
    plugins.forget()
    for module in MODULES:
        sys.modules.pop(module, None)


class Talker(Agent):
    model = "echo:anything"


def test_all_are_listed() -> None:
    listed = {(p.group, p.name): (p.source, p.state) for p in plugins.list_plugins()}
    assert listed["agentrt.secrets", "acme"] == ("acme-vault 1.0", "ok")
    assert listed["agentrt.telemetry", "lines"] == ("acme-lines 1.0", "ok")
    assert listed["agentrt.models", "echo"] == ("acme-echo 1.0", "ok")


@pytest.mark.asyncio
async def test_the_secrets_provider_reads_a_secret(tmp_path: Path) -> None:
    (tmp_path / "v.json").write_text(json.dumps({"KEY": "value"}))
    config = Config({"secrets": {"provider": "acme", "path": "v.json"}})
    async with Runtime(config) as runtime:
        assert await runtime.secret("KEY") == "value"
        assert await runtime.secret("secret://acme/KEY") == "value"


@pytest.mark.asyncio
async def test_the_model_client_answers_and_the_telemetry_backend_writes_it_down(tmp_path: Path) -> None:
    config = Config({"models": {"echo": {"prefix": "> "}}, "telemetry": {"lines": {"path": "out.txt"}}})
    async with Runtime(config) as runtime:
        result = await runtime.run(Talker, "hello")
    assert result.text == "> hello"
    assert re.fullmatch(r"model echo:anything \d+\.\d{3} ok\n", (tmp_path / "out.txt").read_text())


@pytest.mark.asyncio
async def test_the_model_client_streams() -> None:
    async with Runtime(Config()) as runtime, runtime.stream(Talker, "hello") as run:
        kinds = [type(event).__name__ async for event in run]
        assert run.result.text == "hello"
    assert "TextDelta" in kinds


def test_the_configuration_page_shows_a_valid_file(tmp_path: Path) -> None:
    page = (DOCS / "configuration.md").read_text()
    blocks = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    (tmp_path / "agentrt.toml").write_text("\n".join(blocks))
    config = Config.load(environ={})
    assert config.run.timeout == 120.0
    assert config.model("work").plugin == "openai"
    assert config.use == ("my_package.stages:timing",)
    assert config.secrets("shared").make().prefix == "SHARED_"


def test_every_table_of_the_configuration_page_makes_its_stage(tmp_path: Path) -> None:
    from agentrt.limits import Limits
    from agentrt.middleware.defaults import STAGES

    page = (DOCS / "configuration.md").read_text()
    (tmp_path / "agentrt.toml").write_text("\n".join(re.findall(r"```toml\n(.*?)```", page, re.DOTALL)))
    config = Config.load(environ={})
    assert config.make(Limits, "run", "limits").steps == 50
    made = {name: config.options_for(stage, "tool") for name, stage in STAGES.items()}
    assert made["retry"].make().max_attempts == 1
    assert made["bulkhead"].make().limit == 20
    assert made["throttle"].enabled is False
