"""What counts as an agent, and how it is run.

Hosted without change: a class or instance with `async def run(self, message)` (or an async generator), an async
function, an async generator function, a factory that makes one of these. A parameter named `ctx` or `context`, or
annotated with `Context`, gets the context; its place does not matter.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import typing
from collections.abc import AsyncIterator, Callable
from typing import Any

from agentrt.agent import Agent, check_attributes
from agentrt.call import ENCLOSING, RUN
from agentrt.context import Context
from agentrt.errors import ConfigError
from agentrt.events import TextDelta
from agentrt.tools import Tool

__all__ = ["Hosted", "Stay", "host"]

CONTEXT_NAMES = ("ctx", "context")


class Hosted:
    """An agent that is ready to run.

    `subject`: the user's object. `name`: what it is called. `per_run`: it serves one run only. `is_managed`: it has
    `__aenter__` and `__aexit__`.
    """

    def __init__(self, subject: Any, run: Callable[..., Any], name: str) -> None:
        self.subject = subject
        self.name = name
        self._run = run
        self._context = _context_parameter(run)
        _check_signature(run, self._context, name)
        self.streams = inspect.isasyncgenfunction(_function(run))
        self.per_run = getattr(subject, "scope", "process") == "run"
        self.is_managed = hasattr(subject, "__aenter__") and not inspect.isclass(subject)
        self._again: Callable[[], Hosted] | None = None
        self._is_taken = False

    def for_run(self) -> Hosted:
        """What serves the next run: this one, but another for each run of an agent that serves one only."""
        if not self.per_run or self._again is None:
            return self
        if self._is_taken:
            return self._again()
        self._is_taken = True
        return self

    async def run(self, message: Any, ctx: Context) -> Any:
        """The agent's output. What an async generator yields is its output: joined if it is text, else a list."""
        arguments = {} if self._context is None else {self._context: ctx}
        produced = self._run(message, **arguments)
        if self.streams or hasattr(produced, "__aiter__"):
            return await _consume(produced, ctx)
        output = await produced
        if inspect.isawaitable(output):
            if inspect.iscoroutine(output):
                output.close()
            raise TypeError(f"{self.name} returned something to await; did it forget `await`?")
        return output


class Stay:
    """Keeps a managed agent entered, from `entered` to `leave`.

    It is entered and left in one task, as task groups and cancel scopes want it, and outside any run: the run that
    happens to be first may end or be cancelled without taking the agent from the others.
    """

    def __init__(self, subject: Any) -> None:
        self._leave = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._is_entered: asyncio.Future[None] = loop.create_future()
        context = contextvars.copy_context()
        context.run(_leave_the_run)
        self._task = loop.create_task(self._stay(subject), name=f"stay {_label(subject)}", context=context)

    async def entered(self) -> None:
        """Wait until the agent is entered; raises what its `__aenter__` raised."""
        if not self._is_entered.done():
            await asyncio.wait([self._is_entered])
        self._is_entered.result()

    async def leave(self) -> None:
        """Leave it, or stop entering it; raises what its `__aexit__` raised."""
        self._leave.set()
        if not self._is_entered.done():
            self._task.cancel()
        try:
            await asyncio.wait([self._task])
        except asyncio.CancelledError:
            self._task.cancel()
            await asyncio.wait([self._task])
            raise
        if not self._task.cancelled():
            self._task.result()

    async def _stay(self, subject: Any) -> None:
        try:
            async with subject:
                self._is_entered.set_result(None)
                await self._leave.wait()
        except BaseException as error:
            if self._is_entered.done():
                raise
            if isinstance(error, asyncio.CancelledError):
                error = ConfigError(f"{_label(subject)} was not entered: the runtime is closed")
            self._is_entered.set_exception(error)
            self._is_entered.exception()  # seen: nobody may be waiting any more


def _leave_the_run() -> None:
    RUN.set(None)
    ENCLOSING.set(None)


def host(subject: Any, *, name: str | None = None, factory: bool = False) -> Hosted:
    """Make `subject` ready to run. `factory`: it is a function that makes the agent."""
    hosted = _host(_made_by(subject) if factory else subject, name)
    if isinstance(hosted.subject, Agent):
        check_attributes(hosted.subject)
    hosted._again = functools.partial(host, subject, name=name, factory=factory)
    return hosted


