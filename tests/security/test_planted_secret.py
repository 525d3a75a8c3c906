"""A whole run that fails in every way it can, with a secret in all that it says: the secret is nowhere afterwards.

The word beside the secret is everywhere: what is not there was taken out, not never written.
"""

from __future__ import annotations

import base64
import json
import os
import re
from pathlib import Path
from urllib.parse import quote

import pytest
from cli.commands import Ended, agentrt

SECRET = 'pl4nted+Secret/of=ours & "quoted" ünd'
WORD = "harmless-word"

GUISES = {
    "plain": SECRET,
    "URL": quote(SECRET, safe=""),
    "URL, slashes left": quote(SECRET),
    "JSON": json.dumps(SECRET)[1:-1],
    "JSON, UTF-8": json.dumps(SECRET, ensure_ascii=False)[1:-1],
    "repr": repr(SECRET)[1:-1],
    "base64": base64.b64encode(SECRET.encode()).decode().rstrip("="),
    "hexadecimal": SECRET.encode().hex(),
    "its beginning": SECRET[:14],
}

AGENT = '''
import base64
import logging

from opentelemetry import trace

from agentrt import TransientError, tool
from agentrt.file_tools import file_tools
from agentrt.security.files import FileAccess

logger = logging.getLogger("third.party")
read_file, write_file, list_files = file_tools(FileAccess("work", mode="write"))


@tool(idempotent=True)
async def sign(text: str) -> str:
    raise TransientError(f"harmless-word: the signer does not take {text}")


class Leaky:
    """Puts its secret wherever it can."""

    async def run(self, message, ctx):
        secret = await ctx.secret("key")
        said = f"harmless-word {secret} {base64.b64encode(secret.encode()).decode()}"
        ctx.session.state["note"] = said
        ctx.log("warning", said, token=secret, nested={"list": [said]})
        ctx.record_metric("leaks.made", 1, {"said": said, "word": "harmless-word"})
        logger.error("from elsewhere: %s", said)
        with ctx.start_span(f"harmless-word {secret}", {"said": said}) as span:
            span.add_event("leaked", {"said": said})
            with trace.get_tracer("third.party").start_as_current_span("harmless-word") as theirs:
                theirs.set_attribute("said", said)
                theirs.record_exception(ValueError(said))
            await ctx.model(said, model="scripted:echo")
        await ctx.tool(write_file, path="harmless-word.txt", content=message)
        try:
            await ctx.tool(read_file, path=f"../{secret}")
        except Exception as error:
            logger.warning("harmless-word: no file: %s", error)
        try:
            await ctx.tool(sign, text=said)
        except Exception as error:
            raise RuntimeError(f"harmless-word: could not sign {said}") from error
'''

CONFIGURATION = """
[secrets]
provider = "file"
path = "mounted"

[telemetry]
capture_content = true

[telemetry.file]
path = "out/spans.jsonl"

[log]
level = "info"
outputs = ["stderr", "out/log.json", "out/log.txt"]

[audit]
path = "out/audit.jsonl"
strict = true
arguments = "redacted"

[state]
path = "out/state.db"
encrypt = true

[encryption]
keys = ["secret://env/STATE_KEY"]

[pipeline.retry]
initial_delay = 0.01
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "leaky.py").write_text(AGENT)
    (tmp_path / "agentrt.toml").write_text(CONFIGURATION)
    for folder in ("mounted", "work", "out"):
        (tmp_path / folder).mkdir()
    secret = tmp_path / "mounted" / "key"
    secret.write_text(SECRET + "\n")
    secret.chmod(0o600)
    return tmp_path


def run(project: Path, *options: str) -> Ended:
    key = base64.b64encode(os.urandom(32)).decode()
    return agentrt("run", *options, "leaky.py:Leaky", "hello", cwd=project, env={"STATE_KEY": key})


def written(project: Path) -> dict[str, bytes]:
    """Everything that the run left behind, by name, without where the secret comes from."""
    return {
        str(path.relative_to(project)): path.read_bytes()
        for path in project.rglob("*")
        if path.is_file() and "mounted" not in path.parts and "__pycache__" not in path.parts
    }


@pytest.mark.parametrize(
    "options",
    [
        ["--traceback"],
        ["--jsonl", "--traceback"],
        ["--trace", "--trace-html", "out/page.html"],
        ["--session", "s1"],
    ],
    ids=["traceback", "events", "trace", "stored"],
)
def test_a_planted_secret_is_nowhere_after_a_run_that_fails(project: Path, options: list[str]) -> None:
    ended = run(project, *options)
    assert ended.code == 1, ended.err
    seen = {**written(project), "stdout": ended.out.encode(), "stderr": ended.err.encode()}
    found = [
        f"{name}: {guise}"
        for name, content in seen.items()
        for guise, text in GUISES.items()
        if text.encode() in content
    ]
    assert not found, "\n".join(found)
    # Each of these would have had it.
    for name in ("out/spans.jsonl", "out/log.json", "out/log.txt", "out/audit.jsonl", "stderr"):
        assert WORD.encode() in seen[name], f"{name} has nothing of the run"
    assert b"[redacted]" in seen["stderr"]
    if "--jsonl" in options:
        assert WORD in ended.out
        assert all(json.loads(line) for line in ended.out.splitlines())
    if "--trace-html" in options:
        assert WORD.encode() in seen["out/page.html"]


def test_the_answer_itself_is_left_alone(project: Path) -> None:
    (project / "leaky.py").write_text(
        "async def tell(message, ctx):\n    return f'it is {await ctx.secret(\"key\")}'\n"
    )
    key = base64.b64encode(os.urandom(32)).decode()
    for option in ([], ["--stream"], ["--jsonl"]):
        ended = agentrt("run", *option, "leaky.py:tell", "hello", cwd=project, env={"STATE_KEY": key})
        assert ended.code == 0, ended.err
        out = ended.out if "--jsonl" not in option else json.loads(ended.out.splitlines()[-1])["output"]
        assert out.strip() == f"it is {SECRET}"


def test_what_failed_is_still_to_be_seen(project: Path) -> None:
    ended = run(project)
    assert re.search(r"RuntimeError: harmless-word: could not sign harmless-word \[redacted\]", ended.err)
    assert "leaky.py" in ended.err
