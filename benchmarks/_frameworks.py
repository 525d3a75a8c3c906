"""The same agent in ours and in other frameworks: it asks a model, runs the one tool that the model wants, asks again.

The model is a fake in the process. It lets the loop turn once, as a real one would, asks for the tool, and then says
what the tool told it, so that the answer shows whether arguments and result really travelled. Every framework does
what it does by default, and each imports its own library.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from agentrt import Agent, Runtime, tool
from agentrt.models.protocol import ModelRequest, ModelResponse, StreamItem, ToolCall

QUESTION = "How is the weather in Paris?"
ARGUMENTS = '{"city": "Paris", "days": 2}'
BAD_ARGUMENTS = '{"city": "Paris", "days": "many"}'
ANSWER = "It is 21 C in Paris for 2 days."

Run = Callable[[], Awaitable[str]]


class World:
    """What model and tool have in common: the tool, what it says, and how often both were called."""

    def __init__(self) -> None:
        self.arguments = ARGUMENTS
        self.model_calls = 0
        self.tool_calls = 0

    async def ask(self) -> bool:
        """One call of the model; true if it wants the tool."""
        self.model_calls += 1
        await asyncio.sleep(0)
        return self.model_calls % 2 == 1

    def forecast(self, city: str, days: int) -> str:
        self.tool_calls += 1
        return f"21 C in {city} for {days} days"


def answer(told: str) -> str:
    return f"It is {told}."


# --- ours, and no framework at all ---------------------------------------------------------------------


class FakeModel:
    """A client of the protocol, as a plugin would be."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def complete(self, request: ModelRequest, /) -> ModelResponse:
        if await self._world.ask():
            return ModelResponse(
                tool_calls=[ToolCall("call_1", "weather", self._world.arguments)], finish="tool_calls"
            )
        return ModelResponse(answer(str(request.messages[-1].content)))

    def stream(self, request: ModelRequest, /) -> AsyncIterator[StreamItem]:
        raise NotImplementedError("the benchmark does not stream")


def agentrt(world: World, runtime: Runtime) -> Run:
    """Ours, with the default pipeline around each call; `runtime` has `FakeModel` under "fake"."""

    @tool
    async def weather(city: str, days: int) -> str:
        "The weather in a city for some days."
        return world.forecast(city, days)

    class Assistant(Agent):
        model = "fake:model"
        instructions = "You answer questions about the weather."
        tools = (weather,)

    async def run() -> str:
        result = await runtime.run(Assistant, QUESTION)
        # The records are consumed, as telemetry would: when, how long, how often, with what outcome.
        for call in result.record:
            record = call.record
            if record.ended is None or record.elapsed < 0 or len(record.attempts) != 1 or record.errors:
                raise ValueError(f"{call.target} has a record that cannot be: {record}")
        return result.text

    return run


def plain(world: World) -> Run:
    """The same by hand, with none of the rest."""

    async def run() -> str:
        await world.ask()
        told = world.forecast(**json.loads(world.arguments))
        await world.ask()
        return answer(told)

    return run


# --- peers ---------------------------------------------------------------------------------------------


def agent_framework(world: World) -> Run:
    import agent_framework as af

    class Fake(af.FunctionInvocationLayer, af.ChatMiddlewareLayer, af.BaseChatClient):  # type: ignore[misc]
        OTEL_PROVIDER_NAME = "fake"

        def _inner_get_response(self, *, messages: Any, stream: Any, options: Any, **more: Any) -> Any:
            return self.respond(messages)

        async def respond(self, messages: Any) -> Any:
            if await world.ask():
                wanted = af.Content.from_function_call(
                    call_id="call_1", name="weather", arguments=world.arguments
                )
                return af.ChatResponse(messages=[af.Message(role="assistant", contents=[wanted])])
            told = str(messages[-1].contents[0].result)
            return af.ChatResponse(messages=[af.Message(role="assistant", contents=[answer(told)])])

    @af.tool(approval_mode="never_require")  # type: ignore[untyped-decorator]
    async def weather(city: str, days: int) -> str:
        "The weather in a city for some days."
        return world.forecast(city, days)

    agent = af.Agent(client=Fake(), instructions="You answer questions about the weather.", tools=[weather])

    async def run() -> str:
        return str((await agent.run(QUESTION)).text)

    return run


def pydantic_ai(world: World) -> Run:
    from pydantic_ai import Agent as TheirAgent
    from pydantic_ai.messages import ModelResponse as Response
    from pydantic_ai.messages import TextPart, ToolCallPart
    from pydantic_ai.models.function import FunctionModel

    async def fake(messages: Any, info: Any) -> Any:
        if await world.ask():
            return Response(parts=[ToolCallPart("weather", world.arguments, tool_call_id="call_1")])
        return Response(parts=[TextPart(answer(str(messages[-1].parts[0].content)))])

    agent = TheirAgent(FunctionModel(fake), instructions="You answer questions about the weather.")

    @agent.tool_plain  # type: ignore[untyped-decorator]
    async def weather(city: str, days: int) -> str:
        "The weather in a city for some days."
        return world.forecast(city, days)

    async def run() -> str:
        return str((await agent.run(QUESTION)).output)

    return run


