"""Vault's HTTP API: one request, one answer. Nothing is retried; the only redirect that is followed is the one by which
a standby server names the active one."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urljoin, urlsplit

import msgspec
from msgspec import Raw, Struct

from agentrt.retry_after import retry_after
from agentrt.secrets import SecretError, SecretInvalid, SecretThrottled, SecretUnavailable
from agentrt_vault.tls import FollowedContext, Tls

if TYPE_CHECKING:
    import httpx2

__all__ = ["Answer", "Auth", "Vault", "told_of"]

MESSAGE_LIMIT = 300
"""Characters of the server's own words that a message keeps."""

SENSITIVE = ("jwt", "secret_id", "token")
"""Fields of our requests that no message may repeat."""


OURS = ("CERTIFICATE_REQUIRED", "BAD_CERTIFICATE", "UNKNOWN_CA", "CERTIFICATE_UNKNOWN", "CERTIFICATE_EXPIRED")
"""Alerts by which a server refuses the certificate that we show, or that we show none."""


class Auth(Struct):
    """What a login or the renewal of a token gives. `lease_duration`: seconds; 0 for a token that does not end.
    `token_type`: "service", or "batch" for one that the server does not keep, and so cannot revoke."""

    client_token: str
    lease_duration: float = 0.0
    renewable: bool = False
    token_type: str = "service"

    def __repr__(self) -> str:
        return f"Auth(lease_duration={self.lease_duration!r}, renewable={self.renewable!r})"


class Body(Struct):
    """The fields of an answer that this plugin reads. `data` stays as the server wrote it."""

    data: Raw = Raw(b"null")
    lease_id: str | None = None
    lease_duration: float = 0.0
    renewable: bool = False
    auth: Auth | None = None
    warnings: list[str] | None = None
    errors: list[str] | None = None

    def __repr__(self) -> str:
        return "Body()"


class Answer(Struct, frozen=True):
    """An answer of Vault's: a success, or a refusal (4xx) that it gives reasons for. `said`: its own words, fit for a
    message."""

    status: int
    body: Body
    said: str = ""

    @property
    def ok(self) -> bool:
        return self.status < 300

    def data(self) -> dict[str, Any]:
        """The fields of `data`."""
        found = msgspec.json.decode(self.body.data)
        return found if isinstance(found, dict) else {}

    def warned(self, words: str) -> bool:
        """Whether a warning contains `words`."""
        return any(words in warning for warning in self.body.warnings or ())

    def __repr__(self) -> str:
        return f"Answer(status={self.status!r})"


