"""What docs/rate-limits.md and the plugin's README say is so."""

from __future__ import annotations

import inspect
import re
import tomllib
from pathlib import Path

import pytest
from agentrt_redis import RedisLimits
from pipeline.doubles import scenario

from agentrt import Config
from agentrt.call import Call
from agentrt.middleware import RateLimit
from agentrt.plugins import load
from agentrt.security.memory_limits import MemoryLimits

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "rate-limits.md").read_text()
README = (ROOT / "plugins" / "agentrt-redis" / "README.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def options_of(text: str) -> dict[str, str]:
    """The rows of a table of options: the name in the first column, the default in the second."""
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (.*?) \|", text, re.MULTILINE)
    return {name: default for names, default in rows for name in re.findall(r"`(\w+)`", names)}


@pytest.mark.parametrize("text", [*blocks(PAGE, "toml"), *blocks(README, "toml")])
def test_configurations_are_taken(text: str) -> None:
    config = Config(tomllib.loads(text))
    config.check_stages([RateLimit])
    made = config.rate_limits().make()
    assert isinstance(made, RedisLimits if "redis" in text else MemoryLimits)


def test_the_plugins_table_has_each_option_with_its_default() -> None:
    parameters = inspect.signature(RedisLimits).parameters
    written = options_of(README)
    assert set(written) == set(parameters)
    for name, parameter in parameters.items():
        default = parameter.default
        if default is None:
            assert written[name] in ("none", "the system's", "the server's default user")
        else:
            assert written[name].strip("`") == str(default)


def test_the_stages_table_has_each_option() -> None:
    section = PAGE.partition("## In the pipeline")[2].partition("\n## ")[0]
    assert set(options_of(section)) == set(inspect.signature(RateLimit).parameters)
    assert RateLimit(limit=1, window=1).key == "{kind} of {run}"
    assert RateLimit(limit=1, window=1, scope="target").key == "{target}"


@scenario
async def test_the_examples_in_code_run() -> None:
    first, *stages = blocks(PAGE, "python")
    sent: list[str] = []

    async def send(what: str) -> None:
        sent.append(what)

    names = {"user": "me", "newsletter": "news", "send": send}
    source = "async def main():\n" + "\n".join(f"    {line}" for line in first.splitlines())
    exec(source, names)
    await names["main"]()  # type: ignore[operator]
    assert sent == ["news"]

    placed: list[tuple[RateLimit, dict[str, str]]] = []

    class Recording:
        def use(self, stage: RateLimit, **where: str) -> None:
            placed.append((stage, where))

    names = {"runtime": Recording(), "RateLimit": RateLimit, "Call": Call}
    for text in stages:
        exec(text, names)
    assert [where for _, where in placed] == [
        {"tool": "search"},
        {"kind": "tool", "outside": "rate_limit"},
    ]
    assert [stage.name for stage, _ in placed] == ["rate_limit", "per_session"]


def test_both_backends_are_stores_of_the_group() -> None:
    assert load("agentrt.rate_limits", "memory") is MemoryLimits
    assert load("agentrt.rate_limits", "redis") is RedisLimits
