"""What the tests of agentrt-vault share: a provider from open to aclose, and roles that make accounts in Postgres."""

from __future__ import annotations

import base64
import secrets
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from agentrt_vault import VaultSecrets
from servers.http_server import Answer, HttpServer, Request
from servers.openbao import OpenBao
from servers.postgres import Database
from servers.program import fetch

from agentrt.secrets import SecretRef, SecretValue
from agentrt.testing.plain_host import PlainHost

CREATE = "CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'"
RENEW = "ALTER ROLE \"{{name}}\" VALID UNTIL '{{expiration}}'"


def ref(text: str) -> SecretRef:
    """A reference as the provider gets it: `app/db?version=2`. The key is the manager's business."""
    return SecretRef.parse(f"secret://vault/{text}")


def data_of(found: SecretValue) -> Any:
    return msgspec.json.decode(found.value)


@asynccontextmanager
async def opened(
    server: OpenBao, *, secrets: Mapping[str, str] | None = None, **given: Any
) -> AsyncGenerator[VaultSecrets]:
    """A provider of `server`, by its root token unless another way to log in is given."""
    ways = {"token", "token_file", "approle", "jwt", "kubernetes"} & given.keys()
    given = {"url": server.url, **({} if ways else {"token": server.token}), **given}
    provider = VaultSecrets(**given)
    await provider.open(PlainHost(secrets))
    try:
        yield provider
    finally:
        await provider.aclose()


def account_role(
    server: OpenBao, database: Database, *, ttl: str = "1h", max_ttl: str = "24h"
) -> tuple[str, str]:
    """(mount, role): an engine that makes accounts in `database`, with leases of `ttl`."""
    mount = server.mount("database")
    role = f"role{secrets.token_hex(4)}"
    place = f"{database.server.host}:{database.server.port}/{database.name}"
    server.do(
        "POST",
        f"{mount}/config/pg",
        {
            "plugin_name": "postgresql-database-plugin",
            "allowed_roles": "*",
            "connection_url": f"postgresql://{{{{username}}}}:{{{{password}}}}@{place}",
            "username": database.server.admin,
            "password": database.server.password,
        },
    )
    server.do(
        "POST",
        f"{mount}/roles/{role}",
        {
            "db_name": "pg",
            "creation_statements": [CREATE],
            "renew_statements": [RENEW],
            "default_ttl": ttl,
            "max_ttl": max_ttl,
        },
    )
    return mount, role


def approle(server: OpenBao, **settings: Any) -> tuple[str, str, str]:
    """(mount, role_id, secret_id) of a new role of a new AppRole mount."""
    mount = server.mount("approle", auth=True)
    server.do("POST", f"auth/{mount}/role/app", settings)
    role_id = server.do("GET", f"auth/{mount}/role/app/role-id")["data"]["role_id"]
    secret_id = server.do("POST", f"auth/{mount}/role/app/secret-id", {})["data"]["secret_id"]
    return mount, role_id, secret_id


class Signer:
    """Signs JWTs (RS256) with a key of its own."""

    def __init__(self) -> None:
        from cryptography.hazmat.primitives.asymmetric import rsa

        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    @property
    def public(self) -> str:
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        return self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    def sign(self, claims: Mapping[str, Any]) -> str:
        from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
        from cryptography.hazmat.primitives.hashes import SHA256

        parts = [msgspec.json.encode(part) for part in ({"alg": "RS256", "typ": "JWT"}, claims)]
        text = b".".join(map(_base64url, parts))
        return (text + b"." + _base64url(self._key.sign(text, PKCS1v15(), SHA256()))).decode()


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


class Front(HttpServer):
    """Passes all on to a real server and keeps the requests. `answer_to`: what to answer to some paths instead;
    `pause_at`: seconds to wait with the real answer."""

    def __init__(self, server: OpenBao) -> None:
        super().__init__()
        self.server = server
        self.answer_to: dict[str, Answer] = {}
        self.pause_at: dict[str, float] = {}

    def count(self, ending: str) -> int:
        """How many requests had a path that ends so."""
        return sum(request.path.partition("?")[0].endswith(ending) for request in self.requests)

    def respond(self, request: Request) -> Answer:
        for path, answer in self.answer_to.items():
            if path in request.path:
                return answer
        headers = {name: value for name, value in request.headers.items() if name.startswith("x-vault-")}
        reply = fetch(
            self.server.url + request.path, method=request.method, body=request.body or None, headers=headers
        )
        pause = max((pause for path, pause in self.pause_at.items() if path in request.path), default=0.0)
        return Answer(reply.status, reply.body, {"Content-Type": "application/json"}, delay=pause)
