"""Trees of spans as one page: a timeline to look at, search and click through, without a server or a network.

The page shows what it was given as text, never as markup, and its policy lets nothing run or load but what is in it.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from agentrt.errors import ConfigError
from agentrt.telemetry.signals import LogLine, SpanEvent
from agentrt.telemetry.span_tree import Moment, Node, Tree
from agentrt.telemetry.time_shares import own, time_shares

__all__ = ["timeline"]

TEMPLATE = Path(__file__).with_name("timeline.html")


def timeline(trees: Sequence[Tree]) -> str:
    """The page that shows these trees, one at a time; the last is the one to begin with.

    Raises ConfigError if there is none.
    """
    if not trees:
        raise ConfigError("a timeline needs at least one run: there are no spans to draw")
    page = TEMPLATE.read_text(encoding="utf-8")
    # The data comes last: whatever stands in it is not looked at again.
    page = page.replace("%CSP%", _policy(page), 1)
    page = page.replace("%TITLE%", html.escape(trees[-1].title), 1)
    return page.replace("%DATA%", _embedded([_plain(tree) for tree in reversed(trees)]), 1)


def _policy(page: str) -> str:
    """Nothing is loaded from anywhere, and only the page's own script and style are used."""
    script = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    style = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    sources = [
        f"{directive} {' '.join(map(_digest, found))}"
        for directive, found in (("script-src", script), ("style-src", style))
    ]
    return "; ".join(["default-src 'none'", *sources, "base-uri 'none'", "form-action 'none'"])


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _embedded(document: Any) -> str:
    """JSON that cannot end the element it stands in."""
    text = msgspec.json.encode(document, enc_hook=str).decode()
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


# --- what the page gets --------------------------------------------------------------------------------


def _plain(tree: Tree) -> dict[str, Any]:
    nodes = list(tree.nodes())
    counts = {
        "Model calls": sum(node.kind == "model" for node in nodes),
        "Tool calls": sum(node.kind == "tool" for node in nodes),
        "Retries": sum(moment.kind == "retry" for node in nodes for moment in node.moments),
    }
    return {
        "title": tree.title,
        "trace": tree.trace_id,
        "run": tree.run_id,
        "failed": tree.failed,
        "degraded": any(root.is_degraded for root in tree.roots),
        "started": datetime.fromtimestamp(tree.start / 1e9, UTC).isoformat(timespec="milliseconds"),
        "seconds": tree.seconds,
        "counts": {name: count for name, count in counts.items() if count},
        "tokens": tree.tokens,
        "shares": time_shares(tree),
        "rows": _rows(tree),
    }


def _rows(tree: Tree) -> list[dict[str, Any]]:
    origins = {id(node) for node in tree.failures()}
    rows: list[dict[str, Any]] = []
    stack: list[tuple[Node | Moment, int, int]] = [(root, -1, 0) for root in reversed(tree.roots)]
    while stack:
        item, parent, depth = stack.pop()
        at = len(rows)
        row = _span_row(item, tree) if isinstance(item, Node) else _moment_row(item)
        row |= {"parent": parent, "depth": depth, "start": _since(item.start, tree), "length": item.seconds}
        if id(item) in origins:
            row["origin"] = True
        rows.append(row)
        if isinstance(item, Node):
            stack.extend((below, at, depth + 1) for below in reversed(item.items))
    return rows


def _span_row(node: Node, tree: Tree) -> dict[str, Any]:
    shows_target = node.target and not node.target.startswith("tool:") and node.target not in node.name
    row: dict[str, Any] = {
        "kind": node.kind,
        "name": node.name,
        "aside": node.target if shows_target else "",
        "own": [(_since(start, tree), (end - start) / 1e9) for start, end in own(node)],
    }
    optional: dict[str, Any] = {
        "operation": node.kind in ("run", "model", "tool") and " " in node.name,
        "failed": node.failed,
        "unended": node.is_open,
        "degraded": node.is_degraded,
        "attempts": node.attempts,
        "tokens": node.tokens if node.kind != "attempt" else None,
        "remarks": node.remarks,
        "logs": [_log(line, tree) for line in node.logs],
    }
    if node.failed:
        optional |= {
            "error": node.error_type,
            "errorFull": node.attribute("error.type"),
            "message": node.message,
        }
    if node.span is not None:
        shift = node.start - node.span.start_ns
        optional |= {
            "id": node.span.span_id,
            "scope": node.span.scope,
            "attributes": node.span.attributes,
            "events": [_event(event, shift, tree) for event in node.span.events],
        }
    return row | {name: value for name, value in optional.items() if value}


def _moment_row(moment: Moment) -> dict[str, Any]:
    return {
        "kind": moment.kind,
        "name": moment.name,
        "aside": moment.detail,
        "moment": True,
        "own": [],
        "attributes": moment.event.attributes,
    }


def _event(event: SpanEvent, shift: int, tree: Tree) -> dict[str, Any]:
    at = _since(event.time_ns + shift, tree)
    return {"at": at, "name": event.name, "attributes": event.attributes}


def _log(line: LogLine, tree: Tree) -> dict[str, Any]:
    kept = {"at": _since(line.time_ns, tree), "level": line.level, "message": line.message}
    return kept | {"attributes": line.attributes, "exception": line.exception}


def _since(time_ns: int, tree: Tree) -> float:
    return round((time_ns - tree.start) / 1e9, 9)
