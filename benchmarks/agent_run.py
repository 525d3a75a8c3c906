"""What one run of an agent costs, model -> tool -> model, next to other frameworks.

Each framework is measured in an environment of its own, and ours in the same process, round by round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import _frameworks
from _frameworks import ANSWER, BAD_ARGUMENTS, Run, World
from _measure import (
    Invalid,
    Repeat,
    TooNoisy,
    command_line,
    head,
    minima,
    refuse,
    remarks,
    report,
    say,
    table,
    verdicts,
)

from agentrt import Runtime

GOALS = {"run_x_agent_framework": 0.25}
EXPLANATIONS = """
CPU time of one run of an agent: the model asks for a tool, gets its result, answers. Best of many interleaved rounds,
all threads counted. Ours has its default pipeline around each of the three calls, validates the tool's arguments, and
its records are consumed; the others run as they come, without retry, fallback or limits. "ours / theirs" was measured
in one process each, in the framework's own environment. Every run was shown to make two model calls and one tool
call and to give the right answer, and a call with wrong arguments not to reach the tool."""


def repeat(run: Run) -> Repeat:
    async def loop(runs: int) -> None:
        for _ in range(runs):
            if await run() != ANSWER:
                raise Invalid("a run gave another answer")

    return loop


async def noop() -> None:
    pass


async def bare(calls: int) -> None:
    for _ in range(calls):
        await noop()


async def under_timeout(calls: int) -> None:
    for _ in range(calls):
        async with asyncio.timeout(60.0):
            await noop()


async def prove(name: str, world: World, run: Run) -> None:
    """Two model calls, one tool call, the right answer; and wrong arguments never reach the tool."""
    before = world.model_calls, world.tool_calls
    said = await run()
    made = world.model_calls - before[0], world.tool_calls - before[1]
    if (said, made) != (ANSWER, (2, 1)):
        raise Invalid(f"{name} said {said!r} after {made[0]} model calls and {made[1]} tool calls")
    if name == "plain":
        return
    good, world.arguments = world.arguments, BAD_ARGUMENTS
    try:
        await run()
    finally:
        world.arguments = good
    if world.tool_calls != before[1] + 1:
        raise Invalid(f"{name} does not validate the arguments of tools")


async def measure(peer: str | None, *, quick: bool) -> dict[str, float]:
    """Microseconds of a run, ours and of `peer`, and of asyncio.timeout's net cost."""
    worlds = {name: World() for name in ("agentrt", "plain", *([peer] if peer else []))}
    async with Runtime(models={"fake": _frameworks.FakeModel(worlds["agentrt"])}) as runtime:
        runs = {
            "agentrt": _frameworks.agentrt(worlds["agentrt"], runtime),
            "plain": _frameworks.plain(worlds["plain"]),
        }
        if peer:
            runs[peer] = _frameworks.PEERS[peer](worlds[peer])
        logging.disable()  # a tool that refuses its arguments is news to some of them
        for name, run in runs.items():
            await prove(name, worlds[name], run)
        logging.disable(logging.NOTSET)
        cases = {name: repeat(run) for name, run in runs.items()}
        measured = await minima(
            cases, calls=2 if quick else 20, rounds=3 if quick else 60, clock=time.process_time_ns
        )
        units = await minima({"bare": bare, "timeout": under_timeout}, calls=1000, rounds=3 if quick else 60)
    timeout = units["timeout"] - units["bare"]
    if timeout <= 0:
        raise TooNoisy("asyncio.timeout was not slower than nothing: the machine is too noisy to measure on")
    microseconds = {name: value / 1000 for name, value in measured.items()}
    return microseconds | {"timeout": timeout / 1000}


def measure_peer(peer: str, python: str, *, quick: bool) -> dict[str, float]:
    """The same in the environment of that peer."""
    command = [python, str(Path(__file__)), "--peer", peer, *(["--quick"] if quick else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Invalid(f"{peer} could not be measured:\n{done.stderr}")
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def compare(pythons: dict[str, str], *, quick: bool) -> dict[str, Any]:
    results = head("agent_run", quick=quick)
    say("ours alone")
    alone = asyncio.run(measure(None, quick=quick))
    absent = {}
    ratios: dict[str, float] = {}
    theirs: dict[str, float] = {}
    for peer in _frameworks.PEERS:
        if peer not in pythons:
            absent[peer] = "it has no environment here"
            continue
        say(peer)
        together = measure_peer(peer, pythons[peer], quick=quick)
        if peer not in together:
            absent[peer] = "not installed"
            continue
        ratios[f"run_x_{peer}"] = round(together["agentrt"] / together[peer], 3)
        theirs |= {f"{peer}_us": round(together[peer], 1), f"{peer}_ours_us": round(together["agentrt"], 1)}
    ours = {
        "run_us": round(alone["agentrt"], 1),
        "plain_us": round(alone["plain"], 1),
        "timeout_us": round(alone["timeout"], 2),
        "run_in_timeouts": round((alone["agentrt"] - alone["plain"]) / alone["timeout"], 1),
    }
    return results | ratios | ours | theirs | {"absent": absent}


def readable(results: dict[str, Any]) -> list[str]:
    rows: list[list[object]] = [
        ["plain asyncio, none of it", results["plain_us"], None, None],
        ["agentrt", results["run_us"], None, None],
    ]
    for peer in _frameworks.PEERS:
        if f"{peer}_us" in results:
            figures = (results[f"{peer}_us"], results[f"{peer}_ours_us"], results[f"run_x_{peer}"])
            rows.append([peer, *figures])
    return [
        f"agent_run, Python {results['python']}\n",
        *table(["us of a run", "", "ours there", "ours / theirs"], rows),
        "",
        f"agentrt adds {results['run_in_timeouts']} times what asyncio.timeout costs, to a run of three calls",
        *verdicts(results, GOALS),
        EXPLANATIONS,
        *remarks(results),
    ]


def main() -> None:
    parser = command_line("agent_run", __doc__ or "")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        if options.peer:
            try:
                measured = asyncio.run(measure(options.peer, quick=options.quick))
            except ImportError as error:
                if error.name is None or error.name.startswith("agentrt"):
                    raise
                say(f"{options.peer} is not installed: {error}")
                measured = {}
            print(json.dumps(measured))
            return
        pythons = json.loads(os.environ.get("AGENTRT_BENCH_PYTHONS", "{}"))
        results = compare({} if options.ours else pythons, quick=options.quick)
    except Invalid as error:
        refuse(error)
    report(results, as_json=options.json, lines=readable(results))


if __name__ == "__main__":
    main()
