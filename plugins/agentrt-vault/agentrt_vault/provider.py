"""The provider `vault`."""

from __future__ import annotations

import asyncio
import importlib
import math
import os
import re
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct, structs

from agentrt import options
from agentrt.errors import ConfigError
from agentrt.plugins import Host
from agentrt.secrets import SecretInvalid, SecretNotFound, SecretRef, SecretValue
from agentrt.telemetry.http import check_url
from agentrt_vault.auth import AppRole, AppRoleLogin, GivenToken, Jwt, JwtLogin, Kubernetes, Method, Token
from agentrt_vault.places import Credentials, Kv, Places
from agentrt_vault.session import ROUNDING, Session
from agentrt_vault.tls import Tls
from agentrt_vault.wire import Answer, Vault

__all__ = ["VaultSecrets"]

FOLDERS = 1000
"""Folders that one `list` looks into."""


class _Data(Struct):
    """What kv version 2 wraps its data in."""

    data: msgspec.Raw = msgspec.Raw(b"null")
    metadata: dict[str, Any] = {}


class _Lease(Struct, frozen=True, eq=False):
    """`token`: the one that it was given for; `ends`: when it is over, by the event loop's clock."""

    token: Token
    ends: float


class VaultSecrets:
    """Secrets of the engine kv, versions 1 and 2, and credentials that other engines make.

    `url`: of the server (VAULT_ADDR, BAO_ADDR). `namespace` (VAULT_NAMESPACE, BAO_NAMESPACE). `mount` ("secret"): the
    kv mount that names are read from; `mounts`: more of them, which a name then begins with. `kv_version`: 1 or 2 for
    all of these; by default each mount is asked. `dynamic` (["database"]): mounts of engines that make credentials.
    One of `token` (VAULT_TOKEN, BAO_TOKEN; or a reference), `token_file`, `approle`, `jwt`, `kubernetes`: by what we
    log in. `ca_file` (VAULT_CACERT, BAO_CACERT): authorities to trust. `client_cert_file`, `client_key_file`
    (VAULT_CLIENT_CERT, VAULT_CLIENT_KEY and BAO_...): what we show to a server that wants it. `timeout` (10.0): seconds
    for each step on the wire.
    """

    def __init__(
        self,
        *,
        url: str | None = None,
        namespace: str | None = None,
        mount: str = "secret",
        mounts: Sequence[str] = (),
        kv_version: Literal[1, 2] | None = None,
        dynamic: Sequence[str] = ("database",),
        token: str | None = None,
        token_file: str | None = None,
        approle: AppRole | None = None,
        jwt: Jwt | None = None,
        kubernetes: Kubernetes | None = None,
        ca_file: str | None = None,
        client_cert_file: str | None = None,
        client_key_file: str | None = None,
        timeout: float = 10.0,
    ) -> None:
        if kv_version not in (None, 1, 2):
            raise ConfigError(f"kv_version must be 1, 2 or left out, not {kv_version!r}")
        self._places = Places(mount, mounts, dynamic)
        self._kv_version = kv_version
        self._detected: dict[str, int] = {}
        self._leases: dict[str, _Lease] = {}
        self._vault = Vault(
            _url(url),
            namespace=_namespace(namespace),
            tls=_tls(ca_file, client_cert_file, client_key_file),
            timeout=options.seconds("timeout", timeout),
        )
        self._session = Session(self._vault, _method(token, token_file, approle, jwt, kubernetes))

    def __repr__(self) -> str:
        return f"VaultSecrets({self._vault.host!r})"

    async def open(self, host: Host) -> None:
        """Take `host`, which resolves references among the options, and load the client, in a thread. The login is made
        when something is read."""
        self._session.open(host)
        await asyncio.to_thread(importlib.import_module, "httpx2")

    async def aclose(self) -> None:
        """Revoke the tokens of our logins, and close all connections."""
        try:
            await self._session.aclose()
        finally:
            await self._vault.aclose()

    # --- reading -------------------------------------------------------------------------------------------

    async def get(self, ref: SecretRef, /) -> SecretValue:
        """The data of a secret, as JSON. Raises the errors of `agentrt.secrets`."""
        self._session.names.add(ref.provider)
        place = self._places.find(ref)
        if isinstance(place, Credentials):
            return await self._credentials(ref, place)
        return await self._kv(ref, place)

    async def _kv(self, ref: SecretRef, place: Kv) -> SecretValue:
        if await self._version_of(ref, place.mount) == 2:
            return await self._kv2(ref, place)
        if ref.version is not None:
            raise SecretInvalid(f"{ref}: {place.mount} is kv version 1, which keeps no versions")
        answer = await self._session.ask(str(ref), "GET", f"{place.mount}/{place.path}")
        if not answer.ok:
            raise self._missing(ref, place, answer)
        return SecretValue(self._text(ref, answer.body.data))

    async def _kv2(self, ref: SecretRef, place: Kv) -> SecretValue:
        query = None if ref.version is None else {"version": _version(ref)}
        answer = await self._session.ask(str(ref), "GET", f"{place.mount}/data/{place.path}", query=query)
        if not answer.ok:
            raise self._missing(ref, place, answer)
        wrapped = _wrapped(answer)
        version = wrapped.metadata.get("version")
        return SecretValue(self._text(ref, wrapped.data), version=None if version is None else str(version))

    async def _credentials(self, ref: SecretRef, place: Credentials) -> SecretValue:
        if ref.version is not None:
            raise SecretInvalid(f"{ref}: credentials that an engine makes have no versions")
        answer, token = await self._session.ask_and_tell(str(ref), "GET", place.path)
        body = answer.body
        if not answer.ok:
            if answer.status == 404 or "unknown role" in answer.said:
                why = answer.said or "there is no such role"
                raise SecretNotFound(f"{ref}: vault at {self._vault.host} has no {place.path}: {why}")
            raise self._refused(ref, place.path, answer)
        value = self._text(ref, body.data)
        if body.lease_id:
            ttl = self._lasting(body.lease_id, body.lease_duration, token)
            return SecretValue(value, lease=body.lease_id, ttl=ttl, renewable=body.renewable)
        # Of a static account the data tell in how many seconds its password will be changed.
        changes = answer.data().get("ttl")
        ttl = max(float(changes), ROUNDING) if isinstance(changes, int | float) else None
        return SecretValue(value, ttl=ttl)

    # --- leases --------------------------------------------------------------------------------------------

    async def renew(self, value: SecretValue, /) -> SecretValue:
        """The same value with its lease renewed.

        Raises SecretInvalid if the lease is no longer given the time that it had: it, or our token, has come to its
        last day (max_ttl), and it is time to get another value while this one is still good.
        """
        what, lease = "renewing a lease", value.lease
        if lease is None:
            raise SecretInvalid("a value without a lease cannot be renewed: get it again")
        had = value.ttl or 0.0
        await self._session.extend(had)  # a lease ends with the token that it was given for
        known = self._leases.get(lease)
        token = self._session.token if known is None else known.token
        if token is None or token is not self._session.token:
            raise SecretInvalid(
                f"vault at {self._vault.host}: our token was replaced, and the lease ends with the one that it was "
                "given for; get the secret again"
            )
        answer = await self._session.ask(what, "PUT", "sys/leases/renew", body={"lease_id": lease})
        if not answer.ok:
            raise SecretNotFound(
                f"vault at {self._vault.host} does not renew the lease ({answer.said or f'HTTP {answer.status}'}): it "
                "has ended or was revoked; get the secret again"
            )
        ttl = self._lasting(lease, answer.body.lease_duration, token)
        if ttl is not None and ttl < had - ROUNDING:
            raise SecretInvalid(
                f"vault at {self._vault.host} renews the lease for {ttl:.0f} s only, of {had:.0f}: its max_ttl, or our "
                "token's, comes to an end; get the secret again"
            )
        return structs.replace(value, ttl=ttl, renewable=answer.body.renewable)

    async def revoke(self, value: SecretValue, /) -> None:
        """End the lease now; an account that was made for it is gone when this returns. No matter if it had ended."""
        if value.lease is None:
            return
        self._leases.pop(value.lease, None)
        body = {"lease_id": value.lease, "sync": True}
        answer = await self._session.ask("revoking a lease", "PUT", "sys/leases/revoke", body=body)
        if not answer.ok and "lease not found" not in answer.said:
            raise SecretInvalid(
                f"vault at {self._vault.host} does not revoke the lease: {answer.said or f'HTTP {answer.status}'}"
            )

    def _lasting(self, lease: str, seconds: float, token: Token) -> float | None:
        """How long a lease of so many seconds (0: without an end) lasts, which was given for `token`."""
        left = min(seconds or math.inf, token.left())
        left = max(left, 0.001)
        now = asyncio.get_running_loop().time()
        self._leases = {name: old for name, old in self._leases.items() if old.ends > now}
        self._leases[lease] = _Lease(token, now + left)
        return None if math.isinf(left) else left

    # --- names ---------------------------------------------------------------------------------------------

    async def list(self, prefix: str = "", /) -> Sequence[str]:
        """The names that begin with `prefix`, in folders too, as references have them.

        Without a prefix those in `mount`; those in another mount, and the roles of an engine, if the prefix begins with
        its name ("database/creds/"). Raises SecretDenied if a folder may not be listed.
        """
        what = f"listing {prefix[:200]!r}"
        roles = self._places.roles_of(prefix)
        if roles is not None:
            mount, kind = roles
            found = await self._keys(what, f"{mount}/{'roles' if kind == 'creds' else 'static-roles'}")
            return [name for role in found if (name := f"{mount}/{kind}/{role}").startswith(prefix)]
        place = self._places.folder(prefix)
        version = await self._version_of(what, place.mount)
        base = f"{place.mount}/metadata" if version == 2 else place.mount
        names: list[str] = []
        folders = [place.path.rpartition("/")[0]]
        looked = 0
        while folders:
            folder = folders.pop(0)
            looked += 1
            if looked > FOLDERS:
                raise SecretInvalid(f"{what}: there are more than {FOLDERS} folders: give a longer prefix")
            for key in await self._keys(what, f"{base}/{folder}" if folder else base):
                path = f"{folder}/{key}" if folder else key
                if path.endswith("/"):
                    if path.startswith(place.path) or place.path.startswith(path):
                        folders.append(path.rstrip("/"))
                elif path.startswith(place.path):
                    names.append(self._places.name_of(place.mount, path))
        return names

    async def _keys(self, what: str, path: str) -> Sequence[str]:
        answer = await self._session.ask(what, "GET", path, query={"list": "true"})
        if answer.status == 404:
            if "no handler for route" in answer.said or "namespace not found" in answer.said:
                raise SecretNotFound(f"{what}: vault at {self._vault.host}: {answer.said}")
            return []
        if not answer.ok:
            raise self._refused(what, path, answer)
        keys = answer.data().get("keys") or []
        return [str(key) for key in keys]

    # --- mounts and what is not there ----------------------------------------------------------------------

    async def _version_of(self, what: object, mount: str) -> int:
        """1 or 2: as configured, or as the mount's own metadata say, which are asked for once."""
        version = self._kv_version or self._detected.get(mount)
        if version is not None:
            return version
        answer = await self._session.ask_if_allowed(str(what), "GET", f"sys/internal/ui/mounts/{mount}")
        if answer is None or not answer.ok:
            # It denies this, too, if there is no such mount. Reading as from version 2 tells which it is.
            return 2
        data = answer.data()
        if data.get("type") not in ("kv", "generic"):
            raise SecretInvalid(
                f"{what}: the mount {mount} is of the engine {data.get('type')!r}, not kv: name it in `dynamic`, and "
                f"the secret {mount}/creds/ROLE"
            )
        version = 2 if str((data.get("options") or {}).get("version")) == "2" else 1
        self._detected[mount] = version
        return version

    def _missing(self, ref: SecretRef, place: Kv, answer: Answer) -> Exception:
        """Why a secret is not there, as far as the server says."""
        full = f"{place.mount}/{place.path}"
        if answer.status != 404:
            return self._refused(ref, full, answer)
        where = f"{ref}: vault at {self._vault.host}"
        if "no handler for route" in answer.said:
            return SecretNotFound(f"{where} has no mount {place.mount}/: check `mount` and `mounts`")
        if "namespace not found" in answer.said:
            return SecretNotFound(f"{where} has no such namespace: check `namespace`")
        if answer.warned("versioned K/V"):
            self._detected.pop(place.mount, None)  # it was upgraded since we asked
            return SecretNotFound(f"{where}: {place.mount} is kv version 2: check `kv_version`")
        metadata = _wrapped(answer).metadata
        version = f"version {metadata.get('version')} of {full}"
        if metadata.get("destroyed"):
            return SecretNotFound(f"{where}: {version} was destroyed, for good")
        if metadata.get("deletion_time"):
            return SecretNotFound(
                f"{where}: {version} was deleted at {metadata['deletion_time']}; `bao kv undelete` brings it back"
            )
        which = full if ref.version is None else f"version {ref.version} of {full}"
        hint = ""
        if place.path.startswith(f"{place.mount}/"):
            hint = f": {place.mount} is the mount already, leave it out of the name"
        return SecretNotFound(f"{where} has no {which}{hint}")

    def _text(self, ref: SecretRef, data: msgspec.Raw) -> str:
        """The data as the server wrote them: an object in JSON."""
        text = bytes(data).decode()
        if not text.lstrip().startswith("{"):
            raise SecretInvalid(f"{ref}: vault at {self._vault.host} answered with no data")
        return text

    def _refused(self, what: object, path: str, answer: Answer) -> SecretInvalid:
        said = answer.said or f"HTTP {answer.status}"
        return SecretInvalid(f"{str(what)[:300]}: vault at {self._vault.host} refuses {path[:300]}: {said}")


