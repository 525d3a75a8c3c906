"""The whole pipeline under random faults, delays, cancellations and ties, on virtual time.

Everything is a multiple of a quarter of a second, so that limits, ends, retries and cancellations often fall into one
tick. What the callee really saw is written down beside the record, and both must tell the same story.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Struct

from agentrt.call import Call, DefaultServed
from agentrt.errors import (
    AttemptTimeout,
    BulkheadFull,
    CircuitOpen,
    DeadlineExceeded,
    PermanentError,
    RateLimited,
    ThrottledError,
    TransientError,
    proves_not_executed,
)
from agentrt.middleware.bulkhead import Bulkhead
from agentrt.middleware.circuit_breaker import CircuitBreaker
from agentrt.middleware.fallback import Fallback
from agentrt.middleware.pace import Pace
from agentrt.middleware.retry import Retry
from agentrt.middleware.retry_budget import RetryBudget
from agentrt.middleware.telemetry import Telemetry
from agentrt.middleware.throttle import Throttle
from agentrt.middleware.timeout import Timeout
from agentrt.pipeline import Pipeline
from agentrt.stream import Stream
from agentrt.testing import run
from pipeline.doubles import leaves_nothing, now

BREAK = 2.0
LATE = 0.06
"""A limit that met the callee's own cancellation looks again after so long."""

# --- what is drawn -------------------------------------------------------------------------------------


class Step(Struct, frozen=True):
    """What one attempt does: waits, hands out `items` (of a stream), and ends as `end`. Cancelled, it cleans up."""

    delay: float
    end: str
    cleanup: str
    items: tuple[float, ...] = ()


class Plan(Struct, frozen=True):
    """One call: when it starts, when it is cancelled, what its attempts do, how its consumer reads a stream.

    `cancel`: after so many seconds, or when that limit of the world ends; `hops` turns of the loop later.
    """

    start: float
    cancel: float | str | None
    hops: int
    steps: tuple[Step, ...]
    stream: bool
    pause: float
    take: int | None


class World(Struct, frozen=True):
    targets: int
    idempotent: bool
    deadline: float | None
    attempt: float | None
    first_item: float | None
    idle: float | None
    threshold: int | None
    probes: int
    attempts: int
    backoff: float
    minimum: int
    bulkhead: tuple[int, int] | None
    pace: float | None
    throttle: bool
    careless: bool
    default: str | None
    plans: tuple[Plan, ...]


def quarters(low: int, high: int) -> st.SearchStrategy[float]:
    return st.integers(low, high).map(lambda n: n * 0.25)


ENDS = st.sampled_from(
    [
        "value",
        "value",
        "transient",
        "transient",
        "foreign",
        "throttled",
        "asked",
        "request",
        "key",
        "bug",
        "self-cancel",
        "hang",
    ]
)
STEPS = st.builds(
    Step,
    delay=st.one_of(quarters(0, 4), quarters(0, 40)),
    end=ENDS,
    cleanup=st.sampled_from(
        ["quick", "quick", "slow", "raise", "raise bug", "swallow", "own timeout", "own slow timeout"]
    ),
    items=st.lists(quarters(0, 12), max_size=3).map(tuple),
)
PLANS = st.builds(
    Plan,
    start=st.one_of(st.just(0.0), quarters(0, 20)),
    cancel=st.one_of(st.none(), quarters(0, 60), st.sampled_from(["attempt", "deadline", "half", "break"])),
    hops=st.integers(0, 4),
    steps=st.lists(STEPS, min_size=1, max_size=6).map(tuple),
    stream=st.booleans(),
    pause=st.sampled_from([0.0, 0.0, 0.25, 3.0]),
    take=st.sampled_from([None, None, None, 0, 1]),
)
WORLDS = st.builds(
    World,
    targets=st.integers(1, 3),
    idempotent=st.sampled_from([True, True, True, False]),
    deadline=st.one_of(st.none(), quarters(4, 60)),
    attempt=st.one_of(st.none(), quarters(2, 24)),
    first_item=st.one_of(st.none(), quarters(2, 12)),
    idle=st.one_of(st.none(), quarters(2, 12)),
    threshold=st.sampled_from([None, 1, 1, 2]),
    probes=st.integers(1, 2),
    attempts=st.integers(1, 4),
    backoff=quarters(0, 8),
    minimum=st.sampled_from([0, 1, 2, 100, 100]),
    bulkhead=st.sampled_from([None, None, (1, 0), (1, 3), (2, 2)]),
    pace=st.sampled_from([None, None, 1.0, 4.0]),
    throttle=st.booleans(),
    careless=st.sampled_from([False, False, True]),
    default=st.sampled_from([None, None, "value", "function"]),
    plans=st.lists(PLANS, min_size=1, max_size=7).map(tuple),
)

