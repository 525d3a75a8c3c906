"""Secrets in a file of environment variables, for development: they do not get into the environment."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from agentrt import options
from agentrt.config.dotenv import parse_env
from agentrt.errors import ConfigError
from agentrt.secrets.protocol import SecretInvalid, SecretNotFound, SecretRef
from agentrt.secrets.text_file import WritableFiles, read_text

__all__ = ["Dotenv"]


class Dotenv:
    """Reads the file at `path` (".env"), as `--env-file` does: `secret://dotenv/NAME` is its line NAME=value.

    `max_bytes` (1,048,576): a larger file is refused. `cache_ttl` (30 s): after this time a changed file is seen.
    """

    def __init__(
        self, *, path: Path = Path(".env"), max_bytes: int = 1_048_576, cache_ttl: float = 30.0
    ) -> None:
        self.path = Path(path)
        self.max_bytes = options.count("max_bytes", max_bytes)
        self.cache_ttl = options.seconds("cache_ttl", cache_ttl, open_=False)
        self._files = WritableFiles()

    async def get(self, ref: SecretRef, /) -> str:
        return self._value(ref, await asyncio.to_thread(self._variables, ref))

    async def get_many(self, refs: Sequence[SecretRef], /) -> Mapping[SecretRef, str]:
        if not refs:
            return {}
        variables = await asyncio.to_thread(self._variables, refs[0])
        return {ref: self._value(ref, variables) for ref in refs if ref.name in variables}

    async def list(self, prefix: str = "", /) -> Sequence[str]:
        variables = await asyncio.to_thread(self._variables, SecretRef("*", "dotenv"))
        return [name for name in variables if name.startswith(prefix)]

    def _variables(self, ref: SecretRef) -> dict[str, str]:
        """Everything in the file. Blocks."""
        path = os.path.realpath(self.path)
        try:
            text = read_text(ref, path, limit=self.max_bytes, files=self._files)
        except SecretNotFound as error:
            raise SecretNotFound(f"{ref}: there is no file {self.path}") from error
        try:
            return parse_env(text.removeprefix("\ufeff"), name=str(self.path))
        except ConfigError as error:
            raise SecretInvalid(f"{ref}: {error}") from error

    def _value(self, ref: SecretRef, variables: Mapping[str, str]) -> str:
        if ref.version is not None:
            raise SecretInvalid(f"{ref}: the variables of a file have no versions")
        value = variables.get(ref.name)
        if value is None:
            raise SecretNotFound(f"{ref}: {self.path} has no variable {ref.name}")
        if not value:
            raise SecretInvalid(f"{ref}: the variable {ref.name} in {self.path} is empty")
        return value
