"""The pipelines of a runtime: composed once per (agent, kind, tool), from defaults, code and configuration.

Circuit breakers, gates, permits and retry budgets belong to the runtime: pipelines with the same options share the
stage, and each stage keeps its state per target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from msgspec import Struct

from agentrt.call import Call, Middleware, Next
from agentrt.compose import Classify
from agentrt.errors import TRANSIENT, ConfigError, Label
from agentrt.middleware.defaults import STAGES, default_deadline, default_options
from agentrt.middleware.retry_budget import RetryBudget
from agentrt.middleware.telemetry import Telemetry
from agentrt.pipeline import ORDER, Pipeline

if TYPE_CHECKING:
    from agentrt.tools import Tool

__all__ = ["Pipelines", "StageSettings"]

Scope = Literal["global", "kind", "agent", "tool"]


class StageSettings(Protocol):
    """What configuration says about stages."""

    def stage_options(self, kind: str, stage: str) -> tuple[dict[str, Any] | Literal[False], dict[str, str]]:
        """The options of one stage and where each was set; False turns it off."""
        ...

    def deadline(self, kind: str) -> tuple[float | None, str] | None:
        """The deadline of a kind and where it was set, or None if configuration does not say."""
        ...


class Placement(Struct, frozen=True, eq=False):
    """One stage of the user's and for which calls it stands where."""

    stage: Middleware
    kind: str | None = None
    agent: str | None = None
    tool: str | None = None
    outside: str | None = None
    inside: str | None = None

    @property
    def scope(self) -> Scope:
        if self.tool is not None:
            return "tool"
        if self.agent is not None:
            return "agent"
        return "global" if self.kind is None else "kind"

    def concerns(self, kind: str, agent: str, tool: str | None) -> bool:
        return (
            self.kind in (None, kind)
            and self.agent in (None, agent)
            and (self.tool is None or self.tool == tool)
        )


_RANK: dict[Scope, int] = {"global": 0, "kind": 1, "agent": 2, "tool": 3}


