"""Short forms for tests of model clients."""

from __future__ import annotations

from typing import Any

from agentrt.models.protocol import (
    Finished,
    Message,
    ModelRequest,
    ModelResponse,
    ReasoningDelta,
    StreamItem,
    TextDelta,
    ToolSpec,
)

WEATHER = ToolSpec(
    "weather",
    "The current weather in a city.",
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)


def ask(text: str = "hi", **fields: Any) -> ModelRequest:
    messages = fields.pop("messages", [Message("user", text)])
    return ModelRequest(model=fields.pop("model", "m"), messages=messages, **fields)


async def gather(client: Any, request: ModelRequest) -> tuple[list[StreamItem], ModelResponse]:
    """All items but the last, and the response in the last."""
    items = [item async for item in client.stream(request)]
    last = items.pop()
    assert isinstance(last, Finished)
    return items, last.response


async def partly(client: Any, request: ModelRequest) -> tuple[str, BaseException | None]:
    """The text that came, and the error that ended it."""
    text = ""
    try:
        async for item in client.stream(request):
            if isinstance(item, TextDelta):
                text += item.text
    except Exception as error:
        return text, error
    return text, None


def text_of(items: list[StreamItem]) -> str:
    return "".join(item.text for item in items if isinstance(item, TextDelta))


def reasoning_of(items: list[StreamItem]) -> str:
    return "".join(item.text for item in items if isinstance(item, ReasoningDelta))
