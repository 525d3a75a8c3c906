"""Datadog's intake as its API is documented: refuses what it does not describe, keeps the rest."""

from __future__ import annotations

import json
from typing import Any

from servers.http_server import Answer, HttpServer, Request

__all__ = ["KEY", "DatadogIntake"]

KEY = "0123456789abcdef0123456789abcdef"


class DatadogIntake(HttpServer):
    """`/api/v2/logs`, `/api/v2/series` and `/api/v1/distribution_points`, for those who have the `KEY`."""

    def __init__(self) -> None:
        super().__init__()
        self.logs: list[dict[str, Any]] = []
        self.series: list[dict[str, Any]] = []
        self.distributions: list[dict[str, Any]] = []

    def respond(self, request: Request) -> Answer:
        if request.headers.get("dd-api-key") != KEY:
            return Answer(403, b'{"errors":["Forbidden"]}')
        if request.method != "POST" or request.headers.get("content-type") != "application/json":
            return Answer(415)
        value = json.loads(request.body)
        match request.path:
            case "/api/v2/logs":
                return self._take_logs(request, value)
            case "/api/v2/series":
                fine = all(_is_series(item) for item in value["series"])
                return self._keep(request, value, "gzip", fine, self.series, 5_242_880)
            case "/api/v1/distribution_points":
                fine = all(_is_distribution(item) for item in value["series"])
                return self._keep(request, value, "deflate", fine, self.distributions, 62_914_560)
        return Answer(404)

    def _take_logs(self, request: Request, value: Any) -> Answer:
        if not isinstance(value, list) or len(value) > 1000 or len(request.body) > 5_242_880:
            return Answer(413)
        if request.headers["content-encoding"] != "gzip":
            return Answer(415)
        texts = ("message", "ddsource", "ddtags", "hostname", "service", "status")
        if not all(isinstance(log[name], str) for log in value for name in texts):
            return Answer(400)
        self.logs += value
        return Answer(202, b"{}")

    def _keep(
        self,
        request: Request,
        value: Any,
        encoding: str,
        fine: bool,
        into: list[dict[str, Any]],
        largest: int,
    ) -> Answer:
        if request.headers["content-encoding"] != encoding:
            return Answer(415)
        if len(request.body) > largest:
            return Answer(413)
        if not fine:
            return Answer(400)
        into += value["series"]
        return Answer(202, b'{"errors":[]}')


def _has_tags(item: Any) -> bool:
    return isinstance(item["metric"], str) and all(isinstance(tag, str) for tag in item["tags"])


def _is_series(item: Any) -> bool:
    points = item["points"]
    return (
        _has_tags(item)
        and item["type"] in (0, 1, 2, 3)
        and all(type(each["timestamp"]) is int and isinstance(each["value"], int | float) for each in points)
        and all(set(each) == {"type", "name"} for each in item["resources"])
        and (item["type"] != 1 or type(item["interval"]) is int)
    )


def _is_distribution(item: Any) -> bool:
    return (
        _has_tags(item)
        and item["type"] == "distribution"
        and all(
            type(time) is int and all(isinstance(each, int | float) for each in values)
            for time, values in item["points"]
        )
    )
