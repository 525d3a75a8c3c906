"""What a call comes to: its span, the spans of its attempts, its events, and the metrics beside them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentrt import Agent, Context, Runtime, tool
from agentrt.call import Call
from agentrt.errors import (
    AttemptTimeout,
    BulkheadFull,
    CircuitOpen,
    PermanentError,
    ThrottledError,
    ToolError,
    TransientError,
)
from agentrt.memory.sqlite import SqliteMemory
from agentrt.middleware.bulkhead import Bulkhead
from agentrt.middleware.circuit_breaker import CircuitBreaker
from agentrt.middleware.fallback import Fallback
from agentrt.middleware.retry import Retry
from agentrt.middleware.telemetry import Telemetry
from agentrt.middleware.timeout import Timeout
from agentrt.models.protocol import ModelResponse, Usage
from agentrt.pipeline import Pipeline
from agentrt.telemetry import Histogram, Metric, Span
from agentrt.telemetry import conventions as names
from agentrt.telemetry.call_tracing import CallTracing
from agentrt.telemetry.tracing import Sampler
from agentrt.testing import run
from tests.pipeline.doubles import HANG, Callee, Slow
from tests.runtime.doubles import FakeModel, wants
from tests.telemetry.recording import Kept, processor


class Played:
    """Calls on virtual time, made into spans and metrics afterwards."""

    def __init__(self, *stages: Any, **options: Any) -> None:
        self.calls: list[Call[Any]] = []
        options.setdefault("target", "a")
        telemetry = Telemetry(collect=self.calls.append, tracing=CallTracing(Sampler()))
        self.pipeline = Pipeline(inner_first=[*stages, telemetry], **options)
        self.kept = Kept(interval=60.0)

    def play(self, *functions: Any) -> Span:
        """Call the functions one after the other; returns the last call's span."""

        async def main() -> None:
            for function in functions:
                with contextlib.suppress(Exception, asyncio.CancelledError):
                    await self.pipeline.call(function)

        return self.watch(main)

    def watch(self, main: Callable[[], Any]) -> Span:
        run(main)
        made = processor(self.kept)
        for call in self.calls:
            made.offer(call)
        made.close(5.0)
        assert made.lost == {}
        return self.roots[-1]

    @property
    def roots(self) -> list[Span]:
        return [span for span in self.kept.spans if span.parent_id is None]

    def children(self, of: Span) -> list[Span]:
        return [span for span in self.kept.spans if span.parent_id == of.span_id]

    @property
    def metrics(self) -> dict[str, Metric]:
        return self.kept.metrics


def at(span: Span) -> list[tuple[str, float]]:
    """The events with their seconds since the span began."""
    return [(event.name, round((event.time_ns - span.start_ns) / 1e9, 6)) for event in span.events]


def event(span: Span, name: str) -> dict[str, Any]:
    (found,) = [event.attributes for event in span.events if event.name == name]
    return found


# --- attempts and what comes between them ---------------------------------------------------------------


def test_the_usual_call_is_one_span_without_events() -> None:
    played = Played(Timeout())
    span = played.play(Callee(Slow(3, "ok")))
    assert (span.name, span.kind, span.status, span.message) == ("a", "client", "unset", "")
    assert span.seconds == pytest.approx(3.0)
    assert span.attributes == {"agentrt.operation": "a", "agentrt.kind": "call", "agentrt.target": "a"}
    assert (span.events, played.children(span), span.scope) == ((), [], "agentrt")


