"""The composer: turns a list of stages and a terminal into one coroutine function, once.

A stage is a closure around the rest. Neighbouring stages that offer the guard form (`agentrt.call.Guard`) are
inlined into one coroutine, and the innermost group also calls the terminal and labels its failures, so that a call
pays for a coroutine only where a stage may wait: retry, fallback, users' own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

from agentrt.call import Call, Guard, Middleware, Next, label_at_terminal
from agentrt.errors import TRANSIENT, Label, ResultRejected
from agentrt.stream import Stream

__all__ = ["Classify", "compose"]

Classify = Callable[[BaseException], Label | None]
Note = Callable[[Call[Any], BaseException], None]


def compose(
    stages: Sequence[Middleware],
    terminal: Next[Any],
    *,
    stream: bool,
    classify: Classify | None = None,
    retry_on: Any = None,
    retry_result: Callable[[Any], bool] | None = None,
) -> Next[Any]:
    """Put `stages` (from the call outward) around `terminal`.

    `classify` is the terminal's own judgement of its errors (None: no opinion). `retry_on` and `retry_result` are
    Retry's, which are applied here, where errors are labelled, so that every stage sees the same verdict.
    """
    note = _labeller(classify, retry_on)
    inner = _open_streams(terminal, note) if stream else terminal
    if retry_result is not None and not stream:
        inner = _rejecting(inner, retry_result)
    innermost: Note | None = note
    pending: list[Guard] = []
    for index, stage in enumerate(stages):
        if _is_guard(stage):
            pending.append(cast("Guard", stage))
            continue
        inner = _inline(pending, inner, innermost, stream=stream)
        innermost, pending = None, []
        around = getattr(stage, "around", None)
        inner = _link(stage, inner) if around is None else around(inner, stages[:index])
    if pending or innermost is not None:
        inner = _inline(pending, inner, innermost, stream=stream)
    return inner


def _is_guard(stage: Any) -> bool:
    return all(hasattr(stage, method) for method in ("enter", "done", "committed", "failed"))


def _link(stage: Middleware, inner: Next[Any]) -> Next[Any]:
    def linked(call: Call[Any]) -> Any:
        return stage(call, inner)

    return linked


def _inline(guards: Sequence[Guard], inner: Next[Any], note: Note | None, *, stream: bool) -> Next[Any]:
    """`guards` (from the call outward) around `inner`, two to a coroutine; `note` labels what `inner` raises."""
    waiting = list(guards)
    while waiting or note is not None:
        if not waiting:
            assert note is not None
            inner = _noting(inner, note)
        elif len(waiting) == 1:
            inner = _one(waiting.pop(0), inner, note, stream=stream)
        else:
            inner = _two(waiting.pop(0), waiting.pop(0), inner, note, stream=stream)
        note = None
    return inner


def _noting(inner: Next[Any], note: Note) -> Next[Any]:
    async def noted(call: Call[Any]) -> Any:
        try:
            return await inner(call)
        except Exception as error:
            note(call, error)
            raise

    return noted


def _one(guard: Guard, inner: Next[Any], note: Note | None, *, stream: bool) -> Next[Any]:
    enter, done, committed, failed = guard.enter, guard.done, guard.committed, guard.failed

    async def guarded(call: Call[Any]) -> Any:
        token = enter(call)
        try:
            result = await inner(call)
        except BaseException as error:
            if note is not None:
                note(call, error)
            raised = failed(token, call, error)
            if raised is error:
                raise
            raise raised from raised.__cause__
        if stream:
            committed(token, call, result)
        else:
            done(token, call)
        return result

    return guarded


def _two(inside: Guard, outside: Guard, inner: Next[Any], note: Note | None, *, stream: bool) -> Next[Any]:
    """The same for two guards at once: the breaker around the timeout, in every default pipeline."""
    enter, done, committed, failed = inside.enter, inside.done, inside.committed, inside.failed
    outer_enter, outer_done = outside.enter, outside.done
    outer_committed, outer_failed = outside.committed, outside.failed

    async def guarded(call: Call[Any]) -> Any:
        outer_token = outer_enter(call)
        try:
            token = enter(call)
            try:
                result = await inner(call)
            except BaseException as error:
                if note is not None:
                    note(call, error)
                raised = failed(token, call, error)
                if raised is error:
                    raise
                raise raised from raised.__cause__
            if stream:
                committed(token, call, result)
            else:
                done(token, call)
        except BaseException as error:
            raised = outer_failed(outer_token, call, error)
            if raised is error:
                raise
            raise raised from raised.__cause__
        if stream:
            outer_committed(outer_token, call, result)
        else:
            outer_done(outer_token, call)
        return result

    return guarded


# --- around the terminal -------------------------------------------------------------------------------


def _labeller(classify: Classify | None, retry_on: Any) -> Note:
    def note(call: Call[Any], error: BaseException) -> None:
        if not isinstance(error, Exception):
            return  # a cancellation is nobody's failure
        known: Label | None = None
        if retry_on is not None and _matches(retry_on, error):
            known = TRANSIENT
        elif classify is not None:
            known = classify(error)
        call.failed(error, label_at_terminal(call, error, known))

    return note


def _rejecting(terminal: Next[Any], reject: Callable[[Any], bool]) -> Next[Any]:
    async def judged(call: Call[Any]) -> Any:
        result = await terminal(call)
        if reject(result):
            raise ResultRejected(f"{call.target}: retry_result rejected the result", value=result)
        return result

    return judged


def _open_streams(terminal: Next[Any], note: Note) -> Next[Any]:
    async def opened(call: Call[Any]) -> Stream[Any]:
        stream: Stream[Any] = await terminal(call)
        stream.label_errors(functools.partial(note, call))
        call.record.first_item = call.record.time()
        return stream

    return opened


def _matches(test: Any, error: BaseException) -> bool:
    if isinstance(test, type | tuple):
        return isinstance(error, test)
    return bool(test(error))
