"""`agentrt secrets scan`: secrets that stand in files, before they are committed or after."""

from __future__ import annotations

from collections.abc import Sequence

import click

from agentrt.cli.report import OK
from agentrt.cli.scan_files import Files, Skipped, files_below, staged_files
from agentrt.cli.scanner import ALLOW_FILE, ALLOW_MARK, AllowList, Confidence, Finding, Scanner, text_of
from agentrt.cli.terminal import Terminal

__all__ = ["scan"]

FOUND = 1

MEBIBYTE = 1024 * 1024


@click.command(
    short_help="Find secrets that stand in files.",
    epilog=f"""\b
Examples:
  agentrt secrets scan
  agentrt secrets scan --staged            before a commit
  agentrt secrets scan --json src tests

A false alarm: a comment with {ALLOW_MARK} on the line or the one before,
or a line "PATTERN [RULE]" in {ALLOW_FILE} at the top of the repository.
Exit code: 0 nothing found, 1 something found, 2 it could not be scanned.
""",
)
@click.argument("paths", nargs=-1, metavar="[PATH]...", type=click.Path())
@click.option("--staged", is_flag=True, help="Scan what the next commit would change, as it is staged.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--confidence",
    type=click.Choice(["low", "medium", "high"]),
    default="low",
    show_default=True,
    help="Show findings of at least this confidence.",
)
@click.option(
    "--max-bytes",
    type=click.IntRange(min=1),
    default=5 * MEBIBYTE,
    show_default=True,
    help="Skip files that are larger, and say so.",
)
@click.option(
    "--rules",
    type=click.Path(exists=True, dir_okay=False),
    help="A betterleaks configuration with rules of your own.",
)
@click.pass_obj
def scan(
    terminal: Terminal,
    paths: tuple[str, ...],
    staged: bool,
    as_json: bool,
    confidence: Confidence,
    max_bytes: int,
    rules: str | None,
) -> int:
    """Find secrets in files and folders; by default in this folder.

    Where there is a git repository, files that it ignores are left out. Binary files are left out. A secret is never
    shown in full.
    """
    scanner = Scanner(confidence=confidence, rules=rules)
    places = _places(paths, staged, max_bytes)
    found: list[Finding] = []
    looked_at: set[str] = set()
    for allowed, files in places:
        for file in files:
            if file.path in looked_at:
                continue
            looked_at.add(file.path)
            if isinstance(file, Skipped):
                terminal.warning(f"{_printable(file.path)} was not scanned: {file.why}")
                continue
            text = text_of(file.content)
            if text is not None:
                found += scanner.scan(file.path, text, known_as=file.known_as, allowed=allowed)
    if as_json:
        import msgspec

        shown = [{**msgspec.structs.asdict(finding), "path": _printable(finding.path)} for finding in found]
        terminal.line(msgspec.json.format(msgspec.json.encode(shown), indent=2).decode())
    else:
        _print(found, len(looked_at), terminal)
    return FOUND if found else OK


def _places(paths: Sequence[str], staged: bool, max_bytes: int) -> list[tuple[AllowList, Files]]:
    if staged:
        return [staged_files(paths, max_bytes=max_bytes)]
    return [files_below(path, max_bytes=max_bytes) for path in paths or (".",)]


def _print(found: Sequence[Finding], files: int, terminal: Terminal) -> None:
    for finding in found:
        place = terminal.style(f"{_printable(finding.path)}:{finding.line}", "bold", out=True)
        terminal.line(f"{place}  {finding.rule} ({finding.confidence})  {finding.preview}")
    in_files = f"in {files:,} file{'' if files == 1 else 's'}"
    if not found:
        terminal.note(f"no secrets {in_files}")
        return
    terminal.error(f"{len(found)} secret{'' if len(found) == 1 else 's'} {in_files}")
    terminal.hint(
        f"take it out, and replace it where it is used: it may be known by now. If it is none, write {ALLOW_MARK} into "
        f"a comment there, or its path into {ALLOW_FILE}"
    )


def _printable(path: str) -> str:
    return path if path.isprintable() else path.encode("unicode_escape", "surrogatepass").decode("ascii")
