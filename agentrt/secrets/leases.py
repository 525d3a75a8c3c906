"""The leases that a manager has taken: each is given back at the end, unless it is over by then, by the process that
took it: a fork of it does not end what its parent uses."""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Awaitable, Callable

from msgspec import Struct

from agentrt.secrets.protocol import SecretRef, SecretValue

__all__ = ["Leases"]

_log = logging.getLogger("agentrt.secrets")


class _Lease(Struct, frozen=True, eq=False):
    ref: SecretRef
    value: SecretValue
    end: float
    process: int


class Leases:
    """By provider and handle. One whose value was replaced is kept, too: somebody may still use it until its end."""

    def __init__(self) -> None:
        self._open: dict[tuple[str | None, str], _Lease] = {}

    def __len__(self) -> int:
        return len(self._open)

    def add(self, ref: SecretRef, value: SecretValue, *, now: float) -> None:
        """A lease that was taken or renewed at `now` (s)."""
        if value.lease is None:
            return
        self._open = {key: lease for key, lease in self._open.items() if lease.end > now}
        end = math.inf if value.ttl is None else now + value.ttl
        known = self._open.get((ref.provider, value.lease))
        process = os.getpid() if known is None else known.process  # who renews it has not taken it
        self._open[ref.provider, value.lease] = _Lease(ref, value, end, process)

    async def revoke(
        self, revoke: Callable[[SecretRef, SecretValue], Awaitable[None]], *, now: float, seconds: float
    ) -> None:
        """Give all of them back at once, in at most `seconds`. What could not be is logged: it ends by itself."""
        found, self._open = list(self._open.values()), {}
        leases = [lease for lease in found if lease.end > now and lease.process == os.getpid()]
        if not leases:
            return
        tasks = {asyncio.ensure_future(revoke(lease.ref, lease.value)): f"{lease.ref}" for lease in leases}
        try:
            await asyncio.wait(tasks, timeout=seconds)
        finally:
            late = [task for task in tasks if not task.done()]
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task, ref in tasks.items():
            if task in late:
                _log.warning("the lease of %s was not revoked within %.1f s; it ends by itself", ref, seconds)
            elif not task.cancelled() and (error := task.exception()) is not None:
                _log.warning("the lease of %s was not revoked, it ends by itself: %s", ref, error)
