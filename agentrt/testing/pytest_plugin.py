"""pytest: `@pytest.mark.virtual_time` runs an asyncio test on a `VirtualTimeLoop`.

Not loaded by itself: put `pytest_plugins = ["agentrt.testing.pytest_plugin"]` into the top conftest.py. Needs
pytest-asyncio with loop factories (1.4 or newer). The marker works on a test, a class or a module (`pytestmark`).
Inside the test `await agentrt.testing.advance(5)` lets five seconds pass.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Mapping

import pytest

from agentrt.testing.virtual_time import VirtualTimeLoop

__all__ = ["pytest_asyncio_loop_factories", "pytest_configure"]

Factories = Mapping[str, Callable[[], asyncio.AbstractEventLoop]]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "virtual_time: an asyncio test whose clock jumps to the next timer")


@pytest.hookimpl(optionalhook=True, wrapper=True)
def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Generator[None, Factories | None, Factories]:
    # A wrapper, so that a project's own choice of loops stands for all other tests.
    others = yield
    if item.get_closest_marker("virtual_time") is not None:
        return {"virtual_time": VirtualTimeLoop}
    return {"asyncio": asyncio.new_event_loop} if others is None else others
