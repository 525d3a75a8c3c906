"""`agentrt audit`: verifies an audit log, and shows what is in it."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agentrt.cli.main import help_instead
from agentrt.cli.report import AGENT_ERROR, OK
from agentrt.cli.terminal import Terminal
from agentrt.errors import ConfigError

if TYPE_CHECKING:
    from agentrt.security.audit.checkpoints import PublicKey
    from agentrt.security.audit.record import Line
    from agentrt.security.audit.verify import Report

__all__ = ["audit"]

POLL = 0.2
"""Seconds between two looks at a log that is followed."""


@click.group(
    short_help="Verify an audit log, and show what is in it.",
    invoke_without_command=True,
    epilog="""\b
Examples:
  agentrt audit verify audit.jsonl --public-key audit.pub --anchor /mnt/other/anchor.jsonl
  agentrt audit show audit.jsonl --since 2h --action tool
  agentrt audit tail audit.jsonl -f
""",
)
@click.pass_context
def audit(ctx: click.Context) -> int | None:
    """What was done by agents, as the audit log of [audit] path has it."""
    return help_instead(ctx)


# --- verify --------------------------------------------------------------------------------------------------


@audit.command(short_help="Find out whether a log is as it was written.")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--public-key",
    "key_files",
    metavar="FILE",
    type=click.Path(path_type=Path),
    multiple=True,
    help="The key of the checkpoints; more than once if it was changed over time.",
)
@click.option("--anchor", metavar="FILE", type=click.Path(path_type=Path), help="Checkpoints kept elsewhere.")
@click.option("--pruned", is_flag=True, help="Older files of the log were removed on purpose.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_obj
def verify(
    terminal: Terminal,
    path: Path,
    key_files: tuple[Path, ...],
    anchor: Path | None,
    pruned: bool,
    as_json: bool,
) -> int:
    """Verify the log at PATH with the files before it (PATH.000001 ...): edits, deletions, another order, a cut end,
    forged checkpoints, a chain that was made anew.

    The exit code is 1 if anything is wrong. Give the public key and an anchor: without them less is shown, and the
    result says what.
    """
    import msgspec

    from agentrt.security.audit.verify import verify as verified

    report = verified(
        path, public_key=[_public_key(file) for file in key_files], anchor=anchor, pruned=pruned
    )
    if as_json:
        terminal.line(msgspec.json.encode({"ok": report.ok, **msgspec.to_builtins(report)}).decode())
    else:
        _say(report, terminal)
    return OK if report.ok else AGENT_ERROR


def _public_key(file: Path) -> PublicKey:
    from agentrt.security.audit.checkpoints import PublicKey

    try:
        return PublicKey(file.read_bytes(), name=str(file))
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror or error}") from error


def _say(report: Report, terminal: Terminal) -> None:
    files = "1 file" if report.files == 1 else f"{report.files:,} files"
    checkpoints = "1 checkpoint" if report.checkpoints == 1 else f"{report.checkpoints:,} checkpoints"
    for problem in report.problems:
        terminal.line(terminal.style(str(problem), "red", out=True))
    if report.problem_count > len(report.problems):
        terminal.line(f"... and {report.problem_count - len(report.problems):,} more")
    head = (
        "ok" if report.ok else f"not ok: {report.problem_count:,} problem{'s' * (report.problem_count != 1)}"
    )
    terminal.line(
        terminal.style(head, "green" if report.ok else "red", out=True)
        + f": {report.path}: {report.records:,} records in {files}, {checkpoints}"
        + (f", signed through record {report.signed_through:,}" if report.signed else "")
        + (f", anchored through record {report.anchored_through:,}" if report.anchored_through else "")
    )
    for note in report.notes:
        terminal.note(f"note: {note}")
    if report.log is None and report.records:
        terminal.hint(
            f"{report.path} does not begin as an audit log: is it the file that [audit] path names?"
        )


# --- show ----------------------------------------------------------------------------------------------------


@audit.command(short_help="Show what was done, by run.")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--run", metavar="ID", help="Only this run and its children: its id, or how it begins.")
@click.option("--action", metavar="NAME", help='Only this action: "tool.call", or "tool" for all of them.')
@click.option("--actor", metavar="NAME", help="Only what this actor did, or what was done on behalf of it.")
@click.option("--since", metavar="TIME", help="Only from then on: 2026-11-24T12:00, or 15m, 2h, 7d ago.")
@click.option("--json", "as_json", is_flag=True, help="Print the lines as they are.")
@click.pass_obj
def show(
    terminal: Terminal,
    path: Path,
    run: str | None,
    action: str | None,
    actor: str | None,
    since: str | None,
    as_json: bool,
) -> int:
    """Show the operations in the log at PATH, each with how it ended, below the run that it was part of."""
    from agentrt.cli.audit_lines import Filter, Rows, lines_of, moment, other, said

    _check(path)
    wanted = Filter(run=run, action=action, actor=actor, since=None if since is None else moment(since))
    rows = Rows()
    strange = 0
    for line, item in lines_of(path):
        if item is None:
            strange += 1
        elif not wanted.wants(item):
            continue
        elif as_json:
            terminal.write(line.decode("utf-8", "replace"))
        else:
            rows.add(item)
    for depth, row in rows.table():
        text = said(row, depth=depth)
        bad = row.state in ("failed", "denied", "no outcome", "unknown")
        terminal.line(terminal.style(text, "red", out=True) if bad else text)
    for gap in rows.others:
        if type(gap).__name__ in ("Gap", "Recovered"):
            terminal.line(terminal.style(other(gap), "yellow", out=True))
    if strange:
        what = "1 line is no line" if strange == 1 else f"{strange:,} lines are no lines"
        terminal.warning(f"{path}: {what} of an audit log; agentrt audit verify says more")
    elif not as_json and not rows.runs:
        terminal.note(f"no operation in {path} is as asked for")
    return OK


def _check(path: Path) -> None:
    from agentrt.security.audit.segments import segments

    try:
        found = segments(path)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    if not found:
        raise ConfigError(f"there is no audit log {path}")


# --- tail ----------------------------------------------------------------------------------------------------


@audit.command(short_help="Show the last lines, and what comes.")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written, until Ctrl-C.")
@click.option("-n", "count", metavar="N", type=click.IntRange(min=0), default=10, help="So many lines (10).")
@click.option("--json", "as_json", is_flag=True, help="Print the lines as they are.")
@click.pass_obj
def tail(terminal: Terminal, path: Path, follow: bool, count: int, as_json: bool) -> int:
    """Show the last lines of the log at PATH."""
    from agentrt.cli.audit_follow import Followed

    _check(path)
    if not path.exists():
        raise ConfigError(f"{path} is not there; the files before it are shown by agentrt audit show {path}")
    followed = Followed(path)
    try:
        last: deque[bytes] = deque(maxlen=count)
        followed.read(last.append)
        for line in last:
            _print(line, terminal, as_json=as_json)
        while follow:
            time.sleep(POLL)
            followed.read(lambda line: _print(line, terminal, as_json=as_json))
    finally:
        followed.close()
    return OK


def _print(line: bytes, terminal: Terminal, *, as_json: bool) -> None:
    from agentrt.cli.audit_lines import other
    from agentrt.security.audit.record import NOT_A_LINE, decode

    try:
        item: Line = decode(line)
    except NOT_A_LINE:  # somebody's, with who knows what for a terminal in it
        terminal.warning("a line that is no line of an audit log; agentrt audit verify says more")
        return
    if as_json:
        terminal.write(line.decode("utf-8", "replace"))
        return
    terminal.line(other(item))
