"""Fallback between models: the first one is down, the second answers, and the record says so.

agentrt run examples/fallback.py:Assistant "hello"
agentrt run --jsonl examples/fallback.py:Assistant "hello"      # why it came from there
"""

from agentrt import Agent, TransientError
from agentrt.models.scripted import Scripted, Step

Scripted.script("down", [Step(error=TransientError("the first provider is down"))] * 3)


class Assistant(Agent):
    model = ["scripted:down", "scripted:echo"]  # the rest are fallback targets
    instructions = "You are brief."
