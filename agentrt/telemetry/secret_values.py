"""The values of known secrets, and finding them in text, in each of the guises in which they travel.

A text is searched once for a few rare characters, however many values there are; each hit is one look into a dict.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterable
from urllib.parse import quote, quote_plus

from agentrt.telemetry.secret_shapes import MARK

__all__ = ["MAX_VALUES", "MINIMUM", "MINIMUM_LINE", "SecretValues", "guises"]

MINIMUM = 6
"""Characters that a secret must have to be looked for: shorter ones turn up in ordinary text."""

MINIMUM_LINE = 8
"""Characters that a line of a secret of many lines must have to be looked for alone."""

MAX_VALUES = 10_000
"""Registered values that are kept, the newest ones."""

# From rare in ordinary text to common. A guise is looked for by its rarest character, so that a text is searched once
# for a few rare characters, however many secrets there are; each hit is one look into a dict.
_RARITY = (
    "ZQX~^`JKVYUq|$&%@!#*?+;<>\\zjWGBHFxOLMDRPNECSTAIkvw987654321=0/(){}[]_bygpfmuc-.'ldhr,:snioat\"e\n "
)
_RANK = {character: rank for rank, character in enumerate(_RARITY)}
_WINDOW = 4  # characters by which a guise is looked up
_CROWDED = 8  # guises with the same window, before another window is chosen


class SecretValues:
    """The registered values. Readers take no lock: each entry that they read is replaced whole."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._is_adding = False
        self._values: dict[str, None] = {}
        self._uses: dict[str, int] = {}  # of each guise
        self._index: dict[str, tuple[tuple[str, int], ...]] = {}  # window -> guises, and where it is in each
        self._rare = ""
        self._find: re.Pattern[str] | None = None

    def after_fork(self) -> None:
        """In the child: a thread that is not there may hold the lock, or have been in the middle of `add`."""
        # Whatever `locked()` says: a lock that was got a moment ago does not know it yet.
        self._lock = threading.Lock()
        if self._is_adding:
            values = list(self._values)
            self._begin()
            for value in values:
                self.add(value)

    def __len__(self) -> int:
        return len(self._values)

    def add(self, value: str) -> bool:
        """True if it is new."""
        parts = _parts(value)
        if not parts:
            return False
        key = parts[0]
        with self._lock:
            self._is_adding = True
            is_new = key not in self._values
            self._values.pop(key, None)
            self._values[key] = None
            if is_new:
                rare = self._rare
                for guise in _guises_of(parts):
                    self._enter(guise)
                if self._rare != rare:
                    self._find = re.compile("[" + re.escape(self._rare) + "]")
                if len(self._values) > MAX_VALUES:
                    oldest = next(iter(self._values))
                    del self._values[oldest]
                    for guise in _guises_of(_parts(oldest)):
                        self._leave(guise)
            self._is_adding = False
        return is_new

    def clean(self, text: str) -> str:
        """`text` with every guise of a registered value replaced; where they overlap, by one mark."""
        find = self._find
        if find is None or len(text) < MINIMUM:
            return text
        index = self._index
        found: list[tuple[int, int]] = []
        for match in find.finditer(text):
            place = match.start()
            for guise, offset in index.get(text[place : place + _WINDOW], ()):
                start = place - offset
                if start >= 0 and text.startswith(guise, start):
                    found.append((start, start + len(guise)))
        return _without(text, found) if found else text

    def _enter(self, guise: str) -> None:
        uses = self._uses.get(guise, 0)
        self._uses[guise] = uses + 1
        if uses:
            return
        index = self._index
        offset = self._offset(guise)
        window = guise[offset : offset + _WINDOW]
        index[window] = (*index.get(window, ()), (guise, offset))
        if window[0] not in self._rare:
            self._rare += window[0]

    def _offset(self, guise: str) -> int:
        """Where the guise has its rarest character, of those that still have a window after them."""
        starts = guise[: len(guise) - _WINDOW + 1]
        ranked = sorted(range(len(starts[:512])), key=lambda place: _RANK.get(starts[place], 30))
        for place in ranked:
            if len(self._index.get(guise[place : place + _WINDOW], ())) < _CROWDED:
                return place
        return ranked[0]

    def _leave(self, guise: str) -> None:
        self._uses[guise] -= 1
        if self._uses[guise]:
            return
        del self._uses[guise]
        for place in range(len(guise) - _WINDOW + 1):
            window = guise[place : place + _WINDOW]
            entries = self._index.get(window, ())
            if (guise, place) in entries:
                self._index[window] = tuple(entry for entry in entries if entry != (guise, place))
                if not self._index[window]:
                    del self._index[window]
                return


def _without(text: str, found: list[tuple[int, int]]) -> str:
    found.sort()
    kept: list[str] = []
    place = 0
    for start, end in found:
        if start >= place:
            kept += (text[place:start], MARK)
        place = max(place, end)
    kept.append(text[place:])
    return "".join(kept)


def _parts(value: str) -> list[str]:
    """The value without blanks around it, and its longer lines."""
    whole = value.strip()
    if len(whole) < MINIMUM or whole in MARK:
        return []
    parts = [whole]
    if "\n" in whole:
        # Not the frame of a PEM block: it is no secret, and without it the block is not known for a key.
        lines = (line.strip() for line in whole.splitlines())
        parts += [line for line in lines if len(line) >= MINIMUM_LINE and not line.startswith("-----")]
    return parts


def _guises_of(parts: Iterable[str]) -> set[str]:
    return {guise for part in parts for guise in guises(part)}


def guises(value: str) -> set[str]:
    """The forms in which `value` may turn up: plain, escaped, quoted, encoded."""
    escaped = _escaped(value)
    found = {value, *escaped, value.replace("/", "\\/")}
    for once in escaped:  # JSON as text in JSON, which is how arguments of tools travel
        found |= _escaped(once)
    data = value.encode("utf-8", "surrogatepass")
    found.add(repr(data)[2:-1])
    for quoted in (quote(data), quote(data, safe=""), quote_plus(data)):
        found |= {quoted, re.sub("%..", lambda match: match[0].lower(), quoted)}
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        found.add(encode(data).decode())
        for before in range(3):
            # Inside of something longer, only the characters that are made of its own bits alone are the same.
            bits = 8 * before
            aligned = encode(b"\0" * before + data + b"\0\0").decode()
            found.add(aligned[-(-bits // 6) : (bits + 8 * len(data)) // 6])
    return found


def _escaped(text: str) -> set[str]:
    """As in JSON (all characters, or only ASCII ones, or made safe for HTML) and in `repr`, without the quotes."""
    in_json = json.dumps(text)[1:-1]
    wide = json.dumps(text, ensure_ascii=False)[1:-1]
    safe = wide.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    # `repr` escapes an apostrophe only if what it is part of has both kinds of quotes.
    return {in_json, wide, safe, repr(text)[1:-1], repr('"' + text)[2:-1], ascii(text)[1:-1]}
