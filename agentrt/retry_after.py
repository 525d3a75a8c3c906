"""When a server that refused wants to be asked again."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from datetime import UTC

__all__ = ["retry_after"]


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks us to wait, from `retry-after-ms` or `Retry-After` (seconds or an HTTP date).

    None if it does not say, or says nothing usable: zero, a negative number, a time that has passed, nonsense.
    """
    milliseconds = _positive(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000.0
    value = headers.get("retry-after")
    if value is None:
        return None
    seconds = _positive(value)
    if seconds is not None:
        return seconds
    moment = _moment(value)
    if moment is None:
        return None
    # The server's own clock, where it tells: ours may be wrong, and it is the difference that was meant.
    now = _moment(headers.get("date", ""))
    rest = moment - (time.time() if now is None else now)
    return rest if rest > 0.0 else None


def _positive(value: str | None) -> float | None:
    try:
        number = float(value) if value is not None else 0.0
    except ValueError:
        return None
    return number if 0.0 < number < math.inf else None


def _moment(value: str) -> float | None:
    from email.utils import parsedate_to_datetime

    try:
        moment = parsedate_to_datetime(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
