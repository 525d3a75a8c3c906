"""TLS with a server: whose certificates we trust, and the one that we show."""

from __future__ import annotations

import logging
import os
import ssl

from msgspec import Struct

from agentrt import options
from agentrt.errors import ConfigError

__all__ = ["FollowedContext", "Tls"]

_log = logging.getLogger("agentrt.vault")


class Tls(Struct, frozen=True, kw_only=True):
    """PEM files. `ca_file`: authorities to trust, None for the system's. `client_cert_file`: a certificate of ours, for
    a server that wants to see one; `client_key_file`: its key, None if that stands in the same file."""

    ca_file: str | None = None
    client_cert_file: str | None = None
    client_key_file: str | None = None

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if getattr(self, name) is not None:
                options.text(name, getattr(self, name))
        if self.client_key_file is not None and self.client_cert_file is None:
            raise ConfigError(
                "client_key_file needs a client_cert_file, the certificate that it is the key of"
            )

    def context(self, *, trust_env: bool) -> ssl.SSLContext:
        """For the connections of one client. `trust_env`: SSL_CERT_FILE and SSL_CERT_DIR count where there is no
        `ca_file`. Reads files, which takes up to a tenth of a second: blocks. Raises ConfigError for one that is no
        good.
        """
        if self.ca_file is None:
            import httpx2

            context = httpx2.create_ssl_context(trust_env=trust_env)
        else:
            try:
                context = ssl.create_default_context(cafile=self.ca_file)
            except OSError as error:  # SSLError is one, too
                raise _unusable("ca_file", self.ca_file, "no certificate in PEM", error) from error
        self.show(context)
        return context

    def show(self, context: ssl.SSLContext) -> None:
        """Let the connections that `context` makes from now on show our certificate, if there is one."""
        if self.client_cert_file is None:
            return
        try:
            # Without a password OpenSSL would ask for one on the terminal, and wait.
            context.load_cert_chain(self.client_cert_file, self.client_key_file, password="")
        except OSError as error:
            names = ", ".join(filter(None, (self.client_cert_file, self.client_key_file)))
            why = "no certificate with its key in PEM, without a password"
            raise _unusable("client_cert_file", names, why, error) from error

    def stamp(self) -> tuple[tuple[int, int, int] | None, ...]:
        """Changes when the files of our certificate do."""
        files = (self.client_cert_file, self.client_key_file)
        return tuple(_stamp(file) for file in files if file is not None)


class FollowedContext:
    """The context of one client, whose new connections show the certificate that the files hold by then: those that
    are issued for a day are replaced while we run. Making one, and `renew`, block for a moment."""

    def __init__(self, tls: Tls, *, trust_env: bool) -> None:
        self._tls = tls
        self._stamp = tls.stamp()
        self.context = tls.context(trust_env=trust_env)

    @property
    def is_stale(self) -> bool:
        return self._stamp != self._tls.stamp()

    def renew(self) -> None:
        """Take what the files hold now. If that is no good, such as one half of a new pair, the old one stays until
        they change again."""
        self._stamp = self._tls.stamp()
        try:
            self._tls.show(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))  # a failure would leave half of it behind
            self._tls.show(self.context)
        except ConfigError as error:
            _log.warning("%s; the certificate so far stays in use", error)


def _stamp(file: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(file)
    except OSError:
        return None  # it is being replaced
    return found.st_mtime_ns, found.st_ino, found.st_size


def _unusable(option: str, files: str, wrong: str, error: OSError) -> ConfigError:
    why = wrong if isinstance(error, ssl.SSLError) else error.strerror or type(error).__name__
    return ConfigError(f"{option} of the secrets provider vault cannot be used: {files}: {why}")
