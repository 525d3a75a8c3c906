"""Where the server is and how a connection to it is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from msgspec import Struct

from agentrt.errors import ConfigError

__all__ = ["Address"]

SCHEMES = {"redis": False, "valkey": False, "rediss": True, "valkeys": True, "unix": False}
"""By scheme, whether the connection is encrypted."""

PORT = 6379


class Address(Struct, frozen=True):
    """A server. `text`: how it is called in messages, without user and password. `host` is a path for a socket."""

    text: str
    host: str
    port: int
    database: int
    is_socket: bool
    is_encrypted: bool
    username: str | None
    password: str | None

    @classmethod
    def parse(cls, url: str) -> Address:
        """The server that `url` names. Raises ConfigError, whose message never holds the password."""
        try:
            parts = urlsplit(url)
            port = parts.port or PORT
        except ValueError:
            raise _wrong() from None
        if parts.scheme not in SCHEMES or parts.query or parts.fragment:
            raise _wrong()
        is_socket = parts.scheme == "unix"
        host, database = (parts.path, 0) if is_socket else (parts.hostname or "", _database(parts))
        if not host:
            raise _wrong()
        shown = f"[{host}]" if ":" in host else host
        return cls(
            text=f"unix://{host}" if is_socket else f"{parts.scheme}://{shown}:{port}/{database}",
            host=host,
            port=port,
            database=database,
            is_socket=is_socket,
            is_encrypted=SCHEMES[parts.scheme],
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
        )

    def connection(self, ca_file: Path | None) -> dict[str, Any]:
        """The arguments of redis-py's connections."""
        from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection

        if self.is_socket:
            return {"connection_class": UnixDomainSocketConnection, "path": self.host}
        where: dict[str, Any] = {"host": self.host, "port": self.port, "db": self.database}
        if not self.is_encrypted:
            return {"connection_class": Connection, **where}
        if ca_file is not None:
            where["ssl_ca_certs"] = str(ca_file)
        return {"connection_class": SSLConnection, **where}


def _database(parts: SplitResult) -> int:
    text = parts.path.strip("/") or "0"
    if not text.isdecimal():
        raise _wrong()
    return int(text)


def _wrong() -> ConfigError:
    return ConfigError(
        "url must be such as redis://HOST:6379/0, rediss://HOST (encrypted), unix:///PATH, or a secret:// reference "
        "to one; valkey:// and valkeys:// mean the same"
    )
