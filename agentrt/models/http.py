"""HTTP for the model clients: one pool of connections per client, and every failure as one of our errors.

httpx2 is imported when the first request is made, in a thread: with the certificates that takes a tenth of a second,
for which the event loop would stand still. It never retries, follows no redirect and has no timeout of its own
here: the pipeline's timers cancel, and a cancelled or early closed request takes its connection down with it.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from agentrt.errors import CallError, ConfigError, TransientError
from agentrt.models.credential import Credential
from agentrt.models.failures import Provider, failure, misfit
from agentrt.models.sse import ServerEvent, ServerEvents

if TYPE_CHECKING:
    import httpx2

__all__ = ["EventStream", "Http", "check_url", "host_of"]

MAX_CONNECTIONS = 1000
MAX_IDLE_CONNECTIONS = 100
IDLE_SECONDS = 30.0
MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
DRAIN_SECONDS = 0.25

Headers = list[tuple[bytes, bytes]]


def check_url(url: str, setting: str) -> str:
    """`url` without a slash at its end. Raises ConfigError if it is not an absolute http or https URL.

    `setting`: what it was given by, `base_url` or the name of a variable; the message begins with it.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or any(char.isspace() for char in url):
        raise ConfigError(f"{setting} must look like https://host/path, not {url!r}")
    return url.rstrip("/")