# --- what really happens -------------------------------------------------------------------------------


class Seen(Struct, eq=False):
    """An attempt as the callee saw it."""

    target: str
    number: int
    started: float
    order: int
    probe_of: int | None
    ended: float | None = None
    committed: bool = False
    cleanup_ended: float | None = None
    raised: Exception | None = None
    value: Any = None
    swallowed: bool = False
    stubborn: bool = False


class Story:
    """One call from start to end."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.seen: list[Seen] = []
        self.cancelled_at: int | None = None
        self.task: asyncio.Task[Any] | None = None
        self.call: Call[Any] | None = None
        self.items: list[Any] = []
        self.last_pull = 0.0
        self.pulling = False


class Stage:
    """Where it all plays: the stages, the callee, and the clockwork of who does what when."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.order = 0
        self.collected: list[Call[Any]] = []
        self.half_open_period: dict[str, int] = {}
        self.names = ["a", "b", "c"][: world.targets]
        self.breaker: CircuitBreaker | None = None
        self.bulkhead: Bulkhead | None = None
        stages: list[Any] = [Timeout(attempt=world.attempt, first_item=world.first_item, idle=world.idle)]
        if world.threshold is not None:
            # A probe is never written off, so a permit that leaks would be found.
            self.breaker = CircuitBreaker(
                failure_threshold=world.threshold,
                reset_timeout=BREAK,
                probes=world.probes,
                max_half_open_wait=1e6,
            )
            self.breaker.subscribe(self.circuit_changed)
            stages.append(self.breaker)
        if world.bulkhead is not None:
            self.bulkhead = Bulkhead(limit=world.bulkhead[0], queue=world.bulkhead[1])
            stages.append(self.bulkhead)
        if world.pace is not None:
            stages.append(Pace(rate=world.pace))
        if world.throttle:
            stages.append(Throttle(random=lambda: 0.5))
        if world.careless:
            stages.append(self.careless)
        self.inner = [stage for stage in stages if stage != self.careless]
        self.budget = RetryBudget(ratio=0.0, per=1e7, minimum=world.minimum)
        stages.append(
            Retry(
                max_attempts=world.attempts,
                initial_delay=world.backoff,
                jitter="none",
                budget=self.budget,
                random=lambda: 0.5,
            )
        )
        default: Any = ...
        if world.default == "value":
            default = "default"
        elif world.default == "function":
            default = self.default_function
        stages.append(Fallback(*self.names[1:], default=default))
        stages.append(Telemetry(collect=self.collected.append))
        self.pipeline = Pipeline(
            inner_first=stages,
            target="a",
            idempotent=world.idempotent,
            deadline=world.deadline,
            terminal=self.terminal,
        )

    async def careless(self, call: Call[Any], call_next: Any) -> Any:
        """A users' stage whose cleanup fails."""
        try:
            return await call_next(call)
        except asyncio.CancelledError:
            raise TransientError("careless") from None

    async def default_function(self, error: BaseException) -> str:
        await asyncio.sleep(0.5)
        return "default"

    def circuit_changed(self, target: str, old: str, new: str) -> None:
        if new == "half-open":
            self.half_open_period[target] = self.half_open_period.get(target, 0) + 1

    def tick(self) -> int:
        self.order += 1
        return self.order

    # --- the callee ------------------------------------------------------------------------------------

    async def terminal(self, call: Call[Any]) -> Any:
        story: Story = call.request
        step = story.plan.steps[min(len(story.seen), len(story.plan.steps) - 1)]
        probe_of = None
        if self.breaker is not None and self.breaker.state(call.target) == "half-open":
            probe_of = self.half_open_period[call.target]
        seen = Seen(call.target, call.attempt, now(), self.tick(), probe_of)
        story.seen.append(seen)
        self.check_limits(call.target)
        if not call.stream:
            try:
                await self.live(step.delay, step, seen)
                return await self.finish(step, seen)
            finally:
                seen.ended = now()
        source = self.items_of(step, seen)
        try:
            stream = await Stream.open(source)
        except BaseException:
            seen.ended = now()
            raise
        seen.committed = True
        stream.on_settle(lambda _: setattr(seen, "ended", now()))
        return stream

    async def items_of(self, step: Step, seen: Seen) -> AsyncIterator[Any]:
        await self.live(step.delay, step, seen)
        for index, delay in enumerate(step.items):
            await self.live(delay, step, seen)
            yield (seen.order, index)
        await self.finish(step, seen)

    async def live(self, seconds: float, step: Step, seen: Seen) -> None:
        try:
            if step.cleanup.startswith("own"):
                # A limit of the callee's own, caught by itself, that may meet one of ours.
                try:
                    async with asyncio.timeout(seconds / 2):
                        try:
                            await asyncio.sleep(seconds)
                        finally:
                            if "slow" in step.cleanup:
                                await self.clean_up(seen)
                except TimeoutError:
                    await asyncio.sleep(seconds / 2)
            else:
                await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            match step.cleanup:
                case "slow":
                    await self.clean_up(seen)
                case "raise" | "raise bug":
                    seen.raised = (
                        TransientError("cleanup") if step.cleanup == "raise" else KeyError("cleanup")
                    )
                    raise seen.raised from None
                case "swallow":
                    seen.swallowed = True
                    return
            raise

    async def clean_up(self, seen: Seen) -> None:
        try:
            await asyncio.sleep(0.75)
        finally:
            seen.cleanup_ended = now()

    async def finish(self, step: Step, seen: Seen) -> Any:
        errors: dict[str, Callable[[], BaseException]] = {
            "transient": lambda: TransientError("x"),
            "foreign": lambda: ConnectionResetError("x"),
            "throttled": lambda: ThrottledError("x"),
            "asked": lambda: ThrottledError("x", retry_after=2.0),
            "request": lambda: PermanentError("x"),
            "key": lambda: PermanentError("x", fault="target"),
            "bug": lambda: ValueError("x"),
            "self-cancel": lambda: asyncio.CancelledError("self"),
        }
        if step.end == "value":
            seen.value = (seen.target, seen.number)
            return seen.value
        if step.end == "hang":
            seen.stubborn = seen.swallowed
            await self.live(1e5, step, seen)
            return "hung"
        error = errors[step.end]()
        if isinstance(error, Exception):
            seen.raised = error
        raise error

    # --- the callers -----------------------------------------------------------------------------------

    async def caller(self, story: Story) -> Any:
        plan = story.plan
        story.call = self.pipeline.new_call(story, plan.stream)
        if not plan.stream:
            return await self.pipeline.send(story.call)
        stream: Stream[Any] = await self.pipeline.send(story.call)
        async with stream:
            while plan.take is None or len(story.items) < plan.take:
                story.pulling = True
                try:
                    item = await anext(stream, None)
                finally:
                    story.pulling = False
                    story.last_pull = now()
                if item is None:
                    break
                story.items.append(item)
                await asyncio.sleep(plan.pause)
        return "read"

    async def play(self) -> list[Story]:
        stories = [Story(plan) for plan in self.world.plans]
        self.stories = stories
        loop = asyncio.get_running_loop()

        def begin(story: Story) -> None:
            story.task = loop.create_task(self.caller(story))

        def cancel(story: Story) -> None:
            assert story.task is not None
            if story.task.cancel():
                story.cancelled_at = self.tick()

        def hop(story: Story, hops: int) -> None:
            if hops:
                loop.call_soon(hop, story, hops - 1)
            else:
                cancel(story)

        for story in stories:
            loop.call_at(story.plan.start, begin, story)
            if (after := self.cancel_after(story.plan)) is not None:
                loop.call_at(story.plan.start + after, hop, story, story.plan.hops)
        # Whoever hangs without a limit of ours is cancelled in the end.
        end = loop.time() + 4e5
        while not all(story.task is not None and story.task.done() for story in stories):
            await asyncio.sleep(50.0)
            if loop.time() > end:
                for story in stories:
                    if story.task is not None and not story.task.done():
                        cancel(story)
                end += 100.0
        return stories

    def cancel_after(self, plan: Plan) -> float | None:
        world = self.world
        if not isinstance(plan.cancel, str):
            return plan.cancel
        whole = world.deadline
        limits = {
            "attempt": world.attempt,
            "deadline": whole,
            "half": None if whole is None else whole / 2,
            "break": BREAK,
        }
        return limits[plan.cancel]

    # --- while it plays --------------------------------------------------------------------------------

    def alive(self, target: str) -> list[Seen]:
        return [
            seen
            for story in self.stories
            for seen in story.seen
            if seen.target == target and seen.ended is None
        ]

    def check_limits(self, target: str) -> None:
        if self.world.bulkhead is not None:
            assert len(self.alive(target)) <= self.world.bulkhead[0], "more calls than permits"
        period = self.half_open_period.get(target)
        if self.breaker is not None and self.breaker.state(target) == "half-open":
            probes = [seen for seen in self.alive(target) if seen.probe_of == period and not seen.committed]
            assert len(probes) <= self.world.probes, "more live probes than allowed"


