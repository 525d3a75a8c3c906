"""docs/secrets-*.md of the clouds and the plugins' READMEs: each table makes its provider, each option is named."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from agentrt import plugins
from agentrt.config import Config
from agentrt.decode import options_of

ROOT = Path(__file__).parents[2]
GROUP = "agentrt.secrets"
CLOUDS = ("aws", "gcp", "azure")
PAGES = [
    (name, page)
    for name in CLOUDS
    for page in (ROOT / "docs" / f"secrets-{name}.md", ROOT / "plugins" / f"agentrt-{name}" / "README.md")
]
IDS = [f"{page.parent.name}/{page.name}" for _, page in PAGES]


def tables(page: Path) -> list[dict[str, Any]]:
    blocks = re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL)
    return [table for block in blocks if "secrets" in (table := tomllib.loads(block))]


@pytest.mark.parametrize(("name", "page"), PAGES, ids=IDS)
def test_every_table_of_a_page_makes_its_provider(name: str, page: Path) -> None:
    found = tables(page)
    assert found
    for table in found:
        config = Config(table)
        assert config.secrets_provider == name
        provider = config.secrets(name).make()
        assert type(provider) is plugins.load(GROUP, name)
        given = {key: value for key, value in table["secrets"].items() if key != "provider"}
        assert {key: getattr(provider, key, value) for key, value in given.items()} == given


@pytest.mark.parametrize(("name", "page"), PAGES, ids=IDS)
def test_a_page_names_every_option(name: str, page: Path) -> None:
    text = page.read_text()
    for option in options_of(plugins.load(GROUP, name)):
        assert f"`{option}`" in text, f"{page} does not name {option}"


@pytest.mark.parametrize("name", CLOUDS)
def test_a_page_has_every_error_and_what_to_do(name: str) -> None:
    text = (ROOT / "docs" / f"secrets-{name}.md").read_text()
    for error in ("NotFound", "Invalid", "Denied", "Throttled", "Unavailable"):
        assert f"| `Secret{error}` |" in text
