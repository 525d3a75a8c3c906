"""The lines of an audit log, as docs/audit.md has them.

Each is one JSON object with its fields in the order of the classes below, without blanks; a field that says nothing
is left out. `type` stands first; `prev` (the hash of the line before), for a checkpoint `signature`, and `hash` stand
last. `hash` is SHA-256 over the line's bytes up to `,"hash":`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
from msgspec import Struct

__all__ = [
    "NOBODY",
    "NOTHING",
    "NOT_A_LINE",
    "Checkpoint",
    "Closed",
    "Decision",
    "FileBegan",
    "Gap",
    "Line",
    "Opened",
    "Outcome",
    "Phase",
    "Record",
    "Recovered",
    "Who",
    "as_json",
    "decode",
    "encode",
    "now",
    "printable",
]

NOT_A_LINE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding raises for what is no line of a log: an attacker chooses its bytes."""

FORMAT = 1
"""The version of the format; it stands in the first line of each file."""

Phase = Literal["intent", "outcome"]
Decision = Literal["allowed", "denied"]
Outcome = Literal["ok", "failed", "cancelled", "unknown"]


class _Line(Struct, tag_field="type", kw_only=True, omit_defaults=True):
    """`seq`: 1 for the first line of a log, and one more for each. `time`: UTC, RFC 3339."""

    seq: int = -1
    time: str


class Record(_Line, tag="record", kw_only=True, omit_defaults=True):
    """One operation, before it begins (`phase` "intent") or after it has ended ("outcome").

    `intent`: the seq of an outcome's intent; 0 if that could not be written; left out if there never was one (what is
    recorded once, after the fact). `arguments_hmac`: HMAC-SHA256 of the arguments with the audit key, in hex;
    `arguments`: those themselves, redacted, if the log is told to keep them. `duration`: seconds. `parent`: the run
    that started this one. `details`: what belongs to an action of its own, in few words.
    """

    phase: Phase
    action: str
    resource: str
    actor: str
    on_behalf_of: str | None = None
    session: str | None = None
    trace: str | None = None
    run: str | None = None
    parent: str | None = None
    arguments_hmac: str | None = None
    arguments: str | None = None
    decision: Decision
    intent: int | None = None
    outcome: Outcome | None = None
    error: str | None = None
    message: str | None = None
    duration: float | None = None
    details: dict[str, str] | None = None
    prev: str = ""


class FileBegan(_Line, tag="file", kw_only=True, omit_defaults=True):
    """The first line of each file. `log`: the id of the log, the same in all of its files. `number`: 1 for the first
    file. `checkpoint`, `checkpoint_hash`: the last checkpoint before this file."""

    format: int
    log: str
    number: int
    checkpoint: int = 0
    checkpoint_hash: str | None = None
    prev: str = ""


class Opened(_Line, tag="opened", kw_only=True, omit_defaults=True):
    """A process has opened the log. `hash_key`: the id of the key of `arguments_hmac`; `signing_key`: of the
    checkpoints."""

    process: int
    host: str
    version: str
    arguments: str
    strict: bool
    hash_key: str | None = None
    signing_key: str | None = None
    prev: str = ""


class Checkpoint(_Line, tag="checkpoint", kw_only=True, omit_defaults=True):
    """Everything before this line, signed. `number`: 1 for a log's first checkpoint, and one more for each. `count`:
    the lines before this one. `next_within`: the next one follows at most so many lines later. `previous`: the `hash`
    of the checkpoint before. `key`: the id of the signing key. `signature`: ed25519, in base64, over `SIGNED` and the
    line's bytes up to `,"signature":`, so over `prev` too."""

    log: str
    number: int
    count: int
    next_within: int = 0
    previous: str | None = None
    key: str
    prev: str = ""
    signature: str = ""


class Gap(_Line, tag="gap", kw_only=True, omit_defaults=True):
    """The log could not be written from `since` on. `lost`: operations that went on without a record; `refused`: those
    that were not begun because of it."""

    since: str
    lost: int = 0
    refused: int = 0
    reason: str
    prev: str = ""


class Recovered(_Line, tag="recovered", kw_only=True, omit_defaults=True):
    """What a process that was killed had left of a line was cut off when the log was opened. `bytes`, `sha256`: of what
    was cut; `text`: its beginning."""

    bytes: int
    sha256: str
    text: str
    prev: str = ""


class Closed(_Line, tag="closed", kw_only=True, omit_defaults=True):
    """The process that had opened the log closed it as it should."""

    prev: str = ""


class Who(Struct, frozen=True, kw_only=True):
    """Who does something, and in what: the fields of a `Record` of these names."""

    actor: str | None = None
    session: str | None = None
    run: str | None = None
    parent: str | None = None
    trace: str | None = None


NOBODY = Who()
NOTHING: Any = object()
"""No arguments, which is not the same as None."""

Line = Record | FileBegan | Opened | Checkpoint | Gap | Recovered | Closed

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line, strict=True)


def encode(line: Line) -> bytes:
    """The JSON object without its closing brace, for what follows."""
    return _encoder.encode(line)[:-1]


def decode(line: bytes) -> Line:
    """The line's record. Raises one of `NOT_A_LINE`."""
    return _decoder.decode(line)


def now() -> str:
    """The time, in UTC, as RFC 3339 with microseconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def printable(text: str) -> str:
    """`text` as it can stand in UTF-8: a lone surrogate becomes "?"."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def as_json(value: Any) -> bytes:
    """`value` in JSON with sorted keys, whatever it is: what JSON does not know is named by its type."""
    try:
        return _arguments.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError):
        from agentrt.telemetry.caps import plain

        return _arguments.encode(plain(value))


def _type_name(value: Any) -> str:
    return f"<{type(value).__qualname__}>"


_arguments = msgspec.json.Encoder(enc_hook=_type_name, order="sorted")
