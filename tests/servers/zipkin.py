"""A receiver of Zipkin's v2 JSON: keeps the spans, and refuses what Zipkin's description of its API does not allow.

Stricter than a real one in a single point: a field that the description does not name is refused, not passed over.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterator
from typing import Any

from servers.http_server import Answer, HttpServer, Request

__all__ = ["Zipkin", "problems_of"]

_KINDS = ("CLIENT", "SERVER", "PRODUCER", "CONSUMER")
_LONGEST = 2**63 - 1


class Zipkin(HttpServer):
    """`POST /api/v2/spans`: answers 202, or 400 with what is wrong; then nothing of that request is kept."""

    def __init__(self, *answers: Answer | None, dies_after: int | None = None) -> None:
        super().__init__(*answers, dies_after=dies_after)
        self.spans: list[dict[str, Any]] = []
        self.refused: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"{self.url}/api/v2/spans"

    def wait_for_spans(self, count: int, *, timeout: float = 30.0) -> list[dict[str, Any]]:
        """Blocks until `count` spans came; fails after `timeout` seconds."""
        self.wait_for(lambda: len(self.spans) >= count, what=f"{count} spans", timeout=timeout)
        return self.spans

    def respond(self, request: Request) -> Answer:
        if request.path != "/api/v2/spans":
            return Answer(404)
        if request.method != "POST":
            return Answer(405)
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return self._refuse("Content-Type is not application/json")
        try:
            spans = json.loads(request.body)
        except ValueError as error:
            return self._refuse(f"no JSON: {error}")
        if not isinstance(spans, list):
            return self._refuse("not a list of spans")
        problems = [f"[{i}] {problem}" for i, span in enumerate(spans) for problem in problems_of(span)]
        if problems:
            return self._refuse("; ".join(problems))
        self.spans += spans
        return Answer(202)

    def _refuse(self, problem: str) -> Answer:
        self.refused.append(problem)
        return Answer(400, problem.encode(), {"Content-Type": "text/plain; charset=utf-8"})


def problems_of(span: Any) -> Iterator[str]:
    """What of a v2 span is not as Zipkin's description says."""
    if not isinstance(span, dict):
        yield "a span is not an object"
        return
    yield from (f"unknown field {name!r}" for name in span if name not in _FIELDS)
    yield from (f"no {name}" for name in ("traceId", "id") if name not in span)
    for name, value in span.items():
        if name in _FIELDS and (problem := _FIELDS[name](value)):
            yield f"{name}: {problem}"
    if span.get("parentId") is not None and span.get("parentId") == span.get("id"):
        yield "parentId: is the span itself"


def _hex(value: Any, *lengths: int) -> str | None:
    digits = " or ".join(map(str, lengths))
    if not isinstance(value, str) or len(value) not in lengths or not re.fullmatch("[0-9a-f]+", value):
        return f"not {digits} digits of lower-case hex: {value!r}"
    return "all zeros" if not value.strip("0") else None


def _trace_id(value: Any) -> str | None:
    return _hex(value, 16, 32)


def _span_id(value: Any) -> str | None:
    return _hex(value, 16)


def _microseconds(value: Any) -> str | None:
    if type(value) is not int or not 1 <= value <= _LONGEST:
        return f"not a whole number of microseconds from 1 up: {value!r}"
    return None


def _time(value: Any) -> str | None:
    # In seconds, milliseconds or nanoseconds this century's times lie far outside.
    if (problem := _microseconds(value)) is None and not 1e15 <= value < 4e15:
        return f"not microseconds since 1970: {value!r}"
    return problem


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) else f"not a string: {value!r}"


def _flag(value: Any) -> str | None:
    return None if isinstance(value, bool) else f"not a boolean: {value!r}"


def _kind(value: Any) -> str | None:
    return None if value in _KINDS else f"{value!r} is not one of {', '.join(_KINDS)}"


def _tags(value: Any) -> str | None:
    if not isinstance(value, dict):
        return f"not an object: {value!r}"
    wrong = [f"{name} is not a string: {tag!r}" for name, tag in value.items() if not isinstance(tag, str)]
    return ", ".join(wrong) or None


def _endpoint(value: Any) -> str | None:
    if not isinstance(value, dict):
        return f"not an object: {value!r}"
    for name, part in value.items():
        if name == "serviceName":
            problem = _text(part)
        elif name == "port":
            fine = type(part) is int and 0 < part < 65536
            problem = None if fine else f"not a port: {part!r}"
        elif name in ("ipv4", "ipv6"):
            problem = _address(part, int(name[3:]))
        else:
            problem = "unknown field"
        if problem:
            return f"{name}: {problem}"
    return None


def _address(value: Any, version: int) -> str | None:
    try:
        fine = isinstance(value, str) and ipaddress.ip_address(value).version == version
    except ValueError:
        fine = False
    return None if fine else f"not an address: {value!r}"


def _annotations(value: Any) -> str | None:
    if not isinstance(value, list):
        return f"not a list: {value!r}"
    for each in value:
        if not isinstance(each, dict) or set(each) != {"timestamp", "value"}:
            return f"not a timestamp and a value: {each!r}"
        if problem := _time(each["timestamp"]) or _text(each["value"]):
            return problem
    return None


_FIELDS = {
    "traceId": _trace_id,
    "id": _span_id,
    "parentId": _span_id,
    "name": _text,
    "kind": _kind,
    "timestamp": _time,
    "duration": _microseconds,
    "debug": _flag,
    "shared": _flag,
    "localEndpoint": _endpoint,
    "remoteEndpoint": _endpoint,
    "annotations": _annotations,
    "tags": _tags,
}