def test_retries_are_events_and_each_attempt_is_a_child() -> None:
    played = Played(Timeout(), Retry(initial_delay=1, jitter="none"), idempotent=True)
    first, second = TransientError("busy"), TransientError("still busy")
    span = played.play(Callee(Slow(1, first), Slow(1, second), Slow(1, "ok")))
    assert at(span) == [("retry", 1.0), ("wait", 1.0), ("retry", 3.0), ("wait", 3.0)]
    assert span.events[0].attributes == {
        "agentrt.target": "a",
        "agentrt.attempt.number": 2,
        "agentrt.delay": 1.0,
        "error.type": "agentrt.errors.TransientError",
    }
    assert span.events[1].attributes == {
        "agentrt.stage": "retry",
        "agentrt.target": "a",
        "agentrt.seconds": 1.0,
    }
    assert (span.status, span.attributes["agentrt.attempts"]) == ("unset", 3)
    one, two, three = played.children(span)
    assert [each.name for each in (one, two, three)] == ["attempt 1", "attempt 2", "attempt 3"]
    assert [(each.status, each.message) for each in (one, two, three)] == [
        ("error", "busy"),
        ("error", "still busy"),
        ("unset", ""),
    ]
    assert one.attributes == {
        "agentrt.kind": "call",
        "agentrt.target": "a",
        "agentrt.attempt.number": 1,
        "error.type": "agentrt.errors.TransientError",
        "agentrt.error.label": "transient",
    }
    starts = [round((each.start_ns - span.start_ns) / 1e9, 6) for each in (one, two, three)]
    assert starts == [0.0, 2.0, 5.0]
    assert all(span.start_ns <= each.start_ns <= each.end_ns <= span.end_ns for each in (one, two, three))
    assert played.metrics["agentrt.retries"].points[0].value == 2
    assert played.metrics["agentrt.retries"].points[0].attributes == {
        "agentrt.kind": "call",
        "agentrt.target": "a",
    }


def test_a_fallback_is_an_event_and_the_call_is_degraded() -> None:
    played = Played(Timeout(attempt=2), Fallback(Callee("b")), idempotent=True)
    span = played.play(Callee(HANG))
    assert event(span, "fallback") == {
        "agentrt.target": "callee",
        "agentrt.fallback.from": "a",
        "error.type": "agentrt.errors.AttemptTimeout",
    }
    assert span.attributes["agentrt.degraded"] is True
    assert span.attributes["agentrt.target"] == "callee"
    assert [each.attributes["agentrt.target"] for each in played.children(span)] == ["a", "callee"]
    assert played.metrics["agentrt.fallbacks"].points[0].attributes == {
        "agentrt.target": "a",
        "agentrt.fallback": "callee",
    }


def test_a_default_that_is_served_is_an_event() -> None:
    played = Played(Timeout(), Fallback(default="none"), idempotent=True)
    span = played.play(Callee(PermanentError("gone", fault="target")))
    assert event(span, "default served") == {"error.type": "agentrt.errors.PermanentError"}
    assert (span.status, span.attributes["agentrt.degraded"]) == ("unset", True)
    assert played.metrics["agentrt.fallbacks"].points[0].attributes["agentrt.fallback"] == "default"


def test_a_circuit_that_opens_and_one_that_is_open_are_events() -> None:
    played = Played(Timeout(), CircuitBreaker(minimum_calls=2, failure_rate=0.5))
    failing = Callee(TransientError("down"))
    span = played.play(failing, failing, failing)
    opened = next(root for root in played.roots if any(each.name == "circuit" for each in root.events))
    assert event(opened, "circuit") == {
        "agentrt.target": "a",
        "agentrt.circuit.old": "closed",
        "agentrt.circuit.new": "open",
    }
    assert event(span, "refused") == {
        "agentrt.stage": "circuit_breaker",
        "agentrt.target": "a",
        "error.type": f"{CircuitOpen.__module__}.{CircuitOpen.__qualname__}",
    }
    assert (span.status, span.attributes["agentrt.attempts"], played.children(span)) == ("error", 0, [])
    assert played.metrics["agentrt.circuit.changes"].points[0].attributes == {
        "agentrt.target": "a",
        "agentrt.circuit.new": "open",
    }
    refusals = {p.attributes["agentrt.stage"]: p.value for p in played.metrics["agentrt.refusals"].points}
    assert refusals == {"circuit_breaker": 1}


def test_a_refusal_by_a_limit_is_told_with_its_stage() -> None:
    played = Played(Timeout(), Bulkhead(limit=1))

    async def main() -> None:
        calls = (played.pipeline.call(Callee(Slow(2, "ok"))) for _ in range(2))
        await asyncio.gather(*calls, return_exceptions=True)

    played.watch(main)
    refused = next(root for root in played.roots if root.status == "error")
    assert event(refused, "refused")["agentrt.stage"] == "bulkhead"
    assert refused.attributes["error.type"] == f"{BulkheadFull.__module__}.BulkheadFull"


