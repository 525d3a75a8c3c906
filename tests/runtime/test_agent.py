"""The attributes of `Agent`: what cannot be meant is refused when the agent is hosted."""

from __future__ import annotations

from typing import Any

import pytest

from agentrt import Agent, ConfigError
from agentrt.agent import AgentWarning, check_attributes


def some_tool() -> str:
    """A tool."""
    return ""


@pytest.mark.parametrize(
    ("attribute", "value", "says"),
    [
        ("model", 3, 'model must be a name such as "openai:gpt-5-mini" or a list of names, not 3'),
        ("tools", some_tool, r"tools must be a list of functions, for example \[search\], not <bound"),
        ("tools", "search", "tools must be a list of functions"),
        ("instructions", ["be brief"], "instructions must be text, or a function of the context"),
        ("output", "str", "output must be a type, not 'str'"),
        ("limits", 3, r"limits must be Limits\(\.\.\.\), not 3"),
        ("settings", {}, r"settings must be Settings\(\.\.\.\), not \{\}"),
        ("middleware", some_tool, "middleware must be a list of stages"),
        ("on_tool_failure", "ignore", 'on_tool_failure must be "tell" or "raise", not \'ignore\''),
        ("scope", "rum", 'scope must be "process" or "run", not \'rum\''),
    ],
)
def test_an_attribute_that_cannot_be_meant_is_refused(attribute: str, value: Any, says: str) -> None:
    bad = type("Bad", (Agent,), {attribute: value})
    with pytest.raises(ConfigError, match=rf"Bad\.{says}"):
        check_attributes(bad())


def test_what_can_be_meant_is_taken() -> None:
    good = type(
        "Good",
        (Agent,),
        {
            "model": ("scripted:echo",),
            "tools": (some_tool,),
            "output": list[int],
            "instructions": lambda self, ctx: "brief",
            "database": 3,
        },
    )
    check_attributes(good())


def test_a_misspelt_attribute_gets_a_warning() -> None:
    misspelt = type("Misspelt", (Agent,), {"instruction": "be brief"})
    with pytest.warns(AgentWarning, match=r"Misspelt\.instruction means nothing .*'instructions'"):
        check_attributes(misspelt())
