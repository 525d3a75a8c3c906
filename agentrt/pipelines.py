"""The pipelines of a runtime: composed once per (agent, kind, tool), from defaults, code and configuration.

Circuit breakers, gates, permits, retry budgets and the rate limiter belong to the runtime: pipelines with the same
options share the stage, and each stage keeps its state per target.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct

from agentrt.call import Call, Middleware, Next, Quick
from agentrt.compose import Classify
from agentrt.errors import ConfigError
from agentrt.middleware.defaults import DEADLINES, STAGES, default_deadline, default_options
from agentrt.middleware.rate_limit import RateLimit
from agentrt.middleware.retry_budget import RetryBudget
from agentrt.middleware.telemetry import Telemetry, Tracing
from agentrt.order import ORDER, check_stage, stage_name
from agentrt.pipeline import Pipeline
from agentrt.security.rate_limits import RateLimiter
from agentrt.telemetry.protocol import QuickCollect

if TYPE_CHECKING:
    from agentrt.config import Config, StageOptions
    from agentrt.tools import Tool

__all__ = ["Pipelines", "Placement"]

MAX_PIPELINES = 1000
"""So many composed pipelines are kept."""

KINDS = (*DEADLINES, "call")
"""The kinds that have names of ours."""

Scope = Literal["global", "kind", "agent", "tool"]


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
        config: Config,
        *,
        model_terminal: Next[Any],
        gate: Callable[[Call[Any]], str],
        collect: Callable[[Call[Any]], object] | None,
        tracing: Tracing | None = None,
        limiter: RateLimiter | None = None,
        audit: Middleware | None = None,
    ) -> None:
        self._config = config
        self._model_terminal = model_terminal
        self._gate = gate
        self._collect = collect
        self._tracing = tracing
        self._audit = audit
        self._limiter = RateLimiter() if limiter is None else limiter
        self._placements: list[Placement] = []
        self._built: dict[tuple[Any, ...], tuple[Pipeline, tuple[Any, ...]]] = {}
        self._shared: dict[tuple[Any, ...], Middleware] = {}
        self._budget = RetryBudget()

    def use(self, placement: Placement) -> None:
        """Register a stage; an error once a pipeline has been built."""
        if self._built:
            raise ConfigError(
                f"{_name(placement.stage)} is registered too late: a call has been made. Register stages before "
                "the first run, in `configure(runtime)` or right after the runtime is made"
            )
        check_stage(placement.stage)
        _check_kind(placement.kind)
        _check_side(placement)
        for anchor in (placement.outside, placement.inside):
            if anchor is not None and anchor not in ORDER:
                raise ConfigError(f"there is no stage named {anchor!r}; the places are {', '.join(ORDER)}")
        self._placements.append(placement)

    def get(
        self, agent: Any, agent_name: str, kind: str, *, tool: Tool[..., Any] | None, targets: Sequence[str]
    ) -> Pipeline:
        """The pipeline for one kind of call of one agent."""
        own = getattr(agent, "middleware", ())
        # Neither the agent nor a bound tool is in the key: they would be kept for ever. Agents of one name and
        # one list of stages share a pipeline, and so do the tools of one origin.
        key = (agent_name, kind, None if tool is None else tool.origin, tuple(targets), *map(id, own))
        built = self._built.get(key)
        if built is None:
            pipeline = self.build(agent, agent_name, kind, tool=tool, targets=targets)
            if len(self._built) >= MAX_PIPELINES:
                # Tools that are made anew in each run would fill it; what is dropped is only composed again.
                del self._built[next(iter(self._built))]
            built = self._built[key] = (pipeline, tuple(own))  # kept, or another stage might get its id
        return built[0]

    def build(
        self, agent: Any, agent_name: str, kind: str, *, tool: Tool[..., Any] | None, targets: Sequence[str]
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
            target, classify = f"tool:{tool.name}", tool.origin.classify
            terminal = _run_tool_noting if self._config.telemetry.capture_content else _run_tool
        pipeline = Pipeline(
            inner_first=stages,
            target=target,
            kind=kind,
            operation={"model": "chat"}.get(kind, tool.name if tool is not None else kind),
            idempotent=kind in ("model", "secret") or (tool is not None and tool.options.idempotent),
            deadline=self._deadline(kind, tool, sources),
            terminal=terminal,
            classify=classify,
            sources=sources,
        )
        for placement in self._placed(agent, agent_name, kind, tool):
            _check_side(placement)
            stage = placement.stage
            if isinstance(stage, RateLimit):
                stage = stage.bound(self._limiter)
            pipeline = pipeline.place(stage, outside=placement.outside, inside=placement.inside)
        return pipeline

    def without_effect(self, agent: Any, agent_name: str, tools: Collection[str]) -> list[str]:
        """Registered stages that no call of `agent` with these `tools` goes through, one sentence each. Of one that
        declares no tools nobody knows which it calls."""
        own = [_as_placement(entry, agent=agent_name) for entry in getattr(agent, "middleware", ())]
        said = []
        for placement in (*self._placements, *own):
            stage = stage_name(placement.stage)
            if placement.agent not in (None, agent_name):
                hint = _did_you_mean(placement.agent, [agent_name])
                said.append(
                    f"the stage {stage} is for the agent {placement.agent!r}, so nothing of {agent_name} goes through "
                    f"it{hint}"
                )
            elif placement.tool is not None and tools and placement.tool not in tools:
                hint = _did_you_mean(placement.tool, tools)
                said.append(
                    f"the stage {stage} is for the tool {placement.tool!r}, and {agent_name} declares none of that "
                    f"name{hint}"
                )
        return said

    # --- inside ----------------------------------------------------------------------------------------

    def _stages(
        self, kind: str, *, tool: Tool[..., Any] | None, targets: Sequence[str], sources: dict[str, str]
    ) -> list[Middleware]:
        on_by_default = default_options(kind)
        stages: list[Middleware] = []
        for name, stage in STAGES.items():
            configured = self._config.options_for(stage, kind)
            if name == "telemetry":
                is_off = configured.enabled is False
                collect = _to_run_and(None if is_off else self._collect)
                stages.append(Telemetry(collect=collect, tracing=None if is_off else self._tracing))
            elif configured.enabled or (configured.enabled is None and name in on_by_default):
                from_code = _from_code(name, tool, targets)
                defaults = {
                    **on_by_default.get(name, {}),
                    **{o: value for o, (value, _) in from_code.items()},
                }
                sources.update({f"{name}.{option}": where for option, (_, where) in from_code.items()})
                sources.update({f"{name}.{option}": where for option, where in configured.sources.items()})
                stages.append(self._shared_stage(name, configured, defaults))
        if self._audit is not None:
            stages.append(self._audit)
        return stages

    def _shared_stage(self, name: str, configured: StageOptions[Any], defaults: dict[str, Any]) -> Middleware:
        """A stage with these options; the same one for all pipelines that want the same."""
        if name == "throttle":
            defaults = {"key": self._gate, **defaults}
        if name == "rate_limit":
            defaults = {"limiter": self._limiter, **defaults}
        if name == "retry":
            defaults = {"budget": self._budget, **defaults}
        options = {**defaults, **configured.options}
        key = (name, *sorted((option, _key(value)) for option, value in options.items()))
        shared = self._shared.get(key)
        if shared is None:
            shared = self._shared[key] = configured.make(defaults)
        return shared

    def _deadline(self, kind: str, tool: Tool[..., Any] | None, sources: dict[str, str]) -> float | None:
        deadline, source = default_deadline(kind), "default"
        if tool is not None and tool.options.deadline is not None:
            deadline, source = tool.options.deadline, "@tool"
        elif tool is not None and tool.options.timeout is not None and deadline is not None:
            # An author who allows an attempt more than the usual whole means it.
            deadline = max(deadline, 2.0 * tool.options.timeout)
        origin = self._config.origin(f"pipeline.{kind}.deadline")
        sources["deadline"] = source if origin == "default" else origin
        return self._config.deadline_for(kind, deadline)

    def _placed(self, agent: Any, agent_name: str, kind: str, tool: Tool[..., Any] | None) -> list[Placement]:
        own = [_as_placement(entry, agent=agent_name) for entry in getattr(agent, "middleware", ())]
        if tool is not None:
            own += [_as_placement(entry, kind="tool", tool=tool.name) for entry in tool.options.middleware]
        every = [*self._placements, *own]
        wanted = [p for p in every if p.concerns(kind, agent_name, None if tool is None else tool.name)]
        return sorted(wanted, key=lambda placement: _RANK[placement.scope])


def _check_kind(kind: object) -> None:
    """Kinds are the user's to name, but one that is nearly one of ours would silently concern nothing."""
    if kind is None or kind in KINDS:
        return
    if not isinstance(kind, str):
        raise ConfigError(f"kind must be a name such as {', '.join(map(repr, KINDS))}, not {kind!r}")
    hint = _did_you_mean(kind, KINDS)
    if hint:
        raise ConfigError(f"no call has the kind {kind!r}{hint}")