class Vault:
    """A server and the connections to it, which belong to the event loop of the first request; on another loop a new
    pool is made.

    `url`: without /v1. `namespace`: sent with each request. `timeout`: seconds for each step on the wire.
    """

    def __init__(self, url: str, *, namespace: str | None, tls: Tls, timeout: float) -> None:
        self.url = url
        self.host = _host_of(url)
        self.timeout = timeout
        self._namespace = namespace
        self._tls = tls
        self._clients: dict[tuple[bool, bool], tuple[httpx2.AsyncClient, FollowedContext | None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    async def ask(
        self,
        method: str,
        path: str,
        *,
        token: str | None = None,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Answer:
        """The answer to a request for /v1/`path`, which is not quoted yet.

        Raises SecretUnavailable (no connection, sealed, 5xx, an answer that is not Vault's) or SecretThrottled.
        """
        headers = {"X-Vault-Request": "true", "User-Agent": "agentrt"}
        if token is not None:
            headers["X-Vault-Token"] = token
        if self._namespace is not None:
            headers["X-Vault-Namespace"] = self._namespace
        url = f"{self.url}/v1/{_quoted(path)}"
        response = await self._send(method, url, headers, body, query)
        if response.status_code in (307, 308):
            active = self._active(url, response.headers.get("location", ""))
            response = await self._send(method, active, headers, body, None)
        hidden = [str(body[name]) for name in SENSITIVE if body and body.get(name)]
        return self._answer(response, [*hidden, *([token] if token else [])])

    async def aclose(self) -> None:
        """Close all connections."""
        clients, self._clients = self._clients, {}
        if self._loop is asyncio.get_running_loop():
            for client, _ in clients.values():
                await client.aclose()

    async def _send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Mapping[str, Any] | None,
        query: Mapping[str, str] | None,
    ) -> httpx2.Response:
        import httpx2

        client = await self._client_for(url)
        content = None if body is None else msgspec.json.encode(body)
        try:
            return await client.request(method, url, headers=headers, content=content, params=query)
        except httpx2.TimeoutException as error:
            raise SecretUnavailable(f"vault at {self.host}: no answer within {self.timeout:g} s") from error
        except (httpx2.HTTPError, httpx2.InvalidURL, ssl.SSLError) as error:
            # A server that misses our certificate says so after the handshake, or just closes.
            asked = isinstance(error, httpx2.ReadError | httpx2.WriteError | httpx2.RemoteProtocolError)
            hint = ", and `client_cert_file` if it wants a certificate" * (asked and url.startswith("https:"))
            raise SecretUnavailable(f"vault at {self.host} {_unreachable(error)}{hint}") from error

    async def _client_for(self, url: str) -> httpx2.AsyncClient:
        # A proxy of the environment is not meant for servers on this machine. Of each kind one client: what is
        # reached over plain HTTP may lead to a server whose certificate counts.
        secure, local = kind = url.startswith("https:"), _is_loopback(url)
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._clients, self._loop = {}, loop
        if kind not in self._clients:
            followed = None
            if secure:
                followed = await asyncio.to_thread(FollowedContext, self._tls, trust_env=not local)
            import httpx2

            if kind not in self._clients:  # else another request was quicker
                verify = False if followed is None else followed.context
                client = httpx2.AsyncClient(verify=verify, timeout=self.timeout, trust_env=not local)
                self._clients[kind] = client, followed
        client, followed = self._clients[kind]
        if followed is not None and followed.is_stale:
            await asyncio.to_thread(followed.renew)
        return client

    def _active(self, url: str, location: str) -> str:
        """Where a standby server, asked for `url`, says that the active one is. The token goes there: never from https
        to plain http."""
        active = _led(url, location)
        if active is None:
            raise SecretUnavailable(f"vault at {self.host} redirects to what is no address: check `url`")
        if active.startswith("http:") and not self.url.startswith("http:"):
            raise SecretUnavailable(
                f"vault at {self.host} redirects to {_host_of(active)}, which is not https: check `url`"
            )
        return active

    def _answer(self, response: httpx2.Response, hidden: Sequence[str]) -> Answer:
        status = response.status_code
        try:
            body = msgspec.json.decode(response.content or b"{}", type=Body)
        except msgspec.DecodeError:
            body = None  # a proxy's page: its words are none of Vault's
        said = _shown((body.errors or body.warnings or ()) if body else (), hidden)
        head = f"vault at {self.host}: " + (said or f"HTTP {status}")
        if status == 429:
            raise SecretThrottled(head, retry_after=retry_after(response.headers))
        if status == 503 and "sealed" in said:
            raise SecretUnavailable(f"{head}: it gives nothing until it is unsealed")
        if status in (408, 412, 425) or status >= 500:
            raise SecretUnavailable(head, retry_after=retry_after(response.headers))
        if body is None or not (200 <= status < 300 or 400 <= status < 500):
            raise SecretUnavailable(
                f"vault at {self.host}: HTTP {status}, but no answer of Vault's: check `url`"
            )
        return Answer(status, body, said)


def told_of(what: str, error: SecretError) -> SecretError:
    """`error` for somebody who wanted `what`, with which its message then begins. A failed login is one error for all
    who waited for it, and stays as it is."""
    message = f"{what}: {error}"
    if isinstance(error, SecretThrottled | SecretUnavailable):
        return type(error)(message, retry_after=error.retry_after)
    return type(error)(message)


def _led(url: str, location: str) -> str | None:
    """The address that `location` is, seen from `url`."""
    try:
        active = urljoin(url, location)
        parts = urlsplit(active)
    except ValueError:
        return None
    return active if parts.hostname and parts.scheme in ("https", "http") else None


def _quoted(path: str) -> str:
    """`path` with each segment quoted. Raises SecretInvalid for what could leave the place that is meant."""
    segments = path.split("/")
    if any(segment in ("", ".", "..") for segment in segments) or not path.isprintable():
        raise SecretInvalid(
            f"{path[:200]!r} is no path in Vault: empty parts, '.', '..' and control characters are refused"
        )
    return "/".join(quote(segment, safe="") for segment in segments)


def _unreachable(error: Exception) -> str:
    for cause in _chain(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            why = cause.verify_message or "it cannot be verified"
            return f"showed a certificate that is not accepted ({why}): if its authority is your own, set `ca_file`"
        if isinstance(cause, ssl.SSLError) and any(word in (cause.reason or "") for word in OURS):
            return f"does not accept us in TLS ({cause.reason}): it wants a certificate: check `client_cert_file`"
        if isinstance(cause, ssl.SSLError):
            return f"failed in TLS ({cause.reason or 'no reason'}): does `url` need http:// instead?"
    said = str(error).rstrip(".") or type(error).__name__
    return f"cannot be reached: {said}. Does it run? Check `url`"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _shown(words: Sequence[str], hidden: Sequence[str]) -> str:
    """The server's words on one line, short, printable, without what we sent in confidence."""
    text = "; ".join(words)
    for value in hidden:
        text = text.replace(value, "[hidden]")
    text = "".join(char if char.isprintable() else " " for char in text[:100_000])
    # Go's list of errors: "1 error occurred: * permission denied".
    text = re.sub(r"^\d+ errors? occurred: \* ", "", " ".join(text.split())).rstrip(".")
    return text if len(text) <= MESSAGE_LIMIT else text[:MESSAGE_LIMIT] + "..."


def _host_of(url: str) -> str:
    """Host and port, without a user name and password that the URL may hold."""
    return urlsplit(url).netloc.rpartition("@")[2]


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")
