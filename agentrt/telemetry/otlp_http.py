"""OTLP over HTTP."""

from __future__ import annotations

import asyncio
import gzip
import ssl
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import httpx2
from google.protobuf.json_format import Parse, ParseError
from google.protobuf.message import DecodeError

from agentrt.errors import ConfigError, PermanentError
from agentrt.telemetry.http import HttpSender, host_of
from agentrt.telemetry.otlp_messages import RESPONSES
from agentrt.telemetry.otlp_settings import Destination

__all__ = ["OtlpHttp"]

LEVEL = 1
"""Of gzip: a quarter of the time of the default, for a twentieth more bytes."""

COMPRESS: Mapping[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, LEVEL, mtime=0),
    "deflate": lambda data: zlib.compress(data, LEVEL),
}


class OtlpHttp:
    """Sends the messages of one signal to its `destination`. `headers`: with their secrets resolved."""

    def __init__(self, name: str, destination: Destination) -> None:
        self.headers: Mapping[str, str] = {}
        self._destination = destination
        self._own = {"content-type": "application/x-protobuf"}
        self._compress = COMPRESS.get(destination.compression)
        if self._compress is not None:
            self._own["content-encoding"] = destination.compression
        self._sender = _Sender(name, destination)

    async def send(self, message: Any) -> Any:
        """The response message. Raises what `HttpSender.send` raises."""
        body = message.SerializeToString()
        if self._compress is not None:
            body = self._compress(body)
        secret = max((value.rpartition(" ")[2] for value in self.headers.values()), key=len, default=None)
        answer = await self._sender.send(
            self._destination.url, body, headers={**self.headers, **self._own}, secret=secret
        )
        return self._read(answer)

    async def aclose(self) -> None:
        await self._sender.aclose()

    def _read(self, answer: bytes) -> Any:
        """A success that is no answer of OTLP comes from something else that lives at this address."""
        response = RESPONSES[self._destination.signal]()
        try:
            if answer.lstrip().startswith(b"{"):
                return Parse(answer, response, ignore_unknown_fields=True)
            if answer.strip().lower() not in (b"ok", b"success", b"accepted"):
                response.ParseFromString(answer)
        except (DecodeError, ParseError) as error:
            target = self._destination
            raise PermanentError(
                f"{self._sender.name} at {host_of(target.url)} answered success, but not as a collector of OTLP "
                f"does; check {target.setting}",
                fault="target",
            ) from error
        return response


class _Sender(HttpSender):
    """With certificates of one's own."""

    def __init__(self, name: str, destination: Destination) -> None:
        super().__init__(
            name,
            key_setting="headers (OTEL_EXPORTER_OTLP_HEADERS)",
            url_setting=destination.setting,
            timeout=destination.timeout,
        )
        self._destination = destination

    def _client_for(self, url: str) -> httpx2.AsyncClient:
        target = self._destination
        if target.certificate is None and target.client_certificate is None:
            return super()._client_for(url)
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            self._client = httpx2.AsyncClient(verify=_tls(target), timeout=self.timeout)
            self._loop = loop
        return self._client


def _tls(target: Destination) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=target.certificate)
        if target.client_certificate is not None:
            context.load_cert_chain(target.client_certificate, target.client_key)
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(
            str(file) for file in (target.certificate, target.client_certificate, target.client_key) if file
        )
        raise ConfigError(f"TLS cannot be set up with {files}: {error}") from error
    return context
