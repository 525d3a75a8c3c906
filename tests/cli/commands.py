"""The command as the process that it is, and folders for it to run in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from msgspec import Struct

__all__ = ["AGENTS", "Ended", "agentrt", "environment", "start"]

AGENTS = '''
import asyncio
import sys

from agentrt import Agent


class Echo:
    async def run(self, message):
        return message


class Bot(Agent):
    model = "scripted:echo"


class OpenBot(Agent):
    model = "openai:gpt-5-mini"


class Boom:
    async def run(self, message):
        return self.fail(message)

    def fail(self, message):
        raise ValueError(f"no: {message}")


class NoRun:
    def answer(self, message):
        return message


class SyncRun:
    def run(self, message):
        return message


class Slow:
    """Says when it begins and how it ends."""

    async def run(self, message):
        print("began", file=sys.stderr, flush=True)
        try:
            await asyncio.sleep(float(message))
        except asyncio.CancelledError:
            print("cleaned up", file=sys.stderr, flush=True)
            raise
        return "finished"


async def words(message):
    for word in message.split():
        yield word + " "


async def structured(message):
    return {"said": message, "n": [1, 2]}


async def nothing(message):
    return None


def make():
    return Echo()
'''


class Ended(Struct):
    """A process that has ended."""

    code: int
    out: str
    err: str


def environment(**more: str) -> dict[str, str]:
    """Our environment without what would configure agentrt or its models."""
    unwanted = ("AGENTRT_", "OPENAI_", "ANTHROPIC_", "NO_COLOR", "_AGENTRT")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    return {**kept, **more}


def agentrt(
    *arguments: str,
    cwd: Path,
    stdin: str | bytes = b"",
    env: dict[str, str] | None = None,
) -> Ended:
    """Run `python -m agentrt` to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "agentrt", *arguments],
        cwd=cwd,
        env=environment(**(env or {})),
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        timeout=50,
    )
    return Ended(done.returncode, done.stdout.decode(), done.stderr.decode())


def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """Start `python -m agentrt` with pipes."""
    return subprocess.Popen(
        [sys.executable, "-m", "agentrt", *arguments],
        cwd=cwd,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
