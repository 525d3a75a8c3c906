"""agentrt-redis when its server is not well: what each policy does, what is told, how much it costs."""

from __future__ import annotations

import asyncio
import datetime
import logging
import os
import re
import signal
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from agentrt_redis import RedisLimits
from servers.faulty import BlackHole, Refusing
from servers.valkey import Valkey

from agentrt.call import Refusal
from agentrt.config import Config
from agentrt.errors import ConfigError, RateLimited, TransientError
from agentrt.middleware.rate_limit import RateLimit
from agentrt.pipeline import Pipeline
from agentrt.security.rate_limits import Decision, RateLimiter

pytestmark = pytest.mark.asyncio

PAUSE = 0.2


class PlainHost:
    """What a store is opened with: it knows `secrets` by reference, and keeps what was asked for."""

    log = logging.getLogger("agentrt.plugins")

    def __init__(self, secrets: dict[str, str] | None = None) -> None:
        self.secrets = secrets or {}
        self.cache: dict[str, str] = {}
        self.asked: list[str] = []

    @property
    def clock(self) -> Any:
        return asyncio.get_running_loop()

    async def call(self, *args: Any, **more: Any) -> Any:
        raise AssertionError("a store of rate limits makes no calls through the pipeline")

    async def secret(self, reference: str, /) -> str:
        self.asked.append(reference)
        if reference not in self.cache:
            if reference not in self.secrets:
                raise TransientError(f"{reference}: the provider does not answer")
            self.cache[reference] = self.secrets[reference]
        return self.cache[reference]

    async def secret_rejected(self, reference: str, value: str, /) -> str:
        assert self.cache.pop(reference) == value
        return await self.secret(reference)


@asynccontextmanager
async def limiter_on(
    url: str, *, host: PlainHost | None = None, **options: Any
) -> AsyncIterator[RateLimiter]:
    store = RedisLimits(url=url, **{"pause": PAUSE, "timeout": 10, "connect_timeout": 10, **options})
    async with RateLimiter(store, host=host or PlainHost(), name="redis") as limiter:
        yield limiter


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


async def back(limiter: RateLimiter) -> None:
    """Wait until the server counts again."""
    for _ in range(100):
        if not (await limiter.check_rate_limit("is it back?", 1000, 60)).degraded:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("the server does not count again")


# --- the policies --------------------------------------------------------------------------------------


async def test_closed_allows_nothing_until_the_server_is_back(mortal_valkey: Valkey) -> None:
    async with limiter_on(mortal_valkey.url, on_failure="closed") as limiter:
        assert await limiter.check_rate_limit("a", 5, 60) == Decision(True, 4, 0.0)
        mortal_valkey.kill()
        for _ in range(3):
            refused = await limiter.check_rate_limit("a", 5, 60)
            assert refused == Decision(False, 0, PAUSE, degraded=True)
            assert not await limiter.acquire("a", 5, 60, max_wait=30)
        await asyncio.to_thread(mortal_valkey.revive)
        await back(limiter)
        assert await limiter.check_rate_limit("a", 5, 60) == Decision(True, 4, 0.0)


async def test_open_allows_everything_until_the_server_is_back(mortal_valkey: Valkey) -> None:
    async with limiter_on(mortal_valkey.url, on_failure="open") as limiter:
        assert await limiter.check_rate_limit("a", 1, 60)
        assert not await limiter.check_rate_limit("a", 1, 60)
        mortal_valkey.kill()
        for _ in range(5):
            assert await limiter.check_rate_limit("a", 1, 60) == Decision(True, 0, 0.0, degraded=True)
        await asyncio.to_thread(mortal_valkey.revive)
        await back(limiter)
        assert await limiter.check_rate_limit("a", 1, 60)
        assert not await limiter.check_rate_limit("a", 1, 60)


