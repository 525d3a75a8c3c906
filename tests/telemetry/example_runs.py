"""Runs as spans, as the runtime makes them: what the views of a run are tested with."""

from __future__ import annotations

from typing import Any, Literal

from agentrt.telemetry import Attributes, LogLine, Span, SpanEvent

__all__ = ["Recorder", "busy_run", "deep_run", "failed_run", "large_run", "simple_run"]

EPOCH = 1_795_000_000_000_000_000
TRACEBACK = """Traceback (most recent call last):
  File "/srv/bot/tools.py", line 41, in book
    raise ToolError("no seat left on <LH 123> & no other flight")
agentrt.errors.ToolError: no seat left on <LH 123> & no other flight
"""

Status = Literal["unset", "ok", "error"]


class Recorder:
    """Makes the spans of one trace. Times are seconds since its start."""

    def __init__(self, *, trace: int = 1, run: str = "run-ada-1", start: float = 0.0) -> None:
        self.trace_id = f"{trace:032x}"
        self.run = run
        self.epoch = EPOCH + int(start * 1e9)
        self.spans: list[Span] = []
        self.logs: list[LogLine] = []
        self._next = trace * 100_000

    def at(self, seconds: float) -> int:
        return self.epoch + round(seconds * 1e9)

    def event(self, name: str, at: float, **attributes: Any) -> SpanEvent:
        return SpanEvent(name, self.at(at), _dotted(attributes))

    def error(self, at: float, kind: str, message: str, traceback: str = "") -> SpanEvent:
        attributes = {"exception.type": kind, "exception.message": message}
        if traceback:
            attributes["exception.stacktrace"] = traceback
        return SpanEvent("exception", self.at(at), attributes)

    def add(
        self,
        name: str,
        start: float,
        end: float,
        *,
        parent: str | None = None,
        attributes: Attributes | None = None,
        events: tuple[SpanEvent, ...] = (),
        error: tuple[str, str] | None = None,
        client: bool = False,
        scope: str = "agentrt",
        traceback: str = "",
    ) -> str:
        """Add a span and return its id."""
        self._next += 1
        span_id = f"{self._next:016x}"
        attributes = dict(attributes or {})
        status: Status = "unset"
        if error is not None:
            status = "error"
            attributes["error.type"] = error[0]
            events = (*events, self.error(end, *error, traceback))
        self.spans.append(
            Span(
                name,
                self.trace_id,
                span_id,
                parent,
                self.at(start),
                self.at(end),
                "client" if client else "internal",
                attributes,
                events,
                (),
                status,
                error[1] if error else "",
                scope,
            )
        )
        return span_id

    def agent(self, name: str, start: float, end: float, *, run: str | None = None, **more: Any) -> str:
        own = {
            "agentrt.kind": "run",
            "agentrt.run.id": run or self.run,
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": name,
            **more.pop("attributes", {}),
        }
        return self.add(f"invoke_agent {name}", start, end, attributes=own, **more)

    def model(
        self, model: str, start: float, end: float, *, tokens: tuple[int, int] | None = None, **more: Any
    ) -> str:
        own: Attributes = {
            "agentrt.kind": "model",
            "agentrt.operation": "complete",
            "agentrt.run.id": self.run,
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": model,
        }
        if tokens is not None:
            own["gen_ai.usage.input_tokens"], own["gen_ai.usage.output_tokens"] = tokens
        own.update({"agentrt.target": f"openai:{model}", "agentrt.attempts": 1, **more.pop("attributes", {})})
        return self.add(f"chat {model}", start, end, attributes=own, client=True, **more)

    def tool(self, name: str, start: float, end: float, **more: Any) -> str:
        own = {
            "agentrt.kind": "tool",
            "agentrt.run.id": self.run,
            "agentrt.target": f"tool:{name}",
            "agentrt.attempts": 1,
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": name,
            **more.pop("attributes", {}),
        }
        return self.add(f"execute_tool {name}", start, end, attributes=own, **more)

    def attempt(self, number: int, target: str, start: float, end: float, *, parent: str, **more: Any) -> str:
        own = {"agentrt.target": target, "agentrt.attempt.number": number}
        return self.add(f"attempt {number}", start, end, parent=parent, attributes=own, **more)

    def log(self, level: str, message: str, at: float, span: str | None, **attributes: Any) -> None:
        line = LogLine(self.at(at), level, message, "bot", attributes, self.trace_id if span else None, span)
        self.logs.append(line)


def simple_run() -> Recorder:
    """model, tool, model."""
    r = Recorder()
    root = r.agent("Assistant", 0.0, 3.0)
    r.model("gpt-5-mini", 0.0, 1.0, parent=root, tokens=(820, 41))
    r.tool("search", 1.0, 1.5, parent=root)
    r.model("gpt-5-mini", 1.5, 3.0, parent=root, tokens=(1204, 310))
    return r


