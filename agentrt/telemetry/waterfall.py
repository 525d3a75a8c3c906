"""A tree of spans as text: each call with its place on the time axis, so that one look shows where the time went.

Assistant · ok · 3.00 s · 2 model calls, 1 tool call · 2,024 → 351 tokens · run run-ada-1
                                0              1 s             2 s
invoke_agent Assistant   3.00 s ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━
├ chat gpt-5-mini        1.00 s ████████████████                                820 → 41 tokens
├ execute_tool search    500 ms                █████████
└ chat gpt-5-mini        1.50 s                        ████████████████████████ 1,204 → 310 tokens
time    chat gpt-5-mini 2.50 s (83%) · execute_tool search 500 ms (17%)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import Struct

from agentrt.telemetry.look import Colour, Look, Strokes, begun, cut, duration, printable, width_of
from agentrt.telemetry.span_tree import Moment, Node, Tree
from agentrt.telemetry.time_shares import family, own, time_shares

__all__ = ["waterfall"]

_COLOURS: dict[str, Colour] = {
    "model": "cyan",
    "tool": "green",
    "memory": "magenta",
    "secret": "magenta",
    "wait": "yellow",
    "retry": "yellow",
    "missing": "dim",
}

SIMILAR = 10
"""More siblings than this of one kind are drawn as a few and a count."""

FIRST, FAILED = 3, 3
FAILURES = 5


class _Row(Struct, frozen=True, eq=False):
    """A line to draw: what stands left of the name, and what the line is about."""

    prefix: str
    item: Node | Moment | _Rest


class _Rest(Struct, frozen=True, eq=False):
    """Similar siblings that are not drawn one by one."""

    items: list[Node | Moment]


class _Columns(Struct, frozen=True):
    """The columns of a drawing: label, duration, bar, and facts in what is left."""

    label: int
    bar: int
    facts: int


def waterfall(tree: Tree, look: Look, *, every: bool = False) -> list[str]:
    """The lines of a drawing: a heading, the axis, a line for each call and moment, and what to know of the whole.

    `every`: draw all siblings, however many are similar.
    """
    rows = list(_rows(tree, look.strokes, every=every))
    columns = _columns(rows, look)
    lines = [*_heading(tree, look), _axis(tree, look, columns)]
    lines += [_line(row, tree, look, columns) for row in rows]
    return [line.rstrip() for line in [*lines, *_foot(tree, look)]]


# --- which lines ---------------------------------------------------------------------------------------


def _rows(tree: Tree, strokes: Strokes, *, every: bool) -> Iterator[_Row]:
    stack = [_Row("", root) for root in reversed(tree.roots)]
    deeper = [""] * len(stack)
    while stack:
        row, indent = stack.pop(), deeper.pop()
        yield row
        if not isinstance(row.item, Node):
            continue
        items = row.item.items if every else _without_similar(row.item.items)
        for place, item in enumerate(reversed(items)):
            is_last = place == 0
            stack.append(_Row(indent + (strokes.last if is_last else strokes.fork), item))
            deeper.append(indent + (" " * len(strokes.bar) if is_last else strokes.bar))


def _without_similar(items: Sequence[Node | Moment]) -> Sequence[Node | Moment | _Rest]:
    """Of many similar siblings: the first, those that failed first, the slowest, and the rest as one."""
    groups: dict[tuple[str, str], list[Node | Moment]] = {}
    for item in items:
        groups.setdefault(_likeness(item), []).append(item)
    rests: dict[int, _Rest] = {}
    hidden: set[int] = set()
    for group in groups.values():
        if len(group) <= SIMILAR:
            continue
        failed = [item for item in group if isinstance(item, Node) and item.failed]
        slowest = max(group, key=lambda item: item.seconds)
        kept = {id(item) for item in [*group[:FIRST], *failed[:FAILED], slowest]}
        rest = [item for item in group if id(item) not in kept]
        hidden.update(id(item) for item in rest)
        rests[id(rest[-1])] = _Rest(rest)
    shown: list[Node | Moment | _Rest] = []
    for item in items:
        if id(item) in rests:
            shown.append(rests[id(item)])
        elif id(item) not in hidden:
            shown.append(item)
    return shown


def _likeness(item: Node | Moment) -> tuple[str, str]:
    return item.kind, family(item)


# --- a line --------------------------------------------------------------------------------------------

GAP = 2
SECONDS = 9
"""Columns of a duration."""

LEAST_BAR = 16


def _columns(rows: Sequence[_Row], look: Look) -> _Columns:
    """The label takes what it needs, up to two fifths; the rest is shared between bar and facts."""
    needed = max(width_of(row.prefix) + width_of(_label(row.item, look)) for row in rows)
    label = max(12, min(needed, look.width * 3 // 8))
    rest = look.width - label - SECONDS - 2 * GAP
    facts = max((width_of(look.strokes.dot.join(_facts(row.item, look))) for row in rows), default=0)
    facts = min(facts, rest - max(LEAST_BAR, rest // 2))
    return _Columns(label, max(LEAST_BAR, rest - facts), facts)


def _line(row: _Row, tree: Tree, look: Look, columns: _Columns) -> str:
    item = row.item
    prefix = _squeezed(row.prefix, columns.label // 2, look.strokes)
    label = cut(_label(item, look), columns.label - width_of(prefix), look.strokes.more)
    blanks = " " * (columns.label - width_of(prefix) - width_of(label))
    colour = _label_colour(item)
    drawn = look.paint(prefix, "dim") + look.paint(label, colour) + blanks
    seconds = look.paint(_seconds(item, look).rjust(SECONDS), "dim" if colour == "dim" else None)
    facts = _joined(_facts(item, look), columns.facts, look.strokes)
    return f"{drawn}{seconds}{' ' * (GAP - 1)}{_bar(item, tree, look, columns.bar)} " + look.paint(
        facts, "red" if isinstance(item, Node) and item.failed else "dim"
    )


def _squeezed(prefix: str, width: int, strokes: Strokes) -> str:
    """The tree left of a name that stands very deep: only its last levels."""
    step = len(strokes.bar)
    levels, fits = len(prefix) // step, max(1, (width - 5) // step)
    if levels <= fits + 1:
        return prefix
    return f"{levels - fits}{strokes.more} ".ljust(5)[: 5 + step] + prefix[-fits * step :]


def _label(item: Node | Moment | _Rest, look: Look) -> str:
    strokes = look.strokes
    if isinstance(item, _Rest):
        failed = sum(isinstance(one, Node) and one.failed for one in item.items)
        alike = printable(_likeness(item.items[0])[1])
        return (
            f"{strokes.more} {len(item.items)} more" + (f", {failed} failed" if failed else "") + f"  {alike}"
        )
    name = look.plain(printable(item.name))
    if isinstance(item, Moment):
        return f"{strokes.moment} {name}"
    return (strokes.failed if item.failed else "") + name


def _label_colour(item: Node | Moment | _Rest) -> Colour | None:
    if isinstance(item, _Rest):
        return "dim"
    if isinstance(item, Moment):
        return "yellow" if item.kind != "event" else "dim"
    if item.failed:
        return "red"
    if item.kind == "run":
        return "bold"
    return "dim" if item.kind == "missing" else None


def _seconds(item: Node | Moment | _Rest, look: Look) -> str:
    micro = look.strokes.micro
    if isinstance(item, _Rest):
        return look.strokes.at_most + duration(max(one.seconds for one in item.items), micro=micro)
    if isinstance(item, Moment) and item.end == item.start:
        return ""
    return duration(item.seconds, micro=micro)


def _facts(item: Node | Moment | _Rest, look: Look) -> list[str]:
    """What there is to say of a call besides, the most important first."""
    if isinstance(item, Moment):
        return [look.plain(printable(item.detail))] if item.detail else []
    if isinstance(item, _Rest):
        return []
    facts = []
    if item.failed:
        is_said = any(child.failed and child.message == item.message for child in item.children)
        message = "" if is_said else item.message
        facts.append(": ".join(filter(None, (item.error_type, message))) or "failed")
    if item.is_degraded:
        facts.append("degraded")
    if item.attempts > 1:
        facts.append(f"{item.attempts} attempts")
    if item.tokens is not None and item.kind != "attempt":
        facts.append(_tokens(item.tokens, look))
    facts += item.remarks
    if item.target and item.target not in item.name and not item.target.startswith("tool:"):
        facts.append(item.target)
    return [printable(fact) for fact in facts]


def _joined(facts: Sequence[str], width: int, strokes: Strokes) -> str:
    """As many facts as fit, whole; only the first may be cut."""
    text = begun(facts[0], width, strokes.more) if facts else ""
    for fact in facts[1:]:
        if width_of(text) + len(strokes.dot) + width_of(fact) <= width:
            text += strokes.dot + fact
    return text


def _tokens(tokens: tuple[int, int], look: Look) -> str:
    return f"{tokens[0]:,}{look.strokes.arrow}{tokens[1]:,} tokens"


# --- the bar -------------------------------------------------------------------------------------------


def _bar(item: Node | Moment | _Rest, tree: Tree, look: Look, width: int) -> str:
    """Solid where the call itself was at work, a line where something below it was, dots where it waited."""
    strokes = look.strokes
    cells = [" "] * width
    scale = width / max(1, tree.end - tree.start)

    def fill(start: int, end: int, stroke: str, *, least: str) -> None:
        first = min(width - 1, int((start - tree.start) * scale))
        last = first if start == end else min(width, max(first, round((end - tree.start) * scale)))
        cells[first : max(first + 1, last)] = (stroke if last > first else least) * max(1, last - first)

    colour: Colour | None = "yellow"
    if isinstance(item, Moment):
        is_point = item.end == item.start
        fill(item.start, item.end, strokes.wait, least=strokes.moment if is_point else strokes.wait)
    elif isinstance(item, _Rest):
        colour = "dim"
        for one in item.items:
            fill(one.start, one.end, strokes.below, least=strokes.brief)
    else:
        colour = "red" if item.failed else _COLOURS.get(item.kind)
        fill(item.start, item.end, strokes.below, least=strokes.brief)
        for start, end in own(item):
            if (end - start) * scale >= 0.5 or (start, end) == (item.start, item.end):
                fill(start, end, strokes.own, least=strokes.brief)
        for moment in item.moments:
            if (moment.end - moment.start) * scale >= 0.5:
                fill(moment.start, moment.end, strokes.wait, least=strokes.wait)
    drawn = "".join(cells).rstrip()
    return look.paint(drawn, colour) + " " * (width - len(drawn))


def _axis(tree: Tree, look: Look, columns: _Columns) -> str:
    marks = [" "] * columns.bar
    free = 0
    most = max(min(5, columns.bar // 7), columns.bar // 16)
    for seconds in _ticks(tree.seconds, most):
        text = _tick(seconds, look)
        at = int(seconds / tree.seconds * columns.bar) if seconds else 0
        if free <= at <= columns.bar - len(text):
            marks[at : at + len(text)] = text
            free = at + len(text) + 2
    return " " * (columns.label + SECONDS + GAP - 1) + look.paint("".join(marks).rstrip(), "dim")


def _tick(seconds: float, look: Look) -> str:
    if seconds == 0:
        return "0"
    return f"{seconds:g} s" if 1 <= seconds < 60 else duration(seconds, micro=look.strokes.micro)


def _ticks(seconds: float, most: int) -> list[float]:
    """Round numbers of seconds from 0, at most `most` after it."""
    if seconds <= 0 or most < 1:
        return [0.0]
    exponent = -7
    while True:
        for digit in (1, 2, 5):
            step = digit * 10.0**exponent
            if seconds / step <= most:
                return [round(number * step, 9) for number in range(int(seconds / step) + 1)]
        exponent += 1


# --- the whole -----------------------------------------------------------------------------------------


def _heading(tree: Tree, look: Look) -> list[str]:
    """What it was and how it ended, on as many lines as it needs."""
    inside = len(tree.failures())
    facts: list[tuple[str, Colour | None]] = [
        (printable(tree.title), "bold"),
        ("failed", "red") if tree.failed else ("ok", "green"),
        (duration(tree.seconds, micro=look.strokes.micro), None),
        (", ".join(filter(None, (_counted(tree, kind) for kind in ("model", "tool", "memory")))), None),
        (_tokens(tree.tokens, look) if tree.tokens is not None else "", None),
        (f"{inside} failure{'s' if inside != 1 else ''} inside", "red")
        if not tree.failed and inside
        else ("", None),
        ("degraded" if any(root.is_degraded for root in tree.roots) else "", "yellow"),
        (f"run {printable(tree.run_id)}" if tree.run_id else "", "dim"),
    ]
    lines: list[str] = []
    left = 0
    for text, colour in facts:
        drawn = look.paint(text := begun(text, look.width, look.strokes.more), colour)
        needed = len(look.strokes.dot) + width_of(text)
        if not text:
            continue
        if lines and needed <= left:
            lines[-1] += look.strokes.dot + drawn
            left -= needed
        else:
            lines.append(drawn)
            left = look.width - width_of(text)
    return lines


def _counted(tree: Tree, kind: str) -> str:
    count = sum(node.kind == kind for node in tree.nodes())
    return f"{count:,} {kind} call{'s' if count != 1 else ''}" if count else ""


def _foot(tree: Tree, look: Look) -> list[str]:
    """Where most of the time went, and where errors began."""
    lines = []
    times = _times(tree, look)
    if times:
        lines.append(look.paint(TIME, "dim") + times)
    failures = tree.failures()
    for node in failures[:FAILURES]:
        what = ": ".join(filter(None, (node.name, node.error_type, node.message)))
        text = begun(printable(what), look.width - len(FAILED_AT), look.strokes.more)
        lines.append(look.paint(FAILED_AT, "dim") + look.paint(text, "red"))
    if len(failures) > FAILURES:
        lines.append(" " * len(FAILED_AT) + f"and {len(failures) - FAILURES:,} more failures")
    return lines


TIME, FAILED_AT = "time    ", "failed  "


def _times(tree: Tree, look: Look) -> str:
    """The largest shares of the time that fit on a line."""
    shares = time_shares(tree)
    total = sum(share.seconds for share in shares)
    if len(shares) < 2 or not total:
        return ""
    parts: list[str] = []
    left = look.width - len(TIME)
    for share in shares:
        name = look.plain(cut(printable(share.name), 32, look.strokes.more))
        took = f" {duration(share.seconds, micro=look.strokes.micro)} ({share.seconds / total:.0%})"
        left -= width_of(name) + len(took) + len(look.strokes.dot)
        if left < 0 or share.seconds < total / 100:
            break
        parts.append(look.paint(name, _COLOURS.get(share.kind)) + took)
    return look.strokes.dot.join(parts)
