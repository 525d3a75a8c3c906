"""Azure Key Vault as far as it is read from, with the service that gives its tokens: one HTTPS server.

As the real one it answers a request without a token by the challenge that tells where tokens come from.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

from servers.certificates import Certificate
from servers.http_server import Answer, HttpServer, Request

__all__ = ["KeyVault", "key_vault_error"]

TENANT = "11111111-2222-3333-4444-555555555555"
TOKEN = "t0ken-of-the-tests"
PAGE = 25


def key_vault_error(
    status: int, code: str, words: str = "because", inner: str = "", **headers: str
) -> Answer:
    error: dict[str, Any] = {"code": code, "message": words}
    if inner:
        error["innererror"] = {"code": inner}
    return Answer(status, json.dumps({"error": error}).encode(), {**JSON, **headers})


JSON = {"Content-Type": "application/json; charset=utf-8"}


class KeyVault(HttpServer):
    """`ca`: the file that a client trusts. `resource`, `tenant`: whose tokens it asks for. `tokens`: what the token
    service answers in place of a token. `passwords`: which it takes, None: any. `logins`: the forms by which tokens
    were asked for."""

    def __init__(self, certificate: Certificate) -> None:
        super().__init__(tls=certificate.server_context())
        self.ca = str(certificate.ca)
        self.resource = "https://vault.azure.net"
        self.tenant = TENANT
        self.tokens: Answer | None = None
        self.failure: Answer | None = None
        self._hanging = False
        self._hung: list[threading.Thread] = []
        self.accepts = TOKEN
        self.passwords: set[str] | None = None
        self.logins: list[dict[str, str]] = []
        self._secrets: dict[str, list[dict[str, Any]]] = {}

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    # ----------------------------------------------------------------------------------- what tests do to it
    def add(self, name: str, value: str, *, enabled: bool = True) -> str:
        """A new version of a secret; its id."""
        versions = self._secrets.setdefault(name, [])
        version = f"{len(versions) + 1:032x}"
        versions.append({"value": value, "version": version, "enabled": enabled})
        return version

    @contextmanager
    def failing(self, answer: Answer) -> Iterator[None]:
        """Everything but the challenge and the tokens is answered so."""
        self.failure = answer
        yield
        self.failure = None

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """What comes with a token meanwhile is answered at the end of the block. By then, who asked should have gone:
        the end of his connection is waited for, since TLS has a farewell, without which his side stays half open."""
        self._hanging = True
        yield
        self._hanging = False
        while self._hung:
            self._hung.pop().join(1.0)

    def reads(self) -> list[str]:
        """What was asked for with a token: the paths."""
        return [
            urlsplit(request.path).path
            for request in self.requests
            if request.path.startswith("/secrets") and "authorization" in request.headers
        ]

    # ------------------------------------------------------------------------------------- what it does then
    def _take(self, request: Request) -> Answer | None:
        answer = super()._take(request)
        if self._hanging and "authorization" in request.headers:
            self._hung.append(threading.current_thread())
            while self._hanging and not self._stopping.wait(0.02):
                pass
        return answer

    def respond(self, request: Request) -> Answer:
        parts = urlsplit(request.path)
        if parts.path.endswith("/oauth2/v2.0/token"):
            return self._token(request)
        if request.headers.get("authorization") != f"Bearer {self.accepts}":
            return self._challenge()
        if self.failure is not None:
            return self.failure
        words = parts.path.strip("/").split("/")
        if words == ["secrets"]:
            return self._list(parse_qs(parts.query))
        return self._get(words[1], words[2] if len(words) > 2 else None)

    def _token(self, request: Request) -> Answer:
        form = {name: values[0] for name, values in parse_qs(request.body.decode()).items()}
        self.logins.append(form)
        if self.tokens is not None:
            return self.tokens
        if self.passwords is not None and form.get("client_secret") not in self.passwords:
            words = "AADSTS7000215: Invalid client secret provided."
            refused = {"error": "invalid_client", "error_description": words}
            return Answer(401, json.dumps(refused).encode(), JSON)
        token = {"token_type": "Bearer", "expires_in": 3599, "ext_expires_in": 3599, "access_token": TOKEN}
        return Answer(200, json.dumps(token).encode(), JSON)

    def _challenge(self) -> Answer:
        told = f'Bearer authorization="{self.url}/{self.tenant}", resource="{self.resource}"'
        error = key_vault_error(401, "Unauthorized", "AKV10000: Request is missing a Bearer or PoP token.")
        return Answer(401, error.body, {**JSON, "WWW-Authenticate": told})

    def _get(self, name: str, version: str | None) -> Answer:
        for each in reversed(self._secrets.get(name, ())):
            if version in (None, each["version"]):
                if not each["enabled"]:
                    words = "Operation get is not allowed on a disabled secret."
                    return key_vault_error(403, "Forbidden", words, "SecretDisabled")
                return Answer(200, json.dumps(self._bundle(name, each)).encode(), JSON)
        words = f"A secret with (name/id) {name} was not found in this key vault."
        return key_vault_error(404, "SecretNotFound", f"{words} If you recently deleted this secret ...")

    def _bundle(self, name: str, each: dict[str, Any]) -> dict[str, Any]:
        return {
            "value": each["value"],
            "id": f"{self.url}/secrets/{name}/{each['version']}",
            "attributes": {"enabled": each["enabled"], "created": 1, "updated": 1},
        }

    def _list(self, query: dict[str, list[str]]) -> Answer:
        start = int(query.get("$skiptoken", ["0"])[0])
        names = sorted(self._secrets)
        page: dict[str, Any] = {
            "value": [
                {"id": f"{self.url}/secrets/{name}", "attributes": {"enabled": True}}
                for name in names[start : start + PAGE]
            ],
            "nextLink": None,
        }
        if start + PAGE < len(names):
            page["nextLink"] = f"{self.url}/secrets?api-version=7.6&$skiptoken={start + PAGE}"
        return Answer(200, json.dumps(page).encode(), JSON)
