"""Google's client writes whole answers to its log at the level DEBUG: not while a secret is being read."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["unlogged"]

LOGGER = "google.cloud.secretmanager_v1.services.secret_manager_service.transports.grpc_asyncio"

_QUIET: ContextVar[bool] = ContextVar("agentrt_gcp_quiet", default=False)


@contextmanager
def unlogged() -> Generator[None]:
    """What others do with the same client meanwhile is logged as before."""
    logging.getLogger(LOGGER).addFilter(_passes)  # once: the same filter is not added again
    token = _QUIET.set(True)
    try:
        yield
    finally:
        _QUIET.reset(token)


def _passes(record: logging.LogRecord) -> bool:
    del record
    return not _QUIET.get()
