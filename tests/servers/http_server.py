"""HTTP servers of ours, in threads of this process: they keep what they got, and answer or fail as a test says."""

from __future__ import annotations

import gzip
import socket
import socketserver
import ssl
import sys
import threading
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import TracebackType
from typing import Any, Self

__all__ = ["Answer", "HttpServer", "Request"]


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it came; the body without its content encoding, header names in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """What to answer. `delay`: seconds before it. `raw`: these bytes in place of any HTTP, then the end."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    raw: bytes | None = None


class HttpServer:
    """A context manager; it listens from `with` on. Threads of its own serve it, so that whoever blocks the
    event loop of a test cannot block it.

    `answers` are given in turn and the last one for ever; None stands for the server's own (`respond`). With
    `dies_after=n` it answers n requests and dies on the next. `die()` and `revive()` do it by hand; the port stays.
    With `tls`, a server's context, it speaks HTTPS.
    """

    def __init__(
        self, *answers: Answer | None, dies_after: int | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self.requests: list[Request] = []
        self.port = 0
        self.dies_after = dies_after
        self.tls = tls
        self._answers: list[Answer | None] = list(answers) or [None]
        self._changed = threading.Condition()
        self._dying = threading.Lock()
        self._listener: _Listener | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._bugs: list[BaseException] = []

    @property
    def url(self) -> str:
        return f"{'http' if self.tls is None else 'https'}://127.0.0.1:{self.port}"

    def answer(self, *answers: Answer | None) -> None:
        """From now on: these, in turn, the last one for ever."""
        with self._changed:
            self._answers = list(answers) or [None]

    def respond(self, request: Request) -> Answer:
        """The server's own answer, in one of its threads."""
        del request
        return Answer()

    def wait_for(self, enough: Callable[[], bool], *, what: str, timeout: float = 30.0) -> None:
        """Blocks until `enough`, asked after every request; fails after `timeout` seconds, naming `what`."""
        with self._changed:
            if not self._changed.wait_for(enough, timeout):
                raise AssertionError(f"no {what} within {timeout:g} s; {len(self.requests)} requests came")

    def wait_for_requests(self, count: int, *, timeout: float = 30.0) -> None:
        self.wait_for(lambda: len(self.requests) >= count, what=f"{count} requests", timeout=timeout)

    def die(self) -> None:
        """Cuts all connections, whatever is under way, and refuses new ones. Returns when that is done."""
        with self._dying:
            listener, self._listener = self._listener, None
            if listener is not None:
                self._stopping.set()
                listener.die()
                if self._thread is not None:
                    self._thread.join()

    def revive(self) -> None:
        """Listens again, on the same port, and does not die by itself any more."""
        self.die()
        self.dies_after = None
        self._listen()

    def __enter__(self) -> Self:
        self._listen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.die()
        if self._bugs and error is None:
            raise self._bugs[0]

    def _listen(self) -> None:
        self._stopping.clear()
        self._listener = listener = _Listener(self)
        self.port = listener.server_address[1]
        self._thread = threading.Thread(target=listener.serve_forever, args=(0.02,), name="http-server")
        self._thread.start()

    # ---------------------------------------------------------------------------- called by the connections
    def _take(self, request: Request) -> Answer | None:
        """Keeps a request and gives the answer; None if there is none because the server dies."""
        with self._changed:
            if self.dies_after is not None and len(self.requests) >= self.dies_after:
                return None
            answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
            if answer is None:
                answer = self.respond(request)
            self.requests.append(request)
            self._changed.notify_all()
        if answer.delay and self._stopping.wait(answer.delay):
            return None
        return answer


class _Listener(socketserver.ThreadingMixIn, HTTPServer):
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, owner: HttpServer) -> None:
        self.owner = owner
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", owner.port), _Connection)
        if owner.tls is not None:
            # The threads of the connections shake hands, not the one that accepts them.
            self.socket = owner.tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def server_bind(self) -> None:
        # HTTPServer's own asks the name service who we are.
        socketserver.TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if error is not None and not isinstance(error, OSError):  # OSError: the client, or die(), cut it
            self.owner._bugs.append(error)

    def die(self) -> None:
        self.shutdown()
        self.socket.close()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the client was faster
        self.server_close()  # waits for the threads of the connections


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body go one after the other; together they would wait for 40 ms

    def do_GET(self) -> None:
        assert isinstance(self.server, _Listener)
        owner = self.server.owner
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, headers, self._body(headers))
        answer = owner._take(request)
        if answer is None or answer.raw is not None:
            self.close_connection = True
        if answer is None:
            # Not in this thread, for which die() waits.
            threading.Thread(target=owner.die, name="http-server-death").start()
            owner._stopping.wait()
            return
        if answer.raw is not None:
            self.wfile.write(answer.raw)
            return
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    do_POST = do_PUT = do_DELETE = do_GET

    def _body(self, headers: Mapping[str, str]) -> bytes:
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body = b"".join(iter(self._chunk, b""))
        else:
            body = self.rfile.read(int(headers.get("content-length", "0")))
        match headers.get("content-encoding", "identity"):
            case "gzip":
                return gzip.decompress(body)
            case "deflate":
                return zlib.decompress(body)
            case _:
                return body

    def _chunk(self) -> bytes:
        size = int(self.rfile.readline().partition(b";")[0], 16)
        data = self.rfile.read(size)
        self.rfile.readline()
        return data

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the requests are kept."""
