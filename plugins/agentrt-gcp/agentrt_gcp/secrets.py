"""Secrets from GCP Secret Manager: `secret://gcp/db#password?version=3`."""

from __future__ import annotations

import asyncio
import importlib
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from agentrt import options
from agentrt.errors import AgentrtError, ConfigError
from agentrt.secrets import SecretInvalid, SecretRef, SecretUnavailable, SecretValue
from agentrt_gcp.client import Endpoint, GcpClient

if TYPE_CHECKING:
    from agentrt.plugins import Host

__all__ = ["GcpSecrets"]

NAME = re.compile(r"[A-Za-z0-9_-]{1,255}")
RESOURCE = re.compile(r"projects/[A-Za-z0-9:._-]+(/locations/[a-z0-9-]+)?/secrets/[A-Za-z0-9_-]{1,255}")
VERSION = re.compile(r"[A-Za-z0-9_-]{1,63}")
"""A number, "latest", or an alias that the secret gives one of its versions."""

PAGE = 1000


class GcpSecrets:
    """Reads from Secret Manager. Credentials are found as Google's libraries find them; their retries are off.

    `project`: whose secrets (default: GOOGLE_CLOUD_PROJECT, or the credentials'). `location`: of regional secrets, such
    as "europe-west3". `endpoint`: another address; http:// is for an emulator on this machine. `credentials_file`: JSON
    of a service account or a workload identity. `ca_file`: certificates to trust, if the authority is your own.
    `timeout` (5.0 s): for an answer.

    A name is one of `project`'s, or whole: projects/PROJECT/secrets/NAME. The version is a number, an alias or
    "latest", which is the default.
    """

    def __init__(
        self,
        *,
        project: str | None = None,
        location: str | None = None,
        endpoint: str | None = None,
        credentials_file: str | None = None,
        ca_file: str | None = None,
        timeout: float = 5.0,
    ) -> None:
        self.project = None if project is None else options.text("project", project)
        self.location = None if location is None else options.text("location", location)
        self.endpoint = endpoint
        self.credentials_file = _path("credentials_file", credentials_file)
        self.ca_file = _path("ca_file", ca_file)
        self.timeout = options.seconds("timeout", timeout)
        host = "secretmanager." + (f"{location}.rep." if location else "") + "googleapis.com"
        self._client = GcpClient(
            Endpoint(host if endpoint is None else endpoint),
            credentials_file=self.credentials_file,
            ca_file=self.ca_file,
            timeout=self.timeout,
        )

    async def open(self, host: Host) -> None:
        """Loads the SDK, in a thread: it is large. Nothing is asked yet."""
        del host
        await asyncio.to_thread(_load)

    async def get(self, ref: SecretRef, /) -> SecretValue:
        from agentrt_gcp.failures import failure

        try:
            name = await self._resource(ref)
            answer = await self._client.call(
                lambda client: client.access_secret_version(
                    request={"name": name}, retry=None, timeout=self.timeout
                )
            )
        except AgentrtError:
            raise
        except Exception as error:
            raise failure(
                error,
                str(ref),
                permission="secretmanager.versions.access",
                role="roles/secretmanager.secretAccessor",
            ) from error
        return _value(answer, ref)

    async def list(self, prefix: str = "", /) -> Sequence[str]:
        from agentrt_gcp.failures import failure

        what = "the list of the secrets in gcp"
        try:
            parent = await self._parent(what)
            pager = await self._client.call(
                lambda client: client.list_secrets(
                    request={"parent": parent, "page_size": PAGE}, retry=None, timeout=self.timeout
                )
            )
            names = [secret.name.rpartition("/")[2] async for secret in pager]
        except AgentrtError:
            raise
        except Exception as error:
            raise failure(
                error, what, permission="secretmanager.secrets.list", role="roles/secretmanager.viewer"
            ) from error
        return sorted(name for name in names if name.startswith(prefix))

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _resource(self, ref: SecretRef) -> str:
        version = "latest" if ref.version is None else ref.version
        if not VERSION.fullmatch(version):
            raise SecretInvalid(f"{ref}: a version in GCP is a number, an alias or 'latest'")
        if RESOURCE.fullmatch(ref.name):
            return f"{ref.name}/versions/{version}"
        if not NAME.fullmatch(ref.name):
            raise SecretInvalid(
                f"{ref}: a secret's name in GCP has 1 to 255 letters, digits, dashes and underscores, or is whole: "
                "projects/PROJECT/secrets/NAME"
            )
        return f"{await self._parent(str(ref))}/secrets/{ref.name}/versions/{version}"

    async def _parent(self, what: str) -> str:
        project = self.project or os.environ.get("GOOGLE_CLOUD_PROJECT")
        if not project:
            await self._client.ready()
            project = self._client.project
        if not project:
            raise ConfigError(
                f"{what}: no project is set: give `project` to the secrets provider gcp, or set GOOGLE_CLOUD_PROJECT"
            )
        return f"projects/{project}" + (f"/locations/{self.location}" if self.location else "")


def _path(option: str, value: str | None) -> str | None:
    return None if value is None else options.text(option, value)


def _value(answer: Any, ref: SecretRef) -> SecretValue:
    import google_crc32c

    payload = answer.payload
    data: bytes = payload.data
    if "data_crc32c" in payload and int(google_crc32c.value(data)) != payload.data_crc32c:
        raise SecretUnavailable(f"{ref}: what arrived is not what GCP sent: its checksum is another one")
    text = _text(data)
    if text is None:
        raise SecretInvalid(
            f"{ref}: the secret is binary and no UTF-8 text: store it encoded, as base64 for example"
        )
    return SecretValue(text, answer.name.rpartition("/")[2] or None)


def _text(data: bytes) -> str | None:
    # Its error would hold the value, and hang on ours if that were raised in here.
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _load() -> None:
    for module in ("google.cloud.secretmanager_v1", "google.auth", "google_crc32c", "agentrt_gcp.failures"):
        importlib.import_module(module)
