"""Headers with `secret://` references in them, which follow the rotation of what they refer to.

headers = SecretHeaders({"authorization": "Bearer secret://collector-token"})
await headers.open(host)
await headers.through(lambda resolved: http.send(url, body, headers=resolved))
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from agentrt.errors import AgentrtError
from agentrt.plugins import Host
from agentrt.telemetry.http import KeyRefused

__all__ = ["SecretHeaders"]

T = TypeVar("T")
logger = logging.getLogger("agentrt.telemetry")

SECRET = re.compile(r"secret://\S+")


class SecretHeaders:
    """`headers` as they are configured. Their secrets are looked up by `open`, and anew when a service refuses them;
    until then they are kept, for what is delivered at the very end comes after the secrets are closed."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = dict(headers)
        self._host: Host | None = None
        self._values: dict[str, str] = {}

    async def open(self, host: Host) -> None:
        """Look the secrets up; raises what their providers raise."""
        self._host = host
        for value in self._headers.values():
            for reference in SECRET.findall(value):
                self._values[reference] = await host.secret(reference)

    @property
    def resolved(self) -> dict[str, str]:
        """The headers as they are sent."""
        return {
            # What was read from a file often ends in a newline.
            name: SECRET.sub(lambda found: self._values.get(found[0], found[0]).strip(), value)
            for name, value in self._headers.items()
        }

    async def through(self, send: Callable[[dict[str, str]], Awaitable[T]]) -> T:
        """`await send(headers)`, and once more with others if the service refuses their key and there is another."""
        try:
            return await send(self.resolved)
        except KeyRefused:
            if not await self._renewed():
                raise
        return await send(self.resolved)

    async def _renewed(self) -> bool:
        """Whether the references lead to something else by now."""
        if self._host is None:
            return False
        before = dict(self._values)
        for reference, value in before.items():
            try:
                self._values[reference] = await self._host.secret_rejected(reference, value)
            except AgentrtError as error:
                logger.warning("the key %s was refused, and no other can be had: %s", reference, error)
        return self._values != before
