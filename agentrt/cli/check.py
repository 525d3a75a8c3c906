"""`agentrt check`: everything that can be found out about an agent without running it."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar

import click
import msgspec
from msgspec import Struct

from agentrt.agent import Agent
from agentrt.cli.model_targets import called_targets, declared_models
from agentrt.cli.project import Project, make_runtime, project_options, read_config
from agentrt.cli.report import OK, USAGE, UserCodeError, traceback_lines, wants_full_traceback
from agentrt.cli.target import load_target
from agentrt.cli.terminal import Style, Terminal
from agentrt.config import Config
from agentrt.conversations import encryption_of
from agentrt.errors import AgentrtError, Refused
from agentrt.hosting import Hosted, host
from agentrt.memory.sqlite import SqliteMemory
from agentrt.plugins import list_plugins
from agentrt.runtime import Runtime

__all__ = ["check"]

State = Literal["ok", "warning", "problem"]
_STYLES: dict[State, Style] = {"ok": "green", "warning": "yellow", "problem": "red"}
T = TypeVar("T")


class Finding(Struct, frozen=True):
    """One line of the result. `about`: the part of the project that it is about."""

    state: State
    about: str
    text: str


@click.command(
    short_help="Find out what is wrong before running anything.",
    epilog="""\b
Examples:
  agentrt check my_agent:Agent
  agentrt check my_agent:Agent --config production.toml --env-file .env
""",
)
@project_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--traceback", is_flag=True, help="Show whole tracebacks, with the frames of agentrt.")
@click.pass_obj
def check(
    terminal: Terminal,
    /,
    target: str,
    app_dir: str,
    factory: bool,
    as_json: bool,
    traceback: bool,
    **configuration: Any,
) -> int:
    """Check everything about the agent TARGET that can be checked without running it: configuration, import, tools,
    models with their keys or weights, pipelines, secrets, the audit log, plugins. Nothing is sent anywhere, except to
    the secrets provider if a key is a reference.

    Exit code 0 if all is well, 2 if there is a problem.
    """
    findings = Findings(terminal, full=wants_full_traceback(traceback))
    config = findings.step("configuration", lambda: _config(terminal, configuration))
    loaded = findings.step("target", lambda: load_target(target, app_dir=app_dir))
    if config is not None and loaded is not None:
        _check_project(Project(loaded, config, factory), findings)
    _check_plugins(findings)
    findings.show(as_json=as_json)
    return USAGE if findings.problems else OK


class Findings:
    """What was found, in order."""

    def __init__(self, terminal: Terminal, *, full: bool = False) -> None:
        self.found: list[Finding] = []
        self._terminal = terminal
        self._full = full

    @property
    def problems(self) -> int:
        return sum(finding.state == "problem" for finding in self.found)

    def ok(self, about: str, text: str) -> None:
        self.found.append(Finding("ok", about, text))

    def warning(self, about: str, text: str) -> None:
        self.found.append(Finding("warning", about, text))

    def problem(self, about: str, text: str) -> None:
        for known in self.found:
            # Two steps may meet the same mistake, one of them with a word more about where.
            if known.state == "problem" and (text in known.text or known.text in text):
                return
        self.found.append(Finding("problem", about, text))

    def step(self, about: str, work: Callable[[], T]) -> T | None:
        """The result of `work`, or None if it fails, which is a problem then. Its warnings are noted, too."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                result = work()
            except Exception as error:
                self.failed(about, error)
                result = None
        for warning in caught:
            self.warning(about, str(warning.message))
        return result

    def show(self, *, as_json: bool) -> None:
        if as_json:
            self._terminal.line(msgspec.json.format(msgspec.json.encode(self.found), indent=2).decode())
            return
        width = max(len(finding.about) for finding in self.found)
        for finding in self.found:
            state = self._terminal.style(finding.state.ljust(7), _STYLES[finding.state], out=True)
            self._terminal.line(f"{state}  {finding.about.ljust(width)}  {finding.text}")
        if self.problems:
            self._terminal.error(f"{self.problems} problem{'' if self.problems == 1 else 's'} found")

    def failed(self, about: str, error: Exception) -> None:
        """A problem; a bug in the user's code is also shown on stderr."""
        cause = error.__cause__ if isinstance(error, UserCodeError) else error
        if cause is None or isinstance(cause, AgentrtError):
            # A note has what the error itself does not know: which setting it is about, how earlier attempts ended.
            self.problem(about, "; ".join([str(error), *getattr(error, "__notes__", ())]))
            return
        # A bug in the user's code: the line says what, the traceback on stderr says where.
        lines = traceback_lines(cause, full=self._full)
        if lines:
            self._terminal.say("".join(lines).rstrip("\n"))
        what = f"{type(cause).__name__}: {cause}"
        self.problem(about, what if cause is error else f"{error}: {what}")


def _config(terminal: Terminal, configuration: dict[str, Any]) -> Config:
    return read_config(terminal, **configuration)


# --- the steps -----------------------------------------------------------------------------------------


