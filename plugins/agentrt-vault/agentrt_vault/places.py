"""Where in Vault a reference leads: which mount, and what there."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from agentrt.errors import ConfigError
from agentrt.secrets import SecretInvalid, SecretRef
from agentrt_vault.auth import check_mount

__all__ = ["Credentials", "Kv", "Places"]

KINDS = ("creds", "static-creds")


class Kv(Struct, frozen=True):
    """A secret, or a folder of them, in a mount of the engine kv."""

    mount: str
    path: str


class Credentials(Struct, frozen=True):
    """What an engine makes for a role. `kind`: "creds" (made for us, with a lease) or "static-creds" (an account that
    is there, whose password the engine changes)."""

    mount: str
    kind: str
    role: str

    @property
    def path(self) -> str:
        return f"{self.mount}/{self.kind}/{self.role}"


class Places:
    """The mounts. A name that is MOUNT/creds/ROLE or MOUNT/static-creds/ROLE of one of `dynamic` is a credential; one
    that begins with one of `more` is in that kv mount; any other is in `main`. Of several that fit, the longest counts.
    """

    def __init__(self, main: str, more: Iterable[str], dynamic: Iterable[str]) -> None:
        self.main = check_mount(main)
        self._more = _by_length("mounts", more)
        self._dynamic = _by_length("dynamic", dynamic)
        both = set(self._dynamic) & {main, *self._more}
        if both:
            raise ConfigError(f"dynamic and the kv mounts share {sorted(both)}: a mount has one engine")

    def find(self, ref: SecretRef) -> Kv | Credentials:
        """Where `ref` leads. Raises SecretInvalid for a name that is no path in Vault."""
        name = ref.name
        if any(part in ("", ".", "..") for part in name.split("/")) or not name.isprintable():
            raise SecretInvalid(
                f"{str(ref)[:300]}: a name in Vault is a path without empty parts, '.', '..' and control characters"
            )
        for mount in self._dynamic:
            kind, _, role = _below(name, mount).partition("/")
            if kind in KINDS and role and "/" not in role:
                return Credentials(mount, kind, role)
        return self.folder(name)

    def folder(self, prefix: str) -> Kv:
        """The kv mount for names that begin with `prefix`, which may be empty or end in a slash."""
        for mount in self._more:
            if path := _below(prefix, mount):
                return Kv(mount, path)
            if prefix == f"{mount}/":
                return Kv(mount, "")
        return Kv(self.main, prefix)

    def roles_of(self, prefix: str) -> tuple[str, str] | None:
        """(mount, kind) if names that begin with `prefix` are credentials."""
        for mount in self._dynamic:
            kind, slash, _ = _below(prefix, mount).partition("/")
            if slash and kind in KINDS:
                return mount, kind
        return None

    def name_of(self, mount: str, path: str) -> str:
        """By which name `path` in a kv mount is read."""
        return path if mount == self.main else f"{mount}/{path}"


def _below(name: str, mount: str) -> str:
    return name.removeprefix(f"{mount}/") if name.startswith(f"{mount}/") else ""


def _by_length(option: str, mounts: Iterable[str]) -> list[str]:
    if isinstance(mounts, str):
        raise ConfigError(f"{option} must be a list of mounts, not {mounts!r}")
    return sorted({check_mount(mount, option) for mount in mounts}, key=len, reverse=True)
