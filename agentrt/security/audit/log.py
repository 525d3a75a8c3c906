"""The audit log: what was done, by whom, and how it ended, so that changing it afterwards shows."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from agentrt import options
from agentrt.errors import AgentrtError, ConfigError, Refused
from agentrt.security.audit.acting import behind
from agentrt.security.audit.errors import AuditUnavailable
from agentrt.security.audit.key_sources import keys_of
from agentrt.security.audit.log_file import LOCK_SECONDS, LogFile
from agentrt.security.audit.operation import Operation, judged, texts
from agentrt.security.audit.record import NOBODY, NOTHING, Phase, Record, Who, as_json, now
from agentrt.security.audit.segments import expanded, of_commands
from agentrt.security.audit.sinks import Sinks
from agentrt.security.audit.tickets import Keys, Policy, Statistics, Ticket
from agentrt.security.audit.writer import Writer
from agentrt.telemetry.caps import json_within
from agentrt.telemetry.redaction import Redactor

__all__ = ["ARGUMENTS", "AuditLog"]

logger = logging.getLogger("agentrt.audit")

ARGUMENTS = ("hash", "redacted", "none")
CLOSE_SECONDS = 5.0
MESSAGE = 500
"""Characters of an error's message that are kept."""
REDACTED = 4096
"""Bytes of redacted arguments that are kept."""
LARGE = 4096
"""Bytes of arguments that are hashed at once, rather than kept until the record is written."""

COMMAND_SECONDS = 10.0
"""So long a command waits for another one."""

WAIT_SECONDS = 10.0
"""So long a disk that hangs is waited for; then the operation is refused."""

_OPENING: ContextVar[bool] = ContextVar("agentrt_audit_opening", default=False)
"""What opens the log reads its keys, and must not wait for the log to record that."""


