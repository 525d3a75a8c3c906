"""A secret planted wherever a run can have one, with every backend on and content captured: none of them gets it.

The same run with ordinary words in the same places shows that each backend would get it.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from msgspec import Struct
from opentelemetry import trace
from servers.programs import Ddapm, Moto
from telemetry.everywhere import BACKENDS, Everywhere

from agentrt import tool
from agentrt.config import Config
from agentrt.models.scripted import Scripted, Step
from agentrt.runtime import Runtime
from agentrt.telemetry.exporting import Delivered

SPAN_PLACES = frozenset({
    "prompt", "answer", "tool argument", "tool result", "tool exception", "cause", "run exception", "own span name",
    "own span attribute", "own span event", "attribute of the run's span", "foreign span name",
    "foreign span attribute", "foreign span list", "foreign event name", "foreign event attribute",
    "foreign exception", "in a URL", "in JSON",
})  # fmt: skip
LOG_PLACES = frozenset({"log message", "log context", "nested log context", "run exception"})
METRIC_PLACES = frozenset({"metric tag"})
PLACES = SPAN_PLACES | LOG_PLACES | METRIC_PLACES

EXPECTED: Mapping[str, frozenset[str]] = {
    "console": frozenset({"own span name", "foreign span name", "foreign event name", "tool exception"}),
    "memory": frozenset({"tool exception"}),
    **dict.fromkeys(("jaeger", "zipkin", "xray_otlp"), SPAN_PLACES),
    "xray": SPAN_PLACES - {"cause"},
    **dict.fromkeys(("prometheus", "pushed", "cloudwatch_metrics"), METRIC_PLACES),
    "cloudwatch_logs": LOG_PLACES,
    "datadog_intake": LOG_PLACES | METRIC_PLACES,
    **dict.fromkeys(("file", "otlp", "rotel", "otlp_proto_http", "datadog"), PLACES),
}
"""The places whose content each backend gets if it is nothing secret."""

HEAD, TAIL = "Vx7Kq2mTd", "b9LdW3zRn"
SECRET = f'{HEAD}"/+ü\\ &={TAIL}'
"""Each way to quote it changes it; its two ends look the same in all of them."""

KEYS = (
    "sk-proj-8Hq2LmZx4Rt6Yw9BnVc3Kd7Ps",
    "sk-ant-api03-Jk5Tn8Wq2Xz7Vb4Mc9Rd6Lp",
    "AKIAQ7RZ4N2XK6WPL3TM",
    "ghp_a8Kd92LmQx7Zt4Vn6Rw3Yb5Hc1Jp0Sg2Df",
)
"""Nobody told us of these: they look like what they are."""


class Planted(Struct, frozen=True):
    """What came of a run: the bytes by backend, and the reports of the backends that export."""

    received: Mapping[str, bytes]
    reports: list[Delivered]


class Planter:
    """An agent that says the texts of `places` in each of them."""

    def __init__(self, places: Mapping[str, str]) -> None:
        self.places = places

    async def run(self, message: str, ctx: Any) -> str:
        places = self.places
        if "PLANTED" in message:
            assert await ctx.secret("PLANTED") == SECRET

        @tool
        async def look_up(key: str, address: str, document: str) -> str:
            return places["tool result"]

        @tool
        async def broken() -> str:
            try:
                raise KeyError(places["cause"])
            except KeyError as error:
                raise ValueError(places["tool exception"]) from error

        trace.get_current_span().set_attribute("planted.run", places["attribute of the run's span"])
        await ctx.model(places["prompt"])
        await ctx.tool(
            look_up, key=places["tool argument"], address=places["in a URL"], document=places["in JSON"]
        )
        with pytest.raises(ValueError):  # noqa: PT011 - its message is what is planted
            await ctx.tool(broken)
        with ctx.start_span(places["own span name"], {"planted.own": places["own span attribute"]}) as span:
            span.add_event("noted", {"planted.event": places["own span event"]})
            self.third_party()
        ctx.log(
            "warning",
            places["log message"],
            what=places["log context"],
            more={"in": [places["nested log context"]]},
        )
        ctx.record_metric("planted.count", 1, {"planted_tag": places["metric tag"]}, kind="counter")
        raise RuntimeError(places["run exception"])

    def third_party(self) -> None:
        """What a library does that knows OpenTelemetry and nothing of us."""
        places = self.places
        tracer = trace.get_tracer("third.party")
        with tracer.start_as_current_span(places["foreign span name"]) as span:
            span.set_attribute("db.query.text", places["foreign span attribute"])
            span.set_attribute("db.parameters", ["first", places["foreign span list"]])
            span.add_event(places["foreign event name"], {"value": places["foreign event attribute"]})
            span.record_exception(OSError(places["foreign exception"]))


async def planted_run(everywhere: Everywhere, places: Mapping[str, str], message: str) -> list[Delivered]:
    Scripted.script("planted", [Step(text=places["answer"])])
    tables = everywhere.settings(service="planter", capture_content=True)
    async with Runtime(Config({"telemetry": tables, "agent": {"model": "scripted:planted"}})) as runtime:
        with pytest.raises(RuntimeError):
            await runtime.run(Planter(places), message)
        assert await runtime.telemetry.flush(30.0)
        await asyncio.to_thread(everywhere.look, runtime)
    return runtime.telemetry.report()


def plant(folder: Path, moto: Moto, ddapm: Ddapm, places: Mapping[str, str], message: str = "go") -> Planted:
    moto.reset()
    ddapm.reset()
    with Everywhere(folder, moto=moto, ddapm=ddapm, dimensions=("planted_tag",)) as everywhere:
        reports = everywhere.run(planted_run(everywhere, places, message))
        # The collector in between passes on in its own time.
        everywhere.onward.wait_for(
            lambda: bool(everywhere.onward.spans and everywhere.onward.metrics and everywhere.onward.logs),
            what="signals through rotel",
        )
        return Planted(everywhere.received(), reports)


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory: pytest.TempPathFactory, _moto: Moto, _ddapm: Ddapm) -> Planted:
    """A run with an ordinary word of its own in each place."""
    places = {place: word(place) for place in PLACES}
    return plant(tmp_path_factory.mktemp("ordinary"), _moto, _ddapm, places)


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory, _moto: Moto, _ddapm: Ddapm) -> Iterator[Planted]:
    """A run that fetches the secret and has it in each place, also as it travels."""
    places = dict.fromkeys(PLACES, f"before {SECRET} after")
    places["in a URL"] = f"https://x.example/?a={quote(SECRET, safe='')}&b={quote_plus(SECRET)}"
    places["in JSON"] = json.dumps({"a": SECRET, "b": json.dumps([SECRET]), "c": repr(SECRET)})
    places["tool argument"] += " " + encoded(f"user:{SECRET}!") + " " + encoded(SECRET)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLANTED", SECRET)
        yield plant(tmp_path_factory.mktemp("secret"), _moto, _ddapm, places, "PLANTED")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory, _moto: Moto, _ddapm: Ddapm) -> Planted:
    """A run that has keys in each place that nobody registered."""
    text = " ".join(KEYS)
    places = dict.fromkeys(PLACES, text)
    places["in a URL"] = f"https://x.example/?a={quote(text)}"
    places["in JSON"] = json.dumps({"a": text, "b": json.dumps([text])})
    return plant(tmp_path_factory.mktemp("keys"), _moto, _ddapm, places)


def word(place: str) -> str:
    """An ordinary word for a place, whole however it is quoted."""
    return "zebra" + "".join(part.capitalize() for part in place.replace("'", "").split())


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def traces_of(text: str) -> Iterator[bytes]:
    """What of `text` would be found, whatever was done to it: as it is, quoted, or in base64 at each position."""
    yield from {
        form.encode()
        for form in (
            text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1],
            json.dumps(json.dumps(text)[1:-1])[1:-1], quote(text, safe=""), quote_plus(text), quote(text),
        )
    }  # fmt: skip
    for shift in range(3):
        # Whole groups of three bytes look the same wherever they stand, if the beginning is at the same place.
        whole = text.encode()[shift:]
        whole = whole[: len(whole) // 3 * 3]
        yield base64.b64encode(whole)
        yield base64.urlsafe_b64encode(whole)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_ordinary_word_reaches_the_backend_from_each_place(ordinary: Planted, backend: str) -> None:
    found = {place for place in PLACES if word(place).encode() in ordinary.received[backend]}
    assert EXPECTED[backend] - found == set()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_fetched_secret_does_not_reach_the_backend(secret: Planted, backend: str) -> None:
    received = secret.received[backend]
    assert b"redacted" in received
    for trace_of_it in (HEAD.encode(), TAIL.encode(), *traces_of(SECRET), *traces_of(HEAD), *traces_of(TAIL)):
        assert trace_of_it not in received, f"{backend} got {trace_of_it!r}: {around(received, trace_of_it)}"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_value_that_looks_like_a_key_does_not_reach_the_backend(keys: Planted, backend: str) -> None:
    received = keys.received[backend]
    assert b"redacted" in received
    for key in KEYS:
        for trace_of_it in (key[8:].encode(), key[-12:].encode(), *traces_of(key)):
            assert trace_of_it not in received, (
                f"{backend} got {trace_of_it!r}: {around(received, trace_of_it)}"
            )


@pytest.mark.parametrize("run", ["ordinary", "secret", "keys"])
def test_everything_was_delivered(run: str, request: pytest.FixtureRequest) -> None:
    planted: Planted = request.getfixturevalue(run)
    assert {report.name: report.lost for report in planted.reports} == {
        name: {} for name in BACKENDS if name != "memory"
    }
    assert all(sum(report.delivered.values()) > 0 for report in planted.reports)


def around(received: bytes, found: bytes) -> bytes:
    at = received.index(found)
    return received[max(0, at - 80) : at + len(found) + 40]
