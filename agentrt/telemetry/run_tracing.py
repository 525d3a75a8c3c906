"""Spans of runs and of the user's own, and the spans of others: what `RuntimeTelemetry` traces with, once anybody
wants spans. Loads the OpenTelemetry API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct
from opentelemetry import trace
from opentelemetry.context.context import Context

from agentrt.config.sections import TelemetrySection
from agentrt.telemetry.call_spans import own_span
from agentrt.telemetry.call_tracing import CallTracing
from agentrt.telemetry.global_provider import SCOPE, mark_as_ours
from agentrt.telemetry.no_span import NO_SPAN, ActiveSpan
from agentrt.telemetry.processor import Processor
from agentrt.telemetry.tracing import (
    CURRENT,
    KEY,
    LiveSpan,
    Sampler,
    UserSpan,
    attach,
    current_ids,
    detach,
    not_sampled,
)

__all__ = ["Spans"]


class _Foreign(Struct, frozen=True, eq=False):
    """A span that another library ended."""

    readable: Any


class Begun(Struct, frozen=True, eq=False):
    """A run that has begun: `token` takes its span out of the context, `outer` is what was around it. `quiet`: its span
    if it is not sampled."""

    token: Any
    outer: Any
    quiet: Any = None


class Spans:
    """`calls`: for the telemetry stage. Runs decide here whether they are sampled, for themselves and all inside."""

    def __init__(self, settings: TelemetrySection, processor: Processor, *, own_process: bool) -> None:
        self._sampler = Sampler(settings.sample)
        self._processor = processor
        self._registers = own_process or settings.register_global
        self._listener: Any = None
        self.calls = CallTracing(self._sampler)
        processor.take(UserSpan, own_span)
        processor.take(_Foreign, _from_foreign)

    current_ids = staticmethod(current_ids)

    def open(self) -> None:
        """Take part in what other libraries trace: their spans come to our backends as well."""
        provider: Any = trace.get_tracer_provider()
        if not hasattr(provider, "add_span_processor"):
            if not self._registers or not isinstance(provider, trace.ProxyTracerProvider):
                return
            provider = self._registered()
        self._listener = _listener_of(provider)
        self._listener.processors.add(self._processor)

    def _registered(self) -> Any:
        """A provider of the SDK, now the process's, that decides as we do and delivers nothing itself."""
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

        sampler = ParentBased(TraceIdRatioBased(self._sampler.ratio))
        provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        mark_as_ours(provider)
        trace.set_tracer_provider(provider)
        return provider

    def close(self) -> None:
        """Spans that others end from now on are not ours any more."""
        if self._listener is not None:
            self._listener.processors.discard(self._processor)

    # --- runs -------------------------------------------------------------------------------------------

    def run_started(self, ctx: Any) -> Begun:
        """Make the run's span the current one; one that is not sampled only carries ids."""
        outer = CURRENT.get()
        if ctx.parent is not None and KEY not in outer and ctx.parent.live is not None:
            outer = Context({**outer, KEY: ctx.parent.live})
        sampled = self._sampler(outer) if ctx.parent is None else ctx.parent.live is not None
        if sampled:
            ctx.live = LiveSpan(outer)
            return Begun(attach(ctx.live), outer)
        quiet = not_sampled(outer)
        return Begun(attach(quiet), outer, quiet)

    def leave(self, begun: Begun) -> None:
        """The run's span is not the current one any more."""
        detach(begun.token)

    def kept(self, begun: Begun) -> LiveSpan:
        """The span of a run that was not sampled and failed: by the ids that its log lines have."""
        live = LiveSpan(begun.outer)
        if begun.quiet is not None:
            context = begun.quiet.get_span_context()
            live.adopt(context.trace_id, context.span_id)
        return live

    def enter(self, ctx: Any) -> Any:
        """Make the run's span the current one where OpenTelemetry's context has none: in a thread or a task that was
        not made by the run. `detach` takes the token."""
        return None if ctx.live is None or KEY in CURRENT.get() else attach(ctx.live)

    detach = staticmethod(detach)

    def start(self, name: str, attributes: Mapping[str, Any] | None, ctx: Any) -> ActiveSpan:
        """A span of the user's own; inside a run that is not sampled it records nothing."""
        outer = CURRENT.get()
        if ctx is not None:
            if ctx.live is None:
                return NO_SPAN
            if KEY not in outer:  # used from a thread or callback that OpenTelemetry's context did not reach
                outer = Context({**outer, KEY: ctx.live})
        elif not self._sampler(outer):
            return NO_SPAN
        return UserSpan.begin(outer, name, attributes, self._processor.offer)


def _from_foreign(foreign: _Foreign) -> Any:
    from agentrt.telemetry.otel_sdk import from_readable_span

    return from_readable_span(foreign.readable)


def _listener_of(provider: Any) -> Any:
    """The one span processor of ours that `provider` has: the SDK cannot take one away again."""
    listener = getattr(provider, "_agentrt_listener", None)
    if listener is None:
        listener = provider._agentrt_listener = _new_listener()
        provider.add_span_processor(listener)
    return listener


def _new_listener() -> Any:
    from opentelemetry.sdk.trace import SpanProcessor

    class Listener(SpanProcessor):
        """Hands ended spans to the processors of the runtimes that are open."""

        def __init__(self) -> None:
            self.processors: set[Processor] = set()

        def on_end(self, span: Any) -> None:
            scope = span.instrumentation_scope
            # Our own spans come by here as well, where they are handed to the provider of the process.
            if (
                self.processors
                and (scope is None or scope.name != SCOPE)
                and span.context.trace_flags.sampled
            ):
                for processor in tuple(self.processors):
                    processor.offer(_Foreign(span))

    return Listener()
