"""Size caps: what any Python value becomes as an attribute, and how much of it is kept.

Redaction comes before these cut (`Redactor.attributes`, then `cap_attributes`; `json_within(redactor.value(v), n)`):
of a secret that was cut in two the half that is left would no longer be found. Sizes are bytes of UTF-8.
"""

from __future__ import annotations

import base64
import dataclasses
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from enum import Enum
from itertools import islice
from typing import Any

import msgspec
from msgspec import Struct

from agentrt.telemetry.signals import Attributes

__all__ = ["DROPPED", "JSON_KEYS", "attribute_value", "cap_attributes", "cap_text", "json_within", "plain"]

JSON_KEYS = frozenset(
    (
        "gen_ai.input.messages",
        "gen_ai.output.messages",
        "gen_ai.system_instructions",
        "gen_ai.tool.call.arguments",
        "gen_ai.tool.call.result",
        "gen_ai.tool.definitions",
    )
)
"""Attributes whose text is JSON, and stays so when it is cut."""

DROPPED = "agentrt.dropped_attributes"
"""The attribute with the number of those that were too many."""

VALUE_BYTES = 32_768
UNCAPPED_BYTES = 4 * VALUE_BYTES
"""What `attribute_value` keeps of a text. So much more than the cap that what it cuts through goes with the cap, after
redaction."""
KEY_BYTES = 256
SMALLEST = 64
"""The least that `json_within` can be asked for: room for a mark."""

_DEPTH = 32
_ITEMS = 10_000  # of one list or mapping
_NODES = 20_000  # of one value
_SHORT = 256  # bytes to which texts are cut before items are dropped
_LONG = 1 << 63

Plain = dict[str, Any] | list[Any] | str | int | float | bool | None


def cap_text(text: str, limit: int) -> str:
    """At most `limit` bytes of `text`: cut between characters, ending in a mark such as "…[cut: 120 KB]", which says
    how much is gone. Lone surrogates, which no backend can encode, become "?".

    For text that is redacted already: a secret across the cut would be half shown.
    """
    if len(text) <= limit and text.isascii():
        return text
    data = text.encode("utf-8", "replace")
    if len(data) <= limit:
        return data.decode()
    mark = _mark(len(data) - limit).encode()
    if limit < 2 * len(mark):
        return data[: max(limit, 0)].decode("utf-8", "ignore")
    kept = data[: limit - len(mark) - 2].decode(
        "utf-8", "ignore"
    )  # the number may get longer by a digit or two
    return kept + _mark(len(data) - len(kept.encode()))


def cap_attributes(
    attributes: Mapping[str, Any], *, value_bytes: int = VALUE_BYTES, count: int = 128
) -> Attributes:
    """The attributes, each of at most `value_bytes` (32,768), and the first `count` (128) of them; the same object if
    they are small. With more, `agentrt.dropped_attributes` says how many went.

    Text is cut with a mark. JSON stays JSON under the keys of `JSON_KEYS`, long lists lose their middle.
    For attributes that are redacted already: a secret across the cut would be half shown.
    """
    if isinstance(attributes, dict) and len(attributes) <= count and _are_small(attributes, value_bytes):
        return attributes
    capped: Attributes = {}
    changed = False
    dropped = 0
    before = attributes.get(DROPPED, 0)
    for key, value in attributes.items():
        if key == DROPPED:
            continue
        name = key if len(key) <= KEY_BYTES and key.isascii() else cap_text(key, KEY_BYTES)
        if len(capped) == count or name in capped:
            dropped += 1
            continue
        kept = _text(key, value, value_bytes) if type(value) is str else _other(value, value_bytes)
        capped[name] = kept
        changed = changed or kept is not value or name != key
    if isinstance(attributes, dict) and not dropped and not changed:
        return attributes
    if dropped or before:
        capped[DROPPED] = dropped + before
    return capped


