"""What 10,000 concurrent calls through the pipeline cost in CPU time and in memory.

Each of 10,000 tasks makes 3 calls, one after the other, of a service that answers after 10 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import _peers
from _measure import (
    Invalid,
    Repeat,
    command_line,
    head,
    in_units,
    minima,
    remarks,
    report,
    run,
    say,
    table,
    verdicts,
)
from _resilience import PRIMARY, Callee, Serve, pipeline

CALLS_EACH = 3
SECONDS = 0.01
# So long that the slowest peer ends no call early, however late the loop gets round to it.
ATTEMPT = 60.0
DEADLINE = 180.0

GOALS = {"cpu_x": 1.0, "bytes_per_call": 1536.0}
EXPLANATIONS = """
{tasks} tasks make {calls} calls each, one after the other, of a service that takes 10 ms. CPU: what is added to the
bare calls, in units of what asyncio.timeout adds; best of several interleaved rounds in one process. Bytes: peak
memory of all that Python allocates, less that of the bare tasks, for each call in flight, each case in a process of
its own. RSS: the same as the operating system sees it, in whole pages. Every call was counted, and all of the tasks
were shown to have one in flight at the same time."""


def case(name: str, callee: Callee) -> Repeat:
    """All calls of one case, at once."""
    match name:
        case "bare":
            return in_flight(callee.serve)
        case "timeout":
            return in_flight_under_timeout(callee.serve)
        case "pipeline":
            return in_flight(through_pipeline(callee))
        case _:
            return in_flight(_peers.make(name, callee))


def through_pipeline(callee: Callee) -> Serve:
    ours, serve = pipeline(callee), callee.serve
    return lambda: ours.call(serve)


def in_flight(call: Serve) -> Repeat:
    async def one() -> None:
        for _ in range(CALLS_EACH):
            check(await call())

    return partial(all_at_once, one)


def in_flight_under_timeout(serve: Serve) -> Repeat:
    async def one() -> None:
        for _ in range(CALLS_EACH):
            async with asyncio.timeout(ATTEMPT):
                check(await serve())

    return partial(all_at_once, one)


def check(answer: str) -> None:
    if answer != PRIMARY:
        raise Invalid("a call was not answered by the service itself")


async def all_at_once(one: Callable[[], Coroutine[Any, Any, None]], tasks: int) -> None:
    await asyncio.gather(*(asyncio.create_task(one()) for _ in range(tasks)))


async def count(name: str, callee: Callee, repeat: Repeat, tasks: int) -> None:
    """Show that every call arrives once, and that all tasks have one in flight at the same time."""
    seen = 0
    everybody = asyncio.Event()

    async def counting() -> str:
        nonlocal seen
        seen += 1
        if seen == tasks:
            everybody.set()
        await everybody.wait()
        return PRIMARY

    callee.begin(counting)
    try:
        async with asyncio.timeout(30.0):
            await repeat(tasks)
    except TimeoutError:
        raise Invalid(f"{name}: only {seen} of {tasks} calls were in flight at once") from None
    finally:
        callee.begin()
    if seen != tasks * CALLS_EACH:
        raise Invalid(f"{name}: the service saw {seen} calls of {tasks * CALLS_EACH}")


def new_callee() -> Callee:
    return Callee(seconds=SECONDS, attempt=ATTEMPT, deadline=DEADLINE)


# --- CPU -----------------------------------------------------------------------------------------------


async def measure_cpu(names: list[str], *, tasks: int, rounds: int) -> dict[str, float]:
    callee = new_callee()
    repeats = {name: case(name, callee) for name in ("bare", "timeout", "pipeline", *names)}
    for name, repeat in repeats.items():
        await count(name, callee, repeat, tasks)
    say("CPU time")
    measured = await minima(repeats, calls=tasks, rounds=rounds, rarely=names, collect=True)
    return in_units(measured, bare="bare", unit="timeout") | {
        "timeout_us": round((measured["timeout"] - measured["bare"]) / CALLS_EACH / 1000, 2)
    }


# --- memory --------------------------------------------------------------------------------------------


def measure_memory(kind: str, names: list[str], *, tasks: int) -> dict[str, int | None]:
    """Peak bytes of each case, less the bare case's, for one call in flight; `kind`: "traced" or "rss"."""
    peaks = {}
    for name in ("bare", "timeout", "pipeline", *names):
        if kind == "rss" and sys.platform != "linux":
            return dict.fromkeys(("timeout", "pipeline", *names))
        command = [
            sys.executable,
            str(Path(__file__)),
            "--peak-of",
            name,
            "--kind",
            kind,
            "--tasks",
            str(tasks),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Invalid(f"the memory of {name} could not be measured:\n{done.stderr}")
        peaks[name] = int(done.stdout)
    return {name: round((peak - peaks["bare"]) / tasks) for name, peak in peaks.items() if name != "bare"}


async def peak(name: str, kind: str, tasks: int) -> int:
    """Peak bytes while one case runs, over what the process had before."""
    callee = new_callee()
    repeat = case(name, callee)
    await repeat(min(tasks, 100))
    gc.collect()
    if kind == "traced":
        tracemalloc.start()
        await repeat(tasks)
        return tracemalloc.get_traced_memory()[1]
    before = _peak_since_now()
    await repeat(tasks)
    return _peak() - before


# Only Linux can be asked for the peak since a certain moment; elsewhere there is no such figure.
def _peak_since_now() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


# --- all -----------------------------------------------------------------------------------------------


async def measure(*, quick: bool, ours: bool) -> dict[str, Any]:
    tasks, rounds = (200, 2) if quick else (10_000, 7)
    names, absent = _peers.installed(not ours)
    say("memory, as Python counts it")
    traced = measure_memory("traced", names, tasks=tasks)
    say("memory, as the operating system counts it")
    resident = measure_memory("rss", names, tasks=tasks)
    cpu = await measure_cpu(names, tasks=tasks, rounds=rounds)
    results = head("inflight", quick=quick) | {"tasks": tasks, "timeout_us": cpu.pop("timeout_us")}
    for name, prefix in {
        "pipeline": "",
        "timeout": "timeout_",
        **{name: f"{name}_" for name in names},
    }.items():
        results[f"{prefix}cpu_x"] = cpu.get(name, 1.0)
        results[f"{prefix}bytes_per_call"] = traced[name]
        results[f"{prefix}rss_bytes_per_call"] = resident[name]
    results["cannot"] = {name: text for name, text in _peers.PEERS.items() if name in names}
    results["absent"] = absent
    return results


def readable(results: dict[str, Any]) -> list[str]:
    def row(name: str, prefix: str) -> list[object]:
        return [
            name,
            *(results[prefix + figure] for figure in ("cpu_x", "bytes_per_call", "rss_bytes_per_call")),
        ]

    rows = [row("asyncio.timeout", "timeout_"), row("pipeline", "")]
    rows += [row(name, f"{name}_") for name in results["cannot"]]
    return [
        f"inflight, Python {results['python']}: asyncio.timeout adds {results['timeout_us']} us a call\n",
        *table(["added", "CPU", "bytes a call", "RSS a call"], rows),
        "",
        *verdicts(results, GOALS),
        EXPLANATIONS.format(tasks=results["tasks"], calls=CALLS_EACH),
        "",
        *remarks(results),
    ]


def main() -> None:
    parser = command_line("inflight", __doc__ or "")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    parser.add_argument("--tasks", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        print(run(peak(options.peak_of, options.kind, options.tasks)))
        return
    results = run(measure(quick=options.quick, ours=options.ours))
    report(results, as_json=options.json, lines=readable(results))


if __name__ == "__main__":
    main()
