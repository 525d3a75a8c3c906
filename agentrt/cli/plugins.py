"""`agentrt plugins`: every plugin, with distribution, version and state."""

from __future__ import annotations

import click

from agentrt.cli.report import OK
from agentrt.cli.terminal import Terminal
from agentrt.plugins import PluginInfo, list_plugins

__all__ = ["plugins"]

HEAD = ("group", "name", "distribution", "version", "state")


@click.command(
    short_help="List plugins, with version and state.",
    epilog="""\b
Examples:
  agentrt plugins
  agentrt plugins --json
""",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def plugins(terminal: Terminal, as_json: bool) -> int:
    """List every plugin of agentrt that is installed. Each one is imported, to see whether it works."""
    found = list_plugins()
    if as_json:
        import msgspec

        terminal.line(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
        return OK
    rows = [_row(info) for info in found]
    widths = [max(len(row[column]) for row in [HEAD, *rows]) for column in range(len(HEAD) - 1)]
    terminal.line(terminal.style(_line(HEAD, widths), "bold", out=True))
    for row in rows:
        line = _line(row, widths)
        terminal.line(line if row[-1] == "ok" else terminal.style(line, "red", out=True))
    return OK


def _row(info: PluginInfo) -> tuple[str, ...]:
    return (info.group, info.name, info.distribution, info.version, info.state)


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    return "  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[-1]])
