"""What was said: prompts, answers, and tools' arguments and results, for spans of those who ask for it.

Off by default (`[telemetry] capture_content`). The attributes hold JSON in the form of OpenTelemetry's conventions for
generative AI, redacted first and then cut so that it stays JSON.
"""

from __future__ import annotations

from typing import Any

from agentrt.call import Call
from agentrt.telemetry.caps import json_within
from agentrt.telemetry.redaction import Redactor
from agentrt.telemetry.signals import Attributes

__all__ = ["Content"]


class Content:
    """The content of calls, redacted by `redactor`, each attribute of at most `value_bytes`."""

    def __init__(self, redactor: Redactor, *, value_bytes: int) -> None:
        self._redactor = redactor
        self._value_bytes = value_bytes

    def of(self, call: Call[Any]) -> Attributes:
        """Attributes for the span of a finished call; none for kinds whose content is not known."""
        if call.kind == "model":
            return self._of_model(call)
        if call.kind == "tool" and isinstance(call.request, tuple):
            return self._of_tool(call)
        return {}

    def _of_model(self, call: Call[Any]) -> Attributes:
        attributes: Attributes = {}
        request = call.request
        if request is not None:
            messages = [_message(each) for each in request.messages]
            system = [part for each in messages if each["role"] == "system" for part in each["parts"]]
            if system:
                attributes["gen_ai.system_instructions"] = self._json(system)
            said = [each for each in messages if each["role"] != "system"]
            attributes["gen_ai.input.messages"] = self._json(said)
            if request.tools:
                attributes["gen_ai.tool.definitions"] = self._json(
                    [
                        {
                            "type": "function",
                            "name": each.name,
                            "description": each.description,
                            "parameters": each.parameters,
                        }
                        for each in request.tools
                    ]
                )
        response = call.record.response
        if response is not None:
            answer = {**_message(response.message()), "finish_reason": response.finish}
            attributes["gen_ai.output.messages"] = self._json([answer])
        return attributes

    def _of_tool(self, call: Call[Any]) -> Attributes:
        attributes: Attributes = {"gen_ai.tool.call.arguments": self._json(call.request[1])}
        if call.record.error is None:
            attributes["gen_ai.tool.call.result"] = self._json(call.record.response)
        return attributes

    def _json(self, value: object) -> str:
        return json_within(self._redactor.value(value), self._value_bytes)


def _message(message: Any) -> dict[str, Any]:
    """A message as the conventions have it: a role and parts."""
    if message.role == "tool":
        part = {"type": "tool_call_response", "id": message.tool_call_id, "response": message.content}
        return {"role": "tool", "parts": [part]}
    content = message.content
    parts: list[dict[str, Any]] = []
    if isinstance(content, str):
        if content:
            parts.append({"type": "text", "content": content})
    else:
        parts += [_part(each) for each in content]
    parts += [
        {"type": "tool_call", "id": each.id, "name": each.name, "arguments": each.arguments}
        for each in message.tool_calls
    ]
    return {"role": message.role, "parts": parts}


def _part(part: Any) -> dict[str, Any]:
    """Text is content; of an image or a file only what it is, not its bytes."""
    text = getattr(part, "text", None)
    if text is not None:
        return {"type": "text", "content": text}
    if getattr(part, "url", None) is not None:
        return {"type": "uri", "modality": "image", "uri": part.url}
    modality = "image" if type(part).__name__ == "ImagePart" else "document"
    return {"type": "blob", "modality": modality, "mime_type": part.media_type}