# --- what must hold ------------------------------------------------------------------------------------

OURS = (AttemptTimeout, DeadlineExceeded, CircuitOpen, BulkheadFull, RateLimited)


def chain(error: BaseException | None) -> list[BaseException]:
    found = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__
    return found


def check_story(stage: Stage, story: Story) -> None:
    world = stage.world
    assert story.task is not None
    swallowed = any(seen.swallowed for seen in story.seen)
    if story.call is None:
        assert story.task.cancelled()
        assert not story.seen
        return
    record = story.call.record
    error: BaseException | None = None
    if story.task.cancelled():
        error = asyncio.CancelledError()
    else:
        error = story.task.exception()

    # A cancelled call ends as cancelled, and nothing is begun after it.
    if story.cancelled_at is not None:
        assert swallowed or isinstance(error, asyncio.CancelledError)
        assert all(seen.order < story.cancelled_at for seen in story.seen), "a cancelled call was tried again"

    # The record tells of the attempts that the callee saw, no more and no less.
    attempts = record.attempts
    assert [(a.target, a.number, a.started) for a in attempts] == [
        (s.target, s.number, s.started) for s in story.seen
    ]
    numbers = [(s.target, s.number) for s in story.seen]
    assert len(set(numbers)) == len(numbers)
    assert all(number <= world.attempts for _, number in numbers)

    # No cause is lost, and what comes out is one of them.
    for seen in story.seen:
        if seen.raised is not None:
            known = [cause for noted in [*record.errors, record.error] for cause in chain(noted)]
            assert any(cause is seen.raised for cause in known), "a cause was lost"
    if isinstance(error, Exception):
        assert record.error is error
        if not any(isinstance(entry, DefaultServed) for entry in record.entries):
            assert error in record.errors
        if isinstance(error, OURS) and any(not isinstance(e, OURS) for e in record.errors):
            assert isinstance(error, AttemptTimeout | DeadlineExceeded), "a refusal hides a real failure"

    # An effect in doubt is never repeated.
    if not world.idempotent:
        for attempt in attempts[:-1]:
            assert attempt.error is not None
            assert proves_not_executed(attempt.error), "a call in doubt was tried again"

    check_time(stage, story)
    check_outcome(story, error)


