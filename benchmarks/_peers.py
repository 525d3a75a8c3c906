"""The peers of our pipeline, each set up for the same service with the same limits, as far as it has them.

Every factory imports its libraries itself, so that one that is missing leaves only its own peer out. Libraries
without a fallback get the cheapest there is, `except Exception`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from _measure import say
from _resilience import ATTEMPTS, BACKOFF, MINIMUM, RATE, RESET, WINDOW, Callee, Down, Serve

NO_DEADLINE = "has no deadline over all attempts, waits and targets, and hands none on to nested calls"

PEERS: dict[str, str] = {
    "tenacity_purgatory_anyio": f"{NO_DEADLINE}; no retry budget; counts failures in a row, not a rate",
    "stamina_aiobreaker": f"{NO_DEADLINE}; no retry budget; counts failures in a row, not a rate",
    "hyx": f"{NO_DEADLINE}; no retry budget; counts failures in a row, not a rate",
    "pyresilience": NO_DEADLINE,
    "redress": f"{NO_DEADLINE}; its breaker sees a call, not its attempts, and counts failures, not a rate",
    "backoff_circuitbreaker": f"{NO_DEADLINE}; no retry budget; counts failures in a row, not a rate",
}
"""The peers, and what each cannot do that our pipeline is measured with."""


def make(name: str, callee: Callee) -> Serve:
    """A new object of that peer around `callee`; raises ImportError if it is not installed."""
    return _FACTORIES[name](callee)


def installed(wanted: bool) -> tuple[list[str], dict[str, str]]:
    """The peers that can be measured here, and why others cannot; none if none is wanted."""
    present, absent = [], {}
    for name in PEERS if wanted else ():
        try:
            make(name, Callee())
        except ImportError as error:
            absent[name] = f"not installed ({error})"
            say(f"{name} is left out: {absent[name]}")
        else:
            present.append(name)
    return present, absent


def _limited(callee: Callee) -> Serve:
    serve, seconds = callee.serve, callee.attempt

    async def limited() -> str:
        async with asyncio.timeout(seconds):
            return await serve()

    return limited


def _with_fallback(call: Callable[[], Any], callee: Callee) -> Serve:
    stand_in = callee.stand_in

    async def served() -> str:
        try:
            answer: str = await call()
        except Exception:
            return await stand_in()
        return answer

    return served


def _tenacity_purgatory_anyio(callee: Callee) -> Serve:
    import anyio
    import tenacity
    from purgatory import AsyncCircuitBreakerFactory

    serve, seconds = callee.serve, callee.attempt
    breaker = AsyncCircuitBreakerFactory(default_threshold=MINIMUM, default_ttl=RESET)

    async def limited() -> str:
        with anyio.fail_after(seconds):
            return await serve()

    retried = tenacity.retry(
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        wait=tenacity.wait_random_exponential(multiplier=BACKOFF, max=1.0),
        retry=tenacity.retry_if_exception_type((Down, TimeoutError)),
        reraise=True,
    )
    return _with_fallback(retried(breaker("service")(limited)), callee)


def _stamina_aiobreaker(callee: Callee) -> Serve:
    import stamina
    from aiobreaker import CircuitBreaker

    breaker = CircuitBreaker(fail_max=MINIMUM, timeout_duration=timedelta(seconds=RESET))
    retried = stamina.retry(
        on=(Down, TimeoutError),
        attempts=ATTEMPTS,
        timeout=None,
        wait_initial=BACKOFF,
        wait_max=1.0,
        wait_jitter=BACKOFF,
    )
    return _with_fallback(retried(breaker(_limited(callee))), callee)


def _hyx(callee: Callee) -> Serve:
    from hyx.circuitbreaker import consecutive_breaker
    from hyx.fallback import fallback
    from hyx.retry import retry
    from hyx.retry.backoffs import expo
    from hyx.timeout import timeout
    from hyx.timeout.exceptions import MaxDurationExceeded

    stand_in = callee.stand_in
    failures = (Down, MaxDurationExceeded)

    async def other_target(error: object) -> str:
        return await stand_in()

    limited = timeout(callee.attempt)(callee.serve)
    guarded = consecutive_breaker(
        exceptions=failures, failure_threshold=MINIMUM, recovery_time_secs=RESET, recovery_threshold=1
    )(limited)
    # Its attempts are those after the first one.
    backoff = expo(min_delay_secs=BACKOFF, max_delay_secs=1.0)
    retried = retry(on=failures, attempts=ATTEMPTS - 1, backoff=backoff)(guarded)
    served: Serve = fallback(other_target, on=Exception)(retried)
    return served


def _pyresilience(callee: Callee) -> Serve:
    import pyresilience

    stand_in = callee.stand_in

    async def other_target(error: BaseException) -> str:
        return await stand_in()

    failures = (Down, TimeoutError, pyresilience.ResilienceTimeoutError)
    protect = pyresilience.resilient(
        timeout=pyresilience.TimeoutConfig(seconds=callee.attempt, per_attempt=True),
        circuit_breaker=pyresilience.CircuitBreakerConfig(
            sliding_window_size=WINDOW,
            failure_rate_threshold=RATE,
            minimum_calls=MINIMUM,
            recovery_timeout=RESET,
            success_threshold=1,
        ),
        retry=pyresilience.RetryConfig(
            max_attempts=ATTEMPTS, delay=BACKOFF, max_delay=1.0, retry_on=failures
        ),
        retry_budget=pyresilience.RetryBudgetConfig(max_retries=1000, refill_rate=10.0),
        fallback=pyresilience.FallbackConfig(handler=other_target),
    )
    served: Serve = protect(callee.serve)
    return served


def _redress(callee: Callee) -> Serve:
    import redress
    from redress.strategies import decorrelated_jitter

    def classify(error: BaseException) -> redress.ErrorClass:
        known = isinstance(error, Down | TimeoutError)
        return redress.ErrorClass.TRANSIENT if known else redress.ErrorClass.UNKNOWN

    policy = redress.AsyncPolicy(
        retry=redress.AsyncRetry(
            classifier=classify,
            strategy=decorrelated_jitter(base_s=BACKOFF, max_s=1.0),
            budget=redress.Budget(max_retries=1000, window_s=60.0),
            attempt_timeout_s=callee.attempt,
            deadline_s=callee.attempt * (ATTEMPTS + 1),
            max_attempts=ATTEMPTS,
        ),
        circuit_breaker=redress.CircuitBreaker(
            failure_threshold=MINIMUM, window_s=60.0, recovery_timeout_s=RESET
        ),
    )
    call, serve, stand_in = policy.call, callee.serve, callee.stand_in

    async def served() -> str:
        try:
            answer: str = await call(serve)
        except Exception:
            return await stand_in()
        return answer

    return served


def _backoff_circuitbreaker(callee: Callee) -> Serve:
    import backoff
    from circuitbreaker import CircuitBreaker

    breaker = CircuitBreaker(
        failure_threshold=MINIMUM,
        recovery_timeout=RESET,
        expected_exception=(Down, TimeoutError),
        name=f"service {id(callee)}",
    )
    retried = backoff.on_exception(
        backoff.expo,
        (Down, TimeoutError),
        max_tries=ATTEMPTS,
        factor=BACKOFF,
        jitter=backoff.full_jitter,
        logger=None,
    )
    return _with_fallback(retried(breaker(_limited(callee))), callee)


_FACTORIES: dict[str, Callable[[Callee], Serve]] = {
    "tenacity_purgatory_anyio": _tenacity_purgatory_anyio,
    "stamina_aiobreaker": _stamina_aiobreaker,
    "hyx": _hyx,
    "pyresilience": _pyresilience,
    "redress": _redress,
    "backoff_circuitbreaker": _backoff_circuitbreaker,
}
