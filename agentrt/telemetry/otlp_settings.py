"""Where OTLP goes and how, for each signal: what is given, else OTEL_EXPORTER_OTLP_*, else the defaults.

A variable of a signal (OTEL_EXPORTER_OTLP_TRACES_...) comes before the general one. Nothing of OpenTelemetry is
imported here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, unquote, urlsplit

from msgspec import Struct, field

from agentrt import options
from agentrt.errors import ConfigError
from agentrt.telemetry.http import _is_loopback
from agentrt.telemetry.signals import Signal

__all__ = ["Destination", "Given", "Protocol", "destination", "wants_delta"]

Protocol = Literal["http/protobuf", "grpc"]
Compression = Literal["gzip", "deflate", "none"]

PREFIX = "OTEL_EXPORTER_OTLP_"
WORDS: Mapping[Signal, str] = {"spans": "traces", "metrics": "metrics", "logs": "logs"}
"""Our signals in OTLP's words."""
HTTP = "http://localhost:4318"
GRPC = "http://localhost:4317"
TIMEOUT = 10.0
MILLISECONDS_FROM = 1000.0
"""A timeout in the environment of at least this is meant in milliseconds. The specification has milliseconds,
OpenTelemetry for Python has always read seconds."""


class Given(Struct, frozen=True):
    """The options of a backend; None where the environment decides."""

    endpoint: str | None = None
    protocol: Protocol | None = None
    headers: Mapping[str, str] | None = None
    timeout: float | None = None
    compression: Literal["gzip", "none"] | None = None
    certificate: Path | None = None
    client_certificate: Path | None = None
    client_key: Path | None = None
    insecure: bool | None = None


class Destination(Struct, frozen=True):
    """Where one signal goes. `url`: for gRPC the address alone, "host:port". `setting`: what has the address."""

    signal: Signal
    protocol: Protocol
    url: str
    setting: str
    timeout: float
    compression: Compression
    secure: bool
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    certificate: Path | None = None
    client_certificate: Path | None = None
    client_key: Path | None = None

    def __repr__(self) -> str:
        return f"Destination({self.signal} to {self.url} over {self.protocol})"  # without the headers


def destination(signal: Signal, given: Given, environ: Mapping[str, str]) -> Destination:
    """Where `signal` goes. Raises ConfigError for what cannot be meant, naming the option or variable."""
    variables = _Variables(signal, environ)
    protocol = _protocol(given, variables)
    url, setting, secure = _address(signal, protocol, given, variables)
    certificate = _file("certificate", given.certificate, variables, "CERTIFICATE")
    client_certificate = _file(
        "client_certificate", given.client_certificate, variables, "CLIENT_CERTIFICATE"
    )
    client_key = _file("client_key", given.client_key, variables, "CLIENT_KEY")
    if client_key is not None and client_certificate is None:
        raise ConfigError("client_key needs client_certificate beside it")
    return Destination(
        signal=signal,
        protocol=protocol,
        url=url,
        setting=setting,
        timeout=_timeout(given, variables),
        compression=_compression(protocol, url, given, variables),
        secure=secure,
        headers=_headers(given, variables),
        certificate=certificate,
        client_certificate=client_certificate,
        client_key=client_key,
    )


def wants_delta(environ: Mapping[str, str]) -> bool:
    """Whether OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE asks for what came since the last batch."""
    preference = environ.get(f"{PREFIX}METRICS_TEMPORALITY_PREFERENCE", "").strip().lower()
    return preference in ("delta", "lowmemory")


class _Variables:
    """The variables of one signal."""

    def __init__(self, signal: Signal, environ: Mapping[str, str]) -> None:
        self._word = WORDS[signal].upper()
        self._environ = environ

    def get(self, name: str) -> tuple[str, str] | None:
        """(variable, value) of the signal's own variable or the general one. An empty one is one that is not set."""
        return self.own(name) or self.general(name)

    def own(self, name: str) -> tuple[str, str] | None:
        return self._get(f"{PREFIX}{self._word}_{name}")

    def general(self, name: str) -> tuple[str, str] | None:
        return self._get(f"{PREFIX}{name}")

    def _get(self, variable: str) -> tuple[str, str] | None:
        value = self._environ.get(variable, "").strip()
        return (variable, value) if value else None


def _protocol(given: Given, variables: _Variables) -> Protocol:
    setting, value = ("protocol", given.protocol) if given.protocol else variables.get("PROTOCOL") or ("", "")
    match value:
        case "grpc":
            return "grpc"
        case "" | "http/protobuf":
            return "http/protobuf"
        case _:
            raise ConfigError(f"{setting} must be 'http/protobuf' or 'grpc', not {value!r}")


