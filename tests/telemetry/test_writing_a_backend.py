"""The plugin of docs/writing-a-telemetry-backend.md is complete: installed as it stands there, it works."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers.http_server import HttpServer

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "writing-a-telemetry-backend.md").read_text()
MODULES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL))
PROJECT, TABLE = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)

AGENT = """
async def agent(message, ctx):
    with ctx.start_span("shout"):
        ctx.log("info", "heard", what=message)
        ctx.record_metric("shouts", 1, kind="counter")
        return message.upper()
"""


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """The module and its distribution in a folder; the environment in which Python finds them."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "acme_webhook.py").write_text(MODULES["acme_webhook.py"])
    project = tomllib.loads(PROJECT)["project"]
    name, version = project["name"], project["version"]
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(
        "".join(
            f"[{group}]\n" + "".join(f"{key} = {target}\n" for key, target in names.items())
            for group, names in project["entry-points"].items()
        )
    )
    paths = [str(site), str(tmp_path), str(ROOT / "tests")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "WEBHOOK_TOKEN": "open sesame"}


@pytest.fixture
def webhook() -> Iterator[HttpServer]:
    with HttpServer() as server:
        yield server


def run(arguments: list[str], *, env: dict[str, str], cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments], env=env, cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_has_at_most_30_lines() -> None:
    lines = MODULES["acme_webhook.py"].splitlines() + PROJECT.splitlines()[1:]
    assert len([line for line in lines if line.strip()]) <= 30


def test_it_is_listed(installed: dict[str, str], tmp_path: Path) -> None:
    listed = run(["agentrt", "plugins"], env=installed, cwd=tmp_path)
    assert re.search(r"webhook +acme-webhook +1\.0 +ok", listed)


def test_what_an_agent_does_arrives(installed: dict[str, str], tmp_path: Path, webhook: HttpServer) -> None:
    (tmp_path / "loud.py").write_text(AGENT)
    (tmp_path / "agentrt.toml").write_text(TABLE.replace("http://127.0.0.1:8080", webhook.url))
    assert run(["agentrt", "run", "loud.py:agent", "hello"], env=installed, cwd=tmp_path) == "HELLO\n"
    assert {request.headers["authorization"] for request in webhook.requests} == {"Bearer open sesame"}
    batches = [json.loads(request.body) for request in webhook.requests]
    spans = {span["name"]: span for batch in batches for span in batch["spans"]}
    assert spans["shout"]["parent_id"] == spans["invoke_agent agent"]["span_id"]
    (heard,) = [line for batch in batches for line in batch["logs"] if line["message"] == "heard"]
    assert heard["span_id"] == spans["shout"]["span_id"]
    (shouts,) = [metric for metric in batches[-1]["metrics"] if metric["name"] == "shouts"]
    assert shouts["points"][0]["value"] == 1.0


def test_its_tests_pass_without_any_plugin_of_pytest(installed: dict[str, str], tmp_path: Path) -> None:
    for name in ("my_tests.py", "test_acme_webhook.py"):
        (tmp_path / name).write_text(MODULES[name])
    env = {**installed, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    said = run(["pytest", "-q", "-W", "error", "test_acme_webhook.py"], env=env, cwd=tmp_path)
    assert "25 passed" in said
    assert "25 tests" in PAGE
