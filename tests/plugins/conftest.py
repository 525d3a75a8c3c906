"""The tests of the plugins: of a runtime they look at what it does until its end, however long that takes."""

from __future__ import annotations

import pytest

from agentrt import closing


@pytest.fixture(autouse=True)
def time_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that stands still for some seconds would use up those that a runtime, or a token, has for its end."""
    monkeypatch.setattr(closing, "CLOSE_SECONDS", 40.0)
    monkeypatch.setattr("agentrt_vault.session.REVOKE_LIMIT", 40.0)
