"""The option `signals` of a backend."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from agentrt import options
from agentrt.errors import ConfigError
from agentrt.telemetry.signals import Signal

__all__ = ["SIGNALS", "wanted"]

SIGNALS: tuple[Signal, ...] = ("spans", "metrics", "logs")


def wanted(signals: Iterable[str]) -> tuple[Signal, ...]:
    """`signals`, checked: some of "spans", "metrics", "logs". Raises ConfigError."""
    names = (signals,) if isinstance(signals, str) else tuple(signals)
    for name in names:
        options.choice("signals", name, SIGNALS)
    if not names:
        raise ConfigError(f"signals must be some of {', '.join(map(repr, SIGNALS))}, not none of them")
    return tuple(dict.fromkeys(cast("tuple[Signal, ...]", names)))
