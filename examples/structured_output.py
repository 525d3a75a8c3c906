"""Structured output: the answer is a validated object, asked for again if it does not fit.

agentrt run examples/structured_output.py:Extractor "Ada Lovelace was born in 1815."
"""

from dataclasses import dataclass

from agentrt import Agent
from agentrt.models.scripted import Scripted, Step

# The first answer lacks a field: `output` rejects it and the model is asked again.
Scripted.script("people", [Step(text='{"name": "Ada"}'), Step(text='{"name": "Ada Lovelace", "born": 1815}')])


@dataclass
class Person:
    name: str
    born: int


class Extractor(Agent):
    model = "scripted:people"
    output = Person
