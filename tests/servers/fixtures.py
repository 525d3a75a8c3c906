"""A fixture for every server. Those that take long to start live for the session and are reset for each test.

A test that needs `prometheus` or `pushgateway` is marked `servers`, one that needs `phoenix` is marked `slow`. If a
test fails, the output of the programs it used is printed with it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from servers.clouds import certificate as certificate
from servers.clouds import gcp_secrets as gcp_secrets
from servers.clouds import key_vault as key_vault
from servers.faulty import BlackHole, Refusing
from servers.http_server import Answer, HttpServer
from servers.openbao import _openbao as _openbao
from servers.openbao import openbao as openbao
from servers.postgres import _postgres as _postgres
from servers.postgres import postgres as postgres
from servers.program import Program
from servers.programs import Ddapm, Moto, Phoenix, Prometheus, Pushgateway, Rotel
from servers.valkey import _valkey as _valkey
from servers.valkey import mortal_valkey as mortal_valkey
from servers.valkey import valkey as valkey
from servers.zipkin import Zipkin

if TYPE_CHECKING:
    # It brings oteltap and protobuf, which every run of pytest would load, whatever it tests.
    from servers.otlp import Collector, Tap

_MARKS = {"prometheus": "servers", "pushgateway": "servers", "phoenix": "slow"}


# ------------------------------------------------------------------------------------------ in this process
@pytest_asyncio.fixture
async def oteltap() -> AsyncIterator[Tap]:
    """Takes OTLP over HTTP; a third party's receiver."""
    from servers.otlp import open_tap

    async with open_tap() as tap:
        yield tap


@pytest.fixture
def collector() -> Iterator[Collector]:
    """Takes OTLP over HTTP, resources too; fails as told by `collector.answer(...)` and `collector.die()`."""
    from servers.otlp import Collector

    with Collector() as server:
        yield server


@pytest.fixture
def zipkin() -> Iterator[Zipkin]:
    """Takes Zipkin v2 spans and refuses wrong ones."""
    with Zipkin() as server:
        yield server


@pytest.fixture
def answering() -> Iterator[Callable[..., HttpServer]]:
    """`answering(status, body, headers, raw=, delay=)` starts a server that answers just so, whatever it is asked."""
    with ExitStack() as stack:

        def start(*fields: Any, **more: Any) -> HttpServer:
            return stack.enter_context(HttpServer(Answer(*fields, **more)))

        yield start


@pytest.fixture
def black_hole() -> Iterator[BlackHole]:
    """Accepts, reads and never answers."""
    with BlackHole() as server:
        yield server


@pytest.fixture
def refusing() -> Iterator[Refusing]:
    """A port where nobody listens."""
    with Refusing() as server:
        yield server


# ------------------------------------------------------------------------------------------------- programs
@pytest.fixture
def rotel(collector: Collector) -> Iterator[Rotel]:
    """A real collector, HTTP and gRPC, that passes all on to `collector`."""
    with Rotel(onward=collector.url) as server:
        yield server


@pytest.fixture(scope="session")
def _ddapm() -> Iterator[Ddapm]:
    with Ddapm() as server:
        yield server


@pytest.fixture
def ddapm(_ddapm: Ddapm) -> Ddapm:
    """Datadog's test agent, empty."""
    _ddapm.reset()
    return _ddapm


@pytest.fixture(scope="session")
def _moto() -> Iterator[Moto]:
    with Moto() as server:
        yield server


@pytest.fixture
def moto(_moto: Moto) -> Moto:
    """AWS, empty."""
    _moto.reset()
    return _moto


@pytest.fixture
def prometheus() -> Iterator[Prometheus]:
    """Prometheus without a target; `await prometheus.scrape(...)` adds one."""
    with Prometheus() as server:
        yield server


@pytest.fixture
def pushgateway() -> Iterator[Pushgateway]:
    """An empty pushgateway."""
    with Pushgateway() as server:
        yield server


@pytest.fixture(scope="session")
def phoenix() -> Iterator[Phoenix]:
    """Arize Phoenix. It is not reset: give each test a project of its own."""
    with Phoenix() as server:
        yield server


# ---------------------------------------------------------------------------------------------------- hooks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A server that a plain run does not set up would be missing only on the machines that have none."""
    for item in items:
        for name in getattr(item, "fixturenames", ()):
            mark = _MARKS.get(name)
            if mark is not None and item.get_closest_marker(mark) is None:
                raise pytest.UsageError(f"{item.nodeid} needs {name}: mark it `@pytest.mark.{mark}`")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    del call
    report = yield
    if report.failed:
        for used in getattr(item, "funcargs", {}).values():
            if isinstance(used, Program):
                report.sections.append((f"output of {used.name}", used.output()))
    return report
