"""What both clients do over real sockets: connections, cancellation, and every fault of the wire."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agentrt.config import Config
from agentrt.errors import ConfigError, PermanentError, ThrottledError, TransientError
from agentrt.models import http
from agentrt.models.anthropic import Anthropic
from agentrt.models.openai import OpenAI
from agentrt.models.protocol import Finished, TextDelta
from agentrt.testing.fault_server import Fault, FaultServer, Reply
from tests.models.asking import ask, gather, partly, text_of
from tests.models.conftest import KEY

pytestmark = pytest.mark.asyncio
TEXT = "Hello from the fault server."


async def caught(call: Awaitable[Any]) -> BaseException:
    try:
        await call
    except Exception as error:
        return error
    raise AssertionError("no error was raised")


# --- good answers and connections ----------------------------------------------------------------------


async def test_an_answer_and_a_stream_are_the_same(client: Any) -> None:
    whole = await client.complete(ask())
    items, streamed = await gather(client, ask())
    assert text_of(items) == whole.text == streamed.text == TEXT
    assert whole.usage == streamed.usage
    assert (whole.usage.input_tokens, whole.usage.output_tokens, whole.usage.estimated) == (7, 6, False)
    assert (whole.finish, whole.model) == ("stop", "m")
    assert len(items) > 1


async def test_one_connection_serves_one_request_after_another(client: Any, server: FaultServer) -> None:
    client._http.reuse_after_stream = True  # as over TLS
    for _ in range(3):
        await client.complete(ask())
        await gather(client, ask())
    assert server.connections == 1
    assert len(server.requests) == 6


async def test_over_plain_http_each_stream_has_a_connection_of_its_own(
    client: Any, server: FaultServer
) -> None:
    for _ in range(2):
        await client.complete(ask())
        await gather(client, ask())
    assert [request.connection for request in server.requests] == [0, 0, 1, 1]
    assert [request.headers.get("connection") for request in server.requests] == [None, "close"] * 2
    assert OpenAI(base_url="https://h/v1")._http.reuse_after_stream


async def test_an_error_leaves_the_connection_usable(client: Any, server: FaultServer) -> None:
    client._http.reuse_after_stream = True
    server.play(Fault.http(500), Fault.throttled())
    await caught(client.complete(ask()))
    await partly(client, ask())
    await client.complete(ask())
    assert server.connections == 1


async def test_concurrent_requests_have_connections_of_their_own(client: Any, server: FaultServer) -> None:
    server.default = Fault(reply=Reply(), event_seconds=0.01)
    answers = await asyncio.gather(*(gather(client, ask(str(number))) for number in range(20)))
    assert {text_of(items) for items, _ in answers} == {TEXT}
    assert server.connections == 20


async def test_closing_the_client_closes_its_connections(client: Any, server: FaultServer) -> None:
    await client.complete(ask())
    assert server.open_connections == 1
    await client.aclose()
    await server.all_closed()
    await client.complete(ask())  # and a later request opens new ones
    assert server.connections == 2


async def test_a_stream_that_is_closed_early_lets_go_of_its_connection(
    client: Any, server: FaultServer
) -> None:
    server.play(Fault.stall_after(2))
    stream = client.stream(ask())
    assert isinstance(await anext(stream), TextDelta)
    await stream.aclose()
    await server.all_closed()
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_a_stream_that_is_never_started_opens_nothing(client: Any, server: FaultServer) -> None:
    await client.stream(ask()).aclose()
    assert server.connections == 0


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("fault", [Fault.slow_first_byte(60), Fault.stall_after(1)])
async def test_a_cancelled_call_closes_its_connection(
    client: Any, server: FaultServer, fault: Fault, streamed: bool
) -> None:
    server.play(fault)
    task = asyncio.create_task(gather(client, ask()) if streamed else client.complete(ask()))
    await server.received()
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await server.all_closed()
    assert (await client.complete(ask())).text == TEXT


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_call_cancelled_at_any_await_leaves_nothing_behind(
    client: Any, server: FaultServer, streamed: bool
) -> None:
    outcomes: set[bool] = set()
    for steps in range(80):
        task = asyncio.create_task(gather(client, ask()) if streamed else client.complete(ask()))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        outcomes.add(task.cancelled())
        assert task.cancelled() or task.exception() is None
    assert True in outcomes
    assert (await client.complete(ask())).text == TEXT
    await client.aclose()
    await server.all_closed()


async def test_a_dropped_stream_is_closed_by_the_event_loop(client: Any, server: FaultServer) -> None:
    server.play(Fault.stall_after(1))
    async for _ in client.stream(ask()):
        break
    await server.all_closed()


async def test_a_client_may_be_used_on_another_event_loop(server: FaultServer) -> None:
    """As a program does that calls `asyncio.run` twice."""
    client = OpenAI(base_url=server.openai_url, api_key=KEY)

    async def once() -> str:
        text = (await client.complete(ask())).text
        await client.aclose()
        return text

    for _ in range(2):
        assert await asyncio.to_thread(asyncio.run, once()) == TEXT


async def test_the_connection_is_given_back_when_the_last_item_comes(
    client: Any, server: FaultServer
) -> None:
    """A consumer that stops at `Finished` does not cost a connection."""
    client._http.reuse_after_stream = True
    for _ in range(3):
        stream = client.stream(ask())
        async for item in stream:
            if isinstance(item, Finished):
                break
        await stream.aclose()
    assert server.connections == 1


# --- faults --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("fault", "kind", "fields"),
    [
        (Fault.http(500), TransientError, {"executed": None, "retry_after": None}),
        (Fault.http(529), TransientError, {}),
        (Fault.unavailable(3), TransientError, {"retry_after": 3.0}),
        (Fault.throttled(2), ThrottledError, {"retry_after": 2.0, "executed": False}),
        (Fault.throttled(None), ThrottledError, {"retry_after": None}),
        (Fault.quota_exhausted(), PermanentError, {"fault": "target", "executed": False}),
        (Fault.wrong_key(), PermanentError, {"fault": "target", "executed": False}),
        (Fault.http(404, "no such model"), PermanentError, {"fault": "target"}),
        (Fault.context_too_long(), PermanentError, {"fault": "request", "context_too_long": True}),
        (Fault.content_filter(), PermanentError, {"fault": "request", "context_too_long": False}),
        (Fault.http(422), PermanentError, {"fault": "request"}),
        (Fault.http(409), PermanentError, {"fault": "request"}),
        (Fault.wrong_content_type(), TransientError, {"executed": None}),
        (Fault(status=500, body=b"<h1>oh</h1>", content_type="text/html"), TransientError, {}),
        (Fault.drop_before_headers(), TransientError, {"executed": None}),
        (Fault.drop_before_headers("reset"), TransientError, {"executed": None}),
    ],
)
async def test_a_fault_before_the_answer_is_the_right_error(
    client: Any, server: FaultServer, fault: Fault, kind: type, fields: dict[str, Any], streamed: bool
) -> None:
    server.play(fault)
    error = await caught(gather(client, ask()) if streamed else client.complete(ask()))
    assert type(error) is kind
    assert {name: getattr(error, name) for name in fields} == fields
    assert f"at 127.0.0.1:{server.url.rpartition(':')[2]}" in str(error)
    assert KEY not in str(error)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault.drop_after(2), "broke in the middle of the answer"),
        (Fault.drop_after(2, "reset"), "broke in the middle of the answer"),
        (Fault.error_after(2, "Overloaded"), "Overloaded"),
        (Fault.malformed_json(2), "unreadable"),
        (Fault.no_proper_end(2), "the answer is not whole"),
    ],
)
async def test_a_fault_in_mid_stream_leaves_the_text_so_far(
    client: Any, server: FaultServer, fault: Fault, words: str
) -> None:
    server.play(fault)
    text, error = await partly(client, ask())
    assert type(error) is TransientError
    assert error.executed is None
    assert words in str(error)
    assert text == TEXT[:12]
    await server.all_closed()


@pytest.mark.parametrize(
    "fault",
    [
        Fault.drop_after(1),
        Fault.drop_after(1, "reset"),
        Fault.error_after(1),
        Fault.malformed_json(),
        Fault.no_proper_end(),
    ],
)
async def test_half_an_answer_is_no_answer(client: Any, server: FaultServer, fault: Fault) -> None:
    server.play(fault)
    assert type(await caught(client.complete(ask()))) is TransientError


async def test_a_proper_end_without_any_text_is_an_empty_answer(client: Any, server: FaultServer) -> None:
    server.default = Fault.ok("")
    items, response = await gather(client, ask())
    assert (items, response.text, response.finish) == ([], "", "stop")
    assert (await client.complete(ask())).text == ""


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_answer_cut_by_the_length_limit_says_so(
    client: Any, server: FaultServer, streamed: bool
) -> None:
    server.play(Fault.cut_by_length())
    response = (await gather(client, ask()))[1] if streamed else await client.complete(ask())
    assert (response.text, response.finish) == ("Hello from", "length")


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_answer_that_the_filter_ended_says_so(
    client: Any, server: FaultServer, streamed: bool
) -> None:
    server.play(Fault.filtered())
    response = (await gather(client, ask()))[1] if streamed else await client.complete(ask())
    assert response.finish == "content_filter"


@pytest.mark.parametrize("streamed", [False, True])
async def test_usage_that_is_missing_is_estimated_and_marked(
    client: Any, server: FaultServer, streamed: bool
) -> None:
    server.play(Fault.missing_usage())
    request = ask("x" * 400)
    response = (await gather(client, request))[1] if streamed else await client.complete(request)
    assert response.usage.estimated
    assert (response.usage.input_tokens, response.usage.output_tokens) == (100, 7)


async def test_a_server_that_lingers_after_the_end_is_not_waited_for(
    client: Any, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is whole, but the body does not end."""
    client._http.reuse_after_stream = True
    monkeypatch.setattr(http, "DRAIN_SECONDS", 0.01)
    server.play(Fault(events=99, then="stall"))
    _, response = await gather(client, ask())
    assert response.text == TEXT
    await server.all_closed()


