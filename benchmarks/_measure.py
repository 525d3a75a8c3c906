"""How every benchmark here measures and reports.

CPU time of the thread, so that other processes do not count; cases interleaved round by round, so that a slow minute
of the machine hits all of them; the minimum over many rounds, because noise only ever adds; garbage collection left
on, because it is on in production. Figures are ratios of such minima, all from one run.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import platform
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from agentrt import Limits, Runtime

T = TypeVar("T")

Repeat = Callable[[int], Awaitable[None]]
"""Makes that many calls of one case."""


class Invalid(Exception):
    """What was measured is not what it claims to be; there are no figures then."""


class TooNoisy(Invalid):
    """Nothing is wrong with what was measured; another time there may be figures."""


TEMPORARY = 75
"""The exit status of a benchmark on too noisy a machine: EX_TEMPFAIL of sysexits.h."""


def refuse(error: Invalid) -> NoReturn:
    """End the process without figures."""
    print(f"bench: no figures: {error}", file=sys.stderr)
    sys.exit(TEMPORARY if isinstance(error, TooNoisy) else 1)


def command_line(name: str, description: str) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(f"benchmarks/{name}.py", description=description)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument(
        "--quick", action="store_true", help="few rounds: shows that it works, not how fast it is"
    )
    parser.add_argument("--ours", action="store_true", help="leave the peers out")
    return parser


def run(benchmark: Coroutine[Any, Any, T]) -> T:
    """Run a whole benchmark inside a run that has a deadline; a failed proof ends the process, without figures."""

    async def agent(message: str) -> T:
        return await benchmark

    async def within_a_run() -> T:
        async with Runtime() as runtime:
            output: T = (await runtime.run(agent, "go", limits=Limits(seconds=3600.0))).output
            return output

    try:
        return asyncio.run(within_a_run())
    except Invalid as error:
        refuse(error)


def say(text: str) -> None:
    """Progress, on stderr."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


async def minima(
    cases: Mapping[str, Repeat],
    *,
    calls: int,
    rounds: int,
    rarely: Collection[str] = (),
    clock: Callable[[], int] = time.thread_time_ns,
    collect: bool = False,
) -> dict[str, float]:
    """Nanoseconds of CPU time for one call of each case: its best round.

    Cases named in `rarely` take part in every third round only: what takes long needs no finer figure. `collect`: the
    garbage of before is collected first, so that each case pays for its own, however often that is then due.
    """
    best = dict.fromkeys(cases, float("inf"))
    for repeat in cases.values():
        await repeat(calls)
        await asyncio.sleep(0)
    for number in range(rounds):
        for name, repeat in cases.items():
            if number % 3 and name in rarely:
                continue
            if collect:
                gc.collect()
            started = clock()
            await repeat(calls)
            # One turn of the loop, timed: whoever leaves cancelled timers behind pays for their removal.
            await asyncio.sleep(0)
            best[name] = min(best[name], (clock() - started) / calls)
    return best


def in_units(measured: Mapping[str, float], *, bare: str, unit: str) -> dict[str, float]:
    """Each case's net cost in units of the net cost of `unit`; net means less `bare`."""
    net = measured[unit] - measured[bare]
    if net <= 0:
        raise TooNoisy(f"{unit} was not slower than {bare}: the machine is too noisy to measure on")
    return {
        name: round((value - measured[bare]) / net, 3)
        for name, value in measured.items()
        if name not in (bare, unit)
    }


def report(results: dict[str, Any], *, as_json: bool, lines: Sequence[str]) -> None:
    """Print the results: a JSON object, or `lines` for a reader."""
    print(json.dumps(results, indent=2) if as_json else "\n".join(lines))


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """The lines of a table; numbers stand to the right, "-" for None."""
    texts = [[_shown(cell) for cell in row] for row in [head, *rows]]
    widths = [max(len(row[column]) for row in texts) for column in range(len(head))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in texts
    ]


def _shown(cell: object) -> str:
    if isinstance(cell, float):
        return f"{cell:.2f}"
    return "-" if cell is None else str(cell)


def verdicts(results: Mapping[str, Any], goals: Mapping[str, float]) -> list[str]:
    """One line for each figure that has a goal: the most that it should be."""
    return [
        f"{name} {results[name]:g}: {'within' if results[name] <= most else 'ABOVE'} the goal of {most:g}"
        for name, most in goals.items()
        if results.get(name) is not None
    ]


def remarks(results: Mapping[str, Any]) -> list[str]:
    """What a peer cannot do, and which are missing."""
    lines = [f"{peer}: {text}" for peer, text in results.get("cannot", {}).items()]
    return lines + [f"{peer} is left out: {text}" for peer, text in results.get("absent", {}).items()]


def head(benchmark: str, *, quick: bool) -> dict[str, Any]:
    """What every result says about where it comes from."""
    return {"benchmark": benchmark, "python": platform.python_version(), "quick": quick}
