"""The pages of agentrt-vault: every table makes a provider, every option is named, every reference can be read."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from agentrt_vault import AppRole, Jwt, Kubernetes, VaultSecrets

from agentrt.config import Config
from agentrt.decode import options_of
from agentrt.secrets import SecretRef

ROOT = Path(__file__).parents[2]
README = ROOT / "plugins" / "agentrt-vault" / "README.md"
PAGES = [README, ROOT / "docs" / "secrets-vault.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_table_makes_a_provider(page: Path) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        assert isinstance(Config(tomllib.loads(block)).secrets("vault").make(), VaultSecrets)


def test_the_readme_names_every_option() -> None:
    text = README.read_text()
    for table in (VaultSecrets, AppRole, Jwt, Kubernetes):
        for option in options_of(table):
            assert f"`{option}`" in text, f"{README} does not name {option} of {table.__name__}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_reference_is_one(page: Path) -> None:
    references = set(re.findall(r"secret://[a-z][^\s`\"]*", page.read_text()))
    assert references
    for reference in references:
        SecretRef.parse(reference)
