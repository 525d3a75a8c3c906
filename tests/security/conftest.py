"""A machine that stands still for some seconds, or a disk that takes as long, is no failure of what is tested here."""

from __future__ import annotations

import pytest

from agentrt.security.audit import AuditLog


@pytest.fixture(autouse=True)
def time_to_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """An audit log has a minute to close, unless a test says otherwise."""
    monkeypatch.setattr(AuditLog.aclose, "__defaults__", (60.0,))
