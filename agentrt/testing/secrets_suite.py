"""The tests that every provider of secrets should pass. In a plugin's own tests:

    from agentrt.testing import SecretsProviderTests

    class TestAcme(SecretsProviderTests):
        def make(self):
            return Acme(url=self.server.url)

        def store(self, name, value):
            self.server.secrets[name] = value
            return SecretRef(name)

Plain methods: pytest runs them as they are, without a plugin of its own; fixtures may set up what `make` needs.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, TypeVar

from msgspec.structs import replace

from agentrt.plugins import close_plugin
from agentrt.secrets.json_key import inside
from agentrt.secrets.manager import SecretsManager
from agentrt.secrets.protocol import (
    SecretDenied,
    SecretError,
    SecretInvalid,
    SecretNotFound,
    SecretRef,
    SecretsProvider,
    SecretThrottled,
    SecretUnavailable,
    SecretValue,
)
from agentrt.testing.backend_thread import SLACK, leaves_nothing
from agentrt.testing.plain_host import PlainHost
from agentrt.testing.secrets_checks import (
    NAME,
    ProviderTrial,
    block_of,
    check_value,
    let_through,
    named,
    read,
    text_of,
    whole,
)
from agentrt.testing.suite import Suite, check, check_options, needs

__all__ = ["SecretsProviderTests"]

T = TypeVar("T")

READERS = 50
OPTIONAL = ("open", "aclose", "get_many", "renew", "revoke", "list")

STRANGE_NAMES = (
    "",
    ".",
    "..",
    "../conformance",
    "conformance/../../../../etc/passwd",
    "/etc/passwd",
    "%2e%2e%2fconformance",
    "conformance missing",
    "fehlt-ünïcödé-秘密",
    "line\nbreak",
    "carriage\r\nreturn: x",
    "nul\0byte",
    "conformance?version=1",
    "conformance#key",
    "*",
    "-rf",
    "x" * 3000,
)
"""Names that no service has. Some could be read as something else: a path, a query, a header."""


class SecretsProviderTests(Suite, ProviderTrial):
    """Subclass it, say how to `make` the provider and how to `store` a secret. The more of the other methods there are,
    the more is tested; tests that lack theirs are left out.

    `secrets`: values by `secret://` reference that `host.secret` gives while the provider is opened. `credentials`:
    texts that must occur in no message and no log line (the token by which the provider logs in); stored values are
    looked for anyhow. `values`: what is stored and must come back as it was; shorten it if the service takes less.
    `patience` (20.0): seconds that one test may take, and that a changed secret may take to be seen.
    """

    values: ClassVar[Sequence[str]] = (
        "a-plain-value",
        "  blanks  around and inside  ",
        "quotes \" and ' and `, $HOME ${HOME} %s {0} \\n \\",
        "-----BEGIN KEY-----\nline two\n-----END KEY-----",
        "ünïcödé 秘密 🔑 value",
        '{"user": "app", "password": "pass word", "ports": [1, 2]}',
        "long-" + "0123456789" * 1000,
    )

    # --- what a plugin's author may add -----------------------------------------------------------------

    def missing(self) -> SecretRef:
        """A reference to a secret that is not there."""
        return SecretRef("agentrtconformancemissing")

    def leased(self) -> SecretRef:
        """A reference to a secret that comes with a lease."""
        raise NotImplementedError

    def denied(self) -> AbstractContextManager[object]:
        """A block in which the service does not let the provider read; one made before and one made inside it."""
        raise NotImplementedError

    def throttling(self) -> AbstractContextManager[object]:
        """A block in which the service asks to slow down."""
        raise NotImplementedError

    def failing(self) -> AbstractContextManager[object]:
        """A block in which the service fails in a way that passes: 503, or a connection refused."""
        raise NotImplementedError

    def hanging(self) -> AbstractContextManager[object]:
        """A block in which the service takes requests and does not answer."""
        raise NotImplementedError

    # --- what it is -------------------------------------------------------------------------------------

    def test_its_options_can_be_read_from_a_table(self) -> None:
        check_options(type(self.make()))

    def test_its_methods_are_coroutines(self) -> None:
        provider = self.make()
        for name in ("get", *OPTIONAL):
            method = getattr(provider, name, None)
            check(
                method is None or inspect.iscoroutinefunction(method),
                f"`{name}` must be an `async def`: it runs on the event loop of the agents",
            )

    # --- reading ----------------------------------------------------------------------------------------

    def test_a_stored_secret_is_read_as_it_was_stored(self) -> None:
        refs = [self._stored(f"value{number}", value) for number, value in enumerate(self.values)]

        async def scenario(provider: SecretsProvider) -> None:
            for ref, value in zip(refs, self.values, strict=True):
                found = await read(provider, ref)
                check(
                    found == value, f"{ref}: stored were {len(value)} characters, read others ({len(found)})"
                )

        self._run(scenario)

    def test_what_it_says_of_a_value_can_be_used(self) -> None:
        ref = self._stored("about", "a-value-to-look-at")

        async def scenario(provider: SecretsProvider) -> None:
            check_value(await provider.get(whole(ref)))

        self._run(scenario)

    def test_a_secret_that_is_not_there_is_not_found(self) -> None:
        ref = named(self.missing())

        async def scenario(provider: SecretsProvider) -> None:
            error = await self._error(provider.get(whole(ref)), SecretNotFound)
            check(
                ref.name in str(error),
                f"the message must name the reference {ref}, so that one knows which is meant, and is: {error}",
            )

        self._run(scenario)

    def test_a_strange_name_is_refused_or_not_found(self) -> None:
        async def scenario(provider: SecretsProvider) -> None:
            for name in STRANGE_NAMES:
                try:
                    await provider.get(SecretRef(name, NAME))
                except (SecretNotFound, SecretInvalid, SecretDenied) as error:
                    self._check_silent(error)
                except Exception as error:
                    raise let_through(f"the name {name[:50]!r}", error) from error
                else:
                    raise AssertionError(f"the name {name!r} led to a secret; where does it come from?")

        self._run(scenario)

    def test_a_version_is_read_or_refused(self) -> None:
        ref = self._stored("versions", "the-first-version")

        async def scenario(provider: SecretsProvider) -> None:
            found = await provider.get(whole(ref))
            version = found.version if isinstance(found, SecretValue) else None
            if version is not None:
                await asyncio.to_thread(self._stored, "versions", "the-second-version")
                old = await read(provider, replace(ref, version=version))
                check(old == "the-first-version", f"version {version!r} is another value than it was")
            unknown = replace(whole(ref), version="987654321")
            await self._error(provider.get(unknown), SecretNotFound, SecretInvalid)

        self._run(scenario)

    def test_a_changed_secret_is_seen(self) -> None:
        """The manager caches; a provider that does as well would delay every rotation."""
        ref = self._stored("changing", "the-value-before")

        async def scenario(provider: SecretsProvider) -> None:
            check(await read(provider, ref) == "the-value-before", "what was stored is not read")
            again = await asyncio.to_thread(self._stored, "changing", "the-value-after")
            ends = asyncio.get_running_loop().time() + 0.8 * self.patience
            while await read(provider, again) != "the-value-after":
                check(
                    asyncio.get_running_loop().time() < ends,
                    "a changed secret is not seen: a provider keeps no values, the manager does",
                )
                await asyncio.sleep(0.05)

        self._run(scenario)

    def test_many_readers_at_once_each_get_their_secret(self) -> None:
        values = {f"many{number}": f"value-of-many-{number}" for number in range(5)}
        refs = {self._stored(name, value): value for name, value in values.items()}

        async def scenario(provider: SecretsProvider) -> None:
            asked = [ref for ref in refs for _ in range(READERS // len(refs))]
            found = await asyncio.gather(*(read(provider, ref) for ref in asked))
            check(found == [refs[ref] for ref in asked], "readers at the same time got each other's secrets")

        self._run(scenario)

    def test_a_reader_that_is_cancelled_leaves_the_provider_well(self) -> None:
        ref = self._stored("cancelled", "a-value-in-spite")

        async def scenario(provider: SecretsProvider) -> None:
            for turns in range(10):
                reader = asyncio.ensure_future(read(provider, ref))
                for _ in range(turns):
                    await asyncio.sleep(0)
                reader.cancel()
                (outcome,) = await asyncio.gather(reader, return_exceptions=True)
                fine = outcome == "a-value-in-spite" or isinstance(outcome, asyncio.CancelledError)
                check(fine, f"a cancelled `get` must end as CancelledError, not {type(outcome).__name__}")
            check(await read(provider, ref) == "a-value-in-spite", "after cancelled readers it is not read")

        self._run(scenario)

    def test_it_shows_no_value(self) -> None:
        ref = self._stored("shown", "a-value-nobody-shows")

        async def scenario(provider: SecretsProvider) -> None:
            await read(provider, ref)
            for what, text in (("repr", repr(provider)), ("str", str(provider))):
                self._check_text(f"its {what}", text)

        self._run(scenario)

    def test_the_manager_reads_it_once_for_all(self) -> None:
        ref = named(self._stored("shared", "a-value-for-all"))
        calls: list[str] = []

        async def invoke(
            kind: str, target: str, fn: Callable[[], Awaitable[T]], /, *, idempotent: bool = False
        ) -> T:
            del idempotent
            calls.append(f"{kind} {target}")
            return await fn()

        async def scenario() -> None:
            manager = SecretsManager({NAME: self.make()}, invoke, host=PlainHost(self.secrets))
            try:
                found = await asyncio.gather(*(manager.get(ref) for _ in range(READERS)))
            finally:
                await manager.aclose()
            check({secret.reveal() for secret in found} == {"a-value-for-all"}, "readers got another value")
            check(calls == [f"secret secret:{NAME}"], f"one call was to be made, not {len(calls)}")

        self._alone(scenario)

    # --- what it may have -------------------------------------------------------------------------------

    def test_several_at_once_are_the_same_as_one_by_one(self) -> None:
        if not hasattr(self.make(), "get_many"):
            return
        refs = [self._stored(f"batch{number}", f"value-of-batch-{number}") for number in range(3)]
        missing = self.missing()

        async def scenario(provider: Any) -> None:
            asked = [whole(ref) for ref in (*refs, missing)]
            found = await provider.get_many(asked)
            check(set(found) == set(asked[:-1]), f"get_many answered for {len(found)} of 3 that are there")
            for number, ref in enumerate(refs):
                text = inside(text_of(found[whole(ref)]), ref)
                check(text == f"value-of-batch-{number}", f"{ref}: get_many gave another value")
            check(not await provider.get_many([]), "get_many of nothing must be empty")

        self._run(scenario)

    def test_names_are_listed_and_values_are_not(self) -> None:
        if not hasattr(self.make(), "list"):
            return
        stored = [self._stored(f"listed{number}", f"value-of-list-{number}") for number in range(3)]

        async def scenario(provider: Any) -> None:
            names = await provider.list()
            check(all(isinstance(name, str) for name in names), "`list` must give names as text")
            for ref in stored:
                check(ref.name in names, f"`list` has no {ref.name!r}, by which it is read")
            self._check_text("`list`", "\n".join(names))
            prefix = stored[0].name[:-1]  # they differ in their last character
            narrowed = await provider.list(prefix)
            check({ref.name for ref in stored} <= set(narrowed), f"`list({prefix!r})` has not all of them")
            check(all(n.startswith(prefix) for n in narrowed), f"`list({prefix!r})` has other names")
            check(
                not list(await provider.list("zzznosuchprefix")), "`list` must be empty where none begins so"
            )

        self._run(scenario)

    @needs("leased")
    def test_a_lease_says_what_it_is(self) -> None:
        ref = self.leased()

        async def scenario(provider: SecretsProvider) -> None:
            found = await provider.get(whole(ref))
            check(isinstance(found, SecretValue), "a value with a lease must be a SecretValue")
            assert isinstance(found, SecretValue)
            check_value(found)
            check(
                bool(found.lease), "`lease` is the handle by which it is renewed and revoked; there is none"
            )
            check(found.ttl is not None, "`ttl` says for how many seconds the lease lasts; it says nothing")

        self._run(scenario)

    @needs("leased")
    def test_a_renewable_lease_is_renewed(self) -> None:
        ref = self.leased()

        async def scenario(provider: Any) -> None:
            found = await provider.get(whole(ref))
            if not found.renewable:
                return
            renewed = await provider.renew(found)
            check_value(renewed)
            check(renewed.value == found.value, "a renewed lease is for the same value")
            check(bool(renewed.lease) and renewed.ttl is not None, "what was renewed has a lease and a ttl")

        self._run(scenario)

    @needs("leased")
    def test_a_revoked_lease_is_over(self) -> None:
        ref = self.leased()

        async def scenario(provider: Any) -> None:
            if not hasattr(provider, "revoke"):
                return
            found = await provider.get(whole(ref))
            await provider.revoke(found)
            if hasattr(provider, "renew") and found.renewable:
                await self._error(provider.renew(found), SecretError)

        self._run(scenario)

    # --- its life ---------------------------------------------------------------------------------------

    def test_it_may_be_opened_and_closed_twice(self) -> None:
        ref = self._stored("twice", "a-value-opened-twice")

        async def scenario() -> None:
            provider = self.make()
            for _ in range(2):
                await self._open(provider)
            check(await read(provider, ref) == "a-value-opened-twice", "opened twice, it reads another value")
            for _ in range(2):
                await close_plugin(provider)

        self._alone(scenario)

    def test_it_may_be_closed_without_having_been_opened(self) -> None:
        async def scenario() -> None:
            await close_plugin(self.make())

        self._alone(scenario)

    def test_it_may_be_used_again_on_another_event_loop(self) -> None:
        ref = self._stored("loops", "a-value-on-each-loop")
        provider = self.make()
        for life in ("the first event loop", "another event loop"):

            async def scenario(found: SecretsProvider, life: str = life) -> None:
                check(await read(found, ref) == "a-value-on-each-loop", f"on {life} it reads another value")

            self._run(scenario, provider)

    def test_it_leaves_nothing_behind(self) -> None:
        ref = self._stored("leaving", "a-value-left-alone")

        async def scenario(provider: SecretsProvider) -> None:
            await read(provider, ref)

        leaves_nothing(lambda: self._run(scenario))

    # --- when the service fails -------------------------------------------------------------------------

    @needs("denied")
    def test_what_may_not_be_read_is_denied(self) -> None:
        self._refuses("denied", self.denied, SecretDenied)

    @needs("throttling")
    def test_a_service_that_asks_to_slow_down_throttles(self) -> None:
        error = self._refuses("throttled", self.throttling, SecretThrottled)
        wait = getattr(error, "retry_after", None)
        check(
            wait is None or (math.isfinite(wait) and wait >= 0),
            f"`retry_after` must be a number of seconds or None, not {wait!r}",
        )

    @needs("failing")
    def test_a_service_that_fails_is_unavailable(self) -> None:
        self._refuses("failing", self.failing, SecretUnavailable)

    @needs("failing")
    def test_it_reads_again_when_the_service_is_well(self) -> None:
        ref = self._stored("again", "a-value-after-all")

        async def scenario(provider: SecretsProvider) -> None:
            await read(provider, ref)
            async with block_of(self.failing):
                await self._error(read(provider, ref), SecretUnavailable)
            check(
                await read(provider, ref) == "a-value-after-all", "after the failure it reads another value"
            )

        self._run(scenario)

    @needs("failing")
    def test_it_leaves_nothing_behind_after_a_failure(self) -> None:
        ref = self._stored("leavingfailed", "a-value-left-alone")

        async def scenario(provider: SecretsProvider) -> None:
            async with block_of(self.failing):
                await self._error(read(provider, ref), SecretUnavailable)

        leaves_nothing(lambda: self._run(scenario))

    @needs("hanging")
    def test_a_reader_of_a_service_that_hangs_can_be_cancelled(self) -> None:
        ref = self._stored("hanging", "a-value-that-hangs")

        async def scenario(provider: SecretsProvider) -> None:
            async with block_of(self.hanging):
                reader = asyncio.ensure_future(read(provider, ref))
                await asyncio.wait([reader], timeout=0.3)
                check(not reader.done(), "`get` returned, though the service does not answer")
                reader.cancel()
                await asyncio.wait([reader], timeout=SLACK)
                check(reader.cancelled(), "`get` did not end as CancelledError when it was cancelled")
            check(await read(provider, ref) == "a-value-that-hangs", "after it hung it reads another value")

        self._run(scenario)
