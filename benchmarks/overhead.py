"""What a call through the pipeline costs, in units of what `asyncio.timeout` costs.

Each object is measured, and then the same object is shown to retry, time out, fall back, open its circuit and end at
its deadline: otherwise there are no figures.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
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
from _resilience import ATTEMPT, DEADLINE, Callee, Serve, pipeline, prove, stages

from agentrt.pipeline import Pipeline

Proof = Callable[[], Coroutine[Any, Any, None]]

TARGETS = 1000
ITEMS = 200
GOALS = {"pipeline_x": 0.5, "pipeline_telemetry_x": 0.8}
EXPLANATIONS = """
Net cost of a call (less the bare call) in units of asyncio.timeout's net cost: CPU time, best of many interleaved
rounds in one process, within a run that has a deadline. The callee returns at once, or suspends for one turn of
the loop. "1,000 targets": each call goes to the next of 1,000. Telemetry: the record of each call is handed to a
collector. default_pipeline: `Pipeline.default`, whose circuit breaker has a window of time and which has no second
target. Stage by stage: the pipeline grows from the call outward. What was measured (but not the default, whose limits
are long) was then shown to retry, time out, fall back, open its circuit and, ours, to end at its deadline."""


def repeat(call: Serve) -> Repeat:
    async def loop(calls: int) -> None:
        for _ in range(calls):
            await call()

    return loop


def repeat_under_timeout(serve: Serve) -> Repeat:
    async def loop(calls: int) -> None:
        for _ in range(calls):
            async with asyncio.timeout(ATTEMPT):
                await serve()

    return loop


def repeat_through(protected: Pipeline, serve: Serve) -> Repeat:
    async def loop(calls: int) -> None:
        for _ in range(calls):
            await protected.call(serve)

    return loop


def repeat_making(protected: Pipeline, serve: Serve) -> Repeat:
    """Makes calls and does not send them, but awaits the callee as the bare case does."""

    async def loop(calls: int) -> None:
        for _ in range(calls):
            protected.new_call(serve)
            await serve()

    return loop


def repeat_over_targets(protected: Pipeline, serve: Serve) -> Repeat:
    send, new_call = protected.send, protected.new_call
    targets = [f"service {number}" for number in range(TARGETS)]

    async def loop(calls: int) -> None:
        for number in range(calls):
            await send(new_call(serve, target=targets[number % TARGETS]))

    return loop


def repeat_over_objects(objects: list[Serve]) -> Repeat:
    async def loop(calls: int) -> None:
        for number in range(calls):
            await objects[number % TARGETS]()

    return loop


# --- calls ---------------------------------------------------------------------------------------------


async def measure_calls(
    names: list[str], *, suspends: bool, calls: int, rounds: int
) -> tuple[dict[str, float], dict[str, float], list[Proof]]:
    """The figures for one kind of callee, the nanoseconds behind them, and the proofs to be made."""
    callee = Callee(seconds=0.0 if suspends else None)
    serve = callee.serve
    collected: deque[Any] = deque(maxlen=1000)
    ours = pipeline(callee)
    observed = pipeline(callee, collect=collected.append)
    default = Pipeline.default(target="service", idempotent=True, deadline=180.0)
    cases = {
        "bare": repeat(serve),
        "timeout": repeat_under_timeout(serve),
        "pipeline": repeat_through(ours, serve),
        "pipeline_telemetry": repeat_through(observed, serve),
        "default_pipeline": repeat_through(default, serve),
        "pipeline_1000_targets": repeat_over_targets(pipeline(callee), serve),
    }
    if not suspends:
        cases |= stage_by_stage(callee)
    proofs: list[Proof] = [
        partial(prove, "pipeline", callee, partial(ours.call, serve)),
        partial(prove, "pipeline with telemetry", callee, partial(observed.call, serve)),
    ]
    for name in names:
        peer = _peers.make(name, callee)
        cases[name] = repeat(peer)
        cases[f"{name}_1000_targets"] = repeat_over_objects(
            [_peers.make(name, callee) for _ in range(TARGETS)]
        )
        proofs.append(partial(prove, name, callee, peer, cannot=("deadline",)))
    measured = await minima(cases, calls=calls, rounds=rounds)
    if collected[-1].record.ended is None or collected[-1].record.attempts[0].error is not None:
        raise Invalid("the collector did not get the records of finished calls")
    suffix = "_suspends_x" if suspends else "_x"
    figures = in_units(measured, bare="bare", unit="timeout")
    return {name + suffix: value for name, value in figures.items()}, measured, proofs


def stage_by_stage(callee: Callee) -> dict[str, Repeat]:
    """A pipeline that grows by one stage at a time, so that each one's cost is a difference.

    It begins with the timeout, for something has to hold the run's deadline.
    """
    drained: deque[Any] = deque(maxlen=1000)
    every = stages(callee, collect=drained.append)
    cases = {"making_a_call": repeat_making(pipeline(callee), callee.serve)}
    for count, stage in enumerate(every, start=1):
        grown = Pipeline(inner_first=every[:count], target="service", idempotent=True, deadline=DEADLINE)
        cases[f"up_to_{stage.name}"] = repeat_through(grown, callee.serve)
    return cases


# --- streams -------------------------------------------------------------------------------------------


async def measure_streams(*, calls: int, rounds: int) -> dict[str, float]:
    callee = Callee()
    ours = pipeline(callee)

    async def items(count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number

    def bare(count: int) -> Repeat:
        async def loop(calls: int) -> None:
            for _ in range(calls):
                async for _ in items(count):
                    pass

        return loop

    def streamed(count: int) -> Repeat:
        async def loop(calls: int) -> None:
            for _ in range(calls):
                async with ours.stream(items, count) as stream:
                    async for _ in stream:
                        pass

        return loop

    async with ours.stream(items, ITEMS) as stream:
        if [number async for number in stream] != list(range(ITEMS)):
            raise Invalid("the stream did not hand on every item")
    measured = await minima(
        {
            "bare": repeat(callee.serve),
            "timeout": repeat_under_timeout(callee.serve),
            "bare_1": bare(1),
            "stream_1": streamed(1),
            "bare_many": bare(1 + ITEMS),
            "stream_many": streamed(1 + ITEMS),
        },
        calls=max(1, calls // 10),
        rounds=rounds,
    )
    unit = measured["timeout"] - measured["bare"]
    opening = measured["stream_1"] - measured["bare_1"]
    every = measured["stream_many"] - measured["bare_many"]
    return {
        "pipeline_stream_x_per_item": round((every - opening) / ITEMS / unit, 3),
        "pipeline_stream_open_x": round(opening / unit, 3),
    }


async def prove_stream(rounds: int) -> None:
    """An item that does not come is noticed, so what was measured has its idle limit and its settling."""
    ours = pipeline(Callee())

    async def stalls() -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(3600)

    try:
        async with ours.stream(stalls) as stream:
            async for _ in stream:
                pass
    except TimeoutError as error:
        if getattr(error, "limit", None) == "idle":
            return
    raise Invalid("the stream did not notice that an item does not come")


# --- all -----------------------------------------------------------------------------------------------


async def measure(*, quick: bool, ours: bool) -> dict[str, Any]:
    calls, rounds = (100, 3) if quick else (1000, 150)
    names, absent = _peers.installed(not ours)
    results = head("overhead", quick=quick)
    proofs: list[Proof] = []
    for suspends in (False, True):
        say(f"calls whose callee {'suspends' if suspends else 'returns at once'}")
        figures, measured, claims = await measure_calls(names, suspends=suspends, calls=calls, rounds=rounds)
        results |= figures
        proofs += claims
        if not suspends:
            results |= {
                "timeout_ns": round(measured["timeout"] - measured["bare"]),
                "bare_ns": round(measured["bare"]),
            }
    say("streams")
    results |= await measure_streams(calls=calls, rounds=rounds)
    say(f"proofs, of {len(proofs)} objects: they wait for real timeouts")
    logging.disable()
    await prove_stream(rounds)
    for proof in proofs:
        await proof()
    logging.disable(logging.NOTSET)
    results["cannot"] = {name: text for name, text in _peers.PEERS.items() if name in names}
    results["absent"] = absent
    return results


def readable(results: dict[str, Any]) -> list[str]:
    def row(name: str) -> list[object]:
        kinds = ("_x", "_1000_targets_x", "_suspends_x", "_1000_targets_suspends_x")
        return [name, *(results.get(name + kind) for kind in kinds)]

    growing = [name.removesuffix("_x") for name in results if name.startswith(("making_a_call", "up_to_"))]
    return [
        f"overhead, Python {results['python']}: asyncio.timeout costs {results['timeout_ns']} ns\n",
        *table(
            ["", "1 target", "1,000 targets", "suspends", "suspends, 1,000"],
            [
                row(name)
                for name in ("pipeline", "pipeline_telemetry", "default_pipeline", *results["cannot"])
            ],
        ),
        "",
        *table(["stage by stage", ""], [[name, results[f"{name}_x"]] for name in growing]),
        "",
        *table(
            ["stream", ""],
            [[name, results[f"pipeline_stream_{name}"]] for name in ("x_per_item", "open_x")],
        ),
        "",
        *verdicts(results, GOALS),
        EXPLANATIONS,
        "",
        *remarks(results),
    ]


def main() -> None:
    options = command_line("overhead", __doc__ or "").parse_args()
    results = run(measure(quick=options.quick, ours=options.ours))
    report(results, as_json=options.json, lines=readable(results))


if __name__ == "__main__":
    main()
