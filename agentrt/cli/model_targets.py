"""Which models the calls of an agent go to, and whether they could be asked."""

from __future__ import annotations

from collections.abc import Sequence

from agentrt.agent import Agent
from agentrt.config import Config
from agentrt.errors import ConfigError, PermanentError, PluginError
from agentrt.hosting import Hosted
from agentrt.order import stage_name
from agentrt.pipeline import Pipeline
from agentrt.runtime import Runtime

__all__ = ["called_targets", "check_can_answer", "declared_models"]


def called_targets(pipeline: Pipeline) -> list[str]:
    """The targets of a model pipeline in their order: its own, then those of its fallback stage."""
    targets = [pipeline.target]
    for stage in pipeline.stages:
        if stage_name(stage) == "fallback":
            targets += [name for name, _ in getattr(stage, "routes", ())]
    return targets


def declared_models(config: Config, hosted: Hosted) -> list[str]:
    """The models of configuration or class. Raises ConfigError for an `Agent` that has none and needs one."""
    declared = config.agent.models or getattr(hosted.subject, "model", None)
    if not declared:
        if _runs_the_loop(hosted):
            raise ConfigError(
                f'{hosted.name} has no model: set `model = "openai:gpt-5-mini"` on the class, or -m on the command line'
            )
        return []
    models = [declared] if isinstance(declared, str) else declared
    if not isinstance(models, Sequence) or not all(isinstance(model, str) for model in models):
        raise ConfigError(f"`model` of {hosted.name} must be a name or a list of names, not {declared!r}")
    return list(models)


def _runs_the_loop(hosted: Hosted) -> bool:
    """Whether it is an `Agent` with the loop of that class, not a `run` of its own."""
    return isinstance(hosted.subject, Agent) and type(hosted.subject).run is Agent.run


async def check_can_answer(runtime: Runtime, hosted: Hosted) -> None:
    """Raise ConfigError if no model of an `Agent` could be asked: no key, no weights, no such plugin.

    What its own `run` asks, only that knows.
    """
    if not _runs_the_loop(hosted):
        return
    declared_models(runtime.config, hosted)
    failures: list[Exception] = []
    for target in called_targets(dict(runtime.explain(hosted))["model"]):
        try:
            await runtime.check_model(target)
        except (ConfigError, PluginError, PermanentError) as error:
            failures.append(error)
        else:
            return
    unusable = ConfigError(str(failures[0]))
    for failure in failures[1:]:
        unusable.add_note(f"nor can the next one be asked: {failure}")
    raise unusable
