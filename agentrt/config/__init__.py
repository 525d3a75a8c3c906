"""The configuration: defaults < code < file < environment < command line, every value with where it came from.

The file is `agentrt.toml`, or `[tool.agentrt]` in pyproject.toml; the environment `AGENTRT_SECTION__KEY`; the command
line `--set section.key=value`. A mistake is one `ConfigError` that names place, path, value and what is allowed.

Tables of plugins and of pipeline stages are kept as they are written: the classes that they are for decode them, when
they are made. So nothing here imports a plugin or a stage.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from agentrt import options, plugins
from agentrt.config.sections import (
    KINDS,
    STAGES,
    AgentSection,
    AuditSection,
    LogSection,
    RateLimitsSection,
    RunSection,
    SecretsCacheSection,
    TelemetrySection,
)
from agentrt.config.sources import (
    Origin,
    Tree,
    find_document,
    merge_environment,
    merge_overrides,
    read_document,
)
from agentrt.config.state_sections import EncryptionSection, StateSection
from agentrt.config.tables import PluginTable, Setting, StageOptions, plain
from agentrt.decode import Path, Where, build, choices, decode, dotted, shown
from agentrt.errors import ConfigError, PluginError

__all__ = ["Config", "PluginTable", "Setting", "StageOptions"]

S = TypeVar("S")

SECTIONS = (
    "run",
    "agent",
    "models",
    "pipeline",
    "secrets",
    "telemetry",
    "memory",
    "state",
    "encryption",
    "rate_limits",
    "log",
    "audit",
)

_OWN: Mapping[str, type[Struct]] = {
    "run": RunSection,
    "agent": AgentSection,
    "audit": AuditSection,
    "encryption": EncryptionSection,
    "log": LogSection,
    "rate_limits": RateLimitsSection,
    "state": StateSection,
    "telemetry": TelemetrySection,
}


class Config:
    """The whole configuration.

    `tables`: sections as a file has them, given in code; `load` reads all sources. `run`, `agent`, `log`: the
    sections of these names. `use`: stages to add to every pipeline ("module:stage"). `notes`: what a user
    should be told about the sources.
    """

    def __init__(self, tables: Mapping[str, Any] | None = None) -> None:
        tree = Tree()
        for name, table in (tables or {}).items():
            tree.merge((name,), table, Origin("code", "in code"))
        self._adopt(tree, [])

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        directory: str | os.PathLike[str] = ".",
        environ: Mapping[str, str] | None = None,
        overrides: Sequence[str] | Mapping[str, Any] = (),
    ) -> Config:
        """The configuration of the file at `path` (default: the one in `directory`, if any), of `environ`
        (default: the process's) and of `overrides` (`section.key=value`, or a mapping of such keys).

        Raises `ConfigError`.
        """
        tree = Tree()
        document, notes = find_document(directory) if path is None else (read_document(path), [])
        if document is not None:
            for name, table in document.table.items():
                tree.merge((name,), table, Origin("file", document.name, (name,), document))
        environ = os.environ if environ is None else environ
        notes += merge_environment(tree, environ, sections=SECTIONS, settings=_SETTINGS)
        merge_overrides(tree, overrides, sections=SECTIONS)
        config = cls.__new__(cls)
        config._adopt(tree, notes)
        return config

    def _adopt(self, tree: Tree, notes: list[str]) -> None:
        self._tree = tree
        self.notes = tuple(notes)
        for name, table in tree.values.items():
            if name not in SECTIONS:
                raise _unknown_section(tree, name)
            if not isinstance(table, dict):
                raise tree.where(name).error(f"{name} must be a table, not {shown((name,), table)}")
        self.run: RunSection = self._section("run", RunSection, leave=("limits",))
        self.agent: AgentSection = self._section("agent", AgentSection)
        self.log: LogSection = self._section("log", LogSection)
        self.audit: AuditSection = self._section("audit", AuditSection, leave=("sinks",))
        backends = list(self._backend_tables())
        self._check_backends(backends)
        self.telemetry: TelemetrySection = self._section("telemetry", TelemetrySection, leave=backends)
        stores = [name for name, value in self._table("rate_limits").items() if isinstance(value, dict)]
        self._rate_limits: RateLimitsSection = self._section("rate_limits", RateLimitsSection, leave=stores)
        self._check_stores(stores)
        own = [name for name in self._table("state") if name not in _fields(StateSection)]
        self.state: StateSection = self._section("state", StateSection, leave=own)
        self.encryption: EncryptionSection = self._section("encryption", EncryptionSection)
        self._check_state()
        self._table("run", "limits")
        self._table("memory")
        self.secrets_cache: SecretsCacheSection = self._subsection(SecretsCacheSection, "secrets", "cache")
        self._check_plugins()
        self.use: tuple[str, ...] = self._check_pipeline()

    def __repr__(self) -> str:
        return f"Config({', '.join(f'{item.name}={item.value}' for item in self.settings())})"

    # --- where things come from ------------------------------------------------------------------------

    def origin(self, name: str) -> str:
        """Where the setting of this dotted name was set ("agentrt.toml:3", "AGENTRT_RUN__TIMEOUT",
        "--set run.timeout", "in code"), or "default"."""
        path = tuple(name.split("."))
        return self._tree.origin(path) if self._has(path) else "default"

    def where(self, name: str) -> Where:
        """The place of the setting of this dotted name, for errors about its value:
        `raise config.where("pipeline.use").error("pipeline.use: ...")` begins with "agentrt.toml:2: "."""
        return self._tree.where(*name.split("."))

    def settings(self) -> list[Setting]:
        """Everything that is set, in the order of the sections."""
        found = [
            Setting(dotted(path), shown(path, plain(value)), self._tree.origin(path))
            for path, value in self._tree.leaves()
        ]
        return sorted(found, key=lambda item: SECTIONS.index(item.name.partition(".")[0]))

    def references(self) -> list[Setting]:
        """Every reference to a secret in what is set, in tables and lists alike: its `value` is the reference alone,
        without the word that may stand before it ("Bearer secret://token")."""
        return [
            Setting(dotted(path), reference, self._tree.origin(path))
            for path, value in self._tree.leaves()
            for text in _texts(plain(value))
            if (reference := text[text.find("secret://") :] if "secret://" in text else "")
        ]

    # --- tables for classes ----------------------------------------------------------------------------

    def make(self, cls: type[S], *path: str, defaults: Mapping[str, Any] | None = None) -> S:
        """An object of `cls` from the table at `path`, which may be missing: `config.make(Limits, "run", "limits")`.

        Raises `ConfigError`.
        """
        return build(cls, self._table(*path), where=self._tree.where(*path), defaults=defaults)

    def model(self, prefix: str) -> PluginTable:
        """The model client of `prefix`, with [models.PREFIX]. Its key `plugin` names another plugin than the prefix."""
        return self._plugin("agentrt.models", prefix, "models", prefix)

    @property
    def models(self) -> tuple[str, ...]:
        """The prefixes that have a table."""
        return tuple(self._table("models"))

    @property
    def has_backends(self) -> bool:
        """Whether the configuration says which telemetry backends are on."""
        return bool(self._backend_tables())

    def _backend_tables(self) -> dict[str, Any]:
        fields = _fields(TelemetrySection)
        return {name: value for name, value in self._table("telemetry").items() if name not in fields}

    def backends(self) -> list[PluginTable]:
        """The telemetry backends that are on: those that have a table [telemetry.NAME], else "memory"."""
        tables = self._backend_tables()
        if not tables:
            return [self._plugin("agentrt.telemetry", "memory", "telemetry", "memory")]
        return [
            self._plugin("agentrt.telemetry", name, "telemetry", name)
            for name, value in tables.items()
            if plain(value) is not False
        ]

    def audit_sinks(self) -> list[PluginTable]:
        """The plugins that keep checkpoints elsewhere: [audit.sinks.NAME]."""
        return [
            self._plugin("agentrt.audit", name, "audit", "sinks", name)
            for name, value in self._table("audit", "sinks").items()
            if plain(value) is not False
        ]

    @property
    def secrets_provider(self) -> str:
        """The provider of references that name none."""
        return str(plain(self._table("secrets").get("provider", "env")))

    @property
    def secrets_providers(self) -> list[str]:
        """The default provider, then those with a table of their own in [secrets.providers]."""
        own = self._table("secrets", "providers")
        return [self.secrets_provider, *(name for name in own if name != self.secrets_provider)]

    def secrets(self, provider: str | None = None) -> PluginTable:
        """The secrets provider of this name (None: the default one), with its options: the rest of [secrets] for the
        default provider, [secrets.providers.NAME] for the others."""
        own = {name: v for name, v in self._table("secrets").items() if name not in _SECRETS}
        name = self.secrets_provider if provider is None else provider
        if name == self.secrets_provider and (own or name not in self._table("secrets", "providers")):
            self._check_provider(name, self._tree.where("secrets", "provider"))
            where = replace(self._tree.where("secrets"), also=_SECRETS)
            return PluginTable("agentrt.secrets", name, name, own, where)
        if name in self._table("secrets", "providers"):
            return self._plugin("agentrt.secrets", name, "secrets", "providers", name)
        where = Where(("secrets", "providers", name), lambda path: "")  # a reference names it, no table does
        self._check_provider(name, where)
        return PluginTable("agentrt.secrets", name, name, {}, where)

    def state_store(self) -> PluginTable:
        """What stores conversations: the plugin [state] plugin, whose options are the rest of [state]."""
        own = {name: v for name, v in self._table("state").items() if name not in _fields(StateSection)}
        where = replace(self._tree.where("state"), also=_fields(StateSection))
        return PluginTable("agentrt.state", "state", self.state.plugin, own, where)

    def rate_limits(self) -> PluginTable:
        """What counts rate limits: the plugin [rate_limits] backend, with the options of [rate_limits.BACKEND]."""
        backend = self._rate_limits.backend
        return self._plugin("agentrt.rate_limits", backend, "rate_limits", backend)

    def options_for(self, stage_class: type[S], kind: str) -> StageOptions[S]:
        """What is configured for a stage class in the pipeline of `kind`: [pipeline.STAGE], and over it, whatever its
        source, [pipeline.KIND.STAGE].

        Raises `ConfigError` for an option that the class does not have or a value of the wrong type.
        """
        name: str = getattr(stage_class, "name", stage_class.__name__)
        kind = kind if kind in KINDS else "call"
        enabled: bool | None = None
        values: dict[str, Any] = {}
        tables: dict[str, Where] = {}
        where = self._tree.where("pipeline", name)
        for path in (("pipeline", name), ("pipeline", kind, name)):
            if not self._has(path):
                continue
            table = plain(self._get(path))
            where = self._tree.where(*path)
            enabled = table is not False
            if isinstance(table, dict):
                values.update(decode(stage_class, table, where=where))
                tables.update(dict.fromkeys(table, where))
        return StageOptions(stage_class, enabled, values, tables, where)

    def check_stages(self, stage_classes: Iterable[type]) -> None:
        """Make every stage that [pipeline] configures once, so that a mistake shows before the first call needs it.

        Raises `ConfigError`. Costs nothing where nothing is configured.
        """
        for kind in KINDS if self._table("pipeline") else ():
            for stage_class in stage_classes:
                options: StageOptions[Any] = self.options_for(stage_class, kind)
                if options.enabled:
                    options.make()

    def deadline_for(self, kind: str, default: float | None) -> float | None:
        """[pipeline.KIND] deadline in seconds (None: no limit), or `default` if it is not set."""
        configured = self._deadlines.get(kind if kind in KINDS else "call", UNSET)
        return default if isinstance(configured, UnsetType) else configured

    # --- inside ----------------------------------------------------------------------------------------

    def _has(self, path: Path) -> bool:
        table: Any = self._tree.values
        for name in path:
            if not isinstance(table, dict) or name not in table:
                return False
            table = table[name]
        return True

    def _get(self, path: Path) -> Any:
        value: Any = self._tree.values
        for name in path:
            value = value[name]
        return value

    def _table(self, *path: str) -> Mapping[str, Any]:
        """The table at `path`, empty if there is none."""
        if not self._has(path):
            return {}
        value = self._get(path)
        if not isinstance(value, dict):
            where = self._tree.where(*path)
            raise where.error(f"{dotted(path)} must be a table, not {shown(path, plain(value))}")
        return value

    def _section(self, name: str, cls: type[S], *, leave: Sequence[str] = ()) -> S:
        table = {key: value for key, value in self._table(name).items() if key not in leave}
        where = self._tree.where(name)
        unknown = next((key for key in table if key not in _fields(cls)), None)
        if unknown is not None:
            raise where.unknown(unknown, (*_fields(cls), *leave))
        return build(cls, table, where=where)

    def _subsection(self, cls: type[S], *path: str) -> S:
        """The table at `path`, of which all keys are ours to name."""
        where = self._tree.where(*path)
        unknown = next((key for key in self._table(*path) if key not in _fields(cls)), None)
        if unknown is not None:
            raise where.unknown(unknown, _fields(cls))
        return build(cls, self._table(*path), where=where)

    def _plugin(self, group: str, name: str, *path: str) -> PluginTable:
        table = {} if self._has(path) and plain(self._get(path)) is True else dict(self._table(*path))
        plugin = plain(table.pop("plugin", name))
        where = self._tree.where(*path)
        if not isinstance(plugin, str):
            raise where.below("plugin").error(
                f"{dotted(path)}.plugin must be a plugin's name, not {plugin!r}"
            )
        return PluginTable(group, name, plugin, table, where)

    def _check_backends(self, names: list[str]) -> None:
        for name in names:
            value = plain(self._table("telemetry")[name])
            is_backend = isinstance(value, Mapping) or name in plugins.BUILT_IN["agentrt.telemetry"]
            if not is_backend and not isinstance(value, bool):
                raise self._tree.where("telemetry").unknown(name, _fields(TelemetrySection))
            if not isinstance(value, bool):
                self._table("telemetry", name)

    def _check_stores(self, names: list[str]) -> None:
        """The tables of [rate_limits], those that are not used as well: a wrong name is a limit that does not hold."""
        group = "agentrt.rate_limits"
        known = {*plugins.BUILT_IN[group], *plugins.BESIDE[group], self._rate_limits.backend}
        for name in names:
            if name in known or "plugin" in self._table("rate_limits", name):
                continue
            if name not in plugins.names(group):
                raise self._tree.where("rate_limits", name).error(
                    f"[rate_limits.{name}]: there is no backend {name!r}{plugins.choices_in(group, name)}"
                )

    def _check_state(self) -> None:
        if self.state.encrypt and not self.encryption.references:
            raise self._tree.where("state", "encrypt").error(
                'state.encrypt is true, but there is no key: set [encryption] keys = ["secret://env/AGENTRT_KEY"], the '
                "reference of a secret that `openssl rand -base64 32` made"
            )

    def _check_plugins(self) -> None:
        for prefix in self._table("models"):
            self._table("models", prefix)
        for name in self._table("secrets", "providers"):
            self._table("secrets", "providers", name)
        if self.audit.strict and self.audit.path is None:
            raise self._tree.where("audit", "strict").error(
                "audit.strict is true, but there is no audit log: set [audit] path"
            )
        for table in self.audit_sinks():
            if self.audit.path is None:
                raise table.where.error(f"[audit.sinks.{table.name}] has nothing to keep: set [audit] path")
        provider = plain(self._table("secrets").get("provider", "env"))
        where = self._tree.where("secrets", "provider")
        if not isinstance(provider, str) or not provider:
            raise where.error(f"secrets.provider must be the name of a provider, not {provider!r}")
        both = len(set(self._table("secrets")) - _SECRETS)
        if both and provider in self._table("secrets", "providers"):
            raise where.error(
                f"the options of {provider!r} stand in [secrets] and in [secrets.providers.{provider}]; "
                "keep one of them"
            )

    def _check_provider(self, name: str, where: Where) -> None:
        plain_name = name.partition("@")[0]
        if plain_name not in {*plugins.names("agentrt.secrets"), *plugins.BESIDE["agentrt.secrets"]}:
            others = plugins.choices_in("agentrt.secrets", name, self._table("secrets", "providers"))
            raise PluginError(f"{where.prefix}there is no secrets provider {name!r}{others}")

    def _check_pipeline(self) -> tuple[str, ...]:
        """Check the keys of [pipeline], and give the names in `use`."""
        self._deadlines: dict[str, float | None] = {}
        for name in self._table("pipeline"):
            if name in STAGES:
                self._check_stage("pipeline", name)
            elif name in KINDS:
                self._check_kind(name)
            elif name != "use":
                raise self._tree.where("pipeline").unknown(name, ("use", *STAGES, *KINDS))
        use = plain(self._table("pipeline").get("use", []))
        for item in use if isinstance(use, list) else [use]:
            if (
                not isinstance(use, list)
                or not isinstance(item, str)
                or not re.fullmatch(_MODULE_ATTRIBUTE, item)
            ):
                raise self._tree.where("pipeline", "use").error(
                    f'pipeline.use must be a list of names such as "my_package.stages:timing", not {use!r}'
                )
        return tuple(use)

    def _check_kind(self, kind: str) -> None:
        where = self._tree.where("pipeline", kind)
        for name, value in self._table("pipeline", kind).items():
            if name in STAGES:
                self._check_stage("pipeline", kind, name)
            elif name != "deadline":
                raise where.unknown(name, ("deadline", *STAGES))
            else:
                seconds = plain(value)
                try:
                    self._deadlines[kind] = (
                        None if seconds is False or seconds is None else options.seconds(name, seconds)
                    )
                except ConfigError as error:
                    raise where.below(name).error(
                        f"[{dotted(where.path)}] {error}, or false for none"
                    ) from error

    def _check_stage(self, *path: str) -> None:
        value = plain(self._get(path))
        if not isinstance(value, dict | bool):
            raise self._tree.where(*path).error(
                f"{dotted(path)} must be a table of the stage's options, or false to turn it off, "
                f"not {shown(path, value)}"
            )


_SECRETS = frozenset(("provider", "providers", "cache"))
"""The keys of [secrets] that are no options of the default provider."""

_MODULE_ATTRIBUTE = r"[\w.]+:[\w.]+"


def _texts(value: Any) -> list[str]:
    """The texts in a value that may be a list or a table."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [text for item in value for text in _texts(item)] if isinstance(value, list | tuple) else []


def _fields(cls: type) -> tuple[str, ...]:
    fields: tuple[str, ...] = getattr(cls, "__struct_fields__", ())
    return fields


def _unknown_section(tree: Tree, name: str) -> ConfigError:
    if name in STAGES:
        return tree.where(name).error(f"there is no section [{name}]; did you mean [pipeline.{name}]?")
    if name == "tool" and (inner := _inside_tool(tree.values[name])):
        return tree.where(name, "agentrt", inner).error(
            f"there is no section [tool]: [tool.agentrt] is for pyproject.toml; in agentrt.toml write [{inner}]"
        )
    return tree.where(name).error(f"there is no section [{name}]{choices(name, SECTIONS)}")


def _inside_tool(table: Any) -> str | None:
    """The first section in the table [tool.agentrt] of `table`, if it is one."""
    own = table.get("agentrt") if isinstance(table, dict) else None
    return next(iter(own), None) if isinstance(own, dict) else None


_SETTINGS: tuple[Path, ...] = (
    *((section, field) for section, cls in _OWN.items() for field in _fields(cls)),
    ("secrets", "provider"),
    *(("secrets", "cache", field) for field in _fields(SecretsCacheSection)),
    ("pipeline", "use"),
    ("memory", "path"),
    ("memory", "max_items"),
    ("state", "path"),
)