async def test_local_counts_in_this_process_until_the_server_is_back(mortal_valkey: Valkey) -> None:
    async with limiter_on(mortal_valkey.url) as limiter:
        for _ in range(3):
            await limiter.check_rate_limit("a", 3, 60)
        mortal_valkey.kill()
        made = [await limiter.check_rate_limit("a", 3, 60) for _ in range(5)]
        assert [decision.allowed for decision in made] == [True, True, True, False, False]
        assert all(decision.degraded for decision in made)
        # Turns are booked and given back here, too.
        await limiter.acquire("b", 1, 0.6, max_wait=0)
        waited = [(await limiter.acquire("b", 1, 0.6, max_wait=5)).waited for _ in range(3)]
        assert max(waited) > 0.0
        cancelled = asyncio.create_task(limiter.acquire("b", 1, 0.6, max_wait=5))
        await asyncio.sleep(0.01)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        assert (await limiter.acquire("b", 1, 0.6, max_wait=5)).waited <= 0.6
        await asyncio.to_thread(mortal_valkey.revive)
        await back(limiter)
        assert await limiter.check_rate_limit("a", 3, 60) == Decision(True, 2, 0.0)
        # The next failure begins with an empty count.
        mortal_valkey.kill()
        assert (await limiter.check_rate_limit("a", 3, 60)).remaining == 2


