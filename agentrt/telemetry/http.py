"""HTTP for telemetry backends: one pool of connections, and every failure as one of our errors.

    http = HttpSender("zipkin", key_setting="[telemetry.zipkin] headers")
    await http.send("http://127.0.0.1:9411/api/v2/spans", body, headers={"content-type": "application/json"})

httpx2 is imported when the first request is made. Nothing is retried here and no redirect is followed: the exporter
retries what its backend raises.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from agentrt.errors import CallError, ConfigError, PermanentError, ThrottledError, TransientError
from agentrt.retry_after import retry_after

if TYPE_CHECKING:
    import httpx2

__all__ = ["HttpSender", "KeyRefused", "TooLarge", "check_url"]

MESSAGE_LIMIT = 300
"""Characters of the server's own words that a message keeps."""
SHORTEST_SECRET = 8
"""A key of fewer characters is a placeholder, and blotting it out would only garble the message."""


class TooLarge(PermanentError):
    """The server takes no request of this size; in halves it may."""


class KeyRefused(PermanentError):
    """The server does not take our key, or none of ours (401, 403)."""

    def __init__(self, message: str) -> None:
        super().__init__(message, fault="target")


def check_url(setting: str, value: str) -> str:
    """`value` without a slash at its end. Raises ConfigError if it is no absolute http or https URL."""
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except (ValueError, AttributeError, TypeError):
        usable = False
    if not usable or any(char.isspace() for char in value):
        raise ConfigError(f"{setting} must look like http://host:port/path, not {value!r}")
    return value.rstrip("/")


class HttpSender:
    """Sends the requests of the backend `name`.

    `key_setting`: where the user sets what a 401 or 403 refuses. `url_setting`: where the address is set.
    `timeout`: seconds for each step on the wire; the whole has the exporter's limit. The connections belong to the
    event loop of the first request; on another loop a new pool is made.
    """

    def __init__(
        self, name: str, *, key_setting: str, url_setting: str = "endpoint", timeout: float = 10.0
    ) -> None:
        self.name = name
        self.key_setting = key_setting
        self.url_setting = url_setting
        self.timeout = timeout
        self._client: httpx2.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def send(
        self,
        url: str,
        body: bytes = b"",
        *,
        method: str = "POST",
        headers: Mapping[str, str] | None = None,
        secret: str | None = None,
    ) -> bytes:
        """The body of the answer, if its status is a success.

        Raises TransientError (no connection, 408, 5xx), ThrottledError (429), TooLarge (413) or PermanentError.
        `secret` is blotted out of messages.
        """
        import httpx2

        client = self._client_for(url)
        where = f"{self.name} at {host_of(url)}"
        try:
            request = httpx2.Request(
                method, url, headers={"user-agent": "agentrt", **(headers or {})}, content=body
            )
            response = await client.send(request)
        except httpx2.TimeoutException as error:
            raise TransientError(f"{where}: no answer within {self.timeout:g} s") from error
        except (httpx2.HTTPError, ssl.SSLError) as error:
            # Bare is what TLS 1.3 says after its handshake: that we had to show a certificate.
            raise self._unreachable(where, error) from error
        if 200 <= response.status_code < 300:
            return response.content
        raise self._refused(where, response, secret)

    async def aclose(self) -> None:
        """Close all connections."""
        client, self._client = self._client, None
        if client is not None and self._loop is asyncio.get_running_loop():
            await client.aclose()

    def _client_for(self, url: str) -> httpx2.AsyncClient:
        import httpx2

        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            # Over plain HTTP nothing looks at certificates, and loading them takes a tenth of a second.
            self._client = httpx2.AsyncClient(
                verify=url.startswith("https:"),
                timeout=self.timeout,
                # A proxy of the environment is not meant for servers on this machine.
                trust_env=not _is_loopback(urlsplit(url).hostname or ""),
            )
            self._loop = loop
        return self._client

    def _unreachable(self, where: str, error: Exception) -> CallError:
        for cause in _chain(error):
            if isinstance(cause, ssl.SSLCertVerificationError):
                why = cause.verify_message or "it cannot be verified"
                return PermanentError(
                    f"{where}: the certificate was not accepted ({why}): if its authority is your own, set "
                    "SSL_CERT_FILE",
                    fault="target",
                )
            if isinstance(cause, ssl.SSLError):
                return PermanentError(
                    f"{where}: TLS failed ({cause.reason or cause}): does {self.url_setting} need http:// instead?",
                    fault="target",
                )
        said = str(error).rstrip(".") or type(error).__name__
        return TransientError(f"{where} cannot be reached: {said}. Does it run? Check {self.url_setting}")

    def _refused(self, where: str, response: httpx2.Response, secret: str | None) -> CallError:
        status, wait = response.status_code, retry_after(response.headers)
        said = _shown(response.text, secret)
        head = f"{where}: HTTP {status}" + (f": {said}" if said else "")
        if status == 429:
            return ThrottledError(head, retry_after=wait)
        if status in (408, 425) or (status >= 500 and status != 501):
            return TransientError(head, retry_after=wait)
        if status == 413:
            return TooLarge(head)
        if status in (401, 403):
            return KeyRefused(f"{head}; check {self.key_setting}")
        if 300 <= status < 400 or status in (404, 405, 501):
            return PermanentError(f"{head}; check {self.url_setting}", fault="target")
        return PermanentError(head)


def host_of(url: str) -> str:
    """Host and port of a URL, without the user name and password that it may hold."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _shown(text: str, secret: str | None) -> str:
    """The server's words for a message: on one line, short, printable, without the key."""
    if secret and len(secret) >= SHORTEST_SECRET:
        text = text.replace(secret, "[key]")
    text = " ".join("".join(char if char.isprintable() else " " for char in text[:100_000]).split())
    return text if len(text) <= MESSAGE_LIMIT else text[:MESSAGE_LIMIT] + "..."
