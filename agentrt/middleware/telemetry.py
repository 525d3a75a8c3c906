"""Telemetry: hands each finished call, with its record, to a collector.

The call path pays for two clock reads and one function call; spans and metrics are made of the record elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

from agentrt.call import Call, Inline, Next, Quick, run_inline
from agentrt.stream import Stream

__all__ = ["Telemetry"]

R = TypeVar("R")


class Telemetry:
    """Notes when and how each call ended and gives it to `collect(call)`, once, whatever the outcome.

    `collect` must be quick and must not raise: appending to a bounded deque is what it is made for. A stream
    is handed over when it settles. None: nothing is collected, and the stage costs nothing.
    """

    name: ClassVar[str] = "telemetry"

    def __init__(self, *, collect: Callable[[Call[Any]], object] | None = None) -> None:
        self.collect = collect

    @property
    def is_used(self) -> bool:
        return self.collect is not None

    async def __call__(self, call: Call[R], call_next: Next[R], /) -> R:
        return await run_inline(self, call, call_next)

    def inline(self, call_next: Next[Any], inner: Sequence[Any], /) -> Inline:
        quick = Quick("record.ended = record.time()\n$collect(call)", {"collect": self.collect})
        return Inline(
            None,
            self.done,
            self.committed,
            self.failed,
            quick_done=quick if self.collect is not None else None,
        )

    def done(self, token: None, call: Call[Any], /) -> None:
        call.record.ended = call.record.time()
        if self.collect is not None:
            self.collect(call)

    def committed(self, token: None, call: Call[Any], stream: Stream[Any], /) -> None:
        def settle(error: BaseException | None) -> None:
            call.record.error = error
            self.done(None, call)

        stream.on_settle(settle)

    def failed(self, token: None, call: Call[Any], error: BaseException, /) -> BaseException:
        call.record.error = error
        self.done(None, call)
        return error
