"""What a secrets provider is asked and what it answers. A plugin of the group `agentrt.secrets` implements
`SecretsProvider`.

Errors, and what the pipeline does with them (see `agentrt.errors`):

    SecretError
    |-- SecretNotFound     the provider works, but has no such secret       permanent, the request's fault
    |-- SecretInvalid      it has one, but not as the reference wants it    permanent, the request's fault
    |-- SecretDenied       these credentials may not read it                permanent, the provider's fault
    |-- SecretThrottled    the provider asks us to slow down                throttled
    `-- SecretUnavailable  the provider cannot be reached or is sealed      transient
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import quote, unquote

from msgspec import Struct

from agentrt.errors import AgentrtError, ConfigError, PermanentError, ThrottledError, TransientError

__all__ = [
    "MASK",
    "Secret",
    "SecretDenied",
    "SecretError",
    "SecretInvalid",
    "SecretNotFound",
    "SecretRef",
    "SecretThrottled",
    "SecretUnavailable",
    "SecretValue",
    "SecretsProvider",
]

SCHEME = "secret://"
MASK = "**********"


class SecretError(AgentrtError):
    """Base of what a secrets provider raises; messages name the reference, never a value."""


class SecretNotFound(PermanentError, SecretError):
    """The provider has no secret of this name or version."""

    def __init__(self, message: str) -> None:
        super().__init__(message, fault="request", executed=False)


class SecretInvalid(PermanentError, SecretError):
    """The secret is not what the reference says: no JSON, or no such key in it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, fault="request", executed=False)


class SecretDenied(PermanentError, SecretError):
    """The provider does not let us read this secret."""

    def __init__(self, message: str) -> None:
        super().__init__(message, fault="target")


class SecretThrottled(ThrottledError, SecretError):
    """The provider asks us to slow down; `retry_after` in seconds, if it said."""


class SecretUnavailable(TransientError, SecretError):
    """The provider cannot be reached, or cannot answer now."""


class SecretRef(Struct, frozen=True):
    """A reference to a secret: `secret://[provider/]name[#json.key][?version=...]`.

    What stands before the first slash is the provider (None: the default one); a name with slashes of its own therefore
    needs it, or an empty one: `secret://aws/prod/db`, `secret:///prod/db`. `key`: the path to a value inside a
    secret that is JSON. In each part `%2F` and the like stand for characters that would end it.
    """

    name: str
    provider: str | None = None
    key: tuple[str, ...] = ()
    version: str | None = None

    @classmethod
    def parse(cls, text: str) -> SecretRef:
        """The reference that `text` is; raises `ConfigError` if it is none."""
        if not is_reference(text):
            raise _malformed(text if len(text) < 4 else f"{text[:3]}...", f"does not begin with {SCHEME}")
        address, key, version = _split(text)
        provider, slash, name = address.partition("/")
        if not slash:
            provider, name = "", address
        if not name:
            raise _malformed(text, "has no name")
        if key is not None and not all(key.split(".")):
            raise _malformed(text, "has an empty key after the #")
        if version is not None and not version:
            raise _malformed(text, "has an empty version")
        return cls(
            unquote(name),
            unquote(provider) or None,
            tuple(map(unquote, key.split("."))) if key is not None else (),
            unquote(version) if version is not None else None,
        )

    def __str__(self) -> str:
        slash = "/" if self.provider is not None or "/" in self.name else ""
        key = "#" + ".".join(_quoted(part).replace(".", "%2E") for part in self.key) if self.key else ""
        version = f"?version={_quoted(self.version)}" if self.version is not None else ""
        return f"{SCHEME}{_quoted(self.provider or '')}{slash}{_quoted(self.name, safe='/')}{key}{version}"


def _quoted(part: str, *, safe: str = "") -> str:
    # Half of a surrogate pair has no UTF-8 form; no provider has such a name, but an error must be able to say it.
    return quote(part, safe=safe, errors="backslashreplace")


def is_reference(text: str) -> bool:
    """Whether `text` is meant as a reference and not as the secret itself."""
    return text.startswith(SCHEME)


def _split(text: str) -> tuple[str, str | None, str | None]:
    """(address, key, version); the key and the version in either order."""
    address, key, version = text[len(SCHEME) :], None, None
    for _ in range(2):
        at = max(address.rfind("#"), address.rfind("?"))
        if at < 0:
            break
        mark, part, address = address[at], address[at + 1 :], address[:at]
        if mark == "#" and key is None:
            key = part
        elif mark == "?" and version is None and part.startswith("version="):
            version = part.removeprefix("version=")
        else:
            raise _malformed(text, f"has something else after {mark!r} than one key or version=...")
    if "#" in address or "?" in address:
        raise _malformed(text, "has more than one key or version")
    return address, key, version


