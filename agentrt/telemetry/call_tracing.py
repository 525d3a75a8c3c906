"""How the telemetry stage makes a call's span the current one, and takes that back."""

from __future__ import annotations

from typing import Any

from opentelemetry.context.context import Context

from agentrt.call import Call, Quick
from agentrt.telemetry.tracing import CURRENT, KEY, LiveSpan, Sampler, attach, detach

__all__ = ["CallTracing"]


class CallTracing:
    """`enter(call)` when it begins, `leave(token)` when it ends or its stream is committed.

    A call of a run is traced if its run is; one without a run decides by `sampler`.
    """

    quick_enter = Quick(
        """\
run = call.run
if run is None:
    $token = $tracing.enter(call)
elif run.live is None:
    $token = None
else:
    $outer = $current.get()
    $live = record.span = $span($outer)
    $token = $current.set($context({**$outer, $key: $live}))
""",
        {"current": CURRENT, "span": LiveSpan, "context": Context, "key": KEY},
    )
    quick_leave = Quick(
        """\
if $token is not None:
    $current.reset($token)
""",
        {"current": CURRENT},
    )

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def enter(self, call: Call[Any]) -> Any:
        outer = CURRENT.get()
        if call.run is None:
            if not self._sampler(outer):
                return None
        elif call.run.live is None:
            return None
        live = call.record.span = LiveSpan(outer)
        return attach(live)

    def leave(self, token: Any) -> None:
        detach(token)
