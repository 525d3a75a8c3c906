"""The thread that writes the log.

Records of any number of tasks and threads wait in one queue; what is there goes to the disk in one write and one
fdatasync (group commit): a disk that manages 300 of those a second takes 10,000 records. Sequence numbers, hashes and
redaction are the thread's work as well, so that a call pays for an object and an append.

While the file cannot be written, records wait in the queue, those of operations that wait for theirs are refused, and
the thread tries again. What the queue cannot hold is lost; a `gap` line then says how much was.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from agentrt.errors import AgentrtError
from agentrt.security.audit.checkpoints import SIGNATURE
from agentrt.security.audit.errors import AuditUnavailable, reason
from agentrt.security.audit.log_file import LastCheckpoint, LogFile
from agentrt.security.audit.record import Checkpoint, Closed, Gap, Opened, Record, encode, now, printable
from agentrt.security.audit.tickets import Keys, Policy, Statistics, Ticket

__all__ = ["Writer"]

logger = logging.getLogger("agentrt.audit")

GROUP = 256
"""So many records go to the disk together at most."""
AROUND = 10
"""So many lines stand beside the records of a group at most: the file's first, a gap, the end and the like."""
LINGER = 0.02
"""Seconds that records for which nobody waits may wait for others."""
FIRST_RETRY = 0.25
LAST_RETRY = 5.0
"""Seconds between two tries to write to a file that could not be written."""


