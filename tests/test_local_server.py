"""The embedded model's server, as the process that it is, with the real model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentrt.models import weights

COMMAND = (sys.executable, "-m", "agentrt.models.local_server")
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def start(path: Path | None = None, parent: int | None = None) -> subprocess.Popen[bytes]:
    path = path or weights.find("smollm2")
    assert path is not None
    return subprocess.Popen(
        [*COMMAND, "--weights", path, "--parent", str(parent or os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def answer(process: subprocess.Popen[bytes]) -> dict[str, str]:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def end(process: subprocess.Popen[bytes]) -> None:
    with process:
        process.kill()


def failure(process: subprocess.Popen[bytes]) -> str:
    """The error that it answers; it must then end by itself and say nothing else."""
    error = answer(process)["error"]
    process.wait(timeout=50)
    output, errors = process.communicate()
    assert (process.returncode, output, errors) == (1, b"", b"")
    return error


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=50) as response:
        return json.load(response)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    process = start()
    try:
        yield answer(process)["url"]
    finally:
        end(process)


def test_it_speaks_chat_completions(server: str) -> None:
    reply = post(
        f"{server}/v1/chat/completions", {"model": "smollm2", "messages": QUESTION, "max_tokens": 30}
    )
    assert reply["model"] == "smollm2"
    assert reply["choices"][0]["message"]["content"]
    assert reply["usage"]["completion_tokens"] > 0


def test_it_speaks_messages(server: str) -> None:
    reply = post(f"{server}/v1/messages", {"model": "smollm2", "messages": QUESTION, "max_tokens": 30})
    assert reply["content"][0]["type"] == "text"
    assert reply["content"][0]["text"]
    assert reply["usage"]["output_tokens"] > 0


def test_the_same_question_has_the_same_answer(server: str) -> None:
    body = {"model": "smollm2", "messages": QUESTION, "max_tokens": 30}
    replies = [post(f"{server}/v1/chat/completions", body)["choices"][0]["message"] for _ in range(2)]
    assert replies[0] == replies[1]


def test_the_template_takes_tool_results_and_content_parts(server: str) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "capital", "arguments": "{}"}}
    messages = [
        {
            "role": "user",
            "content": [{"type": "text", "text": part} for part in ("What is ", "the capital?")],
        },
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "Paris"},
    ]
    reply = post(
        f"{server}/v1/chat/completions", {"model": "smollm2", "messages": messages, "max_tokens": 10}
    )
    assert reply["choices"][0]["message"]["content"]


def test_an_answer_can_be_held_to_a_schema(server: str) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema}}
    body = {"model": "smollm2", "messages": QUESTION, "max_tokens": 60, "response_format": wanted}
    reply = post(f"{server}/v1/chat/completions", body)
    assert isinstance(json.loads(reply["choices"][0]["message"]["content"])["city"], str)


def test_a_conversation_that_is_too_long_is_refused(server: str) -> None:
    messages = [{"role": "user", "content": "word " * 10_000}]
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(f"{server}/v1/chat/completions", {"model": "smollm2", "messages": messages})
    with caught.value as error:
        assert error.code == 400
        assert json.load(error)["error"]["type"] == "exceed_context_size_error"


def test_it_shows_neither_pages_nor_others_prompts(server: str) -> None:
    for path in ("/", "/slots", "/metrics"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(server + path, timeout=50)
        caught.value.close()
        assert caught.value.code in (404, 501)


def test_ctrl_c_is_the_parents_business_and_the_end_of_input_ends_it() -> None:
    process = start()
    try:
        url = answer(process)["url"]
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        assert post(f"{url}/v1/messages", {"model": "smollm2", "messages": QUESTION, "max_tokens": 1})
        output, errors = process.communicate(timeout=50)  # closes its stdin
        assert (process.returncode, output, errors) == (0, b"", b"")
    finally:
        end(process)


PARENT = """
import os, subprocess, sys
command, quiet = sys.argv[1:], subprocess.DEVNULL
holder = subprocess.Popen(["sleep", "60"], stdin=quiet, stdout=quiet, pass_fds=[{pipe}])
server = subprocess.Popen([*command, str(os.getpid())], stdin={stdin}, stdout=subprocess.PIPE)
server.stdout.readline()
print(server.pid, holder.pid, flush=True)
server.wait()
"""


@pytest.mark.parametrize("pipe_stays_open", [False, True])
def test_it_dies_with_a_parent_that_is_killed(pipe_stays_open: bool) -> None:
    """Also if something else holds the pipe: then the kernel's signal has to do it."""
    path = weights.find("smollm2")
    assert path is not None
    reader, writer = os.pipe()
    program = PARENT.format(pipe=writer, stdin=reader if pipe_stays_open else "subprocess.PIPE")
    line = [sys.executable, "-c", program, *COMMAND, "--weights", path, "--parent"]
    parent = subprocess.Popen(line, stdout=subprocess.PIPE, pass_fds=[reader, writer])
    try:
        assert parent.stdout is not None
        server, holder = map(int, parent.stdout.readline().split())
        os.kill(server, 0)
        parent.kill()
        assert gone(server, seconds=30.0)
        os.kill(holder, signal.SIGKILL)
    finally:
        end(parent)
        os.close(reader)
        os.close(writer)


def gone(pid: int, seconds: float) -> bool:
    """Whether the process ends in time; one that nobody has reaped yet counts as gone."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        try:
            os.kill(pid, 0)
            state = subprocess.run(
                ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True
            ).stdout
        except ProcessLookupError:
            return True
        if state.strip().startswith("Z") or not state.strip():
            return True
        time.sleep(0.05)
    return False


def test_it_does_not_start_for_a_parent_that_is_gone_already() -> None:
    process = start(parent=2**22 + 1)
    output, errors = process.communicate(timeout=50)
    assert (process.returncode, output, errors) == (0, b"", b"")


def test_a_file_that_is_no_model_is_one_line_of_error(tmp_path: Path) -> None:
    path = tmp_path / "notes.gguf"
    path.write_text("not a model")
    assert failure(start(path)) == f"ValueError: {path} is not a GGUF file"


def test_a_broken_model_is_one_line_of_error(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + bytes(1000))
    assert failure(start(path)).startswith("RuntimeError: ")
