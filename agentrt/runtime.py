"""The runtime: owns plugins, pipelines, runs and their end.

As a library it touches nothing global: no signal handler, root logger or tracer provider. What it opens (agents,
clients, memory, secrets) it opens at first use, and it closes first what uses the others.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from msgspec.structs import asdict

from agentrt import events
from agentrt.agent import Agent
from agentrt.auditing import Auditing
from agentrt.call import UNBOUNDED, Middleware
from agentrt.clients import Clients
from agentrt.clock import reader
from agentrt.closing import Closer, close_all, in_any_time
from agentrt.config import Config
from agentrt.context import Context
from agentrt.errors import ConfigError
from agentrt.execution import RunResult, execute
from agentrt.hosting import Hosted, Stay, host
from agentrt.limits import Counters, Limits
from agentrt.middleware.defaults import STAGES
from agentrt.models.protocol import ModelClient, ModelResponse, Part
from agentrt.pipelines import Pipelines, Placement
from agentrt.plugins import close_plugin, open_plugin
from agentrt.resources import Resources
from agentrt.run_stream import RunStream
from agentrt.security.rate_limits import RateLimiter
from agentrt.session import Session
from agentrt.telemetry.backends import chosen
from agentrt.telemetry.facade import RuntimeTelemetry

if TYPE_CHECKING:
    from agentrt.conversations import Conversations
    from agentrt.memory.protocol import Memory
    from agentrt.pipeline import Pipeline
    from agentrt.secrets.manager import SecretsManager
    from agentrt.security.encryption import Encryption
    from agentrt.tools import Tool

__all__ = ["RunResult", "Runtime"]

T = TypeVar("T")

MAX_HOSTED = 1000
"""Functions and instances that are kept ready to run; classes and what has `__aenter__` are all kept."""


class Runtime:
    """Runs agents.

    `config`: a `Config` (default: defaults only; `from_config` reads files and the environment). `models`: model
    clients of your own by prefix; they win over plugins, and you close them. `memory`: a store of your own, likewise.
    `backends`: telemetry backends of your own by name, beside the configured ones.
    `own_process`: this process is ours (the commands say so): the runtime may then take process-wide things.
    """

    def __init__(
        self,
        config: Config | None = None,
        *,
        models: Mapping[str, ModelClient] | None = None,
        memory: Memory | None = None,
        backends: Sequence[tuple[str, Any]] = (),
        own_process: bool = False,
    ) -> None:
        self.config = Config() if config is None else _checked("config", config, Config, _CONFIG_HINT)
        # A mistake in the configuration is told at once, not by the first call that it concerns.
        self.config.check_stages(STAGES.values())
        self.limits_of(None)
        self.own_process = own_process
        self._resources = Resources(
            self.config,
            self.invoke,
            memory=memory,
            check_open=self._check_open,
            on_value=lambda value: self.telemetry.redactor.add(value),
            on_reveal=lambda name: None if self.audit is None else self.audit.secret_revealed(name),
        )
        self._plugin_host = self._resources.host
        self._clients = Clients(self._make_client, self._plugin_host, given=models)
        self._closed = False
        # By identity, beside the agent itself: an agent need not be hashable, nor unlike its equals.
        self._hosted: dict[int, tuple[Any, Hosted]] = {}
        self._passing: dict[int, tuple[Any, Hosted]] = {}
        self._stays: dict[int, Stay] = {}
        self._opened: list[Any] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._parsers: dict[Any, tuple[dict[str, Any], str, Callable[[ModelResponse], Any]]] = {}
        settings, configured = chosen(self.config, own_process=own_process)
        self.telemetry = RuntimeTelemetry(
            settings,
            [*configured, *backends],
            host=self._plugin_host,
            own_process=own_process,
        )
        """Logs, metrics and spans of your own, and the backends that everything goes to."""
        self.rate_limits = RateLimiter.from_config(self.config, self._plugin_host)
        self.audit = Auditing.from_config(
            self.config, host=self._plugin_host, redactor=self.telemetry.redactor
        )
        """The audit log, if [audit] has a path."""
        self._pipelines = Pipelines(
            self.config,
            model_terminal=self._clients.terminal,
            gate=self._clients.gate,
            collect=self.telemetry.collect,
            tracing=self.telemetry.tracing,
            limiter=self.rate_limits,
            audit=None if self.audit is None else self.audit.stage,
        )
        for name in self.config.use:
            try:
                self.use(_import_stage(name))
            except ConfigError as error:
                where = self.config.where("pipeline.use")
                raise where.error(f"pipeline.use: {name}: {error}") from error

    @classmethod
    def from_config(
        cls, path: str | Path | None = None, *, overrides: Sequence[str] = (), own_process: bool = False
    ) -> Runtime:
        """A runtime configured by `path` (default: agentrt.toml or [tool.agentrt] of pyproject.toml in the current
        directory, if there is one), `AGENTRT_*` variables and `overrides` ("section.key=value")."""
        return cls(Config.load(path, overrides=overrides), own_process=own_process)

    def use(
        self,
        stage: Middleware,
        *,
        kind: str | None = None,
        agent: str | None = None,
        tool: str | None = None,
        outside: str | None = None,
        inside: str | None = None,
    ) -> None:
        """Register a stage for every call, or those of a `kind`, an `agent` (by name), a `tool` (by name).

        It stands directly beside the stage named by `outside` or `inside` (default: just inside telemetry). At one
        place the first registered is outermost, and global stands outside kind, agent, tool. Registering
        after the first call is an error.
        """
        if outside is not None and inside is not None:
            raise ConfigError("register a stage outside= one stage or inside= one, not both")
        kind = "tool" if tool is not None and kind is None else kind
        self._pipelines.use(
            Placement(stage, kind=kind, agent=agent, tool=tool, outside=outside, inside=inside)
        )

    # --- running ---------------------------------------------------------------------------------------

    async def run(
        self,
        agent: Any,
        message: str | list[Part],
        *,
        session: Session | None = None,
        limits: Limits | None = None,
    ) -> RunResult:
        """Run `agent` on one message and return its result.

        `session` (a new one): the conversation it belongs to. `limits` (the agent's, then the configuration's).
        Raises what the agent raised; DeadlineExceeded and RunLimitExceeded when a limit ended it.
        """
        hosted = await self.host(agent)
        ctx = self._context(hosted, session=session, limits=limits)
        return await execute(ctx, hosted, message)

    def stream(
        self,
        agent: Any,
        message: str | list[Part],
        *,
        session: Session | None = None,
        limits: Limits | None = None,
        deltas: bool = True,
    ) -> RunStream:
        """Run `agent` and watch: `async with rt.stream(agent, "hi") as run: async for event in run: ...`.

        The last event is run_finished or run_failed; after it `run.result` has the result, or raises the run's
        error. Leaving the block cancels and awaits the run. `deltas`: stream the models' answers.
        """

        async def start(sink: events.Sink) -> RunResult:
            hosted = await self.host(agent)
            ctx = self._context(hosted, session=session, limits=limits, sink=sink, streaming=deltas)
            return await execute(ctx, hosted, message)

        return RunStream(start)

    async def host(self, agent: Any, *, factory: bool = False) -> Hosted:
        """Make an agent ready to run: a class is instantiated once per runtime, `__aenter__` is honoured."""
        self._check_open()
        if isinstance(agent, Hosted):
            return agent.for_run()
        key = id(agent)
        _, hosted = self._hosted.get(key) or self._passing.get(key) or (None, None)
        if hosted is None:
            hosted = host(agent, factory=factory)
            if hosted.per_run:
                return hosted
            if hosted.is_managed or inspect.isclass(agent):
                self._hosted[key] = (agent, hosted)
            else:
                # An agent made anew for each message must not be kept for ever.
                if len(self._passing) >= MAX_HOSTED:
                    del self._passing[next(iter(self._passing))]
                self._passing[key] = (agent, hosted)
            if hosted.is_managed:
                self._stays[key] = Stay(hosted.subject)
        stay = self._stays.get(key)
        if stay is not None:
            try:
                await stay.entered()
            except Exception:
                if self._stays.get(key) is stay:
                    del self._stays[key], self._hosted[key]  # the next run may have more luck
                raise
        return hosted

    async def __aenter__(self) -> Self:
        self._check_open()
        try:
            if self.audit is not None:
                await self.audit.open()
            for name, backend in self.telemetry.backends:
                if not hasattr(backend, "export"):  # those are opened in their threads
                    await open_plugin("agentrt.telemetry", name, backend, self._plugin_host)
                    self._opened.append(backend)
            self._plugin_host.loop = asyncio.get_running_loop()
            self.telemetry.open()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close agents, clients, memory, secrets and telemetry, in this order, within 5 s.

        No run can be started from now on. What fails to close does not keep the others open; the first such error
        is raised at the end, or an `AgentrtError` that names what did not end in time.
        """
        self._closed = True
        closing: list[tuple[str, Callable[[], Awaitable[object]]]] = [
            (f"the agent {self._hosted[key][1].name}", stay.leave)
            for key, stay in reversed(self._stays.items())
        ]
        closing += [("the model clients", self._clients.aclose), ("the rate limits", self.rate_limits.aclose)]
        closers: list[Closer] = [(name, in_any_time(close)) for name, close in closing]
        closers += self._resources.closing()
        closers += [
            ("telemetry", in_any_time(functools.partial(close_plugin, b))) for b in reversed(self._opened)
        ]
        # Last: what the others do at their end is told, too. It takes the time that it is given, and no more.
        closers.append(("telemetry", lambda seconds: self.telemetry.aclose(0.95 * seconds)))
        if self.audit is not None:
            closers.append(("the audit log", self.audit.aclose))
        self._stays, self._hosted, self._passing, self._opened = {}, {}, {}, []
        try:
            await close_all(closers)
        finally:
            self._resources.forget()

    def _check_open(self) -> None:
        if self._closed:
            raise ConfigError(
                "this runtime is closed; make another, and run agents inside its `async with` block"
            )

    # --- Services: what a context asks for -------------------------------------------------------------

    def pipeline(
        self, agent: Any, kind: str, *, tool: Tool[..., Any] | None = None, targets: tuple[str, ...] = ()
    ) -> Pipeline:
        """The composed pipeline of one kind of call of `agent`."""
        return self._pipelines.get(agent, _agent_name(agent), kind, tool=tool, targets=targets)

    def default_targets(self, agent: Any) -> tuple[str, ...]:
        """The models of an agent: configuration wins over what the class says."""
        declared = self.config.agent.models or getattr(agent, "model", None)
        if not declared:
            raise ConfigError(
                f'{_agent_name(agent)} has no model: set `model = "openai:gpt-5-mini"` on the class, '
                "`model=` in the call, or --set agent.model=..."
            )
        targets = (declared,) if isinstance(declared, str) else tuple(declared)
        for target in targets:
            self._clients.client(target)
        return targets

    def tool(self, agent: Any, tool: Any) -> Tool[..., Any]:
        """A function or tool as the tool it is, bound to the agent if it is a method of it."""
        from agentrt.tools import as_tool

        return as_tool(tool, instance=agent)

    def tools_of(self, agent: Any) -> dict[str, Tool[..., Any]]:
        """The tools of an agent by name. Nothing is kept: a bound tool would keep its agent."""
        made = [self.tool(agent, tool) for tool in agent.tools]
        tools = {tool.name: tool for tool in made}
        if len(tools) < len(made):
            names = sorted({tool.name for tool in made if [t.name for t in made].count(tool.name) > 1})
            raise ConfigError(f"{_agent_name(agent)} has several tools named {', '.join(names)}")
        return tools

    async def converse(self, ctx: Context, agent: Agent, message: str | list[Part]) -> Any:
        from agentrt.loop import converse

        return await converse(ctx, agent, message)

    async def run_child(self, parent: Context, agent: Any, message: str | list[Part]) -> RunResult:
        hosted = await self.host(agent)
        ctx = self._context(hosted, parent=parent)
        return await execute(ctx, hosted, message)

    async def memory(self) -> Any:
        """The memory store, opened at first use."""
        return self._resources.memory()

    @property
    def conversations(self) -> Conversations:
        """Stored sessions: `async with rt.conversations.open("ada") as session: ...`."""
        return self._resources.conversations()

    async def secret(self, name: str) -> str:
        """The value of a secret, by name or `secret://` reference."""
        return (await self.secrets.get(name)).reveal()

    async def encryption(self) -> Encryption:
        """With the keys of [encryption] as they are now: `(await rt.encryption()).encrypt(text, context="notes/1")`.

        Raises `ConfigError` if there are none, and the errors of the secrets' provider.
        """
        return await self._resources.encryption()

    @property
    def secrets(self) -> SecretsManager:
        """The secrets: `await rt.secrets.get("secret://vault/app/db#password")` gives a `Secret`."""
        return self._resources.secrets()

    async def check_model(self, target: str) -> None:
        """Raise what the first request to a model would fail with before it is sent: no such plugin, no key, no
        weights. Nothing goes to the provider."""
        await self._clients.check(target)

    async def invoke(
        self, kind: str, target: str, fn: Callable[[], Awaitable[T]], /, *, idempotent: bool = False
    ) -> T:
        """`await fn()` through the runtime's own pipeline of `kind`: how plugins make their calls."""
        pipeline = self._pipelines.get(None, "runtime", kind, tool=None, targets=())
        call = pipeline.new_call(fn, target=target, operation=target, idempotent=idempotent)
        result: T = await pipeline.send(call)
        return result

    def explain(self, agent: Any) -> list[tuple[str, Pipeline]]:
        """The pipelines of an agent, each with what it is for: "model", "tool:NAME", "memory", "secret", "call".

        `pipeline.describe()` has the stages with their options. Nothing is called, and stages can still be registered.
        """
        hosted = host(agent) if not isinstance(agent, Hosted) else agent
        subject = hosted.subject
        build = functools.partial(self._pipelines.build, subject, _agent_name(subject))
        pipelines: list[tuple[str, Pipeline]] = []
        if self.config.agent.models or getattr(subject, "model", None):
            targets = self.default_targets(subject)
            pipelines.append(("model", build("model", tool=None, targets=targets)))
        if getattr(subject, "tools", None):
            for name, tool in self.tools_of(subject).items():
                pipelines.append((f"tool:{name}", build("tool", tool=tool, targets=())))
        pipelines += [(kind, build(kind, tool=None, targets=())) for kind in ("memory", "secret", "call")]
        return pipelines

    def stages_without_effect(self, agent: Any) -> list[str]:
        """Registered stages for another agent or for tools that `agent` does not declare, one sentence each. They may
        be meant for an agent that it runs, or for a tool that only its code knows."""
        subject = agent.subject if isinstance(agent, Hosted) else host(agent).subject
        tools = self.tools_of(subject) if getattr(subject, "tools", None) else {}
        return self._pipelines.without_effect(subject, _agent_name(subject), tools)

    def output_parser(self, output: Any) -> tuple[dict[str, Any], str, Callable[[ModelResponse], Any]]:
        """JSON Schema, name and decoder of an output type; made once per type."""
        parser = self._parsers.get(output)
        if parser is None:
            from agentrt.schema import output_decoder

            made = output_decoder(output)
            parser = (made.schema, made.name, lambda response: made.decode(response.text))
            self._parsers[output] = parser
        return parser

    # --- inside ----------------------------------------------------------------------------------------

    def _make_client(self, prefix: str) -> ModelClient:
        client: ModelClient = self.config.model(prefix).make()
        return client

    def _context(
        self,
        hosted: Hosted,
        *,
        session: Session | None = None,
        limits: Limits | None = None,
        sink: events.Sink | None = None,
        streaming: bool = False,
        parent: Context | None = None,
    ) -> Context:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None:
                raise ConfigError(
                    "a runtime belongs to the event loop of its first run; make another one here"
                )
            self._loop = loop
        now = reader(loop)()
        if limits is not None:
            _checked("limits", limits, Limits, "Limits(steps=20)")
        if session is not None:
            _checked("session", session, Session, "Session()")
        if parent is not None:
            counters, deadline, sink, streaming = parent.counters, parent.deadline, parent._sink, False
        else:
            used = limits or self.limits_of(hosted.subject)
            counters = Counters(used)
            deadline = UNBOUNDED if used.seconds is None else now + used.seconds
        return Context(
            self,
            hosted.subject,
            id=os.urandom(8).hex(),
            agent_name=hosted.name,
            session=Session() if session is None else session,
            counters=counters,
            deadline=deadline,
            started=now if parent is None else parent.started,
            streaming=streaming,
            sink=sink,
            parent=parent,
        )

    def limits_of(self, agent: Any) -> Limits:
        """The limits of an agent's runs: its own, and over them the configured ones. [run] timeout is the deadline
        if [run.limits] has no seconds."""
        own = getattr(agent, "limits", None) or Limits()
        defaults = {**asdict(own), "seconds": self.config.run.timeout_or(own.seconds)}
        return self.config.make(Limits, "run", "limits", defaults=defaults)


_CONFIG_HINT = 'Config.load("agentrt.toml") or Config({"run": {"timeout": 60}})'


def _checked(name: str, value: T, wanted: type[Any], hint: str) -> T:
    if not isinstance(value, wanted):
        raise ConfigError(f"{name} must be a {wanted.__name__}, for example {hint}, not {value!r}")
    return value


def _import_stage(name: str) -> Any:
    module, _, attribute = name.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name is not None and module.startswith(error.name):
            raise ConfigError(f"there is no module {module!r}") from error
        raise
    except AttributeError as error:
        raise ConfigError(f"the module {module!r} has no {attribute!r}") from error


def _agent_name(agent: Any) -> str:
    if agent is None:
        return "runtime"
    name = getattr(agent, "__name__", None)
    return str(name or type(agent).__name__)