def busy_run() -> Recorder:
    """A run with everything: retries and waits, an open circuit, a fallback, tools side by side, spans of the user's
    own, a child run, a log line, a lost span."""
    r = Recorder(trace=2, run="run-7f3a2c", start=30.0)
    usage: Attributes = {"gen_ai.usage.input_tokens": 6120, "gen_ai.usage.output_tokens": 1012}
    root = r.agent("TravelPlanner", 0.0, 9.3, attributes={**usage, "agentrt.degraded": True})
    memory: Attributes = {
        "agentrt.kind": "memory",
        "gen_ai.operation.name": "search_memory",
        "memory.record.count": 4,
    }
    r.add("search_memory", 0.02, 0.11, parent=root, attributes=memory, client=True)
    _model_with_fallback(r, root)
    _tools_side_by_side(r, root)
    _child_run(r, root)
    last = r.model("claude-haiku", 7.5, 9.28, parent=root, tokens=(2890, 402), attributes=_CLAUDE)
    r.log("info", "answer is ready", 9.2, last, characters=1820)
    return r


_CLAUDE = {"agentrt.target": "anthropic:claude-haiku"}


def _model_with_fallback(r: Recorder, root: str) -> None:
    """Two attempts on one model, the circuit opens, and another model answers."""
    first, second, error = "openai:gpt-5-mini", "anthropic:claude-haiku", "agentrt.errors.TransientError"
    events = (
        r.event("retry", 0.72, agentrt_target=first, agentrt_delay=0.8, error_type=error),
        r.event("wait", 0.72, agentrt_target=first, agentrt_stage="retry", agentrt_seconds=0.81),
        r.event(
            "circuit", 2.2, agentrt_target=first, agentrt_circuit_old="closed", agentrt_circuit_new="open"
        ),
        r.event("fallback", 2.2, agentrt_target=second, error_type=error),
    )
    call = r.model(
        "gpt-5-mini",
        0.11,
        3.6,
        parent=root,
        tokens=(1630, 210),
        attributes={"agentrt.attempts": 3, "agentrt.degraded": True, "agentrt.target": second},
        events=events,
    )
    failed = (error, "503 Service Unavailable: the model is overloaded")
    r.attempt(1, first, 0.12, 0.72, parent=call, error=failed)
    r.attempt(2, first, 1.53, 2.2, parent=call, error=failed)
    r.attempt(1, second, 2.21, 3.6, parent=call)
    r.log("warning", "gpt-5-mini is overloaded", 0.72, call, status=503)


def _tools_side_by_side(r: Recorder, root: str) -> None:
    search = r.tool("search_flights", 3.62, 5.4, parent=root)
    query = r.add("SELECT flights", 3.7, 4.3, parent=search, scope="sqlalchemy", attributes={"db.rows": 182})
    r.add("rank results", 4.3, 5.38, parent=search, scope="bot", attributes={"prompt": "cheap & <early>"})
    r.log("debug", "182 rows", 4.29, query)
    r.tool("weather", 3.62, 4.15, parent=root)
    wait = r.event("wait", 3.63, agentrt_target="tool:book", agentrt_stage="bulkhead", agentrt_seconds=0.9)
    message = "no seat left on <LH 123> & no other flight"
    r.tool(
        "book",
        3.63,
        5.1,
        parent=root,
        events=(wait,),
        error=("agentrt.errors.ToolError", message),
        traceback=TRACEBACK,
    )


def _child_run(r: Recorder, root: str) -> None:
    child = r.agent("Summarizer", 5.42, 7.48, parent=root, run="run-7f3a2c-child")
    r.model("gpt-5-nano", 5.43, 7.4, parent=child, tokens=(1600, 400))


def failed_run(*, trace: int = 3, run: str = "run-bad") -> Recorder:
    """A run that ends with the error of its model."""
    r = Recorder(trace=trace, run=run, start=60.0)
    error = ("agentrt.errors.PermanentError", "401 Unauthorized: the key is wrong")
    root = r.agent("Assistant", 0.0, 0.41, error=error)
    r.model("gpt-5-mini", 0.01, 0.4, parent=root, error=error)
    return r


def deep_run(depth: int) -> Recorder:
    """Spans below each other, with names that are long."""
    r = Recorder(trace=4, run="run-deep")
    parent = r.agent("Deep", 0.0, 10.0)
    for level in range(depth):
        edge = 4.0 * level / depth
        parent = r.add(
            f"step {level} of a computation with a name that goes on and on", edge, 10.0 - edge, parent=parent
        )
    return r


def large_run(spans: int = 2000) -> Recorder:
    """A run of many steps: models and tools in turn, some tools with attempts, every 97th step failing."""
    r = Recorder(trace=5, run="run-large")
    root = r.agent("Crawler", 0.0, spans * 0.0722)
    step = 0
    while len(r.spans) < spans:
        at = step * 0.12
        if step % 3 == 0:
            r.model("gpt-5-mini", at, at + 0.1, parent=root, tokens=(400 + step, 30))
        else:
            error = ("agentrt.errors.TransientError", f"page {step} timed out") if step % 97 == 1 else None
            tool = r.tool("fetch_page", at, at + 0.11, parent=root, error=error)
            r.add(f"GET /page/{step}", at + 0.01, at + 0.1, parent=tool, scope="httpx")
        step += 1
    del r.spans[spans:]
    return r


def _dotted(attributes: dict[str, Any]) -> Attributes:
    names = {"agentrt_circuit_old": "agentrt.circuit.old", "agentrt_circuit_new": "agentrt.circuit.new"}
    return {names.get(name, name.replace("_", ".", 1)): value for name, value in attributes.items()}