def check_time(stage: Stage, story: Story) -> None:
    """Never past a limit, but for the callee's own cleanup."""
    world, plan = stage.world, story.plan
    assert story.call is not None
    record = story.call.record
    if any(seen.stubborn or seen.swallowed for seen in story.seen):
        return

    def within(ended: float, limit: float, *who: Seen) -> bool:
        return ended <= max([limit, *(seen.cleanup_ended or 0.0 for seen in who)]) + LATE

    if not plan.stream and world.attempt is not None:
        for seen in story.seen:
            assert seen.ended is not None
            assert within(seen.ended, seen.started + world.attempt, seen), "past the attempt's limit"
    if world.deadline is None:
        return
    limit = plan.start + world.deadline
    assert all(seen.started < limit for seen in story.seen)
    if not plan.stream:
        assert record.ended is not None
        assert within(record.ended, limit, *story.seen), "past the deadline"
    elif story.items and not plan.pause:
        assert within(story.last_pull, limit, *story.seen), "past the deadline"
    # The first of several targets has half of the time, whatever happens to it.
    shared = world.targets > 1 or world.default == "function"
    if shared and world.idempotent and stage.breaker is None and not plan.stream:
        for seen in story.seen:
            if seen.target == "a":
                assert seen.ended is not None
                assert within(seen.ended, plan.start + world.deadline / 2, seen), "past the first share"