def _wrapped(answer: Answer) -> _Data:
    """The data of a secret of version 2, which an answer 404 has too if it is deleted."""
    try:
        found = msgspec.json.decode(answer.body.data, type=_Data | None)
    except msgspec.DecodeError:
        found = None
    return found or _Data()


def _version(ref: SecretRef) -> str:
    version = ref.version or ""
    if not re.fullmatch(r"[1-9][0-9]{0,9}", version):
        raise SecretInvalid(f"{ref}: a version in Vault is a whole number from 1 on")
    return version


def _given(option: str, value: str | None, variable: str) -> str | None:
    if value is not None:
        return options.text(option, value)
    return os.environ.get(f"VAULT_{variable}") or os.environ.get(f"BAO_{variable}") or None


def _namespace(namespace: str | None) -> str | None:
    given = _given("namespace", namespace, "NAMESPACE")
    if given is not None and not (given.isascii() and given.isprintable()):
        raise ConfigError(f"namespace must be a path of printable ASCII, not {given!r}")
    return given


def _url(url: str | None) -> str:
    given = _given("url", url, "ADDR")
    if given is None:
        raise ConfigError("url is missing: where is Vault? Give it, or set VAULT_ADDR or BAO_ADDR")
    return check_url("url" if url is not None else "VAULT_ADDR or BAO_ADDR", given).removesuffix("/v1")


