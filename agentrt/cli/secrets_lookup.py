"""`agentrt secrets get | list | check`: references are followed, and what they lead to is not shown.

A value is printed for one who asks for it and sits at a terminal. In a pipe it would end up in a log or a file, so
there is no way to get it there; programs resolve the reference themselves.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any, Literal

import click
import msgspec
from msgspec import Struct

from agentrt.cli.project import configuration_options, read_config
from agentrt.cli.report import AGENT_ERROR, OK
from agentrt.cli.terminal import Style, Terminal
from agentrt.config import Config, Setting
from agentrt.errors import AgentrtError, ConfigError, PluginError, Refused
from agentrt.runtime import Runtime
from agentrt.secrets.protocol import (
    MASK,
    SecretDenied,
    SecretInvalid,
    SecretNotFound,
    SecretRef,
)

__all__ = ["check", "get", "list_secrets"]

State = Literal["ok", "missing", "denied", "invalid", "unavailable", "unusable"]


class Resolved(Struct, frozen=True):
    """What became of one reference. `setting`: what it is for, set at `origin`. `problem`: why it failed."""

    state: State
    reference: str
    provider: str
    setting: str
    origin: str
    problem: str = ""


@click.command(
    short_help="See whether a secret is there; show it if asked to, on a terminal.",
    epilog="""\b
Examples:
  agentrt secrets get OPENAI_API_KEY
  agentrt secrets get 'secret://vault/app/db#password'
  agentrt secrets get secret://file/token --reveal
""",
)
@click.argument("reference")
@click.option("--reveal", is_flag=True, help="Print the value. stdout must be a terminal.")
@configuration_options
@click.pass_obj
def get(terminal: Terminal, /, reference: str, reveal: bool, **configuration: Any) -> int:
    """Look REFERENCE up: secret://[provider/]name[#key][?version=...], or a plain name for the default provider.

    Prints a mask in place of the value. Exit code 0 if it is there, 1 if it is not or cannot be read.
    """
    if reveal and not _is_terminal():
        raise click.UsageError(
            "--reveal prints a secret on a terminal only, and stdout is none: in pipes and files it would stay"
        )
    config = read_config(terminal, **configuration)
    text = asyncio.run(_value(config, reference, reveal=reveal))
    terminal.line(text)
    if not reveal:
        terminal.note(f"{reference} is there; --reveal shows its value on a terminal")
    return OK


@click.command(
    name="list",
    short_help="List the names of the secrets that a provider has.",
    epilog="""\b
Examples:
  agentrt secrets list
  agentrt secrets list --provider file --prefix db/
""",
)
@click.option("--provider", metavar="NAME", help="The provider to ask. Default: the one of [secrets].")
@click.option("--prefix", default="", metavar="TEXT", help="Only names that begin with it.")
@configuration_options
@click.pass_obj
def list_secrets(terminal: Terminal, /, provider: str | None, prefix: str, **configuration: Any) -> int:
    """Print a reference for each secret that a provider has, without its value."""
    config = read_config(terminal, **configuration)
    name = provider or config.secrets_provider
    names = asyncio.run(_names(config, name, prefix))
    for found in names:
        terminal.line(str(SecretRef(found, name)))
    if not names:
        beginning = f" that begin with {prefix!r}" if prefix else ""
        terminal.note(f"the provider {name} has no secrets{beginning}")
    return OK


@click.command(
    short_help="See whether every reference in the configuration leads to a secret.",
    epilog="""\b
Examples:
  agentrt secrets check
  agentrt secrets check --config production.toml --json
""",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@configuration_options
@click.pass_obj
def check(terminal: Terminal, /, as_json: bool, **configuration: Any) -> int:
    """Look up every secret:// reference that the configuration has: file, AGENTRT_* variables and --set. No value is
    shown.

    Exit code 0 if all of them lead to a secret, 1 if one does not.
    """
    config = read_config(terminal, **configuration)
    found = asyncio.run(_check(config, terminal))
    failed = sum(one.state != "ok" for one in found)
    if as_json:
        terminal.line(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
    elif not found:
        terminal.note("the configuration has no references to secrets")
    else:
        _show(found, terminal)
    if failed and not as_json:
        terminal.error(f"{failed} of {len(found)} references cannot be followed")
    return AGENT_ERROR if failed else OK


# --- looking up ------------------------------------------------------------------------------------------


def _runtime(config: Config, *, needs_keys: bool = True) -> Runtime:
    """A runtime for a command: what it reads stands in the log of the commands, as a service may write the other."""
    runtime = Runtime(config)
    if runtime.audit is not None:
        runtime.audit.for_command(needs_keys=needs_keys)
    return runtime


async def _value(config: Config, reference: str, *, reveal: bool) -> str:
    async with _runtime(config) as runtime:
        secret = await runtime.secrets.get(reference)
        return secret.reveal() if reveal else MASK


async def _names(config: Config, provider: str, prefix: str) -> list[str]:
    async with _runtime(config) as runtime:
        return await runtime.secrets.list(provider, prefix)


async def _check(config: Config, terminal: Terminal) -> list[Resolved]:
    references = config.references()
    found: list[Resolved] = []
    if not references:
        return found
    try:
        # The keys of the audit log may be among what is missing.
        async with _runtime(config, needs_keys=False) as runtime:
            found = await asyncio.gather(*(_resolved(runtime, setting) for setting in references))
    except Refused as error:  # of the audit log
        if not found:
            raise
        terminal.warning(str(error))  # on_failure = "warn": the result stands
    return found


async def _resolved(runtime: Runtime, setting: Setting) -> Resolved:
    provider, problem = "", ""
    state: State = "ok"
    try:
        ref = SecretRef.parse(setting.value)
        provider = ref.provider or runtime.config.secrets_provider
        await runtime.secrets.get(ref)
    except AgentrtError as error:
        state, problem = _state(error), str(error).removeprefix(f"{setting.value}: ")
    return Resolved(state, setting.value, provider, setting.name, setting.origin, problem)


def _state(error: AgentrtError) -> State:
    match error:
        case SecretNotFound():
            return "missing"
        case SecretDenied():
            return "denied"
        case SecretInvalid():
            return "invalid"
        case ConfigError() | PluginError():
            return "unusable"
        case _:
            return "unavailable"


def _show(found: list[Resolved], terminal: Terminal) -> None:
    states = max(len(one.state) for one in found)
    references = max(len(one.reference) for one in found)
    providers = max(len(one.provider) for one in found)
    for one in found:
        style: Style = "green" if one.state == "ok" else "red"
        state = terminal.style(one.state.ljust(states), style, out=True)
        where = f"{one.setting} ({one.origin})"
        line = f"{state}  {one.reference.ljust(references)}  {one.provider.ljust(providers)}  {where}"
        terminal.line(line.rstrip())
        if one.problem:
            terminal.line(f"{' ' * states}  {one.problem}")


def _is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()
