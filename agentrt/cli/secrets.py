"""`agentrt secrets`: what references lead to, without showing it; and secrets that stand where they should not."""

from __future__ import annotations

import importlib

import click

from agentrt.cli.main import help_instead

__all__ = ["secrets"]

COMMANDS = {
    "get": ("secrets_lookup", "See whether a secret is there; show it if asked to, on a terminal."),
    "list": ("secrets_lookup", "List the names of the secrets that a provider has."),
    "check": ("secrets_lookup", "See whether every reference in the configuration leads to a secret."),
    "scan": ("secrets_scan", "Find secrets that stand in files."),
}
"""The commands in the order of the help, each with its module in this folder, which is imported when it is used."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"agentrt.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, "list_secrets" if cmd_name == "list" else cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_) for name, (_, help_) in COMMANDS.items()])


@click.group(
    cls=_Commands,
    short_help="Look at secrets without showing them; find them in files.",
    invoke_without_command=True,
    epilog="""\b
Examples:
  agentrt secrets get secret://env/OPENAI_API_KEY
  agentrt secrets list --provider file
  agentrt secrets check --config production.toml
  agentrt secrets scan
""",
)
@click.pass_context
def secrets(ctx: click.Context) -> int | None:
    """References to secrets: what they lead to is looked up, and not shown."""
    return help_instead(ctx)
