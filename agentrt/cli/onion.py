"""The onion of one kind of call, as a drawing and as JSON.

model calls · at most 180 s in all · may be repeated
╭─ telemetry
│ ╭─ retry      max_attempts 5  ← agentrt.toml:3
│ │             backoff exponential · initial_delay 1 s
│ │ ╭─ timeout  attempt 60 s
│ │ │ ▶ openai:gpt-5-mini
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any, Self

import msgspec
from msgspec import Struct

from agentrt.cli.terminal import Style, Terminal

__all__ = ["Onion", "Option", "Pen", "Stage", "as_json", "draw"]


_SECONDS = frozenset(
    {
        "attempt",
        "first_item",
        "idle",
        "window",
        "window_seconds",
        "reset_timeout",
        "slow_call",
        "max_half_open_wait",
        "initial_delay",
        "max_delay",
        "max_retry_after",
        "max_wait",
        "per",
        "deadline",
    }
)
"""Options that are durations."""


class Option(Struct, frozen=True, eq=False):
    """One option: its value, and where it was set."""

    name: str
    value: Any
    source: str

    @property
    def text(self) -> str:
        """The value as it is drawn, with its unit."""
        return _shown(self.value, unit=" s" if self.name in _SECONDS else "")

    @property
    def is_default(self) -> bool:
        return self.source == "default"


class Stage(Struct, frozen=True, eq=False):
    """A stage that is on. `remark`: why it does nothing, or where the user's own stage was placed."""

    name: str
    options: list[Option]
    remark: str = ""
    does_something: bool = True


class Onion(Struct, frozen=True, eq=False):
    """What one kind of call goes through. `labels`: what it is for; `stages`: from the outermost to the call."""

    labels: list[str]
    kind: str
    targets: list[str]
    idempotent: bool
    deadline: Option
    stages: list[Stage]


class Strokes(Struct, frozen=True):
    """The characters of a drawing."""

    begin: str = "╭─ "
    bar: str = "│ "
    call: str = "▶ "
    dot: str = " · "
    source: str = "  ← "
    then: str = " → "


ASCII = Strokes(begin=".- ", bar="| ", call="> ", dot=", ", source="  <- ", then=" -> ")


class Pen(Struct, frozen=True, eq=False):
    """How to draw: characters, colours, and columns to fill."""

    strokes: Strokes
    width: int
    terminal: Terminal | None = None

    @classmethod
    def plain(cls) -> Self:
        """A pen that draws the same everywhere."""
        return cls(ASCII, 100)

    @classmethod
    def of(cls, terminal: Terminal, *, width: int) -> Self:
        """A pen with what the stdout of `terminal` can show."""
        strokes = Strokes()
        fits = terminal.can_show("".join(getattr(strokes, field) for field in Strokes.__struct_fields__))
        return cls(strokes if fits else ASCII, width, terminal)

    def bold(self, text: str) -> str:
        return self._styled(text, "bold")

    def dim(self, text: str) -> str:
        return self._styled(text, "dim")

    def colour(self, text: str) -> str:
        return self._styled(text, "cyan")

    def _styled(self, text: str, style: Style) -> str:
        return text if self.terminal is None else self.terminal.style(text, style, out=True)


# --- drawing -------------------------------------------------------------------------------------------

GAP = 2
NAMES = {
    "memory": "the memory store",
    "secret": "the secrets provider",
    "call": "your function",
}
TITLES = {
    "model": "model calls",
    "memory": "memory calls",
    "secret": "secret calls",
    "call": "calls of your own (ctx.call)",
}


