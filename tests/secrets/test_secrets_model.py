"""The cache against a model of it that fits on a page: any sequence of reads, refusals, outages and rotations gives the
same answers with the same number of calls to the provider."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from agentrt.secrets import SecretDenied, SecretInvalid, SecretNotFound, SecretUnavailable
from agentrt.secrets.manager import SecretsManager
from agentrt.testing import VirtualTimeLoop

TTL, STALE, NEGATIVE, REST, PAUSE = 100.0, 1000.0, 30.0, 30.0, 30.0
ERRORS: dict[str, type[Exception]] = {
    "unavailable": SecretUnavailable,
    "denied": SecretDenied,
    "invalid": SecretInvalid,
    "missing": SecretNotFound,
}


class Provider:
    def __init__(self) -> None:
        self.state = "well"
        self.version = 1
        self.calls = 0

    async def get(self, ref: Any, /) -> str:
        del ref
        self.calls += 1
        await asyncio.sleep(0)
        if self.state != "well":
            raise ERRORS[self.state](self.state)
        return f"value-{self.version}"


class Model:
    """What the manager should do, without a clock, tasks or jitter. An answer is a value or the name of an error."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self.calls = 0
        self.value: str | None = None
        self.fetched = self.missing_until = self.rested = 0.0
        self.rejected_at = -PAUSE

    def read(self, now: float) -> str:
        if self.value is None and now < self.missing_until:
            return "missing"
        if self.value is not None and now < self.fetched + TTL:
            return self.value
        if self.value is not None and now < min(self.fetched + TTL + STALE, self.rested + REST):
            value = self.value
            if now >= self.rested:
                self.refresh(now)  # behind the reader
            return value
        answer = self.refresh(now)
        return self.value if answer == "unavailable" and self.value is not None else answer

    def refresh(self, now: float) -> str:
        self.calls += 1
        state = self.provider.state
        if state == "well":
            self.value, self.fetched, self.rested = f"value-{self.provider.version}", now, 0.0
            self.missing_until = 0.0
            return self.value
        if state == "missing":
            self.missing_until = now + NEGATIVE
        if state == "unavailable" and now < self.fetched + TTL + STALE:
            self.rested = now + REST
        else:
            self.value = None
        return state

    def rejected(self, value: str, now: float) -> str:
        answer = self.read(now)
        if answer != value or now < self.rejected_at + PAUSE:
            return answer
        self.rejected_at = now
        return self.refresh(now)


class TheCache(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.provider = Provider()
        self.model = Model(self.provider)
        self.runner = asyncio.Runner(loop_factory=VirtualTimeLoop)
        self.loop: Any = self.runner.get_loop()
        self.secrets = SecretsManager(
            {"env": self.provider}, invoke, ttl=TTL, jitter=0.0, stale=STALE, negative_ttl=NEGATIVE
        )

    def teardown(self) -> None:
        self.runner.run(self.secrets.aclose())
        self.runner.close()

    @rule(seconds=st.sampled_from((0.5, 10.0, 29.5, 30.0, 60.0, 99.5, 100.0, 970.0, 1100.0)))
    def time_passes(self, seconds: float) -> None:
        self.runner.run(self.loop.advance(seconds))

    @rule(state=st.sampled_from(("well", "well", "unavailable", "denied", "invalid", "missing")))
    def the_provider_becomes(self, state: str) -> None:
        self.provider.state = state

    @rule()
    def the_secret_is_rotated(self) -> None:
        self.provider.version += 1

    @rule(readers=st.integers(1, 4))
    def it_is_read(self, readers: int) -> None:
        expected = self.model.read(self.loop.time())
        assert self.answer(lambda: self.secrets.get("a"), readers) == [expected] * readers

    @rule()
    def it_is_refreshed(self) -> None:
        expected = self.model.refresh(self.loop.time())
        assert self.answer(lambda: self.secrets.refresh("a"), 1) == [expected]

    @rule()
    def it_is_invalidated(self) -> None:
        self.secrets.invalidate("a")
        self.model.value, self.model.missing_until = None, 0.0

    @rule(age=st.integers(0, 2))
    def somebody_is_refused(self, age: int) -> None:
        value = f"value-{self.provider.version - age}"
        expected = self.model.rejected(value, self.loop.time())
        assert self.answer(lambda: self.secrets.rejected("a", value), 1) == [expected]

    def answer(self, ask: Callable[[], Coroutine[Any, Any, Any]], readers: int) -> list[str]:
        """What each of several at once gets: a value or the name of an error."""

        async def all_of_them() -> list[Any]:
            found = await asyncio.gather(*(ask() for _ in range(readers)), return_exceptions=True)
            for _ in range(20):
                await asyncio.sleep(0)  # for what goes on behind the readers
            return found

        found = self.runner.run(all_of_them())
        assert self.provider.calls == self.model.calls
        return [
            next(name for name, kind in ERRORS.items() if isinstance(one, kind))
            if isinstance(one, BaseException)
            else one.reveal()
            for one in found
        ]


async def invoke(kind: str, target: str, fn: Any, /, *, idempotent: bool = False) -> Any:
    del kind, target, idempotent
    return await fn()


TheCache.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestTheCache = TheCache.TestCase
