"""The models that run here: the embedded server with the real weights, through all the clients."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from agentrt.errors import ConfigError, PermanentError, TransientError
from agentrt.models import local as local_module
from agentrt.models import weights
from agentrt.models.anthropic import Anthropic
from agentrt.models.local import Local
from agentrt.models.openai import OpenAI
from agentrt.models.protocol import Message, Settings, TextDelta, ToolCallDelta
from agentrt.testing.fault_server import Fault, FaultServer
from tests.models.asking import WEATHER, ask, gather, text_of

pytestmark = pytest.mark.asyncio(loop_scope="module")
QUESTION = "What is the capital of France?"
SHORT = Settings(max_tokens=24)
LONG = Settings(max_tokens=400)
STORY = "Tell me a long story about a fox and a bear in a forest, with many details."


def question(text: str = QUESTION, **fields: Any) -> Any:
    return ask(text, model="smollm2", settings=fields.pop("settings", SHORT), **fields)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def local() -> AsyncIterator[Local]:
    """One server for the tests that do it no harm."""
    client = Local()
    yield client
    await client.aclose()


@pytest_asyncio.fixture(loop_scope="module")
async def own() -> AsyncIterator[Local]:
    """A client with a server of its own, to do harm to."""
    client = Local()
    yield client
    await client.aclose()


async def process_of(client: Local) -> asyncio.subprocess.Process:
    return (await client._servers["smollm2"]).process


async def url_of(client: Local) -> str:
    await client.complete(question(settings=Settings(max_tokens=1)))
    inner = (await client._servers["smollm2"]).client
    return inner._http._url.removesuffix("/v1/chat/completions")


# --- answers -------------------------------------------------------------------------------------------


async def test_it_answers_whole_and_in_pieces(local: Local) -> None:
    whole = await local.complete(question())
    items, streamed = await gather(local, question())
    assert whole.text
    assert text_of(items) == streamed.text
    assert len(items) > 1
    assert (whole.usage.estimated, streamed.usage.estimated) == (False, False)
    assert streamed.usage.output_tokens > 0


async def test_it_calls_tools_and_answers_from_their_results(local: Local) -> None:
    items, response = await gather(local, question("What is the weather in Paris?", tools=[WEATHER]))
    assert response.finish in ("tool_calls", "stop", "length")
    assert response.tool_calls or response.text
    calls = [item for item in items if isinstance(item, ToolCallDelta)]
    assert [call.name for call in calls] == [call.name for call in response.tool_calls]
    history = [
        Message("user", "What is the weather in Paris?"),
        Message("assistant", "", tool_calls=[_call()]),
        Message("tool", "18 degrees, sunny", tool_call_id="1"),
    ]
    items, answer = await gather(local, question(tools=[WEATHER], messages=history))
    assert answer.tool_calls == []
    assert answer.text
    assert text_of(items) == answer.text


def _call() -> Any:
    from agentrt.models.protocol import ToolCall

    return ToolCall("1", "weather", '{"city": "Paris"}')


async def test_an_answer_follows_its_schema(local: Local) -> None:
    import msgspec

    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    response = await local.complete(question(output_schema=schema))
    if response.finish == "stop":
        assert isinstance(msgspec.json.decode(response.text)["city"], str)
    else:
        assert response.finish == "length"


async def test_a_length_limit_is_told_and_set_if_there_is_none(local: Local) -> None:
    response = await local.complete(question(settings=Settings(max_tokens=3)))
    assert (response.finish, response.usage.output_tokens) == ("length", 3)
    assert local._bounded(question(settings=Settings())).settings.max_tokens == 512


async def test_a_conversation_that_is_too_long_says_so(local: Local) -> None:
    with pytest.raises(PermanentError) as caught:
        await local.complete(question("word " * 10_000))
    assert caught.value.context_too_long
    assert str(caught.value).startswith("local at 127.0.0.1:")


async def test_four_requests_at_once_are_all_answered(local: Local) -> None:
    answers = await asyncio.gather(
        *(gather(local, question(f"Say {word}.")) for word in ("a", "b", "c", "d"))
    )
    assert all(response.text for _, response in answers)


async def test_a_stream_that_is_closed_early_leaves_the_server_well(local: Local) -> None:
    stream = local.stream(question(STORY, settings=LONG))
    assert isinstance(await anext(stream), TextDelta)
    await stream.aclose()
    assert (await local.complete(question())).text


# --- the clients of both wires, against a server that is not ours -------------------------------------


async def test_openais_client_talks_to_it(local: Local) -> None:
    client = OpenAI(base_url=f"{await url_of(local)}/v1", api_key="none")
    whole, (items, streamed) = await client.complete(question()), await gather(client, question())
    assert whole.text == streamed.text == text_of(items)
    assert whole.usage.output_tokens == streamed.usage.output_tokens > 0
    assert (await client.complete(question(settings=Settings(max_tokens=2)))).finish == "length"
    await client.aclose()


async def test_anthropics_client_talks_to_it(local: Local) -> None:
    client = Anthropic(base_url=await url_of(local), api_key="none")
    whole, (items, streamed) = await client.complete(question()), await gather(client, question())
    assert whole.text == streamed.text == text_of(items)
    assert len(items) > 1
    assert whole.usage.output_tokens == streamed.usage.output_tokens > 0
    assert (await client.complete(question(settings=Settings(max_tokens=2)))).finish == "length"
    stream = client.stream(question(STORY, settings=LONG))
    await anext(stream)
    await stream.aclose()
    answers = await asyncio.gather(*(gather(client, question()) for _ in range(4)))
    assert all(response.text for _, response in answers)
    with pytest.raises(PermanentError) as caught:
        await client.complete(question("word " * 10_000))
    assert caught.value.context_too_long
    await client.aclose()


# --- the child process ---------------------------------------------------------------------------------


async def test_killed_in_mid_stream_it_fails_after_the_text_so_far_and_starts_again(own: Local) -> None:
    stream = own.stream(question(STORY, settings=LONG))
    item = await anext(stream)
    first = await process_of(own)
    first.send_signal(signal.SIGKILL)
    try:
        text = item.text if isinstance(item, TextDelta) else ""
        async for item in stream:
            assert isinstance(item, TextDelta)
            text += item.text
    except TransientError as error:
        assert "local:smollm2: its server ended with status -9" in str(error)  # noqa: PT017
        assert error.executed is None  # noqa: PT017
    else:
        raise AssertionError("the stream ended as if nothing had happened")
    assert text
    assert await first.wait() == -signal.SIGKILL
    assert (await own.complete(question())).text
    assert (await process_of(own)).pid != first.pid


async def test_a_server_that_died_unseen_is_told_and_replaced(own: Local) -> None:
    url = await url_of(own)
    process = await process_of(own)
    os.kill(process.pid, signal.SIGSTOP)  # so that it takes the request, but does not answer
    waiting = asyncio.create_task(own.complete(question()))
    for _ in range(50):  # many turns of the loop, in which it is sent
        await asyncio.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    with pytest.raises(TransientError, match="its server ended with status -9") as caught:
        await waiting
    assert url.removeprefix("http://") in str(caught.value.__cause__)
    assert (await own.complete(question())).text


async def test_many_first_requests_start_one_server(own: Local) -> None:
    tasks = [asyncio.create_task(own.complete(question())) for _ in range(3)]
    await asyncio.sleep(0.01)
    tasks[0].cancel()  # whoever came first does not take the server away from the others
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert all(not isinstance(answer, BaseException) and answer.text for answer in answers[1:])
    assert list(own._servers) == ["smollm2"]


async def test_closing_ends_the_child_and_a_later_request_starts_another() -> None:
    client = Local()
    await client.complete(question())
    process = await process_of(client)
    await client.aclose()
    assert process.returncode is not None
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
    assert (await client.complete(question())).text
    await client.aclose()
    await client.aclose()


async def test_closing_while_it_starts_leaves_no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    started: asyncio.Queue[asyncio.subprocess.Process] = asyncio.Queue()
    ready = local_module._ready

    async def watched(process: asyncio.subprocess.Process, model: str) -> str:
        started.put_nowait(process)
        return await ready(process, model)

    monkeypatch.setattr(local_module, "_ready", watched)
    client = Local()
    waiting = asyncio.create_task(client.complete(question()))
    process = await started.get()
    await client.aclose()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert process.returncode is not None


def fake_server(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """In place of the real child: `program`, with the same pipes."""
    real = asyncio.create_subprocess_exec

    async def start(*command: str, **pipes: Any) -> asyncio.subprocess.Process:
        return await real(sys.executable, "-c", program, **pipes)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (
            "import sys; sys.exit('no such module: xyz')",
            "ended with status 1 before it was ready: no such module: xyz",
        ),
        (
            """print('{"error": "RuntimeError: bad file"}')""",
            "status 0 before it was ready: RuntimeError: bad file",
        ),
        ("print('hello')", "status 0 before it was ready: it said nothing"),
        ("import sys; sys.stderr.write('x' * 200000 + 'the end'); sys.exit(3)", "the end"),
    ],
)
async def test_a_server_that_does_not_start_says_why(
    monkeypatch: pytest.MonkeyPatch, program: str, words: str
) -> None:
    fake_server(monkeypatch, program)
    client = Local()
    for _ in range(2):  # each request tries anew
        with pytest.raises(TransientError) as caught:
            await client.complete(question())
        assert words in str(caught.value)
        assert len(str(caught.value)) < 1000
        assert caught.value.executed is False
    await client.aclose()


async def test_a_server_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_server(monkeypatch, "import time; time.sleep(60)")
    client = Local(start_seconds=0.2)
    with pytest.raises(
        TransientError, match=r"not ready after 0\.2 s: raise start_seconds in \[models\.local\]"
    ):
        await client.complete(question())
    await client.aclose()


async def test_a_server_that_does_not_want_to_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_module, "STOP_SECONDS", 0.1)
    fake_server(
        monkeypatch,
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        """print('{"url": "http://127.0.0.1:9"}', flush=True); time.sleep(60)""",
    )
    client = Local()
    with pytest.raises(TransientError, match="refused"):
        await client.complete(question())
    process = await process_of(client)
    await client.aclose()
    assert process.returncode == -signal.SIGKILL


async def test_a_caller_that_is_gone_leaves_no_lost_error(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_server(monkeypatch, "import time, sys; time.sleep(0.2); sys.exit('too late')")
    client = Local()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(client.complete(question()), 0.05)
    await asyncio.wait(client._servers.values())
    await client.aclose()


async def test_an_error_of_a_server_that_lives_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FaultServer(default=Fault.http(500, "no slot")) as server:
        line = f"""print('{{"url": "{server.url}"}}', flush=True)"""
        fake_server(monkeypatch, f"import time; {line}; time.sleep(60)")
        client = Local()
        with pytest.raises(TransientError, match="HTTP 500: no slot"):
            await client.complete(question())
        with pytest.raises(TransientError, match="HTTP 500: no slot"):
            await gather(client, question())
        await client.aclose()


async def test_closing_leaves_alone_what_belongs_to_an_event_loop_that_is_gone() -> None:
    client = Local()

    async def forgetful() -> None:
        await client.complete(question())
        server = await client._servers["smollm2"]
        await server.aclose()  # for the sake of this test's warnings: a forgetful program would not

    await asyncio.to_thread(asyncio.run, forgetful())
    assert list(client._servers) == ["smollm2"]
    await client.aclose()
    assert not client._servers


# --- what is missing -----------------------------------------------------------------------------------


async def test_missing_weights_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "find", lambda name: None)
    with pytest.raises(
        ConfigError, match="the weights of local:smollm2 are not here yet: agentrt models pull smollm2"
    ):
        await Local().complete(question())


async def test_a_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "find", lambda name: Path("file"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package xllamacpp: pip install 'agentrt\[local\]'"):
        await Local().complete(question())


async def test_an_unknown_model_says_which_there_are() -> None:
    client = Local()
    with pytest.raises(ConfigError, match="no weights are known for the model 'llama'; there are: smollm2"):
        await client.complete(ask(model="llama"))
    await client.aclose()


async def test_wrong_options_are_config_errors() -> None:
    for options in ({"slots": 0}, {"context": -1}, {"threads": 1.5}, {"max_tokens": 0}, {"start_seconds": 0}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            Local(**options)


async def test_its_names_are_those_of_the_model() -> None:
    assert Local().target("smollm2") == Local().identity("smollm2") == "local:smollm2"


async def test_another_event_loop_gets_a_server_of_its_own() -> None:
    """As a program does that calls `asyncio.run` twice."""
    client = Local()

    async def once() -> int:
        assert (await client.complete(question())).text
        pid = (await process_of(client)).pid
        await client.aclose()
        return pid

    first, second = [await asyncio.to_thread(asyncio.run, once()) for _ in range(2)]
    assert first != second
