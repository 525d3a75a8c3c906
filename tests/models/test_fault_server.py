"""The fault server, checked with the official clients: what they make of it is what the providers' servers do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import httpx2
import openai
import pytest
import pytest_asyncio

from agentrt.testing.fault_server import Fault, FaultServer, Reply

pytestmark = pytest.mark.asyncio
MESSAGES: Any = [{"role": "user", "content": "hi"}]
TOOLS = Reply(text="Let me see.", tool_calls=(("weather", {"city": "Rome"}), ("clock", {})), cached=3)


@pytest_asyncio.fixture
async def gpt(server: FaultServer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=server.openai_url, api_key="k", max_retries=0, timeout=30.0
    ) as client:
        yield client


@pytest_asyncio.fixture
async def claude(server: FaultServer) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(
        base_url=server.anthropic_url, api_key="k", max_retries=0, timeout=30.0
    ) as client:
        yield client


async def chat(gpt: openai.AsyncOpenAI) -> Any:
    return await gpt.chat.completions.create(model="m", messages=MESSAGES)


async def chat_stream(gpt: openai.AsyncOpenAI) -> list[Any]:
    stream = await gpt.chat.completions.create(model="m", messages=MESSAGES, stream=True)
    return [chunk async for chunk in stream]


async def say(claude: anthropic.AsyncAnthropic) -> Any:
    return await claude.messages.create(model="m", messages=MESSAGES, max_tokens=10)


async def say_stream(claude: anthropic.AsyncAnthropic) -> Any:
    async with claude.messages.stream(model="m", messages=MESSAGES, max_tokens=10) as stream:
        return await stream.get_final_message()


# --- good answers --------------------------------------------------------------------------------------


async def test_openais_client_reads_an_answer(gpt: openai.AsyncOpenAI, server: FaultServer) -> None:
    server.play(Fault.ok(reply=TOOLS))
    answer = await chat(gpt)
    choice = answer.choices[0]
    assert (choice.message.content, choice.finish_reason) == ("Let me see.", "tool_calls")
    assert [call.function.name for call in choice.message.tool_calls] == ["weather", "clock"]
    assert (answer.usage.prompt_tokens, answer.usage.prompt_tokens_details.cached_tokens) == (7, 3)
    request = server.requests[0]
    assert (request.method, request.path, request.json["model"]) == ("POST", "/v1/chat/completions", "m")
    assert request.headers["authorization"] == "Bearer k"


async def test_openais_client_reads_a_stream(gpt: openai.AsyncOpenAI, server: FaultServer) -> None:
    server.play(Fault.ok(reply=TOOLS))
    chunks = await chat_stream(gpt)
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == "Let me see."
    arguments = [
        call.function.arguments for delta in deltas for call in delta.tool_calls or () if call.index == 0
    ]
    assert "".join(arguments) == '{"city":"Rome"}'
    assert chunks[-1].usage.completion_tokens == 6


async def test_anthropics_client_reads_an_answer(
    claude: anthropic.AsyncAnthropic, server: FaultServer
) -> None:
    server.play(Fault.ok(reply=TOOLS))
    answer = await say(claude)
    assert [block.type for block in answer.content] == ["text", "tool_use", "tool_use"]
    assert answer.content[1].input == {"city": "Rome"}
    assert (answer.stop_reason, answer.usage.input_tokens, answer.usage.cache_read_input_tokens) == (
        "tool_use",
        4,
        3,
    )
    assert server.requests[0].path == "/v1/messages"


async def test_anthropics_client_reads_a_stream(
    claude: anthropic.AsyncAnthropic, server: FaultServer
) -> None:
    server.play(Fault.ok(reply=Reply(text="Hi.", reasoning="I think.", tool_calls=TOOLS.tool_calls)))
    answer = await say_stream(claude)
    assert [block.type for block in answer.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert (answer.content[0].thinking, answer.content[0].signature) == ("I think.", "signed")
    assert (answer.content[1].text, answer.content[2].input) == ("Hi.", {"city": "Rome"})
    assert (answer.stop_reason, answer.usage.output_tokens) == ("tool_use", 6)


@pytest.mark.parametrize(
    ("fault", "openais", "anthropics"),
    [(Fault.cut_by_length(), "length", "max_tokens"), (Fault.filtered(), "content_filter", "refusal")],
)
async def test_an_answer_says_how_it_ended(
    gpt: openai.AsyncOpenAI,
    claude: anthropic.AsyncAnthropic,
    server: FaultServer,
    fault: Fault,
    openais: str,
    anthropics: str,
) -> None:
    server.default = fault
    assert (await chat(gpt)).choices[0].finish_reason == openais
    assert (await say(claude)).stop_reason == anthropics


async def test_usage_can_be_left_out(gpt: openai.AsyncOpenAI, server: FaultServer) -> None:
    server.default = Fault.missing_usage()
    assert (await chat(gpt)).usage is None
    assert all(chunk.usage is None for chunk in await chat_stream(gpt))


# --- faults --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        (Fault.throttled(), "RateLimitError"),
        (Fault.quota_exhausted(), "RateLimitError"),
        (Fault.wrong_key(), "AuthenticationError"),
        (Fault.context_too_long(), "BadRequestError"),
        (Fault.content_filter(), "BadRequestError"),
        (Fault.http(404), "NotFoundError"),
        (Fault.http(422), "UnprocessableEntityError"),
        (Fault.http(500), "InternalServerError"),
        (Fault.unavailable(), "InternalServerError"),
        (Fault.drop_before_headers(), "APIConnectionError"),
        (Fault.drop_before_headers("reset"), "APIConnectionError"),
        (Fault.drop_after(1), "APIConnectionError"),
        (Fault.slow_first_byte(60), "APITimeoutError"),
        (Fault.stall_after(1), "APITimeoutError"),
    ],
)
async def test_each_fault_is_the_official_clients_exception(
    gpt: openai.AsyncOpenAI,
    claude: anthropic.AsyncAnthropic,
    server: FaultServer,
    fault: Fault,
    name: str,
) -> None:
    server.play(fault, fault)
    if name == "APITimeoutError":
        gpt, claude = gpt.with_options(timeout=0.3), claude.with_options(timeout=0.3)
    with pytest.raises(getattr(openai, name)) as caught:
        await chat(gpt)
    with pytest.raises((getattr(anthropic, name), httpx2.HTTPError)) as also:
        await say(claude)
    assert type(caught.value).__name__ in (name, "APITimeoutError", "ServiceUnavailableError")
    if fault.headers:
        assert caught.value.response.headers["retry-after"] == "1"  # type: ignore[attr-defined]
    if fault.code:
        assert caught.value.code == fault.code
    assert isinstance(also.value, Exception)


async def test_an_error_event_is_an_error_of_the_official_clients(
    gpt: openai.AsyncOpenAI, claude: anthropic.AsyncAnthropic, server: FaultServer
) -> None:
    server.default = Fault.error_after(2, "Overloaded")
    with pytest.raises(openai.APIError, match="Overloaded"):
        await chat_stream(gpt)
    with pytest.raises(anthropic.APIStatusError, match="Overloaded"):
        await say_stream(claude)


async def test_malformed_json_and_a_page_are_no_answer(
    gpt: openai.AsyncOpenAI, claude: anthropic.AsyncAnthropic, server: FaultServer
) -> None:
    server.default = Fault.malformed_json(1)
    with pytest.raises(ValueError, match="Expecting value"):
        await chat_stream(gpt)
    server.default = Fault.wrong_content_type()
    assert "nginx" in str(await chat(gpt))
    assert "nginx" in str(await say(claude))


async def test_a_stream_without_its_proper_end_is_taken_for_an_answer_by_openais_client(
    gpt: openai.AsyncOpenAI, server: FaultServer
) -> None:
    """Which is why ours looks for a finish reason itself."""
    server.default = Fault.no_proper_end(2)
    chunks = await chat_stream(gpt)
    assert all(choice.finish_reason is None for chunk in chunks for choice in chunk.choices)


# --- the server itself ---------------------------------------------------------------------------------


async def test_faults_are_played_in_order_and_then_the_default(
    gpt: openai.AsyncOpenAI, server: FaultServer
) -> None:
    server.play(Fault.ok("one"), Fault.ok("two"))
    said = [(await chat(gpt)).choices[0].message.content for _ in range(3)]
    assert said == ["one", "two", "Hello from the fault server."]


async def test_another_path_is_not_found(server: FaultServer) -> None:
    async with httpx2.AsyncClient() as client:
        response = await client.get(f"{server.url}/v1/models")
    assert response.status_code == 404
    assert server.requests[0].method == "GET"


async def test_leaving_the_block_ends_what_is_still_being_served() -> None:
    async with FaultServer(default=Fault.slow_first_byte(60)) as server:
        async with httpx2.AsyncClient(timeout=None) as client:
            waiting = asyncio.create_task(client.post(f"{server.openai_url}/chat/completions", json={}))
            await server.received()
            await server.__aexit__(None, None, None)
            with pytest.raises(httpx2.HTTPError):
                await waiting
        assert server.open_connections == 0
