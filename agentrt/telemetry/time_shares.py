"""Where the time of a run went."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate

from msgspec import Struct

from agentrt.telemetry.span_tree import Moment, Node, NodeKind, Tree

__all__ = ["Share", "busy", "family", "own", "time_shares"]

Interval = tuple[int, int]


class Share(Struct, frozen=True):
    """The part of a run that calls of one name took; `kind` is "wait" for what stood still on purpose."""

    name: str
    kind: str
    seconds: float


def busy(node: Node) -> list[Interval]:
    """When a child of `node` was at work, or it waited, as far as this is within its own time."""
    return _united(
        (max(item.start, node.start), min(item.end, node.end)) for item in node.items if item.end > item.start
    )


def own(node: Node) -> list[Interval]:
    """When `node` itself was at work: no child was, and it waited for nothing."""
    free, at = [], node.start
    for start, end in busy(node):
        if start > at:
            free.append((at, start))
        at = max(at, end)
    if node.end > at:
        free.append((at, node.end))
    return free


def time_shares(tree: Tree) -> list[Share]:
    """How the time was spent, the largest share first. What ran at the same time shares it, so that the sum is the
    time in which anything ran at all."""
    named: list[tuple[str, str, Interval]] = []
    stack: list[tuple[Node, tuple[str, NodeKind]]] = [
        (root, (family(root), root.kind)) for root in tree.roots
    ]
    while stack:
        node, above = stack.pop()
        name, kind = above if node.kind == "attempt" else (family(node), node.kind)
        named += [(name, kind, interval) for interval in own(node)]
        for moment in node.moments:
            if moment.end > moment.start:
                named.append(_pause(moment.kind, moment.name, (moment.start, moment.end)))
        stack.extend((child, (name, kind)) for child in node.children)
    return _summed(named)


def family(item: Node | Moment) -> str:
    """The name that what is alike has in common: spans of other libraries are often numbered."""
    return re.sub(r"\d+", "#", item.name) if item.kind in ("span", "event") else item.name


def _pause(kind: str, text: str, interval: Interval) -> tuple[str, str, Interval]:
    return ("waiting to retry" if kind == "retry" else text, "wait", interval)


def _summed(named: Sequence[tuple[str, str, Interval]]) -> list[Share]:
    changes: dict[int, int] = {}
    for _, _, (start, end) in named:
        changes[start] = changes.get(start, 0) + 1
        changes[end] = changes.get(end, 0) - 1
    times = sorted(changes)
    running = list(accumulate(changes[time] for time in times))
    # spent[i]: seconds that one of several got up to times[i], had it been there all the time.
    steps = [
        (after - before) / count / 1e9 if count else 0.0
        for before, after, count in zip(times, times[1:], running, strict=False)
    ]
    spent = [0.0, *accumulate(steps)]
    sums: dict[tuple[str, str], float] = {}
    for name, kind, (start, end) in named:
        seconds = spent[bisect_left(times, end)] - spent[bisect_left(times, start)]
        sums[name, kind] = sums.get((name, kind), 0.0) + seconds
    shares = [Share(name, kind, seconds) for (name, kind), seconds in sums.items()]
    return sorted(shares, key=lambda share: -share.seconds)


def _united(intervals: Iterable[Interval]) -> list[Interval]:
    united: list[Interval] = []
    for start, end in sorted(intervals):
        if start >= end:
            continue
        if united and start <= united[-1][1]:
            united[-1] = (united[-1][0], max(united[-1][1], end))
        else:
            united.append((start, end))
    return united
