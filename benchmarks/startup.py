"""How long it takes until agentrt is imported, and until `agentrt run` has answered.

Every measurement is a new process, compared with one that does the same with nothing but asyncio.
"""

from __future__ import annotations

import compileall
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _measure import Invalid, TooNoisy, command_line, head, refuse, report, say, table, verdicts

import agentrt

ECHO = """\
async def echo(message: str) -> str:
    return message
"""
BARE = """\
import asyncio
async def echo(message):
    return message
print(asyncio.run(echo("hello")))
"""
GOALS = {"import_x": 1.5, "cli_x": 2.5}
EXPLANATIONS = """
Milliseconds of a whole process: CPU time, user and system (the best of many interleaved ones), and wall time (their
median). import_x: `import agentrt` over `import asyncio`, each less an interpreter that does nothing; use_x: the same
for `from agentrt import Agent, Runtime, tool`, which loads what an agent's file needs. cli_x: `agentrt run` on an echo
agent over `python -c` with an echo coroutine, both whole, in CPU time. Bytecode is compiled, and only what agentrt
itself depends on is installed."""


def commands(folder: Path) -> dict[str, list[str]]:
    """What is started for each case."""
    program = Path(sys.executable).with_name("agentrt")
    (folder / "echo_agent.py").write_text(ECHO)

    def python(code: str) -> list[str]:
        return [sys.executable, "-c", code]

    return {
        "interpreter": python("pass"),
        "import_asyncio": python("import asyncio"),
        "import_agentrt": python("import agentrt"),
        "use_agentrt": python("from agentrt import Agent, Runtime, tool"),
        "asyncio_echo": python(BARE),
        "agentrt_run": [str(program), "run", "echo_agent:echo", "hello"],
    }


def check(command: Sequence[str], folder: Path, expected: str) -> None:
    """Run it once, which also writes the bytecode of all that it imports, and look at what it says."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode or done.stdout.strip() != expected:
        raise Invalid(f"{' '.join(command)} gave {done.returncode} and {done.stdout!r}\n{done.stderr}")


def environment() -> dict[str, str]:
    """The caller's, but with bytecode as an installation has it."""
    unwanted = ("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "PYTHONPATH", "COVERAGE_PROCESS_START")
    return {name: value for name, value in os.environ.items() if name not in unwanted}


def once(command: list[str]) -> tuple[float, float]:
    """Milliseconds of CPU and of wall time of one process."""
    null = os.open(os.devnull, os.O_RDWR)
    places = [(os.POSIX_SPAWN_DUP2, null, number) for number in (0, 1, 2)]
    started = time.perf_counter()
    child = os.posix_spawn(command[0], command, environment(), file_actions=places)
    _, status, used = os.wait4(child, 0)
    wall = time.perf_counter() - started
    os.close(null)
    if status:
        raise Invalid(f"{' '.join(command)} failed when it was measured")
    return (used.ru_utime + used.ru_stime) * 1000, wall * 1000


def measure(*, quick: bool) -> dict[str, Any]:
    rounds = 2 if quick else 40
    cpu: dict[str, list[float]] = {}
    wall: dict[str, list[float]] = {}
    compileall.compile_dir(Path(agentrt.__file__).parent, quiet=1)
    with tempfile.TemporaryDirectory() as place:
        cases = commands(Path(place))
        for name, command in cases.items():
            check(command, Path(place), "hello" if name in ("asyncio_echo", "agentrt_run") else "")
        say(f"{rounds} rounds of {len(cases)} processes")
        before = Path.cwd()
        os.chdir(place)
        try:
            for _ in range(rounds):
                for name, command in cases.items():
                    used, took = once(command)
                    cpu.setdefault(name, []).append(used)
                    wall.setdefault(name, []).append(took)
        finally:
            os.chdir(before)
    return head("startup", quick=quick) | figures(
        {name: min(values) for name, values in cpu.items()},
        {name: statistics.median(values) for name, values in wall.items()},
    )


def figures(cpu: dict[str, float], wall: dict[str, float]) -> dict[str, Any]:
    net = {name: value - cpu["interpreter"] for name, value in cpu.items()}
    if net["import_asyncio"] <= 0:
        raise TooNoisy("importing asyncio took no time: the machine is too noisy to measure on")
    ratios = {
        "import_x": net["import_agentrt"] / net["import_asyncio"],
        "use_x": net["use_agentrt"] / net["import_asyncio"],
        "cli_x": cpu["agentrt_run"] / cpu["asyncio_echo"],
        "cli_wall_x": wall["agentrt_run"] / wall["asyncio_echo"],
    }
    milliseconds = {f"{name}_ms": value for name, value in cpu.items()}
    milliseconds |= {f"{name}_wall_ms": value for name, value in wall.items()}
    return {name: round(value, 2) for name, value in (ratios | milliseconds).items()}


def readable(results: dict[str, Any]) -> list[str]:
    names = [name.removesuffix("_wall_ms") for name in results if name.endswith("_wall_ms")]
    return [
        f"startup, Python {results['python']}\n",
        *table(
            ["ms of a process", "CPU", "wall"],
            [[name, results[f"{name}_ms"], results[f"{name}_wall_ms"]] for name in names],
        ),
        "",
        *table(
            ["", "ratio"], [[name, results[name]] for name in ("import_x", "use_x", "cli_x", "cli_wall_x")]
        ),
        "",
        *verdicts(results, GOALS),
        EXPLANATIONS,
    ]


def main() -> None:
    options = command_line("startup", __doc__ or "").parse_args()
    try:
        results = measure(quick=options.quick)
    except Invalid as error:
        refuse(error)
    report(results, as_json=options.json, lines=readable(results))


if __name__ == "__main__":
    main()
