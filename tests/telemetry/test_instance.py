"""Which instance of a service it was that sent something: nobody else's totals are added to, or written over."""

from __future__ import annotations

import re
import uuid

import pytest
from servers.otlp import Collector, attributes

from agentrt import Config, Context, Runtime
from agentrt.telemetry.instance import INSTANCE
from tests.telemetry.recording import Kept

pytestmark = pytest.mark.asyncio

OTEL = "OTEL_RESOURCE_ATTRIBUTES"


async def instance_of(**settings: object) -> str:
    kept = Kept()
    async with Runtime(Config({"telemetry": settings}), backends=[("kept", kept)]) as rt:
        rt.telemetry.record_metric("orders", 1, kind="counter")
    (found,) = {batch.resource.attributes[INSTANCE] for batch in kept.batches}
    assert rt.telemetry.resource.attributes[INSTANCE] == found
    return str(found)


async def test_an_instance_has_a_random_uuid_of_version_4() -> None:
    found = [await instance_of() for _ in range(50)]
    assert len(set(found)) == len(found)
    for text in found:
        parsed = uuid.UUID(text)
        assert str(parsed) == text
        assert (parsed.version, parsed.variant) == (4, uuid.RFC_4122)


async def test_the_environment_names_it_and_the_configuration_comes_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(OTEL, f"{INSTANCE}=green,team=x")
    assert await instance_of() == "green"
    assert await instance_of(resource={INSTANCE: "blue"}) == "blue"
    monkeypatch.setenv(OTEL, "team=x")
    assert re.fullmatch("[0-9a-f-]{36}", await instance_of())


async def test_two_runtimes_of_one_service_send_series_of_their_own() -> None:
    async def agent(message: str, ctx: Context) -> str:
        ctx.record_metric("orders", 1, kind="counter")
        return message

    with Collector() as collector:
        for _ in range(2):
            table = {"service": "shop", "otlp": {"endpoint": collector.url}}
            async with Runtime(Config({"telemetry": table})) as rt:
                await rt.run(agent, "hi")
        sent = [attributes(each.attributes) for each in collector.resources]
    assert {each["service.name"] for each in sent} == {"shop"}
    assert len({each[INSTANCE] for each in sent}) == 2
    for mine in {each[INSTANCE] for each in sent}:
        assert sum(each[INSTANCE] == mine for each in sent) >= 2, "all signals of a runtime name the same"
