"""A machine that stands still for some seconds, or a disk that takes as long, is no failure of what is tested here."""

from __future__ import annotations

import pytest

from agentrt import closing
from agentrt.security.audit import AuditLog


@pytest.fixture(autouse=True)
def time_to_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime and an audit log have a minute to close, unless a test says otherwise."""
    monkeypatch.setattr(closing, "CLOSE_SECONDS", 60.0)
    monkeypatch.setattr(AuditLog.aclose, "__defaults__", (60.0,))
