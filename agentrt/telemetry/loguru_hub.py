"""loguru as the hub of this process's logs. Importing this module imports loguru: `Logs` does so when it is needed.

What is logged with the standard library goes through loguru, so that sinks which a program adds there (a mail, an error
tracker) get it as well; what loguru gets, from either side, comes out at our one sink.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

from loguru import logger

from agentrt.telemetry.log_format import extra_of

__all__ = ["LoguruHub"]

_NAMES = MappingProxyType({10: "DEBUG", 20: "INFO", 30: "WARNING", 40: "ERROR", 50: "CRITICAL"})
_default_sink = 0
"""The sink that loguru begins with. It is what we take away, and give back."""


class _Passing(threading.local):
    """The record of the standard library that this thread is passing through loguru."""

    record: logging.LogRecord | None = None
    message: str = ""
    arrived: bool = False


class LoguruHub:
    """Our sink in loguru, from `number` (the level) up; its own default sink is gone until `close`.

    `take` gets loguru's records; those of loguru's own loggers only if `wants(logger, level number)`. Raises
    `LookupError` if the default sink is gone already: then the program has set loguru up for itself.
    """

    def __init__(
        self, take: Callable[[dict[str, Any]], object], *, number: int, wants: Callable[[str, int], bool]
    ) -> None:
        try:
            logger.remove(_default_sink)
        except ValueError:
            raise LookupError("loguru's default sink is gone") from None
        self._take = take
        self._wants = wants
        self._passing = _Passing()
        self._bridge = logger.patch(self._as_logged)
        self._sink = logger.add(
            self._arrived,
            level=number,
            format=_nothing,
            filter=self._passes,
            backtrace=False,
            diagnose=False,
            catch=True,
        )

    def pass_on(self, record: logging.LogRecord, message: str) -> bool:
        """Log `record` with loguru; False if it did not come out at our sink: the program has removed that."""
        passing = self._passing
        passing.record, passing.message, passing.arrived = record, message, False
        bridge = self._bridge
        if record.exc_info and record.exc_info[1] is not None:
            bridge = bridge.opt(exception=record.exc_info)
        try:
            bridge.log(_NAMES.get(record.levelno, record.levelno), message)
        finally:
            passing.record = None
        return passing.arrived

    @property
    def is_passing(self) -> bool:
        """Whether what arrives in this thread now was logged with the standard library."""
        return self._passing.record is not None

    def close(self) -> None:
        """Take our sink away and give loguru its default one, unless the program has changed the sinks."""
        global _default_sink
        try:
            logger.remove(self._sink)
        except ValueError:
            return
        if sys.stderr is not None:
            _default_sink = logger.add(sys.stderr)

    def _as_logged(self, made: Any) -> None:
        """Not the bridge has logged this, but who called the standard library."""
        record = self._passing.record
        if record is None:
            return
        made["name"], made["function"], made["line"] = record.name, record.funcName, record.lineno
        made["module"] = record.module
        made["file"].name, made["file"].path = record.filename, record.pathname
        made["extra"].update(extra_of(record))

    def _passes(self, made: Any) -> bool:
        return self.is_passing or self._wants(made["name"] or "", made["level"].no)

    def _arrived(self, message: Any) -> None:
        self._passing.arrived = True
        self._take(message.record)


def _nothing(_: Any) -> str:
    """We make the text ourselves."""
    return ""