def _malformed(text: str, why: str) -> ConfigError:
    return ConfigError(
        f"{text!r} {why}; a reference to a secret is secret://[provider/]name[#json.key][?version=...]"
    )


class SecretValue(Struct, frozen=True):
    """A value with what the provider knows about it.

    `version`: which one it is. `ttl`: seconds for which it is valid, None if it does not end. `lease`: the handle by
    which the provider renews or revokes it, None if there is nothing to revoke. `renewable`: `renew` may make it
    last longer.
    """

    value: str
    version: str | None = None
    lease: str | None = None
    ttl: float | None = None
    renewable: bool = False

    def __repr__(self) -> str:
        return f"SecretValue(version={self.version!r}, ttl={self.ttl!r}, renewable={self.renewable!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """rich asks a Struct for its fields, not for its repr."""
        return [("version", self.version), ("ttl", self.ttl), ("renewable", self.renewable)]


class SecretsProvider(Protocol):
    """Reads secrets from one place. The constructor's keyword-only parameters are its options.

    An attribute `cache_ttl` (s), if there is one, says how old its values may become, instead of [secrets.cache] ttl: a
    file is soon read, and may change at any time.

    Optional: `async def open(self, host)` before the first `get`, `async def aclose(self)` at the end, and

        async def get_many(self, refs: Sequence[SecretRef], /) -> Mapping[SecretRef, str | SecretValue]
            several at once, where the service can; what is missing in the answer is not there
        async def renew(self, value: SecretValue, /) -> SecretValue
            a renewable one with a new `ttl`; raises if it cannot last any longer
        async def revoke(self, value: SecretValue, /) -> None
            end its lease now; called when the runtime closes
        async def list(self, prefix: str = "", /) -> Sequence[str]
            the names that begin with `prefix`, never a value
    """

    async def get(self, ref: SecretRef, /) -> str | SecretValue:
        """The value of `ref.name` (and `ref.version`); the key inside JSON is none of the provider's business.

        Raises the errors above. Neither caches nor retries: the manager and the pipeline do.
        """
        ...


class _Hidden:
    """What a Secret knows and no serializer sees: only the fields of the dataclass below are its business."""

    __slots__ = ("_on_reveal", "_value", "name")
    _on_reveal: Callable[[str], object] | None
    _value: str | None
    name: str


@dataclasses.dataclass(frozen=True, eq=False, repr=False, init=False)
class Secret(_Hidden):
    """A value that does not show itself: `reveal()` gives it.

    repr, str, format, pickle and JSON hold a mask instead: to msgspec and other serializers this is a dataclass whose
    one field is the mask. A pickle does not hold the value, so what is unpickled has nothing to reveal. `name`
    says which secret it is. `on_reveal` is told that name each time the value is taken out; what it raises, `reveal`
    raises.
    """

    __slots__ = ("secret",)
    secret: str

    def __init__(
        self, value: str, *, name: str = "", on_reveal: Callable[[str], object] | None = None
    ) -> None:
        object.__setattr__(self, "secret", MASK)
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "_value", value)
        object.__setattr__(self, "_on_reveal", on_reveal)

    def reveal(self) -> str:
        """The value itself."""
        if self._value is None:
            raise ValueError(
                f"this copy of the secret {self.name!r} was pickled: its value stayed where it was"
            )
        if self._on_reveal is not None:
            self._on_reveal(self.name)
        return self._value

    def __repr__(self) -> str:
        return f"Secret({MASK!r})"

    def __str__(self) -> str:
        return MASK

    def __format__(self, specification: str) -> str:
        return format(MASK, specification)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        import hmac  # here: it brings OpenSSL, and few secrets are ever compared

        return hmac.compare_digest(str(self._value).encode(), str(other._value).encode())

    def __hash__(self) -> int:
        return hash(self._value)

    def __bool__(self) -> bool:
        return bool(self._value)

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: Any) -> Secret:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.name,)

    def __getstate__(self) -> object:
        return {"secret": MASK}  # for what looks at an object's state by itself


def _unpickled(name: str) -> Secret:
    secret = Secret("", name=name)
    object.__setattr__(secret, "_value", None)
    return secret
