"""`@tool`: a function that a model may call, and that stays a function.

    @tool(idempotent=True, timeout=10)
    async def weather(city: str) -> str:
        "The weather in a city."

Its JSON Schema comes from the signature. Inside a run a direct call of an async tool goes through the pipeline, except
from inside that same tool; outside a run it is plain Python.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import sys
import types
import warnings
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextvars import ContextVar
from types import CodeType
from typing import Any, Concatenate, Generic, Literal, ParamSpec, Protocol, TypeVar, cast, overload

from msgspec import Struct

from agentrt import options
from agentrt.blocking import BlockingWatch
from agentrt.call import ENCLOSING, RUN, Middleware
from agentrt.errors import TRANSIENT, ConfigError, Label
from agentrt.models.protocol import ToolSpec
from agentrt.schema import Arguments, ToolArgumentError, encode_result
from agentrt.signature import REQUIRED
from agentrt.threads import WorkerThreads, shared
from agentrt.tool_functions import check_callable, checked_name, place, scope_of, unwrap

__all__ = [
    "EXECUTING",
    "Execution",
    "Tool",
    "ToolArgumentError",
    "ToolOptions",
    "ToolRun",
    "ToolWarning",
    "as_tool",
    "encode_result",
    "tool",
]

P = ParamSpec("P")
P2 = ParamSpec("P2")
R = TypeVar("R")
S = TypeVar("S")


class ToolWarning(UserWarning):
    """A tool works, but not as its author probably thinks."""


class Execution(Struct, frozen=True, eq=False):
    """A tool at work: `tool`, and the `run` that it works for, or None."""

    tool: Tool[..., Any]
    run: Any

    @property
    def name(self) -> str:
        return self.tool.name

    @property
    def code(self) -> CodeType | None:
        """Where the blocking watch finds the tool on the stack."""
        return getattr(self.tool.function, "__code__", None)


EXECUTING: ContextVar[Execution | None] = ContextVar("agentrt_executing", default=None)
"""The tool whose function we are inside of: calling it again from there (recursion, `super()`) is plain Python."""


class ToolRun(Protocol):
    """What a direct call needs of the run in `agentrt.call.RUN`."""

    def call_tool(self, tool: Tool[..., Any], arguments: dict[str, Any], /) -> Awaitable[Any]: ...


class ToolOptions(Struct, frozen=True):
    """How the pipeline treats a tool; None leaves the configured default.

    `idempotent` (False): a call may be repeated even if its effect is in doubt. `timeout`: seconds for one attempt.
    `deadline`: seconds for the whole call. `transient`: exception types that may not happen again. `max_attempts`: per
    target. `on_failure`: what a call that the pipeline gave up on does: "tell" the model, or "raise" and end the run.
    `middleware`: stages for this tool only.
    """

    idempotent: bool = False
    timeout: float | None = None
    deadline: float | None = None
    transient: tuple[type[BaseException], ...] = ()
    max_attempts: int | None = None
    on_failure: Literal["tell", "raise"] | None = None
    middleware: tuple[Middleware, ...] = ()


DEFAULTS = ToolOptions()


class Tool(Generic[P, R]):
    """A tool made by `@tool` or `as_tool`. Call it as the function it is.

    `name`, `description`: what the model reads. `function`: the plain function. `options`: a `ToolOptions`.
    `is_async`: it is a coroutine function. `instance`: what it is bound to, as a method, or None; `origin`: the tool
    before it was bound (itself if it never was).
    """

    name: str
    description: str
    function: Callable[..., Any]
    options: ToolOptions
    arguments: Arguments
    is_async: bool
    instance: Any
    origin: Tool[..., Any]

    def __init__(
        self,
        function: Callable[P, R],
        *,
        name: str | None = None,
        description: str | None = None,
        options: ToolOptions = DEFAULTS,
        scope: Mapping[str, Any] | None = None,
    ) -> None:
        """`scope`: names of enclosing functions, for annotations that are still text."""
        if isinstance(function, Tool):
            raise ConfigError(f"{function.name!r} is a tool already; give all options in one @tool(...)")
        plain, binds = unwrap(function)
        known_as = checked_name(name, plain)
        check_callable(plain, known_as)
        functools.update_wrapper(self, plain)  # first: a function may have attributes named as ours
        self.name = known_as
        self.function = plain
        self.options = options
        self.instance = None
        self.origin = cast("Tool[..., Any]", self)
        self._binds = binds
        self.__signature__ = inspect.signature(plain)
        self.is_async = inspect.iscoroutinefunction(plain)
        self.arguments = Arguments.of(plain, tool=self.name, scope=scope, skip_first=binds is not None)
        signature = self.arguments.signature
        self.description = signature.description if description is None else description
        self._context = signature.context
        self._positional = signature.positional
        self._has_warned = [False]  # shared with the bound copies
        if self.is_async and sys.version_info >= (3, 12):
            inspect.markcoroutinefunction(self)

    @property
    def is_unbound(self) -> bool:
        """True for a method that was not taken from an object yet."""
        return self._binds is not None and self.instance is None

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON Schema of the arguments."""
        return self.arguments.schema

    def spec(self) -> ToolSpec:
        """The tool as a model sees it."""
        return ToolSpec(self.name, self.description, self.schema)

    def decode(self, arguments: str | bytes | Mapping[str, Any]) -> dict[str, Any]:
        """What a model sent, as Python values; raises `ToolArgumentError`, worded for the model."""
        return self.arguments.decode(arguments)

    def encode(self, result: Any) -> str:
        """A result as the model sees it; raises `ConfigError` if it has no JSON form."""
        return encode_result(result, tool=self.name)

    def check(self, arguments: Mapping[str, Any]) -> None:
        """Raise `TypeError` if `arguments`, by name, are not those of the function: before it is called, not from
        inside. Their values are not looked at."""
        parameters = {parameter.name: parameter for parameter in self.arguments.signature.parameters}
        unknown = next((name for name in arguments if name not in parameters and name != self._context), None)
        missing = [
            name
            for name, parameter in parameters.items()
            if parameter.default is REQUIRED and name not in arguments
        ]
        if unknown is None and not missing:
            return
        known = f"it has: {', '.join(parameters)}" if parameters else "it takes none"
        if unknown is not None:
            raise TypeError(f"tool {self.name!r} has no parameter {unknown!r}; {known}")
        raise TypeError(f"tool {self.name!r} needs {', '.join(map(repr, missing))}; {known}")

    def classify(self, error: BaseException) -> Label | None:
        """What the tool's author knows about an error: `transient=` types may not happen again."""
        return TRANSIENT if isinstance(error, self.options.transient) else None

    # --- as a function ---------------------------------------------------------------------------------

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        run = RUN.get()
        if run is None or self._is_inside(run):
            return cast("R", self._call_plain(args, kwargs))
        if self.is_async:
            if _is_in_foreign_loop():
                return cast("R", self._call_plain(args, kwargs))
            arguments = self._bind(args, kwargs)
            return cast("R", _through(cast("ToolRun", run), self, arguments))
        self._warn_of_direct_call()
        return cast("R", self._call_plain(args, kwargs))

    @overload
    def __get__(self, instance: None, owner: type, /) -> Tool[P, R]: ...

    @overload
    def __get__(
        self: Tool[Concatenate[S, P2], R], instance: S, owner: type | None = None, /
    ) -> Tool[P2, R]: ...

    def __get__(self, instance: Any, owner: type | None = None, /) -> Any:
        target = owner if self._binds == "class" and owner is not None else instance
        if self._binds is None or target is None or self.instance is not None:
            return self
        bound = object.__new__(type(self))
        bound.__dict__.update(self.__dict__)
        bound.instance = target
        bound.__signature__ = _without_first(self.__signature__)
        return bound

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tool):
            return NotImplemented
        return (
            self.function is other.function
            and self.instance is other.instance
            and self.name == other.name
            and self.options == other.options
        )

    def __hash__(self) -> int:
        return hash((self.function, id(self.instance), self.name))

    def __repr__(self) -> str:
        return f"<tool {self.name}{self.__signature__}>"

    # --- for the pipeline's terminal -------------------------------------------------------------------

    async def execute(
        self, arguments: Mapping[str, Any], ctx: Any = None, *, threads: WorkerThreads | None = None
    ) -> Any:
        """Call the plain function with `arguments` (Python values, by name) and, if it has a place for it, `ctx`.

        An async function is awaited; a sync one runs in a worker thread of `threads` (default: the shared ones)
        with the context copied.
        """
        args, kwargs = self._ordered(arguments, ctx)
        execution = Execution(self, RUN.get())
        token = EXECUTING.set(execution)
        try:
            if self.is_async:
                return await self._execute_async(execution, args, kwargs)
            call = functools.partial(self.function, *args, **kwargs)
            result = await (threads or shared()).run(call, name=f"tool:{self.name}")
            # A wrapper that is no coroutine function may still hand out a coroutine.
            return await result if inspect.isawaitable(result) else result
        finally:
            # A coroutine that the garbage collector closes runs its cleanup in a foreign context.
            with contextlib.suppress(ValueError):
                EXECUTING.reset(token)

    async def _execute_async(self, execution: Execution, args: list[Any], kwargs: dict[str, Any]) -> Any:
        task = asyncio.current_task()
        if task is None:
            return await self.function(*args, **kwargs)
        watch = _watch_of(task.get_loop())
        outer = watch.enter(task, execution)
        try:
            return await self.function(*args, **kwargs)
        finally:
            watch.leave(task, outer)

    # --- inside ----------------------------------------------------------------------------------------

    def _call_plain(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.instance is not None:
            return self.function(self.instance, *args, **kwargs)
        return self.function(*args, **kwargs)

    def _is_inside(self, run: Any) -> bool:
        """True from within the function itself, or from an override of it that calls `super()`."""
        execution = EXECUTING.get()
        if execution is None or execution.run is not run:
            return False
        inner = execution.tool
        if inner.function is self.function:
            return True
        return self.instance is not None and inner.instance is self.instance and inner.name == self.name

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments by name, without `self` and the context; a TypeError as Python would raise it."""
        signature = self.__signature__
        context = self._context
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            if context is None or context in kwargs:
                raise
            # The context is not for the caller to give.
            bound = signature.bind(*args, **kwargs, **{context: None})
        arguments = dict(bound.arguments)
        if context is not None:
            arguments.pop(context, None)
        return arguments

    def _ordered(self, arguments: Mapping[str, Any], ctx: Any) -> tuple[list[Any], dict[str, Any]]:
        kwargs = dict(arguments)
        if self._context is not None:
            kwargs[self._context] = ctx
        args = [] if self.instance is None else [self.instance]
        if self._positional:
            given = [index for index, name in enumerate(self._positional) if name in kwargs]
            names = self._positional[: given[-1] + 1 if given else 0]
            # A default has to be written out where a later one is given by position.
            args += [kwargs.pop(name, self.__signature__.parameters[name].default) for name in names]
        return args, kwargs

    def _warn_of_direct_call(self) -> None:
        if self._has_warned[0] or asyncio._get_running_loop() is None:
            return  # in a worker thread there is no other way to call it
        self._has_warned[0] = True
        warnings.warn(
            f"tool {self.name!r} is synchronous: called directly it blocks the event loop and goes past the pipeline; "
            f"use `await ctx.tool({self.function.__name__}, ...)`",
            ToolWarning,
            stacklevel=3,
        )


# --- making them ---------------------------------------------------------------------------------------


@overload
def tool(function: Callable[P, R], /) -> Tool[P, R]: ...


@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    idempotent: bool = False,
    timeout: float | None = None,
    deadline: float | None = None,
    transient: type[BaseException] | tuple[type[BaseException], ...] = (),
    max_attempts: int | None = None,
    on_failure: Literal["tell", "raise"] | None = None,
    middleware: Iterable[Middleware] = (),
) -> Callable[[Callable[P, R]], Tool[P, R]]: ...


def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    idempotent: bool = False,
    timeout: float | None = None,
    deadline: float | None = None,
    transient: type[BaseException] | tuple[type[BaseException], ...] = (),
    max_attempts: int | None = None,
    on_failure: Literal["tell", "raise"] | None = None,
    middleware: Iterable[Middleware] = (),
) -> Any:
    """Make a function a tool: `@tool`, or `@tool(...)` with options.

    `name` (the function's), `description` (its docstring): what the model reads. The rest, all optional, is for the
    pipeline: see `ToolOptions`. Raises `ConfigError` for a signature that no model could fill in.
    """
    if (
        function is not None
        and not callable(function)
        and not isinstance(function, classmethod | staticmethod)
    ):
        raise ConfigError(f"@tool goes on a function, not on {function!r}; options are given by name")
    chosen = ToolOptions(
        idempotent=bool(idempotent),
        timeout=None if timeout is None else options.seconds("timeout", timeout),
        deadline=None if deadline is None else options.seconds("deadline", deadline),
        transient=_exception_types(transient),
        max_attempts=None if max_attempts is None else options.count("max_attempts", max_attempts),
        on_failure=None if on_failure is None else _on_failure(on_failure),
        middleware=tuple(middleware),
    )
    frame = sys._getframe(1)

    def decorate(decorated: Callable[..., Any]) -> Tool[..., Any]:
        return Tool(
            decorated, name=name, description=description, options=chosen, scope=scope_of(frame, decorated)
        )

    return decorate if function is None else decorate(function)


def as_tool(function: Callable[..., Any], *, instance: Any = None) -> Tool[..., Any]:
    """`function` as a tool with default options, the same one each time; a tool as it is.

    `instance`: what a tool is bound to that was taken from a class body (`tools = [search]` beside `def search(self)`).
    """
    if isinstance(function, types.MethodType):
        made = _made(function.__func__).__get__(function.__self__, type(function.__self__))
    else:
        made = _made(function)
    if made.is_unbound:
        if instance is None:
            raise ConfigError(
                f"tool {made.name!r} is a method without its object; take it from one: `self.{made.name}`"
            )
        made = made.__get__(instance, type(instance))
    return made


def _made(function: Any) -> Tool[..., Any]:
    """The tool of a plain function, kept in the function's own attributes."""
    if isinstance(function, Tool):
        return function
    kept = getattr(function, "__agentrt_tool__", None)
    if isinstance(kept, Tool) and kept.function is function:
        return kept
    try:
        made: Tool[..., Any] = Tool(function)
    except ConfigError as error:
        # Of a decorated function the traceback shows the line; this one may be far from where it is used.
        raise ConfigError(f"{place(function)}{error}") from error
    if inspect.isfunction(function):
        function.__agentrt_tool__ = made  # type: ignore[attr-defined]
    return made


def _without_first(signature: inspect.Signature) -> inspect.Signature:
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def _exception_types(given: Any) -> tuple[type[BaseException], ...]:
    types_ = given if isinstance(given, tuple) else (given,)
    for type_ in types_:
        if not (isinstance(type_, type) and issubclass(type_, Exception)):
            raise ConfigError(f"transient must be exception types, for example (OSError,), not {type_!r}")
    return types_


def _on_failure(given: str) -> Literal["tell", "raise"]:
    return cast('Literal["tell", "raise"]', options.choice("on_failure", given, ("tell", "raise")))


# --- calling them --------------------------------------------------------------------------------------


async def _through(run: ToolRun, called: Tool[..., Any], arguments: dict[str, Any]) -> Any:
    return await run.call_tool(called, arguments)


def _is_in_foreign_loop() -> bool:
    """True in a loop that a sync tool started in its worker thread: the run's calls belong to the run's loop."""
    enclosing = ENCLOSING.get()
    if enclosing is None or enclosing.call is None:
        return False
    loop = asyncio._get_running_loop()
    return loop is not None and enclosing.call.record.loop is not loop


def _watch_of(loop: asyncio.AbstractEventLoop) -> BlockingWatch:
    watch = BlockingWatch.of(loop)
    if watch.find is None:
        watch.find = _execution_in
    return watch


def _execution_in(task: asyncio.Task[Any]) -> Execution | None:
    """The tool that started `task`; Python 3.11 does not tell a task's context."""
    get_context: Callable[[], Any] | None = getattr(task, "get_context", None)
    return None if get_context is None else get_context().get(EXECUTING)