async def test_a_connection_that_breaks_after_the_end_does_not_spoil_the_answer(
    client: Any, server: FaultServer
) -> None:
    for reuse in (False, True):
        client._http.reuse_after_stream = reuse
        server.play(Fault(events=99, then="close"))
        assert (await gather(client, ask()))[1].text == TEXT


async def test_an_error_whose_body_breaks_off_is_judged_by_its_status(
    client: Any, server: FaultServer
) -> None:
    server.play(Fault(status=429, headers={"Retry-After": "2"}, events=0, then="close"))
    error = await caught(client.complete(ask()))
    assert isinstance(error, ThrottledError)
    assert error.retry_after == 2.0


async def test_an_answer_without_end_is_refused(
    client: Any, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "MAX_ANSWER_BYTES", 1000)
    server.play(Fault.ok("x" * 2000))
    error = await caught(client.complete(ask()))
    assert type(error) is TransientError
    assert "longer than 1000 bytes" in str(error)
    monkeypatch.setattr(http, "MAX_ERROR_BYTES", 1000)
    server.play(Fault(status=500, body=b"y" * 5000))
    assert type(await caught(client.complete(ask()))) is TransientError


async def test_a_stream_without_events_is_refused(client: Any, server: FaultServer) -> None:
    server.play(Fault(body=b"data: " + b"x" * (17 * 1024 * 1024), content_type="text/event-stream"))
    _, error = await partly(client, ask())
    assert type(error) is TransientError
    assert "the stream is unreadable: an event is longer" in str(error)


