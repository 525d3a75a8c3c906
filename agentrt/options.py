"""Checks for options: the message has the option's name, its range and the given value."""

from __future__ import annotations

import math
from collections.abc import Collection

from agentrt.errors import ConfigError

__all__ = ["choice", "count", "error_test", "fraction", "number", "seconds", "text"]


def seconds(name: str, value: float, *, minimum: float = 0.0, open_: bool = True) -> float:
    """A finite duration above (`open_`) or at least `minimum`."""
    if not _is_number(value) or not math.isfinite(value) or value < minimum or (open_ and value == minimum):
        above = "more than" if open_ else "at least"
        raise ConfigError(f"{name} must be a number of seconds {above} {minimum:g}, not {value!r}")
    return float(value)


def number(
    name: str, value: float, *, minimum: float = 0.0, maximum: float = math.inf, open_: bool = False
) -> float:
    """A finite number above (`open_`) or from `minimum`, up to `maximum`."""
    fits = _is_number(value) and math.isfinite(value) and minimum <= value <= maximum
    if not fits or (open_ and value == minimum):
        if maximum < math.inf:
            allowed = f"from {minimum:g} to {maximum:g}"
        else:
            allowed = f"{'more than' if open_ else 'of at least'} {minimum:g}"
        raise ConfigError(f"{name} must be a number {allowed}, not {value!r}")
    return float(value)


def fraction(name: str, value: float) -> float:
    """A rate above 0 and up to 1."""
    if not _is_number(value) or not 0.0 < value <= 1.0:
        raise ConfigError(f"{name} must be more than 0 and at most 1, not {value!r}")
    return float(value)


def count(name: str, value: int, *, minimum: int = 1) -> int:
    """A whole number of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigError(f"{name} must be a whole number of at least {minimum}, not {value!r}")
    return value


def text(name: str, value: str) -> str:
    """A string with something in it."""
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{name} must be a name, not {value!r}")
    return value


def choice(name: str, value: str, allowed: Collection[str]) -> str:
    """One of a few names."""
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}")
    return value


def error_test(name: str, value: object) -> None:
    """Exception types, or a function of the error, or None."""
    types = value if isinstance(value, tuple) else (value,)
    if value is None or (not isinstance(value, type | tuple) and callable(value)):
        return
    if not types or not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in types):
        raise ConfigError(f"{name} must be exception types or a function of the error, not {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