def _check_side(placement: Placement) -> None:
    if placement.outside == "audit":
        raise ConfigError(
            f"the stage {_name(placement.stage)} cannot stand outside of audit: what it answered by itself would be "
            'in no audit log; leave out outside=, or use outside="telemetry"'
        )


def _did_you_mean(name: str | None, known: Collection[str]) -> str:
    """A suggestion to follow `name`, or nothing."""
    import difflib

    near = difflib.get_close_matches(name or "", known, n=1, cutoff=0.75)
    return f"; did you mean {near[0]!r}?" if near else ""


def _as_placement(entry: Any, **narrowed: str) -> Placement:
    if isinstance(entry, tuple):
        stage, where = entry
        return Placement(stage, **{**where, **narrowed})
    return Placement(entry, **narrowed)


def _from_code(stage: str, tool: Tool[..., Any] | None, targets: Sequence[str]) -> dict[str, tuple[Any, str]]:
    """Options that the agent's or tool's code sets, each with who says so."""
    if stage == "fallback" and len(targets) > 1:
        return {"targets": (list(targets[1:]), "the agent's models")}
    if tool is not None and stage == "timeout" and tool.options.timeout is not None:
        return {"attempt": (tool.options.timeout, "@tool")}
    if tool is not None and stage == "retry" and tool.options.max_attempts is not None:
        return {"max_attempts": (tool.options.max_attempts, "@tool")}
    return {}


def _run_tool(call: Call[Any]) -> Any:
    tool, arguments, ctx = call.request
    return tool.execute(arguments, ctx)


async def _run_tool_noting(call: Call[Any]) -> Any:
    """The same, with the result noted for telemetry."""
    result = call.record.response = await _run_tool(call)
    return result


def _to_run_and(backends: Callable[[Call[Any]], object] | None) -> Callable[[Call[Any]], None]:
    """The run keeps its calls whether or not a telemetry backend wants them."""

    def collect(call: Call[Any]) -> None:
        if call.run is not None:
            call.run.collect(call)
        if backends is not None:
            backends(call)

    if not isinstance(backends, QuickCollect):
        return collect
    return QuickCollect(collect, Quick(f"{_TO_RUN}{backends.quick.lines}", backends.quick.names))


_TO_RUN = """\
if call.run is not None:
    call.run.collect(call)
"""


def _key(value: Any) -> str:
    """What tells options apart: functions and objects by identity, plain values by what they are."""
    return repr(value) if isinstance(value, int | float | str | list | tuple | None) else f"{id(value)}"


def _name(stage: Any) -> str:
    return str(getattr(stage, "name", None) or getattr(stage, "__name__", None) or stage)
