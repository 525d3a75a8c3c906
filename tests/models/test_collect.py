"""Putting an answer together, and guessing its tokens."""

from __future__ import annotations

from agentrt.models.collect import Answer, estimate
from agentrt.models.protocol import (
    FilePart,
    ImagePart,
    Message,
    ModelResponse,
    TextPart,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from tests.models.asking import WEATHER, ask


def test_an_answer_is_the_sum_of_its_pieces() -> None:
    answer = Answer()
    answer.add_reasoning("h")
    answer.add_reasoning("m")
    answer.add_text("a")
    answer.add_text("b")
    assert answer.begin_call(id="1", name="f", arguments="{") == ToolCallDelta(0, "1", "f", "{")
    assert answer.add_arguments(0, "}") == ToolCallDelta(0, arguments="}")
    answer.usage = Usage(1, 2)
    response = answer.response(ask(model="m"))
    assert response == ModelResponse(
        text="ab",
        reasoning="hm",
        tool_calls=[ToolCall("1", "f", "{}")],
        finish="tool_calls",
        usage=Usage(1, 2),
        model="m",
    )


def test_a_finish_that_says_more_is_kept_with_tool_calls() -> None:
    answer = Answer()
    answer.begin_call(id="1", name="f", arguments='{"a": ')
    answer.finish = "length"
    assert answer.response(ask()).finish == "length"


def test_a_call_without_arguments_has_none_and_one_without_id_gets_one() -> None:
    answer = Answer()
    first, second = answer.begin_call(id="", name="f"), answer.begin_call(id="", name="f")
    assert first.id.startswith("call_")
    assert first.id != second.id
    assert [call.arguments for call in answer.response(ask()).tool_calls] == ["{}", "{}"]


def test_an_estimate_counts_everything_that_was_sent_and_came() -> None:
    messages = [
        Message("user", [TextPart("x" * 40), ImagePart(url="u"), FilePart(data="y" * 160, media_type="a/b")]),
        Message("assistant", "z" * 8, tool_calls=[ToolCall("1", "abcd", "efgh")]),
    ]
    answer = ModelResponse(text="t" * 6, reasoning="r" * 8, tool_calls=[ToolCall("1", "ab", "{}")])
    tool = (
        len("weather")
        + len(WEATHER.description)
        + len('{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}')
    )
    usage = estimate(ask(messages=messages, tools=[WEATHER]), answer)
    assert usage == Usage(
        input_tokens=1000 + -(-(40 + 120 + 8 + 8 + tool) // 4),
        output_tokens=5,
        reasoning_output_tokens=2,
        estimated=True,
    )


def test_usages_add_up_and_a_guess_makes_the_sum_one() -> None:
    total = Usage(1, 2, 3, 4, False, 5) + Usage(10, 20, 30, 40, True, 50)
    assert total == Usage(11, 22, 33, 44, True, 55)
    assert total.total_tokens == 33
