"""One circuit: the state machine of a circuit breaker for one target.

    closed --(threshold reached)--> open --(break is over, first call)--> half-open --(good probes)--> closed
                                      ^---------------(any bad probe)---------|

Every admitted call holds a *permit* and reports through it. The permit of a closed circuit is its present window;
the permit of a half-open one is a probe. A state change makes new permits, so a late result of an earlier
generation reports into something nobody looks at any more: it changes nothing and frees nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Final

from agentrt.call import CircuitChange
from agentrt.errors import CircuitOpen

__all__ = ["CLOSED", "HALF_OPEN", "ISOLATED", "OPEN", "Circuit", "Policy", "Window"]

CLOSED: Final = "closed"
OPEN: Final = "open"
HALF_OPEN: Final = "half-open"
ISOLATED: Final = "isolated"

BUCKETS: Final = 10
"""A time window is counted in this many slices: it forgets a tenth of itself at a time."""

Reporter = Callable[[str, str, Any], None]


class Policy:
    """The options of a breaker, in the form a circuit needs them (see `CircuitBreaker` for their meaning)."""

    __slots__ = (
        "failure_rate",
        "failure_threshold",
        "max_half_open_wait",
        "minimum_calls",
        "probes",
        "reset_timeout",
        "slow_call",
        "slow_rate",
        "success_threshold",
        "window_calls",
        "window_seconds",
    )

    def __init__(
        self,
        *,
        failure_rate: float,
        window_seconds: float,
        window_calls: int | None,
        minimum_calls: int,
        failure_threshold: int | None,
        success_threshold: int,
        reset_timeout: Callable[[int], float],
        slow_call: float | None,
        slow_rate: float,
        probes: int,
        max_half_open_wait: float | None,
    ) -> None:
        self.failure_rate = failure_rate
        self.window_seconds = window_seconds
        self.window_calls = window_calls
        self.minimum_calls = minimum_calls
        self.failure_threshold = failure_threshold
        self.success_threshold = success_threshold
        self.reset_timeout = reset_timeout
        self.slow_call = slow_call
        self.slow_rate = slow_rate
        self.probes = probes
        self.max_half_open_wait = max_half_open_wait

    def window(self, circuit: Circuit) -> Window:
        if self.failure_threshold is not None:
            return StreakWindow(circuit, self.failure_threshold)
        if self.window_calls is not None:
            return CountWindow(circuit, self.window_calls)
        return TimeWindow(circuit, self.window_seconds)


class Window:
    """The permit of a closed circuit: counts outcomes of one generation. `call` is for the state change's report."""

    __slots__ = ("_circuit", "calls", "failures", "quiet", "slow")

    def __init__(self, circuit: Circuit) -> None:
        self._circuit = circuit
        self.quiet = False
        """True while another success would change nothing: it need not be reported."""
        self.calls = 0
        self.failures = 0
        self.slow = 0

    def success(self, now: float, call: Any) -> None:
        raise NotImplementedError

    def slow_success(self, now: float, call: Any) -> None:
        self._add(now, failed=False, slow=True)
        self._judge(now, call)

    def failure(self, now: float, call: Any, *, slow: bool = False) -> None:
        self._add(now, failed=True, slow=slow)
        self._judge(now, call)

    def ignore(self) -> None:
        """An outcome that counts neither way."""

    def settle_later(self) -> Window:
        """What a stream that has its first item reports to when it ends."""
        return self

    def is_clean(self, now: float) -> bool:
        """True if no failure or slow call is remembered."""
        raise NotImplementedError

    def _add(self, now: float, *, failed: bool, slow: bool) -> None:
        raise NotImplementedError

    def _judge(self, now: float, call: Any) -> None:
        # Only a bad outcome comes here, so a success that completes the minimum never opens the circuit.
        policy = self._circuit.policy
        if self.calls < policy.minimum_calls:
            return
        failing = self.failures >= policy.failure_rate * self.calls
        if failing or (policy.slow_call is not None and self.slow >= policy.slow_rate * self.calls):
            self._circuit.trip(self, now, call)