def json_within(value: object, limit: int) -> str:
    """`value` as JSON of at most `limit` bytes (at least 64). Never raises: what JSON has no word for becomes text.

    If it is too long, the longest texts in it are cut, then lists and mappings lose their middle; marks say so.
    For values that are redacted already (`Redactor.value`): a secret across a cut would be half shown.
    """
    limit = max(limit, SMALLEST)
    tree = _fit(plain(value), limit)
    return _json(tree)


def attribute_value(value: object) -> bool | int | float | str | list[Any]:
    """`value` as a legal attribute. Never raises.

    Text, bool, int, float and lists of one of these stay; everything else becomes text: JSON if it has parts. So does
    an int of more than 64 bits. Text beyond 128 KB is cut, so that redaction and then the cap (32 KB) come after.
    """
    kind = type(value)
    if kind is str:
        return cap_text(value, UNCAPPED_BYTES)  # type: ignore[arg-type]
    tree = plain(value)
    if tree is None:
        return "None"
    if isinstance(tree, dict):
        return json_within(tree, UNCAPPED_BYTES)
    if isinstance(tree, list):
        kinds = {type(item) for item in tree}
        if kinds == {int, float}:
            return [float(item) for item in tree]
        if len(kinds) > 1 or not kinds <= {bool, int, float, str}:
            return json_within(tree, UNCAPPED_BYTES)
        fitted = _other(tree, UNCAPPED_BYTES)
        return fitted if isinstance(fitted, str) else list(fitted)
    return cap_text(tree, UNCAPPED_BYTES) if isinstance(tree, str) else tree


# --- any value as plain ones ---------------------------------------------------------------------------


def plain(value: object) -> Plain:
    """`value` as dicts with text keys, lists, text, bool, int, float and None; never raises.

    Objects with fields (dataclasses, msgspec's, pydantic's) become dicts, sets lists, an error "Type: message", bytes
    text (base64 if they are no UTF-8), NaN, infinities and ints beyond 64 bits text, the rest what `repr` says, at most
    128 KB of it. A value inside itself, more than 32 levels or 20,000 parts, and the middle of more than 10,000 items
    become marks.
    """
    return _Plain().of(value, 0)


class _Plain:
    __slots__ = ("_inside", "_left")

    def __init__(self) -> None:
        self._inside: set[int] = set()
        self._left = _NODES

    def of(self, value: Any, depth: int) -> Plain:
        try:
            return self._of(value, depth)
        except Exception:
            # A property, a proxy or an iteration that fails: what telemetry looks at need not work.
            return _shown(value)

    def _of(self, value: Any, depth: int) -> Plain:
        kind = type(value)
        if kind is str:
            return _encodable(value)
        if kind is bool or value is None or (kind is int and -_LONG <= value < _LONG):
            scalar: bool | int | None = value
            return scalar
        if kind is dict or kind is list:
            return self._nested(value, value, depth)
        if isinstance(value, Enum):
            return self.of(value.value, depth)
        if isinstance(value, str):
            return _encodable(str.__str__(value))
        if isinstance(value, numbers.Integral):
            number = int(value)
            return number if -_LONG <= number < _LONG else _digits(number)
        if isinstance(value, numbers.Real) and not isinstance(value, numbers.Rational):
            real = float(value)
            return real if math.isfinite(real) else str(real)
        if isinstance(value, bytes | bytearray | memoryview):
            return _decoded(bytes(value))
        if isinstance(value, BaseException):
            return _encodable(f"{kind.__name__}: {value}")
        parts = _parts(value)
        return _shown(value) if parts is None else self._nested(value, parts, depth)

    def _nested(self, value: object, parts: Mapping[Any, Any] | Iterable[Any], depth: int) -> Plain:
        if id(value) in self._inside:
            return "[inside itself]"
        if depth >= _DEPTH or self._left <= 0:
            return "…[deeper]" if depth >= _DEPTH else "…[more]"
        self._inside.add(id(value))
        try:
            return self._tree(parts, depth + 1)
        finally:
            self._inside.discard(id(value))

    def _tree(self, parts: Mapping[Any, Any] | Iterable[Any], depth: int) -> Plain:
        count = len(parts)  # type: ignore[arg-type]  # of `_parts`
        self._left -= min(count, _ITEMS)
        gone = count - _ITEMS
        if isinstance(parts, Mapping):
            fields: dict[str, Any] = {
                _key(key): self.of(value, depth) for key, value in islice(parts.items(), _ITEMS)
            }
            if gone > 0:
                fields["…"] = f"[{gone} more cut]"
            return fields
        if gone <= 0:
            return [self.of(item, depth) for item in parts]
        half = _ITEMS // 2
        first = [self.of(item, depth) for item in islice(parts, half)]
        last = [self.of(item, depth) for item in islice(parts, count - half, None)]
        return [*first, _gap(first, gone), *last]


