"""A server of models that fails on request: both wires over real sockets, and a fault for each request.

    async with FaultServer() as server:
        server.play(Fault.stall_after(2), Fault.ok())
        client = OpenAI(base_url=server.openai_url)
        ...
        assert server.requests[0].json["model"] == "gpt-5-mini"

It answers `/v1/chat/completions` as OpenAI does and `/v1/messages` as Anthropic does, streamed if the request asks for
it. A fault of the queue serves one request; when the queue is empty, `default` does. It listens on the loopback
interface only.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from types import TracebackType
from typing import Any, Literal, Self

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from agentrt.testing.fault_wire import Reply, Wire

__all__ = ["Fault", "FaultServer", "RecordedRequest", "Reply"]

KEPT_REQUESTS = 1000
LONGEST_HEAD = 64 * 1024
Drop = Literal["close", "reset"]


class RecordedRequest(Struct, frozen=True):
    """A request as it came; header names are in lower case. `connection`: the number of its connection, from 0."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


class Fault(Struct, frozen=True, kw_only=True):
    """What happens to one request; the methods below make the usual ones.

    `status` other than 200 answers with `message`, `type` and `code` in the wire's form of an error, or with `body`.
    `first_byte_seconds`: the wait before anything is sent. `events`: so many pieces of a stream's text (half the body
    of a whole answer), then `then`: "stall" sends nothing more and keeps the connection, "close" and "reset" end it,
    "error" is an error event, "garbage" an event that is no JSON, "end" ends the body without the protocol's end.
    `omit`: so many of a stream's last events are left out (OpenAI's `[DONE]` is one, Anthropic's `message_stop` is).
    `drop`: the connection ends before anything is sent. `event_seconds`: the wait before each event.
    """

    reply: Reply = Reply()
    status: int = 200
    message: str = ""
    type: str = ""
    code: str | None = None
    headers: dict[str, str] = {}
    body: bytes | None = None
    content_type: str | None = None
    first_byte_seconds: float = 0.0
    event_seconds: float = 0.0
    events: int | None = None
    omit: int = 0
    then: Literal["stall", "close", "reset", "error", "garbage", "end"] = "end"
    drop: Drop | None = None

    @classmethod
    def ok(cls, text: str | None = None, *, reply: Reply | None = None) -> Fault:
        """A good answer."""
        made = reply or Reply()
        return cls(reply=made if text is None else replace(made, text=text))

    @classmethod
    def http(cls, status: int, message: str = "scripted", *, headers: dict[str, str] | None = None) -> Fault:
        """An error of this status, with the wire's usual type for it."""
        return cls(status=status, message=message, headers=headers or {})

    @classmethod
    def throttled(cls, retry_after: float | str | None = 1) -> Fault:
        """429, with Retry-After."""
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        return cls(status=429, message="Rate limit reached", code="rate_limit_exceeded", headers=headers)

    @classmethod
    def unavailable(cls, retry_after: float | str | None = 1) -> Fault:
        """503, with Retry-After."""
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        return cls(status=503, message="Service unavailable", headers=headers)

    @classmethod
    def quota_exhausted(cls) -> Fault:
        """429 as OpenAI says that the money is used up; the message says so on both wires."""
        return cls(
            status=429,
            message="You exceeded your current quota, your credit balance is too low.",
            type="insufficient_quota",
            code="insufficient_quota",
        )

    @classmethod
    def wrong_key(cls) -> Fault:
        return cls(status=401, message="Incorrect API key provided", code="invalid_api_key")

    @classmethod
    def context_too_long(cls) -> Fault:
        return cls(
            status=400,
            message="prompt is too long: this model's maximum context length is 8192 tokens",
            code="context_length_exceeded",
        )

    @classmethod
    def content_filter(cls) -> Fault:
        """400: the request itself is refused."""
        return cls(status=400, message="The prompt was filtered by the content policy", code="content_filter")

    @classmethod
    def filtered(cls) -> Fault:
        """An answer that the provider's filter ended."""
        return cls(reply=Reply(text="Hello", finish="content_filter"))

    @classmethod
    def cut_by_length(cls) -> Fault:
        return cls(reply=Reply(text="Hello from", finish="length"))

    @classmethod
    def missing_usage(cls) -> Fault:
        return cls(reply=Reply(usage=None))

    @classmethod
    def slow_first_byte(cls, seconds: float) -> Fault:
        return cls(first_byte_seconds=seconds)

    @classmethod
    def stall_after(cls, events: int) -> Fault:
        """After so many pieces of text, or half of a whole answer, nothing more comes."""
        return cls(events=events, then="stall")

    @classmethod
    def drop_before_headers(cls, how: Drop = "close") -> Fault:
        return cls(drop=how)

    @classmethod
    def drop_after(cls, events: int, how: Drop = "close") -> Fault:
        """The connection ends in the middle of the stream, or of the body."""
        return cls(events=events, then=how)

    @classmethod
    def error_after(cls, events: int, message: str = "Overloaded") -> Fault:
        """An error event in mid-stream; a whole answer is an error in the body of a 200."""
        return cls(events=events, then="error", message=message)

    @classmethod
    def no_proper_end(cls, events: int = 2) -> Fault:
        """The body ends as HTTP wants it, but the answer is not over."""
        return cls(events=events, then="end")

    @classmethod
    def malformed_json(cls, events: int = 1) -> Fault:
        return cls(events=events, then="garbage")

    @classmethod
    def wrong_content_type(cls) -> Fault:
        page = b"<!DOCTYPE html><html><head><title>Welcome to nginx!</title></head><body>...</body></html>"
        return cls(body=page, content_type="text/html")


