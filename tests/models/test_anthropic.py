"""The client of the messages wire."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import pytest

from agentrt.clock import SystemClock
from agentrt.errors import ConfigError, PermanentError, ThrottledError, TransientError
from agentrt.models.anthropic import Anthropic
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


def stream_of(*events: dict[str, Any]) -> Fault:
    body = b"".join(
        b"event: %b\ndata: %b\n\n" % (event["type"].encode(), msgspec.json.encode(event)) for event in events
    )
    return Fault(body=body, content_type="text/event-stream")


STOP = {"type": "message_stop"}


def start(**usage: int) -> dict[str, Any]:
    return {
        "type": "message_start",
        "message": {"id": "m1", "model": "c", "role": "assistant", "usage": usage},
    }


def block(index: int, **fields: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": fields}


def piece(index: int, **fields: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": fields}


def end(reason: str, **usage: Any) -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": usage}


async def both(anthropic: Anthropic, server: FaultServer, fault: Fault, **fields: Any) -> list[ModelResponse]:
    server.play(fault, fault)
    return [await anthropic.complete(ask(**fields)), (await gather(anthropic, ask(**fields)))[1]]


# --- what is sent --------------------------------------------------------------------------------------


async def test_a_plain_request_is_as_small_as_can_be(anthropic: Anthropic, server: FaultServer) -> None:
    await anthropic.complete(ask("hi", model="claude"))
    request = server.requests[0]
    assert request.json == {
        "model": "claude",
        "max_tokens": 16384,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
    }
    assert request.path == "/v1/messages"
    assert request.headers["anthropic-version"] == "2023-06-01"
    assert request.headers["x-api-key"]
    await gather(anthropic, ask("hi"))
    assert server.requests[1].json["stream"] is True


async def test_a_conversation_with_tools_is_sent_in_the_wires_shape(
    anthropic: Anthropic, server: FaultServer
) -> None:
    signed = {"type": "thinking", "thinking": "hm", "signature": "s"}
    messages = [
        Message("system", "Be brief."),
        Message("user", [TextPart("What is this?"), TextPart(""), ImagePart(url="https://x/y.png")]),
        Message(
            "user",
            [ImagePart(data="AAAA", media_type="image/jpeg"), ImagePart(url="data:image/gif;base64,BB")],
        ),
        Message("system", [TextPart("Be kind.")]),
        Message(
            "assistant",
            "",
            tool_calls=[ToolCall("1", "weather", '{"city":"Rome"}'), ToolCall("2", "weather", "not JSON")],
            continuation=[signed, {"type": "from_another_provider"}],
        ),
        Message("tool", "sunny", tool_call_id="1"),
        Message("tool", "", tool_call_id="2", is_error=True),
        Message("user", "And now?"),
        Message("assistant", ""),
    ]
    await anthropic.complete(ask(messages=messages, tools=[WEATHER]))
    sent = server.requests[0].json
    assert sent["system"] == "Be brief.\n\nBe kind."
    assert sent["tools"] == [
        {"name": "weather", "description": WEATHER.description, "input_schema": WEATHER.parameters}
    ]
    assert sent["messages"] == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}},
                {"type": "image", "source": {"type": "base64", "media_type": "image/jpeg", "data": "AAAA"}},
                {"type": "image", "source": {"type": "base64", "media_type": "image/gif", "data": "BB"}},
            ],
        },
        {
            "role": "assistant",
            "content": [
                signed,
                {"type": "tool_use", "id": "1", "name": "weather", "input": {"city": "Rome"}},
                {"type": "tool_use", "id": "2", "name": "weather", "input": {"arguments": "not JSON"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "sunny"}]},
                {"type": "tool_result", "tool_use_id": "2", "is_error": True},
                {"type": "text", "text": "And now?"},
            ],
        },
    ]


async def test_files_are_documents(anthropic: Anthropic, server: FaultServer) -> None:
    text = base64.b64encode("é".encode()).decode()
    parts = [
        FilePart(data="JVBE", media_type="application/pdf", name="a.pdf"),
        FilePart(data=text, media_type="text/markdown", name="b.md"),
        FilePart(data="not base64!", media_type="text/plain", name="c.txt"),
    ]
    await anthropic.complete(ask(messages=[Message("user", parts)]))
    documents = server.requests[0].json["messages"][0]["content"]
    assert [document["source"] for document in documents] == [
        {"type": "base64", "media_type": "application/pdf", "data": "JVBE"},
        {"type": "text", "media_type": "text/plain", "data": "é"},
        {"type": "text", "media_type": "text/plain", "data": "not base64!"},
    ]
    assert [document["title"] for document in documents] == ["a.pdf", "b.md", "c.txt"]


async def test_settings_have_the_wires_names_and_extra_fields_win(
    anthropic: Anthropic, server: FaultServer
) -> None:
    settings = Settings(
        temperature=0.0,
        max_tokens=5,
        top_p=0.5,
        seed=1,
        stop=["."],
        reasoning_effort="low",
        extra={"thinking": {"type": "adaptive"}, "top_p": None},
    )
    await anthropic.complete(ask(settings=settings))
    sent = server.requests[0].json
    del sent["model"], sent["messages"]
    assert sent == {
        "max_tokens": 5,
        "temperature": 0.0,
        "stop_sequences": ["."],
        "output_config": {"effort": "low"},
        "thinking": {"type": "adaptive"},
    }


async def test_an_output_schema_is_asked_for_by_the_apis_own_format(
    anthropic: Anthropic, server: FaultServer
) -> None:
    server.play(Fault.ok('{"city":"Rome"}'))
    settings = Settings(reasoning_effort="low")
    response = await anthropic.complete(ask(output_schema=CITY, settings=settings))
    assert server.requests[0].json["output_config"] == {
        "effort": "low",
        "format": {"type": "json_schema", "schema": {**CITY, "additionalProperties": False}},
    }
    assert response.text == '{"city":"Rome"}'


async def test_an_output_schema_can_be_a_tool_that_has_to_be_called(server: FaultServer) -> None:
    client = Anthropic(base_url=server.anthropic_url, api_key="", output_mode="tool", max_tokens=9)
    reply = Reply(text="", tool_calls=(("place", {"city": "Rome"}),))
    whole, streamed = await both(
        client, server, Fault.ok(reply=reply), output_schema=CITY, output_name="place"
    )
    sent = server.requests[0].json
    assert sent["tool_choice"] == {"type": "tool", "name": "place"}
    assert sent["max_tokens"] == 9
    assert [(tool["name"], tool["input_schema"]) for tool in sent["tools"]] == [("place", CITY)]
    assert whole == streamed
    assert (whole.text, whole.tool_calls, whole.finish) == ('{"city":"Rome"}', [], "stop")
    await client.aclose()


async def test_with_an_output_tool_other_tools_can_still_be_called(server: FaultServer) -> None:
    client = Anthropic(base_url=server.anthropic_url, api_key="", output_mode="tool")
    reply = Reply(text="", tool_calls=(("weather", {"city": "Rome"}),))
    for response in await both(client, server, Fault.ok(reply=reply), output_schema=CITY, tools=[WEATHER]):
        assert (response.finish, response.tool_calls[0].name, response.text) == ("tool_calls", "weather", "")
    assert server.requests[0].json["tool_choice"] == {"type": "any"}
    await client.aclose()


# --- key and address -----------------------------------------------------------------------------------


async def test_the_environment_names_server_and_key(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.anthropic_url + "/v1/")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "environment")
    client = Anthropic()
    await client.complete(ask())
    assert (server.requests[0].path, server.requests[0].headers["x-api-key"]) == (
        "/v1/messages",
        "environment",
    )
    await client.aclose()


async def test_a_missing_key_says_which_variable_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    monkeypatch.delenv("ANTHROPIC_BASE_URL", raising=False)
    with pytest.raises(PermanentError, match=r"there is no API key; set ANTHROPIC_API_KEY") as caught:
        await anext(Anthropic().stream(ask()))
    assert caught.value.fault == "target"


async def test_a_key_may_be_a_reference(server: FaultServer) -> None:
    class Vault:
        clock = SystemClock()

        async def secret(self, reference: str, /) -> str:
            return f"value of {reference}".replace(" ", "-")

        async def secret_rejected(self, reference: str, value: str, /) -> str:
            raise AssertionError("the key was taken")

    client = Anthropic(base_url=server.anthropic_url, api_key="secret://claude")
    await client.open(Vault())
    await client.complete(ask())
    assert server.requests[0].headers["x-api-key"] == "value-of-secret://claude"
    await client.aclose()


async def test_names_tell_hosts_and_credentials_apart() -> None:
    official = Anthropic(base_url="https://api.anthropic.com/", api_key="k")
    assert official.target("claude") == "anthropic:claude"
    assert official.identity("claude").startswith("api.anthropic.com:443#")
    assert Anthropic(base_url="http://gate:1", api_key="").target("claude") == "anthropic:claude@gate:1"


async def test_wrong_options_are_config_errors() -> None:
    with pytest.raises(ConfigError, match="max_tokens must be a whole number of at least 1"):
        Anthropic(max_tokens=0)
    with pytest.raises(ConfigError, match="output_mode must be one of"):
        Anthropic(output_mode="json")  # type: ignore[arg-type]


# --- what comes back -----------------------------------------------------------------------------------


async def test_parallel_tool_calls_come_whole_and_in_pieces(
    anthropic: Anthropic, server: FaultServer
) -> None:
    reply = Reply(text="Let me see.", tool_calls=(("weather", {"city": "Rome"}), ("clock", {})))
    whole, streamed = await both(anthropic, server, Fault.ok(reply=reply))
    assert whole == streamed
    assert (whole.text, whole.finish, whole.id) == ("Let me see.", "tool_calls", "msg_fault")
    assert whole.tool_calls == [
        ToolCall("toolu_0", "weather", '{"city":"Rome"}'),
        ToolCall("toolu_1", "clock", "{}"),
    ]


async def test_the_pieces_of_tool_calls_add_up(anthropic: Anthropic, server: FaultServer) -> None:
    server.play(Fault.ok(reply=Reply(text="", tool_calls=(("a", {"x": 1}), ("b", {"y": 2})))))
    items, response = await gather(anthropic, ask())
    deltas = [item for item in items if isinstance(item, ToolCallDelta)]
    for index, call in enumerate(response.tool_calls):
        assert "".join(item.arguments for item in deltas if item.index == index) == call.arguments


async def test_signed_thinking_is_kept_for_the_next_request(
    anthropic: Anthropic, server: FaultServer
) -> None:
    reply = Reply(text="42", reasoning="six times seven")
    whole, streamed = await both(anthropic, server, Fault.ok(reply=reply))
    assert whole == streamed
    assert (whole.reasoning, whole.text) == ("six times seven", "42")
    assert whole.continuation == [{"type": "thinking", "thinking": "six times seven", "signature": "signed"}]
    await anthropic.complete(ask(messages=[Message("user", "?"), whole.message(), Message("user", "And?")]))
    assert server.requests[-1].json["messages"][1]["content"] == [
        *whole.continuation,
        {"type": "text", "text": "42"},
    ]


async def test_thinking_comes_apart_from_the_text_and_redacted_blocks_are_kept(
    anthropic: Anthropic, server: FaultServer
) -> None:
    server.play(
        stream_of(
            start(input_tokens=3, output_tokens=1),
            block(0, type="redacted_thinking", data="xyz"),
            {"type": "content_block_stop", "index": 0},
            block(1, type="thinking", thinking="", signature=""),
            piece(1, type="thinking_delta", thinking="hm"),
            piece(1, type="signature_delta", signature="a"),
            piece(1, type="signature_delta", signature="b"),
            {"type": "content_block_stop", "index": 1},
            block(2, type="text", text="4"),
            piece(2, type="text_delta", text="2"),
            {"type": "content_block_stop", "index": 2},
            end("end_turn", output_tokens=9),
            STOP,
        )
    )
    items, response = await gather(anthropic, ask())
    assert (reasoning_of(items), text_of(items)) == ("hm", "42")
    assert response.continuation == [
        {"type": "redacted_thinking", "data": "xyz"},
        {"type": "thinking", "thinking": "hm", "signature": "ab"},
    ]


async def test_usage_includes_what_the_cache_gave_and_took(anthropic: Anthropic, server: FaultServer) -> None:
    server.play(
        stream_of(
            start(
                input_tokens=10, output_tokens=1, cache_read_input_tokens=70, cache_creation_input_tokens=20
            ),
            piece(0, type="text_delta", text="a block that was never opened"),
            end("end_turn", output_tokens=30, output_tokens_details={"thinking_tokens": 25}),
            STOP,
        )
    )
    _, response = await gather(anthropic, ask())
    assert response.text == "a block that was never opened"
    assert response.usage == Usage(
        input_tokens=100,
        output_tokens=30,
        cache_read_input_tokens=70,
        reasoning_output_tokens=25,
        cache_creation_input_tokens=20,
    )


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("pause_turn", "length"),
        ("refusal", "content_filter"),
        ("something_new", "stop"),
    ],
)
async def test_stop_reasons_have_our_names(
    anthropic: Anthropic, server: FaultServer, reason: str, finish: str
) -> None:
    server.play(Fault.ok(reply=Reply(finish=reason)))
    assert (await anthropic.complete(ask())).finish == finish


# --- how streams end, and errors inside ----------------------------------------------------------------


async def test_a_stream_without_message_stop_is_no_answer(anthropic: Anthropic, server: FaultServer) -> None:
    server.play(Fault(omit=1))
    text, error = await partly(anthropic, ask())
    assert text == "Hello from the fault server."
    assert type(error) is TransientError
    assert "without message_stop" in str(error)


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("overloaded_error", TransientError),
        ("api_error", TransientError),
        ("rate_limit_error", ThrottledError),
        ("authentication_error", PermanentError),
        ("invalid_request_error", PermanentError),
    ],
)
async def test_an_error_event_is_judged_by_its_type(
    anthropic: Anthropic, server: FaultServer, kind: str, error: type
) -> None:
    event = {"type": "error", "error": {"type": kind, "message": "no"}}
    hello = piece(0, type="text_delta", text="Hi")
    unnamed = Fault(
        body=b"data: %b\n\ndata: %b\n\n" % (msgspec.json.encode(hello), msgspec.json.encode(event)),
        content_type="text/event-stream",
    )
    server.play(stream_of(hello, event), unnamed, Fault(body=msgspec.json.encode(event)))
    for _ in range(2):
        text, raised = await partly(anthropic, ask())
        assert (text, type(raised)) == ("Hi", error)
    with pytest.raises(error):
        await anthropic.complete(ask())


@pytest.mark.parametrize(
    "body", [b'{"type":"message","role":"assistant"}', b'{"id":1}', b"[]", b"", b'{"content":[]}']
)
async def test_a_body_that_is_no_message_is_transient(
    anthropic: Anthropic, server: FaultServer, body: bytes
) -> None:
    server.play(Fault(body=body))
    with pytest.raises(TransientError, match="not a message"):
        await anthropic.complete(ask())


async def test_events_that_are_not_known_are_passed_over(anthropic: Anthropic, server: FaultServer) -> None:
    server.play(
        stream_of(
            {"type": "something_new", "data": 1},
            {"type": "content_block_stop", "index": 3},
            {"type": "content_block_delta", "index": 0},
            {"type": "content_block_start", "index": 0},
            {"type": "message_start"},
            {"type": "message_delta"},
            block(0, type="server_tool_use", id="x", name="web_search", input={}),
            piece(0, type="input_json_delta", partial_json="{}"),
            STOP,
        )
    )
    items, response = await gather(anthropic, ask())
    assert (items, response.text, response.usage.estimated) == ([], "", True)
