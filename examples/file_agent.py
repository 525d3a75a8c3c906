"""An agent that reads and writes files below one folder, and cannot get at any other.

agentrt run examples/file_agent.py:Clerk "tidy up"
"""

import atexit
import tempfile
from pathlib import Path

from agentrt import Agent
from agentrt.file_tools import file_tools
from agentrt.models.protocol import ModelRequest
from agentrt.models.scripted import Scripted, Step, StepCall
from agentrt.security.files import FileAccess

folder = tempfile.TemporaryDirectory()  # yours is "/srv/workspace", for example
atexit.register(folder.cleanup)
Path(folder.name, "notes.txt").write_text("buy apples\ncall Ada\n")


def look(request: ModelRequest) -> Step:
    return Step(
        tool_calls=[
            StepCall("list_files"),
            StepCall("read_file", {"path": "notes.txt"}),
            StepCall("read_file", {"path": "../../etc/passwd"}),  # refused, and the model is told why
        ]
    )


def write(request: ModelRequest) -> Step:
    notes = request.messages[-2].content
    tidy = "".join(f"- [ ] {line}\n" for line in sorted(notes.splitlines()))
    return Step(tool_calls=[StepCall("write_file", {"path": "lists/todo.md", "content": tidy})])


def answer(request: ModelRequest) -> Step:
    return Step(text=Path(folder.name, "lists", "todo.md").read_text())


# A scripted model, so that this runs anywhere: it calls the tools as a real one would.
Scripted.script("clerk", [look, write, answer])


class Clerk(Agent):
    model = "scripted:clerk"
    instructions = "You keep the user's notes in order."
    tools = file_tools(FileAccess(folder.name, "write"))