def host_of(url: str) -> str:
    """Host and port of a URL, without the user name and password that it may hold."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Loaded:
    """What is loaded once in a process: httpx2, and the certificates, for the first client that speaks TLS."""

    def __init__(self) -> None:
        self.certificates: ssl.SSLContext | None = None
        self._done = False
        self._lock = threading.Lock()

    def serves(self, tls: bool) -> bool:
        return self._done and (self.certificates is not None or not tls)

    def load(self, tls: bool) -> None:
        """Load what is missing. Blocks."""
        with self._lock:
            import httpx2

            httpx2.AsyncHTTPTransport(verify=False)  # it imports the half of its code only when it is made
            if tls and self.certificates is None:
                self.certificates = httpx2.create_ssl_context()
            self._done = True


_LOADED = _Loaded()


class Http:
    """Sends requests to one URL of one provider.

    `headers` go with every request, and so does the key: `authorization` makes a header of it. The connections belong
    to the event loop of the first request; on another loop a new pool is made.

    `reuse_after_stream`: whether a connection that has carried a stream to its end carries another request. Not so over
    plain HTTP: llama.cpp's server closes such connections without having said so, just when the next step of an
    agent is being sent on it, and a new one costs next to nothing where there is no TLS.
    """

    def __init__(
        self,
        provider: Provider,
        *,
        url: str,
        headers: dict[str, str],
        credential: Credential,
        authorization: Callable[[str], tuple[bytes, bytes]],
    ) -> None:
        self.provider = provider
        self._credential = credential
        self._authorization = authorization
        self._url = url
        self._headers = self._encoded(
            {
                "content-type": "application/json",
                # A compressed event stream comes in blocks, and answers are small.
                "accept-encoding": "identity",
                "user-agent": "agentrt",
                **{name.lower(): value for name, value in headers.items()},
            }
        )
        self._tls = url.startswith("https:")
        self.reuse_after_stream = self._tls
        self._client: httpx2.AsyncClient | None = None
        self._target: httpx2.URL | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def post(self, body: bytes) -> bytes:
        """The body of the answer to a POST; anything but a success raises."""
        response = await self._send(body, b"application/json")
        try:
            return await self._read(response, MAX_ANSWER_BYTES)
        finally:
            await response.aclose()

    async def stream(self, body: bytes) -> EventStream:
        """The answer to a POST as server-sent events. The caller closes the stream."""
        response = await self._send(body, b"text/event-stream", close=not self.reuse_after_stream)
        try:
            kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind not in ("text/event-stream", ""):
                answer = await self._read(response, MAX_ERROR_BYTES, whole=False)
                raise misfit(
                    self.provider, kind, answer, wanted="a stream of events", secret=self._credential.known
                )
            return EventStream(self.provider, response, reuse=self.reuse_after_stream)
        except BaseException:
            await response.aclose()
            raise

    async def aclose(self) -> None:
        """Close all connections."""
        client, self._client = self._client, None
        if client is not None and self._loop is asyncio.get_running_loop():
            await client.aclose()

    async def _send(self, body: bytes, accept: bytes, *, close: bool = False) -> httpx2.Response:
        """The response, its body unread, if its status is a success. `close`: the connection ends with it.

        A request whose key is refused is sent once more if there is another key by now: nothing was done for it.
        """
        headers = [*self._headers, (b"accept", accept)]
        if close:
            headers.append((b"connection", b"close"))
        key = await self._credential.get()
        response = await self._attempt(headers, key, body)
        if response.status_code == 401 and key is not None:
            try:
                other = await self._credential.instead_of(key)
            except BaseException:
                await response.aclose()
                raise
            if other is not None:
                await response.aclose()
                key = other
                response = await self._attempt(headers, key, body)
        if 200 <= response.status_code < 300:
            return response
        try:
            answer = await self._read(response, MAX_ERROR_BYTES, whole=False)
        finally:
            await response.aclose()
        raise failure(
            self.provider, status=response.status_code, headers=response.headers, body=answer, secret=key
        )

    async def _attempt(self, headers: Headers, key: str | None, body: bytes) -> httpx2.Response:
        """The response to one POST with `key`, whatever its status; its body is unread."""
        if key is not None:
            headers = [*headers, self._authorization(key)]
        client = self._client
        if client is None or self._loop is not asyncio.get_running_loop():
            if not _LOADED.serves(self._tls):
                await asyncio.to_thread(_LOADED.load, self._tls)
            client = self._client  # another request may have made it meanwhile
            if client is None or self._loop is not asyncio.get_running_loop():
                client = self._new_client()
        import httpx2

        assert self._target is not None
        request = httpx2.Request("POST", self._target, headers=headers, content=body)
        try:
            return await client.send(request, stream=True)
        except httpx2.HTTPError as error:
            raise connection_failure(self.provider, error) from error

    async def _read(self, response: httpx2.Response, limit: int, *, whole: bool = True) -> bytes:
        """Up to `limit` bytes of the body; `whole`: a longer or a broken body is an error."""
        import httpx2

        pieces: list[bytes] = []
        size = 0
        try:
            async for piece in response.aiter_bytes():
                pieces.append(piece)
                size += len(piece)
                if size > limit:
                    if whole:
                        raise TransientError(f"{self.provider}: the answer is longer than {limit} bytes")
                    break
        except httpx2.HTTPError as error:
            if whole:
                raise connection_failure(self.provider, error, started=True) from error
        return b"".join(pieces)

    def _new_client(self) -> httpx2.AsyncClient:
        import httpx2

        url = httpx2.URL(self._url)
        self._client = client = httpx2.AsyncClient(
            # Over plain HTTP nothing looks at certificates.
            verify=(_LOADED.certificates or True) if self._tls else False,
            timeout=None,
            limits=httpx2.Limits(
                max_connections=MAX_CONNECTIONS,
                max_keepalive_connections=MAX_IDLE_CONNECTIONS,
                keepalive_expiry=IDLE_SECONDS,
            ),
            # A proxy of the environment is not meant for servers on this machine.
            mounts={f"all://[{url.host}]" if ":" in url.host else f"all://{url.host}": None}
            if is_loopback(url.host)
            else None,
        )
        self._target = url
        self._loop = asyncio.get_running_loop()
        return client

    def _encoded(self, headers: dict[str, str]) -> Headers:
        encoded: Headers = []
        for name, value in headers.items():
            usable = name.isascii() and name.isprintable() and value.isascii() and value.isprintable()
            if not usable or not name or any(char in name for char in " :"):
                # The value may be a secret.
                raise ConfigError(f"headers: {name!r} of {self.provider.name} cannot be sent as it is")
            encoded.append((name.encode(), value.encode()))
        return encoded


class EventStream:
    """The events of one answer, read as they come. Not an iterator: nothing is held between two reads."""

    __slots__ = ("_parser", "_pieces", "_provider", "_response", "_reuse")

    def __init__(self, provider: Provider, response: httpx2.Response, *, reuse: bool) -> None:
        self._provider = provider
        self._reuse = reuse
        self._response = response
        encoded = response.headers.get("content-encoding", "identity") != "identity"
        self._pieces: AsyncGenerator[bytes, None] = (
            response.aiter_bytes() if encoded else response.aiter_raw()
        )
        self._parser = ServerEvents()

    async def read(self) -> list[ServerEvent]:
        """The next events, at least one; empty when the body has properly ended. Raises TransientError if it breaks."""
        try:
            async for piece in self._pieces:
                events = self._parser.feed(piece)
                if events:
                    return events
        except ValueError as error:
            raise TransientError(f"{self._provider}: the stream is unreadable: {error}") from error
        except Exception as error:
            raise self._broken(error) from error
        return self._parser.finish()

    async def drain(self) -> None:
        """Read to the end of the body after the answer is complete, so that the connection can be used again.

        It usually ends at once. One that does not is closed: the answer does not wait for it.
        """
        if not self._reuse:
            return
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                async for _ in self._pieces:
                    pass
        except TimeoutError:
            pass
        except Exception as error:
            self._broken(error)

    async def aclose(self) -> None:
        """Give the connection back if the body was read to its end, close it otherwise."""
        await self._pieces.aclose()
        await self._response.aclose()

    def _broken(self, error: Exception) -> Exception:
        """Our error for one of httpx2's; any other is a bug, and stays what it is."""
        import httpx2

        if not isinstance(error, httpx2.HTTPError):
            raise error
        return connection_failure(self._provider, error, started=True)


