"""`agentrt explain`: what every call of an agent goes through, drawn from the outermost stage to the call."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

import click

from agentrt.call import Middleware
from agentrt.cli.model_targets import called_targets
from agentrt.cli.onion import Onion, Option, Pen, Stage, as_json, draw
from agentrt.cli.project import make_runtime, open_project, project_options
from agentrt.cli.report import OK
from agentrt.cli.terminal import Terminal
from agentrt.errors import ConfigError
from agentrt.hosting import host
from agentrt.order import Placed, stage_name
from agentrt.pipeline import Pipeline, StageDescription
from agentrt.runtime import Runtime

__all__ = ["explain"]

WIDTH = 110
"""Columns where no terminal says how many there are."""

MIN_WIDTH = 60

_INTERNAL = frozenset({("telemetry", "collect"), ("throttle", "key")})
"""Options that the runtime fills in itself; shown only if somebody set them."""


@click.command(
    short_help="Draw what every call of an agent goes through.",
    epilog="""\b
Examples:
  agentrt explain my_agent:Agent
  agentrt explain my_agent:Agent --kind model --set pipeline.retry.max_attempts=5
  agentrt explain my_agent:Agent --tool search --json
""",
)
@project_options
@click.option(
    "--kind",
    type=click.Choice(["model", "tool", "memory", "secret", "call"]),
    help="Only this kind of call.",
)
@click.option("--tool", metavar="NAME", help="Only the tool of this name.")
@click.option("--all", "every", is_flag=True, help="Show the options that are not set, too.")
@click.option("--json", "json_wanted", is_flag=True, help="Print JSON.")
@click.pass_obj
def explain(
    terminal: Terminal,
    /,
    kind: str | None,
    tool: str | None,
    every: bool,
    json_wanted: bool,
    **project: Any,
) -> int:
    """Draw what every call of the agent TARGET goes through, from the outermost stage to the call itself, with each
    option and where it was set. Nothing is called.

    Each stage wraps those below it. An option without a source has its default value.
    """
    opened = open_project(terminal, **project)
    runtime = make_runtime(opened)
    hosted = host(opened.target.value, factory=opened.factory)
    pipelines = runtime.explain(hosted)
    for label, pipeline in pipelines:
        for problem in pipeline.problems():
            terminal.warning(f"{label}: {problem}")
    for sentence in runtime.stages_without_effect(hosted):
        terminal.warning(sentence)
    onions = _grouped(_onions(pipelines, runtime, every=every or json_wanted))
    onions = _chosen(onions, hosted.name, kind, tool)
    if json_wanted:
        terminal.line(as_json(onions, agent=hosted.name, target=opened.target.text))
        return OK
    pen = Pen.of(terminal, width=max(MIN_WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns))
    terminal.line(f"{pen.bold(hosted.name)}  {pen.dim(opened.target.text)}")
    for onion in onions:
        terminal.line("\n" + "\n".join(draw(onion, pen)))
    return OK


# --- from pipelines to onions --------------------------------------------------------------------------


def _onions(pipelines: Sequence[tuple[str, Pipeline]], runtime: Runtime, *, every: bool) -> list[Onion]:
    backends = [name for name, _ in runtime.telemetry.backends]
    return [
        Onion(
            [label.removeprefix("tool:")],
            pipeline.kind,
            called_targets(pipeline) if pipeline.kind == "model" else [pipeline.target],
            pipeline.idempotent,
            Option("deadline", pipeline.deadline, pipeline.sources.get("deadline", "default")),
            _stages(pipeline, backends, every=every),
        )
        for label, pipeline in pipelines
    ]


def _stages(pipeline: Pipeline, backends: list[str], *, every: bool) -> list[Stage]:
    stages = []
    for stage, described in zip(pipeline.stages, pipeline.describe(), strict=True):
        options = _options(described, every=every)
        if described.name == "telemetry":
            options.insert(0, Option("backends", backends, "default"))
        used = getattr(stage, "is_used", True)
        stages.append(Stage(described.name, options, _remark(stage, is_used=used), used))
    return stages[::-1]


def _options(described: StageDescription, *, every: bool) -> list[Option]:
    options = []
    for name, value in described.options.items():
        source = described.sources.get(name, "default")
        if (described.name, name) in _INTERNAL and source == "default":
            continue
        if value is not None or source != "default" or every:
            options.append(Option(name, value, source))
    return options


def _remark(stage: Middleware, *, is_used: bool) -> str:
    if isinstance(stage, Placed):
        return f"yours, {'outside' if stage.outside else 'inside'} {stage.anchor}"
    if stage_name(stage) == "fallback" and not is_used:
        return "nothing to fall back to"
    return ""


def _grouped(onions: Sequence[Onion]) -> list[Onion]:
    """Tools that are treated the same share one drawing."""
    groups: dict[tuple[str, ...], Onion] = {}
    for onion in onions:
        drawing = draw(Onion([], onion.kind, [], onion.idempotent, onion.deadline, onion.stages), Pen.plain())
        key = (onion.kind, *drawing)
        known = groups.get(key)
        if known is None:
            groups[key] = onion
        else:
            known.labels.extend(onion.labels)
            known.targets.extend(onion.targets)
    return list(groups.values())


def _chosen(onions: list[Onion], agent: str, kind: str | None, tool: str | None) -> list[Onion]:
    if tool is not None:
        known = [label for onion in onions if onion.kind == "tool" for label in onion.labels]
        if tool not in known:
            raise ConfigError(f"{agent} has no tool {tool!r}; its tools are: {', '.join(known) or 'none'}")
        return [
            Onion([tool], o.kind, [f"tool:{tool}"], o.idempotent, o.deadline, o.stages)
            for o in onions
            if o.kind == "tool" and tool in o.labels
        ]
    chosen = [onion for onion in onions if kind in (None, onion.kind)]
    if not chosen:
        raise ConfigError(f"{agent} declares no {kind}: there is nothing to explain")
    return chosen