def test_a_wait_for_a_place_is_an_event_with_its_seconds() -> None:
    played = Played(Timeout(), Bulkhead(limit=1, queue=1))

    async def main() -> None:
        await asyncio.gather(*(played.pipeline.call(Callee(Slow(2, "ok"))) for _ in range(2)))

    played.watch(main)
    waited = next(root for root in played.roots if root.events)
    assert at(waited) == [("wait", 0.0)]
    assert event(waited, "wait") == {
        "agentrt.stage": "bulkhead",
        "agentrt.target": "a",
        "agentrt.seconds": 2.0,
    }


# --- how calls end --------------------------------------------------------------------------------------


def test_a_failure_has_its_type_message_notes_and_traceback() -> None:
    error = ValueError("the answer is 41")
    error.add_note("asked twice")
    played = Played(Timeout())
    span = played.play(Callee(error))
    assert (span.status, span.message) == ("error", "the answer is 41")
    assert span.attributes["error.type"] == "ValueError"
    found = event(span, "exception")
    assert (found["exception.type"], found["exception.message"]) == ("ValueError", "the answer is 41")
    assert "asked twice" in found["exception.stacktrace"]
    assert "doubles.py" in found["exception.stacktrace"]
    assert at(span) == [("exception", 0.0)]
    assert played.children(span) == [], "the only attempt would repeat its call"


def test_an_error_that_cannot_speak_is_told_all_the_same() -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    span = Played(Timeout()).play(Callee(MuteError()))
    assert span.status == "error"
    assert span.message == "(its __str__ raised RuntimeError)"
    assert span.attributes["error.type"].endswith("MuteError")


def test_a_cancellation_is_told_as_what_it_is() -> None:
    played = Played(Timeout())

    async def main() -> None:
        task = asyncio.create_task(played.pipeline.call(Callee(HANG)))
        await asyncio.sleep(4)
        task.cancel()
        await asyncio.wait([task])

    span = played.watch(main)
    assert span.attributes["error.type"] == "asyncio.exceptions.CancelledError"
    assert span.seconds == pytest.approx(4.0)


def test_a_timeout_of_ours_is_told_with_our_class() -> None:
    span = Played(Timeout(attempt=2)).play(Callee(HANG))
    assert span.attributes["error.type"] == f"{AttemptTimeout.__module__}.AttemptTimeout"
    assert span.seconds == pytest.approx(2.0)


@pytest.mark.parametrize("how", ["read", "broken", "left", "never"])
def test_a_stream_ends_when_it_settles(how: str) -> None:
    played = Played(Timeout(), kind="model", operation="chat", target="fake:m")
    items: list[Any] = [Slow(1, "a"), Slow(2, "b")]
    if how == "broken":
        items.append(Slow(3, TransientError("cut")))
    if how == "never":
        items = [Slow(1, PermanentError("no"))]

    async def main() -> None:
        with contextlib.suppress(TransientError, PermanentError):
            async with played.pipeline.stream(Callee(items).stream) as stream:
                async for _ in stream:
                    if how == "left":
                        break
            await asyncio.sleep(50)

    span = played.watch(main)
    seconds = {"read": 3.0, "broken": 6.0, "left": 1.0, "never": 1.0}[how]
    assert span.seconds == pytest.approx(seconds)
    assert span.status == ("error" if how in ("broken", "never") else "unset")
    first = span.attributes.get("gen_ai.response.time_to_first_chunk")
    assert first == (None if how == "never" else pytest.approx(1.0))
    metric = played.metrics.get("gen_ai.client.operation.time_to_first_chunk")
    assert (metric is None) == (how == "never")


# --- names and attributes by kind -----------------------------------------------------------------------


@tool(idempotent=True)
async def weather(city: str) -> str:
    """The weather."""
    if city == "Atlantis":
        raise ToolError("no such city")
    return f"sunny in {city}"


class Assistant(Agent):
    model = "fake:one"
    tools = (weather,)


