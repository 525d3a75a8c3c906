"""`import agentrt`: what it exports, and what it does not load."""

from __future__ import annotations

import subprocess
import sys

import pytest

import agentrt

HEAVY = (
    "opentelemetry",
    "loguru",
    "httpx2",
    "click",
    "rich",
    "aiolimiter",
    "importlib.metadata",
    "sqlite3",
    "openai",
)


@pytest.mark.parametrize("name", agentrt.__all__)
def test_every_exported_name_is_there(name: str) -> None:
    assert getattr(agentrt, name) is not None
    assert name in dir(agentrt)


def test_all_names_that_have_a_home_are_exported() -> None:
    assert sorted(agentrt.__all__) == sorted(["__version__", *agentrt._HOME])


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = agentrt.nonsense  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "statement",
    ["import agentrt", "from agentrt import Agent, tool", "from agentrt import Runtime; Runtime()"],
)
def test_importing_loads_nothing_heavy(statement: str) -> None:
    # What is there already is the doing of the environment: coverage, for example, brings sqlite3.
    code = (
        "import sys\nbefore = set(sys.modules)\n"
        f"{statement}\nprint([name for name in {HEAVY!r} if name in sys.modules and name not in before])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_stage_can_be_imported_from_the_folder() -> None:
    from agentrt import middleware

    assert sorted(middleware.__all__) == sorted(middleware._HOME)
    for name in middleware.__all__:
        assert getattr(middleware, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'Rettry'"):
        _ = middleware.Rettry  # type: ignore[attr-defined]
