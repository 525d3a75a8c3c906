"""docs/telemetry-backends.md and the READMEs of the plugins: every table in them makes its backend."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from agentrt import plugins
from agentrt.decode import Where, options_of
from agentrt.errors import ConfigError

ROOT = Path(__file__).parents[2]
GROUP = "agentrt.telemetry"


def backends(project: Path) -> set[str]:
    """The names of the backends that a plugin's pyproject.toml offers."""
    return set(tomllib.loads(project.read_text())["project"]["entry-points"].get(GROUP, {}))


PROJECTS = sorted(path for path in ROOT.glob("plugins/agentrt-*/pyproject.toml") if backends(path))
READMES = [path.parent / "README.md" for path in PROJECTS]
PAGES = [ROOT / "docs" / "telemetry-backends.md", *READMES]


def tables(page: Path) -> list[tuple[str, dict[str, Any]]]:
    blocks = re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL)
    return [item for block in blocks for item in tomllib.loads(block).get("telemetry", {}).items()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_every_table_of_a_page_makes_its_backend(page: Path) -> None:
    found = tables(page)
    assert found
    for name, options in found:
        backend = plugins.make(GROUP, name, options)
        assert type(backend) is plugins.load(GROUP, name)
        scalars = {option: value for option, value in options.items() if not isinstance(value, list | dict)}
        assert {option: getattr(backend, option, value) for option, value in scalars.items()} == scalars


def test_the_page_has_every_backend_of_the_plugins() -> None:
    offered = {name for project in PROJECTS for name in backends(project)}
    assert {name for name, _ in tables(PAGES[0])} == offered


@pytest.mark.parametrize("readme", READMES, ids=lambda page: page.parent.name)
def test_a_readme_names_every_option(readme: Path) -> None:
    text = readme.read_text()
    for name in backends(readme.parent / "pyproject.toml"):
        for option in options_of(plugins.load(GROUP, name)):
            assert f"`{option}`" in text, f"{readme} does not name {option} of {name}"


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("zipkin", {"endpont": "http://z"}, r"\[telemetry.zipkin\] has no 'endpont'.*endpoint"),
        ("zipkin", {"endpoint": 9411}, r"endpoint must be text or false .*, not 9411"),
        ("prometheus", {"port": "web"}, "port must be a whole number"),
        ("prometheus", {"gateway": "http://g", "grouping": {"a": 1}}, "grouping"),
        ("cloudwatch_metrics", {"dimensions": "error.type"}, "dimensions"),
        ("xray", {"mode": "daemon"}, "mode must be"),
        ("datadog", {"api_key": "a b"}, "api_key|API key"),
    ],
)
def test_a_wrong_option_is_refused_where_it_stands(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        plugins.make(GROUP, name, options, where=Where(("telemetry", name), lambda path: "agentrt.toml:3"))
