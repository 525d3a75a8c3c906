"""GCP Secret Manager as far as it is read from: a gRPC server of Google's published messages.

Its threads are its own, so that it outlives the event loops of a test. The words of its errors are the service's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import google_crc32c
import grpc
from google.cloud import secretmanager_v1 as messages
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from servers.certificates import Certificate

__all__ = ["GcpSecretManager", "Version"]

SERVICE = "google.cloud.secretmanager.v1.SecretManagerService"


@dataclass
class Version:
    """`checksum`: what is said of the data; None: nothing."""

    data: bytes
    checksum: int | None
    state: str = "ENABLED"


@dataclass
class _Failure:
    code: Any
    words: str
    retry_after: float | None = None


@dataclass
class _Secret:
    versions: list[Version] = field(default_factory=list)
    aliases: dict[str, int] = field(default_factory=dict)


class GcpSecretManager:
    """A context manager; without a certificate it speaks plain gRPC. `calls`: method, what it was asked for, and the
    authorization."""

    def __init__(self, certificate: Certificate | None = None) -> None:
        self.calls: list[tuple[str, str, str]] = []
        self.port = 0
        self.accepts: Callable[[str], bool] = lambda authorization: True
        self._certificate = certificate
        self._secrets: dict[str, _Secret] = {}
        self._failure: _Failure | None = None
        self._hangs = False
        self._called = threading.Condition()
        self._end = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}" if self._certificate is None else f"localhost:{self.port}"

    # ----------------------------------------------------------------------------------- what tests do to it
    def add(self, name: str, data: bytes, *, checksum: int | None = -1) -> int:
        """A new version of a secret, "projects/p/secrets/s", which is made if need be; its number."""
        right = int(google_crc32c.value(data))
        secret = self._secrets.setdefault(name, _Secret())
        secret.versions.append(Version(data, right if checksum == -1 else checksum))
        return len(secret.versions)

    def set_state(self, name: str, number: int, state: str) -> None:
        self._secrets[name].versions[number - 1].state = state

    def set_alias(self, name: str, alias: str, number: int) -> None:
        self._secrets[name].aliases[alias] = number

    @contextmanager
    def failing(self, code: Any, words: str = "because", retry_after: float | None = None) -> Iterator[None]:
        self._failure = _Failure(code, words, retry_after)
        yield
        self._failure = None

    @contextmanager
    def hanging(self) -> Iterator[None]:
        self._hangs = True
        yield
        self._hangs = False

    def wait_for_calls(self, count: int, *, timeout: float = 30.0) -> None:
        with self._called:
            if not self._called.wait_for(lambda: len(self.calls) >= count, timeout):
                raise AssertionError(f"{len(self.calls)} calls came within {timeout:g} s, not {count}")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Listens, on the port that it had before if there was one."""
        self._end.clear()
        self._server = grpc.server(ThreadPoolExecutor(8, thread_name_prefix="gcp"))
        methods = {
            "AccessSecretVersion": self._method(
                self._access, messages.AccessSecretVersionRequest, messages.AccessSecretVersionResponse
            ),
            "ListSecrets": self._method(
                self._list, messages.ListSecretsRequest, messages.ListSecretsResponse
            ),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
        address = f"127.0.0.1:{self.port}"
        if self._certificate is None:
            self.port = self._server.add_insecure_port(address)
        else:
            pair = (self._certificate.key, self._certificate.chain)
            self.port = self._server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
        self._server.start()

    def stop(self) -> None:
        self._end.set()
        self._server.stop(0).wait()

    # ------------------------------------------------------------------------------------- what it does then
    def _method(self, answer: Callable[[Any, Any], Any], request: Any, response: Any) -> Any:
        name = request.__name__.removesuffix("Request")

        def handle(asked: Any, context: Any) -> Any:
            given = dict(context.invocation_metadata()).get("authorization", "")
            with self._called:
                self.calls.append((name, asked.name if name.startswith("Access") else asked.parent, given))
                self._called.notify_all()
            while self._hangs and context.is_active() and not self._end.wait(0.02):
                pass
            if self._failure is not None:
                _fail(context, self._failure)
            if not self.accepts(given):
                words = "Request had invalid authentication credentials."
                context.abort(grpc.StatusCode.UNAUTHENTICATED, words)
            return answer(asked, context)

        return grpc.unary_unary_rpc_method_handler(
            handle, request_deserializer=request.deserialize, response_serializer=response.serialize
        )

    def _access(self, request: Any, context: Any) -> Any:
        name, _, wanted = request.name.rpartition("/versions/")
        secret = self._secrets.get(name)
        if secret is None or not secret.versions:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Secret [{name}] not found or has no versions.")
        assert secret is not None
        number = len(secret.versions) if wanted == "latest" else secret.aliases.get(wanted, 0)
        number = number or (int(wanted) if wanted.isdecimal() else 0)
        if not 0 < number <= len(secret.versions):
            context.abort(grpc.StatusCode.NOT_FOUND, f"Secret Version [{request.name}] not found.")
        version = secret.versions[number - 1]
        path = f"{name}/versions/{number}"
        if version.state != "ENABLED":
            words = f"Secret Version [{path}] is in {version.state} state."
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, words)
        payload = messages.SecretPayload(data=version.data)
        if version.checksum is not None:
            payload.data_crc32c = version.checksum
        return messages.AccessSecretVersionResponse(name=path, payload=payload)

    def _list(self, request: Any, context: Any) -> Any:
        del context
        names = sorted(name for name in self._secrets if name.startswith(f"{request.parent}/secrets/"))
        start = int(request.page_token or 0)
        end = start + min(request.page_size, 50)  # a server may give less than it is asked for
        return messages.ListSecretsResponse(
            secrets=[messages.Secret(name=name) for name in names[start:end]],
            next_page_token=str(end) if end < len(names) else "",
        )


def _fail(context: Any, failure: _Failure) -> None:
    if failure.retry_after is None:
        context.abort(failure.code, failure.words)
    delay = Duration()
    delay.FromNanoseconds(round((failure.retry_after or 0.0) * 1e9))
    status = status_pb2.Status(
        code=getattr(code_pb2, failure.code.name),
        message=failure.words,
    )
    status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    context.abort_with_status(rpc_status.to_status(status))