def is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def connection_failure(provider: Provider, error: Exception, *, started: bool = False) -> CallError:
    """Our error for one of httpx2's. `started`: the answer had begun."""
    import httpx2

    unsent = (
        httpx2.ConnectError,
        httpx2.ConnectTimeout,
        httpx2.PoolTimeout,
        httpx2.ProxyError,
        httpx2.UnsupportedProtocol,
    )
    if isinstance(error, unsent):
        return TransientError(
            f"{provider}: no connection could be made: {_cause(provider, error)}", executed=False
        )
    if started:
        return TransientError(
            f"{provider}: the connection broke in the middle of the answer: {_plain(error)}"
        )
    return TransientError(f"{provider}: the connection broke before the answer: {_plain(error)}")


def _plain(error: Exception) -> str:
    text = str(error)
    for found in _chain(error):
        if isinstance(found, ConnectionResetError):
            return "it was reset by the other side"
        if isinstance(found, OSError) and found.strerror:
            text = text or found.strerror
    return text.rstrip(".") or type(error).__name__


def _cause(provider: Provider, error: Exception) -> str:
    """Why no connection came about, and what to do."""
    for found in _chain(error):
        if isinstance(found, ssl.SSLCertVerificationError):
            why = found.verify_message or "it cannot be verified"
            return (
                f"the certificate was not accepted ({why}): if its authority is your own, set SSL_CERT_FILE"
            )
        if isinstance(found, ssl.SSLError):
            return f"TLS failed ({found.reason or found}): does {provider.url_setting} need http:// instead?"
        if isinstance(found, socket.gaierror):
            return (
                f"the host name is unknown ({found.strerror}): check {provider.url_setting} and the network"
            )
        if isinstance(found, ConnectionRefusedError) or getattr(found, "errno", 0) == errno.ECONNREFUSED:
            return f"it was refused: is the server running? Its address is set by {provider.url_setting}"
    return f"{_plain(error)}: check {provider.url_setting} and the network"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and everything that led to it."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        found = waiting.pop(0)
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        if isinstance(found, BaseExceptionGroup):
            waiting.extend(found.exceptions)
        waiting += [found.__cause__, found.__context__]
