"""What a function must be to become a tool, and what is found out about it when it does."""

from __future__ import annotations

import inspect
import os
import re
from types import FrameType
from typing import Any, Literal

from agentrt.errors import ConfigError

__all__ = ["check_callable", "checked_name", "place", "scope_of", "unwrap"]

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def unwrap(function: Any) -> tuple[Any, Literal["instance", "class"] | None]:
    """The plain function, and what `__get__` binds it to."""
    if isinstance(function, staticmethod):
        return function.__func__, None
    if isinstance(function, classmethod):
        return function.__func__, "class"
    return function, "instance" if inspect.isfunction(function) and _takes_instance(function) else None


def checked_name(name: str | None, function: Any) -> str:
    chosen = getattr(function, "__name__", type(function).__name__) if name is None else name
    if not isinstance(chosen, str) or not _NAME.fullmatch(chosen):
        raise ConfigError(
            f"a tool cannot be named {chosen!r}; model providers take 1 to 64 of the characters a-z, A-Z, 0-9, _ "
            "and -. Give another by @tool(name=...)"
        )
    return chosen


def check_callable(function: Any, name: str) -> None:
    if not inspect.isfunction(function) and not inspect.ismethod(function):
        kind = "class" if isinstance(function, type) else type(function).__name__
        raise ConfigError(f"{function!r} is a {kind}; a tool is a function or a method: write one around it")
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise ConfigError(
            f"tool {name!r} is a generator, but a model takes one result; collect the items and return a list or text"
        )


def scope_of(frame: FrameType | None, function: Any) -> dict[str, Any]:
    """The names visible where a function is decorated, innermost first: class body, then enclosing functions."""
    plain = inspect.unwrap(getattr(function, "__func__", function))
    module = getattr(plain, "__globals__", None)
    scope: dict[str, Any] = {}
    while frame is not None and frame.f_globals is module and frame.f_locals is not frame.f_globals:
        scope = {**frame.f_locals, **scope}
        frame = frame.f_back
    return scope


def place(function: Any) -> str:
    """ "agents.py:12: ", where a plain function is defined; nothing for what is none."""
    code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
    if code is None:
        return ""
    relative = os.path.relpath(code.co_filename)
    file = code.co_filename if relative.startswith(os.pardir) else relative
    return f"{file}:{code.co_firstlineno}: "


def _takes_instance(function: Any) -> bool:
    """True for a function defined in a class body whose first parameter is `self` or `cls`."""
    where = function.__qualname__.rpartition(".")[0]
    if not where or where.endswith("<locals>"):
        return False
    names = list(inspect.signature(function).parameters)
    return bool(names) and names[0] in ("self", "cls")
