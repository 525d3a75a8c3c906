"""Options and rules for all tests."""

from __future__ import annotations

import gc

import pytest
from hypothesis import HealthCheck, settings

from agentrt import closing

# How long an example takes says something about the machine, and nothing about the code.
settings.register_profile(
    "any speed", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any speed")

pytest_plugins = ["agentrt.testing.pytest_plugin", "servers.fixtures"]


@pytest.fixture(autouse=True)
def time_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that stands still for some seconds would use up those that a runtime has for its end."""
    monkeypatch.setattr(closing, "CLOSE_SECONDS", 60.0)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("agentrt")
    group.addoption("--slow", action="store_true", help="also run the tests marked slow")
    group.addoption("--servers", action="store_true", help="also run the tests that need real servers")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what was not asked for. Deselected, not skipped: a skip would ask for attention."""
    unwanted = {mark for mark in ("slow", "servers") if not config.getoption(f"--{mark}")}
    left_out = [item for item in items if any(item.get_closest_marker(mark) for mark in unwanted)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_collection_finish() -> None:
    """Takes thousands of modules and tests out of every later collection: some tests collect to see what is left."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A session in which every test was skipped tested nothing: pytest itself would call it a success."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if exitstatus != pytest.ExitCode.OK or session.config.option.collectonly or reporter is None:
        return
    if not reporter.stats.get("passed") and not reporter.stats.get("xfailed"):
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
