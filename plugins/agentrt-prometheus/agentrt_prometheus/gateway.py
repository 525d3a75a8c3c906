"""Pushes to a pushgateway, for runs that end before anybody scrapes them."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from urllib.parse import quote

from prometheus_client import CollectorRegistry, generate_latest

from agentrt.telemetry.http import HttpSender
from agentrt.telemetry.secret_headers import SecretHeaders

__all__ = ["Gateway", "group_path"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Gateway:
    """One group of a pushgateway: each push replaces what the group held."""

    def __init__(self, url: str, *, headers: SecretHeaders, timeout: float) -> None:
        self._url = url
        self._headers = headers
        self._http = HttpSender(
            "pushgateway",
            key_setting="[telemetry.prometheus] headers",
            url_setting="[telemetry.prometheus] gateway",
            timeout=timeout,
        )

    async def push(self, registry: CollectorRegistry, path: str) -> None:
        """Replace the group at `path`."""
        url, body = self._url + path, generate_latest(registry)
        await self._headers.through(
            lambda headers: self._http.send(
                url, body, method="PUT", headers={**headers, "content-type": CONTENT_TYPE}
            )
        )

    async def delete(self, path: str) -> None:
        """Remove the group at `path`."""
        url = self._url + path
        await self._headers.through(lambda headers: self._http.send(url, method="DELETE", headers=headers))

    async def aclose(self) -> None:
        await self._http.aclose()


def group_path(job: str, grouping: Mapping[str, str]) -> str:
    """The path of a group: "/metrics/job/nightly/instance/a"."""
    return "/metrics" + "".join(_segment(name, value) for name, value in {"job": job, **grouping}.items())


def _segment(name: str, value: str) -> str:
    # A slash would end the segment, and there is no empty one.
    if not value or "/" in value:
        return f"/{name}@base64/{base64.urlsafe_b64encode(value.encode()).decode() or '='}"
    return f"/{name}/{quote(value, safe='')}"
