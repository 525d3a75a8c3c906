"""An audit log: what was done stands in it, and an edit afterwards shows.

    python examples/audit.py      (needs: pip install 'agentrt[security]')

In production the signing key is a secret or a file that only the service may read, and the anchor is elsewhere.
"""

import asyncio
import tempfile
from pathlib import Path

from agentrt import Agent, Runtime, tool
from agentrt.config import Config
from agentrt.models.scripted import Scripted, Step, StepCall
from agentrt.security.audit import acting
from agentrt.security.audit.checkpoints import SigningKey
from agentrt.security.audit.verify import verify


@tool(idempotent=True)
async def refund(order: str) -> str:
    return f"order {order} is refunded"


class Clerk(Agent):
    model = "scripted:clerk"
    tools = [refund]


async def work(audit: dict[str, object]) -> None:
    Scripted.script("clerk", [Step(tool_calls=[StepCall("refund", {"order": "A-17"})]), "Done."])
    async with Runtime(Config({"audit": audit})) as runtime:
        with acting(on_behalf_of="user:42"):
            print((await runtime.run(Clerk, "Refund A-17, please")).text)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, key, anchor = (Path(folder, name) for name in ("audit.jsonl", "audit.key", "anchor.jsonl"))
        key.write_text("07" * 32)  # openssl genpkey -algorithm ed25519 -out audit.key
        sinks = {"file": {"path": str(anchor)}}
        asyncio.run(work({"path": str(path), "strict": True, "signing_key": str(key), "sinks": sinks}))

        public = SigningKey(key.read_text(), name="the key").public
        log = path.read_text()
        report = verify(path, public_key=public, anchor=anchor)
        print("as it was written:", report.ok, "- the order in clear:", "A-17" in log)

        path.write_text(log.replace("user:42", "user:43", 1))
        report = verify(path, public_key=public, anchor=anchor)
        print("after an edit:", report.ok, "-", *(problem.kind for problem in report.problems))

        path.write_text("".join(log.splitlines(keepends=True)[:-3]))
        report = verify(path, public_key=public, anchor=anchor)
        print("cut off:", report.ok, "-", *(problem.kind for problem in report.problems))


if __name__ == "__main__":
    main()