def _parts(value: Any) -> Mapping[Any, Any] | Sequence[Any] | AbstractSet[Any] | None:
    """What it consists of, or None."""
    if isinstance(value, Mapping | list | tuple | AbstractSet):
        names = getattr(value, "_fields", None)
        return dict(zip(names, value, strict=True)) if names and isinstance(value, tuple) else value
    if isinstance(value, type):
        return None
    if isinstance(value, Struct):
        return {name: getattr(value, name) for name in value.__struct_fields__}
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.repr}
    if isinstance(fields := getattr(type(value), "model_fields", None), Mapping):  # pydantic's
        return {str(name): getattr(value, str(name)) for name, field in fields.items() if field.repr}
    if isinstance(value, Sequence):  # deque and others; not range-like lazy ones, which have no `append`
        return list(islice(value, _ITEMS)) if hasattr(value, "append") else None
    return None


def _key(key: object) -> str:
    if type(key) is str:
        return _encodable(key)
    return _encodable(str.__str__(key)) if isinstance(key, str) else _shown(key)


def _shown(value: object) -> str:
    """What `repr` says, bounded; of an object that cannot even say that, its class."""
    try:
        return cap_text(repr(value), UNCAPPED_BYTES)
    except Exception as error:
        return f"<{type(value).__name__}, whose repr raises {type(error).__name__}>"


def _digits(number: int) -> str:
    # Python refuses to write very long ones in decimal.
    return str(number) if number.bit_length() < 4096 else f"{number:#x}"


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return base64.b64encode(data).decode()


def _encodable(text: str) -> str:
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def _are_small(attributes: Attributes, limit: int) -> bool:
    """The quick look, which tells of most that nothing need be cut."""
    for key, value in attributes.items():
        kind = type(value)
        if kind is str:
            if len(value) > limit or not value.isascii():
                return False
        elif kind is int:
            if not -_LONG <= value < _LONG:
                return False
        elif kind is not bool and kind is not float:
            return False
        if len(key) > KEY_BYTES or not key.isascii():
            return False
    return True


# --- what fits -----------------------------------------------------------------------------------------


def _text(key: str, value: str, limit: int) -> str:
    data = value.encode("utf-8", "replace")
    if len(data) <= limit:
        text = data.decode()
        return value if text == value else text
    if key in JSON_KEYS and value.lstrip()[:1] in ("{", "["):
        try:
            return json_within(msgspec.json.decode(data), limit)
        except (msgspec.DecodeError, RecursionError):
            pass  # it only looked like JSON
    return cap_text(value, limit)


def _other(value: Any, limit: int) -> Any:
    """An attribute that is neither text, bool nor float, within `limit`."""
    kind = type(value)
    if kind is bool or kind is float:
        return value
    if kind is int:
        return value if -_LONG <= value < _LONG else _digits(value)
    if kind is not list:
        value = attribute_value(value)
        if isinstance(value, str):
            return cap_text(value, limit)
        if not isinstance(value, list):
            return value
    kinds = {type(item) for item in value}
    if len(kinds) > 1 or not kinds <= {bool, int, float, str}:
        return json_within(value, limit)
    if kinds != {str}:
        # A number has at most 24 characters; there is no mark among numbers.
        return value if len(value) * 25 <= limit else _numbers(value, limit)
    size = sum(len(item) for item in value) * 4 + 4 * len(value)
    if size <= limit and all(item.isascii() for item in value):
        return value
    fitted = _fit(plain(value), max(limit, SMALLEST))
    return value if fitted == value else fitted


