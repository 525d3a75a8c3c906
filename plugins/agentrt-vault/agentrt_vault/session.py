"""Requests with a token that is valid: logged in when it is first needed, renewed in its last third, replaced when the
server does not know it any more."""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from agentrt.errors import ConfigError
from agentrt.plugins import Host
from agentrt.secrets import SecretDenied, SecretError, SecretRef, SecretThrottled, SecretUnavailable
from agentrt.secrets.protocol import is_reference
from agentrt_vault.auth import Method, Token
from agentrt_vault.wire import Answer, Vault, told_of

__all__ = ["ROUNDING", "Session"]

ROUNDING = 1.0
"""Seconds. The server rounds times to whole ones."""

REVOKE_LIMIT = 2.0
"""Seconds that revoking our tokens may take when we are closed."""

DENIED_PAUSE = 30.0
"""Seconds in which no token is replaced after one that was new was refused as well. Of one that may not look itself up
nobody can say whether it is valid, and each denied read would leave another one at the server."""

_LOGGING_IN: ContextVar[frozenset[int]] = ContextVar("agentrt_vault_logging_in", default=frozenset())
"""The sessions that are logging in for whoever runs now."""


class Session:
    """One identity at one server. Logins and renewals are made by one reader for all.

    `names`: what the provider is called in references.
    """

    def __init__(self, vault: Vault, method: Method) -> None:
        self.host: Host | None = None
        self.names: set[str | None] = set()
        self._vault = vault
        self._method = method
        self._token: Token | None = None
        self._replaced: list[Token] = []  # their leases may still be in use
        self._login: asyncio.Task[Token] | None = None
        self._lock = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed_on: asyncio.AbstractEventLoop | None = None
        self._process = os.getpid()
        self._denied_fresh = -math.inf

    def open(self, host: Host) -> None:
        """`host` resolves references by which we log in."""
        self.host, self._closed_on = host, None

    async def ask(
        self,
        what: str,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Answer:
        """The answer to a request; `what` begins the message of every error.

        An expired token is answered with 403 as a denial is. Therefore on 403 the token is looked up, and if the server
        does not know it, there is one login and one more request. Raises SecretDenied.
        """
        return (await self.ask_and_tell(what, method, path, body=body, query=query))[0]

    async def ask_and_tell(
        self,
        what: str,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> tuple[Answer, Token]:
        """The same with the token that was used: what was given for it ends with it."""
        answer, token = await self._asked(what, method, path, body=body, query=query)
        if answer.status == 403:
            raise SecretDenied(
                f"{what}: vault at {self._vault.host} denies {method} {path} ({answer.said or 'HTTP 403'}): a policy "
                f"of our token must allow it{self._hint()}"
            )
        return answer, token

    async def ask_if_allowed(self, what: str, method: str, path: str) -> Answer | None:
        """The same for what our token need not be allowed: None if it is denied. A login that is refused raises."""
        answer, _ = await self._asked(what, method, path)
        return None if answer.status == 403 else answer

    async def extend(self, seconds: float) -> None:
        """See to it that the token lasts `seconds`: by renewing it or, where that is not enough, by another login."""
        self._leave_to_parent()
        token = await self._valid()
        if token.left() >= seconds:
            return
        async with self._alone():
            if self._token is not token or (token.renewable and not await self._renew(token)):
                return
            if token.made and token.left() < seconds - ROUNDING:
                await self._log_in()

    @property
    def token(self) -> Token | None:
        """The token in use. What was given for another one ends with that."""
        return self._token

    async def aclose(self) -> None:
        """Revoke the tokens that our logins made, and so the leases that were given for them. Readers that still wait
        for a login get SecretUnavailable: it would leave a token behind."""
        self._leave_to_parent()
        self._closed_on = asyncio.get_running_loop()
        login = self._login
        if login is not None and self._loop is asyncio.get_running_loop():
            try:
                # Its token would be left behind, and the secret_id that it has just unwrapped be lost.
                await asyncio.wait([login], timeout=REVOKE_LIMIT)
            finally:
                login.cancel()
            await asyncio.gather(login, return_exceptions=True)
        tokens = [*self._replaced, *([self._token] if self._token is not None else [])]
        self._replaced, self._token, self._login = [], None, None
        await asyncio.gather(
            *(self._revoke(token) for token in tokens if token.revocable and token.left() > 0)
        )

    # --- inside --------------------------------------------------------------------------------------------

    async def _asked(
        self,
        what: str,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> tuple[Answer, Token]:
        self._leave_to_parent()
        if id(self) in _LOGGING_IN.get():
            raise self._circular(what)
        try:
            token = await self._valid()
            answer = await self._vault.ask(method, path, token=token.value, body=body, query=query)
            if answer.status == 403 and await self._replace(token):
                token = await self._valid()
                answer = await self._vault.ask(method, path, token=token.value, body=body, query=query)
                if answer.status == 403:
                    self._denied_fresh = asyncio.get_running_loop().time()
        except SecretError as error:
            raise told_of(what, error) from error
        return answer, token

    def _leave_to_parent(self) -> None:
        """In a process that was forked: its parent uses the tokens so far, and their accounts, and revokes them."""
        process = os.getpid()
        if process != self._process:
            self._process, self._token, self._replaced, self._login = process, None, [], None

    async def _valid(self) -> Token:
        token = self._token
        if token is not None and token.is_fresh():
            return token
        async with self._alone():
            token = self._token
            if token is None:
                token = await self._log_in()
            elif not token.is_fresh():
                token = await self._prolonged(token)
            return token

    async def _prolonged(self, token: Token) -> Token:
        """The token with a new term, or another one. One that was given to us is used to its end."""
        if token.renewable and token.left() > 0:
            if not await self._renew(token) or token.is_fresh():
                return token
            token.renewable = False  # its last day has come
        if token.made or token.left() <= 0:  # somebody may have put another one in the place of a given one
            return await self._log_in()
        return token

    async def _renew(self, token: Token) -> bool:
        """Ask for a new term; whether there was an answer. `ttl` stays as it was: a term that is cut short by the
        token's last day then counts as spent."""
        try:
            answer = await self._vault.ask("POST", "auth/token/renew-self", token=token.value, body={})
        except (SecretUnavailable, SecretThrottled):
            return False  # it is valid still, and the request that it is for will tell what is wrong
        auth = answer.body.auth
        if not answer.ok or auth is None:
            token.renewable = False
            return True
        token.ends = asyncio.get_running_loop().time() + (auth.lease_duration or math.inf)
        token.renewable = auth.renewable
        return True

    async def _replace(self, refused: Token) -> bool:
        """Whether there is another token than the one that was refused, by a login if need be."""
        async with self._alone():
            if self._token is not refused:
                return True
            if refused.left() > 0:
                looked = await self._vault.ask("GET", "auth/token/lookup-self", token=refused.value)
                now = asyncio.get_running_loop().time()
                if looked.ok or (refused.made and now < self._denied_fresh + DENIED_PAUSE):
                    return False  # it is valid, so the refusal was meant
            return await self._log_in() is not refused

    async def _log_in(self) -> Token:
        """A new token. Whoever is cancelled meanwhile leaves the login to the others: it may use up what is good for
        one use."""
        if self._closed_on is asyncio.get_running_loop():
            raise self._closed()
        login = self._login
        if login is None:
            login = self._login = asyncio.create_task(
                self._logged_in(), name=f"login at vault {self._vault.host}"
            )
            login.add_done_callback(self._login_ended)
        try:
            return await asyncio.shield(login)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if login.cancelled() and task is not None and not task.cancelling():
                raise self._closed() from None
            raise

    async def _logged_in(self) -> Token:
        _LOGGING_IN.set(_LOGGING_IN.get() | {id(self)})  # of this task alone
        self._check_references()
        fresh, known = await self._method.log_in(self._vault, self.host), self._token
        if known is not None and known.value == fresh.value:
            # Given to us once more. It stays the one that leases were given for.
            known.ttl, known.ends, known.renewable = fresh.ttl, fresh.ends, fresh.renewable
            return known
        if known is not None:
            self._replaced = [old for old in (*self._replaced, known) if old.made and old.left() > 0]
        self._token = fresh
        return fresh

    def _closed(self) -> SecretUnavailable:
        return SecretUnavailable(f"vault at {self._vault.host} is not read any more: it was closed")

    def _check_references(self) -> None:
        """A reference to ourselves would wait for the login that waits for it."""
        for reference in filter(is_reference, self._method.references):
            if SecretRef.parse(reference).provider in self.names:
                raise self._circular(reference)

    def _circular(self, what: str) -> ConfigError:
        return ConfigError(
            f"{what}: a credential for vault at {self._vault.host} is kept in that same Vault, which opens only with "
            "it: keep it elsewhere (secret://env/...)"
        )

    def _login_ended(self, task: asyncio.Task[Token]) -> None:
        if self._login is task:
            self._login = None
        if not task.cancelled():
            task.exception()  # seen here, too: all who waited for it may be gone

    async def _revoke(self, token: Token) -> None:
        try:
            async with asyncio.timeout(REVOKE_LIMIT):
                answer = await self._vault.ask("POST", "auth/token/revoke-self", token=token.value, body={})
        except (SecretError, TimeoutError) as error:
            why = str(error) or f"no answer within {REVOKE_LIMIT:g} s"
        else:
            if answer.ok or answer.status == 403:
                return  # 403: it had ended before
            why = answer.said or f"HTTP {answer.status}"
        log = self.host.log if self.host is not None else logging.getLogger("agentrt.vault")
        log.warning(
            "our token at vault %s could not be revoked, it ends by itself in %.0f s: %s",
            self._vault.host, token.left(), why,
        )  # fmt: skip

    def _hint(self) -> str:
        return ", or it is not valid any more: give another one" if self._method.name == "token" else ""

    def _alone(self) -> asyncio.Lock:
        """The lock for logins; on another event loop, where nobody can hold it, another one."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._lock, self._loop, self._login = asyncio.Lock(), loop, None
        return self._lock
