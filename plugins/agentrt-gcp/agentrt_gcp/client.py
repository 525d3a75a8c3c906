"""Google's own client of Secret Manager: made when it is first needed, for the event loop that runs.

Its retries are off. Credentials are found in a thread: that reads files and may ask the machine's metadata server.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from agentrt.errors import ConfigError

__all__ = ["Endpoint", "GcpClient"]

T = TypeVar("T")

RENEWAL_PAUSE = 30.0
"""Seconds in which refused credentials are found anew at most once."""

SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)

CHANNEL_OPTIONS = (
    ("grpc.enable_retries", 0),
    # By itself gRPC would wait for up to two minutes before it looks whether a server is back.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5000),
)


class Endpoint:
    """Where to: "host", "host:port", with or without https://. Of http:// only this machine: an emulator, which gets no
    credentials."""

    def __init__(self, value: str) -> None:
        wrong = ConfigError(
            f"endpoint must look like secretmanager.europe-west3.rep.googleapis.com, or for an emulator on this "
            f"machine http://127.0.0.1:port, not {value!r}"
        )
        if not isinstance(value, str) or any(char.isspace() for char in value):
            raise wrong
        try:
            parts = urlsplit(value if "://" in value else f"https://{value}")
            host, port = parts.hostname, parts.port
        except ValueError:
            raise wrong from None
        self.plain = parts.scheme == "http"
        if not host or parts.scheme not in ("https", "http") or parts.path.strip("/") or parts.query:
            raise wrong
        if self.plain and not _is_this_machine(host):
            raise ConfigError(
                f"endpoint {value!r} has no TLS; http:// is only for an emulator on this machine: take https://"
            )
        name = f"[{host}]" if ":" in host else host
        self.target = f"{name}:{port or (80 if self.plain else 443)}"


class GcpClient:
    """`endpoint`: see above. `credentials_file`: a JSON file (None: found as Google's libraries find them).
    `ca_file`: certificates to trust in place of gRPC's own. `timeout`: seconds for an answer."""

    def __init__(
        self, endpoint: Endpoint, *, credentials_file: str | None, ca_file: str | None, timeout: float
    ) -> None:
        self.endpoint = endpoint
        self.credentials_file = credentials_file
        self.ca_file = ca_file
        self.timeout = timeout
        self.project: str | None = None
        """Whose the credentials are; known after the first `ready`."""
        self._credentials: Any = None
        self._client: Any = None
        self._retired: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._making = asyncio.Lock()
        self._renewed_at = -math.inf
        self._generation = 0

    async def ready(self) -> Any:
        """The client of the running loop; the first callers wait for the same one."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._client = self._retired = None
            self._loop, self._making, self._renewed_at = loop, asyncio.Lock(), -math.inf
        if self._client is None:
            async with self._making:
                if self._client is None:
                    self._client = await self._make()
        return self._client

    async def call(self, ask: Callable[[Any], Awaitable[T]]) -> T:
        """`await ask(client)`; once more if the credentials were refused and have not just been found anew.

        Nothing of what the client logs meanwhile gets out: it would be the answer.
        """
        from agentrt_gcp.failures import is_refused_login
        from agentrt_gcp.quiet import unlogged

        client, generation = await self.ready(), self._generation
        with unlogged():
            try:
                return await ask(client)
            except Exception as error:
                # The file that they are from may have others by now.
                if not is_refused_login(error) or not await self._renew(generation):
                    raise
            return await ask(await self.ready())

    async def aclose(self) -> None:
        clients = self._client, self._retired
        self._client = self._retired = None
        if self._loop is asyncio.get_running_loop():
            for client in clients:
                if client is not None:
                    await client.transport.close()

    async def _renew(self, generation: int) -> bool:
        """Find credentials anew for the next call, after those of this generation were refused. False if that was done
        less than 30 s ago: they are what there is."""
        if generation == self._generation:
            now = asyncio.get_running_loop().time()
            if now < self._renewed_at + RENEWAL_PAUSE:
                return False
            self._renewed_at = now
            self._generation += 1
            # The client so far is closed the next time: others may be using it.
            retired, self._retired = self._retired, self._client
            self._client = self._credentials = None
            if retired is not None:
                await retired.transport.close()
        return True

    async def _make(self) -> Any:
        transport, channel = await asyncio.to_thread(self._prepared)
        from google.cloud import secretmanager_v1

        # The channel belongs to this loop: it is made here and not in the thread.
        return secretmanager_v1.SecretManagerServiceAsyncClient(transport=transport(channel=channel()))

    def _prepared(self) -> tuple[Any, Callable[[], Any]]:
        """The transport's class, and what makes its channel. Blocks."""
        import grpc
        from google.cloud.secretmanager_v1.services.secret_manager_service import transports

        transport = transports.SecretManagerServiceGrpcAsyncIOTransport
        if self.endpoint.plain:
            return transport, lambda: grpc.aio.insecure_channel(self.endpoint.target, options=CHANNEL_OPTIONS)
        if self._credentials is None:
            credentials, self.project = self._found_credentials()
            # As Google's client has it: a service account signs its own tokens and asks nobody for them.
            signing = getattr(credentials, "with_always_use_jwt_access", None)
            self._credentials = credentials if signing is None else signing(True)
        roots = None if self.ca_file is None else _read("ca_file", self.ca_file)
        return transport, lambda: transport.create_channel(
            self.endpoint.target,
            credentials=self._credentials,
            ssl_credentials=grpc.ssl_channel_credentials(roots),
            options=CHANNEL_OPTIONS,
        )

    def _found_credentials(self) -> tuple[Any, str | None]:
        if self.credentials_file is not None:
            from agentrt_gcp.credentials import from_file

            return from_file(_read("credentials_file", self.credentials_file), SCOPES)
        import google.auth

        auth: Any = google.auth  # partly without types
        credentials, project = auth.default(scopes=SCOPES)
        return credentials, project


def _is_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _read(option: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{option} of the secrets provider gcp cannot be read: {error}") from error