def draw(onion: Onion, pen: Pen) -> list[str]:
    """The lines of a drawing: a title, the stages from the outermost inwards, the call."""
    strokes = pen.strokes
    lines = [_title(onion, pen)]
    margin = max((_indent(depth, stage) for depth, stage in enumerate(onion.stages)), default=0) + GAP
    for depth, stage in enumerate(onion.stages):
        head = strokes.bar * depth + strokes.begin
        name = pen.bold(stage.name) if stage.does_something else pen.dim(stage.name)
        drawn = pen.dim(head) + name + " " * (margin - len(head) - len(stage.name))
        rest = strokes.bar * (depth + 1)
        for line in _stage_lines(stage, pen, pen.width - margin) or [""]:
            lines.append((drawn + line).rstrip())
            drawn = pen.dim(rest) + " " * (margin - len(rest))
    lines.append(pen.dim(strokes.bar * len(onion.stages)) + strokes.call + _call(onion, pen))
    return lines


def _indent(depth: int, stage: Stage) -> int:
    return len(Strokes().bar) * depth + len(Strokes().begin) + len(stage.name)


def _title(onion: Onion, pen: Pen) -> str:
    title = TITLES.get(onion.kind, "")
    if onion.kind == "tool":
        title = f"{'tool' if len(onion.labels) == 1 else 'tools'} {', '.join(onion.labels)}"
    limit = "no limit in all" if onion.deadline.value is None else f"at most {onion.deadline.text} in all"
    if not onion.deadline.is_default:
        limit += pen.colour(f"{pen.strokes.source}{onion.deadline.source}")
    again = "may be repeated" if onion.idempotent else "repeated only if nothing was done"
    return pen.strokes.dot.join([pen.bold(title), limit, again])


def _call(onion: Onion, pen: Pen) -> str:
    if onion.kind == "model":
        return pen.bold(pen.strokes.then.join(onion.targets))
    if onion.kind == "tool":
        return pen.bold(", ".join(f"{label}()" for label in onion.labels))
    return pen.bold(NAMES.get(onion.kind, onion.kind))


def _stage_lines(stage: Stage, pen: Pen, width: int) -> list[str]:
    """What was set, each on a line with its source; then the defaults, as many to a line as fit."""
    lines = [pen.dim(stage.remark)] if stage.remark else []
    for option in stage.options:
        if not option.is_default:
            source = pen.colour(f"{pen.strokes.source}{option.source}")
            lines.append(f"{option.name} {pen.bold(option.text)}{source}")
    defaults = [f"{option.name} {option.text}" for option in stage.options if option.is_default]
    return lines + [pen.dim(line) for line in _filled(defaults, pen.strokes.dot, width)]


def _filled(items: Iterable[str], separator: str, width: int) -> list[str]:
    lines: list[str] = []
    for item in items:
        if lines and len(lines[-1]) + len(separator) + len(item) <= width:
            lines[-1] += separator + item
        else:
            lines.append(item)
    return lines


def _shown(value: Any, *, unit: str = "") -> str:
    if value is None:
        return "off"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:g}{unit}"
    if isinstance(value, list | tuple | set | frozenset):
        return ", ".join(_shown(item) for item in value) or "none"
    if inspect.isclass(value) or inspect.isroutine(value):
        return str(value.__qualname__)
    return value if isinstance(value, str) else repr(value)


# --- JSON ----------------------------------------------------------------------------------------------


def as_json(onions: Sequence[Onion], *, agent: str, target: str) -> str:
    """The same as a JSON document."""
    document = {"agent": agent, "target": target, "calls": [_plain(onion) for onion in onions]}
    return msgspec.json.format(msgspec.json.encode(document, enc_hook=_shown), indent=2).decode()


def _plain(onion: Onion) -> dict[str, Any]:
    return {
        "kind": onion.kind,
        "names": onion.labels,
        "targets": onion.targets,
        "idempotent": onion.idempotent,
        "deadline_seconds": onion.deadline.value,
        "deadline_source": onion.deadline.source,
        "stages": [
            {
                "name": stage.name,
                "remark": stage.remark,
                "options": {o.name: {"value": o.value, "source": o.source} for o in stage.options},
            }
            for stage in onion.stages
        ],
    }
