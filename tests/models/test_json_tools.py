"""Tools for models that cannot call any."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from agentrt.errors import TransientError
from agentrt.models.json_tools import AnswerText, ask
from agentrt.models.openai import OpenAI
from agentrt.models.protocol import (
    ImagePart,
    Message,
    ModelRequest,
    TextPart,
    ToolCall,
    ToolCallDelta,
    ToolSpec,
)
from agentrt.testing.fault_server import Fault, FaultServer, Reply
from tests.models import asking
from tests.models.asking import WEATHER, gather, partly, reasoning_of, text_of

CLOCK = ToolSpec(
    "clock",
    "The time in a zone.",
    {
        "type": "object",
        "properties": {
            "zone": {"$ref": "#/$defs/Zone"},
            "exact": {"type": "boolean"},
            "n": {"type": ["null", "integer"]},
        },
        "$defs": {"Zone": {"enum": ["UTC", "CET"]}},
    },
)


@pytest_asyncio.fixture
async def client(server: FaultServer) -> AsyncIterator[OpenAI]:
    client = OpenAI(base_url=server.openai_url, api_key="", tool_mode="json_schema")
    yield client
    await client.aclose()


def request(*messages: Message, **fields: Any) -> ModelRequest:
    return asking.ask(messages=list(messages) or [Message("user", "hi")], tools=[WEATHER, CLOCK], **fields)


def told(made: ModelRequest) -> list[tuple[str, Any]]:
    """The messages after the instructions and the examples."""
    return [(message.role, message.content) for message in made.messages[1 + 2 * 3 :]]


# --- asking --------------------------------------------------------------------------------------------


def test_the_answer_is_a_tool_call_or_text() -> None:
    made = ask(request())
    assert made.tools == []
    assert made.output_schema is not None
    answer, weather, clock = made.output_schema["anyOf"]
    assert answer["properties"] == {"answer": {"type": "string"}}
    assert weather["properties"] == {"tool": {"const": "weather"}, "arguments": WEATHER.parameters}
    assert all(option["required"] == list(option["properties"]) for option in (answer, weather, clock))
    # References still lead somewhere, now from the root.
    assert clock["properties"]["arguments"]["properties"]["zone"] == {"$ref": "#/$defs/tool1_Zone"}
    assert made.output_schema["$defs"] == {"tool1_Zone": {"enum": ["UTC", "CET"]}}


def test_the_answer_may_have_a_schema_of_its_own() -> None:
    schema = {
        "type": "object",
        "properties": {"x": {"$ref": "#/$defs/X"}},
        "$defs": {"X": {"type": "number"}},
    }
    made = ask(request(output_schema=schema))
    assert made.output_schema is not None
    answer = made.output_schema["anyOf"][0]["properties"]["answer"]
    assert answer == {"type": "object", "properties": {"x": {"$ref": "#/$defs/answer_X"}}}


def test_the_model_is_told_of_the_tools_and_shown_how() -> None:
    system, *rest = ask(request(Message("system", "Be brief."), Message("user", "hi"))).messages
    assert isinstance(system.content, str)
    assert system.content.startswith(
        "Be brief.\n\nYou can use these tools:\n- weather(city: string): The current"
    )
    assert "- clock(zone: any, exact: boolean, n: ['null', 'integer']): The time" in system.content
    assert [message.content for message in rest if message.role == "assistant"] == [
        '{"answer": "I am an assistant."}',
        '{"tool": "weather", "arguments": {"city": "..."}}',
        '{"tool": "clock", "arguments": {"zone": "...", "exact": true, "n": "..."}}',
    ]


def test_a_single_tool_is_shown_twice_and_enumerations_are_told() -> None:
    tool = ToolSpec("t", "D.", {"properties": {"kind": {"enum": ["a", 1]}, "any": True}})
    made = ask(asking.ask(tools=[tool]))
    assert '- t(kind: "a" | 1, any: any): D.' in str(made.messages[0].content)
    shown = '{"tool": "t", "arguments": {"kind": "a", "any": "..."}}'
    assert [message.content for message in made.messages].count(shown) == 2


def test_the_conversation_so_far_is_told_in_the_same_form() -> None:
    made = ask(
        request(
            Message("user", [TextPart("Look"), ImagePart(url="u")]),
            Message("assistant", "I see."),
            Message("user", "Rome and UTC?"),
            Message(
                "assistant",
                "",
                tool_calls=[ToolCall("1", "weather", '{"city": "Röm"}'), ToolCall("2", "clock", "broken")],
            ),
            Message("tool", "sunny", tool_call_id="1"),
            Message("tool", [TextPart("no"), TextPart("clock")], tool_call_id="2", is_error=True),
            Message("tool", "?", tool_call_id="unknown"),
        )
    )
    assert told(made) == [
        ("user", [TextPart("Look"), ImagePart(url="u")]),
        ("assistant", '{"answer": "I see."}'),
        ("user", "Rome and UTC?"),
        ("assistant", '{"tool": "weather", "arguments": {"city": "Röm"}}'),
        ("assistant", '{"tool": "clock", "arguments": "broken"}'),
        ("user", "Result of weather: sunny\nError of clock: no\nclock\nResult of the tool: ?"),
    ]


def test_a_tool_is_offered_once_in_a_turn_so_that_every_turn_ends() -> None:
    first = Message("user", "hi"), Message("assistant", "", tool_calls=[ToolCall("1", "weather", "{}")])
    made = ask(request(*first, Message("tool", "sunny", tool_call_id="1")))
    assert made.output_schema is not None
    assert [list(option["properties"]) for option in made.output_schema["anyOf"]] == [
        ["answer"],
        ["tool", "arguments"],
    ]
    made = ask(asking.ask(messages=[*first, Message("tool", "sunny", tool_call_id="1")], tools=[WEATHER]))
    assert made.output_schema == {
        "type": "object",
        "properties": {"answer": {"type": "string"}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    made = ask(request(*first, Message("tool", "sunny", tool_call_id="1"), Message("user", "And now?")))
    assert made.output_schema is not None
    assert len(made.output_schema["anyOf"]) == 3


# --- reading -------------------------------------------------------------------------------------------

ANSWERS = [
    ('{"answer": "Hi."}', "Hi."),
    (' {\n "answer" :\t"Hi."}\n', "Hi."),
    ('{"answer": ""}', ""),
    ('{"answer": "a\\n\\"b\\" \\\\ \\u00e9 \\ud83d\\ude00 é😀"}', 'a\n"b" \\ é 😀 é😀'),
    ('{"answer": "lone \\ud83d!"}', "lone \ufffd!"),
    ('{"answer": "lone \\ud83d\\u0041"}', "lone \ufffdA"),
    ('{"answer": "lone \\ude00"}', "lone \ufffd"),
    ('{"answer": {"city": "Röm"}}', '{"city": "Röm"}'),
    ('{"answer": 5}', "5"),
    ('{"answer": null}', "null"),
    ("No JSON at all.", "No JSON at all."),
    ('"quoted"', '"quoted"'),
    ("", ""),
]


@pytest.mark.asyncio
@pytest.mark.parametrize(("said", "text"), ANSWERS)
@pytest.mark.parametrize("pieces", [1, 7, 1000])
async def test_an_answer_is_its_text_whole_and_in_pieces(
    client: OpenAI, server: FaultServer, said: str, text: str, pieces: int
) -> None:
    fault = Fault.ok(reply=Reply(text=said, pieces=pieces))
    server.play(fault, fault)
    whole = await client.complete(request())
    items, streamed = await gather(client, request())
    assert (whole.text, whole.tool_calls, whole.finish) == (text, [], "stop")
    assert streamed == whole
    assert text_of(items) == text


@pytest.mark.asyncio
async def test_text_is_streamed_while_it_is_written(client: OpenAI, server: FaultServer) -> None:
    server.play(Fault.ok(reply=Reply(text='{"answer": "one two three four"}', pieces=8)))
    items, _ = await gather(client, request())
    assert len(items) > 3


@pytest.mark.asyncio
async def test_a_tool_call_is_one(client: OpenAI, server: FaultServer) -> None:
    reply = Reply(text='{\n "tool": "weather", "arguments": {"city": "Röm"}}', reasoning="hm")
    server.play(Fault.ok(reply=reply), Fault.ok(reply=reply))
    whole = await client.complete(request())
    items, streamed = await gather(client, request())
    assert (whole.text, whole.finish) == ("", "tool_calls")
    call = streamed.tool_calls[0]
    assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Röm"})
    assert call.id != whole.tool_calls[0].id  # unique in a conversation
    assert items[-1] == ToolCallDelta(0, call.id, "weather", call.arguments)
    assert (text_of(items), reasoning_of(items)) == ("", "hm")
    assert whole.usage.input_tokens == 7
    assert server.requests[0].json["response_format"]["type"] == "json_schema"
    assert "tools" not in server.requests[0].json


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "said", ["{}", '{"city": "Rome"}', '{"tool": 5}', '{"tool": "x", "arguments": []}', '{"an']
)
async def test_json_that_is_neither_is_transient(client: OpenAI, server: FaultServer, said: str) -> None:
    server.play(Fault.ok(said), Fault.ok(said))
    with pytest.raises(TransientError, match="answered neither with a tool call nor with an answer"):
        await client.complete(request())
    assert isinstance((await partly(client, request()))[1], TransientError)


@pytest.mark.asyncio
@pytest.mark.parametrize(("said", "text"), [('{"answer": "Hi th', "Hi th"), ('{"tool": "wea', ""), ("", "")])
async def test_an_answer_cut_by_the_length_limit_is_what_there_is_of_it(
    client: OpenAI, server: FaultServer, said: str, text: str
) -> None:
    fault = Fault.ok(reply=Reply(text=said, finish="length"))
    server.play(fault, fault)
    whole = await client.complete(request())
    items, streamed = await gather(client, request())
    assert (whole.text, whole.tool_calls, whole.finish) == (text, [], "length")
    assert (streamed.text, text_of(items)) == (text, text)


@pytest.mark.asyncio
async def test_without_tools_it_is_an_ordinary_client(client: OpenAI, server: FaultServer) -> None:
    response = await client.complete(asking.ask())
    _, streamed = await gather(client, asking.ask())
    assert response.text == streamed.text == "Hello from the fault server."
    assert "response_format" not in server.requests[0].json


@pytest.mark.asyncio
async def test_closing_early_closes_the_stream_below(client: OpenAI, server: FaultServer) -> None:
    server.play(Fault(reply=Reply(text='{"answer": "one two three"}'), events=4, then="stall"))
    stream = client.stream(request())
    await anext(stream)
    await stream.aclose()
    await client.complete(asking.ask())
    assert server.connections == 2  # the first one could not be used again


def feed(*pieces: str) -> str:
    answer = AnswerText()
    return "".join(answer.feed(piece) for piece in pieces)


@given(
    text=st.text(),
    ascii=st.booleans(),
    cuts=st.sets(st.integers(0, 100)),
    after=st.sampled_from(["", " ", "\n}"]),
)
def test_any_text_in_any_pieces_comes_out_as_it_went_in(
    text: str, ascii: bool, cuts: set[int], after: str
) -> None:
    whole = json.dumps({"answer": text}, ensure_ascii=ascii) + after
    places = [0, *sorted(cut for cut in cuts if cut < len(whole)), len(whole)]
    pieces = [whole[start:end] for start, end in itertools.pairwise(places)]
    assert feed(*pieces) == text


@given(
    value=st.recursive(st.none() | st.booleans() | st.text(), lambda inner: st.dictionaries(st.text(), inner))
)
def test_other_json_is_left_to_whoever_has_the_whole(value: Any) -> None:
    whole = msgspec.json.encode({"tool": value}).decode()
    assert feed(*whole) == ""


def test_an_escape_that_does_not_exist_is_left_as_it_is() -> None:
    assert feed('{"answer": "a\\x', 'b"}') == "a\\xb"
    assert feed('{"answer": "a\\uZZZZ"}') == "a\\uZZZZ"