async def kept_of(agent: Any, message: str = "go", *, model: Any = None, **options: Any) -> Kept:
    backend = Kept(interval=60.0)
    models = {"fake": model or FakeModel("ok")}
    async with Runtime(models=models, backends=[("kept", backend)], **options) as rt:
        with contextlib.suppress(ValueError, TransientError):
            await rt.run(agent, message)
    for report in rt.telemetry.report():
        assert report.lost == {}
    return backend


@pytest.mark.asyncio
async def test_a_run_its_models_and_its_tools_are_named_as_the_conventions_have_it() -> None:
    answer = ModelResponse(
        text="sunny",
        usage=Usage(7, 3, cache_read_input_tokens=2, reasoning_output_tokens=1),
        model="one-2026-11",
        id="resp-1",
    )
    backend = await kept_of(Assistant, model=FakeModel([wants("weather", '{"city": "Oslo"}')], answer))
    root = backend.named("invoke_agent Assistant")
    assert (root.parent_id, root.kind, root.status) == (None, "internal", "unset")
    run_id = root.attributes["agentrt.run.id"]
    assert (
        root.attributes.items()
        >= {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.provider.name": "agentrt",
            "gen_ai.agent.name": "Assistant",
            "gen_ai.usage.input_tokens": 17,
            "gen_ai.usage.output_tokens": 8,
        }.items()
    )
    first, second = sorted(
        [span for span in backend.spans if span.name == "chat one"], key=lambda span: span.start_ns
    )
    for span in (first, second):
        assert (span.parent_id, span.trace_id, span.kind) == (root.span_id, root.trace_id, "client")
        assert root.start_ns <= span.start_ns <= span.end_ns <= root.end_ns
    assert second.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "fake",
        "gen_ai.request.model": "one",
        "gen_ai.response.model": "one-2026-11",
        "gen_ai.response.id": "resp-1",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 2,
        "gen_ai.usage.reasoning.output_tokens": 1,
        "agentrt.kind": "model",
        "agentrt.target": "fake:one",
        "agentrt.run.id": run_id,
    }
    assert first.attributes["gen_ai.response.finish_reasons"] == ["tool_calls"]
    called = backend.named("execute_tool weather")
    assert (called.parent_id, called.kind) == (root.span_id, "internal")
    assert called.attributes == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "weather",
        "gen_ai.tool.type": "function",
        "agentrt.kind": "tool",
        "agentrt.target": "tool:weather",
        "agentrt.run.id": run_id,
    }
    assert first.end_ns <= called.start_ns <= called.end_ns <= second.start_ns


@pytest.mark.asyncio
async def test_a_tool_that_fails_is_an_error_of_its_span_and_not_of_the_run() -> None:
    backend = await kept_of(Assistant, model=FakeModel([wants("weather", '{"city": "Atlantis"}')], "sorry"))
    called = backend.named("execute_tool weather")
    assert (called.status, called.message) == ("error", "no such city")
    assert backend.named("invoke_agent Assistant").status == "unset"


@pytest.mark.asyncio
async def test_memory_secrets_and_kinds_of_ones_own_have_spans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_TOKEN", "a-secret-value-1")

    async def agent(message: str, ctx: Context) -> str:
        await ctx.memory.add("the cat sat", key="cat")
        await ctx.memory.search("cat")
        await ctx.secret("THE_TOKEN")
        return await ctx.call("geo", "geo:oslo", lambda: asyncio.sleep(0, "here"))

    memory = SqliteMemory(path=str(tmp_path / "m.db"))
    backend = await kept_of(agent, memory=memory)
    await memory.aclose()
    root = backend.named("invoke_agent agent")
    for name, kind, extra in (
        ("add_memory", "memory", {"gen_ai.operation.name": "add_memory"}),
        ("search_memory", "memory", {"gen_ai.operation.name": "search_memory"}),
        ("geo:oslo", "geo", {"agentrt.operation": "geo:oslo", "agentrt.target": "geo:oslo"}),
    ):
        span = backend.named(name)
        assert (span.kind, span.parent_id) == ("client", root.span_id)
        assert span.attributes["agentrt.kind"] == kind
        assert extra.items() <= span.attributes.items()
    secret = next(span for span in backend.spans if span.attributes.get("agentrt.kind") == "secret")
    assert secret.trace_id == root.trace_id
    assert b"a-secret-value-1" not in b"".join(batch.json() for batch in backend.batches)