def _host(subject: Any, name: str | None) -> Hosted:
    # First: from Python 3.12 on a tool counts as the async function that it is made of.
    if isinstance(subject, Tool):
        raise ConfigError(
            f"{_label(subject)} is a tool, not an agent; put it into `tools` of an Agent, and name that one"
        )
    if inspect.isclass(subject):
        return _host_class(subject, name)
    if inspect.iscoroutinefunction(subject) or inspect.isasyncgenfunction(subject):
        return Hosted(subject, subject, name or subject.__name__)
    run = getattr(subject, "run", None)
    if run is not None:
        return Hosted(subject, _checked_run(run, subject), name or type(subject).__name__)
    if inspect.isroutine(subject):
        if _required_parameters(subject):
            raise ConfigError(
                f"{_label(subject)} is a plain function with parameters; an agent is an async function "
                "(`async def`), or a class with `async def run(self, message)`"
            )
        return host(_made_by(subject), name=name)
    raise ConfigError(
        f"{_label(subject)} is not an agent: it needs `async def run(self, message)`; "
        "an async function or async generator will do as well"
    )


def _host_class(subject: type[Any], name: str | None) -> Hosted:
    if not hasattr(subject, "run"):
        close = [
            attr for attr in vars(subject) if attr.lower() in ("run_", "_run", "arun", "execute", "call")
        ]
        hint = f" (it has {close[0]!r})" if close else ""
        raise ConfigError(
            f"the class {subject.__qualname__} has no method `run`{hint}; "
            "an agent needs `async def run(self, message)`"
        )
    _checked_run(subject.run, subject)
    required = _required_parameters(subject)
    if required:
        raise ConfigError(
            f"the class {subject.__qualname__} cannot be made without arguments ({', '.join(required)}); "
            "give an instance, or a factory with --factory"
        )
    instance = subject()
    return Hosted(instance, instance.run, name or subject.__name__)


def _made_by(factory: Any) -> Any:
    if not callable(factory):
        raise ConfigError(f"--factory needs a function that makes the agent, not {_label(factory)}")
    made = factory()
    if inspect.isawaitable(made):
        close = getattr(made, "close", None)
        if close is not None:
            close()
        raise ConfigError(f"the factory {_label(factory)} must not be async")
    if inspect.isroutine(made) and not (
        inspect.iscoroutinefunction(made) or inspect.isasyncgenfunction(made)
    ):
        raise ConfigError(f"the factory {_label(factory)} made another plain function, not an agent")
    return made


def _checked_run(run: Any, subject: Any) -> Callable[..., Any]:
    function = _function(run)
    if not callable(run):
        raise ConfigError(f"`run` of {_label(subject)} is not a method but {type(run).__name__}")
    if not (inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)):
        raise ConfigError(
            f"`run` of {_label(subject)} must be async: `async def run(self, message)`; "
            "it would hold up every other run otherwise"
        )
    checked: Callable[..., Any] = run
    return checked


def _context_parameter(run: Callable[..., Any]) -> str | None:
    parameters = inspect.signature(run).parameters
    for name in CONTEXT_NAMES:
        if name in parameters:
            return name
    try:
        hints = typing.get_type_hints(_function(run))
    except Exception:  # an annotation that cannot be resolved is the user's own affair
        hints = {}
    return next((name for name in parameters if hints.get(name) is Context), None)


def _check_signature(run: Callable[..., Any], context: str | None, name: str) -> None:
    required = [parameter for parameter in _required_parameters(run) if parameter != context]
    accepts = any(
        parameter.kind
        in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD, parameter.VAR_POSITIONAL)
        for parameter_name, parameter in inspect.signature(run).parameters.items()
        if parameter_name != context
    )
    if len(required) > 1 or not accepts:
        raise ConfigError(
            f"`run` of {name} must take the message and, if it wants, `ctx`; it takes ({', '.join(required)})"
        )


def _required_parameters(function: Callable[..., Any]) -> list[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]


def _function(run: Any) -> Any:
    return getattr(run, "__func__", run)


def _label(subject: Any) -> str:
    name = getattr(subject, "__qualname__", None)
    return f"{name}" if name else f"{subject!r} ({type(subject).__name__})"


async def _consume(produced: AsyncIterator[Any], ctx: Context) -> Any:
    items: list[Any] = []
    try:
        async for item in produced:
            items.append(item)
            if isinstance(item, str):
                ctx.emit(TextDelta(run=ctx.id, at=ctx.elapsed, text=item))
    finally:
        close = getattr(produced, "aclose", None)
        if close is not None:
            await close()
    if all(isinstance(item, str) for item in items):
        return "".join(items)
    return items
