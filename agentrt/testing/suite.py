"""What the suites for authors of plugins have in common: tests that need more than the author gave are left out."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from agentrt.decode import options_of

__all__ = ["Suite", "check", "check_options", "needs"]

Test = TypeVar("Test", bound=Callable[..., None])


def needs(*hooks: str) -> Callable[[Test], Test]:
    """A test for classes that have these methods of their own."""

    def mark(test: Test) -> Test:
        test.needs = hooks  # type: ignore[attr-defined]
        return test

    return mark


class Suite:
    """Base of a suite. The class directly below it has the tests and empty hooks; authors write the classes below."""

    _left_out: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        suite = cls.__mro__[cls.__mro__.index(Suite) - 1]
        if suite is cls:
            return
        left_out = set(cls._left_out)
        for name, test in vars(suite).items():
            needed = getattr(test, "needs", ())
            if not needed or name in vars(cls):
                continue
            if any(getattr(cls, hook) is getattr(suite, hook) for hook in needed):
                left_out.add(name)
                setattr(cls, name, None)
            elif name in left_out:  # this class has what the one above it had not
                left_out.discard(name)
                setattr(cls, name, test)
        cls._left_out = frozenset(left_out)


def check_options(kind: type) -> None:
    """Raises AssertionError if the constructor's options cannot be written in a table."""
    options = options_of(kind)
    constructor: Any = getattr(kind, "__init__")  # noqa: B009 - mypy minds `kind.__init__`
    if constructor is object.__init__:
        return  # it has none
    for parameter in list(inspect.signature(constructor).parameters.values())[1:]:
        where = f"{kind.__name__}: the parameter {parameter.name!r}"
        check(
            parameter.kind is parameter.KEYWORD_ONLY,
            f"{where} must be keyword-only and of its own name: put `*` before the options",
        )
        check(parameter.annotation is not parameter.empty, f"{where} needs an annotation to be decoded by")
        check(
            parameter.name in options or parameter.default is not parameter.empty,
            f"{where}, {parameter.annotation!r}, cannot be written in a file: give it a default or another type",
        )


def check(fine: bool, problem: str) -> None:
    """Raises AssertionError with `problem` unless `fine`."""
    if not fine:
        raise AssertionError(problem)