def langchain(world: World) -> Run:
    from langchain.agents import create_agent
    from langchain_core.language_models.chat_models import BaseChatModel
    from langchain_core.messages import AIMessage
    from langchain_core.outputs import ChatGeneration, ChatResult
    from langchain_core.tools import tool as their_tool

    class Fake(BaseChatModel):  # type: ignore[misc]
        @property
        def _llm_type(self) -> str:
            return "fake"

        def bind_tools(self, tools: Any, **more: Any) -> Any:
            return self

        def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **more: Any) -> Any:
            raise NotImplementedError("the benchmark runs asynchronously")

        async def _agenerate(
            self, messages: Any, stop: Any = None, run_manager: Any = None, **more: Any
        ) -> Any:
            if await world.ask():
                wanted = {"name": "weather", "args": json.loads(world.arguments), "id": "call_1"}
                message = AIMessage("", tool_calls=[wanted])
            else:
                message = AIMessage(answer(str(messages[-1].content)))
            return ChatResult(generations=[ChatGeneration(message=message)])

    @their_tool  # type: ignore[untyped-decorator]
    async def weather(city: str, days: int) -> str:
        "The weather in a city for some days."
        return world.forecast(city, days)

    graph = create_agent(Fake(), [weather], system_prompt="You answer questions about the weather.")

    async def run() -> str:
        state = await graph.ainvoke({"messages": [("user", QUESTION)]})
        return str(state["messages"][-1].content)

    return run


def openai_agents(world: World) -> Run:
    from agents import Agent as TheirAgent
    from agents import RunConfig, Runner, function_tool, set_tracing_disabled
    from agents.items import ModelResponse as Response
    from agents.models.interface import Model
    from agents.usage import Usage
    from openai.types.responses import (
        ResponseFunctionToolCall,
        ResponseOutputMessage,
        ResponseOutputText,
    )

    # Its traces would go to a service that cannot be reached here.
    set_tracing_disabled(True)

    class Fake(Model):  # type: ignore[misc]
        async def get_response(self, system_instructions: Any, input: Any, *rest: Any, **more: Any) -> Any:
            output: Any
            if await world.ask():
                output = ResponseFunctionToolCall(
                    arguments=world.arguments, call_id="call_1", name="weather", type="function_call"
                )
            else:
                text = ResponseOutputText(
                    annotations=[], text=answer(str(input[-1]["output"])), type="output_text"
                )
                output = ResponseOutputMessage(
                    id="m", content=[text], role="assistant", status="completed", type="message"
                )
            return Response(output=[output], usage=Usage(), response_id=None)

        def stream_response(self, *rest: Any, **more: Any) -> Any:
            raise NotImplementedError("the benchmark does not stream")

    @function_tool  # type: ignore[untyped-decorator]
    async def weather(city: str, days: int) -> str:
        "The weather in a city for some days."
        return world.forecast(city, days)

    agent = TheirAgent(
        name="assistant",
        instructions="You answer questions about the weather.",
        model=Fake(),
        tools=[weather],
    )
    settings = RunConfig(tracing_disabled=True)

    async def run() -> str:
        return str((await Runner.run(agent, QUESTION, run_config=settings)).final_output)

    return run


def strands(world: World) -> Run:
    from strands import Agent as TheirAgent
    from strands import tool as their_tool
    from strands.models.model import Model

    def block(start: Any, delta: Any, stop: str) -> list[Any]:
        usage = {"inputTokens": 1, "outputTokens": 1, "totalTokens": 2}
        return [
            {"messageStart": {"role": "assistant"}},
            {"contentBlockStart": {"start": start}},
            {"contentBlockDelta": {"delta": delta}},
            {"contentBlockStop": {}},
            {"messageStop": {"stopReason": stop}},
            {"metadata": {"usage": usage, "metrics": {"latencyMs": 0}}},
        ]

    class Fake(Model):  # type: ignore[misc]
        def update_config(self, **more: Any) -> None:
            pass

        def get_config(self) -> Any:
            return {"model_id": "fake"}

        def structured_output(self, *rest: Any, **more: Any) -> Any:
            raise NotImplementedError("the benchmark asks for text")

        async def stream(self, messages: Any, *rest: Any, **more: Any) -> Any:
            if await world.ask():
                start = {"toolUse": {"name": "weather", "toolUseId": "call_1"}}
                events = block(start, {"toolUse": {"input": world.arguments}}, "tool_use")
            else:
                told = messages[-1]["content"][0]["toolResult"]["content"][0]["text"]
                events = block({}, {"text": answer(told)}, "end_turn")
            for event in events:
                yield event

    @their_tool  # type: ignore[untyped-decorator]
    async def weather(city: str, days: int) -> str:
        "The weather in a city for some days."
        return world.forecast(city, days)

    agent = TheirAgent(
        model=Fake(),
        tools=[weather],
        system_prompt="You answer questions about the weather.",
        callback_handler=None,
    )

    async def run() -> str:
        # It keeps the conversation; the others begin anew with each run.
        agent.messages.clear()
        result = await agent.invoke_async(QUESTION)
        return str(result.message["content"][0]["text"])

    return run


PEERS: dict[str, Callable[[World], Run]] = {
    "agent_framework": agent_framework,
    "pydantic_ai": pydantic_ai,
    "langchain": langchain,
    "openai_agents": openai_agents,
    "strands": strands,
}
