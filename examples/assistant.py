"""An agent with two tools, on a small model that runs on this machine.

agentrt run examples/assistant.py:Assistant "What is the capital of France?"
agentrt run examples/assistant.py:Assistant --model openai:gpt-5-mini
"""

from datetime import date

from agentrt import Agent, tool


@tool(idempotent=True)
async def days_until(day: date) -> int:
    """How many days it is from today until a day."""
    return (day - date.today()).days


@tool(idempotent=True)
async def add(numbers: list[float]) -> float:
    """The sum of some numbers."""
    return sum(numbers)


class Assistant(Agent):
    model = "local:smollm2"
    instructions = "You are a helpful assistant. Answer in one short sentence."
    tools = [days_until, add]
