"""The tests of the plugins: they look at what is done until the end, however long that takes."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def time_to_revoke(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that stands still for some seconds would use up those in which a token is revoked."""
    monkeypatch.setattr("agentrt_vault.session.REVOKE_LIMIT", 40.0)
