"""An agent with two tools, on a small model that runs on this machine.

agentrt run examples/assistant.py:Assistant "What is the capital of France?"
agentrt run examples/assistant.py:Assistant "Add 17 and 25."
agentrt run examples/assistant.py:Assistant                          # a conversation
agentrt run examples/assistant.py:Assistant --model openai:gpt-5-mini
"""

from datetime import date

from agentrt import Agent, tool


@tool(idempotent=True)
async def add(a: float, b: float) -> float:
    """Add two numbers."""
    return a + b


@tool(idempotent=True)
async def today() -> date:
    """Today's date."""
    return date.today()


class Assistant(Agent):
    model = "local:smollm2"
    instructions = "You are a helpful assistant. Answer in one short sentence."
    tools = [add, today]
