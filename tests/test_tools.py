"""Tools: made from functions, called as functions, executed for the pipeline."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import math
import sys
import threading
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import pytest

from agentrt import blocking
from agentrt.blocking import BlockingWatch
from agentrt.call import ENCLOSING, RUN, Call, Entry
from agentrt.errors import TRANSIENT, ConfigError
from agentrt.middleware.timeout import Timeout
from agentrt.models.protocol import ToolSpec
from agentrt.pipeline import Pipeline
from agentrt.threads import WorkerThreads
from agentrt.tools import (
    EXECUTING,
    Tool,
    ToolArgumentError,
    ToolOptions,
    ToolWarning,
    as_tool,
    encode_result,
    tool,
)


class Run:
    """A run that notes which tools were called through it."""

    id = "run"
    deadline = math.inf

    def __init__(self) -> None:
        self.called: list[tuple[str, dict[str, Any]]] = []

    def observe(self, call: Call[Any], entry: Entry) -> None: ...

    def collect(self, call: Call[Any]) -> None: ...

    async def call_tool(self, tool: Tool[..., Any], arguments: dict[str, Any], /) -> Any:
        self.called.append((tool.name, arguments))
        return await tool.execute(arguments, self)


@contextmanager
def inside(run: Run) -> Iterator[Run]:
    token = RUN.set(run)
    try:
        yield run
    finally:
        RUN.reset(token)


@tool
async def weather(city: str, days: int = 1) -> str:
    """The weather.

    Args:
        city: where
    """
    return f"{city} {days}"


@tool
def add(a: int, b: int = 1) -> int:
    """Add two numbers."""
    return a + b


class Agent:
    def __init__(self, name: str) -> None:
        self.name = name

    @tool
    async def search(self, query: str) -> str:
        """Search."""
        return f"{self.name} {query}"

    @tool(name="lookup")
    def look_up(self, key: str) -> str:
        return f"{self.name} {key}"

    @staticmethod
    @tool
    def fixed(x: int) -> int:
        return x

    @tool
    @staticmethod
    def also_fixed(x: int) -> int:
        return x

    @tool
    @classmethod
    def of_class(cls, x: int) -> str:
        return f"{cls.__name__} {x}"

    def plain(self, x: int) -> str:
        return f"{self.name} {x}"


class Child(Agent):
    @tool
    async def search(self, query: str) -> str:  # type: ignore[override]
        """Search better."""
        return "better " + await super().search(query)


# --- making them ---------------------------------------------------------------------------------------


def test_a_tool_is_described_by_its_function() -> None:
    assert weather.spec() == ToolSpec(
        "weather",
        "The weather.",
        {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "where"},
                "days": {"type": "integer", "default": 1},
            },
            "required": ["city"],
            "additionalProperties": False,
        },
    )
    assert weather.schema == weather.spec().parameters
    assert weather.options == ToolOptions()
    assert (weather.is_async, add.is_async) == (True, False)
    assert repr(add) == "<tool add(a: 'int', b: 'int' = 1) -> 'int'>"


def test_a_tool_looks_like_its_function() -> None:
    assert (weather.__name__, weather.__qualname__, weather.__module__) == ("weather", "weather", __name__)  # type: ignore[attr-defined]
    assert weather.__doc__ is not None
    assert weather.__doc__.startswith("The weather.")
    assert inspect.unwrap(weather) is weather.function
    assert list(inspect.signature(weather).parameters) == ["city", "days"]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python 3.11 has no way to mark an object")
def test_an_async_tool_is_known_as_a_coroutine_function() -> None:
    assert inspect.iscoroutinefunction(weather)
    assert inspect.iscoroutinefunction(Agent("a").search)
    assert not inspect.iscoroutinefunction(add)


def test_options_are_kept() -> None:
    async def stage(call: Any, call_next: Any) -> Any: ...

    @tool(
        name="other-name",
        description="Other words.",
        idempotent=True,
        timeout=5,
        deadline=20.5,
        transient=OSError,
        max_attempts=2,
        on_failure="raise",
        middleware=[stage],
    )
    def f(x: int) -> int:
        """Words."""
        return x

    assert (f.name, f.description) == ("other-name", "Other words.")
    assert f.options == ToolOptions(True, 5.0, 20.5, (OSError,), 2, "raise", (stage,))
    assert f(3) == 3


def test_transient_types_are_labelled_by_the_tool() -> None:
    @tool(transient=(KeyError, OSError))
    def f() -> None: ...

    assert f.classify(FileNotFoundError()) is TRANSIENT
    assert f.classify(ValueError()) is None
    assert add.classify(OSError()) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": 0}, "timeout must be a number of seconds more than 0, not 0"),
        ({"deadline": "10"}, "deadline must be a number of seconds more than 0, not '10'"),
        ({"max_attempts": 0}, "max_attempts must be a whole number of at least 1, not 0"),
        (
            {"transient": "OSError"},
            r"transient must be exception types, for example \(OSError,\), not 'OSError'",
        ),
        ({"transient": (KeyboardInterrupt,)}, "transient must be exception types"),
        ({"on_failure": "ignore"}, "on_failure must be one of 'tell', 'raise', not 'ignore'"),
        ({"name": "two words"}, "a tool cannot be named 'two words'"),
        ({"name": "x" * 65}, "a tool cannot be named"),
        ({"name": 5}, "a tool cannot be named 5"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):

        @tool(**options)
        def f() -> None: ...


def generator() -> Iterator[int]:
    yield 1


async def async_generator() -> Any:
    yield 1


def unannotated(x): ...  # type: ignore[no-untyped-def]


def größe() -> None: ...


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (generator, "tool 'generator' is a generator, but a model takes one result"),
        (async_generator, "tool 'async_generator' is a generator"),
        (Agent, "is a class; a tool is a function or a method"),
        (functools.partial(add.function, 1), "is a partial; a tool is a function or a method"),
        (unannotated, "tool 'unannotated': parameter 'x' has no annotation"),
        (größe, r"a tool cannot be named 'größe'.*@tool\(name=\.\.\.\)"),
        (lambda: None, "a tool cannot be named '<lambda>'"),
        (weather, "'weather' is a tool already"),
        ("weather", "@tool goes on a function, not on 'weather'; options are given by name"),
        (None, None),
    ],
)
def test_what_cannot_be_a_tool_is_refused(given: Any, message: str | None) -> None:
    if message is None:
        assert callable(tool(given)), "@tool() without options gives the decorator"
        return
    with pytest.raises(ConfigError, match=message):
        tool(given)


def test_annotations_of_enclosing_functions_and_classes_are_found() -> None:
    Choice = Literal["a", "b"]

    def make() -> Tool[..., Any]:
        Inner = Annotated[Choice, "which"]

        class Holder:
            Own = Inner

            @tool
            def choose(self, x: Own, y: Inner) -> str:  # type: ignore[valid-type]
                return ""

        return Holder.choose

    assert make().schema["properties"] == {
        name: {"type": "string", "enum": ["a", "b"], "description": "which"} for name in ("x", "y")
    }


def test_attributes_of_the_function_do_not_disturb_the_tools_own() -> None:
    def f() -> None: ...

    f.name, f.options, f.mine = "wrong", "wrong", 1  # type: ignore[attr-defined]
    made = as_tool(f)
    assert (made.name, made.options, made.mine) == ("f", ToolOptions(), 1)  # type: ignore[attr-defined]


# --- methods -------------------------------------------------------------------------------------------


def test_methods_are_bound_to_their_object() -> None:
    agent = Agent("a")
    assert Agent.search.is_unbound
    assert not agent.search.is_unbound
    assert agent.search.instance is agent
    assert agent.search.origin is Agent.search
    assert list(agent.search.schema["properties"]) == ["query"]
    assert str(inspect.signature(agent.search)) == "(query: 'str') -> 'str'"
    assert agent.look_up("k") == "a k"
    assert Agent.look_up(agent, "k") == "a k"
    assert agent.search.__get__(Agent("b")) == agent.search, "bound once"


def test_bound_tools_are_equal_if_function_object_and_options_are() -> None:
    agent, other = Agent("a"), Agent("b")
    assert agent.search == agent.search
    assert hash(agent.search) == hash(agent.search)
    assert agent.search != other.search
    assert agent.search != Agent.search
    assert agent.search != "search"
    assert tool(timeout=1)(add.function) != add


def test_static_and_class_methods() -> None:
    agent = Child("a")
    assert agent.fixed(1) == Agent.fixed(1) == agent.also_fixed(1) == Agent.also_fixed(1) == 1
    assert not agent.also_fixed.is_unbound
    assert agent.of_class(1) == Child.of_class(1) == "Child 1"
    assert Agent.of_class(1) == "Agent 1"
    assert not Agent.of_class.is_unbound
    assert list(Agent.of_class.schema["properties"]) == list(agent.fixed.schema["properties"]) == ["x"]


def test_a_function_that_is_stored_on_a_class_is_not_bound() -> None:
    class Holder:
        stored = add

    assert Holder().stored is add


def test_as_tool_makes_one_tool_per_function() -> None:
    def f(x: int) -> int:
        return x

    assert as_tool(f) is as_tool(f)
    assert as_tool(f).name == "f"
    assert as_tool(add) is add
    agent = Agent("a")
    assert as_tool(agent.plain) == as_tool(agent.plain)
    assert as_tool(agent.plain).origin is as_tool(Agent("b").plain).origin
    assert as_tool(agent.plain)(1) == "a 1"


def test_a_plain_function_that_cannot_be_a_tool_is_refused_with_its_line() -> None:
    place = f"test_tools.py:{unannotated.__code__.co_firstlineno}: "
    with pytest.raises(ConfigError, match=rf"{place}tool 'unannotated': parameter 'x' has no annotation"):
        as_tool(unannotated)
    with pytest.raises(ConfigError, match=r"^'weather' is a str; a tool is a function"):
        as_tool("weather")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"y": 1}, "tool 'slow' has no parameter 'y'; it has: x, z"),
        ({"x": 1, "w": 1}, "tool 'slow' has no parameter 'w'; it has: x, z"),
        ({"z": 1}, "tool 'slow' needs 'x'; it has: x, z"),
        ({"self": 1}, "tool 'slow' has no parameter 'self'; it has: x, z"),
        ({"x": 1}, None),
        ({"x": 1, "z": 2, "ctx": None}, None),
    ],
)
def test_arguments_are_checked_against_the_parameters_before_a_call(
    arguments: dict[str, Any], message: str | None
) -> None:
    class Holder:
        @tool
        async def slow(self, ctx: Any, x: int, z: int = 0) -> int:
            return x + z

    if message is None:
        Holder().slow.check(arguments)
        return
    with pytest.raises(TypeError) as caught:
        Holder().slow.check(arguments)
    assert str(caught.value) == message


def test_a_tool_without_parameters_says_so() -> None:
    @tool
    def now() -> str:
        return ""

    with pytest.raises(TypeError, match=r"^tool 'now' has no parameter 'y'; it takes none$"):
        now.check({"y": 1})


def test_as_tool_binds_what_was_taken_from_a_class_body() -> None:
    agent = Agent("a")
    assert as_tool(Agent.search, instance=agent) == agent.search
    assert as_tool(agent.search, instance=Agent("b")) == agent.search
    with pytest.raises(ConfigError, match=r"tool 'search' is a method without its object.*`self\.search`"):
        as_tool(Agent.search)


def test_classmethod_around_tool_is_bound_to_the_class() -> None:
    class Holder:
        @classmethod
        @tool
        def f(cls, x: int) -> str:
            return f"{cls.__name__} {x}"

    made = as_tool(Holder.f)
    assert list(made.schema["properties"]) == ["x"]
    assert made(1) == "Holder 1"


# --- calling them --------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_outside_of_a_run_a_tool_is_plain_python() -> None:
    assert await weather("Rome") == "Rome 1"
    assert add(1, b=2) == 3
    assert await Agent("a").search("q") == "a q"
    with pytest.raises(TypeError):
        weather()  # type: ignore[call-arg]


@pytest.mark.asyncio
async def test_inside_a_run_an_async_tool_goes_through_the_run() -> None:
    with inside(Run()) as run:
        assert await weather("Rome", days=2) == "Rome 2"
        assert await asyncio.gather(weather("a"), weather("b")) == ["a 1", "b 1"]
        assert await Agent("x").search("q") == "x q"
    assert run.called == [
        ("weather", {"city": "Rome", "days": 2}),
        ("weather", {"city": "a"}),
        ("weather", {"city": "b"}),
        ("search", {"query": "q"}),
    ]


@pytest.mark.asyncio
async def test_wrong_arguments_are_a_type_error_at_the_call_as_in_python() -> None:
    with inside(Run()) as run:
        with pytest.raises(TypeError, match="missing a required argument: 'city'"):
            weather()  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="unexpected keyword argument 'town'"):
            weather("Rome", town="Rome")  # type: ignore[call-arg]
    assert run.called == []


@tool
async def countdown(n: int) -> list[int]:
    return [n, *(await countdown(n - 1))] if n else []


@tool
async def trip(city: str) -> str:
    return "trip: " + await weather(city)


@pytest.mark.asyncio
async def test_recursion_is_plain_and_another_tool_is_not() -> None:
    with inside(Run()) as run:
        assert await countdown(2) == [2, 1]
        assert await trip("Rome") == "trip: Rome 1"
    assert [name for name, _ in run.called] == ["countdown", "trip", "weather"]


@pytest.mark.asyncio
async def test_super_is_plain() -> None:
    with inside(Run()) as run:
        assert await Child("c").search("q") == "better c q"
    assert run.called == [("search", {"query": "q"})]


@pytest.mark.asyncio
async def test_the_same_tool_of_another_run_goes_through_that_run() -> None:
    child = Run()

    @tool
    async def delegate(n: int) -> int:
        if n == 0:
            return 0
        with inside(child):
            return 1 + await delegate(n - 1)

    with inside(Run()) as run:
        assert await delegate(1) == 1
    assert (len(run.called), len(child.called)) == (1, 1)


@pytest.mark.asyncio
async def test_a_sync_tool_called_directly_in_a_run_runs_plainly_and_warns_once() -> None:
    @tool
    def f(x: int) -> int:
        return x

    agent = Agent("a")
    with inside(Run()) as run:
        with pytest.warns(
            ToolWarning, match=r"tool 'f' is synchronous.*`await ctx\.tool\(f, \.\.\.\)`"
        ) as caught:
            assert f(1) == 1
        assert caught[0].filename == __file__
        assert f(2) == 2
        with pytest.warns(ToolWarning, match="tool 'lookup'"):
            assert agent.look_up("k") == "a k"
        assert Agent("b").look_up("k") == "b k"
    assert run.called == []


@pytest.mark.asyncio
async def test_in_a_worker_thread_sync_tools_call_each_other_without_a_warning() -> None:
    @tool
    def inner(x: int) -> int:
        return x + 1

    @tool
    def outer(x: int) -> int:
        return inner(x) + 1

    with inside(Run()) as run:
        assert await run.call_tool(outer, {"x": 1}) == 3


@pytest.mark.asyncio
async def test_in_a_loop_of_its_own_a_sync_tool_calls_async_ones_plainly() -> None:
    @tool
    def bridge(city: str) -> str:
        return asyncio.run(_ask(city))

    async def _ask(city: str) -> str:
        return await weather(city)

    pipeline = Pipeline(inner_first=[Timeout()])
    with inside(Run()) as run:
        assert await pipeline.call(run.call_tool, bridge, {"city": "Rome"}) == "Rome 1"
    assert run.called == [("bridge", {"city": "Rome"})]


@pytest.mark.asyncio
async def test_the_context_is_not_for_the_caller_to_give() -> None:
    @tool
    async def asks(ctx: Any, city: str) -> tuple[Any, str]:
        return ctx, city

    with inside(Run()) as run:
        assert await asks(city="Rome") == (run, "Rome")  # type: ignore[call-arg]
        assert await asks(run, "Rome") == (run, "Rome")
        assert await asks(city="Rome", ctx=run) == (run, "Rome")
        with pytest.raises(TypeError, match="missing a required argument"):
            asks()  # type: ignore[call-arg]
    assert run.called == [("asks", {"city": "Rome"})] * 3
    assert list(asks.schema["properties"]) == ["city"]


# --- executing them ------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_execute_calls_the_plain_function_with_the_context() -> None:
    class Holder:
        @tool
        async def f(self, a: int, ctx: Any, /, b: int, *, c: int = 3) -> tuple[Any, ...]:
            return self, a, ctx, b, c

    holder = Holder()
    assert await holder.f.execute({"a": 1, "b": 2}, "ctx") == (holder, 1, "ctx", 2, 3)
    assert await weather.execute({"city": "Rome"}) == "Rome 1"


@pytest.mark.asyncio
async def test_positional_parameters_may_be_left_out() -> None:
    @tool
    async def f(a: int = 1, b: int = 2, /) -> tuple[int, int]:
        return a, b

    assert await f.execute({}) == (1, 2)
    assert await f.execute({"a": 5}) == (5, 2)
    assert await f.execute({"a": 5, "b": 6}) == (5, 6)
    assert await f.execute(f.decode('{"b": 7}')) == (1, 7)


@pytest.mark.asyncio
async def test_a_sync_tool_runs_in_a_named_thread_with_the_context_copied() -> None:
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("set")

    @tool
    def look() -> tuple[bool, str, str, Any]:
        thread = threading.current_thread()
        return thread is threading.main_thread(), thread.name, variable.get(), EXECUTING.get()

    threads = WorkerThreads(limit=1)
    main, name, value, execution = await look.execute({}, threads=threads)
    assert (main, name, value) == (False, "tool:look", "set")
    assert execution.tool is look
    assert EXECUTING.get() is None
    threads.close()


@pytest.mark.asyncio
async def test_a_sync_wrapper_may_hand_out_a_coroutine() -> None:
    def traced(function: Callable[..., Awaitable[str]]) -> Callable[..., Awaitable[str]]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Awaitable[str]:
            return function(*args, **kwargs)

        return wrapper

    @tool
    @traced
    async def ask(city: str) -> str:
        return f"asked {city}"

    assert not ask.is_async
    assert list(ask.schema["properties"]) == ["city"]
    assert await ask.execute({"city": "Rome"}) == "asked Rome"


@pytest.mark.asyncio
async def test_execution_is_marked_and_unmarked_also_on_failure() -> None:
    seen: list[Any] = []

    @tool
    async def fail() -> None:
        seen.append(EXECUTING.get())
        raise ValueError("no")

    with inside(Run()) as run, pytest.raises(ValueError, match="no"):
        await fail.execute({})
    assert (seen[0].tool, seen[0].run, seen[0].name) == (fail, run, "fail")
    assert seen[0].code is fail.function.__code__
    assert EXECUTING.get() is None


@pytest.mark.asyncio
async def test_an_execution_that_the_collector_closes_in_a_foreign_context_is_quiet() -> None:
    @tool
    async def waits() -> None:
        await asyncio.get_running_loop().create_future()

    coroutine = waits.execute({})
    coroutine.send(None)
    contextvars.Context().run(coroutine.close)
    EXECUTING.set(None)


@pytest.mark.asyncio
async def test_arguments_and_results_go_through_the_schema() -> None:
    assert weather.decode('{"city": "Rome"}') == {"city": "Rome"}
    with pytest.raises(ToolArgumentError, match="argument `city`: expected str, got int"):
        weather.decode('{"city": 1}')
    assert add.encode({"a": 1}) == encode_result({"a": 1}, tool="add") == '{"a":1}'
    with pytest.raises(ConfigError, match="tool 'add' returned a object"):
        add.encode(object())


async def _comes(told: list[Any]) -> None:
    """The thread that watches has found the tool; now it tells."""
    async with asyncio.timeout(30):
        while not told:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.mark.asyncio
async def test_an_async_tool_that_blocks_the_loop_is_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocking, "STUCK_FACTOR", 1000.0)  # told by the loop, however long it takes
    told: list[str] = []

    class Told(Run):
        def warn(self, message: str) -> None:
            told.append(message)

    watch = BlockingWatch.of(asyncio.get_running_loop())
    watch.threshold = 0.05

    def block() -> None:
        give_up = time.monotonic() + 20
        while not watch._reported and time.monotonic() < give_up:
            time.sleep(0.005)

    @tool
    async def stuck() -> None:
        block()

    with inside(Told()):
        await stuck()
    await _comes(told)
    (message,) = told
    assert message.startswith("tool 'stuck' blocked the event loop for ")
    assert "in stuck, inside " in message


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python 3.11 does not tell a task's context")
@pytest.mark.asyncio
async def test_a_subtask_that_blocks_is_blamed_on_its_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocking, "STUCK_FACTOR", 1000.0)
    watch = BlockingWatch.of(asyncio.get_running_loop())
    watch.threshold = 0.05

    async def block() -> None:
        give_up = time.monotonic() + 20
        while not watch._reported and time.monotonic() < give_up:
            time.sleep(0.005)  # noqa: ASYNC251

    @tool
    async def parent() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(block())

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        await parent.execute({})
        await _comes(caught)
    assert "tool 'parent' blocked the event loop" in str(caught[0].message)


@pytest.mark.asyncio
async def test_an_enclosing_call_without_a_loop_of_its_own_is_no_obstacle() -> None:
    async def look() -> Any:
        return ENCLOSING.get()

    assert await Pipeline(inner_first=[Timeout()]).call(look) is not None
    with inside(Run()) as run:
        await Pipeline(inner_first=[Timeout()]).call(weather, "Rome")
    assert run.called == [("weather", {"city": "Rome"})]