def _numbers(value: list[Any], limit: int) -> Any:
    return value if len(_json(plain(value))) <= limit else json_within(value, limit)


def _fit(tree: Plain, limit: int) -> Plain:
    """`tree`, shortened until its JSON has at most `limit` bytes (at least `SMALLEST`)."""
    size = len(_encoded(tree))
    if size <= limit:
        return tree
    lengths = sorted(_lengths(tree))
    if isinstance(tree, str):
        return _cut_json_text(tree, limit)
    most = _level(lengths, limit - (size - sum(lengths)))
    while most >= _SHORT:
        cut = _shortened(tree, most, _NODES)
        if len(_encoded(cut)) <= limit:
            return cut
        most = most * 7 // 8
    for most in (_SHORT, _SHORT // 4, 24):
        items = max(min(_ITEMS, limit // 4), 2)  # more could not fit
        while items > 1:
            cut = _shortened(tree, most, items)
            if len(_encoded(cut)) <= limit:
                return cut
            items = items * 3 // 4
    return _cut_json_text(_json(_shortened(tree, _SHORT, 16)), limit)


def _level(lengths: Sequence[int], room: int) -> int:
    """The length to which the longest texts must be cut for all of them, with marks, to fit into `room`.

    `lengths`: sorted, shortest first.
    """
    for place, length in enumerate(lengths):
        left = len(lengths) - place
        if left * length > room:
            return room // left
        room -= length
    return lengths[-1] if lengths else 0


def _lengths(tree: Plain) -> Iterable[int]:
    """The bytes of each text in it as JSON, without the quotes. Keys do not count: they stay."""
    if isinstance(tree, str):
        yield len(_encoded(tree)) - 2
    elif isinstance(tree, list):
        for item in tree:
            yield from _lengths(item)
    elif isinstance(tree, dict):
        for item in tree.values():
            yield from _lengths(item)


def _shortened(tree: Plain, most: int, items: int) -> Plain:
    """With texts of at most `most` bytes as JSON, and of each list and mapping at most `items` and a mark."""
    if isinstance(tree, str):
        return tree if len(tree) * 6 <= most else _cut_json_text(tree, most + 2)
    if isinstance(tree, list):
        gone = len(tree) - items
        if gone <= 0:
            return [_shortened(item, most, items) for item in tree]
        head = items - items // 2
        first = [_shortened(item, most, items) for item in tree[:head]]
        last = [_shortened(item, most, items) for item in tree[len(tree) - items // 2 :]]
        return [*first, _gap(tree, gone), *last]
    if isinstance(tree, dict):
        fields = {key: _shortened(item, most, items) for key, item in islice(tree.items(), items)}
        if len(tree) > items:
            fields["…"] = f"[{len(tree) - items} more cut]"
        return fields
    return tree


def _cut_json_text(text: str, limit: int) -> str:
    """At most `limit` bytes of JSON, quotes included: escapes make some characters six bytes long."""
    size = len(_encoded(text))
    keep = limit - 2
    while size > limit:
        cut = cap_text(text, keep)
        size = len(_encoded(cut))
        if size <= limit:
            return cut
        keep = max(min(keep - 1, keep * (limit - 2) // size), 0)
    return text


def _gap(items: Sequence[Any], gone: int) -> Plain:
    """Stands for items that were cut; a mapping among mappings, for readers that look into each."""
    mark = f"[{gone} cut]"
    return {"…": mark} if items and isinstance(items[0], dict) else f"…{mark}"


def _encoded(tree: Plain) -> bytes:
    return msgspec.json.encode(tree)


def _json(tree: Plain) -> str:
    return msgspec.json.encode(tree).decode()


def _mark(size: int) -> str:
    if size < 1024:
        return f"…[cut: {size} bytes]"
    if size < 1024 * 1024:
        return f"…[cut: {size / 1024:.0f} KB]"
    return f"…[cut: {size / 1024 / 1024:.1f} MB]"
