"""The circuit breaker against a plain model of it: lists of outcomes with their times, counted anew each time.

Calls overlap, streams settle late, probes get lost, somebody isolates and closes by hand; after every step both must
agree on the state, on who is admitted, and on how long the others are told to wait.
"""

from __future__ import annotations

import asyncio
import math
import types
from collections.abc import Callable, Generator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from agentrt.call import Call, Record
from agentrt.errors import CircuitOpen, PermanentError, ThrottledError, TransientError
from agentrt.middleware.circuit_breaker import CircuitBreaker
from agentrt.testing import FakeClock

# --- the model -----------------------------------------------------------------------------------------


class Outcome:
    def __init__(self, at: float, *, failed: bool = False, slow: bool = False) -> None:
        self.at, self.failed, self.slow = at, failed, slow


class Model:
    """A circuit as one would describe it to somebody, without a thought for speed."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.state = "closed"
        self.metrics_only = False
        self.breaks = 0
        self.length = 0.0
        self.until = 0.0
        self.window: list[Outcome] = []
        self.probes: dict[object, float] = {}
        self.good_probes = 0

    def __getattr__(self, name: str) -> Any:
        return self.options[name]

    # A permit is the window of now, or the key of a probe.

    def admit(self, now: float) -> tuple[Any, float | None]:
        """A permit, or how long to wait (None: nobody knows)."""
        if self.state == "closed":
            return self.window, None
        if self.state == "isolated":
            return None, None
        if self.state == "open":
            if now < self.until:
                return None, self.until - now
            self.state, self.probes, self.good_probes = "half-open", {}, 0
        if len(self.probes) >= self.options["probes_"]:
            oldest = min(self.probes, key=lambda key: (self.probes[key], list(self.probes).index(key)))
            over = self.probes[oldest] + self.patience
            if now < over:
                return None, over - now
            del self.probes[oldest]
        key = object()
        self.probes[key] = now
        return key, None

    @property
    def patience(self) -> float:
        wait = self.options["max_half_open_wait"]
        return self.length if wait is None else wait

    def available(self, now: float) -> bool:
        if self.state == "half-open":
            full = len(self.probes) >= self.options["probes_"]
            return not full or now >= min(self.probes.values()) + self.patience
        return self.state == "closed" or (self.state == "open" and now >= self.until)

    def finish(self, permit: Any, how: str, now: float, *, slow: bool) -> None:
        if isinstance(permit, list):
            if permit is self.window:
                self.count(how, now, slow=slow)
        elif self.state == "half-open" and permit in self.probes:
            if how == "neutral":
                del self.probes[permit]
            elif how == "failure" or (how == "success" and slow):
                self.open(now)
            else:
                del self.probes[permit]
                self.good_probes += 1
                if self.good_probes >= self.success_threshold:
                    self.close()

    def count(self, how: str, now: float, *, slow: bool) -> None:
        """Into the window of now."""
        if how == "neutral":
            return
        failed = how == "failure"
        slow = slow and how != "permanent"
        self.window.append(Outcome(now, failed=failed, slow=slow))
        if (failed or slow) and self.is_too_bad(now) and not self.metrics_only:
            self.open(now)

    def is_too_bad(self, now: float) -> bool:
        if self.failure_threshold is not None:
            streak = 0
            for outcome in reversed(self.window):
                if not (outcome.failed or outcome.slow):
                    break
                streak += 1
            return bool(streak >= self.failure_threshold)
        counted = self.counted(now)
        if len(counted) < self.minimum_calls:
            return False
        failures = sum(outcome.failed for outcome in counted)
        slow = sum(outcome.slow for outcome in counted)
        slow_rate = 1.0 if self.slow_rate is None else self.slow_rate
        too_slow = self.slow_call is not None and slow >= slow_rate * len(counted)
        return bool(failures >= self.failure_rate * len(counted) or too_slow)

    def counted(self, now: float) -> list[Outcome]:
        if self.window_calls is not None:
            return self.window[-self.window_calls :]
        # The window is counted in ten slices and forgets one at a time.
        size = self.window_seconds / 10
        return [o for o in self.window if math.floor(o.at / size) > math.floor(now / size) - 10]

    def open(self, now: float) -> None:
        self.breaks += 1
        self.length = self.reset_timeout(self.breaks)
        self.until = now + self.length
        self.state, self.window, self.probes = "open", [], {}

    def close(self) -> None:
        self.state, self.window, self.probes, self.breaks = "closed", [], {}, 0

    def isolate(self) -> None:
        self.state, self.window, self.probes = "isolated", [], {}

    def set_metrics_only(self, on: bool) -> None:
        self.metrics_only = on
        if on and self.state != "closed":
            self.close()


# --- driving the real one ------------------------------------------------------------------------------


class FakeStream:
    def __init__(self) -> None:
        self.callbacks: list[Callable[[BaseException | None], None]] = []

    def on_settle(self, callback: Callable[[BaseException | None], None]) -> None:
        self.callbacks.append(callback)

    def settle(self, error: BaseException | None) -> None:
        for callback in self.callbacks:
            callback(error)


@types.coroutine
def until_told() -> Generator[None, Any, Any]:
    """Waits for the outcome that the test sends."""
    return (yield)


async def call_next(call: Call[Any]) -> Any:
    outcome = await until_told()
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


ERRORS: dict[str, Callable[[], BaseException]] = {
    "failure": lambda: TransientError("x"),
    "neutral": lambda: ThrottledError("x"),
    "cancelled": asyncio.CancelledError,
    "permanent": lambda: PermanentError("x"),
}
HOW = {
    "success": "success",
    "failure": "failure",
    "neutral": "neutral",
    "cancelled": "neutral",
    "permanent": "permanent",
}

TIMES = st.sampled_from([0.5, 0.5, 1.0, 1.0, 2.5, 5.0, 6.0, 54.0])

OPTIONS = st.fixed_dictionaries(
    {
        "failure_rate": st.sampled_from([0.25, 0.5, 1.0]),
        "window": st.sampled_from(
            [("seconds", 10.0), ("seconds", 60.0), ("calls", 3), ("calls", 6), ("streak", 2)]
        ),
        "minimum_calls": st.integers(1, 3),
        "success_threshold": st.integers(1, 3),
        "reset_timeout": st.sampled_from([5.0, 30.0]),
        "growing": st.booleans(),
        "slow_call": st.sampled_from([None, 5.0]),
        "slow_rate": st.sampled_from([None, 0.5]),
        "probes_": st.integers(1, 3),
        "max_half_open_wait": st.sampled_from([None, 4.0, 40.0]),
    }
)


class Running:
    """A call under way, in both worlds."""

    def __init__(self, target: str, call: Call[Any], coroutine: Any, permit: Any, started: float) -> None:
        self.target, self.call, self.coroutine = target, call, coroutine
        self.permit, self.started = permit, started
        self.stream: FakeStream | None = None
        self.slow = False
        self.was_probe = False


class BreakerMachine(RuleBasedStateMachine):
    """Two targets, so that one is seen not to touch the other."""

    @initialize(options=OPTIONS, start=st.sampled_from([0.0, 1000.5]))
    def begin(self, options: dict[str, Any], start: float) -> None:
        self.clock = FakeClock(start=start)
        kind, size = options.pop("window")
        base, growing = options["reset_timeout"], options.pop("growing")
        if options["slow_call"] is None or kind == "streak":
            options["slow_rate"] = None

        def reset_timeout(breaks: int) -> float:
            return float(base * breaks) if growing else float(base)

        options |= {
            "reset_timeout": reset_timeout,
            "window_seconds": size if kind == "seconds" else 60.0,
            "window_calls": size if kind == "calls" else None,
            "failure_threshold": size if kind == "streak" else None,
        }
        real = {name: value for name, value in options.items() if name != "probes_"}
        self.breaker = CircuitBreaker(probes=options["probes_"], **real)
        self.models = {"a": Model(options), "b": Model(options)}
        self.running: list[Running] = []

    def new_call(self, target: str, stream: bool) -> Call[Any]:
        record = Record(None, self.clock.time, self.clock.time(), target, math.inf)  # type: ignore[arg-type]
        return Call("call", "op", target, None, True, stream, math.inf, 1, None, record)

    @rule(to=st.sampled_from("aab"), stream=st.booleans(), count=st.sampled_from([1, 1, 1, 4]))
    def start(self, to: str, stream: bool, count: int) -> None:
        for _ in range(count):
            now, model = self.clock.time(), self.models[to]
            permit, wait = model.admit(now)
            call = self.new_call(to, stream)
            coroutine: Any = self.breaker(call, call_next)
            if permit is None:
                with pytest.raises(CircuitOpen) as caught:
                    coroutine.send(None)
                assert caught.value.retry_after == wait
                assert call.record.attempts == []
                assert call.record.errors == [caught.value]
            else:
                coroutine.send(None)
                self.running.append(Running(to, call, coroutine, permit, now))

    @precondition(lambda self: self.running)
    @rule(
        data=st.data(),
        outcome=st.sampled_from(["success", "failure", "failure", "neutral", "cancelled", "permanent"]),
    )
    def finish(self, data: st.DataObject, outcome: str) -> None:
        self.end(self.running[data.draw(st.integers(0, len(self.running) - 1))], outcome)

    def end(self, which: Running, outcome: str) -> None:
        """The next thing that happens to a call: its value or error, a stream's first item, a stream's end."""
        self.running.remove(which)
        now, model = self.clock.time(), self.models[which.target]
        if which.stream is not None:
            self.settle(which, outcome)
            return
        error = None if outcome == "success" else ERRORS[outcome]()
        slow = self.is_slow(which)
        if which.call.stream and error is None:
            which.stream = FakeStream()
            which.slow = slow
            which.was_probe = not isinstance(which.permit, list)
            if which.was_probe:
                model.finish(which.permit, "success", now, slow=slow)
            self.running.append(which)
            self.resume(which, which.stream)
            return
        model.finish(which.permit, HOW[outcome], now, slow=slow)
        self.resume(which, "value" if error is None else error)

    def settle(self, which: Running, outcome: str) -> None:
        now, model = self.clock.time(), self.models[which.target]
        if not which.was_probe:
            model.finish(which.permit, HOW[outcome], now, slow=which.slow)
        elif outcome == "failure" and model.state == "closed":
            model.count("failure", now, slow=False)
        assert which.stream is not None
        which.stream.settle(None if outcome == "success" else ERRORS[outcome]())

    def is_slow(self, which: Running) -> bool:
        limit = self.models["a"].slow_call
        return limit is not None and self.clock.time() - which.started >= limit

    def resume(self, which: Running, outcome: Any) -> None:
        came: Any = None
        try:
            which.coroutine.send(outcome)
        except StopIteration as done:
            came = done.value
        except BaseException as error:
            came = error
        assert came is outcome, "the breaker changed the outcome, or waits for something"

    @rule(seconds=TIMES)
    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @precondition(lambda self: any(model.state == "open" for model in self.models.values()))
    @rule()
    def pass_to_the_end_of_the_break(self) -> None:
        until = min(model.until for model in self.models.values() if model.state == "open")
        self.clock.advance(max(0.0, until - self.clock.time()))

    @precondition(lambda self: any(model.probes for model in self.models.values()))
    @rule()
    def pass_to_the_moment_a_probe_is_written_off(self) -> None:
        moments = [at + model.patience for model in self.models.values() for at in model.probes.values()]
        self.clock.advance(max(0.0, min(moments) - self.clock.time()))

    @rule(
        to=st.sampled_from("ab"),
        what=st.sampled_from(["isolate", "close", "metrics", "no metrics"]),
        rarely=st.integers(0, 3),
    )
    def by_hand(self, to: str, what: str, rarely: int) -> None:
        model = self.models[to]
        if rarely and model.state != "isolated":
            return
        if rarely:
            what = "close"
        if what == "isolate":
            self.breaker.isolate(to)
            model.isolate()
        elif what == "close":
            self.breaker.close(to)
            model.close()
        else:
            self.breaker.metrics_only(to, on=what == "metrics")
            model.set_metrics_only(what == "metrics")

    @invariant()
    def both_agree(self) -> None:
        if not hasattr(self, "models"):
            return
        now = self.clock.time()
        for target, model in self.models.items():
            assert self.breaker.state(target) == model.state
            assert self.breaker.state(target) == model.state, "reading it changed it"
            if model.state not in ("closed", "isolated") and self.knows_the_time():
                assert self.breaker.available(target) == model.available(now)
            assert len(model.probes) <= model.probes_

    def knows_the_time(self) -> bool:
        """A circuit that opened has read the clock of its calls."""
        return self.breaker._time == self.clock.time

    def teardown(self) -> None:
        for which in getattr(self, "running", []):
            which.coroutine.close()


def play(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        BreakerMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_the_breaker_does_what_its_model_does() -> None:
    play(150, 40)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_breaker_does_what_its_model_does_for_long() -> None:
    play(3000, 80)
