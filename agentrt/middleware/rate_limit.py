"""RateLimit: so many calls in any window of time, by a key; the limiter of the runtime counts them."""

from __future__ import annotations

import asyncio
import copy
import string
from collections.abc import Callable
from typing import Any, ClassVar, Literal, TypeVar

from agentrt import options
from agentrt.call import UNBOUNDED, Call, Next, Refusal, Wait
from agentrt.errors import ConfigError, RateLimited
from agentrt.security.rate_limits import Decision, RateLimiter, check_limit, check_wait

__all__ = ["RateLimit"]

R = TypeVar("R")

SCOPES = ("run", "target")

GRAIN = 2e-6
"""Seconds: limiters count in microseconds, and a turn must come before the share ends, not at its end."""


class RateLimit:
    """Lets `limit` calls through in any `window` seconds. A call beyond waits for its turn if that comes within
    `max_wait` (0.0) seconds and before its share of the deadline ends; else it is refused at once with
    `RateLimited(scope, retry_after)`.

    `scope`: what the limit belongs to, and so what a refusal means. "run" (the default): this run used up its
    allowance, and no other target is tried; "target": this target is busy, and another may serve. `key`: whose calls
    are counted together. Text with {run}, {agent}, {session}, {kind}, {operation} or {target} in it, or a function of
    the call; default: "{kind} of {run}" or, for the scope "target", "{target}". `limiter`: who counts; default: the
    runtime's, in a pipeline without a runtime one of its own.

    Every attempt counts, and stays counted, whatever comes of it. One that is cancelled while it waits gives its turn
    back.
    """

    name: ClassVar[str] = "rate_limit"

    def __init__(
        self,
        *,
        limit: int,
        window: float,
        key: str | Callable[[Call[Any]], str] | None = None,
        max_wait: float = 0.0,
        scope: Literal["run", "target"] = "run",
        limiter: RateLimiter | None = None,
    ) -> None:
        check_limit(limit, window)
        self.limit = limit
        self.window = float(window)
        self.max_wait = check_wait(max_wait)
        self.scope: Literal["run", "target"] = scope
        options.choice("scope", scope, SCOPES)
        self.key = key if key is not None else "{target}" if scope == "target" else "{kind} of {run}"
        self._key = self.key if callable(self.key) else _template(self.key)
        self._is_given = limiter is not None
        self._limiter = RateLimiter() if limiter is None else limiter

    def bound(self, limiter: RateLimiter) -> RateLimit:
        """The same stage with the limiter of a runtime, unless it has been given one."""
        if self._is_given:
            return self
        bound = copy.copy(self)
        bound._limiter = limiter
        return bound

    async def __call__(self, call: Call[R], call_next: Next[R], /) -> R:
        key = self._key(call)
        started = call.record.time()
        max_wait = max(0.0, min(self.max_wait, call.share - started - GRAIN))
        turn = self._limiter.acquire(key, self.limit, self.window, max_wait=max_wait)
        if self._limiter.is_local or call.share == UNBOUNDED:
            decision = await turn
        else:
            # The turn comes in time; a server that counts may not answer in time.
            try:
                async with asyncio.timeout_at(call.share):
                    decision = await turn
            except TimeoutError:
                raise self._refusal(call, "gave no turn before this call's time was over") from None
        if not decision:
            raise self._refusal(call, self._why(decision), decision.retry_after)
        if decision.waited > 0.0:
            call.note(Wait(self.name, call.target, started, call.record.time() - started))
        return await call_next(call)

    def _why(self, decision: Decision) -> str:
        why = (
            "is decided by its on_failure, as its store does not answer"
            if decision.degraded
            else "is used up"
        )
        return f"{why}; the next turn comes in {decision.retry_after:.3g} s"

    def _refusal(self, call: Call[Any], why: str, retry_after: float | None = None) -> RateLimited:
        whose = f" (key {self.key!r})" if isinstance(self.key, str) else ""
        refusal = RateLimited(
            f"{call.target}: the rate limit of {self.limit} in {self.window:g} s{whose} {why}",
            scope=self.scope,
            retry_after=retry_after,
        )
        call.note(Refusal(self.name, call.target, refusal))
        return refusal


def _run(call: Call[Any], attribute: str) -> str:
    """Of the run; "none" for a call outside any."""
    return "none" if call.run is None else str(getattr(call.run, attribute, "none"))


def _session(call: Call[Any]) -> str:
    session = getattr(call.run, "session", None)
    return "none" if session is None else str(session.id)


_FIELDS: dict[str, Callable[[Call[Any]], str]] = {
    "run": lambda call: _run(call, "id"),
    "agent": lambda call: _run(call, "agent_name"),
    "session": _session,
    "kind": lambda call: call.kind,
    "operation": lambda call: call.operation,
    "target": lambda call: call.target,
}


def _template(text: str) -> Callable[[Call[Any]], str]:
    """A function that fills in the fields of `text`."""
    options.text("key", text)
    try:
        pieces = list(string.Formatter().parse(text))
    except ValueError as error:
        raise ConfigError(f"key must be text with fields such as {{target}}, not {text!r}: {error}") from None
    parts: list[tuple[str, Callable[[Call[Any]], str] | None]] = []
    for literal, name, form, conversion in pieces:
        if name is not None and (name not in _FIELDS or form or conversion):
            known = ", ".join(f"{{{field}}}" for field in _FIELDS)
            raise ConfigError(f"key must be text with no other fields than {known}, not {text!r}")
        parts.append((literal, None if name is None else _FIELDS[name]))

    def key(call: Call[Any]) -> str:
        return "".join(literal if field is None else literal + field(call) for literal, field in parts)

    return key