class Pipelines:
    """Builds and keeps the pipelines of one runtime."""

    def __init__(
        self,
        settings: StageSettings,
        *,
        model_terminal: Next[Any],
        gate: Callable[[Call[Any]], str],
        collect: Callable[[Call[Any]], object] | None,
    ) -> None:
        self._settings = settings
        self._model_terminal = model_terminal
        self._gate = gate
        self._collect = collect
        self._placements: list[Placement] = []
        self._built: dict[tuple[Any, ...], Pipeline] = {}
        self._shared: dict[tuple[Any, ...], Middleware] = {}

    def use(self, placement: Placement) -> None:
        """Register a stage; an error once a pipeline has been built."""
        if self._built:
            raise ConfigError(
                f"{_name(placement.stage)} is registered too late: a call has been made. Register stages before "
                "the first run, in `configure(runtime)` or right after the runtime is made"
            )
        if not callable(placement.stage):
            raise ConfigError(
                f"a stage is a function or an object with `async def __call__(self, call, call_next)`, not "
                f"{placement.stage!r}"
            )
        for anchor in (placement.outside, placement.inside):
            if anchor is not None and anchor not in ORDER:
                raise ConfigError(f"there is no stage named {anchor!r}; the places are {', '.join(ORDER)}")
        self._placements.append(placement)

    def get(
        self, agent: Any, agent_name: str, kind: str, *, tool: Tool | None, targets: Sequence[str]
    ) -> Pipeline:
        """The pipeline for one kind of call of one agent."""
        key = (agent_name, kind, None if tool is None else (tool.name, id(tool)), tuple(targets))
        pipeline = self._built.get(key)
        if pipeline is None:
            pipeline = self.build(agent, agent_name, kind, tool=tool, targets=targets)
            self._built[key] = pipeline
        return pipeline

    def build(
        self, agent: Any, agent_name: str, kind: str, *, tool: Tool | None, targets: Sequence[str]
    ) -> Pipeline:
        """Compose it, without keeping it."""
        sources: dict[str, str] = {}
        stages = self._stages(kind, tool=tool, targets=targets, sources=sources)
        terminal: Next[Any] | None = None
        classify: Classify | None = None
        target = targets[0] if targets else kind
        if kind == "model":
            terminal = self._model_terminal
        elif tool is not None:
            target, terminal, classify = f"tool:{tool.name}", _run_tool, _classify_for(tool)
        pipeline = Pipeline(
            inner_first=stages,
            target=target,
            kind=kind,
            operation={"model": "chat"}.get(kind, tool.name if tool is not None else kind),
            idempotent=kind in ("model", "secret") or (tool is not None and tool.idempotent),
            deadline=self._deadline(kind, tool, sources),
            terminal=terminal,
            classify=classify,
            sources=sources,
        )
        for placement in self._placed(agent, agent_name, kind, tool):
            pipeline = pipeline.place(placement.stage, outside=placement.outside, inside=placement.inside)
        return pipeline

    # --- inside ----------------------------------------------------------------------------------------

    def _stages(
        self, kind: str, *, tool: Tool | None, targets: Sequence[str], sources: dict[str, str]
    ) -> list[Middleware]:
        defaults = default_options(kind)
        stages: list[Middleware] = []
        for name, stage in STAGES.items():
            configured, where = self._settings.stage_options(kind, name)
            if name == "telemetry":
                stages.append(Telemetry(collect=_to_run_and(None if configured is False else self._collect)))
                continue
            if configured is False or (name not in defaults and not configured):
                continue
            options = dict(defaults.get(name, {}))
            sources.update({f"{name}.{option}": "default" for option in options})
            for option, value in _from_tool(name, tool).items():
                options[option] = value
                sources[f"{name}.{option}"] = "@tool"
            options.update(configured)
            sources.update({f"{name}.{option}": place for option, place in where.items()})
            stages.append(self._make(name, stage, options, targets, sources))
        return stages

    def _make(
        self,
        name: str,
        stage: type[Any],
        options: dict[str, Any],
        targets: Sequence[str],
        sources: dict[str, str],
    ) -> Middleware:
        if name == "fallback":
            chain = options.pop("targets", None) or targets[1:]
            if targets[1:] and "fallback.targets" not in sources:
                sources["fallback.targets"] = "the agent's models"
            made: Middleware = stage(*chain, **options)
            return made
        if name == "throttle":
            options = {"key": self._gate, **options}
        if name == "retry" and "budget" not in options:
            options = {**options, "budget": self._shared_stage("retry_budget", RetryBudget, {})}
        return self._shared_stage(name, stage, options)

    def _shared_stage(self, name: str, stage: type[Any], options: dict[str, Any]) -> Any:
        key = (name, *sorted((option, _hashable(value)) for option, value in options.items()))
        shared = self._shared.get(key)
        if shared is None:
            shared = self._shared[key] = stage(**options)
        return shared

    def _deadline(self, kind: str, tool: Tool | None, sources: dict[str, str]) -> float | None:
        configured = self._settings.deadline(kind)
        if configured is not None:
            sources["deadline"] = configured[1]
            return configured[0]
        if tool is not None and tool.deadline is not None:
            sources["deadline"] = "@tool"
            return tool.deadline
        deadline = default_deadline(kind)
        if tool is not None and tool.timeout is not None and deadline is not None:
            # An author who allows an attempt more than the usual whole means it.
            deadline = max(deadline, 2.0 * tool.timeout)
        sources["deadline"] = "default"
        return deadline

    def _placed(self, agent: Any, agent_name: str, kind: str, tool: Tool | None) -> list[Placement]:
        own = [_as_placement(entry, agent=agent_name) for entry in getattr(agent, "middleware", ())]
        if tool is not None:
            own += [_as_placement(entry, kind="tool", tool=tool.name) for entry in tool.middleware]
        every = [*self._placements, *own]
        wanted = [p for p in every if p.concerns(kind, agent_name, None if tool is None else tool.name)]
        return sorted(wanted, key=lambda placement: _RANK[placement.scope])


def _as_placement(entry: Any, **narrowed: str) -> Placement:
    if isinstance(entry, tuple):
        stage, where = entry
        return Placement(stage, **{**where, **narrowed})
    return Placement(entry, **narrowed)


def _from_tool(stage: str, tool: Tool | None) -> dict[str, Any]:
    if tool is None:
        return {}
    if stage == "timeout" and tool.timeout is not None:
        return {"attempt": tool.timeout}
    if stage == "retry" and tool.max_attempts is not None:
        return {"max_attempts": tool.max_attempts}
    return {}


def _run_tool(call: Call[Any]) -> Any:
    tool, arguments, ctx = call.request
    return tool.execute(arguments, ctx)


def _classify_for(tool: Tool) -> Classify | None:
    transient = tool.transient
    if not transient:
        return None

    def classify(error: BaseException) -> Label | None:
        return TRANSIENT if isinstance(error, transient) else None

    return classify


def _to_run_and(backends: Callable[[Call[Any]], object] | None) -> Callable[[Call[Any]], None]:
    """The run keeps its calls whether or not a telemetry backend wants them."""

    def collect(call: Call[Any]) -> None:
        if call.run is not None:
            call.run.collect(call)
        if backends is not None:
            backends(call)

    return collect


def _hashable(value: Any) -> str:
    return repr(value) if not callable(value) else f"{id(value)}"


def _name(stage: Any) -> str:
    return str(getattr(stage, "name", None) or getattr(stage, "__name__", None) or stage)
