"""The model that says what it was told to say."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentrt.errors import ConfigError, PermanentError, ThrottledError, TransientError
from agentrt.models.protocol import (
    FinishReason,
    ImagePart,
    Message,
    ReasoningDelta,
    TextDelta,
    TextPart,
    ToolCallDelta,
    Usage,
)
from agentrt.models.scripted import Scripted, Step, StepCall, words
from tests.models.asking import ask, gather, partly

pytestmark = pytest.mark.asyncio


async def test_steps_are_played_in_order_and_requests_are_kept() -> None:
    script = Scripted.script("order", [Step(text="one"), "two", lambda request: f"{request.model}!"])
    client = Scripted()
    said = [(await client.complete(ask(str(number), model="order"))).text for number in range(3)]
    assert said == ["one", "two", "order!"]
    assert [request.messages[0].content for request in script.requests] == ["0", "1", "2"]
    assert script.played == 3


async def test_a_script_that_is_over_says_so_and_one_that_repeats_goes_on() -> None:
    client = Scripted()
    Scripted.script("short", ["only"])
    await client.complete(ask(model="short"))
    with pytest.raises(PermanentError, match=r"scripted:short has 1 steps, and this is request number 2"):
        await client.complete(ask(model="short"))
    Scripted.script("again", ["a", "b"], repeat=True)
    assert [(await client.complete(ask(model="again"))).text for _ in range(3)] == ["a", "b", "a"]


async def test_a_script_of_no_steps_is_over_at_once() -> None:
    Scripted.script("empty", [], repeat=True)
    with pytest.raises(PermanentError, match="has 0 steps"):
        await Scripted().complete(ask(model="empty"))


async def test_only_the_last_thousand_requests_are_kept() -> None:
    script = Scripted.script("many", ["x"], repeat=True)
    for _ in range(1001):
        script.next(ask())
    assert (len(script.requests), script.played) == (1000, 1001)


async def test_a_stream_has_reasoning_then_text_then_calls() -> None:
    step = Step(text="a b", reasoning="hm", tool_calls=[StepCall("f", {"x": 1}, "7")], usage=Usage(1, 2))
    Scripted.script("all", [step, step])
    items, response = await gather(Scripted(), ask(model="all"))
    assert items == [
        ReasoningDelta("hm"),
        TextDelta("a "),
        TextDelta("b"),
        ToolCallDelta(0, "7", "f", '{"x":1}'),
    ]
    assert response == await Scripted().complete(ask(model="all"))
    assert (response.text, response.finish, response.usage) == ("a b", "tool_calls", Usage(1, 2))


async def test_chunks_are_streamed_as_they_are() -> None:
    Scripted.script("chunks", [Step(chunks=["ab", "c"], finish="length")])
    items, response = await gather(Scripted(), ask(model="chunks"))
    assert items == [TextDelta("ab"), TextDelta("c")]
    assert (response.text, response.finish, response.usage.estimated) == ("abc", "length", True)


async def test_an_error_comes_instead_of_an_answer_and_after_the_pieces_of_a_stream() -> None:
    error = TransientError("down")
    Scripted.script(
        "broken", [Step(text="a b", error=error), Step(text="a b", error=error), Step(error=OSError)]
    )
    client = Scripted()
    with pytest.raises(TransientError) as caught:
        await client.complete(ask(model="broken"))
    assert caught.value is error
    assert await partly(client, ask(model="broken")) == ("a b", error)
    with pytest.raises(OSError):  # noqa: PT011 - a bare one
        await client.complete(ask(model="broken"))


async def test_echo_repeats_the_users_last_message_word_by_word() -> None:
    messages = [Message("user", "first"), Message("user", "hello  wide world"), Message("assistant", "x")]
    items, response = await gather(Scripted(), ask(model="echo", messages=messages))
    assert response.text == "hello  wide world"
    assert [item.text for item in items if isinstance(item, TextDelta)] == ["hello  ", "wide ", "world"]
    parts = Message("user", [TextPart("a"), ImagePart(url="u"), TextPart("b")])
    assert (await Scripted().complete(ask(model="echo", messages=[parts]))).text == "a b"
    assert (await Scripted().complete(ask(model="echo", messages=[]))).text == ""


async def test_words_lose_nothing() -> None:
    for text in ("", " ", "a", " a  b\n\nc ", "\ta\t"):
        assert "".join(words(text)) == text


async def test_a_file_holds_steps_and_errors_as_data(tmp_path: Path) -> None:
    path = tmp_path / "steps.json"
    steps: list[Any] = [
        "plain",
        {"text": "a", "tool_calls": [{"name": "f", "arguments": {"x": 1}}]},
        {"error": {"type": "throttled", "message": "slow", "retry_after": 2}},
        {"error": {"type": "permanent", "fault": "target"}},
        {"error": {}},
    ]
    path.write_bytes(msgspec.json.encode(steps))
    client, name = Scripted(), str(path)
    assert (await client.complete(ask(model=name))).text == "plain"
    response = await client.complete(ask(model=name))
    assert (response.tool_calls[0].name, response.tool_calls[0].arguments) == ("f", '{"x":1}')
    with pytest.raises(ThrottledError, match="slow") as throttled:
        await client.complete(ask(model=name))
    assert throttled.value.retry_after == 2
    with pytest.raises(PermanentError) as permanent:
        await client.complete(ask(model=name))
    assert permanent.value.fault == "target"
    with pytest.raises(TransientError):
        await client.complete(ask(model=name))
    # Another client plays the file from its start.
    assert (await Scripted().complete(ask(model=name))).text == "plain"


async def test_a_file_that_cannot_be_used_is_a_config_error(tmp_path: Path) -> None:
    path = tmp_path / "steps.json"
    with pytest.raises(ConfigError, match=r"steps.json cannot be read: No such file"):
        await Scripted().complete(ask(model=str(path)))
    for content in ("{}", "[", '[{"txt": "a"}]', '[{"error": {"type": "odd"}}]'):
        path.write_text(content)
        with pytest.raises(ConfigError, match="must be a JSON list of steps"):
            await Scripted().complete(ask(model=str(path)))


async def test_an_unknown_script_is_a_config_error_that_says_which_there_are() -> None:
    Scripted.script("known", ["x"])
    with pytest.raises(ConfigError, match=r"no script named 'unknown'; there are: .*echo.*known"):
        await Scripted().complete(ask(model="unknown"))


async def test_its_names_are_those_of_the_model() -> None:
    client = Scripted()
    assert client.target("echo") == client.identity("echo") == "scripted:echo"


@pytest.mark.parametrize("finish", ["stop", "length"])
async def test_a_finish_can_be_given(finish: FinishReason) -> None:
    Scripted.script("finish", [Step(text="x", finish=finish)])
    assert (await Scripted().complete(ask(model="finish"))).finish == finish


@pytest.mark.virtual_time
async def test_delays_are_waits_of_the_event_loop() -> None:
    Scripted.script("slow", [Step(text="a b", delay_seconds=5, chunk_delay_seconds=2)])
    loop = asyncio.get_running_loop()
    started = loop.time()
    await gather(Scripted(), ask(model="slow"))
    assert loop.time() - started == 9.0