@pytest.mark.asyncio
async def test_a_run_that_fails_has_its_error() -> None:
    async def agent(message: str) -> str:
        raise ValueError("no idea")

    backend = await kept_of(agent)
    root = backend.named("invoke_agent agent")
    assert (root.status, root.message, root.attributes["error.type"]) == ("error", "no idea", "ValueError")
    assert "no idea" in event(root, "exception")["exception.stacktrace"]


@pytest.mark.asyncio
async def test_a_run_is_degraded_if_an_answer_was() -> None:
    class Careful(Agent):
        model = ("fake:one", "fake:two")

    model = FakeModel(PermanentError("no such model", fault="target"), "ok")
    backend = await kept_of(Careful, model=model)
    assert backend.named("invoke_agent Careful").attributes["agentrt.degraded"] is True
    call = backend.named("chat two")
    assert call.attributes["gen_ai.request.model"] == "two"
    assert [each.name for each in backend.spans if each.parent_id == call.span_id] == [
        "attempt 1",
        "attempt 1",
    ]


@pytest.mark.asyncio
async def test_what_the_user_says_about_the_current_span_is_on_the_calls() -> None:
    from opentelemetry import trace

    async def agent(message: str, ctx: Context) -> str:
        async def work() -> str:
            span = trace.get_current_span()
            span.set_attribute("rows", 3)
            span.add_event("half")
            span.set_status(trace.StatusCode.ERROR, "not quite")
            return "done"

        trace.get_current_span().set_attribute("of the run", True)
        return await ctx.call("call", "there", work)

    backend = await kept_of(agent)
    there = backend.named("there")
    assert there.attributes["rows"] == 3
    assert [each.name for each in there.events] == ["half"]
    assert (there.status, there.message) == ("error", "not quite")
    assert backend.named("invoke_agent agent").attributes["of the run"] is True


# --- metrics --------------------------------------------------------------------------------------------

TAGS = {
    "gen_ai.operation.name",
    "gen_ai.provider.name",
    "gen_ai.request.model",
    "gen_ai.agent.name",
    "gen_ai.tool.name",
    "gen_ai.token.type",
    "error.type",
    "agentrt.kind",
    "agentrt.target",
    "agentrt.stage",
    "agentrt.fallback",
    "agentrt.circuit.new",
    "agentrt.backend",
    "agentrt.signal",
    "agentrt.reason",
}


def of(backend: Kept, instrument: Any) -> list[tuple[dict[str, Any], Any]]:
    metric = backend.metrics[instrument.name]
    assert (metric.kind, metric.unit) == (instrument.kind, instrument.unit)
    return [(point.attributes, point.value) for point in metric.points]


@pytest.mark.asyncio
async def test_each_metric_of_the_specification_stands_beside_its_twin(tmp_path: Path) -> None:
    class Remembering(Assistant):
        async def run(self, message: str, ctx: Context) -> Any:
            await ctx.memory.search("cat")
            return await super().run(message)

    memory = SqliteMemory(path=str(tmp_path / "m.db"))
    model = FakeModel([wants("weather", '{"city": "Oslo"}')], "sunny")
    backend = await kept_of(Remembering, model=model, memory=memory)
    await memory.aclose()

    agent = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "Remembering"}
    for instrument in (names.EXECUTION_DURATION, names.AGENT_DURATION):
        ((tags, duration),) = of(backend, instrument)
        assert (instrument.unit, tags, duration.count) == ("s", agent, 1)
        assert duration.bounds[:3] == pytest.approx((0.1, 0.2, 0.4))

    chat = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "fake", "gen_ai.request.model": "one"}
    inputs, outputs = ({**chat, "gen_ai.token.type": kind} for kind in ("input", "output"))
    assert of(backend, names.EXECUTION_TOKENS) == [(inputs, 20), (outputs, 10)]
    assert [(tags, value.count, value.sum) for tags, value in of(backend, names.TOKEN_USAGE)] == [
        (inputs, 2, 20),
        (outputs, 2, 10),
    ]
    assert of(backend, names.TOKEN_USAGE)[0][1].bounds[:4] == (1, 4, 16, 64)

    used = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "weather"}
    assert of(backend, names.TOOL_CALLS) == [(used, 1)]
    assert [(tags, value.count) for tags, value in of(backend, names.TOOL_DURATION)] == [(used, 1)]

    search = {"gen_ai.operation.name": "search_memory"}
    assert [(tags, value.count) for tags, value in of(backend, names.MEMORY_TIME)] == [(search, 1)]
    operations = {
        tags["gen_ai.operation.name"]: value for tags, value in of(backend, names.OPERATION_DURATION)
    }
    assert {name: value.count for name, value in operations.items()} == {"chat": 2, "search_memory": 1}
    assert operations["chat"].bounds[:3] == pytest.approx((0.01, 0.02, 0.04))
    assert operations["chat"].bounds[-1] == pytest.approx(81.92)
    assert "agent.execution.errors" not in backend.metrics


