"""[secrets] of the configuration: the times, the references in it, and a runtime that goes by them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentrt.config import Config
from agentrt.config.sections import SecretsCacheSection
from agentrt.errors import ConfigError
from agentrt.runtime import Runtime
from agentrt.secrets.file import File

Load = Callable[..., Config]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """The configuration of a file with this text."""

    def load(text: str, **environ: str) -> Config:
        (tmp_path / "agentrt.toml").write_text(text)
        return Config.load(directory=tmp_path, environ=environ)

    return load


def test_the_times_come_from_their_table_and_from_variables(load: Load) -> None:
    assert load("").secrets_cache == SecretsCacheSection()
    assert load("[secrets.cache]\nttl = 60\nstale = 0\n").secrets_cache == SecretsCacheSection(
        ttl=60, stale=0
    )
    assert load("", AGENTRT_SECRETS__CACHE__NEGATIVE_TTL="5").secrets_cache.negative_ttl == 5.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[secrets.cache]\nttl = -1",
            "agentrt.toml:2: [secrets.cache] ttl must be a number of seconds at least 0",
        ),
        (
            "[secrets.cache]\njitter = 2",
            "agentrt.toml:2: [secrets.cache] jitter must be a number from 0 to 1, not 2",
        ),
        ("[secrets.cache]\nttl = 'long'", "agentrt.toml:2: secrets.cache.ttl must be a number, not 'long'"),
        ("[secrets.cache]\ntll = 1", "agentrt.toml:2: [secrets.cache] has no 'tll'; did you mean 'ttl'?"),
        ("[secrets]\ncache = 3", "agentrt.toml:2: secrets.cache must be a table, not 3"),
    ],
)
def test_a_mistake_in_them_is_told_when_the_configuration_is_read(
    load: Load, text: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert str(caught.value).startswith(message)


def test_they_are_no_options_of_the_default_provider(load: Load, tmp_path: Path) -> None:
    config = load(f"[secrets]\nprovider = 'file'\npath = '{tmp_path}'\n[secrets.cache]\nttl = 1\n")
    made = config.secrets().make()
    assert isinstance(made, File)
    assert made.path == tmp_path
    apart = load(
        "[secrets]\nprovider = 'file'\n[secrets.cache]\nttl = 1\n[secrets.providers.file]\npath = '/x'\n"
    )
    assert apart.secrets().make().path == Path("/x")


def test_every_reference_is_found_with_its_place(load: Load) -> None:
    config = load(
        "[models.openai]\napi_key = 'secret://a'\nheaders = { x = 'Bearer secret://vault/b#c', y = 'none' }\n"
        "[telemetry.otlp]\nheaders = { authorization = 'secret://d' }\n[log]\noutputs = ['stderr']\n",
        AGENTRT_MODELS__WORK__API_KEY="secret://env/E",
    )
    assert [(found.value, found.name, found.origin) for found in config.references()] == [
        ("secret://a", "models.openai.api_key", "agentrt.toml:2"),
        ("secret://vault/b#c", "models.openai.headers.x", "agentrt.toml:3"),
        ("secret://env/E", "models.work.api_key", "AGENTRT_MODELS__WORK__API_KEY"),
        ("secret://d", "telemetry.otlp.headers.authorization", "agentrt.toml:5"),
    ]


def test_references_in_lists_are_found() -> None:
    config = Config({"models": {"x": {"keys": ["secret://one", "plain", {"deep": "secret://two"}]}}})
    assert [found.value for found in config.references()] == ["secret://one", "secret://two"]
    assert Config().references() == []


def test_a_runtime_keeps_values_as_long_as_the_configuration_says(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one")
    tables: dict[str, Any] = {"secrets": {"provider": "file", "path": str(tmp_path), "cache": {"ttl": 0.0}}}

    async def scenario(tables: dict[str, Any]) -> tuple[str, str]:
        async with Runtime(Config(tables)) as runtime:
            (tmp_path / "a").write_text("one")
            before = await runtime.secret("a")
            (tmp_path / "a").write_text("two")
            return before, await runtime.secret("a")

    assert asyncio.run(scenario(tables)) == ("one", "one")  # this provider says itself how long: 30 s
    tables["secrets"]["cache_ttl"] = 0.0
    assert asyncio.run(scenario(tables)) == ("one", "two")
