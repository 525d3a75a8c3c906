"""`agentrt trace`: a stored run, drawn in the terminal or as a page."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import datetime

import click
from msgspec import Struct

from agentrt.cli.candidates import similar_to
from agentrt.cli.report import OK
from agentrt.cli.run_trace import check_page, write_page
from agentrt.cli.terminal import Terminal
from agentrt.errors import ConfigError
from agentrt.telemetry.span_tree import Node, Tree

__all__ = ["trace"]

LISTED = 5


@click.command(
    short_help="Show a stored run: where its time went, what failed.",
    epilog="""\b
Examples:
  agentrt trace telemetry.jsonl                     the last run
  agentrt trace telemetry.jsonl --list              which runs there are
  agentrt trace telemetry.jsonl --run 7f3a          a run, by the beginning of its id
  agentrt trace telemetry.jsonl --html run.html     a page to search and click through
""",
)
@click.argument("file", type=click.Path())
@click.option("--run", "run_id", metavar="ID", help="This run: its id, that of its trace, or how one begins.")
@click.option("--last", is_flag=True, help="The run that began last, which is the default.")
@click.option("--list", "list_wanted", is_flag=True, help="List the runs instead.")
@click.option("--html", "page", metavar="OUT", type=click.Path(), help="Write a page to OUT (-: to stdout).")
@click.option("--all", "every", is_flag=True, help="Draw all of many similar calls, not only some.")
@click.option("--older", is_flag=True, help="Read the rotated files FILE.1, FILE.2 ... as well.")
@click.pass_obj
def trace(
    terminal: Terminal,
    /,
    file: str,
    run_id: str | None,
    last: bool,
    list_wanted: bool,
    page: str | None,
    every: bool,
    older: bool,
) -> int:
    """Show a run that the telemetry backend "file" has written to FILE: its calls on the time axis, with attempts,
    waits, tokens and errors.

    Without --run it is the last one. A page (--html) has all runs of FILE, unless --run or --last chooses one.
    """
    if sum((run_id is not None, last, list_wanted)) > 1:
        raise click.UsageError("--run, --last and --list exclude each other")
    if list_wanted and page is not None:
        raise click.UsageError("--list and --html exclude each other: a page lists its runs itself")
    if page is not None:
        check_page(page, option="--html")
    trees = _read(file, terminal, older=older)
    if list_wanted:
        _list(trees, terminal)
        return OK
    chosen = trees
    if run_id is not None:
        chosen = [_find(trees, run_id, file)]
    elif last or page is None:
        chosen = trees[-1:]
        if len(trees) > 1 and not last:
            terminal.note(f"the last of {len(trees):,} runs; --list shows them, --run ID another one")
    if page is not None:
        write_page(page, chosen, terminal)
    else:
        _draw(chosen, terminal, every=every)
    return OK


def _draw(trees: Sequence[Tree], terminal: Terminal, *, every: bool) -> None:
    from agentrt.telemetry.look import Look
    from agentrt.telemetry.waterfall import waterfall

    look = Look.of(sys.stdout)
    for tree in trees:
        terminal.line("\n".join(waterfall(tree, look, every=every)))


# --- reading -------------------------------------------------------------------------------------------


def _read(file: str, terminal: Terminal, *, older: bool) -> list[Tree]:
    """The runs in a file, in order of time. Raises ConfigError if there is none."""
    from agentrt.telemetry.file_reader import read
    from agentrt.telemetry.signals import LogLine, Span
    from agentrt.telemetry.span_tree import build_trees

    spans: list[Span] = []
    logs: list[LogLine] = []
    others = 0
    try:
        reading = read(file, older=older)
        for item in reading:
            if isinstance(item, Span):
                spans.append(item)
            elif isinstance(item, LogLine):
                logs.append(item)
            else:
                others += 1
    except FileNotFoundError:
        raise ConfigError(_no_file(file)) from None
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror or error}") from error
    skipped = reading.skipped
    if not spans:
        raise ConfigError(_no_spans(file, skipped=skipped, others=others + len(logs)))
    if skipped:
        lines = "1 line was" if skipped == 1 else f"{skipped:,} lines were"
        terminal.warning(f"{file}: {lines} no telemetry, or torn, and left out")
    return build_trees(spans, logs)


def _no_file(file: str) -> str:
    folder, name = os.path.split(file)
    try:
        names = [entry.name for entry in os.scandir(folder or ".") if entry.is_file()]
    except OSError:
        return f"there is no file {file}"
    similar = similar_to(name, names)
    return f"there is no file {file}" + (
        f"; did you mean {os.path.join(folder, similar)}?" if similar else ""
    )


def _no_spans(file: str, *, skipped: int, others: int) -> str:
    if others:
        return f"{file} has metrics or log lines but no spans: there is no run to show"
    if skipped:
        return (
            f'{file} has no telemetry in it: FILE is what the backend "file" writes ([telemetry.file] path)'
        )
    return f"{file} is empty: no run has been written to it yet"


# --- choosing ------------------------------------------------------------------------------------------


class _Entry(Struct, frozen=True, eq=False):
    """A run as it may be asked for."""

    id: str
    tree: Tree


def _find(trees: Sequence[Tree], wanted: str, file: str) -> Tree:
    """The run with this id, or whose id, or whose trace's id, begins so. Raises ConfigError."""
    entries = _entries(trees)
    found = [entry for entry in entries if entry.id == wanted]
    if not found:
        found = [entry for entry in entries if entry.id.startswith(wanted)] if wanted else []
        ids = dict.fromkeys(entry.id for entry in found)
        if len(ids) > 1:
            more = "" if len(ids) <= LISTED else f" and {len(ids) - LISTED} more"
            raise ConfigError(
                f"{file} has several runs that begin with {wanted!r}: {', '.join(list(ids)[:LISTED])}{more}"
            )
    if found:
        return found[-1].tree
    similar = similar_to(wanted, [entry.id for entry in entries])
    hint = f"; did you mean {similar}?" if similar else "; --list shows the runs that there are"
    raise ConfigError(f"{file} has no run {wanted!r}{hint}")


