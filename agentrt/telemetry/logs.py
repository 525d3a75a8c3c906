"""The logs of a process that is ours: every logger's records, to stderr, files and telemetry backends.

    logs = Logs(config.log, service="shop", ids=ids, redact=redactor.text, redact_attributes=redactor.attributes)
    logs.open()
    ...
    logs.close()

It takes the root of the standard library's loggers over, and loguru, which is the hub as soon as there is more than
lines on stderr: JSON, files, backends, or a program that has loaded loguru itself. Lines on stderr are written at
once; for files and backends a thread redacts, encodes and writes what it finds in a bounded queue. A log never fails
what it is about: what cannot be written is counted, and told once.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal

from agentrt.config.sections import LogOutput, LogSection
from agentrt.telemetry.log_console import Console, Shown, Stderr
from agentrt.telemetry.log_format import (
    Entry,
    Ids,
    Redact,
    RedactAttributes,
    as_json,
    as_line,
    as_text,
    entry_here,
    extra_of,
    level_number,
    log_line,
    message_of,
    redacted,
    traceback_of,
)
from agentrt.telemetry.signals import LogLine

if TYPE_CHECKING:
    from agentrt.telemetry.log_file import LineThread, LogFile
    from agentrt.telemetry.loguru_hub import LoguruHub

__all__ = [
    "Console",
    "Forward",
    "Logs",
    "RootHandler",
    "current",
    "forward_level",
    "log_line",
    "not_forwarded",
]

Forward = Callable[[LogLine], object]
"""Takes each line for the telemetry backends, in the thread of the logs, redacted. It must not block."""

OWN_LOGGERS = ("agentrt.telemetry", "opentelemetry")
"""What these log is about exporting: it is not exported, lest a failing exporter feed itself."""

MAX_TOLD = 1000
"""So many different failures of the logs themselves are told."""
MAX_NESTED = 10
"""So many records that arise while one is being written are written after it."""
MAX_LOGGERS = 10_000
_NEVER = 1000
"""Above every level."""

_not_forwarded: ContextVar[bool] = ContextVar("agentrt_logs_not_forwarded", default=False)


def not_forwarded() -> None:
    """From now on nothing that is logged in this context goes to backends: the first thing that a thread does which
    exports telemetry. Tasks and worker threads that it starts inherit this."""
    _not_forwarded.set(True)


def current() -> Logs | None:
    """The logs that are open in this process."""
    return _open_logs[-1] if _open_logs else None


def forward_level(section: LogSection) -> str:
    """The level from which lines go to telemetry backends."""
    return section.level or "info"


class _Output:
    """One of [log] outputs as it is used; `threshold`: the level from which lines go there."""

    def __init__(self, output: LogOutput, section: LogSection, tell: Callable[[str], object]) -> None:
        self.level = level_number(output.level or section.level or ("info" if output.is_file else "warning"))
        self.threshold = self.level
        self.format: Literal["text", "json"] | None = output.format or section.format
        self.file: LogFile | None = None
        if output.is_file:
            from agentrt.telemetry.log_file import LogFile

            self.file = LogFile(output.to, max_bytes=output.max_bytes, keep=output.keep, tell=tell)
            if self.format is None:
                self.format = "json" if output.to.endswith((".json", ".jsonl")) else "text"

    def encode(self, entry: Entry, service: str) -> bytes:
        if self.format == "json":
            return as_json(entry, service) + b"\n"
        return as_text(entry, service).encode("utf-8", "backslashreplace") + b"\n"


class _Here(threading.local):
    """What this thread is doing: `nested` is a list while it handles a record, `writes` in the logs' own thread."""

    nested: list[logging.LogRecord] | None = None
    writes: bool = False


