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


class CallMetrics:
    """Adds finished calls and runs to the metrics of `meter`, whose lock the caller holds."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        meter.reserve(names.INSTRUMENTS)
        self._known: dict[tuple[str, str, str, str | None], _Of] = {}

    def reset(self) -> None:
        """Forget the series at hand: the meter has begun anew."""
        self._known.clear()

    def call(self, call: Call[Any]) -> None:
        record = call.record
        error = record.error
        failure = None if error is None else names.error_type(error)
        key = (call.kind, call.operation, record.target, failure)
        of = self._known.get(key)
        if of is None:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            of = self._known[key] = _Of(self._meter, *key)
        ended = record.ended if record.ended is not None else record.time()
        seconds = ended - record.started
        for series in of.durations:
            series.record(seconds)
        if of.calls is not None:
            of.calls.sum += 1.0
        usage = record.usage
        if usage is not None and of.tokens is not None:
            of.tokens.add(usage)
        if record.first_item is not None:
            of.first_chunk(record.first_item - record.started)
        if record.noted is not None:
            self._entries(call)

    def run(self, agent: str, seconds: float, error: BaseException | None) -> None:
        tags: dict[str, Any] = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": agent}
        if error is not None:
            tags["error.type"] = names.error_type(error)
            self._add(names.EXECUTION_ERRORS, tags)
        self._meter.series(names.AGENT_DURATION, tags).record(seconds)
        self._meter.series(names.EXECUTION_DURATION, tags).record(seconds)

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

    def first_chunk(self, seconds: float) -> None:
        self._meter.series(names.FIRST_CHUNK, self._tags).record(seconds)


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
