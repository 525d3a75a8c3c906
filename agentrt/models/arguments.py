"""What a user may give as `model=` and `messages=`, made into what a request has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from agentrt.errors import ConfigError
from agentrt.models.protocol import Message

__all__ = ["as_messages", "as_targets"]


def as_targets(model: str | Sequence[str]) -> tuple[str, ...]:
    """The models to ask, the first one first; raises `ConfigError` for what names none."""
    if not isinstance(model, Sequence):
        raise _unnamed(model)
    targets = (model,) if isinstance(model, str) else tuple(model)
    for target in targets:
        if not isinstance(target, str) or ":" not in target:
            raise _unnamed(target)
    if not targets:
        raise ConfigError("the list of models is empty")
    return targets


def as_messages(messages: str | Sequence[Message | dict[str, Any]]) -> list[Message]:
    """A conversation; a text alone is what the user says. Raises `msgspec.ValidationError` for what is no message."""
    if isinstance(messages, str):
        return [Message(role="user", content=messages)]
    return [
        message if isinstance(message, Message) else msgspec.convert(message, Message) for message in messages
    ]


def _unnamed(model: object) -> ConfigError:
    return ConfigError(f'a model is named "prefix:name", for example "openai:gpt-5-mini", not {model!r}')
