"""HTTP of the backends: what is sent, and what each failure becomes."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

import pytest
from servers.faulty import BlackHole, Refusing
from servers.http_server import HttpServer

from agentrt.errors import ConfigError, PermanentError, ThrottledError, TransientError
from agentrt.telemetry.http import HttpSender, KeyRefused, TooLarge, check_url

pytestmark = pytest.mark.asyncio


async def send(url: str, *, timeout: float = 5.0, secret: str | None = None) -> bytes:
    http = HttpSender("acme", key_setting="the key", url_setting="the address", timeout=timeout)
    try:
        return await http.send(url, b"body", headers={"x-more": "1"}, secret=secret)
    finally:
        await http.aclose()


async def test_the_body_of_a_success_is_given(answering: Callable[..., HttpServer]) -> None:
    server = answering(202, b"thanks")
    assert await send(f"{server.url}/in") == b"thanks"
    (request,) = server.requests
    assert (request.method, request.path, request.body) == ("POST", "/in", b"body")
    assert (request.headers["x-more"], request.headers["user-agent"]) == ("1", "agentrt")


async def test_a_connection_is_used_again(answering: Callable[..., HttpServer]) -> None:
    server = answering(200)
    http = HttpSender("acme", key_setting="the key")
    for _ in range(3):
        await http.send(server.url)
    client = http._client
    await http.send(server.url)
    assert http._client is client
    await http.aclose()
    await http.aclose()
    assert len(server.requests) == 4


async def test_on_another_loop_there_are_other_connections(answering: Callable[..., HttpServer]) -> None:
    server = answering(200)
    http = HttpSender("acme", key_setting="the key")

    async def once() -> None:
        await http.send(server.url)
        await http.aclose()

    for _ in range(2):
        await asyncio.to_thread(asyncio.run, once())
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [
        (301, PermanentError, "check the address"),
        (400, PermanentError, "HTTP 400: said"),
        (401, KeyRefused, "check the key"),
        (403, KeyRefused, "check the key"),
        (404, PermanentError, "check the address"),
        (408, TransientError, "HTTP 408"),
        (413, TooLarge, "HTTP 413"),
        (429, ThrottledError, "HTTP 429"),
        (500, TransientError, "HTTP 500"),
        (501, PermanentError, "check the address"),
        (503, TransientError, "HTTP 503"),
    ],
)
async def test_a_status_becomes_an_error(
    answering: Callable[..., HttpServer], status: int, kind: type[Exception], says: str
) -> None:
    server = answering(status, b"said", {"Retry-After": "3", "Location": "http://127.0.0.1:9/"})
    with pytest.raises(kind, match=rf"acme at 127\.0\.0\.1:{server.port}: .*{says}") as failed:
        await send(server.url)
    assert type(failed.value) is kind
    assert len(server.requests) == 1
    if isinstance(failed.value, TransientError | ThrottledError):
        assert failed.value.retry_after == 3.0


async def test_the_secret_and_control_characters_are_kept_out_of_messages(
    answering: Callable[..., HttpServer],
) -> None:
    server = answering(400, b"bad key topsecret99\x1b[31m\nline" + b"x" * 5000)
    with pytest.raises(PermanentError) as failed:
        await send(server.url, secret="topsecret99")
    said = str(failed.value)
    assert "topsecret99" not in said
    assert "[key]" in said
    assert "\x1b" not in said
    assert len(said) < 400


async def test_a_refused_connection_may_work_later(refusing: Refusing) -> None:
    with pytest.raises(TransientError, match=r"cannot be reached: .*Does it run\? Check the address"):
        await send(refusing.url)


async def test_no_answer_costs_the_timeout(black_hole: BlackHole) -> None:
    with pytest.raises(TransientError, match=r"no answer within 0\.1 s"):
        await send(black_hole.url, timeout=0.1)


async def test_tls_to_a_server_without_it_is_told(answering: Callable[..., HttpServer]) -> None:
    server = answering(raw=b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(PermanentError, match=r"TLS failed .*: does the address need http:// instead"):
        await send(server.url.replace("http:", "https:"))


async def test_a_certificate_of_nobody_is_told() -> None:
    http = HttpSender("acme", key_setting="the key")
    unknown = ssl.SSLCertVerificationError("no")
    unknown.verify_message = "self-signed certificate"
    error = ConnectionError("TLS")
    error.__cause__ = unknown
    told = http._unreachable("acme at h:1", error)
    assert isinstance(told, PermanentError)
    assert "not accepted (self-signed certificate): if its authority is your own, set SSL_CERT_FILE" in str(
        told
    )


async def test_a_proxy_of_the_environment_is_not_meant_for_this_machine(
    answering: Callable[..., HttpServer], refusing: Refusing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", refusing.url)
    monkeypatch.setenv("ALL_PROXY", refusing.url)
    assert await send(answering(200, b"direct").url) == b"direct"


async def test_an_address_is_an_absolute_url() -> None:
    assert check_url("endpoint", "https://host/path/") == "https://host/path"
    for wrong in ("host:80", "ftp://host", "http://", "http://a b", "http://h:99999", ""):
        with pytest.raises(ConfigError, match="endpoint must look like"):
            check_url("endpoint", wrong)
