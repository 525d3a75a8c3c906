"""The client of the chat completions wire."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from agentrt.errors import ConfigError, PermanentError, ThrottledError, TransientError
from agentrt.models.openai import OpenAI
from agentrt.models.protocol import (
    FilePart,
    ImagePart,
    Message,
    ModelResponse,
    Settings,
    TextPart,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from agentrt.testing.fault_server import Fault, FaultServer, Reply
from tests.models.asking import WEATHER, ask, gather, partly, reasoning_of, text_of

pytestmark = pytest.mark.asyncio
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def stream_of(*chunks: Any, end: bytes = b"data: [DONE]\n\n") -> Fault:
    """A stream of these chunks, whatever they are."""
    body = b"".join(b"data: %b\n\n" % msgspec.json.encode(chunk) for chunk in chunks)
    return Fault(body=body + end, content_type="text/event-stream")


def delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


def call_delta(arguments: Any = None, *, name: str | None = None, **fields: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return delta(tool_calls=[{**fields, "function": {k: v for k, v in function.items() if v is not None}}])


async def both(openai: OpenAI, server: FaultServer, fault: Fault) -> list[ModelResponse]:
    server.play(fault, fault)
    return [await openai.complete(ask()), (await gather(openai, ask()))[1]]


# --- what is sent --------------------------------------------------------------------------------------


async def test_a_plain_request_is_as_small_as_can_be(openai: OpenAI, server: FaultServer) -> None:
    await openai.complete(ask("hi", model="gpt-5-mini"))
    assert server.requests[0].json == {
        "model": "gpt-5-mini",
        "messages": [{"role": "user", "content": "hi"}],
    }
    await gather(openai, ask("hi"))
    assert server.requests[1].json["stream_options"] == {"include_usage": True}
    assert server.requests[1].headers["accept"] == "text/event-stream"


async def test_a_conversation_with_tools_is_sent_in_the_wires_shape(
    openai: OpenAI, server: FaultServer
) -> None:
    messages = [
        Message("system", "Be brief."),
        Message(
            "user", [TextPart("What is this?"), ImagePart(url="https://x/y.png"), ImagePart(data="AAAA")]
        ),
        Message("user", [FilePart(data="JVBE", media_type="application/pdf", name="a.pdf")]),
        Message("assistant", "", tool_calls=[ToolCall("1", "weather", '{"city":"Rome"}')]),
        Message("tool", "sunny", tool_call_id="1"),
        Message("assistant", "Well.", tool_calls=[ToolCall("2", "weather", "{}")]),
        Message("tool", "no such city", tool_call_id="2", is_error=True),
    ]
    await openai.complete(ask(messages=messages, tools=[WEATHER]))
    sent = server.requests[0].json

    def call(id: str, arguments: str) -> dict[str, Any]:
        return {"id": id, "type": "function", "function": {"name": "weather", "arguments": arguments}}

    assert sent["messages"] == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "file",
                    "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBE"},
                }
            ],
        },
        {"role": "assistant", "content": None, "tool_calls": [call("1", '{"city":"Rome"}')]},
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
        {"role": "assistant", "content": "Well.", "tool_calls": [call("2", "{}")]},
        {"role": "tool", "tool_call_id": "2", "content": "Error: no such city"},
    ]
    assert sent["tools"] == [
        {
            "type": "function",
            "function": {
                "name": "weather",
                "description": WEATHER.description,
                "parameters": WEATHER.parameters,
            },
        }
    ]


async def test_settings_have_the_wires_names_and_extra_fields_win(
    openai: OpenAI, server: FaultServer
) -> None:
    settings = Settings(
        temperature=0.0,
        max_tokens=5,
        top_p=0.5,
        seed=1,
        stop=["."],
        reasoning_effort="low",
        extra={"user": "u", "seed": None, "top_p": 0.9, "nothing": None},
    )
    await openai.complete(ask(settings=settings))
    sent = server.requests[0].json
    del sent["model"], sent["messages"]
    assert sent == {
        "temperature": 0.0,
        "max_tokens": 5,
        "top_p": 0.9,
        "stop": ["."],
        "reasoning_effort": "low",
        "user": "u",
    }


async def test_openai_itself_gets_the_new_name_of_max_tokens() -> None:
    from agentrt.models.openai_request import encode

    request = ask(settings=Settings(max_tokens=5))
    assert msgspec.json.decode(encode(request, stream=False, official=True))["max_completion_tokens"] == 5
    assert OpenAI(base_url="https://api.openai.com/v1", api_key="k")._official
    assert OpenAI(base_url="https://x.openai.azure.com/openai/v1", api_key="k")._official
    assert not OpenAI(base_url="https://openai.com.example/v1", api_key="k")._official


async def test_an_output_schema_is_asked_for_strictly_if_it_can_be(
    openai: OpenAI, server: FaultServer
) -> None:
    loose = {**CITY, "required": []}
    await openai.complete(ask(output_schema=CITY, output_name="a city!"))
    await openai.complete(ask(output_schema=loose))
    strict, plain = (request.json["response_format"]["json_schema"] for request in server.requests)
    assert strict == {"name": "a_city_", "strict": True, "schema": {**CITY, "additionalProperties": False}}
    assert plain == {"name": "output", "schema": loose}


async def test_organization_and_project_are_headers(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj_e")
    client = OpenAI(base_url=server.openai_url, api_key="k", organization="org_1")
    await client.complete(ask())
    headers = server.requests[0].headers
    assert (headers["openai-organization"], headers["openai-project"]) == ("org_1", "proj_e")
    await client.aclose()


# --- key and address -----------------------------------------------------------------------------------


async def test_the_environment_names_server_and_key(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.openai_url + "/")
    monkeypatch.setenv("OPENAI_API_KEY", " key-of-the-environment\n")
    client = OpenAI()
    await client.complete(ask())
    assert server.requests[0].headers["authorization"] == "Bearer key-of-the-environment"
    await client.aclose()


async def test_the_constructor_wins_over_the_environment(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "environment")
    for key, sent in (("mine", "Bearer mine"), ("", None)):
        client = OpenAI(base_url=server.openai_url, api_key=key)
        await client.complete(ask())
        assert server.requests[-1].headers.get("authorization") == sent
        await client.aclose()


async def test_a_missing_key_says_which_variable_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(
        PermanentError, match=r"there is no API key; set OPENAI_API_KEY, or api_key in"
    ) as caught:
        await OpenAI().complete(ask())
    assert (caught.value.fault, caught.value.executed) == ("target", False)


async def test_a_server_of_ones_own_needs_no_key(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    client = OpenAI(base_url=server.openai_url)
    await client.complete(ask())
    assert "authorization" not in server.requests[0].headers
    await client.aclose()


async def test_names_tell_hosts_and_credentials_apart_and_hide_the_key() -> None:
    one = OpenAI(base_url="https://api.openai.com/v1", api_key="sk-one")
    two = OpenAI(base_url="https://api.openai.com/v1", api_key="sk-two")
    local = OpenAI(base_url="http://127.0.0.1:8080/v1", api_key="")
    assert one.target("gpt-5-mini") == "openai:gpt-5-mini"
    assert local.target("qwen") == "openai:qwen@127.0.0.1:8080"
    assert local.identity("qwen") == "127.0.0.1:8080#none"
    assert one.identity("a") == one.identity("b") != two.identity("a")
    assert "sk-one" not in one.identity("a")


async def test_an_unknown_tool_mode_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="tool_mode must be one of 'native', 'json_schema'"):
        OpenAI(tool_mode="magic")  # type: ignore[arg-type]


# --- what comes back -----------------------------------------------------------------------------------


async def test_parallel_tool_calls_come_whole_and_in_pieces(openai: OpenAI, server: FaultServer) -> None:
    reply = Reply(text="Let me see.", tool_calls=(("weather", {"city": "Rome"}), ("clock", {})))
    whole, streamed = await both(openai, server, Fault.ok(reply=reply))
    assert whole == streamed
    assert (whole.text, whole.finish) == ("Let me see.", "tool_calls")
    assert whole.tool_calls == [
        ToolCall("call_0", "weather", '{"city":"Rome"}'),
        ToolCall("call_1", "clock", "{}"),
    ]


async def test_the_pieces_of_tool_calls_add_up(openai: OpenAI, server: FaultServer) -> None:
    server.play(Fault.ok(reply=Reply(text="", tool_calls=(("a", {"x": 1}), ("b", {"y": 2})))))
    items, response = await gather(openai, ask())
    deltas = [item for item in items if isinstance(item, ToolCallDelta)]
    assert [(item.index, item.id, item.name) for item in deltas if item.id] == [
        (0, "call_0", "a"),
        (1, "call_1", "b"),
    ]
    for index, call in enumerate(response.tool_calls):
        assert "".join(item.arguments for item in deltas if item.index == index) == call.arguments


async def test_reasoning_comes_apart_from_the_text(openai: OpenAI, server: FaultServer) -> None:
    server.play(Fault.ok(reply=Reply(text="42", reasoning="six times seven")))
    items, response = await gather(openai, ask())
    assert (reasoning_of(items), text_of(items)) == ("six times seven", "42")
    assert (response.reasoning, response.text, response.usage.reasoning_output_tokens) == (
        "six times seven",
        "42",
        3,
    )


async def test_usage_tells_of_cache_and_reasoning(openai: OpenAI, server: FaultServer) -> None:
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "prompt_tokens_details": {"cached_tokens": 80, "cache_write_tokens": 5},
        "completion_tokens_details": {"reasoning_tokens": 15},
    }
    server.play(stream_of(delta("stop", content="x"), {"choices": [], "usage": usage}))
    assert (await gather(openai, ask()))[1].usage == Usage(
        input_tokens=100,
        output_tokens=20,
        cache_read_input_tokens=80,
        reasoning_output_tokens=15,
        cache_creation_input_tokens=5,
    )


async def test_a_refusal_is_text_that_was_filtered(openai: OpenAI, server: FaultServer) -> None:
    server.play(stream_of(delta(refusal="I can't "), delta("stop", refusal="say."), {"choices": []}))
    _, response = await gather(openai, ask())
    assert (response.text, response.finish) == ("I can't say.", "content_filter")


# --- how streams end -----------------------------------------------------------------------------------


async def test_a_finish_reason_and_the_bodys_end_are_a_proper_end(
    openai: OpenAI, server: FaultServer
) -> None:
    server.play(stream_of(delta(content="Hi"), delta("stop"), end=b""))
    assert (await gather(openai, ask()))[1].text == "Hi"


async def test_done_without_a_finish_reason_is_none(openai: OpenAI, server: FaultServer) -> None:
    server.play(stream_of(delta(content="Hi")))
    text, error = await partly(openai, ask())
    assert text == "Hi"
    assert type(error) is TransientError
    assert "without a finish reason" in str(error)


async def test_a_connection_that_breaks_between_finish_and_done_is_an_error(
    openai: OpenAI, server: FaultServer
) -> None:
    """What is missing may be the usage, or the rest of a body whose end nobody vouches for."""
    server.play(Fault(events=99, omit=1, then="close"))
    text, error = await partly(openai, ask())
    assert text == "Hello from the fault server."
    assert type(error) is TransientError


async def test_nothing_at_all_is_an_error(openai: OpenAI, server: FaultServer) -> None:
    for kind in ("text/event-stream", "application/json"):
        server.play(Fault(body=b"", content_type=kind))
        assert type((await partly(openai, ask()))[1]) is TransientError
    server.play(Fault(body=b""))
    with pytest.raises(TransientError, match="it is empty"):
        await openai.complete(ask())


# --- errors inside -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"error": {"message": "m", "type": "server_error"}}, TransientError),
        ({"error": {"message": "m", "code": 429}}, ThrottledError),
        (
            {"error": {"message": "m", "type": "insufficient_quota", "code": "insufficient_quota"}},
            PermanentError,
        ),
        ({"error": "it fell over"}, TransientError),
        ({"object": "error", "message": "m", "code": 400}, PermanentError),
        ({"choices": [{"error": {"code": 502, "message": "upstream"}}]}, TransientError),
        ({"choices": [{"finish_reason": "error"}]}, TransientError),
        ({"choices": [{"finish_reason": "insufficient_system_resource"}]}, TransientError),
        ({"choices": 5}, TransientError),
        ([], TransientError),
    ],
)
async def test_an_error_inside_a_success_is_an_error(
    openai: OpenAI, server: FaultServer, body: Any, kind: type
) -> None:
    server.play(Fault(body=msgspec.json.encode(body)), stream_of(delta(content="Hi"), body))
    with pytest.raises(kind):
        await openai.complete(ask())
    text, error = await partly(openai, ask())
    assert (text, type(error)) == ("Hi", kind)


async def test_an_event_named_error_is_one_whatever_it_holds(openai: OpenAI, server: FaultServer) -> None:
    server.play(Fault(body=b'event: error\ndata: {"message":"gone"}\n\n', content_type="text/event-stream"))
    assert "gone" in str((await partly(openai, ask()))[1])


async def test_an_answer_without_choices_is_an_error(openai: OpenAI, server: FaultServer) -> None:
    server.play(Fault(body=b'{"id":"x","choices":[]}'))
    with pytest.raises(TransientError, match="it has no choices"):
        await openai.complete(ask())


async def test_an_error_of_null_is_none(openai: OpenAI, server: FaultServer) -> None:
    server.play(stream_of({"error": None, **delta("stop", content="Hi")}))
    assert (await gather(openai, ask()))[1].text == "Hi"


# --- servers that do it in their own way ---------------------------------------------------------------


async def calls_of(openai: OpenAI, server: FaultServer, *chunks: Any) -> list[tuple[str, str]]:
    server.play(stream_of(*chunks, delta("stop")))
    _, response = await gather(openai, ask())
    assert response.finish == "tool_calls"
    ids = [call.id for call in response.tool_calls]
    assert all(ids)
    assert len(set(ids)) == len(ids)
    return [(call.name, call.arguments) for call in response.tool_calls]


async def test_tool_calls_without_numbers_are_told_apart_by_their_ids(
    openai: OpenAI, server: FaultServer
) -> None:
    found = await calls_of(
        openai,
        server,
        call_delta('{"a"', name="one", id="x"),
        call_delta(":1}"),
        call_delta('{"b":2}', name="two", id="y"),
    )
    assert found == [("one", '{"a":1}'), ("two", '{"b":2}')]


async def test_tool_calls_that_are_all_number_0_are_told_apart(openai: OpenAI, server: FaultServer) -> None:
    found = await calls_of(
        openai,
        server,
        call_delta('{"a":1}', name="one", index=0, id=""),
        call_delta('{"b":2}', name="two", index=0, id=""),
    )
    assert found == [("one", '{"a":1}'), ("two", '{"b":2}')]
    found = await calls_of(
        openai,
        server,
        call_delta("{}", name="one", index=0, id="x"),
        call_delta("{}", name="two", index=0, id="y"),
    )
    assert found == [("one", "{}"), ("two", "{}")]


async def test_a_name_and_id_in_every_piece_are_one_call(openai: OpenAI, server: FaultServer) -> None:
    pieces = [call_delta(piece, name="one", index=0, id="x") for piece in ('{"a"', ":", "1}")]
    assert await calls_of(openai, server, *pieces) == [("one", '{"a":1}')]
    pieces = [call_delta(piece, name="one", index=0) for piece in ('{"a"', ":", "1}")]
    assert await calls_of(openai, server, *pieces) == [("one", '{"a":1}')]


async def test_used_ids_are_replaced_and_objects_are_taken_as_arguments(
    openai: OpenAI, server: FaultServer
) -> None:
    found = await calls_of(
        openai,
        server,
        call_delta({"a": 1}, name="one", index=0, id="x"),
        call_delta({"b": 2}, name="two", index=1, id="x"),
        call_delta("lost", index=7),
    )
    assert found == [("one", '{"a":1}'), ("two", '{"b":2}')]


async def test_content_in_parts_and_reasoning_of_any_name_are_read(
    openai: OpenAI, server: FaultServer
) -> None:
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}, "?"]}
    server.play(
        stream_of(
            delta(reasoning="first "),
            delta(reasoning={"odd": 1}),
            delta(content=[thinking, {"type": "text", "text": "Hi"}, {"type": "image"}]),
            delta("eos", content=""),
            {
                "choices": [{"index": 1, "delta": {"content": "another choice"}}],
                "usage": {"prompt_tokens": None},
            },
        )
    )
    items, response = await gather(openai, ask())
    assert (reasoning_of(items), text_of(items), response.finish) == ("first hm", "Hi", "stop")
    assert response.usage.estimated


async def test_deepseeks_cache_hits_are_counted(openai: OpenAI, server: FaultServer) -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 1, "prompt_cache_hit_tokens": 8}
    server.play(stream_of({**delta("length"), "usage": usage}))
    _, response = await gather(openai, ask())
    assert (response.usage.cache_read_input_tokens, response.finish) == (8, "length")
