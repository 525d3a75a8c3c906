"""What tests need: time that passes at once, and clocks that are set by hand.

    from agentrt.testing import run

    def test_gives_up():
        run(scenario)           # an async function, on a `VirtualTimeLoop`: a minute costs no time

With pytest-asyncio, `pytest_plugins = ["agentrt.testing.pytest_plugin"]` adds the marker `virtual_time`.
"""

from agentrt.testing.virtual_time import Deadlock, FakeClock, VirtualTimeLoop, advance, run

__all__ = ["Deadlock", "FakeClock", "VirtualTimeLoop", "advance", "run"]