class AuditLog:
    """Writes an audit log; any thread and task may use it.

    `path`: the file; `{pid}` in it is the process's id, for hosts that fork. `strict` (False): an operation waits until
    its intent is on the disk, and is refused if it cannot be. `on_failure`: while the log cannot be written,
    operations are refused ("refuse", the default if `strict`) or go on ("warn", else the default). `key` (bytes, or a
    `secret://` reference or file that has them): for the HMAC of arguments; without it a random one is made, and hashes
    can only be compared within one process. `signing_key` (PEM, reference or file): of checkpoints; without it there
    are none. `checkpoint_every` (1000 records), `checkpoint_seconds` (60). `rotation` (64 MB, bytes; None: never).
    `arguments` ("hash", "redacted" or "none"). `queue` (10,000): records that may wait. `sinks`: plugins by name.
    `redactor`: takes secrets out of everything that is written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        strict: bool = False,
        on_failure: Literal["refuse", "warn"] | None = None,
        key: bytes | str | None = None,
        signing_key: bytes | str | None = None,
        checkpoint_every: int = 1000,
        checkpoint_seconds: float = 60.0,
        rotation: int | None = 64_000_000,
        arguments: str = "hash",
        queue: int = 10_000,
        sinks: Sequence[tuple[str, Any]] = (),
        redactor: Redactor | None = None,
    ) -> None:
        if not os.fspath(path).strip():
            raise ConfigError("the path of an audit log must be the name of a file")
        if strict and on_failure == "warn":
            raise ConfigError(
                'strict and on_failure = "warn" contradict each other: strict refuses what it cannot record'
            )
        self.policy = Policy(
            strict=strict,
            on_failure=_policy(on_failure, strict=strict),
            arguments=options.choice("arguments", arguments, ARGUMENTS),
            checkpoint_every=options.count("checkpoint_every", checkpoint_every),
            checkpoint_seconds=options.seconds("checkpoint_seconds", checkpoint_seconds),
            queue=options.count("queue", queue),
        )
        self.rotation = None if rotation is None else options.count("rotation", rotation, minimum=1000)
        self._path = os.fspath(path)
        self._patience = LOCK_SECONDS
        self._key, self._signing_key = key, signing_key
        self._redactor = Redactor() if redactor is None else redactor
        self._sinks = Sinks(sinks)
        self._writer = Writer(
            self._file,
            self.policy,
            version=_version(),
            redact=self._redactor.text,
            kept=self._sinks.checkpoint,
            written=self._sinks.records if self._sinks.want_records else None,
        )
        self._keys: Keys | None = None
        self._opening: asyncio.Lock | None = None
        self._reopening = threading.Lock()
        self._closed = False

    def __repr__(self) -> str:
        return f"<AuditLog {self.path}>"

    @property
    def path(self) -> Path:
        """The file that is written."""
        return self._writer.file.path

    @property
    def statistics(self) -> Statistics:
        """What was written, lost and refused in this process."""
        return self._writer.statistics

    @property
    def failure(self) -> str | None:
        """Why the log cannot be written at present."""
        return self._writer.failure

    # --- opening and closing -------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether records go to the file; before, they are kept, as many as `queue` says."""
        return self._writer.is_running

    def for_command(self) -> None:
        """Be the log of the commands, which stands beside, before it is opened. They write it one after the other."""
        self._path, self._patience = of_commands(self._path), COMMAND_SECONDS
        self._writer.file = self._file()

    async def open(
        self,
        secret: Callable[[str], Awaitable[str]] | None = None,
        *,
        prepare: Callable[[], Awaitable[object]] | None = None,
        bare: bool = False,
    ) -> None:
        """Read the keys, lock the file and begin to write; of several calls one does it.

        `secret(reference)`: resolves `secret://` references. `prepare`: awaited before. `bare`: without the keys and
        sinks that it has otherwise. Raises ConfigError for a key that is none, AuditUnavailable if another process
        writes the log or, unless failures are only warned of, if it cannot be written.
        """
        if _OPENING.get() or self.is_open or self._closed:
            return
        if self._writer.is_forked:
            if self._opened_in_child(refusable=True):
                self._sinks.open()
            return
        if self._opening is None:
            self._opening = asyncio.Lock()
        async with self._opening:
            if self.is_open or self._closed:
                return
            token = _OPENING.set(True)
            try:
                key, signing_key = (None, None) if bare else (self._key, self._signing_key)
                keys = await keys_of(key, signing_key, secret)
                if prepare is not None:
                    await prepare()
            finally:
                _OPENING.reset(token)
            self._keys = keys
            if not bare:
                self._sinks.open()
            starting = asyncio.ensure_future(asyncio.to_thread(self._writer.start, keys))
            try:
                await asyncio.shield(starting)
            finally:
                # Whoever is cancelled, even twice: a thread is not, and may open it yet.
                while not starting.done():
                    with suppress(asyncio.CancelledError):
                        await asyncio.wait([starting])
                if starting.exception() is None:
                    _OPEN.add(self)
                else:
                    await self._sinks.aclose(0.0)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self, seconds: float = CLOSE_SECONDS) -> None:
        """Write everything, a last checkpoint, and have the sinks take it, within `seconds`. Raises AuditUnavailable if
        records were lost."""
        self._closed = True
        _OPEN.discard(self)
        try:
            await asyncio.to_thread(self._writer.close, 0.7 * seconds)
        finally:
            await self._sinks.aclose(0.3 * seconds)

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Write everything and a last checkpoint, without the sinks: for the end of a process."""
        self._closed = True
        _OPEN.discard(self)
        self._writer.close(seconds)

    # --- recording -----------------------------------------------------------------------------------------

    def intent(
        self,
        action: str,
        resource: str,
        who: Who = NOBODY,
        /,
        *,
        arguments: Any = NOTHING,
        details: Mapping[str, str] | None = None,
    ) -> Operation:
        """Record that an operation begins. Raises AuditUnavailable if the log cannot take it and refuses then.

        `action`: what is done ("tool.call"); `resource`: to what. `who` does it, unless `acting` says so.
        """
        ticket = self._ticket("intent", action, resource, who, arguments, details)
        self.put(ticket, refusable=True)
        return Operation(self, ticket, time.monotonic())

    async def durable_intent(
        self,
        action: str,
        resource: str,
        who: Who = NOBODY,
        /,
        *,
        arguments: Any = NOTHING,
        details: Mapping[str, str] | None = None,
    ) -> Operation:
        """As `intent`, and wait until it is on the disk. Raises AuditUnavailable if it cannot be."""
        if _OPENING.get() and not self.is_open:
            return self.intent(action, resource, who, arguments=arguments, details=details)
        ticket = self._ticket("intent", action, resource, who, arguments, details)
        loop = asyncio.get_running_loop()
        on_disk: asyncio.Future[None] = loop.create_future()
        ticket.told = partial(_tell_loop, loop, on_disk)
        self.put(ticket, refusable=True)
        operation = Operation(self, ticket, time.monotonic())
        late = self._late()
        timer = loop.call_later(WAIT_SECONDS, _settle, on_disk, late)
        try:
            await on_disk
        except BaseException as error:
            if error is late or isinstance(error, asyncio.CancelledError):
                operation.ended(error)  # the intent may be on the disk all the same
            raise
        finally:
            timer.cancel()
        return operation

    def note(
        self,
        action: str,
        resource: str,
        who: Who = NOBODY,
        /,
        *,
        error: BaseException | None = None,
        denied: bool = False,
        arguments: Any = NOTHING,
        details: Mapping[str, str] | None = None,
    ) -> None:
        """Record, once, something that has happened, or was `denied`."""
        self.put(self._once(action, resource, who, error, denied, arguments, details))

    def announce(
        self,
        action: str,
        resource: str,
        who: Who = NOBODY,
        /,
        *,
        details: Mapping[str, str] | None = None,
    ) -> None:
        """Record, once, something that will happen now. Raises AuditUnavailable if the log cannot take it and refuses
        then; it must not happen in that case.

        In strict mode, too, this waits for the disk only in a thread without an event loop: it would stop all tasks.
        """
        ticket = self._once(action, resource, who, None, False, NOTHING, details)
        if not self.policy.strict or not self.is_open or _in_event_loop():
            self.put(ticket, refusable=True)
            return
        on_disk: Future[None] = Future()
        ticket.told = partial(_settle, on_disk)
        self.put(ticket, refusable=True)
        try:
            on_disk.result(WAIT_SECONDS)
        except TimeoutError:
            late = self._late()
            self.note(
                action, resource, who, error=late, details=details
            )  # it may be on the disk all the same
            raise late from None

    def put(self, ticket: Ticket, *, refusable: bool = False) -> None:
        """Queue a record."""
        if self._writer.is_forked and not self._opened_in_child(refusable=refusable):
            self._writer.statistics.lost += 1
            if ticket.told is not None:
                ticket.told(None)
            return
        if self._closed and not self.is_open:
            if refusable and self.policy.on_failure == "refuse":
                raise AuditUnavailable(f"not begun, because the audit log {self.path} is closed")
            self._writer.statistics.lost += 1
            if ticket.told is not None:
                ticket.told(None)
            return
        self._writer.put(ticket, refusable=refusable)

    def message(self, error: BaseException | None) -> str | None:
        """What is kept of an error's words: those of our refusals, and of others only where arguments are kept too,
        because words of others may quote them."""
        if error is None or not (isinstance(error, Refused) or self.policy.arguments == "redacted"):
            return None
        return self._redactor.text(str(error))[:MESSAGE] or None

    # --- inside --------------------------------------------------------------------------------------------

    def _file(self) -> LogFile:
        return LogFile(expanded(self._path), rotation=self.rotation, patience=self._patience)

    def _late(self) -> AuditUnavailable:
        return AuditUnavailable(
            f"not begun, because it could not be recorded: the audit log {self.path} did not take it in "
            f"{WAIT_SECONDS:g} s"
        )

    def _once(
        self,
        action: str,
        resource: str,
        who: Who,
        error: BaseException | None,
        denied: bool,
        arguments: Any,
        details: Mapping[str, str] | None,
    ) -> Ticket:
        """The one record of what has no intent of its own."""
        ticket = self._ticket("outcome", action, resource, who, arguments, details)
        record = ticket.record
        record.outcome, record.decision = ("failed", "denied") if denied else judged(error)
        record.error = None if error is None else type(error).__name__
        record.message = self.message(error)
        return ticket

    def _ticket(
        self,
        phase: Phase,
        action: str,
        resource: str,
        who: Who,
        arguments: Any,
        details: Mapping[str, str] | None,
    ) -> Ticket:
        options.text("action", action)
        if not isinstance(resource, str):
            raise ConfigError(f"resource must be text, not {resource!r}")
        acts = behind()
        record = Record(
            time=now(),
            phase=phase,
            action=action,
            resource=resource,
            actor=acts.actor or who.actor or "runtime",
            on_behalf_of=acts.on_behalf_of,
            session=who.session,
            trace=who.trace,
            run=who.run,
            parent=who.parent,
            decision="allowed",
            details=texts(details),
        )
        hashed: bytes | None = None
        if arguments is not NOTHING:
            if self.policy.arguments == "hash":
                hashed = as_json(arguments)
                if len(hashed) > LARGE and self._keys is not None:
                    record.arguments_hmac, hashed = self._keys.hash(hashed), None
            elif self.policy.arguments == "redacted":
                record.arguments = json_within(self._redactor.value(arguments), REDACTED)
        return Ticket(record, arguments=hashed)

    def _opened_in_child(self, *, refusable: bool) -> bool:
        """A forked process has a log of its own, if its path says how to name it."""
        with self._reopening:
            if not self._writer.is_forked:
                return True
            try:
                if "{pid}" not in self._path or self._keys is None:
                    raise AuditUnavailable(
                        f"the audit log {self.path} belongs to the process that forked this one: give each a log of "
                        "its own, with {pid} in [audit] path, or make the runtime after the fork"
                    )
                self._writer.start(self._keys)
            except AgentrtError as error:
                if refusable and self.policy.on_failure == "refuse":
                    raise AuditUnavailable(f"not begun, because it could not be recorded: {error}") from error
                self._writer.warn_once(str(error))
                return False
            util = sys.modules.get("multiprocessing.util")
            if util is not None:  # its processes end only with its own finalizers
                util.Finalize(None, self.close, exitpriority=100)
            return True


def _policy(on_failure: str | None, *, strict: bool) -> Literal["refuse", "warn"]:
    if on_failure is None:
        return "refuse" if strict else "warn"
    options.choice("on_failure", on_failure, ("refuse", "warn"))
    return "refuse" if on_failure == "refuse" else "warn"


def _tell_loop(
    loop: asyncio.AbstractEventLoop, on_disk: asyncio.Future[None], error: BaseException | None
) -> None:
    try:
        loop.call_soon_threadsafe(_settle, on_disk, error)
    except RuntimeError:
        pass  # the loop is closed, and whoever waited with it


def _settle(on_disk: asyncio.Future[None] | Future[None], error: BaseException | None) -> None:
    if on_disk.done():
        return
    if error is None:
        on_disk.set_result(None)
    else:
        on_disk.set_exception(error)


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _version() -> str:
    from agentrt import __version__

    return __version__


_OPEN: weakref.WeakSet[AuditLog] = weakref.WeakSet()


@atexit.register
def _at_exit() -> None:
    """What a program left open is written all the same."""
    for log in list(_OPEN):
        try:
            log.close()
        except AuditUnavailable as error:  # there may be others
            logger.error("%s", error)
