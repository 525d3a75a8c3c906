"""What a backend may be when it is not well, below HTTP: a port that takes everything and never answers, and none."""

from __future__ import annotations

import selectors
import socket
import threading
from types import TracebackType
from typing import Self

__all__ = ["BlackHole", "Refusing"]


class BlackHole:
    """Accepts every connection, reads what comes and never answers. A context manager."""

    def __init__(self) -> None:
        self.connections = 0
        self.received = 0  # bytes
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._waker, self._wake = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="black-hole")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wake.close()
        self._thread.join()

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector, self._listener, self._waker:
            for each in (self._listener, self._waker):
                selector.register(each, selectors.EVENT_READ)
            opened: set[socket.socket] = set()
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._waker:
                        for connection in opened:
                            connection.close()
                        return
                    if key.fileobj is self._listener:
                        connection, _ = self._listener.accept()
                        selector.register(connection, selectors.EVENT_READ, connection)
                        opened.add(connection)
                        self.connections += 1
                    elif not self._read(key.data):
                        selector.unregister(key.data)
                        opened.discard(key.data)
                        key.data.close()

    def _read(self, connection: socket.socket) -> bool:
        """False at the end of what the client sends."""
        try:
            data = connection.recv(65536)
        except ConnectionError:
            return False
        self.received += len(data)
        return bool(data)


class Refusing:
    """A port where connections are refused. A context manager: until its end no other server gets the port."""

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
