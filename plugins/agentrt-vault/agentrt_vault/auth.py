"""How a token is come by: given, or by a login that the server checks."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any, Protocol

from msgspec import Struct

from agentrt import options
from agentrt.errors import ConfigError, PermanentError
from agentrt.plugins import Host
from agentrt.secrets import SecretDenied
from agentrt.secrets.protocol import is_reference
from agentrt_vault.wire import Answer, Vault

__all__ = ["AppRole", "AppRoleLogin", "GivenToken", "Jwt", "JwtLogin", "Kubernetes", "Method", "Token"]

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount/token"
"""Where Kubernetes puts a pod's own token."""

LAST_PART = 1 / 3
"""A token is renewed, or replaced by a login, when no more than this part of its time is left."""

SECRET_ID_PATH = re.compile(r"(?:.*?/)?auth/(?P<mount>.+)/role/[^/]+/(?:custom-)?secret-id")
"""Where a wrapped secret_id was made; before it a server may put the namespace."""


# --- options ---------------------------------------------------------------------------------------------


class AppRole(Struct, frozen=True, kw_only=True):
    """[approle]: `role_id` and `secret_id` (a `secret://` reference) or `secret_id_file`; neither for a role that wants
    none. `wrapped` (False): the secret_id is a token that wraps it, good for one use. `mount` ("approle")."""

    role_id: str
    secret_id: str | None = None
    secret_id_file: str | None = None
    wrapped: bool = False
    mount: str = "approle"

    def __post_init__(self) -> None:
        options.text("role_id", self.role_id)
        check_mount(self.mount)
        if self.secret_id is not None and not is_reference(self.secret_id):
            raise ConfigError(
                'secret_id must be a reference such as "secret://env/SECRET_ID", never the value'
            )
        if self.secret_id is not None and self.secret_id_file is not None:
            raise ConfigError("secret_id_file and secret_id are two places for the same: give one of them")
        if self.wrapped and self.secret_id is None and self.secret_id_file is None:
            raise ConfigError("wrapped needs a secret_id or a secret_id_file, where the wrapping token is")


class Jwt(Struct, frozen=True, kw_only=True):
    """[jwt]: `file` holds a signed token and is read at each login. `role`: None for the server's default role.
    `mount` ("jwt")."""

    file: str
    role: str | None = None
    mount: str = "jwt"

    def __post_init__(self) -> None:
        options.text("file", self.file)
        check_mount(self.mount)


class Kubernetes(Struct, frozen=True, kw_only=True):
    """[kubernetes]: the `role` for the pod's service account. `file`: its token. `mount` ("kubernetes")."""

    role: str
    file: str = SERVICE_ACCOUNT
    mount: str = "kubernetes"

    def __post_init__(self) -> None:
        options.text("role", self.role)
        options.text("file", self.file)
        check_mount(self.mount)


def check_mount(mount: str, name: str = "mount") -> str:
    """A mount's path without slashes at its ends."""
    parts = mount.split("/") if isinstance(mount, str) else [""]
    if any(part in ("", ".", "..") or not part.isprintable() for part in parts):
        raise ConfigError(f"{name} must be a mount's path such as 'secret' or 'team/kv', not {mount!r}")
    return mount


# --- tokens ----------------------------------------------------------------------------------------------