class FaultServer:
    """The server; `default` (a good answer) serves requests when the queue of `play` is empty.

    `url`: http://127.0.0.1:PORT, with `openai_url` and `anthropic_url` as the clients' base URLs. `requests`: the last
    1,000. `connections`: how many were opened so far; `open_connections`: how many are open.
    """

    def __init__(self, *, default: Fault | None = None) -> None:
        self.default = default if default is not None else Fault.ok()
        self.requests: deque[RecordedRequest] = deque(maxlen=KEPT_REQUESTS)
        self.connections = 0
        self._received = 0
        self._changed = asyncio.Condition()
        self._queue: deque[Fault] = deque()
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def openai_url(self) -> str:
        return f"{self.url}/v1"

    @property
    def anthropic_url(self) -> str:
        return self.url

    @property
    def open_connections(self) -> int:
        return len(self._open)

    async def received(self, count: int = 1) -> None:
        """Wait until so many requests have come in all."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._received >= count)

    async def all_closed(self) -> None:
        """Wait until no connection is open."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._open)

    def play(self, *faults: Fault) -> None:
        """Queue faults, one for each of the next requests."""
        self._queue.extend(faults)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=LONGEST_HEAD)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        serving = list(self._open)
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        await self._server.wait_closed()

    # --- one connection --------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = writer
        number = self.connections
        self.connections += 1
        try:
            while (request := await _receive(reader, number)) is not None:
                self.requests.append(request)
                self._received += 1
                await self._tell()
                fault = self._queue.popleft() if self._queue else self.default
                if not await self._answer(request, fault, reader, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went away, as it may
        except asyncio.CancelledError:
            # The server is being closed. A task that ends cancelled is logged as an error by asyncio.
            pass
        finally:
            del self._open[task]
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()
            await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _answer(
        self,
        request: RecordedRequest,
        fault: Fault,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        """Play the fault; True if the connection can serve another request."""
        if fault.first_byte_seconds and await _gone(reader, fault.first_byte_seconds):
            return False
        if fault.drop is not None:
            _end(writer, fault.drop)
            return False
        wire = _wire_of(request.path)
        if wire is None:
            _send(writer, 404, b'{"error":{"message":"not found"}}', "application/json", {})
            return True
        if fault.body is not None or fault.status != 200:
            body = fault.body
            if body is None:
                body = wire.error(fault.status, fault.message, type=fault.type, code=fault.code)
            kind = fault.content_type or "application/json"
            if fault.events is not None:
                return await _half(fault.status, body, kind, fault, reader, writer)
            _send(writer, fault.status, body, kind, fault.headers)
            return True
        asked = request.json
        if asked.get("stream"):
            return await self._stream(wire, fault, asked, reader, writer)
        return await self._whole(wire, fault, asked, reader, writer)

    async def _whole(
        self,
        wire: Wire,
        fault: Fault,
        asked: Any,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        body = wire.whole(fault.reply, asked["model"])
        if fault.events is None:
            _send(writer, 200, body, fault.content_type or "application/json", fault.headers)
            return True
        if fault.then == "error":
            body = wire.error(500, fault.message)
        elif fault.then in ("garbage", "end"):
            body = body[: len(body) // 2]
        if fault.then in ("error", "garbage", "end"):
            _send(writer, 200, body, "application/json", fault.headers)
            return True
        return await _half(200, body, "application/json", fault, reader, writer)

    async def _stream(
        self,
        wire: Wire,
        fault: Fault,
        asked: Any,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        events = wire.events(fault.reply, asked["model"])
        if fault.events is not None:
            events = _up_to(events, fault.events)
        if fault.omit:
            events = events[: -fault.omit]
        writer.write(_head(200, fault.content_type or "text/event-stream", fault.headers, length=None))
        for event in events:
            if fault.event_seconds and await _gone(reader, fault.event_seconds):
                return False
            writer.write(_chunk(event))
            await writer.drain()
        if fault.events is not None:
            if fault.then == "error":
                writer.write(_chunk(wire.error_event(fault.message)))
            elif fault.then == "garbage":
                writer.write(_chunk(b'data: {"choices": [{"delta": {"content": \n\n'))
            elif fault.then != "end":
                return await _break_off(fault, reader, writer)
        writer.write(b"0\r\n\r\n")
        return True


# --- HTTP ----------------------------------------------------------------------------------------------


async def _receive(reader: asyncio.StreamReader, connection: int) -> RecordedRequest | None:
    """The next request, or None when the client is done."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ", 2)
    pairs = (line.partition(":") for line in lines if line)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return RecordedRequest(method, path.partition("?")[0], headers, body, connection)


def _wire_of(path: str) -> Wire | None:
    if path.endswith("/chat/completions"):
        return Wire("openai")
    return Wire("anthropic") if path.endswith("/v1/messages") else None


def _head(status: int, content_type: str, headers: dict[str, str], *, length: int | None) -> bytes:
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    lines = [f"HTTP/1.1 {status} Scripted", f"Content-Type: {content_type}", framing]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _send(
    writer: asyncio.StreamWriter, status: int, body: bytes, content_type: str, headers: dict[str, str]
) -> None:
    writer.write(_head(status, content_type, headers, length=len(body)) + body)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _up_to(events: list[bytes], pieces: int) -> list[bytes]:
    """The events up to and with so many pieces of text."""
    kept: list[bytes] = []
    seen = 0
    for event in events:
        is_text = b'"text_delta"' in event or (b'"content":"' in event and b'"content":""' not in event)
        if is_text and seen == pieces:
            break
        seen += is_text
        kept.append(event)
    return kept


async def _half(
    status: int,
    body: bytes,
    content_type: str,
    fault: Fault,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> bool:
    """The head promises the whole body, of which the half comes."""
    head = _head(status, content_type, fault.headers, length=len(body))
    writer.write(head + body[: len(body) // 2])
    await writer.drain()
    return await _break_off(fault, reader, writer)


async def _break_off(fault: Fault, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    if fault.then == "stall":
        await _gone(reader, None)
        return False
    # What was sent is to arrive: a reset throws away what the client has not read yet.
    if fault.then == "reset":
        await asyncio.sleep(0.05)
    _end(writer, "reset" if fault.then == "reset" else "close")
    return False


async def _gone(reader: asyncio.StreamReader, seconds: float | None) -> bool:
    """Wait so long (None: for ever), or until the client closes its connection; True in that case."""
    try:
        async with asyncio.timeout(seconds):
            return await reader.read(1) == b""
    except TimeoutError:
        return False


def _end(writer: asyncio.StreamWriter, how: Drop) -> None:
    if how == "reset":
        # No lingering: the kernel answers with RST instead of FIN.
        sock: socket.socket = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    else:
        writer.close()