class CountWindow(Window):
    """The last `size` outcomes, in a ring; O(1) by subtracting what falls out."""

    __slots__ = ("_position", "_ring", "_size")

    _FAILED: Final = 1
    _SLOW: Final = 2

    def __init__(self, circuit: Circuit, size: int) -> None:
        super().__init__(circuit)
        self._ring = bytearray(size)
        self._size = size
        self._position = 0

    def success(self, now: float, call: Any) -> None:
        position = self._position
        if self._ring[position]:
            self._add(now, failed=False, slow=False)
            return
        # The usual case, a good outcome over a good (or no) one.
        position += 1
        self._position = position if position < self._size else 0
        if self.calls < self._size:
            self.calls += 1
        elif not self.failures and not self.slow:
            # Full of good outcomes: only the position would move, over a ring of zeros.
            self.quiet = True

    def is_clean(self, now: float) -> bool:
        return not self.failures and not self.slow

    def _add(self, now: float, *, failed: bool, slow: bool) -> None:
        self.quiet = False
        old = self._ring[self._position]
        new = (self._FAILED if failed else 0) | (self._SLOW if slow else 0)
        self.failures += (new & self._FAILED) - (old & self._FAILED)
        self.slow += ((new & self._SLOW) - (old & self._SLOW)) >> 1
        self._ring[self._position] = new
        self._position = (self._position + 1) % self._size
        if self.calls < self._size:
            self.calls += 1


class TimeWindow(Window):
    """The outcomes of the last `seconds`, counted in slices."""

    __slots__ = ("_good", "_slice", "_slices", "_started", "_turn")

    def __init__(self, circuit: Circuit, seconds: float) -> None:
        super().__init__(circuit)
        self._slice = seconds / BUCKETS
        self._slices: list[list[int]] = []  # [slice number, calls, failures, slow], oldest first
        self._turn = -math.inf  # when the present slice ends

    def success(self, now: float, call: Any) -> None:
        if now >= self._turn:
            self._rotate(now)
        self._slices[-1][1] += 1
        self.calls += 1

    def is_clean(self, now: float) -> bool:
        if now >= self._turn:
            self._rotate(now)
        return not self.failures and not self.slow

    def _add(self, now: float, *, failed: bool, slow: bool) -> None:
        if now >= self._turn:
            self._rotate(now)
        present = self._slices[-1]
        present[1] += 1
        present[2] += failed
        present[3] += slow
        self.calls += 1
        self.failures += failed
        self.slow += slow

    def _rotate(self, now: float) -> None:
        number = math.floor(now / self._slice)
        self._turn = (number + 1) * self._slice
        slices = self._slices
        while slices and slices[0][0] <= number - BUCKETS:
            _, calls, failures, slow = slices.pop(0)
            self.calls -= calls
            self.failures -= failures
            self.slow -= slow
        slices.append([number, 0, 0, 0])


class StreakWindow(Window):
    """Consecutive failures and slow calls, the simple form; a good call starts the count anew."""

    __slots__ = ("_threshold",)

    def __init__(self, circuit: Circuit, threshold: int) -> None:
        super().__init__(circuit)
        self._threshold = threshold
        self.quiet = True

    def success(self, now: float, call: Any) -> None:
        self.failures = 0
        self.quiet = True

    def is_clean(self, now: float) -> bool:
        return not self.failures

    def _add(self, now: float, *, failed: bool, slow: bool) -> None:
        self.failures += 1
        self.quiet = False

    def _judge(self, now: float, call: Any) -> None:
        if self.failures >= self._threshold:
            self._circuit.trip(self, now, call)


class Probe:
    """The permit of one call through a half-open circuit."""

    __slots__ = ("_circuit", "started")

    quiet: ClassVar[bool] = False

    def __init__(self, circuit: Circuit, started: float) -> None:
        self._circuit = circuit
        self.started = started

    def success(self, now: float, call: Any) -> None:
        self._circuit.probe_succeeded(self, now, call)

    def slow_success(self, now: float, call: Any) -> None:
        self._circuit.probe_failed(self, now, call)

    def failure(self, now: float, call: Any, *, slow: bool = False) -> None:
        self._circuit.probe_failed(self, now, call)

    def ignore(self) -> None:
        self._circuit.running.pop(self, None)

    def settle_later(self) -> Window:
        # The probe itself is over with the stream's first item; what comes later counts in the window of then.
        return _Later(self._circuit)


class _Later(Window):
    """Reports the end of a stream that was a probe: only a failure counts, and in the window of that moment."""

    __slots__ = ()

    def success(self, now: float, call: Any) -> None:
        """The probe's success has been counted at its first item."""

    def slow_success(self, now: float, call: Any) -> None:
        """So has its slowness."""

    def failure(self, now: float, call: Any, *, slow: bool = False) -> None:
        if self._circuit.state is CLOSED:
            self._circuit.window.failure(now, call)