class Token(Struct, eq=False):
    """A token that is in use. `made`: by a login of ours, which can be repeated; `revocable`: it is ours to revoke.
    `ttl`: seconds that it had when it was made; `ends`: when its time is over, by the event loop's clock (inf: never).
    `is_known`: False if the server did not let it look itself up.
    """

    value: str
    made: bool
    ttl: float
    ends: float
    renewable: bool
    revocable: bool = False
    is_known: bool = True

    def left(self) -> float:
        """Seconds until it ends; inf if it does not."""
        return self.ends - asyncio.get_running_loop().time()

    def is_fresh(self) -> bool:
        """Whether more than the last third of its time is left."""
        return math.isinf(self.ends) or self.left() > self.ttl * LAST_PART

    def __repr__(self) -> str:
        return f"Token(made={self.made!r}, ttl={self.ttl!r}, renewable={self.renewable!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """rich asks a Struct for its fields, not for its repr."""
        return [("made", self.made), ("ttl", self.ttl), ("renewable", self.renewable)]


def _ends(ttl: float) -> float:
    return asyncio.get_running_loop().time() + ttl


class Method(Protocol):
    """One way to a token. Raises SecretDenied if the server or a missing file refuses it.

    `references`: values that may be references to secrets.
    """

    name: str
    references: Sequence[str]

    async def log_in(self, vault: Vault, host: Host | None) -> Token: ...


class Credential:
    """What we log in with: a text among the options, or what a reference there leads to, whose rotation is followed."""

    def __init__(self, name: str, value: str) -> None:
        self.name = name
        self.value = value
        self._found = ""  # as it came, when it was last resolved

    async def read(self, host: Host | None) -> str:
        if not is_reference(self.value):
            return self.value
        if host is None:
            raise ConfigError(
                f"{self.name} is the reference {self.value}, and only a runtime resolves those: run it in a Runtime"
            )
        return await self._resolved(host.secret(self.value))

    async def rotated(self, host: Host | None) -> str | None:
        """After what was read was refused: what the reference leads to, if that is another one by now."""
        if host is None or not is_reference(self.value):
            return None
        refused = self._found
        other = await self._resolved(host.secret_rejected(self.value, refused))
        return None if self._found == refused else other

    async def _resolved(self, resolving: Awaitable[str]) -> str:
        try:
            self._found = await resolving
        except PermanentError as error:
            # Not found or not readable: not what was asked for, but what we log in with.
            why = str(error).removeprefix(f"{self.value}: ")
            raise SecretDenied(f"{self.name} = {self.value}: {why}") from error
        return self._found.strip()


class GivenToken:
    """A token that somebody else made: `value` (or a reference to it), or `file`, read whenever it is needed anew."""

    name = "token"

    def __init__(self, value: str | None, file: str | None) -> None:
        self.references: Sequence[str] = (value,) if value is not None else ()
        self._given = Credential("token", value or "")
        self._file = file

    async def log_in(self, vault: Vault, host: Host | None) -> Token:
        if self._file is not None:
            return await self._looked_at(await _read("token_file", self._file), vault)
        token = await self._looked_at(await self._given.read(host), vault)
        if token.is_known:
            return token
        other = await self._given.rotated(host)
        return token if other is None else await self._looked_at(other, vault)

    async def _looked_at(self, value: str, vault: Vault) -> Token:
        answer = await vault.ask("GET", "auth/token/lookup-self", token=checked("token", value))
        if not answer.ok:
            # It is not valid, or may not look itself up: what is read with it will tell.
            return Token(value, False, math.inf, math.inf, False, is_known=False)
        data = answer.data()
        # A token without an end has no time of it; the seconds that are left are cut to whole ones.
        ttl = math.inf if data.get("expire_time") is None else max(float(data.get("ttl") or 0.0), 0.5)
        return Token(value, False, ttl, _ends(ttl), bool(data.get("renewable")))


class AppRoleLogin:
    """role_id and secret_id. What was unwrapped is kept for later logins: a wrapping token is good for one use."""

    name = "approle"

    def __init__(self, settings: AppRole) -> None:
        self.references: Sequence[str] = (settings.role_id, settings.secret_id or "")
        self._settings = settings
        self._role_id = Credential("role_id", settings.role_id)
        self._secret_id = Credential("secret_id", settings.secret_id or "")
        self._unwrapped: tuple[str, str] | None = None  # the wrapping token and what was in it

    async def log_in(self, vault: Vault, host: Host | None) -> Token:
        role_id, found = await self._role_id.read(host), await self._found(host)
        try:
            return await self._with(role_id, found, vault)
        except SecretDenied:
            other = await self._secret_id.rotated(host)
            if other is None:
                raise
        return await self._with(role_id, other, vault)

    async def _found(self, host: Host | None) -> str | None:
        """The secret_id, or what wraps it; None for a role that wants none."""
        if self._settings.secret_id_file is not None:
            return await _read("secret_id_file", self._settings.secret_id_file)
        return None if self._settings.secret_id is None else await self._secret_id.read(host)

    async def _with(self, role_id: str, found: str | None, vault: Vault) -> Token:
        body = {"role_id": role_id}
        if found is not None:
            body["secret_id"] = await self._plain(checked("secret_id", found), vault)
        path = f"auth/{self._settings.mount}/login"
        return logged_in(await vault.ask("POST", path, body=body), vault, path, "role_id and secret_id")

    async def _plain(self, found: str, vault: Vault) -> str:
        if not self._settings.wrapped:
            return found
        if self._unwrapped is None or self._unwrapped[0] != found:
            self._unwrapped = (found, await self._unwrap(vault, found))
        return self._unwrapped[1]

    async def _unwrap(self, vault: Vault, wrapping: str) -> str:
        looked = await vault.ask("POST", "sys/wrapping/lookup", body={"token": wrapping})
        if looked.ok:
            # Whoever stole the secret_id could have put another token in its place: see where this one was made.
            path = str(looked.data().get("creation_path"))
            made = SECRET_ID_PATH.fullmatch(path)
            if made is None or made["mount"] != self._settings.mount:
                raise SecretDenied(
                    f"vault at {vault.host}: the wrapping token was made by {path[:200]!r}, not by a secret-id of "
                    f"auth/{self._settings.mount}: somebody exchanged it. It was not used"
                )
            unwrapped = await vault.ask("POST", "sys/wrapping/unwrap", token=wrapping)
            if unwrapped.ok:
                return checked("secret_id", str(unwrapped.data().get("secret_id") or ""))
        raise SecretDenied(
            f"vault at {vault.host}: the secret_id cannot be unwrapped: its wrapping token has expired or was used "
            "before. If none of your processes used it, somebody else did: destroy that secret_id. Then wrap a new one"
        )


class JwtLogin:
    """A signed token from a file, for the methods jwt and kubernetes."""

    references: Sequence[str] = ()

    def __init__(self, name: str, settings: Jwt | Kubernetes) -> None:
        self.name = name
        self._settings = settings

    async def log_in(self, vault: Vault, host: Host | None) -> Token:
        del host
        settings = self._settings
        body = {"jwt": checked(f"{self.name}.file", await _read(f"{self.name}.file", settings.file))}
        if settings.role is not None:
            body["role"] = settings.role
        path = f"auth/{settings.mount}/login"
        what = f"the role and the token in {settings.file}"
        return logged_in(await vault.ask("POST", path, body=body), vault, path, what)


def logged_in(answer: Answer, vault: Vault, path: str, what: str) -> Token:
    auth = answer.body.auth
    if answer.ok and auth is not None and auth.client_token:
        ttl = auth.lease_duration or math.inf
        revocable = auth.token_type != "batch"
        return Token(auth.client_token, True, ttl, _ends(ttl), auth.renewable, revocable)
    head = f"vault at {vault.host} refused the login at {path}"
    if answer.ok:
        raise SecretDenied(f"{head}: it wants more than that (MFA), which agentrt cannot give")
    # 403: without a token it does not say either that there is no such method.
    mount = "`mount`, `namespace`, " if answer.status in (403, 404) else ""
    raise SecretDenied(f"{head}: {answer.said or f'HTTP {answer.status}'}: check {mount}{what}")


def checked(name: str, value: str) -> str:
    """`value` as it may stand in a header or body: what is read from a file or variable is easily another thing."""
    if not value or not value.isascii() or not value.isprintable() or " " in value:
        raise SecretDenied(
            f"{name}: what was found there is empty, or holds blanks or characters outside ASCII"
        )
    return value


async def _read(name: str, file: str) -> str:
    try:
        found = await asyncio.to_thread(_text_of, file)
    except OSError as error:
        raise SecretDenied(f"{name}: {file} cannot be read: {error.strerror}") from error
    if found is None:
        raise SecretDenied(f"{name}: {file} cannot be read: it is not text")
    return found.strip()


def _text_of(file: str) -> str | None:
    try:
        return Path(file).expanduser().read_text("utf-8")
    except UnicodeDecodeError:
        return None  # the error would hold what was read, and hang on ours