def _check_project(project: Project, findings: Findings) -> None:
    config = project.config
    places = sorted({setting.origin.partition(":")[0] for setting in config.settings()})
    findings.ok("configuration", f"from {', '.join(places)}" if places else "nothing is set: all defaults")
    findings.ok("target", f"{project.target.text} is imported")
    for prefix in config.models:
        findings.step("model", config.model(prefix).make)
    findings.step("memory", lambda: config.make(SqliteMemory, "memory"))
    findings.step("state", config.state_store().make)
    runtime = findings.step("runtime", lambda: make_runtime(project))
    if runtime is not None and runtime.audit is not None:
        runtime.audit.for_command(needs_keys=False)
    hosted = findings.step("agent", lambda: host(project.target.value, factory=project.factory))
    if hosted is None or runtime is None:
        return
    findings.ok("agent", _described(hosted))
    asyncio.run(_check_agent(runtime, hosted, config, findings))
    _check_providers(config, findings)
    findings.ok("telemetry", ", ".join(name for name, _ in runtime.telemetry.backends) or "none")


def _described(hosted: Hosted) -> str:
    tools = getattr(hosted.subject, "tools", ())
    if not isinstance(tools, list | tuple) or not tools:
        return hosted.name
    return f"{hosted.name}, with {len(tools)} tool{'' if len(tools) == 1 else 's'}"


async def _check_agent(runtime: Runtime, hosted: Hosted, config: Config, findings: Findings) -> None:
    """What the agent declares, the keys in `config`, and what calls go through. Closes the runtime."""
    try:
        await _check_keys(runtime, config, findings)
        sound = findings.step("agent", lambda: declared_models(runtime.config, hosted)) is not None
        if isinstance(hosted.subject, Agent):
            sound = _check_declarations(runtime, hosted.subject, findings) and sound
        if not sound:
            return  # the pipelines cannot be built, for a reason that has been told
        models = declared_models(runtime.config, hosted)
        await _check_models(runtime, models, findings)
        pipelines = findings.step("pipelines", lambda: runtime.explain(hosted))
        if pipelines is None:
            return
        findings.ok("pipelines", f"{len(pipelines)}: {', '.join(name for name, _ in pipelines)}")
        for sentence in runtime.stages_without_effect(hosted):
            findings.warning("pipelines", sentence)
        for name, pipeline in pipelines:
            for problem in pipeline.problems():
                findings.warning("pipelines", f"{name}: {problem}")
            if pipeline.kind == "model":
                others = [target for target in called_targets(pipeline) if target not in models]
                await _check_models(runtime, others, findings)
    finally:
        try:
            await runtime.aclose()
        except Refused as error:  # of the audit log, which is to be warned of only
            findings.warning("audit", str(error))


def _check_declarations(runtime: Runtime, agent: Agent, findings: Findings) -> bool:
    """What an `Agent` declares besides its models, as far as hosting does not look; whether pipelines can be built."""
    if agent.output is not None:
        findings.step("output", lambda: runtime.output_parser(agent.output))
    findings.step("limits", lambda: runtime.limits_of(agent))
    return findings.step("tools", lambda: runtime.tools_of(agent)) is not None


def _check_providers(config: Config, findings: Findings) -> None:
    """Every secrets provider that is configured, also one that no reference of the configuration names."""

    def make(name: str) -> str:
        config.secrets(name).make()
        return name

    found = [findings.step("secrets", partial(make, name)) for name in config.secrets_providers]
    working = [name for name in found if name is not None]
    if working:
        findings.ok("secrets", f"from {', '.join(working)}")


async def _check_keys(runtime: Runtime, config: Config, findings: Findings) -> None:
    """The keys of [encryption] and [audit], and the place of the audit log."""

    async def value(reference: str) -> str:
        return (await runtime.secrets.get(reference)).reveal()

    try:
        encryption = await encryption_of(config, value)
    except Exception as error:
        findings.failed("encryption", error)
    else:
        if encryption is not None:
            findings.ok("encryption", f"with the key {encryption.ring.primary}")
    if config.audit.path is None:
        return
    from agentrt.security.audit.key_sources import keys_of
    from agentrt.security.audit.place import check_place

    sound = True
    try:
        check_place(config.audit.path, rotates=config.audit.max_bytes is not None)
    except AgentrtError as error:
        sound = False
        findings.failed("audit", config.where("audit.path").error(f"[audit] path: {error}"))
    try:
        keys = await keys_of(config.audit.key, config.audit.signing_key, value)
    except Exception as error:
        findings.failed("audit", error)
        return
    if sound:
        signed = "without checkpoints" if keys.signing is None else "with signed checkpoints"
        findings.ok("audit", f"to {config.audit.path}, {signed}")


async def _check_models(runtime: Runtime, models: list[str], findings: Findings) -> None:
    for model in models:
        try:
            await runtime.check_model(model)
        except Exception as error:
            findings.failed("model", error)
        else:
            findings.ok("model", model)


def _check_plugins(findings: Findings) -> None:
    found = list_plugins()
    for info in found:
        if info.state != "ok":
            findings.warning("plugins", f"{info.name} of {info.source}, group {info.group}: {info.state}")
    working = sum(info.state == "ok" for info in found)
    findings.ok("plugins", f"{working} of {len(found)} can be used")