def check_outcome(story: Story, error: BaseException | None) -> None:
    assert story.task is not None
    if story.plan.stream:
        # Only items of one attempt, each once and in order.
        if story.items != ["default"]:
            assert len({order for order, _ in story.items}) <= 1, "items of two attempts"
            assert [index for _, index in story.items] == list(range(len(story.items)))
        return
    if error is None:
        value = story.task.result()
        served = value == "default"
        assert served or value == story.seen[-1].value or value == "hung"
        assert story.call is not None
        last_target = story.seen[-1].target if story.seen else None
        assert story.call.record.degraded == (served or last_target != "a")


async def check_aftermath(stage: Stage) -> None:
    """Nothing leaks: every target serves again, and no permit, timer or task is left."""
    await asyncio.sleep(0)
    for target in stage.names:
        if stage.bulkhead is not None:
            assert stage.bulkhead.running(target) == stage.bulkhead.waiting(target) == 0
        await asyncio.sleep(20)  # longer than a break, a gate and a turn
        after = Pipeline(inner_first=stage.inner, target=target)

        async def good() -> str:
            return "good"

        assert await after.call(good) == "good"
        assert stage.breaker is None or stage.breaker.state(target) == "closed"
        ledger = stage.budget.of(target)
        assert ledger.retries + ledger._old_retries <= stage.world.minimum
    retried = sum(seen.number > 1 for story in stage.stories for seen in story.seen)
    assert retried <= stage.world.minimum * len(stage.names)
    await leaves_nothing()


@pytest.fixture(autouse=True, scope="module")
def no_log() -> Iterator[None]:
    """Thousands of failures are the point here."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


async def check(world: World) -> None:
    stage = Stage(world)
    stories = await stage.play()
    for story in stories:
        check_story(stage, story)
    assert len(stage.collected) == sum(story.call is not None for story in stories)
    await check_aftermath(stage)


def profile(examples: int) -> settings:
    return settings(max_examples=examples, database=None, suppress_health_check=list(HealthCheck))


@pytest.mark.filterwarnings("ignore::agentrt.pipeline.PipelineWarning")
@profile(300)
@given(WORLDS)
def test_the_invariants_hold_in_any_world(world: World) -> None:
    run(lambda: check(world))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("ignore::agentrt.pipeline.PipelineWarning")
@profile(3_000)
@given(WORLDS)
def test_the_invariants_hold_in_many_worlds(world: World) -> None:
    run(lambda: check(world))
