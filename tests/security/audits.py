"""Audit logs for tests: keys, logs that were written, and what an attacker does to them."""

from __future__ import annotations

import asyncio
import json
import resource
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runtime.doubles import FakeModel

from agentrt import Agent, Runtime, tool
from agentrt.config import Config
from agentrt.security.audit import AuditLog, FileAnchor
from agentrt.security.audit.chain import GENESIS, seal
from agentrt.security.audit.checkpoints import PublicKey, SigningKey
from agentrt.security.audit.verify import Report, verify

KEY = bytes(range(32)).hex()
OTHER_KEY = bytes(range(1, 33)).hex()
SIGNING = SigningKey(KEY, name="the test's key")
PUBLIC = SIGNING.public


async def written(
    path: Path, count: int = 10, *, anchor: Path | None = None, every: int = 6, **options: Any
) -> list[bytes]:
    """A log with `count` operations, signed, and its lines."""
    sinks = [] if anchor is None else [("file", FileAnchor(path=anchor))]
    log = AuditLog(path, signing_key=KEY.encode(), checkpoint_every=every, sinks=sinks, **options)
    async with log:
        for number in range(count):
            operation = await log.durable_intent("tool.call", f"tool:{number}", arguments={"number": number})
            operation.ended()
    return lines(path)


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def items(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines(path)]


def records(path: Path, **fields: Any) -> list[dict[str, Any]]:
    """The records with these fields."""
    return [
        item
        for item in items(path)
        if item["type"] == "record" and all(item.get(name) == value for name, value in fields.items())
    ]


@contextmanager
def room(size: int) -> Generator[None]:
    """No file may grow beyond `size` bytes: to whoever writes, the same as a disk that is full."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


async def until(condition: Any, *, seconds: float = 30.0) -> None:
    """Wait for what other threads do."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        await asyncio.sleep(0.01)


def kinds(report: Report) -> list[str]:
    return [problem.kind for problem in report.problems]


def checked(path: Path, key: PublicKey | None = PUBLIC, **options: Any) -> Report:
    return verify(path, public_key=key, **options)


def rebuilt(kept: list[dict[str, Any]], *, signer: SigningKey | None = None) -> bytes:
    """What an attacker makes of records: numbers, `prev`s and hashes anew, and checkpoints signed by `signer` if there
    is one."""
    head, data, previous, number = GENESIS, b"", None, 0
    for seq, item in enumerate(kept, start=1):
        item = {**item, "seq": seq, "prev": head}
        item.pop("hash")
        if item["type"] == "checkpoint":
            number += 1
            item.update(number=number, count=seq - 1)
            item.pop("previous", None)
            if previous is not None:
                item["previous"] = previous
            if signer is not None:
                item["key"] = signer.id
                unsigned = {name: value for name, value in item.items() if name != "signature"}
                item["signature"] = signer.sign(_body(unsigned))
        line, head = seal(_body(item))
        if item["type"] == "checkpoint":
            previous = head
        data += line
    return data


def _body(item: dict[str, Any]) -> bytes:
    last = [name for name in ("prev", "signature") if name in item]
    ordered = {name: value for name, value in item.items() if name not in last}
    ordered.update({name: item[name] for name in last})
    return json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()[:-1]


# --- a runtime with an audit log -------------------------------------------------------------------------

SECRET = "hunter2-correct-horse-battery"


@tool(idempotent=True)
async def weather(city: str) -> str:
    return f"sunny in {city}"


class Assistant(Agent):
    model = "fake:m"
    tools = (weather,)


def runtime(path: Path, *steps: Any, sections: dict[str, Any] | None = None, **audit: Any) -> Runtime:
    config = {"audit": {"path": str(path), **audit}, **(sections or {})}
    return Runtime(Config(config), models={"fake": FakeModel(*steps)})


def text(path: Path) -> str:
    return path.read_text()
