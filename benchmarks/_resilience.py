"""One callee, our pipeline around it, and the proof that an object protects it; the peers are in `_peers`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from _measure import Invalid

from agentrt.middleware.circuit_breaker import CircuitBreaker
from agentrt.middleware.fallback import Fallback
from agentrt.middleware.retry import Retry, RetryBudget
from agentrt.middleware.telemetry import Telemetry
from agentrt.middleware.timeout import Timeout
from agentrt.pipeline import Pipeline

Serve = Callable[[], Awaitable[str]]

# The same for us and for every peer, as far as it has the option. Seconds.
ATTEMPT = 0.5
DEADLINE = 2.0
ATTEMPTS = 3
BACKOFF = 0.005
WINDOW = 100
MINIMUM = 10
RATE = 0.5
RESET = 30.0

PRIMARY, SECONDARY = "primary", "secondary"


class Down(ConnectionError):
    """What the callee raises when it is told to fail."""


class Callee:
    """A service with a second target. `serve` and `stand_in` do nothing, so that what surrounds them is all there is
    to measure, unless `outage` tells them to hang or to fail: the object that was measured can then be put to proof.

    `seconds`: how long `serve` sleeps; 0 is one turn of the loop, None is not at all. `attempt`, `deadline`: the limits
    that those around it are to have, in seconds. `calls` counts those made during an outage,
    `hung` has the seconds after which each one that hung was ended.
    """

    def __init__(
        self, *, seconds: float | None = None, attempt: float = ATTEMPT, deadline: float = DEADLINE
    ) -> None:
        self.attempt = attempt
        self.deadline = deadline
        self.outage: list[Callable[[], Awaitable[str]]] = []
        self.calls = 0
        self.hung: list[float] = []
        outage = self.outage

        async def serve() -> str:
            if outage:
                return await outage[0]()
            return PRIMARY

        async def serve_suspending() -> str:
            if outage:
                return await outage[0]()
            await asyncio.sleep(seconds or 0.0)
            return PRIMARY

        async def stand_in() -> str:
            if len(outage) > 1:
                return await outage[1]()
            return SECONDARY

        self.serve: Serve = serve if seconds is None else serve_suspending
        self.stand_in: Serve = stand_in

    async def hang(self) -> str:
        self.calls += 1
        started = now()
        try:
            await asyncio.sleep(3600)
        finally:
            self.hung.append(now() - started)
        return PRIMARY

    async def fail(self) -> str:
        self.calls += 1
        raise Down("the service is down")

    def fail_times(self, times: int) -> Callable[[], Awaitable[str]]:
        async def serve() -> str:
            self.calls += 1
            if self.calls <= times:
                raise Down("the service is down")
            return PRIMARY

        return serve

    def begin(self, *outage: Callable[[], Awaitable[str]]) -> None:
        self.outage[:] = outage
        self.calls = 0
        self.hung.clear()


def stages(callee: Callee, *, collect: Callable[[Any], object] | None = None) -> list[Any]:
    """The five of a default pipeline, all of them really configured, from the call outward."""
    return [
        Timeout(attempt=callee.attempt, first_item=callee.attempt, idle=callee.attempt),
        CircuitBreaker(failure_rate=RATE, window_calls=WINDOW, minimum_calls=MINIMUM, reset_timeout=RESET),
        Retry(max_attempts=ATTEMPTS, initial_delay=BACKOFF, budget=RetryBudget()),
        Fallback(callee.stand_in),
        Telemetry(collect=collect),
    ]


def pipeline(callee: Callee, *, collect: Callable[[Any], object] | None = None) -> Pipeline:
    return Pipeline(
        inner_first=stages(callee, collect=collect),
        target="service",
        idempotent=True,
        deadline=callee.deadline,
    )


async def prove(name: str, callee: Callee, call: Serve, *, cannot: Collection[str] = ()) -> None:
    """Show that `call` retries, times out, falls back, opens and ends at its deadline, or raise `Invalid`.

    `cannot`: the proofs ("deadline") that this object makes no claim to.
    """
    for proof in (_retries, _times_out, _ends_at_its_deadline, _opens_and_falls_back):
        if proof is _ends_at_its_deadline and "deadline" in cannot:
            continue
        try:
            await proof(name, callee, call)
        finally:
            callee.begin()


def now() -> float:
    return asyncio.get_running_loop().time()


async def _answer(call: Serve) -> str:
    try:
        return await call()
    except Exception as error:
        return repr(error)


def _check(holds: bool, name: str, claim: str) -> None:
    if not holds:
        raise Invalid(f"{name} {claim}: its figures would mean nothing")


async def _retries(name: str, callee: Callee, call: Serve) -> None:
    callee.begin(callee.fail_times(ATTEMPTS - 1))
    answer = await _answer(call)
    _check(
        answer == PRIMARY and callee.calls == ATTEMPTS,
        name,
        f"made {callee.calls} attempts instead of {ATTEMPTS} and got {answer}",
    )


async def _times_out(name: str, callee: Callee, call: Serve) -> None:
    callee.begin(callee.hang)
    answer = await _answer(call)
    _check(answer == SECONDARY, name, f"called a service that hangs and got {answer}")
    _check(
        abs(callee.hung[0] - ATTEMPT) < 0.25, name, f"gave an attempt {callee.hung[0]:.2f} s of {ATTEMPT:g} s"
    )


async def _ends_at_its_deadline(name: str, callee: Callee, call: Serve) -> None:
    callee.begin(callee.hang, callee.hang)
    started = now()
    answer = await _answer(call)
    took = now() - started
    _check(
        abs(took - DEADLINE) < 0.25,
        name,
        f"ended after {took:.2f} s, not at its deadline of {DEADLINE:g} s: {answer}",
    )


async def _opens_and_falls_back(name: str, callee: Callee, call: Serve) -> None:
    callee.begin(callee.fail)
    # Enough failures for a full window of good calls to become half bad, or as many in a row as any peer needs.
    for _ in range(WINDOW):
        answer = await _answer(call)
        _check(answer == SECONDARY, name, f"called a service that fails and got {answer}")
    before = callee.calls
    for _ in range(5):
        answer = await _answer(call)
        _check(answer == SECONDARY, name, f"called a service that has failed for long and got {answer}")
    _check(callee.calls == before, name, "did not open its circuit")
