"""The spans of usual calls, which are made clean at once, are the ones that redacting and cutting would make."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry import trace

from agentrt import Runtime
from agentrt.call import Call
from agentrt.middleware.telemetry import Telemetry
from agentrt.models.protocol import ModelResponse, Usage
from agentrt.pipeline import Pipeline
from agentrt.telemetry.call_spans import CallSpans, call_spans
from agentrt.telemetry.call_tracing import CallTracing
from agentrt.telemetry.processor import Processor
from agentrt.telemetry.redaction import MARK, Redactor
from agentrt.telemetry.signals import Span
from agentrt.telemetry.tracing import Sampler
from tests.telemetry.recording import Kept, processor

SECRET = "sk-proj-" + "a1B2" * 12
OFFSET = 1_700_000_000 * 10**9


async def work() -> str:
    return "done"


async def fails() -> str:
    raise ValueError("it failed")


async def tells() -> str:
    trace.get_current_span().set_attribute("mine", "of the user")
    return "done"


def finished(kind: str = "tool", target: str = "tool:search", work: Any = work) -> Call[Any]:
    """A traced call, without a run."""
    calls: list[Call[Any]] = []
    pipeline = Pipeline(
        inner_first=[Telemetry(collect=calls.append, tracing=CallTracing(Sampler()))],
        kind=kind,
        operation="chat" if kind == "model" else kind,
        target=target,
    )

    async def call() -> None:
        with contextlib.suppress(ValueError):
            await pipeline.call(work)

    asyncio.run(call())
    return calls[0]


def said(call: Call[Any], *, id: str = "resp-1") -> Call[Any]:
    """As if the call had been of a model."""
    call.record.usage = Usage(input_tokens=7, output_tokens=3, cache_read_input_tokens=2, estimated=True)
    call.record.response = ModelResponse(text="hello", model="gpt-5-mini-2026", id=id, finish="stop")
    call.record.first_item = call.record.started + 0.25
    return call


class Made:
    """What makes spans, with what it uses. `cleaned`: how many spans were redacted and cut."""

    def __init__(self, **options: Any) -> None:
        self.redactor = Redactor(**options)
        self.cleaned = 0
        self.makes = CallSpans(redactor=self.redactor, clean=self.clean)
        self._processor: Processor = processor(redactor=self.redactor)

    def clean(self, span: Span) -> Span:
        self.cleaned += 1
        return self._processor._clean_span(span)

    def of(self, call: Call[Any]) -> list[Span]:
        """All spans of a call, those made clean that were not."""
        spans: list[Span] = []
        clean: set[int] = set()
        self.makes.add(spans, clean, call, call.record.span, offset=OFFSET)
        return [span if place in clean else self.clean(span) for place, span in enumerate(spans)]

    def cleaned_afterwards(self, call: Call[Any]) -> list[Span]:
        return [self.clean(span) for span in call_spans(call, call.record.span, OFFSET)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: finished(),
        lambda: finished("memory", "sqlite"),
        lambda: finished("billing", "invoices"),
        lambda: finished("tool", "tool:" + "n" * 50_000),
        lambda: finished("tool", "tool:\udc80 caf\u00e9"),
        lambda: finished("tool", f"tool:{SECRET}"),
        lambda: said(finished("model", "openai:gpt-5-mini")),
        lambda: said(finished("model", "openai:gpt-5-mini"), id=SECRET),
        lambda: finished(work=fails),
        lambda: finished(work=tells),
    ],
    ids=["tool", "memory", "own", "long", "odd", "secret", "model", "secret id", "failed", "told"],
)
def test_a_span_is_the_one_that_cleaning_afterwards_makes(make: Callable[[], Call[Any]]) -> None:
    made, call = Made(), make()
    first, second = made.of(call), made.of(call)
    assert first == second == made.cleaned_afterwards(call)
    assert SECRET not in repr(first)


def test_what_is_the_same_for_all_calls_is_made_clean_once() -> None:
    made = Made()
    for _ in range(10):
        made.of(finished())
    assert made.cleaned == 1


def test_a_secret_that_is_learnt_later_is_redacted_in_what_was_known() -> None:
    made = Made()
    assert made.of(finished("tool", "tool:correct-horse"))[0].name == "execute_tool correct-horse"
    made.redactor.add("correct-horse")
    (span,) = made.of(finished("tool", "tool:correct-horse"))
    assert span.name == f"execute_tool {MARK}"
    assert "correct-horse" not in repr(span)


def test_one_span_is_not_changed_with_another() -> None:
    made = Made()
    first, second = made.of(finished())[0], made.of(finished())[0]
    first.attributes["added"] = 1
    assert "added" not in second.attributes
    assert "added" not in made.of(finished())[0].attributes


def test_the_id_of_a_run_is_redacted_like_all_else() -> None:
    made = Made(patterns=["[0-9a-f]{16}"])
    calls: list[Call[Any]] = []
    pipeline = Pipeline(
        inner_first=[Telemetry(collect=calls.append, tracing=CallTracing(Sampler()))],
        kind="tool",
        target="tool:x",
    )

    async def agent(message: str) -> str:
        return await pipeline.call(work)

    async def run() -> str:
        async with Runtime(backends=[("kept", Kept())]) as runtime:
            return (await runtime.run(agent, "go")).run_id

    run_id = asyncio.run(run())
    (span,) = made.of(calls[0])
    assert span.attributes["agentrt.run.id"] == MARK
    assert run_id not in repr(span)


def test_spans_that_are_clean_and_those_that_are_not_reach_a_backend_in_their_order() -> None:
    kept = Kept(interval=60.0)
    process = processor(kept, redactor=Redactor(patterns=["it failed"]))
    try:
        for call in (finished("a", "a"), finished("b", "b", work=fails), finished("c", "c")):
            process.offer(call)
        assert process.flush(10.0)
    finally:
        process.close(5.0)
    assert [span.name for span in kept.spans] == ["a", "b", "c"]
    assert kept.named("b").message == MARK
