"""The backend `datadog`."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from weakref import ref

from agentrt import options
from agentrt.errors import CallError, ConfigError, PermanentError
from agentrt.plugins import Host
from agentrt.telemetry.delivery import GRACE
from agentrt.telemetry.http import check_url
from agentrt.telemetry.otlp import Otlp
from agentrt.telemetry.signals import Batch, Resource, Signal
from agentrt_datadog.intake import Intake

__all__ = ["Datadog"]

SITE = "datadoghq.com"
AGENT_PORT = 4318


class Datadog:
    """Spans, metrics and log lines through Datadog's Agent by OTLP; or, with an `api_key`, metrics and log lines
    straight to the intake, and spans through the Agent only if its `endpoint` is given, too.

    `endpoint`: the Agent's OTLP port (http://127.0.0.1:4318, or on DD_AGENT_HOST). `api_key`: a key or a `secret://`
    reference. `site`: DD_SITE, or datadoghq.com. `intake`: the base of an address that stands for the site's, of a
    proxy. `env`, `version`, `service`: Datadog's names for the deployment (DD_ENV, DD_VERSION, DD_SERVICE; else what
    the resource says). `tags`: more of them, for all. `interval`: seconds between two batches (10.0). `timeout`:
    seconds for one, on each of the two ways (10.0).
    """

    delta = True

    def __init__(
        self,
        *,
        endpoint: str | None = None,
        api_key: str | None = None,
        site: str | None = None,
        intake: str | None = None,
        env: str | None = None,
        version: str | None = None,
        service: str | None = None,
        tags: Mapping[str, str] | None = None,
        interval: float = 10.0,
        timeout: float = 10.0,
    ) -> None:
        self.interval = options.seconds("interval", interval)
        options.seconds("timeout", timeout)
        self._names = {
            "service.name": service or os.environ.get("DD_SERVICE"),
            "service.version": version or os.environ.get("DD_VERSION"),
            "deployment.environment.name": env or os.environ.get("DD_ENV"),
        }
        self._tags = dict(tags or {})
        if api_key is None and (site is not None or intake is not None):
            raise ConfigError("site and intake are of use only with an `api_key`; the Agent has its own")
        self._intake: Intake | None = None
        if api_key is not None:
            options.text("api_key", api_key)
            self._intake = Intake(
                api_key=api_key, bases=_bases(site, intake), tags=self._tags, timeout=timeout
            )
        self._agent = _agent(endpoint, api_key is not None, timeout)
        wanted: set[Signal] = set(self._agent.signals) if self._agent is not None else set()
        if self._intake is not None:
            wanted |= {"metrics", "logs"}
        # One after the other.
        self.timeout = (2 if self._agent and self._intake else 1) * timeout + GRACE
        self.signals: tuple[Signal, ...] = tuple(sorted(wanted, reverse=True))
        self._batch: Batch | None = None
        self._left: list[Callable[[], Awaitable[None]]] = []
        self._refused: PermanentError | None = None
        self._last: ref[Batch] | None = None
        self._counted: list[Callable[[], dict[Signal, int]]] = []

    async def open(self, host: Host) -> None:
        """Look up the key, if it is a reference."""
        if self._agent is not None:
            await self._agent.open(host)
        if self._intake is not None:
            await self._intake.open(host)

    async def export(self, batch: Batch, /) -> None:
        """Deliver `batch`: what has been delivered of it is not sent again with the rest."""
        if batch is not self._batch:
            self._batch, self._refused, self._last = batch, None, ref(batch)
            self._counted.clear()
            self._left = self._ways(batch)
        later: CallError | None = None
        for way in list(self._left):  # what is not done stays there, also if time runs out in the middle
            try:
                await way()
            except PermanentError as error:
                self._refused = self._refused or error
                self._left.remove(way)
            except CallError as error:
                later = later or error
            else:
                self._left.remove(way)
        if later is not None:
            raise later
        self._batch, refused = None, self._refused
        if refused is not None:
            raise refused

    def undelivered(self, batch: Batch, /) -> dict[Signal, int]:
        """How many spans, points and lines of `batch` did not arrive."""
        if self._last is None or self._last() is not batch:
            return batch.counts
        counts: Counter[Signal] = Counter()
        for counted in self._counted:
            counts.update(counted())
        return dict(+counts)

    async def aclose(self) -> None:
        if self._agent is not None:
            await self._agent.aclose()
        if self._intake is not None:
            await self._intake.aclose()

    def _ways(self, batch: Batch) -> list[Callable[[], Awaitable[None]]]:
        """What has to be done to deliver a batch."""
        resource = self._resource(batch.resource)
        ways: list[Callable[[], Awaitable[None]]] = []
        intake, agent = self._intake, self._agent
        if agent is not None:
            own = (
                Batch(resource, batch.spans)
                if intake
                else Batch(resource, batch.spans, batch.metrics, batch.logs)
            )
            if len(own):
                ways.append(lambda: agent.export(own))
                self._counted.append(lambda: agent.undelivered(own))
        if intake is not None and (batch.metrics or batch.logs):
            rest = Batch(resource, metrics=batch.metrics, logs=batch.logs)
            ways.append(lambda: intake.export(rest))
            self._counted.append(lambda: intake.undelivered(rest))
        return ways

    def _resource(self, resource: Resource) -> Resource:
        attributes = {**self._tags, **resource.attributes}
        attributes.update({name: value for name, value in self._names.items() if value})
        if environment := attributes.get("deployment.environment.name"):
            # Agents before 7.58 know it by its old name only.
            attributes["deployment.environment"] = environment
        return Resource(attributes)


class _Agent(Otlp):
    name = "datadog agent"


def _agent(endpoint: str | None, has_intake: bool, timeout: float) -> _Agent | None:
    if endpoint is None and has_intake:
        return None
    address = endpoint or f"http://{os.environ.get('DD_AGENT_HOST') or '127.0.0.1'}:{AGENT_PORT}"
    return _Agent(
        endpoint=address,
        protocol="http/protobuf",
        timeout=timeout,
        signals=("spans",) if has_intake else ("spans", "metrics", "logs"),
        # Datadog cannot use totals since the start: they begin anew with each process.
        delta=True,
    )


def _bases(site: str | None, intake: str | None) -> tuple[str, str]:
    """(of the logs, of the metrics)."""
    if intake is not None:
        base = check_url("intake", intake)
        return base, base
    found = site or os.environ.get("DD_SITE") or SITE
    if not re.fullmatch(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+", found):
        raise ConfigError(f"site must be one of Datadog's, such as datadoghq.eu, not {found!r}")
    return f"https://http-intake.logs.{found}", f"https://api.{found}"
