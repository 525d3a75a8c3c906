"""TLS with a server: whose certificates we trust, and the one that we show."""

from __future__ import annotations

import ssl

from msgspec import Struct

from agentrt import options
from agentrt.errors import ConfigError

__all__ = ["Tls"]


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
        if self.client_cert_file is not None:
            try:
                # Without a password OpenSSL would ask for one on the terminal, and wait.
                context.load_cert_chain(self.client_cert_file, self.client_key_file, password="")
            except OSError as error:
                names = ", ".join(filter(None, (self.client_cert_file, self.client_key_file)))
                why = "no certificate with its key in PEM, without a password"
                raise _unusable("client_cert_file", names, why, error) from error
        return context


def _unusable(option: str, files: str, wrong: str, error: OSError) -> ConfigError:
    why = wrong if isinstance(error, ssl.SSLError) else error.strerror or type(error).__name__
    return ConfigError(f"{option} of the secrets provider vault cannot be used: {files}: {why}")
