"""What the error of a backend says about trying again."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

from agentrt.errors import ThrottledError, TransientError, classify

__all__ = ["asked_to_wait", "may_work_later", "nobody_is_there"]

UNREACHABLE = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH})


def may_work_later(error: BaseException) -> bool:
    """Whether the same batch may be taken the next time."""
    return isinstance(error, TransientError | OSError | TimeoutError) or classify(error).retry


def asked_to_wait(error: BaseException) -> float:
    """Seconds that the backend asked for before the next try; 0.0 if it did not."""
    asked = error.retry_after if isinstance(error, TransientError | ThrottledError) else None
    return asked if isinstance(asked, int | float) and asked > 0.0 else 0.0


def nobody_is_there(error: BaseException) -> bool:
    """Whether nobody took the connection: it was refused, or there is no such host or way to it."""
    return any(
        isinstance(each, ConnectionRefusedError | socket.gaierror)
        or (isinstance(each, OSError) and each.errno in UNREACHABLE)
        for each in _causes(error)
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """`error`, what it came from, and the members of groups among them."""
    left: list[BaseException] = [error]
    seen: set[int] = set()
    while left:
        each = left.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        if isinstance(each, BaseExceptionGroup):
            left += each.exceptions
        # Also if it is not to be shown: httpcore raises "from None".
        cause = each.__cause__ or each.__context__
        if cause is not None:
            left.append(cause)
