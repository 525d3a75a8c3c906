"""How the telemetry stage makes a call's span the current one, and takes that back."""

from __future__ import annotations

from typing import Any

from agentrt.call import Call, Quick
from agentrt.telemetry.tracing import CURRENT, KEY, LiveSpan, Sampler, attach, detach

__all__ = ["CallTracing"]


# A plain dict does for a context: OpenTelemetry only reads it, and making a `Context` would cost as much again.
_ENTER = """\
run = call.run
$outer = $current.get()
if $all and not $outer if run is None else run.live is not None:
    $live = record.span = $span($outer)
    $token = $current.set({**$outer, $key: $live})
elif run is None:
    $token = $tracing.enter(call)
else:
    $token = None
"""


class CallTracing:
    """`enter(call)` when it begins, `leave(token)` when it ends or its stream is committed.

    A call of a run is traced if its run is; one without a run decides by `sampler`.
    """

    quick_leave = Quick(
        """\
if $token is not None:
    $current.reset($token)
""",
        {"current": CURRENT},
    )

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self.quick_enter = Quick(
            _ENTER,
            {
                "tracing": self,
                "all": sampler.ratio >= 1.0,
                "current": CURRENT,
                "span": LiveSpan,
                "key": KEY,
            },
        )

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