class Logs:
    """Takes the logging of this process over, from `open` to `close`; there is one at a time.

    `section` ([log]): levels, format, outputs. `console`: what stderr is (plain text by default). `ids`: the current
    trace and span. `redact`, `redact_attributes`: take secrets out of every text and every context before it leaves.
    These and `service` may be set later; `forward_to` connects the telemetry backends.
    """

    def __init__(
        self,
        section: LogSection | None = None,
        *,
        service: str = "agentrt",
        console: Console | None = None,
        ids: Ids | None = None,
        redact: Redact | None = None,
        redact_attributes: RedactAttributes | None = None,
    ) -> None:
        self.section = LogSection() if section is None else section
        self.service = service
        self.ids = ids
        self.redact = redact
        self.redact_attributes = redact_attributes
        self._forward: Forward | None = None
        self._outputs = [_Output(output, self.section, self._tell) for output in self.section.sinks]
        self._files = [(output.file, output) for output in self._outputs if output.file is not None]
        self._stderr = next((output for output in self._outputs if output.file is None), None)
        stderr = self._stderr
        self._shown = Shown(
            Stderr() if console is None else console,
            format=None if stderr is None else stderr.format,
            with_time=stderr is not None and stderr.level <= logging.INFO,
        )
        self._named = {name: level_number(level) for name, level in self.section.levels.items()}
        self._levels: dict[str, int | None] = {}
        self._told: set[str] = set()
        self._thread: LineThread[Entry] | None = None
        self._told_dropped = 0
        self._hub: LoguruHub | None = None
        self._handler = RootHandler(self)
        self._before: list[tuple[logging.Logger, int]] = []
        self._here = _Here()
        self._lock = threading.RLock()
        self._lowest = _NEVER
        self._forward_number = level_number(forward_level(self.section))

    # --- from open to close ----------------------------------------------------------------------------

    def open(self) -> None:
        """Take over. A file that cannot be opened is told, and tried again with its lines."""
        root = logging.getLogger()
        for handler in root.handlers[:]:
            if isinstance(handler, RootHandler):
                handler.logs.close()
        for file, _ in self._files:
            file.open()
        loggers = [root, *(logging.getLogger(name) for name in self._named)]
        self._before = [(logger, logger.level) for logger in loggers]
        for logger, number in zip(loggers[1:], self._named.values(), strict=True):
            logger.setLevel(number)
        self._arrange()
        root.addHandler(self._handler)
        _open_logs.append(self)

    def forward_to(self, forward: Forward | None) -> None:
        """From now on each line from `forward_level` up also goes to `forward`; None ends that."""
        self._forward = forward
        if self.is_open:
            self._arrange()

    def adopt_loguru(self) -> None:
        """Be loguru's sink if the program has loaded it; for when the program has been imported."""
        if self.is_open and self._hub is None and "loguru" in sys.modules:
            self._enter_hub()

    def flush(self, seconds: float = 1.0) -> bool:
        """Wait until files and backends have what was logged so far, at most `seconds`; False if they have not."""
        return self._thread is None or bool(self._thread.flush(seconds))

    def close(self, seconds: float = 1.0) -> None:
        """Write what waits, within `seconds`, say what was lost, and give back what `open` took."""
        if not self.is_open:
            return
        _open_logs.remove(self)
        logging.getLogger().removeHandler(self._handler)
        for logger, level in self._before:
            logger.setLevel(level)
        if self._hub is not None:
            self._hub.close()
            self._hub = None
        waiting = 0
        if self._thread is not None and not self._thread.close(seconds):
            waiting = len(self._thread)
        else:
            for file, _ in self._files:
                file.close()
        lost = self.dropped + waiting + sum(self.lost.values())
        if lost:
            self._tell(f"{lost} log lines were lost: they could not be written, or not fast enough")

    @property
    def is_open(self) -> bool:
        return self in _open_logs

    @property
    def is_plain(self) -> bool:
        """Nothing but short lines for people on stderr."""
        shows_text = self._stderr is not None and self._stderr.format is None
        return shows_text and not self._files and self._forward is None

    @property
    def dropped(self) -> int:
        """Lines that no file and no backend has because the queue was full."""
        return 0 if self._thread is None else int(self._thread.dropped)

    @property
    def lost(self) -> dict[str, int]:
        """Lines that could not be written, by file."""
        return {str(file.path): file.lost for file, _ in self._files}

    def _arrange(self) -> None:
        """Set levels by who listens, and have loguru as the hub if there is more than lines for people."""
        levels = [output.level for output in self._outputs]
        if self._forward is not None:
            levels.append(self._forward_number)
        lowest = min(levels, default=_NEVER)
        for output in self._outputs:
            # What passes the loggers goes to the most talkative outputs, also if a program has set a logger lower.
            output.threshold = 0 if output.level == lowest else output.level
        self._lowest = lowest
        logging.getLogger().setLevel(lowest)
        if (self._files or self._forward is not None) and self._thread is None:
            from agentrt.telemetry.log_file import LineThread

            self._thread = LineThread(self._write)
        formats = any(output.format == "json" for output in self._outputs)
        if self._hub is not None:
            self._hub.close()
            self._enter_hub()
        elif self._files or self._forward is not None or formats:
            self._enter_hub()

    def _enter_hub(self) -> None:
        from agentrt.telemetry.loguru_hub import LoguruHub

        number = min([self._lowest, *self._named.values()])
        try:
            self._hub = LoguruHub(self._from_loguru, number=number, wants=self._wants)
        except LookupError:
            self._hub = None  # it is the program's: standard loggers come to us directly

    # --- levels ----------------------------------------------------------------------------------------

    def _level_of(self, logger: str) -> int | None:
        """The level in [log.levels] of this logger or of the nearest one above it."""
        if not self._named:
            return None
        try:
            return self._levels[logger]
        except KeyError:
            pass
        name, found = logger, self._named.get(logger)
        while found is None and "." in name:
            name = name.rpartition(".")[0]
            found = self._named.get(name)
        if len(self._levels) < MAX_LOGGERS:
            self._levels[logger] = found
        return found

    def _wants(self, logger: str, number: int) -> bool:
        named = self._level_of(logger)
        return number >= (self._lowest if named is None else named)

    def _reaches(self, threshold: int, entry: Entry) -> bool:
        return entry.number >= threshold or self._level_of(entry.logger) is not None

    # --- what comes in ---------------------------------------------------------------------------------

    def take(self, record: logging.LogRecord) -> None:
        """A record of the standard library. Never raises.

        What is logged while this thread handles one (a context value whose `__str__` logs, a finalizer) comes after
        it, so that no lock is taken twice and nothing calls itself without end.
        """
        here = self._here
        if here.nested is not None:
            if len(here.nested) < MAX_NESTED:
                here.nested.append(record)
            return
        nested: list[logging.LogRecord] = []
        here.nested = nested
        try:
            self._take(record)
            for late in nested:
                self._take(late)
        except Exception as error:
            self._tell_once(f"a log record of {record.name} could not be written: {type(error).__name__}")
        finally:
            here.nested = None

    def _take(self, record: logging.LogRecord) -> None:
        message = message_of(record)
        hub = self._hub
        if hub is not None and not self._here.writes:
            try:
                if hub.pass_on(record, message):
                    return
            except Exception as error:  # of a sink that the program has added
                self._tell_once(f"a loguru sink failed: {type(error).__name__}")
                return
            self._hub = None  # loguru has another owner now
        self._take_directly(record, message)

    def _take_directly(self, record: logging.LogRecord, message: str) -> None:
        error = record.exc_info[1] if record.exc_info else None
        exc_text = record.exc_text if error is None else None
        self._give(
            int(record.created * 1e9),
            record.levelno,
            record.name,
            message,
            extra_of(record),
            traceback_of(error, exc_text, record.stack_info),
        )

    def _from_loguru(self, made: dict[str, Any]) -> None:
        """A record that has come through loguru, whoever made it. In loguru's lock: nothing may go there again."""
        here = self._here
        outermost = here.nested is None
        if outermost:
            here.nested = []
        try:
            error = made["exception"].value if made["exception"] is not None else None
            self._give(
                round(made["time"].timestamp() * 1e6) * 1000,
                made["level"].no,
                made["name"] or "",
                made["message"],
                made["extra"],
                traceback_of(error),
            )
            for late in here.nested or () if outermost else ():
                self._take_directly(late, message_of(late))
        except Exception as error:
            self._tell_once(f"a log record of {made['name']} could not be written: {type(error).__name__}")
        finally:
            if outermost:
                here.nested = None

    def _give(
        self,
        time_ns: int,
        number: int,
        logger: str,
        message: str,
        extra: dict[str, Any],
        exception: str | None,
    ) -> None:
        """Write to stderr, and leave the rest to the thread."""
        forwards = self._forward is not None and not _not_forwarded.get() and not _is_own(logger)
        entry = entry_here(
            time_ns, number, logger, message, extra, exception=exception, ids=self.ids, forwards=forwards
        )
        stderr = self._stderr
        with self._lock:
            if stderr is not None and self._reaches(stderr.threshold, entry):
                entry = self._clean(entry)
                self._shown.show(entry, self.service)
            if self._thread is not None and not self._here.writes and self._goes_on(entry):
                size = 300 + len(message) + (0 if exception is None else len(exception))
                self._thread.put(entry, size)

    def _goes_on(self, entry: Entry) -> bool:
        """Whether a file or a backend wants it."""
        if entry.forwards and self._reaches(self._forward_number, entry):
            return True
        return any(self._reaches(output.threshold, entry) for _, output in self._files)

    # --- what goes out ---------------------------------------------------------------------------------

    def _clean(self, entry: Entry) -> Entry:
        if entry.is_clean:
            return entry
        try:
            return redacted(entry, redact=self.redact, redact_attributes=self.redact_attributes)
        except Exception as error:
            self._tell_once(f"log lines are left out: the redaction failed with {type(error).__name__}")
            left_out = "[left out: it could not be redacted]"
            return Entry(
                entry.time_ns, entry.number, entry.logger, left_out, forwards=entry.forwards, is_clean=True
            )

    def _write(self, entries: list[Entry]) -> None:
        """In the thread: lines to files and backends."""
        self._here.writes = True
        dropped = self.dropped
        if dropped > self._told_dropped:
            lost = f"{dropped - self._told_dropped} log lines were lost: they came faster than they could be written"
            entries = [*entries, _own_entry(lost)]
            self._told_dropped = dropped
        clean = [self._clean(entry) for entry in entries]
        for file, output in self._files:
            reached = [entry for entry in clean if self._reaches(output.threshold, entry)]
            if reached:
                file.write([self._encoded(output, entry) for entry in reached])
        forward = self._forward
        if forward is not None:
            for entry in clean:
                if entry.forwards and self._reaches(self._forward_number, entry):
                    self._hand_over(forward, entry)

    def _encoded(self, output: _Output, entry: Entry) -> bytes:
        try:
            return output.encode(entry, self.service)
        except Exception as error:  # a redaction that has put something else than plain values there
            self._tell_once(f"log lines have no context: {type(error).__name__} while encoding")
            bare = Entry(entry.time_ns, entry.number, entry.logger, entry.message, is_clean=True)
            return output.encode(bare, self.service)

    def _hand_over(self, forward: Forward, entry: Entry) -> None:
        try:
            forward(as_line(entry))
        except Exception as error:
            self._tell_once(f"log lines did not reach telemetry: {type(error).__name__}")

    def _tell(self, text: str) -> None:
        """Say on stderr, in its format, what concerns the logs themselves."""
        with self._lock:
            self._shown.show(_own_entry(text), self.service)

    def _tell_once(self, text: str) -> None:
        if text not in self._told and len(self._told) < MAX_TOLD:
            self._told.add(text)
            self._tell(text)


class RootHandler(logging.Handler):
    """At the root of the standard loggers. It takes no lock: `Logs` does, only while it writes."""

    def __init__(self, logs: Logs) -> None:
        super().__init__()
        self.logs = logs

    def handle(self, record: logging.LogRecord) -> bool:
        passed = self.filter(record)
        if passed:
            self.emit(passed if isinstance(passed, logging.LogRecord) else record)
        return bool(passed)

    def emit(self, record: logging.LogRecord) -> None:
        self.logs.take(record)


def _is_own(logger: str) -> bool:
    return any(logger == name or logger.startswith(f"{name}.") for name in OWN_LOGGERS)


def _own_entry(text: str) -> Entry:
    return Entry(time.time_ns(), logging.WARNING, "agentrt.log", text, is_clean=True)


_open_logs: list[Logs] = []


def _after_fork() -> None:
    """Another thread of the parent may have held the lock: nobody would ever give it back."""
    for logs in _open_logs:
        logs._lock = threading.RLock()
        logs._here = _Here()


os.register_at_fork(after_in_child=_after_fork)
