"""Reading what the file backend wrote."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import BinaryIO, cast

import msgspec
from msgspec import Struct

from agentrt.telemetry.signals import LogLine, Metric, Resource, Span

__all__ = ["Item", "Reading", "read"]

Item = Span | Metric | LogLine

MAGIC = b"\x1f\x8b"


class _Kind(Struct):
    type: str


_kind = msgspec.json.Decoder(_Kind)
_items: dict[
    str, msgspec.json.Decoder[Span] | msgspec.json.Decoder[Metric] | msgspec.json.Decoder[LogLine]
] = {
    "span": msgspec.json.Decoder(Span),
    "metric": msgspec.json.Decoder(Metric),
    "log": msgspec.json.Decoder(LogLine),
}
_resource = msgspec.json.Decoder(Resource)


def read(path: Path | str, *, older: bool = False) -> Reading:
    """The spans, metrics and log lines of a file, in the order they were written.

    `older`: those of `path.1`, `path.2` ... too, before them (False). Compressed files are read as well. Raises OSError
    if there is no such file or it cannot be read.
    """
    path = Path(path)
    files = [*(_older(path) if older else ()), path]
    files[-1].open("rb").close()  # at once, and not with the first item
    return Reading(files)


class Reading(Iterator[Item]):
    """An iterator over items. `skipped` counts the lines that were no telemetry of ours, or torn. `resource`: who
    wrote the item that came last."""

    def __init__(self, files: list[Path]) -> None:
        self.skipped = 0
        self.resource: Resource | None = None
        self._items = self._read(files)

    def __iter__(self) -> Reading:
        return self

    def __next__(self) -> Item:
        return next(self._items)

    def close(self) -> None:
        """Close the file before its end."""
        self._items.close()

    def _read(self, files: list[Path]) -> Generator[Item]:
        for path in files:
            self.resource = None
            with _open(path) as file:
                for line in self._lines(file):
                    item = self._item(line)
                    if item is not None:
                        yield item

    def _lines(self, file: BinaryIO) -> Iterator[bytes]:
        try:
            for line in file:
                if line.strip():
                    yield line
        except (EOFError, gzip.BadGzipFile, zlib.error):
            self.skipped += 1  # a compressed file that ends too soon

    def _item(self, line: bytes) -> Item | None:
        try:
            kind = _kind.decode(line).type
            if kind == "resource":
                self.resource = _resource.decode(line)
                return None
            decoder = _items.get(kind)
            if decoder is not None:
                return decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass
        self.skipped += 1
        return None


def _open(path: Path) -> BinaryIO:
    file = path.open("rb")
    start = file.read(len(MAGIC))
    file.seek(0)
    if start == MAGIC:
        file.close()
        return cast("BinaryIO", gzip.open(path, "rb"))
    return file


def _older(path: Path) -> list[Path]:
    """The rotated files, the oldest first."""
    name = re.compile(re.escape(path.name) + r"\.(\d+)(\.gz)?")
    found = [(int(match[1]), each) for each in path.parent.iterdir() if (match := name.fullmatch(each.name))]
    return [each for _, each in sorted(found, reverse=True)]