def _tls(ca_file: str | None, client_cert_file: str | None, client_key_file: str | None) -> Tls:
    cert = _given("client_cert_file", client_cert_file, "CLIENT_CERT")
    # A key of the environment belongs to the certificate of the environment.
    key = (
        _given("client_key_file", client_key_file, "CLIENT_KEY")
        if client_cert_file is None
        else client_key_file
    )
    return Tls(ca_file=_given("ca_file", ca_file, "CACERT"), client_cert_file=cert, client_key_file=key)


def _method(
    token: str | None,
    token_file: str | None,
    approle: AppRole | None,
    jwt: Jwt | None,
    kubernetes: Kubernetes | None,
) -> Method:
    ways = {
        "token": token,
        "token_file": token_file,
        "approle": approle,
        "jwt": jwt,
        "kubernetes": kubernetes,
    }
    given = [name for name, way in ways.items() if way is not None]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} are several ways to log in: give one of them")
    if approle is not None:
        return AppRoleLogin(approle)
    if jwt is not None:
        return JwtLogin("jwt", jwt)
    if kubernetes is not None:
        return JwtLogin("kubernetes", kubernetes)
    if token_file is not None:
        return GivenToken(None, options.text("token_file", token_file))
    found = (_given("token", None, "TOKEN") or "" if token is None else token).strip()
    if not found:
        raise ConfigError(
            "token is missing: give one of token, token_file, [approle], [jwt] and [kubernetes], or set VAULT_TOKEN"
        )
    return GivenToken(found, None)
