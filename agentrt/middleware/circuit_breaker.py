"""Circuit breaker: stops calling a target that keeps failing, and tries again after a while.

Semantics after resilience4j (windows, slow calls, probe permits) and Polly 8 (break-duration generator, manual
control), with the edge cases as docs/pipeline.md settles them.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

from agentrt import options
from agentrt.call import Attempt, Call, Inline, Next, Quick, Refusal, run_inline
from agentrt.errors import CircuitOpen, ConfigError
from agentrt.middleware.circuit import CLOSED, Circuit, Permit, Policy
from agentrt.stream import Stream

__all__ = ["CircuitBreaker", "exponential_break"]

R = TypeVar("R")
logger = logging.getLogger("agentrt.circuit_breaker")

Listener = Callable[[str, str, str], None]


def exponential_break(
    initial: float = 30.0, *, factor: float = 2.0, maximum: float = 600.0, jitter: float = 0.1
) -> Callable[[int], float]:
    """A `reset_timeout` that grows with each break in a row: `initial * factor ** (breaks - 1)` up to `maximum`
    seconds, then up to `jitter` (0 to 1) of it on top, so that clients do not probe in step."""
    options.seconds("initial", initial)
    options.seconds("maximum", maximum, minimum=initial, open_=False)
    options.number("factor", factor, minimum=1.0)
    options.number("jitter", jitter, maximum=1.0)

    def seconds(breaks: int) -> float:
        grown = initial
        for _ in range(min(breaks, 64) - 1):
            grown = min(maximum, grown * factor)
        return min(maximum, grown) * (1.0 + random.random() * jitter)

    return seconds


class CircuitBreaker:
    """One circuit per target.

    `failure_rate` (0.5): opens when this part of the calls in the window failed, exactly that part included,
    once there are `minimum_calls` (10). The window is the last `window_seconds` (60), or the last `window_calls`
    if given. `slow_call` (s) and `slow_rate` (1.0 if only `slow_call` is given): opens when that part of the
    calls took at least that long.

    `failure_threshold`: the simple form, opens after that many consecutive failures, instead of the rates. There a
    call that took `slow_call` is a bad one like any failure: it counts, and does not start the count anew.

    Open, it refuses with `CircuitOpen(retry_after)` for `reset_timeout` (30 s, or a function of the number of
    breaks in a row, see `exponential_break`). Then up to `probes` (1) calls at a time are let through;
    `success_threshold` (1) good ones close it, any bad one opens it again. A probe that has not ended after
    `max_half_open_wait` (None: the reset timeout) is written off.

    At most `max_targets` (10,000) circuits are kept; only closed, failure-free ones are forgotten.
    """

    name: ClassVar[str] = "circuit_breaker"

    def __init__(
        self,
        *,
        failure_rate: float = 0.5,
        window_seconds: float = 60.0,
        window_calls: int | None = None,
        minimum_calls: int = 10,
        failure_threshold: int | None = None,
        success_threshold: int = 1,
        reset_timeout: float | Callable[[int], float] = 30.0,
        slow_call: float | None = None,
        slow_rate: float | None = None,
        probes: int = 1,
        max_half_open_wait: float | None = None,
        max_targets: int = 10_000,
    ) -> None:
        self.failure_rate = options.fraction("failure_rate", failure_rate)
        self.window_seconds = options.seconds("window_seconds", window_seconds)
        self.window_calls = None if window_calls is None else options.count("window_calls", window_calls)
        self.minimum_calls = options.count("minimum_calls", minimum_calls)
        if window_calls is not None and minimum_calls > window_calls:
            raise ConfigError(
                f"minimum_calls must be at most window_calls ({window_calls}), not {minimum_calls!r}: "
                "the circuit could never open"
            )
        self.failure_threshold = (
            None if failure_threshold is None else options.count("failure_threshold", failure_threshold)
        )
        self.success_threshold = options.count("success_threshold", success_threshold)
        self.reset_timeout = (
            reset_timeout if callable(reset_timeout) else options.seconds("reset_timeout", reset_timeout)
        )
        self.slow_call = None if slow_call is None else options.seconds("slow_call", slow_call)
        if slow_rate is not None and slow_call is None:
            raise ConfigError("slow_rate needs slow_call, the number of seconds from which a call is slow")
        for name, given in (("slow_rate", slow_rate), ("window_calls", window_calls)):
            if given is not None and failure_threshold is not None:
                raise ConfigError(
                    f"{name} has no effect with failure_threshold, which counts consecutive calls that fail or are "
                    "slow: leave one of them out"
                )
        self.slow_rate = None if slow_rate is None else options.fraction("slow_rate", slow_rate)
        self.probes = options.count("probes", probes)
        self.max_half_open_wait = (
            None if max_half_open_wait is None else options.seconds("max_half_open_wait", max_half_open_wait)
        )
        self.max_targets = options.count("max_targets", max_targets)
        self._policy = self._make_policy()
        self._circuits: dict[str, Circuit] = {}
        self.not_closed: dict[str, Circuit] = {}
        """The circuits that are not closed, by target."""
        self._listeners: list[Listener] = []
        self._is_full = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._time: Callable[[], float] = time.monotonic
        # A success has to read the clock only for a time window or for slow calls.
        timed_window = failure_threshold is None and window_calls is None
        self._clocked = timed_window or slow_call is not None

    # --- by hand ---------------------------------------------------------------------------------------

    def state(self, target: str) -> str:
        """ "closed", "open", "half-open" or "isolated". Looking changes nothing."""
        circuit = self._circuits.get(target)
        return CLOSED if circuit is None else circuit.state

    def states(self) -> dict[str, str]:
        """The state of every circuit that is kept."""
        return {target: circuit.state for target, circuit in self._circuits.items()}

    def isolate(self, target: str) -> None:
        """Refuse every call to `target` until `close`."""
        self._circuit(target, keep=True).isolate()

    def close(self, target: str) -> None:
        """Close the circuit by hand, with a fresh window."""
        self._circuit(target, keep=True).reset()

    def metrics_only(self, target: str, *, on: bool = True) -> None:
        """Go on counting for `target`, but never open."""
        circuit = self._circuit(target, keep=True)
        circuit.metrics_only = on
        if on and circuit.state is not CLOSED:
            circuit.reset()

    def subscribe(self, listener: Listener) -> None:
        """Call `listener(target, old, new)` at each change of a circuit's state."""
        self._listeners.append(listener)

    def available(self, target: str) -> bool:
        """Whether a call to `target` would be let through now. Looking changes nothing."""
        circuit = self.not_closed.get(target)
        return circuit is None or circuit.admits(self._time())

    # --- as a stage ------------------------------------------------------------------------------------

    async def __call__(self, call: Call[R], call_next: Next[R], /) -> R:
        return await run_inline(self, call, call_next)

    def inline(self, call_next: Next[Any], inner: Sequence[Any], /) -> Inline:
        quick = self.slow_call is None
        return Inline(
            self.enter,
            self.done,
            self.committed,
            self.failed,
            quick_enter=Quick(_QUICK_ENTER, {"circuits": self._circuits, "CLOSED": CLOSED})
            if quick
            else None,
            quick_done=Quick(_QUICK_DONE) if quick else None,
        )

    def enter(self, call: Call[Any], /) -> Permit:
        circuit = self._circuits.get(call.target)
        if circuit is None:
            circuit = self._circuit(call.target)
        permit: Permit = circuit.window
        if circuit.state is not CLOSED:
            self._time = call.record.time
            try:
                permit = circuit.admit(self._time(), call)
            except CircuitOpen as refusal:
                call.note(Refusal(self.name, call.target, refusal))
                raise
        if self.slow_call is not None:
            # Where the attempt begins, for its duration; the timeout stage inside sets the same mark.
            call.record.attempt_started = call.record.time()
        return permit

    def done(self, permit: Permit, call: Call[Any], /) -> None:
        if self._clocked:
            now = call.record.time()
            if self.slow_call is not None and self._is_slow(call, now):
                permit.slow_success(now, call)
            else:
                permit.success(now, call)
        else:
            permit.success(0.0, call)

    def committed(self, permit: Permit, call: Call[Any], stream: Stream[Any], /) -> None:
        now = call.record.time()
        slow = self.slow_call is not None and self._is_slow(call, now)
        later = permit.settle_later()
        if later is not permit:
            if slow:
                permit.slow_success(now, call)
            else:
                permit.success(now, call)

        def settle(error: BaseException | None) -> None:
            now = call.record.time()
            if error is None:
                if slow:
                    later.slow_success(now, call)
                else:
                    later.success(now, call)
            else:
                self._count(later, call, error, now, slow=slow)

        stream.on_settle(settle)

    def failed(self, permit: Permit, call: Call[Any], error: BaseException, /) -> BaseException:
        now = call.record.time()
        slow = self.slow_call is not None and self._is_slow(call, now)
        self._count(permit, call, error, now, slow=slow)
        return error

    def _count(
        self, permit: Permit, call: Call[Any], error: BaseException, now: float, *, slow: bool
    ) -> None:
        self._time = call.record.time
        match call.record.label(error).breaker:
            case "failure":
                permit.failure(now, call, slow=slow)
            case "success":
                permit.success(now, call)
            case _:
                permit.ignore()

    def _is_slow(self, call: Call[Any], now: float) -> bool:
        record = call.record
        started = record.attempt_started
        if started is None and record.entries and isinstance(record.entries[-1], Attempt):
            started = record.entries[-1].started
        assert self.slow_call is not None
        return started is not None and now - started >= self.slow_call

    # --- the registry ----------------------------------------------------------------------------------

    def _circuit(self, target: str, *, keep: bool = False) -> Circuit:
        circuit = self._circuits.get(target)
        if circuit is None:
            circuit = Circuit(target, self._policy, self._report)
            if len(self._circuits) >= self.max_targets and not self._forget_idle() and not keep:
                # Better a call without a breaker than no call: this circuit serves it and is not kept.
                self._warn_of_full()
                return circuit
            self._circuits[target] = circuit
        return circuit

    def _forget_idle(self) -> bool:
        """Make room for a new target: drop the oldest circuit whose loss changes nothing, if there is one."""
        now = self._time()
        for target, circuit in self._circuits.items():
            if circuit.is_idle(now):
                del self._circuits[target]
                return True
        return False

    def _warn_of_full(self) -> None:
        if not self._is_full:
            self._is_full = True
            logger.error(
                "all %d targets have failures on record, so further ones go without a circuit breaker; raise "
                "max_targets, or check that targets are not made up per call",
                self.max_targets,
            )

    def _report(self, old: str, new: str, circuit: Circuit) -> None:
        if new is CLOSED:
            self.not_closed.pop(circuit.target, None)
        elif self._circuits.get(circuit.target) is circuit:
            self.not_closed[circuit.target] = circuit
        logger.log(
            logging.WARNING if new != CLOSED else logging.INFO,
            "circuit of %s: %s -> %s",
            circuit.target,
            old,
            new,
        )
        for listener in self._listeners:
            try:
                listener(circuit.target, old, new)
            except Exception:
                # A listener only watches: its bug must not take the place of the call's own outcome.
                logger.exception("a listener for the circuit of %s raised", circuit.target)

    def _make_policy(self) -> Policy:
        reset = self.reset_timeout
        return Policy(
            failure_rate=self.failure_rate,
            window_seconds=self.window_seconds,
            window_calls=self.window_calls,
            minimum_calls=self.minimum_calls,
            failure_threshold=self.failure_threshold,
            success_threshold=self.success_threshold,
            reset_timeout=reset if callable(reset) else lambda breaks: reset,
            slow_call=self.slow_call,
            slow_rate=1.0 if self.slow_rate is None else self.slow_rate,
            probes=self.probes,
            max_half_open_wait=self.max_half_open_wait,
        )


# `enter` for a closed circuit.
_QUICK_ENTER = """
$circuit = $circuits.get(call.target)
if $circuit is None or $circuit.state is not $CLOSED:
    $token = $stage.enter(call)
else:
    $token = $circuit.window
"""
_QUICK_DONE = """
if not $token.quiet:
    $token.success(end, call)
"""
