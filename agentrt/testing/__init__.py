"""What tests need: time that passes at once, clocks that are set by hand, and the tests of a plugin.

    from agentrt.testing import run

    def test_gives_up():
        run(scenario)           # an async function, on a `VirtualTimeLoop`: a minute costs no time

    from agentrt.testing import TelemetryBackendTests       # and SecretsProviderTests

    class TestMine(TelemetryBackendTests):      # the tests that every telemetry backend should pass
        def make(self):
            return Mine(...)

With pytest-asyncio, `pytest_plugins = ["agentrt.testing.pytest_plugin"]` adds the marker `virtual_time`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from agentrt.testing.virtual_time import Deadlock, FakeClock, VirtualTimeLoop, advance, run

if TYPE_CHECKING:
    from agentrt.testing.secrets_suite import SecretsProviderTests
    from agentrt.testing.telemetry_suite import TelemetryBackendTests

__all__ = [
    "Deadlock",
    "FakeClock",
    "SecretsProviderTests",
    "TelemetryBackendTests",
    "VirtualTimeLoop",
    "advance",
    "run",
]

_SUITES = {
    "SecretsProviderTests": "agentrt.testing.secrets_suite",
    "TelemetryBackendTests": "agentrt.testing.telemetry_suite",
}


def __getattr__(name: str) -> Any:
    """Loads a suite, and with it the runtime, when it is used: a virtual clock needs neither."""
    if name not in _SUITES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    suite = globals()[name] = getattr(import_module(_SUITES[name]), name)
    return suite