def _address(
    signal: Signal, protocol: Protocol, given: Given, variables: _Variables
) -> tuple[str, str, bool]:
    """(url, setting, whether by TLS)."""
    own = None if given.endpoint else variables.own("ENDPOINT")
    if given.endpoint:
        setting, value = "endpoint", given.endpoint.strip()
    else:
        setting, value = own or variables.general("ENDPOINT") or ("endpoint", HTTP)
        if value == HTTP and protocol == "grpc":
            value = GRPC
    if protocol == "grpc":
        return _grpc_address(setting, value, given, variables)
    parts = _split(setting, value)
    if own is None:
        # A base, whose path is kept. Who gives a signal's whole address means the same.
        path = parts.path.rstrip("/")
        for word in WORDS.values():
            path = path.removesuffix(f"/v1/{word}")
        parts = parts._replace(path=f"{path}/v1/{WORDS[signal]}")
    elif not parts.path:
        parts = parts._replace(path="/")
    return parts.geturl(), setting, parts.scheme == "https"


def _grpc_address(setting: str, value: str, given: Given, variables: _Variables) -> tuple[str, str, bool]:
    if "://" in value and not value.startswith(("http://", "https://")):
        return value, setting, not _insecure(given, variables)  # unix:///path and the like are gRPC's own
    if "://" not in value:
        if not value or any(char.isspace() for char in value):
            raise ConfigError(f"{setting} must look like http://host:4317 or host:4317, not {value!r}")
        return value, setting, not _insecure(given, variables)
    parts = _split(setting, value)
    if parts.path.strip("/"):
        raise ConfigError(
            f"{setting} has a path, which gRPC has no use for: {value!r}; give http://host:4317, or choose "
            "protocol = 'http/protobuf'"
        )
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    secure = parts.scheme == "https"
    return f"{host}:{parts.port or (443 if secure else 80)}", setting, secure


def _split(setting: str, value: str) -> SplitResult:
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        parts, usable = urlsplit(""), False
    if not usable or any(char.isspace() for char in value):
        hint = f": write {'http://' + value!r}" if "://" not in value and value else ""
        raise ConfigError(
            f"{setting} must begin with http:// or https:// and have a host, unlike {value!r}{hint}"
        )
    return parts


def _insecure(given: Given, variables: _Variables) -> bool:
    """For an address that does not say it by its scheme; TLS unless told otherwise."""
    if given.insecure is not None:
        return given.insecure
    found = variables.get("INSECURE")
    return found is not None and found[1].lower() == "true"


def _timeout(given: Given, variables: _Variables) -> float:
    if given.timeout is not None:
        return options.seconds("timeout", given.timeout)
    found = variables.get("TIMEOUT")
    if found is None:
        return TIMEOUT
    variable, text = found
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 < value < math.inf:
        raise ConfigError(f"{variable} must be a number of seconds greater than 0, not {text!r}")
    return value / 1000.0 if value >= MILLISECONDS_FROM else value


def _compression(protocol: Protocol, url: str, given: Given, variables: _Variables) -> Compression:
    setting, value = "compression", str(given.compression or "")
    if not value:
        # Every server has to take gzip, says the specification; on the same machine it saves nothing.
        host = urlsplit(url if "://" in url else f"//{url}").hostname or ""
        default = "none" if _is_loopback(host) or url.startswith("unix:") else "gzip"
        setting, value = variables.get("COMPRESSION") or ("compression", default)
    match value.lower():
        case "gzip":
            return "gzip"
        case "none":
            return "none"
        case "deflate" if protocol != "grpc":
            return "deflate"
        case _:
            raise ConfigError(f"{setting} must be 'gzip' or 'none', not {value!r}")


def _headers(given: Given, variables: _Variables) -> dict[str, str]:
    headers: dict[str, str] = {}
    found = variables.get("HEADERS")
    if found is not None:
        variable, text = found
        for pair in filter(None, (pair.strip() for pair in text.split(","))):
            name, equals, value = pair.partition("=")
            if not equals or not name.strip():
                # Without the text: it may be a key that somebody forgot to give a name.
                raise ConfigError(
                    f"{variable} must look like name=value,name=value; one part has no name or no '='"
                )
            headers[unquote(name).strip().lower()] = unquote(value).strip()
    for name, value in (given.headers or {}).items():
        headers[name.lower()] = value
    return headers


def _file(option: str, value: Path | None, variables: _Variables, variable: str) -> Path | None:
    setting = option
    if value is None:
        found = variables.get(variable)
        if found is None:
            return None
        setting, value = found[0], Path(found[1])
    if not value.is_file():
        raise ConfigError(f"{setting}: there is no file {value}")
    return value
