"""What a log line says: an entry with its moment, and that entry as JSON, as text, and as a signal for backends.

Whatever is logged becomes a line: a value that has no JSON form becomes text, what is too long is cut, and a newline
or a control character inside a message begins no line of its own.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from agentrt.call import RUN
from agentrt.config.sections import LEVELS
from agentrt.telemetry.caps import attribute_value, cap_text, json_within, plain
from agentrt.telemetry.signals import Attributes, LogLine

__all__ = [
    "AGENT",
    "MAX_TEXT",
    "RUN_ID",
    "RUN_LOGGER",
    "Entry",
    "Ids",
    "Redact",
    "RedactAttributes",
    "as_json",
    "as_line",
    "as_text",
    "entry_here",
    "extra_of",
    "level_name",
    "level_number",
    "log_line",
    "message_of",
    "one_line",
    "pairs",
    "printable",
    "redacted",
    "traceback_of",
    "utc",
]

Ids = Callable[[], "tuple[str, str] | None"]
"""The trace and span id of where we are, in hexadecimal; None outside a trace."""

Redact = Callable[[str], str]
RedactAttributes = Callable[[dict[str, Any]], dict[str, Any]]
"""Gets plain values: text, numbers, booleans, None, and lists and tables of these."""

RUN_LOGGER = "agentrt.run"
"""The logger of `ctx.log`."""
_SAY_THEIR_RUN = frozenset((RUN_LOGGER, "agentrt.runs"))
"""Their records have "run", "agent" and "context" as `extra`: they are also written from outside the run."""
RUN_ID = "agentrt.run.id"
AGENT = "gen_ai.agent.name"
"""The attributes of a `LogLine` that say which run of which agent it belongs to."""

MAX_TEXT = 32_768
"""Bytes of a message, of a traceback (whose middle is left out) and of all the context."""
MAX_KEY = 256
BEFORE = 4
"""Redaction sees so many times more than is kept, so that no secret is cut in half at the end of what is kept."""

_NUMBERS: Mapping[str, int] = dict(zip(LEVELS, (10, 20, 30, 40, 50), strict=True))


class Entry(Struct, frozen=True, eq=False):
    """One line to be written. `context` holds plain values only, so nobody can change it later.

    `number`: the level as in the standard library. `forwards`: backends may have it. `is_clean`: it is redacted.
    """

    time_ns: int
    number: int
    logger: str
    message: str
    context: dict[str, Any] = {}
    run: str | None = None
    agent: str | None = None
    trace_id: str | None = None
    span_id: str | None = None
    exception: str | None = None
    forwards: bool = True
    is_clean: bool = False

    @property
    def level(self) -> str:
        return level_name(self.number)


def level_name(number: int) -> str:
    """The level at or below `number`; everything under "info" is "debug"."""
    if number >= 30:
        return "critical" if number >= 50 else "error" if number >= 40 else "warning"
    return "info" if number >= 20 else "debug"


def level_number(name: str) -> int:
    """The standard library's number of one of our levels."""
    return _NUMBERS[name]


def log_line(
    level: str,
    message: str,
    context: Mapping[str, Any] | None = None,
    *,
    logger: str = RUN_LOGGER,
    ids: Ids | None = None,
) -> LogLine:
    """A line as backends get it, of now and here: of this run, agent, trace and span. It is not yet redacted.

    `level`: one of "debug", "info", "warning", "error", "critical".
    """
    return as_line(entry_here(time.time_ns(), level_number(level), logger, message, context or {}, ids=ids))


def entry_here(
    time_ns: int,
    number: int,
    logger: str,
    message: str,
    extra: Mapping[str, Any],
    *,
    exception: str | None = None,
    ids: Ids | None = None,
    forwards: bool = True,
) -> Entry:
    """An entry of the run and span that we are in, unless the record says which run it belongs to."""
    run: object = None
    agent: object = None
    if logger in _SAY_THEIR_RUN and isinstance(inside := extra.get("context"), dict):
        run, agent, extra = extra.get("run"), extra.get("agent"), inside
    elif (current := RUN.get()) is not None:
        run, agent = current.id, getattr(current, "agent_name", None)
    trace_id, span_id = (ids() if ids is not None else None) or (None, None)
    return Entry(
        time_ns,
        number,
        logger,
        cap_text(message, MAX_TEXT * BEFORE),
        plain_context(extra) if extra else {},
        None if run is None else str(run),
        None if agent is None else str(agent),
        trace_id,
        span_id,
        None if exception is None else _middle_cut(exception, MAX_TEXT * BEFORE),
        forwards,
    )


# --- values ----------------------------------------------------------------------------------------------

_LONG = 1 << 63


