"""The one place where calls and runs become metrics: each of the specification's beside its conventional twin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentrt.call import Call, CircuitChange, DefaultServed, Refusal, Retrying, TargetChange
from agentrt.telemetry import conventions as names
from agentrt.telemetry.meter import Instrument, Meter, Series

__all__ = ["CallMetrics"]

MAX_KNOWN = 5000
"""Kinds of calls, in the widest sense, whose series are at hand."""


NOTED = 64
"""Usual calls that wait to be added together."""


class CallMetrics:
    """Adds finished calls and runs to the metrics of `meter`, whose lock the caller holds."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        meter.reserve(names.INSTRUMENTS)
        meter.when_reset(self._forget)
        self._known: dict[tuple[str, str, str, str | None], _Of] = {}
        self._runs: dict[tuple[str, str | None], list[Series]] = {}
        self._noted: list[tuple[str, str, str, float, float | None, Any]] = []

    def _forget(self) -> None:
        """The meter has begun anew: the series at hand count for nothing any more."""
        self._known.clear()
        self._runs.clear()
        self._noted.clear()

    def note(self, call: Call[Any]) -> None:
        """Add `call` soon, from its own loop: the usual ones together, which costs less than each alone. Takes the
        lock itself; `add_noted` adds what is left."""
        record = call.record
        if record.error is not None or record.noted is not None or record.ended is None:
            with self._meter.lock:
                self.call(call)
            return
        noted = self._noted
        started = record.started
        first_item = record.first_item
        first = None if first_item is None else first_item - started
        noted.append((call.kind, call.operation, record.target, record.ended - started, first, record.usage))
        if len(noted) >= NOTED:
            with self._meter.lock:
                self.add_noted()

    def add_noted(self) -> None:
        """Add what `note` was given."""
        noted = self._noted
        while noted:  # not another list instead: `note` may have this one in its hand
            kind, operation, target, seconds, first, usage = noted.pop()
            self._of(kind, operation, target, None).add(seconds, first, usage)

    def call(self, call: Call[Any]) -> None:
        record = call.record
        error = record.error
        failure = None if error is None else names.error_type(error)
        ended = record.ended if record.ended is not None else record.time()
        first = None if record.first_item is None else record.first_item - record.started
        of = self._of(call.kind, call.operation, record.target, failure)
        of.add(ended - record.started, first, record.usage)
        if record.noted is not None:
            self._entries(call)

    def run(self, agent: str, seconds: float, error: BaseException | None) -> None:
        failure = None if error is None else names.error_type(error)
        series = self._runs.get((agent, failure))
        if series is None:
            if len(self._runs) >= MAX_KNOWN:
                self._runs.clear()
            tags: dict[str, Any] = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": agent}
            if failure is not None:
                tags["error.type"] = failure
            instruments = (names.AGENT_DURATION, names.EXECUTION_DURATION)
            series = [self._meter.series(each, tags) for each in instruments]
            if failure is not None:
                series.append(self._meter.series(names.EXECUTION_ERRORS, tags))
            self._runs[agent, failure] = series
        series[0].record(seconds)
        series[1].record(seconds)
        if failure is not None:
            series[2].sum += 1.0

    def _of(self, kind: str, operation: str, target: str, failure: str | None) -> _Of:
        key = (kind, operation, target, failure)
        of = self._known.get(key)
        if of is None:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            of = self._known[key] = _Of(self._meter, *key)
        return of

    def _entries(self, call: Call[Any]) -> None:
        for entry in call.record.entries:
            if isinstance(entry, Retrying):
                self._add(names.RETRIES, {"agentrt.kind": call.kind, "agentrt.target": entry.target})
            elif isinstance(entry, Refusal):
                self._add(names.REFUSALS, {"agentrt.stage": entry.stage, "agentrt.target": entry.target})
            elif isinstance(entry, CircuitChange):
                self._add(
                    names.CIRCUIT_CHANGES, {"agentrt.target": entry.target, "agentrt.circuit.new": entry.new}
                )
            elif isinstance(entry, TargetChange):
                self._add(names.FALLBACKS, {"agentrt.target": entry.old, "agentrt.fallback": entry.new})
            elif isinstance(entry, DefaultServed):
                self._add(names.FALLBACKS, {"agentrt.target": call.target, "agentrt.fallback": "default"})

    def _add(self, instrument: Instrument, tags: Mapping[str, Any]) -> None:
        self._meter.series(instrument, tags).sum += 1.0


class _Of:
    """The series of one kind of call with one outcome."""

    __slots__ = ("_meter", "_tags", "calls", "durations", "tokens")

    def __init__(self, meter: Meter, kind: str, operation: str, target: str, failure: str | None) -> None:
        tags = names.describe(kind, operation, target).tags
        if failure is not None:
            tags = {**tags, "error.type": failure}
        self._meter = meter
        self._tags = tags
        self.calls: Series | None = None
        self.tokens: _Tokens | None = None
        durations = {"model": [names.OPERATION_DURATION], "tool": [names.TOOL_DURATION]}.get(kind)
        if kind == "memory":
            durations = [names.OPERATION_DURATION]
            if operation == "search_memory":
                durations.append(names.MEMORY_TIME)
        self.durations = [meter.series(each, tags) for each in durations or [names.CALL_DURATION]]
        if kind == "tool":
            self.calls = meter.series(names.TOOL_CALLS, tags)
        elif kind == "model":
            self.tokens = _Tokens(meter, {key: tags[key] for key in tags if key != "error.type"})

    def add(self, seconds: float, first: float | None, usage: Any) -> None:
        for series in self.durations:
            series.record(seconds)
        if self.calls is not None:
            self.calls.sum += 1.0
        if usage is not None and self.tokens is not None:
            self.tokens.add(usage)
        if first is not None:
            self._meter.series(names.FIRST_CHUNK, self._tags).record(first)


class _Tokens:
    """Tokens in and out, per call and in all."""

    __slots__ = ("in_all", "of_call")

    def __init__(self, meter: Meter, tags: dict[str, Any]) -> None:
        kinds = [{**tags, "gen_ai.token.type": kind} for kind in ("input", "output")]
        self.of_call = [meter.series(names.TOKEN_USAGE, each) for each in kinds]
        self.in_all = [meter.series(names.EXECUTION_TOKENS, each) for each in kinds]

    def add(self, usage: Any) -> None:
        for index, tokens in enumerate((usage.input_tokens, usage.output_tokens)):
            self.of_call[index].record(tokens)
            self.in_all[index].sum += tokens
