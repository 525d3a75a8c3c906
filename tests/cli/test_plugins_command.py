"""`agentrt plugins`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentrt import __version__, plugins
from tests.cli.conftest import Command


@pytest.fixture
def acme(project: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed distribution whose plugin cannot be imported."""
    (project / "acme-1.2.dist-info").mkdir()
    (project / "acme-1.2.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: acme\nVersion: 1.2\n"
    )
    (project / "acme-1.2.dist-info" / "entry_points.txt").write_text("[agentrt.models]\nacme = acme:Client\n")
    (project / "acme.py").write_text("raise OSError('no licence')\n")
    monkeypatch.syspath_prepend(project)
    plugins.forget()
    yield
    plugins.forget()


@pytest.mark.usefixtures("acme")
def test_every_plugin_is_a_line_of_the_table(command: Command) -> None:
    ended = command("plugins")
    rows = [line.split(None, 4) for line in ended.out.splitlines()]
    assert (ended.code, ended.err) == (0, "")
    assert rows[0] == ["group", "name", "distribution", "version", "state"]
    assert ["agentrt.models", "openai", "agentrt", __version__, "ok"] in rows
    assert ["agentrt.models", "acme", "acme", "1.2", "broken: OSError: no licence"] in rows
    assert len({line.index(row[3]) for line, row in zip(ended.out.splitlines(), rows, strict=True)}) == 1


@pytest.mark.usefixtures("acme")
def test_json(command: Command) -> None:
    found = json.loads(command("plugins", "--json").out)
    (acme,) = [info for info in found if info["name"] == "acme"]
    assert (acme["distribution"], acme["version"], acme["state"]) == (
        "acme",
        "1.2",
        "broken: OSError: no licence",
    )
