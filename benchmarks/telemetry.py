"""What telemetry costs on the path of a call and in all threads, what it loses, and how long it takes to end.

Ours in each of its states around the pipeline of `overhead`, next to OpenTelemetry's SDK, logfire and traceloop. Each
peer has a process of its own, for most take global things. What was measured is then shown to have arrived.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import _resilience
import _telemetry
import _telemetry_peers
from _measure import Invalid, command_line, head, refuse, remarks, report, say, table, verdicts
from _otlp_sink import Sink
from _telemetry import Cost, Fate, Subject, in_timeouts, lose, prove
from _telemetry_ours import STATES, Ours, shutdown_seconds

PACE = 4000.0
GOALS = {"path_x": 1.1, "all_threads_x": 4.0, "lost_at_4000_a_second": 0, "shutdown_seconds": 5.0}
EXPLANATIONS = """
Net CPU of a call (less the bare call) in units of asyncio.timeout's net cost, best of many interleaved rounds, inside
one run. Path: the event loop's thread. All threads: the whole process, until everything was delivered. Ours contains
the pipeline (timeout, circuit breaker, retry, fallback), which is all there is in "off"; the peers have none. "null":
users' OpenTelemetry spans nest inside ours, a span with six attributes and two metrics of each call go to an exporter
that only counts them. "otlp": they are encoded and sent to a process that takes them. The peers do the same inline.
"memory": the last calls and all metrics are kept here, on the path. "sampled_out": metrics only.
It was shown of each that every span and both metrics of every call arrived, and who is whose parent.
Full speed: 100,000 calls as fast as they go. What is not delivered is reported, or it is lost silently; here each has
the queue that it has by default."""


def sizes(quick: bool) -> dict[str, int]:
    if quick:
        return {"calls": 300, "rounds": 3, "full_speed": 20_000, "paced": 2000, "unanswered": 100}
    return {"calls": 2000, "rounds": 75, "full_speed": 100_000, "paced": 20_000, "unanswered": 1000}


# --- ours ----------------------------------------------------------------------------------------------


async def measure_ours(*, quick: bool) -> dict[str, Cost]:
    size = sizes(quick)
    async with AsyncExitStack() as stack:
        with Sink() as sink:
            subjects = [
                await stack.enter_async_context(Ours(state, sink=sink if state == "otlp" else None))
                for state in STATES
            ]
            costs = await _telemetry.measure(list(subjects), calls=size["calls"], rounds=size["rounds"])
            made = size["calls"] * (size["rounds"] + 1)
            for subject in subjects:
                await prove(subject, calls=made)
                if subject.name == "memory":
                    prove_memory(subject, made + _telemetry.PROVED)
                if subject.name == "null":
                    logging.disable()
                    await _resilience.prove(subject.name, subject.callee, subject.call)
                    logging.disable(logging.NOTSET)
            await stack.aclose()
    return costs


def prove_memory(subject: Ours, calls: int) -> None:
    kept, gone = subject.kept()
    if kept + gone != calls:
        raise Invalid(f"{subject.name}: {kept} calls are kept and {gone} were let go, of {calls}")


async def lose_ours(state: str, *, calls: int, per_second: float | None = None) -> Fate:
    with ExitStack() as stack:
        sink = stack.enter_context(Sink()) if state == "otlp" else None
        logging.disable()
        async with Ours(state, sink=sink) as subject:
            fate = await lose(subject, calls=calls, per_second=per_second)
        logging.disable(logging.NOTSET)
    if fate.silently:
        raise Invalid(
            f"{state}: {fate.silently} of {fate.calls} spans are neither delivered nor reported as dropped"
        )
    return fate


async def ours(*, quick: bool) -> dict[str, Any]:
    size = sizes(quick)
    say("ours")
    costs = await measure_ours(quick=quick)
    results = in_timeouts(costs) | {"timeout_ns": round(costs["timeout"].path - costs["bare"].path)}
    say("ours: losses")
    for state, suffix in (("null", ""), ("otlp", "_otlp")):
        fast = await lose_ours(state, calls=size["full_speed"])
        paced = await lose_ours(state, calls=size["paced"], per_second=PACE)
        results |= {
            f"lost_at_full_speed{suffix}": fast.lost,
            f"lost_silently{suffix}": fast.silently + paced.silently,
            f"lost_at_4000_a_second{suffix}": paced.lost,
        }
    say("ours: shutdown with a collector that does not answer")
    logging.disable()  # for good: what the exporter that was given up thinks of it comes later
    results["shutdown_seconds"] = round(await shutdown_seconds(size["unanswered"]), 2)
    return results | {"full_speed_calls": size["full_speed"]}


# --- a peer, in its own process ------------------------------------------------------------------------


async def measure_peer(name: str, *, quick: bool) -> dict[str, Any]:
    size = sizes(quick)
    with ExitStack() as stack:
        sink = stack.enter_context(Sink()) if name.endswith("_otlp") else None
        subject = _telemetry_peers.make(name, sink=sink)
        peers: list[Subject] = [subject]
        costs = await _telemetry.measure(peers, calls=size["calls"], rounds=size["rounds"])
        await prove(subject, calls=size["calls"] * (size["rounds"] + 1))
        await subject.aclose()
    return in_timeouts(costs)


async def lose_peer(name: str, *, quick: bool) -> dict[str, Any]:
    logging.disable()
    with ExitStack() as stack:
        sink = stack.enter_context(Sink()) if name.endswith("_otlp") else None
        subject = _telemetry_peers.make(name, sink=sink, queue=None)
        fate = await lose(subject, calls=sizes(quick)["full_speed"])
    return {f"lost_at_full_speed_{name}": fate.lost, f"lost_silently_{name}": fate.silently}


async def end_peer(name: str, *, quick: bool) -> dict[str, Any]:
    if not name.endswith("_otlp"):
        return {}
    logging.disable()
    with socket.create_server(("127.0.0.1", 0), backlog=128) as hole:
        subject = _telemetry_peers.make(name, endpoint=f"http://127.0.0.1:{hole.getsockname()[1]}")
        await subject.make_calls(sizes(quick)["unanswered"])
        return {f"shutdown_seconds_{name}": round(await subject.shutdown_seconds(), 2)}


TASKS = {"measure": measure_peer, "lose": lose_peer, "end": end_peer}


def ask_peer(name: str, task: str, python: str, *, quick: bool) -> dict[str, Any]:
    command = [python, str(Path(__file__)), "--peer", name, "--task", task, *(["--quick"] if quick else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Invalid(f"{name} could not be measured:\n{done.stderr}")
    results: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return results


def compare(results: dict[str, Any], pythons: dict[str, str], *, quick: bool) -> dict[str, Any]:
    """Adds the figures of the peers, each in its process and environment."""
    absent, notes = {}, {}
    for name, note in _telemetry_peers.PEERS.items():
        environment = _telemetry_peers.ENVIRONMENTS.get(name)
        python = sys.executable if environment is None else pythons.get(environment)
        if python is None:
            absent[name] = "it has no environment here"
            continue
        say(name)
        figures = ask_peer(name, "measure", python, quick=quick)
        if not figures:
            absent[name] = "not installed"
            continue
        results |= figures
        for task in ("lose", "end"):
            results |= ask_peer(name, task, python, quick=quick)
        if note:
            notes[name] = note
    return results | {"cannot": notes, "absent": absent}


# --- all -----------------------------------------------------------------------------------------------


def readable(results: dict[str, Any]) -> list[str]:
    def row(name: str) -> list[object]:
        suffix = "" if name == "null" else f"_{name}"
        figures = ("path_x", "all_threads_x", "lost_at_full_speed", "lost_silently", "shutdown_seconds")
        return [name, *(results.get(figure + suffix) for figure in figures)]

    return [
        f"telemetry, Python {results['python']}: asyncio.timeout costs {results['timeout_ns']} ns\n",
        *table(
            [
                "",
                "path",
                "all threads",
                f"lost of {results['full_speed_calls']:,}",
                "silently",
                "shutdown, s",
            ],
            [row(name) for name in (*STATES, *_telemetry_peers.PEERS) if row(name)[1] is not None],
        ),
        "",
        *verdicts(results, GOALS),
        EXPLANATIONS,
        "",
        *remarks(results),
    ]


def peer_main(name: str, task: str, *, quick: bool) -> None:
    try:
        results = asyncio.run(TASKS[task](name, quick=quick))
    except ImportError as error:
        if error.name is None or error.name.startswith("agentrt"):
            raise
        say(f"{name} is not installed: {error}")
        results = {}
    print(json.dumps(results))


def main() -> None:
    parser = command_line("telemetry", __doc__ or "")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--task", choices=TASKS, default="measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        if options.peer:
            peer_main(options.peer, options.task, quick=options.quick)
            return
        results = head("telemetry", quick=options.quick) | asyncio.run(ours(quick=options.quick))
        pythons = json.loads(os.environ.get("AGENTRT_BENCH_PYTHONS", "{}"))
        if options.ours:
            results |= {"absent": dict.fromkeys(_telemetry_peers.PEERS, "not wanted")}
        else:
            results = compare(results, pythons, quick=options.quick)
    except Invalid as error:
        refuse(error)
    report(results, as_json=options.json, lines=readable(results))


if __name__ == "__main__":
    main()
