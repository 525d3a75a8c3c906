"""A model client that plays a list of answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from agentrt.models.protocol import (
    Finished,
    ModelRequest,
    ModelResponse,
    StreamItem,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    Usage,
)

Step = str | list[ToolCall] | BaseException | ModelResponse


class FakeModel:
    """Answers with the next step: text, tool calls, a whole response, or an error. Keeps the requests."""

    def __init__(self, *steps: Step, delay: float = 0.0) -> None:
        self.steps = list(steps)
        self.requests: list[ModelRequest] = []
        self.delay = delay

    async def complete(self, request: ModelRequest, /) -> ModelResponse:
        self.requests.append(request)
        await asyncio.sleep(self.delay)
        return self._next()

    async def stream(self, request: ModelRequest, /) -> AsyncIterator[StreamItem]:
        self.requests.append(request)
        await asyncio.sleep(self.delay)
        step = self.steps[0]
        if isinstance(step, tuple):
            # Some text, then an error in the middle of the stream.
            self.steps.pop(0)
            for word in step[:-1]:
                yield TextDelta(word)
            raise step[-1]
        response = self._next()
        for word in response.text.split(" ") if response.text else []:
            yield TextDelta(word + " ")
        for index, call in enumerate(response.tool_calls):
            yield ToolCallDelta(index, call.id, call.name, call.arguments)
        yield Finished(response)

    def _next(self) -> ModelResponse:
        step = self.steps.pop(0)
        if isinstance(step, BaseException):
            raise step
        if isinstance(step, ModelResponse):
            return step
        usage = Usage(10, 5)
        if isinstance(step, str):
            return ModelResponse(text=step, usage=usage)
        return ModelResponse(tool_calls=list(step), finish="tool_calls", usage=usage)


def wants(name: str, arguments: str = "{}", *, id: str = "call-1") -> ToolCall:
    return ToolCall(id, name, arguments)


def types(events: Sequence[Any]) -> list[str]:
    """The tags of events, in order."""
    return [event.__struct_config__.tag for event in events]


async def watch(run: Any, seen: list[Any]) -> Exception | None:
    """Collect the events of a run until it ends; returns its error."""
    events = aiter(run)
    while True:
        try:
            seen.append(await anext(events))
        except StopAsyncIteration:
            return None
        except Exception as error:
            return error
