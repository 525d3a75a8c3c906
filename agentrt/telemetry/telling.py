"""What the threads of telemetry say in the log."""

from __future__ import annotations

import logging
import traceback

__all__ = ["tell"]

logger = logging.getLogger("agentrt.telemetry")


def tell(level: int, message: str, *values: object, error: BaseException | None = None) -> None:
    """Log it, with the traceback of `error`. A handler of the user's that raises must not end the thread that others
    rely on: what it raised is printed, as the errors of handlers are."""
    try:
        logger.log(level, message, *values, exc_info=error, stacklevel=2)
    except Exception:
        traceback.print_exc()