async def test_a_compressed_stream_is_read_all_the_same(openai: OpenAI, server: FaultServer) -> None:
    import gzip

    events = (
        b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n'
        b'data: {"choices":[{"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    )
    server.play(
        Fault(
            body=gzip.compress(events),
            content_type="text/event-stream; charset=utf-8",
            headers={"Content-Encoding": "gzip"},
        )
    )
    assert (await gather(openai, ask()))[1].text == "Hi"
    assert server.requests[-1].headers["accept-encoding"] == "identity"


# --- no connection -------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.mark.parametrize("make", [OpenAI, Anthropic])
async def test_a_refused_connection_proves_that_nothing_was_done(make: Any) -> None:
    port = free_port()
    client = make(base_url=f"http://127.0.0.1:{port}", api_key="")
    error = await caught(client.complete(ask()))
    assert isinstance(error, TransientError)
    assert error.executed is False
    assert f"{client.name} at 127.0.0.1:{port}" in str(error)
    assert "refused: is the server running?" in str(error)
    assert f"{client.name.upper()}_BASE_URL" in str(error)
    await client.aclose()


async def test_an_unknown_host_proves_that_nothing_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    async def unknown(*args: object, **options: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", unknown)
    client = OpenAI(base_url="http://nowhere.invalid/v1", api_key="")
    error = await caught(client.complete(ask()))
    assert isinstance(error, TransientError)
    assert error.executed is False
    assert "nowhere.invalid:80: no connection could be made: the host name is unknown" in str(error)
    await client.aclose()


async def test_tls_to_a_server_that_does_not_speak_it_says_so() -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(plain, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        client = OpenAI(base_url=f"https://127.0.0.1:{port}/v1", api_key="")
        error = await caught(client.complete(ask()))
        await client.aclose()
    assert isinstance(error, TransientError)
    assert error.executed is False
    assert "TLS failed" in str(error)


def self_signed(folder: Path) -> ssl.SSLContext:
    """A server's context with a certificate for 127.0.0.1 that nobody vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    file = folder / "server.pem"
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    file.write_bytes(
        certificate.public_bytes(pem) + key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


async def test_a_certificate_that_nobody_vouches_for_is_not_accepted(tmp_path: Path) -> None:
    received: list[bytes] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.read(1))
        writer.close()

    async with await asyncio.start_server(take, "127.0.0.1", 0, ssl=self_signed(tmp_path)) as listening:
        port = listening.sockets[0].getsockname()[1]
        client = OpenAI(base_url=f"https://127.0.0.1:{port}/v1", api_key=KEY)
        error = await caught(client.complete(ask()))
        await client.aclose()
    assert isinstance(error, TransientError)
    assert error.executed is False
    assert "the certificate was not accepted (self-signed certificate)" in str(error)
    assert "set SSL_CERT_FILE" in str(error)
    assert received == []


async def test_the_first_request_loads_in_a_thread_what_it_needs() -> None:
    loaded = http._Loaded()
    assert not loaded.serves(False)
    await asyncio.to_thread(loaded.load, False)
    assert loaded.serves(False)
    assert not loaded.serves(True)
    await asyncio.to_thread(loaded.load, True)
    assert loaded.serves(True)
    assert loaded.certificates is not None
    assert loaded.certificates.verify_mode is ssl.CERT_REQUIRED


async def test_a_cause_is_found_wherever_it_hides() -> None:
    provider = OpenAI(api_key="")._provider
    try:
        try:
            raise ExceptionGroup("connect", [ValueError(), ConnectionRefusedError()])
        except ExceptionGroup as group:
            raise OSError("All connection attempts failed") from group
    except OSError as error:
        hidden = error
    assert "it was refused" in http._cause(provider, hidden)
    quiet = Exception()
    quiet.__context__ = OSError(113, "No route to host")
    assert http._cause(provider, quiet).startswith("No route to host: check OPENAI_BASE_URL")
    loop = Exception()
    loop.__cause__ = other = ValueError()
    other.__context__ = loop
    assert http._plain(loop) == "Exception"


async def test_a_proxy_of_the_environment_is_not_used_for_this_machine(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    client = OpenAI(base_url=server.openai_url, api_key="")
    assert (await client.complete(ask())).text == TEXT
    await client.aclose()


# --- configuration -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    ["localhost:8080", "ftp://host/v1", "https://", "http://h:99999/", "http://a b/", "http://[::1/", "/v1"],
)
@pytest.mark.parametrize("make", [OpenAI, Anthropic])
async def test_a_wrong_base_url_is_a_config_error(
    make: Any, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError) as caught:
        make(base_url=url)
    assert str(caught.value) == f"base_url must look like https://host/path, not {url!r}"
    variable = f"{make.name.upper()}_BASE_URL"
    monkeypatch.setenv(variable, url)
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value) == f"{variable} must look like https://host/path, not {url!r}"


@pytest.mark.parametrize("prefix", ["openai", "anthropic"])
@pytest.mark.parametrize("option", ["base_url = 'localhost:9'", "headers = { 'a b' = 'c' }"])
async def test_a_wrong_option_is_told_with_its_own_line(prefix: str, option: str, tmp_path: Path) -> None:
    file = tmp_path / "agentrt.toml"
    file.write_text(f"[models.{prefix}]\napi_key = ''\n{option}\n")
    config = Config.load(file, environ={})
    name = option.partition(" ")[0]
    with pytest.raises(ConfigError, match=rf"agentrt\.toml:3: \[models\.{prefix}\] {name}"):
        config.model(prefix).make()


async def test_a_header_that_cannot_be_sent_is_a_config_error_without_its_value() -> None:
    for name, value in (("x-note", "two\r\nlines"), ("x note", "v"), ("", "v"), ("x-ü", "v")):
        with pytest.raises(ConfigError, match=rf"^headers: '{name}' of openai cannot be sent") as caught:
            OpenAI(headers={name: value})
        assert "lines" not in str(caught.value)


async def test_a_users_header_replaces_ours(server: FaultServer) -> None:
    client = OpenAI(base_url=server.openai_url, api_key=KEY, headers={"User-Agent": "mine", "X-Team": "a"})
    await client.complete(ask())
    headers = server.requests[0].headers
    assert (headers["user-agent"], headers["x-team"]) == ("mine", "a")
    assert headers["authorization"] == f"Bearer {KEY}"
    await client.aclose()


async def test_the_user_and_password_of_a_url_stay_out_of_messages() -> None:
    client = OpenAI(base_url=f"http://user:hunter2@127.0.0.1:{free_port()}/v1", api_key="")
    error = await caught(client.complete(ask()))
    assert "hunter2" not in str(error)
    assert "hunter2" not in client.target("m") + client.identity("m")
    await client.aclose()


async def test_ipv6_hosts_keep_their_brackets() -> None:
    assert http.host_of("http://[::1]:8080/v1") == "[::1]:8080"
    assert http.host_of("https://example.com") == "example.com:443"


async def test_a_bug_is_not_taken_for_a_broken_connection(
    openai: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(self: object, piece: bytes) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("agentrt.models.sse.ServerEvents.feed", bug)
    _, error = await partly(openai, ask())
    assert type(error) is ZeroDivisionError
