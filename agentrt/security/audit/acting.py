"""Who is behind an operation: for hosts that know their users."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

from msgspec import Struct

from agentrt import options

__all__ = ["Behind", "acting", "behind"]


class Behind(Struct, frozen=True):
    """`actor` does it (None: the agent); `on_behalf_of` wants it done."""

    actor: str | None = None
    on_behalf_of: str | None = None


_NOBODY = Behind()
_BEHIND: ContextVar[Behind] = ContextVar("agentrt_audit_behind", default=_NOBODY)


@contextmanager
def acting(*, actor: str | None = None, on_behalf_of: str | None = None) -> Generator[None]:
    """Audit records of what happens in the block name this `actor` (default: the agent's name) and whom it acts
    `on_behalf_of`: `with acting(on_behalf_of="user:42"): await rt.run(agent, message)`."""
    for name, value in (("actor", actor), ("on_behalf_of", on_behalf_of)):
        if value is not None:
            options.text(name, value)
    outer = _BEHIND.get()
    token = _BEHIND.set(
        Behind(
            outer.actor if actor is None else actor,
            outer.on_behalf_of if on_behalf_of is None else on_behalf_of,
        )
    )
    try:
        yield
    finally:
        _BEHIND.reset(token)


def behind() -> Behind:
    """Who is behind what happens here."""
    return _BEHIND.get()
