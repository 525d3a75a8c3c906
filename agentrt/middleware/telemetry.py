"""Telemetry: hands each finished call, with its record, to a collector, and makes its span the current one.

The call path pays for two clock reads and one function call, with tracing also for one object in OpenTelemetry's
context; spans and metrics are made of the record elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol, TypeVar

from agentrt.call import Call, Inline, Next, Quick, run_inline
from agentrt.stream import Stream
from agentrt.telemetry.protocol import QuickCollect

__all__ = ["Telemetry", "Tracing"]

R = TypeVar("R")


class Tracing(Protocol):
    """What makes a call's span the current one (`agentrt.telemetry.call_tracing`)."""

    @property
    def quick_enter(self) -> Quick: ...

    @property
    def quick_leave(self) -> Quick: ...

    def enter(self, call: Call[Any], /) -> Any: ...

    def leave(self, token: Any, /) -> None: ...


class Telemetry:
    """Notes when and how each call ended and gives it to `collect(call)`, once, whatever the outcome.

    `collect` must be quick and must not raise: appending to a bounded deque is what it is made for. A stream
    is handed over when it settles. None: nothing is collected, and the stage costs nothing. `tracing`: inside the call
    its span is OpenTelemetry's current one; None: it is not.
    """

    name: ClassVar[str] = "telemetry"

    def __init__(
        self, *, collect: Callable[[Call[Any]], object] | None = None, tracing: Tracing | None = None
    ) -> None:
        self.collect = collect
        self.tracing = tracing

    @property
    def is_used(self) -> bool:
        return self.collect is not None

    async def __call__(self, call: Call[R], call_next: Next[R], /) -> R:
        return await run_inline(self, call, call_next)

    def inline(self, call_next: Next[Any], inner: Sequence[Any], /) -> Inline:
        tracing = self.tracing
        enter = leave = None
        lines, names = "$collect(call)\n", {"collect": self.collect}
        if isinstance(self.collect, QuickCollect):
            lines, names = self.collect.quick.lines, self.collect.quick.names
        lines = f"record.ended = end\n{lines}"
        if tracing is not None:
            enter, leave = tracing.quick_enter, tracing.quick_leave
            lines, names = f"{leave.lines}{lines}", {**leave.names, **names}
        return Inline(
            None if tracing is None else tracing.enter,
            self.done,
            self.committed,
            self.failed,
            quick_enter=enter,
            quick_done=Quick(lines, names) if self.collect is not None else None,
        )

    def done(self, token: Any, call: Call[Any], /) -> None:
        if self.tracing is not None:
            self.tracing.leave(token)
        self._collect(call)

    def committed(self, token: Any, call: Call[Any], stream: Stream[Any], /) -> None:
        if self.tracing is not None:
            self.tracing.leave(token)  # the consumer's own spans are not inside this call

        def settle(error: BaseException | None) -> None:
            call.record.error = error
            self._collect(call)

        stream.on_settle(settle)

    def failed(self, token: Any, call: Call[Any], error: BaseException, /) -> BaseException:
        call.record.error = error
        self.done(token, call)
        return error

    def _collect(self, call: Call[Any]) -> None:
        call.record.ended = call.record.time()
        if self.collect is not None:
            self.collect(call)