Permit = Window | Probe


class Circuit:
    """The circuit of one target. `now` is always the caller's clock, in seconds."""

    __slots__ = (
        "_report",
        "break_seconds",
        "breaks",
        "metrics_only",
        "opened_until",
        "policy",
        "running",
        "state",
        "successes",
        "target",
        "window",
    )

    def __init__(self, target: str, policy: Policy, report: Reporter) -> None:
        self.target = target
        self.policy = policy
        self.state = CLOSED
        self.window: Window = policy.window(self)
        self.metrics_only = False
        self.breaks = 0
        """Breaks in a row, without a closed circuit in between."""
        self.break_seconds = 0.0
        """The length of the last break; drawn once, a jittered `reset_timeout` gives another each time."""
        self.opened_until = 0.0
        self.running: dict[Probe, None] = {}
        self.successes = 0
        self._report = report

    def admit(self, now: float, call: Any) -> Permit:
        """A permit, or CircuitOpen."""
        if self.state is CLOSED:
            return self.window
        if self.state is ISOLATED:
            raise CircuitOpen(f"{self.target}: the circuit is isolated by hand")
        if self.state is OPEN:
            if now < self.opened_until:
                wait = self.opened_until - now
                raise CircuitOpen(
                    f"{self.target}: the circuit is open for another {wait:.3g} s", retry_after=wait
                )
            self.running = {}
            self.successes = 0
            self._change(HALF_OPEN, call)
        if self._free_probes(now) <= 0:
            wait = self._write_off_at(self._oldest()) - now
            raise CircuitOpen(
                f"{self.target}: the circuit is half-open and its probes are running", retry_after=wait
            )
        probe = Probe(self, now)
        if len(self.running) >= self.policy.probes:
            # A probe that never ends must not wedge the circuit: its permit goes to this one.
            del self.running[self._oldest()]
        self.running[probe] = None
        return probe

    def admits(self, now: float) -> bool:
        """Whether `admit` would let a call through. Only looks."""
        if self.state is CLOSED:
            return True
        if self.state is OPEN:
            return now >= self.opened_until
        return self.state is HALF_OPEN and self._free_probes(now) > 0

    def trip(self, window: Window, now: float, call: Any) -> None:
        """The window reached a threshold; ignored if it is not the present one, or only metrics are wanted."""
        if window is self.window and self.state is CLOSED and not self.metrics_only:
            self._open(now, call)

    def probe_succeeded(self, probe: Probe, now: float, call: Any) -> None:
        if self.state is not HALF_OPEN or probe not in self.running:
            return
        del self.running[probe]
        self.successes += 1
        if self.successes >= self.policy.success_threshold:
            self.reset(call)

    def probe_failed(self, probe: Probe, now: float, call: Any) -> None:
        if self.state is HALF_OPEN and probe in self.running:
            self._open(now, call)

    def reset(self, call: Any = None) -> None:
        """Close, with a fresh window."""
        self.window = self.policy.window(self)
        self.breaks = 0
        self.running = {}
        self._change(CLOSED, call)

    def isolate(self) -> None:
        """Refuse everything until `reset`."""
        self.window = self.policy.window(self)
        self.running = {}
        self._change(ISOLATED, None)

    def is_idle(self, now: float) -> bool:
        """True if forgetting this circuit would lose nothing."""
        return self.state is CLOSED and not self.metrics_only and self.window.is_clean(now)

    def _open(self, now: float, call: Any) -> None:
        self.breaks += 1
        self.break_seconds = self.policy.reset_timeout(self.breaks)
        self.opened_until = now + self.break_seconds
        self.window = self.policy.window(self)
        self.running = {}
        self._change(OPEN, call)

    def _free_probes(self, now: float) -> int:
        running = self.running
        free = self.policy.probes - len(running)
        if free <= 0 and running and now >= self._write_off_at(self._oldest()):
            return 1
        return free

    def _oldest(self) -> Probe:
        return next(iter(self.running))

    def _write_off_at(self, probe: Probe) -> float:
        wait = self.policy.max_half_open_wait
        return probe.started + (self.break_seconds if wait is None else wait)

    def _change(self, state: str, call: Any) -> None:
        old, self.state = self.state, state
        if old != state:
            self._report(old, state, self)
            if call is not None:
                call.note(CircuitChange(self.target, old, state))
