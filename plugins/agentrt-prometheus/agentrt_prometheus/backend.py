"""The backend `prometheus`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from agentrt import options
from agentrt.errors import ConfigError
from agentrt.plugins import Host
from agentrt.telemetry.delivery import GRACE
from agentrt.telemetry.http import check_url
from agentrt.telemetry.secret_headers import SecretHeaders
from agentrt.telemetry.signals import Batch, Signal

__all__ = ["Prometheus"]

PORT = 9464


class Prometheus:
    """Metrics, at an endpoint for Prometheus to scrape, or pushed to a gateway, or both.

    `host`, `port`: where to listen (127.0.0.1, 9464; with a gateway only if `port` is given; 0 is any free port).
    `gateway`: the URL of a pushgateway. `job`: the group there (the service's name), with the labels of `grouping`.
    `delete_on_exit`: the group is removed at the end (False). `headers`: for the gateway; `secret://` references in
    them are resolved. `scope_labels`: each series has `otel_scope_name` (False). `interval`: seconds after which what
    is scraped is renewed, and between two pushes (5.0). `timeout`: seconds that a push may take (10.0).
    """

    signals: tuple[Signal, ...] = ("metrics",)

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int | None = None,
        gateway: str | None = None,
        job: str | None = None,
        grouping: Mapping[str, str] | None = None,
        delete_on_exit: bool = False,
        headers: Mapping[str, str] | None = None,
        scope_labels: bool = False,
        interval: float = 5.0,
        timeout: float = 10.0,
    ) -> None:
        self.host = options.text("host", host)
        if port is None and gateway is None:
            port = PORT
        if port is not None and options.count("port", port, minimum=0) > 65535:
            raise ConfigError(f"port must be a whole number from 0 to 65535, not {port!r}")
        self.port = port
        self.gateway = None if gateway is None else check_url("gateway", gateway)
        if gateway is None and (job is not None or grouping or delete_on_exit or headers):
            raise ConfigError(
                "job, grouping, delete_on_exit and headers are about pushing: give the `gateway`, too"
            )
        self.job = None if job is None else options.text("job", job)
        self.grouping = _checked_grouping(grouping or {})
        self.delete_on_exit = delete_on_exit
        self.interval = options.seconds("interval", interval)
        self._push_timeout = options.seconds("timeout", timeout)
        self.timeout = timeout + GRACE
        self._headers = SecretHeaders(headers or {})
        self._scope_labels = scope_labels
        self._registry: Any = None
        self._families: Any = None
        self._endpoint: Any = None
        self._gateway: Any = None
        self._group: str | None = None
        self._process = 0

    async def open(self, host: Host) -> None:
        """Begin to listen. Raises ConfigError if the port is taken."""
        await self._headers.open(host)
        self._start()

    async def export(self, batch: Batch, /) -> None:
        self._start()
        self._families.update(batch)
        if self._gateway is not None:
            from agentrt_prometheus.gateway import group_path

            self._group = group_path(self.job or batch.resource.service, self.grouping)
            await self._gateway.push(self._registry, self._group)

    async def aclose(self) -> None:
        """Stop listening; remove the group if that is wanted. What was exported last has been pushed already."""
        endpoint, self._endpoint = self._endpoint, None
        if endpoint is not None and self._process == os.getpid():
            endpoint.close()  # but not a parent's, whose thread is not here
        gateway, self._gateway = self._gateway, None
        if gateway is not None:
            try:
                if self.delete_on_exit and self._group is not None:
                    await gateway.delete(self._group)
            finally:
                await gateway.aclose()
        self._registry = None

    def _start(self) -> None:
        if self._registry is not None and self._process == os.getpid():
            return
        from prometheus_client import CollectorRegistry

        from agentrt_prometheus.endpoint import Endpoint
        from agentrt_prometheus.families import Families
        from agentrt_prometheus.gateway import Gateway

        families = Families(scope_labels=self._scope_labels)
        registry = CollectorRegistry(auto_describe=False)
        registry.register(families)
        if self.port is not None:
            self._endpoint = Endpoint(registry, host=self.host, port=self.port)
            self.port = self._endpoint.port
        if self.gateway is not None:
            self._gateway = Gateway(self.gateway, headers=self._headers, timeout=self._push_timeout)
        self._registry, self._families, self._process = registry, families, os.getpid()


def _checked_grouping(grouping: Mapping[str, str]) -> dict[str, str]:
    for name, value in grouping.items():
        if not re.fullmatch("[a-zA-Z_][a-zA-Z0-9_]*", name) or name == "job":
            raise ConfigError(f"grouping: {name!r} is no name of a label (letters, digits and _; not `job`)")
        if not isinstance(value, str):
            raise ConfigError(f"grouping: {name} must be text, not {value!r}")
    return dict(grouping)
