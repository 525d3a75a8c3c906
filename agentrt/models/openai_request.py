"""A request in the shape of the chat completions wire."""

from __future__ import annotations

from typing import Any

import msgspec

from agentrt.models.protocol import FilePart, ImagePart, Message, ModelRequest, Part, TextPart
from agentrt.models.schemas import name_of, strict

__all__ = ["encode"]

Json = dict[str, Any]


def encode(request: ModelRequest, *, stream: bool, official: bool) -> bytes:
    """The body of the request. `official`: OpenAI itself, which has renamed `max_tokens`; others know the old name."""
    body: Json = {"model": request.model, "messages": [_message(message) for message in request.messages]}
    if request.tools:
        body["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": tool.parameters,
                },
            }
            for tool in request.tools
        ]
    if request.output_schema is not None:
        body["response_format"] = _response_format(request.output_name, request.output_schema)
    if stream:
        body["stream"] = True
        body["stream_options"] = {"include_usage": True}
    settings = request.settings
    for name in ("temperature", "top_p", "seed", "stop", "reasoning_effort"):
        value = getattr(settings, name)
        if value is not None:
            body[name] = value
    if settings.max_tokens is not None:
        body["max_completion_tokens" if official else "max_tokens"] = settings.max_tokens
    for name, value in settings.extra.items():
        if value is None:
            body.pop(name, None)
        else:
            body[name] = value
    return msgspec.json.encode(body)


def _response_format(name: str, schema: Json) -> Json:
    """Strictly held to the schema where OpenAI can do that, else as well as the server does."""
    wanted: Json = {"name": name_of(name), "schema": schema}
    exact = strict(schema)
    if exact is not None:
        wanted |= {"schema": exact, "strict": True}
    return {"type": "json_schema", "json_schema": wanted}


def _message(message: Message) -> Json:
    content: str | list[Json]
    if isinstance(message.content, str):
        content = message.content
    else:
        content = [_part(part) for part in message.content]
    if message.role == "tool":
        if message.is_error and isinstance(content, str) and not content.lower().startswith("error"):
            content = f"Error: {content}"  # the wire has no other way to say so
        return {"role": "tool", "tool_call_id": message.tool_call_id or "", "content": content}
    if not message.tool_calls:
        return {"role": message.role, "content": content}
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in message.tool_calls
    ]
    return {"role": message.role, "content": content or None, "tool_calls": calls}


def _part(part: Part) -> Json:
    match part:
        case TextPart():
            return {"type": "text", "text": part.text}
        case ImagePart():
            url = part.url if part.url is not None else f"data:{part.media_type};base64,{part.data or ''}"
            return {"type": "image_url", "image_url": {"url": url}}
        case FilePart():
            data = f"data:{part.media_type};base64,{part.data}"
            return {"type": "file", "file": {"filename": part.name, "file_data": data}}
