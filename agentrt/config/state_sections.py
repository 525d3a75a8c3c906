"""The sections of what is stored: [state] and [encryption]."""

from __future__ import annotations

from msgspec import Struct

from agentrt import options
from agentrt.errors import ConfigError

__all__ = ["EncryptionSection", "StateSection"]


class StateSection(Struct, frozen=True, kw_only=True):
    """[state]; its other keys are options of the store.

    `plugin` ("sqlite"): the store, a plugin of the group agentrt.state. `encrypt` (false): what is stored is encrypted
    with the first of [encryption] keys. `accept_clear` (false): what was stored in clear before is still read then.
    `name` ("default"): what encrypted documents are bound to, besides their id, so that those of another store are
    refused; it must stay the same.
    """

    plugin: str = "sqlite"
    encrypt: bool = False
    accept_clear: bool = False
    name: str = "default"

    def __post_init__(self) -> None:
        options.text("plugin", self.plugin)
        options.text("name", self.name)


class EncryptionSection(Struct, frozen=True, kw_only=True):
    """[encryption]

    `keys`: references of secrets, each base64 of 32 random bytes; the first one encrypts, all decrypt.
    """

    keys: str | list[str] = []

    def __post_init__(self) -> None:
        for number, reference in enumerate(self.references, start=1):
            if not reference.startswith("secret://"):
                # Not shown: it may be the key itself.
                raise ConfigError(
                    f'keys must be references such as "secret://env/AGENTRT_KEY", which number {number} is not; a key '
                    "never stands in a configuration file"
                )

    @property
    def references(self) -> list[str]:
        """`keys` as a list; empty if there are none."""
        return [self.keys] if isinstance(self.keys, str) else list(self.keys)