def _entries(trees: Sequence[Tree]) -> list[_Entry]:
    entries = []
    for tree in trees:
        entries.append(_Entry(tree.trace_id, tree))
        entries += [
            _Entry(node.run_id, tree if tree.roots == [node] else Tree.of(node))
            for node in tree.nodes()
            if node.kind == "run" and node.run_id
        ]
    return entries


def _list(trees: Sequence[Tree], terminal: Terminal) -> None:
    from agentrt.telemetry.look import duration, printable

    head = ("began", "run", "name", "took", "spans", "state")
    rows = [
        (
            datetime.fromtimestamp(tree.start / 1e9).isoformat(" ", "seconds"),
            printable(tree.run_id or tree.trace_id),
            printable(tree.title),
            duration(tree.seconds),
            f"{sum(1 for _ in tree.nodes()):,}",
            _state(tree),
        )
        for tree in trees
    ]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head) - 1)]
    terminal.line(terminal.style(_columns(head, widths), "bold", out=True))
    for tree, row in zip(trees, rows, strict=True):
        line = _columns(row, widths)
        terminal.line(terminal.style(line, "red", out=True) if tree.failed else line)


def _columns(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[-1]])


def _state(tree: Tree) -> str:
    if tree.failed:
        return "failed: " + next(
            (f.error_type for f in _failed(tree.roots) if f.error_type), "no reason given"
        )
    inside = len(tree.failures())
    return "ok" if not inside else f"ok, {inside} failure{'s' if inside != 1 else ''} inside"


def _failed(roots: Sequence[Node]) -> list[Node]:
    return [root for root in roots if root.failed]
