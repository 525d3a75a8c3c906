"""What the error of a backend says about trying again."""

from __future__ import annotations

import errno
import socket

import pytest

from agentrt.errors import PermanentError, TransientError
from agentrt.telemetry.failures import nobody_is_there


def hidden() -> BaseException:
    """As httpcore raises it."""
    try:
        try:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")
        except ConnectionRefusedError:
            raise ValueError("All connection attempts failed") from None
    except ValueError as error:
        return error


def caused(by: BaseException) -> BaseException:
    error = TransientError("it cannot be reached")
    error.__cause__ = by
    return error


def circular() -> BaseException:
    one, two = ValueError(), ValueError()
    one.__cause__, two.__cause__ = two, one
    return one


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionRefusedError(), True),
        (caused(ConnectionRefusedError(errno.ECONNREFUSED, "refused")), True),
        (caused(OSError(errno.EHOSTUNREACH, "no route")), True),
        (caused(OSError(errno.ENETUNREACH, "no network")), True),
        (caused(socket.gaierror(socket.EAI_NONAME, "unknown")), True),
        (caused(hidden()), True),
        (caused(ExceptionGroup("both", [TimeoutError(), ConnectionRefusedError()])), True),
        (TransientError("HTTP 503"), False),
        (PermanentError("HTTP 400"), False),
        (ConnectionResetError(errno.ECONNRESET, "reset"), False),
        (OSError(errno.ENOSPC, "full"), False),
        (TimeoutError(), False),
        (circular(), False),
    ],
    ids=repr,
)
def test_whether_nobody_is_there(error: BaseException, expected: bool) -> None:
    assert nobody_is_there(error) == expected
