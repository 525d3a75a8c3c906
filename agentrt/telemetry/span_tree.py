"""Spans as the tree that people look at: calls below runs, attempts below calls, and between them what was waited for.

Whatever comes is shown: spans whose parents are missing, several roots, parents in a circle, clocks that disagree.
What was mended stands in the remarks of a node.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from msgspec import Struct, field

from agentrt.telemetry.signals import LogLine, Span, SpanEvent

__all__ = ["Moment", "MomentKind", "Node", "NodeKind", "Tree", "build_trees"]

NodeKind = Literal["run", "model", "tool", "memory", "secret", "call", "attempt", "span", "missing"]
MomentKind = Literal["retry", "wait", "circuit", "refused", "fallback", "default", "event"]

_OPERATIONS: dict[str, NodeKind] = {
    "invoke_agent": "run",
    "chat": "model",
    "execute_tool": "tool",
    "search_memory": "memory",
}
_KINDS: dict[str, NodeKind] = {
    "run": "run",
    "agent": "run",
    "model": "model",
    "tool": "tool",
    "memory": "memory",
    "secret": "secret",
    "call": "call",
    "attempt": "attempt",
}
_MOMENTS: dict[str, MomentKind] = {
    "retry": "retry",
    "wait": "wait",
    "circuit": "circuit",
    "refused": "refused",
    "fallback": "fallback",
    "default served": "default",
}
_ATTEMPT = re.compile(r"attempt \d+$")

RUN_ID = "agentrt.run.id"
COMPARED = 200
"""Characters of a message that tell one error from another: a longer one is perhaps cut."""
TOLERANCE_NS = 1_000_000
"""A child may begin this much before its parent without a word: clocks are read one after the other."""


class Moment(Struct, frozen=True, eq=False):
    """What happened at one moment of a span, or while it waited. Nanoseconds since the epoch.

    `name` says what it was, `detail` to whom and why.
    """

    kind: MomentKind
    start: int
    end: int
    name: str
    detail: str
    event: SpanEvent

    @property
    def seconds(self) -> float:
        return (self.end - self.start) / 1e9


class Node(Struct, eq=False):
    """A span in its tree. `span` is None for a parent that others name and nobody has.

    `start`, `end`: nanoseconds since the epoch, as they are drawn. `items`: children and moments in order of time.
    `is_open`: it has not ended. `remarks`: what was mended, in words.
    """

    span: Span | None
    name: str
    kind: NodeKind
    start: int
    end: int
    items: list[Node | Moment] = field(default_factory=list[Any])
    logs: list[LogLine] = field(default_factory=list[LogLine])
    remarks: list[str] = field(default_factory=list[str])
    is_open: bool = False

    @property
    def children(self) -> list[Node]:
        return [item for item in self.items if isinstance(item, Node)]

    @property
    def moments(self) -> list[Moment]:
        return [item for item in self.items if isinstance(item, Moment)]

    @property
    def seconds(self) -> float:
        return (self.end - self.start) / 1e9

    @property
    def failed(self) -> bool:
        return self.span is not None and self.span.status == "error"

    @property
    def error_type(self) -> str:
        """The class of its error without the module, or ""."""
        return "" if self.span is None else _error_type(self.span.attributes)

    @property
    def message(self) -> str:
        """What its error says, or ""."""
        if self.span is None:
            return ""
        if self.span.message:
            return self.span.message
        for event in self.span.events:
            if event.name == "exception":
                return str(event.attributes.get("exception.message", ""))
        return ""

    @property
    def began_here(self) -> bool:
        """Whether it failed by an error of its own: one that did not come up from a child that failed. Without a
        traceback that could say so, what failed below is taken to be why."""
        failed = [child for child in self.children if child.failed]
        if not self.failed or not failed:
            return self.failed
        traceback = self._traceback
        return bool(traceback) and not any(_came_up(child, self, traceback) for child in failed)

    @property
    def _traceback(self) -> str:
        """Of its last exception, with those that it came from."""
        events = () if self.span is None else self.span.events
        found = [
            event.attributes.get("exception.stacktrace", "") for event in events if event.name == "exception"
        ]
        return str(found[-1]) if found else ""

    @property
    def tokens(self) -> tuple[int, int] | None:
        """Input and output tokens, if it says and there were any."""
        got = self.attribute("gen_ai.usage.input_tokens"), self.attribute("gen_ai.usage.output_tokens")
        read, written = (count if isinstance(count, int) else 0 for count in got)
        return (read, written) if read or written else None

    @property
    def attempts(self) -> int:
        """How many attempts were made, where that is known; else 0."""
        count = self.attribute("agentrt.attempts")
        if isinstance(count, int):
            return count
        return sum(child.kind == "attempt" for child in self.children)

    @property
    def is_degraded(self) -> bool:
        return self.attribute("agentrt.degraded") is True

    @property
    def target(self) -> str:
        target = self.attribute("agentrt.target")
        return target if isinstance(target, str) else ""

    @property
    def run_id(self) -> str:
        run = self.attribute(RUN_ID)
        return run if isinstance(run, str) else ""

    def attribute(self, name: str) -> Any:
        return None if self.span is None else self.span.attributes.get(name)

    def walk(self) -> Iterator[Node]:
        """This node and everything below, parents first, in the order of drawing."""
        stack: list[Node] = [self]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(reversed(node.children))


class Tree(Struct, eq=False):
    """One trace, or a part of one. `roots` in order of time; `start`, `end`: nanoseconds since the epoch."""

    trace_id: str
    roots: list[Node]
    start: int
    end: int

    @classmethod
    def of(cls, *roots: Node) -> Tree:
        """The tree of these nodes, with all that is below."""
        nodes = [node for root in roots for node in root.walk()]
        trace = next((node.span.trace_id for node in nodes if node.span is not None), "")
        return cls(trace, list(roots), min(n.start for n in nodes), max(n.end for n in nodes))

    @property
    def seconds(self) -> float:
        return (self.end - self.start) / 1e9

    def nodes(self) -> Iterator[Node]:
        """Every node, parents first, in the order of drawing."""
        for root in self.roots:
            yield from root.walk()

    @property
    def failed(self) -> bool:
        return any(root.failed for root in self.roots)

    @property
    def title(self) -> str:
        """What it is called: by its agent if there is one."""
        first = self.roots[0]
        agent = first.attribute("gen_ai.agent.name")
        return agent if isinstance(agent, str) and agent else first.name

    @property
    def run_id(self) -> str:
        return self.roots[0].run_id

    @property
    def tokens(self) -> tuple[int, int] | None:
        """Tokens of all roots: as they say themselves, else the sum of the model calls below."""
        known = [root.tokens for root in self.roots]
        if not all(known):
            known = [node.tokens for node in self.nodes() if node.kind == "model"]
        counts = [tokens for tokens in known if tokens is not None]
        return (sum(c[0] for c in counts), sum(c[1] for c in counts)) if counts else None

    def failures(self) -> list[Node]:
        """Where errors began. Failed attempts of a call that came right in the end are no failures."""
        found: list[Node] = []
        stack: list[tuple[Node, bool]] = [(root, True) for root in reversed(self.roots)]
        while stack:
            node, parent_failed = stack.pop()
            if node.began_here and (parent_failed or node.kind != "attempt"):
                found.append(node)
            stack.extend((child, node.failed) for child in reversed(node.children))
        return found


def _came_up(child: Node, node: Node, traceback: str) -> bool:
    """Whether the error of `child` is that of `node`, or one that it was raised from or in the handling of."""
    if (child.error_type, child.message) == (node.error_type, node.message):
        return True
    if not child.message:
        return child.error_type in traceback
    return f"{child.error_type}: {child.message[:COMPARED]}" in traceback


def build_trees(spans: Iterable[Span], logs: Iterable[LogLine] = ()) -> list[Tree]:
    """One tree for each trace among `spans`, in order of time, each with its log lines at the spans that wrote them (or
    at the run, if only that is known).

    A span that comes twice counts once, as it came last.
    """
    traces: dict[str, dict[str, Span]] = {}
    for span in spans:
        traces.setdefault(span.trace_id, {})[span.span_id] = span
    lines: dict[tuple[str, ...], list[LogLine]] = {}
    for line in logs:
        if line.trace_id is not None and line.span_id is not None:
            lines.setdefault((line.trace_id, line.span_id), []).append(line)
        elif RUN_ID in line.attributes:
            lines.setdefault((str(line.attributes[RUN_ID]),), []).append(line)
    trees = [_tree(list(found.values()), lines) for found in traces.values()]
    return sorted(trees, key=lambda tree: tree.start)


def _tree(spans: Sequence[Span], lines: dict[tuple[str, ...], list[LogLine]]) -> Tree:
    nodes = {span.span_id: _node(span) for span in sorted(spans, key=lambda span: span.start_ns)}
    children: dict[str, list[Node]] = {}
    roots: list[Node] = []
    orphans: dict[str, list[Node]] = {}
    for node in nodes.values():
        assert node.span is not None
        parent = node.span.parent_id
        if not parent:
            roots.append(node)
        elif parent in nodes:
            children.setdefault(parent, []).append(node)
        else:
            orphans.setdefault(parent, []).append(node)
    roots += [_without_parent(parent, found) for parent, found in orphans.items()]
    order = _attach(roots, nodes, children)
    end = max(node.end for node in order)
    for node in order:
        if node.is_open:
            node.end = max(node.start, end)
        if node.span is not None:
            found = list(lines.get((node.span.trace_id, node.span.span_id), ()))
            if node.kind == "run":  # what was written in its run, but in no span
                found += lines.get((node.run_id,), ())
            node.logs = sorted(found, key=lambda line: line.time_ns)
    for node in order:
        _fill(node)
    return Tree.of(*sorted(roots, key=lambda root: root.start))


def _node(span: Span) -> Node:
    is_open = span.end_ns <= 0
    node = Node(span, span.name, _kind(span), span.start_ns, max(span.start_ns, span.end_ns), is_open=is_open)
    if is_open:
        node.remarks.append("has not ended")
    elif span.end_ns < span.start_ns:
        node.remarks.append("ends before it begins: the clock was set back meanwhile")
    return node


def _kind(span: Span) -> NodeKind:
    attributes = span.attributes
    if "agentrt.attempt.number" in attributes or (
        span.scope.startswith("agentrt") and _ATTEMPT.match(span.name)
    ):
        return "attempt"
    for known, name in ((_OPERATIONS, "gen_ai.operation.name"), (_KINDS, "agentrt.kind")):
        found = known.get(str(attributes.get(name)))
        if found is not None:
            return found
    return "call" if "agentrt.kind" in attributes else "span"


def _without_parent(parent: str, found: list[Node]) -> Node:
    """A root for spans whose parent is not there: in another process, or lost."""
    if len(found) == 1:
        found[0].remarks.append(f"its parent, span {parent}, is not among the spans")
        return found[0]
    start, end = min(node.start for node in found), max(node.end for node in found)
    made = Node(None, f"span {parent}", "missing", start, end)
    made.remarks.append("not among the spans; drawn as long as what is below it")
    made.items.extend(found)
    return made


def _attach(roots: list[Node], nodes: dict[str, Node], children: dict[str, list[Node]]) -> list[Node]:
    """Put children below their parents; returns all nodes, parents first. A circle is cut at its earliest span, which
    joins `roots`. A child that begins before its parent is moved, with all that is below: no clock is that right."""
    order: list[Node] = []
    seen: set[int] = set()
    shifts: dict[int, int] = {}

    def visit(root: Node) -> None:
        stack = [root]
        while stack:
            node = stack.pop()
            seen.add(id(node))
            order.append(node)
            below = children.get(node.span.span_id, []) if node.span is not None else node.children
            below = [child for child in below if id(child) not in seen]
            if node.span is not None:
                node.items.extend(below)
            for child in below:
                seen.add(id(child))
                _shift(child, node, shifts)
            stack.extend(below)

    for root in roots:
        visit(root)
    for node in nodes.values():
        if id(node) not in seen:
            node.remarks.append("its parents form a circle, cut here")
            roots.append(node)
            visit(node)
    return order


def _shift(child: Node, parent: Node, shifts: dict[int, int]) -> None:
    shift = shifts.get(id(parent), 0)
    early = parent.start - (child.start + shift)
    if early > 0:
        shift += early
        if early > TOLERANCE_NS:
            seconds = early / 1e9
            child.remarks.append(f"drawn {seconds:.3g} s later: its clock was behind its parent's")
    if shift:
        shifts[id(child)] = shift
        child.start += shift
        child.end += shift


# --- moments -------------------------------------------------------------------------------------------


def _fill(node: Node) -> None:
    """Put the moments among the children, all in order of time. At the same time what happened comes before what
    began because of it."""
    attempts = [child for child in node.children if child.kind == "attempt" and child.target]
    if len({attempt.target for attempt in attempts}) > 1:  # which one it was is what one wants to know
        for attempt in attempts:
            attempt.name = f"{attempt.name} {attempt.target}"
    if node.span is not None:
        node.items.extend(_moments(node))
    node.items.sort(key=lambda item: (item.start, isinstance(item, Node)))


def _moments(node: Node) -> list[Moment]:
    assert node.span is not None
    shift = node.start - node.span.start_ns
    moments: list[Moment] = []
    for event in node.span.events:
        if event.name == "exception" or event.name.startswith("gen_ai."):
            continue  # an error is shown as one, and content only in the details
        moment = _moment(event, node, shift)
        before = moments[-1] if moments else None
        if before is not None and before.kind == "retry" and _is_pause(event):
            # What retry announced and that it waited is one thing; how long it really was, the second one knows.
            times = moment.start, moment.end
            moments[-1] = Moment("retry", *times, before.name, before.detail, before.event)
        else:
            moments.append(moment)
    return moments


def _is_pause(event: SpanEvent) -> bool:
    return event.name == "wait" and event.attributes.get("agentrt.stage") == "retry"


def _moment(event: SpanEvent, node: Node, shift: int) -> Moment:
    kind = _MOMENTS.get(event.name, "event")
    seconds = event.attributes.get({"retry": "agentrt.delay", "wait": "agentrt.seconds"}.get(kind, ""))
    length = int(seconds * 1e9) if isinstance(seconds, int | float) and seconds > 0 else 0
    start = event.time_ns + shift
    if start + length > node.end + TOLERANCE_NS and start - length >= node.start:
        start -= length  # noted when it was over
    end = max(start, min(start + length, node.end))
    return Moment(kind, start, end, _moment_name(kind, event), _moment_detail(kind, event), event)


def _moment_name(kind: MomentKind, event: SpanEvent) -> str:
    attributes = event.attributes
    stage = str(attributes.get("agentrt.stage", ""))
    match kind:
        case "wait":
            return f"wait for {stage}" if stage else "wait"
        case "circuit":
            old, new = attributes.get("agentrt.circuit.old"), attributes.get("agentrt.circuit.new")
            return f"circuit {old} → {new}" if old and new else f"circuit {new or old or 'changed'}"
        case "refused":
            return f"refused by {stage}" if stage else "refused"
        case _:
            return event.name


def _moment_detail(kind: MomentKind, event: SpanEvent) -> str:
    attributes = event.attributes
    target, error = str(attributes.get("agentrt.target", "")), _error_type(attributes)
    match kind:
        case "retry" | "refused" | "default":
            return error
        case "fallback":
            return (f"to {target}" if target else "") + (f" after {error}" if error else "")
        case "circuit":
            return target
        case "wait" | "event":
            return ""


def _error_type(attributes: dict[str, Any]) -> str:
    return str(attributes.get("error.type", "")).rpartition(".")[2]