async def test_a_failure_is_told_once_and_so_is_its_end(
    mortal_valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    async with limiter_on(mortal_valkey.url) as limiter:
        for _ in range(2):
            await limiter.check_rate_limit("a", 5, 60)
            mortal_valkey.kill()
            for _ in range(4):
                await limiter.check_rate_limit("a", 5, 60)
                await asyncio.sleep(PAUSE / 2)
            await asyncio.to_thread(mortal_valkey.revive)
            await back(limiter)
    address = f"redis://127.0.0.1:{mortal_valkey.port}/0"
    lines = told(caplog)
    assert len(lines) == 4
    for failed, again in (lines[:2], lines[2:]):
        assert failed.startswith(f"rate limits: {address} does not count (")
        assert failed.endswith("on_failure = 'local': this process counts for itself")
        assert again.startswith(f"rate limits: {address} counts again, after ")


async def test_the_stage_tells_a_refusal_by_policy_apart(refusing: Refusing) -> None:
    async with limiter_on(f"redis://127.0.0.1:{refusing.port}", on_failure="closed") as limiter:
        calls: list[Any] = []

        async def note(call: Any, call_next: Any) -> Any:
            calls.append(call)
            return await call_next(call)

        async def callee() -> None:
            raise AssertionError("it must not be called")

        pipeline = Pipeline(inner_first=[RateLimit(limit=5, window=60, limiter=limiter), note], target="a")
        with pytest.raises(RateLimited, match="is decided by its on_failure, as its store does not answer"):
            await pipeline.call(callee)
        assert [type(entry) for entry in calls[0].record.entries] == [Refusal]


# --- what it costs -------------------------------------------------------------------------------------


async def test_a_server_that_refuses_connections_costs_no_time(refusing: Refusing) -> None:
    url = f"redis://127.0.0.1:{refusing.port}"
    async with limiter_on(url, timeout=600, connect_timeout=600) as limiter:
        await limiter.check_rate_limit("loads the client", 1, 60)
        await asyncio.sleep(PAUSE)
        began = time.monotonic()
        assert (await limiter.check_rate_limit("a", 5, 60)).degraded
        assert time.monotonic() - began < 20.0


async def test_a_server_that_does_not_answer_costs_its_timeout_once_and_then_nothing(
    black_hole: BlackHole,
) -> None:
    url = f"redis://127.0.0.1:{black_hole.port}"
    async with limiter_on(url, timeout=0.3, connect_timeout=0.3, connections=5, pause=30) as limiter:
        began = time.monotonic()
        made = await asyncio.gather(*(limiter.check_rate_limit("a", 100, 60) for _ in range(1000)))
        took = time.monotonic() - began
        assert sum(map(bool, made)) == 100
        assert all(decision.degraded for decision in made)
        assert took < 20.0  # of 60, if each waited for it
        assert black_hole.connections <= 5
        began = time.monotonic()
        for _ in range(200):
            await limiter.check_rate_limit("b", 100, 60)
        assert time.monotonic() - began < 20.0  # of 60
        assert black_hole.connections <= 5


async def test_a_server_that_is_down_is_asked_by_one_at_a_time(black_hole: BlackHole) -> None:
    url = f"redis://127.0.0.1:{black_hole.port}"
    async with limiter_on(url, timeout=0.1, connect_timeout=0.1, pause=0.3) as limiter:
        await limiter.check_rate_limit("a", 1000, 60)
        first = black_hole.connections
        began = time.monotonic()
        while (took := time.monotonic() - began) < 1.5 or black_hole.connections == first:
            await asyncio.gather(*(limiter.check_rate_limit("a", 10**6, 60) for _ in range(20)))
            await asyncio.sleep(0.01)
        assert black_hole.connections - first <= took / 0.3 + 1


async def test_a_server_that_is_stopped_and_goes_on_counts_again(mortal_valkey: Valkey) -> None:
    async with limiter_on(mortal_valkey.url, timeout=1, connect_timeout=1) as limiter:
        await back(limiter)
        os.kill(mortal_valkey.pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            assert (await limiter.check_rate_limit("a", 5, 60)).degraded
            assert time.monotonic() - began < 20
        finally:
            os.kill(mortal_valkey.pid, signal.SIGCONT)
        await back(limiter)


async def test_a_queue_that_is_too_long_is_a_failure_too(
    mortal_valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    async with limiter_on(mortal_valkey.url, connections=1, timeout=40, queue_timeout=0.2) as limiter:
        await limiter.check_rate_limit("a", 5, 60)
        os.kill(mortal_valkey.pid, signal.SIGSTOP)
        try:
            held = asyncio.create_task(limiter.check_rate_limit("a", 5, 60))
            await asyncio.sleep(0.05)
            assert (await limiter.check_rate_limit("a", 5, 60)).degraded
        finally:
            os.kill(mortal_valkey.pid, signal.SIGCONT)
        assert not (await held).degraded
    assert "(all 1 connections are busy for 0.2 s)" in told(caplog)[0]


async def test_a_hit_whose_answer_is_lost_is_not_made_twice(mortal_valkey: Valkey) -> None:
    async with limiter_on(mortal_valkey.url, timeout=1, on_failure="closed") as limiter:
        await back(limiter)
        os.kill(mortal_valkey.pid, signal.SIGSTOP)
        try:
            assert not await limiter.check_rate_limit("a", 5, 60)  # it lies in the server's socket
        finally:
            os.kill(mortal_valkey.pid, signal.SIGCONT)
        await back(limiter)
    turns = await asyncio.to_thread(mortal_valkey.ask, "LLEN agentrt:rate_limits:60000000:a")
    assert turns == b":1\r\n"


async def test_one_who_is_cancelled_while_the_server_is_silent_is_cancelled(black_hole: BlackHole) -> None:
    url = f"redis://127.0.0.1:{black_hole.port}"
    async with limiter_on(url, timeout=30, connections=1, queue_timeout=30) as limiter:
        asking, queued = (asyncio.create_task(limiter.check_rate_limit("a", 5, 60)) for _ in range(2))
        await asyncio.sleep(0.3)
        for task in (queued, asking):
            task.cancel()
        await asyncio.wait([asking, queued])
        assert asking.cancelled()
        assert queued.cancelled()


async def test_an_error_reply_is_a_failure_that_is_told(
    mortal_valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    async with limiter_on(mortal_valkey.url) as limiter:
        await asyncio.to_thread(mortal_valkey.ask, "CONFIG SET maxmemory 1")
        assert (await limiter.check_rate_limit("a", 5, 60)).degraded
        await asyncio.to_thread(mortal_valkey.ask, "CONFIG SET maxmemory 0")
        await back(limiter)
    assert "used memory > 'maxmemory'" in told(caplog)[0]


# --- secrets and TLS -----------------------------------------------------------------------------------


async def test_a_password_may_be_given_by_code_or_the_environment() -> None:
    with Valkey(password="right-word") as server:
        async with limiter_on(server.url, password="right-word") as limiter:
            assert await limiter.check_rate_limit("a", 5, 60) == Decision(True, 4, 0.0)
        environ = {
            "AGENTRT_RATE_LIMITS__BACKEND": "redis",
            "AGENTRT_RATE_LIMITS__REDIS__URL": server.url,
            "AGENTRT_RATE_LIMITS__REDIS__PASSWORD": "right-word",
        }
        config = Config.load(environ=environ)
        assert "right-word" not in repr(config)
        async with RateLimiter.from_config(config, PlainHost()) as limiter:
            assert await limiter.check_rate_limit("a", 5, 60) == Decision(True, 3, 0.0)


@pytest.mark.parametrize("whole", [False, True], ids=["password", "url"])
async def test_a_password_that_was_changed_is_followed(whole: bool) -> None:
    with Valkey(password="first-word") as server:

        def secret(word: str) -> str:
            return f"redis://:{word}@127.0.0.1:{server.port}/0" if whole else f"{word}\n"

        host = PlainHost({"secret://redis": secret("first-word")})
        url = "secret://redis" if whole else server.url
        options = {} if whole else {"password": "secret://redis"}
        async with limiter_on(url, host=host, **options) as limiter:
            assert await limiter.check_rate_limit("a", 5, 60) == Decision(True, 4, 0.0)
            server.ask("CONFIG SET requirepass second-word")
            server.password = "second-word"
            host.secrets["secret://redis"] = secret("second-word")
            server.ask("CLIENT KILL TYPE normal SKIPME yes")
            await back(limiter)
            assert await limiter.check_rate_limit("a", 5, 60) == Decision(True, 3, 0.0)
        assert set(host.asked) == {"secret://redis"}


async def test_looking_up_its_password_may_be_a_call_that_is_counted() -> None:
    """As with a rate limit for every kind of call: the secret's own call must not wait for the connection."""
    with Valkey(password="right-word") as server:
        limiters: list[RateLimiter] = []

        class Counted(PlainHost):
            async def secret(self, reference: str, /) -> str:
                decision = await limiters[0].check_rate_limit("calls of secrets", 10, 60)
                assert decision.degraded
                return await super().secret(reference)

        host = Counted({"secret://redis": "right-word"})
        patience = {"timeout": 40, "connect_timeout": 40, "queue_timeout": 40}
        options = {"password": "secret://redis", "on_failure": "closed", **patience}
        async with limiter_on(server.url, host=host, **options) as limiter:
            limiters.append(limiter)
            began = time.monotonic()
            assert await limiter.check_rate_limit("a", 5, 60) == Decision(True, 4, 0.0)
            assert time.monotonic() - began < 20.0


async def test_a_secret_that_does_not_come_is_a_failure_after_the_connect_timeout(
    caplog: pytest.LogCaptureFixture, valkey: Valkey
) -> None:
    class Silent(PlainHost):
        async def secret(self, reference: str, /) -> str:
            await asyncio.sleep(60)
            raise AssertionError("unreachable")

    async with limiter_on(
        valkey.url, host=Silent(), password="secret://redis", connect_timeout=0.2
    ) as limiter:
        began = time.monotonic()
        assert (await limiter.check_rate_limit("a", 5, 60)).degraded
        assert time.monotonic() - began < 20.0
    assert len(told(caplog)) == 1


async def test_a_wrong_password_is_told_without_being_shown(caplog: pytest.LogCaptureFixture) -> None:
    with Valkey(password="right-word") as server, caplog.at_level(logging.DEBUG):
        host = PlainHost({"secret://redis": "wrong-word"})
        async with limiter_on(server.url, host=host, password="secret://redis", username="me") as limiter:
            assert (await limiter.check_rate_limit("a", 5, 60)).degraded
    assert "AuthenticationError: invalid username-password pair" in told(caplog)[0]
    assert "wrong-word" not in caplog.text


async def test_a_user_with_no_more_rights_than_the_readme_names_will_do(mortal_valkey: Valkey) -> None:
    readme = Path(__file__).parents[2] / "plugins" / "agentrt-redis" / "README.md"
    (rights,) = re.findall(r"`~PREFIX\*` and `([^`]*)`", readme.read_text())
    command = f"ACL SETUSER limiter on >some-word resetkeys ~mine:* -@all {rights}"
    assert await asyncio.to_thread(mortal_valkey.ask, command) == b"+OK\r\n"
    host = PlainHost({"secret://redis": "some-word"})
    options = {"username": "limiter", "password": "secret://redis", "prefix": "mine:", "on_failure": "closed"}
    async with limiter_on(mortal_valkey.url, host=host, **options) as limiter:
        assert await limiter.acquire("a", 2, 0.1, cost=2, max_wait=0)
        assert await limiter.acquire("a", 2, 0.1, max_wait=1)
        assert await limiter.acquire("a", 2, 60, cost=2, max_wait=0)
        waiting = asyncio.create_task(limiter.acquire("a", 2, 60, cost=2, max_wait=99))
        await asyncio.sleep(0.1)
        waiting.cancel()
        await asyncio.wait([waiting])
        for _ in range(100):
            if (await limiter.check_rate_limit("a", 2, 60)).retry_after < 60.0:
                break
            await asyncio.sleep(0.05)
        else:
            raise AssertionError("the turn is not given back")
        await limiter.reset("a", 60)
        assert await limiter.check_rate_limit("a", 2, 60) == Decision(True, 1, 0.0)


async def test_the_whole_url_may_be_a_secret(caplog: pytest.LogCaptureFixture) -> None:
    with Valkey(password="right-word") as server, caplog.at_level(logging.DEBUG):
        host = PlainHost({"secret://redis_url": f"redis://default:right-word@127.0.0.1:{server.port}/2"})
        async with limiter_on("secret://redis_url", host=host) as limiter:
            assert await limiter.check_rate_limit("a", 5, 60) == Decision(True, 4, 0.0)
            server.kill()
            assert (await limiter.check_rate_limit("a", 5, 60)).degraded
    assert f"redis://127.0.0.1:{server.port}/2 does not count" in told(caplog)[0]
    assert "right-word" not in caplog.text


async def test_secrets_that_cannot_be_had_now_are_a_failure_and_wrong_ones_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with limiter_on("secret://redis_url", host=PlainHost()) as limiter:
        assert (await limiter.check_rate_limit("a", 5, 60)).degraded
    assert "TransientError: secret://redis_url: the provider does not answer" in told(caplog)[0]
    host = PlainHost({"secret://redis_url": "https://hunter2"})
    async with limiter_on("secret://redis_url", host=host) as limiter:
        with pytest.raises(ConfigError, match="url must be such as") as caught:
            await limiter.check_rate_limit("a", 5, 60)
    assert "hunter2" not in str(caught.value)


@asynccontextmanager
async def behind_tls(server: Valkey, folder: Path) -> AsyncIterator[int]:
    """A port that speaks TLS for `server`; the certificate for localhost is folder/ca.pem."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate(folder))
    tasks: set[asyncio.Task[None]] = set()

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
        target.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", server.port)
        for pair in ((reader, inner_writer), (inner_reader, writer)):
            task = asyncio.create_task(copy(*pair))
            tasks.add(task)

    front = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield front.sockets[0].getsockname()[1]
    finally:
        front.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for localhost that signs itself, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "ca.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return folder / "ca.pem", folder / "key.pem"


async def test_tls_trusts_only_what_it_is_told_to(
    valkey: Valkey, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with behind_tls(valkey, tmp_path) as port:
        async with limiter_on(f"rediss://localhost:{port}", ca_file=tmp_path / "ca.pem") as limiter:
            assert await limiter.check_rate_limit("a", 5, 60) == Decision(True, 4, 0.0)
        async with limiter_on(f"rediss://localhost:{port}") as limiter:
            assert (await limiter.check_rate_limit("a", 5, 60)).degraded
        async with limiter_on(f"rediss://127.0.0.1:{port}", ca_file=tmp_path / "ca.pem") as limiter:
            assert (await limiter.check_rate_limit("a", 5, 60)).degraded
    untrusted, other_name = told(caplog)
    assert "self-signed certificate" in untrusted
    assert "IP address mismatch" in other_name