@pytest.mark.asyncio
async def test_a_run_that_fails_counts_as_an_error_with_its_type() -> None:
    async def agent(message: str) -> str:
        raise ValueError("no idea")

    backend = await kept_of(agent)
    tags = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "agent", "error.type": "ValueError"}
    assert of(backend, names.EXECUTION_ERRORS) == [(tags, 1)]
    ((found, duration),) = of(backend, names.EXECUTION_DURATION)
    assert (found, duration.count) == (tags, 1)


@pytest.mark.asyncio
async def test_tags_are_few_and_never_ids(tmp_path: Path) -> None:
    class Everything(Agent):
        model = ("fake:one", "fake:two")
        tools = (weather,)

        async def run(self, message: str, ctx: Context) -> Any:
            await ctx.memory.add("x", key="k")
            await ctx.call("geo", "geo:oslo", lambda: asyncio.sleep(0))
            async with ctx.stream_model("hi") as stream:
                async for _ in stream:
                    pass
            return await super().run(message)

    memory = SqliteMemory(path=str(tmp_path / "m.db"))
    gone = PermanentError("no such model", fault="target")
    model = FakeModel("hi", [wants("weather", '{"city": "Oslo"}')], gone, "ok")
    backend = await kept_of(Everything, model=model, memory=memory)
    await memory.aclose()
    run_id = backend.named("invoke_agent Everything").attributes["agentrt.run.id"]
    seen = set()
    for metric in backend.metrics.values():
        for point in metric.points:
            seen |= point.attributes.keys()
            assert run_id not in str(point.attributes)
    assert seen <= TAGS
    assert {"gen_ai.request.model", "gen_ai.token.type", "agentrt.kind"} <= seen


@pytest.mark.asyncio
async def test_metrics_are_the_same_without_a_backend_that_exports() -> None:
    def counts(metrics: Any) -> dict[tuple[str, str], Any]:
        return {
            (metric.name, str(sorted(point.attributes.items()))): point.value.count
            if isinstance(point.value, Histogram)
            else point.value
            for metric in metrics
            for point in metric.points
        }

    found = []
    for backends in ([], [("kept", Kept())]):
        model = FakeModel([wants("weather", '{"city": "Oslo"}')], "sunny")
        async with Runtime(models={"fake": model}, backends=backends) as rt:
            await rt.run(Assistant, "go")
            found.append(counts(rt.telemetry.metrics()))
    assert found[0] == found[1] != {}


def test_every_instrument_of_ours_is_reserved() -> None:
    declared = {each.name for each in vars(names).values() if isinstance(each, names.Instrument)}
    assert {each.name for each in names.INSTRUMENTS} == declared


def test_a_throttled_call_keeps_its_first_error_in_view() -> None:
    played = Played(Timeout(), Retry(initial_delay=1, jitter="none", max_attempts=2), idempotent=True)
    span = played.play(Callee(ThrottledError("429", retry_after=4.0)))
    assert [name for name, _ in at(span)] == ["retry", "wait", "exception"]
    assert [each.attributes["agentrt.error.label"] for each in played.children(span)] == 2 * ["throttled"]


def test_a_call_without_a_run_has_no_run_on_its_span() -> None:
    played = Played(Timeout())
    span = played.play(Callee("ok"))
    assert "agentrt.run.id" not in span.attributes
