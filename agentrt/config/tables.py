"""What the configuration gives out: values with their origin, and tables that a plugin or a stage decodes when it is
made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from msgspec import Struct

from agentrt import plugins
from agentrt.decode import Text, Where, build, parse_text, shown

__all__ = ["PluginTable", "Setting", "StageOptions", "plain"]

S = TypeVar("S")


class Setting(Struct, frozen=True):
    """One value that is set: its dotted name, the value as text (never a secret), and where it was set."""

    name: str
    value: str
    origin: str


class PluginTable(Struct, frozen=True, eq=False):
    """A plugin and the table of its options, not yet decoded. `name`: what the table is called."""

    group: str
    name: str
    plugin: str
    options: Mapping[str, Any]
    where: Where

    def __repr__(self) -> str:
        return f"PluginTable({self.group}: {self.plugin}, {shown(self.where.path, dict(self.options))})"

    def make(self) -> Any:
        """The plugin; raises `ConfigError` for its options and `PluginError` for itself."""
        return plugins.make(self.group, self.plugin, self.options, where=self.where)

    def plain_options(self) -> dict[str, Any]:
        """The options as they stand, where no class says what they are."""
        return {name: plain(value) for name, value in self.options.items()}


class StageOptions(Struct, Generic[S], frozen=True, eq=False):
    """What the configuration says about one stage of one kind of call.

    `enabled`: True or False if it says so, None if it says nothing. `options`: decoded, by name; `tables`: the
    table that each stands in; `where`: the narrowest table that says anything.
    """

    stage_class: type[S]
    enabled: bool | None
    options: Mapping[str, Any]
    tables: Mapping[str, Where]
    where: Where

    @property
    def sources(self) -> dict[str, str]:
        """Where each option was set, by name. Made when asked for: lines are looked up in the file."""
        return {option: str(table.below(option)) for option, table in self.tables.items()}

    def make(self, defaults: Mapping[str, Any] | None = None) -> S:
        """The stage, with `defaults` for what the configuration leaves open.

        Raises `ConfigError` for a value that the stage's constructor refuses.
        """
        values = {**(defaults or {}), **self.options}
        return build(self.stage_class, {}, where=self.where, defaults=values, tables=self.tables)


def plain(value: Any) -> Any:
    """A value whose type nothing else decides."""
    return parse_text(value) if isinstance(value, Text) else value