class Writer:
    """Writes tickets by `policy` to what `file` makes, anew in each forked process. `redact`: takes secrets out of
    text. `kept(line)`: told each checkpoint that is on the disk; `written(lines)`: each group that is, if given."""

    def __init__(
        self,
        file: Callable[[], LogFile],
        policy: Policy,
        *,
        version: str,
        redact: Callable[[str], str],
        kept: Callable[[bytes], object],
        written: Callable[[bytes], object] | None = None,
    ) -> None:
        self._make_file = file
        self.file = file()
        self.policy = policy
        self.statistics = Statistics()
        self.failure: str | None = None
        """Why the file cannot be written at present."""
        self.is_forked = False
        """Whether this process was forked from the one that opened the log, and has not opened its own."""
        self._version = version
        self._redact = redact
        self._kept = kept
        self._written = written
        self._keys: Keys | None = None
        self._reset()
        _WRITERS.add(self)

    def _reset(self) -> None:
        # Reentrant: a signal handler or a finalizer may record something while its own thread holds the lock.
        self._changed = threading.Condition(threading.RLock())
        self._queue: deque[Ticket] = deque()
        self._in_hand = 0
        """Records of the group that is being written: they may come back."""
        self._thread: threading.Thread | None = None
        self._urgent = False
        self._closing = self._is_dead = False
        self._since: str | None = None
        self._lost = self._refused = 0
        self._gap: Gap | None = None
        """What the group that is being written tells of losses: there may be more by the time it is on the disk."""
        self._told_of_failure = self._told_of_lock = False
        self._retry = FIRST_RETRY
        self._unsigned = 0
        self._unsigned_since = 0.0
        self._introduced = False

    # --- from any thread -----------------------------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        return self._thread is not None

    def start(self, keys: Keys) -> None:
        """Open the file and begin to write. Raises AuditUnavailable if it cannot be opened, unless failures are only
        warned of; AgentrtError for what no retry will change."""
        self._keys = keys
        try:
            self.file.open()
        except OSError as error:
            why = self._cannot_write(error)
            if self.policy.on_failure == "refuse":
                raise AuditUnavailable(why) from error
            self._fails(why)
        self._thread = threading.Thread(target=self._run, name="agentrt-audit", daemon=True)
        self._thread.start()
        self.is_forked = False

    def put(self, ticket: Ticket, *, refusable: bool = False) -> None:
        """Queue a ticket. Raises AuditUnavailable for a `refusable` one if the log cannot take it and refuses then."""
        with self._changed:
            full = len(self._queue) + self._in_hand >= self.policy.queue or self._is_dead
            failing = self.failure is not None and ticket.told is None
            if refusable and self.policy.on_failure == "refuse" and (full or failing):
                self._refuse()
                raise AuditUnavailable(self._refusal(full=full))
            if full:
                self._lose()
                if ticket.told is not None:
                    ticket.told(AuditUnavailable(self._refusal(full=True)))
                return
            self._queue.append(ticket)
            if ticket.told is not None:
                self._urgent = True
                self._changed.notify()
            elif len(self._queue) == 1 or len(self._queue) == GROUP:
                self._changed.notify()

    def warn_once(self, why: str) -> None:
        """Say why there will be no records."""
        self._fails(why)

    def close(self, seconds: float) -> None:
        """Write what is queued, the end and a last checkpoint, within `seconds`. Raises AuditUnavailable if anything
        of it could not be written."""
        thread = self._thread
        if thread is None:
            return
        with self._changed:
            self._closing = True
            self._changed.notify()
        thread.join(seconds)
        if thread.is_alive():
            raise AuditUnavailable(f"the audit log {self.file.path} could not be closed in {seconds:.3g} s")
        self._thread = None
        left, self._queue = len(self._queue) + self._lost, deque()
        self.statistics.lost += left - self._lost
        if left:
            why = self.failure or "they could not be written"
            were = "1 audit record was" if left == 1 else f"{left:,} audit records were"
            raise AuditUnavailable(f"{were} lost: {why}")
        if self.failure is not None:
            raise AuditUnavailable(f"the end of the audit log is not in it: {self.failure}")

    def after_fork(self) -> None:
        """In a forked child: its thread is gone, and the file and its lock are the parent's."""
        self._reset()
        self.failure = None
        self.statistics = Statistics()
        self.file.close()
        self.file = self._make_file()
        self.is_forked = True

    # --- the thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        group: list[Ticket] | None = None
        try:
            while (group := self._next_group()) is not None:
                self._commit(group)
            self._finish()
        except BaseException as error:
            # Nothing may fail here but by a mistake of ours; then nobody must wait for ever.
            self._is_dead = True
            self._queue.extendleft(reversed(group or []))
            self._fails(f"the audit log {self.file.path}: its thread failed: {type(error).__name__}")
            raise
        finally:
            self._abandon()
            self.file.close()

    def _next_group(self) -> list[Ticket] | None:
        """What is to be written now, possibly only a checkpoint; None at the end."""
        with self._changed:
            lingering = False
            while True:
                if self._closing:
                    return self._taken() if self._queue and self.failure is None else None
                if self._urgent or len(self._queue) >= GROUP:
                    return self._taken()
                if self.failure is not None:
                    if not self._changed.wait(self._retry):
                        return self._taken()
                elif self._queue or not self._introduced:
                    if lingering:
                        return self._taken()
                    lingering = not self._changed.wait_for(self._is_worth_writing, LINGER)
                elif not self._changed.wait(self._until_checkpoint()) and self._until_checkpoint() == 0.0:
                    return []

    def _is_worth_writing(self) -> bool:
        return self._urgent or self._closing or len(self._queue) >= GROUP

    def _taken(self) -> list[Ticket]:
        count = min(GROUP, len(self._queue))
        group = [self._queue.popleft() for _ in range(count)]
        self._in_hand = count
        self._urgent = any(ticket.told is not None for ticket in self._queue)
        return group

    def _until_checkpoint(self) -> float | None:
        """Seconds until a checkpoint is due; None if there is nothing to sign."""
        if not self._unsigned or self._keys is None or self._keys.signing is None:
            return None
        return max(0.0, self._unsigned_since + self.policy.checkpoint_seconds - time.monotonic())

    def _commit(self, group: list[Ticket], *, last: bool = False) -> None:
        """Write a group, or keep what is not refused of it."""
        before = None
        try:
            self._have_file()
            before = self._mark()  # only now: opening the file has found where the log stands
            data, checkpoint = self._lines(group, last=last)
            self.file.append(data)
        except (OSError, AgentrtError) as error:
            if before is not None:
                self._restore(before)
            self._failed(group, error)
            return
        self._succeeded(group, data, checkpoint)

    def _mark(self) -> tuple[Any, ...]:
        chain = self.file.chain
        return chain.seq, chain.head, self.file.number, self.file.checkpoint, self._unsigned, self._introduced

    def _restore(self, mark: tuple[Any, ...]) -> None:
        chain = self.file.chain
        chain.seq, chain.head, self.file.number, self.file.checkpoint, self._unsigned, self._introduced = mark

    def _lines(self, group: list[Ticket], *, last: bool) -> tuple[bytes, bytes | None]:
        """The bytes of a group, and of the checkpoint in it."""
        chain = self.file.chain
        lines = [line for line in (self.file.header(),) if line]
        opens = not self._introduced  # a checkpoint at once: who opened the log is signed, and anchored
        if opens:
            lines += self._introduction()
            self._introduced = True
        self._gap = self._lost_until_now()
        if self._gap is not None:
            lines.append(chain.add(self._gap))
        for ticket in group:
            lines.append(chain.add(self._ready(ticket)))
            ticket.seq = chain.seq
        if last:
            lines.append(chain.add(Closed(time=now())))
        if not self._unsigned:
            self._unsigned_since = time.monotonic()
        self._unsigned += len(lines)
        checkpoint = None
        due = self._unsigned >= self.policy.checkpoint_every or self._until_checkpoint() == 0.0
        if opens or last or due:
            checkpoint = self._checkpoint()
        if checkpoint is not None:
            lines.append(checkpoint)
            self._unsigned = 0
        return b"".join(lines), checkpoint

    def _have_file(self) -> None:
        """Have the file open, at its name, as it was left, and not too large."""
        if not self.file.is_open:
            self.file.open()
            self._introduced = False
            return
        self._keep_lock()
        found = self.file.look()
        if found == "lost":
            logger.error(
                "the audit log %s was moved or removed while it was written; it is begun anew",
                self.file.path,
            )
            self.file.reopen()
        elif found == "changed":
            logger.error("the audit log %s was changed by somebody else while it was written", self.file.path)
            self.file.adopt_again()
            self._introduced = False
        elif self.file.is_full:
            self.file.rotate()

    def _keep_lock(self) -> None:
        """Have PATH.lock, if it can be had. Without it nobody else gets in either: the log itself is locked."""
        if self.file.has_lock():
            self._told_of_lock = False
            return
        outcome = "it is made anew"
        try:
            self.file.take_lock_again()
        except OSError as error:
            outcome = f"it cannot be made anew: {reason(error)}"
        except AuditUnavailable:
            outcome = "another process holds the one that is there now"
        if not self._told_of_lock:
            logger.error(
                "the lock of the audit log, %s.lock, was moved or removed while it was written (%s): leave it there",
                self.file.path,
                outcome,
            )
            self._told_of_lock = True

    def _introduction(self) -> list[bytes]:
        """What stands after the log has been opened."""
        assert self._keys is not None
        lines = []
        if self.file.torn is not None:
            lines.append(self.file.chain.add(self.file.torn))
            logger.warning(
                "the audit log %s ended in the middle of a line: a process that wrote it was killed",
                self.file.path,
            )
        opened = Opened(
            time=now(),
            process=os.getpid(),
            host=socket.gethostname(),
            version=self._version,
            arguments=self.policy.arguments,
            strict=self.policy.strict,
            hash_key=self._keys.arguments_id if self.policy.arguments == "hash" else None,
            signing_key=None if self._keys.signing is None else self._keys.signing.id,
        )
        lines.append(self.file.chain.add(opened))
        return lines

    def _lost_until_now(self) -> Gap | None:
        if not self._lost and not self._refused:
            return None
        return Gap(
            time=now(),
            since=self._since or now(),
            lost=self._lost,
            refused=self._refused,
            reason=printable(self._redact(self.failure or "too many records waited to be written")),
        )

    def _ready(self, ticket: Ticket) -> Record:
        """The record as it is written: without secrets, with what is known only now."""
        record, redact = ticket.record, self._redact
        record.action = printable(redact(record.action))
        record.resource = printable(redact(record.resource))
        record.actor = printable(redact(record.actor))
        if record.on_behalf_of is not None:
            record.on_behalf_of = printable(redact(record.on_behalf_of))
        if record.session is not None:
            record.session = printable(redact(record.session))
        for name in ("run", "parent", "trace"):  # numbers, unless somebody else made them
            value = getattr(record, name)
            if value is not None:
                setattr(record, name, printable(value))
        if record.arguments is not None:
            record.arguments = redact(record.arguments)  # again: more may be known by now
        if record.message is not None:
            record.message = printable(redact(record.message))
        if record.details is not None:
            record.details = {
                printable(redact(name)): printable(redact(value)) for name, value in record.details.items()
            }
        if ticket.arguments is not None:
            assert self._keys is not None
            record.arguments_hmac = self._keys.hash(ticket.arguments)
        if ticket.intent is not None:
            record.intent = ticket.intent.seq
        return record

    def _checkpoint(self) -> bytes | None:
        """A checkpoint's line, signed; None without a key."""
        key = None if self._keys is None else self._keys.signing
        if key is None:
            return None
        file, chain = self.file, self.file.chain
        checkpoint = Checkpoint(
            time=now(),
            log=file.log,
            number=file.checkpoint.number + 1,
            count=chain.seq,
            next_within=self.policy.checkpoint_every + GROUP + AROUND,
            previous=file.checkpoint.hash,
            key=key.id,
        )
        checkpoint.seq, checkpoint.prev = chain.seq + 1, chain.head
        checkpoint.signature = key.sign(encode(checkpoint))
        line = chain.add(checkpoint)
        assert SIGNATURE in line
        file.checkpoint = LastCheckpoint(checkpoint.number, chain.head)
        return line

    def _succeeded(self, group: list[Ticket], data: bytes, checkpoint: bytes | None) -> None:
        self.file.torn = None
        statistics = self.statistics
        with self._changed:
            self._in_hand = 0
            gap, failed = self._gap, self.failure is not None
            lost, refused = (0, 0) if gap is None else (gap.lost, gap.refused)
            self._lost, self._refused = self._lost - lost, self._refused - refused
            self._since = now() if self._lost or self._refused else None  # for the next group to tell
            self.failure = self._gap = None
            self._retry, self._told_of_failure = FIRST_RETRY, False
        statistics.written += len(group)
        statistics.groups += 1
        if failed or lost:
            logger.warning(
                "the audit log %s is written again; %d records were lost, %d operations refused",
                self.file.path,
                lost,
                refused,
            )
        _tell(group, None)
        if self._written is not None:
            self._written(data)
        if checkpoint is not None:
            statistics.checkpoints += 1
            self._kept(checkpoint)

    def _failed(self, group: list[Ticket], error: OSError | AgentrtError) -> None:
        """Refuse those who wait, keep the others for the next try."""
        why = str(error) if isinstance(error, AgentrtError) else self._cannot_write(error)
        self._fails(why)
        waiting = [ticket for ticket in group if ticket.told is not None]
        for ticket in group:
            ticket.seq = 0
        with self._changed:
            self._in_hand = 0
            kept = [ticket for ticket in group if ticket.told is None]
            self._queue.extendleft(reversed(kept))
            self._refused += len(waiting)
            self.statistics.refused += len(waiting)
            self._retry = min(LAST_RETRY, 2.0 * self._retry)
        _tell(waiting, AuditUnavailable(why))

    def _finish(self) -> None:
        """The last lines, and one more try for what could not be written."""
        is_last = False
        while not is_last:
            with self._changed:
                group = self._taken()
                is_last = not self._queue
            self._commit(group, last=is_last)
            if self.failure is not None:
                return

    def _abandon(self) -> None:
        """Nobody may wait for what will not be written."""
        with self._changed:
            waiting = [ticket for ticket in self._queue if ticket.told is not None]
            self._queue = deque(ticket for ticket in self._queue if ticket.told is None)
        _tell(waiting, AuditUnavailable(f"the audit log {self.file.path} is closed"))

    # --- failures --------------------------------------------------------------------------------------------

    def _cannot_write(self, error: OSError) -> str:
        return f"the audit log {self.file.path} cannot be written: {reason(error)}"

    def _fails(self, why: str) -> None:
        with self._changed:
            self.failure = why
            self._since = self._since or now()
            told, self._told_of_failure = self._told_of_failure, True
        if not told:
            what = (
                "operations are refused" if self.policy.on_failure == "refuse" else "operations go on without"
            )
            logger.error("%s; until then %s", why, what)

    def _refusal(self, *, full: bool) -> str:
        if self.failure is not None:
            return f"not begun, because it could not be recorded: {self.failure}"
        assert full
        return f"not begun, because {self.policy.queue:,} records wait to be written to the audit log {self.file.path}"

    def _refuse(self) -> None:
        self._refused += 1
        self.statistics.refused += 1
        self._since = self._since or now()

    def _lose(self) -> None:
        self._lost += 1
        self.statistics.lost += 1
        self._since = self._since or now()


def _tell(tickets: list[Ticket], error: BaseException | None) -> None:
    for ticket in tickets:
        told, ticket.told = ticket.told, None
        if told is not None:
            told(error)


_WRITERS: weakref.WeakSet[Writer] = weakref.WeakSet()


def _after_fork() -> None:
    for writer in list(_WRITERS):
        writer.after_fork()


os.register_at_fork(after_in_child=_after_fork)
