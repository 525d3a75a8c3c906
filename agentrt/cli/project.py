"""What the commands have in common: options that lead to a target and its configuration, and the runtime for it."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
from msgspec import Struct

from agentrt.cli.logs import adopt_loguru, show_logs, show_warnings
from agentrt.cli.report import UserCodeError
from agentrt.cli.target import Target, load_target
from agentrt.cli.terminal import Terminal
from agentrt.config import Config
from agentrt.errors import ConfigError
from agentrt.runtime import Runtime

__all__ = [
    "Project",
    "configuration_options",
    "make_runtime",
    "open_project",
    "project_options",
    "read_config",
]

F = TypeVar("F", bound=Callable[..., Any])


class Project(Struct, frozen=True, eq=False):
    """The target with its configuration; `factory`: the target makes the agent. `models`: those of `--model`."""

    target: Target
    config: Config
    factory: bool
    models: tuple[str, ...] = ()


def project_options(function: F) -> F:
    """Add the options of `open_project` to a command."""
    for option in reversed((*_TARGET, *_CONFIGURATION, *_IMPORT)):
        function = option(function)
    return function


def configuration_options(function: F) -> F:
    """Add the options of `read_config` to a command, but for the models."""
    for option in reversed(_CONFIGURATION):
        function = option(function)
    return function


def _complete_target(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[Any]:
    from agentrt.cli.completion import complete_target

    return complete_target(incomplete, app_dir=ctx.params.get("app_dir") or ".")


def _complete_setting(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[Any]:
    from agentrt.cli.completion import complete_setting

    return complete_setting(incomplete)


_TARGET: Sequence[Callable[[Any], Any]] = (
    click.argument("target", shell_complete=_complete_target),
    click.option(
        "-m",
        "--model",
        "models",
        multiple=True,
        metavar="NAME",
        help="Use this model instead of the agent's own, for example openai:gpt-5-mini. "
        "Given again: what to fall back to.",
    ),
)

_CONFIGURATION: Sequence[Callable[[Any], Any]] = (
    click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        shell_complete=_complete_setting,
        help="A setting for this time only, for example pipeline.retry.max_attempts=5.",
    ),
    click.option(
        "--config",
        "config_file",
        metavar="FILE",
        type=click.Path(),
        help="The configuration. Default: agentrt.toml, else [tool.agentrt] in pyproject.toml.",
    ),
    click.option(
        "--env-file",
        "env_files",
        multiple=True,
        metavar="FILE",
        type=click.Path(),
        help="Environment variables, NAME=value a line. What is set already stays as it is.",
    ),
)

_IMPORT: Sequence[Callable[[Any], Any]] = (
    click.option(
        "--app-dir",
        metavar="DIR",
        default=".",
        type=click.Path(),
        help="The folder to import from. Default: this one.",
    ),
    click.option("--factory", is_flag=True, help="TARGET is a function that makes the agent."),
)


def open_project(
    terminal: Terminal,
    *,
    target: str,
    models: Sequence[str] = (),
    overrides: Sequence[str] = (),
    config_file: str | None = None,
    env_files: Sequence[str] = (),
    app_dir: str = ".",
    factory: bool = False,
) -> Project:
    """The target and its configuration, with logs and warnings taken over.

    Raises ConfigError, TargetError or UserCodeError.
    """
    config = read_config(
        terminal, models=models, overrides=overrides, config_file=config_file, env_files=env_files
    )
    loaded = load_target(target, app_dir=app_dir)
    adopt_loguru()
    return Project(loaded, config, factory, tuple(models))


def read_config(
    terminal: Terminal,
    *,
    models: Sequence[str] = (),
    overrides: Sequence[str] = (),
    config_file: str | None = None,
    env_files: Sequence[str] = (),
) -> Config:
    """Read environment files and configuration, and take over logs and warnings.

    Of several environment files the first that has a name wins. Raises ConfigError.
    """
    if env_files:
        from agentrt.config.dotenv import load_env_file

        for file in env_files:
            load_env_file(file, os.environ)
    config = Config.load(config_file, overrides=[*_as_overrides(models), *overrides])
    show_warnings(terminal, show_logs(config.log, terminal))
    for note in config.notes:
        terminal.warning(note)
    return config


def make_runtime(project: Project, *, backends: Sequence[tuple[str, Any]] = ()) -> Runtime:
    """The runtime of a command; the module's `configure(runtime)`, if there is one, has been called.

    `backends`: telemetry backends of the command's own, by name.
    """
    runtime = Runtime(project.config, backends=backends, own_process=True)
    configure = getattr(project.target.module, "configure", None)
    if configure is None:
        return runtime
    place = f"configure(runtime) of {project.target.text.rpartition(':')[0]}"
    if not callable(configure):
        raise ConfigError(f"{place} must be a function, not {configure!r}")
    try:
        made = configure(runtime)
    except ConfigError:
        raise
    except Exception as error:
        raise UserCodeError(f"{place} failed") from error
    if inspect.isawaitable(made):
        if inspect.iscoroutine(made):
            made.close()
        raise ConfigError(
            f"{place} must be a plain function: it is called before the event loop does any work"
        )
    return runtime


def _as_overrides(models: Sequence[str]) -> list[str]:
    if not models:
        return []
    for name in models:
        if ":" not in name.strip(":"):
            raise ConfigError(
                f'--model {name}: a model is named "prefix:name", for example openai:gpt-5-mini'
            )
    from json import dumps

    return [f"agent.model={models[0] if len(models) == 1 else dumps(list(models))}"]