def plain_context(context: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `context` that holds only what JSON has: text, numbers, booleans, None, lists and tables."""
    made: dict[str, Any] = {}
    for key, value in context.items():
        if type(key) is not str or not key.isascii():
            key = cap_text(str(plain(key)), MAX_KEY)
        kind = type(value)
        if kind is str:
            made[key] = cap_text(value, MAX_TEXT * BEFORE)
        elif kind is bool or value is None or (kind is int and -_LONG <= value < _LONG):
            made[key] = value
        else:
            made[key] = plain(value)
    return made


def _middle_cut(text: str, limit: int) -> str:
    """At most about `limit` bytes. A traceback's end says most: there stands the error."""
    if len(text) <= limit:
        return cap_text(text, limit)
    tail = text[-(limit // 2) :]
    return f"{cap_text(text[: -len(tail)], limit // 2)}\n{tail}".encode("utf-8", "replace").decode()


# --- secrets and size ------------------------------------------------------------------------------------


def redacted(entry: Entry, *, redact: Redact | None, redact_attributes: RedactAttributes | None) -> Entry:
    """`entry` without secrets, and cut to size afterwards: half a secret would not be recognised."""
    message, logger, exception, context = entry.message, entry.logger, entry.exception, entry.context
    if redact_attributes is not None and context:
        context = redact_attributes(context)
    if redact is not None:
        message, logger = redact(message), redact(logger)
        exception = None if exception is None else redact(exception)
    return replace(
        entry,
        message=cap_text(message, MAX_TEXT),
        logger=cap_text(logger, MAX_KEY),
        exception=None if exception is None else _middle_cut(exception, MAX_TEXT),
        context=_within(context) if context else context,
        is_clean=True,
    )


def _within(context: dict[str, Any]) -> dict[str, Any]:
    if len(msgspec.json.encode(context)) <= MAX_TEXT:
        return context
    cut = msgspec.json.decode(json_within(context, MAX_TEXT))
    return cut if isinstance(cut, dict) else {"cut": cut}


# --- forms -----------------------------------------------------------------------------------------------


class _Json(Struct, frozen=True, kw_only=True, omit_defaults=True):
    time: str
    level: str
    service: str
    logger: str
    message: str
    trace_id: str | UnsetType = UNSET
    span_id: str | UnsetType = UNSET
    run: str | UnsetType = UNSET
    agent: str | UnsetType = UNSET
    context: dict[str, Any]
    exception: str | UnsetType = UNSET


def as_json(entry: Entry, service: str) -> bytes:
    """One line of JSON, without the newline that ends it."""
    return msgspec.json.encode(
        _Json(
            time=utc(entry.time_ns),
            level=entry.level,
            service=service,
            logger=entry.logger,
            message=entry.message,
            trace_id=entry.trace_id or UNSET,
            span_id=entry.span_id or UNSET,
            run=entry.run or UNSET,
            agent=entry.agent or UNSET,
            context=entry.context,
            exception=entry.exception or UNSET,
        )
    )


def as_text(entry: Entry, service: str) -> str:
    """`TIME LEVEL service logger: message key=value run=... trace=...`, and the traceback below it, indented."""
    where = {"run": entry.run, "agent": entry.agent, "trace": entry.trace_id, "span": entry.span_id}
    known = {name: value for name, value in where.items() if value is not None}
    head = f"{utc(entry.time_ns)} {entry.level.upper():<8} {service} {one_line(entry.logger)}: "
    text = f"{head}{one_line(entry.message)}{pairs(entry.context)}{pairs(known)}"
    return text if entry.exception is None else f"{text}\n{_indented(entry.exception)}"


def as_line(entry: Entry) -> LogLine:
    """The entry as backends get it; tables in the context become JSON text."""
    attributes: Attributes = {name: attribute_value(value) for name, value in entry.context.items()}
    if entry.run is not None:
        attributes[RUN_ID] = entry.run
    if entry.agent is not None:
        attributes[AGENT] = entry.agent
    return LogLine(
        entry.time_ns,
        entry.level,
        entry.message,
        entry.logger,
        attributes,
        entry.trace_id,
        entry.span_id,
        entry.exception,
    )


def pairs(context: Mapping[str, Any]) -> str:
    """` name=value` for each; values with spaces and tables as JSON."""
    return "".join(f" {one_line(name)}={_value(value)}" for name, value in context.items())


def _value(value: Any) -> str:
    if isinstance(value, str) and value.isascii() and value.isprintable() and value and not set(value) & _ODD:
        return value
    # What JSON leaves as it is may still move a terminal's cursor.
    return one_line(msgspec.json.encode(value).decode())


_ODD = frozenset(" \"'=\\")


def one_line(text: str) -> str:
    """Text without newlines and other control characters: they become `\\n`, `\\x1b`."""
    return text if text.isprintable() else _CONTROLS.sub(_escaped, text)


def printable(text: str) -> str:
    """Several lines, without the characters that would do something to a terminal."""
    return text if text.isprintable() else "\n".join(one_line(line) for line in text.split("\n"))


_CONTROLS = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""All but the tab; also the characters that turn the direction of what follows."""


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def _indented(text: str) -> str:
    return "\n".join(f"    {one_line(line)}" for line in text.rstrip("\n").split("\n"))


def utc(time_ns: int) -> str:
    """`2026-11-24T08:55:01.123456Z`."""
    global _last_second  # one tuple, replaced at once: threads may overwrite each other's, never mix them
    second, rest = divmod(time_ns, 1_000_000_000)
    known, text = _last_second
    if known != second:
        text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        _last_second = (second, text)
    return f"{text}.{rest // 1000:06d}Z"


_last_second: tuple[int, str] = (-1, "")

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def extra_of(record: logging.LogRecord) -> dict[str, Any]:
    """What the caller gave as `extra`."""
    values = record.__dict__
    if values.keys() <= _STANDARD:
        return {}
    return {name: value for name, value in values.items() if name not in _STANDARD}


def message_of(record: logging.LogRecord) -> str:
    """The record's message; also of one whose arguments do not fit, and without these: they may be anything."""
    try:
        return record.getMessage()
    except Exception as error:
        return f"{plain(record.msg)} [its arguments do not fit: {type(error).__name__}]"


def traceback_of(error: BaseException | None, *more: str | None) -> str | None:
    """The traceback, and whatever texts there are, as text; None if there is neither."""
    texts = [text for text in more if text]
    if error is not None:
        import traceback

        try:
            texts.insert(0, "".join(traceback.format_exception(error)))
        except Exception as failure:  # an error whose own methods fail
            texts.insert(0, f"{type(error).__name__} [it cannot be shown: {type(failure).__name__}]")
    return "\n".join(text.rstrip("\n") for text in texts) or None
