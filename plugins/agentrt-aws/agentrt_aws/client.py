"""A client of one AWS service: made when it is first needed, each of its failures one of our errors.

Credentials, profiles and endpoints are found as boto finds them. boto's own retries are off: the exporter retries.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any

from agentrt import options
from agentrt.telemetry.http import check_url

if TYPE_CHECKING:
    from agentrt_aws.signing import Signer

__all__ = ["AwsClient", "Place"]

RENEWAL_PAUSE = 30.0
"""Seconds in which refused credentials are read anew at most once."""


class Place:
    """Where and as whom: the options that the backends share, checked. `table`: whose they are."""

    def __init__(
        self, table: str, *, region: str | None, profile: str | None, endpoint: str | None, timeout: float
    ) -> None:
        self.table = table
        self.region = None if region is None else options.text("region", region)
        self.profile = None if profile is None else options.text("profile", profile)
        self.endpoint = None if endpoint is None else check_url("endpoint", endpoint)
        self.timeout = options.seconds("timeout", timeout)


class AwsClient:
    """`service`: as boto names it, and as its permissions begin ("logs:PutLogEvents"). Its connections belong to the
    event loop of the first call; on another loop, as in a forked process, it is made anew."""

    def __init__(self, service: str, place: Place) -> None:
        self.service = service
        self.place = place
        self._stack: AsyncExitStack | None = None
        self._client: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._making = asyncio.Lock()
        self._retired: AsyncExitStack | None = None
        self._renewed_at = -math.inf
        self.generation = 0
        """How many times credentials were read anew."""

    async def call(self, operation: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to an operation ("put_log_events"). Raises TransientError, ThrottledError or PermanentError."""
        from agentrt_aws.failures import failure

        try:
            return await self.ask(operation, parameters)
        except Exception as error:
            raise failure(error, self.place.table, self.permission(operation)) from error

    async def ask(self, operation: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """As `call`, but it raises what boto raises."""
        client = await self._ready()
        answer: dict[str, Any] = await getattr(client, operation)(**parameters)
        return answer

    async def renew(self, generation: int) -> bool:
        """Read the credentials anew for the next call, after those of this generation were refused. False if that was
        done less than 30 s ago: they are what there is."""
        if generation == self.generation:
            now = asyncio.get_running_loop().time()
            if now < self._renewed_at + RENEWAL_PAUSE:
                return False
            self._renewed_at = now
            self.generation += 1
            # The client so far is closed the next time: others may be using it.
            retired, self._retired = self._retired, self._stack
            self._stack = self._client = None
            if retired is not None:
                await retired.aclose()
        return True

    async def signer(self) -> Signer:
        """Signs requests that boto does not make."""
        from agentrt_aws.failures import failure
        from agentrt_aws.signing import Signer

        try:
            session = self._session()
            credentials = await session.get_credentials()
            return Signer(self.service, self._region(session), credentials)
        except Exception as error:
            raise failure(error, self.place.table, f"{self.service}:*") from error

    async def aclose(self) -> None:
        stacks = self._stack, self._retired
        self._stack = self._retired = self._client = None
        if self._loop is asyncio.get_running_loop():
            for stack in stacks:
                if stack is not None:
                    await stack.aclose()

    async def _ready(self) -> Any:
        """The client of the running loop; the first callers wait for the same one."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._stack = self._retired = self._client = None
            self._loop, self._making, self._renewed_at = loop, asyncio.Lock(), -math.inf
        if self._client is None:
            async with self._making:
                if self._client is None:
                    await self._make()
        return self._client

    async def _make(self) -> None:
        session = await asyncio.to_thread(self._loaded)
        from aiobotocore.config import AioConfig

        from agentrt_aws.connections import Connections

        timeout = self.place.timeout
        config = AioConfig(
            connect_timeout=timeout,
            read_timeout=timeout,
            retries={"total_max_attempts": 1, "mode": "standard"},
            user_agent_extra="agentrt",
            http_session_cls=Connections,
        )
        stack = AsyncExitStack()
        self._client = await stack.enter_async_context(
            session.client(
                self.service,
                region_name=self._region(session),
                endpoint_url=self.place.endpoint,
                config=config,
            )
        )
        self._stack = stack

    def _loaded(self) -> Any:
        """A session that has read what its first client is made of: megabytes of JSON, which take 0.1 s. Blocks."""
        from aiobotocore.session import get_session
        from botocore.exceptions import DataNotFoundError

        core: Any = get_session()  # partly without types
        session = self._session(core)
        loader = core.get_component("data_loader")
        for kind in ("service-2", "endpoint-rule-set-1"):
            loader.load_service_model(self.service, kind, api_version=None)  # told, or it is not kept
        loader.load_data_with_path("endpoints")
        for name in ("partitions", "sdk-default-configuration", "_retry"):
            with suppress(DataNotFoundError):  # another version of botocore may do without
                loader.load_data(name)
        return session

    def _session(self, core: Any = None) -> Any:
        """`core`: the session of botocore, None: another one."""
        import aioboto3

        place = self.place
        return aioboto3.Session(profile_name=place.profile, region_name=place.region, botocore_session=core)

    def _region(self, session: Any) -> str:
        from botocore.exceptions import NoRegionError

        # Containers of AWS set AWS_REGION, which boto does not read.
        region = session.region_name or os.environ.get("AWS_REGION")
        if not region:
            raise NoRegionError
        return str(region)

    def permission(self, operation: str) -> str:
        """Of an operation, as a policy names it: "logs:PutLogEvents"."""
        return f"{self.service}:{''.join(word.capitalize() for word in operation.split('_'))}"
