"""Reads server-sent events from a body that arrives in arbitrary pieces.

Works on bytes: a piece may end inside a character, a line or between CR and LF, and the data goes to the JSON decoder
as it is. `id` and `retry` are for browsers that reconnect; here a broken stream is an error.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["ServerEvent", "ServerEvents"]

_LF = 10
_CR = 13
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class ServerEvent(NamedTuple):
    """One event: its name (empty if the server gave none) and its data, lines joined by LF."""

    name: bytes
    data: bytes


class ServerEvents:
    """An incremental parser. `max_bytes` (16 MiB) bounds what it keeps of an event that does not end."""

    __slots__ = ("_after_cr", "_data", "_first", "_held", "_max_bytes", "_name", "_partial")

    def __init__(self, *, max_bytes: int = 16 * 1024 * 1024) -> None:
        self._max_bytes = max_bytes
        self._partial: list[bytes] = []
        self._data: list[bytes] = []
        self._name = b""
        self._held = 0
        self._after_cr = False
        self._first = True

    def feed(self, piece: bytes) -> list[ServerEvent]:
        """The events that are complete with this piece of the body. Raises ValueError for one that is too long."""
        if self._after_cr and piece:
            self._after_cr = False
            if piece[0] == _LF:
                piece = piece[1:]
        if not piece:
            return []
        lines = piece.splitlines()
        last = piece[-1]
        self._after_cr = last == _CR
        if last in (_LF, _CR):
            rest = b""
        elif len(lines) == 1:
            self._partial.append(piece)
            self._hold(self._held + len(piece))
            return []
        else:
            rest = lines.pop()
        if self._partial:
            self._partial.append(lines[0])
            lines[0] = b"".join(self._partial)
        self._partial = [rest] if rest else []
        events = self._read(lines)
        self._hold(len(rest) + sum(map(len, self._data)))
        return events

    def finish(self) -> list[ServerEvent]:
        """What the body's end completes: some servers leave out the last event's empty line."""
        lines = [b"".join(self._partial), b""]
        self._partial = []
        return self._read(lines)

    def _hold(self, size: int) -> None:
        self._held = size
        if size > self._max_bytes:
            raise ValueError(f"an event is longer than {self._max_bytes} bytes")

    def _read(self, lines: list[bytes]) -> list[ServerEvent]:
        if self._first:
            self._first = False
            lines[0] = lines[0].removeprefix(_BYTE_ORDER_MARK)
        events: list[ServerEvent] = []
        data = self._data
        for line in lines:
            if line.startswith(b"data: "):
                data.append(line[6:])
            elif not line:
                if data:
                    events.append(ServerEvent(self._name, data[0] if len(data) == 1 else b"\n".join(data)))
                    data.clear()
                self._name = b""
            else:
                field, _, value = line.partition(b":")
                if field == b"data":
                    data.append(value.removeprefix(b" "))
                elif field == b"event":
                    self._name = value.removeprefix(b" ")
        return events
