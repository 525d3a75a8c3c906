"""`local:smollm2`: a small real model that runs here, in a child process (`agentrt.models.local_server`)."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import sys
from collections.abc import AsyncGenerator
from typing import ClassVar

import msgspec
from msgspec import Struct

from agentrt import options
from agentrt.errors import ConfigError, TransientError
from agentrt.models import weights
from agentrt.models.openai import OpenAI
from agentrt.models.protocol import Host, ModelRequest, ModelResponse, StreamItem

__all__ = ["Local"]

STOP_SECONDS = 2.0
LAST_SECONDS = 0.5
SHOWN_CHARACTERS = 800


class Local:
    """Models on this machine. The server starts with the first request, once for all, and again if it died.

    `slots` (2): requests answered at the same time, more wait. `context` (4096): tokens of one request with its
    answer. `threads` (1): that compute. `max_tokens` (512): the limit of an answer whose request has none, for a small
    model may not find its end. `start_seconds` (120): how long the server may take to start.
    """

    name: ClassVar[str] = "local"

    def __init__(
        self,
        *,
        slots: int = 2,
        context: int = 4096,
        threads: int = 1,
        max_tokens: int = 512,
        start_seconds: float = 120.0,
    ) -> None:
        self._slots = options.count("slots", slots)
        self._context = options.count("context", context)
        self._threads = options.count("threads", threads)
        self._max_tokens = options.count("max_tokens", max_tokens)
        self._start_seconds = options.seconds("start_seconds", start_seconds)
        self._servers: dict[str, asyncio.Task[_Server]] = {}

    async def check(self, model: str, host: Host) -> None:
        """Raise ConfigError if the model's weights, or what runs them, are not here."""
        del host
        await asyncio.to_thread(_find, model)

    def identity(self, model: str) -> str:
        return f"local:{model}"

    def target(self, model: str) -> str:
        return f"local:{model}"

    async def complete(self, request: ModelRequest, /) -> ModelResponse:
        """One whole answer."""
        server = await self._server(request.model)
        try:
            return await server.client.complete(self._bounded(request))
        except TransientError as error:
            await _explain(error, server, request.model)
            raise

    async def stream(self, request: ModelRequest, /) -> AsyncGenerator[StreamItem, None]:
        """The answer piece by piece, `Finished` last."""
        server = await self._server(request.model)
        items = server.client.stream(self._bounded(request))
        try:
            async for item in items:
                yield item
        except TransientError as error:
            await _explain(error, server, request.model)
            raise
        finally:
            await items.aclose()

    async def aclose(self) -> None:
        """End the servers: a request to, and the kill after 2 s."""
        servers, self._servers = self._servers, {}
        for starting in servers.values():
            if starting.get_loop() is not asyncio.get_running_loop():
                continue  # its loop is gone, and the server has seen the end of its input
            starting.cancel()
            with contextlib.suppress(Exception, asyncio.CancelledError):
                await (await starting).aclose()

    def _bounded(self, request: ModelRequest) -> ModelRequest:
        if request.settings.max_tokens is not None:
            return request
        settings = msgspec.structs.replace(request.settings, max_tokens=self._max_tokens)
        return msgspec.structs.replace(request, settings=settings)

    async def _server(self, model: str) -> _Server:
        """The model's server, which is started if need be; a cancelled caller leaves that to others."""
        starting = self._servers.get(model)
        loop = asyncio.get_running_loop()
        if starting is None or starting.get_loop() is not loop or _is_over(starting):
            previous = starting if starting is not None and starting.get_loop() is loop else None
            starting = self._servers[model] = loop.create_task(
                self._start(model, previous), name=f"agentrt local:{model}"
            )
            # Nobody may be left to hear of a failure; the next request sees it too, and starts anew.
            starting.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(starting)

    async def _start(self, model: str, previous: asyncio.Task[_Server] | None) -> _Server:
        if previous is not None and not previous.cancelled() and previous.exception() is None:
            await previous.result().aclose()
        path = await asyncio.to_thread(_find, model)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "agentrt.models.local_server",
            *("--weights", path, "--parent", str(os.getpid()), "--name", model),
            *("--context", str(self._context), "--slots", str(self._slots), "--threads", str(self._threads)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(self._start_seconds):
                url = await _ready(process, model)
        except TimeoutError:
            await _end(process)
            raise TransientError(
                f"local:{model}: the server was not ready after {self._start_seconds:g} s: "
                "raise start_seconds in [models.local] if this machine is that slow",
                executed=False,
            ) from None
        except BaseException:
            await _end(process)
            raise
        return _Server(process, _ServerClient(base_url=f"{url}/v1", api_key="", tool_mode="json_schema"))


class _ServerClient(OpenAI):
    name: ClassVar[str] = "local"


class _Server(Struct, eq=False):
    process: asyncio.subprocess.Process
    client: OpenAI

    async def aclose(self) -> None:
        await self.client.aclose()
        await _end(self.process)


def _is_over(starting: asyncio.Task[_Server]) -> bool:
    """Whether a start failed, or the server that it started has ended."""
    if not starting.done():
        return False
    if starting.cancelled() or starting.exception() is not None:
        return True
    return starting.result().process.returncode is not None


async def _explain(error: TransientError, server: _Server, model: str) -> None:
    """If a request failed because the server ended, raise an error that says so."""
    if error.__cause__ is None:
        return  # the server itself answered with an error
    try:
        # The connection broke first: the kernel closes the sockets of a dying process, then it tells the parent.
        async with asyncio.timeout(LAST_SECONDS):
            status = await server.process.wait()
    except TimeoutError:
        return
    raise TransientError(
        f"local:{model}: its server ended with status {status} before the answer was whole; "
        "the next request starts another",
        executed=error.executed,
    ) from error


def _find(model: str) -> str:
    """The file with the model's weights, once everything that it takes to run them is there."""
    path = weights.find(model)
    if importlib.util.find_spec("xllamacpp") is None:
        raise ConfigError(f"local:{model} needs the package xllamacpp: pip install 'agentrt[local]'")
    if path is None:
        raise ConfigError(f"the weights of local:{model} are not here yet: agentrt models pull {model}")
    return str(path)


async def _ready(process: asyncio.subprocess.Process, model: str) -> str:
    """The URL that the server says it is ready at."""
    assert process.stdout is not None
    line = await process.stdout.readline()
    try:
        answer = msgspec.json.decode(line, type=dict[str, str])
    except (msgspec.DecodeError, UnicodeDecodeError):
        answer = {}
    if "url" in answer:
        return answer["url"]
    said = answer.get("error", "")
    if not said:
        assert process.stderr is not None
        said = (await process.stderr.read()).decode(errors="replace").strip()[-SHOWN_CHARACTERS:]
    status = await process.wait()
    raise TransientError(
        f"local:{model}: the server ended with status {status} before it was ready: {said or 'it said nothing'}",
        executed=False,
    )


async def _end(process: asyncio.subprocess.Process) -> None:
    """End the process, and wait until it has ended."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.stdin is not None:
        process.stdin.close()
